"""What a GPU does with this course, in one command: the loss three ways at gemma-2b's size, two
precisions at Gemma 3 270M's, a training that is interrupted and goes on, and answers in batches.

Run: python -m benchmarks.gpu_battery (a CUDA GPU with 20 GB or more; made to take under 8 minutes)
     python -m benchmarks.gpu_battery --tiny --device cpu (the same code on tiny models, to see that
     it runs; its numbers mean nothing)
Nothing is downloaded: the weights are random, because cost does not depend on their values, and the
tokenizer is trained here on the shipped rows. Each case runs in a process of its own, so that its
peak memory is its own and one that fails leaves the others. Prints Markdown and, on a GPU, writes
it with device and versions to benchmarks/results/gpu_battery.json. Without that file this battery
never saw a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import utils
from training import chat, generation, losses, machine, precision, preflight, sft, student

RESULTS = Path(__file__).parent / "results" / "gpu_battery.json"
BATCH, ACCUMULATION, RANK = 4, 2, 4  # as in train.ipynb
KINDS = {"full logits": "full", losses.TRL: "trl", losses.OURS: "trained positions"}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
)


# --- what is measured on --------------------------------------------------------------------------


def gemma_2b(tiny: bool):
    """google/gemma-2b's own config, or a small one of the same kind."""
    from transformers import GemmaConfig

    small = {
        "vocab_size": 2000,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    full = {
        "vocab_size": 256000,
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "max_position_embeddings": 8192,
    }
    return GemmaConfig(**(small if tiny else full))


def gemma_3_270m(tiny: bool, vocabulary: int = 262144):
    """google/gemma-3-270m's own config, or a small one of the same kind."""
    from transformers import Gemma3TextConfig

    small = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "head_dim": 16,
    }
    full = {
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "head_dim": 256,
    }
    vocabulary = min(vocabulary, 2100) if tiny else vocabulary
    return Gemma3TextConfig(
        vocab_size=vocabulary,
        num_attention_heads=4,
        num_key_value_heads=1,
        sliding_window=512,
        pad_token_id=0,
        **(small if tiny else full),
    )


def random_student(folder: Path, tiny: bool) -> Path:
    """A folder as BASE_MODEL takes one: 270M's shape with random weights, and a byte-level
    tokenizer of 2,000 tokens trained on the shipped rows."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    texts = [text for row in shipped_rows() for text in (row["instruction"], row["output"])]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bare.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = gemma_3_270m(tiny, len(tokenizer))
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def shipped_rows() -> list[dict]:
    """The shipped rows of one turn, the shortest first."""
    rows = utils.read_jsonl(utils.DATA / "instruction.jsonl")
    return sorted((row for row in rows if "output" in row), key=lambda row: len(row["output"]))


def here(options) -> machine.Device:
    """What train.ipynb would choose; on a CPU float32, which every one has."""
    if options.device == "cuda":
        return machine.choose_device()
    return machine.Device("cpu", "float32", "sdpa", "")


def random_batch(length: int, vocabulary: int, seed: int) -> dict:
    """Four rows of `length` random tokens, the second half of each trained, as TRL's collator makes
    them."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    draw, rows = random.Random(seed), []
    for _ in range(BATCH):
        ids = [draw.randrange(3, vocabulary) for _ in range(length)]
        prompt = length // 2
        rows.append({"input_ids": ids, "labels": [chat.IGNORED] * prompt + ids[prompt:]})
    return dict(DataCollatorForLanguageModeling(0)(rows))


