"""What is asked for, in English and Korean, and figures that come out for one language and for
two."""

import numpy as np
import pytest

import prompts
import utils
from preprocessing import diversity

ROWS = utils.read_jsonl(utils.DATA / "seed_tasks.jsonl")[::8]


@pytest.mark.parametrize(
    ("language", "instruction", "expected"),
    [
        ("en", "Please write the short poem about rain.", ("write", "short")),
        ("en", "Could you summarise my notes?", ("summarise", "notes")),
        ("en", "Why is the sky blue?", ("question", "why")),
        ("en", "The tap drips. Explain how to fix it.", ("explain", "how")),
        ("ko", "다음 글을 한 문장으로 요약해 주세요.", ("요약하다", "글")),
        ("ko", "전세가 무엇인지 쉽게 알려 줘.", ("알리다", "")),
        ("ko", "하늘은 왜 파란가요?", ("질문", "왜")),
        ("ko", "이웃에게 보낼 쪽지를 써 주세요.", ("쓰다", "쪽지")),
    ],
)
def test_verb_and_object(language, instruction, expected):
    assert diversity.verb(instruction, language) == expected


def test_every_korean_ending_has_a_dictionary_form():
    for row in utils.read_jsonl(utils.DATA / "instruction.jsonl"):
        if row["language"] == "ko":
            name, _ = diversity.verb(row["instruction"], "ko")
            assert name in ("질문", "기타") or name.endswith("다"), row["instruction"]


@pytest.mark.parametrize("languages", [("en", "ko"), ("ko",)])
def test_figures_and_balance(languages):
    import matplotlib.pyplot as plt

    utils.figure_style()  # its font has Hangul
    rows = [row for row in ROWS if row["language"] in languages]
    vectors = np.random.default_rng(0).normal(size=(len(rows), 8)).astype(np.float32)
    for figure in (
        diversity.verb_figure(rows),
        diversity.length_figure(rows),
        diversity.map_figure(rows, vectors),
    ):
        assert figure.axes and all(axes.get_title() for axes in figure.axes)
        plt.close(figure)
    table = diversity.balance(rows)
    assert list(table.columns) == list(prompts.CATEGORIES) and table.to_numpy().sum() == len(rows)
