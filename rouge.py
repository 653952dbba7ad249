"""ROUGE-L over words, characters or the reference tokens, and the greedy near-duplicate filter of
Self-Instruct, exact and fast.

What it does: the score of Lin (2004) as Self-Instruct uses it (arXiv 2212.10560), and which of
200,000 texts resemble an earlier one, in seconds. What it does not do: know any meaning, which is
`similarity.py`'s embeddings. Call it through `similarity`.
"""

from __future__ import annotations

import functools
import math
import os
import re
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

import utils

BLOCK = 4096  # texts that are compared with the kept ones at a time
GROUP = 512  # texts of a block that are compared with one another
ROWS, COLUMNS = 128, 4096  # of a tile, at most: what lies between two steps stays in the cache
WORDS = 16  # 64-bit words in a signature
LONG = 512  # tokens: two texts longer than that have a wide signature too
WIDE = 1024  # 64-bit words in that one

# --- tokens ---------------------------------------------------------------------------------------

TOKENIZERS = ("unicode", "char", "rouge_score")
# Signs that Hebrew and Arabic may write or leave out: points, vowels and the stroke that widens
OPTIONAL = re.compile(
    "[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u0652\u0670]"
)


@functools.cache
def _token():
    """A pattern for one word or one sign that changes a meaning."""
    import regex  # with Unicode's own rules for the boundaries of words (flag w: UAX 29)

    word = r"\b[\p{L}\p{N}\p{M}\p{Pc}].*?\b"
    sign = r"[\p{Sm}\p{Sc}\p{So}*/%^&#@\\]"
    minus = r"(?<=\S )-(?= \S)|-(?=\d)"  # "5 - 3" and "-3", but no hyphen and no mark of a list
    return regex.compile(f"(?w){word}|{sign}|{minus}", regex.DOTALL)


@functools.cache
def _character():
    import regex

    return regex.compile(r"\X")  # a letter with the marks on it


def tokenize(text: str, tokenizer: str = "unicode") -> list[str]:
    """Split a text into the units that ROUGE-L compares.

    Args:
        tokenizer: "unicode": words by Unicode's own rules (UAX 29; NFKC, casefolded) with the marks
            on their letters, so that Hindi "दिन" and "दान" differ; where a script has no spaces, as
            Chinese, Japanese and Thai, these rules give its characters. Digits and operators are
            tokens, for "5 + 3" is not "5 - 3" and C is not C++. "char": the characters of these
            tokens, for Korean, where one particle changes a word. "rouge_score": what the
            rouge-score package does without stemming, that is, ASCII only: Hangul vanishes, so that
            two identical Korean sentences score 0. Kept to show that and to compare with published
            figures.

    Raises:
        CourseError: another tokenizer.
    """
    if tokenizer == "rouge_score":
        return re.findall(r"[a-z0-9]+", text.lower())
    plain = unicodedata.normalize("NFKC", text).casefold().replace("\u2212", "-")  # a true minus
    words = _token().findall(OPTIONAL.sub("", plain))
    if tokenizer == "unicode":
        return words
    if tokenizer == "char":
        return _character().findall("".join(words))
    raise utils.CourseError(
        f"The tokenizer {tokenizer!r} is unknown; choose 'unicode', 'char' or 'rouge_score'."
    )


# --- scores ---------------------------------------------------------------------------------------


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
    if tokenizer == "rouge_score":
        # Its own arithmetic: at a score of exactly the threshold the rounding decides
        precision, recall = lcs / n, lcs / m
        return 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    return 2 * lcs / (m + n)


def check_threshold(threshold: float, lowest: float = 0.0) -> None:
    """CourseError unless the threshold is a number that a score can have."""
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float, np.number)):
        raise utils.CourseError(f"The threshold is {threshold!r}; give a number, such as 0.7.")
    if math.isnan(threshold) or not lowest <= threshold <= 1:
        raise utils.CourseError(
            f"The threshold is {threshold}, but scores lie between {lowest:g} and 1."
        )


def check_texts(texts: list[str]) -> None:
    """CourseError unless these are texts: one text alone is no list, and None is no text."""
    if isinstance(texts, str):
        raise utils.CourseError(
            f"One text was given where a list of texts belongs: put {texts[:40]!r} in brackets."
        )
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise utils.CourseError(
                f"Entry {place} of the texts is {text!r:.60} and not a text: leave it out, or give "
                "an empty text."
            )


# --- the filter -----------------------------------------------------------------------------------


