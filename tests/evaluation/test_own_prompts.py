"""EVAL_PROMPTS: a user's own prompts, with or without references, instead of the course's."""

import hashlib
import json

import pytest

import settings
import utils
from evaluation import judge, measures
from preprocessing import rows
from training.generation import Answer
from utils import CourseError

ASKED, ANSWER, MORE = "김장은 언제 하나요?", "보통 11월 말이요.", "남쪽에서는요?"


def write(path, records):
    text = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    path.write_text(text, encoding="utf-8")
    return str(path)


FORMS = {
    "the course's": {"prompt": ASKED, "reference": ANSWER, "follow_up": MORE},
    "question and answer": {"question": ASKED, "answer": ANSWER, "follow_up": [MORE]},
    "alpaca": {"instruction": ASKED, "input": "", "output": ANSWER, "follow_up": MORE},
    "mt-bench": {"question_id": 81, "turns": [ASKED, MORE], "reference": [ANSWER]},
    "messages": {
        "messages": [
            {"role": "user", "content": ASKED},
            {"role": "assistant", "content": ANSWER},
            {"role": "user", "content": MORE},
        ]
    },
}


@pytest.mark.parametrize("name", FORMS)
def test_prompts_in_a_common_form_are_refused(tmp_path, name, course):
    path = write(tmp_path / "mine.jsonl", [FORMS[name]])
    (item,) = judge.evaluation_prompts(settings.resolve({"EVAL_PROMPTS": path}))
    assert item["prompt"] == ASKED and item["reference"] == ANSWER
    assert item["follow_ups"] == [{"prompt": MORE, "reference": ""}] and item["language"] == "ko"
    assert item["category"] == "other" and item["id"] == "mine-1"
    assert rows.questions(item) == [ASKED, MORE]


def test_prompts_without_references_end_in_a_key_error(tmp_path, course):
    path = tmp_path / "mine.csv"
    path.write_text(f"Prompt,Category\n{ASKED},food\nName a gas.,\n", encoding="utf-8-sig")
    items = judge.evaluation_prompts(settings.resolve({"EVAL_PROMPTS": str(path)}))
    assert [item["category"] for item in items] == ["food", "other"]
    assert all(item["reference"] == "" and "follow_ups" not in item for item in items)
    assert judge.sample(items, 2) == items
    answers = [Answer("네", True, 1), Answer("Argon", True, 1)]
    assert "answers that loop" in measures.beside(answers, items)
    assert measures.reference_losses(None, None, None, items) == {"base": None, "tuned": None}


def test_prompts_in_another_language_are_dropped_silently(tmp_path, course, capsys):
    path = write(tmp_path / "a.jsonl", [{"prompt": ASKED}, {"prompt": "Name a gas."}])
    chosen = settings.resolve({"EVAL_PROMPTS": path, "LANGUAGE": "ko"})
    assert len(judge.evaluation_prompts(chosen)) == 1
    assert "1 prompts are not asked, because LANGUAGE is ko" in capsys.readouterr().out
    with pytest.raises(CourseError, match="에 없습니다. LANGUAGE를 확인"):
        path = write(tmp_path / "b.jsonl", [{"prompt": "Name a gas."}])
        judge.evaluation_prompts(settings.resolve({"EVAL_PROMPTS": path, "LANGUAGE": "ko"}))
    with pytest.raises(CourseError, match=r"The judge needs the course's texts in 'de'"):
        judge.evaluation_prompts(settings.resolve({"EVAL_PROMPTS": path, "LANGUAGE": "de"}))
    with pytest.raises(CourseError, match="No row of .*: no question"):
        judge.evaluation_prompts(
            settings.resolve({"EVAL_PROMPTS": write(tmp_path / "c.jsonl", [{"text": "a"}])})
        )


def test_the_courses_prompts_change_by_it(tmp_path, course):
    before = hashlib.sha256((utils.DATA / "eval_prompts.jsonl").read_bytes()).digest()
    shipped = judge.evaluation_prompts(settings.resolve({}))
    assert shipped == utils.read_jsonl(utils.DATA / "eval_prompts.jsonl")
    own = rows.prompts(utils.DATA / "eval_prompts.jsonl", quiet=True)
    for item, written in zip(own, shipped, strict=True):
        assert {key: item[key] for key in written} == written
    assert hashlib.sha256((utils.DATA / "eval_prompts.jsonl").read_bytes()).digest() == before
