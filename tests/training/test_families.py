"""Whole families that people swap in: each is rightly trained, or refused with a sentence."""

import copy
import datetime
import re
import types

import peft
import pytest
import tiny_models
from tiny_models import PECULIAR, ROWS, TURNS

import settings
import utils
from training import (
    chat,
    generation,
    head,
    losses,
    machine,
    precision,
    preflight,
    record,
    sft,
    student,
    swap_check,
)
from training.chat import IGNORED

pytestmark = pytest.mark.usefixtures("one_thread")

# What `chat.probe` says of earlier turns; the others keep them
REWRITTEN = (
    "qwen3.5: thinks unless told otherwise",
    "r1: always thinks",
    "llama 2: joins by a space",
    "command r7b: begins an answer behind a closed thought",
)
RUNS_ON = ("falcon-h1: scaled logits, recurrent layers", "lfm2: a convolution")
SCALED = {
    "granite: bos is eos, scaled logits": 1 / 8,
    "cohere: scaled logits": 1 / 16,
    "falcon-h1: scaled logits, recurrent layers": 0.0195,
}


def cpu() -> machine.Device:
    return machine.Device("cpu", "float32", "sdpa", "")


@pytest.fixture(scope="module", params=PECULIAR)
def peculiar(request, tmp_path_factory):
    """`(name, folder, model, tokenizer, stop)` of a tiny model with one peculiarity."""
    folder = tiny_models.build(tmp_path_factory.mktemp("family"), request.param)
    model, tokenizer = student.load_base(str(folder), cpu())
    return request.param, folder, model, tokenizer, chat.choose_stop(model, tokenizer)


def load(tmp_path, name: str):
    return student.load_base(str(tiny_models.build(tmp_path / "model", name)), cpu())


def learnt(example: dict) -> list[int]:
    return [label for label in example["labels"] if label != IGNORED]


def own_stop(tokenizer) -> chat.Stop:
    end = chat.probe(tokenizer).turn_end
    return chat.Stop(tokenizer.convert_ids_to_tokens(end), end, end, 1, len(tokenizer))


# --- templates


def test_every_row_is_learnt_behind_what_generation_shows(peculiar):
    """For base models and for tuned ones, and nothing but answers and their ends."""
    name, _, _, tokenizer, stop = peculiar
    assert tokenizer.convert_ids_to_tokens(stop.turn_end) == PECULIAR[name][4]
    for end in (stop, own_stop(tokenizer)):
        for row in ROWS:
            example = chat.encode(row, tokenizer, end)
            prompt = chat.prompt_ids(chat.question(row), tokenizer)
            assert example["input_ids"][: len(prompt)] == prompt
            assert tokenizer.decode(learnt(example)[:-1]) == row["output"]
            assert learnt(example)[-1] == end.id
            assert example["labels"][: len(prompt)] == [IGNORED] * len(prompt)


def test_of_rewritten_turns_the_last_answer_is_trained(peculiar):
    """They stopped the notebook, though no row of the data has two turns."""
    name, _, _, tokenizer, stop = peculiar
    template = chat.probe(tokenizer)
    assert template.turns == ("rewritten" if name in REWRITTEN else "kept"), name
    assert ("only the last answer is trained" in str(template)) == (name in REWRITTEN)
    example = chat.encode(TURNS, tokenizer, stop)
    answers = [m["content"].strip() for m in TURNS["messages"] if m["role"] == "assistant"]
    said = []
    for answer in answers[-1:] if name in REWRITTEN else answers:
        said += [*chat.text_ids(answer, tokenizer), stop.id]
    assert learnt(example) == said
    prompt = chat.prompt_ids(chat.question(TURNS), tokenizer)
    assert example["input_ids"][: len(prompt)] == prompt, "what the last turn is asked behind"


def test_an_end_token_that_also_begins_is_no_fault(peculiar):
    name, _, _, tokenizer, stop = peculiar
    encoded, _ = chat.encode_all([*ROWS, TURNS], tokenizer, stop, 512)
    assert len(encoded) == 4, name
    twice = copy.deepcopy(tokenizer)
    twice.chat_template = "{{ bos_token }}{{ bos_token }}" + twice.chat_template
    if tokenizer.bos_token is not None and chat.probe(tokenizer).leading_bos:
        with pytest.raises(utils.CourseError, match="twice, which the model has never seen"):
            chat.encode_all(ROWS, twice, stop, 512)


