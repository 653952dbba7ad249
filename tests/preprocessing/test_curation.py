"""The rules: what they must let through, and what they must find, on requests that people make."""

import unicodedata

import numpy as np
import pytest
from good_tasks import GOOD, task

import prompts
import utils
from preprocessing import curation
from rehearsal import stand_ins


@pytest.mark.parametrize("language", GOOD)
def test_a_good_task_passes(language):
    assert curation.problem(task(language)) is None


# --- the request, not the word --------------------------------------------------------------------

FINE = [
    ("en", "Write a program in Python that sorts a list of names."),
    ("en", "Draw a conclusion from these three sentences."),
    ("en", "Draw up a contract between a landlord and a tenant."),
    ("en", "Plots of land cost 300 dollars each. How much do four plots cost?"),
    ("en", "Tom watches a movie and then plays a game of chess. How long is he busy?"),
    ("en", "Write a function that reads a file and returns the longest line."),
    ("en", "Create a map of city names to populations in Python."),
    ("en", "Explain how a music file is compressed."),
    ("en", "Summarise this complaint about a lost picture."),
    ("en", "Why did film photographs turn yellow with age?"),
    ("en", "Write an e-mail that asks for the attached file to be signed."),
    ("en", "Describe what a good map needs to show."),
    ("en", "How would you go to work without a car?"),
    ("en", "Draw a triangle of stars with Python."),
    ("en", "'Break a leg' is said to actors. What does it mean?"),
    ("en", "(Short answer) Why do onions make people cry?"),
    ("en", "-5 + 3 is what, and why?"),
    ("en", ".NET or Java for a small shop's accounts?"),
    ("ko", "하늘이 왜 그런지도 함께 설명해 주세요."),
    ("ko", "브랜드 인지도를 높이는 방법을 알려 주세요."),
    ("ko", "좋은 지도자의 조건을 세 가지 말해 주세요."),
    ("ko", "문장이 간결해지도록 다듬어 주세요."),
    ("ko", "컴파일 오류가 나는 이유를 설명해 줘."),
    ("ko", "김치를 담그려면 무엇이 필요한가요?"),
    ("ko", "사진을 잘 찍는 방법을 알려 주세요."),
    ("ko", "파일을 여는 파이썬 코드를 써 줘."),
    ("ko", "음악을 들려 주는 앱의 이름을 지어 주세요."),
    ("ko", "첨부 파일을 확인해 달라는 메일을 써 주세요."),
    ("ko", "그림책을 읽어 주면 아이에게 무엇이 좋은가요?"),
    ("ko", "파이썬으로 막대그래프를 그려 줘."),
    ("ko", "'발 벗고 나서다'는 무슨 뜻인가요?"),
    ("ko", "(초보자용) 짐을 가볍게 꾸리는 요령을 알려 주세요."),
    ("ko", "※ 존댓말로 답해 주세요. 전입신고는 어떻게 하나요?"),
    ("ko", "Python list comprehension 설명해 줘."),
]


@pytest.mark.parametrize(("language", "instruction"), FINE)
def test_what_only_sounds_like_a_picture_or_a_file_passes(language, instruction):
    assert curation.problem(task(language, instruction=instruction)) is None


@pytest.mark.parametrize(
    ("language", "instruction"),
    [(language, text) for language, text in FINE if language == "ko"],
)
def test_hangul_in_pieces_is_korean(language, instruction):
    """macOS and some editors write a syllable as two or three codes."""
    pieces = unicodedata.normalize("NFD", instruction)
    assert curation.problem(task(language, instruction=pieces)) is None


