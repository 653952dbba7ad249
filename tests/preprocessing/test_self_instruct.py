"""From a request to rows: both methods, their replies in JSON and in plain text, rules, ledger,
critique, gate and card."""

import asyncio
import functools
import random

import pytest
from good_tasks import task
from raw_server import Said, completion, serving

import prompts
import similarity
import utils
from llm.client import Client
from llm.replies import Reply
from preprocessing import contamination, curation, data_card, self_instruct
from preprocessing import rows as reader
from preprocessing.grounding import Passage
from preprocessing.ledger import Ledger, funnel_figure, yield_figure
from preprocessing.self_instruct import Task, TaskBatch


@pytest.mark.parametrize("language", ["en", "ko"])
def test_request_shows_demonstrations_and_is_reproducible(language):
    seeds = self_instruct.load_seeds(("en", "ko"))
    chosen = self_instruct.sample_demonstrations(seeds, language, 3, random.Random(5))
    assert chosen == self_instruct.sample_demonstrations(seeds, language, 3, random.Random(5))
    assert len({one["category"] for one in chosen}) == 3
    assert {one["language"] for one in chosen} == {language}
    request = self_instruct.batch_request(chosen, language, 20, seed=7)
    text = request["messages"][1]["content"]
    assert all(one["instruction"] in text and one["output"] in text for one in chosen)
    assert "20" in text
    assert all(category in text for category in prompts.CATEGORIES) and request["seed"] == 7


@pytest.mark.parametrize("language", ["en", "ko"])
@pytest.mark.parametrize("length", self_instruct.TOKENS)
def test_the_teacher_is_asked_for_the_chosen_length_and_given_room_for_it(language, length):
    """Every request of both methods once asked for 80 words, so no long row could come of it."""
    seeds = self_instruct.load_seeds((language,))[:3]
    wanted = prompts.LANGUAGES[language].answer_lengths[length]
    asked = [
        self_instruct.batch_request(seeds, language, 20, seed=1, length=length),
        self_instruct.instructions_request(seeds, language, 20, seed=1, length=length),
        self_instruct.instances_request("Any task.", language, False, length=length),
    ]
    for request in asked:
        assert wanted in request["messages"][1]["content"] and "{length}" not in str(request)
    # A word is about 1.4 tokens of gpt-4o in English, an 어절 2.3 in Korean, and there are 20 tasks
    assert 400 * 20 <= asked[0]["max_completion_tokens"] <= 16_384
    if length == "long":
        assert asked[0]["max_completion_tokens"] == 16_000


def test_recorded_replies_have_the_new_kinds_of_tasks():
    from rehearsal import stand_ins

    for language in ("en", "ko"):
        answers = [
            len(task["output"].split())
            for batch in stand_ins.recorded(language)
            for task in batch.get("tasks", [])
            if task["flaw"] is None
        ]
        assert sum(length >= (120 if language == "en" else 80) for length in answers) >= 4


def reply(*instructions: str, error: str | None = None) -> Reply:
    tasks = [
        Task(category="writing", instruction=text, input="", output="Done.")
        for text in instructions
    ]
    return Reply(
        parsed=TaskBatch(tasks=tasks) if tasks else None, error=error, cost_usd=0.02, key="abc"
    )


def test_every_row_has_a_fate(tmp_path):
    ledger, answer = Ledger(), reply("One task of its own.", "Another task of its own.")
    passages = [Passage("전세", "보증금", "https://example.org/a", "encyc")]
    ledger.receive(
        answer, self_instruct.tasks_of(answer), "en", [{"id": "seed-1"}], "gpt-4o", passages
    )
    ledger.receive(reply(error="does not match the schema"), [], "en", [{"id": "seed-2"}], "gpt-4o")
    ledger.drop(ledger.open("ROUGE-L")[1], "ROUGE-L", "near-duplicate", "run-en-0001", 0.91)
    assert ledger.funnel() == [("received", 3), ("malformed reply", 2), ("ROUGE-L", 1)]
    path = ledger.save(tmp_path, least=1)
    rows, kept = utils.read_jsonl(tmp_path / "ledger.jsonl"), utils.read_jsonl(path)
    assert [row["fate"] for row in rows] == ["kept", "ROUGE-L", "malformed reply"]
    assert rows[1]["neighbour"] == "run-en-0001"
    assert rows[1]["score"] == 0.91
    assert rows[2]["reason"] == "does not match the schema"
    assert len(kept) == 1
    assert kept[0]["teacher"] == "gpt-4o"
    assert kept[0]["demonstrations"] == ["seed-1"]
    assert kept[0]["cost_usd"] == 0.01
    assert kept[0]["urls"] == ["https://example.org/a"]


