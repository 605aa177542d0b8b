"""Finding, downloading, verifying, unpacking, cutting and uploading the encounters, against real servers."""
import functools
import gzip
import http.server
import os
import subprocess
import sys
import threading
import time
import zipfile

import pandas as pd
import pytest

from conftest import ROOT

from health_predict import data
from health_predict.data import DataError, find, is_synthetic, split, upload
from health_predict.settings import load_settings
from health_predict.storage import StorageError, Tree, write_json


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("HEALTH_PREDICT_STORAGE", str(tmp_path / "storage"))
    return lambda **given: load_settings(data={"synthetic_rows": 2000, **given})


@pytest.fixture
def server(tmp_path):
    """A web server on a folder, to download from."""
    folder = tmp_path / "www"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def packed(folder, csv, name="set.zip"):
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as z:
        z.write(csv, "diabetic_data.csv")
        z.writestr("IDS_mapping.csv", "a,b\n")
    return name


def md5(path):
    import hashlib
    return f"md5:{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}"


def test_download_is_verified_and_kept(settings, server, cohort_file, monkeypatch):
    folder, url = server
    monkeypatch.setattr(data, "download", functools.partial(data.download, url=f"{url}/{packed(folder, cohort_file)}", checksum=md5(cohort_file)))
    monkeypatch.setattr(data, "CHECKSUM", md5(cohort_file))
    found = find(settings())
    assert found.origin == "UCI, downloaded" and found.path.read_bytes() == cohort_file.read_bytes()
    assert find(settings(), offline=True).origin == "UCI, cached"
    found.path.write_text("damaged")
    with pytest.raises(DataError, match="the file is damaged or another one"): find(settings())


def test_download_with_a_wrong_checksum_leaves_nothing(settings, server, cohort_file, tmp_path):
    folder, url = server
    target = tmp_path / "cache" / "set.csv"
    with pytest.raises(DataError, match=r"md5 is .* expected"): data.download(target, f"{url}/{packed(folder, cohort_file)}", "md5:" + "0" * 32)
    (folder / "no.zip").write_text("<html>")
    with pytest.raises(DataError, match="did not answer with a zip file"): data.download(target, f"{url}/no.zip", "")
    assert list(target.parent.iterdir()) == []


def test_no_network_gives_a_synthetic_cohort_that_says_so(settings, server, monkeypatch, capsys):
    _, url = server
    monkeypatch.setattr(data, "download", functools.partial(data.download, url=f"{url}/missing.zip"))
    found = find(settings())
    assert found.synthetic and "SYNTHETIC cohort stands in" in capsys.readouterr().err
    split(settings(), found, only=[0])
    assert is_synthetic(settings(), 0)


def test_synthetic_cohort_never_follows_a_real_champion(settings):
    write_json(Tree(settings()).models / "champion.json", {"synthetic": False, "former": []})
    with pytest.raises(DataError, match="a synthetic cohort must not follow it"): find(settings(), offline=True)


