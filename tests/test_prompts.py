"""The prompts: the same keys and placeholders in both languages."""

import string

import pytest

import prompts

TEXTS = {name: value for name, value in vars(prompts).items() if name.isupper()}


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "CATEGORIES"])
def test_languages_are_parallel(name):
    texts = TEXTS[name]
    assert set(texts) == {"en", "ko"}
    if isinstance(texts["en"], str):
        assert placeholders(texts["en"]) == placeholders(texts["ko"])
    elif isinstance(texts["en"], dict):
        assert texts["en"].keys() == texts["ko"].keys()
        assert all(
            placeholders(texts["en"][key]) == placeholders(texts["ko"][key]) for key in texts["en"]
        )
    else:
        assert len(texts["en"]) == len(texts["ko"])


def test_every_category_has_a_name_in_both_languages():
    assert all(set(names) == {"en", "ko"} for names in prompts.CATEGORIES.values())


def test_user_message_has_one_form():
    assert prompts.user_message({"instruction": "요약해 주세요.", "input": ""}) == "요약해 주세요."
    assert (
        prompts.user_message({"instruction": "요약해 주세요.", "input": "글"})
        == "요약해 주세요.\n\n글"
    )
