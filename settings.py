"""What a reader can choose: one table of settings for the three notebooks, `run.py` and the command
lines.

What it does: hold every setting with its default, its choices and a sentence of help in one place,
`Settings`. From it come the form cells of the notebooks (`form`), the options of `run.py`, the
environment variables `COURSE_<NAME>` and the sentences for values that cannot be. To add a setting,
add one line to `Settings`. What it does not do: read keys (utils.secret does, where they are used),
or know anything about models or prices.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import utils
from utils import CourseError

# By code; a file more is a language more, and prompts.py reads all that it says.
LANGUAGES = {
    path.stem: utils.read_toml(path)["name"]
    for path in sorted((utils.DATA / "languages").glob("*.toml"))
}

DRIVE = Path("/content/drive")  # where Colab mounts it
RUNS_ON_DRIVE = DRIVE / "MyDrive" / "instruction-tuning-from-scratch" / "runs"

PACKAGED_STUDENT = "gemma-3-270m"  # the pretrained student from PyPI ...
PACKAGED_HUB_ID = "google/gemma-3-270m"  # ... and what it is
COURSE_STUDENT = "google/gemma-2b-it"
REHEARSAL = "rehearsal"
COURSE_TEACHER = "gpt-4o"
OFFERED = (REHEARSAL, COURSE_TEACHER, "gpt-6-luna")  # any other can be typed

COURSE_DATA = ("run", "shipped")  # rows that DATA knows by name
RENAMED = {"TRAIN_ON": "DATA"}

DAY = "date.txt"  # in a run's folder: the day on which it was first trained

NOTEBOOKS = ("preprocess", "train", "evaluation")
ADVANCED = (
    "# @markdown ---\n# @markdown **Advanced: leave these as they are unless a server asks for it**"
)


# --- how a value is read --------------------------------------------------------------------------


def as_text(name: str, value: object) -> str:
    return str(value).strip()


def as_switch(name: str, value: object) -> bool:
    """`"on"` or `"off"` as a truth value; the choices are checked before."""
    return str(value) == "on"


def _number(value: object) -> float:
    """A number, or for what is none NaN, which lies between no two bounds."""
    try:
        return float(str(value))
    except ValueError:
        return math.nan


def as_dollars(name: str, value: object) -> float:
    dollars = _number(value)
    if not 0 <= dollars < math.inf:
        raise CourseError(f"{name} is {value!r}; give an amount in dollars, 0 or more.")
    return dollars


def as_count(name: str, value: object) -> int:
    try:
        count = int(str(value))
    except ValueError:
        count = -1
    if count < 0:
        raise CourseError(f"{name} is {value!r}; give a whole number, 0 or more.")
    return count


def as_seconds(name: str, value: object) -> float:
    seconds = _number(value)
    if not 0 < seconds < math.inf:
        raise CourseError(f"{name} is {value!r}; give a number of seconds, more than 0.")
    return seconds


def as_parameters(name: str, value: object) -> dict:
    """Parameters of a request from a JSON object such as `{"reasoning_effort": "low"}`."""
    try:
        parameters = json.loads(str(value)) if str(value).strip() else {}
    except ValueError:
        parameters = None
    if not isinstance(parameters, dict):
        raise CourseError(
            f"{name} is {value!r}; give a JSON object such as "
            '{"reasoning_effort": "low"} (null leaves a parameter out).'
        )
    return parameters


def as_positive(name: str, value: object) -> int:
    count = as_count(name, value)
    if count == 0:
        raise CourseError(f"{name} is {value!r}; give a whole number, 1 or more.")
    return count


def as_names(name: str, value: object) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(part.strip() for part in str(value).split(",") if part.strip())


def as_sources(name: str, value: object) -> tuple[str, ...]:
    """Names of data, separated by commas, each once; `both` is this run's and the shipped rows."""
    sources: list[str] = []
    for source in as_names(name, value):
        sources += COURSE_DATA if source == "both" else [source]
    if not sources:
        raise CourseError(
            f"{name} is {value!r}; name at least one: run, shipped, a file or hub id."
        )
    return tuple(dict.fromkeys(sources))


def as_run(name: str, value: object) -> str:
    """The name of one folder under runs/."""
    run = str(value)
    if not run or run != Path(run).name or run.startswith("."):
        raise CourseError(
            f"{name} is {run!r}, but it names one folder under runs/: use letters, digits, '-' "
            "and '_'."
        )
    return run


