"""Answers from a model, batched, in the chat template that it was trained with; base and tuned from
one model in memory.

What it does: answer conversations of any number of turns, greedily unless asked otherwise, and say
whether each answer ended by itself.
What it does not do: load a model (sft.py), measure answers (evaluation/measures.py) or judge them
(evaluation/judge.py). torch and vllm are imported only where they are needed.

Answers are cut from token ids at the first stop token. Splitting the decoded text at the prompt or
at "model", as such notebooks do, breaks as soon as an answer contains either.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import utils
from training.chat import Stop, prompt_ids
from training.head import quick_head
from utils import CourseError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

ASKED = ("system", "prompt", "follow_ups")  # of an evaluation prompt: what the models see

# One user message, or messages with "role" and "content" that end with the user's
Conversation = str | list[dict]


@dataclasses.dataclass
class Answer:
    text: str
    stopped: bool  # ended with a stop token, not cut at max_new_tokens
    tokens: int


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How answers are decoded: the same for both models, and recorded with every answer."""

    max_new_tokens: int = 128
    long_new_tokens: int = 0  # where the reference is longer than that; 0: not more
    temperature: float = 0.0  # 0 is greedy: the most likely token, always
    seed: int = 42  # of sampling, where the temperature is above 0
    engine: str = "transformers"  # or "vllm"

    def limit(self, reference: str) -> int:
        """Tokens of an answer whose reference is this: no model is judged by an essay for which it
        had no room."""
        # Digits and signs are a token each; of letters, in both languages, one has 3.4 bytes
        signs = sum(not letter.isalpha() and not letter.isspace() for letter in reference)
        if signs + (len(reference.encode()) - signs) / 3.4 <= self.max_new_tokens:
            return self.max_new_tokens
        return max(self.max_new_tokens, self.long_new_tokens)


def generate(
    model,
    tokenizer,
    texts: Sequence[Conversation],
    stop: Stop,
    max_new_tokens: int | Sequence[int] = 128,
    batch_size: int = 12,
    temperature: float = 0.0,
    seed: int = 42,
) -> list[Answer]:
    """Answers to conversations, batched by length, padded on the left, in the order asked.

    The prompt is rendered as in training, and generation stops at the same token that training
    taught (or at the template's). `max_new_tokens` is one number, or one a conversation.
    """
    import torch

    limits = [max_new_tokens] * len(texts) if isinstance(max_new_tokens, int) else max_new_tokens
    asked = [prompt_ids(text, tokenizer) for text in texts]
    order = sorted(range(len(texts)), key=lambda i: len(asked[i]))
    answers: dict[int, Answer] = {}
    how: dict = {"do_sample": False}
    if temperature:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        torch.manual_seed(seed)
    with (
        torch.inference_mode(),
        quick_head(model),
        utils.progress(sum(limits), "answers, in tokens") as bar,
    ):
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            inputs = tokenizer.pad(
                {"input_ids": [asked[i] for i in chunk]}, return_tensors="pt", padding_side="left"
            ).to(model.device)
            options = how | {"eos_token_id": stop.ids, "pad_token_id": tokenizer.pad_token_id}
            room = [limits[i] for i in chunk]
            written = _written(model.eval(), inputs, stop, room, options, bar.update)
            for i, ids in zip(chunk, written, strict=True):
                answers[i] = cut(ids, tokenizer, stop)
    return [answers[i] for i in range(len(texts))]


SLICE = 16  # tokens after which rows that have ended leave the batch


def _written(
    model,
    inputs,
    stop: Stop,
    limits: list[int],
    options: dict,
    advance: Callable[[int], object],
) -> list[list[int]]:
    """The token ids that each row of a batch writes, up to its limit or up to and with its stop
    token. `advance` hears how many of the tokens in `limits` are settled, written or not needed.

    `generate` computes every row until the longest has ended. Most tuned answers end early, so it
    is called for a few tokens at a time, and goes on from its own cache with the rows that have not
    ended: the same tokens for a part of the work (`python -m benchmarks.answers`). A model whose
    cache cannot be taken apart (state-space layers, say) writes all its tokens in one slice.
    """
    import torch

    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    written: list[list[int]] = [[] for _ in ids]
    rows = list(range(len(written)))  # which of them are still in the batch
    cache = None
    step = SLICE if _divisible(model) else max(limits)
    while rows:
        left = max(limits[row] - len(written[row]) for row in rows)
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=min(step, left),
            return_dict_in_generate=True,
            **options,
        )
        new = output.sequences[:, ids.shape[1] :]
        going = []
        for i, (row, tokens) in enumerate(zip(rows, new.tolist(), strict=True)):
            left = limits[row] - len(written[row])
            written[row] += tokens
            if len(tokens) < left and not set(stop.ids) & set(tokens):
                going.append(i)
                advance(len(tokens))
            else:
                advance(left)
        rows = [rows[i] for i in going]
        kept = torch.tensor(going, device=ids.device, dtype=torch.long)
        ids = output.sequences[kept]
        mask = torch.nn.functional.pad(mask, (0, new.shape[1]), value=1)[kept]
        cache = output.past_key_values
        if rows and cache is not None and len(going) < len(new):
            cache.batch_select_indices(kept)
    return [ids[:limit] for ids, limit in zip(written, limits, strict=True)]


