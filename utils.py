"""Where am I, with which settings, and how are files written: the plumbing that all three notebooks share.

What it does: find out the machine (Colab, CI, local; GPU or CPU), read secrets without showing them, resolve the settings of
a notebook's form, install what the chosen path needs on Colab, and read and write JSON Lines so that a crash never leaves a
torn file. What it does not do: anything about models, prompts or statistics. Importing it needs the standard library only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import models

ROOT = Path(__file__).resolve().parent
DATA = ROOT / "data"
CACHE = Path(os.environ.get("COURSE_CACHE", ROOT / ".cache"))
LANGUAGES = {"en": "English", "ko": "Korean"}

PACKAGED_STUDENT = "gemma-3-270m"  # the pretrained student from PyPI ...
PACKAGED_HUB_ID = "google/gemma-3-270m"  # ... and what it is
COURSE_STUDENT = "google/gemma-2b-it"
REHEARSAL = "rehearsal"
COURSE_TEACHER = "gpt-4o"


class CourseError(Exception):
    """What is wrong, where, and what to do, in one sentence. Jupyter and `run.py` show the sentence, not a traceback."""

    def _render_traceback_(self) -> list[str]:  # IPython asks the exception itself how it wants to be shown
        return [f"Stopped: {self}"]


# --- where am I ----------------------------------------------------------------------------------------------------


def where() -> str:
    """`"colab"`, `"ci"` or `"local"`."""
    if "google.colab" in sys.modules:
        return "colab"
    return "ci" if os.environ.get("CI") else "local"


def has_gpu() -> bool:
    """True if an NVIDIA driver answers. Asked without importing torch, so that it costs nothing on a laptop."""
    if "torch" in sys.modules:
        return sys.modules["torch"].cuda.is_available()
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=20).stdout.startswith(b"GPU")
    except (OSError, subprocess.TimeoutExpired):
        return False


def secret(name: str) -> str | None:
    """A secret from the environment, then Colab's key panel, then `.env`; None if it is in none of them. Never print it."""
    if value := os.environ.get(name, "").strip():
        return value
    if where() == "colab":
        from google.colab import userdata

        denied = (userdata.SecretNotFoundError, userdata.NotebookAccessError, userdata.TimeoutException)
        with contextlib.suppress(*denied):
            return userdata.get(name)
    env_file = ROOT / ".env"
    if env_file.exists():
        for line in env_file.read_text(encoding="utf-8").splitlines():
            key, _, value = line.strip().removeprefix("export ").partition("=")
            if key.strip() == name:
                return value.strip().strip("\"'") or None
    return None


