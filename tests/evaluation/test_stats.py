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
    fifteen = ["win"] * 10 + ["loss"] * 3 + ["inconsistent"] * 2
    assert outcomes.sign_test(fifteen) == pytest.approx(0.0923, abs=1e-4)
    prompts = stats.win_rate([1.0] * 10 + [0.0] * 3 + [0.5] * 2)
    verdicts = stats.win_rate([1.0] * 22 + [0.0] * 8)
    assert prompts.value == verdicts.value and prompts.low < 0.51 < verdicts.low
    assert prompts.n == 15 and prompts.high - prompts.low > 1.2 * (verdicts.high - verdicts.low)


def test_win_rate_error_and_interval():
    values = [1, 0, 0.5, 1, 1, 0, 1, 0.5]
    estimate = stats.win_rate(values)
    assert estimate.value == pytest.approx(np.mean(values))
    assert estimate.se == pytest.approx(np.std(values, ddof=1) / np.sqrt(8))
    assert estimate.low < estimate.value < estimate.high
    with pytest.raises(utils.CourseError, match="between 0 and 1"):
        stats.win_rate([1.2])
    with pytest.raises(utils.CourseError, match="at least one score"):
        stats.win_rate([])


@pytest.mark.parametrize(("successes", "n"), [(10, 15), (0, 7), (7, 7), (336, 1000)])
def test_without_ties_the_interval_is_wilsons(successes, n):
    from scipy.stats import binomtest

    wilson = binomtest(successes, n).proportion_ci(method="wilson")
    rate = stats.win_rate([1.0] * successes + [0.0] * (n - successes))
    assert (rate.low, rate.high) == pytest.approx((wilson.low, wilson.high), abs=1e-6)


def test_ties_narrow_the_interval_and_never_to_nothing():
    """Twenty ties say more about .5 than ten wins and ten losses, and less than certainty."""
    split = stats.win_rate([1.0] * 10 + [0.0] * 10)
    ties = stats.win_rate([0.5] * 20)
    assert split.low < ties.low < 0.46 and ties.value == 0.5
    assert stats.win_rate([0.5]).high - stats.win_rate([0.5]).low > 0.6, "one tie says nothing"
    assert stats.win_rate([1.0] * 8).low < 0.7 and stats.win_rate([1.0] * 3).low < 0.5


def test_win_rate_covers_the_truth_at_fifteen_prompts():
    """Where the bootstrap covered 91 %. `benchmarks.judge_statistics` counts all cases."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        rate = stats.win_rate(rng.choice([0, 0.5, 1], 15, p=[0.2, 0.2, 0.6]))
        inside += rate.low <= 0.7 <= rate.high
    assert inside >= 372


def test_agreement_by_hand():
    """The textbook's 2 x 2: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: accuracy 0.7, kappa 0.4."""
    a = ["y"] * 25 + ["n"] * 25
    b = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    result = stats.agreement(a, b)
    assert result.accuracy.value == 0.7 and result.kappa.value == pytest.approx(0.4)
    assert result.kappa.low < 0.4 < result.kappa.high and result.n == 50
    with pytest.raises(utils.CourseError, match="got 2 and 1 labels"):
        stats.agreement(["a", "b"], ["a"])


def test_two_agreeing_votes_are_no_perfect_kappa():
    """It was 1.00 [1.00, 1.00]; and where only one label was used there is no kappa at all."""
    two = stats.agreement(["A", "B"], ["A", "B"])
    assert two.kappa.value == 1 and two.kappa.low < 0 and two.kappa_text == "1.00 [-0.32, 1.00]"
    same = stats.agreement(["A"] * 5, ["A"] * 5)
    assert same.kappa is None and same.kappa_text.startswith("cannot be estimated")


def test_kappa_is_scikit_learns():
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.choice(list("ABt"), (2, 40), p=[0.5, 0.3, 0.2])
        assert stats.agreement(a, b).kappa.value == pytest.approx(cohen_kappa_score(a, b))


def test_orders_of_a_pair_are_one_observation():
    """Every item twice tells nothing new: with the pair as the cluster the interval stays as wide
    as that of single items."""
    rng = np.random.default_rng(3)
    a = rng.choice(["x", "y"], 50)
    b = np.where(rng.random(50) < 0.8, a, "x")

    def width(agreement):
        return agreement.kappa.high - agreement.kappa.low

    once, pairs = stats.agreement(a, b), [*range(50), *range(50)]
    assert width(stats.agreement([*a, *a], [*b, *b])) < 0.8 * width(once)
    twice = stats.agreement([*a, *a], [*b, *b], clusters=pairs)
    assert width(twice) == pytest.approx(width(once))


@pytest.mark.skipif(
    not (REFERENCE / "pandalm").exists(), reason="the labelled reference data is not here"
)
def test_agreement_on_pandalm_annotators():
    items = json.loads((REFERENCE / "pandalm" / "testset-v1.json").read_text())
    votes = [[item[f"annotator{i}"] for item in items] for i in (1, 2, 3)]
    kappas = sorted(
        stats.agreement(votes[i], votes[j]).kappa.value for i, j in ((0, 1), (0, 2), (1, 2))
    )
    assert kappas == pytest.approx([0.852, 0.862, 0.879], abs=1e-3)


