"""Images: built, asked, pushed and pulled for real where an engine is at hand; and what can be known without one."""
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import requests
import yaml

from conftest import ROOT
from health_predict import QUIET

LARGEST = 350e6    # bytes of the API's image
PORT = "HEALTH_PREDICT_SERVING__PORT"


def pins(file: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)(?:\[[^\]]*\])?==(\S+)", (ROOT / file).read_text(), re.M))


def port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# --- without an engine

SERVES = """
import json, sys
import health_predict.cli, health_predict.serve
from health_predict.api import create_app
from health_predict.bundle import session
from health_predict.openapi import EXAMPLE
from health_predict.settings import load_settings
client = create_app(load_settings(storage={"root": sys.argv[1]}, serving={"rate": "600/minute"})).test_client()
asked = [client.get(o).status_code for o in ("/", "/docs", "/openapi.json", "/metrics", "/health/live", "/reports/")]
asked.append(client.post("/predict", json=EXAMPLE).status_code)
try: session(b"")    # loads ONNX Runtime, which refuses this
except Exception as e: assert type(e).__name__ == "InvalidArgument", e
else: raise AssertionError("a model of no bytes was loaded")
site = {n.split(".")[0] for n, m in list(sys.modules.items()) if "site-packages" in (getattr(m, "__file__", None) or "")}
print(json.dumps([asked, sorted(site)]))
"""


def test_the_api_imports_no_more_than_its_image_holds(tmp_path):
    from importlib.metadata import packages_distributions
    environment = {k: v for k, v in os.environ.items() if k not in QUIET and not k.startswith("XDG_")} | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SERVES, str(tmp_path / "storage")], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*onnxruntime*")), "ONNX Runtime prepares to call home"
    asked, imported = json.loads(done.stdout.splitlines()[-1])
    assert max(asked) < 504 and asked[:3] == [200, 200, 200]
    known = packages_distributions()
    needed = {d.lower().replace("_", "-").replace(".", "-") for o in imported for d in known.get(o, [])}
    needed -= {"health-predict", "setuptools"}
    assert {"flask", "onnxruntime", "msgspec"} <= needed and not needed - set(pins("docker/api.lock")), "add it to [dependency-groups] api, and: make lock"


@pytest.mark.parametrize("lock", ["docker/api.lock", "docker/pipeline.lock"])
def test_images_hold_the_versions_that_the_tests_see(lock):
    tested, held = pins("requirements.lock"), pins(lock)
    assert len(held) > 30 and {k: v for k, v in held.items() if tested.get(k, v) != v} == {}
    heavy = {"pandas", "pyarrow", "mlflow", "xgboost", "scikit-learn", "scipy", "pip", "setuptools"}
    assert lock != "docker/api.lock" or not heavy & set(held)
    assert not {"pytest", "ruff", "moto", "selenium"} & set(held)


def test_compose_waits_for_health_and_holds_no_secret():
    services = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
    assert set(services) == {"postgres", "mlflow", "lab", "pipeline", "api"}
    for name, o in services.items():
        assert o["read_only"] and o["cap_drop"] == ["ALL"] and "no-new-privileges:true" in o["security_opt"], name
        assert all(p.startswith("127.0.0.1:") for p in o.get("ports", [])), f"{name} listens on every network card"
        for other, how in o.get("depends_on", {}).items():
            ends = how["condition"] == "service_completed_successfully"
            assert ends or services[other].get("healthcheck"), f"{name} waits for the health of {other}, which has no check"
        said = o.get("environment", {}) | {"": " ".join(map(str, o.get("entrypoint", [])))}
        assert not [k for k in said if re.search("PASSWORD|KEY|TOKEN|SECRET", k) and not k.endswith("_FILE")], name
        assert all(re.search(r"://\w+:\$", v) for v in said.values() if re.search(r"://\w+:[^/]*@", v)), f"{name} has a password in an address"
    kept_out = subprocess.run(["git", "check-ignore", "docker/.env", "docker/secrets/postgres_password"], cwd=ROOT, capture_output=True, text=True)
    assert kept_out.returncode == 128 or len(kept_out.stdout.split()) == 2    # 128: a copy without git


def test_workflow_pins_its_actions_and_may_only_read():
    flow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert flow["permissions"] == {}
    for job in flow["jobs"].values():
        assert job["permissions"] == {"contents": "read"} and job["timeout-minutes"]
        for step in job["steps"]: assert "uses" not in step or re.search(r"@[0-9a-f]{40}$", step["uses"]), step


# --- with one

