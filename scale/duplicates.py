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

Rows of one template share most buckets. So the rounds are those of `rouge.py`: compare with the
first few, let go what a row that stays removes, and compare the rest again, with more of them. When
nothing changes any more, the decisions are those of the greedy filter for all pairs that share a
bucket: no two rows that stay are duplicates, and each that goes has an earlier one that stays.

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
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

import rouge
import utils
from scale import cluster, shards
from utils import CourseError

RECALL = 0.97  # chance that a pair exactly at the threshold is proposed
ROWS = 4  # minimum hashes in a band: fewer propose more pairs in vain, more need more bands
ANCHORS = (2, 32, 512)  # candidates of a row in each of its buckets, round by round
# texts in one bucket that all its others are compared with: a bucket of n texts costs at most n
# times this
LARGEST = 4096
SEED = 42
ROW_BITS = 36  # a position is shard << 36 | row number
ROW = (1 << ROW_BITS) - 1
PAIRS_AT_ONCE = 2_000_000  # in a task's arrays
TEXTS, ENTRIES = 50_000, 1_000_000  # rows in a partition of texts, of buckets or of pairs
MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Filter:
    """What counts as a duplicate: a row goes if a row that stays, and stands before it, is one, as
    in `rouge.rouge_l_duplicates`.

    Args:
        threshold: ROUGE-L F1 in (0, 1]; a pair is a duplicate above it.
        tokenizer: see `rouge.tokenize`.
    """

    threshold: float = 0.7
    tokenizer: str = "unicode"

    def __post_init__(self) -> None:
        if not 0.3 <= self.threshold <= 1:
            raise CourseError(
                f"The threshold is {self.threshold}, but LSH can find pairs from 0.3 to 1 only: "
                "use similarity.py for less."
            )
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


class Proposal(NamedTuple):
    """Pairs of positions (n, 2), left < right, each once; the buckets in which a text may have more
    candidates than it was given; and how many pairs were not even looked at."""

    pairs: np.ndarray
    crowded: np.ndarray
    left_out: int


