"""How often the gate promotes challengers whose truth is known: better, equal, slightly worse, much worse, miscalibrated, unfair.

    python tests/benchmarks/gate.py [--promotions 200] [--rows 4000]

Encounters are drawn with a known risk; both models see it through noise. The equal challenger has as much noise as the champion, a fifth of it its own; a gate
that promotes it seldom wastes trainings, one that promotes the bad ones often does harm.
"""
import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import pandas as pd

from health_predict.gate import judge
from health_predict.settings import load_settings

RACES, AGES = {"Caucasian": .75, "AfricanAmerican": .2, "Hispanic": .05}, {"[50-60)": .2, "[60-70)": .3, "[70-80)": .3, "[80-90)": .2}
NOISE = 1.1    # of the champion's log-odds: AUROC about 0.69 at any time, 0.66 within 30 days


def risk(z): return 1 / (1 + np.exp(-z))


def posterior(seen, noise, mean, spread=1.0):
    """The calibrated probability of one who sees a normal log-odds through normal noise (Monte Carlo over what is left unknown)."""
    weight = spread**2 / (spread**2 + noise**2)
    left = np.random.default_rng(1).normal(0, np.sqrt(spread**2 * (1 - weight)), 200)
    return risk((mean + weight * (seen - mean))[:, None] + left).mean(1)


def models(kind, z, mean, male, rng):
    """The champion's and a challenger's probabilities; four fifths of their noise is shared, as models of the same data share their errors."""
    shared = rng.normal(0, NOISE * np.sqrt(.8), len(z))
    view = lambda extra: z + shared + rng.normal(0, np.sqrt(max(NOISE**2 * .2 + extra, 0.01)), len(z))
    seen = lambda extra: posterior(view(extra), np.sqrt(NOISE**2 + extra), mean)
    champion = seen(0)
    if kind == "miscalibrated":
        p = seen(0)
        return champion, risk(np.log(p / (1 - p)) * 1.6 + .3)
    if kind == "unfair": return champion, np.where(male, posterior(rng.permutation(view(0)), NOISE, mean), seen(0))
    return champion, seen({"better": -.22, "equal": 0, "slightly worse": .12, "much worse": 1.6}[kind])


def promoted(kind, rows, seed):
    """One promotion decided: its verdict, and which checks failed."""
    rng = np.random.default_rng([seed, sum(map(ord, kind))])
    people = pd.DataFrame({"patient_nbr": rng.integers(0, int(rows * .8), rows), "race": rng.choice(list(RACES), rows, p=list(RACES.values())),
                           "gender": rng.choice(["Female", "Male"], rows, p=[.54, .46]), "age": rng.choice(list(AGES), rows, p=list(AGES.values()))})
    outcomes, champion, challenger = {}, {}, {}
    for target, mean in (("any", -.15), ("30d", -2.3)):
        z = rng.normal(mean, 1, rows)
        outcomes[target] = (rng.random(rows) < risk(z)).astype(int)
        champion[target], challenger[target] = models(kind, z, mean, (people.gender == "Male").to_numpy(), rng)
    found = judge(people, outcomes, champion, challenger, load_settings(gate={"resamples": 400}).gate, seed)
    difference = next(o["value"] for o in found["checks"] if o["check"] == "ranking")
    return found["verdict"] == "promote", {o["check"] for o in found["checks"] if not o["passed"]}, difference


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--promotions", type=int, default=200)
    parser.add_argument("--rows", type=int, default=4000)
    arguments = parser.parse_args()
    rows = []
    with ProcessPoolExecutor() as pool:
        for kind in ("better", "equal", "slightly worse", "much worse", "miscalibrated", "unfair"):
            found = list(pool.map(partial(promoted, kind, arguments.rows), range(arguments.promotions)))
            share, n = np.mean([o[0] for o in found]), len(found)
            rows.append({"challenger": kind, "promoted": share, "±": 1.96 * np.sqrt(share * (1 - share) / n),
                         "AUROC difference (any), mean": np.mean([o[2] for o in found]),
                         **{f"refused for {c}": np.mean([c in o[1] for o in found]) for c in ("ranking", "calibration", "group")}})
            print(f"{kind}: done", file=sys.stderr)
    print(f"{arguments.promotions} simulated promotions of each kind, {arguments.rows} encounters, both targets guarded")
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda v: f"{v:.3f}"))