def test_what_is_saved_renders_as_what_was_trained(peculiar, tmp_path):
    """The model card's code takes the tokenizer that lies beside the adapter."""
    from transformers import AutoTokenizer

    _, _, _, tokenizer, _ = peculiar
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    asked = [{"role": "user", "content": "전세가 뭐예요?"}]
    text = again.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert text == chat.chat_prompt("전세가 뭐예요?", tokenizer)
    assert chat.chat_prompt("전세가 뭐예요?", again) == text, "asked twice, amended once"


@pytest.mark.parametrize(
    ("name", "ends", "said"),
    [
        (
            "qwen3.5: thinks unless told otherwise",
            "<|im_start|>assistant\n<think>\n\n</think>\n\n",
            "with enable_thinking = false it answers at once",
        ),
        (
            "r1: always thinks",
            "<|im_start|>assistant\n<think>\n\n</think>\n\n",
            "so the thought is closed at once",
        ),
        ("gpt-oss: names a channel", "<|im_start|>assistant final:", "prompts get it too"),
        (
            "command r7b: begins an answer behind a closed thought",
            "<|im_start|>assistant<think></think><|START|>",
            "begins an answer with <|START|>, so prompts end in it too",
        ),
    ],
)
def test_no_answer_is_trained_inside_a_thought(tmp_path, name, ends, said):
    """By what the template offers, else by closing it: the same in training and generation."""
    _, tokenizer = load(tmp_path, name)
    assert said in str(chat.probe(tokenizer))
    assert chat.chat_prompt("전세가 뭐예요?", tokenizer).endswith(ends)
    text = tokenizer.decode(chat.encode(ROWS[1], tokenizer, own_stop(tokenizer))["input_ids"])
    assert text.endswith(f"{ends}{ROWS[1]['output']}{PECULIAR[name][4]}")


def test_nothing_is_trained_again_after_midnight(tmp_path, monkeypatch):
    from transformers.utils import chat_template_utils

    folder = tiny_models.build(tmp_path / "model", "llama 3.2: writes today's date")
    prompts, days = [], (datetime.datetime(2026, 3, 4), datetime.datetime(2027, 12, 25))
    for day in days:
        clock = type("Clock", (datetime.datetime,), {"now": classmethod(lambda cls, d=day: d)})
        monkeypatch.setattr(chat_template_utils, "datetime", clock)
        chat_template_utils._compile_jinja_template.cache_clear()
        tokenizer = student.load_tokenizer(str(folder))
        original = tokenizer.apply_chat_template(chat.TURN_PROBE, tokenize=False)
        assert day.strftime("%d %b %Y") in original, "the test can fail"
        prompts.append(chat.chat_prompt("전세가 뭐예요?", tokenizer))
    assert prompts[0] == prompts[1] and "Today: 01 Jan 2026" in prompts[0]
    assert "held at 2026-01-01" in str(chat.probe(tokenizer))


def test_a_run_is_told_another_day_in_training_than_in_conversation(tmp_path, course):
    """The day of the training stays in the run's folder, whatever day it is later."""
    folder = tiny_models.build(tmp_path / "model", "llama 3.2: writes today's date")
    chosen = settings.resolve({"RUN": "dated"})
    assert chosen.date == datetime.date.today()
    chat.hold_date(datetime.date(2027, 12, 25))
    record.Job(chosen, cpu(), peft.LoraConfig(), {}, [], [])
    chat.hold_date(datetime.date(2028, 1, 1))
    record.Job(chosen, cpu(), peft.LoraConfig(), {}, [], [])
    chat.hold_date(settings.resolve({"RUN": "dated"}).date)
    tokenizer = student.load_tokenizer(str(folder))
    assert "Today: 25 Dec 2027" in chat.chat_prompt("전세가 뭐예요?", tokenizer)
    tokenizer.save_pretrained(tmp_path / "saved")  # as beside the adapter, and in a GGUF file
    chat.hold_date(datetime.date(2028, 1, 1))
    saved = student.load_tokenizer(str(tmp_path / "saved"))
    assert "Today: 25 Dec 2027" in chat.chat_prompt("전세가 뭐예요?", saved)


def test_every_format_of_a_date_is_filled_in(tmp_path):
    _, tokenizer = load(tmp_path, "llama 3.2: writes today's date")
    formats = "%A %a %B %b %d %-d %m %-m %Y %y %H %I %M %S %p %j"
    template = "{{ strftime_now('FORMATS') }}|{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.chat_template = template.replace("FORMATS", formats)
    day = datetime.datetime(2026, 1, 1)
    assert chat.chat_prompt("Q", tokenizer).startswith(day.strftime(formats) + "|")


