"""The API as its clients see it: real gunicorn, real model, real requests."""
import gzip
import json
import socket
import subprocess
import sys

import pytest
import requests
from conftest import as_request, faults

from health_predict.fields import FIELDS, INPUTS

FORBIDDEN = ("pandas", "mlflow", "ray", "sklearn", "xgboost", "pyarrow", "scipy")


@pytest.fixture(scope="session")
def expected(built, cohort):
    """What the bundle itself says about the first encounters."""
    from health_predict.bundle import Bundle
    champion = json.loads((built.storage / "models" / "champion.json").read_text())
    return Bundle(built.storage / "models" / champion["path"]).predict_frame(cohort.head(50))


def test_scores_are_the_bundles_own(server, cohort, expected):
    for i, (_, row) in enumerate(cohort.head(50).iterrows()):
        answer = server.post("/predict", json=as_request(row.to_dict())).json()
        for target in ("any", "30d"): assert abs(answer["risks"][target]["probability_score"] - expected[target][i]) < 1e-6
        assert answer["probability_score"] == answer["risks"]["any"]["probability_score"]


def test_answer_keeps_its_names(server, encounter):
    answer = server.post("/predict", json=encounter, headers={"X-Request-ID": "ward-7:1"})
    assert answer.status_code == 200 and answer.headers["X-Request-ID"] == "ward-7:1"
    body = answer.json()
    assert set(body) == {"prediction", "probability_score", "threshold", "risk_level", "risks", "model_version", "request_id", "warnings"}
    assert body["request_id"] == "ward-7:1" and body["model_version"] == 1 and body["warnings"] == []
    assert body["prediction"] == int(body["probability_score"] >= body["threshold"]) and body["risk_level"] in ("low", "medium", "high")
    assert set(body["risks"]) == {"any", "30d"}


def test_short_way_and_long_way_answer_alike(server, encounter):
    """The plain request goes past Flask; the same one with a character set goes through it. Nobody can tell."""
    answers = [server.post("/predict", data=json.dumps(encounter | {"shoe_size": 43}), headers={"Content-Type": kind, "X-Request-ID": "r-1"})
        for kind in ("application/json", "application/json; charset=utf-8")]
    assert answers[0].content == answers[1].content
    short, long = ({k: v for k, v in o.headers.items() if k not in ("Date", "Connection")} for o in answers)
    assert short == long
    for body in (b"{", b"[]", json.dumps(encounter | {"age": "banana"}).encode()):
        said = [server.post("/predict", data=body, headers={"Content-Type": f"application/json{more}", "X-Request-ID": "r-2"}) for more in ("", ";x=1")]
        assert said[0].status_code == 422 and said[0].content == said[1].content


def test_hyphens_and_underscores_count_alike(server, encounter):
    """A diagnosis counts, whichever way its name is written."""
    without = encounter | {"diag_1": None, "diag_2": None, "diag_3": None}
    sick = without | {"diag_1": "428", "number_inpatient": 9, "diag_2": "585"}
    spelled = [{k.replace("_", "-"): v for k, v in sick.items()}, {k.replace("-", "_"): v for k, v in sick.items()}, sick]
    scores = {json.dumps(server.post("/predict", json=o).json()["risks"]) for o in spelled}
    assert len(scores) == 1
    assert scores != {json.dumps(server.post("/predict", json=without).json()["risks"])}
    assert "two spellings" in faults(server.post("/predict", json=sick | {"diag-1": "250"}))["diag_1"]


@pytest.mark.parametrize("field, value", [(o.name, v) for o in FIELDS.values() if o.name in INPUTS for v in
    ({"integer": (o.low - 1, o.high + 1, 5.5, "five", True, [], {}, None, 10**30), "code": (0, 1000, 1.5, "x", None), "closed": ("banana", 3, False, [1]),
      "open": (5, True, [], "x" * 101)}[o.kind])])
def test_bad_value_is_named(server, encounter, field, value):
    said = faults(server.post("/predict", json=encounter | {field: value}))
    assert list(said) == [field] and said[field].startswith(f"{field}: "), said


