"""The circuit breaker: against an independent model of it, over restarts, reruns and two processes."""
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from typer.testing import CliRunner

from health_predict import cli
from health_predict.audit import entries
from health_predict.breaker import allowed, note, reset, state
from health_predict.settings import BreakerSettings, load_settings
from health_predict.storage import StorageError, Tree

ROOT = Path(__file__).parents[1]


class Machine(RuleBasedStateMachine):
    """Batches arrive one by one; each may retrain or not, report twice, and the program restarts between any two steps (nothing is kept in memory)."""
    @initialize(failures=st.integers(1, 4), cool_down=st.integers(1, 3))
    def begin(self, failures, cool_down):
        self.folder = TemporaryDirectory()
        self.tree = Tree(load_settings(storage={"root": self.folder.name}))
        self.rule = BreakerSettings(failures=failures, cool_down=cool_down)
        self.batch, self.name, self.row, self.blocked, self.answers, self.told = 0, "closed", 0, 0, {}, {}

    def teardown(self):
        if hasattr(self, "folder"): self.folder.cleanup()

    @rule(succeeds=st.booleans(), twice=st.booleans())
    def arrive(self, succeeds, twice):
        self.batch += 1
        may, why = allowed(self.tree, self.batch, self.rule)
        self.answers[self.batch] = (may, why)
        if self.name == "open" and self.blocked == self.rule.cool_down: now = "half-open"
        else: now = self.name
        assert may == (now != "open") and now in why
        if not may: self.blocked += 1; return
        told = note(self.tree, self.batch, succeeds, "no better", self.rule)
        if twice: assert note(self.tree, self.batch, succeeds, "no better", self.rule) == told
        self.row = 0 if succeeds else self.row + 1
        after = "closed" if succeeds else "open" if now == "half-open" or self.row >= self.rule.failures else "closed"
        path = [self.name, now, after]
        assert [(o.batch, o.former, o.state) for o in told] == [(self.batch, a, b) for a, b in pairwise(path) if a != b]
        if after == "open":
            self.blocked = 0
            assert told[-1].reason.endswith(": no better")
        self.name, self.told = after, {self.batch: told}

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def run_again(self, data):
        """A batch that asks again gets the answer that it got; one that was overtaken changes nothing."""
        old = data.draw(st.sampled_from(sorted(self.answers)))
        assert allowed(self.tree, old, self.rule) == self.answers[old]
        if self.told and old < max(self.told): assert note(self.tree, old, False, "again", self.rule) == ()

    @rule()
    def mend(self):
        assert reset(self.tree, self.rule).state == self.name
        self.name, self.row, self.answers, self.told = "closed", 0, {}, {}

    @invariant()
    def agrees(self):
        if hasattr(self, "tree"): assert state(self.tree, self.rule).state == self.name


TestMachine = Machine.TestCase
TestMachine.settings = hypothesis_settings(max_examples=25, stateful_step_count=20, deadline=None)
RULE = BreakerSettings()
THIRD = """
import sys
from health_predict.breaker import allowed, note
from health_predict.settings import load_settings
from health_predict.storage import Tree
s = load_settings(storage={"root": sys.argv[1]})
print([o.state for o in note(Tree(s), 3, False, "rejected", s.breaker)], allowed(Tree(s), 4, s.breaker)[0])
"""


@pytest.fixture
def tree(tmp_path): return Tree(load_settings(storage={"root": str(tmp_path)}))


def test_defaults_three_failures_two_batches(tree):
    assert [len(note(tree, b, False, "rejected", RULE)) for b in (1, 2, 3)] == [0, 0, 1]
    assert [allowed(tree, b, RULE)[0] for b in (3, 4, 5, 6)] == [True, False, False, True]
    assert "open until batch 6" in allowed(tree, 4, RULE)[1] and "rejected" in allowed(tree, 4, RULE)[1]
    assert [o.state for o in note(tree, 6, False, "rejected", RULE)] == ["half-open", "open"]
    assert [allowed(tree, b, RULE)[0] for b in (7, 8, 9)] == [False, False, True]
    assert [o.state for o in note(tree, 9, True, "", RULE)] == ["half-open", "closed"]


def test_forced_through_an_open_breaker(tree):
    for b in (1, 2, 3): note(tree, b, False, "rejected", RULE)
    assert note(tree, 4, False, "forced, rejected", RULE) == ()    # still open, for two more batches
    assert [allowed(tree, b, RULE)[0] for b in (5, 6, 7)] == [False, False, True]
    assert [(o.former, o.state) for o in note(tree, 5, True, "", RULE)] == [("open", "closed")]


def test_a_batch_that_is_mended_and_run_again_takes_its_failure_back(tree):
    for b in (1, 2, 3): note(tree, b, False, "rejected", RULE)
    assert [(o.former, o.state) for o in note(tree, 3, True, "", RULE)] == [("open", "closed")]
    assert allowed(tree, 4, RULE)[0]


def test_asking_writes_nothing_and_a_damaged_file_is_no_permission(tree):
    assert allowed(tree, 1, RULE)[0] and not tree.state.exists()
    note(tree, 1, False, "rejected", RULE)
    (tree.state / "breaker.json").write_text("{")
    with pytest.raises(StorageError, match=r"breaker.json is not JSON"): allowed(tree, 2, RULE)


def test_another_process_goes_on_where_this_one_ended(tree, tmp_path):
    note(tree, 1, False, "rejected", RULE); note(tree, 2, False, "rejected", RULE)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HEALTH_PREDICT_SETTINGS": str(ROOT / "settings.ini")}
    done = subprocess.run([sys.executable, "-c", THIRD, str(tmp_path)], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "['open'] False"
    assert not allowed(tree, 4, RULE)[0]


def test_command_line_shows_and_resets(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("HEALTH_PREDICT_STORAGE", str(tmp_path))
    for b in (1, 2, 3): note(tree, b, False, "rejected", RULE)
    run = lambda *words: CliRunner().invoke(cli.app, ["breaker", *words])
    assert "open until batch 6" in run("show").stdout and json.loads(run("show", "--json").stdout)["failures"] == 3
    assert run("reset", "--why", "labels mended").exit_code == 0
    assert "closed (0 of 3" in run("show").stdout and allowed(tree, 4, RULE)[0]
    [entry] = entries(tree, "breaker reset")
    assert entry["details"]["why"] == "labels mended" and entry["details"]["former"]["opened"] == 3 and "@" in entry["actor"]
