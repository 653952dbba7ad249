"""What training leaves behind: the adapter, the same merged into the base, and a model card; saved,
loaded, pushed.

What it does: write folders that are whole or not there at all, and refuse an adapter that does not
fit its base. What it does not do: train. Importing it imports neither torch nor peft.

Sources: LoRA (arXiv 2106.09685), section 4.1 for merging; PEFT (huggingface/peft) for the files.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import settings
import utils
from training import student
from utils import CourseError

EXAMPLE = utils.DATA / "example_adapter"
WEIGHTS = "adapter_model.safetensors"


def finished(folder: Path, job: str) -> dict | None:
    """The record of a finished training in `folder` if it came from exactly this `job` (see
    utils.fingerprint), else None."""
    record = utils.read_json(folder / "training.json")
    return record if record.get("job") == job else None


# --- saving ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A neighbour of `folder` to write into, moved over it as the last step: a crash or a full disk
    leaves the old one as it was."""
    with utils.disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            yield work
            shutil.rmtree(folder, ignore_errors=True)
            work.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def save_adapter(model, tokenizer, folder: Path, record: dict, card: str) -> None:
    """Write adapter, tokenizer, model card, data card (where the run has one) and `training.json`,
    all or nothing."""
    with whole_folder(folder) as work:
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        (work / "README.md").write_text(card, encoding="utf-8")
        (work / "training.json").write_text(
            json.dumps(record, ensure_ascii=False, indent=1), encoding="utf-8"
        )
        _copy_data_card(card, folder.parent, work)


def _copy_data_card(card: str, run: Path, work: Path) -> None:
    if "](data_card.md)" in card:  # a link has to lead somewhere wherever the folder goes
        shutil.copy(run / "data_card.md", work)


def save_merged(model, tokenizer, stop, folder: Path, card: str) -> None:
    """Add the adapter into the weights, W + (alpha/r) BA, and save an ordinary model that needs no
    PEFT; `model` is used up by it.

    The sum is rounded to the base's precision, so in bf16 logits differ a little from those of base
    and adapter side by side. The generation settings name the stop tokens, so that `generate` and a
    GGUF made from the folder stop as in the course.

    Raises:
        CourseError: the base is quantised (adding into 4-bit weights would round the adapter away),
            or the disk is full.
    """
    if getattr(model.get_base_model(), "is_quantized", False):
        raise CourseError(
            "A 4-bit base cannot take the adapter in: set QUANTIZE to 'none' and run the notebook "
            "again; it reuses the adapter."
        )
    merged = model.merge_and_unload()
    merged.generation_config.eos_token_id = stop.ids
    merged.generation_config.pad_token_id = tokenizer.pad_token_id
    with whole_folder(folder) as work:
        merged.save_pretrained(work)
        tokenizer.save_pretrained(work)
        (work / "README.md").write_text(card, encoding="utf-8")
        _copy_data_card(card, folder.parent, work)


# --- loading --------------------------------------------------------------------------------------


def adapter_folder(chosen: settings.Settings) -> Path:
    """Where the adapter to evaluate lies: the run's own, or the example that comes with the course,
    which it says in one sentence.

    The example belongs to the packaged student; with another base model there is only the run's
    own.
    """
    own = chosen.folder / "adapter"
    if (own / WEIGHTS).exists():
        print(f"the adapter of this run: {utils.short(own)}/")
        return own
    if not chosen.packaged or not (EXAMPLE / WEIGHTS).exists():
        return own
    print(
        f"{utils.short(chosen.folder)}/ has no adapter of its own yet, so the course's example is "
        f"used: {utils.short(EXAMPLE)}/, made by train.ipynb with its default settings. (Trained "
        "on another machine? Set SAVE_TO or RUN_ZIP.)"
    )
    return EXAMPLE