@pytest.mark.parametrize("kind", ["csv", "zip", "gz", "parquet"])
def test_named_source_of_every_kind(settings, tmp_path, cohort_file, kind):
    path = tmp_path / f"own.{kind}"
    if kind == "csv": path.write_bytes(cohort_file.read_bytes())
    if kind == "zip": packed(tmp_path, cohort_file, path.name)
    if kind == "gz": path.write_bytes(gzip.compress(cohort_file.read_bytes()))
    if kind == "parquet": pd.read_csv(cohort_file, keep_default_na=False, na_values=["?"]).to_parquet(path)
    files = split(settings(source=str(path)))
    assert [o.name for o in files] == [f"{i}.csv" for i in range(6)]
    together = pd.concat([pd.read_csv(o, dtype=str, keep_default_na=False) for o in files])
    original = pd.read_csv(cohort_file, dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(together.reset_index(drop=True), original.sort_values("encounter_id", key=lambda o: o.astype(int)).reset_index(drop=True))
    assert not is_synthetic(settings(), 0)


@pytest.mark.parametrize("name, content, said", [
    ("x.zip", b"PK broken", "not a whole .zip"), ("x.csv.gz", b"\x1f\x8b broken", "not a whole .gz"),
    ("x.csv", b"a,b\n1,2\n", "no known column"), ("x.csv", b"", "is empty"),
])
def test_broken_source_is_refused(settings, tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(data.HealthPredictError, match=said): split(settings(source=str(tmp_path / name)))
    assert not Tree(settings()).incoming.exists()


def test_checksum_setting_is_held(settings, cohort_file):
    assert find(settings(source=str(cohort_file), checksum=md5(cohort_file))).path == cohort_file
    with pytest.raises(DataError, match=r"correct \[data\] checksum"): find(settings(source=str(cohort_file), checksum="sha256:" + "0" * 64))
    with pytest.raises(DataError, match="expected md5"): find(settings(source=str(cohort_file), checksum="crc:1"))


def test_batches_of_two_sources_are_not_mixed(settings, cohort_file):
    split(settings(source=str(cohort_file)), only=[0])
    with pytest.raises(DataError, match=r"holds batches cut into 0 to 5 .* 0 to 9 from"): split(settings(source=str(cohort_file), batches=9), only=[1])
    with pytest.raises(DataError, match="from synthetic"): split(settings(), data.synthetic_source(settings(), "why"), only=[1])


def test_two_files_for_one_batch_are_refused(settings, cohort_file):
    split(settings(source=str(cohort_file)), only=[0])
    (Tree(settings()).incoming / "0.parquet").touch()
    with pytest.raises(StorageError, match="came twice"): Tree(settings()).incoming_file(0)


@pytest.fixture
def s3(tmp_path, monkeypatch):
    """moto's S3 as a server process: a stand-in for AWS, which isn't reachable here."""
    log = open(tmp_path / "moto.log", "w")
    port = 5600 + os.getpid() % 300
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=log, stderr=log)
    environment = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "eu-central-1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    import boto3
    client = boto3.client("s3")
    for _ in range(100):
        try: client.create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}); break
        except Exception: time.sleep(.2)    # it is still starting
    yield client
    server.terminate()
    server.wait()
    log.close()


def test_batches_go_to_s3_and_come_from_it(settings, s3, cohort_file):
    known = settings(source=str(cohort_file))
    split(known)
    assert upload(known, "s3://bucket/ward")[0] == "s3://bucket/ward/incoming/0.csv"
    assert s3.get_object(Bucket="bucket", Key="ward/incoming/5.csv")["Body"].read() == (Tree(known).incoming / "5.csv").read_bytes()
    assert find(settings(source="s3://bucket/ward/incoming/1.csv")).path.read_bytes() == (Tree(known).incoming / "1.csv").read_bytes()
    for target, said in (("s3://nowhere/x", "nowhere"), ("bucket", "not an S3 address")):
        with pytest.raises(DataError, match=said): upload(known, target)
    with pytest.raises(DataError, match="check the address"): find(settings(source="s3://bucket/missing.csv"))



@pytest.mark.parametrize("environment, said", [({}, "1 skipped"), ({"TEST_NOTHING_SKIPPED": "1"}, "nothing may be: Skipped: not at hand: the UCI data set"),
                                               ({"TEST_DATA_SET": "nowhere.zip"}, "TEST_DATA_SET is 'nowhere.zip', where nothing is")])
def test_what_is_not_at_hand_is_skipped_in_words_and_never_in_ci(environment, said):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TEST_") and not k.startswith("PYTEST_")}
    program = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-o", "addopts=-rs", "-k", "real_data_set", "tests/test_schema.py"]
    done = subprocess.run(program, env=kept | environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert said in done.stdout and done.returncode == (0 if not environment else 1), done.stdout + done.stderr
