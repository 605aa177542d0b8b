"""The audit log: no change goes unnoticed, no entry is lost or doubled, whoever writes and whenever they are killed."""
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from health_predict import cli
from health_predict.audit import (START, AuditError, actor, as_lines, canonical, entries, first_fault, lines_of, read_head, record, sealed, unsealed, verify,
    write_head)
from health_predict.settings import HealthPredictError, load_settings
from health_predict.storage import Tree

ROOT = Path(__file__).parents[1]
LINES = 6
WRITER = """
import sys
from health_predict.audit import record
from health_predict.settings import load_settings
from health_predict.storage import Tree
tree = Tree(load_settings(storage={"root": sys.argv[1]}))
for n in range(int(sys.argv[2]), int(sys.argv[3])): record(tree, "decision", n, {"n": n, "note": "é" * (n % 50)}, actor=sys.argv[4])
"""


def tree_at(folder): return Tree(load_settings(storage={"root": str(folder)}))


def writer(folder, first, last, actor="pipeline"):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HEALTH_PREDICT_SETTINGS": str(ROOT / "settings.ini")}
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(first), str(last), actor], env=environment, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A storage with a log, and what its two files hold."""
    tree = tree_at(tmp_path_factory.mktemp("audit"))
    for n in range(LINES): record(tree, "decision", n, {"severity": "minor", "auroc": .7 + n / 1000, "thresholds": {"minor": .05}})
    return tree, {name: (tree.audit / name).read_bytes() for name in ("log.jsonl", "head.json")}


def fault(kept, log=None, head=None):
    """What `verify` says of the files as changed."""
    tree, files = kept
    (tree.audit / "log.jsonl").write_bytes(files["log.jsonl"] if log is None else log)
    (tree.audit / "head.json").write_bytes(files["head.json"] if head is None else head)
    with pytest.raises(AuditError) as e: verify(tree)
    return str(e.value)


def test_an_untouched_log_is_whole(kept):
    tree, files = kept
    for name, content in files.items(): (tree.audit / name).write_bytes(content)
    assert verify(tree) == {"entries": LINES, "head": entries(tree)[-1]["hash"]}


@given(data=st.data(), name=st.sampled_from(["log.jsonl", "head.json"]), new=st.integers(0, 255))
@hypothesis_settings(max_examples=300, deadline=None)
def test_any_changed_byte_is_found(kept, data, name, new):
    content = bytearray(kept[1][name])
    place = data.draw(st.integers(0, len(content) - 1))
    assume(content[place] != new)
    content[place] = new
    said = fault(kept, **{"log" if name == "log.jsonl" else "head": bytes(content)})
    if name == "log.jsonl" and new != 10 and place < len(content) - 1 and content[place] != 10 and kept[1][name][place] != 10:
        assert f"line {kept[1][name][:place].count(10) + 1} was changed" in said


@given(cut=st.integers(0, 10_000), more=st.binary(min_size=1, max_size=40))
@hypothesis_settings(max_examples=100, deadline=None)
def test_a_cut_or_lengthened_tail_is_found(kept, cut, more):
    log = kept[1]["log.jsonl"]
    fault(kept, log=log[:cut % len(log)])
    fault(kept, log=log + more)


@pytest.mark.parametrize("a", range(LINES))
@pytest.mark.parametrize("b", range(LINES))
def test_lines_taken_out_put_in_and_moved_are_named(kept, a, b):
    lines = kept[1]["log.jsonl"].splitlines(keepends=True)
    said = fault(kept, log=b"".join(o for n, o in enumerate(lines) if n != a))
    assert f"entry {a + 1} is missing" in said
    doubled = fault(kept, log=b"".join([*lines[:b], lines[a], *lines[b:]]))
    assert f"line {a + 2 if a == b else b + 1} was added" in doubled
    if a < b:
        lines[a], lines[b] = lines[b], lines[a]
        assert f"line {a + 1} was moved: it holds entry {b + 1}, and entry {a + 1} is on line {b + 1}" in fault(kept, log=b"".join(lines))


def test_a_line_written_anew_with_a_right_hash_breaks_the_chain(kept):
    lines = kept[1]["log.jsonl"].splitlines()
    forge = lambda line: sealed({k: v for k, v in {**unsealed(line), "actor": "nobody"}.items() if k != "hash"}).encode()
    assert "line 3 doesn't follow line 2" in fault(kept, log=b"\n".join([*lines[:1], forge(lines[1]), *lines[2:], b""]))
    assert "written anew" in fault(kept, log=b"\n".join([*lines[:-1], forge(lines[-1]), b""]))
    following = sealed({**{k: v for k, v in unsealed(lines[-1]).items() if k != "hash"}, "seq": LINES + 1, "former": unsealed(lines[-1])["hash"]})
    assert f"line {LINES + 1} was added" in fault(kept, log=kept[1]["log.jsonl"] + following.encode() + b"\n")


def test_a_missing_head_or_log_is_found_and_a_noted_hash_tells_another_chain(tmp_path):
    tree = tree_at(tmp_path)
    assert verify(tree)["entries"] == 0
    noted = record(tree, "decision", 0, {})["hash"]
    assert verify(tree, known=noted[:8])["entries"] == 1
    (tree.audit / "head.json").rename(tmp_path / "head.json")
    with pytest.raises(AuditError, match=r"head.json is missing"): verify(tree)
    with pytest.raises(AuditError, match=r"head.json is missing"): record(tree, "decision", 1, {})
    (tree.audit / "log.jsonl").unlink()    # both gone: nothing in this folder can tell
    record(tree, "decision", 1, {})
    with pytest.raises(AuditError, match=f"no entry has the hash {noted}"): verify(tree, known=noted)


def chained(*numbers, former=START):
    """Lines of a chain, as entries of these numbers."""
    lines = []
    for n in numbers:
        entry = {"seq": n, "time": "2026-01-01", "actor": "a", "kind": "decision", "batch": n, "details": {}, "event": str(n), "former": former}
        lines.append(sealed(entry).encode())
        former = unsealed(lines[-1])["hash"]
    return lines


def head_of(lines, **changes): return {"seq": len(lines), "hash": unsealed(lines[-1])["hash"] if lines else START, "size": 0, "next": ""} | changes


def test_first_fault_is_named_with_what_happened_to_it():
    a, b, c = lines = chained(1, 2, 3)
    head = head_of(lines)
    assert first_fault(head, lines) is None and first_fault(head_of([]), []) is None
    assert first_fault(head, [a, b, c, *chained(4)]) == "line 4 was added after the end"
    assert first_fault(head, [a, b"{}", c]) == "line 2 was changed"
    assert first_fault(head, [a, a, b]) == "line 2 was added: it repeats entry 1"
    assert first_fault(head, [a, c, b]) == "line 2 was moved: it holds entry 3, and entry 2 is on line 3"
    assert first_fault(head, [b, a, c]) == "line 1 was moved: it holds entry 2, and entry 1 is on line 2"
    assert first_fault(head, [a, c]) == "entry 2 is missing: line 2 holds entry 3"
    assert first_fault(head, [b, c]) == "entry 1 is missing: line 1 holds entry 2"
    assert first_fault(head, [a, b]) == "entry 3 is missing: the end was cut off"
    assert first_fault(head, []) == "entry 1 is missing: the end was cut off"
    assert first_fault(head, [a, *chained(2, 3)]) == "line 2 doesn't follow line 1: one of them was written anew"
    assert first_fault(head, chained(1, former="1" * 64) + [b, c]) == "line 1 doesn't follow line 0: one of them was written anew"
    assert first_fault(head, [a, b, *chained(3, former=unsealed(b)["hash"])]) is None
    forged = sealed({**{k: v for k, v in unsealed(c).items() if k != "hash"}, "actor": "b"}).encode()
    assert first_fault(head, [a, b, forged]) == "line 3 was written anew"


@pytest.mark.parametrize("change, said", [
    (lambda h: h | {"seq": 9}, "entry 3 is missing: the end was cut off"),
    (lambda h: h | {"size": h["size"] - 1}, "its end is not where {}/head.json has it"), (lambda h: h | {"size": h["size"] + 1}, "its end is not where"),
    (lambda h: h | {"hash": START}, "line 2 was written anew"),
    (lambda h: h | {"next": "{}"}, "{}/head.json was changed: what it announces doesn't follow entry 2"),
    (lambda h: h | {"next": chained(3)[0].decode()}, "what it announces doesn't follow entry 2"),
    (lambda h: h | {"next": chained(4, former=h["hash"])[0].decode()}, "what it announces doesn't follow entry 2"),
    (lambda h: h | {"more": 1}, "head.json was changed; restore it and log.jsonl from a backup"), (lambda h: [h], "head.json was changed"),
    (lambda h: {k: v for k, v in h.items() if k != "next"}, "head.json was changed"),
])
def test_a_changed_head_is_found_by_who_reads_and_who_writes(tmp_path, change, said):
    tree = tree_at(tmp_path)
    for n in range(2): record(tree, "decision", n, {})
    head = read_head(tree.audit)
    write_head(tree.audit, change(head))
    for act in (lambda: verify(tree), lambda: record(tree, "decision", 2, {})):
        with pytest.raises(AuditError) as e: act()
        assert said.format(tree.audit) in str(e.value)
    write_head(tree.audit, head)
    (tree.audit / "head.json").write_text(json.dumps(head))    # the same in another spelling
    with pytest.raises(AuditError, match=r"head\.json was changed"): verify(tree)
    (tree.audit / "head.json").write_text("{")
    with pytest.raises(AuditError, match=r"head\.json was changed"): verify(tree)


def test_what_is_announced_and_half_written_is_read_over(tmp_path):
    tree = tree_at(tmp_path)
    for n in range(2): record(tree, "decision", n, {})
    head, log = read_head(tree.audit), (tree.audit / "log.jsonl").read_bytes()
    assert head["size"] == len(log) and head["seq"] == 2 and head["next"] == "" and head["hash"] == entries(tree)[-1]["hash"]
    for strange in (b"\n", b"X", b"XX"):    # nothing is announced
        (tree.audit / "log.jsonl").write_bytes(log + strange)
        with pytest.raises(AuditError, match="keep it as evidence"): verify(tree)
    line = chained(3, former=head["hash"])[0]
    write_head(tree.audit, head | {"next": line.decode()})
    for written in (b"", line[:7], line, line + b"\n"):
        (tree.audit / "log.jsonl").write_bytes(log + written)
        assert verify(tree) == {"entries": 2, "head": head["hash"]}
    for strange in (b"x", line + b"\n\n", line[1:]):
        (tree.audit / "log.jsonl").write_bytes(log + strange)
        with pytest.raises(AuditError, match=r"log\.jsonl: .*; keep it as evidence, then restore the folder .* to begin a new chain$"):
            verify(tree)
    assert lines_of(b"a\nb\n") == lines_of(b"a\nb") == [b"a", b"b"] and lines_of(b"") == []


def test_a_person_is_named_with_the_machine_and_by_number_where_there_is_no_name(monkeypatch):
    name, host = pwd.getpwuid(os.getuid()).pw_name, socket.gethostname()
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"): monkeypatch.delenv(variable, raising=False)    # getpass believes these first
    assert actor() == f"{name}@{host}"
    monkeypatch.setattr(os, "getuid", lambda: 54321)    # an account that the machine doesn't know, as in a container
    assert actor() == f"54321@{host}"


def test_an_event_is_recorded_once_and_entries_are_chosen(tmp_path):
    tree = tree_at(tmp_path)
    first = record(tree, "decision", 0, {"a": 1})
    assert set(first) == {"actor", "batch", "details", "event", "former", "hash", "kind", "seq", "time"} and len(first["event"]) == 32
    assert (first["seq"], first["actor"], first["kind"], first["batch"], first["details"], first["former"]) == (1, "pipeline", "decision", 0, {"a": 1}, START)
    assert abs(datetime.fromisoformat(first["time"]) - datetime.now(timezone.utc)) < timedelta(minutes=1)
    assert len(first["time"]) == len("2026-01-01T00:00:00.000+00:00")
    assert record(tree, "decision", 0, {"a": 1}, actor="somebody") == first
    others = [record(tree, "promotion", 0, {"a": 1}), record(tree, "decision", 1, {"a": 1}), record(tree, "decision", 0, {"a": 2})]
    named = record(tree, "promotion", 1, {"v": 1}, event="verdict 1")
    assert named["event"] == "verdict 1" and record(tree, "rejection", 9, {"other": 2}, event="verdict 1") == named
    told = record(tree, "note", None, {"says": "verdict 2"})
    assert record(tree, "x", 1, {}, event="verdict 2")["seq"] == told["seq"] + 1    # a name in the details is no event
    seqs = lambda **chosen: [o["seq"] for o in entries(tree, **chosen)]
    assert seqs() == [1, 2, 3, 4, 5, 6, 7] and [o["former"] for o in entries(tree)][1:] == [o["hash"] for o in entries(tree)][:-1]
    assert seqs(kind="decision") == [1, 3, 4] and seqs(batch=0) == [1, 2, 4] and seqs(kind="decision", batch=0) == [1, 4] and others[2]["seq"] == 4
    assert seqs(last=2) == [6, 7] and seqs(last=0) == [] and seqs(last=99) == seqs() and seqs(kind="decision", last=1) == [4]
    assert verify(tree, known=first["hash"].upper()) == verify(tree, known=first["hash"][:8]) == {"entries": 7, "head": entries(tree)[-1]["hash"]}
    log = tree.audit / "log.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"decision"', b'"decisiom"', 1))
    assert seqs() == [2, 3, 4, 5, 6, 7]    # a changed line is left out
    with pytest.raises(AuditError) as e: verify(tree)
    assert str(e.value) == f"{log}: line 1 was changed; compare it with a backup"


def test_entries_are_shown_in_plain_words():
    entry = {"seq": 12, "time": "2030-01-02T03:04:05.678+00:00", "actor": "a@b", "kind": "promotion", "batch": None}
    entry["details"] = {"why": "a\x1b[1m", "n": [1, 2], "of": "x"}
    assert list(as_lines([entry])) == ["   12 2030-01-02T03:04:05Z a@b promotion: why \"a\\u001b[1m\", n 1; 2, of x"]
    assert "@" in actor() and actor().endswith(socket.gethostname())


def test_torn_at_any_byte_the_next_append_finishes_the_line(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)    # hundreds of appends, no power cut among them
    tree = tree_at(tmp_path)
    record(tree, "decision", 0, {"a": 1})
    before, log = read_head(tree.audit), (tree.audit / "log.jsonl").read_bytes()
    record(tree, "decision", 1, {"b": 2})
    whole = (tree.audit / "log.jsonl").read_bytes()
    line = whole[len(log):-1].decode()
    for written in range(len(line) + 2):
        (tree.audit / "log.jsonl").write_bytes(whole[:len(log) + written])
        write_head(tree.audit, {**before, "next": line})
        assert verify(tree)["entries"] == 1    # interrupted is not damaged
        again = record(tree, *(("decision", 1, {"b": 2}) if written % 2 else ("promote", 1, {})))
        assert (tree.audit / "log.jsonl").read_bytes().startswith(whole)
        assert verify(tree)["entries"] == again["seq"] == (2 if written % 2 else 3)
    write_head(tree.audit, {**before, "next": line})
    (tree.audit / "log.jsonl").write_bytes(log + b"{else")    # what was not announced is not mended
    with pytest.raises(AuditError, match="line 2 was added"): record(tree, "promote", 1, {})


def test_a_line_is_announced_before_it_is_written(tmp_path, monkeypatch):
    tree = tree_at(tmp_path)
    first = record(tree, "decision", 0, {})
    def killed(*_): raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr("health_predict.audit.append", killed)
        record(tree, "decision", 1, {"b": 2})
    head = read_head(tree.audit)
    announced = unsealed(head["next"].encode())
    assert (head["seq"], announced["seq"], announced["former"], announced["details"]) == (1, 2, first["hash"], {"b": 2}) and entries(tree) == [first]
    record(tree, "promote", 1, {})    # whoever comes next writes it first
    assert [(o["seq"], o["kind"]) for o in entries(tree)] == [(1, "decision"), (2, "decision"), (3, "promote")] and verify(tree)["entries"] == 3


def test_killed_again_and_again_a_rerun_has_each_entry_once_in_order(tmp_path):
    tree, wanted = tree_at(tmp_path), 80
    for pause in (.0, .03, .06, .1):
        child = writer(tmp_path, 0, wanted)
        count = lambda: len(entries(tree)) if tree.audit.is_dir() else 0
        start, patience = count(), time.monotonic() + 30
        while child.poll() is None and count() == start and time.monotonic() < patience: time.sleep(.005)
        time.sleep(pause)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        verify(tree)
    child = writer(tmp_path, 0, wanted)
    assert child.communicate()[1] == b"" and child.returncode == 0
    assert [o["batch"] for o in entries(tree)] == list(range(wanted)) and verify(tree)["entries"] == wanted


def test_two_writers_at_once(tmp_path):
    children = [writer(tmp_path, 0, 40, "a@ward"), writer(tmp_path, 20, 60, "b@ward")]
    for o in children: assert o.communicate()[1] == b""
    found = entries(tree_at(tmp_path))
    assert sorted(o["batch"] for o in found) == list(range(60)) and [o["seq"] for o in found] == list(range(1, 61))
    assert verify(tree_at(tmp_path))["entries"] == 60


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                    lambda o: st.lists(o, max_size=3) | st.dictionaries(st.text(), o, max_size=3), max_leaves=8))
@hypothesis_settings(max_examples=50, deadline=None)
def test_each_value_has_one_spelling(value):
    text = canonical(value)
    assert canonical(json.loads(text)) == text and json.loads(text) == value and text.isascii() and "\n" not in text


@pytest.mark.parametrize("details", [{"x": float("nan")}, {"x": Path("y")}, {"x": {1, 2}}])
def test_what_is_not_plain_data_is_refused_and_leaves_no_trace(tmp_path, details):
    tree = tree_at(tmp_path)
    with pytest.raises(AuditError, match="not plain data"): record(tree, "decision", 0, details)
    assert entries(tree) == []


def test_command_line_shows_and_verifies(tmp_path, monkeypatch):
    monkeypatch.setenv("HEALTH_PREDICT_STORAGE", str(tmp_path))
    tree = tree_at(tmp_path)
    for n in range(3): record(tree, "decision" if n else "promote", n, {"action": "record"}, actor="ward@host")
    run = lambda *words: CliRunner().invoke(cli.app, ["audit", *words])
    assert len(run("show").stdout.splitlines()) == 3 and "ward@host decision batch 2: action record" in run("show", "--last", "1").stdout
    assert [json.loads(o)["batch"] for o in run("show", "--kind", "decision", "--json").stdout.splitlines()] == [1, 2]
    assert run("verify").stdout.startswith("the audit log is whole: 3 entries")
    log = tree.audit / "log.jsonl"
    log.write_text(log.read_text().replace("ward@host", "nurse@host", 1))
    refused = run("verify")
    assert isinstance(refused.exception, HealthPredictError) and cli.exit_code(refused.exception) == 4 and "line 1 was changed" in str(refused.exception)
