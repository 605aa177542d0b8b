"""The hyperparameter search with a real Ray: reproducible, stopping early, resumed after a kill, within its budgets, on two nodes, with bounded memory."""
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from health_predict import search, trial
from health_predict.evaluate import ranking
from health_predict.pack import to_onnx
from health_predict.search import ray_session, run_trials, search_target, search_targets
from health_predict.settings import SearchSettings, load_settings
from health_predict.train import TrainingError, best_of, train_target
from health_predict.trial import SPACES, STEPS, Proposals, SearchError, append, identity, open_journal

ROOT = Path(__file__).parents[1]
slow = pytest.mark.slow    # starts Ray
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
FAMILIES = ("logistic", "forest", "xgboost")
SMALL = {"logistic": SPACES["logistic"], "forest": SPACES["forest"] | {"n_estimators": ("whole", 20, 60)},
         "xgboost": SPACES["xgboost"] | {"rounds": ("whole", 30, 90)}}
SLOW = SPACES | {"xgboost": SPACES["xgboost"] | {"rounds": ("whole", 2000, 4000)}}
NINE = {"trials": 9, "concurrency": 1, "random_trials": 5}
HOPELESS = {"xgboost": SPACES["xgboost"] | {"min_child_weight": ("log", 2000, 4000)}}    # no tree of these can split 1,000 rows
DRIVER = """
import json, sys
from pathlib import Path
import test_search as here
from health_predict.search import search_target
from health_predict.settings import SearchSettings, load_settings
if __name__ == "__main__":
    journal, spaces, given = sys.argv[1:]
    found = search_target("any", here.FAMILIES, *here.problem(), load_settings().threshold, SearchSettings(**json.loads(given)), Path(journal),
                          n_threads=1, spaces=getattr(here, spaces))
    print(len(found.trials))
"""


def problem(rows=1600, columns=5):
    """Train and validation whose truth is no line."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, columns)).astype(np.float32)
    y = (rng.random(rows) < 1 / (1 + np.exp(-2 * X[:, 0] * X[:, 1] - 0.5))).astype(np.int8)
    return (X[: rows * 5 // 8], y[: rows * 5 // 8]), (X[rows * 5 // 8 :], y[rows * 5 // 8 :])


def drive(journal, spaces="SMALL", **given):
    """A search in a process of its own, which can be killed."""
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(journal), spaces, json.dumps(given)], env=environment, cwd=journal.parent,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(true, seconds=300):
    """Poll; fails when it takes too long."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.05)


def finished(journal):
    return journal.read_bytes().count(b"\n") - 1 if journal.is_file() else 0


def tried(trials):
    """What was tried with what result, without times and places."""
    return [(o["number"], o["family"], o["parameters"], o["history"], o["validation"], o["stopped_early"], o["rounds"]) for o in trials]


@pytest.fixture(scope="module")
def rule():
    return load_settings().threshold


@pytest.fixture(scope="module")
def session():
    """One Ray for the tests that can share it."""
    with ray_session(SearchSettings(concurrency=2), 0) as folder: yield folder


def test_a_damaged_journal_is_named(tmp_path):
    file, this = tmp_path / "any.jsonl", identity("any", FAMILIES, *problem(), 7)
    open_journal(file, this)
    append(file, {"number": 0})
    file.write_bytes(file.read_bytes() + b"{nonsense}\n")
    with pytest.raises(SearchError, match=r"any\.jsonl: a line is not JSON.*delete the file"): open_journal(file, this)


def test_proposals_depend_on_what_is_known_only():
    """An interrupted search proposes what the undisturbed one does, and the known hyperparameters come first."""
    first, trials = Proposals(FAMILIES, 7, 5), []
    for n in range(14):
        family, parameters = first.propose(n)
        trials.append({"number": n, "family": family, "parameters": parameters, "validation": {"auroc": 0.6 + n % 5 / 100}})
        first.learn(trials[-1])
    for known in (2, 9):
        again = Proposals(FAMILIES, 7, 5)
        for o in trials[:known]: again.learn(json.loads(json.dumps(o)))
        for o in trials[known:]:
            assert again.propose(o["number"]) == (o["family"], o["parameters"])
            again.learn(o)
    for o in trials:
        for name, (_, low, high) in SPACES[o["family"]].items(): assert low * 0.999 <= o["parameters"][name] <= high * 1.001
    assert first.propose(14) != Proposals(FAMILIES, 8, 5).propose(14)


