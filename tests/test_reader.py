"""A server whose champion and reports are in S3: it takes up what is put there, refuses what is damaged, and with S3 away goes on with what it has."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from health_predict import reader
from health_predict.api import create_app
from health_predict.bundle import verify
from health_predict.pack import write_bundle
from health_predict.live import Live
from health_predict.mirror import push, push_bundle
from health_predict.remote import remote_of
from health_predict.settings import load_settings
from health_predict.storage import Tree, write_json
from health_predict.train import Fitted, fit, fit_calibration, raw_log_odds

ROOT = Path(__file__).parents[1]


def bundle(folder: Path, seed: int) -> str:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(500, 2)).astype(np.float32)
    y = (X[:, 0] > rng.normal(size=500)).astype(int)
    model = fit("logistic", X, y)
    threshold = {"value": .4, "high": .7, "rule": "cost", "reason": "…"}
    fitted = [Fitted(t, "logistic", {}, model, fit_calibration(raw_log_odds(model, X), y), threshold, .5, y) for t in ("any", "30d")]
    encoder = {"columns": ["time_in_hospital", "num_procedures"], "numbers": ["time_in_hospital", "num_procedures"], "lookups": []}
    write_bundle(folder, encoder, fitted, X, {"synthetic": True}, "any")
    return verify(folder)["digest"]


def lead(settings, version: int) -> str:
    """A new champion, made on the machine that runs the pipeline, and put to S3."""
    tree = Tree(settings)
    tree.models.mkdir(parents=True, exist_ok=True)
    digest = bundle(tree.root / "new", version)
    os.rename(tree.root / "new", tree.models / digest[:16])
    write_json(tree.models / "champion.json", {"version": version, "digest": digest, "path": digest[:16], "since": "now", "batch": version, "former": []})
    write_json(tree.run(version) / "promotion.json", {"digest": digest, "version": version, "run_id": f"run {version}"})
    push(settings, version)
    return digest


def server(place, name: str, **serving):
    """Settings of a server without a storage tree."""
    return load_settings(storage={"root": str(place.folder / f"nothing-{name}"), "remote": place.remote},
        serving={"local": str(place.folder / name), "reload": 999, **serving})


def test_a_server_takes_its_champion_from_s3(place):
    machine, refusals = place.machine("machine"), []
    digest = lead(machine, 1)
    live = Live(server(place, "pod"), failed=refusals.append).start()
    assert (live.model.version, live.model.bundle.digest, live.model.facts["run_id"], live.problem) == (1, digest, "run 1", None)
    second = lead(machine, 2)
    live.look()
    assert live.model.version == 2
    store = remote_of(machine)
    content = store.read(f"models/{second[:16]}/any.onnx")[0]
    store.write(f"models/{second[:16]}/any.onnx", content[:-1] + b"?")
    fresh = Live(server(place, "fresh"), failed=refusals.append).start()
    assert fresh.model is None and len(refusals) == 1 and "any.onnx changed" in fresh.problem
    assert not [p for p in (place.folder / "fresh").glob("*") if p.is_dir()], "nothing half fetched stays"
    store.write(f"models/{second[:16]}/any.onnx", content)
    fresh.waited = 99
    fresh.look()
    assert (fresh.model.version, fresh.problem) == (2, None)
    place.proxies[-1].away = True
    live.look()
    assert live.model.version == 2 and "check the network" in live.problem
    again = Live(server(place, "pod")).start()
    assert again.model.version == 2, "it starts from its copy"
    empty = Live(server(place, "empty")).start()
    assert empty.model is None
    place.proxies[-1].away = False
    for o in (live, empty):
        o.waited = 99
        o.look()
        assert (o.model.version, o.problem) == (2, None)
    for o in (live, fresh, again, empty): o.stopping.set()


def test_a_canary_serves_a_bundle_that_is_no_champion(place):
    machine = place.machine("machine")
    lead(machine, 1)
    digest = bundle(place.folder / "draft", 5)
    push_bundle(machine, place.folder / "draft")
    canary = Live(server(place, "canary", digest=digest)).start()
    assert (canary.model.bundle.digest, canary.model.facts["alias"]) == (digest, "pinned")
    assert Live(server(place, "other", digest="0" * 64)).start().model is None


def test_reports_are_served_from_s3(place, monkeypatch):
    machine = place.machine("machine")
    lead(machine, 1)
    reports = Tree(machine).reports
    write_json(reports / "1" / "summary.json", {"state": "published"})
    (reports / "1" / "drift.html").write_text("<main>drift of batch 1</main>")
    (reports / "index.html").write_text("<main>the gallery</main>")
    push(machine, 1)
    client = create_app(server(place, "web", log=False)).test_client()
    assert b"the gallery" in client.get("/reports/").data and b"drift of batch 1" in client.get("/reports/1/drift").data
    assert client.get("/reports/1/none").status_code == 404 and client.get("/reports/1/..%2f..%2fmodels%2fchampion.json").status_code == 404
    asked = len(place.proxies[-1].asked)
    assert client.get("/reports/1/drift").status_code == 200 and len(place.proxies[-1].asked) == asked, "kept for a while"
    place.proxies[-1].away = True
    monkeypatch.setattr(reader, "FRESH", -1)
    assert client.get("/reports/1/drift").status_code == 200
    answer = client.get("/reports/1/summary.json")
    assert answer.status_code == 503 and "can't be reached now" in answer.json["detail"][0]["msg"]
    assert client.get("/health").status_code == 200


def test_a_server_without_a_remote_storage_never_imports_boto3(tmp_path):
    code = "import sys; from health_predict.api import create_app; create_app(); print([o for o in ('boto3', 'botocore') if o in sys.modules])"
    environment = {k: v for k, v in os.environ.items() if k != "AWS_ENDPOINT_URL"} | {"PYTHONPATH": str(ROOT), "HEALTH_PREDICT_STORAGE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout.strip().splitlines()[-1]) == [], done.stderr
