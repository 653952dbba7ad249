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
        ("en", "Please write the poem about rain.", ("write", "poem")),
        ("en", "Could you summarise my notes?", ("summarise", "notes")),
        ("en", "Why is the sky blue?", ("question", "why")),
        ("en", "The tap drips. Explain how to fix it.", ("explain", "fix")),
        ("en", "Boil this diary entry down to ten words.", ("boil", "diary")),
        ("en", "Given a list of numbers, find the largest.", ("find", "largest")),
        # "natalia" was taken for a verb
        ("en", "Natalia sold 48 clips. How many clips are left?", ("question", "how")),
        ("en", "In what year was it built?", ("question", "what")),
        ("ko", "다음 글을 한 문장으로 요약해 주세요.", ("요약하다", "글")),
        ("ko", "전세가 무엇인지 쉽게 알려 줘.", ("알리다", "")),
        ("ko", "하늘은 왜 파란가요?", ("질문", "왜")),
        ("ko", "이웃에게 보낼 쪽지를 써 주세요.", ("쓰다", "쪽지")),
        # "날짜" was taken for "짜다"
        ("ko", "회의 날짜를 하나 골라 봐.", ("고르다", "날짜")),
        ("ko", "이번 주 날짜와 요일", ("기타", "")),
        ("ko", "정렬 함수를 짜 줄래?", ("짜다", "함수")),
        ("ko", "원자의 구조를 설명하십시오.", ("설명하다", "구조")),
        ("ko", "섭씨에서 화씨로 변환합니다.", ("변환하다", "")),
        ("ko", "다음 문장을 3인칭으로 다시 쓰기", ("쓰다", "문장")),
        ("ko", "어울리는 제목을 붙여라. 열 글자를 넘기지 말 것.", ("붙이다", "제목")),
        ("ko", "전기차가 왜 조용한지 설명해줘", ("설명하다", "")),
        ("ko", "가장 인상 깊은 이야기", ("기타", "")),
        ("ko", "쿠바의 수도는?", ("질문", "")),
        ("ko", "이 제도의 장점이 뭔지 알고 싶어요", ("알다", "")),
    ],
)
def test_verb_and_object(language, instruction, expected):
    assert diversity.verb(instruction, language) == expected


@pytest.mark.parametrize("language", prompts.LANGUAGES)
def test_hardly_any_request_is_left_without_a_name(language):
    """A third to a half of Korean instructions were "other"."""
    other = prompts.LANGUAGES[language].asks["other"]
    rows = utils.read_jsonl(utils.DATA / "instruction.jsonl")
    names = [
        diversity.verb(row["instruction"], language)[0]
        for row in rows
        if row["language"] == language and "instruction" in row
    ]
    assert names.count(other) / len(names) < 0.1


def test_every_korean_ending_has_a_dictionary_form():
    for row in utils.read_jsonl(utils.DATA / "instruction.jsonl"):
        if row["language"] == "ko" and "instruction" in row:
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