def test_a_blank_line_ends_no_answer(tmp_path):
    """Gemma's tokenizer counts runs of newlines among its added tokens, but not as special."""
    from tokenizers import AddedToken

    model, tokenizer = load(tmp_path, "alpaca: turns in plain text")
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False)])
    model.resize_token_embeddings(len(tokenizer))
    stop = chat.choose_stop(model, tokenizer)
    assert stop.ids == [tokenizer.eos_token_id]
    row = {"id": "x", "instruction": "두 문단", "output": "하나.\n\n둘."}
    assert tokenizer.convert_tokens_to_ids("\n\n") in learnt(chat.encode(row, tokenizer, stop))


def test_what_is_said_is_text(peculiar):
    """An answer about `<|im_end|>` would have ended there, and a question could end a turn."""
    *_, tokenizer, stop = peculiar
    names = " ".join(tokenizer.all_special_tokens)
    row = {
        "id": "x",
        "instruction": f"{names} 이 뭐예요?",
        "output": f"끝을 나타내는 토큰 {names} 입니다.",
    }
    example = chat.encode(row, tokenizer, stop)
    said = learnt(example)[:-1]
    assert tokenizer.decode(said) == row["output"]
    special = set(tokenizer.all_special_ids)
    assert special.isdisjoint(said)
    plain = chat.encode(ROWS[0], tokenizer, stop)["input_ids"]
    controls = [[i for i in ids if i in special] for ids in (plain, example["input_ids"])]
    assert controls[0] == controls[1], "a question brings no control tokens of its own"
    text = f"{names} 이 뭐예요?"
    prompt = chat.prompt_ids(text, tokenizer)
    assert example["input_ids"][: len(prompt)] == prompt
    assert text in chat.chat_prompt(text, tokenizer)


def test_generation_asks_with_the_tokens_of_training(tmp_path, monkeypatch):
    import torch

    model, tokenizer = load(tmp_path, "cohere: scaled logits")
    stop, seen = chat.choose_stop(model, tokenizer), []

    def generate(input_ids, attention_mask, **options):
        seen.extend(zip(input_ids.tolist(), attention_mask.tolist(), strict=True))
        ended = torch.cat([input_ids, torch.full((len(input_ids), 1), stop.id)], dim=1)
        return types.SimpleNamespace(sequences=ended, past_key_values=None)

    monkeypatch.setattr(model, "generate", generate)
    asked = ["<|im_end|>은 뭐예요?", "안녕?"]
    generation.generate(model, tokenizer, asked, stop)
    given = [
        [i for i, kept in zip(ids, mask, strict=True) if kept]
        for ids, mask in sorted(seen, key=lambda pair: sum(pair[1]))
    ]
    assert given == [chat.prompt_ids(text, tokenizer) for text in reversed(asked)]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content[0].text }}{% endfor %}",
        "{% for m in messages %}<|im_start|>{{ m.role }}{% for p in m.content %}{% if p.type == "
        "'text' %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>{% endfor %}",
        "{% for t in tools %}{{ t }}{% endfor %}",
        "{{ messages[0]['content'] + none }}",
    ],
)
def test_templates_that_cannot_render_text_are_one_sentence(tmp_path, template):
    """Of vision models, which silently leave out what is said, and of tool calls."""
    _, tokenizer = load(tmp_path, "cohere: scaled logits")
    tokenizer.chat_template = template
    with pytest.raises(utils.CourseError, match="chat template (leaves out|of this base model)"):
        chat.probe(tokenizer)


# --- system messages

SYSTEM = [
    {"role": "system", "content": "해적처럼 말해 주세요.\n"},
    {"role": "user", "content": "전세가 뭐예요?"},
]


