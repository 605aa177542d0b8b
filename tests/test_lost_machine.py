"""The whole pipeline with its tree in S3 and its MLflow in PostgreSQL, in rough weather; then the machine is lost, and another one goes on."""
import json
import os
import shutil

import pytest

from conftest import Project
from database import Postgres, programs
from health_predict.audit import entries, verify
from health_predict.ledger import LEDGER
from health_predict.mirror import pull, status
from health_predict.registry import mlflow_client
from health_predict.remote import remote_of
from health_predict.settings import load_settings
from health_predict.storage import Tree, champion
from rough import Moto, Place

pytestmark = [pytest.mark.slow, pytest.mark.skipif(programs() is None, reason="PostgreSQL is not here: install the package postgresql")]
WEATHER = {"slow": .03, "broken": .02, "slow_down": .02, "reset": .03, "lost": .02, "torn": .02}
SMALL = {"HEALTH_PREDICT_DATA__SYNTHETIC_ROWS": "12000", "HEALTH_PREDICT_EVALUATE__BOOTSTRAP": "100", "HEALTH_PREDICT_GATE__RESAMPLES": "100",
    "HEALTH_PREDICT_MODEL__FAMILIES": "logistic"}


def test_a_machine_is_lost_and_another_goes_on(tmp_path, monkeypatch):
    moto, postgres = Moto(tmp_path), Postgres()
    place = Place(moto, tmp_path, monkeypatch)
    try:
        rough, uri = place.through(**WEATHER), postgres.create("mlflow")
        named = {k: os.environ[k] for k in os.environ if k.startswith("AWS_")} | SMALL | {"HEALTH_PREDICT_REMOTE": place.remote, "MLFLOW_TRACKING_URI": uri}
        first, second = Project(tmp_path / "first"), Project(tmp_path / "second")
        done = first.run("health-predict", "run", **named)
        assert done.returncode == 0, done.stdout + done.stderr
        assert sum(n for k, n in rough.seen.items() if k) > 3, rough.seen
        shutil.rmtree(first.folder)

        look = load_settings(storage={"root": str(second.storage), "remote": place.remote}, mlflow={"tracking_uri": uri})
        assert status(look)["batches"] == [0]
        rough.away = True
        done = second.run("health-predict", "run", "--batch", "1", **named, HEALTH_PREDICT_STORAGE__ATTEMPTS="2")
        assert done.returncode not in (0, 1) and "check the network" in done.stdout + done.stderr, done.stdout + done.stderr
        rough.away = False
        done = second.run("health-predict", "run", "--batch", "1", **named)
        assert done.returncode == 0, done.stdout + done.stderr

        tree, store = Tree(look), remote_of(look)
        there = {o.key for o in store.items()}
        assert {"reports/0/summary.json", "reports/1/summary.json", "reports/1/compare.html", "runs/1/drift.json", LEDGER} <= there
        assert json.loads(store.read("models/champion.json")[0])["digest"] == champion(tree)["digest"]
        assert verify(tree)["entries"] == len(entries(tree)) and {o["batch"] for o in entries(tree)} >= {0, 1}
        with mlflow_client(look) as client: found = client.search_model_versions(f"name='{look.mlflow.model}'")
        assert len({o.tags["digest"] for o in found}) == len(found) and all(o.source for o in found), "no version twice"
        assert [k for k in there if k.startswith("mlflow/")], "MLflow keeps its models there too"
        assert pull(look) == [] and status(look)["owed"] == []
    finally:
        place.end()
        moto.stop()
        postgres.end()
