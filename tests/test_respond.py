"""What the pipeline does about a batch: nothing, a recalibration, a training; each on record, none of it twice, and no outcome used before its time."""
import json

import numpy as np
import pytest
from conftest import Project

from health_predict.cohort import LabelError, labels
from health_predict.inject import write_encounters
from health_predict.performance import due, known, look_back
from health_predict.schema import check_file
from health_predict.settings import load_settings
from health_predict.storage import Tree, read_json, write_json
from health_predict.synthetic import write_cohort

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("respond")]    # one project for all, in the order of the file


@pytest.fixture(scope="module")
def years(tmp_path_factory):
    """Batch 0, and two of the same kind; of batch 1 only a third of those who came back still do, which nobody can know before batch 2."""
    project, cohort = Project(tmp_path_factory.mktemp("respond")), tmp_path_factory.mktemp("cohort") / "all.csv"
    write_cohort(cohort, 11_000)
    frame = check_file(cohort).rows
    incoming = project.storage / "incoming"
    incoming.mkdir(parents=True)
    write_encounters(incoming / "0.csv", frame.iloc[:5000])
    fewer = frame.iloc[5000:8000].assign(readmitted=lambda o: o.readmitted.where(np.random.default_rng(0).random(len(o)) < 1 / 3, "NO"))
    write_encounters(incoming / "1.csv", fewer)
    write_encounters(incoming / "2.csv", frame.iloc[8000:])
    project.environment |= {"HEALTH_PREDICT_MODEL__FAMILIES": "logistic", "HEALTH_PREDICT_EVALUATE__BOOTSTRAP": "100", "HEALTH_PREDICT_GATE__MIN_ROWS": "300",
                            "HEALTH_PREDICT_GATE__RESAMPLES": "200",
                            "HEALTH_PREDICT_RESPOND__AUROC_DROP": "0.3"}    # who comes back by chance only is told apart less well, too
    project.build(0)
    project.build(1)
    return project


def run_file(project, batch, name): return read_json(project.storage / "runs" / str(batch) / name)


def champion(project): return read_json(project.storage / "models" / "champion.json")


def test_nothing_is_trained_where_nothing_is_new(years):
    decision = run_file(years, 1, "decision.json")
    assert (decision["severity"], decision["act"], decision["news"]["batches"]) == ("none", "record", [])
    assert run_file(years, 1, "performance.json")["due"] is None
    assert run_file(years, 1, "train.json")["trials"] == [] and champion(years)["version"] == 1
    page = (years.storage / "reports" / "1" / "train.html").read_text()
    assert "No model was trained" in page and "What was tried" not in page    # the page ends where the stage did


def test_no_outcome_is_seen_before_its_time(years):
    settings = load_settings(storage={"root": str(years.storage)})
    assert (due(settings, 1), due(settings, 2)) == (None, 1)
    assert set(labels(settings, 1).batch) == {0}
    with pytest.raises(LabelError): labels(load_settings(storage={"root": str(years.storage / "nowhere")}), 1)
    assert len(known(settings, 1, 1)) == 0      # whoever asks too early gets nothing
    assert len(known(settings, 2, 1)) > 2900
    assert look_back(settings, 1)["targets"] == {}


def test_dry_run_decides_and_does_nothing(years):
    assert years.build(2, HEALTH_PREDICT_RESPOND__DRY_RUN="true")["train"]
    decision = run_file(years, 2, "decision.json")
    assert (decision["action"], decision["act"]) == ("recalibrate", "record")
    assert champion(years)["version"] == 1


def test_risks_that_are_off_are_recalibrated(years):
    """Batch 1's outcomes are in: the ranking holds, the risks are far too high. The champion gets a new calibration and passes the gate with it."""
    before = champion(years)
    years.build(2)
    performance, decision = run_file(years, 2, "performance.json"), run_file(years, 2, "decision.json")
    seen = performance["targets"]["any"]
    assert performance["due"] == 1 and seen["predicted"] > seen["rate"] + .15 and seen["ece"]["low"] > .1
    assert decision["act"] == "recalibrate" and "came true" in " ".join(decision["reasons"])
    now = champion(years)
    assert (now["version"], now["batch"]) == (2, 2) and now["digest"] != before["digest"]
    former, new = (read_json(years.storage / "models" / o["path"] / "model.json") for o in (before, now))
    assert new["training"]["batches"] == [0] and new["training"]["recalibrated_from"] == before["digest"]
    assert all(former["targets"][t]["parameters"] == new["targets"][t]["parameters"] for t in ("any", "30d"))
    settings = load_settings(storage={"root": str(years.storage)})
    assert look_back(settings, 3)["due"] == 2    # and so on, batch for batch


def test_every_decision_is_on_record_once(years):
    years.build(2, HEALTH_PREDICT_RESPOND__MIN_NEWS="0.2")    # decides again, to the same end
    shown = years.run("health-predict", "audit", "show", "--json")
    entries = [json.loads(o) for o in shown.stdout.splitlines()]
    assert [o["batch"] for o in entries if o["kind"] == "promotion"] == [0, 2]
    assert {(o["batch"], o["details"]["act"]) for o in entries if o["kind"] == "decision"} == {(0, "train"), (1, "record"), (2, "record"), (2, "recalibrate")}
    assert years.run("health-predict", "audit", "verify").returncode == 0
    log = years.storage / "audit" / "log.jsonl"
    whole = log.read_text()
    log.write_text(whole.replace('"recalibrate"', '"record"', 1))
    assert years.run("health-predict", "audit", "verify").returncode == 4
    log.write_text(whole)


def test_open_breaker_blocks_a_training_and_force_overrides_it(years):
    tree = Tree(load_settings(storage={"root": str(years.storage)}))
    write_json(tree.state / "breaker.json", {"outcomes": [{"batch": b, "succeeded": False, "reason": "rejected"} for b in (-3, -2, 1)]})
    years.environment |= {f"HEALTH_PREDICT_DRIFT__{o}": "0" for o in ("MINOR", "MODERATE", "MAJOR")}    # every batch is one of major drift
    years.build(2)
    decision = run_file(years, 2, "decision.json")
    assert decision["severity"] == "major" and not decision["breaker"]["allowed"] and decision["act"] == "recalibrate"
    assert "the circuit breaker is open" in " ".join(decision["reasons"])
    years.build(2, HEALTH_PREDICT_RESPOND__FORCE_RETRAIN="true")
    decision = run_file(years, 2, "decision.json")
    assert decision["forced"] and decision["act"] in ("search", "retrain") and run_file(years, 2, "train.json")["trials"]
