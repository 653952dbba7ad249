"""The training loss: cross entropy over trained positions only, beside the two other ways to
compute the same number.

What it does: the loss of train.ipynb and of held-out rows, without the logits of masked positions,
and a measurement of three ways on the reader's own machine. What it does not do: choose what is
masked (chat.py does) or train (sft.py does). Importing it does not import torch.

Sources: the chunked head follows the idea of Cut Your Losses (arXiv 2411.09009) and Liger Kernel
(arXiv 2410.10989) in plain PyTorch.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Sequence

import utils
from training.chat import IGNORED
from training.head import base_of, capped, head_of, head_product
from training.machine import peak_memory

HEAD_CHUNK = 256  # trained positions whose logits `answer_loss` holds at once


@functools.cache
def _frozen_head():
    """The autograd function, made once, so that importing this module does not import torch."""
    import torch

    class FrozenHead(torch.autograd.Function):
        """Cross entropy of `hidden @ weight.T` at each position, its gradient computed on the way,
        a chunk of positions at a time.

        The head is frozen, so the only gradient anybody will ask for is that of `hidden`, (n, d):
        small. It is finished while a chunk's logits exist, and they are never kept for the backward
        pass.
        """

        @staticmethod
        def forward(ctx, hidden, weight, bias, targets, softcap, chunk):
            losses = hidden.new_empty(len(hidden), dtype=torch.float32)
            gradient = torch.empty_like(hidden)
            # Made once: fresh memory for every chunk's logits cost a CPU a third of the head's
            # time, in page faults
            made = hidden.new_empty(min(chunk, len(hidden)), len(weight), dtype=weight.dtype)
            exact = (
                made
                if made.dtype == torch.float32
                else made.new_empty(made.shape, dtype=torch.float32)
            )
            for start in range(0, len(hidden), chunk):
                rows, target = slice(start, start + chunk), targets[start : start + chunk, None]
                # (chunk, vocabulary)
                product = head_product(hidden[rows].to(weight.dtype), weight, made[: len(target)])
                if bias is not None:
                    product += bias
                logits = exact[: len(target)]
                logits.copy_(product)  # nothing where both are the same memory
                if softcap:
                    logits.div_(softcap).tanh_().mul_(softcap)
                slope = 1 - (logits / softcap) ** 2 if softcap and ctx.needs_input_grad[0] else None
                chosen, largest = logits.gather(-1, target), logits.amax(-1, keepdim=True)
                sums = logits.sub_(largest).exp_().sum(-1, keepdim=True)
                losses[rows] = (sums.log() + largest - chosen)[:, 0]
                if not ctx.needs_input_grad[0]:
                    continue
                error = logits.div_(sums)  # softmax, in the memory of the logits
                # Minus the one-hot target
                error.scatter_add_(-1, target, torch.full_like(sums, -1.0))
                gradient[rows] = (error if slope is None else error.mul_(slope)).to(
                    weight.dtype
                ) @ weight
            ctx.save_for_backward(gradient)
            return losses

        @staticmethod
        def backward(ctx, upstream):
            (gradient,) = ctx.saved_tensors
            return gradient * upstream[:, None], None, None, None, None, None

    return FrozenHead.apply


def answer_loss(model, input_ids, labels, attention_mask=None, chunk: int = HEAD_CHUNK, **kwargs):
    """Cross entropy summed over the trained positions only, in nats, and their number:
    `position_losses`, added up.

    Returns:
        `(loss, tokens)`, two scalars: the sum in float32, and how many positions it is over.
    """
    losses, trained = position_losses(model, input_ids, labels, attention_mask, chunk, **kwargs)
    return losses.sum(), trained.sum()


def position_losses(
    model, input_ids, labels, attention_mask=None, chunk: int = HEAD_CHUNK, **kwargs
):
    """Cross entropy of every trained position, in nats.

    The logits of Gemma's 262,144-word vocabulary are most of the work and of the memory; here they
    exist only for positions whose next token is trained, usually less than half, and only for
    `chunk` of them at a time. The value and the gradients of the adapter are those of the full
    computation (see tests/training/test_losses.py). The head must be frozen, as it is under LoRA,
    for its gradient is not computed; a trained head takes PyTorch's ordinary path, for all trained
    positions at once, and a model whose logits are more than scaled and capped (see `head_of`) the
    way of `full_logits_loss`. In bf16 or fp32 (fp16 underflows).

    Args:
        model: a causal language model, with or without a LoRA adapter.
        input_ids, labels: (batch, length) int64; `labels` is `IGNORED` where nothing is trained.
        kwargs: what else the collator gives the model (`position_ids` and sequence lengths where
            rows are packed).

    Returns:
        `(losses, trained)`: (n,) float32, row by row, and (batch, length) bool, true at the n
        positions whose next token is trained.
    """
    import torch
    from torch.nn import functional as F

    base, of = base_of(model), head_of(model, input_ids)
    if of is None:
        return _full_losses(model, input_ids, labels, attention_mask=attention_mask, **kwargs)
    hidden = base.base_model(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **kwargs
    ).last_hidden_state
    targets = _next_tokens(labels)
    trained = targets != IGNORED
    hidden, targets, head = hidden[trained], targets[trained], base.get_output_embeddings()
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in head.parameters()):
        logits = capped(of.scale * head(hidden).float(), of.softcap)
        return F.cross_entropy(logits, targets, reduction="none"), trained
    bias = getattr(head, "bias", None)
    if of.scale != 1:  # the scale of the product is one of the hidden state too
        hidden, bias = of.scale * hidden, None if bias is None else of.scale * bias
    return _frozen_head()(hidden, head.weight, bias, targets, of.softcap, chunk), trained


def _next_tokens(labels):
    """At each position the label of the next one: (batch, length), the last column IGNORED."""
    from torch.nn import functional as F

    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


def full_logits_loss(model, input_ids, labels, **kwargs):
    """The textbook's way: the logits of every position, masked ones too. `(loss, tokens)` as
    `answer_loss`."""
    losses, trained = _full_losses(model, input_ids, labels, **kwargs)
    return losses.sum(), trained.sum()


def _full_losses(model, input_ids, labels, **kwargs):
    from torch.nn import functional as F

    # (batch, length, vocabulary)
    logits = model(input_ids=input_ids, use_cache=False, **kwargs).logits.float()
    # The labels are shifted, because a shifted view of the logits would be copied
    targets = _next_tokens(labels)
    losses = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    trained = targets != IGNORED
    return losses[trained.flatten()], trained


def trl_loss(model, input_ids, labels, **kwargs):
    """TRL's `nll`: a fused head that tiles positions and vocabulary. `(loss, tokens)` as
    `answer_loss`.

    On a GPU it skips masked positions; on a CPU it scores them too (trl 1.16). It also computes
    entropy and accuracy, for its log.
    """
    from trl.trainer.utils import add_fused_lm_head

    base = base_of(model)
    before = vars(base).get("forward")
    add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))  # what SFTTrainer asks for
    try:
        output = model(input_ids=input_ids, labels=labels, fused_lm_head=True, **kwargs)
    finally:
        if before is None:
            del base.forward
        else:
            base.forward = before
    return -output.log_probs.sum(), output.label_mask.sum()


TRL = "TRL's fused head"
OURS = "trained positions only"
WAYS = {"full logits": full_logits_loss, TRL: trl_loss, OURS: answer_loss}


def compare(model, batch: dict, repeats: int = 2) -> list[dict]:
    """The same loss three ways, forward and backward, measured here and now.

    Args:
        model: with its adapter on; its gradients are cleared.
        batch: `input_ids`, `labels` and whatever else the collator made.
        repeats: how often each way is measured, in turns, so that a busy machine slows all of them;
            the median counts.

    Returns:
        Rows of name, loss (nats per trained token), tokens_per_second (all tokens) and peak_gb
        (this process's highest memory, GB).
    """
    import torch

    mask = batch.get("attention_mask")
    tokens = batch["input_ids"].numel() if mask is None else int(mask.sum())
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    peaks = dict.fromkeys(WAYS, 0.0)
    values = {}
    # As the trainer computes
    mixed = torch.autocast(model.device.type, model.dtype, enabled=model.dtype != torch.float32)
    model.train()
    for _ in range(repeats):
        for way, loss_of in WAYS.items():
            model.zero_grad(set_to_none=True)
            with peak_memory() as peak:
                started = time.perf_counter()
                with mixed:
                    loss, count = loss_of(model, **batch)
                (loss / count).backward()
                values[way] = (loss / count).item()  # on a GPU this waits for the work
                seconds[way].append(time.perf_counter() - started)
            peaks[way] = max(peak.gb, peaks[way])
            del loss
    model.zero_grad(set_to_none=True)
    return [
        {
            "name": way,
            "loss": values[way],
            "tokens_per_second": tokens / statistics.median(seconds[way]),
            "peak_gb": peaks[way],
        }
        for way in WAYS
    ]


# How far two ways to the same loss may lie apart, in nats per token
TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 2e-2}


def disagreement(model, row: dict, way: str) -> str:
    """Nothing if one row's loss by `way` is that of the model's own logits, else a sentence.

    Args:
        row: from `chat.encode`.
        way: a key of `WAYS`.
    """
    import torch

    batch = padded([row], 0, model.device)
    values = []
    with torch.no_grad():
        for loss_of in (full_logits_loss, WAYS[way]):
            loss, count = loss_of(model, **batch)
            values.append((loss / count).item())
    dtype = str(base_of(model).dtype).removeprefix("torch.")
    apart = abs(values[0] - values[1])
    if apart <= TOLERANCE[dtype]:  # False for NaN
        return ""
    return (
        f"By {way} a row's loss is {values[1]:.4f}, by the model's own logits {values[0]:.4f} nats "
        "a token: this model does something to its logits that is not known here, so it is trained "
        "on its own logits, which takes more memory."
    )


def keeps_rows_apart(model, rows: list[dict]) -> bool:
    """True if rows laid end to end are to this model what they are alone.

    Attention can be kept within each row; a convolution (LFM2) or a recurrent state (Mamba, linear
    attention) mostly runs on into the next one. The model is asked: two rows, packed and padded.

    Args:
        rows: two or more from `chat.encode`; short ones do.
    """
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    shortest = sorted(rows, key=lambda example: len(example["input_ids"]))[:2]
    two = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in shortest]
    packed = dict(DataCollatorForLanguageModeling(0, padding_free=True)(two))
    packed = {
        name: value.to(model.device) if torch.is_tensor(value) else value
        for name, value in packed.items()
    }
    with torch.no_grad():
        alone, count = answer_loss(model.eval(), **padded(two, 0, model.device))
        try:
            together, _ = answer_loss(model, **packed)
        except (RuntimeError, TypeError, ValueError):  # such as transformers' own refusal
            return False
    dtype = str(base_of(model).dtype).removeprefix("torch.")
    return abs(alone - together).item() / count.item() <= TOLERANCE[dtype]


def verdict(values: dict[str, float], dtype: str) -> str:
    """One sentence on the losses of `compare`: whether the ways agree, and what follows.

    Args:
        values: nats per token of each way.
        dtype: of the model, as in `machine.Device`.
    """
    right = values["full logits"]
    wrong = [way for way in values if not abs(values[way] - right) <= TOLERANCE[dtype]]
    if not wrong:
        return f"The {len(values)} ways agree to within {TOLERANCE[dtype]:g} nats a token."
    return (
        f"By {' and '.join(wrong)} the loss is another one than that of the model's own logits, "
        "so this model is not trained that way."
    )


def held_out_loss(model, encoded: list[dict], pad: int, batch_size: int = 8) -> float:
    """Mean cross entropy of the held-out answers, in nats per trained token."""
    return mean_loss(row_losses(model, encoded, pad, batch_size))


def row_losses(
    model, encoded: list[dict], pad: int, batch_size: int = 8
) -> list[tuple[float, int]]:
    """Of each row `(loss, tokens)`: the sum over its trained tokens in nats, and their number."""
    import torch

    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]))
    found: list[tuple[float, int]] = [(0.0, 0)] * len(encoded)
    with torch.inference_mode(), utils.progress(len(encoded), "held-out loss") as bar:
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = padded([encoded[i] for i in places], pad, model.device)
            losses, trained = position_losses(model.eval(), **batch)
            counts = trained.sum(1).tolist()
            for i, own in zip(places, losses.split(counts), strict=True):
                found[i] = own.sum().item(), len(own)
            bar.update(len(places))
    return found


def mean_loss(rows: Sequence[tuple[float, int]]) -> float:
    """The mean over all tokens of some rows (from `row_losses`), in nats per token."""
    return sum(loss for loss, _ in rows) / sum(tokens for _, tokens in rows)


def padded(batch: list[dict], pad: int, device) -> dict:
    """Encoded rows as int64 tensors of one shape, (rows, longest), filled up on the right:
    `input_ids` with `pad`, `labels` with IGNORED, `attention_mask` with 0."""
    import torch

    longest = max(len(example["input_ids"]) for example in batch)
    columns: dict[str, list] = {"input_ids": [], "labels": [], "attention_mask": []}
    for example in batch:
        length = len(example["input_ids"])
        missing = longest - length
        columns["input_ids"].append(example["input_ids"] + [pad] * missing)
        columns["labels"].append(example["labels"] + [IGNORED] * missing)
        columns["attention_mask"].append([1] * length + [0] * missing)
    return {name: torch.tensor(rows, device=device) for name, rows in columns.items()}
