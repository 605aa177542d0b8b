"""Live requests, judged: a real server's log, with and without drift, with outcomes that hold and outcomes that don't."""
import json
import shutil
import time
from datetime import datetime, timezone

import pytest
from conftest import as_request

from health_predict.cohort import can_return
from health_predict.fields import FIELDS, INPUTS, parse
from health_predict.settings import load_settings
from health_predict.synthetic import chunks
from health_predict.traffic import concerns, judge_traffic, predictions_with_outcomes, publish_traffic, traffic_alert, verdict


@pytest.fixture(scope="module")
def storage(built, models):
    """A storage that traffic can be judged in: models, and the encounters that they learnt from."""
    made = models("traffic")
    shutil.copytree(built.storage / "runs" / "0", made / "runs" / "0", dirs_exist_ok=True)
    return made


@pytest.fixture(scope="module")
def fresh():
    """Encounters of the same kind as the champion's, but others."""
    frame = next(chunks(2600, 11))
    frame = frame.assign(**{c: [parse(FIELDS[c], v) for v in frame[c]] for c in INPUTS}, patient_nbr=frame.patient_nbr.astype(int),
        encounter_id=frame.encounter_id.astype(int))
    return frame[can_return(frame.discharge_disposition_id)].head(2000).reset_index(drop=True)


def send(serve, storage, frame, flip: bool = False) -> datetime:
    """Ask a server about encounters and tell it what became of them; says when this began."""
    began = datetime.now(timezone.utc)
    server = serve(storage, workers=2)
    server.wait()
    rows = [as_request(o) | {"encounter_id": o["encounter_id"], "patient_nbr": o["patient_nbr"]} for o in frame.to_dict("records")]
    for i in range(0, len(rows), 500):
        assert server.post("/predict/batch", json=rows[i:i + 500]).headers["X-Refused"] == "0"
    assert server.post("/predict", json=rows[0]).ok    # asked about again: counts once
    became = {"NO": "<30", ">30": "NO", "<30": "NO"} if flip else {o: o for o in ("NO", ">30", "<30")}
    for i in range(0, len(rows), 500):
        told = [{"encounter_id": o["encounter_id"], "readmitted": became[o["readmitted"]]} for o in frame.iloc[i:i + 500].to_dict("records")]
        assert server.post("/outcomes", json=told).json()["accepted"] == len(told)
    assert server.stop() == 0
    return began


def test_traffic_like_the_reference_is_quiet_and_drifted_traffic_is_flagged(serve, built, storage, fresh):
    settings = load_settings(storage={"root": str(storage)})
    began = send(serve, storage, fresh)
    quiet = judge_traffic(settings, began)
    assert (quiet["encounters"], quiet["requests"], quiet["versions"]) == (2000, 2001, {"1": 2001})
    assert not quiet["drift"]["alarm"] and quiet["drift"]["severity"] == "none" and traffic_alert(quiet) is None
    said = quiet["performance"]
    assert (said["answers"], said["outcomes"], said["coverage"]) == (2000, 2000, 1.0)
    assert said["targets"]["any"]["verdict"] != "concept" and said["targets"]["any"]["auroc"]["low"] > .5
    # a drug is raised for every fifth, the payer is no longer sent, and old patients with many visits come; outcomes are turned round
    ill = fresh.assign(insulin=fresh.insulin.where(fresh.index % 5 > 0, "Up"), payer_code=None, number_inpatient=fresh.number_inpatient + 2)
    began = send(serve, storage, ill.assign(encounter_id=ill.encounter_id + 10**9), flip=True)
    done = built.run("health-predict", "monitor", "--since", f"{began:%Y-%m-%dT%H:%M:%S}", "--json", HEALTH_PREDICT_STORAGE=str(storage))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {o["name"] for o in found["drift"]["features"] if o["flagged"]} >= {"insulin", "payer_code", "number_inpatient"}
    assert found["drift"]["prediction_shift"]["any"]["flagged"] and found["drift"]["domain_auroc"]["low"] > .8
    assert {o["verdict"] for o in found["performance"]["targets"].values()} & {"concept"}
    assert concerns(found) and verdict(found)[1] == "bad" and traffic_alert(found).severity == "urgent"
    server = serve(storage)
    server.wait()
    page = server.get("/reports/live.html")
    assert page.status_code == 200 and "What came true is not what was predicted" in page.text and "2,000" in page.text
    assert 'href="/reports/live.html"' in server.get("/reports/").text


def test_what_was_asked_this_minute_counts(serve, built, models, encounter):
    """Long before a file of the log is closed, while the server goes on."""
    storage = models("minute")
    shutil.copytree(built.storage / "runs" / "0", storage / "runs" / "0", dirs_exist_ok=True)
    server = serve(storage)
    server.wait()
    asked = server.post("/predict", json=encounter).json()["request_id"]
    server.post("/outcomes", json={"request_id": asked, "readmitted": "<30"})
    settings, end = load_settings(storage={"root": str(storage)}), time.monotonic() + 10
    while not len(found := predictions_with_outcomes(settings)) and time.monotonic() < end: time.sleep(.1)
    assert list(found.request_id) == [asked] and list(found.readmitted) == ["<30"] and list((storage / "predictions" / "open").iterdir())
    done = built.run("health-predict", "monitor", HEALTH_PREDICT_STORAGE=str(storage))
    assert done.returncode == 0 and "1 encounters were asked about" in done.stdout, done.stdout + done.stderr


def test_too_little_to_say_is_said(storage):
    settings = load_settings(storage={"root": str(storage)})
    found = judge_traffic(settings, datetime(2990, 1, 1, tzinfo=timezone.utc))
    assert found["drift"] is None and found["performance"]["targets"] == {} and traffic_alert(found) is None
    text = publish_traffic(settings, found).read_text()
    assert "500 are needed" in text and "too few" in text