def propose(
    bucket: np.ndarray,
    position: np.ndarray,
    sketch: np.ndarray,
    length: np.ndarray,
    threshold: float,
    anchors: int,
) -> Proposal:
    """Of every text its first `anchors` candidates in its bucket: earlier texts whose sketches let
    them be duplicates.

    The rows come in any order, and hold buckets wholly. A hundred thousand texts of one template
    all meet its first few, so that they cost 10^6 comparisons and not 10^10.
    """
    order = np.lexsort((position, bucket))
    bucket, position, sketch = bucket[order], position[order], sketch[order]
    length = length[order].astype(np.int64)
    starts = np.flatnonzero(np.r_[True, bucket[1:] != bucket[:-1]])
    start = np.repeat(starts, np.diff(np.r_[starts, len(bucket)]))
    earlier = np.arange(len(bucket)) - start
    found = np.zeros(len(bucket), np.int64)
    more = np.zeros(len(bucket), bool)
    open_rows = np.flatnonzero(earlier)
    pairs, seen = [np.zeros((0, 2), np.int64)], 0
    while len(open_rows) and seen < LARGEST:
        # The next few of each bucket against all of it: more at once where few rows are left
        step = max(4, min(LARGEST - seen, PAIRS_AT_ONCE // len(open_rows)))
        partners = np.minimum(earlier[open_rows] - seen, step)
        right = np.repeat(open_rows, partners)
        first = np.repeat(np.cumsum(partners) - partners, partners)
        left = start[right] + seen + np.arange(len(right)) - first
        slack = (1 - threshold) * (length[left] + length[right]) + 1e-6
        close = np.bitwise_count(sketch[left] ^ sketch[right]) <= slack
        close &= np.abs(length[left] - length[right]) <= slack
        left, right = left[close], right[close]
        new = np.bincount(right, minlength=len(bucket))
        rank = found[right] + np.arange(len(right)) - (np.cumsum(new) - new)[right]
        wanted = rank < anchors
        pairs.append(np.stack([position[left[wanted]], position[right[wanted]]], axis=1))
        found += new
        seen += step
        full = found[open_rows] >= anchors
        rest = earlier[open_rows] > seen
        more[open_rows] = full & (rest | (found[open_rows] > anchors))
        open_rows = open_rows[rest & ~full]
    more[open_rows] = True
    return Proposal(
        np.unique(np.concatenate(pairs), axis=0),
        np.unique(bucket[more]),
        int((earlier[open_rows] - seen).sum()),
    )


def decide(left: np.ndarray, right: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Of duplicates `left` < `right` the places of those that remove a row: for each row that goes
    the one with the most similar row that stays, the first of equals."""
    order = np.lexsort((left, -score, right))
    removed: set[int] = set()
    found = []
    # In the order of the rows: whether an earlier one stays is known when a later one asks
    for place, a, b in zip(
        order.tolist(), left[order].tolist(), right[order].tolist(), strict=True
    ):
        if b not in removed and a not in removed:
            removed.add(b)
            found.append(place)
    return np.array(found, np.int64)


# --- the stages on Ray Data -----------------------------------------------------------------------


def read(items, paths: list[str], field: str, skip_torn: bool):
    """Rows of one shard: `position` and `text`."""
    import pyarrow as pa

    for number in items["shard"].to_pylist():
        empty = True
        for numbers, found in shards.texts(paths[number], field, skip_torn):
            empty = False
            # Bytes, because JSON may hold half a surrogate pair, which Arrow's strings may not
            encoded = [text.encode("utf-8", "surrogatepass") for text in found]
            positions = np.array(numbers, np.int64) | (number << ROW_BITS)
            yield pa.table({"position": positions, "text": pa.array(encoded, pa.binary())})
        if empty:  # keeps the columns
            yield pa.table({"position": np.zeros(0, np.int64), "text": pa.array([], pa.binary())})


def decoded(column) -> list[str]:
    return [text.decode("utf-8", "surrogatepass") for text in column.to_pylist()]


def shaped(table, tokenizer: str):
    """With `form`, a 128-bit hash of the token sequence; rows without tokens are left out, they
    resemble nothing."""
    import pyarrow as pa

    tokens = [rouge.tokenize(text, tokenizer) for text in decoded(table["text"])]
    some = np.flatnonzero([bool(row) for row in tokens])
    joined = ("\n".join(tokens[i]).encode("utf-8", "surrogatepass") for i in some)
    digests = [hashlib.blake2b(form, digest_size=16).digest() for form in joined]
    return table.take(some).append_column("form", pa.array(digests, pa.binary()))


def with_first(table):
    """With `first`, the first position with the same form: of rows that hold forms wholly."""
    import pyarrow.compute as pc

    form = pc.dictionary_encode(table["form"].combine_chunks()).indices.to_numpy()
    position = table["position"].to_numpy()
    first = np.full(len(table), np.iinfo(np.int64).max)
    np.minimum.at(first, form, position)
    return table.drop_columns("form").append_column("first", [first[form]])


def copies(table):
    """Of rows `with_first` those that are not first themselves, as removed rows (`resolved`)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = table.filter(pc.not_equal(table["position"], table["first"]))
    first, position = table["first"], table["position"]
    return pa.table(
        {"key": first, "position": position, "stays": first, "score": np.ones(len(table))}
    )


def signed(table, chosen: Filter):
    """Of rows `with_first` the first ones: `position`, `text`, `sketch`, `length` and `buckets`, a
    list as long as there are bands."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = table.filter(pc.equal(table["position"], table["first"])).drop_columns("first")
    hashes, lengths = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    bucket, sketch = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
    if len(table):
        tokens = [rouge.tokenize(text, chosen.tokenizer) for text in decoded(table["text"])]
        hashes, lengths = elements(tokens)
        bucket = buckets(hashes, lengths, chosen.bands).ravel()
        sketch = sketches(hashes, lengths)
    columns = {
        "sketch": pa.array(sketch),
        "length": pa.array(lengths.astype(np.int32)),
        "buckets": pa.FixedSizeListArray.from_arrays(pa.array(bucket), chosen.bands),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def banded(table, gone, crowded):
    """One row for each bucket: `bucket`, `position`, `sketch` and `length`; without rows that are
    gone, and in crowded buckets only, once these are known."""
    import pyarrow as pa
    import ray

    table = table.take(np.flatnonzero(~among(table["position"].to_numpy(), ray.get(gone))))
    bucket = table["buckets"].combine_chunks().flatten().to_numpy()
    bands = len(bucket) // max(1, len(table))
    wanted = np.ones(len(bucket), bool)
    if crowded is not None:
        wanted = among(bucket, ray.get(crowded))
    each = {
        name: np.repeat(table[name].to_numpy(), bands)[wanted]
        for name in ("position", "sketch", "length")
    }
    return pa.table({"bucket": bucket[wanted], **each})


def among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which of the values are among these sorted ones."""
    if not len(known):
        return np.zeros(len(values), bool)
    return known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values


def proposed(table, threshold: float, anchors: int):
    """`left` and `right` of the pairs in these buckets. A row with left -1 names a crowded bucket,
    one with left -2 says how many pairs were left out."""
    import pyarrow as pa

    found = propose(
        table["bucket"].to_numpy(),
        table["position"].to_numpy(),
        table["sketch"].to_numpy(),
        table["length"].to_numpy(),
        threshold,
        anchors,
    )
    notes = [(-1, bucket) for bucket in found.crowded.view(np.int64).tolist()]
    notes += [(-2, found.left_out)]
    pairs = np.concatenate([found.pairs, np.array(notes, np.int64)])
    return pa.table({"left": pairs[:, 0], "right": pairs[:, 1]})


def once(table):
    """The pairs of some later texts, each once, as rows that ask for the text of `key`."""
    import pyarrow as pa

    pairs = np.unique(np.stack([table[name].to_numpy() for name in ("left", "right")], 1), axis=0)
    nothing = pa.nulls(len(pairs), pa.binary())
    return pa.table({"key": pairs[:, 0], "other": pairs[:, 1], "text": nothing})


def keyed(table):
    """Texts as rows that answer: `key`, `other` -1 and `text`."""
    return (
        table.select(["position", "text"])
        .rename_columns(["key", "text"])
        .add_column(1, "other", [np.full(len(table), -1)])
    )


def answered(table):
    """Of rows that hold keys wholly those that ask, some at a time: `key`, `other`, the text that
    each brings and the one that answers it."""
    import pyarrow.compute as pc

    asks = pc.greater_equal(table["other"], 0)
    pairs, texts = table.filter(asks).sort_by("key"), table.filter(pc.invert(asks)).sort_by("key")
    places = np.searchsorted(texts["key"].to_numpy(), pairs["key"].to_numpy())
    step = PAIRS_AT_ONCE // 10
    for start in range(0, max(len(pairs), 1), step):
        some = pairs.slice(start, step)
        answers = texts["text"].take(places[start : start + step])
        yield some["key"].to_numpy(), some["other"].to_numpy(), some["text"], answers


def attached(table):
    """Pairs with the text of their first, as rows that ask for that of their second."""
    import pyarrow as pa

    for left, right, _, text in answered(table):
        yield pa.table({"key": right, "other": left, "text": text})


def verified(table, chosen: Filter):
    """`left`, `right` and `score` of the pairs that ROUGE-L puts above the threshold."""
    import pyarrow as pa

    for right, left, first, second in answered(table):
        positions, numbers = np.unique(np.concatenate([left, right]), return_inverse=True)
        known = dict(zip(left.tolist(), decoded(first), strict=True))
        known |= zip(right.tolist(), decoded(second), strict=True)
        i, j, score = rouge.rouge_l_above(
            [known[position] for position in positions.tolist()],
            (numbers[: len(left)], numbers[len(left) :]),
            chosen.threshold,
            chosen.tokenizer,
        )
        yield pa.table({"left": positions[i], "right": positions[j], "score": score})


def resolved(table):
    """Removed rows (`key`, `position`, `stays`, `score`) with their copies, whose `key` is the
    first of them: a copy goes because of what removed the first, or else of the first."""
    import pyarrow as pa

    names = ("key", "position", "stays", "score")
    key, position, stays, score = (table[name].to_numpy().copy() for name in names)
    reasons = np.flatnonzero(key == position)
    reasons = reasons[np.argsort(key[reasons])]
    where = among(key, key[reasons])
    because = reasons[np.searchsorted(key[reasons], key[where])]
    stays[where], score[where] = stays[because], score[because]
    return pa.table(
        {"shard": position >> ROW_BITS, "position": position, "stays": stays, "score": score}
    )


def divide(table, paths: list[str], output: str, field: str):
    """Write the shards whose removed rows these are, and one row with `position` -1 for each;
    counts by shard."""
    import pyarrow as pa

    names = ("shard", "position", "stays", "score")
    shard, position, stays, score = (table[name].to_numpy() for name in names)
    counts = [{"kept": 0, "removed": 0, "torn": 0}]
    for number in np.unique(shard).tolist():
        removed = {}
        for place in np.flatnonzero((shard == number) & (position >= 0)).tolist():
            first = int(stays[place])
            name = f"{shards.name(paths[first >> ROW_BITS])}:{first & ROW}"
            reason = {"duplicate_of": name, "rouge_l": float(score[place])}
            removed[int(position[place]) & ROW] = reason
        counts.append(shards.divide(paths[number], output, removed, field))
    return pa.Table.from_pylist(counts)


# --- the whole ------------------------------------------------------------------------------------


def parts(rows: int, size: int) -> int:
    """How many partitions: so many rows that a task's memory does not depend on how many there
    are."""
    return max(1, math.ceil(rows / size))


def whole(dataset, partitions: int, key: str, function, **arguments):
    """Apply a function to tables that hold all rows of a key: a hash shuffle."""
    return dataset.repartition(partitions, keys=[key]).map_batches(
        function, batch_size=None, batch_format="pyarrow", fn_kwargs=arguments
    )


def each(dataset, function, size: int = shards.BATCH, **arguments):
    """Apply a function to tables of some rows."""
    return dataset.map_batches(
        function, batch_size=size, batch_format="pyarrow", fn_kwargs=arguments
    )


def run(
    paths: list[str | Path],
    output: str | Path,
    field: str = "instruction",
    chosen: Filter | None = None,
    skip_torn: bool = False,
) -> dict:
    """Filter shards into `output`/kept, /removed and /torn, within `cluster.connected`; returns
    what is also in `output`/report.json.

    Raises:
        CourseError: no shards, a torn line (unless `skip_torn`), output that belongs to other
            input, or a full disk.
    """
    import pyarrow as pa
    import ray

    started, chosen = time.time(), chosen or Filter()
    found = shards.find(paths)
    output = shards.start_output(output, found)
    numbers = ray.data.from_items(
        [{"shard": k} for k in range(len(found))], override_num_blocks=len(found)
    )
    rows = each(numbers, read, 1, paths=found, field=field, skip_torn=skip_torn).materialize()
    count = rows.count()
    if not count:
        raise CourseError(f"The {len(found)} shards hold no rows: check the path.")
    firsts = whole(
        each(rows, shaped, tokenizer=chosen.tokenizer), parts(count, TEXTS), "form", with_first
    ).materialize()
    same = each(firsts, copies).materialize()
    edges, facts = rounds(each(firsts, signed, chosen=chosen).materialize(), chosen)
    gone = ray.data.from_arrow(
        pa.table(
            {
                "key": edges["right"],
                "position": edges["right"],
                "stays": edges["left"],
                "score": edges["score"],
            }
        )
    )
    removed = whole(gone.union(same), parts(count, ENTRIES), "key", resolved)
    nothing = np.full(len(found), -1)
    shard = pa.array(range(len(found)), pa.int64())
    every = ray.data.from_arrow(
        pa.table({"shard": shard, "position": nothing, "stays": nothing, "score": nothing * 1.0})
    )
    written = whole(
        removed.union(every), len(found), "shard", divide, paths=found, output=output, field=field
    ).to_pandas()
    report = {
        "rows": int(written.to_numpy().sum()),
        **{key: int(written[key].sum()) for key in ("kept", "removed", "torn")},
        "copies": same.count(),
        **facts,
        "shards": len(found),
        "filter": asdict(chosen) | {"bands": chosen.bands, "rows": ROWS},
        "seconds": round(time.time() - started, 1),
    }
    shards.finish_output(output, report)
    return report


def rounds(texts, chosen: Filter) -> tuple[dict[str, np.ndarray], dict]:
    """The duplicates that remove a row of `signed` texts (`left`, `right`, `score`), and what the
    report says of all of them."""
    import ray
    from ray.data.expressions import col

    entries = parts(texts.count() * chosen.bands, ENTRIES)
    gone, crowded, edges, anchors = np.zeros(0, np.int64), None, [], list(ANCHORS)
    while True:
        bands = each(texts, banded, 4096, gone=ray.put(gone), crowded=crowded)
        arguments = {"threshold": chosen.threshold, "anchors": anchors[0]}
        pairs = whole(bands, entries, "bucket", proposed, **arguments).materialize()
        notes = pairs.filter(expr=col("left") < 0).to_pandas()
        edges.append(scored(pairs.filter(expr=col("left") >= 0), texts, chosen))
        left, right, score = merged(edges)
        found = decide(left, right, score)
        before, gone = gone, np.sort(right[found])
        full = notes["right"][notes["left"] == -1].to_numpy().view(np.uint64)
        if crowded is None:
            crowded = ray.put(np.unique(full))
        settled = not len(full) or len(anchors) == 1
        if settled and (len(edges) == 1 or np.array_equal(before, gone)):
            break
        anchors = anchors[1:] or anchors
    removing = {"left": left[found], "right": right[found], "score": score[found]}
    return removing, {
        "pairs": len(left),
        "rounds": len(edges),
        "pairs_left_out": int(notes["right"][notes["left"] == -2].sum()),
        "crowded_buckets": len(full),
    }


def scored(pairs, texts, chosen: Filter):
    """The pairs above the threshold, as arrays."""
    partitions = parts(pairs.count(), ENTRIES)
    answers = each(texts, keyed)
    asking = whole(pairs, partitions, "right", once)
    asking = whole(asking.union(answers), partitions, "key", attached)
    return whole(asking.union(answers), partitions, "key", verified, chosen=chosen).to_pandas()


def merged(edges: list):
    import pandas

    table = pandas.concat(edges).drop_duplicates(["left", "right"])
    return (table[name].to_numpy() for name in ("left", "right", "score"))


def main() -> None:
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
        "--skip-torn", action="store_true", help="set torn lines aside in torn/ instead of stopping"
    )
    parser.add_argument("--address", help="of a Ray cluster; default: this machine")
    parser.add_argument("--cpus", type=int, help="of this machine; default: all")
    parser.add_argument(
        "--store-gib", type=float, help="shared memory of this machine before Ray spills to disk"
    )
    a = parser.parse_args()
    chosen = Filter(a.threshold, a.tokenizer)
    if a.address and (a.cpus or a.store_gib):
        raise CourseError(
            "--cpus and --store-gib belong to a Ray of this machine's own, and the nodes of a "
            "cluster have theirs: leave them out, or give --num-cpus and --object-store-memory to "
            "`ray start`."
        )
    with cluster.connected(a.address, a.store_gib, a.cpus):
        report = run(a.shards, a.output, a.field, chosen, a.skip_torn)
    print(json.dumps(report, indent=1))
    if report["pairs_left_out"]:
        print(
            f"{report['pairs_left_out']:,} pairs in crowded buckets were not compared (see "
            "LARGEST in scale/duplicates.py)."
        )


if __name__ == "__main__":
    utils.run_command(main, mistake=2)
