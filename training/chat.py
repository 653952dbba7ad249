"""From a row to token ids: the chat template, the token that ends an answer, and the label mask.

What it does: ask a template once what it does (`probe`), and render prompts in it, one way
everywhere (training, generation, evaluation). What it does not do: train or generate. Importing it
imports neither torch nor transformers.

Sources: Gemma (arXiv 2403.08295), TRL's completion-only loss (huggingface/trl).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import re
import weakref
from typing import Any

import prompts
import utils
from utils import CourseError

IGNORED = -100  # the label that PyTorch's cross entropy skips
# How templates are asked for an answer without a thought: the variable and its value in Jinja
SWITCHES = {
    "enable_thinking": "false",  # Qwen 3, SmolLM 3, GLM 4.5, Nemotron 3
    "thinking": "false",  # DeepSeek 3.1, Granite 3.3
    "reasoning": "false",  # Command A
    "thinking_budget": "0",  # Seed-OSS
}
THOUGHTS = {  # what begins a thought, and what ends it
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "[THINK]": "[/THINK]",
    "<seed:think>": "</seed:think>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|think_start|>": "<|think_end|>",
    "<|channel>thought": "<channel|>",
    "Here are my reasoning steps:": "[BEGIN FINAL RESPONSE]",  # Apriel
}
TURN_PROBE = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
]
TWO_TURNS: dict[str, Any] = {
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
            f"{self.vocabulary:,}: {kind}, so answers end in {self.token}"
        )


UNCHANGED = "The template is used as it is."


@dataclasses.dataclass
class Template:
    """What a tokenizer's chat template does, asked once by `probe`. Print it."""

    text: str  # the template, amended as `notes` say
    notes: list[str]  # what was amended, and why: whole sentences
    turn_end: int  # the token that closes a turn; `<eos>` where plain text does
    finished: str  # a conversation up to where a turn should end
    system: bool  # it has a system role; else a system message goes into the first user turn
    leading_bos: int  # how often `<bos>` stands at the very start
    begins: bool  # a prompt's tokens begin the finished row
    turns: str  # "kept", "rewritten" or "refused": what becomes of earlier turns in later ones
    special: list[str]  # the text of all special tokens, which in a message is only text
    special_starts: set[str]  # their first characters

    def __str__(self) -> str:
        sentences = list(self.notes)
        if not self.system:
            sentences.append(
                "It has no system role, so a system message begins the first user turn."
            )
        if self.turns != "kept":
            sentences.append(
                "It rewrites earlier turns, so of a row with several turns only the last answer is "
                "trained."
                if self.turns == "rewritten"
                else "It refuses a second turn, so rows and prompts may have one turn only."
            )
        return " ".join(sentences) or UNCHANGED


_PROBED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # a tokenizer and its Template
_DATE = [datetime.date(2026, 1, 1)]  # what day it is for templates, if nobody says


def hold_date(day: datetime.date) -> None:
    """What day it is from now on for templates that write today's date (Llama 3.2, Granite 3.3,
    Mistral Small): that of the run (`Settings.date`).

    A date that moves makes another data set every midnight, so that a finished adapter would be
    trained again and the evaluation would ask other prompts than training did.
    """
    _DATE[0] = day


def held_date() -> datetime.date:
    """What `hold_date` said."""
    return _DATE[0]


def probe(tokenizer) -> Template:
    """What the tokenizer's chat template does, found out by rendering short conversations, once.

    Where it would open a thought or write today's date, the *tokenizer's own copy* of the template
    is amended (see `Template.notes`), so that everything that renders with this tokenizer, or with
    the copy that is saved beside an adapter, agrees.

    Raises:
        CourseError: the tokenizer has no `<eos>`, or its template refuses a single turn.
    """
    if tokenizer.eos_token_id is None:
        raise CourseError(
            "The tokenizer has no <eos>, so no answer can end: set tokenizer.eos_token, save it "
            "and use that folder as BASE_MODEL."
        )
    known = _PROBED.get(tokenizer)
    if known is None or known.text != tokenizer.chat_template:
        known = _PROBED[tokenizer] = _probe(tokenizer)
    return known


