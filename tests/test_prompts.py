"""The languages: one file each, with the same keys and placeholders."""

import dataclasses
import re
import string
import unicodedata

import pytest

import prompts
import settings
import utils

OTHERS = [code for code in prompts.LANGUAGES if code != "en"]


def placeholders(text: str) -> list[str]:
    return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name)


@pytest.mark.parametrize("code", OTHERS)
def test_a_language_has_the_texts_and_placeholders_of_english(code):
    english, other = (dataclasses.asdict(prompts.LANGUAGES[key]) for key in ("en", code))
    for name, value in english.items():
        if isinstance(value, str):
            assert placeholders(value) == placeholders(other[name]), name
        elif name in ("field_labels", "messages", "cells", "printed"):  # English needs none
            continue
        elif isinstance(value, dict):
            assert value.keys() == other[name].keys(), name
            for key in value if name not in ("rules", "asks", "words") else ():
                assert placeholders(value[key]) == placeholders(other[name][key]), (name, key)


@pytest.mark.parametrize("code", prompts.LANGUAGES)
def test_no_text_of_a_language_is_left_empty_or_in_another_language(code):
    language = prompts.LANGUAGES[code]
    texts = [value for value in dataclasses.asdict(language).values() if isinstance(value, str)]
    for text in (*texts[1:], *language.sample_prompts, *language.judge_headings.values()):
        assert language.share(re.sub(r"\{\w+\}", "", text)) > 0.3, text[:60]


def test_a_third_language_is_a_file_more(tmp_path):
    """Twelve places had to be changed for it."""
    english = (prompts.FILES / "en.toml").read_text(encoding="utf-8")
    path = tmp_path / "de.toml"
    path.write_text(english.replace('name = "English"', 'name = "German"'), encoding="utf-8")
    assert prompts.read(path).name == "German"
    assert {code: one.name for code, one in prompts.LANGUAGES.items()} == settings.LANGUAGES


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda text: text.replace("scripts = ", "scriptss = "), "scripts, scriptss"),
        (lambda text: text.replace("[probes]", "[probes"), "line"),
    ],
)
def test_a_language_file_with_a_slip_is_refused_in_a_sentence(tmp_path, change, named):
    path = tmp_path / "de.toml"
    path.write_text(change((prompts.FILES / "en.toml").read_text(encoding="utf-8")))
    with pytest.raises(utils.CourseError, match=named):
        prompts.read(path)


@pytest.mark.parametrize(
    ("code", "text", "share"),
    [
        ("ko", "전세가 뭐예요?", 1.0),
        ("ko", unicodedata.normalize("NFD", "전세가 뭐예요?"), 1.0),  # counted as no Hangul at all
        ("ko", "GPT로 글쓰기", 4 / 7),
        ("ko", "ㅋㅋㅋ", 1.0),
        ("en", "Café au lait, naïve?", 1.0),
        ("en", "Переведи это", 0.0),
        ("en", "42 %", 0.0),
    ],
)
def test_share_of_a_languages_letters(code, text, share):
    assert prompts.LANGUAGES[code].share(text) == pytest.approx(share)


def test_user_message_has_one_form():
    assert prompts.user_message({"instruction": "요약해 주세요.", "input": ""}) == "요약해 주세요."
    assert (
        prompts.user_message({"instruction": "요약해 주세요.", "input": "글"})
        == "요약해 주세요.\n\n글"
    )
