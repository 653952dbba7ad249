"""DATA: a user's rows reach training past the gate, and the course's own stay as they are."""

import json

import pytest

import settings
import similarity
import utils
from preprocessing import contamination
from training import chat, data, sft
from utils import CourseError

QUESTION, ANSWER = "김장 김치는 얼마나 익혀야 맛있나요?", "실온에서 하루, 냉장고에서 보름쯤이요."
TURNS = [
    {"role": "user", "content": "깍두기는 무엇을 넣어 담그나요?"},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": "더 빨리 익히려면요?"},
    {"role": "assistant", "content": "실온에 이틀을 두세요."},
]


@pytest.fixture
def own(course, monkeypatch, tmp_path):
    """A folder for files, and a cache of its own for the gate (the vectors stay where they are)."""
    similarity.embed(["warm"])
    monkeypatch.setattr(contamination, "CACHE", tmp_path / "cache")
    return tmp_path


def write(path, records):
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def held_prompt(language="ko"):
    prompts = utils.read_jsonl(utils.DATA / "eval_prompts.jsonl")
    return next(item for item in prompts if item["language"] == language)


def test_contaminated_rows_refuse_the_file_or_are_trained_on(own, capsys):
    copied, said = held_prompt()["prompt"], held_prompt("en")["prompt"]
    records = [
        {"question": QUESTION, "answer": ANSWER},
        {"question": copied, "answer": "몰라요."},
        {"messages": [*TURNS, {"role": "user", "content": said}, TURNS[1]]},
        {"messages": TURNS},
    ]
    chosen = settings.resolve({"DATA": write(own / "faq.jsonl", records)})
    read = data.training_rows(chosen)
    assert [row["id"] for row in read] == ["faq/faq-1", "faq/faq-4"]
    printed = capsys.readouterr().out
    assert f"faq/faq-2 is like {held_prompt()['id']} (ROUGE-L 1.0)" in printed
    assert f"faq/faq-3 is like {held_prompt('en')['id']}" in printed, "a later question hides it"


def test_the_same_rows_are_compared_again_or_changed_ones_are_not(own, monkeypatch):
    calls = []
    compare = contamination.contaminated
    monkeypatch.setattr(
        contamination, "contaminated", lambda *rows: calls.append(1) or compare(*rows)
    )
    path = write(own / "faq.jsonl", [{"question": QUESTION, "answer": ANSWER}] * 3)
    chosen = settings.resolve({"DATA": path, "DATA_FILTER": "off"})
    assert len(data.training_rows(chosen)) == len(data.training_rows(chosen)) == 3
    assert len(calls) == 1
    write(own / "faq.jsonl", [{"question": QUESTION, "answer": ANSWER + "!"}] * 3)
    data.training_rows(chosen)
    assert len(calls) == 2


def test_own_prompts_are_trained_on(own, capsys):
    path = write(own / "faq.jsonl", [{"question": QUESTION, "answer": ANSWER}, {"messages": TURNS}])
    other = {"question": "Name a noble gas.", "answer": "Argon."}
    write(own / "more.jsonl", [other])
    prompts = write(own / "mine.csv", [])
    (own / "mine.csv").write_text(f"prompt\n{TURNS[2]['content']}\n", encoding="utf-8")
    chosen = settings.resolve({"DATA": f"{path}, {own / 'more.jsonl'}", "EVAL_PROMPTS": prompts})
    assert [row["id"] for row in data.training_rows(chosen)] == ["faq/faq-1", "more/more-1"]
    assert "faq/faq-2 is like mine-2" in capsys.readouterr().out


def test_sources_do_not_add_up_or_ids_of_two_files_clash(own, capsys):
    first = write(own / "a.jsonl", [{"id": 1, "question": QUESTION, "answer": ANSWER}])
    second = write(own / "b.jsonl", [{"id": 1, "question": "Name a noble gas.", "answer": "Argon"}])
    both = settings.resolve({"DATA": f"{first},{second},both"})
    assert both.data == (first, second, "run", "shipped")
    read = data.training_rows(both)
    assert [row["id"] for row in read[:2]] == ["a/1", "b/1"]
    assert len(read) == 2 + len(utils.read_jsonl(utils.DATA / "instruction.jsonl"))
    assert "has not run in this run folder" in capsys.readouterr().out