@pytest.mark.parametrize(("family", "role"), [("gemma", False), ("llama3", True), ("gemma3", True)])
def test_a_system_message_is_rendered_or_folded(tmp_path, family, role):
    """Gemma 1 has no system role, so it begins the first turn, in training and generation alike;
    Gemma 3's template does that itself."""
    _, tokenizer = load(tmp_path, family)
    assert chat.probe(tokenizer).system is role
    row = {"id": "s", "messages": [*SYSTEM, {"role": "assistant", "content": "보증금을 맡겨라!"}]}
    example = chat.encode(row, tokenizer, own_stop(tokenizer))
    prompt = chat.prompt_ids(chat.question(row), tokenizer)
    assert chat.question(row) == SYSTEM and example["input_ids"][: len(prompt)] == prompt
    text = chat.chat_prompt(SYSTEM, tokenizer)
    if family == "llama3":
        assert "system<|end_header_id|>\n\n해적처럼 말해 주세요.<|eot_id|>" in text
        assert "no system role" not in str(chat.probe(tokenizer))
    else:
        folded = "<start_of_turn>user\n해적처럼 말해 주세요.\n\n전세가 뭐예요?<end_of_turn>\n"
        assert folded in text.replace("\n\n\n", "\n\n")
        assert ("no system role" in str(chat.probe(tokenizer))) == (not role)
    assert tokenizer.decode(learnt(example)[:-1]) == "보증금을 맡겨라!"


def test_a_system_message_that_is_left_out_silently_is_folded(tmp_path):
    _, tokenizer = load(tmp_path, "cohere: scaled logits")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"
    )
    assert not chat.probe(tokenizer).system
    assert "해적처럼 말해 주세요.\n\n전세가 뭐예요?" in chat.chat_prompt(SYSTEM, tokenizer)


@pytest.mark.parametrize(
    "roles",
    ["assistant user assistant", "user system user assistant", "user user assistant", "tool user"],
)
def test_roles_out_of_turn_are_named(roles):
    messages = [{"role": role, "content": "말"} for role in [*roles.split(), "assistant"]]
    if roles.endswith("assistant"):
        messages = messages[:-1]
    with pytest.raises(utils.CourseError, match="Row r: .*must take turns"):
        chat.conversation({"id": "r", "messages": messages})


# --- the loss


