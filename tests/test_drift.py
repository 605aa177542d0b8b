"""Drift: the statistics are the textbooks', the alarms are seldom false, what matters is found, and what can't be told is an error."""
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import binom, chi2_contingency, ks_2samp, wasserstein_distance

from health_predict.cohort import mix
from health_predict.data import unpacked
from health_predict.domain import DomainError, tell_apart
from health_predict.drift import (DriftError, association, benjamini_hochberg, bin_numbers, chi_square_p, compare, level_p, number_distances, pair,
    severity, share_distances)
from health_predict.fields import INPUTS
from health_predict.inject import inject
from health_predict.profile import GROUPS, Profile, profile, tally
from health_predict.schema import check_file
from health_predict.settings import SettingsError, load_settings
from health_predict.synthetic import write_cohort

RULE = load_settings().drift
AMOUNTS = st.lists(st.integers(0, 60), min_size=2, max_size=80)
COUNTS = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=2, max_size=12)


def named(found, name): return next(o for o in found["features"] if o["name"] == name)


def flagged(found): return [o["name"] for o in found["features"] if o["flagged"]]


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    """20,000 encounters, of which a third are of patients who come more than once."""
    path = tmp_path_factory.mktemp("population") / "all.csv"
    write_cohort(path, 20_000)
    return check_file(path).rows


# The numbers

@given(AMOUNTS, AMOUNTS)
@settings(max_examples=80, deadline=None)
def test_distances_of_numbers_equal_scipys(x, y):
    values = np.arange(61)
    a, b = (np.bincount(o, minlength=61) for o in (x, y))
    found = number_distances(values, a, b)
    assert found["ks"] == pytest.approx(ks_2samp(x, y).statistic, abs=1e-12)
    assert found["wasserstein"] == pytest.approx(wasserstein_distance(x, y) / max(np.std(x), .001), rel=1e-9, abs=1e-12)
    assert (found["mean_reference"], found["mean_current"]) == pytest.approx((np.mean(x), np.mean(y)))


@given(COUNTS)
@settings(max_examples=80, deadline=None)
def test_distances_of_shares_equal_scipys(counts):
    a, b = np.array(counts).T
    assume(a.any() and b.any() and ((a + b) > 0).sum() > 1)
    assert share_distances(a, b)["jensen_shannon"] == pytest.approx(jensenshannon(a / a.sum(), b / b.sum()), abs=1e-7)
    here = (a + b) > 0
    assert association(a, b)["chi2"] == pytest.approx(chi2_contingency(np.array([a, b])[:, here], correction=False)[0], rel=1e-9, abs=1e-9)
    assert 0 <= association(a, b)["cramers_v"] <= 1


@pytest.mark.parametrize("name", ["num_medications", "num_lab_procedures", "time_in_hospital", "number_inpatient", "gender", "medical_specialty", "insulin"])
def test_distances_equal_evidentlys(population, name):
    """The same bins, shares and norms, where it defines the same thing: without missing values and with every level on both sides."""
    from evidently.legacy.calculations.stattests import jensenshannon_stat_test, psi_stat_test, wasserstein_stat_test
    from evidently.legacy.core import ColumnType
    first, second = population.iloc[:9000], inject(population.iloc[9000:], "hospital", .5)[0]
    second = second.assign(num_medications=second.num_medications + 2)
    first, second = (o.assign(medical_specialty=o.medical_specialty.fillna("missing")) for o in (first, second))
    entry = named(compare(profile(first), profile(second), RULE), name)
    kind = ColumnType.Numerical if entry["kind"] == "number" else ColumnType.Categorical
    theirs = lambda test: test(first[name], second[name], kind, None).drift_score
    assert entry["statistics"]["psi"] == pytest.approx(theirs(psi_stat_test), rel=1e-6)
    assert entry["statistics"]["jensen_shannon"] == pytest.approx(theirs(jensenshannon_stat_test), rel=1e-6)
    if entry["kind"] == "number": assert entry["statistics"]["wasserstein"] == pytest.approx(theirs(wasserstein_stat_test), rel=1e-9)


def test_bins_are_sturges():
    x, y = np.random.default_rng(0).integers(0, 100, (2, 500))
    a, b = (np.bincount(o, minlength=100) for o in (x, y))
    edges = np.histogram_bin_edges(np.concatenate([x, y]), bins="sturges")
    for mine, raw in zip(bin_numbers(np.arange(100), a, b), (x, y), strict=True): assert mine.tolist() == np.histogram(raw, edges)[0].tolist()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_benjamini_hochberg_equals_scipys(p):
    from scipy.stats import false_discovery_control
    assert benjamini_hochberg(p) == pytest.approx(false_discovery_control(p))


