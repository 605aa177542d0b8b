"""A batch goes through the whole pipeline: what it leaves behind, what makes it run again, and how it fails."""
import json
import re

import nbformat
import pandas as pd
import pytest

STAGES = ["ingest", "features", "drift", "decide", "train", "evaluate", "deploy", "promote", "publish"]


def read(path): return json.loads(path.read_text())


def test_batch_0_ends_with_a_champion_and_its_reports(built):
    assert built.ran == dict.fromkeys(STAGES, True)
    champion = read(built.storage / "models" / "champion.json")
    assert (champion["version"], champion["batch"], champion["synthetic"], champion["former"]) == (1, 0, True, [])
    assert champion["digest"] == read(built.storage / "runs" / "0" / "evaluation.json")["digest"]
    assert sorted(p.name for p in (built.storage / "reports" / "0").iterdir()) == sorted([*(f"{o}.html" for o in STAGES), "settings.json", "summary.json"])
    found = read(built.storage / "runs" / "0" / "evaluation.json")
    assert found["any"]["auroc"]["low"] > .6     # the synthetic truth is found (0.68 is the best possible)
    assert found["any"]["f1"]["value"] > found["baselines"]["any"]["everyone readmitted"]["f1"]


def test_first_model_is_tried_before_it_takes_charge(built):
    tried = read(built.storage / "runs" / "0" / "deployment.json")
    assert (tried["where"], tried["verified"], tried["reasons"], tried["version"], tried["batch"]) == ("local", True, [], 1, 0)
    assert [o["check"] for o in tried["checks"]] == ["ready", "digest", "version", "scores", "speed", "refusals", "explanation"]
    assert all(o["passed"] for o in tried["checks"])


def test_reports_are_clean_and_open_offline(built):
    for page in [*(built.storage / "reports" / "0").glob("*.html"), built.storage / "reports" / "index.html"]:
        text = page.read_text()
        assert len(text) < 500_000
        assert "SYNTHETIC" in text, page.name
        assert not re.search(r"""(src|href)=["']?(https?:)?//""", text) and ("<script" not in text or page.name == "index.html"), page.name
        assert not re.search(r"Warning|Traceback|it/s\]", text), page.name
    for executed in (built.storage / "runs" / "0").glob("*.ipynb"):
        outputs = [o for c in nbformat.read(executed, as_version=4).cells if c.cell_type == "code" for o in c.outputs]
        assert not [o for o in outputs if o.output_type == "stream"], executed.name


def test_links_of_the_gallery_lead_somewhere(built):
    reports = built.storage / "reports"
    links = [(page, o) for page in [reports / "index.html", *reports.glob("0/*.html")] for o in re.findall(r'href="([^"#]+)"', page.read_text())]
    assert len(links) > 20
    for page, link in links: assert (page.parent / link).is_file(), (page, link)


def test_nothing_is_lost_between_file_and_features(built):
    run, counts = built.storage / "runs" / "0", read(built.storage / "runs" / "0" / "ingest.json")
    cohort, labels = pd.read_parquet(run / "cohort.parquet"), pd.read_parquet(built.storage / "labels" / "0.parquet")
    assert counts["rows_in"] == counts["rows_out"] + counts["quarantined"] == len(labels)
    assert len(cohort) == counts["rows_out"] - counts["excluded"]
    assert cohort.groupby("patient_nbr").side.nunique().max() == 1
    assert "readmitted" not in pd.read_parquet(run / "encounters.parquet")


def test_unchanged_build_runs_nothing(built):
    assert built.build() == dict.fromkeys(STAGES, False)


def test_tracking_has_one_version_with_its_runs(built):
    done = built.run("python", "-c", """
import json
from health_predict.registry import mlflow_client
from health_predict.settings import load_settings
settings = load_settings()
with mlflow_client(settings) as client:
    experiment = client.get_experiment_by_name("health-predict").experiment_id
    runs = client.search_runs([experiment])
    champion = client.get_model_version_by_alias("health-predict", "champion")
    import mlflow.pyfunc, pandas as pd
    frame = pd.read_parquet("storage/runs/0/cohort.parquet").head(5)
    scores = mlflow.pyfunc.load_model("models:/health-predict@champion").predict(frame)
    print(json.dumps({"nested": sum("mlflow.parentRunId" in r.data.tags for r in runs), "runs": len(runs), "version": champion.version,
        "digest": champion.tags["digest"],
        "auroc": [r.data.metrics["any/auroc"] for r in runs if "any/auroc" in r.data.metrics], "scores": scores["any"].tolist()}))""")
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["runs"], found["nested"], int(found["version"])) == (8, 6, 1)    # the model, its six trials, the drift
    assert found["digest"] == read(built.storage / "models" / "champion.json")["digest"]
    assert found["auroc"] == [read(built.storage / "runs" / "0" / "evaluation.json")["any"]["auroc"]["value"]]
    assert len(found["scores"]) == 5


