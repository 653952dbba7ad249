"""Does a model compute in 16 bits what it computes in 32?

What it does: ask the loaded model a few real sentences. What it does not do: choose a precision
(machine.py knows the hardware) or load (student.py falls back to float32). Importing it does not
import torch.
"""

from __future__ import annotations

from training import chat

# How far, in nats, the token chosen in 16 bits may lie behind the best one in 32: two tokens that
# are as likely as each other may change places
TIE = 0.1


def trouble(model, tokenizer) -> str:
    """Nothing, or why this model should not compute in the precision that it was loaded in.

    bfloat16 reaches as far as float32, and is what such models are made in: there the scores must
    be numbers. float16 ends at 65,504, beyond which Gemma 3's activations go: there the next token
    must also be that of float32, for which the weights are widened for a moment, where the memory
    allows it, and narrowed again without loss.

    Args:
        model: in eval mode, as it was loaded; in 4 bits only the first question is asked.
    """
    import torch

    asked = [
        chat.prompt_ids(messages, tokenizer)
        for messages in (chat.TURN_PROBE[:1], chat.TWO_TURNS["messages"][:1])
    ]
    narrow = [_next_scores(model, ids) for ids in asked]
    dtype = str(model.dtype).removeprefix("torch.")
    if not all(scores.isfinite().all() for scores in narrow):
        return f"in {dtype} this model's scores are not numbers"
    if model.dtype != torch.float16 or getattr(model, "is_quantized", False):
        return ""
    before = [parameter.dtype for parameter in model.parameters()]
    try:
        for parameter in model.parameters():
            parameter.data = parameter.data.float()
        wide = [_next_scores(model, ids) for ids in asked]
    except torch.OutOfMemoryError:
        return ""
    finally:  # the parameters alone: rotary frequencies, a buffer, were never narrow
        for parameter, dtype in zip(model.parameters(), before, strict=True):
            parameter.data = parameter.data.to(dtype)
    behind = [b.max() - b[a.argmax()] for a, b in zip(narrow, wide, strict=True)]
    if max(behind) > TIE:
        return f"in {dtype} this model chooses other tokens than in float32"
    return ""


def _next_scores(model, ids: list[int]):
    """The scores of the token after `ids`: (vocabulary,), float32, on the CPU."""
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids], device=model.device)).logits
    return logits[0, -1].float().cpu()
