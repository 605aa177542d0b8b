"""What a batch calls for, rule by rule: severity from drift and from what came true, the action, and what overrules it."""
import shutil
from math import nextafter

import numpy as np
import pytest

from health_predict.breaker import Breaker, after, described, seen_from
from health_predict.bundle import Bundle, BundleError, seal
from health_predict.cohort import can_return, outcome, side
from health_predict.drift import MEASURES, benjamini_hochberg, effects, overall, severity, thresholds, verdict
from health_predict.evaluate import evaluate
from health_predict.features import fit_encode
from health_predict.fields import TARGETS
from health_predict.monitor import COMMON
from health_predict.pack import recalibrate, write_bundle
from health_predict.performance import came_true, fall, known
from health_predict.respond import ACTIONS, decide, hand_over_champion, hand_over_recalibrated, how_severe, news, without_training
from health_predict.settings import load_settings
from health_predict.storage import Tree, read_json, write_json
from health_predict.train import fit_calibrated

SETTINGS = load_settings()
DRIFT, RULE = SETTINGS.drift, SETTINGS.respond
CALM = {"batch": 2, "reference": {"batches": [0]}, "severity": "none", "features": [], "share": 0., "prediction_shift": {}, "alarm": False}
NOTHING = {"batch": 2, "due": None, "champion": 1, "targets": {}}
PLENTY, CLOSED = {"batches": [1], "share": .4}, (True, "the circuit breaker is closed")
CALMLY = "0 of 0 fields are flagged (0%)"
OPEN = (False, "the circuit breaker is open until batch 5")


def field(name, flagged, effect=2.): return {"name": name, "direction": f"{name} moved", "flagged": flagged, "effect": effect}


def look(verdict="holds", value=.01, low=-.01, ece=.01):
    fell = {"value": value, "low": low, "high": .09}
    return {"verdict": verdict, "auroc": {"value": .641}, "fall": fell, "ece": {"value": ece}, "predicted": .512, "rate": .409}


def act(level="none", new=PLENTY, breaker=CLOSED, performance=NOTHING, former=None, **rule):
    return decide(CALM | {"severity": level, "alarm": level != "none"}, performance, former, new, breaker, RULE.model_copy(update=rule))


# How severe

@pytest.mark.parametrize("share, said", [(0., "none"), (nextafter(.05, 0), "none"), (.05, "minor"), (nextafter(.15, 0), "minor"), (.15, "moderate"),
                                         (nextafter(.3, 0), "moderate"), (.3, "major"), (1., "major")])
def test_severity_begins_at_its_share(share, said):
    assert severity(share, DRIFT) == said


def test_shares_of_severity_are_settings():
    assert severity(.2, DRIFT.model_copy(update={"major": .2})) == "major"
    assert severity(.0, DRIFT.model_copy(update={"minor": 0.})) == "minor"


def test_sensitivity_scales_the_effect_sizes():
    """Low asks for half as much again; the odds' ratio counts by its logarithm."""
    medium, low, high = (thresholds(DRIFT.model_copy(update={"sensitivity": o})) for o in ("medium", "low", "high"))
    assert list(medium) == list(MEASURES) and medium == {**dict.fromkeys(MEASURES, .1), "odds": 2., "level_share": .05, "missing": .05}
    assert low == {**dict.fromkeys(MEASURES, .15), "odds": 2.828427, "level_share": .075, "missing": .075}
    assert high == {**dict.fromkeys(MEASURES, .066667), "odds": 1.587401, "level_share": .033333, "missing": .033333}


def test_effects_are_multiples_of_their_thresholds():
    limits = thresholds(DRIFT)
    assert effects({"ks": .05, "odds": 8., "psi": .2, "mean_reference": 7.}, limits) == pytest.approx({"ks": .5, "psi": 2., "odds": 3.})


def test_a_field_is_flagged_where_it_is_both_significant_and_large():
    found = lambda p, **statistics: verdict({"name": "insulin", "statistics": statistics}, p, DRIFT)
    both = found(.025, ks=.1, psi=.05)
    assert both == {"name": "insulin", "statistics": {"ks": .1, "psi": .05}, "p_adjusted": .025, "effect": 1., "effect_measure": "ks", "flagged": True,
                    "confidence": {"agree": 2, "of": 3, "margin": 1.}}
    assert not found(nextafter(.025, 1), ks=.1)["flagged"] and not found(.0, ks=nextafter(.1, 0))["flagged"]
    neither = found(.5, ks=.2, psi=.05, odds=1.5)
    assert (neither["flagged"], neither["effect_measure"], neither["confidence"]) == (False, "ks", {"agree": 3, "of": 4, "margin": 2.})
    assert found(.5, ks=.2)["flagged"] is False and found(np.float64(.01), ks=.2)["flagged"] is True    # plain data, for JSON


