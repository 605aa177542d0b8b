"""What the API costs: against a hello-world in the same server, and against the usual ways to serve such a model.

    python tests/benchmarks/serving.py --storage storage [--seconds 4] [--rounds 3] [--only api hello …]

All servers get the same row, two workers, a model of the same size (the usual ways answer for one target, the API for both), one after the other in
one run; the best of a few rounds counts for each, since other programs may take the machine's time. Load comes from wrk on the same machine
(`apt-get install wrk`). `storage` is one that batch 0 has run in.
"""
import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import requests

from health_predict.bundle import Bundle
from health_predict.encode import encode
from health_predict.fields import FIELDS, INPUTS
from health_predict.train import HYPERPARAMETERS

BIN, PORT = Path(sys.executable).parent, 8765
URL = f"http://127.0.0.1:{PORT}"
NUMBERS = [o for o in INPUTS if FIELDS[o].kind in ("integer", "code")]

HELLO = """
from flask import Flask
app = Flask(__name__)
@app.post("/predict")
def hello(): return {"hello": "world"}
"""
USUAL = """
import joblib, pandas as pd
from {framework} import {names}
app, model = {made}, None
def score(row):
    global model
    if model is None: model = joblib.load("model.joblib")
    return float(model.predict_proba(pd.DataFrame([row]))[0, 1])
"""
FLASK = USUAL.format(framework="flask", names="Flask, request", made="Flask(__name__)") + """
@app.post("/predict")
def predict(): return {"probability": score(request.get_json())}
"""
FASTAPI = USUAL.format(framework="fastapi", names="FastAPI", made="FastAPI()") + """
@app.post("/predict")
def predict(row: dict): return {"probability": score(row)}
"""


def usual_model(cohort: pd.DataFrame, y: np.ndarray, folder: Path):
    """scikit-learn's ColumnTransformer and XGBoost with the library's hyperparameters, as joblib and as an MLflow model."""
    import joblib
    import mlflow.sklearn
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder
    from xgboost import XGBClassifier
    options = {k: v for k, v in HYPERPARAMETERS["xgboost"].items() if k != "rounds"}
    texts = [o for o in INPUTS if o not in NUMBERS]
    columns = [("text", OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=50), texts), ("number", "passthrough", NUMBERS)]
    model = make_pipeline(ColumnTransformer(columns),
        XGBClassifier(n_estimators=HYPERPARAMETERS["xgboost"]["rounds"], grow_policy="lossguide", max_depth=0, n_jobs=1, **options))
    frame = cohort[list(INPUTS)].astype({o: str for o in texts} | {o: float for o in NUMBERS})
    model.fit(frame, y)
    joblib.dump(model, folder / "model.joblib")
    mlflow.sklearn.save_model(model, folder / "mlflow", pip_requirements=[], serialization_format="cloudpickle")


class Server:
    """A server that is measured."""
    def __init__(self, *command, folder: Path, path: str = "/predict", body: bytes, **environment):
        self.url, self.body, start = URL + path, body, time.monotonic()
        quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
        self.process = subprocess.Popen([str(BIN / command[0]), *map(str, command[1:])], cwd=folder, env=os.environ | quiet | environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                if requests.post(self.url, data=body, headers={"Content-Type": "application/json"}, timeout=30).status_code == 200: break
            except requests.ConnectionError: time.sleep(.02)
            if self.process.poll() is not None or time.monotonic() - start > 120: sys.exit(f"{command} did not start")
        self.ready = time.monotonic() - start
        for _ in range(30): requests.post(self.url, data=body, headers={"Content-Type": "application/json"}, timeout=30)    # every worker is warm

    def load(self, connections: int, seconds: int, folder: Path) -> dict[str, float]:
        """Requests per second and latencies, by wrk."""
        script = folder / "post.lua"
        script.write_text(f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = [==[{self.body.decode()}]==]\n')
        program = [shutil.which("wrk"), "-t1", f"-c{connections}", f"-d{seconds}", "--latency", "-s", script, self.url]
        said = subprocess.run(program, capture_output=True, text=True, check=True).stdout
        if "Non-2xx" in said: sys.exit(said)
        ms = lambda name: (lambda m: float(m[1]) * {"us": .001, "ms": 1, "s": 1000}[m[2]])(re.search(rf"{name}%\s+([\d.]+)(us|ms|s)", said))
        return {"rate": float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1]), "p50": ms(50), "p99": ms(99)}

    def memory(self) -> float:
        """Resident memory of the largest process, MB."""
        me = psutil.Process(self.process.pid)
        return max(o.memory_info().rss for o in [me, *me.children(recursive=True)]) / 1e6

    def stop(self):
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        self.process.terminate()
        for o in psutil.wait_procs(family, 15)[1]: o.kill()


def api(folder: Path, storage: Path, body: bytes, **more) -> Server:
    """The API on a copy of the models, everything switched on."""
    return Server("health-predict", "serve", "--port", PORT, folder=folder, body=body, HEALTH_PREDICT_STORAGE=str(storage), **more)


SEND = """
import sys, requests
with open(sys.argv[1], "rb") as f, requests.post(sys.argv[2], data=f, headers={"Content-Type": "application/json"}, stream=True, timeout=600) as answer:
    assert answer.status_code == 200 and sum(map(len, answer.iter_content(1 << 20)))
"""


