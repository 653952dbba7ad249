"""Outcomes and statistics, against values computed by hand or published."""

import json
from pathlib import Path

import numpy as np
import pytest

import judge
import utils
from judge import Outcome

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("A", "B", Outcome.WIN),
        ("B", "A", Outcome.LOSS),
        ("A", "A", Outcome.INCONSISTENT),
        ("B", "B", Outcome.INCONSISTENT),
        ("tie", "tie", Outcome.TIE),
        ("A", "tie", Outcome.TIE),
        ("tie", "A", Outcome.TIE),
        (None, "B", Outcome.FAILED),
        ("A", None, Outcome.FAILED),
    ],
)
def test_outcome_of_two_orders(first, second, expected):
    """The tuned answer is A in the first order and B in the second."""
    assert judge.outcome(judge.side(first, "A"), judge.side(second, "B")) == expected


def test_worked_example_of_a_mistake():
    """22 of 30 verdicts looked like 73 %, p = .016; on 15 prompts it is 10 wins, 3 losses, 2 inconsistent, p = .092."""
    outcomes = ["win"] * 10 + ["loss"] * 3 + ["inconsistent"] * 2
    assert judge.sign_test(outcomes) == pytest.approx(0.0923, abs=1e-4)
    prompts = judge.win_rate([1.0] * 10 + [0.0] * 3 + [0.5] * 2)
    assert prompts.value == pytest.approx(22 / 30) and prompts.n == 15
    verdicts = judge.win_rate([1.0] * 22 + [0.0] * 8)
    assert prompts.high - prompts.low > 1.2 * (verdicts.high - verdicts.low)


def test_win_rate_error_and_interval():
    values = [1, 0, 0.5, 1, 1, 0, 1, 0.5]
    estimate = judge.win_rate(values)
    assert estimate.value == pytest.approx(np.mean(values))
    assert estimate.se == pytest.approx(np.std(values, ddof=1) / np.sqrt(8))
    assert estimate.low < estimate.value < estimate.high
    assert judge.win_rate(values) == estimate, "the same data, the same interval"
    with pytest.raises(utils.CourseError, match="between 0 and 1"):
        judge.win_rate([1.2])
    with pytest.raises(utils.CourseError, match="at least one score"):
        judge.win_rate([])


def test_bootstrap_covers_the_truth_about_95_percent():
    rng = np.random.default_rng(1)
    inside = 0
    for trial in range(200):
        estimate = judge.win_rate(rng.choice([0, 0.5, 1], 60, p=[0.3, 0.2, 0.5]), resamples=400, seed=trial)
        inside += estimate.low <= 0.6 <= estimate.high
    assert 180 <= inside <= 199


def test_sign_test_without_decisive_prompts():
    assert judge.sign_test(["tie", "failed", "inconsistent"]) == 1


def test_wilson_by_hand():
    low, high = judge.wilson(10, 15)
    assert (low, high) == pytest.approx((0.4171, 0.8482), abs=1e-3)


def test_agreement_by_hand():
    """The textbook's 2 x 2: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: accuracy 0.7, kappa 0.4."""
    a = ["y"] * 25 + ["n"] * 25
    b = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    result = judge.agreement(a, b)
    assert result.accuracy[0] == 0.7 and result.kappa[0] == pytest.approx(0.4)
    assert result.kappa[1] < 0.4 < result.kappa[2]
    with pytest.raises(utils.CourseError, match="got 2 and 1 labels"):
        judge.agreement(["a", "b"], ["a"])


@pytest.mark.skipif(not (REFERENCE / "pandalm").exists(), reason="the labelled reference data is not here")
def test_agreement_on_pandalm_annotators():
    items = json.loads((REFERENCE / "pandalm" / "testset-v1.json").read_text())
    votes = [[item[f"annotator{i}"] for item in items] for i in (1, 2, 3)]
    kappas = sorted(judge.agreement(votes[i], votes[j], resamples=20).kappa[0] for i, j in ((0, 1), (0, 2), (1, 2)))
    assert kappas == pytest.approx([0.852, 0.862, 0.879], abs=1e-3)


def test_verdicts_outside_the_schema_are_refused():
    for text in ('{"explanation": "", "verdict": "C"}', '{"verdict": "A"}', '{"explanation": "", "verdict": "A", "x": 1}'):
        with pytest.raises(ValueError, match="validation error"):
            judge.Verdict.model_validate_json(text)
    for score in (0, 11):
        with pytest.raises(ValueError, match="validation error"):
            judge.Score.model_validate_json(json.dumps({"explanation": "", "score": score}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("You can see the Moon from Earth. " * 6, True),
        ("여름에는 물을 자주 마셔요. " * 6, True),
        ("A short answer.", False),
        ("- Put it in the fridge\n- Keep it covered\n- Eat it within two days\n- Heat it well", False),
    ],
)
def test_loops(text, expected):
    assert judge.loops(text) is expected
