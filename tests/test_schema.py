"""Files of all kinds of badness, answered with what is wrong and what to do."""
import gzip
import zipfile

import pandas as pd
import pytest

from health_predict.fields import FIELDS
from health_predict.schema import FileRefused, check_file, refuse


@pytest.fixture
def lines(cohort_file):
    return cohort_file.read_bytes().splitlines(keepends=True)[:201]


def write(tmp_path, lines, name="7.csv"):
    (tmp_path / name).write_bytes(b"".join(lines))
    return tmp_path / name


def changed(line, **values):
    cells = dict(zip(FIELDS, line.rstrip().split(b","), strict=True)) | {k: v.encode() for k, v in values.items()}
    return b",".join(cells.values()) + b"\n"


@pytest.mark.parametrize("column, value, reason", [
    ("age", "[95-105)", "is not a bracket of years: '[0-10)' … '[90-100)'"), ("age", "banana", "is not a bracket of years"),
    ("time_in_hospital", "five", "is not a whole number from 1 to 14"), ("time_in_hospital", "5.5", "is not a whole number"),
    ("time_in_hospital", "99", "is not between 1 and 14"),
    ("num_medications", "-1", "is not between 0 and 300"), ("gender", "?", "is missing"),
    ("insulin", "Sometimes", "is not one of 'No', 'Down', 'Steady', 'Up'"),
    ("readmitted", "", "is missing"), ("encounter_id", "12a", "is not a whole number"), ("number_inpatient", "1e3", "is not a whole number"),
    ("A1Cresult", ">9", "is not one of"),
])
def test_bad_value_goes_to_quarantine_with_its_line(tmp_path, lines, column, value, reason):
    lines[11] = changed(lines[11], **{column: value})
    checked = check_file(write(tmp_path, lines))
    assert (checked.rows_in, len(checked.rows), checked.quarantined) == (200, 199, 1)
    finding = checked.findings.iloc[0]
    assert (finding.line, finding.column, finding.value) == (12, column, value) and reason in finding.reason


def test_open_fields_take_new_values_as_data(tmp_path, lines):
    lines[5] = changed(lines[5], race="Martian", medical_specialty="Robotics", diag_1="Z99", discharge_disposition_id="77")
    checked = check_file(write(tmp_path, lines))
    assert checked.quarantined == 0 and checked.rows.loc[4, "medical_specialty"] == "Robotics"


def test_doubled_encounters_keep_the_first(tmp_path, lines):
    checked = check_file(write(tmp_path, [*lines, lines[3]]))
    assert (checked.rows_in, len(checked.rows)) == (201, 200)
    assert list(checked.findings.line) == [202] and checked.findings.reason[0] == "stands in this file already"


def test_encounters_of_earlier_batches_are_set_aside(tmp_path, lines):
    path = write(tmp_path, lines)
    ids = check_file(path).rows.encounter_id
    checked = check_file(path, frozenset(ids[:10].tolist()))
    assert checked.quarantined == 10 and set(checked.findings.reason) == {"came in an earlier batch"}


def test_lines_of_wrong_length_do_not_shift_the_others(tmp_path, lines):
    lines[4], lines[9] = b"1,2,3\n", b"\n"
    lines[20] = changed(lines[20], age="old")
    checked = check_file(write(tmp_path, lines))
    assert list(checked.findings.line) == [5, 10, 21]
    assert checked.rows_in == 200 == len(checked.rows) + checked.quarantined


@pytest.mark.parametrize("make, said", [
    (lambda l: [], "is empty"),
    (lambda l: [b"  \n"], "is empty"),
    (lambda l: l[:1], "has a header but no rows"),
    (lambda l: l[1:], "no known column; is the header line missing"),
    (lambda l: [o.replace(b",", b";") for o in l], "line 1: columns are separated by ';'; save it as CSV with commas"),
    (lambda l: [l[0].replace(b"gender", b"sex"), *l[1:]], "missing 'gender'; unknown 'sex'"),
    (lambda l: [l[0].replace(b"race", b"gender"), *l[1:]], "column 'gender' stands twice"),
    (lambda l: [*l[:-1], l[-1][:40]], "line 201: the file ends in the middle of a row"),
    (lambda l: [*l[:9], l[9].replace(b"Female", b"F\xe9male").replace(b"Male", b"M\xe4le"), *l[10:]], "line 10: byte 0xe"),
    (lambda l: [b"\x89PNG\r\n\x1a\n\0\0"], "is not a text file"),
    (lambda l: [b"PK\x03\x04 zip"], "is not a text file"),
    (lambda l: ["".join(o.decode() for o in l).encode("utf-16")], "is UTF-16 text"),
    (lambda l: [*l[:9], b'"' + l[9], *l[10:]], "never closed"),
])
def test_hopeless_file_is_refused_whole(tmp_path, lines, make, said):
    path = write(tmp_path, make(lines))
    with pytest.raises(FileRefused) as e: check_file(path)
    assert str(path) in str(e.value) and said in str(e.value)


def test_byte_order_mark_and_windows_line_ends_are_fine(tmp_path, lines):
    checked = check_file(write(tmp_path, [b"\xef\xbb\xbf", *(o.replace(b"\n", b"\r\n") for o in lines)]))
    assert (checked.rows_in, checked.quarantined) == (200, 0)


def test_last_line_without_newline_is_whole(tmp_path, lines):
    lines[-1] = lines[-1].rstrip()
    assert len(check_file(write(tmp_path, lines)).rows) == 200


def test_too_many_bad_rows_refuse_the_file(tmp_path, lines):
    for i in range(1, 30): lines[i] = changed(lines[i], age="old")
    path = write(tmp_path, lines)
    with pytest.raises(FileRefused, match=r"29 of 200 rows are bad \(14.5%; at most 5.0% may be.*29 times: age 'old'"): refuse(check_file(path), path, .05, 1)


def test_parquet_is_read_as_the_csv_is(tmp_path, lines):
    path = write(tmp_path, lines)
    pd.read_csv(path, keep_default_na=False, na_values=["?"]).to_parquet(tmp_path / "7.parquet")
    pd.testing.assert_frame_equal(check_file(tmp_path / "7.parquet").rows, check_file(path).rows)
    (tmp_path / "8.parquet").write_bytes((tmp_path / "7.parquet").read_bytes()[:1000])
    with pytest.raises(FileRefused, match="not a whole Parquet file"): check_file(tmp_path / "8.parquet")


def test_large_file_is_read_in_chunks(tmp_path, lines, monkeypatch):
    monkeypatch.setattr("health_predict.schema.CHUNK_BYTES", 20_000)
    whole = write(tmp_path, lines)
    lines[150] = changed(lines[150], age="old")
    lines[160] = b"short\n"
    checked = check_file(write(tmp_path, lines, "8.csv"))
    assert list(checked.findings.line) == [151, 161]
    assert list(checked.rows.encounter_id) == [e for i, e in enumerate(check_file(whole).rows.encounter_id) if i not in (149, 159)]


def test_real_data_set_is_clean(tmp_path, data_set):
    packing = data_set.suffix
    with (zipfile.ZipFile(data_set).open("diabetic_data.csv") if packing == ".zip" else gzip.open(data_set) if packing == ".gz" else open(data_set, "rb")) as f:
        (tmp_path / "0.csv").write_bytes(f.read())
    checked = check_file(tmp_path / "0.csv")
    assert (len(checked.rows), checked.quarantined, checked.rows.patient_nbr.nunique()) == (101_766, 0, 71_518)
    assert (checked.rows.A1Cresult == "None").sum() == 84_748    # "None" is a level, not a hole
