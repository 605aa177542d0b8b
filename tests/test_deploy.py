"""Deployment without a cluster, and its way to a registry: a server of its own, what must run after a reboot, AWS's passwords, a real registry."""
import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import requests
from moto import mock_aws
from typer.testing import CliRunner

from health_predict import cli, startup
from health_predict.bundle import Bundle
from health_predict.fields import TARGETS
from health_predict.pack import finish, write_bundle
from health_predict.cohort import can_return, outcome
from health_predict.deploy import free_port, verify
from health_predict.features import fit_encode
from health_predict.image import SECRET, ImageError, builder, ecr_login, ensure_repository, pushed, reference, secret_manifest
from health_predict.mirror import push_bundle, push_pointer
from health_predict.reader import wanted_there
from health_predict.registry import place
from health_predict.settings import load_settings
from health_predict.startup import began, down, noted, up
from health_predict.storage import Tree, write_json
from health_predict.train import train_target

ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"


def until(check, seconds: float = 60):
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end
        time.sleep(.05)


def answers(url: str) -> bool:
    try: return requests.get(f"{url}/health", timeout=5).status_code == 200
    except requests.RequestException: return False


@pytest.fixture(scope="module")
def served(encounters, tmp_path_factory):
    """A storage with a champion, version 7, that learnt from a few made-up encounters; and encounters to ask for."""
    folder = tmp_path_factory.mktemp("served")
    rows = encounters[can_return(encounters.discharge_disposition_id)].reset_index(drop=True)
    known, settings = {t: outcome(rows.readmitted, t) for t in TARGETS}, load_settings(storage={"root": str(folder / "storage")})
    X, encoder = fit_encode(rows, known)
    fitted = [train_target(t, ("logistic",), (X[:2000], y[:2000]), (X[2000:], y[2000:]), settings.threshold) for t, y in known.items()]
    write_bundle(folder / "draft", encoder, fitted, X, {"synthetic": True, "batches": [0]}, "any")
    digest = finish(folder / "draft", folder / "bundle", {}, "# Card")
    models = Tree(settings).models
    models.mkdir(parents=True)
    shutil.copytree(folder / "bundle", models / digest[:16])
    entry = {"version": 7, "digest": digest, "path": digest[:16], "since": "2026-11-23T12:00:00+00:00", "batch": 0, "synthetic": True, "former": []}
    write_json(models / "champion.json", entry)
    return settings, Bundle(models / digest[:16]), rows


@pytest.fixture
def shell(served, monkeypatch):
    """The environment of an operator of that storage."""
    settings, _, _ = served
    monkeypatch.setenv("HEALTH_PREDICT_STORAGE", settings.storage.root)
    monkeypatch.setenv("HEALTH_PREDICT_SERVING__PORT", str(free_port()))
    monkeypatch.setenv("HEALTH_PREDICT_SERVING__WORKERS", "1")
    return lambda *words: CliRunner().invoke(cli.app, list(words))


def test_server_that_answers_for_another_version_fails(served):
    settings, bundle, rows = served
    found = verify(settings, bundle, 8, rows)
    assert (found["verified"], found["where"], found["reasons"]) == (False, "local", ["it serves version 7, not 8"])
    assert {o["check"] for o in found["checks"] if o["passed"]} == {"ready", "digest", "scores", "speed", "refusals", "explanation"}


def test_run_that_is_killed_takes_its_server_along(served):
    settings, bundle, _ = served
    program = f"""
import sys, time
from health_predict.deploy import local_server
from health_predict.settings import load_settings
with local_server(load_settings(storage={{"root": {settings.storage.root!r}}}), {bundle.digest!r}) as (url, process, log):
    print(process.pid, url, flush=True)
    time.sleep(600)"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    server, url = parent.stdout.readline().split()
    until(lambda: answers(url))
    parent.kill()
    parent.wait()
    until(lambda: not answers(url))
    until(lambda: began(int(server)) is None)


def test_remote_storage_is_not_asked_here_and_has_what_a_canary_elsewhere_needs(served, tmp_path, monkeypatch):
    """A server on trial reads this machine's tree, as nothing has travelled yet; a pod reads the remote one, which gets bundle, version, pointer early."""
    _, bundle, rows = served
    monkeypatch.setenv("HEALTH_PREDICT_STORAGE__REMOTE", str(tmp_path / "remote"))
    settings = load_settings(storage={"root": str(tmp_path / "storage"), "remote": str(tmp_path / "remote")})
    tree = Tree(settings)
    placed = place(settings, bundle.folder, {"version": 9, "run_id": "r9"}, 3)
    assert verify(settings, Bundle(placed), 9, rows)["reasons"] == []
    push_bundle(settings, placed)
    pod = load_settings(storage=settings.storage.model_dump(), serving={"digest": bundle.digest})
    assert {k: wanted_there(pod)[k] for k in ("version", "run_id", "digest", "batch")} == {"version": 9, "run_id": "r9", "digest": bundle.digest, "batch": 3}
    write_json(tree.models / "champion.json", {"version": 9, "digest": bundle.digest, "path": placed.name, "since": "now", "batch": 3, "former": []})
    for _ in range(2): push_pointer(settings)
    assert wanted_there(load_settings(storage=settings.storage.model_dump()))["version"] == 9