@pytest.mark.parametrize(
    ("language", "instruction", "asked"),
    [
        ("en", "Draw a map of the village for me.", "Draw"),
        ("en", "Please plot a graph of these sales figures.", "Please plot"),
        ("en", "Create an image of a sunset.", "Create an image"),
        ("en", "Record an audio message that wishes a friend well.", "Record an audio message"),
        ("en", "Describe the picture below.", "Describe the picture"),
        ("en", "How many people are in this photo?", "in this photo"),
        ("en", "Open the attached file and list its headings.", "Open the attached file"),
        ("en", "Listen to the recording and write down each word.", "Listen to the recording"),
        ("en", "Go to the website and copy its opening hours.", "Go to the website"),
        ("en", "Tell me today's weather for Busan.", "Tell me today's weather"),
        ("ko", "마을 지도를 그려서 보여 주세요.", "지도를 그려서 보여 주세요."),
        ("ko", "고양이 그림을 그려 줘.", "그려 줘"),
        ("ko", "회사의 로고를 디자인하세요.", "로고를 디자인하세요."),
        ("ko", "다음 그래프를 보고 가장 높은 달을 말해 주세요.", "다음 그래프를"),
        ("ko", "이 사진 속에 있는 식물의 이름을 알려 주세요.", "이 사진"),
        ("ko", "첨부한 파일을 요약해 주세요.", "첨부한 파일을 요약해 주세요."),
        ("ko", "라테 아트 동영상을 만들어 보여 주세요.", "동영상을 만들어 보여 주세요."),
        ("ko", "녹음 내용을 텍스트로 변환합니다.", "녹음 내용을 텍스트로 변환"),
        ("ko", "인터넷에서 최신 논문을 검색해 줘.", "인터넷에서 최신 논문을 검색해 줘."),
        ("ko", "오늘 날씨 알려 줄래?", "오늘 날씨 알려"),
    ],
)
def test_what_a_text_model_cannot_do_is_found_by_the_request(language, instruction, asked):
    reason = f"a text model cannot do it ({asked})"
    assert curation.problem(task(language, instruction=instruction)) == reason


# --- the other rules ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "changes", "reason"),
    [
        ("en", {"instruction": "Write poem now"}, "instruction too short"),
        ("ko", {"instruction": "시 쓰기"}, "instruction too short"),
        ("en", {"instruction": "word " * 151}, "instruction too long"),
        ("en", {"instruction": "- Write a short note."}, "instruction starts with punctuation"),
        (
            "ko",
            {"instruction": ", 그리고 쪽지를 써 주세요."},
            "instruction starts with punctuation",
        ),
        ("ko", {"instruction": "Write a short note to me."}, "instruction in the wrong language"),
        ("en", {"instruction": "짧은 쪽지를 하나 써 주세요."}, "instruction in the wrong language"),
        (
            "ko",
            {"instruction": "Translate 안녕 into three languages."},
            "instruction in the wrong language",
        ),
        ("en", {"output": " "}, "empty output"),
        ("en", {"input": "Same text.", "output": "Same text."}, "output repeats the input"),
        ("ko", {"output": "다음과 같습니다:"}, "output ends in a colon"),
        ("en", {"category": "poetry"}, "unknown category 'poetry'"),
    ],
)
def test_rules(language, changes, reason):
    assert curation.problem(task(language, **changes)) == reason


@pytest.mark.parametrize(
    ("language", "output"),
    [
        ("en", "First we pack the boxes. Then we carry the heavy ones down the"),
        ("en", "Heat the milk gently. Stir in the sugar, then the flour, and"),
        ("en", "Lift it out. Loosen the roots with your fingers, and then set it"),
        ("en", "The flask keeps drinks hot, because its walls are thin and they reflect, which"),
        ("ko", "먼저 상자를 쌉니다. 그리고 나서 무거운 짐을 차례대로 아래층으로 옮기고 마지막에"),
        ("en", "It has two parts.\n\nThe first is old. The second was built when the town"),
        ("ko", "까닭은 둘입니다.\n\n하나는 바람입니다. 다른 하나는 바닷물이 아니라 생물의"),
        ("ko", "두 물질이 만나면 거품이 납니다. 이산화탄소가 한꺼번에 많이 생기면서 거품이"),
    ],
)
def test_an_answer_that_breaks_off_is_found(language, output):
    assert curation.problem(task(language, output=output)) == "output breaks off"


