"""Manifests: what they promise, rendered by the real kustomize, checked against the real schemas, applied to a real control plane."""
import configparser
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, at_hand

TOOL = "kubernetes-validate@1.37.0"


def rendered(folder: str) -> list[dict]:
    """What `kubectl apply -k` would send."""
    if not shutil.which("kubectl"): pytest.skip("kubectl is not at hand; install it to render the manifests")
    done = subprocess.run(["kubectl", "kustomize", str(ROOT / "k8s" / folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module", params=["overlays/minikube", "overlays/cluster", "ray"])
def objects(request): return rendered(request.param)


@pytest.fixture(scope="module")
def minikube(): return rendered("overlays/minikube")


def one(objects: list[dict], kind: str, name: str = "") -> dict:
    found = [o for o in objects if o["kind"] == kind and (not name or o["metadata"]["name"] == name)]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def pods(objects: list[dict]) -> list[dict]:
    """The pod templates of all workloads."""
    found = []
    for o in objects:
        if o["kind"] == "Deployment": found.append(o["spec"]["template"])
        if o["kind"] == "CronJob": found.append(o["spec"]["jobTemplate"]["spec"]["template"])
        if o["kind"] == "RayCluster": found += [g["template"] for g in (o["spec"]["headGroupSpec"], *o["spec"]["workerGroupSpecs"])]
    assert found
    return found


def test_pods_keep_pod_security_restricted(objects):
    for spec in (o["spec"] for o in pods(objects)):
        own = spec["securityContext"]
        assert own["runAsNonRoot"] and own["runAsUser"] == 10001 and own["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False and not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert all(set(v) - {"name"} <= {"emptyDir", "persistentVolumeClaim"} for v in spec["volumes"]), "restricted allows no folder of the node"
        for c in spec["containers"]:
            assert c["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
            assert {"cpu", "memory"} <= set(c["resources"]["limits"]) and {"cpu", "memory"} <= set(c["resources"]["requests"])
            mounts = {m["mountPath"]: m["name"] for m in c["volumeMounts"]}
            assert set(mounts.values()) <= {v["name"] for v in spec["volumes"]} and "/tmp" in mounts    # noqa: S108


def test_no_setting_is_invented_by_service_links(objects):
    """A Service health-predict-api would put HEALTH_PREDICT_API_SERVICE_HOST into every pod: an unknown setting, which ends the program."""
    assert all(o["spec"]["enableServiceLinks"] is False for o in pods(objects))


def test_settings_in_the_manifests_are_settings():
    from health_predict.settings import Settings
    known = {f"HEALTH_PREDICT_{s}__{k}".upper() for s, f in Settings.model_fields.items() for k in f.annotation.model_fields}
    known.add("HEALTH_PREDICT_STORAGE__REMOTE")
    for folder in ("overlays/minikube", "overlays/cluster"): assert set(one(rendered(folder), "ConfigMap")["data"]) <= known


def test_a_pod_has_time_to_finish(minikube):
    """preStop, then [serving] graceful, then the prediction log's ten seconds, fit into the grace period."""
    pod = one(minikube, "Deployment")["spec"]["template"]["spec"]
    ini = configparser.ConfigParser()
    ini.read(ROOT / "settings.ini")
    graceful = int(one(minikube, "ConfigMap")["data"]["HEALTH_PREDICT_SERVING__GRACEFUL"])
    assert graceful == ini.getint("serving", "graceful")
    assert pod["terminationGracePeriodSeconds"] >= int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1]) + graceful + 10


def test_names_that_deploy_relies_on(minikube):
    deployment, service = one(minikube, "Deployment", "health-predict-api"), one(minikube, "Service", "health-predict-api")
    assert deployment["metadata"]["namespace"] == one(minikube, "Namespace")["metadata"]["name"] == "health-predict"
    container = one([{"kind": "c", "metadata": {"name": "api"}} | c for c in deployment["spec"]["template"]["spec"]["containers"]], "c")
    assert container["name"] == "api" and {"name": "http", "protocol": "TCP", "containerPort": 8000} in container["ports"]
    assert {container[f"{o}Probe"]["httpGet"]["path"] for o in ("startup", "readiness", "liveness")} == {"/health/ready", "/health/live"}
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == {"app.kubernetes.io/name": "health-predict-api"} and service["spec"]["type"] == "NodePort"
    assert service["spec"]["selector"].items() <= labels.items() and deployment["spec"]["selector"]["matchLabels"]["track"] == labels["track"] == "stable"
    assert "replicas" not in deployment["spec"], "the autoscaler's"


def test_the_ray_cluster_runs_the_ray_of_its_image():
    cluster = one(rendered("ray"), "RayCluster")
    assert cluster["spec"]["rayVersion"] == re.search(r"^ray(?:\[.*\])?==(\S+)", (ROOT / "docker/pipeline.lock").read_text(), re.M)[1]


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["overlays/minikube", "overlays/cluster"])
def test_manifests_hold_to_the_schemas(folder, tmp_path):
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump_all(rendered(folder)))
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if subprocess.run([uv, "tool", "run", "--quiet", TOOL, "--version"], capture_output=True).returncode: pytest.skip(f"{TOOL} can't be had: no package index")
    done = subprocess.run([uv, "tool", "run", "--quiet", TOOL, "--strict", "--quiet", str(file)], capture_output=True, text=True)
    assert done.returncode == 0 and "WARN" not in done.stdout + done.stderr, done.stdout + done.stderr
    file.write_text(file.read_text().replace("readinessProbe", "readynessProbe"))
    assert subprocess.run([uv, "tool", "run", "--quiet", TOOL, "--strict", "--quiet", str(file)], capture_output=True).returncode, "the check sees nothing"


class Cluster:
    """kubectl at a control plane of its own."""
    def __init__(self, config: Path): self.config = config

    def __call__(self, *given: str, sent: list[dict] | None = None) -> str:
        text = yaml.safe_dump_all(sent) if sent else None
        done = subprocess.run(["kubectl", "--kubeconfig", str(self.config), *given], input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def get(self, *given: str) -> dict: return json.loads(self("get", *given, "-n", "health-predict", "-o", "json"))

    def apply(self, objects: list[dict]) -> None: self("apply", "--server-side", "--force-conflicts", "-f", "-", sent=objects)

    def until(self, met, seconds: float = 30):
        started = time.monotonic()
        while not (found := met()):
            assert time.monotonic() - started < seconds, "not in time"
            time.sleep(.1)
        return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A real API server and its controllers, without nodes; TEST_KUBE is the folder with the program `kube`."""
    place = at_hand("TEST_KUBE", "a Kubernetes control plane, the folder of its program kube")
    if missing := [o for o in ("kubectl", "etcd", "openssl", "curl") if not shutil.which(o)]: pytest.skip(f"no control plane: install {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("kube")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = min(s.getsockname()[1], 65000)
    done = subprocess.run([f"{place}/kube", "up", str(folder), str(port)], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    yield Cluster(Path(done.stdout.strip()))
    subprocess.run([f"{place}/kube", "down", str(folder)], check=True)


@pytest.mark.slow
def test_a_cluster_takes_the_manifests(cluster, minikube):
    there = set(cluster("api-versions").split())
    sent = [o for o in minikube if o["apiVersion"] in there]
    left_out = {o["apiVersion"] for o in minikube} - there
    assert left_out <= {"autoscaling/v2", "policy/v1"}, left_out    # an old control plane; their schemas are checked above
    cluster.apply([o for o in sent if o["kind"] == "Namespace"])
    cluster.apply(sent)
    pod = cluster.until(lambda: cluster.get("pods", "-l", "track=stable")["items"])[0]
    assert pod["spec"]["serviceAccountName"] == "health-predict" and not any("token" in v["name"] for v in pod["spec"]["volumes"])
    cluster.until(lambda: cluster.get("pvc", "health-predict-storage")["status"]["phase"] == "Bound")
    assert cluster.get("service", "health-predict-api")["spec"]["ports"][0]["nodePort"] == 30080

    before = cluster.get("deployment", "health-predict-api")["metadata"]["generation"]
    cluster.apply(sent)
    assert cluster.get("deployment", "health-predict-api")["metadata"]["generation"] == before, "applying again is a change"


@pytest.mark.slow
def test_a_change_of_settings_is_rolled_out_and_back(cluster, minikube, tmp_path):
    """A new setting is a new ConfigMap, so it reaches the pods as a rollout, and a rollback takes it away."""
    copy = tmp_path / "k8s"
    shutil.copytree(ROOT / "k8s", copy)
    base = copy / "base" / "kustomization.yaml"
    base.write_text(base.read_text().replace("SERVING__THREADS=4", "SERVING__THREADS=8"))
    there = set(cluster("api-versions").split())
    cluster.apply([o for o in minikube if o["kind"] == "Namespace"])
    cluster.apply([o for o in minikube if o["apiVersion"] in there])
    names = lambda: cluster.get("deployment", "health-predict-api")["spec"]["template"]["spec"]["containers"][0]["envFrom"][0]["configMapRef"]["name"]
    first = names()
    cluster.apply([o for o in rendered(str(copy / "overlays" / "minikube")) if o["apiVersion"] in there])
    second = names()
    assert first != second and cluster.get("configmap", second)["data"]["HEALTH_PREDICT_SERVING__THREADS"] == "8"
    cluster.until(lambda: len(cluster.get("replicasets")["items"]) == 2)
    cluster("rollout", "undo", "deployment/health-predict-api", "-n", "health-predict")
    assert names() == first


pytestmark = pytest.mark.xdist_group("kube")