@pytest.fixture
def small(project, cohort_file):
    """A project with a small batch 0 of its own and only the quickest family."""
    (project.storage / "incoming").mkdir(parents=True)
    (project.storage / "incoming" / "0.csv").write_bytes(cohort_file.read_bytes())
    project.environment |= {"HEALTH_PREDICT_MODEL__FAMILIES": "logistic", "HEALTH_PREDICT_EVALUATE__BOOTSTRAP": "100"}
    return project


@pytest.mark.slow
def test_a_change_re_runs_what_depends_on_it_and_the_rest_stays(small):
    assert all(small.build().values())
    digest = read(small.storage / "models" / "champion.json")["digest"]
    library = small.folder / "health_predict"

    def touched(path, old, new):
        path.write_text(path.read_text().replace(old, new, 1))
        return [name for name, ran in small.build().items() if ran]

    assert touched(library / "card.py", "Not a medical device.", "Not a medical device!") == ["evaluate", "deploy", "promote", "publish"]
    assert touched(library / "calibrate.py", '"""', '"""Then: ') == STAGES[2:]    # predictions are watched too
    assert touched(small.folder / "settings.ini", "confidence = 0.95", "confidence = 0.9") == ["evaluate", "deploy", "promote", "publish"]
    assert touched(library / "doctor.py", '"""', '"""Then: ') == []                  # no stage uses it
    assert touched(small.folder / "settings.ini", "rows = 20000", "rows = 20001") == STAGES
    assert read(small.storage / "models" / "champion.json")["digest"] != digest       # the card is part of the model
    assert {o["batch"] for o in read(small.storage / "models" / "champion.json")["former"]} == {0}


@pytest.mark.slow
def test_same_data_same_model(small, tmp_path_factory):
    """Two fresh storages end with the same digest."""
    digests = []
    for name in ("one", "two"):
        storage = tmp_path_factory.mktemp(name)
        (storage / "incoming").mkdir()
        (storage / "incoming" / "0.csv").write_bytes((small.storage / "incoming" / "0.csv").read_bytes())
        small.build(HEALTH_PREDICT_STORAGE=str(storage), HEALTH_PREDICT_MODEL__FAMILIES="forest,xgboost")
        digests.append(read(storage / "models" / "champion.json")["digest"])
    assert digests[0] == digests[1]


def test_refused_batch_has_a_report_and_a_remedy_and_can_be_sent_again(small, cohort_file):
    incoming = small.storage / "incoming" / "0.csv"
    incoming.write_bytes(cohort_file.read_bytes().replace(b"gender", b"sex", 1))
    done = small.run("health-predict", "run")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "missing 'gender'; unknown 'sex'" in done.stderr and "0/ingest.html" in done.stderr
    report, gallery = (small.storage / "reports" / "0" / "ingest.html").read_text(), (small.storage / "reports" / "index.html").read_text()
    assert "This stage failed." in report and "unknown 'sex'" in report
    assert "Failed at ingest" in gallery and "FileRefused" not in gallery and 'href="0/ingest.html" class="failed"' in gallery
    incoming.write_bytes(cohort_file.read_bytes())
    done = small.run("health-predict", "run")
    assert done.returncode == 0, done.stderr
    assert read(small.storage / "reports" / "0" / "summary.json")["state"] == "published"


def test_failure_after_a_success_is_not_hidden_by_yesterdays_page(small, cohort_file):
    small.build()
    incoming = small.storage / "incoming" / "0.csv"
    incoming.write_bytes(b"")
    assert small.run("ploomber", "build").returncode != 0
    summary = read(small.storage / "reports" / "0" / "summary.json")
    assert (summary["state"], summary["failed"], list(summary["stages"])) == ("failed", "ingest", ["ingest"])
    assert not (small.storage / "reports" / "0" / "evaluate.html").exists()
    incoming.write_bytes(cohort_file.read_bytes())
    assert all(small.build().values())


def test_broken_contract_is_a_failed_stage_with_a_report(small):
    notebook = small.folder / "nbs" / "pipeline" / "1_ingest.ipynb"
    notebook.write_text(notebook.read_text().replace("rows.drop(columns=LABEL)", "rows.drop(columns=LABEL).head(5)"))
    done = small.run("health-predict", "run", "--batch", "0")
    assert done.returncode == 1 and "2995 are lost" in done.stderr, done.stderr
    assert "ContractError: 3000 rows in, 5 out" in (small.storage / "reports" / "0" / "ingest.html").read_text()