def test_the_loss_and_its_gradient_are_those_of_the_models_own_logits(peculiar):
    """Granite, Cohere and Falcon-H1 scale their logits: left out, gradients were 7 to 15 times
    off."""
    import torch
    from peft import LoraConfig, get_peft_model

    name, _, model, tokenizer, stop = peculiar
    encoded = [chat.encode(row, tokenizer, stop) for row in ROWS]
    batch = losses.padded(encoded, 0, "cpu")
    of = head.head_of(model, batch["input_ids"])
    assert of.scale == pytest.approx(SCALED.get(name, 1), rel=1e-4), name
    lora = LoraConfig(
        r=4,
        target_modules="all-linear",
        exclude_modules=["out_proj", "conv1d"],  # PEFT refuses those of Falcon-H1
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    tuned, gradients = get_peft_model(copy.deepcopy(model), lora), {}
    for way in ("full logits", losses.OURS):
        tuned.zero_grad()
        loss, count = losses.WAYS[way](tuned, **batch)
        (loss / count).backward()
        weights = (p for p in tuned.parameters() if p.requires_grad)
        gradients[way] = [torch.tensor([float(loss / count)]), *(p.grad.clone() for p in weights)]
    for a, b in zip(*gradients.values(), strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-3), name
    assert not losses.disagreement(tuned, encoded[0], losses.OURS)
    assert not losses.disagreement(tuned, encoded[0], losses.TRL)


def test_a_head_that_is_not_understood_is_trained_on_its_own_logits(tmp_path, monkeypatch, capsys):
    """One sentence, and the plain loss as the way out; not an assertion."""
    folder = tiny_models.build(tmp_path / "model", "granite: bos is eos, scaled logits")
    made, _, _, encoded = tiny_models.trainer(folder, tmp_path / "out", max_steps=1)
    assert made.loss_of is losses.answer_loss and capsys.readouterr().out == ""
    batch = losses.padded(encoded[:2], 0, "cpu")
    right, _ = losses.full_logits_loss(made.model, **batch)

    monkeypatch.setattr(losses, "head_of", lambda model, ids: None)
    assert losses.answer_loss(made.model, **batch)[0].item() == pytest.approx(right.item())

    monkeypatch.setattr(losses, "head_of", lambda model, ids: head.Head(1.0, None))
    made, *_ = tiny_models.trainer(folder, tmp_path / "out", max_steps=1)
    assert made.loss_of is losses.full_logits_loss
    assert "so it is trained on its own logits" in capsys.readouterr().out
    made.train()
    assert made.state.global_step == 1


def test_logits_that_are_more_than_scaled_are_seen(tmp_path, monkeypatch):
    model, _ = load(tmp_path, "alpaca: turns in plain text")
    forward = model.forward

    def warped(**inputs):
        output = forward(**inputs)
        output.logits = output.logits.relu()
        return output

    monkeypatch.setattr(model, "forward", warped)
    import torch

    assert head.head_of(model, torch.tensor([[5, 6, 7, 8]])) is None


# --- packed rows


def test_rows_are_packed_only_where_the_model_keeps_them_apart(peculiar):
    name, _, model, tokenizer, stop = peculiar
    encoded, _ = chat.encode_all(ROWS, tokenizer, stop, 512)
    assert losses.keeps_rows_apart(model, encoded) == (name not in RUNS_ON), name


def test_a_model_that_forgets_row_ends_is_seen(tmp_path, monkeypatch):
    """Not only by what transformers refuses: BLOOM and MPT ignore positions."""
    import torch
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    config = BloomConfig(vocab_size=500, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)
    rows = [
        {"input_ids": list(range(start, start + 12)), "labels": [IGNORED] * 6 + list(range(6))}
        for start in (5, 100)
    ]
    assert not losses.keeps_rows_apart(BloomForCausalLM(config), rows)


def test_padded_rows_of_a_convolution_are_those_of_single_rows(tmp_path):
    model, tokenizer = load(tmp_path, "lfm2: a convolution")
    encoded, _ = chat.encode_all(ROWS, tokenizer, own_stop(tokenizer), 512)
    together = losses.held_out_loss(model, encoded, tokenizer.pad_token_id)
    sums = [losses.answer_loss(model, **losses.padded([row], 0, "cpu")) for row in encoded]
    alone = sum(float(loss) for loss, _ in sums) / sum(int(count) for _, count in sums)
    assert together == pytest.approx(alone, rel=1e-5)


def test_a_convolution_is_trained_on_padded_rows(tmp_path):
    folder = tiny_models.build(tmp_path / "model", "lfm2: a convolution")
    made, *_ = tiny_models.trainer(folder, tmp_path / "out", padding_free=False)
    made.train()
    seen = tiny_models.losses(made)
    assert seen[-1] < seen[0]


@pytest.mark.parametrize("name", [*RUNS_ON, "cohere: scaled logits"])
def test_a_batch_says_what_single_prompts_say(tmp_path, name):
    """Padded on the left, and with rows that end before the others: also where layers keep a state
    in place of keys and values, from which rows cannot be picked."""
    model, tokenizer = load(tmp_path, name)
    asked = ["전세가 뭐예요?", "Hi", "긴 질문입니다. " * 6]
    prompt = tokenizer.pad(
        {"input_ids": [chat.prompt_ids(asked[0], tokenizer)]}, return_tensors="pt"
    )
    written = model.generate(**prompt, max_new_tokens=8, do_sample=False, eos_token_id=[])
    early = written[0, -3].item()
    stop = chat.Stop("early", early, early, 1, len(tokenizer))
    together = generation.generate(model, tokenizer, asked, stop, 40)
    alone = [generation.generate(model, tokenizer, [text], stop, 40)[0] for text in asked]
    assert together == alone
    assert together[0].stopped and max(answer.tokens for answer in together) > 16


# --- checkpoints that can also see


def test_of_a_model_that_sees_the_language_model_is_loaded(tmp_path):
    """`all-linear` would put adapters on the vision tower, and a wrong prefix random weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    folder = tiny_models.build(tmp_path / "model", "gemma 3 4b: sees")
    model, _ = student.load_base(str(folder), cpu())
    whole = AutoModelForImageTextToText.from_pretrained(folder).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, whole(input_ids=ids).logits)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = [n for n, m in get_peft_model(model, lora).named_modules() if hasattr(m, "lora_A")]
    assert len(adapted) == 14 and not any("vision" in name for name in adapted)


def test_the_card_of_an_adapter_of_a_part_loads_nothing(tmp_path, course):
    """PEFT's own loader finds no layer to put such an adapter on. The card's code is run."""
    import torch

    folder = tiny_models.build(tmp_path / "model", "gemma 3 4b: sees")
    chosen = settings.resolve({"BASE_MODEL": str(folder)})
    base, tokenizer = student.load_base(str(folder), cpu())
    lora = peft.LoraConfig(
        r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    model = peft.get_peft_model(base, lora).eval()
    job = record.Job(chosen, cpu(), lora, {}, [], [])
    measured = {"loss": 1.0, "stop_rate": 0.5}
    saved = job.save(model, tokenizer, own_stop(tokenizer), measured, measured)
    (code,) = re.findall("```python\n(.*?)```", (saved / "README.md").read_text("utf-8"), re.S)
    found: dict = {}
    exec(code.replace('"."', repr(str(saved))).replace("=128", "=4"), found)
    with torch.no_grad():
        logits = [each(**found["inputs"]).logits for each in (model, found["model"])]
    assert torch.equal(*logits)


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny_models.build(tmp_path / "model", "cohere: scaled logits")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.9.odd"] = weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(utils.CourseError, match="lack 1 that its config names, such as model.lay"):
        student.load_base(str(folder), cpu())


# --- precision


def large(folder, factor: float):
    """Multiplies the embedding, so that activations in the middle of the model are as large."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"] *= factor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_model_that_does_not_fit_fp16_computes_in_fp32_and_says_so(tmp_path):
    """Not by its name, as Gemma 3 is known, but because it was asked."""
    fits = tiny_models.build(tmp_path / "fits", "gemma")
    device = machine.Device("cpu", "float16", "sdpa", "as a T4")
    model, _ = student.load_base(str(fits), device)
    assert (str(model.dtype), device.dtype) == ("torch.float16", "float16")
    assert device.reason == "as a T4"
    model, tokenizer = student.load_base(
        str(large(tiny_models.build(tmp_path / "large", "gemma"), 3e5)), device
    )
    assert (str(model.dtype), device.dtype) == ("torch.float32", "float32")
    assert device.reason == "as a T4; in float16 this model's scores are not numbers, so fp32"
    assert chat.choose_stop(model, tokenizer).rank > 1


