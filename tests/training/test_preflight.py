"""The prediction against known models, against what autograd really keeps, and against memory that
is not there."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import utils
from training import architecture, machine, preflight
from training.architecture import gemma_2b
from training.machine import Device
from training.preflight import check, predict

pytestmark = pytest.mark.usefixtures("one_thread")


L4 = Device("cuda", "bfloat16", "sdpa", "")
CPU = Device("cpu", "float32", "sdpa", "")


def tiny(kind: str, layers: int = 2):
    from transformers import Gemma2Config, Gemma3TextConfig, GemmaConfig, LlamaConfig, Qwen3Config

    make = {
        "gemma": GemmaConfig,
        "gemma 2": Gemma2Config,
        "gemma 3": Gemma3TextConfig,
        "llama": LlamaConfig,
        "qwen 3": Qwen3Config,
    }[kind]
    return make(
        vocab_size=1000,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        **({"layer_types": ["full_attention"] * layers} if kind == "gemma 3" else {}),
    )


@pytest.fixture(scope="module")
def course():
    """gemma-2b-it with the course's settings on an L4, 512 tokens."""
    return predict(gemma_2b(), L4, batch=4, length=512, checkpointing=True, loss="full", gpu="L4")


def test_gemma_2b_on_paper(course):
    """The figures of shared/training.md, computed there by hand."""
    assert course.of.parameters == 2_506_172_416
    assert course.of.embedding == 524_288_000
    assert course.of.tied
    assert course.lora == 4_902_912
    assert course.flop_per_token == pytest.approx(14.0e9, rel=0.02)
    assert course.flops / 14.0e9 == pytest.approx(8650, rel=0.01)
    assert 2600 < course.tokens_per_second < 3900
    assert course.seconds(course.tokens_per_second) == 1


@pytest.mark.parametrize(("length", "full", "without"), [(512, 12.3, 6.6), (1024, 18.8, 7.3)])
def test_gemma_2b_memory_with_and_without_logits(course, length, full, without):
    longer = dataclasses.replace(course, length=length)
    assert longer.gb == pytest.approx(full, abs=0.06)
    # A layer's recomputation needs more than their logits
    for loss in ("trained positions", "trl"):
        assert dataclasses.replace(longer, loss=loss).gb == pytest.approx(without, abs=0.06)


def test_the_packaged_student_on_paper():
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
    )
    predicted = predict(config, CPU, batch=8, length=100, gpu="L4")
    assert predicted.of.parameters == 268_098_176
    assert predicted.of.embedding == 167_772_160
    assert predicted.lora == 949_248


