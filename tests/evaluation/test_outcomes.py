"""What verdicts add up to, and the one sentence: each test is a conclusion that would be wrong
without it."""

import types

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
            | {"language": "en", "judge": "rule (stand-in)"}
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
    assert counts == {"win": 3, "loss": 0, "tie": 0, "inconsistent": 0, "failed": 2}
    assert list(counts) == [str(kind) for kind in Outcome]
    assert outcomes.values(records(win=3, failed=2)) == [1.0] * 3


def test_sign_test_without_decisive_prompts():
    assert outcomes.sign_test(["tie", "failed", "inconsistent"]) == 1


def test_position_bias():
    found = outcomes.positions(records(inconsistent=9, win=10, tie=2, failed=1))
    assert (found.first, found.second, found.alike, found.n) == (9, 0, 12, 21)
    assert found.p == pytest.approx(2 * 0.5**9)
    assert found.consistency.value == pytest.approx(12 / 21)
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


def test_win_rate_among_pairs_of_similar_length():
    """The winner is mostly the longer one; where the lengths are alike nothing is left."""
    rows = records(win=8, loss=4, failed=1)
    base = [10] * 6 + [90, 100] + [100, 95, 10, 10] + [50]
    tuned = [50] * 6 + [100, 100] + [100, 100, 5, 5] + [50]
    found = outcomes.similar_length(rows, base, tuned)
    assert (found.value, found.n) == (0.5, 4), "two wins and two losses; the failed one is out"
    assert outcomes.similar_length(rows[:6], base[:6], tuned[:6]) is None, "none, and said so"
    spoken = {row["language"] for row in rows}
    closed = gate(languages=())
    assert outcomes.similar_length(rows, base, tuned, closed) is None, "none may be believed"
    assert outcomes.similar_length(rows, base, tuned, gate(languages=spoken)) == found


# --- the headline


def gate(values=(1.0,) * 58 + (0.0,) * 2, closed=None, unseen=(), languages=("en",)):
    """As much of a calibration as the headline asks for."""
    return types.SimpleNamespace(
        values=list(values),
        accuracy=stats.rate(values),
        closed=closed or {},
        unseen=list(unseen),
        believed=lambda records: [r for r in records if r["language"] in languages],
    )


def test_headline_of_a_clear_win():
    text = outcomes.headline(records(win=41, loss=10, tie=2, inconsistent=7), gate())
    assert text.startswith(
        "tuned is better (judge: rule (stand-in)): tuned wins 41 and loses 10 of 60 prompts, 2 "
        "ties, 7 inconsistent, 0 failed; win rate 76 % ["
    )
    assert "with a tie or an inconsistent verdict as half a win, sign test p < .001;" in text
    assert "; corrected for the judge's errors 7" in text and text.endswith("].")


def test_headline_of_twenty_wins_and_forty_ties_is_no_67_percent_of_wins():
    text = outcomes.headline(records(win=20, tie=40), gate())
    assert "tuned wins 20 and loses 0 of 60 prompts, 40 ties" in text
    assert "wins 67 %" not in text and "as half a win" in text


def test_headline_of_a_clear_loss():
    text = outcomes.headline(records(win=10, loss=48, tie=2), gate())
    assert text.startswith("base is better (judge: ") and "win rate 18 % [" in text


def test_headline_does_not_correct_where_the_assumption_is_refuted():
    labelled = (1.0,) * 110 + (0.0,) * 18
    text = outcomes.headline(records(win=58, loss=2), gate(labelled))
    assert "not corrected" in text and "100 %" not in text


def test_headline_has_the_names_of_the_models():
    text = outcomes.headline(records(win=41, loss=10), gate(), names=("gemma", "llama"))
    assert text.startswith("llama is better") and "base" not in text and "tuned" not in text


def test_headline_says_how_many_new_prompts_an_effect_takes():
    rows = records(win=20, loss=15, tie=5)
    text = outcomes.headline(rows, gate())
    needed = stats.prompts_needed(20, 15, 40)
    assert text.startswith("tuned and base are not distinguishable (judge: rule (stand-in)): ")
    assert needed > 40 and f"about {needed:,} new prompts, a number to be fixed before" in text


def test_headline_where_there_is_no_effect_at_all():
    assert "there is no difference to find" in outcomes.headline(records(win=10, loss=10), gate())
    assert "there is no difference to find" in outcomes.headline(records(tie=20), gate())


def test_headline_needs_interval_and_sign_test_to_agree():
    """10 wins, 3 losses, 2 inconsistent: the interval just leaves out 50 %, the sign test says p =
    .092."""
    text = outcomes.headline(records(win=10, loss=3, inconsistent=2), gate())
    assert "not distinguishable" in text and "p = .092" in text


def test_headline_does_not_hide_failures_that_could_turn_it_round():
    text = outcomes.headline(records(win=25, loss=5, failed=30), gate())
    assert text.startswith("Not settled (judge: ") and "30 failed" in text
    assert "from 42 to 92 % possible" in text


def test_headline_without_a_win_rate():
    closed = {"en": "X is a coin."}
    text = outcomes.headline(records(win=60), gate(closed=closed, languages=()))
    assert text == "No win rate in English: X is a coin."
    both = records(win=30) + [record | {"language": "ko"} for record in records(win=30)]
    closed["ko"] = "X is a coin."
    text = outcomes.headline(both, gate(closed=closed, languages=()))
    assert text == "No win rate in English and Korean: X is a coin."  # it was said twice
    closed["ko"] = "X gave no verdict."
    assert outcomes.headline(both, gate(closed=closed, languages=())) == (
        "No win rate in English: X is a coin. No win rate in Korean: X gave no verdict."
    )
    for few in (records(win=9), records(win=2, failed=20)):
        assert outcomes.headline(few, gate()).startswith("No win rate: ")
    assert "2 of 22 prompts have a readable verdict" in outcomes.headline(few, gate())


def test_a_closed_language_has_no_part_in_the_win_rate():
    """The judge says "tuned" to all that is Korean, and may not be believed there."""
    korean = [record | {"language": "ko"} for record in records(win=60)]
    mine = gate(closed={"ko": "X is a coin.", "ja": "X is a coin."})
    text = outcomes.headline(records(loss=15, win=5) + korean, mine)
    assert "tuned wins 5 and loses 15 of 20 prompts" in text
    assert text.endswith("No win rate in Korean: X is a coin.")


def test_headline_names_what_the_judge_cannot_see_and_a_limit_that_decided():
    rows = records(win=41, loss=10)
    text = outcomes.headline(rows, gate(unseen=["wrong fact"]), cut=0.72, limit=96)
    assert "not shown to see: wrong fact" in text
    assert "72% of the answers of one model were cut off at the limit of 96 tokens" in text
    assert "limit" not in outcomes.headline(rows, gate(), cut=0.2, limit=96)
    assert "nothing shows that it may be believed" in outcomes.headline(rows)