def test_synthetic_model_is_not_for_a_cluster(served):
    settings, bundle, rows = served
    found = verify(load_settings(storage={"root": settings.storage.root}, deploy={"context": "hospital"}), bundle, 7, rows)
    assert (found["verified"], found["where"]) == (False, "hospital") and "SYNTHETIC" in found["reasons"][0]


def test_up_starts_what_does_not_run_and_down_ends_it(served, shell, monkeypatch):
    monkeypatch.setattr(startup, "UP", [o for o in startup.UP if o.__name__ != "up_schedule"])    # the machine's own schedule is not for a test
    settings = load_settings()
    url = f"http://127.0.0.1:{settings.serving.port}"
    try:
        assert [(o.what, o.changed) for o in up(settings)] == [("API", True)]
        assert requests.get(f"{url}/model-info", timeout=5).json()["version"] == 7
        process, began = noted(settings, "api"), time.monotonic()
        assert [(o.what, o.changed) for o in up(settings)] == [("API", False)] and time.monotonic() - began < 2    # well already: no time lost
        assert noted(settings, "api") == process
        os.kill(process, signal.SIGKILL)    # as a reboot leaves it: noted, and gone
        until(lambda: not answers(url))
        assert [o.changed for o in up(settings)] == [True]
    finally: ended = {o.what: o.changed for o in down(settings)}
    assert ended == {"api": True, "mlflow": False}
    with pytest.raises(requests.ConnectionError): requests.get(url, timeout=5)


def test_command_says_what_it_would_do_and_what_is_missing(shell, monkeypatch):
    assert "nothing to do: no cluster is configured" in shell("deploy", "--dry-run").stdout
    assert "version 8 would be tried in a server of its own here" in shell("deploy", "--dry-run", "--version", "8").stdout
    assert "version 7 is in charge already" in shell("deploy", "--dry-run", "--version", "7").stdout
    assert "set [deploy] context" in str(shell("deploy", "--image", "api:2").exception)
    assert "none configured" in shell("doctor").stdout
    monkeypatch.setenv("HEALTH_PREDICT_DEPLOY__CONTEXT", "nowhere")
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    assert "[deploy] context = nowhere" in shell("doctor").stdout


def test_ecr_gives_a_repository_and_a_password(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"): monkeypatch.setenv(name, "testing")
    settings = load_settings(deploy={"registry": ECR})
    with mock_aws():
        assert ensure_repository(settings) and not ensure_repository(settings)
        import boto3
        found = boto3.client("ecr", region_name="eu-west-1").describe_repositories()["repositories"][0]
        assert (found["imageTagMutability"], found["imageScanningConfiguration"]["scanOnPush"]) == ("IMMUTABLE", True)
        user, password = ecr_login(settings)
    from datetime import datetime, timezone
    secret = secret_manifest(settings, user, password, datetime.now(timezone.utc))
    assert (user, secret["metadata"]["name"]) == ("AWS", SECRET)
    assert json.loads(base64.b64decode(secret["data"][".dockerconfigjson"]))["auths"][ECR]["password"] == password


@pytest.fixture
def registry(tmp_path):
    """A real registry."""
    if not (program := shutil.which("docker-registry")): pytest.skip("no registry is at hand: install Debian's docker-registry")
    port = free_port()
    config = {"version": 0.1, "log": {"level": "error"}, "storage": {"filesystem": {"rootdirectory": str(tmp_path)}}, "http": {"addr": f"127.0.0.1:{port}"}}
    (tmp_path / "config.yml").write_text(json.dumps(config))
    process = subprocess.Popen([program, "serve", str(tmp_path / "config.yml")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(200):
        try: requests.get(f"http://127.0.0.1:{port}/v2/", timeout=5); break
        except requests.ConnectionError: time.sleep(.05)
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait()


def test_registry_is_asked_whether_an_image_is_there(registry):
    settings = load_settings(deploy={"registry": registry})
    name = reference(settings)
    assert pushed(settings, name) is None
    base, tag = f"http://{registry}/v2/health-predict-api", name.rpartition(":")[2]
    config = b"{}"
    digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    upload = requests.post(f"{base}/blobs/uploads/", timeout=5).headers["Location"]
    requests.put(upload, params={"digest": digest}, data=config, timeout=5).raise_for_status()
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = json.dumps({"schemaVersion": 2, "mediaType": kind, "layers": [],
                           "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": len(config)}})
    requests.put(f"{base}/manifests/{tag}", data=manifest, headers={"Content-Type": kind}, timeout=5).raise_for_status()
    assert pushed(settings, name) == f"sha256:{hashlib.sha256(manifest.encode()).hexdigest()}"


def test_what_is_missing_is_said(monkeypatch):
    with pytest.raises(ImageError, match="can't be asked"): pushed(load_settings(), "127.0.0.1:9/health-predict-api:1")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ImageError, match="neither a running docker nor buildah"): builder()
