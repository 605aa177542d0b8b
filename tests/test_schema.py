"""Files of all kinds of badness, answered with what is wrong and what to do."""
import gzip
import zipfile

import pandas as pd
import pytest

from health_predict.fields import FIELDS
from health_predict.schema import Checked, FileRefused, check_file, check_header, not_utf8, refuse, with_rows


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
    (lambda l: [o.replace(b",", b"\t") for o in l], "line 1: columns are separated by '\\t'; save it as CSV with commas"),
    (lambda l: [l[0].replace(b"gender", b"gen;der"), *l[1:]], "missing 'gender'; unknown 'gen;der'"),
    (lambda l: [b"hello\n"], "no known column; is the header line missing"),
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


def test_a_file_that_was_cut_off_is_told_with_what_is_left_of_its_last_row(tmp_path, lines):
    path = write(tmp_path, [*lines[:-1], lines[-1][:40]])
    with pytest.raises(FileRefused) as e: check_file(path)
    left = lines[-1][:40].count(b",") + 1
    assert str(e.value) == f"{path}, line 201: the file ends in the middle of a row ({left} of 50 values); the transfer was cut off, send it again"


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


def test_bounds_of_refusal_are_allowed_themselves(tmp_path, lines):
    for i in range(1, 11): lines[i] = changed(lines[i], age="old")
    lines[11] = changed(lines[11], gender="?")
    checked = check_file(write(tmp_path, lines))
    assert (checked.quarantined, checked.bad_share) == (11, .055)
    refuse(checked, "7.csv", .055, 189)
    with pytest.raises(FileRefused) as e: refuse(checked, "7.csv", .0549, 1)
    assert str(e.value) == ("7.csv: 11 of 200 rows are bad (5.5%; at most 5.5% may be, [ingest] max_bad_share). The commonest finding, 10 times: age 'old' "
                            "is not a bracket of years: '[0-10)' … '[90-100)'")
    with pytest.raises(FileRefused) as e: refuse(checked, "7.csv", .06, 190)
    assert str(e.value) == "7.csv: 189 good rows; at least 190 are needed ([ingest] min_rows). Was the whole batch sent?"
    nothing = Checked(checked.rows[:0], checked.findings[:0], 0)
    assert (nothing.quarantined, nothing.bad_share) == (0, 0)
    for i in range(1, 21): lines[i] = changed(lines[i], **({"gender": "?", "age": "[0-10)"} if i < 11 else {"gender": "Male", "age": "old"}))
    with pytest.raises(FileRefused, match="The commonest finding, 10 times: gender is missing"): refuse(check_file(write(tmp_path, lines)), "7.csv", .05, 1)
    for i in range(1, 201): lines[i] = b"\n"
    empty = check_file(write(tmp_path, lines))
    with pytest.raises(FileRefused, match=r"200 of 200 rows are bad .* 200 times: row is an empty line"): refuse(empty, "7.csv", .05, 1)


def test_findings_are_told_line_by_line(tmp_path, lines):
    """Each bad value of a row; a row of the wrong length and an empty one once; and the text of the row beside them, to be corrected."""
    lines[3] = changed(lines[3], age="old", gender="?", time_in_hospital="99")
    lines[5], lines[7] = b"\n", b"1,2,3," + b"x" * 300 + b"\n"
    lines.append(lines[9])
    lines += [changed(lines[i], encounter_id="123456789" + str(i), readmitted=v) for i, v in ((10, "SOON "), (11, "X"))]    # told as they are
    path = write(tmp_path, lines)
    found = check_file(path).findings
    told = [("age", "old", "'old' is not a bracket of years"), ("gender", "?", "is missing"), ("time_in_hospital", "99", "99 is not between 1 and 14")]
    assert [(o.line, o.column, o.value) for o in found.itertuples()] == [*((4, c, v) for c, v, _ in sorted(told, key=lambda o: list(FIELDS).index(o[0]))),
        (6, "", ""), (8, "", lines[7][:200].decode()), (202, "encounter_id", changed_id(lines[9])), (203, "readmitted", "SOON "), (204, "readmitted", "X")]
    assert all(next(r for c, _, r in told if c == o.column) in o.reason for o in found.itertuples() if o.line == 4)
    assert list(found.reason)[3:6] == ["is an empty line", f"has 4 values, not {len(FIELDS)}", "stands in this file already"]
    shown = with_rows(found, path)
    assert list(shown.columns) == ["line", "column", "value", "reason", "row"] and list(shown.index) == list(range(len(found)))
    assert list(shown.row) == [lines[o - 1].decode().rstrip("\n") for o in found.line]
    write(tmp_path, [b"\xef\xbb\xbf", *lines])
    assert with_rows(found, path).row[0] == shown.row[0]


def test_every_bad_value_of_a_row_is_told_in_the_order_of_the_columns(tmp_path, lines):
    strict = [k for k, o in FIELDS.items() if o.kind in ("integer", "code", "closed", "label")]
    lines[3] = changed(lines[3], **dict.fromkeys(strict, "bad"))
    found = check_file(write(tmp_path, lines)).findings
    assert len(strict) > 20 and list(found.column) == strict and set(found.line) == {4} and list(found.index) == list(range(len(strict)))


