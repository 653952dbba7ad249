"""Near-duplicates among millions of rows, on Ray Data: MinHash-LSH proposes pairs, the course's
exact ROUGE-L decides them.

    .venv/scale/bin/python -m scale.duplicates SHARDS... --output FOLDER --field instruction
    --threshold 0.7

What it does: read shards of JSON Lines or Parquet, find the pairs that `rouge.py` scores above the
threshold, keep one of each group, and write every shard as kept and removed rows. What it does not
do: find every pair. ROUGE-L F1 > t means more than t / 2 of all tokens in common, in any order,
hence a Jaccard similarity of the token multisets above t / (2 - t); the number of bands is chosen
so that even a pair right there is proposed with a probability of `RECALL`, and those further up
nearly always.

The order of the rows is that of the shards' names and of the lines in them: the first of two
duplicates survives. Nothing depends on timing, on the number of workers or on which of them died:
tasks are functions of their input, and Ray runs a lost one again.

Sources: Broder (1997) for MinHash, which the package rensa computes; Leskovec et al., Mining of
Massive Datasets, ch. 3, for banding.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import rouge
import utils
from scale import cluster, shards
from utils import CourseError

RECALL = 0.97  # chance that a pair exactly at the threshold is proposed
ROWS = 4  # minimum hashes in a band: fewer propose more pairs in vain, more need more bands
# texts in one bucket that all its others are compared with: a bucket of n texts costs at most n
# times this
LARGEST = 1000
SEED = 42
ROW_BITS = 36  # a position is shard << 36 | row number
PAIRS_AT_ONCE = 4_000_000
MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Filter:
    """What counts as a duplicate, and who survives.

    Args:
        threshold: ROUGE-L F1 in (0, 1]; a pair is a duplicate above it.
        tokenizer: see `rouge.tokenize`.
        survivors: "greedy": a row goes if a row that stays, and stands before it, is its duplicate,
            as in `rouge.rouge_l_duplicates`; "one": exactly one, the first, of everything that is
            connected by duplicates, so that also the two ends of a chain are one.
    """

    threshold: float = 0.7
    tokenizer: str = "unicode"
    survivors: str = "greedy"

    def __post_init__(self) -> None:
        if not 0.3 <= self.threshold <= 1:
            raise CourseError(
                f"The threshold is {self.threshold}, but LSH can find pairs from 0.3 to 1 only: "
                "use similarity.py for less."
            )
        if self.survivors not in ("greedy", "one"):
            raise CourseError(f"--survivors is {self.survivors!r}; choose 'greedy' or 'one'.")
        rouge.tokenize("", self.tokenizer)

    @property
    def bands(self) -> int:
        """So many that a pair at the threshold agrees in one of them with probability `RECALL`: 1 -
        (1 - J^rows)^bands."""
        jaccard = min(self.threshold / (2 - self.threshold), 1 - 1e-9)
        return math.ceil(math.log(1 - RECALL) / math.log(1 - jaccard**ROWS))


# --- pure functions of arrays, one a stage --------------------------------------------------------


def mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: every bit of the result depends on every bit of the value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def elements(tokens: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
    """`(hashes, lengths)`: a 64-bit hash for every token of every text, in which the first, second,
    ... occurrence of a token in a text differ, so that sets of them are multisets of tokens."""
    from rensa import RMinHash

    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    hashes = np.fromiter(
        (value for row in RMinHash.hash_token_sets(tokens) for value in row),
        np.uint64,
        int(lengths.sum()),
    )
    rows = np.repeat(np.arange(len(tokens)), lengths)
    order = np.lexsort((hashes, rows))  # sorts within each text, and leaves every text where it was
    hashes = hashes[order]
    steps, new = np.arange(len(hashes)), np.ones(len(hashes), bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (rows[1:] != rows[:-1])
    occurrence = steps - np.maximum.accumulate(np.where(new, steps, 0))
    return mixed(hashes + occurrence.astype(np.uint64) * MIX), lengths


def buckets(hashes: np.ndarray, lengths: np.ndarray, bands: int) -> np.ndarray:
    """(texts, bands) uint64: texts with the same number in a column meet there. No text may be
    empty."""
    from rensa import RMinHash

    offsets = np.r_[0, np.cumsum(lengths)].astype(np.uint64)
    signatures = np.array(
        RMinHash.digest_matrix_from_flat_token_hashes(
            hashes, offsets, bands * ROWS, SEED
        ).to_rows(),
        np.uint64,
    )
    made = np.tile(np.arange(1, bands + 1, dtype=np.uint64) * MIX, (len(lengths), 1))
    for part in np.moveaxis(signatures.reshape(len(lengths), bands, ROWS), 2, 0):
        made = mixed(made + part * MIX)
    return made


def sketches(hashes: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(texts,) uint64, the bitmap of `rouge.RougeLIndex` in 64 bits: popcount(a ^ b) >= (1 - t)(m +
    n) shows that ROUGE-L <= t."""
    return np.bitwise_xor.reduceat(
        np.uint64(1) << (hashes & np.uint64(63)), np.cumsum(lengths) - lengths
    )