def test_too_few_rows_are_an_error_and_not_a_small_file(tmp_path):
    ledger, answer = Ledger(), reply("One task of its own.")
    ledger.receive(answer, self_instruct.tasks_of(answer), "en", [], "gpt-4o")
    with pytest.raises(
        utils.CourseError,
        match="Only 1 of 1 rows are left and 2 are needed .* raise REQUESTS or look into "
        "ledger.jsonl",
    ):
        ledger.save(tmp_path, least=2)
    assert (tmp_path / "ledger.jsonl").exists() and not (tmp_path / "instruction.jsonl").exists()


def test_instances_become_rows_of_their_own():
    """Self-Instruct: one instruction, several instances; what a rule rejects is in the ledger
    too."""
    ledger, seeds = Ledger(), [{"id": "s"}]
    answer = Reply(
        parsed=self_instruct.Instructions(
            instructions=["이 후기가 긍정인지 부정인지 말해 주세요.", "Sing."]
        ),
        cost_usd=0.02,
    )
    first, second = ledger.receive(answer, self_instruct.tasks_of(answer), "ko", seeds, "gpt-4o")
    assert curation.problem(first) is None and curation.problem(second) == "instruction too short"
    ledger.open("instances")
    ledger.complete(
        first,
        "classification",
        [("좋아요.", "긍정"), ("별로예요.", "부정"), ("그냥", "")],
        None,
        0.03,
    )
    ledger.complete(second, "", [], "no usable instance", 0.01)
    assert [(row["input"], row["output"], row["fate"]) for row in ledger.rows] == [
        ("좋아요.", "긍정", "kept"),
        ("", "", "instances"),
        ("별로예요.", "부정", "kept"),
        ("그냥", "", "instances"),
    ]
    assert ledger.rows[2]["sibling"] == first["id"] and ledger.rows[3]["reason"] == "empty output"
    assert sum(row["cost_usd"] for row in ledger.rows) == pytest.approx(0.06)
    assert "pending" not in first
    ledger.open("embedding")
    ledger.drop(first, "embedding", "near-duplicate", "seed-ko-001", 0.95)
    assert not ledger.kept and ledger.rows[2]["neighbour"] == "seed-ko-001"


def test_an_instruction_stays_while_one_instance_is_good():
    ledger = Ledger()
    answer = Reply(
        parsed=self_instruct.Instructions(instructions=["Label this review as good or bad."])
    )
    (row,) = ledger.receive(answer, self_instruct.tasks_of(answer), "en", [], "gpt-4o")
    ledger.open("instances")
    ledger.complete(row, "classification", [("Nice.", ""), ("Awful.", "bad")], None, 0.0)
    assert (row["input"], row["fate"]) == ("Awful.", "kept")
    assert ledger.rows[1]["reason"] == "empty output"


@pytest.mark.parametrize(
    ("pairs", "left", "reason"),
    [
        ([("in", "out"), ("in", "out"), ("b", "")], [("in", "out")], None),
        ([("same", "same"), ("a", "Here it is:")], [], "no usable instance"),
        ([("in", "one"), ("in", "two")], [], "one input with two outputs"),
        ([(str(i), "x") for i in range(8)], [(str(i), "x") for i in range(5)], None),
        ([("", "하나"), ("", "둘")], [("", "하나"), ("", "둘")], None),
    ],
)
def test_instance_rules(pairs, left, reason):
    instances = [self_instruct.InputFirst(input=given, output=answer) for given, answer in pairs]
    read = self_instruct.usable_instances(
        Reply(parsed=self_instruct.InputFirstInstances(instances=instances))
    )
    assert read == (left, reason)
    assert self_instruct.usable_instances(Reply(error="cut off")) == ([], "cut off")


