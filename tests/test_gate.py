"""The gate, question by question: where each bound lies, and what it says."""
from dataclasses import asdict
from math import inf, nextafter

import numpy as np
import pandas as pd
import pytest

from health_predict import gate
from health_predict.gate import Check, by_size, calibration_check, compare, group_checks, holm, judge, judge_target, judges, one_sided, ranking_check
from health_predict.settings import load_settings

RULE = load_settings(gate={"resamples": 200, "min_rows": 400, "min_group": 20}).gate
EVEN = np.linspace(-1, 1, 2001)    # its 95% interval is -0.95 to 0.95


@pytest.fixture(scope="module")
def people():
    """A thousand encounters with their outcome, its true probability, and a champion that sees most of it."""
    rng, n = np.random.default_rng(3), 1000
    frame = pd.DataFrame({"patient_nbr": np.arange(n)//2, "race": rng.choice(["A", None], n), "age": "[70-80)", "gender": rng.choice(["F", "M"], n)})
    frame.loc[:29, "gender"] = "?"
    z = rng.normal(-.2, 1.2, n)
    y = (rng.random(n) < 1/(1+np.exp(-z))).astype(int)
    y[:30] = [1]*19+[0]*11    # one event short of being judged
    return frame, y, z, 1/(1+np.exp(-z-rng.normal(0, .3, n)))


def p(z): return 1/(1+np.exp(-z))


def large(frame, y): return by_size(frame, y, RULE.min_group)[0]


def test_newest_test_patients_judge_until_there_are_enough():
    cohort = pd.DataFrame({"side": ["test"]*7+["train", "validation"], "batch": [0, 0, 3, 3, 3, 7, 7, 7, 7]}, index=range(10, 19))
    found = lambda least: judges(cohort, least).batch.tolist()
    assert found(1) == found(2) == [7, 7]
    assert found(3) == found(5) == [3, 3, 3, 7, 7]
    assert found(6) == found(7) == found(8) == [0, 0, 3, 3, 3, 7, 7]
    assert list(judges(cohort, 2).index) == [0, 1] and set(judges(cohort, 8).side) == {"test"} and list(judges(cohort, 2)) == ["side", "batch"]


def test_ranking_is_refused_from_the_guard_on():
    low = gate.interval(EVEN, .95)[0]
    passed = ranking_check("any", EVEN, .0123456789012, nextafter(-low, inf), .95)
    assert asdict(passed) == {"target": "any", "check": "ranking", "passed": True, "value": .012345679, "low": -.95, "high": .95,
                              "words": "AUROC +0.012 (-0.950 to +0.950); the lower bound must lie above -0.950"}
    assert not ranking_check("any", EVEN, 0., -low, .95).passed    # on the guard is not above it
    assert ranking_check("any", EVEN, 0., .9, .8).passed           # a narrower interval
    untold = ranking_check("30d", np.full(9, np.nan), np.nan, .02, .95)
    assert untold == Check("30d", "ranking", False, "AUROC can't be told: one outcome is absent")


def test_calibration_is_refused_where_it_is_both_significant_and_large():
    worse = EVEN+.9500001
    refused = calibration_check("any", worse, .0200001, .02, .95)
    assert asdict(refused) == {"target": "any", "check": "calibration", "passed": False, "value": .0200001, "low": 1e-7, "high": 1.9000001,
                               "words": "calibration error +0.020 (+0.000 to +1.900); significantly larger by more than 0.020 is refused"}
    assert calibration_check("any", worse, .02, .02, .95).passed            # as large as the margin, no more
    assert calibration_check("any", EVEN+.95, .5, .02, .95).passed          # its interval begins at 0
    assert calibration_check("any", worse-.1, .5, .02, .95).passed          # not significant
    assert not calibration_check("any", worse-.1, .5, .02, .8).passed       # at 80% it is


def test_holm_steps_down_and_stops():
    """By hand: five per cent are shared by all that are left; the first that fails ends it."""
    assert holm([.01, .02, .03], .05) == [True, True, True]       # .01 <= .05/3, .02 <= .05/2, .03 <= .05
    assert holm([.016, .024, .05], .05) == [True, True, True]
    assert holm([.05, .024, .016], .05) == [True, True, True]
    assert holm([.017, .001, .04], .05) == [True, True, True]
    assert holm([.03, .001, .04], .05) == [False, True, False]    # .03 > .05/2, so .04 is not asked
    assert holm([], .05) == []
    assert holm([.05], .05) == [True]


def test_one_sided_chance_is_the_normal_distributions():
    from scipy.stats import norm
    for z in (-3., -1.96, -.5, 0., .7, 2.): assert one_sided(z) == pytest.approx(norm.cdf(z), abs=1e-12)


def test_groups_with_enough_of_both_outcomes_are_judged(people):
    frame, y, _, champion = people
    W = gate.patient_weights(frame.patient_nbr.to_numpy(), 200, 7)
    found = group_checks("any", large(frame, y), y, champion, champion, W, RULE)
    assert [o.words for o in found] == [f"{o}: AUROC +0.000 (+0.000 to +0.000)" for o in ("race A", "race not known", "gender F", "gender M", "age 70 to 80")]
    assert all(o == Check("any", "group", True, o.words, 0., 0., 0.) for o in found)
    y = y.copy(); y[0:31] = [1]*20+[0]*11
    assert len(group_checks("any", large(frame, y), y, champion, champion, W, RULE)) == 5    # 20 events, 10 others
    y[19:40] = 0; frame = frame.assign(gender=np.where(np.arange(1000) < 40, "?", frame.gender))
    y[19] = 1
    assert [o.words.split(":")[0] for o in group_checks("any", large(frame, y), y, champion, champion, W, RULE)][-4] == "gender ?"    # 20 of each are enough


def test_a_group_that_is_worse_off_is_named(people):
    frame, y, z, champion = people
    men = (frame.gender == "M").to_numpy()
    worse = np.where(men, p(np.random.default_rng(0).permutation(z)), champion)
    W = gate.patient_weights(frame.patient_nbr.to_numpy(), 200, 7)
    found = {o.words.split(":")[0]: o for o in group_checks("30d", large(frame, y), y, champion, worse, W, RULE)}
    assert not found["gender M"].passed and found["gender F"].passed and found["gender M"].high < 0 and found["gender M"].target == "30d"
    assert found["gender M"].words.endswith("), significantly worse") and found["gender F"].words.endswith("(+0.000 to +0.000)")
    here = gate.ranking(y[men], worse[men], np.ones((1, men.sum())))[0]-gate.ranking(y[men], champion[men], np.ones((1, men.sum())))[0]
    assert found["gender M"].value == pytest.approx(here[0], abs=1e-9) and found["gender M"].low < found["gender M"].value < found["gender M"].high
    assert [o.passed for o in group_checks("30d", large(frame, y), y, worse, champion, W, RULE)] == [True]*5    # better off is fine


def test_significance_of_a_group_depends_on_the_confidence_in_force(people):
    """A difference with a one-sided p-value between 1% and 5%: refused at 95%, let through at 99%."""
    frame, y, _, champion = people
    frame, W = frame.assign(race="A", gender="F"), gate.patient_weights(frame.patient_nbr.to_numpy(), 400, 7)
    noise = np.random.default_rng(1).normal(0, 1, len(y))
    for size in np.linspace(.1, 2, 60):
        challenger = p(np.log(champion/(1-champion))+size*noise)
        draws = gate.ranking(y, challenger, W)[0]-gate.ranking(y, champion, W)[0]
        value = (gate.ranking(y, challenger, np.ones((1, len(y))))[0]-gate.ranking(y, champion, np.ones((1, len(y))))[0])[0]
        if .01 < one_sided(value/np.nanstd(draws)) < .016: break    # below a third of 5%: the same group three times
    else: raise AssertionError("no such difference was found")
    def passed(confidence):
        rule = RULE.model_copy(update={"confidence": confidence})
        return [o.passed for o in group_checks("any", large(frame, y), y, champion, challenger, W, rule)]
    assert passed(.95) == [False]*3 and passed(.99) == [True]*3


def test_a_target_is_asked_for_ranking_calibration_and_groups(people):
    frame, y, z, champion = people
    W = gate.patient_weights(frame.patient_nbr.to_numpy(), 200, 7)
    checks = judge_target("any", large(frame, y), y, champion, p(z), W, RULE)
    assert [o.check for o in checks] == ["ranking", "calibration", *["group"]*5] and {o.target for o in checks} == {"any"}
    ones = np.ones((1, len(y)))
    ranked, wrong = (f(y, p(z), ones)-f(y, champion, ones) for f in (lambda *a: gate.ranking(*a)[0], gate.calibration_error))
    assert (checks[0].value, checks[1].value) == (pytest.approx(ranked[0], abs=1e-9), pytest.approx(wrong[0], abs=1e-9))
    draws = gate.calibration_error(y, p(z), W)-gate.calibration_error(y, champion, W)
    assert (checks[1].low, checks[1].high) == gate.interval(draws, RULE.confidence)
    assert (checks[0].low, checks[0].high) == gate.interval(gate.ranking(y, p(z), W)[0]-gate.ranking(y, champion, W)[0], RULE.confidence)
    bold = judge_target("any", large(frame, y), y, champion, p(3*z), W, RULE)
    assert [o.passed for o in bold][:2] == [True, False]
    narrow = judge_target("any", large(frame, y), y, champion, p(z), W, RULE.model_copy(update={"confidence": .6}))
    assert narrow[0].low > checks[0].low and narrow[1].low > checks[1].low


def test_the_verdict_names_each_failure(people):
    frame, y, z, champion = people
    asked = lambda challenger, rule=RULE, n=1000, seed=7: judge(frame.head(n), {"any": y[:n], "30d": y[:n]}, {"any": champion[:n], "30d": champion[:n]},
                                                              {"any": champion[:n], "30d": challenger[:n]}, rule, seed)
    equal = asked(champion)
    assert (equal["verdict"], equal["n"]) == ("promote", 1000)
    said = "it ranks no worse, its probabilities are no worse, and no group that is large enough to be judged is ranked worse (1 too small)"
    assert equal["reasons"] == [said] and [len(o) for o in equal["unjudged"].values()] == [1, 1]
    assert equal["checks"][0] == asdict(Check("", "size", True, "1,000 encounters of test patients; at least 400 are needed"))
    assert [o["target"] for o in equal["checks"]] == ["", *["any"]*7, *["30d"]*7]
    assert asked(champion, n=400)["checks"][0]["passed"]    # as many as are needed
    few = asked(champion, n=399)
    assert few["verdict"] == "keep" and few["reasons"] == ["size: 399 encounters of test patients; at least 400 are needed"]
    bold = asked(p(3*np.log(champion/(1-champion))))
    assert bold["verdict"] == "keep" and len(bold["reasons"]) == 1
    assert bold["reasons"][0].startswith("readmitted within 30 days: calibration error +0.")
    assert asked(champion*.9+.05*z, seed=8) != asked(champion*.9+.05*z) == asked(champion*.9+.05*z)    # drawn from the seed, and from nothing else
    assert asked(champion*.9+.05*z) == judge(frame, *({t: o for t in ("any", "30d")} for o in (y, champion)), {"any": champion, "30d": champion*.9+.05*z}, RULE)
    none_small = judge(frame.assign(gender="F"), {"any": y}, {"any": champion}, {"any": champion}, RULE)
    assert none_small["reasons"] == ["it ranks no worse, its probabilities are no worse, and no group is ranked worse"]
    assert none_small["unjudged"] == {"any": {}}


class Told:
    """Stands for a bundle: says what it is told to."""
    def __init__(self, said): self.said = said
    def predict_frame(self, frame): return {t: frame[f"{self.said}_{t}"].to_numpy() for t in ("any", "30d")}


def test_bundles_are_compared_on_those_who_taught_neither(people):
    frame, y, z, champion = people
    cohort = frame.assign(side="test", batch=np.repeat([0, 1], 500), readmitted=np.where(y == 1, np.where(z > 1, "<30", ">30"), "NO"))
    cohort = pd.concat([cohort, cohort.assign(side="train", batch=2)], ignore_index=True)
    for t in ("any", "30d"): cohort[f"old_{t}"], cohort[f"new_{t}"] = np.tile(champion, 2), np.tile(p(-z), 2)
    found = compare(Told("new"), Told("old"), cohort, RULE)
    assert (found["verdict"], found["n"]) == ("keep", 500)    # the newest labelled batch has enough
    assert [(o["target"], o["passed"]) for o in found["checks"] if o["check"] == "ranking"] == [("any", False), ("30d", False)]
    back = compare(Told("old"), Told("new"), cohort, RULE)
    assert back["checks"][1]["value"] > .3
    assert back == compare(Told("old"), Told("new"), cohort, RULE, 7) != compare(Told("old"), Told("new"), cohort, RULE, 8)
    alone = {"verdict": "promote", "reasons": ["there is no champion to compare with"], "n": 0, "checks": [], "unjudged": {}}
    assert compare(Told("new"), None, cohort, RULE) == alone
