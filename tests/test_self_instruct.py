"""Requests, rules, ledger and the contamination gate."""

import random

import pytest

import prompts
import self_instruct
import similarity
import utils
from llm import Reply
from self_instruct import Task, TaskBatch


def task(language="en", **changes) -> dict:
    base = {
        "en": {
            "category": "writing",
            "instruction": "Write a short note to a neighbour.",
            "input": "",
            "output": "Thank you for your help.",
        },
        "ko": {
            "category": "writing",
            "instruction": "이웃에게 보낼 짧은 쪽지를 써 주세요.",
            "input": "",
            "output": "도와주셔서 감사합니다.",
        },
    }[language]
    return {"language": language} | base | changes


@pytest.mark.parametrize("language", ["en", "ko"])
def test_a_good_task_passes(language):
    assert self_instruct.problem(task(language)) is None


@pytest.mark.parametrize(
    ("language", "changes", "reason"),
    [
        ("en", {"instruction": "Write poem now"}, "instruction too short"),
        ("ko", {"instruction": "시 쓰기"}, "instruction too short"),
        ("en", {"instruction": "word " * 151}, "instruction too long"),
        ("en", {"instruction": "- Write a short note to someone."}, "instruction starts with punctuation"),
        ("ko", {"instruction": "(짧게) 이웃에게 쪽지를 써 주세요."}, "instruction starts with punctuation"),
        ("en", {"instruction": "Write a program that sorts a list."}, "starts with 'Write a program'"),
        ("en", {"instruction": "Draw a map of the village for me."}, "a text model cannot do it (Draw)"),
        ("ko", {"instruction": "마을 지도를 그려서 설명해 주세요."}, "a text model cannot do it (지도)"),
        ("ko", {"instruction": "Write a short note to a neighbour."}, "instruction in the wrong language"),
        ("en", {"instruction": "이웃에게 보낼 짧은 쪽지를 써 주세요."}, "instruction in the wrong language"),
        ("en", {"output": " "}, "empty output"),
        ("en", {"input": "Same text.", "output": "Same text."}, "output repeats the input"),
        ("ko", {"output": "다음과 같습니다:"}, "output ends in a colon"),
        ("en", {"output": "First we pack the boxes. Then we carry the heavy ones down the"}, "output breaks off"),
        ("ko", {"output": "먼저 상자를 쌉니다. 그리고 나서 무거운 짐을 차례대로 아래층으로 옮기고 마지막에"}, "output breaks off"),
        ("en", {"category": "poetry"}, "unknown category 'poetry'"),
    ],
)
def test_rules(language, changes, reason):
    assert self_instruct.problem(task(language, **changes)) == reason


def test_rules_accept_the_shipped_data():
    """A filter that would reject good rows is a bad filter: at most one in a hundred."""
    rows = utils.read_jsonl(utils.DATA / "instruction.jsonl") + utils.read_jsonl(utils.DATA / "seed_tasks.jsonl")
    assert sum(self_instruct.problem(row) is not None for row in rows) <= len(rows) / 100


@pytest.mark.parametrize("language", ["en", "ko"])
def test_rules_catch_what_was_recorded_as_flawed(language):
    import rehearsal

    by_rule = {
        "too_short",
        "unsuitable",
        "write_a_program",
        "empty_output",
        "output_equals_input",
        "truncated",
        "bad_start",
        "wrong_language",
    }
    tasks = [one | {"language": language} for batch in rehearsal.recorded(language) for one in batch.get("tasks", [])]
    assert len({one["flaw"] for one in tasks}) >= 9
    for one in tasks:
        assert (self_instruct.problem(one) is not None) == (one["flaw"] in by_rule), (one["flaw"], one["instruction"])


