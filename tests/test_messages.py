"""What a run says to a Korean reader: every sentence and label has its Korean, and none is
stale."""

import ast
import builtins
import contextlib
import re
import string
import types

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

import pages
import prompts
import settings
import utils
from evaluation import calibration, outcomes
from llm import budget
from preprocessing import data_card, diversity
from preprocessing.ledger import Ledger
from training import adapter, chat

KO = prompts.LANGUAGES["ko"]
MESSAGES, PRINTED = KO.messages, KO.printed
KOREAN = MESSAGES | PRINTED | KO.cells
PLACE = "\0"  # stands for whatever differs
# What stops a run, leaves a row out or is written beside it
REFUSALS = {"CourseError", "BudgetExceeded", "Passing", "LeftOut", "Failure"}
# Read like sentences and are none that a run says to its reader: conversations that a template is
# tried with, a command's help, what a model's file says of itself, and what an older Python is told
NOT_SAID = {
    "The capital of France is Paris.",
    "A smaller deposit, and rent every month.",
    "Talk with what a run has trained.",
    f"The adapter of the run {PLACE} added to {PLACE}.",
    f"This course needs Python 3.11 or newer, and this is {PLACE}: say `make PYTHON=python3.13`, "
    "or `python3.13 run.py --setup`.",
}
# What commands print that no notebook runs: they know no reader
OF_COMMANDS = {
    *(f"written to {PLACE}", f"rate {PLACE}: {PLACE}", f"rows: {PLACE}", f"pairs: {PLACE}"),
    f"{PLACE} rows: {PLACE}",
    f"{PLACE} {PLACE}  {PLACE} resembles {PLACE}",
    f"{PLACE} of {PLACE} rows resemble one of {PLACE} held-out texts.",
    f"{PLACE} of {PLACE} rows resemble another; {PLACE} are left.",
    f"{PLACE}: {PLACE} of {PLACE} rows are rejected by a rule",
    f"Of paraphrases this finds about {PLACE}: read some rows yourself.",
}
# Stand in the code in pieces only
PUT_TOGETHER = (
    *("from Colab's key panel", "from Kaggle's Add-ons > Secrets", "rows of this run ("),
    *("Stand-in judge, a rule and not a language model", "base from now on"),
)
SENTENCE = rf"[\w`{PLACE}]+\W.*?(\w\w+\W+){{3}}.*\."  # on one line
CALLS = {"suptitle", "set_title", "set_ylabel"}
LABELS = {"title", "xlabel", "ylabel", "label", "suptitle"}


def skeleton(text: str) -> str:
    """A message without the names of its places."""
    parts = string.Formatter().parse(text)
    return "".join(literal + (PLACE if name is not None else "") for literal, name, _, _ in parts)


def of_code(node: ast.AST) -> str | None:
    """The same of a string that stands in code."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else PLACE for part in node.values]
        return "".join(map(str, parts))
    return None


def alternatives(node: ast.AST) -> list[ast.AST]:
    """What an expression may be: both sides of a condition."""
    if isinstance(node, ast.IfExp):
        return alternatives(node.body) + alternatives(node.orelse)
    return [node]


def strings(path: str) -> list[tuple[ast.AST, str]]:
    tree = ast.parse((utils.ROOT / path).read_text(encoding="utf-8"))
    found = [(node, of_code(node)) for node in ast.walk(tree)]
    return [(node, text) for node, text in found if text is not None]


def imported(tree: ast.AST) -> set[str]:
    """The names of all modules that some code may import."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def notebook_code(name: str) -> str:
    cells = nbformat.read(utils.ROOT / f"{name}.ipynb", as_version=4).cells
    magic = TransformerManager()
    return "\n".join(
        magic.transform_cell(cell.source) for cell in cells if cell.cell_type == "code"
    )


def modules_that_speak() -> list[str]:
    """Every module of the course that a notebook, `run.py` or the vote imports, directly or not.
    The rehearsal speaks as a server does, which knows no reader."""
    to_do = {"run", "evaluation.vote"}
    for name in settings.NOTEBOOKS:
        to_do |= imported(ast.parse(notebook_code(name)))
    found: set[str] = set()
    while to_do:
        path = to_do.pop().replace(".", "/") + ".py"
        if path not in found and (utils.ROOT / path).exists():
            found.add(path)
            to_do |= imported(ast.parse((utils.ROOT / path).read_text(encoding="utf-8")))
    return sorted(path for path in found if not path.startswith("rehearsal/"))


SPEAKING = modules_that_speak()