# --- settings ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Settings:
    """One set of settings for three notebooks. Keys are not in here: they are read where they are used, and only there."""

    run: str  # name of the run; everything it makes lies in runs/<run>/
    profile: str  # "full" or "smoke" (the same cells with smaller numbers, for the tests)
    languages: tuple[str, ...]
    teacher: str  # model name, or "rehearsal"
    judge: str
    base_url: str | None  # an OpenAI-compatible endpoint; None is OpenAI itself
    base_model: str  # hub id, local folder, or "gemma-3-270m" (packaged)
    budget_usd: float  # for everything in the run's journal, hard
    train_on: str  # "run", "shipped" or "both"
    tracking: str  # "online", "offline" or "disabled"
    prices: tuple[float, float, float] | None = None  # dollars per million tokens, where llm.PRICES does not know the model
    rehearsal_url: str | None = None  # set by the bootstrap cell once the endpoint runs
    method: str = "alpaca"  # or "self-instruct": how tasks are asked for
    reply_format: str = "schema"  # or "text", for endpoints that cannot be held to a JSON schema
    domain: str = ""  # free text: all tasks are to belong to it
    seed_categories: tuple[str, ...] = ()  # of which seeds are shown; none: all
    critique: bool = True  # the teacher scores every row that the filters left
    batch: bool = False  # OpenAI's Batch API: half the price, up to a day
    grounding: bool = False  # show the teacher search results about the domain (Naver)
    push_to: str = ""  # "account/name" of a data set on the hub
    second_judge: str = ""  # a model that judges the same answers, to see how far two judges agree; none: ""
    adapter: str = "lora"  # "dora" or "rslora": LoRA's variants in PEFT
    quantize: str = "none"  # "4bit": QLoRA, on an NVIDIA GPU
    merge: bool = False  # also save the model with the adapter added into its weights
    push_adapter_to: str = ""  # "account/name" of a model on the hub
    seed: int = 42

    @property
    def folder(self) -> Path:
        """`runs/<run>/`, made on first use."""
        path = ROOT / "runs" / self.run
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def rehearsal(self) -> bool:
        """True if a stand-in speaks as teacher or judge."""
        return REHEARSAL in (self.teacher, self.judge, self.second_judge)

    @property
    def packaged(self) -> bool:
        """True if the student comes from the PyPI package."""
        return self.base_model == PACKAGED_STUDENT

    @property
    def smoke(self) -> bool:
        return self.profile == "smoke"

    def connection(self, model: str) -> dict:
        """The arguments with which `llm.Client` reaches a teacher or judge."""
        if model == REHEARSAL:
            return {"model": model, "base_url": self.rehearsal_url, "api_key": REHEARSAL}
        return {"model": model, "base_url": self.base_url, "prices": self.prices}

    def label(self, role: str) -> str:
        """How the teacher or the judge is named in rows, tables and figures: a stand-in says that it is one."""
        model = getattr(self, role)
        stand_in = {"teacher": "stand-in, recorded replies", "judge": "stand-in, a rule and not an LLM"}
        stand_in["second_judge"] = stand_in["judge"]
        return f"{model} ({stand_in[role]})" if model == REHEARSAL else model

    def __str__(self) -> str:
        speakers = {self.teacher, self.judge} | ({self.second_judge} - {""})
        rows = {
            "run": f"{self.folder.relative_to(ROOT)}/ ({self.profile} profile, {where()})",
            "languages": ", ".join(LANGUAGES[code] for code in self.languages),
            "teacher": self.label("teacher"),
            "judge": self.label("judge") + (f" and {self.label('second_judge')}" if self.second_judge else ""),
            "endpoint": " and ".join(sorted({_host(self.connection(model)["base_url"], model == REHEARSAL) for model in speakers})),
            "base model": self.base_model + (" (pretrained, from PyPI)" if self.packaged else ""),
            "budget": f"${self.budget_usd:.2f} for this run, hard" if speakers != {REHEARSAL} else "$0, nothing is paid for",
            "tracking": f"wandb {self.tracking}",
        }
        if notices := [notice for model in sorted(speakers) if (notice := models.retirement(model))]:
            rows["notice"] = " ".join(notices)
        return "\n".join(f"{name:<11} {value}" for name, value in rows.items())


def _host(url: str | None, here: bool = False) -> str:
    from urllib.parse import urlsplit

    if here:  # also before it has started and has an address
        return "this machine"
    host = (urlsplit(url).hostname or url) if url else "api.openai.com"
    return "this machine" if host in ("localhost", "::1") or host.startswith("127.") else host


