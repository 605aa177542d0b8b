"""Who may ask, what leaks, and what a request leaves behind."""
import json
import re
import time

import pytest
import requests
from conftest import faults

from health_predict.access import new_key
from health_predict.fields import INPUTS
from health_predict.traffic import predictions_with_outcomes
from health_predict.settings import load_settings


@pytest.fixture(scope="module")
def guarded(serve, models):
    """A server that asks for a key; gives the server and the key."""
    key, kept = new_key("ward-7")
    server = serve(models("guarded"), keys=f"{new_key('other')[1]}, {kept}")
    server.wait()
    return server, key


def test_keys(guarded, encounter):
    server, key = guarded
    ask = lambda **headers: server.post("/predict", json=encounter, headers=headers).status_code
    assert [ask(), ask(**{"X-API-Key": "hp_guess"}), ask(**{"X-API-Key": ""}), ask(Authorization="Bearer x"), ask(Authorization="Basic !")] == [401] * 5
    said = lambda **headers: faults(server.post("/predict", json=encounter, headers=headers), 401)["x-api-key"]
    assert "is needed" in said() and all("is not known" in said(**o) for o in ({"X-API-Key": "hp_guess"}, {"Authorization": "Bearer x"}))
    assert [ask(**{"X-API-Key": key}), ask(Authorization=f"Bearer {key}")] == [200] * 2
    assert requests.get(server.url + "/reports/", auth=("anybody", key), timeout=9).status_code == 200    # a browser's way
    refused = server.get("/reports/0/ingest")
    assert refused.status_code == 401 and refused.headers["WWW-Authenticate"].startswith("Basic") and set(refused.json()) == {"detail", "request_id"}
    for path in ("/predict", "/predict/batch", "/explain", "/outcomes", "/"): assert server.post(path, data=b"").status_code == 401, path
    for path in ("/health", "/model-info", "/metrics", "/docs", "/openapi.json", "/"): assert server.get(path).status_code == 200, path
    assert requests.head(server.url + "/reports/", timeout=9).status_code == 401


def test_rates(serve, models, encounter):
    server = serve(models("limited"), rate="5/minute")
    server.wait()
    told = [server.post("/predict", json=encounter) for _ in range(7)]
    assert [o.status_code for o in told][-2:] == [429, 429] and 0 < int(told[-1].headers["Retry-After"]) <= 61
    assert "more than 5/minute" in told[-1].json()["detail"][0]["msg"]


@pytest.mark.parametrize("path", ["/reports/../models/champion.json", "/reports/0/../../models/champion.json", "/reports/0/..%2f..%2fmodels%2fchampion.json",
    "/reports/0/%2e%2e/%2e%2e/models/champion.json", "/reports/0/....//models/champion.json", "/reports/0//etc/passwd", "/reports/0/ingest.html%00.json",
    "/reports/-1/ingest", "/reports/0/.ingest.html", "/reports/%2fetc%2fpasswd", "/reports/0/champion.json", "/reports/0/link.html"])
def test_reports_lead_nowhere_else(server, path):
    link = server.storage / "reports" / "0" / "link.html"
    if not link.is_symlink(): link.symlink_to(server.storage / "models" / "champion.json")
    with requests.Session() as session:
        request = requests.Request("GET", server.url).prepare()
        request.url = server.url + path    # as it is written, nothing resolved by the client
        answer = session.send(request, timeout=9)
    assert answer.status_code in (401, 404) and "digest" not in answer.text


def test_every_answer_has_the_headers(server, encounter):
    answers = [server.get(o) for o in ("/", "/docs", "/reports/", "/reports/0/evaluate", "/health", "/nowhere", "/metrics")]
    answers.append(server.post("/predict", json=encounter))
    for o in answers:
        assert o.headers["X-Content-Type-Options"] == "nosniff" and o.headers["X-Frame-Options"] == "DENY" and o.headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in o.headers["Content-Security-Policy"] and re.fullmatch(r"[0-9a-f]{24}", o.headers["X-Request-ID"])
    assert "sandbox" in answers[3].headers["Content-Security-Policy"] and "script-src" not in answers[0].headers["Content-Security-Policy"]
    assert "\n" not in server.get("/health", headers={"X-Request-ID": "a b"}).headers["X-Request-ID"]


