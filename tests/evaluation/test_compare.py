"""Answers of one's own models: what is read, what is refused in a sentence, and what comes out."""

import asyncio
import json

import pytest

import utils
from evaluation import compare
from rehearsal import stand_ins

ASKED = {
    "p1": "Name a large animal.",
    "p2": "봄을 한 문장으로 알려 주세요.",
    "p3": "Which of the planets is the closest one to the Sun?",
}


def answer_file(folder, name, says, change=None, **more):
    """A file in the form `id, prompt, answer`; `change` alters or drops a row."""
    rows = [
        {"id": key, "prompt": text, "answer": f"{says} {key}"} | more for key, text in ASKED.items()
    ]
    if change:
        rows = [row for row in map(change, rows) if row]
    path = folder / f"{name}.jsonl"
    utils.write_jsonl(path, rows)
    return path


@pytest.fixture
def files(tmp_path):
    return [answer_file(tmp_path, name, name) for name in ("plum", "pear", "fig")]


def read(*paths):
    models = [compare.read_answers(path) for path in paths]
    return models, compare.same_prompts(models)


# --- reading --------------------------------------------------------------------------------------


def test_alpaca_evals_outputs_and_plain_rows_are_read(tmp_path):
    path = tmp_path / "outputs.json"
    rows = [
        {"instruction": "Name a tree.", "output": "Oak.", "generator": "gpt-x", "dataset": "d"},
        {"instruction": "나무 하나를 말해 줘.", "output": "", "generator": "gpt-x"},
    ]
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    model = compare.read_answers(path)
    assert model.name == "gpt-x" and list(model.answers.values()) == [["Oak."], [""]]
    other = tmp_path / "mine.jsonl"
    utils.write_jsonl(
        other, [{"prompt": row["instruction"], "answer": "Elm."} for row in reversed(rows)]
    )
    models, items = read(path, other)
    assert [m.name for m in models] == ["gpt-x", "mine"]
    assert [item["prompt"] for item in items] == ["Name a tree.", "나무 하나를 말해 줘."]


def test_a_file_with_ids_meets_one_without(files, tmp_path):
    """AlpacaEval's files have no ids: the prompts themselves tell which answers belong together."""
    other = tmp_path / "other.json"
    rows = [{"instruction": text, "output": "x", "generator": "g"} for text in ASKED.values()]
    other.write_text(json.dumps(rows), encoding="utf-8")
    for order in ([files[0], other], [other, files[0]]):
        models, items = read(*order)
        assert [item["id"] for item in items] == list(ASKED.values())
        assert all(set(model.answers) == set(ASKED.values()) for model in models)
    twice = answer_file(tmp_path, "twice", "twice", lambda row: row | {"prompt": "The same."})
    with pytest.raises(utils.CourseError, match="asks a prompt twice"):
        read(twice, other)


def test_prompts_get_what_a_judge_needs(files):
    _, items = read(*files[:2])
    extra = [{"id": "p1", "reference": "A whale.", "category": "open_qa"}]
    done = compare.complete(items, extra)
    assert [item["language"] for item in done] == ["en", "ko", "en"]
    assert done[0]["reference"] == "A whale." and done[1]["reference"] == ""
    assert [item["category"] for item in done] == ["open_qa", "other", "other"]
    pairs = compare.labelled_pairs(done)
    assert {pair["reference"] for pair in pairs} == {""}, "calibrated as it will be asked"
    assert all(pair["reference"] for pair in compare.labelled_pairs(done[:1]))


def drop_answer(row):
    return {key: value for key, value in row.items() if key != "answer"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (drop_answer, r"line 1 has no answer: it has id, prompt, and one of answer, output"),
        (lambda row: row | {"answer": None}, "the answer is None"),
        (lambda row: row | {"prompt": 7}, "the prompt is 7"),
        (lambda row: row if row["id"] != "p2" else None, "lacks an answer to 1 of the 3 prompts"),
        (lambda row: row | {"id": "p1"}, "'p1' was answered before"),
        (lambda row: row | {"id": "q" + row["id"]}, "lacks an answer to 3 of the 3"),
        (lambda row: row | {"prompt": row["prompt"] + "!"}, "asks something else under the id"),
        (lambda row: row | {"answer": ["one", "two"]}, "another number of turns"),
    ],
)
def test_what_does_not_fit_is_one_sentence(files, tmp_path, change, sentence):
    bad = answer_file(tmp_path, "bad", "bad", change)
    for order in ([files[0], bad], [bad, files[0]]):
        with pytest.raises(utils.CourseError, match=sentence) as refused:
            compare.main([*map(str, order), "--judge", "rehearsal"])
        assert "\n" not in str(refused.value)


