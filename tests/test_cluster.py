"""Deployment on a real Kubernetes control plane, with pods that are real processes: what succeeds, what is taken back, what patients' requests notice."""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import requests
from moto import mock_aws

from conftest import at_hand
from health_predict import audit
from health_predict.bundle import Bundle
from health_predict.fields import TARGETS
from health_predict.pack import finish, write_bundle
from health_predict.cluster import Cluster, ClusterError, apply, find, get
from health_predict.cohort import can_return, outcome, side
from health_predict.deploy import DeployError, deploy_image, deploy_model, known_encounters, plan, settle, verify
from health_predict.doctor import look_at_cluster
from health_predict.features import fit_encode
from health_predict.image import RENEWED, SECRET, ensure_pull_secret
from health_predict.registry import place, promote, record
from health_predict.rollout import APP, CANARY, canary_manifest, deployed, deployment_of, follow, pods_of, running_image
from health_predict.settings import load_settings
from health_predict.smoke import as_request
from health_predict.startup import up_cluster
from health_predict.storage import Tree, champion, write_parquet
from health_predict.train import train_target

from kubelet import NETWORK, Kubelet

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster"), pytest.mark.filterwarnings("ignore:Unverified HTTPS request")]
LABELS = {"app.kubernetes.io/name": APP}
SERVE = {"entrypoint": [sys.executable, "-c", "from health_predict.cli import main; main()"], "args": ["serve"]}


