"""What TPE and early stopping are worth: batch 0 searched as the system does it, at random, and without early stopping, with the same budget, in one run.

    python tests/benchmarks/search.py [--trials 40] [--targets any,30d] [--families xgboost,forest] [--data PATH] [--seconds 0] [--concurrency 0] [--plot PATH]

`saved` is what the trials that were stopped early would have taken, had they gone on as they began. Ray's start, which comes once, is told apart. The test
patients are not touched: the figures are the validation patients', and compare searches, not models.
"""
import argparse
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd

from health_predict.cohort import can_return, outcome, side
from health_predict.data import edges, find
from health_predict.encode import encode
from health_predict.features import fit_encode
from health_predict.fields import TARGETS
from health_predict.schema import check_file
from health_predict.search import cores, ray_session, run_trials
from health_predict.trial import STEPS
from health_predict.settings import load_settings

SEARCHES = {"TPE with ASHA": {}, "random with ASHA": {"random_trials": 10**6}, "TPE, none stopped": {"grace": STEPS}}

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--trials", type=int, default=40)
parser.add_argument("--targets", default="any")
parser.add_argument("--families", default="logistic,forest,xgboost")
parser.add_argument("--data", default=None)
parser.add_argument("--seconds", type=float, default=0, help="time budget of each search; 0: none")
parser.add_argument("--concurrency", type=int, default=0, help="trials at a time; 0: one per core")
parser.add_argument("--plot", default=None, help="where to draw the best AUROC over time: .svg or .png")
arguments = parser.parse_args()
budget = {"trials": arguments.trials, "time_budget": arguments.seconds, "concurrency": arguments.concurrency}
settings = load_settings(search=budget, **({"data": {"source": arguments.data}} if arguments.data else {}))

frame = check_file(find(settings).path).rows.sort_values("encounter_id")
frame = frame.head(edges(len(frame), settings.data.batches)[1])
frame = frame[can_return(frame.discharge_disposition_id)].reset_index(drop=True)
at = side(frame.patient_nbr, settings.split)
outcomes = {t: outcome(frame.readmitted, t) for t in TARGETS}
X, encoder = fit_encode(frame[at == "train"], {t: y[at == "train"] for t, y in outcomes.items()})
X_validation = encode(frame[at == "validation"], encoder)


def best_so_far(trials: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """When each trial ended, and the best AUROC by then."""
    ended = sorted(trials, key=lambda o: o["at"])
    return np.array([o["at"] for o in ended]), np.maximum.accumulate([o["validation"]["auroc"] for o in ended])


rows, curves = [], {}
start = perf_counter()
with tempfile.TemporaryDirectory() as folder, ray_session(settings.search, X.nbytes + X_validation.nbytes):
    print(f"{len(X):,} encounters to learn from, {len(X_validation):,} to validate on, {X.shape[1]} columns; {cores(settings.search)} trials at a time; "
          f"Ray started in {perf_counter() - start:.1f} s", flush=True)
    for target in arguments.targets.split(","):
        train, validation = (X, outcomes[target][at == "train"]), (X_validation, outcomes[target][at == "validation"])
        for name, changes in SEARCHES.items():
            start = perf_counter()
            trials = run_trials(target, arguments.families.split(","), train, validation, settings.threshold, settings.search.model_copy(update=changes),
                                Path(folder) / target / f"{name}.jsonl", settings.model.seed)
            took, (when, best) = perf_counter() - start, best_so_far(trials)
            curves[target, name] = (when, best)
            top = max(trials, key=lambda o: o["validation"]["auroc"])
            starts = sorted(o["started"] for o in trials)
            rows.append({"target": target, "search": name, "seconds": took, "trials": len(trials), "stopped early": sum(o["stopped_early"] for o in trials),
                         "saved (s)": sum(o["seconds"] * (STEPS / len(o["history"]) - 1) for o in trials if o["stopped_early"]),
                         "first trial after (s)": trials[0]["at"] - trials[0]["seconds"],
                         "between trials (s)": (took - sum(o["seconds"] for o in trials) / cores(settings.search)) / len(trials),
                         **{f"best at {q}%": best[max(0, -(-len(best) * q // 100) - 1)] for q in (25, 50, 75, 100)},
                         "found by": f"{top['family']} #{top['number']}", "families": " ".join(f"{f}:{sum(o['family'] == f for o in trials)}" for f in
                                                                                             arguments.families.split(","))})
            print(f"{target}, {name}: done in {took:.0f} s", flush=True)
for target in arguments.targets.split(","):
    goal = min(o["best at 100%"] for o in rows if o["target"] == target)
    for o in rows:
        if o["target"] != target: continue
        when, best = curves[target, o["search"]]
        o["reaches the worst's best after (s)"] = when[np.argmax(best >= goal)]
print(pd.DataFrame(rows).set_index(["target", "search"]).T.to_string(float_format=lambda v: f"{v:.4f}" if v < 1 else f"{v:.1f}"))

if arguments.plot:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    targets = arguments.targets.split(",")
    chart, axes = plt.subplots(1, len(targets), figsize=(6 * len(targets), 3.6), squeeze=False, layout="constrained")
    for (target, name), (when, best) in curves.items():
        axes[0, targets.index(target)].step(when, best, where="post", marker=".", label=name)
    for ax, target in zip(axes[0], targets, strict=True): ax.set(title=TARGETS[target], xlabel="seconds of search", ylabel="best AUROC so far"); ax.legend()
    chart.savefig(arguments.plot)