def _probe(tokenizer) -> Template:
    if isinstance(tokenizer.chat_template, dict):  # Command R has one more for tools
        tokenizer.chat_template = tokenizer.get_chat_template()
    question, answer = (message["content"] for message in TURN_PROBE)
    whole = rendered(TURN_PROBE, tokenizer)
    if question not in whole or answer not in whole:
        raise CourseError(
            "The chat template leaves out what is said, as those of vision models do that want "
            "parts instead of text: set a language model as BASE_MODEL."
        )
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= set(tokenizer.all_special_tokens)
    amended = _fix_date(tokenizer), _end_thought(tokenizer), _begin_answer(tokenizer, special)
    notes = [note for note in amended if note]
    prompt = _encoded(rendered(TURN_PROBE[:1], tokenizer, add_generation_prompt=True), tokenizer)
    row = _encoded(rendered(TURN_PROBE, tokenizer), tokenizer)
    leading = 0
    while prompt[leading : leading + 1] == [tokenizer.bos_token_id]:
        leading += 1
    return Template(
        text=tokenizer.chat_template,
        notes=notes,
        turn_end=_turn_end(tokenizer, special),
        finished=rendered(TURN_PROBE, tokenizer).rpartition(answer)[0] + answer,
        system=_has_system_role(tokenizer),
        leading_bos=leading,
        begins=row[: len(prompt)] == prompt,
        turns=_earlier_turns(tokenizer),
        special=sorted((text for text in special if text.strip()), key=len, reverse=True),
        special_starts={text[0] for text in special if text.strip()},
    )


def _turn_end(tokenizer, special: set[str]) -> int:
    """The special token after a finished answer or, where none is written there, the one that
    begins the next turn (GLM stops at `<|user|>`); `<eos>` where plain text separates turns.

    Special, because Gemma's tokenizer counts a run of newlines among its added tokens, and with
    that as its end every answer would stop at its first blank line.
    """
    after = [rendered(TURN_PROBE, tokenizer).partition(TURN_PROBE[1]["content"])[2].lstrip()]
    with contextlib.suppress(CourseError):  # a second turn may be refused
        two = TWO_TURNS["messages"][:3]
        after.append(rendered(two, tokenizer).partition(two[1]["content"])[2])
    for text in after:
        following = _encoded(text, tokenizer)[:1]
        if following and tokenizer.convert_ids_to_tokens(following[0]) in special:
            return following[0]
    return tokenizer.eos_token_id


def _fix_date(tokenizer) -> str:
    """Tell the template what `hold_date` said; returns what to say of it, or nothing."""
    template = tokenizer.chat_template
    if "strftime_now" not in template or "macro strftime_now" in template:
        return ""
    day = held_date()
    # A macro of the same name hides transformers' function; it fills in any format
    parts = "".join(
        f" | replace({json.dumps('%' + letter)}, {json.dumps(day.strftime('%' + letter))})"
        for letter in ("-d", "-m", *"aAbBdejmyYHIMSp")
    )
    tokenizer.chat_template = (
        f"{{% macro strftime_now(format) %}}{{{{ format{parts} }}}}{{% endmacro %}}\n{template}"
    )
    return f"It writes today's date, which is held at {day} so that nothing changes at midnight."