def run(coroutine):
    return asyncio.run(coroutine)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("language", ["en", "ko"])
def test_both_methods_give_the_same_tasks_by_schema_and_as_text(endpoint, language, text):
    seeds = self_instruct.load_seeds((language,))
    teacher = Client("rehearsal", endpoint, "rehearsal")
    ask = functools.partial(self_instruct.ask, teacher, text=text)
    whole = self_instruct.batch_request(seeds[:3], language, 20, seed=0, text=text)
    (batch,) = run(ask([whole], TaskBatch))
    tasks = self_instruct.tasks_of(batch)
    alone = self_instruct.instructions_request(seeds[:8], language, 20, seed=0, text=text)
    (listed,) = run(ask([alone], self_instruct.Instructions))
    pending = self_instruct.tasks_of(listed)
    assert [one["instruction"] for one in pending] == [one["instruction"] for one in tasks]
    assert len(tasks) >= 20
    rows = [
        one | {"language": language}
        for one in pending[:4]
        + [task for task in pending if task["instruction"] == classified(tasks)]
    ]
    completed = run(self_instruct.complete_instructions(ask, rows, seeds, text))
    for row, (category, pairs, reason, _) in zip(rows, completed, strict=True):
        task = next(one for one in tasks if one["instruction"] == row["instruction"])
        assert reason is None
        assert category == task["category"]
        assert pairs[0] == (task["input"], task["output"])


def classified(tasks: list[dict]) -> str:
    return next(
        task["instruction"]
        for task in tasks
        if task["category"] == "classification" and task["output"]
    )


def test_classification_is_asked_output_first():
    """Else the inputs all lean to one label (Self-Instruct, section 2.2)."""
    asked = []

    async def ask(requests, schema):
        asked.extend([schema.__name__] * len(requests))
        if issubclass(schema, self_instruct.Kind):
            return [
                Reply(parsed=self_instruct.Kind(is_classification=i == 0, category="code"))
                for i in range(2)
            ] + [Reply(error="refused: x")]
        return [Reply(error="no")] * len(requests)

    rows = [{"instruction": text, "language": "ko"} for text in ("분류", "설명", "무엇")]
    found = run(self_instruct.complete_instructions(ask, rows, self_instruct.load_seeds(("ko",))))
    assert asked == ["Kind"] * 3 + ["OutputFirstInstances", "InputFirstInstances"]
    assert found[2] == ("", [], "its kind is unknown: refused: x", 0.0)


def test_recognition_shows_12_that_are_and_19_that_are_not():
    seeds = self_instruct.load_seeds(("en", "ko"))
    text = self_instruct.recognise_request("속담을 설명해 주세요.", "ko", seeds)["messages"][1][
        "content"
    ]
    assert text.count("-> true,") == 12 and text.count("-> false,") == 19


def test_demonstrations_are_eight_by_people_at_first_then_six_and_two():
    seeds, rng = self_instruct.load_seeds(("ko",)), random.Random(0)
    machine = [task("ko", id=f"run-{i}", category="") for i in range(5)]
    first, later = (
        self_instruct.mixed_demonstrations(seeds, made, "ko", rng) for made in ([], machine)
    )
    assert len(first) == len(later) == 8
    assert not [one for one in first if one["id"].startswith("run")]
    assert sum(one["id"].startswith("run") for one in later) == 2