def propose(
    bucket: np.ndarray,
    position: np.ndarray,
    sketch: np.ndarray,
    length: np.ndarray,
    threshold: float,
):
    """Pairs of positions (left < right) that share a bucket and pass the bitmap, each once, and how
    many a crowded bucket left out.

    The first `LARGEST` texts of a bucket meet all of it; the others meet only those, so that a
    hundred thousand copies of one template cost 10^8 comparisons and not 10^10.
    """
    order = np.lexsort((position, bucket))
    bucket, position, sketch, length = (
        bucket[order],
        position[order],
        sketch[order],
        length[order].astype(np.int64),
    )
    starts = (
        np.flatnonzero(np.r_[True, bucket[1:] != bucket[:-1]])
        if len(bucket)
        else np.zeros(0, np.int64)
    )
    sizes = np.diff(np.r_[starts, len(bucket)])
    place = np.arange(len(bucket)) - np.repeat(starts, sizes)
    partners = np.minimum(place, LARGEST)
    left_out = int((place - partners).sum())
    total, found = np.cumsum(partners), [np.zeros((0, 2), np.int64)]
    for chunk in np.array_split(
        np.arange(len(bucket)), int(total[-1] // PAIRS_AT_ONCE) + 1 if len(total) else 1
    ):
        right = np.repeat(chunk, partners[chunk])
        first = np.cumsum(partners[chunk]) - partners[chunk]
        left = (right - place[right]) + np.arange(len(right)) - np.repeat(first, partners[chunk])
        slack = (1 - threshold) * (length[left] + length[right]) + 1e-6
        close = (np.bitwise_count(sketch[left] ^ sketch[right]) <= slack) & (
            np.abs(length[left] - length[right]) <= slack
        )
        found.append(np.stack([position[left[close]], position[right[close]]], axis=1))
    return np.unique(np.concatenate(found), axis=0), left_out


Neighbours = dict[int, list[tuple[int, float]]]  # the duplicates of a row, each with its ROUGE-L
Removed = dict[int, tuple[int, float]]  # the row that stays instead, and its ROUGE-L or NaN


def decide(
    left: np.ndarray, right: np.ndarray, score: np.ndarray, copies: dict[int, int], survivors: str
) -> Removed:
    """Which rows go, and because of which row that stays.

    Args:
        left, right, score: duplicates among the first rows of every token sequence, left < right.
        copies: later rows with the same tokens, and the first one of each.
        survivors: see `Filter`; for "one" the score is NaN where a row is no duplicate of its
            survivor itself, only of others.
    """
    neighbours: Neighbours = defaultdict(list)
    for a, b, s in zip(left.tolist(), right.tolist(), score.tolist(), strict=True):
        neighbours[a].append((b, s))
        neighbours[b].append((a, s))
    if survivors == "one":
        removed = all_but_one(neighbours)
        for copy, first in copies.items():
            removed[copy] = removed.get(first, (first, 1.0))
        return removed
    removed = {}
    for position in sorted(neighbours):
        found = most_similar(neighbours[position], position, removed)
        if found is not None:
            removed[position] = found
    for copy, first in copies.items():
        if first not in removed:
            removed[copy] = (first, 1.0)
        else:  # between the first and this copy another neighbour may have joined
            found = most_similar(neighbours[first], copy, removed)
            removed[copy] = found or removed[first]
    return removed


def all_but_one(neighbours: Neighbours) -> Removed:
    """Of everything that is connected by duplicates all rows but the first."""
    removed: Removed = {}
    for start in sorted(neighbours):
        if start in removed:
            continue
        waiting = [start]
        while waiting:
            for other, _ in neighbours[waiting.pop()]:
                if other != start and other not in removed:
                    removed[other] = (start, math.nan)
                    waiting.append(other)
        for other, score in neighbours[start]:
            removed[other] = (start, score)
    return removed


def most_similar(
    candidates: list[tuple[int, float]], position: int, removed: Removed
) -> tuple[int, float] | None:
    """Of these duplicates the one with the highest score, the first of equals, that stands before a
    position and stays; None if there is none."""
    best = None
    for other, score in candidates:
        stays = other < position and other not in removed
        if stays and (best is None or (-score, other) < (-best[1], best[0])):
            best = (other, score)
    return best


# --- the stages on Ray Data -----------------------------------------------------------------------


def read(items, paths: list[str], field: str, skip_torn: bool):
    """Rows of one shard: `position`, `text` and `form`, a hash of the tokens' sequence."""
    import pyarrow as pa

    for number in items["shard"].tolist():
        empty = True
        for numbers, found in shards.texts(Path(paths[number]), field, skip_torn):
            empty = False
            positions = np.array(numbers, np.int64) | (number << ROW_BITS)
            # Bytes, because JSON may hold half a surrogate pair, which Arrow's strings may not
            yield pa.table(
                {
                    "position": positions,
                    "text": pa.array(
                        [text.encode("utf-8", "surrogatepass") for text in found], pa.binary()
                    ),
                }
            )
        if empty:  # keeps the columns
            yield pa.table({"position": np.zeros(0, np.int64), "text": pa.array([], pa.binary())})


def decoded(table) -> list[str]:
    return [text.decode("utf-8", "surrogatepass") for text in table["text"].to_pylist()]


def forms(table, tokenizer: str, partitions: int):
    """`position` and the 128-bit hash of the token sequence; rows without tokens are left out, they
    resemble nothing."""
    import pyarrow as pa

    tokens = [rouge.tokenize(text, tokenizer) for text in decoded(table)]
    some = np.flatnonzero([bool(row) for row in tokens])
    digests = b"".join(
        hashlib.blake2b(
            "\n".join(tokens[i]).encode("utf-8", "surrogatepass"), digest_size=16
        ).digest()
        for i in some
    )
    halves = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    part = (halves[:, 0] % np.uint64(partitions)).astype(np.int64)
    return pa.table(
        {
            "position": table["position"].to_numpy()[some],
            "high": halves[:, 0],
            "low": halves[:, 1],
            "part": part,
        }
    )


def copies_in(table):
    """Of the rows with one token sequence all but the first: `position` and `first`."""
    import pyarrow as pa

    position, high, low = (table[name].to_numpy() for name in ("position", "high", "low"))
    order = np.lexsort((position, low, high))
    position, high, low = position[order], high[order], low[order]
    new = np.r_[True, (high[1:] != high[:-1]) | (low[1:] != low[:-1])]
    first = position[np.maximum.accumulate(np.where(new, np.arange(len(position)), 0))]
    return pa.table({"position": position[~new], "first": first[~new]})


def banded(table, chosen: Filter, copies, partitions: int):
    """For every row and band: `bucket`, `position`, `sketch`, `length` and `part`. Copies are left
    out."""
    import pyarrow as pa
    import ray

    known = ray.get(copies)
    position = table["position"].to_numpy()
    at = np.searchsorted(known, position)
    new = (
        known[np.minimum(at, len(known) - 1)] != position
        if len(known)
        else np.ones(len(position), bool)
    )
    texts = decoded(table)
    tokens = [
        rouge.tokenize(texts[i], chosen.tokenizer) if new[i] else [] for i in range(len(texts))
    ]
    some = np.flatnonzero([bool(row) for row in tokens])
    columns = {
        "bucket": np.uint64,
        "position": np.int64,
        "sketch": np.uint64,
        "length": np.int32,
        "part": np.int64,
    }
    if not len(some):
        return pa.table({name: np.zeros(0, kind) for name, kind in columns.items()})
    hashes, lengths = elements([tokens[i] for i in some])
    bucket = buckets(hashes, lengths, chosen.bands).ravel()
    each = [
        np.repeat(values, chosen.bands)
        for values in (position[some], sketches(hashes, lengths), lengths.astype(np.int32))
    ]
    return pa.table(
        dict(
            zip(
                columns,
                [bucket, *each, (bucket % np.uint64(partitions)).astype(np.int64)],
                strict=True,
            )
        )
    )


def proposed(table, threshold: float, partitions: int):
    """`left`, `right`, `part` of the pairs in one part of the buckets; a row with left -1 says how
    many pairs were left out."""
    import pyarrow as pa

    pairs, left_out = propose(
        table["bucket"].to_numpy(),
        table["position"].to_numpy(),
        table["sketch"].to_numpy(),
        table["length"].to_numpy(),
        threshold,
    )
    if left_out:
        pairs = np.concatenate([pairs, [[-1, left_out]]])
    part = (
        mixed(pairs[:, 0].astype(np.uint64) + pairs[:, 1].astype(np.uint64) * MIX)
        % np.uint64(partitions)
    ).astype(np.int64)
    return pa.table({"left": pairs[:, 0], "right": pairs[:, 1], "part": part})


def verified(table, chosen: Filter, blocks: list, starts):
    """`left`, `right`, `score` of the pairs that ROUGE-L puts above the threshold, each once."""
    import pyarrow as pa

    pairs = np.stack([table["left"].to_numpy(), table["right"].to_numpy()], axis=1)
    left_out, pairs = pairs[pairs[:, 0] < 0], np.unique(pairs[pairs[:, 0] >= 0], axis=0)
    found = [(left_out[:, 0], left_out[:, 1], np.zeros(len(left_out)))]
    for part in np.array_split(pairs, len(pairs) // 200_000 + 1):
        positions, places = np.unique(part, return_inverse=True)
        left, right = places.reshape(-1, 2).T
        i, j, score = rouge.rouge_l_above(
            lookup(positions, blocks, starts),
            (left, right),
            chosen.threshold,
            chosen.tokenizer,
        )
        found.append((positions[i], positions[j], score))
    left, right, score = (np.concatenate(column) for column in zip(*found, strict=True))
    return pa.table({"left": left, "right": right, "score": score})


def lookup(positions: np.ndarray, blocks: list, starts: np.ndarray) -> list[str]:
    """The texts at sorted positions, from blocks whose first positions are `starts`, sorted: read
    in place from Ray's shared memory."""
    import ray

    found: list[str] = []
    owner = np.searchsorted(starts, positions, side="right") - 1
    for number in np.unique(owner):
        table = ray.get(blocks[number])
        found += decoded(
            table.take(np.searchsorted(table["position"].to_numpy(), positions[owner == number]))
        )
    return found


def run(
    paths: list[str | Path],
    output: str | Path,
    field: str = "instruction",
    chosen: Filter | None = None,
    skip_torn: bool = False,
    partitions: int | None = None,
) -> dict:
    """Filter shards into `output`/kept, /removed and /torn, within `cluster.connected`; returns
    what is also in `output`/report.json.

    Raises:
        CourseError: no shards, a torn line (unless `skip_torn`), output that belongs to other
            input, or a full disk.
    """
    import ray

    started, chosen, output = time.time(), chosen or Filter(), Path(output)
    found = shards.find(paths)
    if output.resolve() in {shard.resolve().parent for shard in found} | {
        shard.resolve().parent.parent for shard in found
    }:
        raise CourseError(
            f"The output {output} is the folder of the shards, or above it: choose another."
        )
    if other := {path.name for path in (output / "kept").glob("*")} - {
        shard.name for shard in found
    }:
        raise CourseError(
            f"{output}/kept holds {min(other)}, which is no shard of this input: choose another "
            "output folder."
        )
    items = [{"shard": k} for k in range(len(found))]
    names = [str(path.resolve()) for path in found]

    def each(function, **arguments):
        return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            function, batch_size=1, batch_format="numpy", fn_kwargs=arguments
        )

    arrow = {"batch_format": "pyarrow", "zero_copy_batch": True}
    rows = each(read, paths=names, field=field, skip_torn=skip_torn).materialize()
    count = rows.count()
    if not count:
        raise CourseError(f"The {len(found)} shards hold no rows: check the path.")
    blocks = rows.to_arrow_refs()
    first = ray.remote(lambda table: table["position"][0].as_py() if len(table) else None)
    begins = ray.get([first.remote(block) for block in blocks])
    filled = {
        begin: block for begin, block in zip(begins, blocks, strict=True) if begin is not None
    }
    starts = np.array(sorted(filled), np.int64)
    blocks = [filled[start] for start in sorted(filled)]
    cores = int(ray.cluster_resources().get("CPU", 1))
    partitions = partitions or min(4096, max(cores, count * chosen.bands // 2_000_000))

    shaped = rows.map_batches(
        forms,
        batch_size=shards.BATCH,
        fn_kwargs={"tokenizer": chosen.tokenizer, "partitions": partitions},
        **arrow,
    )
    same = (
        shaped.groupby("part", num_partitions=partitions)
        .map_groups(copies_in, batch_format="pyarrow")
        .to_pandas()
    )
    copies = (
        {}
        if same.empty
        else dict(zip(same["position"].tolist(), same["first"].tolist(), strict=True))
    )
    known = ray.put(np.array(sorted(copies), np.int64))

    bands = rows.map_batches(
        banded,
        batch_size=4096,
        fn_kwargs={"chosen": chosen, "copies": known, "partitions": partitions},
        **arrow,
    )
    pairs = bands.groupby("part", num_partitions=partitions).map_groups(
        proposed,
        batch_format="pyarrow",
        fn_kwargs={"threshold": chosen.threshold, "partitions": partitions},
    )
    edges = (
        pairs.groupby("part", num_partitions=partitions)
        .map_groups(
            verified,
            batch_format="pyarrow",
            fn_kwargs={"chosen": chosen, "blocks": blocks, "starts": starts},
        )
        .to_pandas()
    )
    left, right, score = (
        edges[name].to_numpy() if not edges.empty else np.zeros(0)
        for name in ("left", "right", "score")
    )
    real = left >= 0
    left_out = int(right[~real].sum())
    removed = decide(
        left[real].astype(np.int64),
        right[real].astype(np.int64),
        score[real],
        copies,
        chosen.survivors,
    )

    def name(position: int) -> str:
        return f"{found[position >> ROW_BITS].name}:{position & ((1 << ROW_BITS) - 1)}"

    gone: list[dict[int, dict]] = [{} for _ in found]
    for position in sorted(removed):
        stays, value = removed[position]
        why = {"duplicate_of": name(stays), "rouge_l": None if math.isnan(value) else value}
        gone[position >> ROW_BITS][position & ((1 << ROW_BITS) - 1)] = why
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.json").unlink(missing_ok=True)  # it says that the output is whole
    written = each(
        divide,
        paths=names,
        output=str(output.resolve()),
        removed=[ray.put(part) for part in gone],
        field=field,
    ).to_pandas()
    report = {
        "rows": int(written[["kept", "removed", "torn"]].to_numpy().sum()),
        **{key: int(written[key].sum()) for key in ("kept", "removed", "torn")},
        "copies": len(copies),
        "pairs": int(real.sum()),
        "pairs_left_out": left_out,
        "shards": len(found),
        "filter": asdict(chosen) | {"bands": chosen.bands, "rows": ROWS},
        "seconds": round(time.time() - started, 1),
    }
    utils.write_json(output / "report.json", report)
    return report


def divide(items, paths: list[str], output: str, removed: list, field: str) -> dict:
    """Write the shards of one batch; counts by shard."""
    import ray

    counts = [
        shards.divide(Path(paths[number]), Path(output), ray.get(removed[number]), field)
        for number in items["shard"].tolist()
    ]
    return {key: np.array([count[key] for count in counts]) for key in ("kept", "removed", "torn")}


def main() -> None:
    """The command line; a mistake of the reader's ends in one sentence and status 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", nargs="+", help="files or folders of .jsonl or .parquet")
    parser.add_argument(
        "--output", required=True, help="folder for kept/, removed/, torn/ and report.json"
    )
    parser.add_argument("--field", default="instruction")
    parser.add_argument("--threshold", type=float, default=0.7)
    parser.add_argument(
        "--tokenizer", default="unicode", help="unicode, char (Korean) or rouge_score"
    )
    parser.add_argument(
        "--survivors",
        default="greedy",
        help="greedy (the course's rule) or one (a connected group)",
    )
    parser.add_argument(
        "--skip-torn", action="store_true", help="set torn lines aside in torn/ instead of stopping"
    )
    parser.add_argument("--address", help="of a Ray cluster; default: this machine")
    parser.add_argument("--cpus", type=int)
    parser.add_argument(
        "--store-gib", type=float, default=2.0, help="shared memory before Ray spills to disk"
    )
    a = parser.parse_args()
    try:
        chosen = Filter(a.threshold, a.tokenizer, a.survivors)
        with cluster.connected(a.address, a.store_gib, a.cpus):
            report = run(a.shards, a.output, a.field, chosen, a.skip_torn)
    except CourseError as error:
        print(f"Stopped: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps(report, indent=1))
    if report["pairs_left_out"]:
        print(
            f"{report['pairs_left_out']:,} pairs in crowded buckets were not compared (see "
            "LARGEST in scale/duplicates.py)."
        )


if __name__ == "__main__":
    main()
