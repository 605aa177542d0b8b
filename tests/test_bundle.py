"""A bundle is plain data: it loads without the libraries that made it, and not at all once a byte has changed."""
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from health_predict.bundle import MANIFEST, Bundle, BundleError
from health_predict.storage import read_json

LOAD = """
import sys
for heavy in ("pandas", "mlflow", "ray", "sklearn", "xgboost", "scipy", "matplotlib"): sys.modules[heavy] = None    # an import of it would fail
import json, pickle
pickle.load = pickle.loads = pickle.Unpickler = None    # and so would this
from health_predict.bundle import Bundle
bundle, record = Bundle(sys.argv[1], sys.argv[2]), json.loads(sys.argv[3])
print(json.dumps(bundle.predict_one(record)))
"""


@pytest.fixture
def bundle(built, tmp_path):
    """A copy of the built champion."""
    now = read_json(built.storage / "models" / "champion.json")
    shutil.copytree(built.storage / "models" / now["path"], tmp_path / "bundle")
    return tmp_path / "bundle"


def test_loads_and_scores_without_the_libraries_that_made_it(built, bundle):
    frame = pd.read_parquet(built.storage / "runs" / "0" / "cohort.parquet").head(1)
    whole, record = Bundle(bundle), json.loads(frame.drop(columns=["side", "batch", "readmitted"]).to_json(orient="records"))[0]
    done = subprocess.run([sys.executable, "-c", LOAD, str(bundle), whole.digest, json.dumps(record)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    alone = json.loads(done.stdout)
    for target, p in whole.predict_frame(frame).items(): assert abs(alone[target] - p[0]) < 1e-6


@pytest.mark.parametrize("name", ["any.onnx", "30d.onnx", "encoder.json", "model.json", "metrics.json", "model_card.md"])
def test_changed_byte_is_refused_by_name(bundle, name):
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=name): Bundle(bundle)


def test_lost_added_and_resealed_files_are_refused(bundle):
    digest = Bundle(bundle).digest
    (bundle / "more.txt").write_text("more")
    with pytest.raises(BundleError, match=r"more\.txt"): Bundle(bundle)
    (bundle / "more.txt").unlink()
    kept = (bundle / "30d.onnx").read_bytes()
    (bundle / "30d.onnx").unlink()
    with pytest.raises(BundleError, match=r"30d\.onnx"): Bundle(bundle)
    (bundle / "30d.onnx").write_bytes(kept)
    manifest = read_json(bundle / MANIFEST)
    (bundle / MANIFEST).write_text(json.dumps(manifest | {"digest": "0" * 64}))
    with pytest.raises(BundleError): Bundle(bundle)
    (bundle / MANIFEST).unlink()
    with pytest.raises(BundleError, match="manifest"): Bundle(bundle)
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError): Bundle(bundle, "f" * 64)    # whole, but not the one that was asked for
    assert Bundle(bundle, digest).digest == digest


def test_scores_are_probabilities_of_both_targets(built, bundle):
    p = Bundle(bundle).predict_frame(pd.read_parquet(built.storage / "runs" / "0" / "cohort.parquet"))
    assert set(p) == {"any", "30d"}
    for o in p.values(): assert np.isfinite(o).all() and 0 < o.min() < o.max() < 1


def test_same_model_same_bytes_in_every_process():
    """skl2onnx keeps the operator sets in a set: with the hash seed 30, "ai.onnx.ml" came first."""
    made = """
import hashlib, numpy as np
from health_predict.pack import to_onnx
from health_predict.train import FIT
X = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
print(hashlib.sha256(to_onnx(FIT["logistic"](X, X[:, 0] > 0, 0, 1, C=.01), 6)).hexdigest())
"""
    run = lambda seed: subprocess.run([sys.executable, "-c", made], env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True, text=True, check=True).stdout
    assert run("0") == run("30")
