"""The concept figures of the pages, each in English and in Korean, as SVG: `make figures`.

What it does: draw what the course is about from the course itself: imports from the modules' syntax
trees, the record from the shipped rows, matrix shapes from the example adapter, outcomes and
similarities from the functions that compute them. The output is the same on every machine;
tests/test_pages.py holds it against the committed files. What it does not do: plot measurements
(the notebooks do).
"""

from __future__ import annotations

import itertools
import json
import re
import struct

import numpy as np

import rouge
import settings
import utils
from assets.svg import WIDTH, Picture, width, wrapped
from evaluation import outcomes

ROOT = utils.ROOT


# --- the figures ----------------------------------------------------------------------------------


def pipeline(korean: bool) -> str:
    """From seeds to a sentence about the tuned model, one lane a notebook."""
    p = Picture(("The pipeline: one lane a notebook", "전체 흐름: 노트북마다 한 줄"), 500, korean)
    lanes = (
        (18, "preprocess.ipynb", ("make the data", "데이터 만들기")),
        (178, "train.ipynb", ("tune", "튜닝")),
        (338, "evaluation.ipynb", ("compare", "비교")),
    )
    for y, name, what in lanes:
        p.text(50, y + 17, name, 14, mono=True, bold=True, tone="deep")
        p.text(50 + width(name, 14, True) + 12, y + 17, what, 14, tone="soft")
    y, h = 44, 82
    p.box(
        22,
        y,
        128,
        h,
        ("seed tasks", "시드 과제"),
        ("written by hand", "손으로 쓴"),
        ("few, varied", "적고 다양하게"),
    )
    p.arrow((150, y + h / 2), (178, y + h / 2))
    p.box(
        178,
        y,
        142,
        h,
        ("teacher", "교사"),
        ("writes 20 more", "한 번에 스무 개씩"),
        ("tasks at a time", "새 과제를 쓰는 모델"),
        tone="yellow",
    )
    p.arrow((320, y + h / 2), (348, y + h / 2))
    p.box(348, y, 372, h)
    p.text(
        534,
        y + 23,
        ("filters, every rejection with its reason", "필터, 걸러 낸 이유를 모두 기록"),
        14,
        "middle",
        bold=True,
        room=356,
    )
    chips = (
        ("rules", "규칙"),
        ("ROUGE-L", "ROUGE-L"),
        ("meaning", "의미"),
        ("critique", "비평"),
        ("gate", "관문"),
    )
    for i, chip in enumerate(chips):
        p.box(357 + 71.5 * i, y + 38, 68, 30, chip, tone="blue", size=12)
    p.arrow((720, y + h / 2), (748, y + h / 2))
    p.box(
        748,
        y,
        150,
        h,
        ("rows", "학습 행"),
        ("instruction, input,", "지시, 입력,"),
        ("answer", "답"),
        tone="green",
    )
    p.arrow((823, 126), (823, 152), (35, 152), (35, 204))
    y = 204
    p.box(22, y, 128, h, ("rows", "학습 행"), ("+ those shipped", "+ 저장소의 행"), tone="green")
    p.arrow((150, y + h / 2), (178, y + h / 2))
    p.box(
        178,
        y,
        250,
        h,
        ("tokens", "토큰"),
        ("chat template, label mask,", "대화 템플릿, 라벨 마스크,"),
        ("a stop token it can learn", "배울 수 있는 종료 토큰"),
    )
    p.arrow((428, y + h / 2), (456, y + h / 2))
    p.box(
        456,
        y,
        264,
        h,
        ("base model, frozen", "베이스 모델 (고정)"),
        ("beside each weight a thin pair", "가중치마다 얇은 행렬 한 쌍을"),
        ("of matrices: LoRA", "덧붙임: LoRA"),
        tone="blue",
    )
    p.arrow((720, y + h / 2), (748, y + h / 2))
    p.box(748, y, 150, h, ("adapter", "어댑터"), ("a few megabytes", "몇 메가바이트"), tone="green")
    p.arrow((823, 286), (823, 312), (343, 312), (343, 364))
    y = 364
    p.box(
        22,
        y,
        154,
        h,
        ("prompts", "평가 문항"),
        ("kept out of the", "학습 데이터에는"),
        ("training data", "없는 문항"),
    )
    p.arrow((176, y + 20), (268, y + 20))
    p.arrow((176, y + 62), (268, y + 62))
    p.box(268, y, 150, 38, ("tuned answers", "튜닝 후의 답"), tone="green", size=14)
    p.box(268, y + 44, 150, 38, ("base answers", "튜닝 전의 답"), size=14)
    p.arrow((418, y + 20), (456, y + 34))
    p.arrow((418, y + 62), (456, y + 48))
    p.box(
        456,
        y,
        224,
        h,
        ("judge", "심판"),
        ("calibrated first, then", "먼저 검증하고, 답의 순서를"),
        ("asked in both orders", "바꿔 두 번 묻기"),
        tone="yellow",
    )
    p.arrow((680, y + h / 2), (708, y + h / 2))
    p.box(
        708,
        y,
        190,
        h,
        ("one sentence", "한 문장"),
        ("win rate, interval, test,", "승률, 구간, 검정,"),
        ("what failed", "실패한 판정"),
        tone="green",
    )
    p.box(22, 464, 22, 18, tone="yellow")
    note = (
        "another model: without a key a stand-in, which says so wherever it speaks",
        "외부 모델: 키가 없으면 대역이 대신하며, 나오는 곳마다 대역임을 밝힙니다",
    )
    p.text(54, 478, note, 13, tone="soft")
    return p.svg()


