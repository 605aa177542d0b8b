"""How fast drift is told: ours against Evidently and against the floor, and ten million encounters against a reference.

    TEST_DATA_SET=diabetic_data.csv.zip python tests/benchmarks/drift_speed.py [--repeats 9] [--rows 10_000_000] [--only statistics,rows]

CPU seconds, medians; every part in this one process, one thread. Real encounters: batch 0 (20,353) is the reference, batch 1 (16,283) the current
one, all input fields. The floor is what nobody can go below who looks at every value once: each column factorised (text) or sorted (numbers).
Cached: the reference's profile is at hand, as it is after a promotion. Evidently's statistics are taken without its report: those that ours
computes too (four for a number, three for a category), and its default of one for each column.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"): os.environ[name] = "1"

import numpy as np
import pandas as pd

from health_predict.data import edges, unpacked
from health_predict.domain import tell_apart
from health_predict.drift import compare
from health_predict.fields import FIELDS, INPUTS
from health_predict.profile import Counts, Profile, profile, profile_file, read_profile, write_profile
from health_predict.schema import check_file
from health_predict.settings import load_settings
from health_predict.synthetic import chunks

NUMERIC = [o for o in INPUTS if FIELDS[o].kind == "integer"]
RULE = load_settings().drift


def floor(frame):
    for o in INPUTS:
        values = frame[o].to_numpy()
        if values.dtype == object: pd.factorize(values)
        else: np.sort(values)


def fresh(kept): return Profile(kept.rows, {k: Counts(v.levels, v.table) for k, v in kept.fields.items()}, {})    # nothing derived is remembered


def as_text(frame): return frame.assign(**{o: frame[o].fillna("missing").astype(str) for o in INPUTS if o not in NUMERIC})[list(INPUTS)]


def evidently_statistics(reference, current, methods=(None,)):
    """Its default test for each column, or those methods of `methods` that are for the column's kind."""
    from evidently.legacy.calculations.stattests.registry import get_stattest
    from evidently.legacy.core import ColumnType
    for o in INPUTS:
        kind = ColumnType.Numerical if o in NUMERIC else ColumnType.Categorical
        for method in methods if methods == (None,) else methods[kind]:
            get_stattest(reference[o], current[o], kind, method)(reference[o], current[o], kind, None)


def evidently_same(reference, current):
    """The statistics that ours computes, as far as it has them."""
    from evidently.legacy.core import ColumnType
    evidently_statistics(reference, current, {ColumnType.Numerical: ("ks", "wasserstein", "psi", "jensenshannon"),
        ColumnType.Categorical: ("chisquare", "psi", "jensenshannon")})


def evidently_preset(reference, current):
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset
    definition = DataDefinition(numerical_columns=NUMERIC, categorical_columns=[o for o in INPUTS if o not in NUMERIC])
    return Report([DataDriftPreset()]).run(Dataset.from_pandas(current, definition), Dataset.from_pandas(reference, definition))


def interleaved(repeats, **works):
    """Medians of CPU seconds; the works take turns, so that a busy machine is equally bad for all."""
    spent = {k: [] for k in works}
    for _ in range(repeats):
        for k, work in works.items():
            start = time.process_time()
            work()
            spent[k].append(time.process_time() - start)
    return {k: float(np.median(v)) for k, v in spent.items()}


def batches():
    named = os.environ.get("TEST_DATA_SET")
    if not named: sys.exit("set TEST_DATA_SET to diabetic_data.csv or its .zip")
    with tempfile.TemporaryDirectory() as folder: frame = check_file(unpacked(Path(named), Path(folder))).rows.sort_values("encounter_id")
    at = edges(len(frame), 5)
    return [frame.iloc[at[i]:at[i + 1]].reset_index(drop=True) for i in (0, 1)]


def statistics(repeats):
    a, b = batches()
    kept, texts = profile(a), [as_text(o) for o in (a, b)]
    compare(fresh(kept), profile(b), RULE)
    compare(kept, profile(b), RULE)
    evidently_statistics(*texts)
    spent = interleaved(repeats, **{"floor, both": lambda: (floor(a), floor(b)), "floor, current": lambda: floor(b),
        "ours, cold": lambda: compare(profile(a), profile(b), RULE), "ours, cached": lambda: compare(kept, profile(b), RULE),
        "Evidently, the same statistics": lambda: evidently_same(*texts),
        "Evidently, one default test each": lambda: evidently_statistics(*texts)})
    spent |= interleaved(max(1, repeats // 4), **{"Evidently, DataDriftPreset": lambda: evidently_preset(*texts),
        "ours, domain classifier (apart)": lambda: tell_apart(a, b, RULE)})
    print(f"CPU seconds, {len(a):,} reference and {len(b):,} current encounters, {len(INPUTS)} fields")
    for k, v in spent.items(): print(f"  {k:34} {v:.4f}")
    faster = [o for o in spent if "Evidently" in o]
    for ours, base in (("ours, cold", "floor, both"), ("ours, cached", "floor, current")):
        against = ", ".join(f"{spent[o] / spent[ours]:.1f} times faster than {o}" for o in faster)
        print(f"  {ours}: {against}; {spent[ours] / spent[base]:.2f} times the {base}")


def many_rows(rows):
    """Ten million encounters as a CSV, profiled in chunks in a process of their own, against a reference."""
    with tempfile.TemporaryDirectory() as folder:
        file, kept = Path(folder) / "many.csv", Path(folder) / "profile.json"
        distinct = min(rows, 200_000)
        parts = list(chunks(distinct))
        write_profile(kept, profile(pd.concat([typed(o) for o in parts[:2]])))
        bodies = [o.to_csv(index=False, header=False) for o in parts]
        with open(file, "w") as f:
            f.write(",".join(FIELDS) + "\n")
            for i in range(-(-rows // distinct)): f.writelines(bodies if i < rows // distinct else bodies[:-(-(rows % distinct) // len(parts[0]))])
        print(f"{rows:,} synthetic encounters ({distinct:,} different ones, repeated), {file.stat().st_size / 1e9:.2f} GB of CSV", flush=True)
        command = [sys.executable, __file__, "--profile", str(file), "--against", str(kept)]
        subprocess.run(command, check=True)


def typed(frame):
    with tempfile.TemporaryDirectory() as folder:
        frame.to_csv(Path(folder) / "part.csv", index=False)
        return check_file(Path(folder) / "part.csv").rows


def one_file(file, kept):
    start, cpu = time.perf_counter(), time.process_time()
    found, left_out = profile_file(file)
    done = compare(read_profile(kept), found, RULE)
    peak = next(int(o.split()[1]) / 1e6 for o in open("/proc/self/status") if o.startswith("VmHWM"))    # of this process; ru_maxrss knows its parent's
    print(f"  profiled and compared {found.rows:,} encounters ({left_out} left out): {time.perf_counter() - start:.1f} s, "
          f"{time.process_time() - cpu:.1f} CPU s, peak memory {peak:.2f} GB; alarm: {done['alarm']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--only", default="statistics,rows")
    parser.add_argument("--profile", help=argparse.SUPPRESS)
    parser.add_argument("--against", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.profile: one_file(given.profile, given.against)
    else:
        if "statistics" in given.only: statistics(given.repeats)
        if "rows" in given.only: many_rows(given.rows)
