"""How good the models honestly are: five folds by patient over the whole data set, beside the trivial answers.

    python tests/benchmarks/quality.py [--families xgboost,logistic] [--data PATH]

Death and hospice are excluded, no patient is in two folds, the encoder and the calibration are fitted inside each training fold. An AUROC above 0.73 (any) or
0.72 (30d) means a leak until disproved: the script then ends with an error.
"""
import argparse
import sys
from time import perf_counter

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from health_predict.cohort import TARGETS, can_return, mix, outcome
from health_predict.data import find
from health_predict.evaluate import baselines, evaluate
from health_predict.features import encode, fit_encode
from health_predict.schema import check_file
from health_predict.settings import load_settings
from health_predict.train import calibrated, fit, fit_calibration, raw_log_odds

CEILING = {"any": 0.73, "30d": 0.72}

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--families", default="xgboost")
parser.add_argument("--data", default=None)
arguments = parser.parse_args()
families = arguments.families.split(",")
settings = load_settings(**({"data": {"source": arguments.data}} if arguments.data else {}))

frame = check_file(find(settings).path).rows
frame = frame[can_return(frame.discharge_disposition_id)].reset_index(drop=True)
outcomes = {t: outcome(frame.readmitted, t) for t in TARGETS}
patients = frame.patient_nbr.to_numpy()
folds = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(frame, outcomes["30d"], patients)
p = {(f, t): np.full(len(frame), np.nan) for f in families for t in TARGETS}
seconds = dict.fromkeys(p, 0.0)
for k, (train, test) in enumerate(folds):
    held = mix(patients[train] + 99) % np.uint64(100) < 12    # patients that calibrate
    learn, calibrate = train[~held], train[held]
    X, encoder = fit_encode(frame.iloc[learn], {t: y[learn] for t, y in outcomes.items()})
    X_calibrate, X_test = encode(frame.iloc[calibrate], encoder), encode(frame.iloc[test], encoder)
    for family, target in p:
        start, y = perf_counter(), outcomes[target]
        model = fit(family, X, y[learn], seed=0, n_threads=0)
        line = fit_calibration(raw_log_odds(model, X_calibrate), y[calibrate])
        p[family, target][test] = calibrated(raw_log_odds(model, X_test), line)
        seconds[family, target] += perf_counter() - start
    print(f"fold {k + 1} of 5", file=sys.stderr)

rows = []
for (family, target), scores in p.items():
    y = outcomes[target]
    found = evaluate(y, scores, 1 / (1 + getattr(settings.threshold, f"cost_ratio_{target}")), patients, resamples=200, seed=0)
    rows.append({"target": target, "model": family, **{k: found[k]["value"] for k in ("auroc", "auprc", "brier", "ece", "lift", "f1")},
                 "auroc interval": f"{found['auroc']['low']:.4f} to {found['auroc']['high']:.4f}", "seconds a fold": seconds[family, target] / 5})
for target, y in outcomes.items():
    rows += [{"target": target, "model": name, **found} for name, found in baselines(y, y.mean()).items()]
columns = ["target", "model", "auroc", "auroc interval", "auprc", "brier", "ece", "lift", "f1", "seconds a fold"]
print(pd.DataFrame(rows)[columns].sort_values(["target", "model"]).to_string(index=False, na_rep="", float_format=lambda v: f"{v:.4f}"))
leaks = [r for r in rows if r["model"] in families and r["auroc"] > CEILING[r["target"]]]
sys.exit(f"too good to be true: {leaks}" if leaks else 0)
