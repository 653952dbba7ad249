"""What is seen of an answer without a judge."""

import dataclasses

import pytest

from evaluation import figures, measures
from training.generation import Answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("You can see the Moon from Earth. " * 6, True),
        ("여름에는 물을 자주 마셔요. " * 6, True),
        ("".join(f"{number}. The road is clear and dry.\n" for number in range(1, 13)), True),
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
    assert measures.flaws(answer, language, reference) == expected
    assert set(expected) <= set(measures.FLAWS)


@pytest.mark.packaged
def test_measures_of_a_set():
    """Prompts without a reference count for everything but likeness."""
    items = [
        {"language": "en", "reference": "The Indian Ocean."},
        {"language": "ko", "reference": ""},
    ]
    found = measures.beside([Answer("The Indian Ocean.", True, 4), Answer("", True, 0)], items)
    assert found["ROUGE-L to the references"] == 1
    assert found["embedding similarity to the references"] == pytest.approx(1, abs=1e-3)
    assert found["tokens of an answer"] == 2 and found["answers that end by themselves"] == 1
    assert found["empty answers"] == 0.5
    assert found["answers in the wrong language"] == found["answers that loop"] == 0
    assert "ROUGE-L to the references" not in measures.beside(
        [Answer("x", True, 1)], [{"language": "en", "reference": ""}]
    )


def talk(name, language, first, answer, then, last):
    item = {
        "id": name,
        "language": language,
        "prompt": first,
        "reference": "",
        "difficulty": "hard",
        "follow_ups": [{"prompt": then, "reference": ""}],
    }
    return item, [Answer(answer, True, 9), Answer(last, True, 4)]


@pytest.mark.parametrize("language", ["en", "ko"])
def test_an_answer_that_forgets_the_first_turn_has_no_recall(language):
    said = {
        "en": [
            ("Name a hobby.", "Collecting lighthouses.", "Why?", "Lighthouses calm me."),
            ("A soup, please.", "Pumpkin with ginger.", "More?", "Add ginger to the pumpkin."),
        ],
        "ko": [
            (
                "취미를 하나 알려 주세요.",
                "등대를 찾아다니기.",
                "왜요?",
                "등대가 마음을 달래 줍니다.",
            ),
            ("국을 추천해 주세요.", "생강을 넣은 호박죽.", "더요?", "호박에 생강을 더 넣으세요."),
        ],
    }[language]
    talks = [talk(str(i), language, *turns) for i, turns in enumerate(said)]
    items, kept = [item for item, _ in talks], [answers for _, answers in talks]
    swapped = [[kept[0][0], kept[1][1]], [kept[1][0], kept[0][1]]]
    remembers, forgets = measures.recall(items, kept), measures.recall(items, swapped)
    assert remembers > 0.2 and forgets < -0.2
    assert measures.recall(items[:1], kept[:1]) is None, "nothing to compare with"
    parroted = [[first, dataclasses.replace(first, text=first.text + "!")] for first, _ in kept]
    assert measures.recall(items, parroted) == 0, "who says it again refers to nothing"


def test_long_prompts_are_measured_apart():
    items = [
        {"id": "a", "prompt": "?", "difficulty": "standard"},
        {"id": "b", "prompt": "?", "difficulty": "hard", "kind": "long"},
        {"id": "c", "prompt": "?", "difficulty": "hard", "kind": "conflict"},
        {"id": "d", "prompt": "?"},
    ]
    answers = [[Answer("x", True, size)] for size in (10, 300, 40, 20)]
    found = measures.lengths(items, answers)
    assert found == {"hard": 40, "long": 300, "standard": 15}
    figure = figures.reach_figure({"base": found, "tuned": found}, {"base": None, "tuned": 0.3})
    assert [text.get_text() for text in figure.axes[1].texts] == [" none", " +0.30"]
