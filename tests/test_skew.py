"""The API's features equal training's: one encounter encoded alone, and among many, value for value."""
import json

import numpy as np
import pytest

from health_predict.cohort import can_return, outcome
from health_predict.encode import encode, encode_row
from health_predict.features import fit_encoder
from health_predict.fields import FIELDS, INPUTS, TARGETS, parse
from health_predict.schema import check_file


def rows_agree(frame, encoder, n):
    X = encode(frame, encoder)
    for i in range(n):
        assert np.array_equal(encode_row(frame.iloc[i].to_dict(), encoder), X[i]), frame.iloc[i].to_dict()


@pytest.fixture(scope="module")
def encoder(encounters):
    return json.loads(json.dumps(fit_encoder(encounters, {t: outcome(encounters.readmitted, t) for t in TARGETS})))


def test_row_equals_batch(encounters, encoder):
    rows_agree(encounters, encoder, 500)


def test_values_never_seen_are_encoded_alike(encounters, encoder):
    strange = encounters.head(60).copy()
    strange["medical_specialty"], strange["payer_code"], strange["race"] = "Robotics", None, "Martian"
    strange["diag_1"], strange["diag_2"], strange["diag_3"] = "250.93", None, "not a code"
    strange["discharge_disposition_id"] = 777
    rows_agree(strange, encoder, 60)
    assert np.isfinite(encode(strange, encoder)).all()


def test_request_as_text_equals_the_typed_row(encounters, encoder):
    """What a client sends, as JSON or as a CSV's text, becomes the same features after parsing."""
    for _, row in encounters.head(50).iterrows():
        sent = {k: "?" if row[k] is None else str(row[k]) for k in INPUTS}
        record = {k: parse(FIELDS[k], v) for k, v in sent.items()}
        assert np.array_equal(encode_row(record, encoder), encode_row(row.to_dict(), encoder))


def test_order_and_company_do_not_matter(encounters, encoder):
    X = encode(encounters, encoder)
    order = np.random.default_rng(0).permutation(len(encounters))
    assert np.array_equal(encode(encounters.iloc[order], encoder), X[order])


def test_real_encounters(data_set, tmp_path):
    from health_predict.data import read_text, unpacked
    path = unpacked(data_set, tmp_path)
    frame = check_file(path).rows
    frame = frame[can_return(frame.discharge_disposition_id)].reset_index(drop=True)
    fitted = fit_encoder(frame.head(20_000), {t: outcome(frame.readmitted.head(20_000), t) for t in TARGETS})
    rows_agree(frame.sample(3000, random_state=0).reset_index(drop=True), fitted, 3000)
    assert read_text(path).num_rows == 101_766
