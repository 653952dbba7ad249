"""Replies in plain text: what is read, and what is not guessed."""

import json

import pytest

from llm.replies import Reply, Request
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


def read(text: str, schema, cut: bool = False):
    """What is read from a reply in plain text; None where there is nothing."""
    reply = Reply(text=text, finish_reason="length" if cut else "stop")
    return parsing.filled(reply, schema).parsed


def test_labels_count_at_the_start_of_a_line_only():
    """Alpaca's parser cut an answer at "###" and at "16."."""
    first, second = read(TASKS, TaskBatch).tasks
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
    assert len(read(TASKS, TaskBatch, cut=True).tasks) == 1
    assert read(
        "1. 시를 한 편 써 주세요.\n2. 속담을 하나 설", Instructions, cut=True
    ).instructions == ["시를 한 편 써 주세요."]
    assert read("input: a\noutput: half of", InputFirstInstances, cut=True) is None


def test_a_task_without_an_output_is_dropped():
    text = (
        "category: writing\ninstruction: Write a poem.\n\ncategory: code\ninstruction: "
        "Sort.\noutput: sorted(x)"
    )
    assert [task.category for task in read(text, TaskBatch).tasks] == ["code"]


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
    assert read(text, Instructions).instructions == [
        "하나를 설명해 주세요.",
        "Name two rivers.",
    ]


def test_output_first_and_several_instances():
    found = read(
        "output: 긍정\ninput: 아주 좋았어요.\n\noutput: 부정\ninput: 다시는 안 가요.\n둘째 줄",
        OutputFirstInstances,
    )
    assert [(one.output, one.input) for one in found.instances] == [
        ("긍정", "아주 좋았어요."),
        ("부정", "다시는 안 가요.\n둘째 줄"),
    ]


@pytest.mark.parametrize(
    ("said", "expected"), [("yes", True), ("No.", False), ("예", True), ("아니요", False)]
)
def test_yes_and_no(said, expected):
    assert (
        read(f"is_classification: {said}\ncategory: classification", Kind).is_classification
        is expected
    )


@pytest.mark.parametrize(("said", "expected"), [("4", 4), ("4/5", 4), ("**3**", 3), ("5점", 5)])
def test_scores(said, expected):
    assert read(f"이유: 정확합니다.\n점수: {said}", Critique).score == expected


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
    assert read(text, schema) is None
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
    assert parsing.filled(cut, Instructions).parsed.instructions == ["Name a river."]
    assert parsing.filled(cut, Instructions).error is None


# --- what stands around an answer, and what is wrong inside it ------------------------------------


def task(number: int, **more) -> dict:
    made = {"category": "writing", "instruction": f"과제 {number}: 시를 써 주세요.", "input": ""}
    return made | {"output": f'그래요 {{"{number}"}}, 좋아요.'} | more


def tasks_in(text: str, cut: bool = False) -> list[str]:
    found = read(text, TaskBatch, cut)
    return [one.instruction for one in found.tasks] if isinstance(found, TaskBatch) else []


THREE = [task(number) for number in range(3)]
NAMES = [one["instruction"] for one in THREE]
AS_JSON = json.dumps({"tasks": THREE}, ensure_ascii=False, indent=1)
AS_LINES = "\n".join(json.dumps(one, ensure_ascii=False) for one in THREE)
AS_LABELS = "\n\n".join("\n".join(f"{k}: {v or '없음'}" for k, v in one.items()) for one in THREE)
FORMS = {"json": AS_JSON, "lines": AS_LINES, "array": json.dumps(THREE), "labels": AS_LABELS}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "around",
    [
        "{}",
        "<think>One like {{this}}? Or [that]?</think>\n{}",
        "thoughts that the template opened {{ }}\n</think>\n\n{}",
        "Here you are:\n\n{}",
        "```\n{}\n```",
        "Sure!\n```json\n{}\n```\nLet me know if you'd like more!",
        "{}\n\nLet me know if you need anything else.",
        "{}\n\n더 필요한 과제가 있으면 말씀해 주세요.",
        "{}\n```",
        "<think>hm</think>물론입니다.\n\n```\n{}\n```\n\n도움이 되었기를 바랍니다.",
    ],
)
def test_what_stands_around_an_answer_is_no_part_of_it(form, around):
    text = around.replace("{{", "{").replace("}}", "}").replace("{}", FORMS[form])
    found = read(text, TaskBatch)
    assert [one.instruction for one in found.tasks] == NAMES
    assert [one.output for one in found.tasks] == [one["output"] for one in THREE]


