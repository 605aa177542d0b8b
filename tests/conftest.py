"""Small fixtures: a synthetic cohort, a copy of the project to run commands in, and the real data set where it is at hand."""
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import requests

from health_predict.fields import INPUTS
from health_predict.schema import check_file
from health_predict.settings import SHORT
from health_predict.synthetic import write_cohort

ROOT = Path(__file__).parents[1]
PARTS = ("health_predict", "nbs", ".jupyter", "pipeline.yaml", "env.yaml", "settings.ini", "pyproject.toml")
NOWHERE = "http://127.0.0.1:9"    # a proxy that isn't there: no test can reach a network


def pytest_addoption(parser):
    """For tests/faults."""
    parser.addoption("--kills", type=int, default=3, help="kills at random instants")
    parser.addoption("--kill-seed", type=int, default=7, help="which instants")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Tests that share a costly fixture run in one process, so that it is made once."""
    for item in items:
        for shared in ("built", "lab"):
            if shared in item.fixturenames: item.add_marker(pytest.mark.xdist_group(shared))    # `server` is built on `built`


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Where all is at hand, as in CI, a skip hides a fault: TEST_NOTHING_SKIPPED makes it one."""
    report = yield
    if os.environ.get("TEST_NOTHING_SKIPPED") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"skipped where nothing may be: {report.longrepr[2]}"
    return report


def at_hand(variable: str, what: str) -> Path:
    """Where a variable says that something is; a test that needs it is skipped, in words, where it says nothing."""
    if not (named := os.environ.get(variable)): pytest.skip(f"not at hand: {what}; set {variable}")
    assert Path(named).exists(), f"{variable} is {named!r}, where nothing is"
    return Path(named).resolve()


def drop_settings() -> None:
    """Tests see the defaults, whatever the shell or an earlier test says."""
    for name in [o for o in os.environ if o.startswith("HEALTH_PREDICT_") or o in SHORT]: del os.environ[name]


drop_settings()    # also fixtures that are made once for many tests


@pytest.fixture(autouse=True)
def no_settings_from_outside(): drop_settings()


@pytest.fixture(scope="session")
def data_set():
    """The real data set."""
    return at_hand("TEST_DATA_SET", "the UCI data set, diabetic_data.csv or its .zip")


@pytest.fixture(scope="session")
def cohort_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("cohort") / "cohort.csv"
    write_cohort(path, 3000)
    return path


@pytest.fixture(scope="session")
def encounters(cohort_file):
    return check_file(cohort_file).rows


