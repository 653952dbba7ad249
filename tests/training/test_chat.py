"""Template, stop token and mask: on the packaged student, and on tiny models of the families that
people swap in."""

import copy
import re
import types
import warnings

import pytest
import tiny_models
from tiny_models import FAMILIES, ROWS, TURNS

import prompts
import settings
import utils
from training import adapter, chat, generation, machine, student
from training.chat import IGNORED

CPU = machine.Device("cpu", "float32", "sdpa", "")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="session")
def family(family_folder):
    """`(name, folder, model, tokenizer, stop)` of a tiny model, loaded from its folder as any
    BASE_MODEL is."""
    model, tokenizer = student.load_base(str(family_folder[1]), CPU)
    return *family_folder, model, tokenizer, chat.choose_stop(model, tokenizer)


def trained(example: dict) -> list[int]:
    return [label for label in example["labels"] if label != IGNORED]


def prompt_ids(asked, tokenizer) -> list[int]:
    return tokenizer(chat.chat_prompt(asked, tokenizer), add_special_tokens=False).input_ids


# --- the mask


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_mask_covers_the_prompt_and_nothing_else(student, row):
    _, tokenizer, stop = student
    example = chat.encode(row, tokenizer, stop)
    learnt = trained(example)
    assert learnt[-1] == stop.id and tokenizer.decode(learnt[:-1]) == row["output"]
    assert example["input_ids"].count(tokenizer.bos_token_id) == 1
    prompt = example["input_ids"][: -len(learnt)]
    assert tokenizer.decode(prompt) == chat.chat_prompt(prompts.user_message(row), tokenizer)
    assert example["labels"][: len(prompt)] == [IGNORED] * len(prompt)


def test_every_turn_of_the_assistant_is_trained_and_nothing_else(family):
    """TRL trains every token of `messages` rows unless told otherwise; here each answer and a stop
    token after each, three times; once where the template rewrites earlier turns."""
    _, _, _, tokenizer, stop = family
    example = chat.encode(TURNS, tokenizer, stop)
    answers = [
        message["content"].strip()
        for message in TURNS["messages"]
        if message["role"] == "assistant"
    ]
    if chat.probe(tokenizer).turns == "rewritten":
        answers = answers[-1:]
    learnt, said = trained(example), []
    for answer in answers:
        ids = tokenizer(answer, add_special_tokens=False).input_ids
        said += [*ids, stop.id]
    assert learnt == said and learnt.count(stop.id) == len(answers)
    assert len(example["labels"]) == len(example["input_ids"])
    assert example["input_ids"].count(tokenizer.bos_token_id) == (tokenizer.bos_token is not None)


def test_later_turns_are_trained_behind_what_generation_will_show(family):
    """The context of every answer is, token for token, what `generate` gives the model when that
    turn is asked."""
    _, _, _, tokenizer, stop = family
    ids = chat.encode(TURNS, tokenizer, stop)["input_ids"]
    messages = chat.conversation(TURNS)
    rewritten = chat.probe(tokenizer).turns == "rewritten"
    for i, message in enumerate(messages):
        if message["role"] == "assistant" and (i == len(messages) - 1 or not rewritten):
            context = prompt_ids(messages[:i], tokenizer)
            assert ids[: len(context)] == context, f"turn {i}"
    assert prompt_ids(chat.question(TURNS), tokenizer) == context


def test_a_tuned_model_closes_every_turn_with_its_own_token(family):
    name, _, _, tokenizer, _ = family
    turn_end = tokenizer.convert_tokens_to_ids(FAMILIES[name][3])
    example = chat.encode(
        TURNS, tokenizer, chat.Stop(FAMILIES[name][3], turn_end, turn_end, 1, 2000)
    )
    assert all(
        label in (IGNORED, i)
        for i, label in zip(example["input_ids"], example["labels"], strict=True)
    )
    assert example["labels"].count(turn_end) == (1 if name == "qwen3" else 3)


def test_rendering_is_the_same_everywhere(family, tmp_path, monkeypatch):
    """Training, generation, evaluation and the code on the model card: four places, one string of
    tokens."""
    import torch

    name, folder, model, tokenizer, stop = family
    question = "전세와 월세는 어떻게 다른가요?"  # the card's own example
    row = {
        "id": "x",
        "instruction": question,
        "output": "보증금과 월세의 크기가 달라요.",
    }  # as evaluation.ipynb makes its rows
    example = chat.encode(row, tokenizer, stop)
    training = example["input_ids"][: len(example["labels"]) - len(trained(example))]

    seen = []

    def generate(input_ids, **options):
        seen.append((input_ids[0].tolist(), options.get("eos_token_id")))
        said = torch.cat([input_ids, torch.tensor([[stop.id]])], dim=1)
        return types.SimpleNamespace(sequences=said, past_key_values=None)

    monkeypatch.setattr(model, "generate", generate)
    generation.generate(model, tokenizer, [question], stop)
    monkeypatch.undo()

    made, *_ = tiny_models.trainer(folder, tmp_path / "out")
    numbers = {"loss": 1.0, "stop_rate": 0.5}
    record = {
        "train_rows": 1,
        "held_out_rows": 1,
        "before": numbers,
        "after": numbers,
        "settings": {},
        "stop": stop.token,
    }
    record["stop_ids"] = stop.ids
    chosen = settings.resolve({"PUSH_ADAPTER_TO": str(tmp_path / "adapter"), "DATA": "shipped"})
    card = adapter.model_card(str(folder), record, chosen)
    adapter.save_adapter(made.trained_model(), tokenizer, tmp_path / "adapter", record, card)
    scope = {}
    exec(
        re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace(
            "max_new_tokens=128", "max_new_tokens=2"
        ),
        scope,
    )
    on_the_card = scope["inputs"]["input_ids"][0].tolist()

    assert training == seen[0][0] == on_the_card == prompt_ids(question, tokenizer), name
    assert seen[0][1] == stop.ids and f"eos_token_id={stop.ids}" in card