def has_words(text: str) -> bool:
    return re.search(r"[A-Za-z]{2}", text) is not None


KNOWN = {skeleton(text) for text in KOREAN}


def in_print(line: str) -> bool:
    """Is a line, with some number or word in its places, one that is looked up?"""
    tried = [line.replace(PLACE, "7"), line.replace(PLACE, "word")]
    return any(utils.translated_lines(one, "ko") != one for one in tried)


def is_known(text: str) -> bool:
    """Is it a text of the catalogue, or a piece of one that the code puts together?"""
    forms = {text}
    with contextlib.suppress(ValueError):  # braces that are none of `format`
        forms.add(skeleton(text))
    return any(form.strip(f" {PLACE}") in known for form in forms for known in KNOWN)


def refusals(tree: ast.AST) -> set[str]:
    """What some code refuses something with, and its other sentences, those of `print` left out:
    errors are often put together elsewhere."""
    said: set[str | None] = set()
    elsewhere: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            elsewhere.add(node.value)  # a docstring
        elif isinstance(node, ast.JoinedStr):
            elsewhere |= set(ast.walk(node)) - {node}
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in REFUSALS and node.args:
                said |= {of_code(one) for one in alternatives(node.args[0])}
            elif name in ("require", "known", "secret"):  # the others put these into sentences
                parts = node.args[1:] + [keyword.value for keyword in node.keywords]
                said |= {of_code(part) for part in parts}
            elif name == "print":
                elsewhere |= set(ast.walk(node))
    for node in ast.walk(tree):
        text = None if node in elsewhere else of_code(node)
        if text and re.fullmatch(SENTENCE, text):
            said.add(text)
    return {text for text in said - NOT_SAID if text and has_words(text)}


@pytest.mark.parametrize("path", SPEAKING)
def test_every_refusal_has_its_korean(path):
    """Most of those of training and of the servers had none."""
    tree = ast.parse((utils.ROOT / path).read_text(encoding="utf-8"))
    missing = [text for text in refusals(tree) if not is_known(text)]
    assert not missing, "write their Korean under [messages] in data/languages/ko.toml"


@pytest.mark.parametrize("path", SPEAKING)
def test_every_word_of_a_figure_has_its_korean(path):
    tree = ast.parse((utils.ROOT / path).read_text(encoding="utf-8"))
    drawn = []
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in LABELS:
            drawn.append(of_code(node.value))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in CALLS:
            drawn += [of_code(argument) for argument in node.args]
    missing = {
        text for text in drawn if text and has_words(re.sub(rf"{PLACE}|\.ipynb", "", text))
    } - KNOWN
    assert not missing, "write their Korean under [messages] in data/languages/ko.toml"


def lines_printed(code: str) -> set[str]:
    """What the calls of `print` in some code say, a line each, with the names of its places."""
    said = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
            parts = [of_code(part) or PLACE for part in node.args]
            said |= set(" ".join(parts).split("\n"))
    names = re.compile(f"{PLACE}|ROUGE-L|MB")
    return {line for line in said if has_words(names.sub("", line))}


@pytest.mark.parametrize("path", SPEAKING)
def test_every_line_that_a_module_prints_has_its_korean(path):
    said = lines_printed((utils.ROOT / path).read_text(encoding="utf-8"))
    missing = [line for line in said - OF_COMMANDS if not in_print(line)]
    assert not missing, "write their Korean under [printed] in data/languages/ko.toml"


@pytest.mark.parametrize("name", settings.NOTEBOOKS)
def test_every_line_that_a_cell_prints_has_its_korean(name):
    missing = [line for line in lines_printed(notebook_code(name)) if not in_print(line)]
    assert not missing, "write their Korean under [printed] in data/languages/ko.toml"


def test_no_korean_is_left_of_a_sentence_that_the_code_no_longer_says():
    """Its longest piece stands somewhere in the code, or in a notebook; labels of one or two words
    are often put together there, so they are not looked for."""
    code = set()
    for path in utils.ROOT.rglob("*.py"):
        inside = path.relative_to(utils.ROOT)
        if inside.parts[0] not in (".venv", ".cache", "tests", "runs"):
            code |= {text for _, text in strings(str(inside))}
    for name in settings.NOTEBOOKS:
        code.add((utils.ROOT / f"{name}.ipynb").read_text(encoding="utf-8"))
    everything = "\1".join(code)
    stale = []
    for text in KNOWN:
        longest = max(text.split(PLACE), key=len).strip(" (){}%:.,;\n")
        words = re.findall(r"\w+", longest)
        if len(words) > 2 and longest not in everything and not longest.startswith(PUT_TOGETHER):
            stale.append(text)
    assert not stale, "the English has changed: bring [messages] in data/languages/ko.toml up to it"


