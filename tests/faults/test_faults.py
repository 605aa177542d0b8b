"""Faults, and what is left of them: after each, a rerun ends in the same state as a run that nothing disturbed.

    pytest tests/faults -m slow                    the short version
    pytest tests/faults -m slow --kills 100 -s     and so many kills at random instants, with the table
"""
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time

import psutil
import pytest
import requests
from harness import LIMIT, STAGES, Cohort, Kill, Proxy, Tally, began, differences, digest_of, durations, state_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("faults")]
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a small disk is mounted")
# Whatever Python starts with this in its path has another date. (libfaketime, which shifts whole processes, breaks short sleeps: EINVAL.)
CLOCK = """
import datetime, os, time_machine
time_machine.travel(datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=float(os.environ["TEST_DAYS_AHEAD"])), tick=True).start()
"""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory): return Cohort(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def calm(cohort):
    """What a run comes to that nothing disturbs, and how long its stages take."""
    storage = cohort.storage()
    assert cohort.run(storage) == 0, (storage / "said.txt").read_text()
    return state_of(storage), durations(storage)


@pytest.fixture(scope="module")
def tally():
    made = Tally()
    yield made
    print(made)


def recovered(cohort, storage, calm, tally, faults, *words, database=None, **environment):
    """Rerun to the end, and compare."""
    since = time.monotonic()
    code = cohort.run(storage, *words, **environment)
    took, found = time.monotonic() - since, state_of(storage, database)
    same = code == 0 and digest_of(found) == digest_of(calm[0])
    for o in faults: tally.add(o, same, took)
    print(f"{', '.join(faults)}: {'survived' if same else 'NOT SURVIVED'}, recovered in {took:.1f} s", flush=True)
    assert code == 0, (storage / "said.txt").read_text()
    assert differences(found, calm[0]) == []


def test_killed_as_each_stage_begins(cohort, calm, tally):
    storage = cohort.storage()
    for stage in STAGES: assert Kill(stage, 0).strike(cohort, storage) is None
    recovered(cohort, storage, calm, tally, ["kill -9, all, as a stage begins"] * len(STAGES))


@pytest.mark.timeout(0)    # it takes what --kills asks for; each run in it has a limit
def test_killed_at_random_instants(cohort, calm, tally, request):
    """As many kills as asked for, three to a storage; then to the end."""
    wanted, chance = request.config.getoption("--kills"), random.Random(request.config.getoption("--kill-seed"))    # noqa: S311
    done = 0
    while done < wanted:
        storage, faults = cohort.storage(), []
        for _ in range(min(3, wanted - done)):
            stage = chance.choice([None, *STAGES])
            whom = chance.choice(["all", "all", "run", "build", "kernel"]) if stage else "all"
            kill = Kill(stage, chance.uniform(0, 4 if stage is None else 1.1 * calm[1][stage]), whom)
            if stage in began(storage)[:-1] and len(began(storage)) > STAGES.index(stage) + 1: kill.stage = None
            code = kill.strike(cohort, storage)
            if kill.struck: faults.append(f"kill -9, {'everything' if whom == 'all' else whom}, at random")
            if code is not None and not kill.struck: break    # it had come to its end
        done += len(faults)
        recovered(cohort, storage, calm, tally, faults)
        shutil.rmtree(storage)


@root
def test_full_disk_then_a_read_only_one(cohort, calm, tally):
    """The disk is full when features begins; then it can't be written; then it can."""
    storage = cohort.storage()
    kept = storage.with_name("kept")
    storage.rename(kept)
    storage.mkdir()
    mount = lambda *words: subprocess.run([shutil.which("mount"), *words], check=True)
    mount("-t", "tmpfs", "-o", "size=60m", "tmpfs", str(storage))
    try:
        shutil.copytree(kept, storage, dirs_exist_ok=True)
        process = cohort.start(storage)
        while process.poll() is None and "features" not in began(storage): time.sleep(.005)
        filler = storage / "filler"
        with open(filler, "wb", buffering=0) as f:
            try:
                while True: f.write(bytes(4096))
            except OSError: pass
        assert process.wait(LIMIT) != 0
        filler.unlink()
        mount("-o", "remount,ro", str(storage))
        refused = cohort.project.run("health-predict", "run", HEALTH_PREDICT_STORAGE=str(storage))
        assert refused.returncode == 4 and "Read-only file system" in refused.stderr and "Traceback" not in refused.stderr, refused.stderr
        mount("-o", "remount,rw", str(storage))
        recovered(cohort, storage, calm, tally, ["disk full", "read-only disk"])
    finally: subprocess.run([shutil.which("umount"), "--lazy", str(storage)], check=True)    # a process that is on its way out may still hold it


def test_the_clock_jumps(cohort, calm, tally, tmp_path):
    """Killed, and gone on with by a clock that is three days behind; then ten days ahead."""
    storage = cohort.storage()
    Kill("train", 0).strike(cohort, storage)
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    shifted = {"PYTHONPATH": os.pathsep.join([str(tmp_path), cohort.project.environment["PYTHONPATH"]])}
    assert cohort.start(storage, **shifted, TEST_DAYS_AHEAD="-3").wait(LIMIT) == 0, (storage / "said.txt").read_text()
    recovered(cohort, storage, calm, tally, ["clock three days back, then ten ahead"], **shifted, TEST_DAYS_AHEAD="10")
    days = {o["time"][:10] for o in map(json.loads, (storage / "logs" / "run.jsonl").read_text().splitlines())}
    assert len(days) == 3    # the clock did jump


def test_damaged_products_marks_state_and_champion(cohort, calm, tally):
    """Damage on the disk between two runs; all of it is found and put right."""
    storage = cohort.storage()
    assert cohort.run(storage) == 0
    run, champion = storage / "runs" / "0", storage / "models" / "champion.json"
    cut = lambda path: path.write_bytes(path.read_bytes()[:100])
    cut(run / "features.parquet")
    cut(run / ".evaluation.json.metadata")
    cut(storage / "state" / "run.json")
    cut(champion)
    model = next(p for p in (storage / "models").glob("*/*.onnx"))
    model.write_bytes(model.read_bytes().replace(b"o", b"p"))
    damage = ["a product cut off", "a mark cut off", "state/run.json cut off", "champion.json cut off", "the champion's bundle changed"]
    recovered(cohort, storage, calm, tally, damage, "--batch", "0", HEALTH_PREDICT_RUN__ATTEMPTS="1")
    shown = cohort_audit(cohort, storage)
    assert "champion mended" in shown and "champion.json and the bundle of version 1" in shown


def cohort_audit(cohort, storage): return cohort.project.run("health-predict", "audit", "show", HEALTH_PREDICT_STORAGE=str(storage)).stdout


def test_two_at_once_and_mail_away(cohort, calm, tally):
    """Two runs start together: one works, one says so. The mail server is not there: the run is well, the alerts wait."""
    storage = cohort.storage()
    mail = {"HEALTH_PREDICT_ALERT__EMAIL_TO": "lead@ward.example", "HEALTH_PREDICT_ALERT__EMAIL_HOST": "127.0.0.1", "HEALTH_PREDICT_ALERT__EMAIL_PORT": "9",
            "HEALTH_PREDICT_ALERT__PAUSE": "0.01"}
    pair = [cohort.start(storage, **mail) for _ in range(2)]
    assert sorted(o.wait(LIMIT) for o in pair) == [0, 5]
    recovered(cohort, storage, calm, tally, ["two runs at once", "SMTP away"], **mail)


@pytest.fixture
def mlflow_server(cohort, tmp_path):
    """A real MLflow server, and a proxy in front of it."""
    with socket.create_server(("127.0.0.1", 0)) as s: port = s.getsockname()[1]
    program = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}",
        "--artifacts-destination", str(tmp_path / "artifacts"), "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with open(tmp_path / "server.txt", "wb") as said: server = subprocess.Popen(program, env=cohort.project.environment, stdout=said, stderr=said)
    proxy = Proxy(port)
    while not reachable(port):
        assert server.poll() is None, (tmp_path / "server.txt").read_text()
        time.sleep(.1)
    assert requests.get(f"http://127.0.0.1:{port}/health", timeout=120).status_code == 200
    yield proxy, tmp_path / "mlflow.db"
    proxy.close()
    for o in psutil.Process(server.pid).children(recursive=True): o.kill()
    server.kill()
    server.wait()


def reachable(port):
    try: return not socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError: return False


def test_mlflow_away_slow_and_failing_half_way(cohort, calm, tally, mlflow_server):
    """Away at first; then slow, and gone in the middle of a registration; then well."""
    proxy, database = mlflow_server
    storage = cohort.storage()
    there = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{proxy.port}", "HEALTH_PREDICT_RUN__ATTEMPTS": "1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
             "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
    proxy.left = 0
    assert cohort.run(storage, **there) == 6 and began(storage)[-1] == "decide", (storage / "said.txt").read_text()
    proxy.left, proxy.pause = None, .1
    process = cohort.start(storage, **there)
    while process.poll() is None and "deploy" not in began(storage): time.sleep(.01)
    proxy.left = 12
    assert process.wait(LIMIT) == 6 and began(storage)[-1] == "deploy", (storage / "said.txt").read_text()
    proxy.left, proxy.pause = None, 0
    recovered(cohort, storage, calm, tally, ["MLflow away", "MLflow slow, then failing half-way"], database=database, **there)
