"""The model that answers, while champions come, go and are tampered with, and the storage disappears."""
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from health_predict.bundle import verify
from health_predict.pack import recalibrate
from health_predict.cohort import outcome
from health_predict.settings import load_settings


@pytest.fixture(scope="module")
def second(built, cohort, tmp_path_factory):
    """Another bundle, told from the champion by its scores: the same trees, calibrated to a rarer outcome."""
    folder = tmp_path_factory.mktemp("second") / "bundle"
    champion = json.loads((built.storage / "models" / "champion.json").read_text())
    labels = cohort.sample(2000, random_state=0)
    readmitted = labels.encounter_id.map(read_labels(built)).to_numpy()
    rarer = {t: outcome(readmitted, t) * (labels.encounter_id.to_numpy() % 3 == 0) for t in ("any", "30d")}
    digest = recalibrate(built.storage / "models" / champion["path"], folder, labels, rarer, load_settings().threshold)
    return folder, digest


def read_labels(built):
    import pandas as pd
    return pd.read_parquet(built.storage / "labels" / "0.parquet").set_index("encounter_id").readmitted


def lead(storage: Path, digest: str, version: int):
    """Put a bundle in charge, as promotion does."""
    file = storage / "models" / "champion.json"
    now = json.loads(file.read_text())
    new = file.with_name(".new")
    new.write_text(json.dumps(now | {"version": version, "digest": digest, "path": digest[:16]}))
    new.replace(file)


def until(check, seconds: float = 15):
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end
        time.sleep(.05)


def versions(server) -> set[int]: return {server.get("/health").json()["model_version"] for _ in range(12)}


def metric(server, name: str) -> float:
    return sum(float(o.rsplit(" ", 1)[1]) for o in server.get("/metrics").text.splitlines() if o.startswith(f"health_predict_{name}"))


@pytest.fixture
def two(serve, models, second, request):
    """A server with a second bundle at hand."""
    storage = models(request.node.name)
    shutil.copytree(second[0], storage / "models" / second[1][:16])
    server = serve(storage, workers=2)
    server.wait()
    return server, json.loads((storage / "models" / "champion.json").read_text())["digest"], second[1]


def test_champions_change_under_load_without_a_failed_or_mixed_answer(two, encounter):
    server, one, other = two
    scores, wrong, stop = {1: set(), 2: set()}, [], threading.Event()

    def ask():
        with requests.Session() as session:
            while not stop.is_set():
                try:
                    body = session.post(server.url + "/predict", json=encounter, timeout=10).json()
                    scores[body["model_version"]].add(json.dumps(body["risks"]))
                except (requests.RequestException, KeyError, ValueError) as e: wrong.append(repr(e))

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for o in clients: o.start()
    for i in range(6):
        version = 2 - i % 2
        lead(server.storage, other if version == 2 else one, version)
        until(lambda version=version: versions(server) == {version})
    stop.set()
    for o in clients: o.join()
    assert wrong == []
    assert len(scores[1]) == len(scores[2]) == 1 and not scores[1] & scores[2]    # each version always said the same, and not what the other says
    assert metric(server, "model_reloads_total") >= 8    # 2 workers loaded once, and every one of 6 changes was seen
    assert metric(server, "model_version") in (1, 2)


@pytest.fixture(scope="module")
def refusing(serve, models):
    """A server that damaged bundles are put before."""
    server = serve(models("damaged"))
    server.wait()
    return server


@pytest.mark.parametrize("damage", ["changed byte", "missing file", "extra file", "other digest", "no folder", "not JSON", "resealed"])
def test_damaged_bundles_are_refused_and_the_old_model_stays(refusing, second, encounter, damage):
    server, storage, digest = refusing, refusing.storage, second[1]
    champion, failures = (storage / "models" / "champion.json").read_bytes(), metric(server, "model_reload_failures_total")
    folder = storage / "models" / digest[:16]
    shutil.copytree(second[0], folder)
    before = server.post("/predict", json=encounter).json()["risks"]
    if damage == "changed byte": (folder / "any.onnx").write_bytes((folder / "any.onnx").read_bytes()[:-1] + b"\0")
    if damage == "missing file": (folder / "encoder.json").unlink()
    if damage == "extra file": (folder / "evil.py").write_text("print()")
    if damage == "other digest": digest = "0" * 64; folder = folder.rename(storage / "models" / digest[:16])
    if damage == "no folder": shutil.rmtree(folder)
    if damage == "resealed":    # an attacker who can write the bundle, but not champion.json
        from health_predict.bundle import seal
        (folder / "model.json").write_text((folder / "model.json").read_text().replace('"primary": "any"', '"primary": "30d"'))
        seal(folder)
    lead(storage, digest, 2)
    if damage == "not JSON": (storage / "models" / "champion.json").write_text("{")
    until(lambda: metric(server, "model_reload_failures_total") > failures)
    health = server.get("/health").json()
    assert (health["status"], health["model_version"], health["reload_problem"]) == ("healthy", 1, True)
    assert server.post("/predict", json=encounter).json()["risks"] == before
    assert '"event":"model refused"' in server.log.read_text()
    shutil.rmtree(folder, ignore_errors=True)
    (storage / "models" / "champion.json").write_bytes(champion)
    until(lambda: not server.get("/health").json()["reload_problem"])


