"""Can this model be the base model? What its tokenizer, its config and, where they lie on this
machine, its weights answer.

Run: make swap-check MODEL=<hub id or folder> [LANGUAGE=ko] (or: python -m training.swap_check MODEL
[--language ko])
What it does: render, mask and measure the shipped rows with the model's own template, choose the
end token, hold the loss and packed rows against the model's own logits, attach LoRA to an empty
model, predict memory, and say ok, warn or FAIL for each with what to do; the exit status is 1 after
a FAIL. What it does not do: download or train weights. From
the hub it fetches the tokenizer's and the config's few files only.

The checks call what the notebooks call (chat.py, student.py, preflight.py), so that what passes
here passes there.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path

import prompts
import settings
import utils
from training import architecture, chat, losses, machine, preflight, student
from utils import CourseError

SHORT_ROWS = ({"id": "a row of one turn", "messages": chat.TURN_PROBE}, chat.TWO_TURNS)
MAX_LENGTH, BATCH, RANK, ANSWERS, LONGEST = 512, 4, 4, 28, 96  # as in train.ipynb
SPARSE = 2.0  # bytes of text in a token; a Hangul syllable has three
# share of the weights outside the embedding that lie in linear layers; less is a mixture of experts
DENSE = 0.9


@dataclasses.dataclass
class Finding:
    """What one check found."""

    check: str
    status: str  # "ok", "warn" or "FAIL"
    sentence: str  # what was found and, unless it is ok, what to do


def check(
    name: str, languages: tuple[str, ...] = tuple(settings.LANGUAGES)
) -> tuple[list[Finding], str]:
    """`(findings, what was there to ask)` about a base model.

    Args:
        name: as `BASE_MODEL`: a hub id, a folder (which may hold a tokenizer only) or the packaged
            student.
        languages: of the shipped rows.

    Raises:
        CourseError: there is nothing to check: no such folder or id, gated, no hub, no chat
            template, no causal language model.
    """
    tokenizer = student.load_tokenizer(name)
    folder = Path(student.source(name))
    alone = folder.is_dir() and not (folder / "config.json").exists()
    config = None if alone else student.load_config(name)
    empty = None if config is None else architecture.skeleton(config)
    weights = config is not None and weights_here(name)
    rows = [
        row
        for row in utils.read_jsonl(utils.DATA / "instruction.jsonl")
        if row["language"] in languages
    ]

    findings, said = [], {}

    def ask(what: str, question: Callable, *args):
        try:
            status, sentence, said[what] = question(*args)
        except CourseError as error:
            status, sentence = "FAIL", str(error)
        findings.append(Finding(what, status, sentence))
        return said.get(what)

    ask("chat template", template, tokenizer)
    ends = ask("turn's end", turn_end, tokenizer)
    if ends:
        ask("<bos>", bos, tokenizer, ends)
        ask("label mask", mask, tokenizer, ends)
        encoded = ask("shipped rows", shipped, rows, tokenizer, ends)
    device = machine.choose_device(config)
    findings.append(Finding("machine", "ok", f"{device}."))
    if config is not None:
        ask("LoRA targets", lora, empty)
        fits = ask("memory", memory, config, device, encoded) if ends and encoded else None
        weights = weights and fits is not False
    else:
        findings.append(
            Finding(
                "LoRA, memory",
                "warn",
                "There is no config.json, so neither could be asked: copy it beside the tokenizer.",
            )
        )
    if ends and weights:
        model = ask("precision", precision, name, device)
        if model is not None:
            ask("end token", end_token, model, tokenizer)
            if encoded:
                ask("loss", loss, model, encoded)
                ask("packing", packing, model, encoded)
    elif ends:
        ask("end token", end_token_by_rule, tokenizer, ends)
    for language in languages:
        texts = [
            message["content"]
            for row in rows
            if row["language"] == language
            for message in chat.conversation(row)
        ]
        ask(f"{settings.LANGUAGES[language]} text", round_trip, texts, tokenizer)
    parts = ["tokenizer"] + ["config"] * (config is not None) + ["weights"] * weights
    return findings, ", ".join(parts)


def weights_here(name: str) -> bool:
    """True if all weights lie on this machine, in a folder or in the hub's cache; nothing is
    fetched."""
    folder = Path(student.source(name))
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(name, local_files_only=True))
        except LocalEntryNotFoundError:
            return False
    shards = set(
        utils.read_json(folder / "model.safetensors.index.json").get("weight_map", {}).values()
    )
    return all((folder / file).exists() for file in shards or {"model.safetensors"})


# --- the checks: each returns (status, sentence, what later checks need) --------------------------


def template(tokenizer) -> tuple[str, str, chat.Template]:
    """What `chat.probe` found. Two turns must be rendered, for the evaluation asks them."""
    found = chat.probe(tokenizer)
    lengths = [len(chat.prompt_ids(chat.question(row), tokenizer)) for row in SHORT_ROWS]
    sentence = f"One turn and two are rendered ({lengths[0]} and {lengths[1]} tokens of prompt)."
    if str(found) != chat.UNCHANGED:
        sentence += f" {found}"
    if not found.begins:
        sentence += (
            " The prompt's tokens do not begin the finished row, as if prompt and answer were "
            "joined by a space or a thought: training and generation both follow the prompt, so "
            "they agree; read a few answers after training."
        )
    status = "ok" if found.begins and found.turns == "kept" else "warn"
    return status, sentence, found


def turn_end(tokenizer) -> tuple[str, str, dict[int, str]]:
    """The token with which the template closes a turn; with `<eos>` it is what may end an
    answer."""
    end = chat.probe(tokenizer).turn_end
    ends = {
        i: tokenizer.convert_ids_to_tokens(i) for i in dict.fromkeys((end, tokenizer.eos_token_id))
    }
    if len(ends) > 1:
        return (
            "ok",
            f"The template closes a turn with {ends[end]}; {tokenizer.eos_token} ends a document.",
            ends,
        )
    return "ok", f"Turns end in {tokenizer.eos_token}, as documents do.", ends


def _stop(end: int, ends: dict[int, str], tokenizer) -> chat.Stop:
    return chat.Stop(ends[end], end, next(iter(ends)), 1, len(tokenizer))


def bos(tokenizer, ends: dict[int, str]) -> tuple[str, str, None]:
    """`<bos>` once at the very start, where the tokenizer has one. Elsewhere it may stand: in
    Granite and OLMo 2 it ends documents too, in SmolLM2 it begins every turn."""
    if tokenizer.bos_token_id is None:
        return "ok", "The tokenizer has none, and none is written.", None
    count = chat.probe(tokenizer).leading_bos
    if count > 1:
        sentence = (
            f"{tokenizer.bos_token} stands {count} times at the start of every row: take all "
            "but the first out of the chat template."
        )
        return "FAIL", sentence, None
    if count == 0 and tokenizer.bos_token_id not in ends:
        sentence = (
            f"The template writes no {tokenizer.bos_token}: if the model's card shows one, "
            f"put {{{{ bos_token }}}} first in the template."
        )
        return "warn", sentence, None
    if count == 0:
        return "ok", f"Rows begin without {tokenizer.bos_token}, which here ends them.", None
    return "ok", f"{tokenizer.bos_token} stands once at the start of a row.", None


def mask(tokenizer, ends: dict[int, str]) -> tuple[str, str, None]:
    """What is learnt of a row is its answers, each with its stop token, whichever token that will
    be."""
    all_turns = chat.probe(tokenizer).turns == "kept"
    for row in SHORT_ROWS:
        messages = chat.conversation(row)
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        answers = answers if all_turns else answers[-1:]
        for end in ends:
            labels = chat.encode(row, tokenizer, _stop(end, ends, tokenizer))["labels"]
            learnt: list[str] = []
            piece: list[int] = []
            for label in labels:
                if label == end:
                    learnt.append(tokenizer.decode(piece).strip())
                    piece = []
                elif label != chat.IGNORED:
                    piece.append(label)
            if learnt != answers or piece:
                sentence = (
                    f"Of {row['id']} the model would learn {learnt}, not its answers: the "
                    "tokenizer or its template splits them in a way "
                    "that this course does not know, so choose another base model."
                )
                return "FAIL", sentence, None
    count = sum(label != chat.IGNORED for label in labels)
    return (
        "ok",
        f"Exactly the answers and their stop tokens are learnt ({count} of {len(labels)} tokens "
        "in a row of two turns).",
        None,
    )


def shipped(rows: list[dict], tokenizer, ends: dict[int, str]) -> tuple[str, str, list[dict]]:
    """All shipped rows through the template and the mask; rows that are too long would be left
    out."""
    encoded, too_long = chat.encode_all(
        rows, tokenizer, _stop(next(iter(ends)), ends, tokenizer), MAX_LENGTH
    )
    lengths = sorted(len(row["input_ids"]) for row in encoded)
    sentence = (
        f"{len(encoded)} of {len(rows)} rows fit into {MAX_LENGTH} tokens; the middle one "
        f"has {lengths[len(lengths) // 2]}."
    )
    if len(too_long) > len(rows) / 50:
        return "warn", f"{sentence} The others would be left out: raise ROW_TOKENS.", encoded
    return "ok", sentence, encoded


def lora(empty) -> tuple[str, str, None]:
    """`all-linear` as PEFT finds it on the empty model: names, layers, parameters."""
    import torch
    from peft import LoraConfig, get_peft_model

    try:
        with torch.device("meta"):
            tuned = get_peft_model(
                empty, LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
            )
    except ValueError as error:
        raise CourseError(
            f"LoRA finds no layer to adapt ({str(error).splitlines()[0][:120]}): choose another "
            "base model."
        ) from None
    adapted = [
        name.removesuffix(".base_layer")
        for name, module in tuned.named_modules()
        if hasattr(module, "lora_A")
    ]
    names = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in adapted))
    return (
        "ok",
        f"{len(adapted)} layers ({names}), {tuned.get_nb_trainable_parameters()[0]:,} parameters "
        f"at r = {RANK}.",
        None,
    )


def memory(config, device: machine.Device, encoded: list[dict]) -> tuple[str, str, bool]:
    """What train.ipynb would predict for the longest rows on this machine, and whether it fits;
    False where nothing makes it fit."""
    lengths = sorted(len(row["input_ids"]) for row in encoded)
    trained = sum(label != chat.IGNORED for row in encoded for label in row["labels"]) / sum(
        lengths
    )
    forecast = preflight.predict(
        config,
        device,
        1,
        sum(lengths[-BATCH:]),
        RANK,
        trained,
        row=sum(lengths) // len(lengths),
        checkpointing=device.name == "cuda",
        answers=(ANSWERS, lengths[-1] + LONGEST),
    )
    try:
        preflight.check(forecast)
    except CourseError as error:
        possible = "no setting brings it down" not in str(error)
        return "warn" if possible else "FAIL", str(error), possible
    sentence = (
        f"About {forecast.gb:.1f} GB ({forecast.of.parameters:,} parameters) and "
        f"{forecast.tokens_per_second:,.0f} tokens/s on this "
        f"machine, which has {machine.free_gb(device):.1f} GB free."
    )
    dense = forecast.of.linear / (forecast.of.parameters - forecast.of.embedding)
    if dense < DENSE:
        sentence += (
            f" But {1 - dense:.0%} of the weights outside the embedding lie in no linear layer "
            "(in experts?), and this counts dense "
            "models: expect more memory, and see above whether LoRA adapts the experts."
        )
        return "warn", sentence, True
    return "ok", sentence, True


def precision(name: str, device: machine.Device) -> tuple[str, str, object]:
    """The model with its weights, in the precision that it computes in; see `precision.trouble`."""
    wanted = device.dtype
    model, _ = student.load_base(name, device)
    if device.dtype != wanted:
        return "warn", f"{device.dtype} in place of {wanted}: {device.reason}.", model
    return "ok", f"{device.dtype}, and the scores are numbers.", model


def end_token(model, tokenizer) -> tuple[str, str, None]:
    """Which token ends an answer, from the weights' rank of the turn's end."""
    stop = str(chat.choose_stop(model, tokenizer))
    return "ok", f"{stop[0].upper()}{stop[1:]}.", None


def end_token_by_rule(tokenizer, ends: dict[int, str]) -> tuple[str, str, None]:
    """What the rule would do with weights that are not here."""
    end = next(iter(ends))
    if len(ends) == 1:
        return (
            "ok",
            "The rank could not be asked without weights, but there is one choice only: answers "
            f"end in {ends[end]}.",
            None,
        )
    sentence = (
        f"The rank could not be asked without weights. By the rule answers end in {ends[end]} if "
        "the weights rank it among the first 100 (instruction-tuned), else in "
        f"{tokenizer.eos_token}: see the rank in train.ipynb, section 3, before you train."
    )
    return "warn", sentence, None


def loss(model, encoded: list[dict]) -> tuple[str, str, None]:
    """One row's loss, as training computes it here, against the model's own logits."""
    row = min(encoded, key=lambda example: len(example["input_ids"]))
    way = losses.TRL if model.device.type == "cuda" else losses.OURS
    wrong = losses.disagreement(model, row, way)
    return ("warn", wrong, None) if wrong else ("ok", "It is that of the model's logits.", None)


def packing(model, encoded: list[dict]) -> tuple[str, str, None]:
    """Whether rows may lie end to end."""
    if losses.keeps_rows_apart(model, encoded):
        return "ok", "Rows laid end to end stay apart.", None
    sentence = (
        "Rows laid end to end run into one another in this model, as in convolutions and recurrent "
        "layers, so train.ipynb pads them instead: slower, and right."
    )
    return "warn", sentence, None


def _letters(text: str) -> str:
    return "".join(filter(str.isalpha, text))


def round_trip(texts: list[str], tokenizer) -> tuple[str, str, None]:
    """Texts come back from their tokens, and a token holds more than a byte or two of them."""
    if not texts:
        raise CourseError(
            "There are no shipped rows in this language to try: write some into "
            "data/instruction.jsonl."
        )
    ids = tokenizer(texts, add_special_tokens=False).input_ids
    back = tokenizer.batch_decode(ids, skip_special_tokens=False)
    density = sum(len(text.encode()) for text in texts) / sum(map(len, ids))
    lost = [
        text for text, again in zip(texts, back, strict=True) if _letters(text) != _letters(again)
    ]
    if lost:
        sentence = (
            f"{len(lost)} of {len(texts)} texts do not come back from their tokens, such as "
            f"{lost[0][:30]!r}: this vocabulary lacks "
            "their letters, so choose a base model that knows the language."
        )
        return "FAIL", sentence, None
    sentence = f"All {len(texts)} texts come back from their tokens, {density:.1f} bytes a token."
    if density < SPARSE:
        return (
            "warn",
            f"{sentence} The vocabulary hardly knows the language, so rows are long and learning "
            "slow: choose a multilingual base model.",
            None,
        )
    changed = sum(text.strip() != again.strip() for text, again in zip(texts, back, strict=True))
    if changed:
        return (
            "warn",
            f"{sentence} In {changed} of them signs or spaces are changed: look at code and "
            "tables in the answers.",
            None,
        )
    return "ok", sentence, None


# --- the page -------------------------------------------------------------------------------------


def table(findings: list[Finding]) -> str:
    """One line or more for each finding."""
    width = max(len(finding.check) for finding in findings) + 8
    return "\n".join(
        textwrap.fill(
            f"{f.status:<5} {f.check:<{width - 8}}  {f.sentence}",
            120,
            subsequent_indent=" " * width,
            break_long_words=False,
        )
        for f in findings
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the findings; 0 if the model can be swapped in, else 1."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a hub id, a folder, or the packaged student's name")
    parser.add_argument("--language", default="both", help="en, ko or both: whose rows are tried")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    warnings.simplefilter("ignore")  # of libraries about one another; what matters is in the table
    try:
        languages = settings.as_languages("LANGUAGE", options.language)
        prompts.known(languages, "The swap check")
        findings, asked = check(options.model, languages)
    except CourseError as error:
        print(f"FAIL  {error}")
        return 1
    print(f"{options.model}, asked with: {asked}\n\n{table(findings)}\n")
    failed = [finding.check for finding in findings if finding.status == "FAIL"]
    if failed:
        print(f"Not ready: {', '.join(failed)} FAILED.")
        return 1
    print(
        f"Ready: set BASE_MODEL to {options.model!r} "
        f"(or COURSE_BASE_MODEL={options.model} make run)."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