def test_training_and_generation_render_gemmas_turns(student):
    """A preamble in training that generation omits is a fault of a well-known notebook."""
    _, tokenizer, _ = student
    rendered = chat.chat_prompt("안녕하세요?", tokenizer)
    assert rendered == "<bos><start_of_turn>user\n안녕하세요?<end_of_turn>\n<start_of_turn>model\n"


def test_long_rows_are_left_out_not_cut(student):
    _, tokenizer, stop = student
    encoded, too_long = chat.encode_all(ROWS, tokenizer, stop, max_length=20)
    assert too_long == ["b", "c"] and len(encoded) == 1
    assert all(example["labels"][-1] == stop.id for example in encoded)
    with pytest.raises(
        utils.CourseError,
        match="No row is left of 3: every one is longer than 3 tokens, so raise ROW_TOKENS",
    ):
        chat.encode_all(ROWS, tokenizer, stop, max_length=3)
    with pytest.raises(utils.CourseError, match="The data set is empty"):
        chat.encode_all([], tokenizer, stop, max_length=20)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"id": "r", "instruction": "Hi", "output": 7},
            "Row r: `output` must be text, but it is int",
        ),
        ({"id": "r", "instruction": "Hi"}, "`output` must be text, but it is missing"),
        ({"id": "r", "instruction": "Hi", "output": "  "}, "`output` is empty"),
        (
            {"id": "r", "instruction": "Hi", "input": ["x"], "output": "Ho"},
            "`input` must be text, but it is list",
        ),
        ({"id": "r", "messages": "Hi"}, "`messages` must be a list of objects"),
        ({"id": "r", "messages": []}, "its last two messages must be"),
        (
            {"id": "r", "messages": [{"role": "user", "content": "Hi"}]},
            "its last two messages must be the user's and the assistant's",
        ),
        (
            {"id": "r", "messages": [{"role": "user", "content": None}]},
            "content of a message must be text, but it is missing",
        ),
        (
            {"id": "r", "instruction": "Hi", "output": "Ho", "messages": []},
            "says twice what to learn",
        ),
    ],
)
def test_rows_of_the_wrong_type_are_named(row, sentence):
    with pytest.raises(utils.CourseError, match=re.escape(sentence)):
        chat.conversation(row)


def test_mask_figure_shows_hangul_and_what_is_learnt(student, tmp_path):
    import matplotlib

    matplotlib.use("agg")
    utils.figure_style()
    _, tokenizer, stop = student
    figure = chat.mask_figure(chat.encode(TURNS, tokenizer, stop), tokenizer, "한국어 제목")
    texts = figure.axes[0].texts
    learnt = "".join(text.get_text() for text in texts if text.get_color() == "white")
    assert (
        learnt
        == "큰 보증금을 맡기고 월세 없이 사는 계약이에요.<eos>A smaller deposit, and rent every "
        "month.<eos>천만에요!<eos>"
    )
    assert "전세" in "".join(text.get_text() for text in texts if text.get_color() != "white")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph is a warning
        figure.savefig(tmp_path / "mask.png")


# --- the stop token


def test_base_models_learn_eos_and_generation_stops_at_both(family):
    name, _, _, tokenizer, stop = family
    assert not stop.tuned and stop.token == tokenizer.eos_token, "random weights know no turn"
    assert tokenizer.convert_ids_to_tokens(stop.turn_end) == FAMILIES[name][3]
    assert stop.ids == sorted({tokenizer.eos_token_id, stop.turn_end})


def test_tuned_models_end_in_the_templates_token(family, monkeypatch):
    """A model that predicts its template's token after an answer is instruction-tuned, and keeps
    that token."""
    import torch

    name, _, model, tokenizer, _ = family
    turn_end = tokenizer.convert_tokens_to_ids(FAMILIES[name][3])
    logits = torch.zeros(1, 1, len(tokenizer))
    logits[..., turn_end] = 9
    monkeypatch.setattr(
        type(model), "__call__", lambda self, **inputs: type("Output", (), {"logits": logits})
    )
    stop = chat.choose_stop(model, tokenizer)
    assert stop.tuned
    assert stop.rank == 1
    assert stop.id == turn_end
    assert "instruction-tuned" in str(stop)


def test_a_template_that_closes_turns_with_a_newline_leaves_eos(family):
    """Taking whatever follows an answer for a stop token would end every answer at its first
    line."""
    _, _, model, tokenizer, _ = family
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    )
    stop = chat.choose_stop(model, plain)
    assert stop.ids == [tokenizer.eos_token_id]
    plain.eos_token = None
    with pytest.raises(utils.CourseError, match="has no <eos>, so no answer can end"):
        chat.choose_stop(model, plain)


# --- the shipped rows


def test_every_shipped_row_can_be_trained_in_every_family(family):
    """Rows with a system message stopped at Gemma's template, which has no system role: there the
    message begins the first user turn, as its makers advise."""
    *_, tokenizer, stop = family
    rows = [row for row in utils.read_jsonl(utils.DATA / "instruction.jsonl") if "messages" in row]
    assert len(rows) >= 100
    for row in rows:
        example = chat.encode(row, tokenizer, stop)
        text = tokenizer.decode(example["input_ids"])
        assert example["labels"][-1] == stop.id, "the answer teaches no end"
        if row["messages"][0]["role"] == "system":
            system = row["messages"][0]["content"].split("\n")[0]
            assert text.count(system) == 1, (row["id"], "the system message is not seen once")