@pytest.mark.parametrize("field, value, advice", [("diag_1", 428, 'send it as text: "428"'), ("diag_2", 250.02, 'send it as text: "250.02"'),
    ("age", 75, "75 is in '[70-80)'"), ("age", "75", "75 is in '[70-80)'"), ("weight", 99.5, "99.5 is in '[75-100)'"), ("gender", 1, "one of 'Female'")])
def test_number_for_a_text_or_a_bracket_is_told_the_right_one(server, encounter, field, value, advice):
    assert advice in faults(server.post("/predict", json=encounter | {field: value}))[field]


@pytest.mark.parametrize("path", ["/predict", "/predict/batch", "/explain", "/outcomes"])
@pytest.mark.parametrize("pack", [gzip.compress, bytes])
def test_compressed_body_is_named(server, encounter, path, pack):
    """Whatever the body is: what is said to be packed isn't read."""
    sent = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert "'gzip'; send the body as it is" in faults(server.post(path, data=pack(json.dumps(encounter).encode()), headers=sent), 415)["content-encoding"]


def test_whole_numbers_may_have_a_point(server, encounter):
    one, other = (server.post("/predict", json=encounter | {"time_in_hospital": v}).json()["risks"] for v in (5, 5.0))
    assert one == other


def test_every_required_field_is_asked_for(server):
    required = {o for o in INPUTS if FIELDS[o].required}
    assert set(faults(server.post("/predict", json={}))) == required
    assert required == set(INPUTS) - {"race", "weight", "payer_code", "medical_specialty", "diag_1", "diag_2", "diag_3", "A1Cresult", "max_glu_serum"}


def test_missing_is_missing_however_it_is_written(server, encounter):
    optional = [o for o in INPUTS if not FIELDS[o].required]
    bodies = [{k: v for k, v in encounter.items() if k not in optional}] + [encounter | dict.fromkeys(optional, v) for v in (None, "?", "")]
    bodies.append(encounter | dict.fromkeys(optional) | {"A1Cresult": "None", "max_glu_serum": "None"})
    assert len({json.dumps(server.post("/predict", json=o).json()["risks"]) for o in bodies}) == 1


def test_unseen_values_of_open_fields_are_answered_with_a_warning(server, encounter):
    strange = {"race": "Martian", "medical_specialty": "Robotics\u0007", "diag_1": "not a code", "discharge_disposition_id": 777}
    answer = server.post("/predict", json=encounter | strange)
    assert answer.status_code == 200
    assert {o.partition(":")[0] for o in answer.json()["warnings"]} == set(strange)
    assert "not a field" in server.post("/predict", json=encounter | {"shoe_size": 43}).json()["warnings"][0]


@pytest.mark.parametrize("disposition", [11, 13, 14, 19, 20, 21])
def test_death_and_hospice_are_not_predicted(server, encounter, disposition):
    assert "can't be readmitted" in faults(server.post("/predict", json=encounter | {"discharge_disposition_id": disposition}))["discharge_disposition_id"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b'{"age": NaN}', b"\xff\xfe", b"[" * 30_000, b'{"a":' * 10_000, b'{"age": "\\ud800"}'],
                         ids=lambda o: o[:12])
def test_malformed_body(server, body):
    assert faults(server.post("/predict", data=body, headers={"Content-Type": "application/json"}))


