"""From a row to token ids: the chat template, the token that ends an answer, and the label mask.

What it does: render prompts in the model's own template, one way everywhere (training, generation,
evaluation). What it does not do: train or generate. Importing it imports neither torch nor
transformers.

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
TWO_TURNS = {
    "id": "a row with `messages`",
    "messages": [
        {"role": "user", "content": "전세가 뭐예요?"},
        {"role": "assistant", "content": "큰 보증금을 맡기고 월세 없이 사는 계약이에요."},
        {"role": "user", "content": "And monthly rent?"},
        {"role": "assistant", "content": "A smaller deposit, and rent every month."},
    ],
}


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
            f"after a finished answer the template's end of turn has rank {self.rank:,} of "
            f"{self.vocabulary:,}: {kind}, so "
            f"answers end in {self.token}"
        )


def closing(tokenizer) -> tuple[int, str]:
    """`(turn_end, text)`: the token with which the chat template closes a turn, and a conversation
    up to where it should come.

    A template that closes turns with plain text, or not at all, leaves `<eos>`: a newline, say,
    would end every answer early.

    Raises:
        CourseError: the tokenizer has no `<eos>`.
    """
    if tokenizer.eos_token_id is None:
        raise CourseError(
            "The tokenizer has no <eos>, so no answer can end: set tokenizer.eos_token, save it "
            "and use that folder as BASE_MODEL."
        )
    answer = TURN_PROBE[-1]["content"]
    before, _, after = rendered(TURN_PROBE, tokenizer).rpartition(answer)
    ids = tokenizer(after, add_special_tokens=False).input_ids
    marked = bool(ids) and ids[0] in tokenizer.added_tokens_decoder
    return ids[0] if marked else tokenizer.eos_token_id, before + answer


def choose_stop(model, tokenizer) -> Stop:
    """Find out whether the model can end a turn, and choose the token that ends one.

    In a *pretrained* Gemma the embedding of `<end_of_turn>` was never trained, and LoRA leaves the
    tied output head frozen, so the token can hardly be learnt (the same fault: QwenLM/Qwen3#1064,
    axolotl and LLaMA-Factory reports). `<eos>` can: the model has seen it at the end of every
    document. So: the template's token for tuned models, `<eos>` for base models.

    Raises:
        CourseError: the model's logits are not numbers, as with fp16 where activations overflow.
    """
    import torch

    turn_end, text = closing(tokenizer)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(model.device)
    with torch.no_grad():
        logits = model(**ids).logits[0, -1].float()
    if logits.isnan().any():  # no comparison with NaN is true, so every token would have rank 1
        dtype = str(model.dtype).removeprefix("torch.")
        raise CourseError(
            f"This model's logits are not numbers (NaN) in {dtype} on {model.device.type}: fp16 "
            "ends at 65,504, and larger activations overflow. Set another BASE_MODEL, or take a "
            "GPU with bf16, such as an L4."
        )
    rank = int((logits > logits[turn_end]).sum()) + 1
    stop = turn_end if rank <= 100 else tokenizer.eos_token_id
    return Stop(tokenizer.convert_ids_to_tokens(stop), stop, turn_end, rank, logits.numel())


def conversation(row: dict) -> list[dict]:
    """A row as messages: its own `messages` where it has them (several turns), else its
    instruction, input and output (one turn).

    Raises:
        CourseError: a field is missing, empty or not text, the row says both, or the last message
            is not the assistant's.
    """
    name = f"Row {row.get('id', '?')}"
    if "messages" in row:
        if "output" in row or "instruction" in row:
            raise CourseError(
                f"{name} has `messages` and `instruction` or `output` too, so it says twice what "
                "to learn: keep one."
            )
        messages = row["messages"]
        if not isinstance(messages, list) or not all(
            isinstance(message, dict) for message in messages
        ):
            raise CourseError(
                f"{name}: `messages` must be a list of objects with `role` and `content`."
            )
    else:
        for field in ("instruction", "output"):
            _text(row.get(field), f"{name}: `{field}`")
        if not isinstance(row.get("input") or "", str):
            _text(row["input"], f"{name}: `input`")
        messages = [
            {"role": "user", "content": prompts.user_message(row)},
            {"role": "assistant", "content": row["output"]},
        ]
    for message in messages:
        _text(message.get("content"), f"{name}: the content of a message")
    if [message.get("role") for message in messages[-2:]] != ["user", "assistant"]:
        raise CourseError(
            f"{name}: its last two messages must be the user's and the assistant's, because the "
            "last one is what is learnt."
        )
    # Templates trim what the assistant said; an answer that was not trimmed would be learnt in a
    # form that generation never renders
    return [
        m | {"content": m["content"].strip()} if m["role"] == "assistant" else m for m in messages
    ]


def _text(value, what: str) -> None:
    if not isinstance(value, str):
        raise CourseError(
            f"{what} must be text, but it is "
            f"{'missing' if value is None else type(value).__name__}: mend that row."
        )
    if not value.strip():
        raise CourseError(f"{what} is empty: mend or delete that row.")


def question(row: dict) -> str | list[dict]:
    """What is asked before a row's last answer, in a form that `chat_prompt` and `generate`
    take."""
    *asked, _ = conversation(row)
    return asked if len(asked) > 1 else asked[0]["content"]


def rendered(messages: list[dict], tokenizer, **options) -> str:
    """Messages in the model's own template; a CourseError where the template refuses them."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except TemplateError as error:
        raise CourseError(
            f"The chat template of this base model refuses a conversation ({error}): mend that "
            "row or set another BASE_MODEL."
        ) from None


