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
from scipy import sparse

import utils

GROUP = 256  # texts that are compared with one another in any case
ROWS, COLUMNS = 256, 2048  # of a tile, at most: what lies between two steps stays in the cache
WORDS = 16  # 64-bit words in a signature
LONG = 512  # tokens: two texts longer than that have a wide signature too
WIDE = 1024  # 64-bit words in that one
FREQUENT = 1024  # tokens of which long texts are compared without their order, the first to appear
MEETINGS = 512  # of a text with others over a rare token: with so few, all meet in one go
SPARSE = 1 / 8  # of all pairs: where fewer meet over rare tokens, only these are compared
MANY = 2048  # texts from which on it pays to look for rare tokens in a pool
LOUD = 50_000  # tokens from which on a bar shows progress
SMALL = 1e-6  # against rounding

# --- tokens ---------------------------------------------------------------------------------------

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

    Exact, and in any order of the texts few longest common subsequences are computed, by three
    ideas:

    - **Rare tokens** (`_RareTokens`). ROUGE-L > t between m and n tokens needs more than
      t (m + n) / 2 common ones, hence more than m t / (2 - t). So two such texts share one even
      among the m - m t / (2 - t) rarest of the one and as many of the other: the prefix filter of
      Chaudhuri et al. (ICDE 2006). Which pairs do is one product of two sparse matrices.
    - **Signatures** (`_signatures`). Each text has 1,024 bits: every token (its first, second, ...
      occurrence apart) flips one of them. A token that only one of two texts has changes at most
      one bit of the difference, and ROUGE-L > t allows fewer than (1 - t)(m + n) such tokens, hence

          popcount(signature_a ^ signature_b) < (1 - t)(m + n).

      Only what passes meets rapidfuzz's bit-parallel LCS. After the bitmap filter for set
      similarity joins (Sandes et al., arXiv 1711.07295).
    - **Crowds** (`_Join.filter`). Where a template fills the texts, its words are the rare ones of
      all of them. Then one text is found that is kept and that many others resemble: these are
      decided, and meet one another no more. Where many small templates are left, the first half is
      filtered, and the second compared with what was kept of it and filtered then.
    """

    def __init__(self, threshold: float = 0.7, tokenizer: str = "unicode") -> None:
        check_threshold(threshold)
        tokenize("", tokenizer)  # says in a sentence that it is unknown
        self.threshold, self.tokenizer = float(threshold), tokenizer
        self._codes: dict[str, int] = {}  # token -> number, in order of appearance
        # The last few apart: a small batch must not sort and fold all that were ever kept
        self._kept, self._recent = _Texts.of([]), _Texts.of([])
        self._seen = 0

    def __len__(self) -> int:
        """How many texts were kept."""
        return len(self._kept) + len(self._recent)

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
        batch = _Texts.of(self._encode(texts), self._seen)
        with _Join(batch, self.threshold, self.tokenizer, len(self)) as join:
            rows = np.flatnonzero(batch.lengths)
            join.compare(rows, self._kept)
            join.compare(rows, self._recent)
            kept = join.filter(rows)
        self._seen += len(texts)
        self._recent = self._recent.with_more(batch.take(kept))
        if len(self._recent) > len(self._kept) / 16:
            self._kept = self._kept.with_more(self._recent).sorted()
            self._recent = _Texts.of([])
        return join.best.matches()

    def most_similar(self, texts: list[str], count: int = 10) -> list[list[Match]]:
        """For each text the `count` most similar kept ones, best first (Self-Instruct stores ten
        with every instruction)."""
        pool = self._kept.with_more(self._recent)
        pool = pool.take(np.argsort(pool.places))
        places = pool.places.tolist()
        scores = _scores(self._encode(texts), pool.forms.tolist(), self.tokenizer)
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


class _Join:
    """One batch of texts on its way through the filter. `best` says what is known of each row, and
    rows are numbers in the batch."""

    def __init__(self, batch: _Texts, threshold: float, tokenizer: str, pool: int) -> None:
        self.batch, self.threshold, self.tokenizer = batch, threshold, tokenizer
        self.best = _Best.none(len(batch))
        if len(batch) > GROUP:
            self.tokens = _RareTokens(batch, threshold)
            self.rare = self.tokens.of(batch)
        self.workers = ThreadPoolExecutor(os.cpu_count())
        self.pairs, self.all_pairs = 0.0, len(batch) * (pool + len(batch) / 2)
        loud = batch.lengths.sum() > LOUD
        self.bar = utils.progress(len(batch) if loud else 0, "near-duplicates")

    def __enter__(self) -> _Join:
        return self

    def __exit__(self, *_) -> None:
        self.workers.shutdown()
        self.bar.close()

    def filter(self, rows: np.ndarray) -> np.ndarray:
        """Decide rows, in order, that were compared with all kept texts before the first of them;
        returns those that are kept."""
        few = self._few_meetings(rows)
        while not few and self._decide_crowd(rows):
            few = self._few_meetings(rows)
        if few:
            return self._among(rows)
        first, second = np.array_split(rows, 2)
        kept = self.filter(first)
        self.compare(second, self.batch.take(kept), len(first))
        return np.concatenate([kept, self.filter(second)])

    def _open(self, rows: np.ndarray) -> np.ndarray:
        """Those that resemble no kept text so far."""
        return rows[self.best.places[rows] < 0]

    def _few_meetings(self, rows: np.ndarray) -> bool:
        """Whether few pairs of the open rows share a rare token, as where no template fills
        them."""
        rows = self._open(rows)
        if len(rows) <= GROUP:
            return True
        counts = np.bincount(self.rare[rows].indices)
        return (counts.astype(float) ** 2).sum() / 2 < MEETINGS * len(rows)

    def _decide_crowd(self, rows: np.ndarray) -> bool:
        """Decide the open rows that resemble one of them; False where those are too few to be worth
        it.

        From a row with the most common rare token the way goes to the first that it resembles, and
        on to the first that this one resembles. No kept text and no open row before that one
        resembles it, so it is kept, and each row that resembles it is not.
        """
        rows = self._open(rows)
        rare = self.rare[rows]
        places = np.flatnonzero(rare.indices == np.bincount(rare.indices).argmax())
        first = rows[np.searchsorted(rare.indptr, places[len(places) // 2], side="right") - 1]
        alike, scores = self._alike(rows, first)
        while alike.min(initial=first) < first:
            first = alike.min()
            alike, scores = self._alike(rows, first)
        self.best.better(alike, scores, np.full(len(alike), self.batch.places[first]))
        return len(alike) > MEETINGS

    def _alike(self, rows: np.ndarray, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Those of the rows, other than this one, that resemble it, and their scores."""
        others = rows[rows != row]
        same = np.full(len(others), row)
        alike, _, scores = _verified(
            self.batch, others, self.batch, same, self.threshold, self.tokenizer
        )
        return alike, scores

    def compare(self, rows: np.ndarray, pool: _Texts, of: int = 0) -> None:
        """Find the best match of each row in a pool of kept texts (the rest of `of` was
        rejected)."""
        if not len(pool) or not len(rows):
            return
        pool = pool.sorted()
        rare = self._rare_of(pool) if min(len(rows), len(pool)) >= MANY else None

        def near(tile: np.ndarray) -> int:
            self._score(*self._candidates(tile, pool, rare), pool)
            return len(tile)

        # NumPy and rapidfuzz let go of the interpreter's lock; each tile has rows of its own
        for done in self.workers.map(near, self._tiles(rows)):
            self._advance(done * max(of, len(pool)))

    def _among(self, rows: np.ndarray) -> np.ndarray:
        """Rows with one another, the first first: one that is kept counts for those after it.
        Returns those that are kept."""
        open_rows = self._open(rows)
        if not len(open_rows):
            return open_rows
        pool = self.batch.take(open_rows).sorted()
        rare = self._rare_of(pool) if len(rows) > GROUP else None

        def near(tile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            i, j = self._candidates(tile, pool, rare)
            earlier = self._row(pool)[j] < i
            return i[earlier], j[earlier]

        found = self.workers.map(near, np.array_split(rows, len(rows) // GROUP + 1))
        i, j = (np.concatenate(side) for side in zip(*found, strict=True))
        while len(i):
            # A row that resembles a kept one, or waits for no other, is decided
            waits = np.zeros(len(self.batch), bool)
            waits[i[self.best.places[i] < 0]] = True
            earlier = self._row(pool)[j]
            ready = ~waits[earlier]
            kept = ready & (self.best.places[earlier] < 0)
            self._score(i[kept], j[kept], pool)
            i, j = i[~ready], j[~ready]
        self._advance(len(rows) ** 2 / 2)
        return self._open(open_rows)

    def _row(self, texts: _Texts) -> np.ndarray:
        """The numbers in the batch of texts of it."""
        return texts.places - self.batch.places[0]

    def _rare_of(self, pool: _Texts) -> sparse.csr_array:
        """(tokens, pool) the rare tokens of a pool, which is of the batch or was kept before it."""
        rows = self._row(pool)
        rare = self.rare[rows] if rows[0] >= 0 else self.tokens.of(pool)
        return rare.T.tocsr()

    def _tiles(self, rows: np.ndarray) -> list[np.ndarray]:
        """The rows in parts of about one length."""
        rows = rows[np.argsort(self.batch.lengths[rows], kind="stable")]
        step = min(max(len(rows) // 8, 32), ROWS)
        return np.split(rows, range(step, len(rows), step))

    def _candidates(
        self, rows: np.ndarray, pool: _Texts, rare: sparse.csr_array | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The pairs `(i, j)` of rows and a pool in order of length that may score above the
        threshold: those that share a rare token or, where that is no less work, all, by their
        lengths and folded signatures."""
        if rare is not None:
            own = self.rare[rows]
            # Each token meets as many of the pool as its list is long
            meetings = (rare.indptr[own.indices + 1] - rare.indptr[own.indices]).sum()
            if meetings < SPARSE * len(rows) * len(pool):
                i, j = (own @ rare).nonzero()
                return _near(self.batch, rows[i], pool, j, self.threshold)
        i, j = self._close(self.batch.take(rows), pool)
        return _near(self.batch, rows[i], pool, j, self.threshold)

    def _close(self, tile: _Texts, pool: _Texts) -> tuple[np.ndarray, np.ndarray]:
        """The pairs of a tile and a pool that are not too far apart by their lengths and folded
        signatures."""
        t, shortest, longest = self.threshold, tile.lengths.min(), tile.lengths.max()
        # F1 > t bounds the other length: m t / (2 - t) < n < m (2 - t) / t
        bounds = [shortest * t / (2 - t) - SMALL, longest * (2 - t) / max(t, SMALL) + SMALL]
        columns = np.arange(*np.searchsorted(pool.lengths, bounds))
        # One limit a column, for the longest of the tile: its texts are of about one length
        allowed = np.minimum((1 - t) * (longest + pool.lengths) + SMALL, 60_000).astype(np.uint16)
        width = tile.lengths.max() * (1 - t) / 4  # in so many words signatures say enough
        found = [(columns[:0], columns[:0])]
        for part in np.split(columns, range(COLUMNS, len(columns), COLUMNS)):
            near = _apart(tile, pool, part, width) <= allowed[part]
            i, j = np.divmod(np.flatnonzero(near), max(1, len(part)))
            found.append((i, part[j]))
        i, j = (np.concatenate(side) for side in zip(*found, strict=True))
        return i, j

    def _score(self, rows: np.ndarray, columns: np.ndarray, pool: _Texts) -> None:
        """Note which of these pairs score above the threshold."""
        pairs = _verified(self.batch, rows, pool, columns, self.threshold, self.tokenizer)
        self.best.better(pairs[0], pairs[2], pool.places[pairs[1]])

    def _advance(self, pairs: float) -> None:
        self.pairs += pairs
        self.bar.update(int(len(self.batch) * self.pairs / self.all_pairs) - self.bar.n)


def _apart(texts: _Texts, pool: _Texts, columns: np.ndarray | slice, least: float) -> np.ndarray:
    """(n, columns) uint16: in how many bits signatures differ, folded to `least` words or more."""
    apart = np.zeros(1, np.uint16)
    for left, right in zip(texts.folded(least), pool.folded(least), strict=True):
        apart = apart + np.bitwise_count(left[:, None] ^ right[None, columns])
    return apart


def _near(
    a: _Texts, i: np.ndarray, b: _Texts, j: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Those of the pairs (i, j) that may score above the threshold by their signatures."""
    for words in (1, WORDS):  # most pairs fail at the first word
        allowed = (1 - threshold) * (a.lengths[i] + b.lengths[j]) + SMALL
        apart = np.zeros(1, np.uint16)
        for left, right in zip(a.folded(words), b.folded(words), strict=True):
            apart = apart + np.bitwise_count(left[i] ^ right[j])
        near = apart <= allowed
        i, j = i[near], j[near]
    near = np.ones(len(i), bool)
    for pair in np.flatnonzero((a.lengths[i] > LONG) & (b.lengths[j] > LONG)):
        tokens = a.lengths[i[pair]] + b.lengths[j[pair]]
        near[pair] = _long_near(a.long(i[pair]), b.long(j[pair]), tokens, threshold)
    return i[near], j[near]


def _long_near(a: _Long, b: _Long, tokens: int, threshold: float) -> bool:
    """Whether two long texts, which have so many tokens together, may score above the threshold. An
    LCS of 20,000 words takes 40 ms, these two bounds 5 microseconds and 1 to 5 ms."""
    from rapidfuzz.distance import LCSseq

    apart = np.bitwise_count(a.signature ^ b.signature).sum(dtype=int)
    if apart > (1 - threshold) * tokens + SMALL:
        return False
    # The frequent tokens that they have in common, in whatever order, and the LCS of the others
    longest = np.minimum(a.frequent, b.frequent).sum() + LCSseq.similarity(a.others, b.others)
    return bool(2 * longest >= threshold * tokens - SMALL)


def _verified(
    a: _Texts, i: np.ndarray, b: _Texts, j: np.ndarray, threshold: float, tokenizer: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of pairs (i, j) those that score above the threshold, or are the same, and their scores."""
    from rapidfuzz.distance import Indel
    from rapidfuzz.process import cpdist

    i, j = _near(a, i, b, j, threshold)
    # The normalised Indel similarity is 2 LCS / (m + n); it gives the LCS back as a whole number
    similarity = cpdist(
        a.forms[i],
        b.forms[j],
        scorer=Indel.normalized_similarity,
        score_cutoff=max(threshold - SMALL, 0),
        dtype=np.float64,
    )
    m, n = a.lengths[i], b.lengths[j]
    scores = _f1(np.rint(similarity * (m + n) / 2), m, n, tokenizer)
    above = (scores > threshold) | (scores == 1)
    return i[above], j[above], scores[above]


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
        order = np.lexsort((places, -scores, rows))
        rows, first = np.unique(rows[order], return_index=True)
        scores, places = scores[order][first], places[order][first]
        tie = (scores == self.scores[rows]) & (places < self.places[rows])
        wins = (scores > self.scores[rows]) | tie
        self.scores[rows[wins]], self.places[rows[wins]] = scores[wins], places[wins]

    def matches(self) -> list[Match | None]:
        pairs = zip(self.places.tolist(), self.scores.tolist(), strict=True)
        return [Match(place, score) if place >= 0 else None for place, score in pairs]


@dataclass
class _Texts:
    """n encoded texts with their positions among all that were added (n,), their lengths (n,) in
    tokens and their signatures (n, WORDS)."""

    forms: np.ndarray  # of strings
    places: np.ndarray
    lengths: np.ndarray
    signatures: np.ndarray
    _folds: dict[int, list[np.ndarray]] = field(init=False, default_factory=dict)
    _long: dict[int, _Long] = field(init=False, default_factory=dict)

    @classmethod
    def of(cls, forms: list[str], first: int = 0) -> _Texts:
        column = np.empty(len(forms), object)
        column[:] = forms
        lengths = np.fromiter(map(len, forms), np.int64, len(forms))
        places = np.arange(first, first + len(forms))
        return cls(column, places, lengths, _signatures(forms, WORDS))

    def __len__(self) -> int:
        return len(self.forms)

    def columns(self) -> tuple[np.ndarray, ...]:
        return self.forms, self.places, self.lengths, self.signatures

    def take(self, rows: np.ndarray | slice) -> _Texts:
        return _Texts(*(column[rows] for column in self.columns()))

    def sorted(self) -> _Texts:
        """In order of length; itself, if it is."""
        if (self.lengths[1:] >= self.lengths[:-1]).all():
            return self
        return self.take(np.argsort(self.lengths, kind="stable"))

    def with_more(self, others: _Texts) -> _Texts:
        pairs = zip(self.columns(), others.columns(), strict=True)
        return _Texts(*(np.concatenate(pair) for pair in pairs))

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

    def long(self, row: int) -> _Long:
        """A long text, as it is compared with other long ones."""
        if row not in self._long:
            self._long[row] = _Long.of(self.forms[row])
        return self._long[row]


@dataclass
class _Long:
    """A long text: its signature in WIDE words, how often it has each of the FREQUENT tokens, and
    its other tokens as a string."""

    signature: np.ndarray
    frequent: np.ndarray
    others: str

    @classmethod
    def of(cls, form: str) -> _Long:
        codes = np.frombuffer(form.encode("utf-32-le", "surrogatepass"), np.uint32)
        frequent = codes < FREQUENT  # frequent words come early
        counts = np.bincount(codes[frequent], minlength=FREQUENT)
        others = codes[~frequent].tobytes().decode("utf-32-le", "surrogatepass")
        return cls(_signatures([form], WIDE)[0], counts, others)


def _elements(forms: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every token of every text, `(rows, codes, before)`: the number of its text, its own number,
    and how often this text had it before. Sorted by text and token."""
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
    return rows, codes, steps - np.maximum.accumulate(np.where(first, steps, 0))


def _signatures(forms: list[str], words: int) -> np.ndarray:
    """(n, words) uint64: a bit for every token of every text and every time that it occurs."""
    rows, codes, before = _elements(forms)
    # Frequent words come early, so each has a bit of its own
    bits = (codes + 397 * before) % (64 * words)
    signatures = np.zeros((len(forms), words), np.uint64)
    flipped = np.uint64(1) << (bits & 63).astype(np.uint64)
    np.bitwise_xor.at(signatures, (rows, bits >> 6), flipped)
    return signatures


class _RareTokens:
    """Which of its rarest tokens a text has. How rare a token is, is counted in one batch."""

    def __init__(self, batch: _Texts, threshold: float) -> None:
        self.threshold = threshold
        _, codes, before = _elements(batch.forms.tolist())
        self.known, self.counts = np.unique(before << 21 | codes, return_counts=True)

    def of(self, texts: _Texts) -> sparse.csr_array:
        """(n, tokens known) int32: 1 where a token is among the rarest of a text."""
        rows, codes, before = _elements(texts.forms.tolist())
        tokens = before << 21 | codes
        columns = np.searchsorted(self.known[:-1], tokens)
        met = self.known[columns] == tokens
        counts = np.where(met, self.counts[columns], 0)  # what the batch has not is the rarest
        order = np.lexsort((tokens, counts, rows))
        rows, columns, met = rows[order], columns[order], met[order]
        rank = np.arange(len(rows)) - (np.cumsum(texts.lengths) - texts.lengths)[rows]
        shared = np.floor(texts.lengths * self.threshold / (2 - self.threshold) - SMALL)
        rare = met & (rank < (texts.lengths - shared)[rows])
        entries = (np.ones(rare.sum(), np.int32), (rows[rare], columns[rare]))
        return sparse.csr_array(entries, shape=(len(texts), len(self.known)))


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
    encoded = _Texts.of(RougeLIndex(threshold, tokenizer)._encode(texts))
    i, j = (np.asarray(side, np.int64) for side in pairs)
    some = (encoded.lengths[i] > 0) & (encoded.lengths[j] > 0)
    return _verified(encoded, i[some], encoded, j[some], threshold, tokenizer)


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
