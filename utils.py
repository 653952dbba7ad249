"""Where am I, which secrets are there, and how are files written: the plumbing that all three
notebooks share.

What it does: find out the machine (Colab, Kaggle, CI, local; GPU or CPU), read secrets without
showing them, and read and write JSON Lines so that a crash never leaves a torn file. What it does
not do: install anything (bootstrap.py does), or anything about settings, models, prompts or
statistics. Importing it needs the standard library only.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import errno
import functools
import hashlib
import importlib.util
import json
import os
import random
import re
import secrets
import string
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
DATA = ROOT / "data"
CACHE = Path(os.environ.get("COURSE_CACHE", ROOT / ".cache"))


class CourseError(Exception):
    """What is wrong, where, and what to do, in one sentence. Jupyter and `run.py` show the
    sentence, not a traceback."""

    def __str__(self) -> str:
        return translated(super().__str__())

    # IPython asks the exception itself how it wants to be shown
    def _render_traceback_(self) -> list[str]:
        return [f"{translated('Stopped')}: {self}"]


def run_command(main: Callable[[], int | None], mistake: int = 1) -> None:
    """End a command line with the status that its `main` returns, or after a mistake of the
    reader's with its sentence and the status `mistake`."""
    try:
        sys.exit(main())
    except CourseError as error:
        print(f"Stopped: {error}", file=sys.stderr)
        sys.exit(mistake)


# --- the reader's language ------------------------------------------------------------------------

NUMBER = r"[-+$]?\d[\d,.]*%?"
VERBATIM = "verbatim"  # in a figure: a text that no language changes
BETWEEN_SENTENCES = re.compile(r"(?<=[.!?]) (?=[A-Z0-9])")

_print = print
_reader = "en"  # the language of what a run says; that of its rows and prompts is another matter


def reader() -> str:
    """The code of the language in which the reader is spoken to."""
    return _reader


def read_in(language: str) -> None:
    """Say headlines, tables, figures and errors in this language from now on."""
    global _reader
    _reader = language


def _letters_outside_braces(text: str) -> int:
    return sum(len(literal) for literal, *_ in string.Formatter().parse(text))


@dataclasses.dataclass(frozen=True)
class _Message:
    """An English text, in which names in braces stand for something, and its translation."""

    pattern: re.Pattern
    longest: str  # piece outside of braces: a text without it need not be tried, which takes longer
    translation: str


@functools.cache
def _messages(language: str, table: str) -> list[_Message]:
    """A table of data/languages/<language>.toml: a pattern for each English text, in which names in
    braces stand for anything (those of one letter: for a number), and its translation. The most
    particular ones, by what stands outside of braces, come first. A cell says what messages say,
    but for the words of `[cells]`."""
    path = DATA / "languages" / f"{language}.toml"
    entry = read_toml(path) if path.exists() else {}
    known = entry.get(table, {})
    if table == "cells":
        known = entry.get("messages", {}) | known
    found = []
    for english in sorted(known, key=_letters_outside_braces, reverse=True):
        pattern, literals = "", []
        for literal, name, _, _ in string.Formatter().parse(english):
            literals.append(literal)
            pattern += re.escape(literal)
            if name:
                anything = NUMBER if len(name) == 1 else ".*?"
                pattern += f"(?P<{name}>{anything})"
        longest = max(literals, key=len)
        found.append(_Message(re.compile(pattern, re.DOTALL), longest, known[english]))
    return found


def translated(text: str, language: str = "", table: str = "messages") -> str:
    """What the course says, in the reader's language (or another one), as far as it has the words:
    the code says everything in English, and what is shown is looked up here at the last moment."""
    for message in _messages(language or _reader, table):
        if message.longest in text and (found := message.pattern.fullmatch(text)):
            values = found.groupdict()
            for name in values.keys() - {"text"}:  # a row's text, say, is no word of the course
                values[name] = _value_translated(values[name], language, several=name == "kinds")
            return message.translation.format(**values)
    return text


def _value_translated(value: str, language: str, several: bool) -> str:
    """What stands in a place of a sentence, with the spaces around it, which align columns; in a
    place for several words, "a; b" or "a, b and c", each of them."""
    words, comma = [value.strip()], ", "
    if several and "; " in value:
        words, comma = value.strip().split("; "), "; "
    elif several:
        words = re.split(", | and | or ", value.strip())
    said = comma.join(translated(word, language) for word in words)
    return value.replace(value.strip(), said) if value.strip() else value


