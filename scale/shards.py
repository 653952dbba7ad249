"""Sharded data sets: folders of JSON Lines or Parquet files, on disks or in object storage, read
piece by piece and written all or nothing.

What it does: find shards, read one column of them with the number of every row, and copy a shard
without some of its rows. A path is a local one, made absolute here, or an address such as
"s3://bucket/folder" or "gs://bucket/folder" (see `pyarrow.fs.FileSystem.from_uri` for its options).
What it does not do: know what the rows mean. Importing it does not import pyarrow.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import utils
from utils import CourseError

KINDS = (".jsonl", ".parquet")
BATCH = 20_000  # rows read at once
REPORT = "report.json"

# --- where they are -------------------------------------------------------------------------------


def absolute(path: str | Path) -> str:
    return str(path) if "://" in str(path) else str(Path(path).resolve())


def inside(folder: str, *names: str) -> str:
    """The path of something in a folder; an address keeps its options ("?region=...")."""
    path, mark, options = folder.partition("?") if "://" in folder else (folder, "", "")
    return "/".join([path.rstrip("/"), *names]) + mark + options


def parent(path: str) -> str:
    return path.partition("?")[0].rstrip("/").rpartition("/")[0]


def name(path: str) -> str:
    """The last part of it."""
    if "://" in path:
        path = path.partition("?")[0]
    return path.rstrip("/").rpartition("/")[2]


def shown(text: str) -> str:
    """A text for people, in which addresses are without keys and options."""
    return re.sub(r"(\w+://)(?:[^/\s@]*@)?([^?\s]*)(\?\S*)?", r"\1\2", text)


def _storage(path: str):
    """`(filesystem, path in it)`."""
    import pyarrow as pa
    from pyarrow.fs import FileSystem, LocalFileSystem

    if "://" not in path:
        return LocalFileSystem(), path
    try:
        return FileSystem.from_uri(path)
    except (pa.ArrowException, OSError) as error:
        raise CourseError(
            f"{shown(path)} is no address of a storage that can be used here "
            f"({shown(str(error))[:160]}): write it as s3://bucket/folder or gs://bucket/folder."
        ) from None


@contextlib.contextmanager
def _storage_errors(path: str) -> Iterator[None]:
    """What a storage says (no such bucket, no credentials, no answer) as one sentence."""
    try:
        yield
    except OSError as error:
        if "://" not in path:
            raise
        raise CourseError(
            f"{shown(path)} cannot be reached ({shown(str(error))[:200]}): check the address, and "
            "the credentials on every node."
        ) from None


def _listed(path: str) -> list[str] | None:
    """What lies in a folder; None for a file or nothing."""
    from pyarrow.fs import FileSelector, FileType

    storage, place = _storage(path)
    with _storage_errors(path):
        if storage.get_file_info(place).type != FileType.Directory:
            return None
        files = storage.get_file_info(FileSelector(place))
    return sorted(inside(path, file.base_name) for file in files)


def _exists(path: str) -> bool:
    from pyarrow.fs import FileType

    storage, place = _storage(path)
    with _storage_errors(path):
        return storage.get_file_info(place).type != FileType.NotFound


@contextlib.contextmanager
def whole(path: str) -> Iterator:
    """Open a file for writing bytes; it is there when all of it was written, and not before: an
    object is sent from a temporary file, a local one moved."""
    if "://" not in path:
        with utils.atomic(path, "wb") as file:
            yield file
        return
    storage, place = _storage(path)
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        with _storage_errors(path):
            # Where folders are real; elsewhere it makes nothing that matters
            storage.create_dir(place.rpartition("/")[0])
            with storage.open_output_stream(place) as remote:
                shutil.copyfileobj(file, remote)


def find(paths: Iterable[str | Path]) -> list[str]:
    """The shards in files and folders, sorted by name within a folder: their order is the order of
    the rows.

    Raises:
        CourseError: nothing there, another kind of file, or two shards of one name (their outputs
            would be one file).
    """
    shards: list[str] = []
    for path in map(absolute, paths):
        listed = _listed(path)
        found = [path] if listed is None else [s for s in listed if name(s).endswith(KINDS)]
        if not found or not _exists(path):
            raise CourseError(
                f"{shown(path)} has no shards (files ending in .jsonl or .parquet): check the "
                "path, on every node of the cluster."
            )
        shards += found
    for shard in shards:
        if not name(shard).endswith(KINDS):
            raise CourseError(
                f"{shown(shard)} is neither .jsonl nor .parquet: convert it, or name the right "
                "folder."
            )
    names = list(map(name, shards))
    if twice := next((one for one in names if names.count(one) > 1), None):
        raise CourseError(
            f"Two shards are called {twice}, so their outputs would be one file: rename one."
        )
    return shards


def start_output(output: str | Path, shards: list[str]) -> str:
    """The output folder's path, when it may be written; a report of an earlier run is taken away,
    for it says that the output is whole.

    Raises:
        CourseError: it is the shards' own folder, or holds the output of other ones.
    """
    output = absolute(output)
    above = {parent(shard) for shard in shards}
    if inside(output, "").partition("?")[0].rstrip("/") in above | set(map(parent, above)):
        raise CourseError(
            f"The output {shown(output)} is the folder of the shards, or above it: choose another."
        )
    kept = {name(path) for path in _listed(inside(output, "kept")) or []}
    if other := kept - set(map(name, shards)):
        raise CourseError(
            f"{shown(output)}/kept holds {min(other)}, which is no shard of this input: choose "
            "another output folder."
        )
    report = inside(output, REPORT)
    if _exists(report):
        storage, place = _storage(report)
        with _storage_errors(report):
            storage.delete_file(place)
    return output


def finish_output(output: str, report: dict) -> None:
    """Write the report, which says that the output is whole."""
    with whole(inside(output, REPORT)) as file:
        file.write((json.dumps(report, ensure_ascii=False, indent=1) + "\n").encode())


# --- what they hold -------------------------------------------------------------------------------


def texts(shard: str, field: str, skip_torn: bool = False) -> Iterator[tuple[list[int], list[str]]]:
    """Numbers (from 1; line numbers in JSON Lines) and texts of a shard's rows, some thousand at a
    time.

    Args:
        skip_torn: leave out lines that are no JSON object with that field, instead of stopping at
            the first.

    Raises:
        CourseError: the shard or the field is missing, or a line is torn; it names the shard and
            the line.
    """
    numbers, found = [], []
    for number, text, problem in _values(shard, field):
        if problem and not skip_torn:
            raise CourseError(
                f"{name(shard)}, line {number}: {problem}; mend or delete that line, or set torn "
                "lines aside with --skip-torn."
            )
        if problem:
            continue
        numbers.append(number)
        found.append(text)
        if len(found) == BATCH:
            yield numbers, found
            numbers, found = [], []
    if found:
        yield numbers, found


def _values(shard: str, field: str) -> Iterator[tuple[int, str, str | None]]:
    """`(number, text, what is wrong)` for every row."""
    if not _exists(shard):
        raise CourseError(
            f"{shown(shard)} does not exist on this node: every node must see the shards under the "
            "same path."
        )
    if shard_is_json(shard):
        for number, line in _lines(shard):
            yield number, *_value(line, field)
        return
    number = 0
    for batch in _parquet(shard, field).iter_batches(BATCH, columns=[field]):
        for text in batch.column(0).to_pylist():
            number += 1
            yield number, text, _no_text(text, field)


def shard_is_json(shard: str) -> bool:
    return name(shard).endswith(".jsonl")


def _lines(shard: str) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, with their numbers from 1."""
    storage, place = _storage(shard)
    with _storage_errors(shard), storage.open_input_stream(place) as file:
        for number, line in enumerate(io.BufferedReader(file), 1):
            if line.strip():
                yield number, line


