"""What the drift detector finds, what it imagines, and how late: on real encounters, against Evidently's default preset on the same batches.

    TEST_DATA_SET=diabetic_data.csv.zip python tests/benchmarks/drift_quality.py [--nulls 400] [--repeats 20] [--evidently 100] [--only nulls,found,delay]

Null batches are drawn from the whole data set, so that nothing but chance tells them from their reference of 20,353 encounters; once as
random encounters, once as all encounters of random patients. Drift of known truth is injected into null batches. Evidently decides with the tests
and thresholds of its DataDriftPreset, computed column by column (the same values, without its pages); missing values are a category for it, since
it drops them else.
"""
import argparse
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import beta

from health_predict.data import unpacked
from health_predict.domain import tell_apart
from health_predict.drift import MEASURES, compare, thresholds
from health_predict.fields import FIELDS, INPUTS
from health_predict.inject import course, inject
from health_predict.profile import profile
from health_predict.schema import check_file
from health_predict.settings import load_settings

REFERENCE = 20_353    # encounters of batch 0
NUMERIC = [o for o in INPUTS if FIELDS[o].kind == "integer"]
STRENGTHS = {    # weak, moderate, major
    "shift": (.1, .25, .5), "scale": (.05, .12, .3), "missing": (.05, .15, .5), "swap": (.05, .15, .4), "new": (.01, .05, .2), "coding": (.05, .2, .6),
    "formulary": (.25, .6, 1.), "surge": (.05, .15, .4), "hospital": (.1, .25, .6)}
WHERE = {"missing": {"field": "race"}, "swap": {"field": "insulin", "level": "No", "to": "Up"}, "formulary": {"drug": "rosiglitazone", "to": ""}}


@cache
def encounters():
    """All real encounters, typed."""
    named = os.environ.get("TEST_DATA_SET")
    if not named: sys.exit("set TEST_DATA_SET to diabetic_data.csv or its .zip")
    with tempfile.TemporaryDirectory() as folder: return check_file(unpacked(Path(named), Path(folder))).rows


def draw(rows, how, rng):
    """A reference and a batch without drift: random encounters, or all encounters of random patients."""
    frame = encounters()
    if how == "encounters": order, after = rng.permutation(len(frame)), [REFERENCE, REFERENCE + rows]
    else:
        codes, people = pd.factorize(frame.patient_nbr)
        place = rng.permutation(len(people))[codes]
        order = np.argsort(place, kind="stable")
        ends = np.flatnonzero(np.diff(place[order], append=-1)) + 1    # only whole patients
        after = [int(ends[np.searchsorted(ends, o)]) for o in (REFERENCE, REFERENCE + rows)]
    return frame.iloc[order[:after[0]]].reset_index(drop=True), frame.iloc[order[after[0]:after[1]]].reset_index(drop=True)


def evidently(reference, current, fields=INPUTS):
    """The fields that Evidently's default preset calls drifted."""
    from evidently.legacy.calculations.stattests.registry import get_stattest
    from evidently.legacy.core import ColumnType
    found = set()
    for o in fields:
        kind = ColumnType.Numerical if o in NUMERIC else ColumnType.Categorical
        a, b = (f[o] if o in NUMERIC else f[o].fillna("missing").astype(str) for f in (reference, current))
        if get_stattest(a, b, kind, None)(a, b, kind, None).drifted: found.add(o)
    return found


def flagged(found, fields=INPUTS): return {o["name"] for o in found["features"] if o["flagged"] and o["name"] in fields}


def past(found, measure, fields):
    """The fields past the threshold of one measure alone, or significant after the correction."""
    limit = thresholds(load_settings().drift)
    near = [o for o in found["features"] if o["name"] in fields]
    if measure == "significance": return {o["name"] for o in near if o["p_adjusted"] <= load_settings().drift.false_alarms}
    return {o["name"] for o in near if o["statistics"].get(measure, 0) >= limit[measure]}


def null_batch(how, rows, with_evidently, seed):
    """Which methods raise an alarm on a batch without drift."""
    reference, current = draw(rows, how, np.random.default_rng([seed, rows, len(how)]))
    found = compare(profile(reference), profile(current), load_settings().drift)
    blind = compare(*(profile(o.drop(columns="patient_nbr")) for o in (reference, current)), load_settings().drift)
    return {"decision": bool(flagged(found)), "decision, patients not known": bool(flagged(blind)),
            **{o: bool(past(found, o, INPUTS)) for o in ("significance", *MEASURES)},
            **({"Evidently": bool(evidently(reference, current))} if with_evidently else {})}