def batch(server: Server, rows: list[dict], bundle: Bundle, X: np.ndarray) -> None:
    """Print rows per second and peak memory of one large batch, against the booster on a ready matrix."""
    import xgboost as xgb
    data = json.dumps(rows).encode()
    workers = psutil.Process(server.process.pid).children()
    peak, start = 0.0, time.monotonic()
    with tempfile.NamedTemporaryFile() as f:
        f.write(data)
        f.flush()
        asking = subprocess.Popen([sys.executable, "-c", SEND, f.name, URL + "/predict/batch"])
        while asking.poll() is None: peak = max([peak, *(o.memory_info().rss / 1e6 for o in workers)]); time.sleep(.02)
    ours = len(rows) / (time.monotonic() - start)
    seconds = 0.0
    for target, o in bundle.targets.items():
        start = time.monotonic()
        if o["family"] == "xgboost":
            booster = xgb.Booster(model_file=bundle.folder / f"{target}.ubj")
            booster.set_param({"nthread": 1})
            start = time.monotonic()
            booster.inplace_predict(X)
        else: bundle.sessions[target].run(None, {"X": X})
        seconds += time.monotonic() - start
    raw = len(X) / seconds
    print(f"batch of {len(rows):,}: {ours:,.0f} rows/s, peak {peak:.0f} MB; raw models on a ready matrix, one thread, both targets: {raw:,.0f}; "
          f"ratio {ours / raw:.2f} (goal 0.3)")


def row_of(record: dict) -> dict:
    return {k: None if record[k] != record[k] else record[k] for k in INPUTS}


def report(name: str, found: dict, hello: dict | None, of_api: dict | None) -> None:
    one, eight = found["c1"], found["c8"]
    against = f"; the API is {of_api['c8']['rate'] / eight['rate']:.0f} times as fast" if of_api and name not in ("api", "hello") else ""
    if hello and name == "api":
        rate, p50, p99 = eight["rate"] / hello["c8"]["rate"], one["p50"] / hello["c1"]["p50"], eight["p99"] / hello["c8"]["p99"]
        against = f"; of hello-world: {rate:.2f} of its rate (goal 0.4), p50 at c=1 {p50:.2f} times (goal 2.5), p99 at c=8 {p99:.2f} times (goal 4)"
    print(f"{name:8} c=1 p50 {one['p50']:.2f} ms; c=8 {eight['rate']:,.0f} requests/s, p99 {eight['p99']:.1f} ms; {found['memory']:.0f} MB; "
          f"ready in {found['ready']:.1f} s{against}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--only", nargs="+", default=["hello", "api", "flask", "fastapi", "mlflow", "batch"])
    args = parser.parse_args()
    if not shutil.which("wrk"): sys.exit("wrk is not here: apt-get install wrk")
    storage = args.storage.resolve()
    champion = json.loads((storage / "models" / "champion.json").read_text())
    cohort, bundle = pd.read_parquet(storage / "runs" / "0" / "cohort.parquet"), Bundle(storage / "models" / champion["path"])
    record = row_of(cohort.iloc[0].to_dict())
    body, plain = json.dumps(record).encode(), json.dumps({k: str(v) if k not in NUMBERS else float(v) for k, v in record.items()}).encode()
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        shutil.copytree(storage / "models", folder / "storage" / "models")
        for name, text in (("hello", HELLO), ("usual_flask", FLASK), ("usual_fastapi", FASTAPI)): (folder / f"{name}.py").write_text(text)
        if {"flask", "fastapi", "mlflow"} & set(args.only):
            labels = pd.read_parquet(storage / "labels" / "0.parquet").set_index("encounter_id").readmitted
            usual_model(cohort, (cohort.encounter_id.map(labels) != "NO").to_numpy(int), folder)
        frame = json.dumps({"dataframe_records": [json.loads(plain)]}).encode()
        gunicorn = ("gunicorn", "-b", f"127.0.0.1:{PORT}", "-w2", "--threads", "4", "-k", "gthread", "--keep-alive", "65", "--no-control-socket")
        start = {"hello": lambda: Server(*gunicorn, "hello:app", folder=folder, body=body), "api": lambda: api(folder, folder / "storage", body),
            "flask": lambda: Server(*gunicorn, "usual_flask:app", folder=folder, body=plain),
            "fastapi": lambda: Server("uvicorn", "usual_fastapi:app", "--port", PORT, "--workers", "2", "--log-level", "warning", folder=folder, body=plain),
            "mlflow": lambda: Server("mlflow", "models", "serve", "-m", "mlflow", "--env-manager", "local", "-p", PORT, "--workers", "2", folder=folder,
                path="/invocations", body=frame)}
        found = {}
        for name in [o for o in args.only if o in start]:
            server = start[name]()
            rounds = [{c: server.load(c, args.seconds, folder) for c in (1, 8)} for _ in range(args.rounds)]
            best = lambda c, k, pick, rounds=rounds: pick(o[c][k] for o in rounds)
            found[name] = {"ready": server.ready, "memory": server.memory()} | {f"c{c}": {"rate": best(c, "rate", max), "p50": best(c, "p50", min),
                "p99": best(c, "p99", min)} for c in (1, 8)}
            server.stop()
            report(name, found[name], found.get("hello"), found.get("api"))
        if "batch" in args.only:
            server = api(folder, folder / "storage", body)
            records = [row_of(o) for o in cohort.to_dict("records")]
            scores = bundle.predict_frame(cohort.head(200))
            told = [requests.post(server.url, json=o, timeout=30).json()["risks"] for o in records[:200]]
            gap = max(abs(o[t]["probability_score"] - scores[t][i]) for i, o in enumerate(told) for t in scores)
            print(f"scores: largest difference from the bundle's own {gap:.1e} (goal 1e-6)")
            many = [i % len(records) for i in range(args.rows)]
            batch(server, [records[i] for i in many], bundle, encode(cohort, bundle.encoder)[many])
            server.stop()
    print(f"(this program's own peak: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB)")


if __name__ == "__main__": main()
