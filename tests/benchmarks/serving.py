"""What the API costs: against a hello-world in the same server, and against the usual ways to serve such a model.

    python tests/benchmarks/serving.py --storage storage [--seconds 3] [--rounds 5] [--rows 100000] [--only api hello …]

All servers get the same row, two workers, a model of the same size (the usual ways answer for one target, the API for both). They are up at the same time and
measured in turn, round by round, so that whatever else the machine does hits all alike; what counts is the median of the rounds' ratios. The usual ways are
written as their documentation has it (FastAPI: a pydantic model and a `def` endpoint), once as they come, with as many threads a prediction as there are
cores, and once more with one thread (`-1`), which somebody has to know of. Load comes from wrk on the same machine (`apt-get install wrk`). `storage` is one
that batch 0 has run in. `--only batch million` measures large batches alone.
"""
import argparse
import json
import os
import re
import resource
import shutil
import statistics
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

BIN, PORT = Path(sys.executable).parent, 8865
PLAIN = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
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
    if model is None: model = joblib.load("{model}")
    return float(model.predict_proba(pd.DataFrame([row]))[0, 1])
"""
FLASK = """
@app.post("/predict")
def predict(): return {"probability": score(request.get_json())}
"""
FASTAPI = """
import json
from pydantic import Field, create_model
fields = json.load(open("fields.json"))
Encounter = create_model("Encounter", **{k.replace("-", "_"): (float if number else str, Field(alias=k)) for k, number in fields.items()})
@app.post("/predict")
def predict(row: Encounter): return {"probability": score(row.model_dump(by_alias=True))}
"""


def usual_model(cohort: pd.DataFrame, y: np.ndarray, folder: Path):
    """scikit-learn's ColumnTransformer and XGBoost with the library's hyperparameters, as joblib and MLflow models: as they come, and with one thread."""
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
        XGBClassifier(n_estimators=HYPERPARAMETERS["xgboost"]["rounds"], grow_policy="lossguide", max_depth=0, **options))
    frame = cohort[list(INPUTS)].astype({o: str for o in texts} | {o: float for o in NUMBERS})
    model.fit(frame, y)
    for mark, threads in (("", None), ("-1", 1)):
        model.set_params(xgbclassifier__n_jobs=threads)
        joblib.dump(model, folder / f"model{mark}.joblib")
        mlflow.sklearn.save_model(model, folder / f"mlflow{mark}", pip_requirements=[], serialization_format="cloudpickle")
        for name, end, made, names in (("flask", FLASK, "Flask(__name__)", "Flask, request"), ("fastapi", FASTAPI, "FastAPI()", "FastAPI")):
            start = USUAL.format(framework=name, names=names, made=made, model=f"model{mark}.joblib")
            (folder / f"usual_{name}{mark.replace('-', '_')}.py").write_text(start + end)
    (folder / "fields.json").write_text(json.dumps({o: o in NUMBERS for o in INPUTS}))


class Server:
    """A server that is measured."""
    def __init__(self, *command, port: int, folder: Path, path: str = "/predict", body: bytes, one_thread: bool = True, **environment):
        self.url, self.body, start = f"http://127.0.0.1:{port}{path}", body, time.monotonic()
        quiet = ({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} if one_thread else {}) | {"PATH": f"{BIN}:{os.environ['PATH']}"}
        self.process = subprocess.Popen([str(BIN / command[0]), *map(str, command[1:])], cwd=folder, env=PLAIN | quiet | environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                if requests.post(self.url, data=body, headers={"Content-Type": "application/json"}, timeout=300).status_code == 200: break
            except requests.ConnectionError: time.sleep(.02)
            if self.process.poll() is not None or time.monotonic() - start > 300: sys.exit(f"{command} did not start")
        self.ready = time.monotonic() - start
        for _ in range(30): requests.post(self.url, data=body, headers={"Content-Type": "application/json"}, timeout=300)    # every worker is warm

    def load(self, connections: int, seconds: int, folder: Path) -> dict[str, float]:
        """Requests per second and latencies, by wrk; and CPU time of the whole server for each request, which other programs hardly disturb."""
        script = folder / "post.lua"
        script.write_text(f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = [==[{self.body.decode()}]==]\n')
        program = [shutil.which("wrk"), "-t1", f"-c{connections}", f"-d{seconds}", "--latency", "-s", script, self.url]
        before = self.cpu()
        said = subprocess.run(program, capture_output=True, text=True, check=True).stdout
        spent = (self.cpu() - before) * 1000 / int(re.search(r"(\d+) requests in", said)[1])
        if "Non-2xx" in said: sys.exit(said)
        ms = lambda name: (lambda m: float(m[1]) * {"us": .001, "ms": 1, "s": 1000}[m[2]])(re.search(rf"{name}%\s+([\d.]+)(us|ms|s)", said))
        return {"rate": float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1]), "p50": ms(50), "p99": ms(99), "cpu": spent}

    def cpu(self) -> float:
        """CPU seconds of the server's processes so far."""
        me = psutil.Process(self.process.pid)
        return sum(sum(o.cpu_times()[:2]) for o in [me, *me.children(recursive=True)])

    def memory(self) -> float:
        """Resident memory of the largest process, MB."""
        me = psutil.Process(self.process.pid)
        return max(o.memory_info().rss for o in [me, *me.children(recursive=True)]) / 1e6

    def stop(self):
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        self.process.terminate()
        for o in psutil.wait_procs(family, 15)[1]: o.kill()


