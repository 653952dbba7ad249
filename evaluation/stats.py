"""Statistics for comparing two models: numbers in, estimates with intervals out.

What it does: win rates, agreement, sign and position tests, sample sizes, judge-error correction,
paired differences. What it does not do: know what a judge or a verdict is (judge.py, outcomes.py),
or rank more than two models (ranking.py). scipy is imported inside the functions that need it.

Every interval here is over *prompts*. The orders and turns of one prompt are averaged before they
come here: resampling them one by one would treat them as independent and make the intervals 1.5 to
2 times too narrow. `python -m benchmarks.judge_statistics` simulates how often each interval covers
the truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils import CourseError

Z95, Z80 = 1.959964, 0.841621  # quantiles of the normal distribution: 95 % intervals, 80 % power


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` prompts (or other items) with its standard error and a 95 % interval."""

    value: float
    se: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}], n = {self.n}"

    @property
    def short(self) -> str:
        """As in a sentence: "71 % [60, 81]"."""
        return f"{100 * self.value:.0f} % [{100 * self.low:.0f}, {100 * self.high:.0f}]"

    @property
    def turned(self) -> Estimate:
        """The same rate seen from the other model."""
        return Estimate(1 - self.value, self.se, 1 - self.high, 1 - self.low, self.n)


@dataclass(frozen=True)
class Agreement:
    """Two raters on the same items: how often they give the same label, and Cohen's kappa."""

    accuracy: Estimate
    kappa: Estimate | None  # None where both use one and the same label: there is no chance to beat
    n: int  # labels of each rater

    @property
    def kappa_text(self) -> str:
        """ "0.65 [0.54, 0.76]", or why there is none."""
        if self.kappa is None:
            return "cannot be estimated: only one label was used"
        return f"{self.kappa.value:.2f} [{self.kappa.low:.2f}, {self.kappa.high:.2f}]"


@dataclass(frozen=True)
class Difference:
    """Mean paired difference (tuned minus base), Wilcoxon's p, and how many pairs lack a score."""

    mean: Estimate
    p: float
    missing: int

    def __str__(self) -> str:
        missing = f", {self.missing} without a score" if self.missing else ""
        mean = self.mean
        return (
            f"{mean.value:+.2f} [{mean.low:+.2f}, {mean.high:+.2f}], Wilcoxon {p_value(self.p)}, "
            f"n = {mean.n}{missing}"
        )


def p_value(p: float) -> str:
    """ "p = .002", "p < .001": as papers print it."""
    if p < 0.001:
        return "p < .001"
    digits = 3 if p < 0.1 else 2
    return f"p = {p:.{digits}f}".replace("0.", ".")


# --- rates ----------------------------------------------------------------------------------------


def rate(values: Sequence[float], lowest: float = 0.0, highest: float = 1.0) -> Estimate:
    """The mean of values that lie between two bounds, with an interval that never claims certainty.

    Of values that are 0 or 1 it is Wilson's interval. Where ties or half points spread less than
    wins and losses would, they count as correspondingly more trials; two imagined values, one at
    either bound, keep values that are all the same from counting as infinitely many.

    Raises:
        CourseError: no value, or one outside the bounds.
    """
    share, trials = _trials(values, lowest, highest)
    centre = (share + Z95**2 / (2 * trials)) / (1 + Z95**2 / trials)
    half = math.sqrt(share * (1 - share) / trials + Z95**2 / (4 * trials**2))
    half *= Z95 / (1 + Z95**2 / trials)
    low, high = (
        lowest + (highest - lowest) * point
        for point in (max(0.0, centre - half), min(1.0, centre + half))
    )
    n = len(values)
    se = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return Estimate(float(np.mean(values)), se, low, high, n)


def win_rate(scores: Sequence[float]) -> Estimate:
    """The mean score of a model with its interval.

    Args:
        scores: one a *prompt*, in [0, 1], all orders and turns of the prompt averaged: 1 for a win,
            0 for a loss, .5 for a tie.
    """
    return rate(scores)


def _trials(values: Sequence[float], lowest: float, highest: float) -> tuple[float, float]:
    """`(share, trials)`: the wins or losses that would say as much as these values do."""
    x = (np.asarray(values, float) - lowest) / (highest - lowest)
    if not len(x) or not ((x >= 0) & (x <= 1)).all():
        raise CourseError(
            f"A rate needs at least one score, and every score lies between {lowest:g} and "
            f"{highest:g}: check the verdicts."
        )
    share, n = float(x.mean()), len(x)
    widest = share * (1 - share)  # the variance of wins and losses alone
    if widest < 1e-12:
        return round(share), n
    variance = (n * float(x.var()) + 2 * widest) / (n + 2)
    return share, n * widest / variance


def bounds(scores: Sequence[float | None]) -> tuple[float, float]:
    """The mean with every missing score (a failed verdict) counted as 0, and as 1: what the
    failures could hide."""
    known = [score for score in scores if score is not None]
    return sum(known) / len(scores), (sum(known) + len(scores) - len(known)) / len(scores)


def paired_difference(base: Sequence[float | None], tuned: Sequence[float | None]) -> Difference:
    """Single scores from 1 to 10 compared prompt by prompt, because prompts differ more than models
    do. A prompt where either score is missing is left out and counted."""
    from scipy.stats import wilcoxon

    if len(base) != len(tuned):
        raise CourseError(
            f"Paired scores need the same prompts for both models, got {len(base)} and "
            f"{len(tuned)}."
        )
    values = []
    for before, after in zip(base, tuned, strict=True):
        if before is not None and after is not None:
            values.append(after - before)
    if not values:
        raise CourseError(
            "No prompt has a score for both models: read the errors of the judge's replies in the "
            "journal."
        )
    p = float(wilcoxon(values, zero_method="zsplit").pvalue) if any(values) else 1.0
    return Difference(rate(values, -9, 9), p, len(base) - len(values))