def test_german_prompts_are_refused_and_not_judged_as_english(files, tmp_path):
    def german(row):
        return row | {"prompt": "Nenne drei Gründe, warum der Himmel abends rot wird."}

    def half(row):
        return german(row) if row["id"] != "p2" else row

    both = [answer_file(tmp_path, name, name, half) for name in ("eins", "zwei")]
    told = r"2 of 3 prompts are in a language that is not judged.*\(de\)"
    with pytest.raises(utils.CourseError, match=told):
        compare.main([*map(str, both), "--judge", "rehearsal"])
    _, items = read(*both)
    assert {item["language"] for item in compare.complete(items, [], "en")} == {"en"}
    named = [answer_file(tmp_path, n, n, None, language="fr") for n in ("un", "deux")]
    with pytest.raises(utils.CourseError, match="3 of 3 prompts are in a language"):
        compare.main([*map(str, named), "--judge", "rehearsal"])


def test_a_stray_guess_stops_nothing_and_is_said(capsys):
    """One of AlpacaEval's 805 prompts is taken for Nigerian Pidgin."""
    stray = "convert December 21 · 1:00 – 1:50pm pacific to asia/taipei time"
    asked = ["Which of the planets is the closest one to the Sun?"] * 60 + [stray]
    items = [{"id": str(i), "prompt": text} for i, text in enumerate(asked)]
    assert compare.language_of(stray) not in ("en", "ko")
    assert {item["language"] for item in compare.complete(items, [])} == {"en"}
    assert "'60' (" in capsys.readouterr().out
    with pytest.raises(utils.CourseError, match="1 of 61 prompts"):
        compare.complete([*items[:-1], items[-1] | {"language": "de"}], [])