def test_later_batch_learns_from_what_is_known_and_leaves_the_champion(small, cohort_file):
    lines = cohort_file.read_bytes().splitlines(keepends=True)
    for batch in (0, 1): (small.storage / "incoming" / f"{batch}.csv").write_bytes(b"".join([lines[0], *lines[1 + 1500 * batch:1501 + 1500 * batch]]))
    small.build(0)
    before = (small.storage / "models" / "champion.json").read_text()
    small.build(1)
    assert (small.storage / "models" / "champion.json").read_text() == before
    assert read(small.storage / "runs" / "1" / "train.json")["training"]["batches"] == [0]     # batch 1's outcomes aren't known yet
    assert "The outcomes of this batch aren't known yet" in (small.storage / "reports" / "1" / "publish.html").read_text()
    assert not any(small.build(0).values()) and not any(small.build(1).values())


@pytest.mark.slow
def test_challenger_takes_over_and_can_be_taken_back(small, cohort_file):
    lines = cohort_file.read_bytes().splitlines(keepends=True)
    for batch in (0, 1, 2): (small.storage / "incoming" / f"{batch}.csv").write_bytes(b"".join([lines[0], *lines[1 + 1000 * batch:1001 + 1000 * batch]]))
    small.environment |= {"HEALTH_PREDICT_GATE__MIN_ROWS": "100", "HEALTH_PREDICT_GATE__RESAMPLES": "200", "HEALTH_PREDICT_GATE__MIN_GROUP": "9999",
                          "HEALTH_PREDICT_GATE__GUARD": "0.5", "HEALTH_PREDICT_GATE__CALIBRATION_MARGIN": "0.5"}    # few patients: a lenient gate
    small.build(0)
    champion = small.storage / "models" / "champion.json"
    small.build(1)
    assert read(champion)["version"] == 1    # no new outcomes, the same model
    assert read(small.storage / "runs" / "1" / "promotion.json")["reason"] == "nothing new was trained"
    small.environment["HEALTH_PREDICT_RESPOND__FORCE_RETRAIN"] = "true"
    small.build(2, HEALTH_PREDICT_DEPLOY__READY="0.01")    # it passes the gate, and then no server is ready with it in time
    tried = read(small.storage / "runs" / "2" / "deployment.json")
    assert (tried["verified"], tried["version"], read(champion)["version"]) == (False, 2, 1) and "not ready within 0.01 s" in tried["reasons"][0]
    assert "failed where it was to answer" in read(small.storage / "runs" / "2" / "promotion.json")["reason"]
    small.build(2)    # tried again, under the version that it has already
    gate = read(small.storage / "runs" / "2" / "evaluation.json")["gate"]
    assert gate["verdict"] == "promote" and {o["check"] for o in gate["checks"]} >= {"size", "ranking", "calibration"}
    assert (read(champion)["version"], read(champion)["batch"]) == (2, 2)
    del small.environment["HEALTH_PREDICT_RESPOND__FORCE_RETRAIN"]

    assert "version 1 of batch 0, back from version 2" in small.run("health-predict", "rollback").stdout
    assert (read(champion)["version"], read(champion)["rolled_back"]) == (1, 2)
    done = small.run("health-predict", "rollback")
    assert done.returncode == 4 and "is the first champion" in done.stderr
    assert small.run("health-predict", "promote", "2").returncode == 0 and read(champion)["version"] == 2
    assert small.run("health-predict", "promote", "9").returncode == 4

    assert small.build(0, HEALTH_PREDICT_EVALUATE__CONFIDENCE="0.9")["promote"]    # an old batch that runs again displaces nobody
    assert read(champion)["version"] == 2
    assert "of the later batch 2 is in charge" in read(small.storage / "runs" / "0" / "promotion.json")["reason"]


def test_stage_sees_only_declared_settings(small):
    pipeline = small.folder / "pipeline.yaml"
    pipeline.write_text(pipeline.read_text().replace("settings: [data, split, model, search, threshold]", "settings: [data, split, model, search]"))
    done = small.run("health-predict", "run")
    assert done.returncode == 1 and "reads [threshold] but declares ['data', 'split', 'model', 'search']" in done.stderr


def test_unknown_batch_is_explained(small):
    small.environment["HEALTH_PREDICT_DATA"] = str(small.storage / "incoming" / "0.csv")
    done = small.run("health-predict", "run", "--batch", "9")
    assert done.returncode == 3 and "9.csv isn't there" in done.stderr, (done.returncode, done.stderr)
