"""The near-duplicate filters on a ledger: first come, first kept; seeds stay; a language each."""

import numpy as np
import pytest

import similarity
from preprocessing import filtering
from preprocessing.ledger import Ledger

SEEDS = [
    {"id": "seed-ko-001", "language": "ko", "instruction": "전세와 월세의 차이를 설명해 주세요."},
    {"id": "seed-en-001", "language": "en", "instruction": "Write a short poem about the sea."},
]


def ledger_of(*tasks: tuple[str, str]) -> Ledger:
    ledger = Ledger()
    for language, instruction in tasks:
        task = {"category": "open_qa", "instruction": instruction, "input": "", "output": "x"}
        ledger.add(language, task, {"cost_usd": 0.0})
    return ledger


def test_a_row_that_repeats_a_seed_or_an_earlier_row_is_named_with_its_neighbour():
    accepted = filtering.Accepted(SEEDS, 0.7)
    rows = ledger_of(
        ("ko", "전세와 월세의 차이를 짧게 설명해 주세요."),
        ("en", "Name three rivers in Asia."),
        ("en", "Name three rivers in Africa."),
        ("ko", "김치는 왜 시어지나요?"),
    ).rows
    near = [accepted.too_near(row) for row in rows]
    assert [found and found.id for found in near] == ["seed-ko-001", None, rows[1]["id"], None]
    assert near[0].score == pytest.approx(
        similarity.rouge_l(rows[0]["instruction"], SEEDS[0]["instruction"])
    )
    assert rows[3]["similar"] and "seed-ko-001" in rows[0]["similar"], "as in Self-Instruct"


@pytest.fixture
def by_first_letter(monkeypatch):
    """Texts with the same first letter point the same way: likeness that a reader can check."""

    def embed(texts):
        vectors = np.zeros((len(texts), 2000), np.float32)
        for row, text in enumerate(texts):
            vectors[row, ord(text[0]) % 2000] = 1.0
        return vectors

    monkeypatch.setattr(similarity, "embed", embed)


def test_alike_rows_are_found_within_a_language_and_seeds_stay(by_first_letter):
    ledger = ledger_of(("en", "What is rice?"), ("en", "How?"), ("en", "Hello"), ("ko", "왜?"))
    found = filtering.alike(ledger, SEEDS, 0.9)
    pairs = [(pair.row["instruction"], pair.other["instruction"]) for pair in found]
    assert pairs == [("What is rice?", SEEDS[1]["instruction"]), ("Hello", "How?")]


def test_where_the_promise_cannot_be_kept_rows_are_marked_and_stay(by_first_letter):
    """A filter that removes on a guess throws good rows away."""
    ledger = ledger_of(("en", "How?"), ("en", "Hello"))
    found = filtering.alike(ledger, [], 0.9)
    filtering.remove_or_mark(ledger, found, remove=False)
    assert len(ledger.kept) == 2 and ledger.rows[1]["resembles"] == ledger.rows[0]["id"]
    filtering.remove_or_mark(ledger, found, remove=True)
    assert [row["instruction"] for row in ledger.kept] == ["How?"]
    assert ledger.rows[1]["neighbour"] == ledger.rows[0]["id"]