@pytest.mark.parametrize("kind", ["gemma", "gemma 2", "gemma 3", "llama", "qwen 3"])
def test_counts_are_those_of_the_built_model(kind):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    predicted = predict(tiny(kind), CPU, 1, 8, rank=3, gpu="L4")
    model = AutoModelForCausalLM.from_config(tiny(kind))
    assert predicted.of.parameters == model.num_parameters()
    assert predicted.of.tied == (model.lm_head.weight is model.get_input_embeddings().weight)
    lora = get_peft_model(
        model, LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    assert predicted.lora == sum(
        parameter.numel() for parameter in lora.parameters() if parameter.requires_grad
    )


def kept_by_autograd(kind: str, layers: int, dtype: str, tokens: int, checkpointing: bool) -> int:
    """Bytes of all different tensors that a forward pass leaves for the backward pass, weights not
    counted."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    attention = machine.suited(Device("cpu", dtype, "sdpa", ""), tiny(kind)).attention
    model = AutoModelForCausalLM.from_config(
        tiny(kind, layers), dtype=getattr(torch, dtype), attn_implementation=attention
    )
    model = get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    ).train()
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        if (storage := tensor.untyped_storage()).data_ptr() not in weights:
            # The tensor is held, so that its address is not used again
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        model.get_base_model().base_model(
            input_ids=torch.arange(tokens)[None],
            # two rows end to end, as in training: every layer then needs a mask
            position_ids=torch.arange(tokens // 2).repeat(2)[None],
            use_cache=False,
        )
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["gemma", "gemma 3", "llama", "qwen 3"])
def test_kept_activations_are_what_autograd_keeps(kind, dtype):
    tokens = 256
    measured = kept_by_autograd(kind, 3, dtype, tokens, False) - kept_by_autograd(
        kind, 2, dtype, tokens, False
    )
    made = predict(tiny(kind, 3), Device("cpu", dtype, "sdpa", ""), 1, tokens, gpu="L4")
    assert made.memory["activations"] * 1e9 / 3 == pytest.approx(measured, rel=0.06)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_eager_attention_keeps_scores_too(dtype):
    """Gemma 2 without FlashAttention-2: each head keeps a number for each pair of tokens, which
    soon is most of it."""
    tokens = 512
    measured = kept_by_autograd("gemma 2", 3, dtype, tokens, False) - kept_by_autograd(
        "gemma 2", 2, dtype, tokens, False
    )
    device = machine.suited(Device("cpu", dtype, "sdpa", ""), tiny("gemma 2"))
    predicted = (
        predict(tiny("gemma 2", 3), device, 1, tokens, gpu="L4").memory["activations"] * 1e9 / 3
    )
    assert predicted == pytest.approx(measured, rel=0.06)
    sdpa = (
        predict(tiny("gemma 2", 3), Device("cpu", dtype, "sdpa", ""), 1, tokens, gpu="L4").memory[
            "activations"
        ]
        * 1e9
        / 3
    )
    mask = {"float32": 4, "bfloat16": 2}[dtype]
    assert predicted - sdpa == pytest.approx((8 * 4 - mask) * tokens**2)


def test_checkpointing_keeps_each_layers_input():
    measured = kept_by_autograd("gemma", 3, "float32", 256, True) - kept_by_autograd(
        "gemma", 2, "float32", 256, True
    )
    assert measured == 256 * 128 * 4
    config = tiny("gemma", 3)
    predicted = predict(config, CPU, 1, 256, checkpointing=True, gpu="L4")
    assert predicted.memory["activations"] * 1e9 == 3 * measured


def test_packed_rows_are_timed_as_one_long_row():
    """A fifth of the arithmetic of a default run was scores between rows, which nobody computes."""
    packed = predict(tiny("gemma"), CPU, 1, 2048, row=128, gpu="L4")
    alone = predict(tiny("gemma"), CPU, 16, 128, gpu="L4")
    assert packed.flop_per_token == alone.flop_per_token
    assert packed.flop_per_token < predict(tiny("gemma"), CPU, 1, 2048, gpu="L4").flop_per_token


def test_a_cpu_with_bf16_reaches_as_much_of_its_ceiling_as_one_without():
    narrow = predict(tiny("gemma"), Device("cpu", "bfloat16", "sdpa", ""), 1, 8, gpu="L4")
    assert narrow.efficiency < predict(tiny("gemma"), CPU, 1, 8, gpu="L4").efficiency


def test_masked_positions_cost_our_head_nothing():
    few, all_of_them = (
        predict(tiny("gemma"), CPU, 4, 64, trained=share, gpu="L4") for share in (0.25, 1.0)
    )
    assert all_of_them.flop_per_token - few.flop_per_token == 0.75 * 4 * 1000 * 128
    trl = predict(tiny("gemma"), CPU, 4, 64, trained=0.25, loss="trl", gpu="L4")
    assert trl.flop_per_token > all_of_them.flop_per_token, (
        "on a CPU TRL's head scores every position, and twice"
    )


def test_it_can_be_read(course):
    text = str(course)
    for piece in (
        "2,506,172,416",
        "tied",
        "4,902,912 (0.20%)",
        "recomputing",
        "VRAM         12.3 GB = context 0.8 + weights 5.0",
        "L4, data sheet",
    ):
        assert piece in text, text


MULTIPLY = """
import re, torch; torch.set_num_threads(1)
anonymous = lambda: int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
for dtype in (torch.float32, torch.bfloat16):
    weight, before = torch.randn(64, 64, dtype=dtype), anonymous()
    for rows in range(8, 208):
        torch.nn.functional.linear(torch.randn(rows, 64, dtype=dtype), weight)
    print((anonymous() - before) / 200)
"""  # noqa: E501


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads Linux's record of its memory"
)
def test_a_cpu_keeps_a_kernel_for_each_shape_in_bf16():
    """Why a training of many lengths takes 0.7 GB more than its tensors: oneDNN compiles, and keeps
    up to 1,024 kernels."""
    import torch

    if not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this CPU does not multiply bf16")
    child = subprocess.run(
        [sys.executable, "-c", MULTIPLY], capture_output=True, text=True, check=True
    )
    float32, bfloat16 = map(float, child.stdout.split())
    assert bfloat16 * 1024 / 1e9 == pytest.approx(preflight.KERNELS_GB, rel=0.3)
    assert float32 < 50_000
    kept = [
        predict(tiny("llama"), Device("cpu", dtype, "sdpa", ""), 1, 8, gpu="L4").memory
        for dtype in ("bfloat16", "float32")
    ]
    assert kept[0]["kernels"] == preflight.KERNELS_GB and "kernels" not in kept[1]


def test_this_machine_is_measured():
    predicted = predict(tiny("llama"), CPU, 1, 8)
    assert predicted.ceiling == "measured here" and 1e9 < predicted.flops < 1e14


def test_unknown_names_are_one_sentence():
    with pytest.raises(
        utils.CourseError, match="The GPU 'B300' is not in the table: choose one of T4, "
    ):
        predict(tiny("llama"), L4, 1, 8, gpu="B300")
    with pytest.raises(
        utils.CourseError, match="The loss 'dft' is not known: choose one of trained positions"
    ):
        predict(tiny("llama"), L4, 1, 8, loss="dft", gpu="L4")


def test_a_model_that_is_no_dense_decoder_is_one_sentence():
    from transformers import GPT2Config, T5Config

    with pytest.raises(
        utils.CourseError,
        match="A t5 model is no causal language model, so it cannot continue text: set BASE_MODEL",
    ):
        architecture.skeleton(T5Config())

    with pytest.raises(
        utils.CourseError, match="cannot be predicted for gpt2 models .no single intermediate_size"
    ):
        predict(GPT2Config(), CPU, 1, 8, gpu="L4")


# --- does it fit?


@pytest.mark.parametrize(
    ("free", "sentence"),
    [
        (
            19,
            "Training needs about 19.6 GB of VRAM and 19.0 GB are free: set "
            "gradient_checkpointing = True (then about 7.3 GB)",
        ),
        (
            6.5,
            "per_device_train_batch_size = 1 with 4 times the gradient_accumulation_steps (then "
            "about 6.3 GB)",
        ),
        (
            4,
            "4 times the gradient_accumulation_steps, QUANTIZE = '4bit' (then about 3.3 GB) or "
            "choose a smaller BASE_MODEL",
        ),
        (1, "no setting brings it down to that: choose a smaller BASE_MODEL"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_setting(course, free, sentence):
    long = dataclasses.replace(course, length=1024, loss="trl", checkpointing=False)
    with pytest.raises(utils.CourseError) as error:
        check(long, free=free)
    assert sentence in str(error.value)


def test_answering_counts_where_it_needs_more_than_a_step(course):
    """gemma-2b, 28 answers of 512 tokens: 18 layers x 2 x 256 numbers of 2 bytes a token are kept,
    16,384 wide layers are read through."""
    lean = dataclasses.replace(course, loss="trl", answers=(28, 512))
    cache, reading, logits = 28 * 512 * 18 * 2 * 256 * 2, 28 * 512 * 10 * 16384, 28 * 256000 * 6
    assert lean.answering == cache + reading + logits
    assert lean.memory["answering"] == lean.answering / 1e9
    assert "activations" not in lean.memory
    assert "answering 2.7" in str(lean)
    assert "answering" not in dataclasses.replace(lean, answers=(4, 512)).memory, (
        "a step needs more than four answers"
    )
    with pytest.raises(
        utils.CourseError,
        match=r"free: set batch_size = 4 where `measure` generates \(then about 6.6 GB\)",
    ):
        check(lean, free=7)


def test_answering_is_what_generation_takes():
    """Keys, values and logits of a tiny model that answers, counted by what torch allocates at
    most."""
    import torch
    from transformers import AutoModelForCausalLM

    rows, length, new = 16, 480, 32
    config = tiny("llama", 4)
    predicted = predict(config, CPU, 1, 8, answers=(rows, length + new), gpu="L4")
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    with torch.inference_mode(), torch.profiler.profile(profile_memory=True) as profile:
        model.generate(
            torch.ones(rows, length, dtype=torch.long),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
        )
    held = highest = 0
    for event in sorted(
        profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()
    ):
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    assert predicted.answering == pytest.approx(highest, rel=0.2)


def test_on_a_cpu_the_advice_is_a_shorter_row(course):
    cpu = dataclasses.replace(
        course, device=dataclasses.replace(CPU), length=512, loss="trained positions"
    )
    with pytest.raises(
        utils.CourseError, match=r"of RAM .* ROW_TOKENS = 256 \(then about"
    ) as error:
        check(cpu, free=dataclasses.replace(cpu, batch=1, length=256).wanted_gb + 0.01)
    assert "QUANTIZE" not in str(error.value)


def test_what_fits_comes_back_and_free_memory_is_read(course, monkeypatch):
    import psutil
    import torch

    small = predict(tiny("llama"), CPU, 1, 8, gpu="L4")
    assert check(small) is small
    assert small.gb < machine.free_gb(CPU) < psutil.virtual_memory().total / 1e9
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5_000_000_000, 24_000_000_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 1_000_000_000)
    # What is free, what this process has, its context
    with pytest.raises(utils.CourseError, match="and 6.8 GB are free"):
        check(course)


# --- what it took


ALLOCATE = """
import torch, utils
from training import machine
for system in ("this", "without /proc"):
    with machine.peak_memory() as before:
        pass
    torch.ones(100_000_000)  # 0.4 GB, given back at once
    with machine.peak_memory() as small:
        torch.ones(1000)
    with machine.peak_memory() as large:
        for _ in range(3):
            torch.ones(100_000_000).sum()
    print(before.gb, small.gb, large.gb)
    machine.Path = lambda path: utils.ROOT / "absent" / path[1:]
"""


def test_peak_memory_is_that_of_the_block():
    """In a process of its own: what was allocated before the block and freed does not count, what
    was inside does."""
    child = subprocess.run(
        [sys.executable, "-c", ALLOCATE], capture_output=True, text=True, cwd=utils.ROOT, check=True
    )
    for line in child.stdout.splitlines():
        before, small, large = map(float, line.split())
        assert small - before < 0.15 and 0.35 < large - small < 0.6, child.stdout
    assert child.stdout.count("\n") == 2


HEAD = """
import torch
from training import losses, machine

torch.set_num_threads(1)
for dtype in (torch.float32, torch.bfloat16):
    hidden = torch.randn(512, 16, dtype=dtype, requires_grad=True)
    weight, targets = torch.randn(262144, 16, dtype=dtype), torch.arange(512)
    with machine.peak_memory() as before:
        pass
    with machine.peak_memory() as peak:
        losses._frozen_head()(hidden, weight, None, targets, None, 256).sum().backward()
    print(peak.gb - before.gb)
"""


def test_the_logits_take_what_is_predicted(course):
    """In a process of its own, for 256 of 512 positions at once; in 16 bits oneDNN lays the head
    out anew."""
    child = subprocess.run(
        [sys.executable, "-c", HEAD], capture_output=True, text=True, cwd=utils.ROOT, check=True
    )
    measured = [float(line) for line in child.stdout.split()]
    for dtype, gb in zip(("float32", "bfloat16"), measured, strict=True):
        device = machine.Device("cpu", dtype, "sdpa", "")
        of = dataclasses.replace(course.of, vocabulary=262144, hidden=16)
        made = dataclasses.replace(course, of=of, device=device, loss="trained positions")
        made = dataclasses.replace(made, batch=4, length=512, trained=0.5, checkpointing=False)
        predicted = made.memory["logits or recomputation"]
        assert gb == pytest.approx(predicted, rel=0.1, abs=0.03), dtype