def test_findings_of_many_rows_stay_in_order(tmp_path, lines):
    """By line, then by column: also where there are so many that a sort which isn't stable would mix them."""
    columns = ("gender", "time_in_hospital", "insulin", "readmitted")
    path = write(tmp_path, [lines[0], *(changed(o, **{k: f"bad {n}" for k in columns}) for n, o in enumerate(lines[1:], 1))])
    checked = check_file(path)
    assert [(o.line, o.column) for o in checked.findings.itertuples()] == [(n, k) for n in range(2, 202) for k in columns]
    with pytest.raises(FileRefused, match="The commonest finding, 1 times: gender 'bad 1' is not"): refuse(checked, path, .05, 1)


def test_rows_have_the_columns_of_the_table(tmp_path, lines):
    assert list(check_file(write(tmp_path, lines)).rows.columns) == list(FIELDS)


def test_texts_stay_as_they_came_and_numbers_are_whole(tmp_path, lines):
    """Codes look like numbers: 038 is not 38, and 250.00 is not 250."""
    lines[1:] = [changed(o, diag_1="038", diag_2="250.00", payer_code="007") for o in lines[1:]]
    lines[1] = changed(lines[1], age="old")
    rows = check_file(write(tmp_path, lines)).rows
    assert rows[["diag_1", "diag_2", "payer_code"]].drop_duplicates().to_numpy().tolist() == [["038", "250.00", "007"]]
    assert {str(rows[k].dtype) for k, o in FIELDS.items() if o.kind in ("identifier", "integer", "code")} == {"int64"}


def changed_id(line): return line.split(b",")[list(FIELDS).index("encounter_id")].decode()


def test_rows_of_parquet_are_told_by_their_number(tmp_path, lines, monkeypatch):
    frame = pd.read_csv(write(tmp_path, lines), dtype=str, keep_default_na=False)
    frame.loc[1, "age"], frame.loc[2, "race"] = "old", None
    frame.to_parquet(tmp_path / "7.parquet")
    checked = check_file(tmp_path / "7.parquet")
    assert [(o.line, o.column, o.value) for o in checked.findings.itertuples()] == [(2, "age", "old")] and checked.rows_in == 200
    assert with_rows(checked.findings, tmp_path / "7.parquet").row.tolist() == [",".join(frame.iloc[1])]
    assert with_rows(checked.findings.assign(line=3), tmp_path / "7.parquet").row[0] == ",".join("?" if o is None else o for o in frame.iloc[2])
    frame.drop(columns="age").to_parquet(tmp_path / "8.parquet")
    with pytest.raises(FileRefused, match=r"8\.parquet, line 1: .*missing 'age'"): check_file(tmp_path / "8.parquet")
    assert with_rows(checked.findings[:0], tmp_path / "7.parquet").empty
    frame.loc[170, "gender"] = "?"
    frame.to_parquet(tmp_path / "9.parquet", row_group_size=50)
    assert list(check_file(tmp_path / "9.parquet").findings.line) == [2, 171]
    monkeypatch.setattr("health_predict.schema.CHUNK_ROWS", 30)
    assert list(check_file(tmp_path / "9.parquet").findings.line) == [2, 171]


@pytest.mark.parametrize("names, said", [
    (list(FIELDS)[1:], "line 1: wrong header: missing 'encounter_id'; expected the 50 columns of the data set"),
    ([*FIELDS, "sex"], "line 1: wrong header: unknown 'sex'; expected the 50 columns of the data set"),
    ([*list(FIELDS)[5:], "sex"], "wrong header: missing " + ", ".join(repr(o) for o in list(FIELDS)[:5]) + "; unknown 'sex'; expected"),
    (list(FIELDS)[6:], "wrong header: missing " + ", ".join(repr(o) for o in list(FIELDS)[:5]) + " …; expected"),
    ([*FIELDS, "race", "age"], "line 1: column 'age' stands twice"),
    (["1", "2"], f"line 1: no known column; is the header line missing? It starts '1,2', expected {','.join(FIELDS)[:60]!r} …"),
    (["x" * 100], f"It starts {'x' * 60!r}, expected"),
])
def test_wrong_header_is_told_by_name(names, said):
    with pytest.raises(FileRefused) as e: check_header("7.csv", names)
    assert said in str(e.value) and str(e.value).startswith("7.csv, line 1: ")


def test_columns_may_come_in_any_order_and_in_quotes(tmp_path, lines):
    back = [b",".join(reversed(o.rstrip(b"\n").split(b","))) + b"\n" for o in lines]
    back[0] = b", ".join(b'"' + o + b'"' for o in back[0].rstrip().split(b",")) + b"\r\n"
    found = check_file(write(tmp_path, back, "8.csv"))
    pd.testing.assert_frame_equal(found.rows, check_file(write(tmp_path, lines)).rows)
    lines[0] = lines[0].replace(b"gender", b"XgenderX")
    with pytest.raises(FileRefused, match="missing 'gender'; unknown 'XgenderX'"): check_file(write(tmp_path, lines))


