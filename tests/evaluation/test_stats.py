"""Statistics against values computed by hand, by scipy and scikit-learn, or published."""

import json
from pathlib import Path

import numpy as np
import pytest

import utils
from evaluation import outcomes, stats

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"


def test_worked_example_of_a_mistake():
    """22 of 30 verdicts looked like 73 %, p = .016; on 15 prompts it is 10 wins, 3 losses, 2
    inconsistent, p = .092."""
    assert stats.binomial_test(22, 8) == pytest.approx(0.0161, abs=1e-4)
    assert outcomes.sign_test(["win"] * 10 + ["loss"] * 3 + ["inconsistent"] * 2) == pytest.approx(
        0.0923, abs=1e-4
    )
    scores = [1.0] * 10 + [0.0] * 3 + [0.5] * 2
    honest = stats.proportion(scores)
    assert (honest.value, honest.low, honest.high) == pytest.approx(
        (22 / 30, 0.480, 0.891), abs=1e-3
    )
    prompts, verdicts = stats.win_rate(scores), stats.win_rate([1.0] * 22 + [0.0] * 8)
    assert prompts.n == 15 and prompts.high - prompts.low > 1.2 * (verdicts.high - verdicts.low)


def test_win_rate_error_and_interval():
    values = [1, 0, 0.5, 1, 1, 0, 1, 0.5]
    estimate = stats.win_rate(values)
    assert estimate.value == pytest.approx(np.mean(values))
    assert estimate.se == pytest.approx(np.std(values, ddof=1) / np.sqrt(8))
    assert estimate.low < estimate.value < estimate.high
    assert stats.win_rate(values) == estimate, "the same data, the same interval"
    with pytest.raises(utils.CourseError, match="between 0 and 1"):
        stats.win_rate([1.2])
    with pytest.raises(utils.CourseError, match="at least one score"):
        stats.win_rate([])


def test_bootstrap_covers_the_truth_about_95_percent():
    rng = np.random.default_rng(1)
    inside = 0
    for trial in range(200):
        estimate = stats.win_rate(
            rng.choice([0, 0.5, 1], 60, p=[0.3, 0.2, 0.5]), resamples=400, seed=trial
        )
        inside += estimate.low <= 0.6 <= estimate.high
    assert 180 <= inside <= 199


def test_winning_everything_is_no_certainty():
    """A bootstrap of eight wins is [100 %, 100 %]; three wins in a category are not a law of
    nature."""
    assert stats.win_rate([1.0] * 8).low == stats.wilson(8, 8)[0] < 0.7
    assert stats.proportion([1.0] * 3).low < 0.5


@pytest.mark.parametrize(("successes", "n"), [(10, 15), (0, 7), (7, 7), (336, 1000)])
def test_wilson_is_scipys(successes, n):
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(method="wilson")
    assert stats.wilson(successes, n) == pytest.approx((interval.low, interval.high), abs=1e-6)


def test_wilson_with_halves_is_wider_than_the_bootstrap():
    values = [0.5] * 20 + [1.0] * 20
    assert stats.proportion(values).low < stats.win_rate(values).low
    with pytest.raises(utils.CourseError, match="got 3 of 2"):
        stats.wilson(3, 2)


def test_agreement_by_hand():
    """The textbook's 2 x 2: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: accuracy 0.7, kappa 0.4."""
    a = ["y"] * 25 + ["n"] * 25
    b = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    result = stats.agreement(a, b)
    assert result.accuracy[0] == 0.7 and result.kappa[0] == pytest.approx(0.4)
    assert result.kappa[1] < 0.4 < result.kappa[2]
    with pytest.raises(utils.CourseError, match="got 2 and 1 labels"):
        stats.agreement(["a", "b"], ["a"])


def test_kappa_is_scikit_learns():
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.choice(list("ABt"), (2, 40), p=[0.5, 0.3, 0.2])
        assert stats.agreement(a, b, resamples=2).kappa[0] == pytest.approx(cohen_kappa_score(a, b))


def test_orders_of_a_pair_are_drawn_together():
    """Every item twice tells nothing new: with the pair as the cluster the interval stays as wide
    as that of single items."""
    rng = np.random.default_rng(3)
    a = rng.choice(["x", "y"], 50)
    b = np.where(rng.random(50) < 0.8, a, "x")
    width = lambda agreement: agreement.kappa[2] - agreement.kappa[1]  # noqa: E731
    once, pairs = stats.agreement(a, b), [*range(50), *range(50)]
    assert width(stats.agreement([*a, *a], [*b, *b])) < 0.8 * width(once)
    assert width(stats.agreement([*a, *a], [*b, *b], clusters=pairs)) == pytest.approx(
        width(once), rel=0.1
    )


@pytest.mark.skipif(
    not (REFERENCE / "pandalm").exists(), reason="the labelled reference data is not here"
)
def test_agreement_on_pandalm_annotators():
    items = json.loads((REFERENCE / "pandalm" / "testset-v1.json").read_text())
    votes = [[item[f"annotator{i}"] for item in items] for i in (1, 2, 3)]
    kappas = sorted(
        stats.agreement(votes[i], votes[j], resamples=20).kappa[0]
        for i, j in ((0, 1), (0, 2), (1, 2))
    )
    assert kappas == pytest.approx([0.852, 0.862, 0.879], abs=1e-3)