def api(folder: Path, storage: Path, body: bytes, port: int = PORT) -> Server:
    """The API on a copy of the models, everything switched on."""
    return Server("health-predict", "serve", "--port", port, port=port, folder=folder, body=body, HEALTH_PREDICT_STORAGE=str(storage))


SEND = """
import sys, requests
lines, rows, url = open(sys.argv[1], "rb").read().splitlines(), int(sys.argv[2]), sys.argv[3]
def body():
    for i in range(0, rows, 500): yield b"\\n".join(lines[j % len(lines)] for j in range(i, min(i + 500, rows))) + b"\\n"
with requests.post(url, data=body(), headers={"Content-Type": "application/x-ndjson"}, stream=True, timeout=3600) as answer:
    assert answer.status_code == 200 and sum(o.count(b"\\n") for o in answer.iter_content(1 << 20)) == rows
"""


def large(server: Server, rows: list[dict], count: int) -> tuple[float, float]:
    """Rows per second and the workers' peak memory, MB, of one batch that is made as it is sent."""
    workers, peak, start = psutil.Process(server.process.pid).children(), 0.0, time.monotonic()
    with tempfile.NamedTemporaryFile() as f:
        f.write(b"\n".join(json.dumps(o).encode() for o in rows))
        f.flush()
        asking = subprocess.Popen([sys.executable, "-c", SEND, f.name, str(count), server.url + "/batch"])
        while asking.poll() is None: peak = max([peak, *(o.memory_info().rss / 1e6 for o in workers)]); time.sleep(.02)
        if asking.returncode: sys.exit(f"the batch of {count:,} failed")
    return count / (time.monotonic() - start), peak


def batch(server: Server, rows: list[dict], bundle: Bundle, X: np.ndarray) -> None:
    """Print rows per second and peak memory of one large batch, against the booster on a ready matrix."""
    import xgboost as xgb
    ours, peak = large(server, rows, len(X))
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
    print(f"batch of {len(X):,}: {ours:,.0f} rows/s, peak {peak:.0f} MB; raw models on a ready matrix, one thread, both targets: {raw:,.0f}; "
          f"ratio {ours / raw:.2f} (goal 0.3)")


def row_of(record: dict) -> dict:
    return {k: None if record[k] != record[k] else record[k] for k in INPUTS}


def median(rounds: list, of) -> float: return statistics.median(map(of, rounds))


def report(name: str, found: dict, rounds: list[dict]) -> None:
    """One server's line: medians, and the medians of its ratios to the API or to hello-world, round by round."""
    mine = lambda c, k: median(rounds, lambda o: o[name][c][k])
    against, goals = "", {"flask": 30, "fastapi": 30, "mlflow": 40}
    if name == "api" and "hello" in rounds[0]:
        times = lambda c, k: median(rounds, lambda o: o["api"][c][k] / o["hello"][c][k])
        against = (f"; of hello-world: {times(8, 'rate'):.2f} of its rate (goal 0.4), p50 at c=1 {times(1, 'p50'):.2f} times (goal 2.5), "
            f"p99 at c=8 {times(8, 'p99'):.2f} times (goal 4), CPU {times(8, 'cpu'):.2f} times; goals: ready in 2 s, 150 MB")
    elif name != "hello" and "api" in rounds[0]:
        ratios = sorted(o["api"][8]["rate"] / o[name][8]["rate"] for o in rounds)
        against = f"; the API is {statistics.median(ratios):.0f} times as fast ({ratios[0]:.0f} to {ratios[-1]:.0f}, goal {goals[name.split('-')[0]]}), "
        against += f"by CPU time {median(rounds, lambda o: o[name][8]['cpu'] / o['api'][8]['cpu']):.0f} times"
    print(f"{name:10} c=1 p50 {mine(1, 'p50'):.2f} ms; c=8 {mine(8, 'rate'):,.0f} requests/s, p99 {mine(8, 'p99'):.1f} ms, CPU {mine(8, 'cpu'):.2f} ms each; "
          f"{found['memory']:.0f} MB; ready in {found['ready']:.1f} s{against}", flush=True)


