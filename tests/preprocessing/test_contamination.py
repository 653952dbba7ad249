"""The gate: what hides in an input, an answer or a second turn, and what it says of itself."""

import pytest

import prompts
import similarity
import utils
from preprocessing import contamination

HELD = [one for one in contamination.held_out() if one.name.startswith("eval")]
CHAT = "A: Are you there?\nB: Yes.\nA: {text}\nB: One moment."


@pytest.mark.parametrize("field", ["input", "output"])
def test_a_prompt_within_a_transcript_is_found(field):
    """A third of them was missed in an input, and all of them in an answer."""
    rows = []
    for number, one in enumerate(HELD):
        row = {"id": f"row-{number}", "instruction": "Write a chat.", "input": "", "output": "x"}
        rows.append(row | {field: CHAT.format(text=one.text)})
    matches = contamination.contained(rows, [one.text for one in HELD])
    missed = [one.text for one, match in zip(HELD, matches, strict=True) if match is None]
    assert not [text for text in missed if len(similarity.tokenize(text)) >= 8]


def test_what_is_asked_in_a_second_turn_is_held_out_too():
    items = utils.read_jsonl(utils.DATA / "eval_prompts.jsonl")
    follow_ups = {turn["prompt"] for item in items for turn in item.get("follow_ups", ())}
    assert follow_ups and follow_ups <= {one.text for one in contamination.held_out()}


def test_no_shipped_row_contains_a_held_out_text():
    rows = utils.read_jsonl(utils.DATA / "instruction.jsonl")
    asked = [one.text for one in contamination.held_out()]
    found = zip(rows, contamination.contained(rows, asked), strict=True)
    assert [row["id"] for row, match in found if match] == []


def test_no_seed_asks_what_an_evaluation_prompt_asks():
    """A teacher that is shown an evaluation prompt writes rows like it."""
    gate = utils.read_json(utils.DATA / "contamination.json")
    seeds = utils.read_jsonl(utils.DATA / "seed_tasks.jsonl")
    texts = [prompts.user_message(seed) for seed in seeds]
    asked = [one.text for one in HELD]
    copied = similarity.rouge_l_nearest(texts, asked)
    meant = similarity.nearest(similarity.embed(texts), similarity.embed(asked))
    assert max(match.score for match in copied) <= gate["lexical"]
    assert max(match.score for match in meant) <= gate["semantic"]


def test_the_record_says_how_many_paraphrases_the_gate_finds():
    gate = utils.read_json(utils.DATA / "contamination.json")
    measured = contamination.recall(gate["lexical"], gate["semantic"])
    assert gate["recall"] == pytest.approx(measured, abs=0.01) and measured < 0.9


def test_ones_own_rows_are_compared_with_ones_own_evaluation(tmp_path, capsys):
    rows, held = tmp_path / "rows.jsonl", tmp_path / "held.csv"
    question = "전세 계약이 끝나면 보증금은 언제 어떻게 돌려받을 수 있는지 알려 주세요."
    chat = {
        "question": "대화를 요약해 주세요.",
        "input": CHAT.format(text=question),
        "answer": "네.",
    }
    utils.write_jsonl(rows, [{"question": "하늘은 왜 파란가요?", "answer": "빛 때문이에요."}, chat])
    held.write_text(f"question,answer\n{question},집을 비울 때 받아요.\n", encoding="utf-8")
    assert contamination.main([str(rows), "--held-out", str(held)]) == 1
    out = capsys.readouterr().out
    assert "contained 1.000" in out and "1 of 2 rows resemble" in out and "Of paraphrases" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["held.csv", "rows.jsonl"]
    with pytest.raises(utils.CourseError, match="does not exist"):
        contamination.main([str(tmp_path / "no.jsonl"), "--held-out", str(held)])


def test_how_long_a_long_file_takes_is_another_machines_time(monkeypatch, tmp_path, capsys):
    """Some rows are read first, in conversations as in rows of one turn, and their time counts."""
    clock = [0.0]

    def embed(texts):
        clock[0] += 0.06 * len(texts)

    monkeypatch.setattr(contamination, "CACHE", tmp_path)
    monkeypatch.setattr(contamination, "contaminated", lambda *_: [])
    monkeypatch.setattr(contamination.similarity, "embed", embed)
    monkeypatch.setattr(contamination.curation, "gate_threshold", lambda _: 0.9)
    monkeypatch.setattr(contamination.time, "monotonic", lambda: clock[0])
    rows = [{"id": str(n), "instruction": f"{n}번 질문", "output": "답"} for n in range(2000)]
    assert contamination.clean(rows) == rows
    assert "2,000 rows with the evaluation, once: about 2.0 minutes on" in capsys.readouterr().out


def test_clean_rows_go_to_another_file_than_the_users_own(tmp_path):
    """The file that is read is never written to, nor a folder that is read as a whole."""
    rows = [
        {
            "id": "new",
            "instruction": "우산이 세 개 있는데 하나를 잃어버리면 몇 개인가요?",
            "output": "두 개요.",
        },
        {
            "id": "asked",
            "instruction": utils.read_jsonl(utils.DATA / "eval_prompts.jsonl")[0]["prompt"],
            "output": "x",
        },
    ]
    folder = tmp_path / "kept"
    source = utils.write_jsonl(folder / "rows.jsonl", rows)
    before = source.read_bytes()
    for place in (source, folder / "." / "rows.jsonl", folder / "clean.jsonl"):
        read = source if place.name == "rows.jsonl" else folder
        with pytest.raises(utils.CourseError, match="is never written to"):
            contamination.main([str(read), "--output", str(place)])
    assert source.read_bytes() == before and list(folder.iterdir()) == [source]
    assert contamination.main([str(source), "--output", str(tmp_path / "clean.jsonl")]) == 0
    assert [row["id"] for row in utils.read_jsonl(tmp_path / "clean.jsonl")] == ["new"]
    assert source.read_bytes() == before