def _end_thought(tokenizer) -> str:
    """Let the prompt end where an answer begins, not inside a thought or before one.

    First by what the template offers (`SWITCHES`); else by writing, after the prompt, what the
    template itself writes before an answer (gpt-oss names its channel there), or the end of the
    thought that it opened.

    Returns:
        what to say of it, or nothing.
    """
    original = tokenizer.chat_template
    plain = rendered(TURN_PROBE[:1], tokenizer, add_generation_prompt=True)
    for switch, value in SWITCHES.items():
        if not re.search(rf"\b{switch}\b", original):
            continue
        tokenizer.chat_template = f"{{% set {switch} = {value} %}}\n{original}"
        prompt = rendered(TURN_PROBE[:1], tokenizer, add_generation_prompt=True)
        if prompt != plain and not _open_thought(prompt):
            return (
                f"It lets the model think before it answers; with {switch} = {value} it answers "
                "at once, in training, generation and evaluation alike."
            )
    tokenizer.chat_template = original
    thought = _open_thought(plain)
    if thought:
        lead = f"\n{THOUGHTS[thought]}\n\n" if plain.endswith("\n") else THOUGHTS[thought]
    else:
        row = rendered(TURN_PROBE, tokenizer)
        lead = row.removeprefix(plain).partition(TURN_PROBE[-1]["content"])[0]
        if not row.startswith(plain) or not lead.strip():
            return ""
    _end_prompts_in(lead, tokenizer)
    if thought:
        return (
            f"It opens a thought ({thought}) and offers no way to leave it out, so the thought is "
            "closed at once, in training, generation and evaluation alike."
        )
    return f"It writes {lead!r} before an answer but not after a prompt, so prompts get it too."


def _end_prompts_in(text: str, tokenizer) -> None:
    template = tokenizer.chat_template.removesuffix("\n")  # Jinja drops it only at the very end
    said = json.dumps(text, ensure_ascii=False)
    template += f"{{% if add_generation_prompt %}}{{{{ {said} }}}}{{% endif %}}"
    tokenizer.chat_template = template


def _begin_answer(tokenizer, special: set[str]) -> str:
    """Let the prompt end in the tokens with which the template begins an answer, such as Command
    R7B's <|START_RESPONSE|> behind a closed thought; returns what to say of it, or nothing."""
    names = "|".join(map(re.escape, special - set(THOUGHTS) - set(THOUGHTS.values())))
    asked, answer = (message["content"] for message in TURN_PROBE)
    prompt = rendered(TURN_PROBE[:1], tokenizer, add_generation_prompt=True).rpartition(asked)[2]
    before = rendered(TURN_PROBE, tokenizer).rpartition(answer)[0].rpartition(asked)[2]
    begun = re.search(f"(?:{names})*$", before)
    tokens = re.findall(names, begun[0]) if begun else []
    lead = "".join(token for token in tokens if token not in prompt)
    if not lead:
        return ""
    _end_prompts_in(lead, tokenizer)
    return f"It begins an answer with {lead}, so prompts end in it too."


def _open_thought(prompt: str) -> str:
    """What opened the thought that a prompt ends in, or nothing."""
    asked = prompt.rpartition(TURN_PROBE[0]["content"])[2]
    for begin, end in THOUGHTS.items():
        if asked.rfind(begin) > asked.rfind(end):
            return begin
    return ""


def _has_system_role(tokenizer) -> bool:
    """False where the template refuses a system message or leaves it out silently."""
    system = {"role": "system", "content": "Answer as a pirate."}
    try:
        return system["content"] in rendered([system, TURN_PROBE[0]], tokenizer)
    except CourseError:
        return False