def drifted_batch(kind, strength, rows, seed):
    """Which methods find an injected drift in a field that it changed."""
    reference, current = draw(rows, "patients", np.random.default_rng([seed, rows, 99]))
    after, truth = inject(current, kind, strength, seed, **WHERE.get(kind, {}))
    found = compare(profile(reference), profile(after), load_settings().drift)
    return {"decision": bool(flagged(found, truth.fields)), **{o: bool(past(found, o, truth.fields)) for o in ("significance", *MEASURES)},
            "domain classifier": tell_apart(reference, after, load_settings().drift, seed)["auroc"]["low"] > .5,
            "Evidently": bool(evidently(reference, after, truth.fields)), "changed": len(truth.encounters) / truth.rows}


def delay(kind, strength, rows, shape, seed):
    """Batches from the first with drift to the first alarm about it; NaN: none of eight."""
    rng, rule, out = np.random.default_rng([seed, 7]), load_settings().drift, {}
    reference, _ = draw(rows, "patients", rng)
    kept = profile(reference)
    for i, factor in enumerate(course(shape, 8, start=0, length=8)):
        _, current = draw(rows, "patients", rng)
        after, truth = inject(current, kind, strength * factor, seed, **WHERE.get(kind, {}))
        found = compare(kept, profile(after), rule)
        if flagged(found, truth.fields): out.setdefault("decision", i)
        if "Evidently" not in out and evidently(reference, after, truth.fields): out["Evidently"] = i
        if len(out) == 2: break
    return out


def interval(k, n): return beta.ppf(.025, k, n - k + 1) if k else 0., beta.ppf(.975, k + 1, n - k) if k < n else 1.    # Clopper and Pearson


def show(rows): print(pd.DataFrame(rows).to_string(index=False, float_format=lambda v: f"{v:.3f}", na_rep="–"), "\n", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nulls", type=int, default=400)
    parser.add_argument("--evidently", type=int, default=100, help="null batches that Evidently sees too")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--sizes", default="500,2000,16000")
    parser.add_argument("--rows", type=int, default=2000, help="of a batch with drift")
    parser.add_argument("--only", default="nulls,found,delay")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    given = parser.parse_args()
    encounters()
    with ProcessPoolExecutor(given.workers) as pool:
        if "nulls" in given.only:
            rows = []
            for how in ("encounters", "patients"):
                for n in map(int, given.sizes.split(",")):
                    made = pd.DataFrame([*pool.map(partial(null_batch, how, n, True), range(given.evidently)),
                                         *pool.map(partial(null_batch, how, n, False), range(given.evidently, given.nulls), chunksize=8)])
                    low, high = interval(int(made.decision.sum()), len(made))
                    rows.append({"drawn by": how, "rows": n, "batches": len(made), "decision": made.decision.mean(), "from": low, "to": high,
                                 **made.drop(columns="decision").mean().to_dict()})
                    print(how, n, f"{made.decision.mean():.3f}", file=sys.stderr, flush=True)
            print("Share of batches without drift in which any field raises an alarm")
            show(rows)
        if "found" in given.only:
            rows = []
            for kind, strengths in STRENGTHS.items():
                for word, strength in zip(("weak", "moderate", "major"), strengths, strict=True):
                    made = pd.DataFrame(list(pool.map(partial(drifted_batch, kind, strength, given.rows), range(given.repeats))))
                    rows.append({"drift": kind, "": word, "strength": strength, **made.mean().to_dict()})
                print(kind, file=sys.stderr, flush=True)
            print(f"Share of {given.repeats} batches of {given.rows} encounters in which injected drift is found in a field that it changed")
            show(rows)
        if "delay" in given.only:
            rows = []
            for kind, strengths in STRENGTHS.items():
                for shape in ("sudden", "gradual"):
                    made = pd.DataFrame(list(pool.map(partial(delay, kind, strengths[1], given.rows, shape), range(max(3, given.repeats // 4)))),
                                        columns=["decision", "Evidently"])
                    rows.append({"drift": kind, "course": shape, **{f"{o}, found": made[o].notna().mean() for o in made},
                                 **{f"{o}, batches late": made[o].mean() for o in made}})
            print(f"Batches of {given.rows} encounters until the first alarm about a moderate drift; gradual: in eight steps")
            show(rows)