def test_one_alert_tells_of_a_refused_champion(serve, models, second, encounter):
    """Three workers refuse it, again and again; people hear of it once."""
    from http.server import BaseHTTPRequestHandler, HTTPServer
    said = []

    class Chat(BaseHTTPRequestHandler):
        def do_POST(self):
            said.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args): pass

    with HTTPServer(("127.0.0.1", 0), Chat) as chat:
        threading.Thread(target=chat.serve_forever, daemon=True).start()
        storage, digest = models("alerted"), second[1]
        server = serve(storage, {"HEALTH_PREDICT_ALERT__WEBHOOK_URL": f"http://127.0.0.1:{chat.server_port}/x"}, workers=3, reload=.1)
        server.wait()
        until(lambda: metric(server, "model_reloads_total") == 3)
        shutil.copytree(second[0], storage / "models" / digest[:16])
        (storage / "models" / digest[:16] / "encoder.json").write_text("{}")
        lead(storage, digest, 2)
        until(lambda: metric(server, "model_reload_failures_total") >= 3 and said)
        until(lambda: '"waiting": []' in (storage / "state" / "alerts.json").read_text())
        assert server.post("/predict", json=encounter).json()["model_version"] == 1
        server.stop()
        chat.shutdown()
    assert len(said) == 1 and "refused" in said[0] and "encoder.json changed" in said[0] and "health-predict rollback" in said[0]


def test_storage_away_and_back(two, encounter, tmp_path):
    server, _, other = two
    models = server.storage / "models"
    models.rename(tmp_path / "away")
    time.sleep(.5)
    assert server.post("/predict", json=encounter).json()["model_version"] == 1
    (tmp_path / "away").rename(models)
    lead(server.storage, other, 2)
    until(lambda: versions(server) == {2})


def test_start_from_the_local_copy(serve, models, encounter, tmp_path):
    storage = models("local")
    first = serve(storage, local=tmp_path / "copies")
    first.wait()
    said = first.post("/predict", json=encounter).json()["risks"]
    first.stop()
    shutil.rmtree(storage / "models")
    again = serve(storage, local=tmp_path / "copies")
    again.wait()
    assert again.post("/predict", json=encounter).json()["risks"] == said


def test_pinned_server_ignores_champions(serve, models, second, encounter):
    storage = models("pinned")
    champion = json.loads((storage / "models" / "champion.json").read_text())
    shutil.copytree(second[0], storage / "runs" / "1" / "bundle")    # a challenger that was never promoted
    (storage / "runs" / "1" / "promotion.json").write_text(json.dumps({"digest": second[1], "version": 7, "run_id": "r", "batch": 1}))
    canary = serve(storage, digest=second[1], local=storage / "canary")
    canary.wait()
    info = canary.get("/model-info").json()
    assert (info["digest"], info["version"], info["alias"]) == (second[1], 7, "pinned") != champion["digest"]
    lead(storage, champion["digest"], 9)
    time.sleep(.5)
    assert canary.post("/predict", json=encounter).json()["model_version"] == 7


def test_a_killed_worker_is_replaced_and_its_log_is_kept(two, encounter):
    server, *_ = two
    answered = sum(server.post("/predict", json=encounter).ok for _ in range(20))
    time.sleep(.5)
    old = {o.pid for o in server.workers}
    for o in server.workers: o.kill()
    until(lambda: len(server.workers) == 2 and not old & {o.pid for o in server.workers})
    server.wait()
    assert server.post("/predict", json=encounter).ok
    assert server.stop() == 0
    from health_predict.predictions import read_predictions
    found = read_predictions(load_settings(storage={"root": str(server.storage)}))
    assert len(found) == answered + 1 == found.request_id.nunique()


def test_running_requests_are_finished_at_shutdown(two, cohort):
    from conftest import as_request
    server, *_ = two
    rows, done = [as_request(o) for o in cohort.to_dict("records")], []
    clients = [threading.Thread(target=lambda: done.append(server.post("/predict/batch", json=rows))) for _ in range(3)]
    for o in clients: o.start()
    time.sleep(.3)
    assert server.stop() == 0
    for o in clients: o.join()
    assert [(o.status_code, len(o.json())) for o in done] == [(200, len(rows))] * 3


def test_a_kept_connection_does_not_hold_up_the_end(serve, models, encounter):
    """`stop` waits less long than the server would wait for a running request."""
    server = serve(models("kept"), graceful="600")
    server.wait()
    with requests.Session() as kept:
        assert kept.post(server.url + "/predict", json=encounter).headers.get("Connection") != "close"
        assert server.stop() == 0


def test_server_forked_after_imports_answers_in_every_worker(serve, models, encounter):
    """What is loaded before a fork may hang in the child, as XGBoost does: every worker must answer, soon."""
    server = serve(models("fork"), workers=3)
    server.wait()
    parent, seen = psutil.Process(server.process.pid), set()
    assert parent.num_threads() == 1 and not any(name in o.path for o in parent.memory_maps() for name in ("xgboost", "onnxruntime"))    # nothing to lose
    with ThreadPoolExecutor(12) as clients:
        assert all(clients.map(lambda _: requests.post(server.url + "/explain", json=encounter, timeout=30).ok, range(200)))
    for line in server.log.read_text().splitlines():
        o = json.loads(line) if line.startswith("{") else {}
        if o.get("endpoint") == "/explain": seen.add(o["process"])
    assert len(seen) == 3
    for worker in server.workers: assert not any("xgboost" in o.path for o in worker.memory_maps())


def test_verify_knows_the_second_bundle(second): assert verify(second[0])["digest"] == second[1]
