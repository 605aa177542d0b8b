"""Explanations over HTTP: they add up to the uncalibrated log-odds, in the user's terms."""
import json

import numpy as np
import pytest
from conftest import as_request, faults


@pytest.fixture(scope="module")
def bundle(built):
    from health_predict.bundle import Bundle
    champion = json.loads((built.storage / "models" / "champion.json").read_text())
    return Bundle(built.storage / "models" / champion["path"])


def test_contributions_add_up_to_the_uncalibrated_log_odds(server, cohort, bundle):
    from health_predict.bundle import onnx_log_odds
    from health_predict.encode import encode
    X = encode(cohort.head(20), bundle.encoder)
    scores = {t: onnx_log_odds(s, X) for t, s in bundle.sessions.items()}
    for i, (_, row) in enumerate(cohort.head(20).iterrows()):
        body = server.post("/explain", json=as_request(row.to_dict())).json()
        for target, told in body["explanations"].items():
            total = told["base"] + sum(o["contribution"] for o in told["contributions"])
            assert total == pytest.approx(scores[target][i], abs=1e-4) and total == pytest.approx(told["log_odds"], abs=1e-9)


def test_explanation_speaks_the_users_words(server, encounter):
    body = server.post("/explain", json=encounter | {"number_inpatient": 3}).json()
    assert body["risks"] == server.post("/predict", json=encounter | {"number_inpatient": 3}).json()["risks"]
    told = {o["term"]: o for o in body["explanations"]["any"]["contributions"]}
    assert told["number_inpatient"]["text"].startswith("prior inpatient visits: 3 → ")
    assert not any("=" in o or "rate_" in o for o in told)    # no column of the model shows
    assert "examide" in body["not_used"]
    sizes = [abs(o["contribution"]) for o in body["explanations"]["any"]["contributions"]]
    assert sizes == sorted(sizes, reverse=True)


def test_bad_requests_are_refused_alike(server, encounter):
    assert "banana" in faults(server.post("/explain", json=encounter | {"age": "banana"}))["age"]


def test_xgboost_says_the_same(built, bundle, cohort):
    """For a boosted model, our contributions are XGBoost's own."""
    import xgboost as xgb
    from health_predict.contributions import Explainer
    from health_predict.encode import encode
    boosted = [t for t, o in bundle.targets.items() if o["family"] == "xgboost"]
    assert boosted, "no target of the built project is boosted: nothing would be compared"
    X = encode(cohort.head(30), bundle.encoder)
    for target in boosted:
        explainer, model = Explainer(bundle.folder / f"{target}.npy", "xgboost"), xgb.Booster(model_file=bundle.folder / f"{target}.ubj")
        ours = np.array([[*each, base] for base, each in map(explainer.explain, X)])
        assert np.abs(ours - model.predict(xgb.DMatrix(X), pred_contribs=True)).max() < 1e-3
