"""Statistics for comparing two models: numbers in, estimates with intervals out.

What it does: win rates, agreement, sign and position tests, sample sizes, judge-error correction,
paired differences, length. What it
does not do: know what a judge or a verdict is (judge.py, outcomes.py). scipy and scikit-learn are
imported inside the functions that need them.

Every interval here is over *prompts*. The orders and turns of one prompt are averaged before they
come here: resampling them one by one would treat them as independent and make the intervals 1.5 to
2 times too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils import CourseError

Scores = Sequence[float] | np.ndarray  # one a prompt, in [0, 1]

Z95, Z80 = (
    1.959964,
    0.841621,
)  # quantiles of the normal distribution for a 95 % interval and for 80 % power


@dataclass(frozen=True)
class Estimate:
    """A mean in [0, 1] over `n` prompts with its standard error and a 95 % interval."""

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


@dataclass(frozen=True)
class Agreement:
    """Two raters on the same items: accuracy and Cohen's kappa, each `(value, low, high)` at 95
    %."""

    accuracy: tuple[float, float, float]
    kappa: tuple[float, float, float]
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean paired difference (tuned minus base) with a 95 % interval, Wilcoxon's p, and how many
    pairs lack a score."""

    value: float
    low: float
    high: float
    p: float
    n: int
    missing: int

    def __str__(self) -> str:
        missing = f", {self.missing} without a score" if self.missing else ""
        return (
            f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}], Wilcoxon "
            f"{p_value(self.p)}, n = {self.n}{missing}"
        )


def p_value(p: float) -> str:
    """ "p = .002", "p < .001": as papers print it."""
    if p < 0.001:
        return "p < .001"
    digits = 3 if p < 0.1 else 2
    return f"p = {p:.{digits}f}".replace("0.", ".")


# --- proportions and win rates --------------------------------------------------------------------


def wilson(successes: float, n: int) -> tuple[float, float]:
    """95 % Wilson interval of a proportion. `successes` may hold halves (ties), which makes it a
    little too wide."""
    if n < 1 or not 0 <= successes <= n:
        raise CourseError(
            f"A proportion needs 0 to n successes of at least one trial, got {successes} of {n}."
        )
    share = successes / n
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def proportion(values: Scores) -> Estimate:
    """Mean of values in [0, 1] with a Wilson interval: for rates, and for groups too small to
    bootstrap."""
    scores = _unit(values)
    low, high = wilson(float(scores.sum()), len(scores))
    return Estimate(float(scores.mean()), _se(scores), low, high, len(scores))


