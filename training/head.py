"""The head: what turns a model's last hidden state into logits, a score for every word.

What it does: find out what else a model does to its logits, and compute the product with a large
head the quick way on a CPU. What it does not do: compute a loss (losses.py does) or answers
(generation.py does). Importing it does not import torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Iterator

HEAD_ROWS = 1024  # of the head's weight, multiplied at a time on a CPU


@dataclasses.dataclass(frozen=True)
class Head:
    """What stands between a model's last hidden state and its logits:
    `logits = cap(scale * head(hidden))`, with `cap(x) = softcap * tanh(x / softcap)` or nothing."""

    scale: float  # 1 for most; Granite, Cohere, Falcon-H1 and MiniCPM have another
    softcap: float | None  # Gemma 2


_HEADS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # a model and its Head, or None


def head_of(model, input_ids) -> Head | None:
    """What the model does to its logits, measured once on a few tokens.

    Configs are no guide: Granite divides by its `logits_scaling`, HyperCLOVA X multiplies by it,
    and every family has a name of its own.

    Args:
        model: a causal language model, with or without a LoRA adapter.
        input_ids: (batch, length) int64, of which the first eight of one row are read.

    Returns:
        None where the logits are something else than a scaled and capped product with the head.
    """
    base = base_of(model)
    if base not in _HEADS:
        _HEADS[base] = _measured_head(base, input_ids[:1, :8])
    return _HEADS[base]


def _measured_head(base, input_ids) -> Head | None:
    import torch

    seen = []
    watched = base.base_model.register_forward_hook(
        lambda module, inputs, output: seen.append(getattr(output, "last_hidden_state", None))
    )
    try:
        with torch.no_grad(), torch.autocast(input_ids.device.type, enabled=False):
            logits = base(input_ids=input_ids, use_cache=False).logits.float()
            if not seen or seen[0] is None:
                return None
            head = base.get_output_embeddings()
            product = head(seen[0].to(head.weight.dtype)).float()
    finally:
        watched.remove()
    softcap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
    x, y = product.flatten(), logits.flatten()
    if softcap:  # undone, but where the tanh is flat it cannot be
        steep = y.abs() < 0.9 * softcap
        x, y = x[steep], softcap * (y[steep] / softcap).atanh()
    scale = (x @ y / (x @ x)).item()  # least squares
    scale = 1.0 if abs(scale - 1) < 1e-3 else scale
    expected = capped(scale * product, softcap)
    apart = ((expected - logits).norm() / logits.norm()).item()
    return Head(scale, softcap) if apart < (1e-3 if base.dtype == torch.float32 else 3e-2) else None


def capped(logits, softcap: float | None):
    return softcap * (logits / softcap).tanh() if softcap else logits


def base_of(model):
    """The causal language model under any PEFT wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_product(hidden, weight, out):
    """`hidden @ weight.T`, written into `out`; returns `out`.

    MKL, with which PyTorch multiplies float32 on most CPUs, is at its best with matrices that the
    cache holds: from a dozen rows of `hidden` on, Gemma's 262,144 words in one go take 1.2 to 1.5
    times as long (`python -m benchmarks.head`). In bf16, which oneDNN multiplies, blocks win
    nothing.

    Args:
        hidden: (n, d).
        weight: (vocabulary, d), of the same dtype.
        out: (n, vocabulary), of the same dtype.
    """
    import torch

    if not _by_mkl(weight):
        return torch.mm(hidden, weight.T, out=out)
    for start in range(0, len(weight), HEAD_ROWS):
        words = slice(start, start + HEAD_ROWS)
        torch.mm(hidden, weight[words].T, out=out[:, words])
    return out


def _by_mkl(weight) -> bool:
    import torch

    return weight.device.type == "cpu" and weight.dtype == torch.float32


@contextlib.contextmanager
def quick_head(model) -> Iterator[None]:
    """While this lasts, the head computes its logits by `head_product` where that is quicker and
    nobody asks for gradients."""
    import torch

    head = base_of(model).get_output_embeddings()
    if type(head) is not torch.nn.Linear or not _by_mkl(head.weight):
        yield  # such as a head with an adapter of its own
        return
    usual = head.forward

    def forward(hidden):
        if torch.is_grad_enabled():
            return usual(hidden)
        logits = hidden.new_empty(*hidden.shape[:-1], len(head.weight))
        head_product(hidden.flatten(0, -2), head.weight, logits.flatten(0, -2))
        return logits if head.bias is None else logits.add_(head.bias)

    head.forward = forward
    try:
        yield
    finally:
        del head.forward  # the one of its class shows again