def test_the_stand_in_refuses_prompts_without_references(files):
    with pytest.raises(utils.CourseError, match="some of these prompts have none"):
        compare.main([*map(str, files[:2]), "--judge", "rehearsal"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{0}"], "two models or more"),
        (["{0}", "{1}", "--names", "a"], "2 files, but 1 names"),
        (["{0}", "{0}"], "Two models are called 'plum'"),
        (["{0}", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["{0}", "{1}", "--judge", "gpt-4o"], "there is no OPENAI_API_KEY"),
        (["{0}", "{1}", "--prompts", "{2}", "--judge", "rehearsal"], "references"),
    ],
)
def test_arguments_that_cannot_be_are_one_sentence(files, arguments, sentence):
    with pytest.raises(utils.CourseError, match=sentence) as refused:
        compare.main([argument.format(*files) for argument in arguments])
    assert "\n" not in str(refused.value)


def test_prompts_that_were_trained_on_are_named(files, tmp_path):
    _, items = read(*files[:2])
    data = tmp_path / "rows.jsonl"
    row = {"id": "r", "instruction": ASKED["p3"], "input": "", "output": "Mercury."}
    utils.write_jsonl(data, [row])
    assert compare.trained_on(items, [data]) == ["p3"] and compare.trained_on(items, []) == []


# --- judging --------------------------------------------------------------------------------------


def prefers(best):
    """A judge that knows the labelled pairs by heart, and of other answers prefers `best` first."""
    pairs = utils.read_jsonl(utils.DATA / "judge_calibration.jsonl")
    good = {pair["answer_good"].strip() for pair in pairs}

    def rank(text):
        known = [place for place, word in enumerate(best) if text.startswith(word)]
        return known[0] if known else -1 if text in good else len(best)

    def answer(body):
        parts = stand_ins.sections(body["messages"][1]["content"])[-1]
        a, b = rank(parts["answer_a"]), rank(parts["answer_b"])
        verdict = "tie" if a == b else "A" if a < b else "B"
        return json.dumps({"explanation": "because", "verdict": verdict})

    return answer


def test_three_models_are_ranked_with_their_names(judged_by, tmp_path):
    """Fifteen prompts without references, an LLM that reads: it is calibrated without them too."""

    def many(name):
        path = tmp_path / f"{name}.jsonl"
        rows = [{"id": f"p{i}", "prompt": f"Name the {i}th fruit.", "answer": f"{name} {i}"}
                for i in range(15)]  # fmt: skip
        utils.write_jsonl(path, rows)
        return path

    models, items = read(*[many(name) for name in ("fig", "plum", "pear")])
    items = compare.complete(items, [], "en")
    judged = judged_by(prefers(["plum", "pear", "fig"]))
    gate, verdicts = asyncio.run(compare.compare(judged, models, items))
    assert gate.languages == ["en"] and gate.accuracy.value > 0.9
    said = compare.told(gate, verdicts)
    assert "plum is better (judge: judge X): plum wins 15 and loses 0 of 15 prompts" in said
    ranked = said.partition("Bradley-Terry")[2]
    assert ranked.index("plum") < ranked.index("pear") < ranked.index("fig")
    assert "tuned" not in said and "base" not in said
    pages = compare.write_reports(
        tmp_path / "r.html", judged, gate, models, items, verdicts, ["a note"]
    )
    assert [page.name for page in pages] == [
        "r-fig-plum.html",
        "r-fig-pear.html",
        "r-plum-pear.html",
    ]
    page = pages[0].read_text(encoding="utf-8")
    assert "plum wins" in page and "a note" in page and ">fig</h3>" in page


def test_follow_ups_are_judged_with_a_list_of_answers(judged_by, tmp_path):
    """One answer a turn; a prompt that goes on with one answer only is refused."""
    paths = [answer_file(tmp_path, name, name) for name in ("one", "two")]
    for path in paths:
        rows = utils.read_jsonl(path)
        rows[0]["answer"] = [rows[0]["answer"], "And a second."]
        utils.write_jsonl(path, rows)
    later = [{"prompt": "And a small one?", "reference": ""}]
    extra = [{"id": "p1", "reference": "A whale.", "follow_ups": later}]
    models, items = read(*paths)
    items = compare.complete(items, extra)
    judged = judged_by(lambda body: json.dumps({"explanation": "", "verdict": "tie"}))
    _, verdicts = asyncio.run(compare.compare(judged, models, items))
    (records,) = verdicts.values()
    assert [order["turn"] for order in records[0]["orders"]] == [1, 1, 2, 2]
    assert len(records[1]["orders"]) == 2


def test_a_number_of_answers_that_is_not_the_number_of_turns_is_refused(files, tmp_path):
    later = [{"prompt": "And a small one?", "reference": ""}]
    utils.write_jsonl(tmp_path / "p.jsonl", [{"id": "p1", "follow_ups": later}])
    arguments = ["--prompts", str(tmp_path / "p.jsonl"), "--judge", "rehearsal"]
    with pytest.raises(utils.CourseError, match="'p1' has 1 answers of a model and 2 turns"):
        compare.main([*map(str, files[:2]), *arguments])


@pytest.mark.slow
def test_the_command_with_the_stand_in(course, tmp_path, capsys):
    """From files to the page over HTTP: its gate is closed, and it says so instead of a number."""
    whole = [
        {"id": key, "prompt": text, "reference": "Mercury.", "language": "en"}
        for key, text in ASKED.items()
    ]
    utils.write_jsonl(tmp_path / "prompts.jsonl", whole)
    files = [answer_file(tmp_path, name, name) for name in ("plum", "pear")]
    page = tmp_path / "report.html"
    arguments = ["--prompts", str(tmp_path / "prompts.jsonl"), "--judge", "rehearsal"]
    compare.main([*map(str, files), *arguments, "--report", str(page), "--rows"])
    said = capsys.readouterr().out
    assert "No win rate in English: rehearsal (stand-in" in said and page.exists()
