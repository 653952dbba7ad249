"""What verdicts add up to, and the one sentence: each test is a conclusion that would be wrong
without it."""

import pytest

from evaluation import outcomes, stats
from evaluation.outcomes import Outcome

VERDICTS = {
    "win": ("A", "B"),
    "loss": ("B", "A"),
    "tie": ("tie", "tie"),
    "inconsistent": ("A", "A"),
    "failed": ("A", None),
}


def records(**counts: int) -> list[dict]:
    """Verdict records of one turn with these outcomes."""
    made = []
    for kind, number in counts.items():
        first, second = VERDICTS[kind]
        orders = [
            {"turn": 1, "tuned_is": "A", "verdict": first},
            {"turn": 1, "tuned_is": "B", "verdict": second},
        ]
        one, two = outcomes.side(first, "A"), outcomes.side(second, "B")
        value = None if one is None or two is None else (one + two) / 2
        made += [
            {"id": f"{kind}{i}", "outcome": kind, "value": value, "orders": orders}
            for i in range(number)
        ]
    return made


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
    assert outcomes.outcome(outcomes.side(first, "A"), outcomes.side(second, "B")) == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (1.0, 0.75, Outcome.WIN),
        (0.75, 0.25, Outcome.INCONSISTENT),
        (0.5, 1.0, Outcome.TIE),
        (0.0, 0.25, Outcome.LOSS),
    ],
)
def test_outcome_of_two_turns(first, second, expected):
    """Each order is the mean over its turns."""
    assert outcomes.outcome(first, second) == expected


def test_all_five_are_counted_and_no_failure_is_dropped():
    counts = outcomes.count(records(win=3, failed=2))
    assert counts == {"win": 3, "loss": 0, "tie": 0, "inconsistent": 0, "failed": 2} and list(
        counts
    ) == [str(kind) for kind in Outcome]
    assert outcomes.values(records(win=3, failed=2)) == [1.0] * 3


def test_sign_test_without_decisive_prompts():
    assert outcomes.sign_test(["tie", "failed", "inconsistent"]) == 1


def test_position_bias():
    found = outcomes.positions(records(inconsistent=9, win=10, tie=2, failed=1))
    assert (found.first, found.second, found.alike, found.n) == (9, 0, 12, 21)
    assert found.p == pytest.approx(2 * 0.5**9) and found.consistency.value == pytest.approx(
        12 / 21
    )
    turned = records(inconsistent=1)[0]
    turned["orders"] = [order | {"verdict": "B"} for order in turned["orders"]]
    half = records(win=1)[0]
    half["orders"] = [half["orders"][0] | {"verdict": "tie"}, half["orders"][1]]
    found = outcomes.positions([turned, half])
    assert (found.second, found.leaning, found.alike) == (1, 1, 0)
    assert outcomes.positions(records(failed=3)).consistency is None


def test_each_turn_is_a_comparison_of_its_own_for_the_position():
    two = records(win=1)[0]
    two["orders"] = two["orders"] + [order | {"turn": 2, "verdict": "A"} for order in two["orders"]]
    found = outcomes.positions([two])
    assert (found.alike, found.first, found.n) == (1, 1, 2)


def test_groups():
    rows = [
        record | {"language": "en" if i % 2 else "ko"}
        for i, record in enumerate(records(win=6, loss=2, failed=1))
    ]
    groups = outcomes.by_group(rows, "language")
    assert list(groups) == ["en", "ko"] and sum(group.n for group in groups.values()) == 8
    assert all(group.low < group.value < group.high for group in groups.values())


def test_contradictions_between_pairwise_and_single_are_flagged():
    rows = records(win=2, loss=1, tie=1)
    rows[0]["scores"] = {"base": 7, "tuned": 4}
    rows[1]["scores"] = {"base": 4, "tuned": 4}
    rows[2]["scores"] = {"base": 2, "tuned": 9}
    rows[3]["scores"] = {"base": None, "tuned": 9}
    assert [record["id"] for record in outcomes.contradictions(rows)] == ["win0", "loss0"]


# --- the sentence


def test_headline_of_a_clear_win():
    text = outcomes.headline(records(win=41, loss=10, tie=2, inconsistent=7))
    assert text.startswith("tuned wins 76 % [") and text.endswith(
        "] of 60 prompts, sign test p < .001, 12 % inconsistent, 0 failed."
    )


def test_headline_of_a_clear_loss_is_told_from_the_winners_side():
    fair = stats.Estimate(0.1, 0.02, 0.05, 0.2, 60)
    text = outcomes.headline(records(win=10, loss=48, tie=2), corrected=fair)
    assert text.startswith("base wins 82 % [") and text.endswith(
        "corrected for the judge's errors 90 % [80, 95]."
    )


def test_headline_says_how_many_prompts_are_missing():
    rows = records(win=20, loss=15, tie=5)
    text = outcomes.headline(rows)
    needed = stats.prompts_needed(outcomes.values(rows))
    assert text.startswith("tuned and base are not distinguishable: tuned wins 56 % [")
    assert needed > 40 and f"about {needed:,} prompts would be needed" in text


def test_headline_where_there_is_no_effect_at_all():
    assert "there is no difference to find" in outcomes.headline(records(win=10, loss=10))
    assert "there is no difference to find" in outcomes.headline(records(tie=20))


def test_headline_needs_interval_and_sign_test_to_agree():
    """10 wins, 3 losses, 2 inconsistent: the bootstrap interval excludes 50 %, the sign test says p
    = .092."""
    text = outcomes.headline(records(win=10, loss=3, inconsistent=2))
    assert "not distinguishable" in text and "p = .092" in text


def test_headline_does_not_hide_failures_that_could_turn_it_round():
    text = outcomes.headline(records(win=25, loss=5, failed=30))
    assert (
        text.startswith("Not settled: tuned wins 83 % [")
        and "30 failed" in text
        and "from 42 to 92 % possible" in text
    )


def test_headline_without_a_win_rate():
    closed = outcomes.headline(records(win=60), closed="X is not shown to be better than a coin.")
    assert closed == "No win rate: X is not shown to be better than a coin."
    assert (
        outcomes.headline(records(win=9))
        == "No win rate: 9 prompts are too few to compare two models; judge 10 or more."
    )
    assert outcomes.headline(records(win=2, failed=20)).startswith(
        "No win rate: only 2 of 22 prompts have a readable verdict"
    )
