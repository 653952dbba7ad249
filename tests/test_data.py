"""The shipped data: form, balance, size. Facts were checked by eye and, where it is code, by
running it."""

import json
import re
from collections import Counter

import pytest

import prompts
import utils

FIELDS = {
    "seed_tasks": (
        "id",
        "language",
        "category",
        "instruction",
        "input",
        "output",
        "is_classification",
    ),
    "instruction": ("id", "language", "category", "instruction", "input", "output", "source"),
    "eval_prompts": ("id", "language", "category", "prompt", "reference"),
    "judge_calibration": (
        "id",
        "language",
        "kind",
        "prompt",
        "answer_good",
        "answer_bad",
        "reference",
    ),
}
SECOND_TURN = {
    "follow_up",
    "follow_up_reference",
}  # optional fields of eval_prompts: what the user says next
SIZES = {"seed_tasks": 175, "instruction": 1000, "eval_prompts": 120, "judge_calibration": 128}
EVERYTHING = {
    name: utils.read_jsonl(utils.DATA / f"{name}.jsonl", fields) for name, fields in FIELDS.items()
}


@pytest.mark.parametrize("name", FIELDS)
def test_form(name):
    rows = EVERYTHING[name]
    assert len(rows) >= SIZES[name] and len({row["id"] for row in rows}) == len(rows)
    second = SECOND_TURN if name == "eval_prompts" else set()
    assert all(set(row) - second == set(FIELDS[name]) for row in rows)
    languages = Counter(row["language"] for row in rows)
    assert set(languages) == {"en", "ko"} and languages["en"] == languages["ko"], "half and half"
    for row in rows:
        for key, value in row.items():
            assert not isinstance(value, str) or value == value.strip(), (row["id"], key)
            assert value != "" or key == "input", (row["id"], key)


def test_ten_evaluation_prompts_have_a_second_turn():
    """Both fields come together or not at all, half and half, in at least five categories;
    `test_form` sees that none is empty."""
    rows = EVERYTHING["eval_prompts"]
    assert {frozenset(SECOND_TURN & set(row)) for row in rows} == {
        frozenset(),
        frozenset(SECOND_TURN),
    }
    two_turn = [row for row in rows if "follow_up" in row]
    assert Counter(row["language"] for row in two_turn) == {"en": 5, "ko": 5}
    assert len({row["category"] for row in two_turn}) >= 5


@pytest.mark.parametrize("name", ["seed_tasks", "instruction", "eval_prompts"])
def test_categories_are_known_and_balanced(name):
    for language in ("en", "ko"):
        counts = Counter(row["category"] for row in EVERYTHING[name] if row["language"] == language)
        if name == "seed_tasks":
            counts["classification"] //= 3  # a fifth of the seeds are classification, on purpose
        assert set(counts) == set(prompts.CATEGORIES) and max(counts.values()) <= 1.4 * min(
            counts.values()
        ), counts


def test_a_fifth_of_the_seeds_are_classification():
    seeds = EVERYTHING["seed_tasks"]
    assert 0.18 <= sum(seed["is_classification"] for seed in seeds) / len(seeds) <= 0.25


@pytest.mark.parametrize("name", FIELDS)
def test_language_is_what_it_says(name):
    for row in EVERYTHING[name]:
        text = row.get("instruction") or row["prompt"].splitlines()[0]
        letters = re.findall(r"[^\W\d_]", text)
        hangul = sum("가" <= letter <= "힣" for letter in letters) / len(letters)
        assert (hangul > 0.3) == (row["language"] == "ko"), row["id"]


def test_page_has_the_figures_of_the_files():
    """`make card` was run after the last change of the data."""
    from preprocessing import data_card

    assert (utils.DATA / "README.md").read_text(encoding="utf-8") == data_card.shipped()


def test_housing_is_the_worked_domain():
    assert sum(row["category"] == "housing" for row in EVERYTHING["instruction"]) >= 100


def test_forms_vary():
    """No templates: few instructions share their first three words, and outputs range from a word
    to a paragraph."""
    for language in ("en", "ko"):
        rows = [row for row in EVERYTHING["instruction"] if row["language"] == language]
        openings = Counter(" ".join(row["instruction"].split()[:3]) for row in rows)
        assert openings.most_common(1)[0][1] <= 3 and len(openings) >= 0.85 * len(rows)
        lengths = sorted(len(row["output"].split()) for row in rows)
        assert (
            lengths[0] <= 2
            and lengths[-1] >= 30
            and 0.35 <= sum(bool(row["input"]) for row in rows) / len(rows) <= 0.6
        )


def test_json_answers_are_json_and_python_answers_compile():
    rows = EVERYTHING["instruction"] + EVERYTHING["seed_tasks"]
    checked = 0
    for row in rows:
        if row["category"] == "extraction" and row["output"].startswith(("{", "[")):
            json.loads(row["output"])
            checked += 1
        for block in re.findall(r"```python\n(.*?)```", row["output"], re.DOTALL):
            compile(block, row["id"], "exec")
            checked += 1
    assert checked > 15


def test_calibration_pairs_cover_the_kinds_in_both_languages():
    counts = Counter((row["language"], row["kind"]) for row in EVERYTHING["judge_calibration"])
    assert len(counts) == 16 and set(counts.values()) == {8}
    longer = sum(
        len(row["answer_good"]) > len(row["answer_bad"]) for row in EVERYTHING["judge_calibration"]
    )
    assert 0.4 <= longer / len(EVERYTHING["judge_calibration"]) <= 0.6, (
        "length alone must not find the better answer"
    )


def test_recorded_teacher_is_enough():
    from rehearsal import stand_ins

    for language in ("en", "ko"):
        batches = stand_ins.recorded(language)
        good = sum(task["flaw"] is None for batch in batches for task in batch.get("tasks", []))
        assert good >= 120 and any("content" in batch for batch in batches)
