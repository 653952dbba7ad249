"""The solutions of the exercises, really executed: each test asserts what the exercise teaches."""

import asyncio

import pytest
import tiny_models

import utils
from evaluation import judge
from llm.client import Client
from preprocessing import self_instruct
from rehearsal import stand_ins
from solutions import evaluation, preprocess, train
from training import chat, machine, sft

pytestmark = pytest.mark.usefixtures("one_thread")
SEEN = machine.Device("cpu", "float32", "sdpa", "")
UNWATCHED = {
    "eval_strategy": "no",
    "save_strategy": "no",
}  # nothing is measured on the way, which is most of the time


@pytest.fixture(scope="module")
def base(tmp_path_factory, one_thread):
    """A tiny Gemma that has been *pretrained*, for a few seconds, on answers that end in <eos>; it
    has never seen a turn token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_models.build(tmp_path_factory.mktemp("pretrained"), "gemma")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    texts = [
        row["output"] + tokenizer.eos_token
        for row in utils.read_jsonl(utils.DATA / "instruction.jsonl")
        if len(row.get("output", "")) in range(1, 60)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        chosen = [texts[i] for i in torch.randint(len(texts), (16,), generator=generator)]
        batch = tokenizer(chosen, return_tensors="pt", padding=True, truncation=True, max_length=48)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, chat.IGNORED)
        model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
        ).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def short():
    """`(train, held_out)`: the shortest shipped rows, as many Korean as English."""
    return sft.split(train.shortest(utils.read_jsonl(utils.DATA / "instruction.jsonl"), 64), 32, 0)


@pytest.fixture
def stand_in(endpoint):
    """A client of the rehearsal endpoint, as teacher and as judge."""
    return Client(stand_ins.MODEL, endpoint, stand_ins.KEY)


# --- preprocess.ipynb


def test_a_threshold_belongs_to_its_tokenizer_and_its_script(stand_in):
    seeds = self_instruct.load_seeds(("en", "ko"))
    rows, yields = asyncio.run(preprocess.ask_until_dry(stand_in, seeds, ("en", "ko"), requests=4))
    new = [row for row in rows if row["new"]]
    assert len(yields) == 8 and sum(yields) == len(new) > 100
    gone = preprocess.exercise_1(new, seeds)

    def of(tokenizer: str, language: str) -> int:
        return sum(row["language"] == language for row, *_ in gone[tokenizer])

    assert of("unicode", "en") + of("unicode", "ko") <= 4, "by words 0.5 takes hardly more than 0.7"
    assert of("char", "en") > 3 * max(of("char", "ko"), 1), (
        "letters meet by chance, syllables do not"
    )
    assert preprocess.by_chance(new, "en") > 1.5 * preprocess.by_chance(new, "ko")
    assert all(0.5 < score <= 0.7 for found in gone.values() for *_, score in found)


@pytest.mark.packaged
def test_recall_is_the_price_of_precision_and_few_pairs_prove_it():
    strict, usual, loose = preprocess.exercise_2()
    assert strict["threshold"] > usual["threshold"] > loose["threshold"]
    assert strict["recall"] < usual["recall"] < loose["recall"]
    assert all(found["precision"].value >= found["asked"] for found in (strict, usual, loose))
    assert strict["precision"].low < 0.8, "the few pairs above a high threshold prove no 95 %"
    assert {pair["language"] for pair in loose["false_alarms"]} == {"en", "ko"}


@pytest.mark.packaged
def test_a_narrow_domain_runs_dry_sooner_and_lies_closer(stand_in):
    found = asyncio.run(preprocess.exercise_3(stand_in, ("ko",), requests=12))
    everything, domain = found["everything"], found["housing in Korea"]
    assert len(domain["yields"]) < len(everything["yields"]) and sum(domain["yields"][-4:]) < 8
    assert domain["alike"] > everything["alike"] + 0.01


# --- train.ipynb


def test_early_stopping_keeps_the_best_pass_not_the_last(base, short, tmp_path):
    rows, held_out = short
    tuned = train.exercise_1(
        base, rows[:16], held_out, tmp_path, passes=12, device=SEEN, learning_rate=5e-3
    )
    measured = tuned.losses[1:]
    assert len(measured) < 12, "the held-out loss turned, so training ended early"
    assert len(measured) == measured.index(min(measured)) + 3, "two passes after the best one"
    assert tuned.loss() == pytest.approx(min(measured), abs=1e-3) and tuned.loss() < measured[-1]


def test_a_stop_token_that_pretraining_never_saw_is_not_learnt(base, short, tmp_path):
    rows, held_out = short
    found = train.exercise_2(
        base,
        rows[:32],
        held_out,
        tmp_path,
        device=SEEN,
        learning_rate=1e-2,
        num_train_epochs=6,
        **UNWATCHED,
    )
    known, unknown = found["eos"], found["turn_end"]
    assert (known["token"], unknown["token"]) == ("<eos>", "<end_of_turn>")
    assert unknown["before"] < known["before"] - 5, "an untrained row is the last choice"
    assert unknown["after"] > unknown["before"], "it is learnt, but too slowly"
    assert unknown["after"] < known["after"] - 5 and unknown["stop_rate"] < known["stop_rate"]


@pytest.mark.packaged
def test_a_higher_rank_is_a_smaller_scale_and_rslora_undoes_that(base, short, tmp_path):
    rows, held_out = short
    found = train.exercise_3(
        base, rows[:32], held_out, tmp_path, device=SEEN, learning_rate=2e-4, **UNWATCHED
    )
    four, sixteen, root, alpha = (found[name] for name in train.RANKS)
    assert [part["scale"] for part in (four, sixteen, root, alpha)] == [8, 2, 8, 8]
    assert sixteen["parameters"] == 4 * four["parameters"]
    assert root["loss"] == alpha["loss"], "rsLoRA is a choice of scale and nothing else"
    assert found["base"] > sixteen["loss"] > root["loss"], (
        "at a quarter of the scale the same rank learns less"
    )


# --- evaluation.ipynb


def test_ten_pairs_hide_in_an_average_but_show_a_judge_that_takes_the_longer_answer(stand_in):
    every = utils.read_jsonl(utils.DATA / "judge_calibration.jsonl")
    found = asyncio.run(
        evaluation.exercise_1(judge.Judge(stand_in), judge.sample(every, 24, 1, by="kind"))
    )
    before, after, added = (found[name]["judge"] for name in ("before", "after", "added"))
    assert (before.accuracy.n, after.accuracy.n, added.accuracy.n) == (24, 34, 10)
    assert after.accuracy.value == pytest.approx(
        (24 * before.accuracy.value + 10 * added.accuracy.value) / 34
    )
    assert added.accuracy.high - added.accuracy.low > 0.25, "ten pairs are no proof"
    assert evaluation.longer_wins(every).low < 0.5, (
        "the shipped pairs are balanced in length, so the gate stays closed for such a judge"
    )
    assert found["added"]["longer"].value == 0


def test_the_added_pairs_are_what_the_exercise_asks_for():
    added = evaluation.LONGER_IS_WORSE
    assert [pair["language"] for pair in added] == ["en"] * 5 + ["ko"] * 5
    assert all(len(pair["answer_bad"]) > 1.3 * len(pair["answer_good"]) for pair in added)
    known = {pair["prompt"] for pair in utils.read_jsonl(utils.DATA / "judge_calibration.jsonl")}
    assert not known & {pair["prompt"] for pair in added}


@pytest.mark.packaged
def test_half_the_interval_takes_four_times_the_prompts(stand_in):
    """Two models of known strength, one of which gives the better of two answers in two prompts of
    three, judged by the stand-in."""
    pairs = judge.sample(utils.read_jsonl(utils.DATA / "judge_calibration.jsonl"), 96, 1, by="kind")
    sides = ("answer_good", "answer_bad")
    tuned, base = (
        [pair[sides[(i % 3 == 2) != other]] for i, pair in enumerate(pairs)]
        for other in (False, True)
    )
    records = asyncio.run(judge.Judge(stand_in).compare(pairs, tuned, base))
    steps = evaluation.exercise_2(records, (12, 24, 48))
    widths = {n: rate.high - rate.low for n, rate, _ in steps}
    assert list(widths) == [12, 24, 48, 96] and widths[96] == pytest.approx(widths[24] / 2, rel=0.2)
    assert "not distinguishable" in steps[0][2] and "tuned" in steps[-1][2].split(",")[0]


def test_which_adapter_is_better_depends_on_what_is_asked(base, short, tmp_path, stand_in):
    rows, held_out = short
    adapters = {}
    for language in ("en", "ko"):
        own = [row for row in rows if row["language"] == language]
        tuned = train.tune(
            base,
            own,
            held_out,
            tmp_path / "work",
            SEEN,
            learning_rate=1e-2,
            num_train_epochs=6,
            **UNWATCHED,
        )
        tuned.model.save_pretrained(tmp_path / language)
        adapters[language] = tmp_path / language
    items = [
        {"id": row["id"], "language": row["language"], "category": row["category"]}
        for row in held_out
    ]
    items = [
        item | {"prompt": chat.question(row), "reference": row["output"]}
        for item, row in zip(items, held_out, strict=True)
    ]
    found = asyncio.run(
        evaluation.exercise_3(base, adapters, items, judge.Judge(stand_in), SEEN, new_tokens=12)
    )
    english, korean = (found[language]["difference"] for language in ("en", "ko"))
    assert korean.value < -0.05 and english.value > 0.05, (
        "each is better in its own language (second minus first, in nats)"
    )
    assert all(
        found[name]["difference"].high - found[name]["difference"].low < 2 * found[name]["apart"]
        for name in ("en", "ko")
    )
    assert found["headline"]
    assert "tuned" not in found["headline"]
    assert "base" not in found["headline"]
