"""SEEDS: a user's own seed tasks, checked before anything is paid for."""

import asyncio
import csv
import json
import random
import re

import pytest
from raw_server import Said, completion, serving

import prompts
import settings
import utils
from llm import replies
from llm.client import Client
from preprocessing import asking, curation, self_instruct
from preprocessing.ledger import Ledger
from utils import CourseError

FIELDS = ("instruction", "output", "category")


def seeds(path, english=10, korean=10):
    """The README's advice: twenty seeds, ten of each language, in a category of their own."""
    with open(path, "w", encoding="utf-8-sig", newline="") as file:  # as a spreadsheet writes it
        table = csv.writer(file)
        table.writerow(FIELDS)
        for number in range(english):
            table.writerow((f"How do I fold napkin number {number}?", "Twice.", "origami"))
        for number in range(korean):
            table.writerow((f"{number}번 냅킨은 어떻게 접나요?", "두 번 접어요.", "origami"))
    return str(path)


def test_twenty_seeds_in_a_category_of_their_own_are_not_enough_or_not_asked_for(tmp_path):
    path = seeds(tmp_path / "mine.csv")
    own = self_instruct.load_seeds(("en", "ko"), source=path)
    assert [seed["language"] for seed in own] == ["en"] * 10 + ["ko"] * 10
    assert not any(seed["is_classification"] for seed in own)
    categories = self_instruct.categories_of(own, own=True)
    assert categories == ("origami",)
    shown = self_instruct.sample_demonstrations(own, "ko", 3, random.Random(0))
    asked = self_instruct.batch_request(shown, "ko", 20, 0, categories=categories)
    text = asked["messages"][1]["content"]
    assert "origami" in text and not any(name in text for name in prompts.CATEGORIES)
    kind = self_instruct.recognise_request("냅킨을 접어 줘.", "ko", own, categories=categories)
    assert "origami" in kind["messages"][1]["content"]


def test_a_task_of_the_users_own_category_is_rejected_by_rule():
    task = {"language": "ko", "category": "origami", "input": "", "output": "두 번 접으면 됩니다."}
    task["instruction"] = "냅킨을 백조 모양으로 접는 법을 알려 주세요."
    assert curation.problem(task) == "unknown category 'origami'"
    assert curation.problem(task, ("origami",)) is None
    ledger = Ledger(("origami",))
    row = ledger.add("ko", task | {"output": "", "pending": True}, {"cost_usd": 0.0})
    ledger.complete(row, "origami", [("", task["output"])], None, 0.0)
    assert row["fate"] == "kept"


def test_a_strict_server_cannot_write_a_category_of_the_users_own():
    """The schema listed the course's categories, and the notebook's ledger knew no others: every
    row of one's own seeds went."""
    usual = replies.response_format(self_instruct.TaskBatch)
    assert replies.response_format(self_instruct.task_batch(prompts.CATEGORIES)) == usual
    for schema in (self_instruct.task_batch(("origami",)), self_instruct.kind(("origami",))):
        told = str(replies.response_format(schema))
        assert "'enum': ['origami']" in told and "writing" not in told
        assert schema.__name__ in ("TaskBatch", "Kind")


@pytest.mark.parametrize("method", ["alpaca", "self-instruct"])
def test_own_seeds_go_the_notebooks_way_and_every_row_is_rejected(tmp_path, method):
    """What preprocess.ipynb does with its rounds and its ledger, with a teacher that keeps to the
    category it was given."""
    values = {"SEEDS": seeds(tmp_path / "mine.csv"), "METHOD": method, "LANGUAGE": "ko"}
    chosen = settings.resolve(values)
    own = self_instruct.load_seeds(chosen.languages, source=chosen.seeds)

    def teach(path, body, number):
        wanted = body["response_format"]["json_schema"]
        (category,) = re.findall(r"'enum': \['([^']*)'\]", str(wanted)) or [""]
        told = {"tasks": [{"category": category, "instruction": "냅킨으로 백조를 접어 볼까요?"}]}
        told["tasks"][0] |= {"input": "", "output": "먼저 냅킨을 세모로 반 접으세요."}
        if wanted["name"] == "Instructions":
            told = {"instructions": ["냅킨으로 백조를 접는 법을 알려 주세요."]}
        if wanted["name"] == "Kind":
            told = {"is_classification": False, "category": category}
        if wanted["name"] == "InputFirstInstances":
            told = {"instances": [{"input": "", "output": "먼저 냅킨을 세모로 반 접으세요."}]}
        return Said(completion(json.dumps(told, ensure_ascii=False)))

    async def go(rounds, ledger):
        asked = rounds.next([])[:1]
        (reply,) = await rounds.send([asked[0]])
        rows = rounds.book(ledger, asked[0], reply)
        await rounds.complete(ledger)
        return rows

    with serving(teach) as server:
        rounds = asking.Rounds(chosen, own, Client("m", server.url))
        ledger = Ledger(rounds.categories)
        (row,) = asyncio.run(go(rounds, ledger))
    assert row["category"] == "origami" and row["fate"] == "kept"
    assert curation.problem(row, ledger.categories) is None
    notebook = (utils.ROOT / "preprocess.ipynb").read_text(encoding="utf-8")
    assert "Ledger(rounds.categories)" in notebook
    assert notebook.count("curation.problem(row, ledger.categories)") == 2


@pytest.mark.parametrize(
    ("languages", "categories", "sentence"),
    [
        (
            ("en", "ko"),
            (),
            "has 3 seeds in Korean, and 6 are needed, as many as a teacher is shown",
        ),
        (("ko",), (), "write 3 more (it has origami 13)"),
        (
            ("en",),
            ("housing",),
            "is in the category 'housing' of SEED_CATEGORIES; it has origami 13",
        ),
        (("en", "de"), (), "there is no data/languages/de.toml"),
    ],
)
def test_too_few_seeds_are_noticed_after_paying(tmp_path, languages, categories, sentence):
    path = seeds(tmp_path / "mine.csv", korean=3)
    with pytest.raises(CourseError) as caught:
        self_instruct.load_seeds(languages, categories, path)
    assert sentence in str(caught.value)
    assert len(self_instruct.load_seeds(("en",), ("origami",), path)) == 10


def test_own_seeds_replace_the_shipped_ones_in_the_settings(tmp_path):
    chosen = settings.resolve({"SEEDS": str(tmp_path / "mine.csv")})
    assert chosen.seeds.endswith("mine.csv") and settings.resolve({}).seeds == ""
    assert "SEEDS" in settings.form("preprocess")


def test_a_teacher_cannot_be_asked_with_own_seeds(tmp_path, endpoint):
    """The whole way over the wire: own seeds, the stand-in teacher, rows with a fate."""
    own = self_instruct.load_seeds(("ko",), source=seeds(tmp_path / "mine.csv"))
    shown = self_instruct.sample_demonstrations(own, "ko", 3, random.Random(0))
    categories = self_instruct.categories_of(own, own=True)
    request = self_instruct.batch_request(shown, "ko", 20, 0, categories=categories)
    client = Client("rehearsal", endpoint, "rehearsal", journal=tmp_path / "journal.jsonl")
    (reply,) = asyncio.run(self_instruct.ask(client, [request], self_instruct.TaskBatch))
    tasks = self_instruct.tasks_of(reply)
    assert tasks
    rows = Ledger(categories).receive(reply, tasks, "ko", shown, "rehearsal")
    assert rows[0]["demonstrations"] == [seed["id"] for seed in shown]
