"""`schedule install`: a crontab that keeps its other lines; and, with cron's own daemon, a run that really begins."""
import json
import os
import shutil
import subprocess
import time

import psutil
import pytest
from trivial import Trivial

from health_predict.schedule import calendar

pytestmark = pytest.mark.xdist_group("crontab")    # a user has one
cron = pytest.mark.skipif(not (shutil.which("crontab") and shutil.which("cron")), reason="cron is not here: apt install cron")
root = pytest.mark.skipif(os.geteuid() != 0, reason="cron's daemon can be started by root only")


def asked(program, *words, text=None): return subprocess.run([shutil.which(program), *words], input=text, capture_output=True, text=True)


@pytest.fixture
def own_crontab():
    """The user's crontab, put back at the end."""
    before = asked("crontab", "-l")
    yield
    if before.returncode: asked("crontab", "-r")
    else: asked("crontab", "-", text=before.stdout)


def table(): return asked("crontab", "-l").stdout


@cron
def test_installing_twice_changes_nothing_and_other_lines_stay(project, own_crontab):
    mine = "MAILTO=me@example.org\n# my own\n5 4 * * * backup 100\\%\n"
    asked("crontab", "-", text=mine)
    said = project.run("health-predict", "schedule", "install", HEALTH_PREDICT_ALERT__EMAIL_USER="it's secret")
    assert said.returncode == 0 and "runs begin at 0 5 * * *, by cron" in said.stdout, said.stderr
    assert ("no cron daemon runs here" in said.stderr) == (not any(p.name() == "cron" for p in psutil.process_iter()))
    once, script = table(), project.storage / "state" / "scheduled.sh"
    assert once.startswith(mine) and once.count("scheduled.sh") == 2 and "secret" not in once
    assert script.stat().st_mode & 0o777 == 0o700 and "EMAIL_USER='it'\"'\"'s secret'" in script.read_text()
    assert project.run("health-predict", "schedule", "install").returncode == 0 and table() == once
    changed = {"HEALTH_PREDICT_RUN__SCHEDULE": "30 4 * * 1-5"}
    status = json.loads(project.run("health-predict", "status", "--json", **changed).stdout)
    assert "cron has 0 5 * * *, [run] schedule is 30 4 * * 1-5" in " ".join(status["to_do"])
    project.run("health-predict", "schedule", "install", **changed)
    assert table().count("scheduled.sh") == 2 and json.loads(project.run("health-predict", "schedule", "show", "--json").stdout)["schedule"] == "30 4 * * 1-5"
    (few := project.folder / "few").mkdir()    # a machine without systemd
    (few / "crontab").symlink_to(shutil.which("crontab"))
    kept = table()
    refused = project.run("health-predict", "schedule", "install", "--by", "systemd", PATH=str(few), **changed)
    assert refused.returncode == 4 and "say --by cron" in refused.stderr and table() == kept and script.is_file()
    assert "removed: 30 4 * * 1-5 by cron" in project.run("health-predict", "schedule", "remove").stdout and table() == mine
    assert project.run("health-predict", "schedule", "install", HEALTH_PREDICT_RUN__SCHEDULE="0 25 * * *").returncode == 2


@pytest.mark.slow
@cron
@root
def test_cron_starts_a_run(project, own_crontab):
    """cron's daemon looks at the clock once a minute, so this takes one."""
    runs = any(p.name() == "cron" for p in psutil.process_iter(["name"]))
    daemon = None if runs else subprocess.Popen([shutil.which("cron"), "-f"])
    time.sleep(1.1)    # cron knows a changed table by its time in whole seconds: one of the second in which the daemon began is never read
    try:
        trivial = Trivial(project)
        trivial.arrive(0, 1)
        environment = {"HEALTH_PREDICT_RUN__SCHEDULE": "* * * * *", "HEALTH_PREDICT_RUN__METRICS_FILE": str(trivial.storage / "run.prom")}
        said = project.run("health-predict", "schedule", "install", **environment)
        assert said.returncode == 0, said.stderr
        ends = time.monotonic() + 240
        while time.monotonic() < ends and not (trivial.storage / "reports" / "1" / "summary.json").is_file(): time.sleep(.2)
        project.run("health-predict", "schedule", "remove")
        while time.monotonic() < ends and not (trivial.storage / "run.prom").is_file(): time.sleep(.1)    # the last thing that a run writes
        log = (trivial.storage / "logs" / "run.log").read_text()
        assert trivial.diary[:4] == ["0 ingest", "0 publish", "1 ingest", "1 publish"] and "Traceback" not in log, log
        assert {o["state"] for o in trivial.kept.values()} == {"published"} and "nothing to run" in log
    finally:
        if daemon: daemon.terminate(), daemon.wait()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not here")
@pytest.mark.parametrize("schedule", ["0 5 * * *", "*/15 5-7 1,15 */2 1-5", "0 0 * 1,6 0", "5 4 31 12 *"])
def test_systemd_understands_the_same_times(schedule):
    for o in calendar(schedule): assert asked("systemd-analyze", "calendar", o).returncode == 0, o
