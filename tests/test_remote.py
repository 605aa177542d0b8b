"""The remote storage, against a real S3-compatible server process, behind a proxy that delays, refuses, resets and tears: what is put there is what comes from
there, a reader never meets half a batch, and whatever is interrupted is done by doing it again."""
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from health_predict import audit, mirror
from health_predict.audit import AuditError, entries, record, verify
from health_predict.data import find, split, upload
from health_predict.doctor import examine
from health_predict.ledger import LEDGER, PLACES, Known, local_files, path_of
from health_predict.mirror import pull, push, push_bundle, status
from health_predict.remote import ABSENT, PARTS, RemoteAbsent, RemoteAway, RemoteChanged, RemoteError, remote_of
from health_predict.settings import SettingsError, load_settings
from health_predict.storage import Tree, file_digest, write_json
from health_predict.turn import next_turn, read_kept
from rough import AWS

ROOT = Path(__file__).parents[1]
WEATHER = {"slow": .05, "broken": .05, "slow_down": .05, "reset": .05, "lost": .04, "torn": .05}


def batch_made(settings, batch: int, pages=("ingest", "train", "publish")) -> None:
    """A tree as a build leaves it, with small files."""
    tree, rng = Tree(settings), np.random.default_rng(batch)
    for name in ("encounters.parquet", "features.parquet", "draft/any.onnx", "5_train.ipynb", "5_train.html"):
        path_of(tree, f"runs/{batch}/{name}").parent.mkdir(parents=True, exist_ok=True)
        path_of(tree, f"runs/{batch}/{name}").write_bytes(rng.bytes(3000))
    for name in ("drift", "decision", "ingest"): write_json(tree.run(batch) / f"{name}.json", {"batch": batch})
    (tree.run(batch) / ".drift.json.metadata").write_text("a machine's own")
    for folder, suffix in (("incoming", "csv"), ("labels", "parquet"), ("quarantine", "csv")): write_json(tree.root / folder / f"{batch}.{suffix}", batch)
    digest = f"{batch:016x}"
    for name in ("any.onnx", "model.json", "manifest.json"): write_json(tree.models / digest / name, [batch, name])
    file = tree.models / "champion.json"
    former = json.loads(file.read_text()) if file.is_file() else None
    line = [{k: v for k, v in former.items() if k != "former"}, *former["former"]] if former else []
    write_json(tree.models / "champion.json", {"version": batch + 1, "batch": batch, "path": digest, "digest": digest, "since": "now",
        "former": [o for o in line if o["batch"] != batch]})
    record(tree, "decision", batch, {"action": "search"})
    write_json(tree.state / "breaker.json", {"outcomes": [batch]})
    for o in pages:
        (tree.reports / str(batch)).mkdir(parents=True, exist_ok=True)
        (tree.reports / str(batch) / f"{o}.html").write_text(f"{o} of {batch}")
    write_json(tree.reports / str(batch) / "summary.json", {"batch": batch, "state": "published", "stages": dict.fromkeys(pages)})
    (tree.reports / "index.html").write_text(f"batches 0 to {batch}")


def next_batch(settings) -> int | None:
    """Whose turn it is, as a run sees it."""
    pull(settings)
    return next_turn(settings, read_kept(Tree(settings))).batch


def digests(settings) -> dict[str, str]:
    """Every file that travels, but for what a machine may add to."""
    tree = Tree(settings)
    return {k: file_digest(p) for o in PLACES if path_of(tree, f"{o}/").is_dir() for k, p in local_files(tree, f"{o}/").items()}


def there(settings) -> dict[str, str]:
    store = remote_of(settings)
    return {o.key: store.head(o.key).digest for o in store.items() if o.key != LEDGER}


@pytest.mark.parametrize("kind", ["s3", "folder"])
def test_both_kinds_of_place_do_the_same(place, kind, tmp_path):
    store = remote_of(place.machine("first") if kind == "s3" else load_settings(storage={"remote": f"file://{tmp_path}/a%20share"}))
    first = store.write("models/champion.json", b"1", over=ABSENT)
    with pytest.raises(RemoteChanged, match="meanwhile"): store.write("models/champion.json", b"2", over=ABSENT)
    second = store.write("models/champion.json", b"2", over=first.tag)
    with pytest.raises(RemoteChanged): store.write("models/champion.json", b"3", over=first.tag)
    with pytest.raises(RemoteChanged): store.write("models/none.json", b"3", over="some tag")
    assert store.read("models/champion.json") == (b"2", second) and second.digest == store.head("models/champion.json").digest
    for n in range(12): store.write(f"runs/{n}/a.json", b"x")
    assert sorted(map(int, store.folders("runs/"))) == list(range(12)) and store.folders("none/") == []
    assert [o.key for o in store.items("runs/1")] == ["runs/1/a.json", "runs/10/a.json", "runs/11/a.json"]
    assert [o.key for o in store.items("runs/", after="runs/7/z")] == ["runs/8/a.json", "runs/9/a.json"]
    store.delete("runs/1/a.json")
    store.delete("runs/1/a.json")
    assert store.head("runs/1/a.json") is None
    with pytest.raises(RemoteAbsent): store.fetch("runs/1/a.json", tmp_path / "x")
    assert not (tmp_path / "x").exists() and "read and written" in store.check()