def test_sample_sizes():
    """The figures of the course's protocol."""
    assert (stats.prompts_for(0.05), stats.prompts_for(0.05, undecided=0.35)) == (385, 250)
    assert stats.prompts_for(0.11) == 80 and 1 / 0.25 < stats.prompts_for(0.25) <= 16


@pytest.mark.parametrize("shares", [(0.6, 0.4, 0.0), (0.5, 0.3, 0.2), (0.8, 0.2, 0.0)])
def test_prompts_needed_reach_the_power_with_the_headlines_own_rule(shares):
    """In four of five repetitions the headline names the winner."""
    wins, losses = round(1000 * shares[0]), round(1000 * shares[1])
    needed = stats.prompts_needed(wins, losses, 1000)
    assert needed == stats.prompts_needed(losses, wins, 1000)
    found = 0
    for win, loss, tie in np.random.default_rng(0).multinomial(needed, shares, 300):
        rate = stats.win_rate([1.0] * win + [0.0] * loss + [0.5] * tie)
        found += outcomes.distinguishable(rate, stats.binomial_test(int(win), int(loss)))
    assert 220 <= found <= 265


def test_no_effect_needs_no_number_and_a_total_one_six_prompts():
    assert stats.prompts_needed(5, 5, 20) is None and stats.prompts_needed(0, 0, 20) is None
    assert stats.prompts_needed(10, 0, 10) == 6


def test_correction_inverts_the_judges_errors():
    """p = (p_obs - (1 - a)) / (2a - 1): with a = .8, a true rate of .7 is seen as .62."""
    corrected = stats.corrected([1.0] * 62 + [0.0] * 38, [1.0] * 80 + [0.0] * 20)
    assert corrected.value == pytest.approx(0.7)
    raw = stats.win_rate([1.0] * 62 + [0.0] * 38)
    assert corrected.high - corrected.low > raw.high - raw.low, "it carries both samples' doubt"
    assert stats.corrected([1.0] * 9 + [0.0], [1.0] * 8 + [0.0] * 2).value == 1, "no rate above 1"
    perfect = stats.corrected([1.0] * 6 + [0.0] * 4, [1.0] * 10)
    assert perfect.value == pytest.approx(0.6)
    with pytest.raises(utils.CourseError, match="no better than a coin"):
        stats.corrected([1.0], [0.5, 0.5])


def test_correction_claims_no_certainty_at_the_edge():
    """Ten wins of ten with a judge right in 86 %: it was 100 % [100, 100]."""
    labelled = [1.0] * 110 + [0.0] * 18
    ten = stats.corrected([1.0] * 10, labelled)
    assert ten.value == 1 and ten.high == 1 and ten.low == pytest.approx(0.80, abs=0.01)
    assert stats.corrected([0.0] * 10, labelled).high == pytest.approx(0.20, abs=0.01)


def test_correction_is_refused_where_its_assumption_is_refuted():
    """A judge that is right in 86 % cannot see 97 %, unless it errs less here than it did there."""
    labelled = [1.0] * 110 + [0.0] * 18
    assert stats.corrected([1.0] * 58 + [0.0] * 2, labelled) is None
    assert stats.corrected([1.0] * 2 + [0.0] * 58, labelled) is None, "nor 3 %"
    assert stats.corrected([1.0] * 54 + [0.0] * 6, labelled).value == 1, "90 % may be chance"


def test_correction_covers_the_truth():
    """A judge that is right in 80 %, 64 labelled pairs, 60 prompts, a true rate of 65 %."""
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(200):
        better = rng.random(60) < 0.65
        seen = np.where(rng.random(60) < 0.8, better, ~better).astype(float)
        found = stats.corrected(seen, (rng.random(64) < 0.8).astype(float))
        inside += found.low <= 0.65 <= found.high
    assert 182 <= inside <= 199


def test_paired_difference():
    from scipy.stats import wilcoxon

    base, tuned = [2, 3, 4, 2, 5, None, 1], [4, 3, 6, 5, 6, 9, 4]
    result = stats.paired_difference(base, tuned)
    assert result.mean.value == pytest.approx((2 + 0 + 2 + 3 + 1 + 3) / 6)
    assert result.mean.low < result.mean.value < result.mean.high
    assert (result.mean.n, result.missing) == (6, 1) and "1 without a score" in str(result)
    assert result.p == pytest.approx(wilcoxon([2, 0, 2, 3, 1, 3], zero_method="zsplit").pvalue)
    assert stats.paired_difference([3, 3], [3, 3]).p == 1
    with pytest.raises(utils.CourseError, match="No prompt has a score for both"):
        stats.paired_difference([None], [1])
    with pytest.raises(utils.CourseError, match="got 1 and 2"):
        stats.paired_difference([1], [1, 2])


def test_equal_differences_are_no_certainty():
    """Two points better on every prompt was "+2.00 [+2.00, +2.00]"."""
    few = stats.paired_difference([3] * 5, [5] * 5).mean
    many = stats.paired_difference([3] * 60, [5] * 60).mean
    assert few.value == many.value == 2
    assert few.high - few.low > 5 * (many.high - many.low) > 1


def test_failures_have_bounds():
    assert stats.bounds([1.0, 0.0, None, None]) == (0.25, 0.75)


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