@pytest.mark.parametrize("language", ["en", "ko"])
def test_request_shows_demonstrations_and_is_reproducible(language):
    seeds = self_instruct.load_seeds(("en", "ko"))
    chosen = self_instruct.sample_demonstrations(seeds, language, 3, random.Random(5))
    assert chosen == self_instruct.sample_demonstrations(seeds, language, 3, random.Random(5))
    assert len({one["category"] for one in chosen}) == 3 and {one["language"] for one in chosen} == {language}
    request = self_instruct.batch_request(chosen, language, 20, seed=7)
    text = request["messages"][1]["content"]
    assert all(one["instruction"] in text and one["output"] in text for one in chosen) and "20" in text
    assert all(category in text for category in prompts.CATEGORIES) and request["seed"] == 7


def reply(*instructions: str, error: str | None = None) -> Reply:
    tasks = [Task(category="writing", instruction=text, input="", output="Done.") for text in instructions]
    return Reply(parsed=TaskBatch(tasks=tasks) if tasks else None, error=error, cost_usd=0.02, key="abc")


def test_every_row_has_a_fate(tmp_path):
    ledger = self_instruct.Ledger()
    ledger.receive(reply("One task of its own.", "Another task of its own."), "en", [{"id": "seed-1"}], "gpt-4o")
    ledger.receive(reply(error="does not match the schema"), "en", [{"id": "seed-2"}], "gpt-4o")
    ledger.drop(ledger.open("ROUGE-L")[1], "ROUGE-L", "near-duplicate", "run-en-0001", 0.91)
    assert ledger.funnel() == [("received", 3), ("malformed reply", 2), ("ROUGE-L", 1)]
    path = ledger.save(tmp_path)
    rows, kept = utils.read_jsonl(tmp_path / "ledger.jsonl"), utils.read_jsonl(path)
    assert [row["fate"] for row in rows] == ["kept", "ROUGE-L", "malformed reply"]
    assert rows[1]["neighbour"] == "run-en-0001" and rows[1]["score"] == 0.91 and rows[2]["reason"] == "does not match the schema"
    assert len(kept) == 1 and kept[0]["teacher"] == "gpt-4o" and kept[0]["demonstrations"] == ["seed-1"] and kept[0]["cost_usd"] == 0.01


def test_contamination_is_found_word_for_word_and_reworded():
    rows = [
        task(instruction="Why do people on Earth always see the same side of the Moon?", id="copied"),
        task(instruction="How does one make kimchi at home?", id="clean"),
        task("ko", instruction="박물관이 쉬는 날에 무엇을 하나요?", id="clean-ko"),
    ]
    found = self_instruct.contamination(rows, lexical=0.7, semantic=0.95)
    assert [(row["id"], neighbour, how) for row, neighbour, _, how in found] == [("copied", "eval-en-001", "ROUGE-L")]
    assert self_instruct.contamination([], 0.7, 0.95) == []
    meaning = self_instruct.contamination(rows[:1], lexical=1.0, semantic=0.95)
    assert [how for *_, how in meaning] == ["embedding"]


def test_gate_is_recorded_and_a_contaminated_file_is_refused(tmp_path):
    clean = utils.write_jsonl(tmp_path / "instruction.jsonl", [task(id="a")])
    report = self_instruct.pass_gate(clean, 0.7, 0.95)
    assert report == utils.read_json(tmp_path / "contamination.json") and report["data"] == utils.file_hash(clean)
    utils.write_jsonl(clean, [task(id="copied", instruction="Why do people on Earth always see the same side of the Moon?")])
    with pytest.raises(utils.CourseError, match="1 rows of instruction.jsonl resemble evaluation prompts, copied among them"):
        self_instruct.pass_gate(clean, 0.7, 0.95)
    assert utils.read_json(tmp_path / "contamination.json")["left"] == 1


def test_shipped_data_is_clean():
    """No shipped row is in the evaluation, by words or by meaning (threshold: the closest two seeds, see preprocess.ipynb)."""
    rows = utils.read_jsonl(utils.DATA / "instruction.jsonl") + utils.read_jsonl(utils.DATA / "seed_tasks.jsonl")
    assert self_instruct.contamination(rows, 0.7, 0.926) == []
    assert not similarity.rouge_l_duplicates([row["instruction"] for row in rows]).removed
