"""`health-predict run` around a build: whose turn it is, the lock, time limits, tries, setting aside, signs of life. Only the pipeline is trivial."""
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest
from trivial import Trivial

from health_predict.attempt import follow
from health_predict.settings import load_settings
from health_predict.storage import write_json


class Listener(BaseHTTPRequestHandler):
    """A dead man's switch and a webhook in one: keeps what it is told."""
    def do_GET(self): self.keep(self.path)

    def do_POST(self): self.keep(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])

    def keep(self, what):
        self.server.told.append(what)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args): pass


@pytest.fixture
def listener():
    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        server.told = []
        threading.Thread(target=server.serve_forever, args=(.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def trivial(project, listener):
    made = Trivial(project)
    address = f"http://127.0.0.1:{listener.server_port}"
    made.project.environment |= {"HEALTH_PREDICT_RUN__HEARTBEAT_URL": f"{address}/beat", "HEALTH_PREDICT_ALERT__WEBHOOK_URL": f"{address}/hook",
        "HEALTH_PREDICT_RUN__METRICS_FILE": str(made.storage / "run.prom"), "HEALTH_PREDICT_ALERT__PAUSE": "0.01"}
    return made


def beats(listener): return [o for o in listener.told if o.startswith("/beat")]


def alerts(listener): return [o for o in listener.told if not o.startswith("/beat")]


def waited(condition, seconds=60):
    """Wait until something holds."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it never came true"
        time.sleep(.02)


def test_what_waits_runs_and_what_may_pass_is_tried_again(trivial, listener):
    """Two batches; a database is locked at first; then nothing waits. The switch, the log, the metrics and the alerts tell it."""
    trivial.arrive(0, 1)
    (trivial.storage / "incoming" / "2.csv.part").write_text("half")
    trivial.order(1, "publish", "locked")
    done = trivial.run("--all")
    assert done.returncode == 0, done.stderr
    assert trivial.diary == ["0 ingest", "0 publish", "1 ingest", "1 publish", "1 publish"]    # ingest was done: the second try went on at publish
    assert "nothing to run: nothing waits" in done.stdout and "Traceback" not in done.stderr and "attempt 1 failed at publish: outage" in done.stderr
    assert [o.split()[0] for o in done.stdout.splitlines() if o.endswith((" s", "failed"))] == ["ingest", "publish", "ingest", "publish", "publish"]
    assert beats(listener) == ["/beat/start", "/beat"]
    assert {o["state"] for o in trivial.kept.values()} == {"published"} and all(o["told"] for o in trivial.kept.values())
    assert ["Batch 1: major drift" in o for o in alerts(listener)].count(True) == 1 and len(alerts(listener)) == 2
    seen = [(o["event"], o.get("stage"), o.get("attempt")) for o in trivial.events if o.get("batch") == 1]
    assert seen == [("batch started", None, None), ("stage started", "ingest", 1), ("stage finished", "ingest", 1), ("stage started", "publish", 1),
        ("stage failed", "publish", 1), ("attempt failed", "publish", 1), ("stage started", "publish", 2), ("stage finished", "publish", 2),
        ("batch published", None, None)]
    assert next(o["kind"] for o in trivial.events if o["event"] == "attempt failed") == "outage"
    metrics = (trivial.storage / "run.prom").read_text()
    assert "health_predict_run_last_batch 1.0" in metrics and 'stage_seconds{stage="publish"}' in metrics and "batches_waiting 0.0" in metrics
    assert not (trivial.storage / "state" / "run.lock").read_text()
    found = json.loads(trivial.project.run("health-predict", "status", "--json").stdout)
    assert (found["holder"], found["waiting"], found["to_do"], [o["state"] for o in found["batches"]]) == (None, [], [], ["published"] * 2)
    where = trivial.project.run("health-predict", "report", "--batch", "1", "--stage", "ingest").stdout.strip()
    assert Path(where).is_file() and "batch 1" in Path(where).read_text()


def test_time_limit_ends_every_process_and_shows_on_the_page(trivial, listener):
    trivial.arrive(0)
    trivial.order(0, "ingest", "sleep")
    done = trivial.run(HEALTH_PREDICT_RUN__STAGE_LIMIT="3")
    assert done.returncode == 1 and "time limit: ingest took more than the 3 s of [run] stage_limit" in done.stderr, done.stderr
    assert "time limit" in (trivial.storage / "reports" / "0" / "ingest.html").read_text()
    assert json.loads((trivial.storage / "reports" / "0" / "summary.json").read_text())["failed"] == "ingest"
    assert not [p for p in psutil.process_iter() if owned(p, trivial)]
    shown = trivial.project.run("health-predict", "audit", "show", "--kind", "failure").stdout
    assert "stage ingest" in shown
    assert "stopped at ingest" in alerts(listener)[0] and beats(listener) == ["/beat/start", "/beat/fail"]
    status = trivial.project.run("health-predict", "status")
    assert status.returncode == 1 and "Raise [run] stage_limit" in status.stdout
    trivial.order(0, "ingest")
    assert trivial.run().returncode == 0


def owned(process, trivial):
    try: return process.pid != os.getpid() and process.environ().get("PYTHONPATH") == str(trivial.project.folder) and process.status() != "zombie"
    except psutil.Error: return False


def test_a_killed_run_frees_the_lock_and_the_next_one_goes_on(trivial, listener):
    """Two at once: the second says who is at work. Killed, with its kernel asleep; the next run finds no lock, ends what is left, and goes on."""
    trivial.arrive(0)
    trivial.order(0, "publish", "sleep")
    program = [str(Path(sys.executable).parent / "health-predict"), "run"]
    said = trivial.storage / "said.txt"
    with open(said, "wb") as f:
        first = subprocess.Popen(program, cwd=trivial.project.folder, env=trivial.project.environment, stdout=f, stderr=subprocess.DEVNULL)
    waited(lambda: len(trivial.diary) == 2)
    second = trivial.run()
    assert second.returncode == 5 and f"process {first.pid} on" in second.stderr
    status = trivial.project.run("health-predict", "status")
    assert f"process {first.pid}" in status.stdout and "batch 0: publish, begun" in status.stdout and status.stdout.strip().endswith("at publish")
    assert said.read_text().split()[0] == "ingest"    # told as it happened
    first.kill()
    first.wait()
    done = trivial.run()
    assert done.returncode == 0, done.stderr
    assert trivial.diary == ["0 ingest", "0 publish", "0 publish"]
    assert not [p for p in psutil.process_iter() if owned(p, trivial)]
    assert beats(listener) == ["/beat/start", "/beat/start", "/beat"] and trivial.kept["0"]["state"] == "published"


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_stopped_in_one_line(trivial, number):
    trivial.arrive(0)
    trivial.order(0, "ingest", "sleep")
    program = [str(Path(sys.executable).parent / "health-predict"), "run"]
    first = subprocess.Popen(program, cwd=trivial.project.folder, env=trivial.project.environment, stderr=subprocess.PIPE, text=True)
    waited(lambda: trivial.diary)
    first.send_signal(number)
    said = first.communicate(timeout=30)[1]
    assert first.returncode == 128 + number
    assert [o for o in said.splitlines() if o] == ["batch 0: its turn", f"health-predict: stopped by {number.name}; the next run goes on there"], said
    assert not [p for p in psutil.process_iter() if owned(p, trivial)]
    assert trivial.kept["0"]["state"] == "stopped" and trivial.kept["0"]["tries"] == 0


@pytest.mark.slow
def test_poisonous_batch_is_set_aside_and_tried_again_on_purpose(trivial, listener):
    trivial.arrive(0, 1, 2)
    assert trivial.run().returncode == 0
    trivial.order(1, "ingest", "bad", "bad", "")
    environment = {"HEALTH_PREDICT_RUN__SET_ASIDE": "2"}
    first = trivial.run("--all", **environment)
    assert first.returncode == 1 and "ValueError: bad" in first.stderr and trivial.kept["1"]["state"] == "failed" and "2" not in trivial.kept
    second = trivial.run("--all", **environment)
    assert second.returncode == 1 and trivial.kept["1"]["state"] == "set aside" and trivial.kept["2"]["state"] == "published"
    assert trivial.diary.count("1 ingest") == 2     # once a run
    assert [o for o in alerts(listener) if "set aside after 2 failed runs" in o]
    assert "set aside" in trivial.project.run("health-predict", "audit", "show", "--batch", "1").stdout
    assert trivial.run("--all", **environment).returncode == 0 and len(trivial.diary) == 6    # nothing waits
    done = trivial.run("--batch", "1", **environment)
    assert done.returncode == 0 and trivial.kept["1"]["state"] == "published", done.stderr
    assert trivial.kept["1"]["late"] and trivial.diary[-1] == "1 publish true"      # batch 2 has run: nothing is trained on its account
    assert (trivial.storage / "incoming" / "1.csv").is_file()


@pytest.mark.slow
def test_what_is_wrong_around_a_batch_does_not_count_against_it(trivial, listener):
    trivial.arrive(0)
    trivial.order(0, "ingest", "full", "locked", "locked", "die", "")
    environment = {"HEALTH_PREDICT_RUN__ATTEMPTS": "2"}
    full = trivial.run(**environment)
    assert full.returncode == 1 and "No space left" in full.stderr and (trivial.kept["0"]["kind"], trivial.kept["0"]["tries"]) == ("site", 0)
    assert len(trivial.diary) == 1      # not tried again at once
    away = trivial.run(**environment)
    assert away.returncode == 6 and (trivial.kept["0"]["kind"], trivial.kept["0"]["tries"]) == ("outage", 0) and len(trivial.diary) == 3
    done = trivial.run(**environment)       # the kernel dies once
    assert done.returncode == 0, done.stderr
    assert [o["kind"] for o in trivial.events if o["event"] == "attempt failed"] == ["site", "outage", "outage", "crash"]


@pytest.mark.slow
def test_gaps_late_batches_and_backfill(trivial, listener):
    trivial.arrive(0, 2, 3)
    waits = trivial.run("--all")
    assert waits.returncode == 0 and "batch 2 waits for batch 1 until" in waits.stdout and list(trivial.kept) == ["0"]
    assert beats(listener)[-1] == "/beat"     # waiting is no failure
    goes_on = trivial.run(HEALTH_PREDICT_RUN__GAP_WAIT="0")
    assert goes_on.returncode == 0 and "without batch 1" in goes_on.stderr
    assert [o for o in alerts(listener) if "without batch 1, which didn't arrive" in o]
    trivial.arrive(1)
    late = trivial.run("--json")
    assert [(o["batch"], o["late"]) for o in json.loads(late.stdout)] == [(1, True)]
    assert trivial.diary[-2:] == ["1 ingest true", "1 publish true"]
    done = trivial.project.run("health-predict", "backfill", "0", "3")
    assert done.returncode == 0 and trivial.diary[-2:] == ["3 ingest", "3 publish"] and len(trivial.diary) == 8
    assert "published already" in trivial.project.run("health-predict", "backfill", "0", "3").stdout
    assert trivial.project.run("health-predict", "backfill", "1", "1", "--force").returncode == 0 and trivial.diary[-1] == "1 publish true"
    assert trivial.project.run("health-predict", "backfill", "3", "1").returncode == 2


def test_the_stage_that_fell_is_told_and_not_the_one_after_it(tmp_path):
    """Ploomber goes on with stages that need nothing of the one that fell."""
    settings = load_settings(storage={"root": str(tmp_path)})
    write_json(tmp_path / "reports" / "0" / "summary.json", {"failed": "features", "error": "OSError: [Errno 28] No space left on device"})
    ours, theirs = os.pipe()
    failed = {"event": "failed", "module": "health_predict.pipeline", "name": "BatchFailed", "text": "batch 0 failed at features", "errors": []}
    for event in ({"event": "began", "stage": "features"}, {"event": "fell", "stage": "features"}, {"event": "began", "stage": "drift"}, failed):
        os.write(theirs, json.dumps(event).encode() + b"\n")
    os.close(theirs)
    told = []
    found = follow(settings, 0, ours, time.monotonic() + 60, lambda event, stage, **_: told.append((event, stage)))
    os.close(ours)
    assert told == [("stage started", "features"), ("stage failed", "features"), ("stage started", "drift"), ("stage finished", "drift")]
    assert (found.stage, found.kind, set(found.seconds)) == ("features", "site", {"features", "drift"})