def free_ports() -> int:
    """The first of three ports in a row."""
    while True:
        with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
        try:
            for i in range(3):
                with socket.socket() as s: s.bind(("127.0.0.1", port + i))
            return port
        except OSError: continue


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    """A control plane of its own, stopped at the end."""
    program = at_hand("TEST_KUBE", "a Kubernetes control plane, the folder of its program kube") / "kube"
    folder = tmp_path_factory.mktemp("plane")
    try:
        done = subprocess.run([program, "up", str(folder), str(free_ports())], capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr
        yield folder
    finally: subprocess.run([program, "down", str(folder)], timeout=60)


@pytest.fixture(scope="module")
def network():
    """Addresses for pods, on the loopback device."""
    def usable() -> bool:
        try:
            with socket.socket() as s: s.bind((f"{NETWORK}.2", 0))
            return True
        except OSError: return False
    program, route, made = shutil.which("ip") or "ip", ["local", f"{NETWORK}.0/24", "dev", "lo"], False
    if not usable():
        made = subprocess.run([program, "route", "add", *route], capture_output=True).returncode == 0
        if not usable(): pytest.skip(f"pods need addresses of their own: as root, ip route add {' '.join(route)}")
    yield
    if made: subprocess.run([program, "route", "del", *route])


@pytest.fixture(scope="module")
def storage(encounters, tmp_path_factory):
    """Storage with a champion, version 1, and a registered challenger, version 2, that aren't marked as synthetic."""
    folder = tmp_path_factory.mktemp("deployed")
    settings = load_settings(storage={"root": str(folder / "storage")})
    rows = encounters[can_return(encounters.discharge_disposition_id)].reset_index(drop=True)
    rows["side"] = side(rows.patient_nbr, settings.split)
    write_parquet(Tree(settings).run(0) / "cohort.parquet", rows)
    known = {t: outcome(rows.readmitted, t) for t in TARGETS}
    X, encoder = fit_encode(rows, known)
    for batch, family in enumerate(("logistic", "xgboost")):
        fitted = [train_target(t, (family,), (X[:2000], y[:2000]), (X[2000:], y[2000:]), settings.threshold) for t, y in known.items()]
        write_bundle(folder / f"draft{batch}", encoder, fitted, X, {"synthetic": False, "batches": [0]}, "any")
        finish(folder / f"draft{batch}", folder / f"bundle{batch}", {}, "# Card")
        entry = record(settings, batch, folder / f"bundle{batch}", [], {})
        if batch == 0: promote(settings, folder / "bundle0", entry["version"], 0)
        else: place(settings, folder / "bundle1", entry, 1)
    return folder / "storage"


def manifest(image: str) -> dict:
    """The API as the tests run it: two pods, replaced one by one."""
    container = {"name": "api", "image": image, "ports": [{"name": "http", "containerPort": 8000}],
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "1"]}}},
        "startupProbe": {"httpGet": {"path": "/health/live", "port": "http"}, "periodSeconds": 1, "failureThreshold": 90},
        "readinessProbe": {"httpGet": {"path": "/health/ready", "port": "http"}, "periodSeconds": 1, "timeoutSeconds": 5},
        "livenessProbe": {"httpGet": {"path": "/health/live", "port": "http"}, "periodSeconds": 5, "timeoutSeconds": 5}}
    labels = {**LABELS, "track": "stable"}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": APP, "namespace": "health-predict"}, "spec": {
        "replicas": 2, "selector": {"matchLabels": labels}, "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": {"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 30, "containers": [container]}}}}


@pytest.fixture(scope="module")
def cluster(plane, network, storage, tmp_path_factory):
    """The API on the cluster: image api:1, two pods that are ready and serve version 1."""
    folder = tmp_path_factory.mktemp("kubelet")
    env = {"HEALTH_PREDICT_STORAGE": str(storage), "HEALTH_PREDICT_SERVING__WORKERS": "1", "HEALTH_PREDICT_SERVING__RELOAD": "0.2", "OMP_NUM_THREADS": "1"}
    other = (storage / "models").glob("*.json")
    digest = next(d for o in other if (d := json.loads(o.read_text())["digest"]) and o.name != "champion.json")
    images = {f"api:{n}": {**SERVE, "env": env} for n in (1, 2, 3, 4)}
    images["api:crash"] = {"entrypoint": [sys.executable, "-c", "import sys; print('no module named numpy', flush=True); sys.exit(3)"]}
    images["api:wrong"] = {**SERVE, "env": {**env, "HEALTH_PREDICT_SERVING__DIGEST": digest}}
    node = Kubelet(plane / "kubeconfig", images, folder)
    where = {"context": "test", "kubeconfig": str(plane / "kubeconfig"), "rollout": 90, "timeout": 3, "patience": 30}
    settings = load_settings(storage={"root": str(storage)}, deploy=where)
    made = Cluster(settings)
    node.api("POST", "api/v1/namespaces", {"metadata": {"name": "health-predict"}})
    node.start()
    until(lambda: node.api("GET", "api/v1/namespaces/health-predict/serviceaccounts")["items"])
    service = {"selector": LABELS, "ports": [{"port": 80, "targetPort": 8000}]}
    node.api("POST", "api/v1/namespaces/health-predict/services", {"metadata": {"name": APP}, "spec": service})
    apply(made, manifest("api:1"), "kubectl")    # as an operator does; the image becomes ours with the first deployment, and nothing else
    until(lambda: get(made, "Deployment", APP).get("status", {}).get("availableReplicas") == 2, 90)
    made.node, made.settings, made.plane = node, settings, plane
    yield made
    node.stop()


def until(check, seconds: float = 30):
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(.05)
    return found


def addresses(cluster) -> list[str]:
    """Where the Service sends requests now, as kube-proxy reads it."""
    found = cluster.node.api("GET", f"api/v1/namespaces/health-predict/endpoints/{APP}")
    return [a["ip"] for s in found.get("subsets", ()) for a in s.get("addresses", ())]


class Load(threading.Thread):
    """Clients of the Service: each asks one of its addresses, again and again; what goes wrong is kept."""
    def __init__(self, cluster, body: dict):
        super().__init__(daemon=True)
        self.cluster, self.body, self.stopping, self.answers, self.wrong, self.seen = cluster, body, threading.Event(), 0, [], {}
        self.targets = addresses(cluster)

    def run(self):
        askers = [threading.Thread(target=self.ask, args=(n,)) for n in range(3)]
        for o in askers: o.start()
        while not self.stopping.wait(.05):
            try: self.targets = addresses(self.cluster)
            except requests.RequestException: continue    # the API server is away: kube-proxy keeps what it knows
            for o in self.targets: self.seen.setdefault(o, time.monotonic())
        for o in askers: o.join()

    def ask(self, n: int):
        while not self.stopping.is_set():
            target = self.targets[(self.answers + n) % len(self.targets)]
            try:
                answer = requests.post(f"http://{target}:8000/predict", json=self.body, timeout=20, proxies={"http": ""})
                if answer.status_code != 200: self.wrong.append((target, answer.status_code))
            except requests.RequestException as e: self.wrong.append((target, repr(e)))
            self.answers += 1
            time.sleep(.02)


@pytest.fixture
def load(cluster, encounters):
    made = Load(cluster, as_request(encounters[encounters.discharge_disposition_id == 1].iloc[0].to_dict()))
    made.start()
    yield made
    made.stopping.set()
    made.join()


def test_new_image_is_rolled_out_and_no_request_notices(cluster, load):
    before = set(addresses(cluster))
    said = deploy_image(cluster.settings, "api:2")
    assert "2 pods of api:2 ready" in said and "every one answers as it should" in said
    until(lambda: len(addresses(cluster)) == 2 and not before & set(addresses(cluster)))
    until(lambda: before <= set(cluster.node.ended_at))
    load.stopping.set(); load.join()
    assert load.wrong == [] and load.answers > 20
    for address in set(load.seen) - before: assert load.seen[address] >= cluster.node.ready_at[address]    # no traffic before it is ready
    assert cluster.node.killed == []    # what ended did so by itself, in time
    state = deployed(cluster.settings)
    assert (state["step"], state["image"], state["previous"], state["changed"]) == ("done", "api:2", "api:1", True)
    assert "2 pods of api:2 ready" in deploy_image(cluster.settings, "api:2") and not deployed(cluster.settings)["changed"]    # asked twice: nothing to do
    assert [o["details"]["image"] for o in audit.entries(Tree(cluster.settings), "deploy")] == ["api:2"]


def test_pod_that_is_asked_to_end_finishes_what_it_has(cluster, encounters):
    """A batch that takes a while is sent to a pod, which is deleted at once: the answer comes, whole, after the pod was told to end."""
    rows = [as_request(o) for o in encounters[encounters.discharge_disposition_id == 1].head(500).to_dict("records")]
    pod = pods_of(cluster, deployment_of(cluster))[0]
    address, answers = pod["status"]["podIP"], []

    def parts():    # a client that sends slowly
        lines = [json.dumps(o).encode() + b"\n" for o in rows]
        yield b"".join(lines[:250])
        until(lambda: address in cluster.node.ended_at)
        time.sleep(1.5)    # past preStop: the server has its SIGTERM
        yield b"".join(lines[250:])

    def send(): answers.append(requests.post(f"http://{address}:8000/predict/batch", data=parts(), headers={"Content-Type": "application/x-ndjson"}, timeout=60,
                                             proxies={"http": ""}))
    client = threading.Thread(target=send)
    client.start()
    cluster.node.api("DELETE", f"api/v1/namespaces/health-predict/pods/{pod['metadata']['name']}")
    client.join(60)
    assert answers[0].status_code == 200 and len(answers[0].text.splitlines()) == len(rows)
    assert address not in addresses(cluster)
    until(lambda: len(addresses(cluster)) == 2, 60)


@pytest.mark.parametrize(("image", "why"), [("api:missing", "its image api:missing can't be pulled"), ("api:wrong", "it serves version 2, not 1"),
                                            ("api:crash", "its program ends again and again, last with code 3; it said: no module named numpy")])
def test_image_that_fails_is_taken_back(cluster, load, image, why):
    former = running_image(cluster)
    with pytest.raises(DeployError, match=why) as failed: deploy_image(cluster.settings, image)
    assert f"{former} is in place again" in str(failed.value)
    state = deployed(cluster.settings)
    assert (state["step"], running_image(cluster)) == ("taken back", former)
    assert follow(cluster, champion(Tree(cluster.settings))["digest"], 1).passed
    load.stopping.set(); load.join()
    assert load.wrong == [] or image == "api:wrong"    # it is a working server, with another model


def test_api_server_that_goes_away_half_way_is_waited_for(cluster, load):
    process = int((cluster.plane / "apiserver.pid").read_text())

    def away():
        until(lambda: running_image(cluster) == "api:3")
        os.kill(process, signal.SIGSTOP)
        time.sleep(6)
        os.kill(process, signal.SIGCONT)
    halt = threading.Thread(target=away)
    halt.start()
    said = deploy_image(cluster.settings, "api:3")
    halt.join()
    assert "2 pods of api:3 ready" in said
    load.stopping.set(); load.join()
    assert load.wrong == []


def test_deployment_that_was_cut_short_goes_on_and_knows_what_to_go_back_to(cluster):
    process = int((cluster.plane / "apiserver.pid").read_text())
    impatient = load_settings(storage={"root": cluster.settings.storage.root}, deploy={**cluster.settings.deploy.model_dump(), "timeout": 1, "patience": 1})
    halt = threading.Thread(target=lambda: (until(lambda: running_image(cluster) == "api:crash"), os.kill(process, signal.SIGSTOP)))
    halt.start()
    try:
        with pytest.raises(ClusterError, match="is away"): deploy_image(impatient, "api:crash")
    finally: halt.join(); os.kill(process, signal.SIGCONT)
    assert (deployed(cluster.settings)["step"], deployed(cluster.settings)["previous"]) == ("rolling", "api:3")
    with pytest.raises(DeployError, match="api:3 is in place again"): deploy_image(cluster.settings, "api:crash")
    assert running_image(cluster) == "api:3"


def test_model_that_moves_the_scores_too_far_stays_out(cluster):
    strict = load_settings(storage={"root": cluster.settings.storage.root}, deploy={**cluster.settings.deploy.model_dump(), "canary_shift": 0.0001})
    with pytest.raises(DeployError, match="scores differ from the champion's by"): deploy_model(strict, 2)
    assert champion(Tree(strict))["version"] == 1 and get(cluster, "Deployment", CANARY) is None


def test_model_is_tried_by_a_canary_without_patients_and_then_all_pods_follow(cluster, load):
    seen, stop = [], threading.Event()

    def look():
        while not stop.wait(.1):
            seen.extend(o["status"].get("podIP") for o in find(cluster, "Pod", {**LABELS, "track": "canary"}))
    watcher = threading.Thread(target=look)
    watcher.start()
    said = deploy_model(cluster.settings, 2)
    stop.set(); watcher.join()
    assert said == "version 2 is in charge; all 2 pods serve version 2" and champion(Tree(cluster.settings))["version"] == 2
    assert {o for o in seen if o} and not set(load.seen) & set(seen)    # there was a canary, and no patient's request went there
    assert get(cluster, "Deployment", CANARY) is None
    load.stopping.set(); load.join()
    assert load.wrong == []
    assert deploy_model(cluster.settings, 2) == said    # asked twice: nothing to do


def test_stage_says_what_the_canary_answered(cluster):
    tree = Tree(cluster.settings)
    found = verify(cluster.settings, Bundle(tree.models / champion(tree)["path"]), 2, known_encounters(cluster.settings))
    assert (found["verified"], found["where"]) == (True, "test")
    asked = ["ready", "digest", "version", "scores", "speed", "refusals", "explanation", "recent requests", "against the champion"]
    assert [o["check"] for o in found["checks"]] == asked


def test_up_and_doctor_look_at_the_cluster(cluster, monkeypatch):
    stale = canary_manifest(deployment_of(cluster), "0" * 64)
    stale["spec"]["replicas"] = 0
    apply(cluster, stale)    # a deployment was killed
    done = {o.what: (o.said, o.changed) for o in up_cluster(cluster.settings)}
    assert done["canary"] == ("what an interrupted deployment left was taken away", True) and get(cluster, "Deployment", CANARY) is None
    assert done["pods"] == ("2 are ready", False)
    began = time.monotonic()
    assert not any(o.changed for o in up_cluster(cluster.settings)) and time.monotonic() - began < 3
    found = {o.what: (o.state, o.said) for o in look_at_cluster(cluster.settings)}
    assert found == {"cluster": ("ok", "test answers"), "deployment": ("ok", "2 pods are ready, of api:3")}
    assert list(plan(cluster.settings, "api:4", None)) == ["the pods would be replaced, one by one: api:3 → api:4"]
    assert list(plan(cluster.settings, "api:3", 2)) == ["all pods run api:3 already; they would be asked", "version 2 is in charge already"]

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"): monkeypatch.setenv(name, "testing")
    registry = {**cluster.settings.deploy.model_dump(), "registry": "123456789012.dkr.ecr.eu-west-1.amazonaws.com"}
    settings = load_settings(storage={"root": cluster.settings.storage.root}, deploy=registry)
    assert next(o for o in look_at_cluster(settings) if o.what == "pull secret").said == "there is none"
    with mock_aws():
        assert ensure_pull_secret(settings, cluster) == "the pull secret was made"
        assert ensure_pull_secret(settings, cluster) == "the pull secret is 0.0 h old"
        old = get(cluster, "Secret", SECRET)["metadata"]["annotations"][RENEWED]
        a_year_ago = {"metadata": {"annotations": {RENEWED: f"{int(old[:4]) - 1}{old[4:]}"}}}
        cluster.node.api("PATCH", f"api/v1/namespaces/health-predict/secrets/{SECRET}", a_year_ago, "application/merge-patch+json")
        assert next(o for o in look_at_cluster(settings) if o.what == "pull secret").state == "fault"
        assert ensure_pull_secret(settings, cluster) == "the pull secret was renewed"


def test_pods_that_do_not_follow_have_the_pointer_go_back(cluster):
    hasty = load_settings(storage={"root": cluster.settings.storage.root}, deploy={**cluster.settings.deploy.model_dump(), "rollout": 0.01})
    leads, said = settle(hasty, "0" * 64, 3, "it ranks better")    # as if version 3 were in charge, and no pod took it
    assert not leads and "not all pods serve version 3" in said and "version 1 is in charge again" in said
    assert follow(cluster, champion(Tree(hasty))["digest"], 1).passed