# Whether

def of_patients(rng, patients, stays, levels, alike):
    """Counts of a category, of patients with that many stays each, who keep their level or draw it anew each time."""
    codes = np.repeat(rng.integers(0, levels, patients), stays) if alike else rng.integers(0, levels, patients * stays)
    return tally(codes, list("abcdefgh")[:levels], (mix(np.repeat(rng.integers(0, 2**40, patients), stays)) % np.uint64(GROUPS)).astype(int))


@pytest.mark.parametrize("stays, alike", [(1, False), (3, True), (3, False)])
@pytest.mark.parametrize("levels", [2, 6])
def test_p_values_hold_however_alike_a_patients_stays_are(stays, alike, levels):
    rng, p = np.random.default_rng([stays, levels]), []
    for _ in range(400): p.append(chi_square_p(pair(of_patients(rng, 900, stays, levels, alike), of_patients(rng, 300, stays, levels, alike))))
    low = np.mean(np.array(p) <= .05)
    assert .015 <= low <= .085, low    # 400 draws of .05 lie within .03 and .075 nearly always
    assert np.mean(np.array(p) <= .005) <= .02


def test_single_level_p_values_hold_for_small_numbers():
    rng, p = np.random.default_rng(0), []
    rare = lambda n: tally((rng.random(n) < .004).astype(int), ["other", "rare"], rng.integers(0, GROUPS, n))
    for _ in range(300):
        two = pair(rare(4000), rare(1000))
        if "rare" in two.levels: p.append(level_p([two])[0][-1])
    assert np.mean(np.array(p) <= .05) <= .08 and np.mean(np.array(p) <= .01) <= .03


def alarms(frame, batches, rows, rng, reference):
    """Alarms over null batches, drawn by patient."""
    codes, people = pd.factorize(frame.patient_nbr)
    raised = 0
    for _ in range(batches):
        order = np.argsort(rng.permutation(len(people))[codes], kind="stable")
        parts = frame.iloc[order[:reference]], frame.iloc[order[reference:reference + rows]]
        raised += compare(*map(profile, parts), RULE)["alarm"]
    return raised


@pytest.mark.parametrize("rows, batches", [(500, 100), (2000, 60)])
def test_batches_without_drift_seldom_raise_an_alarm(population, rows, batches):
    raised = alarms(population, batches, rows, np.random.default_rng(rows), 10_000)
    assert binom.sf(raised - 1, batches, .05) > .001, f"{raised} of {batches}"


@pytest.mark.slow
@pytest.mark.parametrize("rows", [500, 2000, 16_000])
def test_false_alarms_on_real_encounters_are_at_most_one_in_twenty(data_set, tmp_path, rows):
    frame = check_file(unpacked(data_set, tmp_path)).rows
    raised = alarms(frame, 400, rows, np.random.default_rng(rows), 20_353)
    assert raised / 400 <= .05, f"{raised} of 400"


def test_without_correction_for_patients_alarms_would_be_false(data_set, tmp_path):
    """The same batches of real patients, once with their groups and once without: it is the groups that keep alarms rare."""
    frame = check_file(unpacked(data_set, tmp_path)).rows
    codes, people = pd.factorize(frame.patient_nbr)
    rng, raised = np.random.default_rng(0), np.zeros(2)
    for _ in range(20):
        order = np.argsort(rng.permutation(len(people))[codes], kind="stable")
        parts = frame.iloc[order[:20_000]], frame.iloc[order[20_000:22_000]]
        raised += [any(o["p_adjusted"] <= RULE.false_alarms for o in compare(*map(profile, p), RULE)["features"])
                   for p in (parts, [o.drop(columns="patient_nbr") for o in parts])]
    assert raised[0] <= 3 and raised[1] >= raised[0] + 3, raised


# What is found

def test_withdrawn_drug_is_found_although_its_psi_is_tiny(population):
    first, second = population.iloc[:14_000], population.iloc[14_000:16_000]
    use = lambda frame, share, seed: frame.assign(rosiglitazone=np.where(np.random.default_rng(seed).random(len(frame)) < share, "Steady", "No"))
    found = compare(profile(use(first, .07, 1)), profile(use(second, .03, 2)), RULE)
    entry = named(found, "rosiglitazone")
    assert flagged(found) == ["rosiglitazone"] and entry["effect_measure"] == "odds"
    assert entry["statistics"]["psi"] < .05 and found["severity"] == "none" and found["alarm"]
    assert "rosiglitazone" in entry["direction"] and "→" in entry["direction"]