def as_languages(name: str, value: object) -> tuple[str, ...]:
    """Codes separated by commas, or `"both"` for all that the course has texts for.

    Another code is enough to train on rows of one's own; what needs the course's texts in that
    language says so (`prompts.known`).
    """
    codes = tuple(LANGUAGES) if value == "both" else as_names(name, value)
    for code in codes:
        if not re.fullmatch("[a-z]{2,3}", code):
            known = ", ".join(f"'{known}'" for known in LANGUAGES)
            raise CourseError(
                f"{name} is {code!r}: give {known}, 'both', or the two letters of another language "
                "for rows of your own."
            )
    return codes


def as_prices(name: str, value: object) -> tuple[float, float, float]:
    """(input, cached input, output) in dollars per million tokens from "2.50, 1.25, 10"."""
    prices = [_number(part) for part in str(value).split(",")]
    if len(prices) != 3 or not all(0 <= price < math.inf for price in prices):
        raise CourseError(
            f"{name} is {value!r}; give dollars per million tokens, 0 or more, as 'input, cached "
            "input, output', such as '2.50, 1.25, 10'."
        )
    prompt, cached, output = prices
    return prompt, cached, output


# --- defaults that depend on this machine and on the settings above them --------------------------


def _endpoint(found: dict) -> str | None:
    return utils.secret("OPENAI_BASE_URL")


def _speaker(found: dict) -> str:
    """gpt-4o where there is a key for OpenAI itself, else the stand-in."""
    if found["base_url"]:
        return REHEARSAL
    paid = utils.secret("OPENAI_API_KEY", without="a stand-in answers")
    return COURSE_TEACHER if paid else REHEARSAL


def _student(found: dict) -> str:
    """The course's model where its gated weights and a GPU can be had, else the packaged one."""
    if not utils.has_gpu():
        return PACKAGED_STUDENT
    token = utils.secret("HF_TOKEN", without=f"{COURSE_STUDENT} is gated")
    return COURSE_STUDENT if token else PACKAGED_STUDENT


def _tracking(found: dict) -> str:
    return "online" if utils.secret("WANDB_API_KEY") else "offline"


def _reader(found: dict) -> str:
    """The one language of the rows, where it is one in which the course can speak."""
    language, *others = found["languages"]
    return language if not others and language in LANGUAGES else "en"


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """What is known of a setting beside its type."""

    default: Any  # a value as a reader would type it, or a function of the settings above
    help: str  # one sentence
    read: Callable[[str, object], Any] = as_text
    name: str = ""  # in upper case: in the form, and after COURSE_; empty: that of the attribute
    choices: tuple[str, ...] = ()
    others: bool = False  # may anything but the choices be given?
    forms: tuple[str, ...] = ()  # the notebooks whose form has it
    advanced: bool = False  # at the form's end, for who needs it


def _setting(*of_entry, **named) -> Any:
    """A field with the `Entry` of these arguments."""
    return dataclasses.field(metadata={"entry": Entry(*of_entry, **named)})


_advanced = functools.partial(_setting, forms=("preprocess", "evaluation"), advanced=True)


def _switch(default: str, help: str, forms: tuple[str, ...] = ()) -> Any:
    return _setting(default, help, as_switch, choices=("on", "off"), forms=forms)


def _size(full: int, smoke: int, help: str, gpu: int | None = None) -> Any:
    """A number that is smaller in the smoke profile; 0 stands for "all" or "as many as there
    are"."""

    def default(found: dict) -> int:
        if found["profile"] == "smoke":
            return smoke
        return full if gpu is None or not utils.has_gpu() else gpu

    return _setting(default, help, as_count)


