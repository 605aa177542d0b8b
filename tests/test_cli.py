"""The command line: what it says, and the exit codes that scripts read."""
import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import typer
from typer.testing import CliRunner

from health_predict.cli import app


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


def test_help_keeps_the_names_of_sections():
    """`[serving] host` in a help text is no markup to be taken out."""
    def commands(command, path=()):
        yield path, command
        for name, below in getattr(command, "commands", {}).items(): yield from commands(below, (*path, name))
    named = 0
    for path, command in commands(typer.main.get_command(app)):
        sections = re.findall(r"\[[a-z_]+\]", " ".join([command.help or "", *(getattr(o, "help", None) or "" for o in command.params)]))
        shown = CliRunner().invoke(app, [*path, "--help"]).output
        assert not [o for o in sections if o not in shown], (path, shown)
        named += len(sections)
    assert named > 5


def test_a_folder_without_a_project_is_named(tmp_path):
    run = lambda *words: subprocess.run([Path(sys.executable).parent / "health-predict", *words], cwd=tmp_path, capture_output=True, text=True)
    for words in (["status"], ["audit", "verify"], ["report"], ["rollback"], ["run", "--batch", "5"]):
        done = run(*words)
        assert (done.returncode, list(tmp_path.iterdir())) == (2, []) and f"{tmp_path} has n" in done.stderr and "cd to the repository" in done.stderr, done


def test_what_the_wheel_alone_lacks_is_named_with_what_brings_it(project):
    for name in ("sqlalchemy", "nbconvert"): (project.folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}', name={name!r})")
    database = project.storage / "mlflow" / "mlflow.db"
    database.parent.mkdir(parents=True)
    database.write_bytes(b"")
    brings = "is not installed; pip install 'health-predict[pipeline,aws]' brings it, or, in the repository, make run"
    done = project.run("health-predict", "simulate")
    assert (done.returncode, done.stderr) == (4, f"health-predict: nbconvert {brings}\n")
    done = project.run("health-predict", "doctor", "--json")
    assert done.returncode == 1 and [o["said"] for o in json.loads(done.stdout) if brings in o["said"]] == [
        f"sqlite:///{database}: sqlalchemy {brings}"]


def test_a_file_that_is_no_batchs_is_to_do(project):
    (project.storage / "incoming").mkdir(parents=True)
    for name in ("03.csv", "batch_4.csv", ".5.csv", "6.csv.part"): (project.storage / "incoming" / name).write_bytes(b"")
    done = project.run("health-predict", "status", "--json")
    assert done.returncode == 1 and json.loads(done.stdout)["misnamed"] == ["03.csv", "batch_4.csv"] and "rename it" in done.stdout
    (project.storage / "incoming" / "2.csv").mkdir()
    done = project.run("health-predict", "status", "--json")
    assert json.loads(done.stdout)["misnamed"] == ["03.csv", "2.csv", "batch_4.csv"] and not done.stderr


def test_folders_of_env_yaml_and_settings_must_agree(project):
    settings = project.folder / "settings.ini"
    settings.write_text(settings.read_text().replace("root = storage", "root = elsewhere"))
    done = project.run("ploomber", "build")
    assert done.returncode != 0 and "set HEALTH_PREDICT_STORAGE, which both read" in done.stdout + done.stderr


def test_status_sees_what_is_damaged_and_what_is_not_there(built, tmp_path):
    storage = tmp_path / "storage"
    shutil.copytree(built.storage, storage)
    def to_do(root: Path) -> tuple[int, str]:
        done = built.run("health-predict", "status", "--json", HEALTH_PREDICT_STORAGE=str(root))
        return done.returncode, " ".join(json.loads(done.stdout)["to_do"])
    run = lambda: built.run("health-predict", "run", "--batch", "0", HEALTH_PREDICT_STORAGE=str(storage)).returncode
    assert (run(), *to_do(storage)) == (0, 0, "")
    assert to_do(tmp_path / "unmounted") == (1, f"{tmp_path / 'unmounted'} isn't there: health-predict run makes it and begins anew; if it should be there, "
                                                "mount it, or correct HEALTH_PREDICT_STORAGE")
    model = storage / "models" / json.loads((storage / "models" / "champion.json").read_text())["path"] / "any.onnx"
    model.write_bytes(model.read_bytes() + b"x")
    code, said = to_do(storage)
    assert code == 1 and "any.onnx changed since the bundle was made" in said and "health-predict run --batch 0 puts it back" in said
    (storage / "models" / "champion.json").unlink()
    assert "champion.json is gone; health-predict run --batch 0 puts it back" in to_do(storage)[1]
    assert (run(), *to_do(storage)) == (0, 0, "")
    (storage / "models" / "champion.json").write_text("{")
    done = built.run("health-predict", "run", HEALTH_PREDICT_STORAGE=str(storage))    # also where no batch waits
    assert done.returncode == 0 and "nothing waits" in done.stdout and "the champion was damaged: champion.json was put back" in done.stderr
    assert to_do(storage) == (0, "")
    log = storage / "audit" / "log.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"pipeline"', b'"somebody"', 1))
    code, said = to_do(storage)
    assert code == 1 and "the audit log: " in said and "(health-predict doctor)" in said


def test_a_port_that_is_taken_is_named_with_another(project):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        done = project.run("health-predict", "serve", "--host", "127.0.0.1", "--port", str(port))
    assert done.returncode == 4 and f"127.0.0.1:{port} can't be listened on: Address already in use" in done.stderr and f"--port {port + 1}" in done.stderr