def _value(line: bytes, field: str) -> tuple[str, str | None]:
    try:
        record = json.loads(line)
        text = record[field]
    except ValueError as error:
        return "", f"not valid JSON ({error})"
    except (KeyError, TypeError):
        return "", f"no object with the field {field!r}"
    return text, _no_text(text, field)


def _no_text(value, field: str) -> str | None:
    if isinstance(value, str):
        return None
    return f"{field!r} is {type(value).__name__} and not a text"


def _parquet(shard: str, field: str):
    import pyarrow
    import pyarrow.parquet

    storage, place = _storage(shard)
    try:
        file = pyarrow.parquet.ParquetFile(place, filesystem=storage)
    except (pyarrow.ArrowException, OSError) as error:
        raise CourseError(
            f"{name(shard)} cannot be read as Parquet ({str(error)[:120]}): copy that shard again."
        ) from None
    if field not in file.schema_arrow.names:
        raise CourseError(
            f"{name(shard)} has no column {field!r}, only {', '.join(file.schema_arrow.names)}: "
            "set --field."
        )
    return file


def divide(shard: str, folder: str, removed: dict[int, dict], field: str) -> dict[str, int]:
    """Write a shard's rows into `folder`/kept, removed (with the fields of `removed`, by row
    number) and torn, each whole or not at all.

    Kept JSON lines are copied byte by byte. Returns how many rows went where.
    """
    write = _divide_json if shard_is_json(shard) else _divide_parquet
    paths = {kind: inside(folder, kind, name(shard)) for kind in ("kept", "removed", "torn")}
    return write(shard, paths, removed, field)


def _divide_json(
    shard: str, paths: dict[str, str], removed: dict[int, dict], field: str
) -> dict[str, int]:
    counts, torn = {"kept": 0, "removed": 0}, []
    with whole(paths["kept"]) as kept, whole(paths["removed"]) as gone:
        for number, line in _lines(shard):
            line = line.rstrip(b"\r\n") + b"\n"
            if number in removed:
                record = json.loads(line) | removed[number]
                gone.write(f"{json.dumps(record, ensure_ascii=True)}\n".encode())
                counts["removed"] += 1
            elif _value(line, field)[1]:
                torn.append({"line": number, "bytes": line.decode("utf-8", "backslashreplace")})
            else:
                kept.write(line)
                counts["kept"] += 1
    if torn:
        with whole(paths["torn"]) as file:
            for row in torn:
                file.write(f"{json.dumps(row, ensure_ascii=False)}\n".encode())
    return counts | {"torn": len(torn)}


def _divide_parquet(
    shard: str, paths: dict[str, str], removed: dict[int, dict], field: str
) -> dict[str, int]:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = _parquet(shard, field).read()
    numbers = np.arange(1, len(table) + 1)
    gone = np.isin(numbers, list(removed))
    torn = np.array([not isinstance(text, str) for text in table[field].to_pylist()], bool) & ~gone
    parts = {"kept": ~gone & ~torn, "removed": gone, "torn": torn}
    for kind, rows in parts.items():
        if kind == "torn" and not rows.any():
            continue
        part = table.filter(pa.array(rows))
        if kind == "removed":
            reasons = [removed[number] for number in numbers[gone].tolist()]
            for field_name, of in (("duplicate_of", pa.string()), ("rouge_l", pa.float64())):
                column = pa.array([reason[field_name] for reason in reasons], of)
                part = part.append_column(field_name, column)
        with whole(paths[kind]) as file:
            pq.write_table(part, file)
    return {kind: int(rows.sum()) for kind, rows in parts.items()}