def test_sample_sizes():
    """The figures of the course's protocol, and enough prompts that the effect is indeed found in
    four of five repetitions."""
    assert (stats.prompts_for(0.05), stats.prompts_for(0.05, undecided=0.35)) == (385, 250)
    assert stats.prompts_for(0.11) == 80 and 1 / 0.25 < stats.prompts_for(0.25) <= 16
    rng = np.random.default_rng(0)
    population = rng.choice([0, 0.5, 1], 20_000, p=[0.3, 0.2, 0.5])
    needed = stats.prompts_needed(population)
    found = 0
    for _ in range(500):
        draw = rng.choice(population, needed)
        found += draw.mean() - 1.96 * draw.std(ddof=1) / np.sqrt(needed) > 0.5
    assert 370 <= found <= 430
    assert stats.prompts_needed([0.5] * 10) is None


def test_correction_inverts_the_judges_errors():
    """p = (p_obs - (1 - a)) / (2a - 1): with a = .8, a true rate of .7 is seen as .62."""
    corrected = stats.corrected([1.0] * 62 + [0.0] * 38, [1.0] * 80 + [0.0] * 20)
    assert corrected.value == pytest.approx(0.7)
    raw = stats.win_rate([1.0] * 62 + [0.0] * 38)
    assert corrected.high - corrected.low > raw.high - raw.low, (
        "it carries the doubt of both samples"
    )
    assert stats.corrected([1.0] * 9 + [0.0], [1.0] * 8 + [0.0] * 2).value == 1, "no rate above 1"
    perfect = stats.corrected([1.0] * 6 + [0.0] * 4, [1.0] * 10)
    assert perfect.value == pytest.approx(0.6)
    with pytest.raises(utils.CourseError, match="no better than a coin"):
        stats.corrected([1.0], [0.5, 0.5])


def test_correction_covers_the_truth():
    """A simulated judge that is right in 80 %, 64 labelled pairs, 60 prompts, a true rate of 65
    %."""
    rng = np.random.default_rng(5)
    inside = 0
    for trial in range(100):
        better = rng.random(60) < 0.65
        seen = np.where(rng.random(60) < 0.8, better, ~better).astype(float)
        inside += (
            (
                e := stats.corrected(
                    seen, (rng.random(64) < 0.8).astype(float), resamples=400, seed=trial
                )
            ).low
            <= 0.65
            <= e.high
        )
    assert 88 <= inside <= 100


def test_paired_difference():
    from scipy.stats import wilcoxon

    base, tuned = [2, 3, 4, 2, 5, None, 1], [4, 3, 6, 5, 6, 9, 4]
    result = stats.paired_difference(base, tuned)
    assert (
        result.value == pytest.approx((2 + 0 + 2 + 3 + 1 + 3) / 6)
        and result.low < result.value < result.high
    )
    assert (result.n, result.missing) == (6, 1) and "1 without a score" in str(result)
    assert result.p == pytest.approx(wilcoxon([2, 0, 2, 3, 1, 3], zero_method="zsplit").pvalue)
    assert stats.paired_difference([3, 3], [3, 3]).p == 1
    with pytest.raises(utils.CourseError, match="No prompt has a score for both"):
        stats.paired_difference([None], [1])
    with pytest.raises(utils.CourseError, match="got 1 and 2"):
        stats.paired_difference([1], [1, 2])


def test_failures_have_bounds():
    assert stats.bounds([1.0, 0.0, None, None]) == (0.25, 0.75)


def test_equal_length_finds_a_judge_that_only_sees_length():
    """The longer answer wins four times in five, whoever wrote it; the tuned ones are longer. At
    equal length nothing is left."""
    rng = np.random.default_rng(0)
    longer = rng.normal(60, 40, 300)
    scores = ((longer > 0) == (rng.random(300) < 0.8)).astype(float)
    estimate, weight = stats.equal_length(scores, longer, resamples=200)
    assert np.mean(scores) > 0.65 and weight > 1 and estimate.value < np.mean(scores) - 0.1
    honest = (rng.random(300) < 0.7).astype(float)
    estimate, weight = stats.equal_length(honest, rng.normal(0, 40, 300), resamples=200)
    assert estimate.value == pytest.approx(honest.mean(), abs=0.03) and abs(weight) < 0.5


def test_equal_length_is_scikit_learns_regression_and_survives_total_victory():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(1)
    gap = rng.normal(10, 30, 200)
    scores = (rng.random(200) < 1 / (1 + np.exp(-0.5 - gap / 30))).astype(float)
    estimate, weight = stats.equal_length(scores, gap, resamples=5)
    fitted = LogisticRegression(C=1e6).fit(np.tanh(gap / gap.std())[:, None], scores)
    assert weight == pytest.approx(fitted.coef_[0, 0], rel=0.02)
    assert estimate.value == pytest.approx(1 / (1 + np.exp(-fitted.intercept_[0])), abs=0.005)
    estimate, weight = stats.equal_length([1.0] * 12, [0.0] * 12, resamples=20)
    assert 0.9 < estimate.value < 1 and np.isfinite(weight)


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0001, "p < .001"),
        (0.0021, "p = .002"),
        (0.092, "p = .092"),
        (0.44, "p = .44"),
        (1.0, "p = 1.00"),
    ],
)
def test_p_values_as_papers_print_them(p, text):
    assert stats.p_value(p) == text
