"""Do the intervals and sample sizes of `evaluation/stats.py` keep what they promise? Simulated, and
where the cases can be counted, counted. (About two minutes on one core.)

Run: .venv/bin/python -m benchmarks.judge_statistics

Each line is a population whose truth is known. Coverage is the share of samples whose 95 % interval
holds the truth. It cannot be 95 % everywhere: ten prompts have few outcomes, and a model that
always wins is covered always. So the mean over a table is held to 93 to 97 %, and its worst case is
printed. The program ends with an error where a promise is not kept.
"""

from __future__ import annotations

import functools
import itertools
import sys

import numpy as np

from evaluation import outcomes, stats

SIZES = (10, 15, 60)
RATES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
ACCURACIES = (0.6, 0.7, 0.8, 0.86, 0.95, 1.0)
LABELLED = 168  # as many pairs as the course has
# Shares of wins, losses and ties
EFFECTS = ((0.5, 0.3, 0.2), (0.6, 0.4, 0), (0.4, 0.2, 0.4), (0.8, 0.2, 0), (0.3, 0.1, 0.6))
NEGLIGIBLE = 1e-7  # outcomes rarer than this are left out


def main() -> int | str:
    print(f"Python {sys.version.split()[0]}\n")
    print("| what | n | mean | least | most | cases |\n|---|---|---|---|---|---|")
    kept = [win_rates(), corrections(), kappas(), differences()]
    print("\n| true win : loss : tie | prompts_needed | power of the sign test | of the headline |")
    print("|---|---|---|---|")
    kept.append(powers())
    print("\n| looking | a winner is named where there is none |\n|---|---|")
    kept.append(looking_again())
    return 0 if all(kept) else "a promise is not kept"


def report(what: str, n: int, covered: list[float]) -> bool:
    """One line of the table; True if the mean is 93 to 97 %."""
    mean, least, most = sum(covered) / len(covered), min(covered), max(covered)
    print(f"| {what} | {n} | {mean:.1%} | {least:.1%} | {most:.1%} | {len(covered)} |")
    return 0.93 <= mean <= 0.97


def holds(estimate: stats.Estimate, truth: float) -> bool:
    return estimate.low - 1e-9 <= truth <= estimate.high + 1e-9


# --- coverage -------------------------------------------------------------------------------------


@functools.cache
def win_rate(wins: int, losses: int, ties: int) -> stats.Estimate:
    return stats.win_rate([1.0] * wins + [0.0] * losses + [0.5] * ties)


def win_rates() -> bool:
    """Every table of wins, losses and ties, weighted by how often it comes."""
    from scipy.stats import multinomial

    good = []
    for n in SIZES:
        covered = []
        for rate, tied in itertools.product(RATES[:-1], (0.0, 0.2, 0.5, 0.8)):
            shares = ((1 - tied) * rate, (1 - tied) * (1 - rate), tied)
            tables = [(w, k, n - w - k) for w in range(n + 1) for k in range(n + 1 - w)]
            weights = multinomial.pmf(tables, n, shares)
            truth = shares[0] + tied / 2
            likely = [pair for pair in zip(tables, weights, strict=True) if pair[1] > NEGLIGIBLE]
            covered.append(sum(p for table, p in likely if holds(win_rate(*table), truth)))
        good.append(report("win rate, up to 80 % ties", n, covered))
    return all(good)


@functools.cache
def corrected(wins: int, n: int, right: int) -> stats.Estimate | None:
    return stats.corrected(
        [1.0] * wins + [0.0] * (n - wins), [1.0] * right + [0.0] * (LABELLED - right)
    )


