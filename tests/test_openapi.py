"""OpenAPI and the running server say the same; schemathesis tries to show otherwise."""
import sys

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


def hammer(server, cases: int):
    """Run schemathesis's own program against the server, with all checks."""
    import subprocess
    program = [sys.executable, "-m", "schemathesis.cli", "run", server.url + "/openapi.json", "--checks", "all", "--max-examples", str(cases), "--seed", "7",
        "--generation-deterministic", "--continue-on-failure", "--no-color", "--suppress-health-check", "all"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def test_schemathesis_finds_nothing(server): hammer(server, 15)


@pytest.mark.slow
def test_schemathesis_finds_nothing_in_many_cases(server): print(hammer(server, 900)[-1500:])
