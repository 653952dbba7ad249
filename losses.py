"""The loss over trained positions only, in training and on held-out rows.

What it does: cross entropy without the logits of masked positions. What it does not do: choose what is masked (chat.py does).
Importing it does not import torch.
"""

from __future__ import annotations

from chat import IGNORED


def answer_loss(model, input_ids, labels, attention_mask=None, **kwargs):
    """Cross entropy summed over the trained positions only, in nats, and their number.

    The logits of Gemma's 262,144-word vocabulary are most of the work; here they are computed only for the positions whose
    next token is trained, usually less than half. The value is that of the full computation (see tests/test_sft.py).

    Args:
        model: a causal language model, with or without a LoRA adapter.
        input_ids, labels: (batch, length) int64; `labels` is `IGNORED` where nothing is trained.
    """
    from torch.nn import functional as F

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = base.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **kwargs).last_hidden_state
    targets = labels[:, 1:]
    trained = targets != IGNORED
    logits = base.get_output_embeddings()(hidden[:, :-1][trained]).float()
    if cap := getattr(base.config.get_text_config(), "final_logit_softcapping", None):  # Gemma 2
        logits = cap * (logits / cap).tanh()
    return F.cross_entropy(logits, targets[trained], reduction="sum"), trained.sum()


def held_out_loss(model, encoded: list[dict], pad: int, batch_size: int = 8) -> float:
    """Mean cross entropy of the held-out answers, in nats per trained token."""
    import torch

    total, tokens = 0.0, 0
    with torch.inference_mode():
        for batch in _batches(encoded, batch_size):
            loss, count = answer_loss(model.eval(), **_pad(batch, pad, model.device))
            total, tokens = total + loss.item(), tokens + count.item()
    return total / tokens


def _batches(encoded: list[dict], size: int):
    ordered = sorted(encoded, key=lambda example: len(example["input_ids"]))
    yield from (ordered[i : i + size] for i in range(0, len(ordered), size))


def _pad(batch: list[dict], pad: int, device) -> dict:
    import torch

    longest = max(len(example["input_ids"]) for example in batch)
    fill = lambda key, value: torch.tensor([e[key] + [value] * (longest - len(e[key])) for e in batch], device=device)  # noqa: E731
    ones = [{"mask": [1] * len(example["input_ids"])} for example in batch]
    mask = torch.tensor([o["mask"] + [0] * (longest - len(o["mask"])) for o in ones], device=device)
    return {"input_ids": fill("input_ids", pad), "labels": fill("labels", IGNORED), "attention_mask": mask}
