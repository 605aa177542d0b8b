"""Small fixtures: a synthetic cohort, a copy of the project to run commands in, and the real data set where it is at hand."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from health_predict.schema import check_file
from health_predict.settings import SHORT
from health_predict.synthetic import write_cohort

ROOT = Path(__file__).parents[1]
PARTS = ("health_predict", "nbs", ".jupyter", "pipeline.yaml", "env.yaml", "settings.ini", "pyproject.toml")
NOWHERE = "http://127.0.0.1:9"    # a proxy that isn't there: no test can reach a network


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Tests that share a costly fixture run in one process, so that it is made once."""
    for item in items:
        for shared in ("built", "lab"):
            if shared in item.fixturenames: item.add_marker(pytest.mark.xdist_group(shared))


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch):
    """Tests see the defaults, whatever the shell says."""
    for name in [o for o in os.environ if o.startswith("HEALTH_PREDICT_") or o in SHORT]: monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def data_set():
    """The real data set; a test that needs it is skipped, in words, where it isn't at hand."""
    named = os.environ.get("TEST_DATA_SET")
    if not named or not Path(named).is_file(): pytest.skip("the UCI data set is not at hand: set TEST_DATA_SET to diabetic_data.csv or its .zip")
    return Path(named).resolve()


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
