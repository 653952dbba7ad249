"""What is seen of an answer without a judge."""

import pytest

from evaluation import measures
from training.generation import Answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("You can see the Moon from Earth. " * 6, True),
        ("여름에는 물을 자주 마셔요. " * 6, True),
        ("A short answer.", False),
        (
            "- Put it in the fridge\n- Keep it covered\n- Eat it within two days\n- Heat it well",
            False,
        ),
    ],
)
def test_loops(text, expected):
    assert measures.loops(text) is expected


@pytest.mark.parametrize(
    ("answer", "language", "reference", "expected"),
    [
        (Answer("It is the Indian Ocean.", True, 6), "en", "The Indian Ocean.", []),
        (Answer("", True, 0), "en", "The Indian Ocean.", ["empty"]),
        (Answer("It is the", False, 3), "en", "", ["truncated"]),
        (
            Answer("인도양이 두 대륙 사이에 있습니다.", True, 9),
            "en",
            "The Indian Ocean.",
            ["wrong_language"],
        ),
        (Answer("It is the Indian Ocean.", True, 6), "ko", "", ["wrong_language"]),
        (
            Answer("신발을 벗어 주세요, 부탁드립니다.", True, 9),
            "en",
            "신발을 벗어 주시기 바랍니다.",
            [],
        ),  # a translation
        (Answer("42", True, 2), "ko", "마흔둘입니다.", []),  # a number has no language
        (Answer("물을 자주 마셔요. " * 9, False, 96), "ko", "물을 드세요.", ["truncated", "loop"]),
    ],
)
def test_flaws(answer, language, reference, expected):
    assert measures.flaws(answer, language, reference) == expected and set(expected) <= set(
        measures.FLAWS
    )


@pytest.mark.packaged
def test_measures_of_a_set():
    """Prompts without a reference count for everything but likeness."""
    items = [
        {"language": "en", "reference": "The Indian Ocean."},
        {"language": "ko", "reference": ""},
    ]
    found = measures.beside([Answer("The Indian Ocean.", True, 4), Answer("", True, 0)], items)
    assert found["ROUGE-L to the references"] == 1 and found[
        "embedding similarity to the references"
    ] == pytest.approx(1, abs=1e-3)
    assert found["tokens of an answer"] == 2 and found["answers that end by themselves"] == 1
    assert (
        found["empty answers"] == 0.5
        and found["answers in the wrong language"] == found["answers that loop"] == 0
    )
    assert "ROUGE-L to the references" not in measures.beside(
        [Answer("x", True, 1)], [{"language": "en", "reference": ""}]
    )
