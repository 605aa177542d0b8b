"""What README and the how-to of the API give a reader to type, typed, against a real server."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from health_predict.openapi import EXAMPLE

ROOT = Path(__file__).parents[1]
LEFT_OUT = ("make ", "export ", "kill ")    # the server is there already


def blocks(page: str, language: str) -> list[str]:
    """The examples of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.S | re.M)


@pytest.fixture
def type_in(server, tmp_path):
    """A shell in a folder with the docs in it; says what it printed. A million rows are some hundred here."""
    if missing := [o for o in ("bash", "curl", "jq") if not shutil.which(o)]: pytest.skip(f"not on this machine: {', '.join(missing)}")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment = kept | {"API": server.url, "HEALTH_PREDICT_STORAGE": str(server.storage), "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(text: str) -> str:
        lines = [o for o in text.splitlines() if not o.startswith(LEFT_OUT)]
        typed = "\n".join(lines).replace("http://127.0.0.1:8000", server.url).replace("1000000", "300")
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", typed], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, typed + done.stdout + done.stderr
        return done.stdout
    return run


def test_the_example_is_the_one_that_the_api_documents(): assert json.loads((ROOT / "docs" / "encounter.json").read_text()) == EXAMPLE


def test_readme(type_in):
    found = [o for o in blocks("README.md", "sh") if "curl" in o]
    assert len(found) == 1 and 0 < json.loads(type_in(found[0]))["risks"]["30d"]["probability_score"] < 1


def test_how_to_call_the_api(type_in):
    health, example, risk, bad, why, million, key, outcomes, log = map(type_in, blocks("docs/call_the_api.md", "sh"))
    assert json.loads(health)["status"] == "healthy" and example == ""
    answer = json.loads(risk)
    assert answer["request_id"] == "ward-7:42" and answer["warnings"] == []
    assert bad.endswith("422\n") and [o["loc"][1] for o in json.loads(bad.strip()[:-3])["detail"]] == ["gender", "age", "time_in_hospital"]
    assert "→" in why and "X-Rows: 300" in million and '"row":0' in million and "hp_" in key
    assert json.loads(outcomes)["accepted"] == 1 and f"{answer['risks']['30d']['probability_score']:.6f}"[:7] in log and "<30" in log
    client, = blocks("docs/call_the_api.md", "python")
    client.encode("ascii")    # a header takes no other characters, nor does every editor
    use = """import json
given = json.load(open("encounter.json"))
print(risk(given | {"age": "banana"}, "ward-7:44"))
print(json.dumps(risk(given, "ward-7:43")))"""
    refused, none, good = type_in(f"python - <<'PY'\n{client}\n{use}\nPY").splitlines()
    assert "age: 'banana'" in refused and none == "None" and json.loads(good) == answer | {"request_id": "ward-7:43"}