class Project:
    """A copy of the repository with a storage of its own, to run commands in."""
    def __init__(self, folder: Path):
        self.folder, self.storage = folder, folder / "storage"
        folder.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            source = ROOT / part
            if source.is_dir(): shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
            else: shutil.copy(source, folder / part)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HEALTH_PREDICT_") and k not in (*SHORT, "PYTHONDONTWRITEBYTECODE")}
        self.environment = kept | {"PYTHONPATH": str(folder), "HTTPS_PROXY": NOWHERE, "HTTP_PROXY": NOWHERE,
            "NO_PROXY": "127.0.0.1,localhost"}

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess:
        """Run a program of the environment in the project."""
        program = [str(Path(sys.executable).parent / command[0]), *command[1:]]
        return subprocess.run(program, cwd=self.folder, env=self.environment | environment, capture_output=True, text=True, timeout=600)

    def build(self, batch: int = 0, **environment: str) -> dict[str, bool]:
        """`ploomber build` on a batch; says which stages ran."""
        done = self.run("ploomber", "build", "--env--batch", str(batch), **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        rows = [line.split() for line in done.stdout.splitlines()]
        return {o[0]: o[1] == "True" for o in rows if len(o) > 1 and o[1] in ("True", "False")}


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A project whose batch 0, of synthetic encounters, went through the whole pipeline. Tests that change it use `project`."""
    made = Project(tmp_path_factory.mktemp("built"))
    made.environment |= {"HEALTH_PREDICT_DATA__SYNTHETIC_ROWS": "12000", "HEALTH_PREDICT_EVALUATE__BOOTSTRAP": "200"}
    made.ran = made.build()
    return made


class Server:
    """A real server: gunicorn's master and its workers, on a port of its own."""
    def __init__(self, project: Project, storage: Path, environment: dict | None = None, **serving: str):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.url, self.storage, self.log = f"http://127.0.0.1:{port}", storage, storage / f"server-{port}.log"
        named = {f"HEALTH_PREDICT_SERVING__{k.upper()}": str(v) for k, v in ({"reload": 0.1, "workers": 1} | serving).items()}
        environment = project.environment | {"HEALTH_PREDICT_STORAGE": str(storage)} | named | (environment or {})
        program = [str(Path(sys.executable).parent / "health-predict"), "serve", "--port", str(port)]
        self.started = time.monotonic()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(program, cwd=project.folder, env=environment, stdout=log, stderr=log)

    def wait(self, path: str = "/health/ready", status: int = 200) -> float:
        """Wait until it answers as it should; says after how many seconds it did."""
        while time.monotonic() - self.started < 60:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if requests.get(self.url + path, timeout=5).status_code == status: return time.monotonic() - self.started
            except requests.ConnectionError: time.sleep(.02)
        raise AssertionError(self.log.read_text())

    @property
    def workers(self) -> list[psutil.Process]: return psutil.Process(self.process.pid).children()

    def get(self, path: str, **options) -> requests.Response: return requests.get(self.url + path, timeout=60, **options)

    def post(self, path: str, **options) -> requests.Response: return requests.post(self.url + path, timeout=600, **options)

    def stop(self) -> int:
        """Stop it as an operator does; gives its exit code."""
        if self.process.poll() is None: self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(scope="session")
def models(built, tmp_path_factory):
    """Storage with the models and reports of the built project, for one's own use: call it with a name."""
    def made(name: str) -> Path:
        storage = tmp_path_factory.mktemp(name)
        for part in ("models", "reports"): shutil.copytree(built.storage / part, storage / part)
        (storage / "runs" / "0").mkdir(parents=True)
        shutil.copy(built.storage / "runs" / "0" / "promotion.json", storage / "runs" / "0")
        return storage
    return made


@pytest.fixture(scope="module")
def serve(built):
    """Start servers, which are stopped after the module's tests: an idle one still looks for a new champion ten times a second."""
    servers = []
    def start(storage: Path, environment: dict | None = None, **serving: str) -> Server:
        servers.append(Server(built, storage, environment, **serving))
        return servers[-1]
    yield start
    for o in servers: o.process.terminate()
    for o in servers: o.stop()


@pytest.fixture(scope="session")
def server(built, models):
    """A server that tests share; it serves the built project's champion."""
    made = Server(built, models("server"), workers=2)
    made.wait()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def cohort(built): return pd.read_parquet(built.storage / "runs" / "0" / "cohort.parquet")


def as_request(row: dict) -> dict:
    """An encounter of the cohort as a client would send it."""
    return {k: None if row[k] != row[k] else row[k].item() if isinstance(row[k], np.generic) else row[k] for k in INPUTS}


@pytest.fixture(scope="session")
def encounter(cohort): return as_request(cohort.iloc[0].to_dict())


def faults(answer: requests.Response, status: int = 422) -> dict[str, str]:
    """The fields that an error names, with what it says."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    body = answer.json()
    assert set(body) == {"detail", "request_id"} and all(set(o) == {"loc", "msg", "type"} for o in body["detail"])
    return {str(o["loc"][-1]) if o["loc"] else "": o["msg"] for o in body["detail"]}


@pytest.fixture(scope="module")
def moto(tmp_path_factory):
    """S3 on this machine."""
    from rough import Moto
    server = Moto(tmp_path_factory.mktemp("moto"))
    yield server
    server.stop()


@pytest.fixture
def place(moto, tmp_path, monkeypatch):
    """A bucket in it, and machines that use it, over a network as rough as wanted."""
    from rough import Place
    from health_predict.reader import store_of
    store_of.cache_clear()
    made = Place(moto, tmp_path, monkeypatch)
    yield made
    made.end()