def settings(form: dict) -> Settings:
    """Resolve a notebook's form into `Settings`.

    Args:
        form: the notebook's `globals()`; the upper-case names below are read, others ignored. `"auto"` or a missing name
            falls back to the environment variable `COURSE_<NAME>`, then to what this machine has: with `OPENAI_API_KEY`
            teacher and judge are gpt-4o, with `HF_TOKEN` and a GPU the base model is google/gemma-2b-it, otherwise
            the stand-ins and the packaged student of the rehearsal path.

    Raises:
        CourseError: an unknown language, profile or choice, or a paid model without its key.
    """

    def pick(name: str, default):
        value = form.get(name, "auto")
        if value in ("auto", "", None):
            value = os.environ.get(f"COURSE_{name}") or (default() if callable(default) else default)
        return value

    endpoint = pick("BASE_URL", None) or secret("OPENAI_BASE_URL")
    speaker = lambda: COURSE_TEACHER if secret("OPENAI_API_KEY") and not endpoint else REHEARSAL  # noqa: E731
    resolved = Settings(
        run=str(pick("RUN", "default")),
        profile=_choice("PROFILE", pick("PROFILE", "full"), ("full", "smoke")),
        languages=parse_languages(pick("LANGUAGE", "both")),
        teacher=pick("TEACHER", speaker),
        judge=pick("JUDGE", speaker),
        base_url=endpoint,
        base_model=pick("BASE_MODEL", lambda: COURSE_STUDENT if secret("HF_TOKEN") and has_gpu() else PACKAGED_STUDENT),
        budget_usd=_number("BUDGET_USD", pick("BUDGET_USD", 2.0)),
        train_on=_choice("TRAIN_ON", pick("TRAIN_ON", "both"), ("run", "shipped", "both")),
        tracking=_choice(
            "TRACKING",
            pick("TRACKING", lambda: "online" if secret("WANDB_API_KEY") else "offline"),
            ("online", "offline", "disabled"),
        ),
        prices=parse_prices(pick("PRICES", None)),
        method=_choice("METHOD", pick("METHOD", "alpaca"), ("alpaca", "self-instruct")),
        reply_format=_choice("REPLY_FORMAT", pick("REPLY_FORMAT", "schema"), ("schema", "text")),
        domain=str(pick("DOMAIN", "")).strip(),
        seed_categories=tuple(name.strip() for name in str(pick("SEED_CATEGORIES", "")).split(",") if name.strip()),
        critique=_switch("CRITIQUE", pick("CRITIQUE", "on")),
        batch=_switch("BATCH", pick("BATCH", "off")),
        grounding=_switch("GROUNDING", pick("GROUNDING", "off")),
        push_to=str(pick("PUSH_TO", "")),
        second_judge=str(pick("SECOND_JUDGE", "")),
        adapter=_choice("ADAPTER", pick("ADAPTER", "lora"), ("lora", "dora", "rslora")),
        quantize=_choice("QUANTIZE", pick("QUANTIZE", "none"), ("none", "4bit")),
        merge=_switch("MERGE", pick("MERGE", "off")),
        push_adapter_to=str(pick("PUSH_ADAPTER_TO", "")),
    )
    if resolved.grounding and not resolved.domain:
        raise CourseError("GROUNDING is on, but there is nothing to search for: set DOMAIN too.")
    if not resolved.run or resolved.run != Path(resolved.run).name or resolved.run.startswith("."):
        raise CourseError(f"RUN is {resolved.run!r}, but it names one folder under runs/: use letters, digits, '-' and '_'.")
    if resolved.second_judge == resolved.judge:
        raise CourseError(f"SECOND_JUDGE is {resolved.judge}, as JUDGE is: a judge always agrees with itself; choose another or none.")
    for role, model in (("TEACHER", resolved.teacher), ("JUDGE", resolved.judge), ("SECOND_JUDGE", resolved.second_judge)):
        if model and model != REHEARSAL and not endpoint and not secret("OPENAI_API_KEY"):
            raise CourseError(
                f"{role} is {model}, a paid model, but there is no OPENAI_API_KEY: set it in the environment, in Colab's key "
                f"panel or in .env, or set {role} to 'rehearsal' to run for free."
            )
    return resolved


