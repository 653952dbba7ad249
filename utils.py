"""Where am I, with which settings, and how are files written: the plumbing that all three notebooks
share.

What it does: find out the machine (Colab, CI, local; GPU or CPU), read secrets without showing
them, install on Colab what the
chosen path needs, and read and write JSON Lines so that a crash never leaves a torn file. What it
does not do: anything about settings, models, prompts or statistics. Importing it needs the standard
library only.
"""

from __future__ import annotations

import contextlib
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

ROOT = Path(__file__).resolve().parent
DATA = ROOT / "data"
CACHE = Path(os.environ.get("COURSE_CACHE", ROOT / ".cache"))


class CourseError(Exception):
    """What is wrong, where, and what to do, in one sentence. Jupyter and `run.py` show the
    sentence, not a traceback."""

    def _render_traceback_(
        self,
    ) -> list[str]:  # IPython asks the exception itself how it wants to be shown
        return [f"Stopped: {self}"]


# --- where am I -----------------------------------------------------------------------------------


def where() -> str:
    """`"colab"`, `"ci"` or `"local"`."""
    if "google.colab" in sys.modules:
        return "colab"
    return "ci" if os.environ.get("CI") else "local"


def has_gpu() -> bool:
    """True if an NVIDIA driver answers. Asked without importing torch, so that it costs nothing on
    a laptop."""
    if "torch" in sys.modules:
        return sys.modules["torch"].cuda.is_available()
    try:
        return subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, timeout=20
        ).stdout.startswith(b"GPU")
    except (OSError, subprocess.TimeoutExpired):
        return False


def secret(name: str) -> str | None:
    """A secret from the environment, then Colab's key panel, then `.env`; None if it is in none of
    them. Never print it."""
    if value := os.environ.get(name, "").strip():
        return value
    if where() == "colab":
        from google.colab import userdata

        denied = (
            userdata.SecretNotFoundError,
            userdata.NotebookAccessError,
            userdata.TimeoutException,
        )
        with contextlib.suppress(*denied):
            return userdata.get(name)
    env_file = ROOT / ".env"
    if env_file.exists():
        for line in env_file.read_text(encoding="utf-8").splitlines():
            key, _, value = line.strip().removeprefix("export ").partition("=")
            if key.strip() == name:
                return value.strip().strip("\"'") or None
    return None


# --- installing on Colab --------------------------------------------------------------------------


def install_command(requirements: list[str]) -> list[str]:
    """The pip command for a fresh Colab: ranges that its packages satisfy, and torch pinned to the
    one that is there.

    Pinning what is already installed is how pip is kept from replacing torch and with it CUDA (the
    torch that Colab ships is built for its driver). `requirements` are pip's arguments, as
    `Settings.requirements` gives them.
    """
    from importlib.metadata import version

    return [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        *requirements,
        f"torch=={version('torch')}",
    ]


def install(requirements: list[str]) -> None:
    """On Colab, install what the chosen path needs; elsewhere `make` has done it."""
    if where() != "colab":
        return
    done = subprocess.run(install_command(requirements), capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CourseError(
            f"Installing the requirements failed ({reason}); restart the runtime and run this "
            "cell again."
        )


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def require(module: str, purpose: str, instead: str) -> None:
    """Raise a CourseError naming the alternative if `module` is not installed (no wheel for this
    system, say)."""
    if not installed(module):
        raise CourseError(
            f"{purpose} needs the package {module!r}, which is not installed here (macOS and ARM "
            "have no wheel for some of "
            f"them): run `make run` once on Linux x86-64, or {instead}."
        )


# --- files ----------------------------------------------------------------------------------------


def read_jsonl(path: str | Path, fields: Iterable[str] = ()) -> list[dict]:
    """All records of a JSON Lines file.

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
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
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
    full disk.
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
    """Turn 'no space left', 'permission denied' and 'not a folder' while writing `path` into one
    clear sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CourseError(
                f"No space left on the disk while writing {short(path)}: free some and run the "
                "cell again (what was there is kept)."
            ) from None
        setting = "COURSE_CACHE" if Path(path).is_relative_to(CACHE) else "RUN"
        if error.errno in (errno.EACCES, errno.EROFS):
            raise CourseError(
                f"{short(path)} may not be written here: check its permissions or set another "
                f"{setting}."
            ) from None
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise CourseError(
                f"{short(path)} lies below a file, not a folder: remove that file or set another "
                f"{setting}."
            ) from None
        raise


def fingerprint(*parts) -> str:
    """A short stable hash of anything JSON can hold: the same inputs, the same work, so that it may
    be reused."""
    stable = lambda value: sorted(value) if isinstance(value, set | frozenset) else str(value)  # noqa: E731 (sets have no order)
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=stable)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def short(path: str | Path) -> str:
    """A path as messages show it: relative to the course where it lies in it."""
    path = Path(path)
    return (
        str(path.relative_to(ROOT))
        if path.is_absolute() and path.is_relative_to(ROOT)
        else str(path)
    )


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
        matplotlib.rcParams["font.family"] = [
            "DejaVu Sans",
            "NanumGothic",
        ]  # the second where the first has no glyph
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
