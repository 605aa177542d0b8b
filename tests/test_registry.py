"""Killed at any point between training and taking charge, a rerun ends where an undisturbed run does: one version, one champion, and no moment without one."""
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from health_predict import cli, registry
from health_predict.audit import entries
from health_predict.bundle import Bundle
from health_predict.pack import finish
from health_predict.registry import folder_of, load_champion, mlflow_client, promote, record, rollback
from health_predict.settings import load_settings
from health_predict.storage import champion

ROOT = Path(__file__).parents[1]
# What is killed: just before the named function is called, or just after it returned.
POINTS = ["before log_run", "after log_run", "before register", "after register", "before atomic", "after atomic", "before write_json"]
CHILD = """
import json, os, signal, sys
from health_predict import registry
from health_predict.settings import load_settings
when, name = sys.argv[1].split()
original = getattr(registry, name)
def die(*a, **k):
    if when == "after": original(*a, **k)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(registry, name, die)
settings, folder = load_settings(storage={"root": sys.argv[2]}), sys.argv[3]
entry = registry.record(settings, 1, folder, [], {})
registry.promote(settings, folder, entry["version"], 1)
"""


@pytest.fixture(scope="module")
def first(built, tmp_path_factory):
    """A storage whose champion is the built one."""
    folder = tmp_path_factory.mktemp("first")
    settings = load_settings(storage={"root": str(folder / "storage")})
    shutil.copytree(load_champion(load_settings(storage={"root": str(built.storage)})).folder, folder / "bundle")
    promote(settings, folder / "bundle", record(settings, 0, folder / "bundle", [], {})["version"], 0)
    return folder


@pytest.fixture
def standing(first, tmp_path):
    """Such a storage, and a challenger's bundle beside it."""
    shutil.copytree(first / "storage", tmp_path / "storage")
    finish(first / "bundle", tmp_path / "second", {"rows": 1}, "another card")
    return load_settings(storage={"root": str(tmp_path / "storage")}), tmp_path / "second"


def versions(settings):
    with mlflow_client(settings) as client: return sorted(int(o.version) for o in client.search_model_versions(f"name='{settings.mlflow.model}'"))


@pytest.mark.parametrize("point", POINTS)
def test_killed_on_the_way_to_the_top(standing, tmp_path, point):
    settings, second = standing
    tree = registry.Tree(settings)
    child = subprocess.run([sys.executable, "-c", CHILD, point, settings.storage.root, str(second)], cwd=tmp_path, capture_output=True, text=True,
                           env=os.environ | {"PYTHONPATH": str(ROOT), "HEALTH_PREDICT_SETTINGS": str(ROOT / "settings.ini")}, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    now = champion(tree)
    assert (now["version"], now["batch"]) == (1, 0)    # the old champion is in place, and whole
    assert load_champion(settings).digest == now["digest"]
    entry = record(settings, 1, second, [], {})
    promote(settings, second, entry["version"], 1)
    assert entry["version"] == 2 and versions(settings) == [1, 2]
    assert champion(tree)["version"] == 2 and load_champion(settings).digest == Bundle(second).digest
    with mlflow_client(settings) as client: assert client.get_model_version_by_alias(settings.mlflow.model, "champion").version in (2, "2")


def test_recorded_and_promoted_twice_is_once(standing):
    settings, second = standing
    for _ in range(2):
        entry = record(settings, 1, second, [], {})
        promote(settings, second, entry["version"], 1)
    assert versions(settings) == [1, 2]
    file = json.loads((registry.Tree(settings).models / "champion.json").read_text())
    assert [o["version"] for o in file["former"]] == [1]
    assert rollback(settings)["version"] == 1
    folder, batch = folder_of(settings, 2)    # a version that isn't in charge can still be found, by number
    assert (Bundle(folder).digest, batch) == (Bundle(second).digest, 1)


def test_version_whose_folder_is_gone_comes_from_mlflow(standing):
    settings, second = standing
    entry, digest = record(settings, 1, second, [], {}), Bundle(second).digest
    shutil.rmtree(second)
    folder, _ = folder_of(settings, entry["version"])
    assert Bundle(folder, digest).digest == digest


def test_by_hand_is_audited_with_who_and_why(standing, monkeypatch):
    settings, second = standing
    record(settings, 1, second, [], {})
    monkeypatch.setenv("HEALTH_PREDICT_STORAGE", settings.storage.root)
    for words in (["promote", "2", "--why", "ranks better"], ["promote", "2", "--why", "ranks better"], ["rollback", "--why", "alarms too often"]):
        assert CliRunner().invoke(cli.app, words).exit_code == 0
    found = entries(registry.Tree(settings))
    assert [(o["kind"], o["batch"], o["details"]["version"], o["details"]["former"], o["details"]["why"]) for o in found] == [
        ("promote", 1, 2, 1, "ranks better"), ("rollback", 0, 1, 2, "alarms too often")]
    assert all("@" in o["actor"] for o in found)