def _divisible(model) -> bool:
    """True if every layer keeps keys and values, whose rows can be picked from the cache."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return bool(config.use_cache) and kinds <= {"full_attention", "sliding_attention"}


def cut(ids: Sequence[int], tokenizer, stop: Stop) -> Answer:
    """The answer in newly generated token ids: what comes before the first stop token."""
    ends = next((position for position, token in enumerate(ids) if token in stop.ids), None)
    length = len(ids) if ends is None else ends
    return Answer(
        tokenizer.decode(list(ids[:length]), skip_special_tokens=True).strip(),
        ends is not None,
        length,
    )


# --- base and tuned from one model ----------------------------------------------------------------


class Writer(Protocol):
    """Whatever answers with the adapter switched on or off, in at most `limits` tokens each."""

    decoding: Decoding

    def answers(
        self, conversations: list[Conversation], adapter: bool, limits: Sequence[int] | None = None
    ) -> list[Answer]: ...


@dataclasses.dataclass
class Transformers:
    """A PEFT model in memory; without its adapter it is the base model."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    stop: Stop
    decoding: Decoding
    # on two cores a token of 60 rows takes 1.7 times one of 24, not 2.5 times (benchmarks/judge.py)
    batch_size: int = 60

    def answers(
        self, conversations: list[Conversation], adapter: bool, limits: Sequence[int] | None = None
    ) -> list[Answer]:
        with contextlib.nullcontext() if adapter else self.model.disable_adapter():
            d = self.decoding
            return generate(
                self.model,
                self.tokenizer,
                conversations,
                self.stop,
                limits or d.max_new_tokens,
                self.batch_size,
                d.temperature,
                d.seed,
            )


class Vllm:
    """vLLM, where it is installed and there is a GPU: the base weights once, and the adapter
    request by request.

    Args:
        source: hub id or folder of the base model.
        adapter: folder of the LoRA adapter.
        dtype: as in `machine.Device`.
    """

    def __init__(
        self,
        source: str | Path,
        adapter: Path,
        tokenizer,
        stop: Stop,
        decoding: Decoding,
        dtype: str,
    ) -> None:
        import vllm

        rank = utils.read_json(adapter / "adapter_config.json").get("r", 16)
        rank = next(allowed for allowed in (8, 16, 32, 64, 128, 256, 320, 512) if allowed >= rank)
        self.tokenizer, self.stop, self.adapter = tokenizer, stop, adapter
        self.decoding = decoding
        self._model = vllm.LLM(
            model=str(source),
            dtype=dtype,
            enable_lora=True,
            max_lora_rank=rank,
            gpu_memory_utilization=0.5,  # the rest is for the model that the losses need
            seed=decoding.seed,
        )

    def answers(
        self, conversations: list[Conversation], adapter: bool, limits: Sequence[int] | None = None
    ) -> list[Answer]:
        import vllm
        from vllm.lora.request import LoRARequest

        # As token ids, because vLLM would put a second <bos> before a rendered text
        asked = [
            {"prompt_token_ids": prompt_ids(conversation, self.tokenizer)}
            for conversation in conversations
        ]
        lora = LoRARequest("tuned", 1, str(self.adapter)) if adapter else None
        parameters = [
            vllm.SamplingParams(
                temperature=self.decoding.temperature,
                max_tokens=limit,
                stop_token_ids=self.stop.ids,
                seed=self.decoding.seed,
            )
            for limit in limits or [self.decoding.max_new_tokens] * len(asked)
        ]
        outputs = self._model.generate(asked, parameters, lora_request=lora, use_tqdm=False)
        return [cut(output.outputs[0].token_ids, self.tokenizer, self.stop) for output in outputs]


