"""The solutions of the exercises, really executed: each test asserts what the exercise teaches."""

import asyncio

import pytest

import llm
import rehearsal
import self_instruct
import sft
import tiny_models
import utils
from solutions import evaluation, preprocess, train

SEEN = sft.Device("cpu", "float32", "sdpa", "")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny Gemma that has been *pretrained*, for a few seconds, on answers that end in <eos>; it has never seen a turn token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_models.build(tmp_path_factory.mktemp("pretrained"), "gemma")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    texts = [row["output"] + tokenizer.eos_token for row in utils.read_jsonl(utils.DATA / "instruction.jsonl") if len(row["output"]) < 60]
    optimizer, generator = torch.optim.AdamW(model.parameters(), lr=1e-2), torch.Generator().manual_seed(0)
    for _ in range(120):
        chosen = [texts[i] for i in torch.randint(len(texts), (16,), generator=generator)]
        batch = tokenizer(chosen, return_tensors="pt", padding=True, truncation=True, max_length=64)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, sft.IGNORED)
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return str(folder)
