"""ROUGE-L over words, characters or the reference tokens, and the greedy near-duplicate filter of
Self-Instruct, exact and fast.

What it does: the score of Lin (2004) as Self-Instruct uses it (arXiv 2212.10560), and which of
200,000 texts resemble an earlier
one, in seconds. What it does not do: know any meaning, which is `similarity.py`'s embeddings. Call
it through `similarity`.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

import utils

SMALL = 64  # texts: a smaller batch is compared with everything at once
TASK = (
    1 << 16
)  # pairs compared at a time: what lies between two NumPy steps stays in the processor's cache


@dataclass(frozen=True)
class Match:
    """The kept neighbour that makes a text a duplicate: its position in the input, and how similar
    it is, in [0, 1]."""

    index: int
    score: float


@dataclass
class Duplicates:
    """Result of a near-duplicate filter over `n` texts: every position is in exactly one of the
    two."""

    kept: list[int] = field(default_factory=list)
    removed: dict[int, Match] = field(default_factory=dict)


def duplicates(matches: list[Match | None]) -> Duplicates:
    """What a filter said of each text, None for kept, gathered."""
    result = Duplicates()
    for i, match in enumerate(matches):
        if match is None:
            result.kept.append(i)
        else:
            result.removed[i] = match
    return result


def tokenize(text: str, tokenizer: str = "unicode") -> list[str]:
    """Split a text into the units that ROUGE-L compares.

    Args:
        tokenizer: "unicode": words of any script (NFKC, casefolded); "char": their characters, for
            Korean, where one particle changes a word; "rouge_score": what the rouge-score package
            does without stemming, that is, ASCII only: Hangul vanishes, so that two identical
            Korean sentences score 0. Kept to show that and to compare with published figures.
    """
    if tokenizer == "rouge_score":
        return re.findall(r"[a-z0-9]+", text.lower())
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    if tokenizer == "unicode":
        return words
    if tokenizer == "char":
        return list("".join(words))
    raise utils.CourseError(
        f"The tokenizer {tokenizer!r} is unknown; choose 'unicode', 'char' or 'rouge_score'."
    )


def rouge_l(a: str, b: str, tokenizer: str = "unicode") -> float:
    """ROUGE-L F1 in [0, 1]: 2 LCS / (m + n) over tokens, 0 if either text has none.

    With `tokenizer="rouge_score"` it equals `rouge_score.rouge_scorer` without stemming, to the
    last bit.
    """
    from rapidfuzz.distance import LCSseq

    x, y = tokenize(a, tokenizer), tokenize(b, tokenizer)
    return float(_f1(LCSseq.similarity(x, y), len(x), len(y), tokenizer)) if x and y else 0.0


def _f1(lcs, m, n, tokenizer: str):
    """F1 from the length of the longest common subsequence; scalars or arrays."""
    if (
        tokenizer == "rouge_score"
    ):  # its own arithmetic: at a score of exactly the threshold the rounding decides
        precision, recall = lcs / n, lcs / m
        return 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    return 2 * lcs / (m + n)


class RougeLIndex:
    """The greedy filter of Self-Instruct, one batch after another: a text joins unless a kept one
    scores above `threshold`.

    Exact, yet few longest common subsequences are computed. Each text has a *signature* of 1,024
    bits: every token (its first, second, ... occurrence apart) flips one of them. A token that only
    one of two texts has changes at most one bit of the difference, and ROUGE-L > t allows fewer
    than (1 - t)(m + n) such tokens, hence

        popcount(signature_a ^ signature_b) < (1 - t)(m + n),

    which NumPy tests for a thousand million pairs in seconds (folded to 64 bits for short texts).
    Only the survivors meet rapidfuzz's bit-parallel LCS. After the bitmap filter for set similarity
    joins (Sandes et al., arXiv 1711.07295).
    """

    WORDS = 16  # 64-bit words in a signature

    def __init__(self, threshold: float = 0.7, tokenizer: str = "unicode") -> None:
        if not 0 <= threshold <= 1:
            raise utils.CourseError(
                f"The ROUGE-L threshold is {threshold}, but scores lie between 0 and 1."
            )
        self.threshold, self.tokenizer = threshold, tokenizer
        self._codes: dict[str, int] = {}  # token -> number, in order of appearance
        self._kept = _Forms.of([], self.WORDS)
        self._recent = _Forms.of(
            [], self.WORDS
        )  # kept lately: joining every small batch to a large pool would copy the pool
        self._position: dict[
            str, int
        ] = {}  # a kept text's encoding -> its position among all texts ever added
        self._seen = 0

    def add(self, texts: list[str]) -> list[Match | None]:
        """For each text its most similar kept neighbour if that scores above the threshold, else
        None: it is kept.

        Positions count all texts ever added. Order matters: the first of two duplicates survives;
        among equally similar neighbours the first counts.
        """
        encoded = self._encode(texts)
        matches: list[Match | None] = []
        while len(matches) < len(encoded):
            # Small blocks while the pool is small: what one block rejects, the next need not be
            # compared with
            size = max(SMALL, len(self._kept))
            matches += self._add_block(encoded[len(matches) : len(matches) + size])
        return matches

    def __len__(self) -> int:
        """How many texts were kept."""
        return len(self._position)

    def most_similar(self, texts: list[str], count: int = 10) -> list[list[Match]]:
        """For each text the `count` most similar kept ones, best first (Self-Instruct stores ten
        with every instruction)."""
        places = list(self._position.values())
        scores = _scores(self._encode(texts), list(self._position), self.tokenizer)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return [
            [Match(places[j], float(row[j])) for j in columns]
            for row, columns in zip(scores, best, strict=True)
        ]

    def _encode(self, texts: list[str]) -> list[str]:
        """Each text as a string with one character a token, so that rapidfuzz compares tokens as
        fast as characters."""
        codes, encoded = self._codes, []
        for text in texts:
            encoded.append(
                "".join(
                    [
                        chr(codes.setdefault(token, len(codes)))
                        for token in tokenize(text, self.tokenizer)
                    ]
                )
            )
            if len(codes) > sys.maxunicode:
                raise utils.CourseError(
                    f"Over {sys.maxunicode:,} different words: filter such a data set in parts."
                )
        return encoded

    def _add_block(self, block: list[str]) -> list[Match | None]:
        new = _Forms.of(
            [form for form in dict.fromkeys(block) if form and form not in self._position],
            self.WORDS,
        )
        neighbours = self._neighbours(new)
        matches, joined = [], []
        for form in block:
            match = None
            if form in self._position:
                match = Match(self._position[form], 1.0)
            else:
                for other, score in neighbours.get(form, ()):
                    place = self._position.get(other)
                    if place is not None and (
                        match is None or (-score, place) < (-match.score, match.index)
                    ):
                        match = Match(place, score)
            if (
                match is None and form
            ):  # a text without tokens resembles nothing, not even another one
                self._position[form] = self._seen
                joined.append(form)
            self._seen += 1
            matches.append(match)
        self._recent = self._recent + new.only(set(joined))
        if len(self._recent) > 16 * SMALL or not len(self._kept):
            self._merge()
        return matches

    def _merge(self) -> None:
        self._kept, self._recent = self._kept + self._recent, _Forms.of([], self.WORDS)

    def _neighbours(self, new: _Forms) -> dict[str, list[tuple[str, float]]]:
        """For each new text all kept and new ones that score above the threshold."""
        if len(new) <= SMALL:
            everyone, pairs = np.arange(len(new))[None], []
            for pool in (self._kept, self._recent, new):
                parts = np.array_split(np.arange(len(pool)), len(new) * len(pool) // (8 * TASK) + 1)
                pairs += self._join(new, pool, [(everyone, part[None]) for part in parts])
        else:
            self._merge()
            everything = self._kept + new
            order = np.argsort(everything.lengths, kind="stable")
            columns, fresh = everything.take(order), order >= len(self._kept)
            tasks = list(self._tasks(columns, fresh))
            threads = min(os.cpu_count() or 1, len(tasks) // 8 + 1)
            shares = [tasks[i::threads] for i in range(threads)]
            # NumPy and rapidfuzz let go of the interpreter's lock
            with ThreadPoolExecutor(threads) as workers:
                joined = workers.map(partial(self._join, columns, columns), shares)
                pairs = [pair for part in joined for pair in part]
        found: dict[str, list[tuple[str, float]]] = defaultdict(list)
        for form, other, score in pairs:
            found[form].append((other, score))
        return found

    def _tasks(self, columns: _Forms, fresh: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows (g, a) to compare with columns (g, b), so that every fresh text meets all that score
        above the threshold.

        F1 > t means more than n t / (2 - t) common tokens, hence two such texts share one even
        among their n - ceil(n t / (2 - t)) + 1 rarest (the prefix filter: Chaudhuri et al., ICDE
        2006). So texts meet where they share a rare token, unless, with a small vocabulary,
        comparing everything with everything is less work. `columns` are sorted by length.
        """
        t, n = self.threshold, columns.lengths
        rows, starts, sizes = self._sharing_a_rare_token(columns)
        if (sizes**2).sum() > fresh.sum() * len(columns):
            rows, starts, sizes = (
                np.arange(len(columns)),
                np.zeros(1, np.int64),
                np.array([len(columns)]),
            )
        for size in range(2, SMALL):  # many small groups of one size make one task
            stacked = rows[starts[sizes == size][:, None] + np.arange(size)]
            stacked = stacked[fresh[stacked].any(axis=1)]
            for part in np.array_split(stacked, len(stacked) * size**2 // TASK + 1):
                yield part, part
        for start, size in zip(starts[sizes >= SMALL], sizes[sizes >= SMALL], strict=True):
            group = rows[start : start + size]
            newcomers, lengths = group[fresh[group]], n[group]
            for part in np.array_split(newcomers, len(newcomers) * size // TASK + 1):
                if len(part):
                    # F1 > t bounds the other length too: m t / (2 - t) < n < m (2 - t) / t
                    bounds = [
                        n[part[0]] * t / (2 - t) - 1e-6,
                        n[part[-1]] * (2 - t) / max(t, 1e-9) + 1e-6,
                    ]
                    yield part[None], group[slice(*np.searchsorted(lengths, bounds))][None]

    def _sharing_a_rare_token(self, columns: _Forms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Groups of texts as one array with the start and the size of each."""
        t, n = self.threshold, columns.lengths
        rows, codes, occurrence = columns.elements()
        _, tokens, frequency = np.unique(
            codes + (occurrence << 21), return_inverse=True, return_counts=True
        )
        order = np.lexsort((tokens, frequency[tokens], rows))
        rows, tokens = rows[order], tokens[order]
        place = np.arange(len(rows)) - (np.cumsum(n) - n)[rows]
        rare = place <= (n - np.ceil(n * t / (2 - t) - 1e-6))[rows]
        rows, tokens = rows[rare], tokens[rare]
        order = np.argsort(tokens, kind="stable")
        rows, tokens = rows[order], tokens[order]
        starts = np.flatnonzero(np.r_[True, tokens[1:] != tokens[:-1]])
        return rows, starts, np.diff(np.r_[starts, len(rows)])

    def _join(
        self, texts: _Forms, pool: _Forms, tasks: list[tuple[np.ndarray, np.ndarray]]
    ) -> list[tuple[str, str, float]]:
        """All pairs of a text and another in the pool that meet in `tasks` and score above the
        threshold."""
        slack = [
            ((1 - self.threshold) * forms.lengths).astype(np.float32) for forms in (texts, pool)
        ]
        found, hits, size = [], [], 0
        for rows, others in tasks:
            width, counts = texts.lengths[rows].max(initial=0) * (1 - self.threshold) / 8, 0
            for left, right in zip(texts.folded(width), pool.folded(width), strict=True):
                counts = counts + np.bitwise_count(
                    left[rows][:, :, None] ^ right[others][:, None, :]
                ).astype(np.float32)
            group, i, j = np.nonzero(
                counts - slack[1][others][:, None, :] <= slack[0][rows][:, :, None] + 1e-3
            )
            hits.append((rows[group, i], others[group, j]))
            size += len(i)
            if size > TASK:
                found += self._verify(texts, pool, hits)
                hits, size = [], 0
        return found + self._verify(texts, pool, hits)

    def _verify(
        self, texts: _Forms, pool: _Forms, hits: list[tuple[np.ndarray, np.ndarray]]
    ) -> list[tuple[str, str, float]]:
        """Of pairs that passed the folded signature those that pass the whole one and, by their
        LCS, the threshold."""
        if not hits:
            return []
        i, j, scores = self._above(
            texts, pool, *(np.concatenate(side) for side in zip(*hits, strict=True))
        )
        return [
            (texts.forms[a], pool.forms[b], float(score))
            for a, b, score in zip(i, j, scores, strict=True)
        ]

    def _above(
        self, texts: _Forms, pool: _Forms, i: np.ndarray, j: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the pairs (i, j) of a text and another in the pool those that score above the
        threshold, and their scores."""
        from rapidfuzz.distance import Indel
        from rapidfuzz.process import cpdist

        m, n = texts.lengths[i], pool.lengths[j]
        apart = np.bitwise_count(texts.signatures[i] ^ pool.signatures[j]).sum(
            axis=1, dtype=np.int64
        )
        close = np.flatnonzero(
            (apart <= (1 - self.threshold) * (m + n) + 1e-6) & ((i != j) if texts is pool else True)
        )
        i, j, m, n = i[close], j[close], m[close], n[close]
        if not len(i):
            return i, j, np.zeros(0)
        left, right = [texts.forms[k] for k in i], [pool.forms[k] for k in j]
        # The normalised Indel similarity is 2 LCS / (m + n); it gives the LCS back as a whole
        # number
        similarity = cpdist(
            left,
            right,
            scorer=Indel.normalized_similarity,
            score_cutoff=max(self.threshold - 1e-6, 0),
            dtype=np.float64,
        )
        scores = _f1(np.rint(similarity * (m + n) / 2), m, n, self.tokenizer)
        above = np.flatnonzero(scores > self.threshold)
        return i[above], j[above], scores[above]


@dataclass
class _Forms:
    """Encoded texts with their lengths (n,) in tokens and their signatures (n, words)."""

    forms: list[str]
    lengths: np.ndarray
    signatures: np.ndarray
    _folds: dict[int, list[np.ndarray]] = field(default_factory=dict)

    @classmethod
    def of(cls, forms: list[str], words: int) -> _Forms:
        columns = cls(
            forms,
            np.fromiter(map(len, forms), np.int64, len(forms)),
            np.zeros((len(forms), words), np.uint64),
        )
        rows, codes, occurrence = columns.elements()
        bits = (codes + 397 * occurrence) % (
            64 * words
        )  # frequent words come early, so each has a bit of its own
        np.bitwise_xor.at(
            columns.signatures, (rows, bits >> 6), np.uint64(1) << (bits & 63).astype(np.uint64)
        )
        return columns

    def elements(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every token of every text: the text's row, the token's code, and how often that text had
        the token before."""
        codes = np.frombuffer(
            "".join(self.forms).encode("utf-32-le", "surrogatepass"), np.uint32
        ).astype(np.int64)
        rows = np.repeat(np.arange(len(self.forms)), self.lengths)
        order = np.argsort(rows << 21 | codes, kind="stable")
        rows, codes = rows[order], codes[order]
        steps = np.arange(len(codes))
        new = np.ones(len(codes), bool)
        new[1:] = (codes[1:] != codes[:-1]) | (rows[1:] != rows[:-1])
        return rows, codes, steps - np.maximum.accumulate(np.where(new, steps, 0))

    def __len__(self) -> int:
        return len(self.forms)

    def __add__(self, other: _Forms) -> _Forms:
        return _Forms(
            self.forms + other.forms,
            np.concatenate((self.lengths, other.lengths)),
            np.concatenate((self.signatures, other.signatures)),
        )

    def take(self, order: np.ndarray) -> _Forms:
        return _Forms(
            [self.forms[i] for i in order.tolist()], self.lengths[order], self.signatures[order]
        )

    def only(self, forms: set[str]) -> _Forms:
        return self.take(
            np.array([i for i, form in enumerate(self.forms) if form in forms], np.int64)
        )

    def folded(self, least: float) -> list[np.ndarray]:
        """The signatures folded to `least` words or more, one contiguous array a word. Folding is
        xor: the bound still holds."""
        width = 1
        while width < min(least, self.signatures.shape[1]):
            width *= 2
        if width not in self._folds:
            words = self.signatures.shape[1]
            parts = self.signatures.reshape(len(self), words // width, width)
            self._folds[width] = [
                np.ascontiguousarray(word) for word in np.bitwise_xor.reduce(parts, axis=1).T
            ]
        return self._folds[width]


def _scores(rows: list[str], columns: list[str], tokenizer: str) -> np.ndarray:
    """(len(rows), len(columns)) ROUGE-L F1 between encoded texts."""
    from rapidfuzz.distance import LCSseq
    from rapidfuzz.process import cdist

    lcs = cdist(rows, columns, scorer=LCSseq.similarity, dtype=np.uint32, workers=-1)
    m, n = (
        np.fromiter((max(len(text), 1) for text in side), np.int64, len(side))
        for side in (rows, columns)
    )
    return _f1(
        lcs, m[:, None], n[None, :], tokenizer
    )  # a text without tokens has no LCS, so its score is 0


def rouge_l_duplicates(
    texts: list[str], threshold: float = 0.7, tokenizer: str = "unicode"
) -> Duplicates:
    """Greedy near-duplicate filter, first come, first kept; exact; a text is removed if a kept one
    scores > `threshold`."""
    return duplicates(RougeLIndex(threshold, tokenizer).add(texts))


def rouge_l_above(
    texts: list[str],
    pairs: tuple[np.ndarray, np.ndarray],
    threshold: float = 0.7,
    tokenizer: str = "unicode",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the proposed `pairs` (i, j), indices into `texts`, those that score above `threshold`,
    with their scores: what the filter says of each pair, for those who find candidates by other
    means (scale/duplicates.py). A text without tokens resembles nothing."""
    index = RougeLIndex(threshold, tokenizer)
    forms = _Forms.of(index._encode(texts), index.WORDS)
    i, j = (np.asarray(side, np.int64) for side in pairs)
    some = (forms.lengths[i] > 0) & (forms.lengths[j] > 0)
    return index._above(forms, forms, i[some], j[some])


def rouge_l_nearest(
    texts: list[str], references: list[str], tokenizer: str = "unicode"
) -> list[Match]:
    """For each text the reference with the highest ROUGE-L (the first of equals); `references` must
    not be empty."""
    encode = RougeLIndex(tokenizer=tokenizer)._encode
    scores = _scores(encode(texts), encode(references), tokenizer)
    return [
        Match(int(j), float(row[j])) for row, j in zip(scores, scores.argmax(axis=1), strict=True)
    ]