def test_a_domain_limits_seeds_and_request():
    seeds = self_instruct.load_seeds(("ko",), ("housing",))
    assert {seed["category"] for seed in seeds} == {"housing"}
    request = self_instruct.batch_request(
        seeds[:3], "ko", 20, 0, domain="한국의 주거", material="[자료]\n1. 보증금"
    )
    text = request["messages"][1]["content"]
    assert "모든 과제는 다음 분야에 속해야 합니다: 한국의 주거" in text
    assert text.endswith("[자료]\n1. 보증금")
    with pytest.raises(utils.CourseError, match="No seed of .* is in the category"):
        self_instruct.load_seeds(("ko",), ("cooking",))


def test_critique_keeps_the_good_and_says_why_the_rest_goes():
    ledger = Ledger()
    answer = reply("One task of its own.", "Another task of its own.", "A third task of its own.")
    rows = ledger.receive(answer, self_instruct.tasks_of(answer), "en", [], "gpt-4o")
    ledger.open("critique")
    good, bad = (
        Reply(parsed=curation.Critique(reason=why, score=score), cost_usd=0.1)
        for why, score in (("right", 5), ("vague", 3))
    )
    for row, critique in zip(rows, (good, bad, Reply(error="refused: no")), strict=True):
        ledger.criticise(row, critique, least=4)
    assert [row["fate"] for row in rows] == ["kept", "critique", "critique"]
    assert rows[0]["critique"]["score"] == 5
    assert rows[1]["reason"] == "vague"
    assert rows[1]["score"] == 3
    assert rows[2]["reason"] == "no score: refused: no"


def test_threshold_reaches_the_precision_with_most_recall():
    import numpy as np

    scores, labels = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([True, True, False, True, False])
    assert curation.calibrate(scores, labels, 0.9) == 0.7
    assert curation.calibrate(scores, labels, 0.75) == 0.5
    with pytest.raises(utils.CourseError, match="No threshold separates"):
        curation.calibrate(scores, ~labels, 0.9)


def test_labelled_pairs_are_enough_and_in_both_languages():
    pairs = utils.read_jsonl(
        utils.DATA / "duplicate_pairs.jsonl", ("id", "language", "a", "b", "duplicate", "kind")
    )
    count = {
        language: sum(pair["language"] == language for pair in pairs) for language in ("en", "ko")
    }
    assert len(pairs) >= 120
    assert count["en"] == count["ko"]
    assert len({pair["id"] for pair in pairs}) == len(pairs)
    assert 0.4 < sum(pair["duplicate"] for pair in pairs) / len(pairs) < 0.6


def test_card_has_this_runs_figures():
    ledger, answer = Ledger(), reply("One task of its own.")
    ledger.receive(answer, self_instruct.tasks_of(answer), "en", [], "gpt-4o")
    card = data_card.describe(ledger, {"left": 0, "rows": 1}, "alpaca", 1.234, {"ROUGE-L": 0.7})
    head = card.split("---")[1]
    assert "- en\n" in head and "| paid | $1.23 |" in card and "| teacher | gpt-4o 1 |" in card
    assert "forbid using the output to develop models that compete with OpenAI" in card


def test_push_without_a_token_or_a_hub_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "instruction.jsonl").write_text("{}\n")
    with pytest.raises(utils.CourseError, match="PUSH_TO is 'me/data', but there is no HF_TOKEN"):
        data_card.publish("# card", tmp_path, "me/data")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(utils.CourseError, match="could not be pushed to me/data") as caught:
        data_card.publish("# card", tmp_path, "me/data")
    assert "hf_secret" not in str(caught.value)
    assert (tmp_path / "data_card.md").read_text() == "# card"


def test_push_uploads_rows_and_card_privately(tmp_path, monkeypatch):
    import huggingface_hub

    calls = []

    class Hub:
        def __init__(self, token):
            calls.append(token)

        def create_repo(self, repository, **options):
            calls.append((repository, options))

        def upload_file(self, path_or_fileobj, path_in_repo, repo_id, repo_type):
            calls.append(
                (path_or_fileobj.read_text(encoding="utf-8"), path_in_repo, repo_id, repo_type)
            )

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    utils.write_jsonl(tmp_path / "instruction.jsonl", [{"instruction": "전세를 설명해 주세요."}])
    assert (
        data_card.publish("# 카드", tmp_path, "me/data")
        == "https://huggingface.co/datasets/me/data"
    )
    assert calls[:2] == [
        "hf_secret",
        ("me/data", {"repo_type": "dataset", "private": True, "exist_ok": True}),
    ]
    assert calls[2] == (
        '{"instruction": "전세를 설명해 주세요."}\n',
        "instruction.jsonl",
        "me/data",
        "dataset",
    )
    assert calls[3] == ("# 카드", "README.md", "me/data", "dataset")


