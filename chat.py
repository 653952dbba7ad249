"""From a row to token ids: the chat template, the token that ends an answer, and the label mask.

What it does: render prompts in the model's own template, one way everywhere (training, generation, evaluation). What it does not do:
train or generate. Importing it imports neither torch nor transformers.

Sources: Gemma (arXiv 2403.08295), TRL's completion-only loss (huggingface/trl).
"""

from __future__ import annotations

import dataclasses

import prompts
from utils import CourseError

IGNORED = -100  # the label that PyTorch's cross entropy skips
TURN_PROBE = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
]


@dataclasses.dataclass
class Stop:
    """The token that ends an answer, and why it was chosen."""

    token: str
    id: int
    turn_end: int  # the token with which the chat template closes a turn
    rank: int  # of turn_end where a finished answer should stop: 1 is the model's first choice
    vocabulary: int

    @property
    def tuned(self) -> bool:
        """True if the model already knows how to end a turn, that is, it is instruction-tuned."""
        return self.rank <= 100

    @property
    def ids(self) -> list[int]:
        """All tokens at which generation stops."""
        return sorted({self.id, self.turn_end})

    def __str__(self) -> str:
        kind = "instruction-tuned" if self.tuned else "a base model"
        return (
            f"after a finished answer the template's end of turn has rank {self.rank:,} of {self.vocabulary:,}: {kind}, so "
            f"answers end in {self.token}"
        )


def choose_stop(model, tokenizer) -> Stop:
    """Find out whether the model can end a turn, and choose the token that ends one.

    In a *pretrained* Gemma the embedding of `<end_of_turn>` was never trained, and LoRA leaves the tied output head frozen, so
    the token can hardly be learnt (the same fault: QwenLM/Qwen3#1064, axolotl and LLaMA-Factory reports). `<eos>` can: the model
    has seen it at the end of every document. So: the template's token for tuned models, `<eos>` for base models.
    """
    import torch

    rendered = tokenizer.apply_chat_template(TURN_PROBE, tokenize=False)
    answer = TURN_PROBE[-1]["content"]
    before, after = rendered[: rendered.rindex(answer) + len(answer)], rendered[rendered.rindex(answer) + len(answer) :]
    turn_end = tokenizer(after, add_special_tokens=False).input_ids[0]
    ids = tokenizer(before, add_special_tokens=False, return_tensors="pt").to(model.device)
    with torch.no_grad():
        logits = model(**ids).logits[0, -1].float()
    rank = int((logits > logits[turn_end]).sum()) + 1
    stop = turn_end if rank <= 100 else tokenizer.eos_token_id
    return Stop(tokenizer.convert_ids_to_tokens(stop), stop, turn_end, rank, logits.numel())


def chat_prompt(text: str, tokenizer) -> str:
    """The user's message in the model's own chat template, up to where the answer begins. `<bos>` is already in it."""
    return tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)


def encode(row: dict, tokenizer, stop: Stop) -> dict:
    """One training row as token ids and labels.

    Returns:
        `{"input_ids": [...], "labels": [...]}` of equal length. The prompt is labelled `IGNORED`; the answer and the stop token
        that ends it are what the model learns.
    """
    # The template writes <bos> itself, so no special tokens are added: two <bos> is a classic mistake.
    prompt = tokenizer(chat_prompt(prompts.user_message(row), tokenizer), add_special_tokens=False).input_ids
    answer = tokenizer(row["output"], add_special_tokens=False).input_ids + [stop.id]
    return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}


def encode_all(rows: list[dict], tokenizer, stop: Stop, max_length: int) -> tuple[list[dict], list[str]]:
    """Encode rows and check every one of them.

    Returns:
        `(encoded, too_long)`: rows longer than `max_length` tokens are left out and their ids returned, never cut: a cut row has
        lost its stop token and teaches the model not to stop (open-instruct#1876).

    Raises:
        CourseError: no row is left.
    """
    encoded, too_long = [], []
    for row in rows:
        example = encode(row, tokenizer, stop)
        if len(example["input_ids"]) > max_length:
            too_long.append(row["id"])
            continue
        if example["labels"][-1] != stop.id or example["input_ids"].count(tokenizer.bos_token_id) > 1:
            raise CourseError(f"Row {row['id']} has two <bos> or no stop token: its chat template is not one this course knows.")
        encoded.append(example)
    if not encoded:
        raise CourseError(f"No row is left of {len(rows)}: the data set is empty or every row exceeds {max_length} tokens.")
    return encoded, too_long


def mask_figure(example: dict, tokenizer, title: str, width: int = 80):
    """One encoded row as coloured tokens, from its ids and labels: grey is context, blue is what the model learns to say.

    Args:
        example: from `encode`.
        width: characters a line.
    """
    import matplotlib.pyplot as plt

    pieces = [tokenizer.decode([i]).replace("\n", "⏎") for i in example["input_ids"]]
    # An East Asian character is about as wide as two Latin ones
    widths = [sum(1.9 if ord(character) > 0x1100 else 1 for character in piece) + 0.7 for piece in pieces]
    placed, x, y = [], 0.0, 0
    for piece, size, label in zip(pieces, widths, example["labels"], strict=True):
        if x + size > width:
            x, y = 0.0, y + 1
        placed.append((x, y, piece, size, label != IGNORED))
        x += size
    figure, axes = plt.subplots(figsize=(8.5, 0.3 * (y + 1) + 0.45))
    for x, line, piece, size, trained in placed:
        box = plt.Rectangle((x, line + 0.08), size - 0.15, 0.84, color="#3b7dd8" if trained else "#e3e6ea", lw=0)
        axes.add_patch(box)
        axes.text(x + size / 2, line + 0.52, piece, ha="center", va="center", fontsize=8, color="white" if trained else "#444444")
    axes.set(xlim=(0, width), ylim=(y + 1, 0), title=title)
    axes.axis("off")
    figure.tight_layout()
    return figure
