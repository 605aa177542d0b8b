"""Six batches through the real pipeline: every severity and what is done about it, every transition of the breaker, and the alerts, to real servers."""
import json

import numpy as np
import pytest
from conftest import Project
from test_alert import box, chat, mail_port    # noqa: F401 (fixtures: a real SMTP server and a real HTTP server)

from health_predict.inject import write_encounters
from health_predict.schema import check_file
from health_predict.storage import read_json
from health_predict.synthetic import write_cohort

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("years")]    # one project for all, in the order of the file
ROWS = [3000, 1500, 1500, 1500, 3500, 1500]    # batch 4 has enough validation patients to compare windows by
MINOR = {"HEALTH_PREDICT_DRIFT__MINOR": "0", "HEALTH_PREDICT_DRIFT__MODERATE": "0.99", "HEALTH_PREDICT_DRIFT__MAJOR": "0.99"}    # any batch is minor
MAJOR = MINOR | {"HEALTH_PREDICT_DRIFT__MODERATE": "0", "HEALTH_PREDICT_DRIFT__MAJOR": "0"}
STRICT = {"HEALTH_PREDICT_GATE__MIN_ROWS": "999999"}    # rejects everybody


@pytest.fixture(scope="module")
def years(tmp_path_factory):
    """Batches of the same kind, but that in batch 4 chance alone says who comes back, which nobody can know before batch 5."""
    project, cohort = Project(tmp_path_factory.mktemp("years")), tmp_path_factory.mktemp("cohort") / "all.csv"
    write_cohort(cohort, sum(ROWS))
    frame, incoming = check_file(cohort).rows, project.storage / "incoming"
    incoming.mkdir(parents=True)
    for b, end in enumerate(np.cumsum(ROWS)): write_encounters(incoming / f"{b}.csv", shuffled(frame.iloc[end - ROWS[b]:end], b == 4))
    given = {"MODEL__FAMILIES": "logistic", "EVALUATE__BOOTSTRAP": "100", "DRIFT__DOMAIN_ROWS": "300", "RESPOND__AUROC_DROP": "0.1",
        "RESPOND__CALIBRATION_ERROR": "0.5", "BREAKER__FAILURES": "1", "BREAKER__COOL_DOWN": "1", "GATE__MIN_ROWS": "100", "GATE__RESAMPLES": "200",
        "GATE__MIN_GROUP": "9999", "GATE__GUARD": "0.5", "GATE__CALIBRATION_MARGIN": "0.5"}    # few patients: a lenient gate
    project.environment |= {f"HEALTH_PREDICT_{k}": v for k, v in given.items()}
    project.build(0)
    return project


def shuffled(frame, really=True):
    return frame.assign(readmitted=np.random.default_rng(0).permutation(frame.readmitted.to_numpy())) if really else frame


def run(project, batch, **environment):
    """As cron does: a build alone sends no alerts."""
    done = project.run("health-predict", "run", "--batch", str(batch), **environment)
    assert done.returncode == 0, done.stdout + done.stderr


def run_file(project, batch, name): return read_json(project.storage / "runs" / str(batch) / name)


def champion(project): return read_json(project.storage / "models" / "champion.json")


def moves(project):
    """What the audit log has of the breaker: (batch, former state, state)."""
    shown = project.run("health-predict", "audit", "show", "--kind", "breaker", "--json").stdout.splitlines()
    return [tuple(json.loads(o)["details"][k] for k in ("batch", "former", "state")) for o in shown]


def alerting(chat, mail_port):
    return {f"HEALTH_PREDICT_ALERT__{k}": v for k, v in {"EMAIL_TO": "lead@ward.example", "EMAIL_HOST": "127.0.0.1", "EMAIL_PORT": str(mail_port),
        "EMAIL_SECURITY": "none", "WEBHOOK_URL": f"http://127.0.0.1:{chat.server_port}/hook", "PAUSE": "0.01", "BASE_URL": "https://reports.example.org"}.items()}


def test_minor_drift_is_watched(years):
    years.build(1, **MINOR)
    decision = run_file(years, 1, "decision.json")
    assert (decision["severity"], decision["act"], champion(years)["version"]) == ("minor", "watch", 1)