def test_large_files_go_in_parts_and_everything_is_encrypted(place, tmp_path):
    store, big = remote_of(place.machine("first", encryption="aws:kms", kms_key="alias/ward")), tmp_path / "big"
    big.write_bytes(os.urandom(PARTS) * 2 + b"rest")
    rough = place.through(torn=.2, slow_down=.1)
    store = remote_of(place.machine("first", encryption="aws:kms", kms_key="alias/ward"))
    made = store.put("incoming/9.parquet", big)
    assert made.digest == file_digest(big) and made.tag.endswith("-3"), "three parts"
    store.fetch("incoming/9.parquet", tmp_path / "back")
    assert file_digest(tmp_path / "back") == file_digest(big) and len(rough.asked) > 6
    said = store.client.head_object(**store.at("incoming/9.parquet"))
    assert (said["ServerSideEncryption"], said["SSEKMSKeyId"]) == ("aws:kms", "alias/ward")
    assert "encryption: aws:kms" in store.check()
    plain = remote_of(place.machine("first"))
    plain.write("a", b"b")
    assert plain.client.head_object(**plain.at("a"))["ServerSideEncryption"] == "AES256"


def test_a_damaged_object_is_refused(place, tmp_path):
    store = remote_of(place.machine("first", attempts=2))
    store.client.put_object(**store.at("models/x"), Body=b"tampered", Metadata={"sha256": "0" * 64})
    with pytest.raises(RemoteAway, match="not what its SHA-256 says"): store.fetch("models/x", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_batch_travels_through_rough_weather(place):
    settings = place.machine("first")
    rough = place.through(**WEATHER)
    batch_made(settings, 0)
    push(settings, 0)
    assert sum(n for k, n in rough.seen.items() if k) > 10, rough.seen
    second = place.machine("second")
    pull(second, everything=True)
    assert digests(second) == digests(settings) == there(settings)
    assert not [p for p in Tree(second).root.rglob("*.tmp")]
    assert not [k for k in there(settings) if "metadata" in k]
    rough.asked.clear()
    assert push(settings, 0) == []
    assert not [p for m, p in rough.asked if m == "PUT" and "ledger" not in p], "what is there isn't put again"


def test_with_s3_away_it_says_so_and_nothing_is_lost(place):
    settings = place.machine("first", attempts=2)
    batch_made(settings, 0)
    before = digests(settings)
    rough = place.through()
    rough.away = True
    for work in (lambda: pull(settings), lambda: push(settings, 0), lambda: status(settings)):
        with pytest.raises(RemoteAway, match="check the network"): work()
    assert digests(settings) == before
    found = {o.what: o for o in examine(settings)}
    assert found["remote"].state == "fault" and "check the network" in found["remote"].said
    rough.away = False
    push(settings, 0)
    assert there(settings) == before
    assert {o.what: o.state for o in examine(settings)}["remote"] == "ok"
    with pytest.raises(RemoteError, match=r"NoSuchBucket.*check the address"): pull(place.machine("first", remote="s3://no-such-bucket/x"))


CHILD = """
import os, signal, sys
from health_predict import mirror, remote
from health_predict.settings import load_settings
left = int(sys.argv[3])
def counted(original):
    def work(self, *a, **k):
        global left
        left -= 1
        if left == 0: os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *a, **k)
    return work
remote.THREADS = 1
for kind in (remote.S3, remote.Folder):
    for o in ("write", "fetch"): setattr(kind, o, counted(getattr(kind, o)))
settings = load_settings(storage={"root": sys.argv[1], "remote": sys.argv[2]})
(mirror.push if sys.argv[4] == "push" else mirror.pull)(settings, 1)
"""


def killed(settings, remote: str, at: int, work: str) -> int:
    program = [sys.executable, "-c", CHILD, str(Tree(settings).root), remote, str(at), work]
    return subprocess.run(program, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60).returncode


def reader_is_well(settings) -> None:
    """What anybody finds who reads the remote tree at this moment."""
    keys, store = there(settings), remote_of(settings)
    now = json.loads(store.read("models/champion.json")[0])
    assert f"models/{now['path']}/manifest.json" in keys and f"models/{now['path']}/any.onnx" in keys
    for b in store.folders("reports/"):
        if f"reports/{b}/summary.json" in keys: assert {f"reports/{b}/{o}.html" for o in ("ingest", "train", "publish")} <= set(keys)
    assert all(f"reports/{b}/summary.json" in keys for b in range(int(store.read("reports/index.html")[0].split()[-1]) + 1))


@pytest.mark.parametrize("seed", [1, *(pytest.param(o, marks=pytest.mark.slow) for o in (0, 2, 3))])
def test_killed_while_it_pushes_or_pulls_it_ends_in_the_same_tree(place, seed):
    settings, rng = place.machine("first"), np.random.default_rng(seed)
    batch_made(settings, 0)
    push(settings, 0)
    batch_made(settings, 1)
    wanted, deaths = digests(settings), 0
    for at in sorted(map(int, rng.choice(range(1, 24), 2, replace=False))):
        deaths += killed(settings, place.remote, at, "push") == -signal.SIGKILL
        reader_is_well(settings)
    if seed: shutil.rmtree(Tree(settings).state / ".remote")    # what it remembered is lost too
    if seed: pull(settings)
    push(settings, 1)
    assert there(settings) == wanted == digests(settings) and deaths
    second = place.machine("second")
    for at in (2, 9): deaths += killed(second, place.remote, at, "pull") == -signal.SIGKILL
    pull(second, everything=True)
    assert digests(second) == wanted and deaths > 2 and verify(Tree(second))["entries"] == 2
    assert not [o for o in push(second, 1) if not o.startswith("reports/")]


def test_another_machine_is_noticed_before_anything_is_changed(place):
    first, second = place.machine("first"), place.machine("second")
    batch_made(first, 0)
    push(first, 0)
    with pytest.raises(RemoteChanged, match="pushed batch 0 meanwhile"): push(second)
    pull(second)
    batch_made(second, 1)
    push(second, 1)
    before = there(first)
    write_json(Tree(first).models / "champion.json", {"version": 9, "former": []})
    with pytest.raises(RemoteChanged, match="pushed batch 1 meanwhile"): push(first)
    assert there(first) == before
    assert status(first)["unseen"] == [1]
    assert {"runs/1/drift.json", "models/champion.json", "reports/1/summary.json"} <= set(pull(first))
    assert next_batch(first) is None and digests(first)["models/champion.json"] == before["models/champion.json"]


def test_the_audit_log_only_grows(place):
    first, second = place.machine("first"), place.machine("second")
    batch_made(first, 0)
    push(first, 0)
    pull(second)
    one, two, store = Tree(first), Tree(second), remote_of(first)
    assert entries(one) == entries(two)
    for n in (1, 2): record(two, "decision", n, {})
    push(second)
    log, head = store.read("audit/log.jsonl")[0], store.read("audit/head.json")[0]
    pull(first)
    assert verify(one)["entries"] == 3
    record(one, "decision", 3, {})
    record(two, "decision", 4, {})
    push(first)
    with pytest.raises(AuditError, match="two machines ran"): pull(second)
    store.write("audit/log.jsonl", log[:log.rindex(b"\n", 0, -1) + 1])    # its end is cut off, and that is no news to the local log
    pull(first)
    shutil.rmtree(two.audit)
    with pytest.raises(AuditError, match="its end was cut off"): pull(second)
    store.write("audit/log.jsonl", log.replace(b"decision", b"decisiom", 1))
    with pytest.raises(AuditError, match="two machines ran"): push(first)
    with pytest.raises(AuditError, match="line 1 was changed"): pull(second)
    store.write("audit/log.jsonl", log)
    store.write("audit/head.json", head)    # as a push leaves it that was killed between the two
    push(first)
    pull(second)
    assert verify(two)["entries"] == 4


def test_an_addition_that_was_interrupted_travels_without_it(place, monkeypatch):
    settings = place.machine("first")
    batch_made(settings, 0)
    monkeypatch.setattr(audit, "append", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError): record(Tree(settings), "decision", 1, {})
    monkeypatch.undo()
    for k, v in AWS.items(): monkeypatch.setenv(k, v)
    monkeypatch.setenv("AWS_ENDPOINT_URL", place.proxies[-1].url)
    push(settings, 0)
    second = place.machine("second")
    pull(second)
    assert verify(Tree(second))["entries"] == 1
    record(Tree(settings), "decision", 2, {})
    push(settings)
    pull(second)
    assert verify(Tree(second))["entries"] == verify(Tree(settings))["entries"] == 3


def test_a_page_of_yesterday_does_not_stay_beside_todays_failure(place):
    settings = place.machine("first")
    batch_made(settings, 0)
    push(settings, 0)
    (Tree(settings).reports / "0" / "publish.html").unlink()
    write_json(Tree(settings).reports / "0" / "summary.json", {"batch": 0, "state": "failed", "stages": {"ingest": {}, "train": {}}})
    push(settings, 0)
    assert "reports/0/publish.html" not in there(settings) and "reports/0/train.html" in there(settings)
    shutil.rmtree(Tree(settings).reports / "0")
    push(settings, 0)
    assert "reports/0/train.html" in there(settings), "what is only absent here stays there"


def test_batches_arrive_in_s3(place, cohort_file):
    away = load_settings(storage={"root": str(place.folder / "hospital")}, data={"source": str(cohort_file)})
    split(away)
    upload(away, place.remote)
    settings = place.machine("first")
    assert next_batch(settings) == 0 and status(settings)["arrived"] == [0, 1, 2, 3, 4, 5]
    pull(settings, 0)
    assert Tree(settings).incoming_file(0).read_bytes() == Tree(away).incoming_file(0).read_bytes()
    batch_made(settings, 1)
    shutil.copy(Tree(away).incoming_file(1), Tree(settings).incoming_file(1))
    push(settings)
    assert next_batch(place.machine("second")) == 0
    found = find(load_settings(storage={"root": str(place.folder / "third")}, data={"source": f"{place.remote}/incoming/2.csv"}))
    assert found.path.read_bytes() == Tree(away).incoming_file(2).read_bytes()


def test_what_is_remembered_may_be_lost(place):
    settings = place.machine("first")
    batch_made(settings, 0)
    push(settings, 0)
    shutil.rmtree(Tree(settings).state / ".remote")
    pull(settings)
    assert push(settings, 0) == []
    known = Known(Tree(settings), place.remote)
    assert known.facts["seen"] == [0] and known.facts["owed"] == []


def test_addresses_are_checked():
    for bad in ("bucket/prefix", "s3:/bucket", "gs://bucket", "s3://UPPER/x", "relative/path"):
        with pytest.raises(SettingsError, match="remote"): load_settings(storage={"remote": bad})
    for good in ("s3://bucket", "s3://my.bucket-7/a/b", "file:///mnt/x", "/mnt/x", ""): load_settings(storage={"remote": good})


def test_a_bundle_goes_ahead_for_a_canary(place, tmp_path):
    settings = place.machine("first")
    write_json(tmp_path / "bundle" / "manifest.json", {"digest": "ab" * 32})
    (tmp_path / "bundle" / "any.onnx").write_bytes(b"x")
    assert push_bundle(settings, tmp_path / "bundle") == f"models/{'ab' * 8}/"
    assert set(there(settings)) == {f"models/{'ab' * 8}/any.onnx", f"models/{'ab' * 8}/manifest.json"}
    write_json(tmp_path / "bundle.json", {"version": 3})
    push_bundle(settings, tmp_path / "bundle")
    assert f"models/{'ab' * 8}.json" not in there(settings), "it is there already"


def test_what_is_pruned_here_is_pruned_there(place):
    settings = place.machine("first")
    batch_made(settings, 0)
    write_json(Tree(settings).models / f"{0:016x}.json", {"version": 1})
    push(settings, 0)
    assert f"models/{0:016x}.json" in there(settings)
    tree = Tree(settings)
    gone = [tree.run(0) / "features.parquet", tree.reports / "0" / "train.html"]
    for o in gone: o.unlink()
    write_json(tree.reports / "0" / "summary.json", {"state": "published", "pruned": "now", "stages": {"ingest": {}, "train": {}, "publish": {}}})
    assert mirror.remove(settings, [0], [*gone, tree.run(0) / "drift.json"]) == ["runs/0/features.parquet", "reports/0/train.html"], "what is still here stays"
    assert there(settings) == digests(settings) and json.loads(remote_of(settings).read("reports/0/summary.json")[0])["pruned"] == "now"


def test_a_new_machine_has_the_notebooks_that_a_batch_is_compared_with(place):
    settings, second = place.machine("first"), place.machine("second")
    batch_made(settings, 0)
    push(settings, 0)
    write_json(Tree(settings).incoming / "1.csv", 1)
    remote_of(settings).put("incoming/1.csv", Tree(settings).incoming / "1.csv")
    assert "incoming/1.csv" in pull(second) and not [*Tree(second).run(0).glob("*.ipynb")]
    assert pull(second, 1) == ["runs/0/5_train.ipynb"] and pull(second, 1) == []