def test_a_double_is_found_in_a_later_chunk_too(tmp_path, lines, monkeypatch):
    monkeypatch.setattr("health_predict.schema.CHUNK_BYTES", 20_000)
    checked = check_file(write(tmp_path, [*lines, lines[1], lines[150]]))
    assert list(checked.findings.line) == [202, 203] and set(checked.findings.reason) == {"stands in this file already"} and len(checked.rows) == 200
    assert list(checked.rows.index) == list(range(200))


def test_a_bad_row_leaves_its_number_to_a_later_good_one(tmp_path, lines):
    """An encounter counts as taken in only where its row was good."""
    lines.append(lines[4])
    lines[4] = changed(lines[4], age="old")
    assert list(check_file(write(tmp_path, lines)).findings.line) == [5]


@pytest.mark.parametrize("content, said", [
    (b"", "{} is empty; send the batch again"), (b"\xfe\xff\0a", "{} is UTF-16 text; save it as UTF-8"),
    (b"\xff\xfea\0", "{} is UTF-16 text; save it as UTF-8"), (b"abc\0d", "{} is not a text file (it starts b'abc\\x00')"),
    (b"PK\x03\x04", "{} is not a text file (it starts b'PK\\x03\\x04'); export the batch as CSV, in UTF-8"),
    (b"r\xe4ce\n", "{}, line 1 is not UTF-8; save the file as UTF-8"),
])
def test_what_is_no_csv_is_told_from_its_first_bytes(tmp_path, content, said):
    (tmp_path / "7.csv").write_bytes(content)
    with pytest.raises(FileRefused) as e: check_file(tmp_path / "7.csv")
    assert str(e.value).startswith(said.format(tmp_path / "7.csv"))


def test_other_encodings_are_told_by_line_and_byte(tmp_path, lines):
    lines[9] = lines[9].replace(b"Female", b"F\xe9male").replace(b"Male", b"M\xe4le")
    with pytest.raises(FileRefused) as e: check_file(write(tmp_path, lines))
    byte = "0xe9" if b"\xe9" in lines[9] else "0xe4"
    assert str(e.value) == f"{tmp_path / '7.csv'}, line 10: byte {byte} is not UTF-8 (Windows or Latin-1 text?); save the file as UTF-8"
    half = [*lines[:9], lines[10].rstrip() + b"\xc3"]    # of a character, at the end
    with pytest.raises(FileRefused, match="is not UTF-8"): check_file(write(tmp_path, half))
    assert str(not_utf8(write(tmp_path, lines[:9]))) == f"{tmp_path / '7.csv'} is not UTF-8; save it as UTF-8"    # it was mended meanwhile


def test_parquet_is_read_as_the_csv_is(tmp_path, lines):
    path = write(tmp_path, lines)
    pd.read_csv(path, keep_default_na=False, na_values=["?"]).to_parquet(tmp_path / "7.parquet")
    pd.testing.assert_frame_equal(check_file(tmp_path / "7.parquet").rows, check_file(path).rows)
    (tmp_path / "8.parquet").write_bytes((tmp_path / "7.parquet").read_bytes()[:1000])
    with pytest.raises(FileRefused, match=r"not a whole Parquet file \(Parquet magic bytes not found.*; send it again"): check_file(tmp_path / "8.parquet")


def test_large_file_is_read_in_chunks(tmp_path, lines, monkeypatch):
    monkeypatch.setattr("health_predict.schema.CHUNK_BYTES", 20_000)
    whole = write(tmp_path, lines)
    lines[150] = changed(lines[150], age="old")
    lines[160] = b"short\n"
    checked = check_file(write(tmp_path, lines, "8.csv"))
    assert list(checked.findings.line) == [151, 161] and checked.rows_in == 200
    many = [*lines[:100], *[b"short\n"] * 5000, *lines[100:]]    # several chunks of nothing else
    checked = check_file(write(tmp_path, many, "9.csv"))
    assert (checked.rows_in, checked.quarantined) == (5200, 5002) and list(checked.findings.line) == [*range(101, 5101), 5151, 5161]
    path = write(tmp_path, [*lines[:100], changed(lines[100], diag_1="x" * 50_000)], "10.csv")    # one row of more than a chunk
    with pytest.raises(FileRefused) as e: check_file(path)
    assert str(e.value).startswith(f"{path}: ")
    assert list(checked.rows.encounter_id) == [e for i, e in enumerate(check_file(whole).rows.encounter_id) if i not in (149, 159)]


def test_real_data_set_is_clean(tmp_path, data_set):
    packing = data_set.suffix
    with (zipfile.ZipFile(data_set).open("diabetic_data.csv") if packing == ".zip" else gzip.open(data_set) if packing == ".gz" else open(data_set, "rb")) as f:
        (tmp_path / "0.csv").write_bytes(f.read())
    checked = check_file(tmp_path / "0.csv")
    assert (len(checked.rows), checked.quarantined, checked.rows.patient_nbr.nunique()) == (101_766, 0, 71_518)
    assert (checked.rows.A1Cresult == "None").sum() == 84_748    # "None" is a level, not a hole
