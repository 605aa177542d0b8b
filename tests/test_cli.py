"""The command line: what it says, and the exit codes that scripts read."""
import json


def test_doctor_is_content_with_a_built_project(built):
    done = built.run("health-predict", "doctor", "--json")
    found = {o["what"]: o["state"] for o in json.loads(done.stdout)}
    assert done.returncode == 0 and found["champion"] == found["MLflow"] == found["batches"] == "ok"


def test_doctor_sees_a_damaged_champion_and_a_bad_database(project):
    (project.storage / "models").mkdir(parents=True)
    (project.storage / "models" / "champion.json").write_text('{"version": 1, "digest": "00", "path": "gone", "batch": 0, "since": "now", "former": []}')
    done = project.run("health-predict", "doctor", HEALTH_PREDICT_DATA="nowhere.csv")
    assert done.returncode == 1
    assert "FAULT data" in done.stdout and "nowhere.csv" in done.stdout and "manifest.json can't be read" in done.stdout


def test_exit_codes(project, cohort_file):
    assert project.run("health-predict", "run", HEALTH_PREDICT_SPLIT__TRAIN="much").returncode == 2
    assert project.run("health-predict", "data", "get", HEALTH_PREDICT_DATA="nowhere.csv").returncode == 3
    assert project.run("health-predict", "data", "upload", "elsewhere").returncode == 3
    assert project.run("health-predict", "fly").returncode == 2
    done = project.run("health-predict", "data", "split", "--batch", "2", HEALTH_PREDICT_DATA=str(cohort_file))
    assert (done.returncode, done.stdout.strip()) == (0, str(project.storage / "incoming" / "2.csv"))


def test_folders_of_env_yaml_and_settings_must_agree(project):
    settings = project.folder / "settings.ini"
    settings.write_text(settings.read_text().replace("root = storage", "root = elsewhere"))
    done = project.run("ploomber", "build")
    assert done.returncode != 0 and "set HEALTH_PREDICT_STORAGE, which both read" in done.stdout + done.stderr