def translated_lines(text: str, language: str = "") -> str:
    """A text of several lines, such as what is printed, in the reader's language (or another one):
    each line as `[printed]` has it, or its sentences as `[messages]` has them."""
    return "\n".join(_line_translated(line, language) for line in text.split("\n"))


def _line_translated(line: str, language: str) -> str:
    said = translated(line, language, "printed")
    if said != line or not line.endswith("."):
        return said
    sentences = BETWEEN_SENTENCES.split(line)
    others = [translated(sentence, language) for sentence in sentences]
    return line if set(sentences) & set(others) else " ".join(others)  # all of them, or none


def print_to_reader() -> None:
    """From here on the lines that are printed are looked up too (`translated_lines`)."""
    builtins.print = _print_translated


def _print_translated(*values, sep: str | None = " ", **options) -> None:
    text = (" " if sep is None else sep).join(map(str, values))
    _print(translated_lines(text), **options)


# --- where am I -----------------------------------------------------------------------------------


def where() -> str:
    """`"kaggle"`, `"colab"`, `"ci"` or `"local"`."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:  # first, for Kaggle's image is made from Colab's
        return "kaggle"
    if "google.colab" in sys.modules:
        return "colab"
    return "ci" if os.environ.get("CI") else "local"


def has_gpu() -> bool:
    """True if an NVIDIA driver answers. Asked without importing torch, so that it costs nothing on
    a laptop."""
    if "torch" in sys.modules:
        return sys.modules["torch"].cuda.is_available()
    return nvidia_driver()


def nvidia_driver() -> bool:
    """True if an NVIDIA driver answers and knows a GPU."""
    return _nvidia_smi("-L").startswith("GPU")


def gpu_capability() -> float:
    """The compute capability of the first NVIDIA GPU, such as 7.5 for a T4 and 8.9 for an L4, or 0
    where there is none. Asked without importing torch."""
    said = _nvidia_smi("--query-gpu=compute_cap", "--format=csv,noheader").splitlines()
    try:
        return float(said[0])
    except (IndexError, ValueError):
        return 0.0


def _nvidia_smi(*arguments: str) -> str:
    command = ["nvidia-smi", *arguments]
    try:
        return subprocess.run(command, capture_output=True, timeout=20, encoding="utf-8").stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


# --- secrets --------------------------------------------------------------------------------------

PANELS = {"colab": "Colab's key panel", "kaggle": "Kaggle's Add-ons > Secrets"}
_panel: dict[str, str | None] = {}  # what the panel answered: it is asked once for each name
_found: dict[str, str] = {}  # by name: where it was found, or why not and what that means
_panel_is_silent = False


def secret(name: str, without: str = "") -> str | None:
    """A secret from the environment, then from Colab's or Kaggle's key panel, then from `.env`;
    None if it is in none of them. Never print it.

    Args:
        without: what the course does where it is not there, for `secrets_found`; empty: nobody
            misses it.

    Raises:
        CourseError: it has a character that no key has; sending it would fail far from here.
    """
    value: str | None = os.environ.get(name, "").strip()
    if value:
        return _checked(name, value, "the environment")
    if where() in PANELS and (value := _from_panel(name)):
        return _checked(name, value, PANELS[where()])
    if value := _from_dotenv(name):
        return _checked(name, value, ".env")
    if without:
        _found.setdefault(name, f"not there: {without}")
    return None


def secrets_found() -> str:
    """What came of the secrets that were looked for, to be printed: names and places, never a
    value; nothing of those that nobody misses."""
    return "; ".join(f"{name} {what}" for name, what in _found.items())


def forget_secrets() -> None:
    """Ask again from here on: a reader may have added a key, or given access to it."""
    global _panel_is_silent
    _panel.clear()
    _found.clear()
    _panel_is_silent = False


def _checked(name: str, value: str, place: str) -> str:
    value = value.strip()
    odd = [character for character in value if not "!" <= character <= "~"]
    if odd:
        raise CourseError(
            f"{name} from {place} has a character that no key has ({odd[0]!a}, a line break or "
            "a space, say, that was copied with it): copy the key again."
        )
    _found[name] = f"from {place}"
    return value


def _from_panel(name: str) -> str | None:
    """The panel's answer; a name that it does not have or does not give is None, with the reason
    for `secrets_found`."""
    if name not in _panel and not _panel_is_silent:
        _panel[name] = _ask_colab(name) if where() == "colab" else _ask_kaggle(name)
    return _panel.get(name)


def _ask_colab(name: str) -> str | None:
    global _panel_is_silent
    from google.colab import userdata

    try:
        return userdata.get(name)
    except userdata.SecretNotFoundError:
        return None
    except userdata.NotebookAccessError:
        _found[name] = "refused: switch on 'Notebook access' beside it in Colab's key panel"
    except userdata.TimeoutException:  # after ten seconds, and so it would be for every other name
        _panel_is_silent = True
        _found[PANELS["colab"]] = (
            "does not answer (it does in Colab's own page only, so elsewhere, as in VS Code, set "
            "environment variables or write a file .env)"
        )
    return None


def _ask_kaggle(name: str) -> str | None:
    """Kaggle raises errors of several kinds, and a missing secret is one of them: not an error
    here."""
    from kaggle_secrets import UserSecretsClient

    try:
        return UserSecretsClient().get_secret(name)
    except Exception as error:
        if "no user secrets exist" not in str(error).lower():
            reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
            _found[name] = f"cannot be read from Kaggle's secrets ({reason}): is Internet on?"
    return None


def _from_dotenv(name: str) -> str | None:
    env_file = ROOT / ".env"
    if not env_file.exists():
        return None
    for line in env_file.read_text(encoding="utf-8").splitlines():
        key, _, value = line.strip().removeprefix("export ").partition("=")
        if key.strip() == name:
            return value.strip().strip("\"'") or None
    return None


# --- packages -------------------------------------------------------------------------------------


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def require(module: str, purpose: str, instead: str) -> None:
    """Raise a CourseError naming the alternative if `module` is not installed (no wheel for this
    system, say)."""
    if not installed(module):
        raise CourseError(
            f"{purpose} needs the package {module!r}, which is not installed here (macOS and ARM "
            f"have no wheel for some of them): run `make run` once on Linux x86-64, or {instead}."
        )


# --- files ----------------------------------------------------------------------------------------


def read_jsonl(
    path: str | Path, fields: Iterable[str] = (), whole_lines: bool = False
) -> list[dict]:
    """All records of a JSON Lines file.

    Args:
        fields: that each record must have.
        whole_lines: leave out a last line without its end: somebody is writing it, or was killed.

    Raises:
        CourseError: no such file, or a line that is not a JSON object or lacks one of `fields`; it
            names the line.
    """
    path = Path(path)
    if not path.exists():
        raise CourseError(
            f"{short(path)} does not exist: run the notebook that makes it first, or check the "
            "path."
        )
    records = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1] if whole_lines else lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=_fields)
        except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both ValueErrors
            raise CourseError(
                f"{short(path)}, line {number}: not valid JSON ({error}); mend or delete that line."
            ) from None
        if not isinstance(record, dict):
            raise CourseError(
                f"{short(path)}, line {number}: expected an object in braces, found "
                f"{type(record).__name__}."
            )
        if missing := [field for field in fields if field not in record]:
            raise CourseError(
                f"{short(path)}, line {number}: the field {missing[0]!r} is missing; add it."
            )
        records.append(record)
    return records


def _fields(pairs: list[tuple]) -> dict:
    """The object with these fields; json itself would silently keep the last of two fields of one
    name."""
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"the field {next(name for name in names if names.count(name) > 1)!r} occurs twice"
        )
    return record


def read_toml(path: str | Path) -> dict:
    """The entries of a TOML file.

    Raises:
        CourseError: it is no TOML; the line is named.
    """
    import tomllib

    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError and TOMLDecodeError are both ValueErrors
        raise CourseError(f"{short(path)} is not valid TOML ({error}); mend it.") from None


def read_json(path: str | Path) -> dict:
    """One JSON object, or {} where the file is absent or torn: for caches, which are then made
    again."""
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
    """Open a temporary neighbour of `path` for writing and move it over `path` only when all is on
    disk.

    A crash, an exception or a full disk leaves the old file as it was. Raises CourseError for a
    disk that fails (see `disk_errors`).
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not by `tempfile`, whose files nobody else may read
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            new = mode.replace("w", "x")
            with open(temporary, new, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):  # not there, or on a drive that went away
                os.unlink(temporary)


