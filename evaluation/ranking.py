"""More than two models: strengths from all their pairs, by Bradley and Terry (1952).

What it does: fit the model that gives i a win over j with probability sigma(s_i - s_j), and say for
each model how often it would beat one of average strength. What it does not do: judge (judge.py),
or compare two models alone, for which `stats.win_rate` is enough.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from evaluation import outcomes, stats
from evaluation.stats import Estimate
from utils import CourseError

# Of a win, added to both sides of every pair that met: a model that lost nothing is strong, not
# infinitely so, and has an interval
IMAGINED = 0.5
STEPS = 100


def rank(pairs: Mapping[tuple[str, str], Sequence[dict]]) -> dict[str, Estimate]:
    """Each model's chance to beat one of average strength, with a 95 % interval, the strongest
    first.

    The interval is that of the likelihood's curvature, in which every prompt counts once a pair and
    a tie as half a win for both, which makes it a little too wide.

    Args:
        pairs: for `(other, model)` the records of `Judge.compare`, whose `value` is 1 where `model`
            wins. Records without a readable verdict are left out.

    Raises:
        CourseError: a model met no other, or two groups of models never met.
    """
    names = sorted(set(itertools.chain.from_iterable(pairs)))
    place = {name: i for i, name in enumerate(names)}
    wins = np.zeros((len(names), len(names)))  # wins[i, j]: of i over j
    for (other, model), records in pairs.items():
        scores = outcomes.values(records)
        wins[place[model], place[other]] += sum(scores)
        wins[place[other], place[model]] += len(scores) - sum(scores)
    strength, covariance = _fit(wins)
    errors = np.sqrt(np.diag(covariance))
    found = {}
    for i in np.argsort(-strength):
        value, low, high = (
            1 / (1 + np.exp(-(strength[i] + step * errors[i])))
            for step in (0, -stats.Z95, stats.Z95)
        )
        met = round(float(wins[i].sum() + wins[:, i].sum()))
        se = float(errors[i] * value * (1 - value))
        found[names[i]] = Estimate(float(value), se, float(low), float(high), met)
    return found


def _fit(wins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Strengths (k,), which sum to 0, and their covariance (k, k), by Newton's method."""
    met = wins + wins.T > 0
    wins = wins + IMAGINED * met
    games = wins + wins.T
    if np.linalg.matrix_rank(np.diag(met.sum(axis=1)) - met) < len(wins) - 1:
        raise CourseError("Some models never met, by chain or directly: compare all pairs.")
    strength = np.zeros(len(wins))
    for _ in range(STEPS):
        expected = 1 / (1 + np.exp(strength[None] - strength[:, None]))
        gradient = (wins - games * expected).sum(axis=1)
        spread = games * expected * (1 - expected)
        curvature = np.diag(spread.sum(axis=1)) - spread
        covariance = np.linalg.pinv(curvature)  # within the strengths that sum to 0
        step = covariance @ gradient
        strength = strength + step / max(1.0, float(np.abs(step).max()))  # no step beyond 1
        if np.abs(step).max() < 1e-9:
            break
    return strength, covariance
