"""How good the models honestly are: five folds by patient over the whole data set, beside the trivial answers and the temporal holdout.

    python tests/benchmarks/quality.py [--models xgboost,forest,xgboost+forest] [--history] [--no-temporal] [--data PATH]

Death and hospice are excluded, no patient is in two folds, and everything is fitted inside each training fold as the pipeline does it: 12% of its patients
calibrate, then the model learns from them too. `a+b` is the mean of two models' log-odds. `--history` adds a model that knows each patient's earlier encounters
(not their outcomes). The temporal holdout learns from the first 70% of the encounters and is judged on the last 30%, on patients it has never seen. An AUROC
above 0.73 (any) or 0.72 (30d) means a leak until disproved: the script then ends with an error.
"""
import argparse
import sys
from time import perf_counter

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from health_predict.calibrate import calibrated
from health_predict.cohort import can_return, mix, outcome, side
from health_predict.data import find
from health_predict.encode import encode
from health_predict.evaluate import baselines, evaluate
from health_predict.features import COUNTS, fit_encode
from health_predict.fields import TARGETS
from health_predict.schema import check_file
from health_predict.settings import load_settings
from health_predict.study import temporal_holdout
from health_predict.train import HYPERPARAMETERS, fit, fit_calibration, raw_log_odds

CEILING = {"any": 0.73, "30d": 0.72}
SHOWN = ("auroc", "auprc", "brier", "ece", "lift", "f1")


def history(frame: pd.DataFrame) -> np.ndarray:
    """What is known of each patient's earlier encounters when this one ends: their number, the last one's counts and the change since, its end."""
    ordered = frame.sort_values(["patient_nbr", "encounter_id"])
    by = ordered.groupby("patient_nbr", sort=False)
    n, before = by.cumcount(), by.shift(1)
    made = {"earlier": n, "stays_elsewhere": ordered.number_inpatient - n, "same_diagnosis": (ordered.diag_1 == before.diag_1).where(n > 0),
            "same_disposition": (ordered.discharge_disposition_id == before.discharge_disposition_id).where(n > 0),
            "left_home": (before.discharge_disposition_id == 1).where(n > 0),
            "times_this_diagnosis": ordered.groupby(["patient_nbr", "diag_1"], sort=False, dropna=False).cumcount(),
            "days_before": by.time_in_hospital.cumsum() - ordered.time_in_hospital}
    for c in COUNTS: made |= {f"last_{c}": before[c], f"change_{c}": ordered[c] - before[c]}
    return pd.DataFrame(made).reindex(frame.index).to_numpy(np.float32)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--models", default="xgboost", help="families, or means of families with +")
parser.add_argument("--history", action="store_true")
parser.add_argument("--no-temporal", action="store_true")
parser.add_argument("--data", default=None)
arguments = parser.parse_args()
models = arguments.models.split(",")
members = dict.fromkeys(f for m in models for f in m.split("+"))
settings = load_settings(**({"data": {"source": arguments.data}} if arguments.data else {}))

frame = check_file(find(settings).path).rows
frame = frame[can_return(frame.discharge_disposition_id)].reset_index(drop=True)
outcomes = {t: outcome(frame.readmitted, t) for t in TARGETS}
patients = frame.patient_nbr.to_numpy()
names = [*members, *(["xgboost with history"] if arguments.history else [])]
own = {"xgboost with history": history(frame)} if arguments.history else {}
p = {(m, t): np.full(len(frame), np.nan) for m in (*models, *own) for t in TARGETS}
seconds = dict.fromkeys(names, 0.0)
for k, (train, test) in enumerate(StratifiedGroupKFold(5, shuffle=True, random_state=0).split(frame, outcomes["30d"], patients)):
    held = mix(patients[train] + 99) % np.uint64(100) < 12    # patients that calibrate
    learn, calibrate = train[~held], train[held]
    X, encoder = fit_encode(frame.iloc[learn], {t: y[learn] for t, y in outcomes.items()})
    X = {"learn": X, "calibrate": encode(frame.iloc[calibrate], encoder), "test": encode(frame.iloc[test], encoder)}
    rows = {"learn": learn, "calibrate": calibrate, "test": test}
    for target, y in outcomes.items():
        scores = {}
        for name in names:
            start, family = perf_counter(), name.split()[0]
            Z = {o: np.hstack([X[o], own[name][rows[o]]]) if name in own else X[o] for o in X}
            first = fit(family, Z["learn"], y[learn], seed=0, n_threads=0)
            last = fit(family, np.vstack([Z["learn"], Z["calibrate"]]), y[np.concatenate([learn, calibrate])], seed=0, n_threads=0)
            scores[name] = raw_log_odds(first, Z["calibrate"]), raw_log_odds(last, Z["test"])
            seconds[name] += (perf_counter() - start) / 10
        for model in (*models, *own):
            mean = lambda i, model=model, scores=scores: np.mean([scores[f][i] for f in (model.split("+") if model in models else [model])], axis=0)
            p[model, target][test] = calibrated(mean(1), fit_calibration(mean(0), y[calibrate]))
    print(f"fold {k + 1} of 5", file=sys.stderr)


def row(target: str, model: str, found: dict, **more) -> dict:
    return {"target": target, "model": model, **{k: found[k]["value"] for k in SHOWN},
            "auroc interval": f"{found['auroc']['low']:.4f} to {found['auroc']['high']:.4f}", **more}


table = []
for (model, target), scores in p.items():
    threshold = 1 / (1 + getattr(settings.threshold, f"cost_ratio_{target}"))
    took = sum(seconds[f] for f in (model.split("+") if model in models else [model]))
    table.append(row(target, model, evaluate(outcomes[target], scores, threshold, patients, resamples=200, seed=0), **{"seconds a fold": took}))
if not arguments.no_temporal:
    cohort = frame.assign(side=side(frame.patient_nbr, settings.split))
    for target in TARGETS:
        found = temporal_holdout(cohort, target, "xgboost", HYPERPARAMETERS["xgboost"], settings.threshold)
        table.append(row(target, f"xgboost, later 30%, {found['n']:,} unseen", found))
for target, y in outcomes.items():
    table += [{"target": target, "model": name, **found} for name, found in baselines(y, y.mean()).items()]
columns = ["target", "model", "auroc", "auroc interval", *SHOWN[1:], "seconds a fold"]
print(pd.DataFrame(table)[columns].sort_values(["target", "model"]).to_string(index=False, na_rep="", float_format=lambda v: f"{v:.4f}"))
leaks = [o for o in table if "seconds a fold" in o and "history" not in o["model"] and o["auroc"] > CEILING[o["target"]]]
sys.exit(f"too good to be true: {leaks}" if leaks else 0)