@pytest.mark.parametrize("english", KOREAN)
def test_a_translation_is_korean_and_has_the_same_places(english):
    def places(text):
        return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name)

    assert places(english) == places(KOREAN[english])
    spoken = re.search("[가-힣]", KOREAN[english])
    assert spoken or not has_words(skeleton(english).replace(PLACE, ""))


@pytest.mark.parametrize("table", ["messages", "printed", "cells"])
def test_no_text_is_taken_for_another_one(table):
    """Each is looked up as it is said, with something in its places."""
    for english, korean in getattr(KO, table).items():
        places = [name for _, name, _, _ in string.Formatter().parse(english) if name]
        values = {name: "7" if len(name) == 1 else f"<{name}>(x),y" for name in places}
        said = utils.translated(english.format(**values), "ko", table)
        assert said == korean.format(**values)


@pytest.fixture
def korean(monkeypatch):
    monkeypatch.setattr(utils, "_reader", "ko")


def test_an_error_is_korean_for_a_korean_reader(monkeypatch):
    monkeypatch.setattr(utils, "_reader", "en")
    with pytest.raises(utils.CourseError) as caught:
        settings.resolve({"LANGUAGE": "ko", "PROFILE": "tiny"})
    assert str(caught.value) == (
        "PROFILE의 값이 'tiny'입니다. 다음 가운데 하나를 골라 주세요: full, smoke"
    )
    assert caught.value._render_traceback_()[0].startswith("멈췄습니다: PROFILE")
    monkeypatch.setattr(utils, "secret", lambda name, without="": None)
    with pytest.raises(utils.CourseError, match="gpt-4o 모델은 유료인데"):
        settings.resolve({"READER": "ko", "TEACHER": "gpt-4o", "BASE_URL": ""})
    with pytest.raises(utils.CourseError, match="choose one of full, smoke"):
        settings.resolve({"PROFILE": "tiny"})


def verdict(number: int, outcome: str, kind: str = "") -> dict:
    value = {"win": 1.0, "loss": 0.0, "failed": None}.get(outcome, 0.5)
    told = {"id": f"e{number}", "language": ("en", "ko")[number % 2], "judge": "a (stand-in, b)"}
    return told | {"outcome": outcome, "value": value, "kind": kind, "orders": []}


