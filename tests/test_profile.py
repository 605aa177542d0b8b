"""Profiles: exact, mergeable in any order, the same from a frame, a file, its chunks, or many machines; and no larger for more rows."""
import json
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from health_predict import schema
from health_predict.fields import INPUTS, NUMBERS
from health_predict.profile import (EMPTY, GROUPS, MOST_LEVELS, Counts, ProfileError, as_json, from_json, groups_of, merge, profile,
    profile_digest, profile_file, profile_files, tally)
from health_predict.settings import load_settings
from health_predict.synthetic import CHUNK_ROWS, chunks, write_cohort

LEVELS = st.one_of(st.none(), st.sampled_from(["a", "b", "x y", "é", "None", "0"]), st.text(min_size=1, max_size=3))
FIELD = st.lists(st.tuples(LEVELS, st.integers(0, GROUPS - 1)), max_size=40)


def counted(rows):
    levels = list(dict.fromkeys(o for o, _ in rows))
    return tally(np.array([levels.index(o) for o, _ in rows], dtype=np.int64), levels, np.array([g for _, g in rows], dtype=np.int64))


@given(FIELD, FIELD, FIELD)
@settings(max_examples=60, deadline=None)
def test_merging_is_associative_and_commutative_and_counts_every_row(x, y, z):
    a, b, c = map(counted, (x, y, z))
    assert (a + b) + c == a + (b + c) == counted(x + y + z) == (c + a) + b
    assert a + b == b + a
    for level, _ in x: assert a.of(level) == sum(o == level for o, _ in x)


@given(parts=st.lists(st.integers(0, 2), min_size=40, max_size=40), first=st.integers(0, 2900), p=st.lists(st.floats(0, 1), min_size=40, max_size=40))
@settings(max_examples=25, deadline=None)
def test_whole_profiles_merge_in_any_order_and_any_bracketing(encounters, parts, first, p):
    """Some of the three parts may be empty; the sum is the profile of all, and is kept and read as such."""
    rows, p, part = encounters.iloc[first:first + 40], np.array(p), np.array(parts)
    a, b, c = (profile(rows[part == k], {"any": p[part == k]}) if (part == k).any() else EMPTY for k in range(3))
    whole = profile(rows, {"any": p})
    assert (a + b) + c == a + (b + c) == (c + a) + b == merge([b, c, a]) == whole and a + b == b + a
    assert from_json(json.loads(json.dumps(as_json(a + b + c)))) == whole and (a + b + c).rows == 40


def test_any_cut_of_a_batch_gives_the_same_profile(encounters):
    p = np.random.default_rng(0).random(len(encounters))
    whole = profile(encounters, {"any": p, "30d": p / 2})
    for seed in range(5):
        rng = np.random.default_rng(seed)
        part = rng.integers(0, 7, len(encounters))
        parts = [profile(encounters[part == k], {"any": p[part == k], "30d": p[part == k] / 2}) for k in rng.permutation(7)]
        assert merge(parts) == whole and profile_digest(merge(parts)) == profile_digest(whole)
    assert merge([whole, EMPTY]) == whole == EMPTY + whole


def test_counts_are_exact(encounters):
    found = profile(encounters)
    for o in INPUTS:
        if o.startswith("diag"): continue
        wanted = encounters[o].astype(object).where(encounters[o].notna(), None).map(lambda v: "missing" if v is None else v).value_counts().to_dict()
        assert {"missing" if k is None else k: int(n) for k, n in zip(found.fields[o].levels, found.fields[o].totals, strict=True)} == wanted, o


def test_not_measured_is_not_missing(encounters):
    found = profile(encounters)
    assert found.fields["A1Cresult"].of("None") == (encounters.A1Cresult == "None").sum() > 0 == found.fields["A1Cresult"].of(None)
    assert found.fields["race"].of(None) == encounters.race.isna().sum() > 0


def test_json_round_trip_is_exact(encounters):
    whole = profile(encounters, {"any": np.full(len(encounters), .5)})
    again = from_json(json.loads(json.dumps(as_json(whole))))
    assert again == whole and profile_digest(again) == profile_digest(whole)
    assert len(json.dumps(as_json(whole))) < 300_000


