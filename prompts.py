"""What the course knows of each language: its texts, its rules and its words, one entry a language.

What it does: read `data/languages/<code>.toml` into `LANGUAGES`, so that a text is
`LANGUAGES["ko"].judge_system`. A language more is a file more. What it does not do: put texts
together, which is the work of the module that sends them.

`tests/test_prompts.py` asserts that all languages have the same keys and the same placeholders.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import utils

FILES = utils.DATA / "languages"

CATEGORIES = (
    "open_qa",  # an open question
    "closed_qa",  # a question about a passage
    "writing",
    "rewriting",
    "summarising",
    "extraction",  # of information from a text
    "classification",
    "translation",
    "arithmetic",  # a word problem
    "brainstorming",
    "code",
    "housing",  # in Korea: the course's example of a domain
)

# A task as a teacher sees it in an example; the names of the fields are the same in all languages.
DEMONSTRATION = (
    "{number}. category: {category}\ninstruction: {instruction}\ninput: {input}\noutput: {output}"
)


@dataclass(frozen=True)
class Language:
    """One file of `data/languages/`; `en.toml` says of each entry what it is for."""

    name: str
    scripts: list[str]  # Unicode's names: "Latin", "Hangul"

    # Asking a teacher (preprocessing/self_instruct.py, preprocessing/grounding.py)
    teacher_system: str
    teacher_batch: str
    domain: str
    instructions: str
    recognise: str
    output_first: str
    input_first: str
    critic_system: str
    critique: str
    grounding: str
    answer_lengths: dict[str, str]  # by the setting ANSWER_LENGTH

    # Watching a student (train.ipynb)
    sample_prompts: list[str]

    # Asking a judge (evaluation/judge.py, evaluation/calibration.py)
    judge_system: str
    judge_single_system: str
    judge_headings: dict[str, str]
    judge_turn: str
    judge_task: dict[str, str]
    probes: dict[str, str]

    # Replies in plain text: what is asked for, and how it is read (preprocessing/parsing.py,
    # evaluation/judge.py)
    text_format: dict[str, str]
    field_labels: dict[str, str]  # in this language -> the field
    words: dict[str, list[str]]

    # What a task must be (preprocessing/curation.py)
    rules: dict

    # Reading what an instruction asks for (preprocessing/diversity.py)
    asks: dict

    # Labels of the report page and of the vote (evaluation/report.py, evaluation/vote.py)
    page: dict[str, str]

    # What a run says, by the English that stands in the code (utils.translated)
    messages: dict[str, str]
    cells: dict[str, str]
    printed: dict[str, str]

    def heading(self, name: str, turn: int = 1) -> str:
        """The heading of a section of a judge's prompt; the first turn's has no number."""
        heading = self.judge_headings[name]
        return heading if turn == 1 else self.judge_turn.format(heading=heading, number=turn)

    def share(self, text: str) -> float:
        """Share of a text's letters in this language's scripts, in [0, 1]; 0 without letters."""
        # Composed first: macOS writes file names and some editors texts with one code a jamo
        composed = unicodedata.normalize("NFC", text)
        letters = sum(character.isalpha() for character in composed)
        return len(_letters(tuple(self.scripts)).findall(composed)) / max(1, letters)

    def share_of_words(self, text: str) -> float:
        """Share of a text's words that are mostly in this language's scripts, in [0, 1]: of a
        Korean request with much code in it most letters are Latin, but few words."""
        words = [word for word in text.split() if any(map(str.isalpha, word))]
        return sum(self.share(word) >= 0.5 for word in words) / max(1, len(words))


@functools.cache
def _letters(scripts: tuple[str, ...]):
    """A pattern for one letter of these scripts."""
    import regex

    named = "".join(rf"\p{{Script={script}}}" for script in scripts)
    return regex.compile(rf"[[{named}]&&\p{{Alphabetic}}]", regex.V1)


def read(path: Path) -> Language:
    """The entry of one language.

    Raises:
        CourseError: an entry is missing or unknown, or the file is no TOML.
    """
    entry = utils.read_toml(path)
    expected = {field.name for field in dataclasses.fields(Language)}
    if wrong := sorted(expected ^ entry.keys()):
        raise utils.CourseError(
            f"{utils.short(path)} must have the same entries as data/languages/en.toml; missing or "
            f"unknown: {', '.join(wrong)}."
        )
    return Language(**entry)


LANGUAGES = {path.stem: read(path) for path in sorted(FILES.glob("*.toml"))}


def around(language: str) -> str:
    """The language of a page's words around a text in this one: the reader's, or the text's for a
    reader who has chosen none (English for one that the course does not know)."""
    code = language if utils.reader() == "en" else utils.reader()
    return code if code in LANGUAGES else "en"


def nearest(text: str) -> str:
    """The language of the course with the most of a text's letters."""
    return max(LANGUAGES, key=lambda code: LANGUAGES[code].share(text))


def known(languages: Iterable[str], purpose: str) -> None:
    """CourseError where the course has no texts in one of `languages`, which `purpose` needs."""
    if missing := [code for code in languages if code not in LANGUAGES]:
        raise utils.CourseError(
            f"{purpose} needs the course's texts in {missing[0]!r}, and there is no "
            f"data/languages/{missing[0]}.toml: set LANGUAGE to one of {', '.join(LANGUAGES)}, or "
            "write that file (docs/swap_guide.md)."
        )


def samples(languages: Iterable[str]) -> list[str]:
    """What a student is watched with; English where the course has no texts in a language."""
    texts: list[str] = []
    for code in dict.fromkeys(code if code in LANGUAGES else "en" for code in languages):
        texts += LANGUAGES[code].sample_prompts
    return texts


MOST_TURNS = 9  # of an evaluation prompt, so that every heading is known beforehand


@functools.cache
def judge_sections() -> dict[str, tuple[str, int]]:
    """Every heading of a judge's prompt in any of the languages: `{heading: (name, turn)}`."""
    found = {}
    for language in LANGUAGES.values():
        for name in language.judge_headings:
            for turn in range(1, MOST_TURNS + 1):
                found[language.heading(name, turn)] = name, turn
    return found


def words(name: str) -> list[str]:
    """What is written for `name` (see `[words]` in en.toml) in any of the languages."""
    return [word for language in LANGUAGES.values() for word in language.words[name]]


def either(alternatives: Iterable[str]) -> str:
    """A regular expression for one of some words, the longest first."""
    longest_first = sorted(alternatives, key=len, reverse=True)
    return "|".join(re.escape(word) for word in longest_first)


def user_message(task: dict) -> str:
    """What the user says: the instruction and, after a blank line, the input where there is one.
    One form everywhere."""
    return task["instruction"] + (f"\n\n{task['input']}" if task.get("input") else "")
