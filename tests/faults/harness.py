"""Faults on purpose: runs that are killed at a stage and an instant, and a digest of what a storage has come to.

A fault is survived where a rerun ends in the same state as a run that nothing disturbed: `state_of` says what "same" means. `Cohort` is the project that
all faults share; whoever adds a fault of a database or of S3 needs no more than an environment and these functions.
"""
import hashlib
import json
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import psutil
from conftest import Project

from health_predict.attempt import MARK
from health_predict.audit import entries, verify
from health_predict.bundle import verify as verify_bundle
from health_predict.settings import load_settings
from health_predict.storage import Tree
from health_predict.synthetic import write_cohort

STAGES = ("ingest", "features", "drift", "decide", "train", "evaluate", "deploy", "promote", "publish")
LIMIT = 1800    # seconds, for a run on a busy machine
VOLATILE = ("since", "time", "seconds", "run_id", "duration", "at", "began", "ended", "finished",
            "reason",    # of a promotion: where a rerun promotes again, it is the champion already
            "hash", "seq")    # of the audit log's last entry: it has its time, and a stage that was killed has an entry before it; the chain is verified apart
SMALL = {"HEALTH_PREDICT_MODEL__FAMILIES": "logistic", "HEALTH_PREDICT_EVALUATE__BOOTSTRAP": "100", "HEALTH_PREDICT_GATE__RESAMPLES": "100",
    "HEALTH_PREDICT_RUN__PAUSE": "0", "HEALTH_PREDICT_RUN__SET_ASIDE": "1000"}


class Cohort:
    """A project with a small batch 0, and fresh storages for it."""
    def __init__(self, folder: Path, rows: int = 2000):
        self.project = Project(folder / "project")
        self.project.environment |= SMALL
        self.folder, self.batch = folder, folder / "0.csv"
        write_cohort(self.batch, rows)
        self.count = 0

    def storage(self) -> Path:
        self.count += 1
        made = self.folder / f"storage-{self.count}"
        (made / "incoming").mkdir(parents=True)
        shutil.copy(self.batch, made / "incoming" / "0.csv")
        return made

    def start(self, storage: Path, *words: str, **environment: str) -> subprocess.Popen:
        program = [str(Path(sys.executable).parent / "health-predict"), "run", *words]
        given = self.project.environment | {"HEALTH_PREDICT_STORAGE": str(storage)} | environment
        with open(storage / "said.txt", "ab") as said:
            return subprocess.Popen(program, cwd=self.project.folder, env=given, stdout=said, stderr=said, start_new_session=True)

    def run(self, storage: Path, *words: str, **environment: str) -> int:
        return self.start(storage, *words, **environment).wait(LIMIT)


def began(storage: Path) -> list[str]:
    """The stages that began, in order, as the log of runs has them."""
    try: lines = (storage / "logs" / "run.jsonl").read_text().splitlines()
    except FileNotFoundError: return []
    return [o["stage"] for o in map(json.loads, lines) if o["event"] == "stage started"]


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """All processes of a run: its own, its build's, its kernels'."""
    try: mine = [psutil.Process(process.pid)]
    except psutil.NoSuchProcess: return []
    try: marked = json.loads((Path(mine[0].environ()["HEALTH_PREDICT_STORAGE"]) / "state" / "run.lock").read_text() or "{}").get("run")
    except (OSError, ValueError, KeyError, psutil.Error): marked = None
    found = []
    for p in psutil.process_iter():
        try:
            if marked and p.environ().get(MARK) == marked: found.append(p)
        except (psutil.Error, OSError): pass
    return mine + found


@dataclass
class Kill:
    """kill -9 of `whom`, so long after a stage began; `stage` None: after the run began."""
    stage: str | None
    after: float                       # seconds
    whom: str = "all"                  # all, run (the parent alone), build or kernel
    struck: bool = field(default=False)

    def strike(self, cohort: Cohort, storage: Path) -> int | None:
        """Start a run and kill it there; gives its exit code where it ended before."""
        seen = len(began(storage))
        process = cohort.start(storage)
        while process.poll() is None and self.stage and self.stage not in began(storage)[seen:]: time.sleep(.005)
        ends = time.monotonic() + self.after
        while process.poll() is None and time.monotonic() < ends: time.sleep(min(.005, max(0, ends - time.monotonic())))
        self.struck = process.poll() is None
        if self.struck: self.kill(process)
        if self.whom in ("build", "kernel"): return process.wait(LIMIT)    # the run sees it, and tries again by itself
        process.wait(60)
        return None if self.struck else process.returncode

    def kill(self, process: subprocess.Popen) -> None:
        everyone = family(process)
        chosen = {"all": everyone, "run": everyone[:1], "build": [o for o in everyone[1:] if "health_predict.attempt" in words(o)],
            "kernel": [o for o in everyone if "ipykernel_launcher" in words(o)]}[self.whom]
        for o in chosen:
            try: o.kill()
            except psutil.NoSuchProcess: pass


def words(process: psutil.Process) -> str:
    try: return " ".join(process.cmdline())
    except psutil.Error: return ""