class RougeLIndex:
    """The greedy filter of Self-Instruct, one batch after another: a text joins unless a kept one
    scores above `threshold` or is the same.

    Exact, yet few longest common subsequences are computed. Each text has a *signature* of 1,024
    bits: every token (its first, second, ... occurrence apart) flips one of them. A token that only
    one of two texts has changes at most one bit of the difference, and ROUGE-L > t allows fewer
    than (1 - t)(m + n) such tokens, hence

        popcount(signature_a ^ signature_b) < (1 - t)(m + n).

    For short texts a signature folded to 64 bits says enough, and NumPy asks a thousand million
    pairs in a second. Only what passes meets rapidfuzz's bit-parallel LCS. After the bitmap filter
    for set similarity joins (Sandes et al., arXiv 1711.07295).

    Texts are compared with the kept ones, and with one another only in groups of 512, so time and
    memory are bounded by the kept texts and not by pairs of rejected ones, in any order.
    """

    def __init__(self, threshold: float = 0.7, tokenizer: str = "unicode") -> None:
        check_threshold(threshold)
        tokenize("", tokenizer)  # says in a sentence that it is unknown
        self.threshold, self.tokenizer = float(threshold), tokenizer
        self._codes: dict[str, int] = {}  # token -> number, in order of appearance
        self._kept = _Texts.of([], [])  # sorted by length
        self._first: dict[str, int] = {}  # a kept text's encoding -> its position among all added
        self._seen = 0

    def __len__(self) -> int:
        """How many texts were kept."""
        return len(self._first)

    def add(self, texts: list[str]) -> list[Match | None]:
        """For each text its most similar kept neighbour if that scores above the threshold, else
        None: it is kept.

        Positions count all texts ever added. Order matters: the first of two duplicates survives;
        among equally similar neighbours the first counts. A text without tokens resembles nothing,
        not even another one.

        Raises:
            CourseError: an entry is no text, or there are more different words than can be told
                apart; nothing has been added then.
        """
        check_texts(texts)
        encoded, matches = self._encode(texts), []
        bar_length = len(encoded) if len(encoded) > BLOCK else 0
        with utils.progress(bar_length, "near-duplicates") as bar:
            for start in range(0, len(encoded), BLOCK):
                matches += self._add_block(encoded[start : start + BLOCK])
                bar.update(min(BLOCK, len(encoded) - start))
        return matches

    def most_similar(self, texts: list[str], count: int = 10) -> list[list[Match]]:
        """For each text the `count` most similar kept ones, best first (Self-Instruct stores ten
        with every instruction)."""
        places = list(self._first.values())
        scores = _scores(self._encode(texts), list(self._first), self.tokenizer)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return [
            [Match(places[j], float(row[j])) for j in columns]
            for row, columns in zip(scores, best, strict=True)
        ]

    def _encode(self, texts: list[str]) -> list[str]:
        """Each text as a string with one character a token, so that rapidfuzz compares tokens as
        fast as characters."""
        known, codes = len(self._codes), self._codes
        encoded = []
        for text in texts:
            numbers = [codes.setdefault(one, len(codes)) for one in tokenize(text, self.tokenizer)]
            if len(codes) > sys.maxunicode:
                for token in list(codes)[known:]:  # as if nothing had been asked
                    del codes[token]
                raise utils.CourseError(
                    f"These texts have over {sys.maxunicode:,} different words: filter them in "
                    "parts, or with scale.duplicates, which has no such limit."
                )
            encoded.append("".join(map(chr, numbers)))
        return encoded

    def _add_block(self, forms: list[str]) -> list[Match | None]:
        """The matches of a block of encoded texts; those that are kept join the kept ones."""
        places = range(self._seen, self._seen + len(forms))
        self._seen += len(forms)
        new: dict[str, int] = {}  # each different text that is not kept already, and its place
        for form, place in zip(forms, places, strict=True):
            if form and form not in self._first:
                new.setdefault(form, place)
        texts = _Texts.of(list(new), list(new.values())).sorted()
        best = self._best(texts, self._kept)
        joined = self._settle(texts, best)
        self._kept = self._kept.with_more(joined)
        self._first |= dict(zip(joined.forms, joined.places.tolist(), strict=True))

        found = dict(zip(texts.places.tolist(), best.matches(), strict=True))
        matches: list[Match | None] = []
        for form, place in zip(forms, places, strict=True):
            first = self._first.get(form, place)
            if first != place:  # word for word a kept text
                matches.append(Match(first, 1.0))
            else:
                matches.append(found.get(new.get(form, place)))
        return matches

    def _settle(self, texts: _Texts, best: _Best) -> _Texts:
        """Decide of a block which texts are kept, in their order: those that resemble neither a
        kept text of an earlier block (`best`, which is completed) nor one of this block."""
        joined = _Texts.of([], [])
        unlike = np.flatnonzero(best.places < 0)
        in_order = unlike[np.argsort(texts.places[unlike])]
        for start in range(0, len(unlike), GROUP):
            rows = np.sort(in_order[start : start + GROUP])  # in order of length again
            found = self._best(texts.take(rows), joined)
            best.better(rows, found.scores, found.places)
            rows = rows[found.places < 0]
            found = self._among(texts.take(rows))
            best.better(rows, found.scores, found.places)
            joined = joined.with_more(texts.take(rows[found.places < 0]))
        # A text that resembles an earlier block's may be even more like one kept since
        rejected = np.flatnonzero(best.places >= 0)
        late = self._best(texts.take(rejected), joined, earlier=True)
        best.better(rejected, late.scores, late.places)
        return joined

    def _among(self, group: _Texts) -> _Best:
        """The texts of a group with one another, the first first: one that is kept counts for those
        after it."""
        best = _Best.none(len(group))
        tiles = [self._near(group, tile, group) for tile in group.tiles()]
        i, j, score = (np.concatenate(column) for column in zip(NOTHING, *tiles, strict=True))
        resembled = np.unique(j)
        for row in resembled[np.argsort(group.places[resembled])]:
            if best.places[row] < 0:
                later = (j == row) & (group.places[i] > group.places[row])
                best.better(i[later], score[later], group.places[j[later]])
        return best

    # --- the join: texts with kept texts ----------------------------------------------------------

    def _best(self, texts: _Texts, kept: _Texts, earlier: bool = False) -> _Best:
        """For each text the kept one that scores highest above the threshold; with `earlier` of
        those with a smaller position only."""
        best = _Best.none(len(texts))
        if not len(texts) or not len(kept):
            return best

        def compare(tile: slice) -> None:
            i, j, score = self._near(texts, tile, kept)
            places = kept.places[j]
            counts = places < texts.places[i] if earlier else np.ones(len(i), bool)
            best.better(i[counts], score[counts], places[counts])

        # NumPy and rapidfuzz let go of the interpreter's lock; each tile has rows of its own
        tiles = texts.tiles()
        with ThreadPoolExecutor(min(os.cpu_count() or 1, len(tiles))) as pool:
            list(pool.map(compare, tiles))
        return best

    def _near(
        self, texts: _Texts, rows: slice, pool: _Texts
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pairs (i, j) of one of these texts, of about one length, and one of the pool that
        score above the threshold, and their scores. Both are in order of length."""
        tile, t = texts.take(rows), self.threshold
        # F1 > t bounds the other length: m t / (2 - t) < n < m (2 - t) / t
        shortest = tile.lengths[0] * t / (2 - t) - 1e-6
        longest = tile.lengths[-1] * (2 - t) / max(t, 1e-9) + 1e-6
        first, last = np.searchsorted(pool.lengths, [shortest, longest])
        found = [NOTHING]
        for start in range(first, last, COLUMNS):
            i, j = self._candidates(tile, pool, slice(start, min(start + COLUMNS, last)))
            found.append(self._verified(texts, pool, i + rows.start, j + start))
        i, j, scores = (np.concatenate(column) for column in zip(*found, strict=True))
        return i, j, scores

    def _candidates(
        self, tile: _Texts, pool: _Texts, columns: slice
    ) -> tuple[np.ndarray, np.ndarray]:
        """The pairs of a tile's rows and these columns of the pool whose folded signatures are near
        enough."""
        width = tile.lengths[-1] * (1 - self.threshold) / 4
        apart = np.zeros(1, np.uint16)
        for left, right in zip(tile.folded(width), pool.folded(width), strict=True):
            apart = apart + np.bitwise_count(left[:, None] ^ right[None, columns])
        # One limit a column, for the longest of these texts: they are of about one length
        allowed = (1 - self.threshold) * (tile.lengths[-1] + pool.lengths[columns])
        near = apart <= np.minimum(allowed + 1e-6, 65_535).astype(np.uint16)
        return np.divmod(np.flatnonzero(near), near.shape[1])

    def _verified(
        self, texts: _Texts, pool: _Texts, i: np.ndarray, j: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of pairs (i, j) of different texts those that score above the threshold, by the whole
        signatures first and by their LCS then, and their scores."""
        from rapidfuzz.distance import Indel
        from rapidfuzz.process import cpdist

        allowed = (1 - self.threshold) * (texts.lengths[i] + pool.lengths[j]) + 1e-6
        apart = np.bitwise_count(texts.signatures[i] ^ pool.signatures[j]).sum(axis=1, dtype=int)
        close = apart <= allowed
        for pair in np.flatnonzero(close & (texts.lengths[i] > LONG) & (pool.lengths[j] > LONG)):
            # An LCS of 20,000 words takes 40 ms, this a few millionths of a second
            difference = texts.wide(i[pair]) ^ pool.wide(j[pair])
            close[pair] = np.bitwise_count(difference).sum(dtype=int) <= allowed[pair]
        if texts is pool:
            close &= i != j
        i, j = i[close], j[close]
        if not len(i):
            return NOTHING
        # The normalised Indel similarity is 2 LCS / (m + n); it gives the LCS back as a whole
        # number
        similarity = cpdist(
            [texts.forms[k] for k in i],
            [pool.forms[k] for k in j],
            scorer=Indel.normalized_similarity,
            score_cutoff=max(self.threshold - 1e-6, 0),
            dtype=np.float64,
        )
        m, n = texts.lengths[i], pool.lengths[j]
        scores = _f1(np.rint(similarity * (m + n) / 2), m, n, self.tokenizer)
        above = np.flatnonzero(scores > self.threshold)
        return i[above], j[above], scores[above]


NOTHING = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))  # no pairs, no scores