@pytest.mark.parametrize(
    ("language", "output"),
    [
        ("en", "You can read the rules of the library here. See https://example.org/rules/loans"),
        ("en", "See you all on Friday at eight. I will bring the cake and candles 🎂"),
        ("en", "Thank you for waiting so long. We are very sorry. Yours sincerely, Anna Kim"),
        ("en", "She had 20 apples and gave away 13 of them. The number left is 7"),
        ("en", "1. Bring a towel.\n2. Shower first.\n3. Be out of the water by nine"),
        ("en", "Lavender copes well with dry soil.\nIt is the plant that I would take"),
        ("ko", "층간 소음 때문에 밤에 잠을 이루지 못하고 있습니다. 부탁드립니다. 501호 드림"),
        ("ko", "내일 저녁 여섯 시에 정문 앞에서 만나요. 늦으면 먼저 가 있을게요~"),
        ("ko", "토요일 아침 열 시에 시작합니다. 준비물은 편한 옷과 물, 그리고 수건입니다"),
        ("ko", "가은이가 3등입니다.\n\n순위: 도윤, 나은, 가은, 마루, 라희"),
        ("ko", "- 네가 잠그면 강이 숨을 쉰다\n- 양치 3분, 컵 하나\n- 샤워 노래는 한 곡까지만"),
    ],
)
def test_an_address_an_emoji_a_signature_or_a_number_may_end_an_answer(language, output):
    assert curation.problem(task(language, output=output)) is None


# --- the rows of the course -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["instruction", "seed_tasks"])
def test_every_shipped_row_passes_every_rule(name):
    """A rule that the course's own rows had to be bent around is a bad rule."""
    rows = utils.read_jsonl(utils.DATA / f"{name}.jsonl")
    found = {row["id"]: curation.problem(row) for row in rows if "instruction" in row}
    assert {key: problem for key, problem in found.items() if problem} == {}


def test_every_evaluation_prompt_passes_every_rule():
    found = {}
    for item in utils.read_jsonl(utils.DATA / "eval_prompts.jsonl"):
        row = item | {"instruction": item["prompt"], "input": "", "output": item["reference"]}
        found[item["id"]] = curation.instruction_problem(row)
        if item["reference"]:
            found[item["id"]] = found[item["id"]] or curation.answer_problem(row)
    assert {key: problem for key, problem in found.items() if problem} == {}


@pytest.mark.parametrize("language", prompts.LANGUAGES)
def test_rules_catch_what_was_recorded_as_flawed(language):
    by_rule = {
        "too_short",
        "unsuitable",
        "empty_output",
        "output_equals_input",
        "truncated",
        "bad_start",
        "wrong_language",
    }
    tasks = [
        one | {"language": language}
        for batch in stand_ins.recorded(language)
        for one in batch.get("tasks", [])
    ]
    assert len({one["flaw"] for one in tasks}) >= 9
    for one in tasks:
        problem = curation.problem(one)
        assert (problem is not None) == (one["flaw"] in by_rule), (problem, one)


# --- the promise of the embedding filter ----------------------------------------------------------


@pytest.mark.parametrize("language", prompts.LANGUAGES)
def test_opposites_and_swapped_things_are_among_the_labelled_pairs(language):
    """Half of the pairs were duplicates, none an opposite: on real rows 8 of 41 removed ones were
    duplicates where six of seven had been promised."""
    pairs, same, _ = curation.labelled_pairs(0.7)
    kinds = [pair["kind"] for pair in pairs if pair["language"] == language]
    assert kinds.count("opposite") >= 5 and kinds.count("swapped") >= 3
    turned = [pair["kind"] in curation.TURNED for pair in pairs]
    assert not same[np.array(turned)].any()
    left, _, _ = curation.labelled_pairs(0.7, turned=False)
    assert len(left) == len(pairs) - sum(turned)


def test_a_promise_that_embeddings_cannot_keep_is_not_given():
    _, same, scores = curation.labelled_pairs(0.7)
    promise = curation.promise(np.array([0.95, 0.97, 0.98]), scores["E5"], same)
    assert not promise.kept and promise.low < promise.precision < promise.high < 0.85
    assert "marked to be read" in str(promise)


def test_a_promise_is_kept_where_every_pair_as_close_is_a_duplicate():
    scores = np.concatenate([np.full(40, 0.98), np.full(40, 0.8)])
    same = scores > 0.9
    promise = curation.promise(np.array([0.975, 0.985]), scores, same)
    assert promise.kept and promise.pairs == 40 and promise.precision == 1
    low = curation.promise(np.array([0.8, 0.98]), scores, same)
    assert low.precision == pytest.approx(0.5) and low.low < 0.5 < low.high


def test_nothing_found_is_nothing_promised():
    assert 0 <= curation.promise(np.zeros(0), np.linspace(0, 1, 30), np.ones(30, bool)).low <= 1