# What the system says of a drive that went away under its files: Google Drive and network drives
# (not connected, stale, timed out), a disk that fails or was pulled out
GONE = {
    getattr(errno, name)
    for name in ("ENOTCONN", "EIO", "ESTALE", "ENODEV", "ENXIO", "ETIMEDOUT", "EHOSTDOWN")
    if hasattr(errno, name)
}
FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextlib.contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turn what a disk can do while `path` is written (be full, go away, be closed to writing) into
    one clear sentence, whichever library wrote."""
    try:
        yield
    except CourseError:
        raise
    except Exception as error:
        sentence = _disk_sentence(Path(path), _disk_error(Path(path), error))
        if sentence is None:
            raise
        raise CourseError(sentence) from None


def _disk_error(path: Path, error: Exception) -> int | None:
    """The operating system's number of an error; None for one that is not of the disk.

    Rust's libraries (safetensors) write it into their message. torch's archives and Pillow leave it
    out, so that the disk itself is asked.
    """
    if isinstance(error, TimeoutError):  # an OSError too: another holds the lock
        return None
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if named := re.search(r"\(os error (\d+)\)", str(error)):
        return int(named[1])
    of_torch = any(words in str(error) for words in ("inline_container", "Parent directory"))
    if not isinstance(error, OSError) and not of_torch:
        return None
    try:
        probe = path.with_name(f".{secrets.token_hex(8)}")
        try:
            probe.write_bytes(bytes(1_000_000))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as found:
        return found.errno
    return errno.ENOSPC  # what they could not write is gone again, and there is room


def _disk_sentence(path: Path, number: int | None) -> str | None:
    """What is wrong, what is safe and what to do."""
    if number is None:
        return None
    if number in GONE or (number == errno.ENOENT and not os.path.exists(path.parent)):
        return (
            f"The drive that holds {short(path)} went away ({os.strerror(number)}): what was saved "
            "there before is kept. On Colab run the first two cells again, which mount Google "
            "Drive; elsewhere connect it again; then run this again."
        )
    if number in FULL:
        return (
            f"No space left on the disk while writing {short(path)}: free some and run this "
            "again (what was saved before is kept)."
        )
    cached = path.is_relative_to(CACHE)
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{short(path)} may not be written here ({os.strerror(number)}): check its "
            "permissions and whether another program has it open, or set another "
            f"{'COURSE_CACHE' if cached else 'SAVE_TO'}."
        )
    if number in (errno.ENOTDIR, errno.EEXIST):
        return (
            f"{short(path)} lies below a file, not a folder: remove that file or set another "
            f"{'COURSE_CACHE' if cached else 'RUN'}."
        )
    return None


def _stable(value: object) -> list | str:
    """What JSON cannot hold, in a form that is the same in every process: sets have no order."""
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def fingerprint(*parts) -> str:
    """A short stable hash of anything JSON can hold: the same inputs, the same work, so that it may
    be reused."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=_stable)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def short(path: str | Path) -> str:
    """A path as messages show it: relative to the course where it lies in it."""
    path = Path(path)
    inside = path.is_absolute() and path.is_relative_to(ROOT)
    return str(path.relative_to(ROOT) if inside else path)