def test_false_alarms_are_held_over_all_fields_together():
    assert benjamini_hochberg([.01, .04, .03, .8]) == pytest.approx([.04, .16/3, .16/3, .8])
    assert benjamini_hochberg([.9, .95]) == pytest.approx([.95, .95]) and benjamini_hochberg([.3]) == pytest.approx([.3])
    assert max(benjamini_hochberg([1., 1., .9])) == 1.
    from scipy.stats import false_discovery_control
    p = np.random.default_rng(0).random(40)**2
    assert benjamini_hochberg(p) == pytest.approx(false_discovery_control(p))


def test_the_whole_finding_is_as_sure_as_its_flagged_fields():
    entry = lambda flagged, agree, margin: {"flagged": flagged, "confidence": {"agree": agree, "of": 4, "margin": margin}}
    assert overall([entry(True, 4, 3.), entry(True, 2, 5.), entry(True, 3, 9.), entry(False, 0, .1)]) == {"agree": .75, "margin": 5.}
    assert overall([entry(False, 4, .2), entry(False, 3, .4)]) == {"agree": .875, "margin": pytest.approx(.3)}


def test_what_came_true_is_judged_by_its_interval():
    told = lambda value, half: {"value": value, "low": value-half, "high": value+half}
    assert fall(told(.7, .03), told(.65, .04)) == {"value": .05, "low": 0., "high": .1}    # the widths add up as a right angle's sides do
    assert fall(told(.65, .03), told(.7, .04)) == {"value": -.05, "low": -.1, "high": 0.}


@pytest.fixture(scope="module")
def outcomes():
    rng = np.random.default_rng(0)
    p = rng.beta(2, 3, 4000)
    return (rng.random(4000) < p).astype(int), p


def test_verdict_on_what_came_true(outcomes):
    """A fall that counts and that chance doesn't explain is concept drift; else risks that are off call for a recalibration."""
    y, p = outcomes
    judged = lambda score, auroc=.7, half=.005, **rule: came_true({"any": y}, {"any": score}, np.arange(len(y)), {"any": {"auroc": {
        "value": auroc, "low": auroc-half, "high": auroc+half}}}, {"any": .5}, RULE.model_copy(update=rule), 100)["any"]
    good = judged(p)
    assert (good["verdict"], good["n"], good["rate"], good["predicted"]) == ("holds", 4000, pytest.approx(y.mean()), pytest.approx(p.mean()))
    assert good["fall"] == fall({"value": .7, "low": .695, "high": .705}, good["auroc"])
    assert judged(p**2)["verdict"] == "recalibrate" and judged(p**2, calibration_error=.9)["verdict"] == "holds"
    lost = judged(np.random.default_rng(1).permutation(p))
    assert lost["verdict"] == "concept" and lost["fall"]["low"] > 0
    drop = judged(p, .8)["fall"]["value"]
    assert judged(p, .8)["verdict"] == "concept" and judged(p, .8, auroc_drop=drop)["verdict"] == "holds"
    assert judged(p, .8, auroc_drop=nextafter(drop, 0))["verdict"] == "concept"
    assert judged(p, .8, half=.2)["verdict"] == "holds"      # chance would explain it
    at = judged(p, .8, half=.1)["auroc"]
    just = judged(p, at["value"] + float(np.hypot(.1, (at["high"] - at["low"]) / 2)), half=.1)    # so far that its interval begins at 0
    assert (just["fall"]["low"], just["verdict"]) == (0, "holds") and just["fall"]["value"] > RULE.auroc_drop
    edge = judged(p)["ece"]["value"]
    assert judged(p, calibration_error=edge)["verdict"] == "holds" and judged(p, calibration_error=nextafter(edge, 0))["verdict"] == "recalibrate"