def test_nothing_to_learn_is_an_error(tmp_path, rule):
    X, y = problem()[0]
    with pytest.raises(TrainingError, match="0 events"):
        search_target("any", FAMILIES, (X, y * 0), (X, y), rule, SearchSettings(), tmp_path / "any.jsonl")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, rule, session):
    """A whole small search, one trial at a time."""
    return search_target("any", FAMILIES, *problem(), rule, SearchSettings(**NINE), tmp_path_factory.mktemp("search") / "any.jsonl", n_threads=1, spaces=SMALL)


@slow
def test_same_seed_same_model(tmp_path, rule, undisturbed):
    """The same trials and, byte for byte, the same model; never worse than training without a search; one process does all trials."""
    data, one = problem(), undisturbed
    two = search_target("any", FAMILIES, *data, rule, SearchSettings(**NINE), tmp_path / "any.jsonl", n_threads=1, spaces=SMALL)
    assert tried(one.trials) == tried(two.trials)
    assert {o["family"] for o in one.trials} == set(FAMILIES)
    assert to_onnx(one.model, 5) == to_onnx(two.model, 5)
    assert (one.family, one.calibration, one.threshold) == (two.family, two.calibration, two.threshold)
    best = best_of(one.trials)["validation"]["auroc"]
    assert best == ranking(data[1][1], one.held, np.ones((1, 600)))[0][0].round(9)    # the model is the trial's, before it learns from these patients too
    known = train_target("any", FAMILIES, *data, rule, n_threads=1)
    assert best >= best_of(known.trials)["validation"]["auroc"]
    assert set(known.trials[0]) <= set(one.trials[0])    # the same shape, and more
    assert set(known.trials[0]["validation"]) == set(one.trials[0]["validation"])
    assert len({o["worker"] for o in one.trials}) == 1    # one process did them all


@slow
def test_hopeless_trials_are_stopped(tmp_path, rule, session, capfd):
    """All but the known hyperparameters are hopeless: ASHA stops them at the first rung; with the whole time of grace it doesn't. And Ray is silent."""
    data, settings = problem(), SearchSettings(trials=4, concurrency=1)
    stopped = run_trials("any", ["xgboost"], *data, rule, settings, tmp_path / "stopped.jsonl", 7, HOPELESS)
    assert [(o["stopped_early"], len(o["history"])) for o in stopped] == [(False, STEPS)] + 3 * [(True, 1)]
    whole = run_trials("any", ["xgboost"], *data, rule, settings.model_copy(update={"grace": STEPS, "trials": 2}), tmp_path / "whole.jsonl", 7, HOPELESS)
    assert [len(o["history"]) for o in whole] == 2 * [STEPS]
    more = run_trials("any", ["xgboost"], *data, rule, settings.model_copy(update={"trials": 5}), tmp_path / "stopped.jsonl", 7, HOPELESS)
    assert more[:4] == stopped
    assert more[4]["stopped_early"]    # judged against the trials of the first run
    assert capfd.readouterr() == ("", "")


@slow
def test_time_budget(tmp_path, rule, session, monkeypatch):
    """The search ends in time, counts what unfinished trials have shown, and a rerun finds its time used up."""
    data, journal = problem(), tmp_path / "any.jsonl"
    endless = {"xgboost": SPACES["xgboost"] | {"rounds": ("whole", 600_000, 900_000)}}
    settings, start = SearchSettings(trials=50, time_budget=40, concurrency=2, grace=STEPS), time.monotonic()    # undisturbed it would take an hour
    trials = run_trials("any", ["xgboost"], *data, rule, settings, journal, 7, endless)
    assert time.monotonic() - start < 300
    assert 1 <= len(trials) < 50
    assert not trials[0]["stopped_early"]    # the known hyperparameters, 700 rounds
    assert all(o["stopped_early"] for o in trials[1:])
    monkeypatch.setattr(search, "tune_trials", None)    # a call would fail
    assert run_trials("any", ["xgboost"], *data, rule, settings, journal, 7, endless) == trials


