"""A stranger's file works at the first try, or one sentence says what is wrong with it."""

import csv
import gzip
import hashlib
import json
import subprocess
import sys
import tracemalloc
import unicodedata

import pytest

import utils
from preprocessing import rows
from utils import CourseError

QUESTION, ANSWER = "전세와 월세는 무엇이 다른가요?", "전세는 보증금만, 월세는 다달이 돈을 냅니다."
ENGLISH = {"instruction": "Name a noble gas.", "input": "", "output": "Argon, for example."}
KOREAN = {"instruction": QUESTION, "input": "", "output": ANSWER}


def said(role, content):
    return {"role": role, "content": content}


MESSAGES = [said("user", QUESTION), said("assistant", ANSWER)]
SHAREGPT = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]


def write(path, records, encoding="utf-8", end="\n"):
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_bytes((end.join(lines) + end).encode(encoding))
    return path


def content(row):
    return {key: row[key] for key in ("messages", "instruction", "input", "output") if key in row}


# --- the common forms -----------------------------------------------------------------------------

FORMS = {
    "alpaca": {"instruction": QUESTION, "input": "", "output": ANSWER},
    "alpaca without an input": {"instruction": QUESTION, "output": ANSWER},
    "koalpaca": {"instruction": QUESTION, "output": ANSWER, "url": "https://kin.naver.com/1"},
    "dolly": {"instruction": QUESTION, "context": "", "response": ANSWER, "category": "open_qa"},
    "prompt and completion": {"prompt": QUESTION, "completion": ANSWER},
    "question and answer": {"question": QUESTION, "answer": ANSWER},
    "flan": {"inputs": QUESTION, "targets": ANSWER},
    "input and output": {"input": QUESTION, "output": ANSWER},
    "korean names": {"질문": QUESTION, "답변": ANSWER},
    "upper case": {"Question": QUESTION, " Answer ": ANSWER},
    "openai messages": {"messages": MESSAGES},
    "openai messages in parts": {
        "messages": [said("user", [{"type": "text", "text": QUESTION}]), MESSAGES[1]]
    },
    "sharegpt": {"conversations": SHAREGPT, "system": ""},
    "lima": {"conversations": [QUESTION, ANSWER], "source": "stackexchange"},
    "trl": {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
    "a list for a string": {"instruction": QUESTION, "output": [ANSWER]},
    "null for an empty input": {"instruction": QUESTION, "input": None, "output": ANSWER},
    "NaN for an empty input": {"instruction": QUESTION, "input": float("nan"), "output": ANSWER},
    "<noinput>": {"instruction": QUESTION, "input": "<noinput>", "output": ANSWER},
}


@pytest.mark.parametrize("name", FORMS)
def test_a_common_form_is_refused_or_read_wrongly(tmp_path, capsys, name):
    (row,) = rows.read(write(tmp_path / "mine.jsonl", [FORMS[name]]))
    assert content(row) == KOREAN and row["language"] == "ko"
    assert row["category"] == FORMS[name].get("category", "other") and row["id"] == "mine-1"
    assert "1 of 1 rows are usable" in capsys.readouterr().out


def test_turns_and_system_messages_are_lost(tmp_path):
    more = [said("user", "그럼 반전세는요?"), said("assistant", "둘을 섞은 계약입니다.")]
    system = said("system", "한 문장으로 답하세요.")
    written = [
        {"messages": [system, *MESSAGES, *more]},
        {"conversations": [*SHAREGPT, {"from": "human", "value": more[0]["content"]}]
         + [{"from": "gpt", "value": more[1]["content"]}], "system": system["content"]},
        {"instruction": more[0]["content"], "output": more[1]["content"],
         "history": [[QUESTION, ANSWER]], "system": system["content"]},
        {"system_prompt": system["content"], "question": QUESTION, "response": ANSWER},
    ]  # fmt: skip
    read = rows.read(write(tmp_path / "turns.jsonl", written))
    for row in read[:3]:
        assert row["messages"] == [system, *MESSAGES, *more]
        assert rows.questions(row) == [QUESTION, more[0]["content"]]
        assert rows.answers(row) == [ANSWER, more[1]["content"]]
    assert read[3]["messages"] == [system, *MESSAGES]
    assert rows.questions({**KOREAN, "input": "짧게"}) == [f"{QUESTION}\n\n짧게"]


# --- the common files -----------------------------------------------------------------------------


def table(path, records, encoding="utf-8", **options):
    with open(path, "w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, records[0], **options)
        writer.writeheader()
        writer.writerows(records)
    return path


def packed(path, text):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path


TWO = [ENGLISH, {**KOREAN, "output": f'{ANSWER}\n"둘째 줄", 끝.'}]


def json_lines(folder, **options):
    return write(folder / "a.jsonl", TWO, **options)


def dumped(folder, value, **options):
    path = folder / "a.json"
    path.write_text(json.dumps(value, ensure_ascii=False, **options), encoding="utf-8")
    return path


def parquet(folder):
    import pandas

    pandas.DataFrame(TWO).to_parquet(folder / "a.parquet")
    return folder / "a.parquet"


def saved(folder):
    import datasets

    parts = {"train": datasets.Dataset.from_list(TWO), "test": datasets.Dataset.from_list(TWO[:1])}
    datasets.DatasetDict(parts).save_to_disk(folder / "saved")
    return folder / "saved"


def directory(folder):
    (folder / "rows" / "more").mkdir(parents=True)
    write(folder / "rows" / "1.jsonl", TWO[:1])
    table(folder / "rows" / "more" / "2.csv", TWO[1:])
    (folder / "rows" / "notes.md").write_text("mine")
    return folder / "rows"


FILES = {
    "json lines": json_lines,
    "with a BOM": lambda folder: json_lines(folder, encoding="utf-8-sig"),
    "from Windows": lambda folder: json_lines(folder, end="\r\n"),
    "with empty lines": lambda folder: json_lines(folder, end="\n\n"),
    "an array": lambda folder: dumped(folder, TWO),
    "an array over many lines": lambda folder: dumped(folder, TWO, indent=2),
    "an array in an object": lambda folder: dumped(folder, {"version": 1, "data": TWO}),
    "the same over many lines": lambda folder: dumped(folder, {"v": 1, "data": TWO}, indent=2),
    "gz": lambda folder: packed(
        folder / "a.jsonl.gz", "\n".join(json.dumps(record) for record in TWO)
    ),
    "csv": lambda folder: table(folder / "a.csv", TWO),
    "csv of a spreadsheet": lambda folder: table(
        folder / "a.csv", TWO, encoding="utf-8-sig", delimiter=";"
    ),
    "tsv": lambda folder: table(folder / "a.tsv", TWO, dialect="excel-tab"),
    "parquet": parquet,
    "a saved data set": saved,
    "a folder": directory,
}


def content_hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", FILES)
def test_a_common_file_is_refused_read_wrongly_or_written_to(tmp_path, name):
    path = FILES[name](tmp_path)
    before = content_hashes(tmp_path)
    read = rows.read(str(path))
    assert [content(row) for row in read] == TWO
    assert [row["language"] for row in read] == ["en", "ko"]
    assert len({row["id"] for row in read}) == 2
    assert content_hashes(tmp_path) == before


def test_an_answer_is_taken_for_an_empty_cell_or_quoted_because_another_row_has_a_list(tmp_path):
    written = [
        {"question": "Which country code has Namibia?", "answer": "NA"},
        {"question": "What is 0 / 0 in JavaScript?", "answer": "NaN"},
        {"question": "How many?", "answer": "007"},
    ]
    read = rows.read(table(tmp_path / "a.csv", written))
    assert [row["output"] for row in read] == ["NA", "NaN", "007"]
    mixed = [{"q": 1, "prompt": "Say b.", "completion": "b"}]
    mixed += [{"q": 2, "prompt": "Say c.", "completion": ["c"]}]
    mixed += [{"q": 3, "prompt": "How many?", "completion": 42}]
    mixed += [{"q": 4, "prompt": "Is it?", "completion": True}]
    read = rows.read(write(tmp_path / "b.jsonl", mixed))
    assert [row["output"] for row in read] == ["b", "c", "42", "true"]


def test_hangul_of_a_mac_is_another_text_or_line_ends_stay(tmp_path):
    mac = {"prompt": unicodedata.normalize("NFD", QUESTION), "completion": "가\r\n나 "}
    (row,) = rows.read(write(tmp_path / "a.jsonl", [mac]))
    assert row["instruction"] == QUESTION and row["output"] == "가\n나" and row["language"] == "ko"


def test_what_the_course_wrote_comes_back_changed():
    for name in ("instruction.jsonl", "seed_tasks.jsonl"):
        read = rows.read(utils.DATA / name, quiet=True)
        for row, written in zip(read, utils.read_jsonl(utils.DATA / name), strict=True):
            assert {key: row[key] for key in written} == written


# --- what is said ---------------------------------------------------------------------------------


def test_the_summary_does_not_say_what_was_taken_for_what_and_what_was_left_out(tmp_path, capsys):
    written = [{"질문": QUESTION, "답변": ANSWER, "출처": "나"}] * 7
    written[2:5] = [{"질문": QUESTION, "답변": ""}] * 3
    read = rows.read(write(tmp_path / "faq.jsonl", written))
    printed = capsys.readouterr().out
    assert "4 of 7 rows are usable" in printed and len(read) == 4
    assert "question     `질문`" in printed and "answer       `답변`" in printed
    assert "not used     `출처`" in printed
    assert "left out     3: no answer (first: line 3)" in printed
    assert "languages    ko 4" in printed


MORE = said("user", "그럼 반전세는요?")
BAD = {
    "only system messages": ([said("system", "a")], "only a system message"),
    "a tool speaks": ([*MESSAGES, said("tool", "{}")], "the role 'tool' is none of system"),
    "an answer first": (MESSAGES[::-1], "it begins with an answer"),
    "a question without an answer": (MESSAGES[:1], "no answer"),
    "two questions in a row": ([MORE, *MESSAGES], "two messages of the user in a row"),
    "a late system message": ([*MESSAGES, said("system", "a")], "a system message after the first"),
    "an empty message": ([said("user", " "), MESSAGES[1]], "a message is empty"),
    "a picture": (
        [said("user", [{"type": "image_url", "image_url": "a"}]), MESSAGES[1]],
        "a part of type 'image_url'",
    ),
    "no messages": ("hello", "`messages` is not a list of messages"),
    "messages of numbers": ([1, 2], "`messages` is not a list of messages"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_conversation_that_no_template_takes_is_trained_on(tmp_path, capsys, name):
    messages, reason = BAD[name]
    read = rows.read(write(tmp_path / "a.jsonl", [{"messages": messages}, KOREAN]))
    assert [content(row) for row in read] == [KOREAN]
    assert reason in capsys.readouterr().out
    with pytest.raises(CourseError, match="No row of .* can be used") as caught:
        rows.read(write(tmp_path / "b.jsonl", [{"messages": messages}]))
    assert reason in str(caught.value)


def test_a_last_question_without_an_answer_costs_the_whole_conversation(tmp_path, capsys):
    (row,) = rows.read(write(tmp_path / "a.jsonl", [{"messages": [*MESSAGES, MORE]}]))
    assert content(row) == KOREAN
    assert (
        "changed      1: a last question without an answer was cut off" in capsys.readouterr().out
    )


def test_mixed_forms_and_torn_lines_cost_the_other_rows(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", list(FORMS.values()))
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"instruction": "torn\n[1, 2]\n' + json.dumps({"text": "unknown"}) + "\n")
    read = rows.read(path)
    assert [content(row) for row in read] == [KOREAN] * len(FORMS)
    printed = capsys.readouterr().out
    assert f"1: not valid JSON (first: line {len(FORMS) + 1})" in printed
    assert "1: not an object in braces" in printed and "1: unknown form" in printed


def test_thirty_percent_without_an_answer_stop_the_reading(tmp_path, capsys):
    written = [KOREAN | {"output": None if number % 10 < 3 else ANSWER} for number in range(50)]
    assert len(rows.read(write(tmp_path / "a.jsonl", written))) == 35
    assert "left out     15: no answer (first: line 1)" in capsys.readouterr().out


def test_an_unknown_form_is_not_told_what_was_found_and_what_is_wanted(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "a", "label": 1}] * 3)
    with pytest.raises(CourseError, match="Fields found: `text`, `label`; wanted: `instruction`"):
        rows.read(path)
    several = write(tmp_path / "b.jsonl", [{"prompt": "a", "completion": ["b", "c"]}])
    with pytest.raises(CourseError, match="`completion` is a list of 2, but one text is wanted"):
        rows.read(several)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.jsonl", b"", "a.jsonl is empty"),
        ("a.jsonl", b"\n \n", "a.jsonl is empty"),
        ("a.json", b"[]", "a.json is empty"),
        ("a.csv", b"question,answer\n", "a.csv is empty"),
        ("a.json", b'[{"prompt": "a", "comp', "not valid JSON from here on"),
        ("a.jsonl", b"hello\nyou\n", "not valid JSON"),
        ("a.jsonl", b"[" * 100_000, "not valid JSON"),
        ("a.csv", "질문,답변\n집,방\n".encode("cp949"), "is not UTF-8 (Korean Excel writes CP949)"),
        ("a.jsonl.gz", b"no gzip", "is cut off or no gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"prompt": "a"}' * 999)[:-9], "is cut off or no gzip"),
        ("a.parquet", b"no parquet", "is no Parquet file or a damaged one"),
        ("a.xlsx", b"PK", "is none of .jsonl"),
        ("a.csv", b"question,answer\na,b,c\n", "more cells than the first line has names"),
    ],
)
def test_a_bad_file_ends_in_a_traceback(tmp_path, name, text, sentence):
    path = tmp_path / name
    path.write_bytes(text)
    with pytest.raises(CourseError) as caught:
        rows.read(path)
    assert sentence in str(caught.value) and path.read_bytes() == text


def test_a_missing_file_is_looked_for_on_the_hub(tmp_path):
    for source in ("data/mine.jsonl", str(tmp_path / "absent"), "absent"):
        with pytest.raises(CourseError, match="does not exist: give a file, a folder, or owner"):
            rows.read(source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CourseError, match=r"empty has no file that ends in \.jsonl"):
        rows.read(tmp_path / "empty")


# --- ids and languages ----------------------------------------------------------------------------


def test_ids_occur_twice_or_languages_are_guessed_against_what_the_row_says(tmp_path):
    written = [
        KOREAN | {"id": 7},
        KOREAN | {"id": 7},
        ENGLISH | {"id": "x", "lang": "de-AT"},
        ENGLISH | {"language": "Korean"},
        ENGLISH | {"instruction": "フランスの首都はどこですか？"},
        ENGLISH | {"instruction": "Как дела?"},
    ]
    read = rows.read(write(tmp_path / "a.jsonl", written))
    assert [row["id"] for row in read] == ["7", "a-2", "x", "a-4", "a-5", "a-6"]
    assert [row["language"] for row in read] == ["ko", "ko", "de", "ko", "ja", "ru"]
    german = rows.read(write(tmp_path / "b.jsonl", [ENGLISH, KOREAN]), languages=("de",))
    assert [row["language"] for row in german] == ["de", "ko"]


# --- long files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_memory_grows_with_a_long_file(tmp_path, kind):
    """20,000 rows, 39 MB, are read within 15 MB: nothing grows with the file, only with `most`."""
    path, count, long = tmp_path / f"a.{kind}", 20_000, "가나다라 " * 150
    with open(path, "w", encoding="utf-8") as file:
        file.write({"jsonl": "", "json": "[\n", "csv": "prompt,completion\n"}[kind])
        for number in range(count):
            if kind == "csv":
                file.write(f'"{number} {long}",{number}\n')
            else:
                comma = "," if kind == "json" and number else ""
                record = {"prompt": f"{number} {long}", "completion": f"{number}"}
                file.write(comma + json.dumps(record, ensure_ascii=False) + "\n")
        file.write("]" if kind == "json" else "")
    assert path.stat().st_size > 35e6
    tracemalloc.start()
    read = rows.read(path, most=100, quiet=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 15e6, f"{peak / 1e6:.0f} MB"
    numbers = [int(row["output"]) for row in read]
    assert len(set(numbers)) == 100 and numbers == sorted(numbers)
    assert 0.35 < sum(number < count / 2 for number in numbers) / 100 < 0.65, "not the whole file"


def test_the_draw_is_another_one_each_time(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [KOREAN | {"output": str(n)} for n in range(50)])
    draws = [[row["id"] for row in rows.read(path, most=9, seed=seed)] for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert "drawn        9 of them at random" in capsys.readouterr().out
    assert len(rows.read(path, most=50)) == len(rows.read(path)) == 50


# --- the hub --------------------------------------------------------------------------------------


def test_the_hub_cannot_be_reached_and_it_is_a_traceback():
    """The tests run with HF_HUB_OFFLINE=1, so this is the real library's answer."""
    with pytest.raises(CourseError, match="the hub cannot be reached for a data set of that name"):
        rows.read("beomi/KoAlpaca-v1.1a")


def test_reading_a_small_file_imports_the_large_libraries(tmp_path):
    path = write(tmp_path / "a.jsonl", [KOREAN])
    code = f"import sys; from preprocessing import rows; rows.read({str(path)!r}); "
    code += "assert not {'torch', 'datasets', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=utils.ROOT, check=True)