def load_adapter(model, folder: Path):
    """The base model with the adapter in `folder` on it; `model.disable_adapter()` switches it off
    again.

    Raises:
        CourseError: no adapter there, a damaged one, or one that was trained on another base model.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    where = utils.short(folder)
    if not (folder / "adapter_config.json").exists() or not (folder / WEIGHTS).exists():
        raise CourseError(
            f"There is no adapter in {where}: run train.ipynb first with the same RUN. If that was "
            "on another machine, set SAVE_TO to where it kept the run, or RUN_ZIP to the run's zip."
        )
    trained_on = utils.read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    name = model.config.name_or_path
    if trained_on != name:
        raise CourseError(
            f"The adapter in {where} was trained on {trained_on}, not on {name}: set BASE_MODEL "
            f"to {trained_on}."
        )
    try:
        return PeftModel.from_pretrained(model, folder).eval()
    except SafetensorError as error:
        raise CourseError(
            f"The adapter in {where} is damaged ({error}): delete that folder and run train.ipynb "
            "again."
        ) from None
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise CourseError(
            f"The adapter in {where} has other shapes than {name}, so it was trained on another "
            "version of it: run train.ipynb again."
        ) from None


# --- the model card -------------------------------------------------------------------------------

MERGED = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")"""
ADAPTER = """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{folder}")"""
# The base can also see, and the adapter belongs to the language model in it
ADAPTER_OF_A_PART = """from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

config = AutoConfig.from_pretrained("{base}").get_text_config()
names = {names}
base = AutoModelForCausalLM.from_pretrained("{base}", config=config, key_mapping=names)
model = PeftModel.from_pretrained(base, "{folder}")"""
USAGE = """{loader}
tokenizer = AutoTokenizer.from_pretrained("{folder}")
asked = [{{"role": "user", "content": "전세와 월세는 어떻게 다른가요?"}}]
inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=128, do_sample=False, eos_token_id={stops})
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""  # noqa: E501


def model_card(base: str, record: dict, chosen: settings.Settings, merged: bool = False) -> str:
    """A model card written from the run: base, data, settings, results, use and licences; `merged`
    for the folder of `save_merged`."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in record["settings"].items())
    hub_id = settings.PACKAGED_HUB_ID if base == settings.PACKAGED_STUDENT else base
    linked = hub_id if Path(hub_id).exists() else f"[{hub_id}](https://huggingface.co/{hub_id})"
    library, title = ("transformers", "Merged model") if merged else ("peft", "LoRA adapter")
    folder = "." if merged else chosen.push_adapter_to or "."
    loader = ADAPTER_OF_A_PART if record.get("sees") else ADAPTER
    loader = MERGED if merged else loader
    usage = USAGE.format(
        loader=loader.format(folder=folder, base=hub_id, names=student.TEXT_WEIGHTS),
        folder=folder,
        stops=record["stop_ids"],
    )
    gemma = "gemma" in base.lower()
    terms = f"the licence of {hub_id}"
    if gemma:
        terms = "[Gemma Terms of Use](https://ai.google.dev/gemma/terms)"
    before, after = record["before"], record["after"]
    inside = (
        " The copy in `data/example_adapter/` comes without the tokenizer: there use "
        "`sft.load_base`."
        if chosen.packaged
        else ""
    )
    sources = "; ".join(_described(source, chosen) for source in chosen.data)
    if chosen.push_to:
        sources += (
            f"; dataset: [{chosen.push_to}](https://huggingface.co/datasets/{chosen.push_to})"
        )
    teacher = (
        "Rows of the stand-in teacher were written for the course (MIT)."
        if chosen.teacher == settings.REHEARSAL
        else (
            f"Rows written by {chosen.teacher} stay under the terms of its maker, which may "
            "forbid training competing models."
        )
    )
    card = f"""---
base_model: {hub_id}
library_name: {library}
pipeline_tag: text-generation
license: {"gemma" if gemma else "other"}
language: [{", ".join(chosen.languages)}]
tags: [lora, sft, instruction-tuning]
---

# {title}: {base}, instruction-tuned

Made by `train.ipynb` of *Instruction Tuning from Scratch* (run `{chosen.run}`, {chosen.profile} profile).

- Base model: {linked}.
- Data: {record["train_rows"]} training and {record["held_out_rows"]} held-out rows, from {sources}.
- Teacher of the generated rows: {chosen.label("teacher")}.

| result, on the held-out rows | before | after |
|---|---|---|
| loss, nats per answer token | {before["loss"]:.3f} | {after["loss"]:.3f} |
| answers that stop by themselves | {before["stop_rate"]:.0%} | {after["stop_rate"]:.0%} |

## Use

Prompts are rendered by the tokenizer's chat template, and answers end in `{record["stop"]}`.{inside}

```python
{usage}
```

## Settings

| setting | value |
|---|---|
{rows}

## Licences and limits

The weights derive from {hub_id} and stay under {terms}. {teacher} Facts in answers were not checked.
"""  # noqa: E501
    return utils.translated_lines(card)


def _described(source: str, chosen: settings.Settings) -> str:
    """One of DATA's sources, with a link to its card where it has one; of a path only the name."""
    if source == "shipped":
        return "the course's `data/instruction.jsonl` (its card is `data/README.md`)"
    if source == "run":
        has_card = (chosen.folder / "data_card.md").exists()
        return "rows of this run" + (" ([data_card.md](data_card.md))" if has_card else "")
    if Path(source).expanduser().exists():
        return f"`{Path(source).name}`, a file of the maker's own"
    return f"[{source}](https://huggingface.co/datasets/{source.partition(':')[0]})"


def push_adapter(folder: Path, repository: str) -> str:
    """Upload adapter, tokenizer and card to the Hugging Face hub as a private model; returns its
    address."""
    token = utils.secret("HF_TOKEN")
    if not token:
        raise CourseError(
            f"PUSH_ADAPTER_TO is {repository!r}, but there is no HF_TOKEN: make a write token at "
            "huggingface.co and set it."
        )
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api = HfApi(token=token)
        api.create_repo(repository, repo_type="model", private=True, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository, repo_type="model")
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:150].replace(token, "...")
        raise CourseError(
            f"The adapter could not be pushed to {repository} ({reason}): check PUSH_ADAPTER_TO "
            "and that HF_TOKEN may write."
        ) from None
    return f"https://huggingface.co/{repository}"
