"""Sharded data sets: folders of JSON Lines or Parquet files, read piece by piece and written all or
nothing.

What it does: find shards, read one column of them with the number of every row, and copy a shard
without some of its rows. What it does
not do: know what the rows mean. Importing it does not import pyarrow.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import utils
from utils import CourseError

KINDS = (".jsonl", ".parquet")
BATCH = 20_000  # rows read at once


def find(paths: Iterable[str | Path]) -> list[Path]:
    """The shards in files and folders, sorted by name within a folder: their order is the order of
    the rows.

    Raises:
        CourseError: nothing there, another kind of file, or two shards of one name (their outputs
            would be one file).
    """
    shards: list[Path] = []
    for path in map(Path, paths):
        found = (
            sorted(file for file in path.glob("*") if file.suffix in KINDS)
            if path.is_dir()
            else [path]
        )
        if not found or not path.exists():
            raise CourseError(
                f"{path} has no shards (files ending in .jsonl or .parquet): check the path, on "
                "every node of the cluster."
            )
        shards += found
    for shard in shards:
        if shard.suffix not in KINDS:
            raise CourseError(
                f"{shard} is neither .jsonl nor .parquet: convert it, or name the right folder."
            )
    names = [shard.name for shard in shards]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise CourseError(
            f"Two shards are called {twice}, so their outputs would be one file: rename one."
        )
    return shards


def texts(
    shard: Path, field: str, skip_torn: bool = False
) -> Iterator[tuple[list[int], list[str]]]:
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
                f"{shard.name}, line {number}: {problem}; mend or delete that line, or set torn "
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


def _values(shard: Path, field: str) -> Iterator[tuple[int, str, str | None]]:
    """`(number, text, what is wrong)` for every row."""
    if not shard.exists():
        raise CourseError(
            f"{shard} does not exist on this node: every node must see the shards under the same "
            "path."
        )
    if shard.suffix == ".jsonl":
        with open(shard, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, *_value(line, field)
        return
    number = 0
    for batch in _parquet(shard, field).iter_batches(BATCH, columns=[field]):
        for text in batch.column(0).to_pylist():
            number += 1
            yield (
                number,
                text,
                None
                if isinstance(text, str)
                else f"{field!r} is {type(text).__name__} and not a text",
            )


def _value(line: bytes, field: str) -> tuple[str, str | None]:
    try:
        record = json.loads(line)
        text = record[field]
    except ValueError as error:
        return "", f"not valid JSON ({error})"
    except (KeyError, TypeError):
        return "", f"no object with the field {field!r}"
    return (
        (text, None)
        if isinstance(text, str)
        else ("", f"{field!r} is {type(text).__name__} and not a text")
    )


def _parquet(shard: Path, field: str | None = None):
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(shard)
    except (pyarrow.ArrowException, OSError) as error:
        raise CourseError(
            f"{shard.name} cannot be read as Parquet ({str(error)[:120]}): copy that shard again."
        ) from None
    if field is not None and field not in file.schema_arrow.names:
        raise CourseError(
            f"{shard.name} has no column {field!r}, only {', '.join(file.schema_arrow.names)}: "
            "set --field."
        )
    return file


def divide(shard: Path, folder: Path, removed: dict[int, dict], field: str) -> dict:
    """Write a shard's rows into `folder`/kept, removed (with the fields of `removed`, by row
    number) and torn, each whole or not at all.

    Kept JSON lines are copied byte by byte. Returns how many rows went where.
    """
    counts = {"kept": 0, "removed": 0, "torn": 0}
    paths = {name: folder / name / shard.name for name in counts}
    if shard.suffix == ".jsonl":
        with (
            utils.atomic(paths["kept"], "wb") as kept,
            utils.atomic(paths["removed"], "wb") as gone,
            open(shard, "rb") as file,
        ):
            torn = []
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                line = line.rstrip(b"\r\n") + b"\n"
                if number in removed:
                    gone.write(
                        (
                            json.dumps(json.loads(line) | removed[number], ensure_ascii=True) + "\n"
                        ).encode()
                    )
                    counts["removed"] += 1
                elif _value(line, field)[1]:
                    torn.append(
                        json.dumps(
                            {"line": number, "bytes": line.decode("utf-8", "backslashreplace")},
                            ensure_ascii=False,
                        )
                        + "\n"
                    )
                    counts["torn"] += 1
                else:
                    kept.write(line)
                    counts["kept"] += 1
        if torn:
            with utils.atomic(paths["torn"]) as file:
                file.writelines(torn)
        return counts
    return counts | _divide_parquet(shard, paths, removed, field)


def _divide_parquet(
    shard: Path, paths: dict[str, Path], removed: dict[int, dict], field: str
) -> dict:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = _parquet(shard, field).read()
    numbers = range(1, len(table) + 1)
    gone = [number for number in numbers if number in removed]
    torn = [
        number
        for number, text in zip(numbers, table[field].to_pylist(), strict=True)
        if not isinstance(text, str)
    ]
    left = [number - 1 for number in numbers if number not in removed and number not in set(torn)]
    parts = {
        "kept": table.take(pa.array(left, pa.int64())),
        "removed": table.take([number - 1 for number in gone] or pa.array([], pa.int64())),
    }
    for name in ("duplicate_of", "rouge_l"):
        kind = pa.string() if name == "duplicate_of" else pa.float64()
        parts["removed"] = parts["removed"].append_column(
            name, pa.array([removed[number][name] for number in gone], kind)
        )
    if torn:
        parts["torn"] = table.take([number - 1 for number in torn])
    for name, part in parts.items():
        with utils.atomic(paths[name], "wb") as file:
            pq.write_table(part, file)
    return {"kept": len(left), "removed": len(gone), "torn": len(torn)}