def test_column_wholly_missing_in_the_reference_is_a_case(population):
    first = population.iloc[:9000].assign(payer_code=None)
    for a, b in ((first, population.iloc[9000:]), (population.iloc[9000:], first)):
        found = compare(profile(a), profile(b), RULE)
        assert flagged(found) == ["payer_code"] and named(found, "payer_code")["statistics"]["missing"] > .4
        json.dumps(found, allow_nan=False)
    same = compare(profile(first), profile(first), RULE)
    assert not same["alarm"] and named(same, "payer_code")["p_adjusted"] == 1


def test_new_and_vanished_levels_are_named(population):
    first, second = population.iloc[:9000], population.iloc[9000:]
    moved = second.assign(medical_specialty=second.medical_specialty.replace("Cardiology", "Telemedicine"))
    entry = named(compare(profile(first), profile(moved), RULE), "medical_specialty")
    assert (entry["new"], entry["vanished"], entry["flagged"]) == (["Telemedicine"], ["Cardiology"], True)


def test_prediction_drift_is_told_and_counts_as_an_alarm(population):
    p = np.random.default_rng(0).beta(2, 8, len(population))
    half = len(population) // 2
    a = profile(population[:half], {"any": p[:half], "30d": p[:half] / 2})
    b = profile(population[half:], {"any": p[half:], "30d": np.minimum(p[half:] / 2 + .05, 1)})
    found = compare(a, b, RULE)
    assert not found["prediction_shift"]["any"]["flagged"] and found["prediction_shift"]["30d"]["flagged"]
    assert found["alarm"] and not flagged(found)
    assert "→" in found["prediction_shift"]["30d"]["direction"]


def test_more_sensitivity_flags_more_and_shares_make_severity(population):
    first, second = population.iloc[:10_000], inject(population.iloc[10_000:], "hospital", .5)[0]
    a, b = profile(first), profile(second)
    shares = [compare(a, b, load_settings(drift={"sensitivity": o}).drift)["share"] for o in ("low", "medium", "high")]
    assert shares == sorted(shares) and shares[0] < shares[2]
    assert [severity(o, RULE) for o in (0, .049, .05, .149, .15, .3, 1)] == ["none", "none", "minor", "minor", "moderate", "major", "major"]
    with pytest.raises(SettingsError, match="none may be smaller"): load_settings(drift={"minor": .5})


def test_confidence_counts_the_measures_that_agree(population):
    first, second = population.iloc[:10_000], population.iloc[10_000:]
    found = compare(profile(first), profile(second.assign(payer_code=None)), RULE)
    sure, unsure = named(found, "payer_code")["confidence"], named(found, "gender")["confidence"]
    assert sure["agree"] == sure["of"] == unsure["agree"] and sure["margin"] > 1 > unsure["margin"]
    assert found["confidence"]["agree"] == 1


def test_without_patients_encounters_count_as_independent(population):
    first, second = (o.drop(columns="patient_nbr") for o in (population.iloc[:10_000], population.iloc[10_000:]))
    found = compare(profile(first), profile(second.assign(payer_code=None)), RULE)
    assert flagged(found) == ["payer_code"]


def test_a_handful_of_encounters_is_compared_without_a_crash(population):
    for rows in (1, 2, 30): json.dumps(compare(profile(population), profile(population.iloc[:rows]), RULE), allow_nan=False)


def test_drift_that_cannot_be_told_is_an_error(population):
    with pytest.raises(DriftError, match="0 encounters of reference"): compare(Profile(0, {}, {}), profile(population), RULE)
    with pytest.raises(DomainError, match="at least 50"): tell_apart(population, population.head(10), RULE)


def test_classifier_finds_nothing_in_nothing_and_names_what_it_finds(population):
    first, second = population.iloc[:10_000], population.iloc[10_000:14_000]
    rule = load_settings(drift={"domain_rows": 3000}).drift
    assert tell_apart(first, second, rule)["auroc"]["value"] == pytest.approx(.5, abs=.04)
    found = tell_apart(first, second.assign(insulin="Up"), rule)
    assert found["auroc"]["low"] > .8 and found["fields"][0]["name"] == "insulin" and found == tell_apart(first, second.assign(insulin="Up"), rule)
    assert {o["name"] for o in found["fields"]} <= set(INPUTS)