@dataclass(kw_only=True)
class Settings:
    """One set of settings for three notebooks. Keys are not in here: they are read where they are
    used, and only there."""

    run: str = _setting(
        "default", "name of the folder under runs/ for all that is made", as_run, forms=NOTEBOOKS
    )
    save_to: str = _setting(
        "",
        "where runs/ is kept: 'drive' for Google Drive (Colab asks you first), or a folder",
        forms=NOTEBOOKS,
    )
    run_zip: str = _setting(
        "",
        "a zip of this run from another machine: its path, or on Colab 'upload' to choose it",
        forms=("train", "evaluation"),
    )
    profile: str = _setting(
        "full",
        "full, or smoke: the same cells with smaller numbers",
        choices=("full", "smoke"),
        forms=NOTEBOOKS,
    )
    base_url: str | None = _setting(
        _endpoint,
        "an OpenAI-compatible endpoint for teacher and judge",
        forms=("preprocess", "evaluation"),
    )
    teacher: str = _setting(
        _speaker,
        "the model that writes the rows, or the stand-in 'rehearsal'",
        choices=OFFERED,
        others=True,
        forms=("preprocess",),
    )
    judge: str = _setting(
        _speaker,
        "the model that compares answers, or the stand-in 'rehearsal'",
        choices=OFFERED,
        others=True,
        forms=("evaluation",),
    )
    second_judge: str = _setting(
        "", "another judge of the same answers, to see how far two agree", forms=("evaluation",)
    )
    base_model: str = _setting(
        _student,
        "the model to tune: a hub id, a local folder, or gemma-3-270m (packaged)",
        choices=(PACKAGED_STUDENT, COURSE_STUDENT),
        others=True,
        forms=("train", "evaluation"),
    )
    languages: tuple[str, ...] = _setting(
        "both",
        "of prompts, rows and evaluation",
        as_languages,
        name="LANGUAGE",
        choices=("both", *LANGUAGES),
        others=True,
        forms=NOTEBOOKS,
    )
    reader: str = _setting(
        _reader,
        "language of headlines, tables, figures and errors; auto: LANGUAGE's, if it is one",
        choices=tuple(LANGUAGES),
        forms=NOTEBOOKS,
    )
    budget_usd: float = _setting(
        "2.0", "dollars for this run, hard", as_dollars, forms=("preprocess", "evaluation")
    )
    data: tuple[str, ...] = _setting(
        "both",
        "rows to train on: run, shipped, both, a file, a folder or a hub id; several with commas",
        as_sources,
        choices=("both", *COURSE_DATA),
        others=True,
        forms=("train",),
    )
    eval_prompts: str = _setting(
        "",
        "prompts of your own: a file or a hub id with prompt, reference (optional)",
        forms=("train", "evaluation"),
    )
    data_filter: str = _setting(
        "duplicates",
        "of rows of your own leave out near-duplicates, what the rules reject too, or nothing",
        choices=("duplicates", "rules", "off"),
    )
    seeds: str = _setting(
        "",
        "seed tasks of your own instead of the course's: a file or a hub id",
        forms=("preprocess",),
    )
    tracking: str = _setting(
        _tracking,
        "how wandb logs the training",
        choices=("online", "offline", "disabled"),
        forms=("train",),
    )
    method: str = _setting(
        "alpaca",
        "how tasks are asked for",
        choices=("alpaca", "self-instruct"),
        forms=("preprocess",),
    )
    reply_format: str = _setting(
        "schema",
        "text is for endpoints that cannot be held to a JSON schema",
        choices=("schema", "text"),
        forms=("preprocess", "evaluation"),
    )
    answer_length: str = _setting(
        "varied",
        "how long the answers are that the teacher is asked for",
        choices=("varied", "short", "medium", "long"),
        forms=("preprocess",),
    )
    domain: str = _setting("", "free text: all tasks are to belong to it", forms=("preprocess",))
    seed_categories: tuple[str, ...] = _setting(
        "", "of which seeds are shown, with commas; none: all", as_names, forms=("preprocess",)
    )
    critique: bool = _switch("on", "let the teacher score every row", forms=("preprocess",))
    batch: bool = _switch("off", "OpenAI's Batch API: half the price, up to a day")
    grounding: bool = _switch(
        "off", "show the teacher search results about DOMAIN (Naver)", forms=("preprocess",)
    )
    push_to: str = _setting("", "account/name of a data set on the hub")
    adapter: str = _setting(
        "lora", "LoRA or one of its variants", choices=("lora", "dora", "rslora"), forms=("train",)
    )
    quantize: str = _setting(
        "none", "4bit is QLoRA, on an NVIDIA GPU", choices=("none", "4bit"), forms=("train",)
    )
    merge: bool = _switch("off", "also save the weights with the adapter added", forms=("train",))
    export: str = _setting(
        "none",
        "gguf: one file for llama.cpp, Ollama and LM Studio, with a Modelfile",
        choices=("none", "gguf"),
        forms=("train",),
    )
    push_adapter_to: str = _setting("", "account/name of a model on the hub", forms=("train",))
    seed: int = _setting("42", "of every random choice", as_count)

    # How a model is asked, for servers that are slow, think aloud or have prices of their own
    prices: tuple[float, float, float] | None = _advanced(
        None, "dollars per million tokens for a model that llm/models.py does not know", as_prices
    )
    timeout: float = _advanced(
        "300", "seconds without a word from the server until an answer is given up", as_seconds
    )
    concurrency: int = _advanced("8", "requests under way at once", as_positive)
    parameters: Mapping[str, Any] = _advanced(
        "", 'sent with every request, as JSON: {"reasoning_effort": "low"}', as_parameters
    )
    teacher_tokens: int = _advanced(
        "0",
        "tokens of a teacher's reply, thoughts included; 0: as each request says",
        as_count,
        forms=("preprocess",),
    )
    judge_tokens: int = _advanced(
        "400",
        "tokens of a judge's reply; a judge that thinks aloud needs more",
        as_count,
        forms=("evaluation",),
    )
    retry_failed: bool = _advanced(
        "off",
        "ask again what the journal has an unusable reply to",
        as_switch,
        choices=("on", "off"),
    )

    # Sizes of the two profiles
    requests: int = _size(16, 3, "requests for tasks, of each language, at most")
    requests_at_once: int = _size(4, 3, "requests of each language before the yield is looked at")
    fewest_rows: int = _size(
        80, 20, "rows of each language that must be left; with DOMAIN a quarter"
    )
    data_rows: int = _size(
        2000, 200, "rows taken at most of a source of your own, at random; 0: all", gpu=50_000
    )
    train_rows: int = _size(300, 32, "rows to train on; 0: all", gpu=0)
    held_out_rows: int = _size(48, 8, "rows that are never trained on")
    row_tokens: int = _size(1152, 112, "tokens of a row; longer ones are left out")
    max_steps: int = _size(0, 4, "training steps; 0: as epochs and rows give")
    sample_tokens: int = _size(96, 16, "tokens of an answer while training is watched")
    measured_prompts: int = _size(24, 6, "held-out prompts answered before and after training")
    watched_prompts: int = _size(12, 2, "held-out prompts answered at each evaluation")
    loss_rows: int = _size(4, 2, "rows on which three ways to the loss are measured")
    loss_repeats: int = _size(2, 1, "measurements of each way")
    prompts: int = _size(60, 12, "evaluation prompts; 0: all", gpu=0)
    answer_tokens: int = _size(96, 24, "tokens of an answer that is judged", gpu=512)
    long_answer_tokens: int = _size(
        512, 40, "the same where the reference is longer than that", gpu=1024
    )
    calibration_pairs: int = _size(0, 24, "labelled pairs for the judge; 0: all")
    probe_pairs: int = _size(12, 3, "labelled pairs for each attack on the judge")

    rehearsal_url: str | None = None  # set by the bootstrap cell once the endpoint runs

    @property
    def runs(self) -> Path:
        """The folder that holds the folder of every run."""
        return runs_folder(self.save_to)

    @property
    def folder(self) -> Path:
        """`runs/<run>/`, made on first use.

        Raises:
            CourseError: it cannot be made; or it lies on a Drive that is not mounted, below whose
                empty folder files would be lost with the machine.
        """
        path = self.runs / self.run
        with utils.disk_errors(path):
            if path.is_relative_to(DRIVE):
                os.listdir(DRIVE / "MyDrive")
            path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def date(self) -> datetime.date:
        """The day that chat templates are told it is, in training, evaluation, export and
        conversation alike: that on which the run was first trained, else today."""
        path = self.folder / DAY
        if not path.exists():
            return datetime.date.today()
        return datetime.date.fromisoformat(path.read_text(encoding="utf-8").strip())

    @property
    def rehearsal(self) -> bool:
        """True if a stand-in speaks as teacher or judge."""
        return REHEARSAL in self.speakers

    @property
    def speakers(self) -> list[str]:
        """The different models that are asked over HTTP."""
        return sorted({self.teacher, self.judge, self.second_judge} - {""})

    @property
    def packaged(self) -> bool:
        """True if the student comes from the PyPI package."""
        return self.base_model == PACKAGED_STUDENT

    @property
    def smoke(self) -> bool:
        return self.profile == "smoke"

    @property
    def requirements(self) -> list[str]:
        """pip's arguments for what these settings need; stand-ins only where they are chosen.

        Where the GPU can use it, the package that brings FlashAttention-2 ready-made, in the
        version that transformers asks for (another one it refuses). Not for the packaged student:
        it is small, and with the transformers that it needs this would take huggingface_hub 2.
        """
        arguments = ["-r", str(utils.ROOT / "requirements.txt")]
        if self.rehearsal:
            arguments += ["-r", str(utils.ROOT / "requirements" / "rehearsal.txt")]
        if self.packaged:
            arguments += ["-r", str(utils.ROOT / "requirements" / "student.txt")]
        elif utils.gpu_capability() >= 8:
            arguments.append("transformers[kernels]")
        if self.quantize == "4bit":
            arguments.append("bitsandbytes>=0.46")
        return arguments

    def connection(self, model: str, most_tokens: int = 0) -> dict:
        """The arguments with which `llm.client.Client` reaches a teacher or judge, whose replies
        may have `most_tokens` (0: as many as each request says)."""
        limit = {"max_completion_tokens": most_tokens} if most_tokens else {}
        options = {
            "model": model,
            "timeout": self.timeout,
            "max_concurrency": self.concurrency,
            "parameters": limit | dict(self.parameters),
            "retry_failed": self.retry_failed,
        }
        if model == REHEARSAL:
            return options | {"base_url": self.rehearsal_url, "api_key": REHEARSAL}
        return options | {"base_url": self.base_url, "prices": self.prices}

    def label(self, role: str) -> str:
        """How the teacher or the judge is named in rows, tables and figures: a stand-in says that
        it is one."""
        model = getattr(self, role)
        if model != REHEARSAL:
            return model
        what = "recorded replies" if role == "teacher" else "a rule and not an LLM"
        return f"{model} (stand-in, {what})"

    def __str__(self) -> str:
        judges = self.label("judge")
        if self.second_judge:
            judges += f" and {self.label('second_judge')}"
        hosts = {self._host(model) for model in self.speakers}
        paid = self.speakers != [REHEARSAL]
        rows = {
            "run": f"{utils.short(self.folder)}/ ({self.profile} profile, {utils.where()})",
            "languages": ", ".join(LANGUAGES.get(code, code) for code in self.languages),
            "teacher": self.label("teacher"),
            "judge": judges,
            "endpoint": " and ".join(sorted(hosts)),
            "base model": self.base_model + (" (pretrained, from PyPI)" if self.packaged else ""),
            "budget": f"${self.budget_usd:.2f} for this run, hard"
            if paid
            else "$0, nothing is paid for",
            "tracking": f"wandb {self.tracking}",
            "secrets": utils.secrets_found(),
        }
        return "\n".join(f"{name:<11} {value}" for name, value in rows.items() if value)

    def _host(self, model: str) -> str:
        """Where a model is asked, for a table: a host's name, never a whole address, which may hold
        a key."""
        if model == REHEARSAL:  # also before it has started and has an address
            return "this machine"
        if not self.base_url:
            return "api.openai.com"
        host = urlsplit(self.base_url).hostname or self.base_url
        local = host in ("localhost", "::1") or host.startswith("127.")
        return "this machine" if local else host


