"""What holds of every file, every encounter and every request, not only of those that somebody thought of."""
import csv
import io
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from health_predict.cohort import outcome
from health_predict.compiled import Compiled, rows as many
from health_predict.encode import encode, encode_row
from health_predict.features import fit_encoder
from health_predict.fields import EXCLUDED_DISPOSITIONS, FIELDS, INPUTS, TARGETS, FieldError, Rule, parse
from health_predict.request import RequestRefused, check, check_rows
from health_predict.schema import FileRefused, check_file

TEXTS = st.text(max_size=12)


def valid(rule: Rule) -> st.SearchStrategy:
    """Values that a field may hold, as text or number."""
    if rule.levels: found = st.sampled_from(rule.levels)
    elif rule.kind in ("integer", "code", "identifier"): found = st.integers(rule.low, min(rule.high, 2**62))
    else: found = st.sampled_from(("250.02", "428", "V27", "E888", "nonsense", "Cardiology", "Caucasian", "7"))
    if rule.name == "discharge_disposition_id": found = found.filter(lambda o: o not in EXCLUDED_DISPOSITIONS)
    return found if rule.required else found | st.just("?")


ENCOUNTERS = st.fixed_dictionaries({o: valid(FIELDS[o]) for o in INPUTS})
ROWS = st.lists(st.fixed_dictionaries({o: valid(r) for o, r in FIELDS.items()}), min_size=1, max_size=8)
STRANGE = st.one_of(TEXTS, st.integers(), st.floats(allow_nan=False), st.booleans(), st.none(), st.lists(st.integers(), max_size=2),
                    st.dictionaries(TEXTS, st.integers(), max_size=2))


def write(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as f:
        out = csv.DictWriter(f, FIELDS, lineterminator="\n")
        out.writeheader()
        out.writerows(rows)


@pytest.fixture(scope="module")
def file(tmp_path_factory): return tmp_path_factory.mktemp("property") / "1.csv"


@pytest.fixture(scope="module")
def encoder(encounters):
    return json.loads(json.dumps(fit_encoder(encounters, {t: outcome(encounters.readmitted, t) for t in TARGETS})))


@given(rows=ROWS, column=st.sampled_from(sorted(FIELDS)), value=TEXTS, at=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_no_row_is_lost_whatever_stands_in_a_cell(file, rows, column, value, at):
    at %= len(rows)
    rows = [{**o, "encounter_id": i + 1} for i, o in enumerate(rows)]
    rows[at] = rows[at] | {column: value}
    write(file, rows)
    try: checked = check_file(file)
    except FileRefused as e:    # a file whose lines don't add up is refused whole, and says why
        assert str(file) in str(e)
        return
    assert checked.rows_in == len(checked.rows) + checked.quarantined
    bad = set(checked.findings.line - 2)
    assert bad <= {at} or column == "encounter_id"
    try: good = parse(FIELDS[column], value); wrong = False
    except FieldError: wrong = True
    if not wrong and column != "encounter_id" and not bad:
        kept = checked.rows[column].iloc[at]
        assert kept == good or (good is None and pd.isna(kept))
    assert checked.findings.reason.str.len().gt(0).all()


@given(content=st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_read_or_refused_in_words(file, content):
    file.write_bytes(content)
    try: check_file(file)
    except FileRefused as e: assert str(file) in str(e)


@given(content=st.binary(max_size=60), rows=ROWS)
@settings(max_examples=60, deadline=None)
def test_any_bytes_behind_a_good_header_are_read_or_refused_in_words(file, content, rows):
    write(file, [{**o, "encounter_id": i + 1} for i, o in enumerate(rows)])
    with open(file, "ab") as f: f.write(content)
    try: checked = check_file(file)
    except FileRefused as e: assert str(file) in str(e)
    else: assert checked.rows_in == len(checked.rows) + checked.quarantined


@given(st.lists(ENCOUNTERS, min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_training_and_api_see_the_same_features(encoder, sent):
    records = [check(o)[0] for o in sent]
    X = encode(pd.DataFrame(records), encoder)
    compiled = Compiled(encoder)
    assert np.isfinite(X).all()
    assert np.array_equal(many(compiled, {k: [o[k] for o in records] for k in INPUTS})[0], X.astype(np.float32))
    for record, features in zip(records, X, strict=True):
        assert np.array_equal(encode_row(record, encoder), features)
        assert np.array_equal(compiled.row(record)[0][0], features.astype(np.float32))


@given(ENCOUNTERS)
@settings(max_examples=100, deadline=None)
def test_json_and_text_are_the_same_request(sent):
    hyphens = {k.replace("_", "-"): v for k, v in sent.items()}
    text = next(csv.DictReader(io.StringIO("\n".join([",".join(sent), ",".join(str(v) for v in sent.values())]))))
    assert check(sent)[0] == check(hyphens)[0] == check(text, text=True)[0]


@given(encounter=ENCOUNTERS, name=st.sampled_from(INPUTS), value=STRANGE)
@settings(max_examples=150, deadline=None)
def test_any_value_is_taken_or_refused_by_name_alone_and_in_a_batch(encounter, name, value):
    sent = encounter | {name: value}
    columns, places, _, refusals = check_rows([encounter, sent])
    try: record, _ = check(sent)
    except RequestRefused as e:
        assert {o["loc"][-1] for o in e.detail} == {name} and all(o["msg"].startswith(name) for o in e.detail)
        assert places == [0] and refusals[1].detail == e.detail
    else: assert places == [0, 1] and {k: columns[k][1] for k in INPUTS} == {k: record[k] for k in INPUTS}
