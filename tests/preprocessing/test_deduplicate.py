"""The command lines for one's own rows: sentences, no tracebacks, and no file of the reader's
changed."""

import json

import pytest

import utils
from preprocessing import curation, deduplicate

ROWS = [
    {"instruction": "전세와 월세의 차이를 설명해 주세요.", "output": "보증금이 다릅니다."},
    {"instruction": "전세와 월세의 차이를 설명해 주세요!", "output": "매달 내는 돈이 다릅니다."},
    {"instruction": "Name three rivers in Korea.", "output": "Han, Nakdong, Geum."},
    {"instruction": "Translate.", "input": "Good morning.", "output": "좋은 아침."},
    {"instruction": "Translate.", "input": "See you in May.", "output": "5월에 봐요."},
]
CHAT = {
    "messages": [
        {"role": "user", "content": "Name three rivers in Korea, please."},
        {"role": "assistant", "content": "Han, Nakdong and Geum."},
    ]
}


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.jsonl"
    utils.write_jsonl(path, [*ROWS, CHAT])
    return path


def test_rows_are_compared_with_their_input_and_nothing_is_overwritten(mine, tmp_path, capsys):
    before = mine.read_bytes()
    out, report = tmp_path / "kept.jsonl", tmp_path / "pairs.jsonl"
    assert deduplicate.main([str(mine), "--out", str(out), "--report", str(report)]) == 0
    kept = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row.get("input") for row in kept][2:] == ["Good morning.", "See you in May."]
    pairs = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    assert len(kept) == 4 and [pair["removed_text"][:4] for pair in pairs] == ["전세와 ", "Name"]
    assert "2 of 6 rows resemble another; 4 are left" in capsys.readouterr().out
    assert mine.read_bytes() == before
    assert deduplicate.main([str(mine), "--out", str(out)]) == 2, "a file is never overwritten"
    assert "exists already" in capsys.readouterr().err


def test_against_removes_what_resembles_other_rows_only(mine, tmp_path, capsys):
    other = tmp_path / "other.jsonl"
    utils.write_jsonl(other, [{"question": "Name three rivers in Korea.", "answer": "Han."}])
    assert deduplicate.main([str(mine), "--against", str(other), "--dry-run"]) == 0
    assert "3 of 6 rows resemble another" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.jsonl", "other.jsonl"]


def test_by_embedding_a_cosine_decides(mine, capsys):
    arguments = [str(mine), "--dry-run", "--by", "embedding", "--threshold", "0.97"]
    assert deduplicate.main(arguments) == 0
    assert "rows resemble another" in capsys.readouterr().out


def test_rows_that_ask_or_answer_the_same_are_told():
    """Word for word the same answer under another question was trained on and held out."""
    answer = "Put the towels in last, and leave the door open until they are dry."
    one = {"instruction": "How do I dry towels?", "input": "", "output": answer}
    reworded = one | {"instruction": "What is the best way to get towels dry at home?"}
    nearly = one | {"instruction": "How do I dry my towels?", "output": "On a line."}
    other = one | {"instruction": "Name a river.", "output": "Han."}
    assert deduplicate.unlike([reworded, nearly, other], [one]) == [other]
    short = one | {"instruction": "Is it true?", "output": "Yes."}
    assert deduplicate.unlike([short], [other | {"output": "Yes."}]) == [short]
    assert deduplicate.unlike([CHAT], [other]) == [CHAT] and deduplicate.unlike([one], []) == [one]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dry-run", "--threshold", "7"], "threshold is 7.0"),
        (["--dry-run", "--threshold", "nan"], "threshold is nan"),
        ([], "with --out, or only look with --dry-run"),
    ],
)
def test_a_mistake_is_one_sentence(mine, capsys, arguments, said):
    assert deduplicate.main([str(mine), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_a_file_that_is_not_there_is_one_sentence(tmp_path, capsys):
    for program in (deduplicate, curation):
        missing = [str(tmp_path / "no.jsonl")]
        assert program.main(missing if program is curation else [*missing, "--dry-run"]) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_what_the_rules_do_to_a_file_is_told_by_rule(tmp_path, capsys):
    path = tmp_path / "mine.jsonl"
    drawn = {"instruction": "마을 지도를 그려서 보여 주세요.", "output": "(그림)"}
    french = {"instruction": "Что такое депозит?", "output": "Залог."}
    utils.write_jsonl(path, [*ROWS, CHAT, drawn, french])
    assert curation.main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "4 of 8 rows are rejected by a rule" in out
    assert "a text model cannot do it" in out and "no rules for the language 'ru'" in out
    assert "instruction too short" in out