# --- where a run is, for programs that need no other setting --------------------------------------


def runs_folder(save_to: str) -> Path:
    """The folder that holds the folder of every run, from a SAVE_TO."""
    if save_to == "drive":
        return RUNS_ON_DRIVE
    return Path(save_to).expanduser() if save_to else utils.ROOT / "runs"


def run_folder(run: str = "default", save_to: str = "") -> Path:
    """The folder of a run, which need not exist; without `save_to`, where COURSE_SAVE_TO says."""
    return runs_folder(save_to or os.environ.get("COURSE_SAVE_TO", "")) / as_run("RUN", run)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """`--run` and `--save-to`, for a command line about one run."""
    parser.add_argument("--run", default="default", help="name of the folder of the run")
    parser.add_argument(
        "--save-to", default="", help="where runs/ is kept, if it was elsewhere (or COURSE_SAVE_TO)"
    )


# --- from the table -------------------------------------------------------------------------------


def entries() -> dict[str, Entry]:
    """Every setting that a reader can choose, by the name of its attribute, in the order of the
    table."""
    table = {}
    for field in dataclasses.fields(Settings):
        if "entry" in field.metadata:
            entry = field.metadata["entry"]
            table[field.name] = dataclasses.replace(entry, name=entry.name or field.name.upper())
    return table