def cut(server, path: str, kind: str, sent: bytes, announced: str) -> bytes:
    """A client whose body breaks off on its way: what it gets."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as line:
        line.sendall(f"POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: {kind}\r\n{announced}\r\n\r\n".encode() + sent)
        line.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: line.recv(65536), b""))


@pytest.mark.parametrize("announced", ["Content-Length: 60000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("path, kind", [("/predict", "application/json"), ("/explain", "application/json"), ("/outcomes", "application/json"),
    ("/predict/batch", "application/json"), ("/predict/batch", "application/x-ndjson"), ("/predict/batch", "text/csv")])
def test_a_body_that_breaks_off_is_no_whole_one(server, encounter, path, kind, announced):
    """Also where what came could be read."""
    one = json.dumps([{"request_id": "cut", "readmitted": "NO"}] if path == "/outcomes" else encounter).encode()
    sent = {"text/csv": ",".join(encounter).encode() + b"\n" + ",".join(map(str, encounter.values())).encode() + b"\n", "application/x-ndjson": one + b"\n",
        "application/json": b"[" + one + b"]" if path == "/predict/batch" else one}[kind]
    if "chunked" in announced: sent = f"{len(sent):x}\r\n".encode() + sent + b"\r\n"
    head, _, body = cut(server, path, kind, sent, announced).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 "), head
    detail, = json.loads(body)["detail"]
    assert detail["loc"] == ["body"] and "send it again" in detail["msg"]


def test_other_errors_have_the_same_body(server, encounter):
    assert "expected application/json" in faults(server.post("/predict", data="age=5", headers={"Content-Type": "text/plain"}), 415)["content-type"]
    assert faults(server.post("/predict", data=b"x" * 70_000, headers={"Content-Type": "application/json"}), 413)
    assert faults(server.post("/predict", data=iter([b"x" * 40_000] * 2), headers={"Content-Type": "application/json"}), 413)    # chunked: no length given
    assert faults(server.get("/predict"), 405) and faults(server.get("/nowhere"), 404)
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    for path in ("/nowhere", "/reports/99/drift.html", "/reports/none"):
        answer = server.get(path, headers=browser)
        assert answer.status_code == 404 and answer.headers["Content-Type"].startswith("text/html") and f"<code>{path}</code>" in answer.text
        assert server.get(path).json()["detail"][0]["loc"] == ["path"]
    assert requests.put(server.url + "/predict", timeout=9).headers["Allow"]


def test_health_and_model_info(server):
    health = {"status": "healthy", "model_loaded": True, "model_version": 1, "reload_problem": False}
    assert server.get("/health").json().items() >= health.items()
    assert server.get("/health/live").status_code == server.get("/health/ready").status_code == 200
    info = server.get("/model-info").json()
    champion = json.loads((server.storage / "models" / "champion.json").read_text())
    assert (info["version"], info["digest"], info["since"], info["alias"]) == (1, champion["digest"], champion["since"], "champion")
    assert info["run_id"] and info["target"] == "any" and info["training_data"]["fingerprint"] and info["metrics"]["any"]["auroc"]["low"] > .5


def test_metrics_add_up_over_workers(server, encounter):
    def value(name):
        return sum(float(o.rsplit(" ", 1)[1]) for o in server.get("/metrics").text.splitlines() if o.startswith(f"health_predict_{name}"))
    before = value('predictions_total{risk_level="')
    for _ in range(10): server.post("/predict", json=encounter)
    assert value('predictions_total{risk_level="') == before + 20    # both targets
    assert value('requests_total{endpoint="/predict",status="200"}') >= 10 and value("model_version") == 1 and value("log_dropped_rows_total") == 0


def test_without_a_champion_it_waits_for_one(serve, models, tmp_path):
    storage = models("empty")
    champion = storage / "models" / "champion.json"
    champion.rename(tmp_path / "champion.json")
    server = serve(storage)
    server.wait("/health/live")
    assert server.get("/health").json()["status"] == "unhealthy" and server.get("/health").status_code == server.get("/model-info").status_code == 503
    champion.write_bytes((tmp_path / "champion.json").read_bytes())
    server.wait("/health/ready")
    assert server.stop() == 0


def test_ready_soon_small_and_lean(serve, models, encounter):
    """Ready in two seconds (four here, since tests share the machine), small workers, none of the heavy packages, no thread that a fork could lose."""
    server = serve(models("lean"), workers=2)
    assert server.wait() < 4
    for _ in range(50): server.post("/predict", json=encounter)
    for worker in server.workers:
        assert worker.memory_info().rss < 150e6
        loaded = {part for o in worker.memory_maps() for part in o.path.split("/")}
        assert not loaded & set(FORBIDDEN)


def test_no_heavy_package_is_imported():
    program = f"import health_predict.api, health_predict.serve, sys; print([o for o in {FORBIDDEN} if o in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"
