"""The stages drift and decide: batch 0 has nothing to be compared with, a drifted batch is seen, told and on record, and what can't be told is a failure."""
import json
import re

import pytest
from conftest import Project

from health_predict.inject import inject, write_encounters
from health_predict.profile import profile, read_profile
from health_predict.schema import check_file
from health_predict.synthetic import write_cohort


pytestmark = pytest.mark.xdist_group("monitor")    # one project for all


def read(path): return json.loads(path.read_text())


def at(frame, batch):
    """The encounters under numbers of their own, as a later batch."""
    return frame.assign(encounter_id=frame.encounter_id + 10**8 * batch)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Batch 0, built, and the files of two later batches: one of the same kind and one of a new hospital that records no race."""
    project, cohort = Project(tmp_path_factory.mktemp("monitor")), tmp_path_factory.mktemp("cohort") / "all.csv"
    write_cohort(cohort, 9000)
    frame = check_file(cohort).rows
    incoming = project.storage / "incoming"
    incoming.mkdir(parents=True)
    write_encounters(incoming / "0.csv", frame.iloc[:4000])
    write_encounters(incoming / "1.csv", at(frame.iloc[4000:6500], 1))
    write_encounters(incoming / "2.csv", at(inject(frame.iloc[6500:], "hospital", 1.)[0].assign(race=None), 2))
    project.environment |= {"HEALTH_PREDICT_MODEL__FAMILIES": "logistic", "HEALTH_PREDICT_EVALUATE__BOOTSTRAP": "100"}
    project.build(0)
    return project


def to_decision(project, batch):
    return project.run("ploomber", "build", "--env--batch", str(batch), "--partially", "decide")


def test_drift_that_cannot_be_told_is_a_failed_stage(two):
    kept = next((two.storage / "reference").iterdir())
    kept.write_text(kept.read_text().replace('"totals": [\n', '"totals": [\n     1,\n', 1))
    done = two.run("health-predict", "run", "--batch", "1")
    assert done.returncode == 1 and "failed at drift" in done.stderr and "damaged" in done.stderr
    assert not (two.storage / "runs" / "1" / "decision.json").exists()
    kept.unlink()                                            # it is made again from the encounters of the time
    assert to_decision(two, 1).returncode == 0
    assert read(two.storage / "runs" / "1" / "drift.json")["severity"] == "none" and kept.is_file()


def on_record(project):
    """Severity and share of each batch's drift run in MLflow."""
    done = project.run("python", "-c", """
import json
from health_predict.registry import mlflow_client
from health_predict.settings import load_settings
with mlflow_client(load_settings()) as client:
    runs = client.search_runs([client.get_experiment_by_name("health-predict").experiment_id], "tags.kind = 'drift'")
    print(json.dumps({r.data.tags["batch"]: [r.data.tags["severity"], r.data.metrics.get("drift/share")] for r in runs}))""")
    return json.loads(done.stdout.splitlines()[-1])


def test_a_batch_is_judged_told_and_on_record(two):
    run = two.storage / "runs"
    first = read(run / "0" / "drift.json")
    assert (first["reference"], first["features"], first["alarm"], read(run / "0" / "decision.json")["action"]) == (None, [], False, "train")
    assert not (two.storage / "reports" / "0" / "drift.evidently.html").exists()
    digest = read(two.storage / "models" / "champion.json")["digest"]
    reference = read_profile(two.storage / "reference" / f"{digest[:16]}.json")
    assert reference.rows == 4000 and 500 < reference.predictions["any"].rows < 2000     # predictions: of held-out patients only
    assert read_profile(run / "0" / "profile.json") == profile(check_file(two.storage / "incoming" / "0.csv").rows)
    for batch in (1, 2):
        done = to_decision(two, batch)
        assert done.returncode == 0, done.stdout + done.stderr
    calm, stormy = (read(run / str(b) / "drift.json") for b in (1, 2))
    assert (calm["alarm"], calm["severity"], calm["share"]) == (False, "none", 0)
    assert stormy["alarm"] and {"race", "medical_specialty", "age"} <= {o["name"] for o in stormy["features"] if o["flagged"]}
    assert stormy["reference"]["digest"] == digest and stormy["reference"]["batches"] == [0] and stormy["domain_auroc"]["low"] > .9
    decision = read(run / "2" / "decision.json")
    assert set(decision) >= {"severity", "action", "reasons", "thresholds", "breaker", "forced", "dry_run"}
    assert decision["severity"] == stormy["severity"] and decision["thresholds"]["drift"]["psi"] == .1 and "race" in " ".join(decision["reasons"])
    page = (run / "2" / "3_drift.html").read_text()
    assert len(page) < 1_000_000 and 'href="drift.evidently.html"' in page and (run / "2" / "3_drift.evidently.html").is_file()
    assert not re.search(r"Warning|Traceback", page) and "Since when" in page
    assert on_record(two) == {"0": ["first", None], "1": ["none", 0.0], "2": [stormy["severity"], stormy["share"]]}