def form(notebook: str) -> str:
    """The form cell of a notebook, as Colab shows it."""
    lines = [
        '# @title Settings { display-mode: "form" }',
        '# "auto" takes the environment variable COURSE_<NAME>, then what fits this machine.',
    ]
    shown = [entry for entry in entries().values() if notebook in entry.forms]
    for entry in sorted(shown, key=lambda entry: entry.advanced):
        if entry.advanced and ADVANCED not in lines:
            lines.append(ADVANCED)
        choices = ", ".join(f'"{choice}"' for choice in ("auto", *entry.choices))
        kind = f"[{choices}]" if entry.choices else '{type:"string"}'
        if entry.choices and entry.others:
            kind += " {allow-input: true}"
        lines.append(f'{entry.name} = "auto"  # @param {kind}')
        lines.append(f"# @markdown {entry.help}")
    return "\n".join(lines)


def resolve(form: dict) -> Settings:
    """Resolve a notebook's form into `Settings`.

    Args:
        form: the notebook's `globals()`; the upper-case names of the table are read, others
            ignored. `"auto"` or a missing name falls back to the environment variable
            `COURSE_<NAME>`, then to what this machine has: with `OPENAI_API_KEY` teacher and judge
            are gpt-4o, with `HF_TOKEN` and a GPU the base model is google/gemma-2b-it, otherwise
            the stand-ins and the packaged student of the rehearsal path.

    Raises:
        CourseError: a value that is none of the choices or cannot be read, or a paid model without
            its key.
    """
    for old, new in RENAMED.items():
        if old in form or os.environ.get(f"COURSE_{old}"):
            raise CourseError(
                f"{old} is called {new} now, and takes your own files too: rename it."
            )
    # First of all, so that what is refused here is refused in the reader's language
    speak_to_reader(form)
    utils.forget_secrets()
    found: dict[str, Any] = {}
    for field, entry in entries().items():
        value = _typed(form, entry.name)
        if not value:
            value = entry.default(found) if callable(entry.default) else entry.default
        if entry.choices and not entry.others and value not in entry.choices:
            raise CourseError(
                f"{entry.name} is {value!r}; choose one of {', '.join(entry.choices)}."
            )
        found[field] = None if value is None else entry.read(entry.name, value)
    resolved = Settings(**found)
    _check(resolved)
    return resolved