def choose_engine() -> tuple[str, str]:
    """`("vllm" or "transformers", the reason)`."""
    if not utils.installed("vllm"):
        return (
            "transformers",
            "vllm is not installed (on a GPU it answers hundreds of prompts at once: pip install "
            "vllm)",
        )
    if not utils.has_gpu():
        return "transformers", "vllm is installed, but it needs a GPU and there is none"
    return "vllm", "vllm is installed and there is a GPU"


def turns(item: dict) -> list[dict]:
    """The turns of an evaluation prompt, each with `prompt` and `reference` ("" without one)."""
    first = {"prompt": item["prompt"], "reference": item.get("reference", "")}
    return [first, *item.get("follow_ups", ())]


def system_message(item: dict) -> list[dict]:
    """What an evaluation prompt's conversation begins with: its system message, or nothing."""
    return [{"role": "system", "content": item["system"]}] if item.get("system") else []


def converse(writer: Writer, items: Sequence[dict], adapter: bool) -> list[list[Answer]]:
    """Answers to evaluation prompts, one a turn: in each turn the model sees its own answers to
    those before.

    Args:
        items: `prompt`, `reference`, `system` where a system message comes first, and `follow_ups`
            in those of several turns.
    """
    asked = [turns(item) for item in items]
    said: list[list[Answer]] = [[] for _ in items]
    talks = [system_message(item) for item in items]
    for number in range(max(map(len, asked), default=0)):
        going = [i for i, wanted in enumerate(asked) if number < len(wanted)]
        for i in going:
            talks[i].append({"role": "user", "content": asked[i][number]["prompt"]})
        limits = [writer.decoding.limit(asked[i][number]["reference"]) for i in going]
        answers = writer.answers([list(talks[i]) for i in going], adapter, limits)
        for i, answer in zip(going, answers, strict=True):
            said[i].append(answer)
            talks[i].append({"role": "assistant", "content": answer.text})
    return said


def texts(answers: Sequence[Sequence[Answer]]) -> list[list[str]]:
    """The text of every turn, as a judge reads it."""
    read = []
    for turns in answers:
        read.append([turn.text for turn in turns])
    return read


# --- the file of answers --------------------------------------------------------------------------


def write_answers(
    path: Path,
    items: Sequence[dict],
    base: list[list[Answer]],
    tuned: list[list[Answer]],
    decoding: Decoding,
    job: str = "",
) -> Path:
    """`answers.jsonl`: `id, job, decoding, prompt`, where there are any `system` and `follow_ups`,
    and `base` and `tuned`: one answer a turn."""
    records = []
    for item, before, after in zip(items, base, tuned, strict=True):
        asked = {key: item[key] for key in ASKED if item.get(key)}
        said = {
            "base": [vars(turn) for turn in before],
            "tuned": [vars(turn) for turn in after],
        }
        records.append({"id": item["id"], "job": job, "decoding": vars(decoding)} | asked | said)
    return utils.write_jsonl(path, records)


def read_answers(
    path: Path, items: Sequence[dict]
) -> tuple[list[list[Answer]], list[list[Answer]]]:
    """`(base, tuned)` in the order of `items`.

    Raises:
        CourseError: the file answers other prompts than these, or one of them twice or not at all.
    """
    asked = {item["id"]: item for item in items}
    found: dict[str, dict] = {}
    for number, record in enumerate(utils.read_jsonl(path, ("id", "prompt", "base", "tuned")), 1):
        where, item = f"{utils.short(path)}, line {number}", asked.get(record["id"])
        if item is None or any(item.get(key) != record.get(key) for key in ASKED):
            raise CourseError(
                f"{where}: {record['id']!r} is not a prompt of this evaluation; delete the file "
                "to answer anew."
            )
        if record["id"] in found:
            raise CourseError(
                f"{where}: {record['id']!r} is answered twice; delete one of the two lines."
            )
        found[record["id"]] = record
    if missing := [name for name in asked if name not in found]:
        raise CourseError(
            f"{utils.short(path)} has no answer to {missing[0]!r}; delete the file to answer anew."
        )
    records = [found[name] for name in asked]
    return _turns(records, "base"), _turns(records, "tuned")


def _turns(records: list[dict], model: str) -> list[list[Answer]]:
    """The answers of one model, a list of turns for each record."""
    answers = []
    for record in records:
        answers.append([Answer(**turn) for turn in record[model]])
    return answers


def job_of(path: Path) -> str | None:
    """The fingerprint of what made the answers in a file, None where there is no such file."""
    if not path.exists():
        return None
    with open(path, encoding="utf-8") as file:
        return json.loads(file.readline() or "{}").get("job")