def test_an_answer_that_has_fences_and_farewells_of_its_own_keeps_them():
    code = "```python\nprint(1)\n```\n\nFeel free to use it.\n\nIt prints 1."
    text = f"category: code\ninstruction: Print.\noutput: {code}"
    assert read(text, TaskBatch).tasks[0].output == code


@pytest.mark.parametrize(
    "bad",
    [
        '{"category": "code", "instruction": 3, "input": "", "output": {"a": 1}}',
        '{"category": "code", "instruction": "cut of',
        '{"category": "code"}',
    ],
)
def test_one_bad_record_among_twenty_costs_that_one(bad):
    records = [json.dumps(task(number), ensure_ascii=False) for number in range(19)]
    text = '{"tasks": [' + ", ".join([*records[:7], bad, *records[7:]]) + "]}"
    filled = parsing.filled(Reply(text=text), TaskBatch)
    assert len(filled.parsed.tasks) == 19 and filled.unread == 1 and filled.error is None


def test_a_reply_cut_in_record_20_still_gives_19():
    whole = json.dumps({"tasks": [task(number) for number in range(20)]}, ensure_ascii=False)
    # Also where the last record's text has a brace in it, which could be taken for its end
    for end in (-5, -12):
        assert len(tasks_in(whole[:end], cut=True)) == 19
    entry = {
        "key": "k",
        "reply": {"content": whole[:-5], "finish_reason": "length"},
        "request": {"messages": [], "max_completion_tokens": 100},
        "usage": {"completion_tokens": 100},
        "cost_usd": 0.0,
    }
    reply = Request("k", entry["request"], 100, 100, 0.0, TaskBatch).read(entry)
    assert len(reply.parsed.tasks) == 19 and reply.unread == 1 and reply.error is None


@pytest.mark.parametrize(
    "text",
    [
        AS_JSON.replace('."\n  }', '.",\n  }'),  # trailing commas in records
        AS_JSON.replace("}\n ]", "},\n ]"),  # and after the last one
        AS_JSON.replace('"input": ""', '"input": null'),
        AS_JSON.replace('"input": "",', ""),
        AS_JSON.replace('"category"', '"Category"'),
        AS_JSON.replace('"category": "writing"', '"id": 7, "category": "writing"'),
        AS_JSON.replace("시를 써", "시를\t써"),  # a control character in a string
    ],
)
def test_nearly_correct_json_is_read(text):
    assert [name.replace("\t", " ") for name in tasks_in(text)] == NAMES


def test_half_a_surrogate_pair_cannot_reach_the_data_set():
    """It ended a run with a UnicodeEncodeError when the data set was written, after everything had
    been paid for."""
    text = json.dumps({"tasks": [task(1, output="좋아요 \ud83d")]})
    (one,) = read(text, TaskBatch).tasks
    assert one.output == "좋아요 \ufffd" and one.output.encode()


@pytest.mark.parametrize("text", ["[" * 20_000, '{"category":' * 20_000, '{"tasks": [' * 5_000])
def test_20000_brackets_are_no_answer_and_no_crash(text):
    for schema in (TaskBatch, Instructions, Kind):
        assert read(text, schema) is None


def test_a_list_inside_an_instruction_is_not_the_list_of_instructions():
    text = '1. Sort ["pear", "fig"] by length.\n2. Name a river.'
    assert len(read(text, Instructions).instructions) == 2


def test_two_answers_that_contradict_each_other_are_none():
    text = '{"reason": "good", "score": 5}\nOr rather: {"reason": "bad", "score": 1}'
    assert read(text, Critique) is None
    assert read('{"reason": "good", "score": 5}', Critique).score == 5