def test_figures_come_out():
    import matplotlib.pyplot as plt
    import numpy as np

    ledger, answer = Ledger(), reply("One task of its own.")
    ledger.receive(answer, self_instruct.tasks_of(answer), "en", [], "gpt-4o")
    labels = np.array([True, False, True, False])
    scores = {"E5": np.array([0.9, 0.8, 0.7, 0.6]), "ROUGE-L": np.array([0.1, 0.4, 0.3, 0.2])}
    for figure in (
        funnel_figure(ledger, "gpt-4o"),
        yield_figure([5, 3, 0], 2, 4, "gpt-4o"),
        curation.precision_recall_figure(scores, labels, 0.65),
    ):
        assert figure.axes[0].get_title()
        plt.close(figure)


@pytest.mark.packaged
def test_contamination_is_found_word_for_word_and_reworded():
    rows = [
        task(
            instruction="Why do people on Earth always see the same side of the Moon?", id="copied"
        ),
        task(instruction="How does one make kimchi at home?", id="clean"),
        task("ko", instruction="박물관이 쉬는 날에 무엇을 하나요?", id="clean-ko"),
    ]
    found = contamination.contaminated(rows, lexical=0.7, semantic=0.95)
    assert [(row["id"], neighbour, how) for row, neighbour, _, how in found] == [
        ("copied", "eval-en-001", "ROUGE-L")
    ]
    assert contamination.contaminated([], 0.7, 0.95) == []
    meaning = contamination.contaminated(rows[:1], lexical=1.0, semantic=0.95)
    assert [how for *_, how in meaning] == ["embedding"]


@pytest.mark.packaged
def test_gate_is_recorded_and_a_contaminated_file_is_refused(tmp_path):
    clean = utils.write_jsonl(tmp_path / "instruction.jsonl", [task(id="a")])
    report = contamination.pass_gate(clean, 0.7, 0.95)
    assert report == utils.read_json(tmp_path / "contamination.json")
    assert report["data"] == utils.file_hash(clean)
    utils.write_jsonl(
        clean,
        [
            task(
                id="copied",
                instruction="Why do people on Earth always see the same side of the Moon?",
            )
        ],
    )
    with pytest.raises(
        utils.CourseError,
        match="1 rows of instruction.jsonl resemble evaluation prompts, judge pairs or seeds, "
        "copied among them",
    ):
        contamination.pass_gate(clean, 0.7, 0.95)
    assert utils.read_json(tmp_path / "contamination.json")["left"] == 1


@pytest.mark.packaged
def test_a_request_in_a_later_turn_is_compared_with_the_evaluation_too():
    """A row of turns once had no `instruction`, so the gate stopped at it; compared by its first
    turn alone, an evaluation prompt asked in the second would pass."""
    held = utils.read_jsonl(utils.DATA / "eval_prompts.jsonl")[-1]["prompt"]
    said = [("user", "안녕하세요?"), ("assistant", "네!"), ("user", held), ("assistant", "네.")]
    row = {"id": "a", "messages": [{"role": who, "content": text} for who, text in said]}
    found = contamination.contaminated([row, row | {"messages": row["messages"][:2]}], 0.7, 0.95)
    assert [one["id"] for one, *_ in found] == ["a"] and found[0][3] == "ROUGE-L"


def test_shipped_data_is_clean():
    """Its record is of these very files (`make gate` was run after the last change), and no
    instruction repeats another or a seed."""
    assert contamination.passed(utils.DATA / "instruction.jsonl"), "run make gate"
    rows = utils.read_jsonl(utils.DATA / "instruction.jsonl") + utils.read_jsonl(
        utils.DATA / "seed_tasks.jsonl"
    )
    assert not similarity.rouge_l_duplicates(
        [row.get("instruction", reader.questions(row)[0]) for row in rows]
    ).removed