def test_another_next_token_than_in_fp32_is_trouble(tmp_path, monkeypatch):
    import torch

    folder = tiny_models.build(tmp_path / "model", "gemma")
    model, tokenizer = student.load_base(str(folder), machine.Device("cpu", "float16", "sdpa", ""))
    frequencies = model.model.rotary_emb.inv_freq.clone()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    assert precision.trouble(model, tokenizer) == ""
    ask = precision._next_scores

    def other(asked, ids):
        scores = ask(asked, ids)
        return -scores if next(asked.parameters()).dtype == torch.float16 else scores

    monkeypatch.setattr(precision, "_next_scores", other)
    assert "chooses other tokens than in float32" in precision.trouble(model, tokenizer)
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())
    assert torch.equal(frequencies, model.model.rotary_emb.inv_freq)
    assert frequencies.dtype == torch.float32


# --- the check before


def test_the_swap_check_passes_what_can_be_trained(peculiar, monkeypatch, capsys):
    rows = utils.read_jsonl(utils.DATA / "instruction.jsonl")[::40]
    monkeypatch.setattr(utils, "read_jsonl", lambda path: rows)
    monkeypatch.setattr(preflight, "matmul_flops", lambda device: 1e11)
    name, folder, *_ = peculiar
    status = swap_check.main([str(folder)])
    said = " ".join(capsys.readouterr().out.split())
    recurrent = name.startswith("falcon")  # PEFT adapts no layer beside a recurrent one
    assert status == recurrent and ("Not ready: LoRA targets FAILED" in said) == recurrent, said
    assert "asked with: tokenizer, config, weights" in said
    assert ("train.ipynb pads them instead" in said) == (name in RUNS_ON)
    assert ("only the last answer is trained" in said) == (name in REWRITTEN)
    assert "It is that of the model's logits." in said


# --- steps


@pytest.mark.parametrize(
    ("rows", "settings", "steps"),
    [
        (300, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, 38),
        (300, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8}, 10),
        (9, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, 2),
        (32, {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}, 2),
    ],
)
def test_steps_follow_batch_and_accumulation(rows, settings, steps):
    assert sft.count_steps(rows, settings | {"num_train_epochs": 1}) == steps
    assert sft.count_steps(rows, settings | {"num_train_epochs": 3}) == 3 * steps
    assert sft.count_steps(rows, settings | {"max_steps": 4}) == 4


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (8, 3), (5, 1)])
def test_the_trainer_counts_the_same_steps(tmp_path, batch, accumulation):
    folder = tiny_models.build(tmp_path / "model", "gemma")
    options = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": 2,
    }
    made, _, _, encoded = tiny_models.trainer(folder, tmp_path / "out", max_steps=-1, **options)
    made.train()
    assert made.state.global_step == sft.count_steps(len(encoded), options)