@pytest.mark.parametrize(
    ("counts", "first"),
    [
        ({"win": 50, "loss": 9, "tie": 1}, "튜닝 모델이 더 낫습니다(심판: a (stand-in, b))."),
        ({"win": 9, "loss": 50, "tie": 1}, "베이스 모델이 더 낫습니다(심판: a (stand-in, b))."),
        ({"win": 20, "inconsistent": 19, "loss": 21}, "튜닝 모델과 베이스 모델을 구별할 수"),
        ({"win": 20, "failed": 40}, "결론을 내릴 수 없습니다(심판: a (stand-in, b))."),
        ({"win": 4, "loss": 4}, "승률을 내지 않습니다. 문항"),
    ],
)
def test_a_headline_is_korean_throughout(monkeypatch, counts, first):
    """Of one with a win rate half was English, and the judge's name stood in the wrong place."""
    records = []
    for outcome, count in counts.items():
        records += [verdict(len(records) + i, outcome) for i in range(count)]
    pairs = [verdict(2 * i + 1, "win", "wrong_fact") for i in range(40)]  # in English too few
    pairs += [verdict(i, ("win", "loss")[i % 2], "cut_off") for i in range(40)]
    pairs += [verdict(i, ("win", "loss")[i // 2 % 2], "subtle_slip") for i in range(40)]
    said = {}
    for reader in ("en", "ko"):
        monkeypatch.setattr(utils, "_reader", reader)
        gates = (None, calibration.calibrate(pairs))
        said[reader] = [outcomes.headline(records, gate, cut=0.3, limit=256) for gate in gates]
    for english, korean in zip(said["en"], said["ko"], strict=True):
        assert korean.startswith(first)
        assert utils.translated_lines(english, "ko") == korean
        known = re.compile(r"a \(stand-in, b\)|JUDGE|ANSWER_TOKENS|p [=<]")
        assert not re.search("[A-Za-z]", known.sub("", korean)), korean


@pytest.mark.parametrize(
    ("english", "said"),
    [
        (  # put together from pieces in three modules
            "http://localhost:8000/v1 has no model 'gpt-5' (404): check TEACHER or JUDGE; it "
            "serves a, b. What was answered is kept in requests.jsonl; run again to go on from "
            "there.",
            "http://localhost:8000/v1: 'gpt-5' 모델이 없습니다(404). TEACHER나 JUDGE를 확인해 "
            "주세요. 이 서버에 있는 모델: a, b. 받은 답은 requests.jsonl에 남아 있으며, "
            "다시 실행하면 거기에서 이어 갑니다.",
        ),
        (
            "Training needs about 5.1 GB of VRAM and 4.0 GB are free: set "
            "gradient_checkpointing = True, batch_size = 4 where `measure` generates (then about "
            "3.3 GB) or choose a smaller BASE_MODEL.",
            "학습에 VRAM 5.1 GB쯤이 필요한데 남은 것은 4.0 GB입니다. 다음과 같이 바꾸거나 더 작은 "
            "BASE_MODEL을 골라 주세요: gradient_checkpointing = True, `measure`가 답을 생성하는 "
            "곳에서 batch_size = 4 (그러면 3.3 GB쯤).",
        ),
        (
            "This judge is not shown to see: cut off, subtle slip.",
            "이 심판이 알아본다고 할 수 없는 흠: 중간에 잘림, 작은 잘못.",
        ),
        (
            "Row r7: a row with `messages`: the content of a message is empty: mend or delete that "
            "row.",
            "행 r7: `messages`가 있는 행의 메시지 내용: 비어 있습니다. "
            "그 행을 고치거나 지워 주세요.",
        ),
    ],
)
def test_an_error_of_several_pieces_is_korean_throughout(korean, english, said):
    assert str(utils.CourseError(english)) == said


@pytest.mark.parametrize(
    ("scale", "lost", "said"),
    [
        (1, 0, "$2.0000가 들 수 있는데, 예산 $1.00 가운데 $0.2500를 이미 썼습니다. BUDGET_USD를"),
        (
            2,
            0.1,
            "가장 비싼 경우의 2.0배로 잡았습니다), 예산 $1.00 가운데 $0.2500를 이미 썼습니다 (받지",
        ),
    ],
)
def test_what_the_budget_says_is_korean(korean, scale, lost, said):
    money = budget.Budget(1.0, lambda: 0.0)
    money.spent_usd, money.scale = 0.25, scale
    told = str(utils.CourseError(money._sentence("A batch of 7 requests", 2.0, lost)))
    assert told.startswith("요청 7개의 배치에 최대 $") and said in told and " (and" not in told


def test_the_cards_of_a_korean_reader_are_korean(korean):
    """They were English whatever LANGUAGE said."""
    ledger = Ledger()
    ledger.open("malformed reply", "ROUGE-L", "critique", "contamination")
    teachers = (settings.REHEARSAL, "gpt-4o", "llama-3.1-8b", "a-model")
    for name in (prompts.DEMONSTRATION, *teachers):
        task = dict.fromkeys(("category", "instruction", "input", "output"), "한국어")
        ledger.add("ko", task, {"teacher": name})
    cards = [data_card.describe(ledger, {"left": 0, "rows": 1}, "alpaca", 1.2, {"ROUGE-L": 0.7})]
    chosen = settings.resolve({"LANGUAGE": "ko"})
    record = utils.read_json(adapter.EXAMPLE / "training.json")
    for merged in (False, True):
        cards.append(adapter.model_card(settings.PACKAGED_STUDENT, record, chosen, merged))
    code = re.compile(r"```.*?```|`[^`]*`|\[[^]]*\]|Instruction Tuning from Scratch", re.DOTALL)
    for card in cards:
        assert not re.search(r"[A-Za-z]{2,}( [A-Za-z]{2,}){2}", code.sub("", card))


def test_a_table_has_korean_cells_where_they_are_words_of_the_course(korean):
    pd = pytest.importorskip("pandas")
    table = {
        "probe": ["swapped order", "its own name"],
        "fooled": ["0 % [0, 2]", "42 % [19, 68]"],
        "output": ["tie", "A tie is neat."],
        "pairs": [12, 168],
    }
    shown = pages.table(pd.DataFrame(table), "judge: gpt-4o").to_html()
    cells = re.findall(">([^<>]+)</t[dh]>", shown)
    assert cells[:4] == ["공격", "속음", "출력", "쌍"]
    assert cells[4:8] == ["순서 바꾸기", "0% [0, 2]", "tie", "12"]
    assert cells[8:] == ["심판의 이름", "42% [19, 68]", "A tie is neat.", "168"]
    assert "심판: gpt-4o</caption>" in shown
    groups = pages._translated(pd.DataFrame({"group": ["ko", "hard", "cut_off", "closed_qa"]}))
    assert groups["묶음"].tolist() == ["한국어", "어려움", "중간에 잘림", "주어진 글로 답하기"]
    assert pages._translated(pd.DataFrame(columns=["group"])).columns == ["묶음"]


def test_the_prose_calls_the_attacks_as_the_table_does():
    prose = (utils.ROOT / "evaluation.ko.ipynb").read_text(encoding="utf-8")
    for name in ("swapped order", *calibration._attacks(None, [])):
        assert f"*{MESSAGES[name]}*" in prose, name


def test_a_line_of_sentences_is_korean_if_all_of_them_are_known(korean):
    known = "They are cut off: raise TEACHER_TOKENS."
    said = "응답이 중간에 잘렸습니다. TEACHER_TOKENS를 늘려 주세요."
    assert utils.translated_lines(f"{known} {known}\n- {known}") == f"{said} {said}\n- {known}"
    assert utils.translated_lines(f"{known} A hat.") == f"{known} A hat."


def test_what_is_not_known_stays_as_it_is(korean):
    assert utils.translated("a sentence that nobody has translated") == (
        "a sentence that nobody has translated"
    )
    braces = 'X is "[]"; give a JSON object such as {"reasoning_effort": "low"} (null leaves a '
    assert '{"reasoning_effort": "low"}와 같은' in utils.translated(braces + "parameter out).")


def test_what_is_printed_is_korean_for_a_korean_reader(monkeypatch, capsys):
    monkeypatch.setattr(builtins, "print", print)  # put back afterwards
    utils.print_to_reader()
    for reader in ("ko", "en"):
        monkeypatch.setattr(utils, "_reader", reader)
        print("4 of 6 rows are left", "\nall of these rows", sep="")
        print(4, "of", 6, "rows are left", sep=None, end="!\n")
    said = "6행 가운데 4행이 남았습니다"
    english = "4 of 6 rows are left"
    same = "\nall of these rows\n"
    assert capsys.readouterr().out == f"{said}{same}{said}!\n{english}{same}{english}!\n"


def test_a_word_of_the_data_is_translated_in_a_figure():
    """ "name" is the head of a column, and in the figures a verb of the rows and a token."""
    assert utils.translated("name", "ko") == "이름"
    row = {"language": "en", "instruction": "Name three name tags."}
    verbs = diversity.verb_figure([row, row])
    example = {"input_ids": [0, 1], "labels": [-100, 1]}
    tokenizer = types.SimpleNamespace(decode=lambda ids: "name")
    for figure in (verbs, chat.mask_figure(example, tokenizer, "name")):
        utils.translate_figure(figure, "ko")
        figure.canvas.draw()
        axes = figure.axes[0]
        told = [text.get_text() for text in (*axes.texts, *axes.get_yticklabels())]
        assert "name" in told and "이름" not in told
        assert utils.hangul_share(axes.get_title()) > 0


def test_the_kinds_of_a_judges_figure_are_half_english():
    """ "all {rows}" took "all kinds (168)" for a number of rows."""
    assert utils.translated("all kinds (168)", "ko") == "전체 (168)"
    assert utils.translated("all 615", "ko") == "전체 615"


def test_a_figure_has_a_korean_twin_from_the_same_run(tmp_path, monkeypatch):
    """And a Korean reader's own figure is Korean."""
    plt = pytest.importorskip("matplotlib.pyplot")
    shown = []
    monkeypatch.setattr(utils, "_reader", "en")
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gca().get_xlabel()))

    def drawn():
        figure, axes = plt.subplots()
        axes.bar([0, 1], [1, 2], label="won")
        axes.set(xlabel="share of prompts", xticks=[0, 1], xticklabels=["English (30)", "x"])
        axes.legend()
        return figure

    figure = drawn()
    utils.show(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").exists() and (tmp_path / "a.ko.png").exists()
    figure.canvas.draw()
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["영어 (30)", "x"]
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "승"
    monkeypatch.setattr(utils, "_reader", "ko")
    utils.show(drawn(), tmp_path / "b.png")
    assert shown == ["share of prompts", "문항의 비율"]
    assert not (tmp_path / "b.ko.png").exists()