def test_a_gate_passed_against_another_evaluation_does_not_count(tmp_path, monkeypatch):
    data = utils.write_jsonl(tmp_path / "instruction.jsonl", [task(id="a")])
    assert not contamination.passed(data)
    utils.write_json(tmp_path / "contamination.json", contamination.state(data) | {"left": 0})
    assert contamination.passed(data)
    for name in contamination.HELD:
        (tmp_path / name).write_bytes(
            (utils.DATA / name).read_bytes()
            + (b'{"id": "new"}\n' if name.startswith("eval") else b"")
        )
    monkeypatch.setattr(utils, "DATA", tmp_path)
    assert not contamination.passed(data)


# --- a teacher whose replies are all junk ---------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "text", "finish", "says"),
    [
        ("저는 그럴 수 없습니다.", False, "stop", "Set REPLY_FORMAT to 'text'"),
        ("Bla bla.", True, "stop", "REPLY_FORMAT is 'text' already"),
        ('{"tasks": [{"cat', False, "length", "raise TEACHER_TOKENS"),
    ],
)
def test_a_teacher_whose_replies_are_all_junk_stops_the_cell_that_saw_it(
    content, text, finish, says
):
    """It was paid for all requests, and the last cell said "raise REQUESTS"."""
    seeds = self_instruct.load_seeds(("ko",))
    asked = [
        self_instruct.batch_request(seeds[i : i + 3], "ko", 20, i, text=text) for i in range(4)
    ]
    with serving(Said(completion(content, finish_reason=finish))) as server:
        teacher = Client("teacher", server.url, "key")
        with pytest.raises(utils.CourseError) as caught:
            run(self_instruct.ask(teacher, asked, TaskBatch, text=text))
        assert says in str(caught.value) and "None of 4 replies of teacher" in str(caught.value)
        (alone,) = run(self_instruct.ask(teacher, asked[:1], TaskBatch, text=text))
        assert alone.error, "one bad reply is no verdict on a teacher"


def test_the_categories_are_an_enumeration_on_the_wire_and_no_reason_to_lose_a_row():
    seeds = self_instruct.load_seeds(("en",))
    said = {"tasks": [{"category": "poetry", "instruction": "Sing.", "input": "", "output": "La."}]}
    with serving(Said(completion(said))) as server:
        teacher = Client("teacher", server.url, "key")
        asked = self_instruct.batch_request(seeds[:3], "en", 20, 1)
        (reply,) = run(self_instruct.ask(teacher, [asked], TaskBatch))
        schema = server.asked[0]["response_format"]["json_schema"]["schema"]
    assert schema["$defs"]["Task"]["properties"]["category"]["enum"] == list(prompts.CATEGORIES)
    assert reply.parsed.tasks[0].category == "poetry", "a rule rejects it later, with a reason"


def test_what_could_not_be_read_of_a_reply_is_in_the_ledger():
    ledger, answer = Ledger(), reply("One task.", "Another task.")
    answer.unread, answer.cost_usd = 1, 0.03
    rows = ledger.receive(answer, self_instruct.tasks_of(answer), "en", [], "gpt-4o")
    assert len(rows) == 2 and len(ledger.rows) == 3
    (lost,) = ledger.rejected("malformed reply")
    assert lost["reason"] == "one record is not whole"
    assert sum(row["cost_usd"] for row in ledger.rows) == pytest.approx(0.03)


def test_too_few_rows_from_junk_do_not_ask_for_more_requests(tmp_path):
    ledger = Ledger()
    ledger.receive(Reply(error="no TaskBatch can be read in it"), [], "en", [], "gpt-4o")
    with pytest.raises(utils.CourseError, match="set another REPLY_FORMAT or TEACHER"):
        ledger.save(tmp_path, least=2)