def test_request_id_that_is_replaced_is_told(server, encounter):
    for path in ("/predict", "/explain"):
        for kind in ("application/json", "application/json; charset=utf-8"):    # the short way and the long one
            answer = server.post(path, data=json.dumps(encounter), headers={"Content-Type": kind, "X-Request-ID": "ward 7"})
            assert re.fullmatch(r"[0-9a-f]{24}", answer.headers["X-Request-ID"]) and answer.json()["request_id"] == answer.headers["X-Request-ID"]
            assert answer.json()["warnings"] == ["X-Request-ID: 'ward 7' is not 1 to 64 letters, digits and _ . : - alone; "
                "this answer's request_id stands in its place"]


def test_errors_of_ours_tell_clients_nothing(server):
    for body in (b"\x00", b"[]", b'{"age": {"$ne": 1}}', b'{"__proto__": 1}'):
        text = server.post("/predict", data=body, headers={"Content-Type": "application/json"}).text
        assert "Traceback" not in text and "health_predict" not in text and str(server.storage) not in text


def test_log_has_no_patient_and_outcomes_find_their_prediction(serve, models, encounter):
    server = serve(models("logged"))
    server.wait()
    secret = {"encounter_id": 987654321987, "patient_nbr": 123459876123, "medical_specialty": "VerySpecialSpecialty"}
    answers = [server.post("/predict", json=encounter | secret).json(), server.post("/predict", json=encounter).json()]
    server.post("/predict", json=encounter | {"age": "banana-of-a-patient"})
    server.post("/predict/batch", json=[encounter | {"encounter_id": i} for i in (5, 6)])
    assert server.post("/outcomes", json={"request_id": answers[1]["request_id"], "readmitted": "NO"}).status_code == 202
    two = [{"encounter-id": 987654321987, "readmitted": "<30"}, {"encounter_id": 6, "readmitted": ">30"}]
    assert server.post("/outcomes", json=two).json()["accepted"] == 2
    assert server.post("/outcomes", json=[{"encounter_id": 5, "readmitted": "NO"}, {"encounter_id": 5}]).status_code == 422    # all or none
    assert server.stop() == 0
    said = server.log.read_text()
    for o in ("987654321987", "123459876123", "VerySpecialSpecialty", "banana-of-a-patient"): assert o not in said
    for line in said.splitlines()[1:]: json.loads(line)
    settings = load_settings(storage={"root": str(server.storage)})
    raw = b"".join(p.read_bytes() for part in ("predictions", "outcomes") for p in (server.storage / part).rglob("*") if p.is_file())
    assert b"987654321987" not in raw and b"123459876123" not in raw
    found = predictions_with_outcomes(settings).set_index("request_id")
    assert found.readmitted[answers[0]["request_id"]] == "<30" and found.readmitted[answers[1]["request_id"]] == "NO"
    assert sorted(found.readmitted.fillna("none").tolist()) == ["<30", ">30", "NO", "none"]
    assert found.p_any[answers[0]["request_id"]] == answers[0]["probability_score"] and set(INPUTS) < set(found.columns)


def test_full_log_neither_delays_nor_fails_and_is_counted(serve, models, encounter):
    """The folder of the log can't be written: answers come as before, and the metrics say what is missing."""
    storage = models("full")
    (storage / "predictions").write_text("not a folder")
    server = serve(storage)
    server.wait()
    start = time.monotonic()
    assert all(server.post("/predict", json=encounter).ok for _ in range(30))
    assert time.monotonic() - start < 5
    time.sleep(.5)
    dropped = [o for o in server.get("/metrics").text.splitlines() if o.startswith("health_predict_log_dropped_rows_total")]
    assert sum(float(o.rsplit(" ", 1)[1]) for o in dropped) == 30, dropped


def test_commands(built, models, tmp_path):
    storage = str(models("commands"))
    done = built.run("health-predict", "key", "ward-7")
    assert done.returncode == 0 and re.search(r"key, for ward-7: hp_\S{43}\n.*ward-7:[0-9a-f]{64}", done.stdout)
    assert built.run("health-predict", "key", "ward 7").returncode == 2
    (tmp_path / "outcomes.csv").write_text("request_id,readmitted\nr1,NO\nr2,maybe\n")
    done = built.run("health-predict", "outcomes", str(tmp_path / "outcomes.csv"), HEALTH_PREDICT_STORAGE=storage)
    assert done.returncode == 4 and "line 3: readmitted: 'maybe'" in done.stderr
    assert built.run("health-predict", "serve", "--port", "0").returncode == 2