def tuned(config, device: machine.Device, checkpointing: bool):
    """A random model of a config with the course's adapter on it, in training mode."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device.name):
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, device.dtype), attn_implementation=device.attention
        )
    lora = LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora).train()
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


# --- the cases ------------------------------------------------------------------------------------


def measured_steps(model, device: machine.Device, length: int, way: str, steps: int) -> dict:
    """Some optimiser steps: the first loss, seconds a step, peak memory in GB."""
    import torch

    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)
    mixed = device.dtype != "float32"

    def step(number: int) -> float:
        for part in range(ACCUMULATION):
            batch = random_batch(length, model.config.vocab_size, number * ACCUMULATION + part)
            inputs = {name: value.to(device.name) for name, value in batch.items()}
            with torch.autocast(device.name, getattr(torch, device.dtype), enabled=mixed):
                loss, count = losses.WAYS[way](model, **inputs)
            (loss / count / ACCUMULATION).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return (loss / count).item()  # waits for the GPU

    first = step(0)  # warms up
    with machine.peak_memory() as peak:
        started = time.perf_counter()
        for number in range(1, steps + 1):
            step(number)
        seconds = (time.perf_counter() - started) / steps
    return {"loss": first, "seconds": seconds, "peak_gb": peak.gb}


def loss_case(options, length: int, way: str) -> dict:
    """gemma-2b in bf16: one way to the loss at one length, against the prediction."""
    device = machine.Device(options.device, "bfloat16", "sdpa", "")
    config = gemma_2b(options.tiny)
    found = measured_steps(tuned(config, device, True), device, length, way, options.steps)
    # A CPU may only emulate bf16, which takes it half a minute
    flops = machine.matmul_flops(device if options.device == "cuda" else here(options))
    # Of a GPU's table only the ceiling is taken, which is not used below
    predict = functools.partial(
        preflight.predict, config, device, BATCH, length, RANK, trained=0.5, gpu="L4"
    )
    predicted = predict(loss=KINDS[way], checkpointing=True)
    # Model FLOPs are those of the leanest way: without recomputation and masked logits
    useful = predict(loss=KINDS[losses.OURS], checkpointing=False)
    rate = BATCH * length * ACCUMULATION / found["seconds"]
    return {
        "loss": found["loss"],
        "tokens/s": rate,
        "MFU": useful.flop_per_token * rate / flops,
        "matmul TFLOP/s": flops / 1e12,
        "peak GB": found["peak_gb"],
        "predicted GB": predicted.gb,
    }


def precision_case(options, dtype: str) -> dict:
    """Gemma 3 270M's shape in fp16 and fp32: speed, memory, and whether the numbers are numbers.

    Random weights stay small; that the real ones overflow is tested with the packaged student.
    """
    device = machine.Device(options.device, dtype, "sdpa", "")
    model = tuned(gemma_3_270m(options.tiny), device, False)
    length = 64 if options.tiny else 512
    found = measured_steps(model, device, length, losses.OURS, options.steps)
    return {
        "loss": found["loss"],
        "tokens/s": BATCH * length * ACCUMULATION / found["seconds"],
        "peak GB": found["peak_gb"],
    }


def training_case(options, work: Path) -> dict:
    """One training through `sft`, once whole and once interrupted after a checkpoint: the adapter's
    last losses must be the same."""
    chosen = here(options)
    folder = random_student(work / "student", options.tiny)
    whole = _train(folder, work / "whole", chosen, options, stop_after=None)
    _train(folder, work / "halved", chosen, options, stop_after=4)
    resumed = _train(folder, work / "halved", chosen, options, stop_after=None)
    pairs = zip(whole["losses"][-2:], resumed["losses"][-2:], strict=True)
    return {
        "device": str(chosen),
        "first loss": whole["losses"][0],
        "last loss": whole["losses"][-1],
        "apart after resuming": max(abs(a - b) for a, b in pairs),
        "tokens/s": whole["tokens/s"],
        "own logits": whole["own logits"],
    }


def _train(folder: Path, output: Path, device, options, stop_after: int | None) -> dict:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import TrainerCallback
    from trl import SFTConfig

    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == stop_after

    model, tokenizer = student.load_base(str(folder), dataclasses.replace(device))
    stop = chat.choose_stop(model, tokenizer)
    rows, _ = chat.encode_all(shipped_rows()[:64], tokenizer, stop, 512)
    torch.manual_seed(0)
    lora = LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    made = sft.trainer_class()(
        model=get_peft_model(model, lora),
        args=SFTConfig(
            output_dir=str(output),
            max_steps=8,
            learning_rate=1e-3,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=ACCUMULATION,
            gradient_checkpointing=options.device == "cuda",
            padding_free=losses.keeps_rows_apart(model, rows),
            max_length=None,
            bf16=device.dtype == "bfloat16",
            fp16=device.dtype == "float16",
            use_cpu=options.device == "cpu",
            optim="adamw_torch_fused",
            logging_steps=1,
            save_strategy="steps",
            save_steps=4,
            report_to="none",
            disable_tqdm=True,
            seed=1,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[Interrupt()],
    )
    made.train(resume_from_checkpoint=sft.last_checkpoint(output))
    return {
        "losses": [float(entry["loss"]) for entry in made.state.log_history if "loss" in entry],
        "tokens/s": made.tokens_per_second,
        "own logits": made.loss_of is losses.full_logits_loss,
    }


def generation_case(options, work: Path, batch: int) -> dict:
    """Answers in batches: tokens/s, and whether a batch says what single prompts say."""
    device = here(options)
    model, tokenizer = student.load_base(str(random_student(work, options.tiny)), device)
    trouble = precision.trouble(model, tokenizer)
    stop = chat.choose_stop(model, tokenizer)
    asked = [row["instruction"] for row in shipped_rows()[:batch]]
    length = 8 if options.tiny else 128
    generation.generate(model, tokenizer, asked[:1], stop, 4)  # warms up
    started = time.perf_counter()
    with machine.peak_memory() as peak:
        answers = generation.generate(model, tokenizer, asked, stop, length, batch)
    seconds = time.perf_counter() - started
    return {
        "tokens/s": sum(answer.tokens for answer in answers) / seconds,
        "peak GB": peak.gb,
        "trouble": trouble or "none",
    }


# --- the battery ----------------------------------------------------------------------------------


def cases(options) -> list[list]:
    """Name and arguments of every case, the most wanted first."""
    lengths = (64, 128) if options.tiny else (512, 1024)
    batches = (1, 4) if options.tiny else (1, 12, 60)
    return [
        *(["loss", length, way] for length, way in itertools.product(lengths, KINDS)),
        ["training"],
        *(["precision", dtype] for dtype in ("float16", "float32")),
        *(["generation", batch] for batch in batches),
    ]


def measure(options, name: str, *arguments) -> dict:
    """One case, in this process."""
    if name == "loss":
        return loss_case(options, *arguments)
    if name == "precision":
        return precision_case(options, *arguments)
    with tempfile.TemporaryDirectory() as work:
        if name == "training":
            return training_case(options, Path(work))
        return generation_case(options, Path(work), *arguments)


def table(results: list[dict]) -> str:
    """Markdown, one table for each kind of case."""
    lines = []
    for name, group in itertools.groupby(results, key=lambda result: result["case"][0]):
        found = list(group)
        columns = list(dict.fromkeys(key for result in found for key in result["found"]))
        lines += [f"\n| {name} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for result in found:
            what = " ".join(str(part) for part in result["case"][1:]) or "8 steps"
            cells = [_shown(result["found"].get(column, "")) for column in columns]
            lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines).strip()


def _shown(value) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def main(arguments: list[str] | None = None) -> int:
    """Run all cases, print the table; 1 if one failed or a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="tiny models and few tokens")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--case", help="internal: measure one case in this process")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not utils.has_gpu():
        print("No CUDA GPU is here: run it on one, or try the code with --tiny --device cpu.")
        return 1
    if options.case:
        print(json.dumps(measure(options, *json.loads(options.case))))
        return 0
    results = []
    for case in cases(options):
        started = time.perf_counter()
        found = _in_a_process(options, case)
        results.append({"case": case, "found": found})
        print(f"{case} {time.perf_counter() - started:.0f} s: {found}", file=sys.stderr, flush=True)
    about = _about(options)
    print(f"{about}\n\n{table(results)}\n")
    broken = broken_promises(results)
    print("\n".join(f"- {sentence}" for sentence in broken) or "- every promise is kept")
    if not options.tiny:
        record = {"about": about, "table": table(results), "broken": broken, "cases": results}
        utils.write_json(RESULTS, record)
    return 1 if broken else 0