def progress(total: int, title: str):
    """A tqdm bar on stderr, without widgets (they bloat a saved notebook), gone when done and
    silent for a handful."""
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
    """Small clear figures, and a font that has Hangul: the NanumGothic inside the package
    koreanize-matplotlib.

    Only its font file is used: the package itself imports distutils, which Python 3.12 removed.
    """
    import matplotlib
    from matplotlib import font_manager

    if installed("koreanize_matplotlib"):
        # Its path only: importing it would set fonts of its own
        spec = importlib.util.find_spec("koreanize_matplotlib")
        fonts = Path(str(spec and spec.origin)).parent / "fonts"
        font_manager.fontManager.addfont(fonts / "NanumGothic.ttf")
        # The second where the first has no glyph
        matplotlib.rcParams["font.family"] = ["DejaVu Sans", "NanumGothic"]
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
    """Save a figure under the run and show it below the cell, with its words in the reader's
    language. An English run saves a Korean twin beside it (`loss.ko.png`), for the Korean
    notebooks."""
    import matplotlib.pyplot as plt

    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if reader() != "en":
            translate_figure(figure, reader())
        figure.savefig(path, bbox_inches="tight")
    plt.show()
    if reader() == "en":
        with disk_errors(path):
            translate_figure(figure, "ko")
            figure.savefig(path.with_suffix(".ko.png"), bbox_inches="tight")
    plt.close(figure)


def translate_figure(figure, language: str) -> None:
    """Put titles, labels, legends and named ticks of a figure into a language. What is a word of
    the data and not of the course has `gid=VERBATIM`: a text, or an axis with its ticks."""
    from matplotlib.text import Text

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_gid() == VERBATIM:
                continue
            names = [label.get_text() for label in axis.get_ticklabels()]
            other = [translated(name, language) for name in names]
            if other != names:  # numbers keep the formatter that they have
                axis.set_ticks(axis.get_ticklocs(), labels=other)
    for text in figure.findobj(Text):
        if text.get_gid() != VERBATIM:
            text.set_text(translated(text.get_text(), language))