@pytest.mark.parametrize("damage, said", [
    (lambda o: o.update(format=9), "format 9"),
    (lambda o: o["fields"]["age"].update(groups="AAAA"), "age: damaged"),
    (lambda o: o["fields"]["age"]["levels"].pop(), "age: damaged"),
    (lambda o: o["fields"]["age"].pop("totals"), "age: damaged"),
])
def test_damaged_profile_is_refused(encounters, damage, said):
    value = as_json(profile(encounters))
    damage(value)
    with pytest.raises(ProfileError, match=said): from_json(value)


def test_file_in_chunks_equals_frame(cohort_file, encounters, tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "CHUNK_BYTES", 50_000)
    assert profile_file(cohort_file) == (profile(encounters), 0)
    pd.read_csv(cohort_file, dtype=str, keep_default_na=False).to_parquet(tmp_path / "0.parquet")
    assert profile_file(tmp_path / "0.parquet") == (profile(encounters), 0)


def test_bad_rows_are_left_out_and_told(cohort_file, tmp_path):
    lines = cohort_file.read_text().splitlines()
    bad = [lines[1].replace("Female", "x").replace("Male", "x"), lines[2].rpartition(",")[0]]
    (tmp_path / "1.csv").write_text("\n".join([*lines, *bad, ""]))
    whole, left_out = profile_file(tmp_path / "1.csv")
    assert (whole, left_out) == (profile_file(cohort_file)[0], 2)


def test_workers_of_ray_give_what_one_pass_gives(tmp_path, encounters):
    files = [tmp_path / f"{i}.csv" for i in range(3)]
    for i, o in enumerate(files): write_cohort(o, 400, seed=i)
    found, left_out = profile_files(files, load_settings(search={"concurrency": 2}).search)
    assert (found, left_out) == (merge(profile_file(o)[0] for o in reversed(files)), 0)


def test_patients_stay_in_their_group_and_groups_are_even():
    patients = np.arange(1, 100_000)
    groups = groups_of(patients, len(patients))
    assert np.array_equal(groups, groups_of(patients[::-1], len(patients))[::-1])
    assert np.bincount(groups, minlength=GROUPS).min() > 1350
    assert set(groups_of(None, 3)) == {0}


def test_an_identifier_in_the_wrong_column_is_refused(encounters):
    many = pd.concat([encounters] * 4, ignore_index=True)
    with pytest.raises(ProfileError, match="more than 10,000 different values"): profile(many.assign(payer_code=np.arange(len(many)).astype(str)))
    assert len(many) > MOST_LEVELS


def test_numbers_out_of_range_and_broken_probabilities_are_refused(encounters):
    with pytest.raises(ProfileError, match="time_in_hospital: 99 is not between 1 and 14"): profile(encounters.assign(time_in_hospital=99))
    with pytest.raises(ProfileError, match="not between 0 and 1"): profile(encounters, {"any": np.full(len(encounters), np.nan)})


def test_memory_does_not_grow_with_rows(tmp_path, monkeypatch):
    """Arrow reads some 40 chunks ahead; more rows than that need no more memory."""
    monkeypatch.setattr(schema, "CHUNK_BYTES", 50_000)
    text = next(chunks(CHUNK_ROWS)).head(1500).to_csv(index=False).split("\n", 1)
    peaks = []
    for times in (8, 20):
        path = tmp_path / f"{times}.csv"
        path.write_text(text[0] + "\n" + text[1] * times)
        tracemalloc.start()
        found, _ = profile_file(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.rows == 1500 * times
    assert peaks[1] < 1.2 * peaks[0] and 2 * peaks[1] < path.stat().st_size


def test_spread_of_groups_tells_how_alike_a_patients_stays_are():
    """Each patient counted k times, always alike: the design effect is k; never alike: about 1 or less."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(4000), 3)
    alike, apart = np.repeat(rng.integers(0, 2, 4000), 3), rng.integers(0, 2, 12_000)
    groups = groups_of(patients, len(patients))
    of = lambda values: tally(values, ["a", "b"], groups)
    assert of(alike).effects[0] == pytest.approx(3, rel=.5) and of(apart).effects[0] < 1.6
    assert isinstance(of(alike), Counts) and set(NUMBERS) >= {"time_in_hospital"}