def _in_a_process(options, case: list) -> dict:
    command = [sys.executable, "-m", "benchmarks.gpu_battery", "--device", options.device]
    command += ["--steps", str(options.steps), "--case", json.dumps(case)]
    if options.tiny:
        command.append("--tiny")
    child = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=utils.ROOT)
    if child.returncode:  # out of memory is a result too
        said = child.stderr.strip() or f"exit status {child.returncode}"
        return {"error": said.splitlines()[-1][:200]}
    return json.loads(child.stdout.splitlines()[-1])


def broken_promises(results: list[dict]) -> list[str]:
    """What the course says of its numbers, and these numbers do not."""
    broken = [
        f"{r['case']} failed: {r['found']['error']}" for r in results if "error" in r["found"]
    ]
    good = [r for r in results if "error" not in r["found"]]
    first: dict[int, list[float]] = {}
    for r in good:
        found = r["found"]
        if r["case"][0] == "loss":
            first.setdefault(r["case"][1], []).append(found["loss"])
            if not 0.9 <= found["predicted GB"] / found["peak GB"] <= 1.1:
                broken.append(f"{r['case']}: memory is not within 10 % of the prediction")
        if r["case"][0] == "training" and not found["apart after resuming"] < 1e-3:
            broken.append("a resumed training is another one than a whole one")
    for length, values in first.items():
        if not max(values) - min(values) < 2e-2:
            broken.append(f"at {length} tokens the three ways are not one loss")
    return broken


def _about(options) -> str:
    import torch
    import transformers
    import trl

    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    size = "tiny models, whose numbers mean nothing" if options.tiny else "full sizes"
    return (
        f"{name}, {size}, random weights, r = {RANK}, batch {BATCH} x {ACCUMULATION}; torch "
        f"{torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}"
    )


if __name__ == "__main__":
    sys.exit(main())
