"""How varied is a data set? Balance, lengths, what is asked for in English and Korean, and a map of
its meanings.

What it does: tables and figures of rows. What it does not do: decide anything. The verbs are found
by rules of thumb, not by a
parser: an English instruction mostly begins with its verb, a Korean one ends with it.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

import prompts
import utils

SENTENCE = re.compile(r"(?<=[.!?:。？])\s+|\n+")


def verb(instruction: str, language: str) -> tuple[str, str]:
    """`(verb, object)` of an instruction by the rules of thumb in its language's file; a question
    gives `("question", its word)` and what is neither `("other", "")`, in the words of that
    language."""
    asks = prompts.LANGUAGES[language].asks
    sentences = [one for one in SENTENCE.split(instruction.strip()) if one]
    if asks["verb_last"]:
        sentences.reverse()
    for sentence in sentences:
        request = not re.search(asks["not_a_verb"], sentence)
        if request and (found := _first(asks["verb"], sentence)):
            name = _dictionary_form(found[1].lower(), asks["dictionary_form"])
            return name, _thing(sentence, found, asks)
        if found := _first(asks["question_word"], sentence):
            return asks["question"], found[1].lower()
    return asks["other"], ""


def _first(patterns: list[str], sentence: str) -> re.Match | None:
    """What the first of the patterns that is in a sentence finds there."""
    matches = (re.search(pattern, sentence) for pattern in patterns)
    return next(filter(None, matches), None)


def _dictionary_form(verb: str, forms: dict[str, str]) -> str:
    """The verb with the longest ending that is in `forms` exchanged: "골라" is "고르다"."""
    for ending in sorted(forms, key=len, reverse=True):
        if verb.endswith(ending):
            return verb.removesuffix(ending) + forms[ending]
    return verb


def _thing(sentence: str, verb: re.Match, asks: dict) -> str:
    """What the verb is about: the object nearest to it."""
    if asks["verb_last"]:
        before = re.findall(asks["thing"], sentence[: verb.start(1)])
        return before[-1] if before else ""
    after = re.search(asks["thing"], sentence[verb.end(1) :])
    return after[1].lower() if after else ""


def verb_figure(rows: list[dict], top: int = 12):
    """The commonest requests of each language, as bars whose parts are the commonest objects."""
    import matplotlib.pyplot as plt

    languages = sorted({row["language"] for row in rows})
    figure, several = plt.subplots(
        1, len(languages), figsize=(5 * len(languages), 3.6), squeeze=False
    )
    for axes, language in zip(several[0], languages, strict=True):
        pairs = Counter(
            verb(row["instruction"], language) for row in rows if row["language"] == language
        )
        verbs: Counter[str] = Counter()
        for (name, _), count in pairs.items():
            verbs[name] += count
        for place, (name, _) in enumerate(verbs.most_common(top)):
            left = 0
            for i, ((_, thing), count) in enumerate(
                Counter({pair: n for pair, n in pairs.items() if pair[0] == name}).most_common()
            ):
                axes.barh(
                    place,
                    count,
                    left=left,
                    color=plt.cm.Blues(0.75 - 0.12 * min(i, 4)),
                    edgecolor="white",
                    linewidth=0.4,
                )
                if i < 2 and count > 1 and thing:
                    middle = left + count / 2
                    shown = axes.text(middle, place, thing, ha="center", va="center", fontsize=6.5)
                    shown.set_gid(utils.VERBATIM)
                left += count
        axes.set_yticks(
            range(len(verbs.most_common(top))), [name for name, _ in verbs.most_common(top)]
        )
        axes.yaxis.set_gid(utils.VERBATIM)
        axes.invert_yaxis()
        axes.set(
            xlabel="rows",
            title=f"What is asked for ({language}): {len(verbs)} verbs, {len(pairs)} with their "
            "object",
        )
    figure.tight_layout()
    return figure


def map_figure(rows: list[dict], vectors: np.ndarray, clusters: int = 8):
    """Embeddings (n, d) in two dimensions (t-SNE), coloured by k-means cluster, each named by its
    commonest category."""
    import matplotlib.pyplot as plt
    from sklearn.cluster import KMeans
    from sklearn.manifold import TSNE

    clusters = min(clusters, len(rows) // 4)
    labels = KMeans(clusters, n_init=4, random_state=0).fit_predict(vectors)
    points = TSNE(perplexity=min(25, len(rows) // 4), init="pca", random_state=0).fit_transform(
        vectors
    )
    figure, axes = plt.subplots(figsize=(6.5, 4))
    for language, marker in zip(prompts.LANGUAGES, "o^sDv", strict=False):
        own = np.array([row["language"] == language for row in rows])
        x, y = points[own].T
        axes.scatter(x, y, c=labels[own], cmap="tab10", vmin=0, vmax=9, s=14, marker=marker)
        # In the legend a colour would mean a cluster
        axes.scatter([], [], color="#777777", s=14, marker=marker, label=language)
    for cluster in range(clusters):
        inside = labels == cluster
        name = Counter(
            row["category"] for row, belongs in zip(rows, inside, strict=True) if belongs
        ).most_common(1)[0][0]
        axes.annotate(
            name,
            np.median(points[inside], axis=0),
            ha="center",
            fontsize=8,
            bbox={"fc": "white", "ec": "none", "alpha": 0.7},
        )
    axes.set(
        xticks=[],
        yticks=[],
        title=f"{len(rows)} instructions by meaning, {clusters} clusters, each named by its main "
        "category",
    )
    axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    return figure


def length_figure(rows: list[dict]):
    """Characters of instruction, input and output of each language, as boxes."""
    import matplotlib.pyplot as plt

    languages = sorted({row["language"] for row in rows})
    fields = ("instruction", "input", "output")
    values, names = [], []
    for language in languages:
        own = [row for row in rows if row["language"] == language]
        for part in fields:
            values.append([len(row[part]) for row in own if row[part]])
            names.append(f"{language} {part}")
    figure, axes = plt.subplots(figsize=(6.5, 0.32 * len(names) + 0.8))
    axes.boxplot(values, vert=False, tick_labels=names, widths=0.6, sym=".")
    axes.invert_yaxis()
    axes.set(xlabel="characters", title="How long the parts of a row are (empty inputs left out)")
    figure.tight_layout()
    return figure


def balance(rows: list[dict]):
    """Rows per language and category, as a table in the order of `prompts.CATEGORIES`."""
    import pandas as pd

    table = pd.crosstab(
        pd.Series([row["language"] for row in rows]), pd.Series([row["category"] for row in rows])
    )
    return (
        table.reindex(columns=list(prompts.CATEGORIES), fill_value=0)
        .rename_axis(None)
        .rename_axis(None, axis=1)
    )
