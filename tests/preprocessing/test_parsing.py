"""Replies in plain text: what is read, and what is not guessed."""

import pytest

from llm.replies import Reply
from preprocessing import parsing
from preprocessing.curation import Critique
from preprocessing.self_instruct import (
    InputFirstInstances,
    Instructions,
    Kind,
    OutputFirstInstances,
    TaskBatch,
)

TASKS = """Sure, here they are.

### 1.
**Category:** writing
Instruction: Explain the bus plan of 2016. in one line
Input: <noinput>
Output: First: buy a ticket.
16. December was the last day.
### not a new task

---
2. category: rewriting
지시: 다음 문장을 높임말로 바꿔 주세요.
입력: 밥 먹어.
출력: 식사하세요.
"""


def test_labels_count_at_the_start_of_a_line_only():
    """Alpaca's parser cut an answer at "###" and at "16."."""
    first, second = parsing.read(TASKS, TaskBatch).tasks
    assert first.instruction == "Explain the bus plan of 2016. in one line" and first.input == ""
    assert (
        first.output == "First: buy a ticket.\n16. December was the last day.\n### not a new task"
    )
    assert (second.category, second.input, second.output) == (
        "rewriting",
        "밥 먹어.",
        "식사하세요.",
    )


def test_the_last_record_of_a_cut_reply_is_left_out():
    assert len(parsing.read(TASKS, TaskBatch, cut=True).tasks) == 1
    assert parsing.read(
        "1. 시를 한 편 써 주세요.\n2. 속담을 하나 설", Instructions, cut=True
    ).instructions == ["시를 한 편 써 주세요."]
    assert parsing.read("input: a\noutput: half of", InputFirstInstances, cut=True) is None


def test_a_task_without_an_output_is_dropped():
    text = (
        "category: writing\ninstruction: Write a poem.\n\ncategory: code\ninstruction: "
        "Sort.\noutput: sorted(x)"
    )
    assert [task.category for task in parsing.read(text, TaskBatch).tasks] == ["code"]


@pytest.mark.parametrize(
    "text",
    [
        'Here you are:\n```json\n{"instructions": ["하나를 설명해 주세요.", "Name two '
        'rivers."]}\n```',
        '["하나를 설명해 주세요.", "Name two rivers."]',
        "1. 하나를 설명해 주세요.\n2) Name two rivers.",
        "**1.** 하나를 설명해 주세요.\n\n**2.** Name two rivers.",
    ],
)
def test_json_in_prose_and_numbered_lists(text):
    assert parsing.read(text, Instructions).instructions == [
        "하나를 설명해 주세요.",
        "Name two rivers.",
    ]


def test_output_first_and_several_instances():
    read = parsing.read(
        "output: 긍정\ninput: 아주 좋았어요.\n\noutput: 부정\ninput: 다시는 안 가요.\n둘째 줄",
        OutputFirstInstances,
    )
    assert [(one.output, one.input) for one in read.instances] == [
        ("긍정", "아주 좋았어요."),
        ("부정", "다시는 안 가요.\n둘째 줄"),
    ]


@pytest.mark.parametrize(
    ("said", "expected"), [("yes", True), ("No.", False), ("예", True), ("아니요", False)]
)
def test_yes_and_no(said, expected):
    assert (
        parsing.read(f"is_classification: {said}\ncategory: classification", Kind).is_classification
        is expected
    )


@pytest.mark.parametrize(("said", "expected"), [("4", 4), ("4/5", 4), ("**3**", 3), ("5점", 5)])
def test_scores(said, expected):
    assert parsing.read(f"이유: 정확합니다.\n점수: {said}", Critique).score == expected


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ("reason: fine\nscore: between 3 and 4", Critique),
        ("reason: fine\nscore: 9", Critique),
        ("I would give it a 5.", Critique),
        ("is_classification: maybe\ncategory: code", Kind),
        ("I cannot do that.", TaskBatch),
        ("", Instructions),
        ('{"tasks": [{"category": "writing", "instr', TaskBatch),
    ],
)
def test_what_cannot_be_read_is_not_guessed(text, schema):
    assert parsing.read(text, schema) is None
    assert (
        parsing.filled(Reply(text=text), schema).error == f"no {schema.__name__} can be read in it"
    )


def test_refusals_and_failures_stay_as_they_are():
    refused = Reply(text="1. Name a river.", error="refused: no", finish_reason="stop")
    assert parsing.filled(refused, Instructions) is refused
    cut = Reply(
        text="1. Name a river.\n2. Na",
        error="cut off by max_completion_tokens",
        finish_reason="length",
    )
    assert (
        parsing.filled(cut, Instructions).parsed.instructions == ["Name a river."]
        and parsing.filled(cut, Instructions).error is None
    )