@slow
def test_memory_is_bounded(tmp_path, rule, session, monkeypatch):
    """Sixty megabytes of data, eight trials on two actors: the shared memory holds the data once."""
    import ray
    data, held, over = problem(rows=15_000, columns=1000), [], threading.Event()
    size = sum(o.nbytes for part in data for o in part)
    used = lambda: ray.cluster_resources()["object_store_memory"] - ray.available_resources().get("object_store_memory", 0)
    def watch():
        while not over.wait(0.2): held.append(used())
    known = {"xgboost": trial.HYPERPARAMETERS["xgboost"] | {"rounds": 9}}
    monkeypatch.setattr(trial, "HYPERPARAMETERS", known)
    tiny = {"xgboost": SPACES["xgboost"] | {"rounds": ("whole", 9, 10), "max_leaves": ("whole", 2, 4)}}
    watcher = threading.Thread(target=watch)
    watcher.start()
    try: trials = run_trials("any", ["xgboost"], *data, rule, SearchSettings(trials=8, concurrency=2), tmp_path / "any.jsonl", 7, tiny)
    finally: over.set(); watcher.join()
    assert len(trials) == 8
    assert size < max(held) < 1.1 * size


@slow
def test_both_targets(tmp_path, rule, session, monkeypatch):
    """Each target has its journal; a finished search isn't run again."""
    data, settings = {"any": problem(), "30d": problem(1200)}, SearchSettings(trials=2, concurrency=1)
    found = search_targets(data, ("logistic", "xgboost"), rule, settings, tmp_path, n_threads=1)
    assert {t: len(f.trials) for t, f in found.items()} == {"any": 2, "30d": 2}
    assert sorted(o.name for o in tmp_path.iterdir()) == ["search_30d.jsonl", "search_any.jsonl"]
    monkeypatch.setattr(search, "tune_trials", None)    # a call would fail
    again = search_targets(data, ("logistic", "xgboost"), rule, settings, tmp_path, n_threads=1)
    assert again["30d"].trials == found["30d"].trials


@slow
def test_killed_and_resumed(tmp_path, rule, undisturbed):
    """kill -9 half-way: the rerun ends with the trials of an undisturbed search, and those that were finished are not run again."""
    journal = tmp_path / "any.jsonl"
    child = drive(journal, **NINE)
    wait_until(lambda: finished(journal) >= 3)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = journal.read_bytes()
    assert 3 <= finished(journal) < 9
    resumed = run_trials("any", FAMILIES, *problem(), rule, SearchSettings(**NINE), journal, 7, SMALL)
    assert journal.read_bytes().startswith(before)
    assert tried(resumed) == tried(undisturbed.trials)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def cluster(monkeypatch):
    """Two real Ray nodes on this machine, one core each, that ask for a token; stopped by their own process ids."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    port, client, nodes = free_port(), free_port(), []
    ray = str(Path(sys.executable).parent / "ray")
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "PYTHONUNBUFFERED": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    common = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        try:
            for own in (["--head", f"--port={port}", f"--ray-client-server-port={client}", "--include-dashboard=false", f"--temp-dir={folder}"],
                        [f"--address=127.0.0.1:{port}"]):
                log = Path(folder) / f"node{len(nodes)}.log"
                with open(log, "w") as f:
                    nodes.append(subprocess.Popen([ray, "start", *own, *common], env=environment, stdout=f, stderr=f, start_new_session=True))
                wait_until(lambda log=log: "Ray runtime started" in log.read_text())
            yield f"127.0.0.1:{port}", f"ray://127.0.0.1:{client}"
        finally:
            for node in reversed(nodes):
                node.terminate()
                try: node.wait(20)
                finally:
                    with suppress(ProcessLookupError): os.killpg(node.pid, signal.SIGKILL)


@slow
def test_two_nodes(tmp_path, cluster):
    """`ray_address` sends the search to a cluster: trials run on both nodes. Either kind of address will do, the journal is kept here, and Ray is silent."""
    for n, address in enumerate(cluster):
        journal = tmp_path / f"{n}.jsonl"
        child = drive(journal, "SLOW", trials=16, grace=STEPS, ray_address=address)
        out, err = child.communicate(timeout=400)
        assert (child.returncode, out, err) == (0, "16\n", ""), err
        trials = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
        if not address.startswith("ray://"): assert len({o["worker"].split(":")[0] for o in trials}) == 2


@slow
def test_no_cluster_there(tmp_path):
    child = drive(tmp_path / "any.jsonl", trials=2, ray_address="127.0.0.1:9")
    _, err = child.communicate(timeout=120)
    assert "[search] ray_address = '127.0.0.1:9': no Ray there" in err