def test_what_came_true_is_measured_as_asked(outcomes):
    y, p = outcomes
    reference = {t: {"auroc": {"value": .7, "low": .69, "high": .71}} for t in TARGETS}
    args = ({"any": y, "30d": y}, {"any": p, "30d": p**2}, np.arange(len(y))//2, reference, {"any": .5, "30d": .2}, RULE)
    found = came_true(*args, 50, 3, .8)
    for t in ("any", "30d"):
        want = evaluate(y, args[1][t], args[4][t], args[2], 50, 3, .8)
        assert {k: found[t][k] for k in want} == want
    assert came_true(*args) == came_true(*args, 200, 7, .95) != came_true(*args, 200, 8, .95)


# Severity of the batch

def test_severity_says_what_moved_and_how_far():
    found = CALM | {"severity": "minor", "share": .5, "features": [field(str(i), i % 2 == 0, i) for i in range(14)],
                    "prediction_shift": {"any": field("risk", True), "30d": field("30-day risk", False)}}
    said = ["7 of 14 fields are flagged (50%)", "12 moved", "10 moved", "8 moved", "6 moved", "4 moved", "risk moved"]
    assert how_severe(found, NOTHING, None) == ("minor", said)
    assert how_severe(CALM | {"reference": None}, NOTHING, None) == (None, ["there is no champion yet"])


def test_a_second_minor_in_a_row_counts_as_moderate():
    minor = CALM | {"severity": "minor"}
    assert how_severe(minor, NOTHING, "minor") == ("moderate", [CALMLY, "minor drift for the second time in a row counts as moderate"])
    for level, former in (("minor", "none"), ("minor", None), ("minor", "major"), ("none", "minor"), ("none", "none"), ("major", "major")):
        assert how_severe(CALM | {"severity": level}, NOTHING, former)[0] == level


def test_concept_drift_comes_first_and_names_the_target():
    seen = NOTHING | {"due": 1, "targets": {"any": look(), "30d": look("concept", .061, .042)}}
    assert how_severe(CALM, seen, None) == ("concept", ["readmitted within 30 days: on batch 1 the champion ranks worse than on its test patients, "
        "AUROC 0.641, 0.061 less (0.042 to 0.090)", CALMLY])
    both = how_severe(CALM | {"severity": "major"}, NOTHING | {"due": 1, "targets": {"any": look("concept"), "30d": look("concept")}}, None)
    assert both[0] == "concept" and len(both[1]) == 3
    turned = NOTHING | {"due": 1, "targets": {"any": look("concept"), "30d": look("recalibrate")}}    # the order of the targets is nobody's business
    assert how_severe(CALM, turned, None)[0] == "concept"


# The decision

def test_each_severity_has_its_action_and_its_alert():
    assert [act(o)["action"] for o in COMMON] == ["record", "watch", "retrain", "search"]
    assert [act(o)["tell"] for o in COMMON] == [None, None, None, "warning"]
    concept = act(performance=NOTHING | {"due": 1, "targets": {"any": look("concept")}})
    assert (concept["severity"], concept["action"], concept["tell"]) == ("concept", "search", "urgent")
    first = decide(CALM | {"reference": None, "severity": None}, NOTHING, None, {"batches": [], "share": 0.}, CLOSED, RULE)
    assert (first["severity"], first["action"], first["act"], first["tell"]) == (None, "train", "train", None)
    assert set(ACTIONS) == {None, "none", "minor", "moderate", "major", "concept"}


def test_decision_holds_what_it_rests_on():
    assert act("minor") == {"batch": 2, "due": None, "severity": "minor", "drift": "minor", "action": "watch", "act": "watch", "alarm": True,
        "reasons": [CALMLY], "news": PLENTY, "breaker": {"allowed": True, "words": CLOSED[1]}, "forced": False, "dry_run": False,
        "tell": None}
    assert act("minor", former="minor")["drift"] == "minor" and act("minor", former="minor")["severity"] == "moderate"


def test_a_first_model_is_trained_whatever_the_policy_and_the_breaker_say():
    for rule in ({"policy": "never"}, {"policy": "always"}, {"dry_run": True}, {"force_retrain": True}):
        first = decide(CALM | {"reference": None}, NOTHING, None, {"batches": [], "share": 0.}, OPEN, RULE.model_copy(update=rule))
        assert (first["action"], first["act"], first["reasons"]) == ("train", "train", ["there is no champion yet"])


def test_nothing_new_or_an_open_breaker_leaves_it_at_watching():
    few = act("major", {"batches": [1], "share": nextafter(.15, 0)})
    assert (few["action"], few["tell"]) == ("watch", "warning")
    assert few["reasons"][1:] == ["but outcomes of only 15% as many encounters as the champion learnt from have come in since; a training pays from 15% on"]
    assert act("major", {"batches": [1], "share": .15})["action"] == "search"
    shut = act("moderate", breaker=OPEN)
    assert (shut["action"], shut["reasons"][1:]) == ("watch", ["but the circuit breaker is open until batch 5"])
    assert shut["breaker"] == {"allowed": False, "words": OPEN[1]}
    assert act("minor", {"batches": [], "share": 0.}, OPEN)["reasons"] == [CALMLY]    # nothing that could be kept back
    assert len(act("major", {"batches": [], "share": 0.}, OPEN)["reasons"]) == 2    # one reason is enough


def test_a_forced_training_overrides_breaker_and_news():
    for level, action in (("none", "retrain"), ("minor", "retrain"), ("moderate", "retrain"), ("major", "search")):
        forced = act(level, {"batches": [], "share": 0.}, OPEN, force_retrain=True)
        assert (forced["action"], forced["act"], forced["forced"]) == (action, action, True)
        assert forced["reasons"][-1] == "a training is forced ([respond] force_retrain)"
        assert [o.startswith("but outcomes of only 0%") for o in forced["reasons"][1:-1]] == ([] if level in ("none", "minor") else [True])


@pytest.mark.parametrize("policy, action", [("always", "retrain"), ("never", "record")])
def test_a_policy_replaces_the_rules(policy, action):
    off = NOTHING | {"due": 1, "targets": {"any": look("recalibrate", ece=.09)}}
    for level in COMMON:
        found = act(level, {"batches": [], "share": 0.}, OPEN, off, policy=policy)
        assert (found["action"], found["act"]) == (action, action) and found["reasons"] == [CALMLY, f"[respond] policy = {policy}"]


def test_risks_that_are_off_are_set_right_where_nothing_is_trained():
    off = NOTHING | {"due": 1, "targets": {"30d": look(ece=.05), "any": look("recalibrate", ece=nextafter(.05, 1))}}
    found = act(performance=off)
    assert (found["action"], found["due"]) == ("recalibrate", 1)
    assert found["reasons"][-1] == "the champion's risks were off on batch 1 (readmitted at any time: predicted 51.2%, 40.9% came true)"
    assert act(performance=NOTHING | {"due": 1, "targets": {"any": look(ece=.05)}})["action"] == "record"    # at the threshold they are not off
    two = act(performance=NOTHING | {"due": 1, "targets": {"any": look(ece=.06), "30d": look(ece=.07)}})["reasons"][-1]
    assert two.endswith("(readmitted at any time: predicted 51.2%, 40.9% came true; readmitted within 30 days: predicted 51.2%, 40.9% came true)")
    assert [act(o, performance=off)["action"] for o in ("minor", "moderate", "major")] == ["recalibrate", "retrain", "search"]
    assert act("major", {"batches": [], "share": 0.}, performance=off)["action"] == "recalibrate"
    assert act(performance=off, force_retrain=True)["action"] == "retrain"


def test_an_estimated_fall_is_told_and_not_acted_upon():
    poor = lambda drop: NOTHING | {"estimate": {"any": {"auroc": .7, "fall": 0.}, "30d": {"auroc": .6134, "fall": drop}}}
    found = act(performance=poor(nextafter(.03, 1)))
    assert (found["action"], found["tell"]) == ("record", "urgent")
    assert found["reasons"][1:] == ["readmitted within 30 days: by the predicted risks themselves an AUROC of 0.613 is to be expected on this batch, "
        "0.030 less than on the test patients; its own outcomes, to learn from, come later"]
    assert act(performance=poor(.03))["tell"] is None and act("major", performance=poor(.03))["tell"] == "warning"


def test_a_dry_run_decides_and_acts_not():
    dry = act("major", dry_run=True)
    assert (dry["action"], dry["act"], dry["dry_run"], dry["tell"]) == ("search", "record", True, "warning")
    assert dry["reasons"][-1] == "a dry run: nothing is done about it"
    calm = act("none", dry_run=True)
    assert (calm["act"], calm["reasons"]) == ("record", [CALMLY])    # nothing is left undone


# The circuit breaker

def test_breaker_opens_after_so_many_failures_and_half_opens_after_the_cool_down():
    rule, now = load_settings(breaker={"failures": 2, "cool_down": 3}).breaker, Breaker()
    now = after(now, 4, False, "it ranks worse", rule)
    assert now == Breaker("closed", 1, None, "it ranks worse") and seen_from(now, 99, rule) == now
    now = after(now, 5, False, "again", rule)
    assert now == Breaker("open", 2, 5, "again")
    assert [seen_from(now, b, rule).state for b in (5, 8, 9)] == ["open", "open", "half-open"]
    half = seen_from(now, 9, rule)
    assert half == Breaker("half-open", 2, 5, "again")
    assert after(half, 9, False, "still", rule) == Breaker("open", 3, 9, "still")    # one failure is enough now
    assert after(half, 9, True, "", rule) == after(now, 6, True, "", rule) == Breaker()
    since = "after 2 failed or rejected retrainings in a row, the last on batch 5: again"
    assert described(now, rule) == f"the circuit breaker is open until batch 9, {since}"
    assert described(half, rule) == f"the circuit breaker is half-open: one retraining is tried, {since}"
    assert described(Breaker("closed", 1), rule) == "the circuit breaker is closed (1 of 2 failures in a row)"


# What is handed on where nothing is trained

@pytest.fixture(scope="module")
def storage(encounters, tmp_path_factory):
    """A storage whose champion, a plain line, learnt from batch 0; batches 1 and 2 have run, and the outcomes of 0 and 1 are in."""
    folder = tmp_path_factory.mktemp("decision")
    settings = load_settings(storage={"root": str(folder)})
    tree, frame = Tree(settings), encounters[can_return(encounters.discharge_disposition_id)].reset_index(drop=True)
    first, outcomes = frame[:1000], {t: outcome(frame.readmitted[:1000], t) for t in TARGETS}
    X, encoder = fit_encode(first, outcomes)
    fitted = [fit_calibrated(t, "logistic", {"C": .01}, (X[:700], y[:700]), (X[700:], y[700:]), settings.threshold) for t, y in outcomes.items()]
    tree.models.mkdir()
    training = {"batches": [0], "known": [0], "rows": 1000, "synthetic": True}
    digest = write_bundle(tree.models / "first", encoder, fitted, X[:100], training, "any")
    write_json(tree.models / "champion.json", {"version": 1, "digest": digest, "path": "first", "since": "2026-01-01T00:00:00+00:00", "batch": 0, "former": []})
    for batch, rows in enumerate((first, frame[1000:1600], frame[1600:2000])):
        tree.run(batch).mkdir(parents=True)
        tree.labels.mkdir(exist_ok=True)
        write_json(tree.run(batch) / "ingest.json", {"rows_out": len(rows)})
        rows.drop(columns="readmitted").to_parquet(tree.run(batch) / "encounters.parquet")
        rows[["encounter_id", "readmitted"]].to_parquet(tree.labels / f"{batch}.parquet")
    return settings


def test_news_are_outcomes_that_the_champion_has_not_learnt_from(storage, tmp_path):
    assert news(storage, 2) == {"batches": [1], "share": .6}
    assert news(storage, 3) == {"batches": [1, 2], "share": 1.}
    assert news(storage, 1) == {"batches": [], "share": 0.}
    assert news(load_settings(storage={"root": str(tmp_path)}), 1) == {"batches": [], "share": 0.}


def test_what_a_window_left_out_is_not_new(storage, tmp_path):
    """A champion of batch 1 alone that knew batch 0 as well has nothing to learn from it."""
    shutil.copytree(storage.storage.root, tmp_path, dirs_exist_ok=True)
    settings = load_settings(storage={"root": str(tmp_path)})
    folder, now = Tree(settings).models / "first", read_json(Tree(settings).models / "champion.json")
    def learnt(**training):
        model = read_json(folder / "model.json")
        model["training"] = training
        write_json(folder / "model.json", model)
        write_json(Tree(settings).models / "champion.json", now | {"digest": seal(folder)})
    learnt(batches=[1], known=[0, 1])
    assert news(settings, 3) == {"batches": [2], "share": 400 / 600}
    learnt(batches=[1])    # as bundles said it before windows were chosen
    assert news(settings, 3) == {"batches": [0, 2], "share": 1400 / 600}
    learnt(batches=[])
    assert news(settings, 1) == {"batches": [0], "share": 1000.}


def test_a_batch_that_runs_again_sees_the_champion_of_then_whole(storage, tmp_path):
    """Not the one that came after it; and never a damaged one."""
    shutil.copytree(storage.storage.root, tmp_path, dirs_exist_ok=True)
    settings = load_settings(storage={"root": str(tmp_path)})
    models, first = Tree(settings).models, read_json(Tree(settings).models / "champion.json")
    shutil.copytree(models / "first", models / "second")
    model = read_json(models / "second" / "model.json")
    write_json(models / "second" / "model.json", model | {"training": model["training"] | {"batches": [0, 1], "known": [0, 1]}})
    former = {k: v for k, v in first.items() if k != "former"}
    write_json(models / "champion.json", first | {"version": 2, "path": "second", "digest": seal(models / "second"), "batch": 2, "former": [former]})
    assert (news(settings, 2)["batches"], news(settings, 3)["batches"]) == ([1], [2])
    assert hand_over_champion(settings, 2, tmp_path / "then").digest == first["digest"] != hand_over_champion(settings, 3, tmp_path / "now").digest
    assert hand_over_recalibrated(settings, 2, 1, tmp_path / "set right")[0].training["recalibrated_from"] == first["digest"]
    without_training(settings, {"batch": 2, "action": "watch", "act": "watch", "dry_run": False}, tmp_path / "handed on", tmp_path / "trials.json")
    assert Bundle(tmp_path / "handed on").digest == first["digest"]
    (models / "first" / "encoder.json").write_text((models / "first" / "encoder.json").read_text() + " ")
    with pytest.raises(BundleError): news(settings, 2)
    with pytest.raises(BundleError): hand_over_champion(settings, 2, tmp_path / "damaged")
    seal(models / "first")    # whole, but not the one that champion.json names
    with pytest.raises(BundleError): news(settings, 2)
    with pytest.raises(BundleError): hand_over_champion(settings, 2, tmp_path / "another")


def test_without_a_training_the_champion_is_handed_on(storage, tmp_path):
    now = read_json(Tree(storage).models / "champion.json")
    assert hand_over_champion(storage, 2, tmp_path / "draft").digest == now["digest"]
    decision = {"batch": 2, "due": 1, "action": "watch", "act": "watch", "dry_run": False}
    said = without_training(storage, decision, tmp_path / "again", tmp_path / "trials.json")
    assert said == "No model was trained: the decision is to watch. The champion is handed on."
    assert Bundle(tmp_path / "again", now["digest"]).training["rows"] == 1000
    training = {"batches": [0], "known": [0], "rows": 1000, "synthetic": True}
    assert read_json(tmp_path / "trials.json") == {"trials": [], "learning_curve": {}, "ablation": {}, "training": training}
    dry = without_training(storage, decision | {"action": "search", "act": "record", "dry_run": True}, tmp_path / "dry", tmp_path / "trials.json")
    assert dry == "No model was trained: the decision is to learn all families anew, on all that is known (a dry run). The champion is handed on."


def test_a_recalibration_leaves_the_test_patients_for_the_gate(storage, tmp_path):
    rows = known(storage, 2, 1)
    taught = rows[side(rows.patient_nbr, storage.split) != "test"]
    assert 0 < len(taught) < len(rows)
    decision = {"batch": 2, "due": 1, "action": "recalibrate", "act": "recalibrate", "dry_run": False}
    said = without_training(storage, decision, tmp_path / "draft", tmp_path / "trials.json")
    assert said == f"No model was trained: the champion is recalibrated on {len(taught):,} encounters of batch 1, whose outcomes are the newest."
    now = read_json(Tree(storage).models / "champion.json")
    made, training = Bundle(tmp_path / "draft"), {"recalibrated_from": now["digest"], "recalibrated_on": len(taught)}
    assert made.training.items() >= training.items() and read_json(tmp_path / "trials.json")["training"] == made.training
    recalibrate(Tree(storage).models / "first", tmp_path / "want", taught, {t: outcome(taught.readmitted, t) for t in TARGETS}, storage.threshold)
    assert made.digest == Bundle(tmp_path / "want").digest
    for t, y in {t: outcome(taught.readmitted, t) for t in TARGETS}.items(): assert made.predict_frame(taught)[t].mean() == pytest.approx(y.mean(), abs=1e-3)
