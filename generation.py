"""Greedy answers from a model, batched, in the chat template that it was trained with.

What it does: answer user messages and say whether each answer ended by itself. What it does not do: load a model or judge an answer.
Importing it does not import torch.
"""

from __future__ import annotations

import dataclasses

import utils
from chat import Stop, chat_prompt


@dataclasses.dataclass
class Answer:
    text: str
    stopped: bool  # ended with a stop token, not cut at max_new_tokens
    tokens: int


def generate(model, tokenizer, texts: list[str], stop: Stop, max_new_tokens: int = 128, batch_size: int = 12) -> list[Answer]:
    """Greedy answers to user messages, batched by length, in the order asked.

    The prompt is rendered as in training, and generation stops at the same token that training taught (or at the template's).
    """
    import torch

    rendered = [chat_prompt(text, tokenizer) for text in texts]
    order = sorted(range(len(texts)), key=lambda i: len(rendered[i]))
    answers: list[Answer | None] = [None] * len(texts)
    with torch.inference_mode(), utils.progress(len(texts), "answers") as bar:
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            inputs = tokenizer(
                [rendered[i] for i in chunk], return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
            ).to(model.device)
            output = model.eval().generate(
                **inputs, max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=stop.ids, pad_token_id=tokenizer.pad_token_id
            )
            for i, ids in zip(chunk, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                ends = [position for position, token in enumerate(ids) if token in stop.ids]
                length = ends[0] if ends else len(ids)
                text = tokenizer.decode(ids[:length], skip_special_tokens=True).strip()
                answers[i] = Answer(text, bool(ends), length)
            bar.update(len(chunk))
    return answers