class Engine:
    """buildah, with images and containers in a folder of its own. Needs no daemon, and no more of the kernel than chroot."""
    def __init__(self, folder: Path):
        self.folder = folder
        self.store = ["--storage-driver", "vfs", "--root", str(folder / "store"), "--runroot", str(folder / "run")]

    def do(self, verb: str, *given: str, fails: bool = False) -> str:
        done = subprocess.run(["buildah", *self.store, verb, *given], capture_output=True, text=True, cwd=ROOT)
        assert fails or done.returncode == 0, f"buildah {verb}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout.strip() if not fails else f"{done.returncode} {done.stdout}{done.stderr}"

    def build(self, file: Path, tag: str, context: Path = ROOT, *options: str) -> list[str]:
        """Gives the digests of the image's layers: all its content."""
        here = [o for p in ("/etc/ssl/certs", "/etc/pip.conf") if Path(p).exists() for o in ("-v", f"{p}:{p}:ro")]    # how to reach the package index
        how = ["--isolation", "chroot", "--format", "docker", "--no-cache", "--timestamp", "0"]
        self.do("bud", *how, *here, *options, "-t", tag, "-f", str(file), str(context))
        return self.layers(tag)

    def layers(self, tag: str) -> list[str]: return self.image(tag)["Docker"]["rootfs"]["diff_ids"]

    def image(self, tag: str) -> dict: return json.loads(self.do("inspect", "--type", "image", tag))

    def run(self, container: str, *command: str, fails: bool = False) -> str:
        return self.do("run", "--isolation", "chroot", container, "--", *command, fails=fails)

    @contextmanager
    def start(self, container: str, storage: Path, **environment: str):
        """The image's own command with its own user; a stop is SIGTERM to the server."""
        at = port()
        given = [o for k, v in ({PORT: str(at)} | environment).items() for o in ("--env", f"{k}={v}")]
        program = ["buildah", *self.store, "run", "--isolation", "chroot", "-v", f"{storage}:/storage", *given, container, "--", "health-predict", "serve"]
        with open(self.folder / "log", "wb") as log: process = subprocess.Popen(program, stdout=log, stderr=log)
        try:
            started = time.monotonic()
            while time.monotonic() - started < 60:
                assert process.poll() is None, (self.folder / "log").read_text()
                try:
                    if requests.get(f"http://127.0.0.1:{at}/health/ready", timeout=5).ok: break
                except requests.ConnectionError: time.sleep(.1)
            else: raise AssertionError((self.folder / "log").read_text())
            yield f"http://127.0.0.1:{at}", process
        finally: stop(process)


def stop(process: subprocess.Popen) -> None:
    """End a server in a container, and wait until all of it is gone."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for o in family:
        if "health-predict" in " ".join(o.cmdline()) and "buildah" not in o.name(): o.terminate(); break
    _, left = psutil.wait_procs(family, 60)
    for o in left: o.kill()
    process.wait(30)


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    missing = [o for o in ("buildah", "debootstrap") if not shutil.which(o)]
    if missing or os.geteuid() != 0: pytest.skip(f"building images needs root, buildah and debootstrap; missing: {', '.join(missing) or 'root'}")
    return Engine(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="session")
def base(engine, pytestconfig):
    """Debian's own Python 3.11 in place of the base that a registry would give: a minimal Debian without manuals, kept from run to run."""
    kept = Path(os.environ.get("TEST_IMAGES") or pytestconfig.cache.mkdir("images")) / "base.tar"
    if not kept.is_file():
        root, fresh = engine.folder / "root", kept.with_name(f"{os.getpid()}.tar")
        program = ["debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm", str(root)]
        done = subprocess.run(program, capture_output=True, text=True)
        if done.returncode: pytest.skip(f"no base image can be made: debootstrap says {done.stdout[-300:]}")
        for part in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists", "var/log"):
            shutil.rmtree(root / part); (root / part).mkdir()
        kept.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["tar", "-C", str(root), "--sort=name", "--mtime=@0", "--numeric-owner", "-cf", str(fresh), "."], check=True)
        os.replace(fresh, kept)
        shutil.rmtree(root)
    context = engine.folder / "base"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
    shutil.copy(kept, context)
    engine.build(context / "Dockerfile", "localhost/base", context)
    return "localhost/base"


@pytest.fixture(scope="session")
def api(engine, base):
    """The API's image: its tag, and the digests of its layers."""
    return "localhost/api", engine.build(ROOT / "docker/api.Dockerfile", "localhost/api", ROOT, "--build-arg", f"BASE={base}")


pytestmark = pytest.mark.xdist_group("built")    # one process has the engine, and the models that the image serves


