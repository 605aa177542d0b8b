"""The AUROC that the system expects of a batch before its outcomes are in, against what later turned out; beside NannyML's CBPE on the same predictions.

    python tests/benchmarks/estimate.py [--storage storage/policies] [--batches 10] [--policy system]

Reads a simulation that `policies.py` or `health-predict simulate` has left: the estimates are those that the decisions rested on when each batch came.
NannyML's dependencies clash with ours: NANNYML_PYTHON names the Python of an environment that has it; without it, its column is left out.
NannyML gets what it asks for: the same champion's predictions with outcomes, of patients that it didn't learn from, as its reference.
The goal: a mean absolute error of at most 0.010 (30d) and 0.017 (any), and at most half of NannyML's.
"""
import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from health_predict.bundle import Bundle
from health_predict.cohort import can_return, labelled_batches, outcome, side
from health_predict.fields import LABEL, TARGETS
from health_predict.performance import known
from health_predict.settings import load_settings
from health_predict.simulate import scored, under
from health_predict.storage import Tree, champion, read_json

CBPE = """
import sys, warnings
warnings.filterwarnings("ignore")
import nannyml, pandas as pd
reference, current = (pd.read_csv(o) for o in sys.argv[1:3])
estimator = nannyml.CBPE(problem_type="classification_binary", y_pred_proba="p", y_pred="flag", y_true="y", metrics=["roc_auc"], chunk_number=1)
found = estimator.fit(reference).estimate(current).filter(period="analysis").to_df()
print("AUROC", found[("roc_auc", "value")].iloc[0])
"""


def nannyml(python, reference, current):
    """NannyML's estimate of a batch's AUROC, by a Python that has it."""
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/{o}.csv" for o in ("reference", "current")]
        for frame, file in zip((reference, current), files, strict=True): frame.to_csv(file, index=False)
        silent = os.environ | {"NML_DISABLE_USAGE_LOGGING": "1", "PYTHONPATH": ""}
        done = subprocess.run([python, "-c", CBPE, *files], capture_output=True, text=True, env=silent)
    if done.returncode: sys.exit(f"{python}: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.split("AUROC")[-1])


def as_frame(p, threshold, y=None):
    frame = pd.DataFrame({"p": p, "flag": (p >= threshold).astype(int)})
    return frame if y is None else frame.assign(y=y)


def of_batch(settings, batch, python):
    """One row for each target: what was expected, what NannyML expects, what came true."""
    tree = Tree(settings)
    now, expected, truth = champion(tree, before=batch), read_json(tree.run(batch) / "performance.json")["estimate"], scored(settings, batch)
    bundle = Bundle(tree.models / now["path"], now["digest"])
    learnt = bundle.training["batches"]
    past = pd.concat([known(settings, batch, b).assign(batch=b) for b in labelled_batches(settings, batch) if b in learnt])
    past = past[side(past.patient_nbr, settings.split) == "test"]
    frame = pd.read_parquet(tree.run(batch) / "encounters.parquet")
    frame = frame[can_return(frame.discharge_disposition_id)]
    before, here = bundle.predict_frame(past), bundle.predict_frame(frame)
    for t in TARGETS:
        row = {"batch": batch, "target": t, "came true": truth[t]["auroc"]["value"], "expected": expected[t]["auroc"],
               "uncorrected": expected[t]["uncorrected"]}
        at = bundle.threshold(t)
        if python: row["NannyML"] = nannyml(python, as_frame(before[t], at, outcome(past[LABEL], t)), as_frame(here[t], at))
        yield row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", default="storage/policies")
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--policy", default="system")
    arguments = parser.parse_args()
    settings = under(load_settings(storage={"root": os.path.abspath(arguments.storage)}), arguments.policy, arguments.batches)
    python = os.environ.get("NANNYML_PYTHON")
    if not python: print("NannyML is left out: set NANNYML_PYTHON to the Python of an environment that has it", file=sys.stderr)
    elif not Path(python).is_file(): sys.exit(f"NANNYML_PYTHON = {python}: no such file")
    there = [b for b in range(1, arguments.batches + 1) if (Tree(settings).run(b) / "performance.json").is_file()]
    found = pd.DataFrame([row for b in there for row in of_batch(settings, b, python)])
    print(found.to_string(index=False, float_format=lambda v: f"{v:.4f}"))
    for target, goal in (("30d", .010), ("any", .017)):
        rows = found[found.target == target]
        errors = {k: float(np.mean(np.abs(rows[k] - rows["came true"]))) for k in ("expected", "uncorrected", "NannyML") if k in rows}
        half = f"; at most half of NannyML's {'met' if errors['expected'] <= errors['NannyML'] / 2 else 'NOT MET'}" if python else ""
        print(f"{target:4} mean absolute error: {', '.join(f'{k} {v:.4f}' for k, v in errors.items())}; "
              f"goal {goal:.3f} {'met' if errors['expected'] <= goal else 'NOT MET'}{half}")