ROOMS = ("preprocessing", "training", "evaluation", "llm", "rehearsal", "root")
ROOT_MODULES = ("bootstrap", "similarity", "rouge", "prompts", "pages", "settings", "utils")


def modules() -> dict[str, list[str]]:
    """The modules of each folder, `{room: [module, ...]}`; "root" is what stands beside the
    notebooks."""
    rooms = {}
    for room in ROOMS[:-1]:
        names = [path.stem for path in sorted((ROOT / room).glob("*.py"))]
        rooms[room] = [name for name in names if name != "__init__"]
    return rooms | {"root": list(ROOT_MODULES)}


def imported(code: str, rooms: dict[str, list[str]]) -> set[tuple[str, str]]:
    """`(room, module)` of every module of the course that a piece of code imports, at the top or
    inside a function; read line by line, because notebooks hold shell commands too."""
    found = set()
    for module, names in re.findall(
        r"^\s*from ([\w.]+) import ([\w, ]+)", code, re.MULTILINE
    ) + re.findall(r"^\s*import ([\w.]+)()", code, re.MULTILINE):
        room, _, inner = module.partition(".")
        if room in ROOT_MODULES:
            found.add(("root", room))
        elif room in rooms:
            wanted = [inner] if inner else [name.strip() for name in names.split(",")]
            found |= {(room, name) for name in wanted if name in rooms[room]}
    return found