def win_rate(scores: Sequence[float], resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Mean score with a percentile bootstrap over prompts.

    Args:
        scores: one per *prompt*, in [0, 1], all orders and turns of the prompt averaged.

    Where all scores are the same a bootstrap has nothing to vary and would claim certainty; the
    interval is then Wilson's.
    """
    values = _unit(scores)
    if np.ptp(values) == 0:
        return proportion(values)
    return Estimate(
        float(values.mean()),
        _se(values),
        *_percentiles(_means(values, resamples, seed)),
        len(values),
    )


def _unit(values: Scores) -> np.ndarray:
    scores = np.asarray(values, float)
    if not len(scores) or not ((scores >= 0) & (scores <= 1)).all():
        raise CourseError(
            "A win rate needs at least one score, and every score lies between 0 and 1: check the "
            "verdicts."
        )
    return scores


def _se(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(values, (resamples, len(values))).mean(axis=1)


def _percentiles(draws) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def bounds(scores: Sequence[float | None]) -> tuple[float, float]:
    """The mean with every missing score (a failed verdict) counted as 0, and as 1: what the
    failures could hide."""
    known = [score for score in scores if score is not None]
    return sum(known) / len(scores), (sum(known) + len(scores) - len(known)) / len(scores)


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


def prompts_needed(scores: Sequence[float]) -> int | None:
    """Prompts with which an effect of the observed size and spread would be seen at 95 % with 80 %
    power; None where there is no effect."""
    values = _unit(scores)
    effect = abs(values.mean() - 0.5)
    if effect < 1e-9 or len(values) < 2:
        return None
    return max(2, math.ceil((Z95 + Z80) ** 2 * values.var(ddof=1) / effect**2))


# --- agreement ------------------------------------------------------------------------------------


def agreement(
    a: Sequence,
    b: Sequence,
    clusters: Sequence | None = None,
    resamples: int = 2_000,
    seed: int = 0,
) -> Agreement:
    """How often two raters give the same label, and Cohen's kappa: agreement beyond chance, with a
    bootstrap interval.

    Args:
        a, b: one label an item.
        clusters: which items belong together (both orders of a pair); they are then drawn together,
            and the interval of the accuracy is a bootstrap too. Without it every item is its own,
            and that interval is Wilson's.
    """
    if len(a) != len(b) or not len(a):
        raise CourseError(
            f"Agreement needs the same items from both raters, got {len(a)} and {len(b)} labels."
        )
    names, codes = np.unique([*map(str, a), *map(str, b)], return_inverse=True)
    codes_a, codes_b = codes[: len(a)], codes[len(a) :]
    _, member = np.unique(
        np.arange(len(a)) if clusters is None else [str(c) for c in clusters], return_inverse=True
    )
    tables = np.zeros((member.max() + 1, len(names), len(names)))
    np.add.at(
        tables, (member, codes_a, codes_b), 1
    )  # a confusion matrix for every cluster: to draw is to add them up
    drawn = np.random.default_rng(seed).integers(len(tables), size=(resamples, len(tables)))
    accuracies, kappas = zip(*(_kappa(tables[rows].sum(axis=0)) for rows in drawn), strict=True)
    accuracy, kappa = _kappa(tables.sum(axis=0))
    interval = (
        wilson(round(accuracy * len(a)), len(a)) if clusters is None else _percentiles(accuracies)
    )
    return Agreement((accuracy, *interval), (kappa, *_percentiles(kappas)), len(a))


def _kappa(table: np.ndarray) -> tuple[float, float]:
    """Accuracy and Cohen's kappa of a confusion matrix; where both raters use one and the same
    label only, kappa is taken as 1."""
    n = table.sum()
    observed, chance = np.trace(table) / n, float(table.sum(axis=0) @ table.sum(axis=1)) / n**2
    return float(observed), 1.0 if chance == 1 else float((observed - chance) / (1 - chance))


# --- the judge's errors, single scores, length ----------------------------------------------------


def corrected(
    scores: Sequence[float], labelled: Sequence[float], resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """The win rate corrected for the judge's errors (Rogan and Gladen, 1978): p = (p_obs - (1 - a))
    / (2a - 1), within [0, 1].

    Args:
        scores: the observed ones, one a prompt.
        labelled: the same on pairs whose better answer is known, 1 where the judge is right; their
            mean is the accuracy a.

    The interval resamples both. Where a draw makes the judge no better than a coin, the draw says
    nothing and counts as 0 or as 1 in turn. It assumes that the judge errs on these models' answers
    as often as on the labelled pairs, and as often for either model.
    """
    observed, right = _unit(scores), _unit(labelled)
    if right.mean() <= 0.5:
        raise CourseError(
            f"A judge that is right in {right.mean():.0%} cannot be corrected: it is no better "
            "than a coin."
        )
    p, a = _means(observed, resamples, seed), _means(right, resamples, seed + 1)
    usable = a > 0.5
    draws = (np.arange(resamples) % 2).astype(float)
    draws[usable] = np.clip((p[usable] - (1 - a[usable])) / (2 * a[usable] - 1), 0, 1)
    value = float(np.clip((observed.mean() - (1 - right.mean())) / (2 * right.mean() - 1), 0, 1))
    return Estimate(value, float(draws.std()), *_percentiles(draws), len(observed))


def paired_difference(
    base: Sequence[float | None],
    tuned: Sequence[float | None],
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Single scores compared prompt by prompt, because prompts differ more than models do:
    bootstrap interval and Wilcoxon's p.

    A prompt where either score is missing is left out and counted.
    """
    from scipy.stats import wilcoxon

    if len(base) != len(tuned):
        raise CourseError(
            f"Paired scores need the same prompts for both models, got {len(base)} and "
            f"{len(tuned)}."
        )
    differences = []
    for before, after in zip(base, tuned, strict=True):
        if before is not None and after is not None:
            differences.append(after - before)
    values = np.array(differences)
    if not len(values):
        raise CourseError(
            "No prompt has a score for both models: read the errors of the judge's replies in the "
            "journal."
        )
    p = float(wilcoxon(values, zero_method="zsplit").pvalue) if values.any() else 1.0
    return Difference(
        float(values.mean()),
        *_percentiles(_means(values, resamples, seed)),
        p,
        len(values),
        missing=len(base) - len(values),
    )


def equal_length(
    scores: Sequence[float], longer: Sequence[float], resamples: int = 1_000, seed: int = 0
) -> tuple[Estimate, float]:
    """A sensitivity figure: the win rate the fit gives to answers of equal length, and the weight
    of length.

    Fits logit(score) ~ b0 + b1 * tanh(longer / sd) by Newton's method and returns sigma(b0) with a
    bootstrap interval, and b1. After AlpacaEval's length-controlled win rate (arXiv 2404.04475),
    without its per-item difficulties, which belong to its own prompts. A weak ridge (0.1) keeps the
    weights finite where one model wins everywhere.

    Args:
        longer: by how many tokens (or characters) the tuned answer is longer than the base answer,
            one a prompt.
    """
    values, gap = _unit(scores), np.asarray(longer, float)
    if len(gap) != len(values):
        raise CourseError(
            f"Length needs one difference a prompt, got {len(gap)} for {len(values)} scores."
        )
    features = np.stack([np.ones(len(gap)), np.tanh(gap / (gap.std() or 1.0))], axis=1)
    rows = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    weights = np.concatenate(
        [_logistic(features[None], values[None]), _logistic(features[rows], values[rows])]
    )
    rates = 1 / (1 + np.exp(-weights[:, 0]))
    return Estimate(
        float(rates[0]), float(rates[1:].std()), *_percentiles(rates[1:]), len(values)
    ), float(weights[0, 1])


def _logistic(x: np.ndarray, y: np.ndarray, ridge: float = 0.1, steps: int = 30) -> np.ndarray:
    """Logistic regressions, many at once: `x` (draws, n, 2), `y` (draws, n) in [0, 1]; weights
    (draws, 2)."""
    weights = np.zeros((len(x), x.shape[2]))
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.einsum("dnk,dk->dn", x, weights)))
        gradient = np.einsum("dnk,dn->dk", x, y - p) - ridge * weights
        curvature = np.einsum("dnk,dn,dnl->dkl", x, p * (1 - p), x) + ridge * np.eye(x.shape[2])
        weights += np.linalg.solve(curvature, gradient[..., None])[..., 0]
    return weights
