"""The command lines for one's own rows: sentences, no tracebacks, and no file of the reader's
changed."""

import json

import pytest

import similarity
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
    deduplicate.main([str(mine), "--out", str(out), "--report", str(report)])
    kept = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row.get("input") for row in kept][2:] == ["Good morning.", "See you in May."]
    pairs = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    assert len(kept) == 4 and [pair["removed_text"][:4] for pair in pairs] == ["전세와 ", "Name"]
    assert "2 of 6 rows resemble another; 4 are left" in capsys.readouterr().out
    assert mine.read_bytes() == before
    with pytest.raises(utils.CourseError, match="exists already"):
        deduplicate.main([str(mine), "--out", str(out)])


def test_against_removes_what_resembles_other_rows_only(mine, tmp_path, capsys):
    other = tmp_path / "other.jsonl"
    utils.write_jsonl(other, [{"question": "Name three rivers in Korea.", "answer": "Han."}])
    deduplicate.main([str(mine), "--against", str(other), "--dry-run"])
    assert "3 of 6 rows resemble another" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.jsonl", "other.jsonl"]


def test_by_embedding_a_cosine_decides(mine, capsys):
    deduplicate.main([str(mine), "--dry-run", "--by", "embedding", "--threshold", "0.97"])
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


@pytest.mark.packaged
@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (
            "Name three rivers that run through Korea.",
            "Which rivers flow through Korea? List three of them.",
            True,
        ),
        ("전세와 월세는 무엇이 다른가요?", "전세하고 월세의 차이점을 알려 주세요.", True),
        (
            "비 오는 날의 수채화에 대한 짧은 시를 써 주세요.",
            "비 오는 날을 주제로 짧은 시 한 편 부탁해요.",
            True,
        ),
        ("How do I get a stain of coffee out of a carpet?", "Who wrote the Aeneid?", False),
        ("된장찌개는 어떻게 끓이나요?", "서울에서 부산까지 얼마나 걸리나요?", False),
    ],
)
def test_rows_that_ask_the_same_in_other_words_are_told(one, other, same):
    """By words alone a row of the run and a shipped one at a cosine of 0.988 were both trained."""
    row = {"instruction": one, "input": "", "output": "Han."}
    assert similarity.rouge_l(one, other) <= 0.7
    assert bool(deduplicate.unlike([row], [row | {"instruction": other}])) is not same


@pytest.mark.packaged
def test_the_cosine_for_the_same_question_is_what_the_labelled_pairs_say():
    assert curation.gate_threshold(0.7) == pytest.approx(deduplicate.SEMANTIC, abs=0.005)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dry-run", "--threshold", "7"], "threshold is 7.0"),
        (["--dry-run", "--threshold", "nan"], "threshold is nan"),
        ([], "with --out, or only look with --dry-run"),
    ],
)
def test_a_mistake_is_one_sentence(mine, arguments, said):
    with pytest.raises(utils.CourseError, match=said):
        deduplicate.main([str(mine), *arguments])


def test_a_file_that_is_not_there_is_one_sentence(tmp_path):
    missing = str(tmp_path / "no.jsonl")
    for program, options in ((deduplicate, ["--dry-run"]), (curation, [])):
        with pytest.raises(utils.CourseError, match="does not exist"):
            program.main([missing, *options])


def test_what_the_rules_do_to_a_file_is_told_by_rule(tmp_path, capsys):
    path = tmp_path / "mine.jsonl"
    drawn = {"instruction": "마을 지도를 그려서 보여 주세요.", "output": "(그림)"}
    french = {"instruction": "Что такое депозит?", "output": "Залог."}
    utils.write_jsonl(path, [*ROWS, CHAT, drawn, french])
    curation.main([str(path)])
    out = capsys.readouterr().out
    assert "4 of 8 rows are rejected by a rule" in out
    assert "a text model cannot do it" in out and "no rules for the language 'ru'" in out
    assert "instruction too short" in out