@pytest.mark.slow
def test_api_image_is_small_and_holds_no_more_than_it_needs(engine, api):
    tag, _ = api
    config = engine.image(tag)["Docker"]["config"]
    assert (config["User"], config["Entrypoint"], config["Cmd"]) == ("10001:10001", ["health-predict"], ["serve"])
    assert config["Healthcheck"]["Test"][0] == "CMD" and "org.opencontainers.image.revision" in config["Labels"]
    container = engine.do("from", tag)
    sizes = engine.run(container, "sh", "-c", "id -u; du -xsb --exclude=/proc --exclude=/sys --exclude=/dev / 2>/dev/null | cut -f1").split()
    assert sizes[0] == "10001" and int(sizes[1]) < LARGEST, sizes
    assert "denied" in engine.run(container, "touch", "/app/x", "/opt/health-predict/x", fails=True)
    for o in ("pandas", "pyarrow", "mlflow", "sklearn", "pip"):
        said = engine.run(container, "python", "-c", f"import {o}", fails=True)
        assert said[0] != "0" and "ModuleNotFoundError" in said, f"{o} is in the image"
    assert engine.run(container, "health-predict", "--version").startswith("health-predict 1")


@pytest.mark.slow
def test_api_image_answers(engine, api, models, encounter):
    storage = models("image")
    subprocess.run(["chown", "-R", "10001:10001", str(storage)], check=True)
    for o in (storage, *storage.parents):
        if not o.stat().st_mode & 0o001: o.chmod(o.stat().st_mode | 0o001)    # pytest's folders are its own
    champion = json.loads((storage / "models" / "champion.json").read_text())
    container = engine.do("from", api[0])
    with engine.start(container, storage) as (url, _):
        assert requests.get(f"{url}/model-info", timeout=30).json()["digest"] == champion["digest"]
        answer = requests.post(f"{url}/predict", json=encounter, timeout=30)
        assert answer.status_code == 200 and 0 <= answer.json()["probability_score"] <= 1
        assert requests.post(f"{url}/explain", json=encounter, timeout=30).status_code == 200
        assert requests.post(f"{url}/predict", json={}, timeout=30).status_code == 422
        assert {requests.get(url + o, timeout=30).status_code for o in ("/", "/reports/", "/docs", "/openapi.json", "/metrics")} == {200}
        check = engine.image(api[0])["Docker"]["config"]["Healthcheck"]["Test"][1:]
        probe = ["buildah", *engine.store, "run", "--isolation", "chroot", "--env", f"{PORT}={url.rpartition(':')[2]}", container, "--", *check]
        assert subprocess.run(probe, capture_output=True).returncode == 0
    assert list((storage / "predictions").glob("????-??-??/*.jsonl")), "the log of the server that was stopped is not closed"
    from health_predict.predictions import read_predictions
    from health_predict.settings import load_settings
    assert len(read_predictions(load_settings(storage={"root": str(storage)}))) == 1
    assert "Microsoft" not in engine.run(container, "sh", "-c", "ls -aR /tmp")    # ONNX Runtime's telemetry


@pytest.mark.slow
def test_a_second_build_gives_the_same_content(engine, base, api):
    assert engine.build(ROOT / "docker/api.Dockerfile", "localhost/again", ROOT, "--build-arg", f"BASE={base}") == api[1]


@pytest.mark.slow
def test_push_to_a_registry_and_pull_by_digest(engine, api, tmp_path):
    if not shutil.which("docker-registry"): pytest.skip("no registry to push to: install Debian's package docker-registry")
    at = port()
    config = {"version": 0.1, "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}, "http": {"addr": f"127.0.0.1:{at}"}}
    (tmp_path / "config.yml").write_text(json.dumps(config))
    with open(tmp_path / "log", "wb") as log:
        registry = subprocess.Popen(["docker-registry", "serve", str(tmp_path / "config.yml")], stdout=log, stderr=log)
    try:
        started = time.monotonic()
        while True:
            try: requests.get(f"http://127.0.0.1:{at}/v2/", timeout=5); break
            except requests.ConnectionError:
                assert registry.poll() is None and time.monotonic() - started < 30, (tmp_path / "log").read_text()
                time.sleep(.05)
        place = f"127.0.0.1:{at}/health-predict-api"
        engine.do("push", "--tls-verify=false", "--digestfile", str(tmp_path / "digest"), api[0], f"docker://{place}:test")
        digest = (tmp_path / "digest").read_text().strip()
        assert requests.get(f"http://127.0.0.1:{at}/v2/health-predict-api/manifests/{digest}", timeout=30).ok
        engine.do("pull", "--quiet", "--tls-verify=false", f"{place}@{digest}")
        assert engine.layers(f"{place}@{digest}") == api[1]
    finally:
        registry.terminate()
        registry.wait(30)