def parse_languages(text: str) -> tuple[str, ...]:
    """`"en"`, `"ko"` or `"both"` as a tuple of codes; anything else is a CourseError."""
    codes = tuple(LANGUAGES) if text == "both" else (text,)
    if unknown := [code for code in codes if code not in LANGUAGES]:
        raise CourseError(f"LANGUAGE is {unknown[0]!r}, but this course has data and prompts for 'en', 'ko' and 'both' only.")
    return codes


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise CourseError(f"{name} is {value!r}; choose one of {', '.join(choices)}.")
    return value


def _switch(name: str, value) -> bool:
    return _choice(name, str(value), ("on", "off")) == "on"


def _number(name: str, value) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if number < 0:
        raise CourseError(f"{name} is {value!r}; give an amount in dollars, 0 or more.")
    return number


def parse_prices(text: str | None) -> tuple[float, float, float] | None:
    """(input, cached input, output) in dollars per million tokens from "2.50, 1.25, 10"; None stays None."""
    if text is None:
        return None
    try:
        prompt, cached, output = (float(part) for part in str(text).split(","))
    except ValueError:
        raise CourseError(
            f"PRICES is {text!r}; give dollars per million tokens as 'input, cached input, output', such as '2.50, 1.25, 10'."
        ) from None
    return prompt, cached, output


# --- installing on Colab -------------------------------------------------------------------------------------------


def install_command(chosen: Settings) -> list[str]:
    """The pip command for a fresh Colab: ranges that its packages satisfy, and torch pinned to the one that is there.

    Stand-ins are installed only where the settings choose them. Pinning what is already installed is how pip is kept from
    replacing torch and with it CUDA (the torch that Colab ships is built for its driver).
    """
    from importlib.metadata import version

    files = ["requirements.txt"] + (["requirements-rehearsal.txt"] if chosen.rehearsal or chosen.packaged else [])
    command = [sys.executable, "-m", "pip", "install", "--quiet"]
    for file in files:
        command += ["-r", str(ROOT / file)]
    return command + (["bitsandbytes>=0.46"] if chosen.quantize == "4bit" else []) + [f"torch=={version('torch')}"]


def install(chosen: Settings) -> None:
    """On Colab, install what the chosen path needs; elsewhere `make` has done it, so only check that it is there."""
    if where() == "colab":
        done = subprocess.run(install_command(chosen), capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise CourseError(f"Installing the requirements failed ({reason}); restart the runtime and run this cell again.")
    if chosen.rehearsal:
        require("starlette", "the rehearsal endpoint", "set TEACHER and JUDGE to a real model and OPENAI_API_KEY")


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def require(module: str, purpose: str, instead: str) -> None:
    """Raise a CourseError naming the alternative if `module` is not installed (no wheel for this system, say)."""
    if not installed(module):
        raise CourseError(
            f"{purpose} needs the package {module!r}, which is not installed here (macOS and ARM have no wheel for some of "
            f"them): run `make run` once on Linux x86-64, or {instead}."
        )


def track(chosen: Settings) -> None:
    """Tell wandb, by its environment variables, where and how to log; offline and disabled runs need no account."""
    os.environ |= {
        "WANDB_MODE": chosen.tracking,
        "WANDB_DIR": str(chosen.folder),
        "WANDB_PROJECT": "instruction-tuning-from-scratch",
        "WANDB_NAME": chosen.run,
        "WANDB_SILENT": "true",
    }


# --- files ---------------------------------------------------------------------------------------------------------


def read_jsonl(path: str | Path, fields: Iterable[str] = ()) -> list[dict]:
    """All records of a JSON Lines file.

    Raises:
        CourseError: no such file, or a line that is not a JSON object or lacks one of `fields`; it names the line.
    """
    path = Path(path)
    if not path.exists():
        raise CourseError(f"{short(path)} does not exist: run the notebook that makes it first, or check the path.")
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=_fields)
        except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both ValueErrors
            raise CourseError(f"{short(path)}, line {number}: not valid JSON ({error}); mend or delete that line.") from None
        if not isinstance(record, dict):
            raise CourseError(f"{short(path)}, line {number}: expected an object in braces, found {type(record).__name__}.")
        if missing := [field for field in fields if field not in record]:
            raise CourseError(f"{short(path)}, line {number}: the field {missing[0]!r} is missing; add it.")
        records.append(record)
    return records


