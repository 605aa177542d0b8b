"""Ten minutes of mixed load while champions change every ten seconds, workers are killed, and MLflow dies half-way.

    python tests/benchmarks/soak.py --storage storage [--minutes 10] [--clients 4] [--pause 0] [--patience 60]

Clients ask for single predictions, batches, explanations and pages. Each prediction must be what the version that it names gives for that row. MLflow is a
real server on a copy of the storage's own database, with the champion in its registry; it is killed half-way. The last lines say what failed, by cause: only
requests that were inside a killed worker may.
"""
import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import psutil
import requests

from health_predict.bundle import Bundle
from health_predict.pack import recalibrate
from health_predict.cohort import outcome
from health_predict.fields import INPUTS
from health_predict.settings import load_settings
from health_predict.storage import write_json

BIN, PORT = Path(sys.executable).parent, 8766
URL = f"http://127.0.0.1:{PORT}"


def row_of(record: dict) -> dict: return {k: None if record[k] != record[k] else record[k] for k in INPUTS}


def cause(error: Exception) -> str:
    """The innermost reason of a failed request."""
    while inner := error.__cause__ or error.__context__: error = inner
    return type(error).__name__


def registry(folder: Path, storage: Path) -> subprocess.Popen:
    """A running MLflow server that has the storage's models in its registry."""
    if (storage / "mlflow" / "mlflow.db").is_file(): shutil.copy(storage / "mlflow" / "mlflow.db", folder / "mlflow.db")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    program = [str(BIN / "mlflow"), "server", "--port", str(PORT + 1), "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    server = subprocess.Popen(program, env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}, start_new_session=True, **quiet)
    while server.poll() is None:
        try:
            found = requests.get(f"http://127.0.0.1:{PORT + 1}/api/2.0/mlflow/registered-models/search", timeout=30).json()
            print(f"MLflow answers, with the models {[o['name'] for o in found.get('registered_models', [])]}", flush=True)
            return server
        except requests.RequestException: time.sleep(.5)
    sys.exit("MLflow did not start")


class Soak:
    """The server, its clients, and what went wrong."""
    def __init__(self, storage: Path, folder: Path, pause: float, patience: float):
        self.folder, self.pause, self.patience, self.stop = folder, pause, patience, threading.Event()
        self.failed, self.done, self.wrong, self.kills = [], Counter(), [], []
        shutil.copytree(storage / "models", folder / "models")
        shutil.copytree(storage / "reports", folder / "reports")
        self.champion = json.loads((folder / "models" / "champion.json").read_text())
        cohort = pd.read_parquet(storage / "runs" / "0" / "cohort.parquet").head(3000)
        labels = cohort.encounter_id.map(pd.read_parquet(storage / "labels" / "0.parquet").set_index("encounter_id").readmitted).to_numpy()
        rarer = {t: outcome(labels, t) * (cohort.encounter_id.to_numpy() % 3 == 0) for t in ("any", "30d")}
        first = folder / "models" / self.champion["path"]
        second = recalibrate(first, folder / "second", cohort, rarer, load_settings().threshold)
        (folder / "second").rename(folder / "models" / second[:16])
        self.digests = {1: self.champion["digest"], 2: second}
        self.rows = [row_of(o) for o in cohort.head(200).to_dict("records")]
        self.scores = {v: Bundle(folder / "models" / d[:16]).predict_frame(cohort.head(200)) for v, d in self.digests.items()}
        self.lead(1)

    def lead(self, version: int):
        """Put a version in charge."""
        digest = self.digests[version]
        write_json(self.folder / "models" / "champion.json", self.champion | {"version": version, "digest": digest, "path": digest[:16], "former": []})

    def check(self, i: int, answer: dict):
        """An answer must be its version's own."""
        for t, o in answer["risks"].items():
            if abs(o["probability_score"] - self.scores[answer["model_version"]][t][i]) > 1e-6: self.wrong.append((i, answer["model_version"], t))

    def ask(self, seed: int):
        """One client, until told to stop."""
        draw, session = random.Random(seed), requests.Session()    # noqa: S311
        while not self.stop.is_set():
            i, kind = draw.randrange(200), draw.choices(("predict", "batch", "explain", "page"), (90, 3, 3, 4))[0]
            start = time.time()
            try:
                if kind == "predict": answer = session.post(URL + "/predict", json=self.rows[i], timeout=self.patience)
                elif kind == "explain": answer = session.post(URL + "/explain", json=self.rows[i], timeout=self.patience)
                elif kind == "batch": answer = session.post(URL + "/predict/batch", json=self.rows, timeout=self.patience)
                else: answer = session.get(URL + draw.choice(("/", "/health", "/metrics", "/reports/", "/docs")), timeout=self.patience)
                if answer.status_code != 200: self.failed.append((start, time.time(), kind, answer.status_code))
                elif kind in ("predict", "explain"): self.check(i, answer.json())
                elif kind == "batch":
                    told = answer.json()
                    for j, o in enumerate(told): self.check(j, o)
                    if len({o["model_version"] for o in told}) != 1: self.wrong.append("a batch of two versions")
                self.done[kind] += 1
            except requests.RequestException as e: self.failed.append((start, time.time(), kind, cause(e)))
            self.stop.wait(self.pause)

    def kill_one(self, master: int):
        """Kill a worker, as the kernel does when memory runs out."""
        worker = random.choice(psutil.Process(master).children())    # noqa: S311
        self.kills.append(time.time())
        worker.send_signal(signal.SIGKILL)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--pause", type=float, default=0, help="between two requests of a client, seconds")
    parser.add_argument("--patience", type=float, default=60, help="how long a client waits for an answer, seconds; more on a machine that others load")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as d:
        soak = Soak(args.storage.resolve(), Path(d), args.pause, args.patience)
        environment = os.environ | {"HEALTH_PREDICT_STORAGE": d, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{PORT + 1}"}
        mlflow = registry(Path(d), args.storage.resolve())
        with open(Path(d) / "server.log", "wb") as log:
            server = subprocess.Popen([str(BIN / "health-predict"), "serve", "--port", str(PORT)], env=environment, stdout=log, stderr=log)
        while True:
            try: requests.get(URL + "/health/ready", timeout=5).raise_for_status(); break
            except requests.RequestException: time.sleep(.1)
        clients = [threading.Thread(target=soak.ask, args=(i,)) for i in range(args.clients)]
        for o in clients: o.start()
        start, swaps = time.monotonic(), 0
        while (at := time.monotonic() - start) < args.minutes * 60:
            time.sleep(10)
            swaps += 1
            soak.lead(1 + swaps % 2)
            if swaps % 4 == 3: soak.kill_one(server.pid)
            if mlflow and at > args.minutes * 30:
                assert mlflow.poll() is None
                os.killpg(mlflow.pid, signal.SIGKILL)
                print(f"MLflow killed after {at:.0f} s, exit code {mlflow.wait()}", flush=True)
                mlflow = None
        soak.stop.set()
        for o in clients: o.join()
        text = requests.get(URL + "/metrics", timeout=30).text
        server.terminate()
        code = server.wait(60)
        if mlflow: os.killpg(mlflow.pid, signal.SIGKILL)
        of_kills = [o for o in soak.failed if any(o[0] - .5 <= k <= o[1] + .5 for k in soak.kills)]
        print(f"{sum(soak.done.values()):,} requests ({dict(soak.done)}), {swaps} swaps, {len(soak.kills)} workers killed, server ended with {code}")
        others = [o for o in soak.failed if o not in of_kills]
        causes = lambda found: {f"{kind}: {why}": n for (kind, why), n in Counter(o[2:] for o in found).items()}
        print(f"failed: {len(soak.failed)}; inside a killed worker: {len(of_kills)} {causes(of_kills)}; others: {len(others)} {causes(others)}")
        print(f"answers that weren't their version's own: {len(soak.wrong)} {soak.wrong[:3]}")
        for name in ("model_reloads_total", "model_reload_failures_total", "log_rows_total"):
            print(name, sum(float(o.rsplit(" ", 1)[1]) for o in text.splitlines() if o.startswith(f"health_predict_{name}")))
        sys.exit(bool(soak.wrong or len(of_kills) < len(soak.failed)))


if __name__ == "__main__": main()