def chat_prompt(asked: str | list[dict], tokenizer) -> str:
    """The user's message, or the messages so far, in the model's own template, up to where the
    answer begins.

    Training, generation, evaluation and the model card all render prompts with this. `<bos>` is
    already in it.
    """
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    return rendered(messages, tokenizer, add_generation_prompt=True)


def encode(row: dict, tokenizer, stop: Stop) -> dict:
    """One training row as token ids and labels; every assistant turn is trained, and nothing else.

    After each answer the model *reads* what the template writes there, as it will in generation,
    and *learns* to say the stop token. For a base model these differ between turns: it reads
    `<end_of_turn>` and learns `<eos>`.

    Returns:
        `{"input_ids": [...], "labels": [...]}` of equal length, `labels` with `IGNORED` wherever
        nothing is learnt.
    """
    ids: list[int] = []
    labels: list[int] = []
    messages, seen = conversation(row), ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        context = chat_prompt(messages[:i], tokenizer)
        if not context.startswith(seen):
            raise CourseError(
                f"Row {row.get('id', '?')}: the chat template rewrites earlier turns, so they "
                "cannot be trained in one row: split it."
            )
        # The template writes <bos> itself, so no special tokens are added: two <bos> is a classic
        # mistake.
        between = tokenizer(context[len(seen) :], add_special_tokens=False).input_ids
        answer = tokenizer(message["content"], add_special_tokens=False).input_ids
        ends_a_turn = [stop.id] if ids else []
        labels += ends_a_turn + [IGNORED] * (len(between) - len(ends_a_turn)) + answer
        ids += between + answer
        seen = context + message["content"]
    return {"input_ids": ids + [stop.id], "labels": labels + [stop.id]}


def encode_all(
    rows: list[dict], tokenizer, stop: Stop, max_length: int
) -> tuple[list[dict], list[str]]:
    """Encode rows and check every one of them.

    Returns:
        `(encoded, too_long)`: rows longer than `max_length` tokens are left out and their ids
        returned, never cut: a cut row has lost its stop token and teaches the model not to stop
        (open-instruct#1876).

    Raises:
        CourseError: no row, no row that is short enough, or a row that is not what `conversation`
            expects.
    """
    encoded, too_long = [], []
    for row in rows:
        example = encode(row, tokenizer, stop)
        if len(example["input_ids"]) > max_length:
            too_long.append(row["id"])
            continue
        if (
            example["labels"][-1] != stop.id
            or example["input_ids"].count(tokenizer.bos_token_id) > 1
        ):
            raise CourseError(
                f"Row {row['id']} has two <bos> or no stop token: its chat template is not one "
                "this course knows."
            )
        encoded.append(example)
    if not rows:
        raise CourseError(
            "The data set is empty, so there is nothing to encode: run preprocess.ipynb or set "
            "TRAIN_ON to 'shipped'."
        )
    if not encoded:
        raise CourseError(
            f"No row is left of {len(rows)}: every one is longer than {max_length} tokens, so "
            "raise MAX_LENGTH."
        )
    return encoded, too_long


def _width(piece: str) -> float:
    """Of a token with its frame, in Latin characters; an East Asian one is about as wide as two."""
    return 0.7 + sum(1.9 if ord(character) > 0x1100 else 1 for character in piece)


def mask_figure(example: dict, tokenizer, title: str, width: int = 80):
    """One encoded row as coloured tokens, from its ids and labels: grey is context, blue is what
    the model learns to say.

    Args:
        example: from `encode`.
        width: characters a line.
    """
    import matplotlib.pyplot as plt

    shown = [
        i if label == IGNORED else label
        for i, label in zip(example["input_ids"], example["labels"], strict=True)
    ]
    pieces = [tokenizer.decode([i]).replace("\n", "⏎") for i in shown]
    widths = [_width(piece) for piece in pieces]
    placed, x, y = [], 0.0, 0
    for piece, size, label in zip(pieces, widths, example["labels"], strict=True):
        if x + size > width:
            x, y = 0.0, y + 1
        placed.append((x, y, piece, size, label != IGNORED))
        x += size
    figure, axes = plt.subplots(figsize=(8.5, 0.3 * (y + 1) + 0.45))
    for x, line, piece, size, trained in placed:
        box = plt.Rectangle(
            (x, line + 0.08), size - 0.15, 0.84, color="#3b7dd8" if trained else "#e3e6ea", lw=0
        )
        axes.add_patch(box)
        axes.text(
            x + size / 2,
            line + 0.52,
            piece,
            ha="center",
            va="center",
            fontsize=8,
            color="white" if trained else "#444444",
        )
    axes.set(xlim=(0, width), ylim=(y + 1, 0), title=title)
    axes.axis("off")
    figure.tight_layout()
    return figure
