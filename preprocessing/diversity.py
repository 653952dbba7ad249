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

LEADS = re.compile(
    r"^(?:(?:please|kindly|now|then|first|could you|can you|would you|will you|help me|i need you "
    r"to|i want you to)[ ,]+)+",
    re.I,
)
QUESTIONS = re.compile(
    r"^(what|why|how|when|where|who|which|is|are|do|does|did|should|can|may|in what|from when)\b",
    re.I,
)
ARTICLES = re.compile(
    r"^(?:(?:the|a|an|this|these|that|those|each|all|me|us|my|our|your|its|his|her|two|three|four|"
    r"five|six|one|of|for|to|in)\b ?)+",
    re.I,
)
KOREAN_END = re.compile(
    r"(설명|요약|작성|추천|제안|번역|분류|정리|계산|비교|나열|추출|소개|구분|변환|수정|안내|답|말|풀이|판단|표시|평가|확인)(?:을|를)?\s?(?:하|해|할|했)|"
    r"(알려|가르쳐|써|적어|골라|찾아|만들어|지어|고쳐|바꿔|옮겨|뽑아|구해|세어|들어|줄여|나눠|짜|꼽아|다듬어|답하|말하|쓰|고르|찾으|적으)"
)
KOREAN_QUESTION = re.compile(
    r"(무엇|뭐|왜|어떻게|어떤|언제|어디|누가|누구|얼마|몇|인가요|나요|까요|습니까|ㄴ가요)"
)
KOREAN_STEM = {
    "써": "쓰다",
    "쓰": "쓰다",
    "적어": "적다",
    "적으": "적다",
    "골라": "고르다",
    "고르": "고르다",
    "찾아": "찾다",
    "찾으": "찾다",
    "알려": "알리다",
    "가르쳐": "가르치다",
    "만들어": "만들다",
    "지어": "짓다",
    "고쳐": "고치다",
    "바꿔": "바꾸다",
    "옮겨": "옮기다",
    "뽑아": "뽑다",
    "구해": "구하다",
    "세어": "세다",
    "들어": "들다",
    "줄여": "줄이다",
    "나눠": "나누다",
    "짜": "짜다",
    "꼽아": "꼽다",
    "다듬어": "다듬다",
    "답하": "답하다",
    "말하": "말하다",
}


def verb(instruction: str, language: str) -> tuple[str, str]:
    """`(verb, object)` of an instruction by a rule of thumb; a question gives `("question", its
    word)`, else `("other", "")`."""
    return _korean(instruction) if language == "ko" else _english(instruction)


def _english(instruction: str) -> tuple[str, str]:
    sentences = re.split(r"(?<=[.!?:])\s+", instruction.strip())
    for sentence in sentences:
        clause = LEADS.sub("", sentence)
        if question := QUESTIONS.match(clause):
            return "question", question[1].lower()
        if found := re.match(r"^([A-Z][a-z]{2,}) (.+)", clause[:1].upper() + clause[1:]):
            rest = re.findall(r"[A-Za-z'-]+", ARTICLES.sub("", found[2]))
            if found[1] not in (
                "The",
                "There",
                "This",
                "You",
                "For",
                "From",
                "With",
                "Here",
                "Below",
                "When",
                "After",
                "Before",
            ):
                return found[1].lower(), rest[0].lower() if rest else ""
    return "other", ""


def _korean(instruction: str) -> tuple[str, str]:
    last = re.split(r"(?<=[.!?])\s+", instruction.strip())[-1]
    thing = re.findall(r"([가-힣A-Za-z]+)(?:을|를)(?=\s)", last)
    if found := list(KOREAN_END.finditer(last)):
        stem = found[-1][1] + "하다" if found[-1][1] else KOREAN_STEM[found[-1][2]]
        return stem, thing[-1] if thing else ""
    if question := KOREAN_QUESTION.search(last):
        return "질문", question[1]
    return "기타", ""


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
        verbs = Counter()
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
                    axes.text(
                        left + count / 2, place, thing, ha="center", va="center", fontsize=6.5
                    )
                left += count
        axes.set_yticks(
            range(len(verbs.most_common(top))), [name for name, _ in verbs.most_common(top)]
        )
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
    for language, marker in (("en", "o"), ("ko", "^")):
        own = np.array([row["language"] == language for row in rows])
        axes.scatter(
            *points[own].T, c=labels[own], cmap="tab10", vmin=0, vmax=9, s=14, marker=marker
        )
        axes.scatter(
            [], [], color="#777777", s=14, marker=marker, label=language
        )  # in the legend a colour would mean a cluster
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
    values = [
        [len(row[part]) for row in rows if row["language"] == language and row[part]]
        for language in languages
        for part in fields
    ]
    names = [f"{language} {part}" for language in languages for part in fields]
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
