"""What letting the system decide is worth: never retrain, always retrain and this system on the real data, through the real pipeline.

    HEALTH_PREDICT_DATA=diabetic_data.csv.zip python tests/benchmarks/policies.py [--batches 10] [--storage FOLDER] [--processes N]

Scored prequentially: batch t by the champion that stood before it came, on outcomes that came in a batch later. Interrupted, it goes on where it was.
The goal: in AUROC, the system keeps at least 80% of what always gains over never, with fewer trainings, and its calibration error is below that of always.
"""
import argparse
import os
import sys

from health_predict.settings import load_settings
from health_predict.simulate import as_lines, dashboard, results, run_all, summary

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--storage", default="storage/policies")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    settings = load_settings(storage={"root": os.path.abspath(arguments.storage)})
    tell = lambda o: print(f"{o.policy:7} {o.batch:>3} {o.state:7} {o.said}", file=sys.stderr, flush=True)
    ran = run_all(settings, arguments.batches, arguments.processes, tell)
    found = results(settings, arguments.batches)
    print(*as_lines(found), sep="\n")
    few = {o["policy"]: o for o in summary(found)}
    ours, always = few["system"], few["always"]
    for name, met in {
        "keeps at least 80% of the gain": all((ours[t]["recovered"] or 0) >= .8 for t in ("any", "30d")),
        "fewer trainings than always": ours["trainings"] < always["trainings"],
        "lower calibration error than always": all(ours[t]["ece"] < always[t]["ece"] for t in ("any", "30d")),
        "every batch ran": not any(o.state == "failed" for o in ran)}.items(): print(f"{'met    ' if met else 'NOT MET'} {name}")
    print(f"dashboard: {dashboard(settings, found)}")