# --- tests and sample sizes -----------------------------------------------------------------------


def binomial_test(first: int, second: int) -> float:
    """Two-sided exact p that both are equally likely; 1 if there are none. For wins against losses
    this is the sign test: p = min(1, 2 * sum_{k >= max} C(first + second, k) / 2^(first +
    second))."""
    from scipy.stats import binomtest

    return float(binomtest(first, first + second).pvalue) if first + second else 1.0


def prompts_for(half_width: float, undecided: float = 0.0) -> int:
    """Prompts for an interval of +-`half_width` near 50 %, with a share `undecided` of ties and
    inconsistent prompts.

    n = 1.96^2 * Var / h^2 with Var = (1 - undecided) / 4: 385 prompts for 5 points, 250 if a third
    is undecided.
    """
    return math.ceil(Z95**2 * (1 - undecided) / 4 / half_width**2)


def prompts_needed(wins: int, losses: int, n: int) -> int | None:
    """New prompts with which the sign test finds an effect like this one at 95 % with 80 % power;
    None where there is no effect.

    Decisive prompts by the normal approximation, made larger for the exact test's steps (Fleiss,
    Statistical Methods for Rates and Proportions), divided by the share that is decisive. It takes
    the observed effect for the true one, which in a small sample is mostly too large.
    """
    if wins == losses:
        return None
    share = max(wins, losses) / (wins + losses)
    effect = share - 0.5
    decisive = ((Z95 / 2 + Z80 * math.sqrt(share * (1 - share))) / effect) ** 2
    decisive *= (1 + math.sqrt(1 + 2 / (decisive * effect))) ** 2 / 4
    return math.ceil(max(decisive, 6) * n / (wins + losses))  # 6 of 6: p = .03; 5 of 5: p = .06


# --- agreement ------------------------------------------------------------------------------------


def agreement(a: Sequence, b: Sequence, clusters: Sequence | None = None) -> Agreement:
    """How often two raters give the same label, and Cohen's kappa: agreement beyond chance.

    Kappa's interval is that of the accuracy, with the chance agreement taken as known, as in
    Cohen's own standard error (1960).

    Args:
        a, b: one label an item.
        clusters: which items belong together (both orders of a pair): they are averaged first, and
            each cluster counts as one. Without it every item is its own.
    """
    if len(a) != len(b) or not len(a):
        raise CourseError(
            f"Agreement needs the same items from both raters, got {len(a)} and {len(b)} labels."
        )
    one, two = np.array(list(map(str, a))), np.array(list(map(str, b)))
    names = range(len(a)) if clusters is None else [str(name) for name in clusters]
    _, member = np.unique(names, return_inverse=True)
    same = np.bincount(member, weights=one == two) / np.bincount(member)
    accuracy = rate(same.tolist())
    chance = 0.0
    for label in np.unique(one):
        chance += float((one == label).mean() * (two == label).mean())
    if chance == 1:
        return Agreement(accuracy, None, len(a))
    value, low, high = (
        (point - chance) / (1 - chance) for point in (accuracy.value, accuracy.low, accuracy.high)
    )
    kappa = Estimate(value, accuracy.se / (1 - chance), low, high, accuracy.n)
    return Agreement(accuracy, kappa, len(a))


# --- the judge's errors ---------------------------------------------------------------------------


def corrected(scores: Sequence[float], labelled: Sequence[float]) -> Estimate | None:
    """The win rate corrected for the judge's errors (Rogan and Gladen, 1978): p = (p_obs - (1 - a))
    / (2a - 1), within [0, 1].

    The interval holds every rate that the likelihood of both samples together allows, whatever the
    accuracy: near the edges resampling claims certainty, this does not.

    Args:
        scores: the observed ones, one a prompt.
        labelled: the same on pairs whose better answer is known, 1 where the judge is right; their
            mean is the accuracy a.

    Returns:
        None where the assumption is refuted that the judge errs on these models' answers as often
        as on the labelled pairs, and as often for either model: then no rate at all would give
        scores as one-sided as these, for a judge of this accuracy says at most a.

    Raises:
        CourseError: the judge is no better than a coin.
    """
    observed, trials = _trials(scores, 0, 1)
    right, pairs = _trials(labelled, 0, 1)
    if right <= 0.5:
        raise CourseError(
            f"A judge that is right in {right:.0%} cannot be corrected: it is no better than a "
            "coin."
        )
    truth = np.linspace(0, 1, 401)
    accuracy = np.linspace(0.5, 1, 251)
    said = 1 - accuracy + truth[:, None] * (2 * accuracy - 1)  # what the judge then says
    joint = trials * _fit(observed, said) + pairs * _fit(right, accuracy)  # (401, 251)
    profile = joint.max(axis=1)  # the best accuracy for each rate
    # Twice a difference of log-likelihoods is a chi-square: its 95 % quantile is 1.96 squared
    unrestrained = float(trials * _fit(observed, observed) + pairs * _fit(right, right))
    if 2 * (unrestrained - profile.max()) > Z95**2:
        return None
    allowed = truth[2 * (profile.max() - profile) <= Z95**2]
    value = min(1.0, max(0.0, (observed - (1 - right)) / (2 * right - 1)))
    se = float(allowed[-1] - allowed[0]) / (2 * Z95)
    return Estimate(value, se, float(allowed[0]), float(allowed[-1]), len(scores))


def _fit(share: float, q: np.ndarray | float) -> np.ndarray:
    """Log-likelihood of a rate q, for one trial of which `share` succeeded."""
    from scipy.special import xlogy

    return xlogy(share, q) + xlogy(1 - share, 1 - np.asarray(q))