def test_outcomes_that_are_not_due_change_nothing(years):
    """Batch 1's outcomes are other ones: batch 1 is decided as before, since nobody can know them yet."""
    before = {o: run_file(years, 1, o) for o in ("drift.json", "performance.json", "decision.json", "train.json", "evaluation.json", "promotion.json")}
    file = years.storage / "incoming" / "1.csv"
    original = file.read_bytes()
    write_encounters(file, shuffled(check_file(file).rows))
    assert years.build(1, **MINOR)["ingest"]
    assert {o: run_file(years, 1, o) for o in before} == before and champion(years)["version"] == 1
    file.write_bytes(original)
    assert years.build(1, **MINOR)["ingest"]


def test_minor_twice_is_moderate_and_retrains(years):
    years.build(2, **MINOR)
    decision = run_file(years, 2, "decision.json")
    assert (decision["drift"], decision["severity"], decision["act"]) == ("minor", "moderate", "retrain")
    trained = run_file(years, 2, "train.json")
    assert {o["family"] for o in trained["trials"]} == {"logistic"} and trained["training"]["batches"] == [0, 1] and trained["window"] is None
    assert champion(years)["batch"] == 2 and moves(years) == []
    page = (years.storage / "reports" / "2" / "decide.html").read_text()
    assert decision["audit"]["hash"] in page
    assert years.run("health-predict", "audit", "verify", "--known", decision["audit"]["hash"]).returncode == 0


def test_major_drift_searches_alerts_and_a_rejection_opens_the_breaker(years, box, chat, mail_port):
    run(years, 3, **MAJOR, **STRICT, **alerting(chat, mail_port))
    decision = run_file(years, 3, "decision.json")
    assert (decision["severity"], decision["act"]) == ("major", "search") and champion(years)["batch"] == 2
    assert moves(years) == [(3, "closed", "open")]
    subjects = " | ".join(o["Subject"] for _, o in box.mails)
    assert len(box.mails) == len(chat.said) == 3, subjects
    for words in ("major drift", "was rejected", "circuit breaker is open"): assert words in subjects and words in " ".join(chat.said)
    assert "https://reports.example.org" in " ".join(chat.said)


def test_open_breaker_only_watches(years):
    years.build(4, **MAJOR)
    decision = run_file(years, 4, "decision.json")
    assert (decision["severity"], decision["act"]) == ("major", "watch") and "the circuit breaker is open" in " ".join(decision["reasons"])
    assert run_file(years, 4, "performance.json")["targets"]["any"]["verdict"] != "concept"    # batch 3's outcomes; batch 4's aren't known


def test_concept_drift_searches_urgently_and_a_failed_try_opens_the_breaker_again(years, box, chat, mail_port):
    run(years, 5, **MAJOR, **STRICT, **alerting(chat, mail_port))
    decision, trained = run_file(years, 5, "decision.json"), run_file(years, 5, "train.json")
    assert (decision["severity"], decision["act"]) == ("concept", "search") and "ranks worse" in decision["reasons"][0]
    assert [o["batches"] for o in trained["window"]["tried"]] == [[0, 1, 2, 3, 4], [2, 3, 4], [4]]
    assert "Learnt from" in (years.storage / "reports" / "5" / "train.html").read_text()
    assert moves(years)[1:] == [(5, "open", "half-open"), (5, "half-open", "open")]
    assert any("concept drift" in o["Subject"] and "urgent" in str(o).lower() for _, o in box.mails) and any("concept drift" in o for o in chat.said)
    assert {o["batch"] for o in run_file(years, 5, "performance.json")["looked_ahead"]} == {1, 2, 3, 4}


def test_a_try_that_succeeds_closes_the_breaker(years):
    ran = years.build(5, **MAJOR)    # the gate is lenient again: the same model passes
    assert not ran["decide"] and ran["evaluate"]
    assert moves(years)[-1] == (5, "open", "closed") and champion(years)["batch"] == 5
    assert years.run("health-predict", "breaker", "show").stdout.startswith("the circuit breaker is closed")
    assert years.run("health-predict", "audit", "verify").returncode == 0
