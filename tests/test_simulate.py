"""Years of batches under three policies, by the command that people call: what it leaves behind, how it goes on, and what a bad batch does."""
import json
import re

import nbformat
import pytest
from conftest import ROOT, Project

from health_predict.fields import TARGETS
from health_predict.inject import write_encounters
from health_predict.simulate import POLICIES, scored, under
from health_predict.settings import load_settings
from health_predict.storage import Tree, is_published, read_json


def test_dashboard_is_clean():
    nb = nbformat.read(ROOT / "nbs" / "simulation" / "dashboard.ipynb", as_version=4)
    nbformat.validate(nb)
    code = [c for c in nb.cells if c.cell_type == "code"]
    assert [t for c in nb.cells for t in c.metadata.get("tags", [])] == ["parameters"] and len(code) <= 18
    assert not any(c.outputs or c.execution_count or re.search(r"^\s*(def|class) ", c.source, re.M) for c in code)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory, encounters):
    """Two batches after the first; under "always", the file of batch 1 is broken."""
    project = Project(tmp_path_factory.mktemp("simulated"))
    project.environment |= {"HEALTH_PREDICT_MODEL__FAMILIES": "logistic", "HEALTH_PREDICT_EVALUATE__BOOTSTRAP": "100", "HEALTH_PREDICT_GATE__MIN_ROWS": "100",
                            "HEALTH_PREDICT_GATE__RESAMPLES": "200", "HEALTH_PREDICT_DRIFT__DOMAIN_ROWS": "500", "HEALTH_PREDICT_GATE__MIN_GROUP": "9999"}
    data = project.folder / "all.csv"
    write_encounters(data, encounters)
    project.environment["HEALTH_PREDICT_DATA"] = str(data)
    broken = project.storage / "simulation" / "always" / "incoming"
    broken.mkdir(parents=True)
    (broken / "1.csv").write_text("no,header,of,ours\n1,2,3,4\n")
    project.first = project.run("health-predict", "simulate", "--batches", "2", "--processes", "2")
    project.settings = {p: under(load_settings(storage={"root": str(project.storage)}), p, 2) for p in POLICIES}
    return project


@pytest.mark.slow
def test_a_bad_batch_does_not_stop_the_others(simulated):
    said = simulated.first.stdout
    assert simulated.first.returncode == 1, said + simulated.first.stderr
    assert re.search(r"always retrain +batch +1 failed", said) and said.count(" done ") == 8
    assert {p: [is_published(Tree(s), b) for b in range(3)] for p, s in simulated.settings.items()} == {
        "never": [True] * 3, "always": [True, False, True], "system": [True] * 3}
    page = (simulated.storage / "simulation" / "system" / "reports" / "dashboard.html").read_text()
    assert "This system" in page and "Traceback" not in page and not re.search(r"""(src|href)=["']?(https?:)?//""", page)


@pytest.mark.slow
def test_every_policy_starts_from_the_same_model_and_keeps_to_itself(simulated):
    first = [read_json(Tree(s).run(0) / "promotion.json") for s in simulated.settings.values()]
    assert len({o["digest"] for o in first}) == 1 and {o["promoted"] for o in first} == {True}
    for p, s in simulated.settings.items():
        done = simulated.run("health-predict", "audit", "verify", HEALTH_PREDICT_STORAGE=str(Tree(s).root))
        assert done.returncode == 0, (p, done.stderr)
    assert {b: read_json(Tree(simulated.settings["never"]).run(b) / "decision.json")["action"] for b in (0, 1, 2)} == {0: "train", 1: "record", 2: "record"}
    assert read_json(Tree(simulated.settings["never"]).models / "champion.json")["former"] == []
    assert read_json(Tree(simulated.settings["always"]).run(2) / "decision.json")["action"] == "retrain"


@pytest.mark.slow
def test_simulation_goes_on_where_it_was(simulated):
    """The broken file is mended: only that batch runs again."""
    always = Tree(simulated.settings["always"])
    (always.incoming / "1.csv").write_bytes((Tree(simulated.settings["never"]).incoming / "1.csv").read_bytes())
    done = simulated.run("health-predict", "simulate", "--batches", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout.count(" done "), done.stdout.count(" before ")) == (1, 8)
    found = json.loads((simulated.storage / "simulation" / "simulation.json").read_text())
    assert found["batches"] == 2 and all(o["state"] == "published" for line in found["policies"].values() for o in line)
    for line in found["policies"].values(): assert [set(o["scores"]) for o in line] == [set(), set(TARGETS), set(TARGETS)]    # nobody stood before batch 0
    assert len({json.dumps(line[1]["scores"]) for line in found["policies"].values()}) == 1    # the same champion stood before batch 1


@pytest.mark.slow
def test_a_batch_is_scored_by_the_champion_that_stood_before_it(simulated):
    """Batch 2's own run may bring a new champion: it changes nothing about batch 2's score."""
    system = simulated.settings["system"]
    file = Tree(system).models / "champion.json"
    before, now = scored(system, 2), read_json(file)
    assert scored(system, 0) == {} and set(before) == set(TARGETS)
    later = now | {"batch": 2, "digest": "0" * 64, "path": "not there", "former": [{k: v for k, v in now.items() if k != "former"}, *now["former"]]}
    if now["batch"] < 2: file.write_text(json.dumps(later))
    assert scored(system, 2) == before
    file.write_text(json.dumps(now))
