"""MLflow on a real PostgreSQL: the same versions and champions as on SQLite; a database that is away, hangs or is too old is told within seconds, with its
remedy; and after an outage at any point a rerun ends with one version."""
import socket
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
from typer.testing import CliRunner

from database import Postgres, programs
from health_predict import cli, registry
from health_predict.pack import finish, write_bundle
from health_predict.doctor import examine
from health_predict.registry import RegistryAway, RegistryOld, mlflow_client, promote, record, rollback, shown, upgrade
from health_predict.settings import load_settings
from health_predict.storage import Tree, champion
from health_predict.train import Fitted, fit, fit_calibration, raw_log_odds

pytestmark = pytest.mark.skipif(programs() is None, reason="PostgreSQL is not here: install the package postgresql")


@pytest.fixture(scope="module")
def postgres():
    server = Postgres()
    yield server
    server.end()


@pytest.fixture(scope="module")
def database(postgres): return postgres.create("mlflow")


@pytest.fixture(scope="module")
def draft(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("draft"), np.random.default_rng(0)
    X = rng.normal(size=(500, 2)).astype(np.float32)
    y = (X[:, 0] > rng.normal(size=500)).astype(int)
    model = fit("logistic", X, y)
    fitted = Fitted("any", "logistic", {}, model, fit_calibration(raw_log_odds(model, X), y), {"value": .4}, .5, y)
    encoder = {"columns": ["time_in_hospital", "num_procedures"], "numbers": ["time_in_hospital", "num_procedures"], "lookups": []}
    write_bundle(folder / "draft", encoder, [fitted], X, {"synthetic": True}, "any")
    return folder / "draft"


@pytest.fixture
def ward(database, draft, tmp_path, request):
    """Settings of a ward of one's own in the shared database, and a maker of bundles."""
    name = request.node.name
    settings = load_settings(storage={"root": str(tmp_path / "storage")}, mlflow={"tracking_uri": database, "experiment": name, "model": name, "timeout": 3})
    def bundle(card: str) -> Path:
        finish(draft, tmp_path / card, {"any": {}}, card)
        return tmp_path / card
    return settings, bundle


def versions(settings) -> list[int]:
    with mlflow_client(settings) as client: return sorted(int(o.version) for o in client.search_model_versions(f"name='{settings.mlflow.model}'"))


def test_one_setting_moves_mlflow_to_postgresql(ward):
    settings, bundle = ward
    trial = {"target": "any", "family": "logistic", "parameters": {"C": 1}, "seconds": .1, "validation": {"auroc": .8}}
    first = record(settings, 0, bundle("one"), [trial], {"any": {"auroc": {"value": .8, "low": .7, "high": .9}}})
    assert record(settings, 0, bundle("one"), [trial], {}) == first
    promote(settings, bundle("one"), first["version"], 0)
    second = record(settings, 1, bundle("two"), [], {})
    promote(settings, bundle("two"), second["version"], 1)
    assert champion(Tree(settings))["version"] == 2 and rollback(settings)["version"] == 1 and versions(settings) == [1, 2]
    with mlflow_client(settings) as client:
        assert client.get_model_version_by_alias(settings.mlflow.model, "champion").version in (1, "1")
        assert client.get_run(first["run_id"]).data.metrics["any/auroc"] == .8
    assert not (Tree(settings).root / "mlflow" / "mlflow.db").exists() and (Tree(settings).root / "mlflow" / "artifacts").is_dir()
    assert {o.what: o for o in examine(settings)}["MLflow"].state == "ok"


@pytest.mark.parametrize("moment", ["log_run", "register", "find_version"])
def test_an_outage_while_a_model_is_recorded(ward, postgres, monkeypatch, moment):
    settings, bundle = ward
    folder, original = bundle("one"), getattr(registry, moment)
    def dies(*a, **k):
        if moment == "find_version": postgres.stop(); return original(*a, **k)    # before it
        done = original(*a, **k)                                                # or after it
        postgres.stop()
        return done
    monkeypatch.setattr(registry, moment, dies)
    began = monotonic()
    try:
        if moment == "register": record(settings, 0, folder, [], {})    # the last thing that is written: it was recorded, and promoting fails
        else:
            with pytest.raises(RegistryAway, match=r"doesn't answer.*run again"): record(settings, 0, folder, [], {})
        with pytest.raises(RegistryAway): promote(settings, folder, 1, 0)
        assert monotonic() - began < 60 and champion(Tree(settings)) is None
    finally: postgres.start()
    monkeypatch.undo()
    promote(settings, folder, record(settings, 0, folder, [], {})["version"], 0)
    assert versions(settings) == [1] and champion(Tree(settings))["version"] == 1


def test_a_database_that_is_away_or_hangs_is_told_within_seconds(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:    # accepts, and never says a word
        for port, said in ((9, "refused"), (silent.getsockname()[1], "timeout|timed out")):
            settings = load_settings(storage={"root": str(tmp_path)}, mlflow={"timeout": 2, "tracking_uri": f"postgresql://ward:s3cret@127.0.0.1:{port}/x"})
            began = monotonic()
            with pytest.raises(RegistryAway, match=said) as error, mlflow_client(settings): pass
            assert monotonic() - began < 15 and "s3cret" not in str(error.value) and "ward:***@" in str(error.value)


def at_revision(uri: str, revision: str) -> None:
    """Make a database as an older MLflow did."""
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config, create_sqlalchemy_engine
    from mlflow.store.tracking.dbmodels.initial_models import Base
    engine = create_sqlalchemy_engine(uri)
    Base.metadata.create_all(engine)
    config = _get_alembic_config(uri)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


def test_an_older_schema_is_told_and_upgraded_by_one_command(postgres, database, tmp_path, monkeypatch):
    uri = postgres.create("old")
    at_revision(uri, "cbc13b556ace")    # MLflow 2.9's
    settings = load_settings(storage={"root": str(tmp_path)}, mlflow={"tracking_uri": uri})
    with pytest.raises(RegistryOld, match=r"cbc13b556ace of an older.*health-predict mlflow upgrade") as error, mlflow_client(settings): pass
    assert "s3cret" not in str(error.value)
    found = next(o for o in examine(settings) if "mlflow upgrade" in o.said)
    assert found.state == "fault"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    done = CliRunner().invoke(cli.app, ["mlflow", "upgrade"], catch_exceptions=False)
    assert done.exit_code == 0 and "before cbc13b556ace" in done.stdout and "s3cret" not in done.stdout
    with mlflow_client(settings) as client: assert client.search_registered_models() == []
    assert upgrade(settings)[0] == upgrade(settings)[1]
    import psycopg
    with psycopg.connect(uri, autocommit=True) as c: c.execute("update alembic_version set version_num = 'ffffffffffff'")
    with pytest.raises(RegistryOld, match=r"a newer MLflow.*make run"), mlflow_client(settings): pass
    with psycopg.connect(uri, autocommit=True) as c: c.execute("update alembic_version set version_num = %s", [registry.answering(database, 3)])
    assert shown(uri) in CliRunner().invoke(cli.app, ["mlflow", "upgrade"]).stdout