def _earlier_turns(tokenizer) -> str:
    """Whether the second answer is asked for behind the first as it was learnt."""
    messages = TWO_TURNS["messages"]
    try:
        first, second = (
            _encoded(rendered(asked, tokenizer, add_generation_prompt=True), tokenizer)
            for asked in (messages[:1], messages[:3])
        )
    except CourseError:
        return "refused"
    learnt = first + _encoded(messages[1]["content"], tokenizer)
    return "kept" if second[: len(learnt)] == learnt else "rewritten"


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

    template = probe(tokenizer)
    turn_end = template.turn_end
    ids = torch.tensor([_encoded(template.finished, tokenizer)], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, -1].float()
    if not torch.isfinite(logits).all():  # compared with NaN every token would have rank 1
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
    roles = [message.get("role") for message in messages]
    if roles[-2:] != ["user", "assistant"]:
        raise CourseError(
            f"{name}: its last two messages must be the user's and the assistant's, because the "
            "last one is what is learnt."
        )
    turns = roles[1:] if roles[0] == "system" else roles
    if turns != ["user", "assistant"] * (len(turns) // 2):
        raise CourseError(
            f"{name}: after at most one system message, user and assistant must take turns, but "
            f"here speak {', '.join(map(str, roles))}: mend that row."
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
    """What is asked before a row's last answer, in a form that `prompt_ids` and `generate` take."""
    *asked, _ = conversation(row)
    return asked if len(asked) > 1 else asked[0]["content"]


def rendered(messages: list[dict], tokenizer, **options) -> str:
    """Messages in the model's own template; a CourseError where the template refuses them."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        raise CourseError(
            f"The chat template of this base model refuses a conversation ({error}): mend that "
            "row or set another BASE_MODEL."
        ) from None


def folded(messages: list[dict], tokenizer) -> list[dict]:
    """Messages as the template can take them: without a system role (Gemma 1) the system message
    begins the first user turn, as Gemma's makers advise."""
    if messages[0]["role"] != "system" or probe(tokenizer).system:
        return messages
    system, first, *others = messages
    return [first | {"content": f"{system['content'].strip()}\n\n{first['content']}"}, *others]


def chat_prompt(asked: str | list[dict], tokenizer) -> str:
    """The user's message, or the messages so far, in the model's own template, up to where the
    answer begins: to be read. `prompt_ids` has its tokens. `<bos>` is already in it."""
    text, hidden = _hidden_prompt(asked, tokenizer)
    return _SIGN.sub(lambda found: hidden[int(found[1])], text)


def prompt_ids(asked: str | list[dict], tokenizer) -> list[int]:
    """The tokens of `chat_prompt`. Training, generation and evaluation all ask with these.

    What a message says is text: a question *about* `<end_of_turn>` ends no turn.
    """
    return _joined(*_hidden_prompt(asked, tokenizer), tokenizer)


def text_ids(text: str, tokenizer) -> list[int]:
    """The tokens of what somebody says, in which the name of a special token is only text."""
    hidden: list[str] = []
    return _joined(_hide(text, hidden, tokenizer), hidden, tokenizer)


def _hidden_prompt(asked: str | list[dict], tokenizer) -> tuple[str, list[str]]:
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    hidden: list[str] = []
    signs = [
        message | {"content": _hide(message["content"], hidden, tokenizer)}
        for message in folded(messages, tokenizer)
    ]
    return rendered(signs, tokenizer, add_generation_prompt=True), hidden


# Unicode's noncharacters are for use inside a program: no text has them
_SIGN = re.compile("\ufdd0([0-9]+)\ufdd1")


def _hide(text: str, hidden: list[str], tokenizer) -> str:
    """`text` with a sign for the name of each special token, which is appended to `hidden`."""
    template = probe(tokenizer)
    if template.special_starts.isdisjoint(text):  # nearly always; Gemma has 6,000 special tokens
        return text
    present = [name for name in template.special if name in text]
    if not present:
        return text

    def sign(found: re.Match) -> str:
        hidden.append(found[0])
        return f"\ufdd0{len(hidden) - 1}\ufdd1"

    return re.sub("|".join(map(re.escape, present)), sign, text)


def _joined(text: str, hidden: list[str], tokenizer) -> list[int]:
    """Token ids of a rendered text, in which each sign stands for a text of `hidden`."""
    ids: list[int] = []
    for i, piece in enumerate(_SIGN.split(text)):
        if i % 2 == 0:
            ids += _encoded(piece, tokenizer)
            continue
        name = hidden[int(piece)]
        plain = tokenizer(name, add_special_tokens=False, split_special_tokens=True).input_ids
        if tokenizer.convert_tokens_to_ids(name) in plain:
            raise CourseError(
                f"A message contains {name}, which this tokenizer can only read as a control "
                "token: reword that message or set another BASE_MODEL."
            )
        ids += plain
    return ids


def _encoded(text: str, tokenizer) -> list[int]:
    # The template writes <bos> itself, so no special tokens are added: two <bos> is a classic
    # mistake
    return tokenizer(text, add_special_tokens=False).input_ids if text else []


def encode(row: dict, tokenizer, stop: Stop) -> dict:
    """One training row as token ids and labels; every assistant turn is trained, and nothing else.

    After each answer the model *reads* what the template writes there, as it will in generation,
    and *learns* to say the stop token. For a base model these differ between turns: it reads
    `<end_of_turn>` and learns `<eos>`.

    A template may rewrite earlier turns (Qwen 3 drops their thoughts, Llama 2 joins them by a
    space). An answer that generation would never show so is not trained: what is left are the
    answers since the last rewriting, at least the last one.

    Returns:
        `{"input_ids": [...], "labels": [...]}` of equal length, `labels` with `IGNORED` wherever
        nothing is learnt.

    Raises:
        CourseError: as `conversation`, or the template refuses the row.
    """
    ids: list[int] = []
    labels: list[int] = []
    messages = conversation(row)
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        try:
            context = prompt_ids(messages[:i], tokenizer)
            answer = text_ids(message["content"], tokenizer)
        except CourseError as error:
            raise CourseError(f"Row {row.get('id', '?')}: {error}") from None
        if context[: len(ids)] != ids:
            ids, labels = [], []
        ends_a_turn = [stop.id] if ids else []
        between = context[len(ids) :]
        labels += ends_a_turn + [IGNORED] * (len(between) - len(ends_a_turn)) + answer
        ids += between + answer
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
        CourseError: no row, no row that is short enough, a row that is not what `conversation`
            expects, or a template that writes `<bos>` twice.
    """
    encoded, too_long = [], []
    if rows and probe(tokenizer).leading_bos > 1:
        raise CourseError(
            f"The chat template begins with {tokenizer.bos_token} twice, which the model has never "
            "seen: take one of them out, save the tokenizer and use that folder as BASE_MODEL."
        )
    for row in rows:
        example = encode(row, tokenizer, stop)
        if len(example["input_ids"]) > max_length:
            too_long.append(row["id"])
            continue
        encoded.append(example)
    if not rows:
        raise CourseError(
            "The data set is empty, so there is nothing to encode: run preprocess.ipynb or set "
            "DATA to 'shipped'."
        )
    if not encoded:
        raise CourseError(
            f"No row is left of {len(rows)}: every one is longer than {max_length} tokens, so "
            "raise ROW_TOKENS."
        )
    return encoded, too_long


LINE = 80  # characters of a line of `mask_figure`


def _width(piece: str) -> float:
    """Of a token with its frame, in Latin characters; an East Asian one is about as wide as two."""
    return 0.7 + sum(1.9 if ord(character) > 0x1100 else 1 for character in piece)


def check_encoded(rows: list[dict], encoded: list[dict], tokenizer, stop: Stop) -> None:
    """That every row teaches its whole last answer and then to stop, and begins with one `<bos>`.

    Args:
        rows: those that `encoded` was made from, in the same order.

    Raises:
        CourseError: names the first row that does not.
    """
    for row, example in zip(rows, encoded, strict=True):
        learnt = [label for label in example["labels"] if label != IGNORED]
        answer = text_ids(conversation(row)[-1]["content"], tokenizer)
        if learnt[-len(answer) - 1 :] != [*answer, stop.id]:
            raise CourseError(
                f"The row {row['id']!r} does not teach its whole answer and the stop token after "
                "it: the chat template changes the answer; look at chat.mask_figure of this row."
            )


def mask_figure(example: dict, tokenizer, title: str):
    """One row of `encode` as coloured tokens, from its ids and labels: grey is context, blue is
    what the model learns to say."""
    import matplotlib.pyplot as plt

    shown = [
        i if label == IGNORED else label
        for i, label in zip(example["input_ids"], example["labels"], strict=True)
    ]
    pieces = [tokenizer.decode([i]).replace("\n", "⏎") for i in shown]
    widths = [_width(piece) for piece in pieces]
    placed, x, y = [], 0.0, 0
    for piece, size, label in zip(pieces, widths, example["labels"], strict=True):
        if x + size > LINE:
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
            gid=utils.VERBATIM,
        )
    axes.set(xlim=(0, LINE), ylim=(y + 1, 0), title=title)
    axes.axis("off")
    figure.tight_layout()
    return figure