def corrections() -> bool:
    """Every number of seen wins and of right verdicts, weighted by how often they come together.

    Judges that calibration refuses (no better than a coin) have no correction and do not count;
    neither does a sample in which the assumption looks refuted, whose share is printed.
    """
    from scipy.stats import binom

    good = []
    for n in SIZES:
        covered, refuted = [], []
        for rate, accuracy in itertools.product(RATES, ACCURACIES):
            seen = rate * accuracy + (1 - rate) * (1 - accuracy)
            wins = binom.pmf(range(n + 1), n, seen)
            rights = binom.pmf(range(LABELLED + 1), LABELLED, accuracy)
            inside = total = no = 0.0
            for w, r in itertools.product(range(n + 1), range(LABELLED // 2 + 1, LABELLED + 1)):
                weight = wins[w] * rights[r]
                if weight < NEGLIGIBLE:
                    continue
                estimate = corrected(w, n, r)
                if estimate is None:
                    no += weight
                    continue
                total += weight
                inside += weight * holds(estimate, rate)
            covered.append(inside / total)
            refuted.append(no / (no + total))
        inner = [share for share in covered if share < 1]  # always covered: a certain winner
        good.append(report(f"corrected win rate, {LABELLED} labelled pairs", n, inner))
        mean, least, most = np.mean(refuted), min(refuted), max(refuted)
        print(f"| - refuted though true | {n} | {mean:.1%} | {least:.1%} | {most:.1%} | 42 |")
    return all(good)


def kappas(draws: int = 400) -> bool:
    """Two raters of three labels who agree in a known share, half of whose labels are "A"."""
    rng, good = np.random.default_rng(0), []
    labels, weights = np.array(list("ABt")), (0.5, 0.3, 0.2)
    chance = sum(weight**2 for weight in weights)
    for n in SIZES:
        covered = []
        for kappa in (0.0, 0.3, 0.6, 0.9):
            inside = counted = 0
            for _ in range(draws):
                a, fresh = rng.choice(labels, (2, n), p=weights)
                copied = rng.random(n) < kappa  # then the share that agrees is k + (1 - k) * chance
                found = stats.agreement(a, np.where(copied, a, fresh)).kappa
                if found is not None:
                    counted += 1
                    inside += holds(found, kappa)
            covered.append(inside / counted)
        good.append(report(f"kappa, chance {chance:.0%}", n, covered))
    return all(good)


def differences(draws: int = 400) -> bool:
    """Differences of scores from 1 to 10: spread, mostly equal, and rarely apart."""
    rng, good = np.random.default_rng(1), []
    populations = [
        ((-3, -1, 0, 2, 5), (0.1, 0.2, 0.2, 0.3, 0.2)),
        ((0, 1), (0.7, 0.3)),
        ((-2, 2, 3), (0.1, 0.8, 0.1)),
        ((0, 2), (0.9, 0.1)),
    ]
    for n in SIZES:
        covered = []
        for values, weights in populations:
            truth = float(np.dot(values, weights))
            samples = rng.choice(values, (draws, n), p=weights)
            held = [holds(stats.rate(sample, -9, 9), truth) for sample in samples]
            covered.append(sum(held) / draws)
        # Bounds that are far from most scores make it too wide, never too narrow
        report("mean difference of scores", n, covered)
        good.append(min(covered) >= 0.92)
    return all(good)


# --- sample sizes ---------------------------------------------------------------------------------


def named(wins: int, losses: int, ties: int) -> bool:
    """Does the headline name a winner?"""
    return outcomes.distinguishable(
        win_rate(int(wins), int(losses), int(ties)),
        stats.binomial_test(int(wins), int(losses)),
    )


def powers(draws: int = 1000) -> bool:
    """With `prompts_needed` prompts the headline names the winner in about four of five samples."""
    rng, good = np.random.default_rng(2), []
    for shares in EFFECTS:
        wins, losses, _ = (round(1000 * share) for share in shares)
        n = stats.prompts_needed(wins, losses, 1000)
        assert n is not None  # the shares differ
        samples = rng.multinomial(n, shares, draws)
        sign = np.mean([stats.binomial_test(int(w), int(k)) < 0.05 for w, k, _ in samples])
        whole = np.mean([named(*sample) for sample in samples])
        ratio = " : ".join(f"{share:.0%}" for share in shares)
        print(f"| {ratio} | {n} | {sign:.0%} | {whole:.0%} |")
        good.append(0.76 <= whole <= 0.9)
    return all(good)


def looking_again(draws: int = 1000, most: int = 300, step: int = 20) -> bool:
    """Two equal models: how often is a winner named, looking once, and after every 20 prompts?"""
    rng = np.random.default_rng(3)
    wins = (rng.random((draws, most)) < 0.5).cumsum(axis=1)
    once = sum(named(w, most - w, 0) for w in wins[:, -1]) / draws
    looks = range(step, most + 1, step)
    again = 0.0
    for row in wins:
        again += any(named(row[n - 1], n - row[n - 1], 0) for n in looks) / draws
    print(f"| once, at {most} prompts | {once:.1%} |")
    print(f"| after every {step}, until a winner is named | {again:.1%} |")
    return once <= 0.06 < again  # a chance of 5 % is not 5.0 % of 1,000


if __name__ == "__main__":
    sys.exit(main())
