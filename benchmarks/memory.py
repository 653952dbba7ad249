"""Where the memory of a training on a CPU goes: the packaged student step by step, beside
training/preflight.py's prediction.

Run: .venv/bin/python -m benchmarks.memory [--steps 24] (Linux; two to three minutes on two cores)
Steps on short rows of different lengths, then one on the four longest rows, the held-out loss and
sixteen answers. For each: the highest and the resident memory of this process, and of the C
library's heap what is in use (in bf16 it grows with every new length, by oneDNN's compiled kernels)
and what is free but kept. At the end the free heap is given back, to show how much that was. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import os
import random

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
    "OMP_WAIT_POLICY": "PASSIVE",
}

import settings
import utils
from training import chat, generation, losses, machine, preflight, sft, student

libc = ctypes.CDLL("libc.so.6")
# The fields of glibc's struct mallinfo2
HEAP = (
    "arena",
    "ordblks",
    "smblks",
    "hblks",
    "hblkhd",
    "usmblks",
    "fsmblks",
    "uordblks",
    "fordblks",
    "keepcost",
)


class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in HEAP]


libc.mallinfo2.restype = Heap


def main() -> None:
    import psutil
    import torch
    from peft import LoraConfig, get_peft_model
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=24)
    options = parser.parse_args()
    device = machine.choose_device()
    model, tokenizer = student.load_base(settings.PACKAGED_STUDENT, device)
    stop = chat.choose_stop(model, tokenizer)
    train, held_out = sft.split(utils.read_jsonl(utils.DATA / "instruction.jsonl"), 48, seed=42)
    rows, asked = (
        sorted(chat.encode_all(part, tokenizer, stop, 512)[0], key=size)
        for part in (train[:300], held_out)
    )
    model = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    collate = DataCollatorForLanguageModeling(tokenizer.pad_token_id, padding_free=True)
    peaks = []

    def step(chosen: list[dict]) -> None:
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=device.dtype == "bfloat16"):
            loss, count = losses.answer_loss(model, **collate(chosen))
        (loss / count).backward()
        model.zero_grad(set_to_none=True)

    def steps(numbers: range) -> None:
        for number in numbers:
            step(short[4 * number % 96 :][:4])

    def show(name: str, work) -> None:
        with machine.peak_memory() as peak:
            work()
        heap, resident = libc.mallinfo2(), psutil.Process().memory_info().rss
        print(
            f"| {name} | {peak.gb:.2f} | {resident / 1e9:.2f} | {heap.uordblks / 1e9:.2f} | "
            f"{heap.fordblks / 1e9:.2f} |",
            flush=True,
        )
        peaks.append(peak.gb)

    print(
        "| after | peak GB | resident GB | heap in use GB | heap free GB |\n|---|---|---|---|---|"
    )
    short, longest = rows[:96], rows[-4:]
    random.Random(0).shuffle(short)
    show("loading", lambda: None)
    for first in range(0, options.steps, 6):
        numbers = range(first, min(first + 6, options.steps))
        show(f"step {numbers[-1] + 1}", functools.partial(steps, numbers))
    show(f"a step of {sum(map(size, longest))} tokens", lambda: step(longest))
    show(
        "the held-out loss",
        lambda: losses.held_out_loss(model, asked[-16:-8], tokenizer.pad_token_id),
    )
    show(
        "sixteen answers",
        lambda: generation.generate(
            model, tokenizer, [chat.question(row) for row in held_out[:16]], stop, 12
        ),
    )
    show("giving free heap back", lambda: libc.malloc_trim(0))
    trained = sum(label != losses.IGNORED for row in rows for label in row["labels"]) / sum(
        map(size, rows)
    )
    answers = 28, size(rows[-1]) + 96
    predicted = preflight.predict(
        model.config, device, 1, sum(map(size, longest)), trained=trained, answers=answers, gpu="L4"
    )
    print(f"\npeak {max(peaks):.2f} GB, predicted {predicted.gb:.2f} ({device})")


def size(row: dict) -> int:
    return len(row["input_ids"])


if __name__ == "__main__":
    main()
