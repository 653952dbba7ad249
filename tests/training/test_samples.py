"""Answers side by side: hostile text stays text, and what is said of an answer is true of it."""

import pytest

from training import samples

PROMPTS = ["Name a fruit.", "하늘은 왜 파란가요?"]


@pytest.mark.parametrize(
    ("text", "prompt", "expected"),
    [
        ("", "Name a fruit.", "is empty"),
        (" \n", "Name a fruit.", "is empty"),
        ("Name a fruit.\nName a fruit.", "Name a fruit.", "echoes the question"),
        ("하늘은 왜 파란가요?", "하늘은 왜 파란가요?", "echoes the question"),
        ("운전이 편합니다. " * 6, "왜 차를 사나요?", "runs in circles"),
        ("An apple is a fruit.", "Name a fruit.", "neither echoes nor circles"),
        ("사과입니다.", "과일 하나를 말해 주세요.", "neither echoes nor circles"),
    ],
)
def test_what_is_said_of_an_answer_is_true_of_it(text, prompt, expected):
    """A sentence written by hand said of an empty answer that it was in the right language."""
    assert samples.looks(text, prompt) == expected


def test_what_changed_names_every_prompt_and_both_answers():
    said = samples.what_changed(
        PROMPTS,
        {"samples": [PROMPTS[0], PROMPTS[1]]},
        {"samples": ["An apple.", PROMPTS[1]]},
    )
    first = "Before training the answer echoes the question, after it neither echoes nor circles."
    assert first in said
    assert "answer echoes the question, after it echoes the question." in said
    assert all(prompt in said for prompt in PROMPTS)


def test_an_answer_cannot_put_html_into_the_page():
    evil = "<img src=x onerror=alert(1)>"
    history = [{"step": 3, "samples": [evil, "b"]}, {"step": 4, "loss": 1.0}]
    table = samples.SamplesTable(
        [evil, "한글"], {"samples": [evil, "a"]}, history, {"samples": ["z", "끝"]}
    )
    page = table._repr_html_()
    assert "<img" not in page and page.count("&lt;img") == 3
    assert "<th>step 3</th>" in page and "step 4" not in page and "끝" in page
    assert "step 3" in repr(table)
