"""OpenAPI and the running server say the same; schemathesis tries to show otherwise."""
import json
import subprocess
import sys
from collections import Counter

import pytest
from openapi_spec_validator import validate

from health_predict.fields import FIELDS, INPUTS


def test_document_is_openapi_3_1_and_made_of_the_field_table(server):
    document = server.get("/openapi.json").json()
    validate(document)
    assert document["openapi"].startswith("3.1") and "Not a medical device" in document["info"]["description"]
    encounter = document["components"]["schemas"]["Encounter"]
    for name in INPUTS:
        rule, said = FIELDS[name], encounter["properties"][name]
        assert (name in encounter["required"]) == rule.required
        if rule.levels: assert set(rule.levels) <= set(said["enum"])
        elif rule.kind != "open": assert (said["minimum"], said["maximum"]) == (rule.low, rule.high)


def test_its_example_works(server):
    document = server.get("/openapi.json").json()
    for path in ("/predict", "/explain", "/predict/batch"):
        example = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
        assert server.post(path, json=example).status_code == 200


def hammer(server, folder, examples: int) -> Counter:
    """Run schemathesis's own program against the server, with all checks; says how many cases each operation stood."""
    program = [sys.executable, "-m", "schemathesis.cli", "run", server.url + "/openapi.json", "--checks", "all", "--max-examples", str(examples), "--seed", "7",
        "--generation-deterministic", "--continue-on-failure", "--no-color", "--suppress-health-check", "all", "--report", "ndjson",
        "--report-dir", str(folder)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    events = (json.loads(line) for file in folder.glob("*.ndjson") for line in file.read_text().splitlines())
    cases = Counter()
    for o in (e["ScenarioFinished"]["recorder"] for e in events if "ScenarioFinished" in e):
        cases[o["label"]] += len(o.get("cases", ()))    # a scenario that had nothing to try has none
    return cases


def test_schemathesis_finds_nothing(server, tmp_path): assert len(hammer(server, tmp_path, 15)) == 12


@pytest.mark.slow
def test_schemathesis_finds_nothing_in_5000_cases(server, tmp_path):
    cases = hammer(server, tmp_path, 750)
    print(dict(cases))
    assert cases.total() >= 5000 and all(cases[o] >= 750 for o in ("POST /predict", "POST /predict/batch", "POST /explain", "POST /outcomes"))