def start(name: str, port: int, folder: Path, body: bytes, plain: bytes, frame: bytes) -> Server:
    """One of the servers, on a port of its own."""
    kind, one = name.split("-")[0], name in ("hello", "api") or name.endswith("-1")
    if kind == "api": return api(folder, folder / "storage", body, port)
    module = "hello" if kind == "hello" else f"usual_{name.replace('-', '_')}"
    if kind in ("hello", "flask"):
        command = ("gunicorn", "-b", f"127.0.0.1:{port}", "-w2", "--threads", "4", "-k", "gthread", "--keep-alive", "65", "--no-control-socket",
            f"{module}:app")
        return Server(*command, port=port, folder=folder, body=body if kind == "hello" else plain, one_thread=one)
    if kind == "fastapi":
        command = ("uvicorn", f"{module}:app", "--port", port, "--workers", "2", "--log-level", "warning")
        return Server(*command, port=port, folder=folder, body=plain, one_thread=one)
    command = ("mlflow", "models", "serve", "-m", name, "--env-manager", "local", "-p", port, "--workers", "2")
    return Server(*command, port=port, folder=folder, path="/invocations", body=frame, one_thread=one)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--only", nargs="+", default=["hello", "api", "flask", "fastapi", "mlflow", "flask-1", "fastapi-1", "mlflow-1", "batch"],
        help="also: million, a batch of a million rows")
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
        (folder / "hello.py").write_text(HELLO)
        if any(o.startswith(("flask", "fastapi", "mlflow")) for o in args.only):
            labels = pd.read_parquet(storage / "labels" / "0.parquet").set_index("encounter_id").readmitted
            usual_model(cohort, (cohort.encounter_id.map(labels) != "NO").to_numpy(int), folder)
        frame = json.dumps({"dataframe_records": [json.loads(plain)]}).encode()
        servers, rounds = {}, []
        try:
            for i, name in enumerate(o for o in args.only if o not in ("batch", "million")): servers[name] = start(name, PORT + i, folder, body, plain, frame)
            for _ in range(args.rounds if servers else 0):
                rounds.append({k: {c: o.load(c, args.seconds, folder) for c in (1, 8)} for k, o in servers.items()})
            for name, o in servers.items(): report(name, {"ready": o.ready, "memory": o.memory()}, rounds)
        finally:
            for o in servers.values(): o.stop()
        if "batch" in args.only:
            server = api(folder, folder / "storage", body)
            records = [row_of(o) for o in cohort.to_dict("records")]
            scores = bundle.predict_frame(cohort.head(200))
            told = [requests.post(server.url, json=o, timeout=30).json()["risks"] for o in records[:200]]
            gap = max(abs(o[t]["probability_score"] - scores[t][i]) for i, o in enumerate(told) for t in scores)
            print(f"scores: largest difference from the bundle's own {gap:.1e} (goal 1e-6)")
            many = [i % len(records) for i in range(args.rows)]
            batch(server, records, bundle, encode(cohort, bundle.encoder)[many])
            server.stop()
        if "million" in args.only:
            server, records = api(folder, folder / "storage", body), [row_of(o) for o in cohort.head(20_000).to_dict("records")]
            idle = server.memory()
            rate, peak = large(server, records, 1_000_000)
            print(f"batch of 1,000,000, NDJSON, made as it is sent: {rate:,.0f} rows/s, peak {peak:.0f} MB a worker ({idle:.0f} MB before)")
            server.stop()
    print(f"(this program's own peak: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB)")


if __name__ == "__main__": main()