@dataclass
class _Best:
    """For each of n texts its best match so far: scores (n,), and positions (n,), -1 for none."""

    scores: np.ndarray
    places: np.ndarray

    @classmethod
    def none(cls, count: int) -> _Best:
        return cls(np.zeros(count), np.full(count, -1))

    def better(self, rows: np.ndarray, scores: np.ndarray, places: np.ndarray) -> None:
        """Take what is better than what is known: higher, or as high and earlier."""
        if not len(rows):
            return
        order = np.lexsort((places, -scores, rows))
        rows, first = np.unique(rows[order], return_index=True)
        scores, places = scores[order][first], places[order][first]
        tie = (scores == self.scores[rows]) & (places < self.places[rows])
        wins = (places >= 0) & ((scores > self.scores[rows]) | tie)
        self.scores[rows[wins]], self.places[rows[wins]] = scores[wins], places[wins]

    def matches(self) -> list[Match | None]:
        pairs = zip(self.places.tolist(), self.scores.tolist(), strict=True)
        return [Match(place, score) if place >= 0 else None for place, score in pairs]


@dataclass
class _Texts:
    """Encoded texts with their positions (n,) among all, their lengths (n,) in tokens and their
    signatures (n, WORDS); for a join in order of length (`sorted`)."""

    forms: np.ndarray  # of strings
    places: np.ndarray
    lengths: np.ndarray
    signatures: np.ndarray
    _folds: dict[int, list[np.ndarray]] = field(init=False, default_factory=dict)
    _wide: dict[int, np.ndarray] = field(init=False, default_factory=dict)

    @classmethod
    def of(cls, forms: list[str], places: list[int]) -> _Texts:
        column = np.empty(len(forms), object)
        column[:] = forms
        lengths = np.fromiter(map(len, forms), np.int64, len(forms))
        return cls(column, np.array(places, np.int64), lengths, _signatures(forms, WORDS))

    def __len__(self) -> int:
        return len(self.forms)

    def take(self, rows: np.ndarray | slice) -> _Texts:
        columns = (self.forms, self.places, self.lengths, self.signatures)
        return _Texts(*(column[rows] for column in columns))

    def sorted(self) -> _Texts:
        return self.take(np.argsort(self.lengths, kind="stable"))

    def tiles(self) -> list[slice]:
        """Runs of texts of about one length."""
        step = min(max(len(self) // 32, 8), ROWS)
        return [slice(start, start + step) for start in range(0, len(self), step)]

    def with_more(self, others: _Texts) -> _Texts:
        """Both, in order of length, as each is."""
        where = np.searchsorted(self.lengths, others.lengths, side="right")
        names = ("forms", "places", "lengths", "signatures")
        columns = (np.insert(getattr(self, one), where, getattr(others, one), 0) for one in names)
        return _Texts(*columns)

    def folded(self, least: float) -> list[np.ndarray]:
        """The signatures folded to `least` words or more, one contiguous array a word. Folding is
        xor: the bound still holds."""
        width = 1
        while width < min(least, WORDS):
            width *= 2
        if width not in self._folds:
            parts = self.signatures.reshape(len(self), WORDS // width, width)
            folds = np.bitwise_xor.reduce(parts, axis=1).T
            self._folds[width] = [np.ascontiguousarray(word) for word in folds]
        return self._folds[width]

    def wide(self, row: int) -> np.ndarray:
        """The signature of a long text in WIDE words."""
        if row not in self._wide:
            self._wide[row] = _signatures([self.forms[row]], WIDE)[0]
        return self._wide[row]


def _signatures(forms: list[str], words: int) -> np.ndarray:
    """(n, words) uint64: a bit for every token of every text and every time that it occurs."""
    lengths = np.fromiter(map(len, forms), np.int64, len(forms))
    encoded = "".join(forms).encode("utf-32-le", "surrogatepass")
    codes = np.frombuffer(encoded, np.uint32).astype(np.int64)
    rows = np.repeat(np.arange(len(forms)), lengths)
    # How often had this text this token before? Count on from where it first stands
    order = np.argsort(rows << 21 | codes, kind="stable")
    rows, codes = rows[order], codes[order]
    first = np.ones(len(codes), bool)
    first[1:] = (codes[1:] != codes[:-1]) | (rows[1:] != rows[:-1])
    steps = np.arange(len(codes))
    before = steps - np.maximum.accumulate(np.where(first, steps, 0))
    # Frequent words come early, so each has a bit of its own
    bits = (codes + 397 * before) % (64 * words)
    signatures = np.zeros((len(forms), words), np.uint64)
    flipped = np.uint64(1) << (bits & 63).astype(np.uint64)
    np.bitwise_xor.at(signatures, (rows, bits >> 6), flipped)
    return signatures


def _scores(rows: list[str], columns: list[str], tokenizer: str) -> np.ndarray:
    """(len(rows), len(columns)) ROUGE-L F1 between encoded texts."""
    from rapidfuzz.distance import LCSseq
    from rapidfuzz.process import cdist

    lcs = cdist(rows, columns, scorer=LCSseq.similarity, dtype=np.uint32, workers=-1)
    # A text without tokens has no LCS, so its score is 0
    m, n = (np.array([max(len(text), 1) for text in side], np.int64) for side in (rows, columns))
    return _f1(lcs, m[:, None], n[None, :], tokenizer)


def rouge_l_duplicates(
    texts: list[str], threshold: float = 0.7, tokenizer: str = "unicode"
) -> Duplicates:
    """Greedy near-duplicate filter, first come, first kept; exact; a text is removed if a kept one
    scores > `threshold` or is the same, so that 1.0 removes what is identical only."""
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
    encoded = _Texts.of(index._encode(texts), list(range(len(texts))))
    i, j = (np.asarray(side, np.int64) for side in pairs)
    some = (encoded.lengths[i] > 0) & (encoded.lengths[j] > 0)
    return index._verified(encoded, encoded, i[some], j[some])


def rouge_l_pairs(
    texts: list[str], threshold: float = 0.7, tokenizer: str = "unicode"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs (i, j), i < j, of different texts that score above `threshold`, and their scores:
    every text with every other, rejected or not, so as many as there may be."""
    index = RougeLIndex(threshold, tokenizer)
    encoded = _Texts.of(index._encode(texts), list(range(len(texts)))).sorted()
    encoded = encoded.take(np.flatnonzero(encoded.lengths > 0))
    tiles = [index._near(encoded, tile, encoded) for tile in encoded.tiles()]
    i, j, scores = (np.concatenate(column) for column in zip(NOTHING, *tiles, strict=True))
    i, j = encoded.places[i], encoded.places[j]
    return i[i < j], j[i < j], scores[i < j]


def rouge_l_nearest(
    texts: list[str], references: list[str], tokenizer: str = "unicode"
) -> list[Match]:
    """For each text the reference with the highest ROUGE-L (the first of equals).

    Raises:
        CourseError: there are no references, or an entry is no text.
    """
    check_texts(texts)
    check_texts(references)
    if not references:
        raise utils.CourseError("There is nothing to compare the texts with: no references.")
    encode = RougeLIndex(tokenizer=tokenizer)._encode
    scores = _scores(encode(texts), encode(references), tokenizer)
    return [
        Match(int(j), float(row[j])) for row, j in zip(scores, scores.argmax(axis=1), strict=True)
    ]