def test_another_language_cannot_be_trained(own, capsys):
    records = [
        {"question": "Wie lange gärt Kimchi bei Zimmertemperatur?", "answer": "Einen Tag."},
        {"question": QUESTION, "answer": ANSWER},
    ]
    chosen = settings.resolve({"DATA": write(own / "de.jsonl", records), "LANGUAGE": "de"})
    (row,) = data.training_rows(chosen)
    assert row["language"] == "de" and "LANGUAGE is de: 1 in ko" in capsys.readouterr().out
    korean = settings.resolve({"DATA": chosen.data[0], "LANGUAGE": "fr"})
    korean.data = (write(own / "ko.jsonl", records[1:]),)
    with pytest.raises(CourseError, match="No training row in fr: check LANGUAGE and DATA"):
        data.training_rows(korean)


def food_answer(food):
    return {"role": "assistant", "content": f"{food} 날마다 맛을 보면 알 수 있어요."}


def test_rows_of_turns_and_of_one_turn_do_not_go_the_whole_way(own, tiny):
    """Reader, gate, split and encoding: the same rows everywhere."""
    model, tokenizer = tiny
    foods = ("장아찌는 며칠이나 두나요?", "된장은 왜 검어지나요?", "식혜를 달게 하려면요?")
    records = [
        {"messages": [TURNS[0] | {"content": food}, *TURNS[1:3], food_answer(food)]}
        for food in foods
    ]
    others = ("Name a gas.", "배추는 언제 심어요?", "How old is kimchi?", "무를 써는 법은?")
    records += [{"prompt": other, "completion": f"{other} {ANSWER}"} for other in others]
    chosen = settings.resolve({"DATA": write(own / "mix.jsonl", records)})
    train, held = sft.split(data.training_rows(chosen), 2, 42)
    stop = chat.choose_stop(model, tokenizer)
    encoded, too_long = chat.encode_all(train + held, tokenizer, stop, 512)
    assert len(encoded) == 7 and not too_long


def test_a_long_file_is_gated_row_by_row_although_few_are_trained(own):
    records = [{"prompt": f"{QUESTION} {n}", "completion": ANSWER} for n in range(40)]
    path = write(own / "long.jsonl", records)
    chosen = settings.resolve({"DATA": path, "PROFILE": "smoke", "DATA_FILTER": "off"})
    chosen.data_rows = 10
    assert len(data.training_rows(chosen)) == 10


def test_a_users_rows_pass_no_filter_or_cannot_avoid_it(own, capsys):
    """Near-duplicates go, of one turn and of several, within a file and across files; what the
    rules reject is said, and goes on request; nothing goes where all rows are wanted."""
    again = [TURNS[0] | {"content": f"{TURNS[0]['content']} 네?"}, *TURNS[1:]]
    records = [
        {"messages": TURNS},
        {"question": QUESTION, "answer": ANSWER},
        {"question": "그림을 그려 주세요.", "answer": "네, 그렸어요."},
        {"messages": again},
    ]
    first = write(own / "a.jsonl", records)
    second = write(own / "b.jsonl", [{"question": f"{QUESTION}!", "answer": "보름이요."}])
    chosen = settings.resolve({"DATA": f"{first},{second}"})
    assert [row["id"] for row in data.training_rows(chosen)] == ["a/a-1", "a/a-2", "a/a-3"]
    printed = capsys.readouterr().out
    assert "a/a-4 is like a/a-1 (ROUGE-L 0.9" in printed
    assert "b/b-1 is like a/a-2 (ROUGE-L 1.00)" in printed
    assert "to be read, a text model cannot do it: 1, such as '그림을 그려 주세요.'" in printed
    chosen.data_filter = "rules"
    assert [row["id"] for row in data.training_rows(chosen)] == ["a/a-1", "a/a-2"]
    assert "left out, a text model cannot do it: 1" in capsys.readouterr().out
    chosen.data_filter = "off"
    assert len(data.training_rows(chosen)) == 5