def plain(value):
    """JSON without what differs between two runs: times, run ids."""
    if isinstance(value, dict): return {k: plain(v) for k, v in value.items() if k not in VOLATILE}
    return [plain(o) for o in value] if isinstance(value, list) else value


def state_of(storage: Path, database: Path | None = None) -> dict:
    """What a storage has come to, without times: champion, decisions, labels, versions, audit, reports. Raises where it is broken."""
    tree = Tree(load_settings(storage={"root": str(storage)}))
    champion = json.loads((tree.models / "champion.json").read_text())
    verify_bundle(tree.models / champion["path"], champion["digest"])
    assert verify(tree)["entries"], "no audit log"
    found = {"champion": plain(champion)}
    for run in sorted(tree.runs.iterdir()):
        for name in ("decision", "drift", "evaluation", "performance", "promotion", "train", "ingest", "publish"):
            found[f"{run.name} {name}"] = plain(json.loads((run / f"{name}.json").read_text()))
    for o in sorted(tree.labels.glob("*.parquet")): found[f"labels {o.stem}"] = pd.read_parquet(o).to_csv(index=False)
    decided = [o for o in entries(tree) if o["kind"] in ("decision", "promotion", "rejection", "breaker")]
    found["audit"] = [[o["kind"], o["batch"], plain(o["details"])] for o in decided]
    found["versions"], found["alias"] = mlflow_has(database or tree.root / "mlflow" / "mlflow.db")
    found["reports"] = reports_of(tree)
    left = [p for folder in (tree.root, *tree.root.rglob("*")) if folder.is_dir() and folder.name != "mlflow" for p in folder.glob(".*.tmp")]
    assert not left, f"left behind: {left}"
    assert not (tree.state / "run.lock").read_text(), "the lock is taken"
    return found


def mlflow_has(file: Path) -> tuple[list, list]:
    """The registered versions with their digests, and the aliases."""
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as db:
        return (db.execute("select version, value from model_version_tags where key = 'digest' order by version").fetchall(),
                db.execute("select alias, version from registered_model_aliases").fetchall())


def reports_of(tree: Tree) -> dict:
    """What is published: whole pages whose links lead somewhere, and summaries."""
    found = {}
    for page in sorted(tree.reports.rglob("*.html")):
        text = page.read_text()
        assert text.rstrip().endswith("</html>"), f"{page} is cut off"
        for link in re.findall(r'href="([^"#:]+)"', text): assert (page.parent / link).exists(), f"{page} links {link}"
        found[str(page.relative_to(tree.reports))] = sorted(set(re.findall(r'href="([^"#:]+)"', text)))
    for o in sorted(tree.reports.glob("*/summary.json")): found[o.parent.name] = plain({k: v for k, v in json.loads(o.read_text()).items() if k != "stages"})
    return found


def digest_of(state: dict) -> str: return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


def differences(one: dict, other: dict) -> list[str]: return [k for k in sorted({*one, *other}) if one.get(k) != other.get(k)]


def durations(storage: Path) -> dict[str, float]:
    """How long each stage took."""
    lines = [json.loads(o) for o in (storage / "logs" / "run.jsonl").read_text().splitlines()]
    return {o["stage"]: o["seconds"] for o in lines if o["event"] == "stage finished"}


class Proxy:
    """A TCP proxy in front of a server, that can be slow, and away from some request on."""
    def __init__(self, port: int):
        self.target, self.pause, self.left, self.seen = port, 0.0, None, 0
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try: client = self.listening.accept()[0]
            except OSError: return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self.target)) as server:
            threading.Thread(target=self.back, args=(server, client), daemon=True).start()
            try:
                while data := client.recv(65536):
                    if b" HTTP/1.1\r\n" in data:
                        self.seen += 1
                        if self.left is not None: self.left -= 1
                        time.sleep(self.pause)
                    if self.left is not None and self.left < 0: return    # in the middle of a request
                    server.sendall(data)
            except OSError: pass

    def back(self, server: socket.socket, client: socket.socket) -> None:
        try:
            while data := server.recv(65536): client.sendall(data)
        except OSError: pass

    def close(self) -> None: self.listening.close()


@dataclass
class Tally:
    """The table: how often each fault was tried and survived, and how long the recovery took."""
    rows: dict[str, list] = field(default_factory=dict)

    def add(self, fault: str, survived: bool, seconds: float | None) -> None: self.rows.setdefault(fault, []).append((survived, seconds))

    def __str__(self) -> str:
        lines = ["", f"{'fault':44}{'tried':>7}{'survived':>10}{'recovery, median s':>20}{'worst':>8}"]
        for fault, found in self.rows.items():
            took = sorted(s for _, s in found if s is not None)
            shown = f"{took[len(took) // 2]:20.1f}{took[-1]:8.1f}" if took else f"{'–':>20}{'–':>8}"
            lines.append(f"{fault:44}{len(found):7}{sum(ok for ok, _ in found):10}{shown}")
        tried = [o for found in self.rows.values() for o in found]
        return "\n".join([*lines, f"{'all':44}{len(tried):7}{sum(ok for ok, _ in tried):10}"])


