"""Injected drift: known truth, the same by the same seed, valid values, and an outcome that stays flipped to the end."""
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from health_predict.cohort import outcome
from health_predict.drift import compare
from health_predict.fields import FIELDS, INPUTS, LABEL
from health_predict.inject import COURSES, KINDS, InjectError, changed, course, inject, inject_course, write_encounters
from health_predict.profile import profile
from health_predict.schema import check_file
from health_predict.settings import load_settings


@pytest.mark.parametrize("kind", KINDS)
def test_truth_is_what_changed_and_every_value_is_valid(encounters, tmp_path, kind):
    after, truth = inject(encounters, kind, .4, seed=3)
    found = changed(encounters, after)
    assert set(truth.fields) == set(found) and truth.rows == len(encounters) == len(after)
    assert set(truth.encounters) == set(encounters.encounter_id[np.logical_or.reduce(list(found.values()))])
    assert not {"encounter_id", "patient_nbr"} & set(truth.fields) and (LABEL in truth.fields) == (kind in ("flip", "surge", "hospital"))
    write_encounters(tmp_path / "1.csv", after)
    checked = check_file(tmp_path / "1.csv")
    assert checked.quarantined == 0 and changed(checked.rows, after) == {}
    assert list(after) == list(encounters) and (after.dtypes == encounters.dtypes).all()


@given(st.sampled_from(sorted(KINDS)), st.integers(0, 2**32), st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_same_seed_same_drift_and_the_original_is_left_alone(kind, seed, strength):
    frame = test_same_seed_same_drift_and_the_original_is_left_alone.frame
    before = frame.copy()
    (one, first), (two, second) = inject(frame, kind, strength, seed), inject(frame, kind, strength, seed)
    assert first == second and one.equals(two) and frame.equals(before)
    if strength == 0: assert one.equals(frame) and not first.encounters


@pytest.fixture(autouse=True)
def small(encounters):
    test_same_seed_same_drift_and_the_original_is_left_alone.frame = encounters.head(400)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"shift", "scale"}))
def test_stronger_drift_changes_the_rows_of_weaker_drift_and_more(encounters, kind):
    weak, strong = (set(inject(encounters, kind, o)[1].encounters) for o in (.2, .7))
    assert weak < strong


def test_flipped_outcomes_survive_the_file_and_reach_both_targets(encounters, tmp_path):
    after, truth = inject(encounters, "flip", .5, field="gender", level="Male")
    write_encounters(tmp_path / "1.csv", after)
    back = check_file(tmp_path / "1.csv").rows
    turned = encounters.encounter_id.isin(truth.encounters).to_numpy()
    assert (encounters.gender[turned] == "Male").all() and truth.fields == (LABEL,)
    assert ((outcome(back[LABEL], "any") != outcome(encounters[LABEL], "any")) == turned).all()
    assert (outcome(back[LABEL], "30d") != outcome(encounters[LABEL], "30d")).any()


def test_flipped_outcomes_move_no_input(encounters):
    after, _ = inject(encounters, "flip", 1.)
    assert compare(profile(encounters), profile(after), load_settings().drift)["share"] == 0


def test_formulary_moves_users_to_the_other_drug(encounters):
    after, _ = inject(encounters, "formulary", 1.)
    was, now = ({o: (f[o] != "No").sum() for o in ("rosiglitazone", "pioglitazone")} for f in (encounters, after))
    both = ((encounters.rosiglitazone != "No") & (encounters.pioglitazone != "No")).sum()
    assert now["rosiglitazone"] == 0 and now["pioglitazone"] == was["pioglitazone"] + was["rosiglitazone"] - both


def test_shift_moves_the_mean_by_standard_deviations(encounters):
    after, _ = inject(encounters, "shift", .5, field="num_medications")
    assert (after.num_medications.mean() - encounters.num_medications.mean()) / encounters.num_medications.std() == pytest.approx(.5, abs=.02)
    after, _ = inject(encounters, "shift", 50, field="time_in_hospital")
    assert (after.time_in_hospital == FIELDS["time_in_hospital"].high).all()


@pytest.mark.parametrize("name", COURSES)
def test_courses_run_from_nothing_to_all(name):
    factors = course(name, 12, start=2, length=4)
    assert len(factors) == 12 and factors[:2] == [0, 0] and max(factors) > .7 and all(0 <= o <= 1 for o in factors)


def test_a_course_gives_each_batch_its_strength(encounters):
    frames = [encounters.iloc[i * 500:(i + 1) * 500] for i in range(4)]
    made = list(inject_course(frames, "missing", .8, course("gradual", 4, start=1, length=2)))
    assert [t.strength for _, t in made] == [0, .4, .8, .8]
    assert [len(f) for f, _ in made] == [500] * 4
    assert len(made[0][1].encounters) == 0 < len(made[1][1].encounters) < len(made[2][1].encounters)


@pytest.mark.parametrize("kind, strength, where, said", [
    ("drift", .5, {}, "kinds are shift"), ("shift", -1, {}, "0 or more"), ("missing", 2, {}, "a share from 0 to 1"), ("missing", float("nan"), {}, "share"),
    ("missing", .5, {"field": "age"}, "age is always recorded; expected one of race"), ("swap", .5, {"field": "race", "by": "x"}, "swap takes no by"),
    ("swap", .5, {"field": "age", "to": "banana", "level": "[0-10)"}, "'banana' is not a bracket"), ("shift", .5, {"field": "race"}, "no amounts"),
    ("new", .5, {"field": "medical_specialty", "to": "Cardiology"}, "occurs already"), ("formulary", .5, {"drug": "race"}, "is not a drug"),
    ("scale", .5, {"field": "nothing"}, "no field 'nothing'"),
])
def test_what_cannot_be_made_is_refused_with_a_remedy(encounters, kind, strength, where, said):
    with pytest.raises(InjectError, match=said.replace("(", r"\(")): inject(encounters, kind, strength, **where)


def test_command_line_writes_the_batch_and_its_truth(cohort_file, tmp_path):
    from typer.testing import CliRunner
    from health_predict.cli import app
    done = CliRunner().invoke(app, ["inject", str(cohort_file), "--kind", "swap", "--strength", "0.5", "--where", "field=insulin", "--where", "to=Up",
                                    "--out", str(tmp_path / "1.csv")])
    truth = json.loads((tmp_path / "1.truth.json").read_text())
    assert done.exit_code == 0 and f"swap in {len(truth['encounters']):,} of 3,000" in done.stdout
    assert truth["fields"] == ["insulin"] and check_file(tmp_path / "1.csv").quarantined == 0
    done = CliRunner().invoke(app, ["inject", str(cohort_file), "--kind", "swap", "--where", "insulin", "--out", str(tmp_path / "2.csv")])
    assert "expected name=value" in str(done.exception) and set(INPUTS)