def _fields(pairs: list[tuple]) -> dict:
    """The object with these fields; json itself would silently keep the last of two fields of one name."""
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return record


def read_json(path: str | Path) -> dict:
    """One JSON object, or {} where the file is absent or torn: for caches, which are then made again."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def write_json(path: str | Path, value: dict) -> Path:
    with atomic(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=1)
    return Path(path)


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, shortened to 16 hex digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def write_jsonl(path: str | Path, records: Iterable[dict]) -> Path:
    """Write records, UTF-8, one a line, all or nothing (see `atomic`)."""
    with atomic(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return Path(path)


@contextlib.contextmanager
def atomic(path: str | Path, mode: str = "w") -> Iterator:
    """Open a temporary neighbour of `path` for writing and move it over `path` only when all is on disk.

    A crash, an exception or a full disk leaves the old file as it was. Raises CourseError for a full disk.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


@contextlib.contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turn 'no space left', 'permission denied' and 'not a folder' while writing `path` into one clear sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CourseError(
                f"No space left on the disk while writing {short(path)}: free some and run the cell again (what was there is kept)."
            ) from None
        setting = "COURSE_CACHE" if Path(path).is_relative_to(CACHE) else "RUN"
        if error.errno in (errno.EACCES, errno.EROFS):
            raise CourseError(f"{short(path)} may not be written here: check its permissions or set another {setting}.") from None
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise CourseError(f"{short(path)} lies below a file, not a folder: remove that file or set another {setting}.") from None
        raise


def fingerprint(*parts) -> str:
    """A short stable hash of anything JSON can hold: the same inputs, the same work, so that it may be reused."""
    stable = lambda value: sorted(value) if isinstance(value, set | frozenset) else str(value)  # noqa: E731 (sets have no order)
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=stable)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def short(path: str | Path) -> str:
    """A path as messages show it: relative to the course where it lies in it."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_absolute() and path.is_relative_to(ROOT) else str(path)


def progress(total: int, title: str):
    """A tqdm bar on stderr, without widgets (they bloat a saved notebook), gone when done and silent for a handful."""
    from tqdm import tqdm

    return tqdm(total=total, desc=title, disable=total < 8, leave=False, file=sys.stderr, ncols=80)


def hangul_share(text: str) -> float:
    """Share of a text's letters that are Hangul, in [0, 1]; 0 where it has no letters."""
    letters = [character for character in text if character.isalpha()]
    return sum("가" <= character <= "힣" for character in letters) / max(1, len(letters))


def seed_everything(seed: int) -> None:
    """Seed Python and, where they are loaded, NumPy and torch."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def figure_style() -> None:
    """Small clear figures, and a font that has Hangul: the NanumGothic inside the package koreanize-matplotlib.

    Only its font file is used: the package itself imports distutils, which Python 3.12 removed.
    """
    import matplotlib
    from matplotlib import font_manager

    if installed("koreanize_matplotlib"):
        folder = importlib.util.find_spec("koreanize_matplotlib").submodule_search_locations[0]
        font_manager.fontManager.addfont(Path(folder) / "fonts" / "NanumGothic.ttf")
        matplotlib.rcParams["font.family"] = ["DejaVu Sans", "NanumGothic"]  # the second where the first has no glyph
    matplotlib.rcParams.update(
        {
            "figure.dpi": 80,
            "savefig.dpi": 120,
            "axes.titlesize": 11,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.unicode_minus": False,
        }
    )


def show(figure, path: str | Path) -> None:
    """Save a figure under the run and show it below the cell."""
    import matplotlib.pyplot as plt

    with disk_errors(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, bbox_inches="tight")
    plt.show()
    plt.close(figure)