def speak_to_reader(form: dict) -> None:
    """Speak the language of READER from now on, or of LANGUAGE, as the form or the environment has
    them."""
    asked = _typed(form, "READER") or _typed(form, "LANGUAGE")
    utils.read_in(asked if asked in LANGUAGES else "en")


def _typed(form: dict, name: str) -> Any:
    """What the reader gave for a setting, in the form or else in the environment."""
    value = form.get(name, "auto")
    return os.environ.get(f"COURSE_{name}") if value in ("auto", "", None) else value


def _check(resolved: Settings) -> None:
    """Refuse settings that are each possible, but not together or not here."""
    if resolved.save_to == "drive" and utils.where() != "colab":
        raise CourseError(
            "SAVE_TO is 'drive', which Colab alone can mount: leave it empty, or give a folder."
        )
    if resolved.run_zip == "upload" and utils.where() != "colab":
        raise CourseError("RUN_ZIP is 'upload', which Colab alone can do: give the zip's path.")
    if resolved.grounding and not resolved.domain:
        raise CourseError("GROUNDING is on, but there is nothing to search for: set DOMAIN too.")
    if resolved.second_judge == resolved.judge:
        raise CourseError(
            f"SECOND_JUDGE is {resolved.judge}, as JUDGE is: a judge always agrees with itself; "
            "choose another or none."
        )
    for role in ("teacher", "judge", "second_judge"):
        model = getattr(resolved, role)
        free = model in ("", REHEARSAL) or resolved.base_url
        if not free and not utils.secret("OPENAI_API_KEY"):
            raise CourseError(
                f"{role.upper()} is {model}, a paid model, but there is no OPENAI_API_KEY: set it "
                f"in the environment, in Colab's key panel or in .env, or set {role.upper()} to "
                "'rehearsal' to run for free."
            )