def sources(rooms: dict[str, list[str]]) -> dict[tuple[str, str], str]:
    """The code of every module, by room and name, and of every notebook, by "notebook" and name."""
    texts = {}
    for room, names in rooms.items():
        folder = ROOT if room == "root" else ROOT / room
        for name in names:
            texts[room, name] = (folder / f"{name}.py").read_text(encoding="utf-8")
    for book in settings.NOTEBOOKS:
        cells = json.loads((ROOT / f"{book}.ipynb").read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        texts["notebook", book] = "\n".join(code)
    return texts


def arrows(rooms: dict[str, list[str]]) -> dict[str, set[tuple[str, str]]]:
    """For each room, and for "notebook", the `(room, module)` that its files import."""
    used: dict[str, set[tuple[str, str]]] = {}
    for (room, _), code in sources(rooms).items():
        used.setdefault(room, set()).update(imported(code, rooms))
    return used


def code_tree(korean: bool) -> str:
    """The folders as rooms: the notebook above the folder of its name, the modules in each, and
    from which rooms a room imports. Arrows run downwards only (`make lint` checks it)."""
    rooms = modules()
    used = arrows(rooms)
    column, gap, line = 276, 24, 19

    def draw(room: str, x: float, y: float, tall: float) -> None:
        name = p.say(("in the root", "루트")) if room == "root" else f"{room}/"
        p.box(x, y, column, tall)
        p.text(x + 18, y + 28, name, 15, bold=True, mono=room != "root")
        if room != "root":
            others = {other for other, _ in used[room]} - {room, "root"}
            below = [other for other in ROOMS if other in others]
            note = "→ " + ", ".join([*below, p.say(("the root", "루트"))])
            p.text(x + 18, y + 48, note, 12, tone="soft", room=column - 36)
        for i, module in enumerate(rooms[room]):
            called = (room, module) in used["notebook"]
            p.text(
                x + 18,
                y + 76 + line * i,
                f"{module}.py",
                13,
                mono=True,
                bold=called,
                tone="deep" if called else "ink",
            )

    def height(row: tuple[str, ...]) -> float:
        return 84 + line * max(len(rooms[room]) for room in row)

    upper, lower = ROOMS[:3], ROOMS[3:]
    tall, low = height(upper), height(lower)
    p = Picture(
        ("The house: a folder for each notebook", "강좌의 구조: 노트북마다 폴더 하나"),
        round(116 + tall + gap + low + 44),
        korean,
    )
    for i, (book, room) in enumerate(zip(settings.NOTEBOOKS, upper, strict=True)):
        x = 22 + i * (column + gap)
        p.box(x, 20, column, 54, f"{book}.ipynb", mono=True, tone="yellow", size=14)
        p.arrow((x + column / 2, 74), (x + column / 2, 116))
        draw(room, x, 116, tall)
    for i, room in enumerate(lower):
        draw(room, 22 + i * (column + gap), 116 + tall + gap, low)
    note = (
        "blue: a notebook imports it  ·  →: the rooms that this one imports from, never the other "
        "way round",
        "파란색: 노트북이 불러오는 모듈  ·  →: 이 폴더가 불러오는 폴더. 거꾸로 불러오는 일은 없음",
    )
    p.text(22, 116 + tall + gap + low + 28, note, 12, tone="soft")
    return p.svg()


def record(korean: bool) -> str:
    """One row of the shipped data with its fields, and what each is for."""
    row = next(
        r
        for r in utils.read_jsonl(ROOT / "data" / "instruction.jsonl")
        if r["id"] == "train-ko-004"
    )
    gloss = {
        "instruction": "Sent like this in the company's chat it may sound like an order. Make it "
        "a gentle request.",
        "input": "Send the minutes today.",
        "output": "Could you possibly send the minutes today? Thank you.",
    }
    use = {
        "id": ("its name in every file", "어느 파일에서든 쓰는 이름"),
        "language": ("en or ko", "en 또는 ko"),
        "category": ("one of twelve", "열두 가지 가운데 하나"),
        "instruction": ("what is asked", "지시"),
        "input": ("the material, if any", "자료 (없을 수도 있음)"),
        "output": ("a good answer", "좋은 답"),
        "source": ("who wrote it", "누가 썼는지"),
    }
    rows, y = [], 58.0
    for field, value in row.items():
        lines = [(line, "ink") for line in wrapped(value, 410, 15)]
        if not korean and field in gloss:
            lines += [(line, "soft") for line in wrapped(gloss[field], 410, 13)]
        rows.append((field, lines, y))
        y += 22 * len(lines) + 16
    p = Picture(
        ("What a record is: one row of the data", "레코드란: 데이터 한 행"), round(y + 46), korean
    )
    p.text(22, 34, "data/instruction.jsonl", 14, mono=True, bold=True, tone="deep")
    p.text(
        22 + width("data/instruction.jsonl", 14, True) + 14,
        34,
        ("one JSON object a line", "한 줄에 JSON 객체 하나"),
        14,
        tone="soft",
    )
    ends = {}
    for field, lines, top in rows:
        tone = {"instruction": "plain", "input": "plain", "output": "blue"}.get(field, "none")
        tall = 22 * len(lines) + 10
        p.box(152, top - 4, 428, tall, tone=tone)
        p.text(22, top + 16, field, 14, mono=True, room=126)
        for i, (line, colour) in enumerate(lines):
            p.text(
                162, top + 16 + 22 * i, line, 15 if colour == "ink" else 13, tone=colour, room=416
            )
        p.text(592, top + 16, use[field], 13, tone="soft", room=170)
        ends[field] = (top - 4, top - 4 + tall)
    for first, last, words in (
        (
            "instruction",
            "input",
            (("the question:", "질문:"), ("read, not learnt", "읽기만 하고"), ("", "배우지 않음")),
        ),
        ("output", "output", (("the answer:", "답:"), ("learnt", "배움"))),
    ):
        top, bottom = ends[first][0] + 2, ends[last][1] - 2
        p.parts.append(
            f'<polyline class="line-deep" points="766,{top:g} 774,{top:g} 774,{bottom:g} '
            f'766,{bottom:g}"/>'
        )
        middle = (top + bottom) / 2 - 9 * (len(words) - 1) + 5
        for i, words_of_line in enumerate(words):
            p.text(
                784,
                middle + 18 * i,
                words_of_line,
                13,
                tone="deep" if i == 0 else "ink",
                bold=i == 0,
                room=124,
            )
    more = (
        "A row that a teacher wrote also names the teacher, the request, the seeds it was shown, "
        "its cost and its nearest neighbours.",
        "교사가 쓴 행에는 교사, 요청, 보여 준 시드, 비용, 가장 비슷한 이웃도 함께 적힙니다.",
    )
    for i, line in enumerate(wrapped(p.say(more), 860, 13)):
        p.text(22, y + 20 + 19 * i, line, 13, tone="soft")
    return p.svg()


JOIN_TEXTS = (
    "집주인이 바뀌면 세입자는 계약을 새로 써야 하나요?",
    "Why is it easier to fall asleep in a cool room?",
    "집주인이 바뀌면 세입자는 계약을 다시 써야 하나요?",
    "Does the tenant pay the landlord, or the bank?",
    "Why is it easier to fall asleep in a dark room?",
    "The bank, or the landlord: does the tenant pay?",
    "새로 써야 하나요?",
    "Name one thing that is cool about a dark cinema.",
)


def join(
    texts: tuple[str, ...] = JOIN_TEXTS, threshold: float = 0.7
) -> tuple[list[set[int]], list[dict[tuple[int, int], float]]]:
    """What rouge.py does with texts that all meet, as eight of them may: the signature of each
    text, and the pairs that each of three steps leaves.

    Returns:
        The bits that are set in each signature, and for each step `{(i, j): number}` with i < j:
        words in the longer text, bits that differ, ROUGE-L.
    """
    forms = rouge.RougeLIndex(threshold)._encode(list(texts))
    signatures = rouge._signatures(forms, rouge.WORDS)
    bits = []
    for row in np.unpackbits(signatures.view(np.uint8), axis=1, bitorder="little"):
        bits.append({int(bit) for bit in np.flatnonzero(row)})
    lengths: dict[tuple[int, int], float] = {}
    near: dict[tuple[int, int], float] = {}
    alike: dict[tuple[int, int], float] = {}
    for i, j in itertools.combinations(range(len(texts)), 2):
        shorter, longer = sorted((len(forms[i]), len(forms[j])))
        if longer < shorter * (2 - threshold) / threshold:
            lengths[i, j] = longer
    for i, j in lengths:
        apart = len(bits[i] ^ bits[j])
        if apart <= (1 - threshold) * (len(forms[i]) + len(forms[j])):
            near[i, j] = apart
    for i, j in near:
        score = rouge.rouge_l(texts[i], texts[j])
        if score > threshold:
            alike[i, j] = score
    return bits, [lengths, near, alike]


def dedup_join(korean: bool) -> str:
    """Eight texts with their signatures, and which of their pairs are left to compare after each
    step."""
    bits, steps = join()
    count = len(JOIN_TEXTS)
    pairs = count * (count - 1) // 2
    p = Picture(
        (
            "Near-duplicates without comparing every pair",
            "모든 쌍을 비교하지 않고 중복 찾기",
        ),
        610,
        korean,
    )
    top = (
        f"{count} texts make {pairs} pairs. Every word of a text sets a bit of its signature.",
        f"글 {count}개면 {pairs}쌍. 글의 단어마다 서명의 비트 하나가 켜집니다.",
    )
    p.text(22, 34, top, 15, bold=True)
    used = sorted(set().union(*bits))
    strip, step_wide = 470, 430 / len(used)
    drawn_bits = (
        f"{len(used)} of its {64 * rouge.WORDS:,} bits are shown",
        f"비트 {64 * rouge.WORDS:,}개 가운데 {len(used)}개만 그림",
    )
    p.text(strip + 430, 34, drawn_bits, 12, "end", tone="soft", room=210)
    for i, text in enumerate(JOIN_TEXTS):
        y = 64 + 25 * i
        p.text(36, y, str(i + 1), 14, "middle", tone="soft", mono=True)
        p.text(56, y, text, 14, room=strip - 66)
        p.box(strip, y - 14, 430, 18)
        for column, bit in enumerate(used):
            if bit in bits[i]:
                p.box(strip + step_wide * column, y - 14, step_wide - 1, 18, tone="blue")
    titles = (
        (
            ("1. lengths are near", "1. 길이가 비슷한 쌍"),
            ("too short cannot be alike", "너무 짧으면 비슷할 수 없음"),
        ),
        (
            ("2. signatures are near", "2. 서명이 가까운 쌍"),
            ("numbers count bits that differ", "숫자는 서로 다른 비트의 수"),
        ),
        (
            ("3. LCS: ROUGE-L > 0.7", "3. LCS: ROUGE-L > 0.7"),
            ("the later one goes", "뒤의 것이 빠짐"),
        ),
    )
    cell, y0 = 30, 333
    for step, (left, (title, note)) in enumerate(zip(steps, titles, strict=True)):
        x0 = 38 + 300 * step
        p.text(x0 - 16, 283, title, 15, bold=True, room=288)
        shown = p.say((f"{len(left)} of {pairs} pairs", f"{pairs}쌍 가운데 {len(left)}쌍"))
        p.text(x0 - 16, 304, f"{shown}: {p.say(note)}", 13, tone="soft", room=288)
        for i, j in itertools.combinations(range(count), 2):
            tone = ("blue", "yellow", "green")[step] if (i, j) in left else "plain"
            numbers = []
            if step == 1 and (i, j) in left:
                numbers = [f"{left[i, j]:.0f}"]
            if step == 2 and (i, j) in left:
                numbers = [f"{left[i, j]:.2f}".lstrip("0")]
            x, y = x0 + cell * i, y0 + cell * (j - 1)
            p.box(x, y, cell - 3, cell - 3, *numbers, tone=tone, size=12)
        for i in range(count - 1):
            p.text(x0 + cell * i + 13, y0 - 8, str(i + 1), 12, "middle", tone="soft", mono=True)
            p.text(x0 - 12, y0 + cell * i + 18, str(i + 2), 12, "middle", tone="soft", mono=True)
        if step < 2:
            p.arrow((x0 + cell * 6 + 24, y0 + 75), (x0 + cell * 6 + 62, y0 + 75))
    same = [(i, j) for i, j in steps[1] if (i, j) not in steps[2] and steps[1][i, j] == 0]
    i, j = same[0]
    end = (
        f"Texts {i + 1} and {j + 1} have the same words in another order: no bit differs, so only "
        "their longest common subsequence tells.",
        f"{i + 1}번과 {j + 1}번은 단어가 같고 순서만 달라 비트로는 구별되지 않습니다. 최장 공통 "
        "부분 수열(LCS)만이 가려냅니다.",
    )
    p.text(22, 582, end, 13, tone="soft")
    return p.svg()


# `chat.encode` of these two rows with the packaged student's tokenizer; tests/test_pages.py
# compares where the student is there
MASKED = (
    (
        ("전세가 뭐예요?", "큰 보증금을 맡기고 월세 없이 사는 계약이에요."),
        "<bos>|<start_of_turn>|user|\n|전|세|가| "
        "뭐|예요|?|<end_of_turn>|\n|<start_of_turn>|model|\n",
        "큰| 보|증|금을| 맡|기고| 월|세| 없이| 사는| 계약|이에요|.|<eos>",
    ),
    (
        ("And monthly rent?", "A smaller deposit, and rent every month."),
        "<bos>|<start_of_turn>|user|\n|And| monthly| "
        "rent|?|<end_of_turn>|\n|<start_of_turn>|model|\n",
        "A| smaller| deposit|,| and| rent| every| month|.|<eos>",
    ),
)


def label_mask(korean: bool) -> str:
    """Two encoded rows, token by token: what is read and what is learnt."""
    p = Picture(
        (
            "The label mask: what the model reads and what it learns",
            "라벨 마스크: 읽기만 하는 것과 배우는 것",
        ),
        408,
        korean,
    )
    p.box(22, 18, 24, 20)
    p.text(
        56,
        33,
        ("the question: read, label -100, no loss", "질문: 읽기만 함, 라벨 -100, 손실 없음"),
        14,
    )
    p.box(422, 18, 24, 20, tone="blue")
    p.text(456, 33, ("the answer and its stop token: learnt", "답과 종료 토큰: 배움"), 14)
    y = 58
    for _, asked, answer in MASKED:
        x = 22.0
        for piece, learnt in [(piece, False) for piece in asked.split("|")] + [
            (piece, True) for piece in answer.split("|")
        ]:
            shown = piece.replace("\n", "⏎").replace(" ", "␣")
            wide = max(30.0, width(shown, 13, True) + 10)
            if x + wide > WIDTH - 20 or (learnt and shown == answer.split("|")[0]):
                x, y = 22.0, y + 60
            tone = "blue" if learnt else "plain"
            p.box(x, y, wide, 30, shown, tone=tone, size=13, mono=True)
            label = p.say(("learn", "배움")) if learnt else "-100"
            p.text(x + wide / 2, y + 45, label, 11, "middle", tone="deep" if learnt else "soft")
            x += wide + 4
        y += 72
    end = (
        "Without the last blue token the model would learn to answer, but never to end. ␣ is a "
        "space, ⏎ a line break.",
        "마지막 파란 토큰이 없으면 답하는 법은 배워도 끝내는 법은 배우지 못합니다. ␣는 빈칸, ⏎는 "
        "줄바꿈입니다.",
    )
    p.text(22, y + 12, end, 13, tone="soft")
    p.height = round(y + 32)
    return p.svg()


def adapter_shapes() -> tuple[int, int, int, int]:
    """`(d_out, d_in, r, alpha)` of one layer of the example adapter, read from the header of its
    safetensors file."""
    folder = ROOT / "data" / "example_adapter"
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    with (folder / "adapter_model.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    shapes = {
        kind: value["shape"]
        for name, value in header.items()
        if "layers.0.self_attn.q_proj" in name
        for kind in "AB"
        if f"lora_{kind}." in name
    }
    (rank, d_in), (d_out, _) = shapes["A"], shapes["B"]
    return d_out, d_in, rank, config["lora_alpha"]


def lora(korean: bool) -> str:
    """W + (alpha / r) B A, to scale, and the way of an input through it."""
    d_out, d_in, rank, alpha = adapter_shapes()
    p = Picture(("LoRA: W + (α/r) B A", "LoRA: W + (α/r) B A"), 400, korean)
    frozen, trained = d_out * d_in, rank * (d_out + d_in)
    head = (
        f"One layer of the student: {d_in} features in, {d_out} out",
        f"학생 모델의 한 층: 입력 {d_in}개, 출력 {d_out}개",
    )
    p.text(22, 34, head, 15, bold=True, room=520)
    scale = 200 / d_out
    w, h, thin, top = d_in * scale, d_out * scale, 12, 84
    p.text(40 + w / 2, top - 12, "W", 16, "middle", bold=True)
    p.box(40, top, w, h, ("frozen", "고정"), f"{d_out} × {d_in}")
    p.text(40 + w + 28, top + h / 2 + 6, "+", 22, "middle")
    p.text(40 + w + 78, top + h / 2 + 6, f"{alpha}/{rank} ×", 17, "middle", mono=True)
    p.text(40 + w + 70, top + h / 2 + 28, "α/r", 14, "middle", mono=True, tone="soft")
    x = 40 + w + 130
    p.box(x, top, thin, h, tone="blue")
    p.text(x + thin / 2, top - 12, "B", 16, "middle", bold=True, tone="deep")
    p.text(x + thin / 2, top + h + 20, f"{d_out} × {rank}", 13, "middle", tone="soft")
    p.box(x + thin + 26, top, w, thin, tone="blue")
    p.text(x + thin + 26 + w / 2, top - 12, "A", 16, "middle", bold=True, tone="deep")
    p.text(x + thin + 26 + w / 2, top + thin + 20, f"{rank} × {d_in}", 13, "middle", tone="soft")
    p.text(x + thin + 36, top + 92, ("blue is trained", "파란색만 학습"), 14, tone="deep")
    p.text(x + thin + 36, top + 114, ("B starts at 0,", "B는 0에서 시작,"), 13, tone="soft")
    p.text(x + thin + 36, top + 133, ("so nothing changes", "그래서 처음에는"), 13, tone="soft")
    p.text(x + thin + 36, top + 152, ("at first", "아무것도 바뀌지 않음"), 13, tone="soft")
    sums = (
        f"{frozen:,} numbers stay, {trained:,} are trained: {trained / frozen:.1%}",
        f"{frozen:,}개는 그대로, {trained:,}개만 학습: {trained / frozen:.1%}",
    )
    p.text(22, 344, sums, 15, room=520)
    note = (
        "B and A are drawn too thick: one pixel would be too much",
        "B와 A는 실제보다 두껍게 그렸습니다. 비율대로면 1픽셀도 안 됩니다",
    )
    p.text(22, 368, note, 12, tone="soft", room=520)
    p.parts.append('<polyline class="line-soft" stroke-dasharray="3 5" points="560,24 560,376"/>')
    p.text(588, 34, ("the way of an input", "입력이 지나는 길"), 15, bold=True)
    p.box(690, 336, 80, 34, "x", mono=True)
    p.arrow((710, 336), (710, 312), (646, 312), (646, 246))
    p.arrow((750, 336), (750, 312), (814, 312), (814, 284))
    p.box(588, 150, 116, 96, "W x", f"{d_in} → {d_out}", mono=True)
    p.box(770, 250, 88, 34, "A", f"{d_in} → {rank}", tone="blue", size=13)
    p.arrow((814, 250), (814, 224))
    p.box(754, 188, 120, 36, "B", f"{rank} → {d_out}", tone="blue", size=13)
    p.arrow((814, 188), (814, 166))
    p.box(774, 134, 80, 32, f"× {alpha}/{rank}", mono=True, size=14)
    p.arrow((646, 150), (646, 94), (706, 94))
    p.arrow((814, 134), (814, 94), (754, 94))
    p.box(706, 76, 48, 36, "+", size=20)
    p.arrow((730, 76), (730, 56))
    p.text(766, 62, f"W x + {alpha}/{rank} B A x", 13, mono=True)
    return p.svg()


def position_swap(korean: bool) -> str:
    """Both orders of a pair, and the outcome of every combination of two verdicts, as
    evaluation/outcomes.py computes it."""
    p = Picture(("Both orders, five outcomes", "순서를 바꿔 두 번, 결과는 다섯 가지"), 450, korean)
    p.text(22, 34, ("The judge sees each pair twice", "심판은 쌍마다 두 번 봅니다"), 15, bold=True)
    base, tuned = ("base", "튜닝 전"), ("tuned", "튜닝 후")
    for y, name, first, second in (
        (56, ("order 1", "순서 1"), tuned, base),
        (204, ("order 2", "순서 2"), base, tuned),
    ):
        p.text(22, y + 14, name, 14, tone="soft")
        for i, (letter, who) in enumerate((("A", first), ("B", second))):
            p.text(34, y + 50 + 52 * i, letter, 15, mono=True, tone="soft")
            p.box(58, y + 26 + 52 * i, 118, 40, who, tone="green" if who is tuned else "plain")
        p.arrow((176, y + 46), (222, y + 64))
        p.arrow((176, y + 98), (222, y + 80))
        p.box(222, y + 46, 84, 52, ("judge", "심판"), tone="yellow")
    said = {
        "tuned": tuned,
        "tie": ("tie", "무승부"),
        "base": base,
        None: ("no verdict", "판정 없음"),
    }
    # What outcomes.side makes of a verdict
    score = {"tuned": 1.0, "tie": 0.5, "base": 0.0, None: None}
    names = dict(zip(outcomes.Outcome, ("승", "패", "무승부", "불일치", "실패"), strict=True))
    tones = dict(zip(outcomes.Outcome, ("green", "red", "plain", "yellow", "hollow"), strict=True))
    x0, y0, w, h = 470, 144, 106, 56
    p.arrow((306, 128), (470, 128))
    p.text(316, 118, ("better in order 1:", "순서 1에서 나은 쪽:"), 13, tone="soft", room=150)
    p.arrow((306, 276), (404, 276))
    p.text(316, 266, ("better in order 2:", "순서 2에서 나은 쪽:"), 13, tone="soft", room=150)
    for i, verdict in enumerate(said):
        p.text(x0 + w * i + w / 2 - 3, y0 - 12, said[verdict], 14, "middle", bold=True, room=w)
        p.text(x0 - 12, y0 + h * i + h / 2 + 3, said[verdict], 14, "end", bold=True, room=100)
        for j, other in enumerate(said):
            kind = outcomes.outcome(score[other], score[verdict])
            dashed = kind is outcomes.Outcome.FAILED
            p.box(
                x0 + w * j,
                y0 + h * i,
                w - 6,
                h - 6,
                (kind.value, names[kind]),
                tone=tones[kind],
                size=14,
                dashed=dashed,
            )
    end = (
        "Inconsistent: the verdict follows the position, not the answer. It is counted, never "
        "hidden among the ties.",
        "불일치: 판정이 답이 아니라 자리를 따라갔다는 뜻입니다. 무승부 속에 감추지 않고 따로 "
        "셉니다.",
    )
    for i, line in enumerate(wrapped(p.say(end), 420, 13)):
        p.text(x0, 394 + 19 * i, line, 13, tone="soft")
    return p.svg()


FIGURES = {
    "pipeline": pipeline,
    "code_tree": code_tree,
    "record": record,
    "dedup_join": dedup_join,
    "label_mask": label_mask,
    "lora": lora,
    "position_swap": position_swap,
}


def drawn() -> dict[str, str]:
    """Every figure in both languages: `{file name in assets/: SVG}`."""
    return {
        f"{name}{'.ko' * korean}.svg": figure(korean)
        for name, figure in FIGURES.items()
        for korean in (False, True)
    }


if __name__ == "__main__":
    for name, svg in drawn().items():
        with utils.atomic(ROOT / "assets" / name) as file:
            file.write(svg)
        print(f"assets/{name:<24} {len(svg.encode()) / 1000:5.1f} kB")
