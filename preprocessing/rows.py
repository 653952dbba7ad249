"""One reader of a user's rows: a file, a folder or a data set of the hub, in any common form.

What it does: open JSON Lines, JSON, CSV, TSV and Parquet (`.gz` too), folders of them and data sets
of the Hugging Face hub, recognise what each field is, and give every row as one plain record (see
`read`), so that the gate, the filters, the card, training and evaluation know one form only. What
it took for what, and what it left out and why, is printed. What it does not do: write anything, run
code that comes with a data set, or judge how good a row is (`curation.py` does).

JSON and CSV are read here line by line and not by `datasets`: it writes '"b"' for "b" where another
row has a list in that field, takes the answer "NA" for a missing one, and knows no line numbers.
Parquet, saved data sets and the hub are read by `datasets`.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gzip
import io
import json
import random
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import settings
import utils
from utils import CourseError

# --- what the fields of the world are called ------------------------------------------------------

# Each tuple in the order in which they are tried; names are compared in lower case
CONVERSATION = ("messages", "conversations", "conversation", "dialogue", "대화")
ASKED = (
    *("instruction", "prompt", "question", "query", "problem", "inputs", "지시", "지시문", "질문"),
    "input",  # last: beside an instruction it is the input
)
GIVEN = ("input", "context", "입력")
ANSWERED = (
    *("output", "completion", "response", "answer", "solution", "target", "targets", "reference"),
    *("출력", "응답", "답변", "답"),
)
SYSTEM = ("system", "system_prompt")
LANGUAGE = ("language", "lang", "언어")
CATEGORY = ("category", "범주", "분류")
OF_THE_COURSE = ("kind", "teacher", "difficulty", "is_classification")  # what it writes of a row

ROLES = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant"}
ROLES |= {"model": "assistant", "chatgpt": "assistant"}
ROLES |= {role: role for role in ("system", "user", "assistant")}

WANTED = (
    "`instruction` (`input`) `output`, `prompt` `completion`, `question` `answer`, `messages` "
    "(with `role` and `content`) or `conversations` (with `from` and `value`)"
)

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
CHUNK = 1 << 18  # characters read at a time
MOST_TURNS = 9  # of an evaluation prompt, as prompts.MOST_TURNS
LONGEST = 1 << 26  # characters of one row at most
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?")


class LeftOut(Exception):
    """Why a row cannot be used, in a few words."""


@dataclasses.dataclass
class Found:
    """What was read from one source: the raw material of the printed summary."""

    source: str
    rows: int = 0
    used: int = 0
    fields: Counter = dataclasses.field(default_factory=Counter)  # (what, field) -> rows
    reasons: Counter = dataclasses.field(default_factory=Counter)
    first: dict[str, str] = dataclasses.field(default_factory=dict)  # reason -> where
    seen: Counter = dataclasses.field(default_factory=Counter)  # all fields -> rows
    notes: Counter = dataclasses.field(default_factory=Counter)

    def leave_out(self, reason: str, where: str) -> None:
        self.reasons[reason] += 1
        self.first.setdefault(reason, where)

    def summary(self, kept: list[dict]) -> str:
        lines = [f"{self.source}: {self.used:,} of {self.rows:,} rows are usable"]
        for what in ("conversation", "system", "question", "input", "answer"):
            names = [f"`{name}`" for (kind, name) in self.fields if kind == what]
            if names:
                lines.append(f"  {what:<13}{', '.join(names)}")
        taken = {name for _, name in self.fields} | {"id", *LANGUAGE, *CATEGORY, "source"}
        if unused := [f"`{name}`" for name in self.seen if name not in taken]:
            lines.append(f"  not used     {', '.join(unused[:8])}")
        for reason, count in self.reasons.most_common():
            lines.append(f"  left out     {count:,}: {reason} (first: {self.first[reason]})")
        for note, count in self.notes.most_common():
            lines.append(f"  changed      {count:,}: {note}")
        if len(kept) < self.used:
            lines.append(f"  drawn        {len(kept):,} of them at random")
        languages = Counter(row["language"] for row in kept).most_common()
        listed = ", ".join(f"{language} {count:,}" for language, count in languages)
        lines.append(f"  languages    {listed}")
        return "\n".join(lines)


Content = Callable[[dict, Found], dict]  # a row's fields -> what it says; raises LeftOut


# --- reading --------------------------------------------------------------------------------------


def read(
    source: str | Path,
    most: int = 0,
    seed: int = 42,
    languages: tuple[str, ...] = (),
    quiet: bool = False,
) -> list[dict]:
    """The rows of a file, a folder or a data set of the hub, in one form.

    Args:
        source: a path, or `owner/name` of the hub (`owner/name:configuration` where it has more
            than one).
        most: rows to keep at most, drawn at random while the source streams by, so that memory does
            not grow with the file; 0: all.
        seed: of that draw.
        languages: codes that a row without one may be in: Latin script counts as the first of them
            that is written in it, else as English.
        quiet: do not print the summary.

    Returns:
        Records with the text fields `id`, `language`, `category`, `source` and either
        `instruction`, `input` and `output`, or `messages`: `[{"role", "content"}, ...]`, where
        `system` comes first if at all, `user` and `assistant` alternate and the last is the
        assistant's. Text is in NFC. Ids are unique within the source. A record that the course
        itself wrote comes back as it is.

    Raises:
        CourseError: nothing there, not readable, an unknown form, or no usable row.
    """
    return _read(source, _content, most, seed, languages, quiet)


def prompts(source: str | Path, languages: tuple[str, ...] = (), quiet: bool = False) -> list[dict]:
    """Evaluation prompts from the same sources: `id`, `language`, `category`, `prompt`, `reference`
    ("" without one), and where the user goes on `follow_ups`, each a `prompt` and a `reference`.

    A file of rows will do: its answers are the references. MT-Bench's `turns` are known too.
    """
    return _read(source, _prompt, 0, 0, languages, quiet)


def _read(
    source: str | Path, content: Content, most: int, seed: int, languages: tuple, quiet: bool
) -> list[dict]:
    found = Found(str(source))
    kept = _completed(_sample(_usable(source, found, content), most, seed), languages)
    if not kept:
        raise CourseError(_nothing(found))
    if not quiet:
        print(found.summary(kept))
    return kept


def _usable(source: str | Path, found: Found, content: Content) -> Iterator[tuple[str, dict]]:
    """The usable rows of a source, one at a time: `(an id from file and line, the record)`."""
    for name, where, raw in records(source):
        found.rows += 1
        if isinstance(raw, LeftOut):
            found.leave_out(str(raw), where)
            continue
        fields = {str(key).strip().lower(): value for key, value in raw.items()}
        found.seen.update(fields.keys())
        try:
            said = content(fields, found)
        except LeftOut as reason:
            found.leave_out(str(reason), where)
            continue
        found.used += 1
        own = fields.get("id")
        row = {"id": str(own).strip() if isinstance(own, str | int) else ""}
        row["language"] = _code(fields)
        row["category"] = _label(fields, CATEGORY) or "other"
        row |= said
        row["source"] = _label(fields, ("source",)) or name
        for key in OF_THE_COURSE:
            if isinstance(fields.get(key), str | bool):
                row[key] = fields[key]
        yield f"{name}-{where.split()[-1]}", row


def _sample(rows: Iterator[tuple], most: int, seed: int) -> list[tuple]:
    """`most` rows drawn at random in one pass (Vitter's algorithm R), in their order; all if 0."""
    rng = random.Random(seed)
    kept: list[tuple[int, tuple]] = []
    for number, row in enumerate(rows):
        if not most or number < most:
            kept.append((number, row))
            continue
        place = rng.randrange(number + 1)
        if place < most:
            kept[place] = (number, row)
    return [row for _, row in sorted(kept, key=lambda pair: pair[0])]


def _completed(rows: list[tuple[str, dict]], languages: tuple[str, ...]) -> list[dict]:
    """The records, each with a language, and with an id of its own: the one that it has, or the one
    from file and line."""
    names: set[str] = set()
    for made, row in rows:
        name = row["id"] or made
        if name in names:
            name = made
        while name in names:  # two files of one name in different folders
            name += "+"
        names.add(name)
        row["id"] = name
        row["language"] = row["language"] or language_of(row, languages)
    return [row for _, row in rows]


def _nothing(found: Found) -> str:
    """The sentence for a source without a usable row."""
    if not found.rows:
        return f"{found.source} is empty: there is no row in it."
    reason, count = found.reasons.most_common(1)[0]
    fields = ", ".join(f"`{name}`" for name in list(found.seen)[:12]) or "none"
    return (
        f"No row of {found.source} can be used: of {found.rows:,}, {count:,} are left out because "
        f"of: {reason} (first: {found.first[reason]}). Fields found: {fields}; wanted: {WANTED}."
    )


# --- from fields to a record ----------------------------------------------------------------------


def _content(fields: dict, found: Found) -> dict:
    """`messages`, or `instruction`, `input` and `output`, from a row's fields; raises LeftOut."""
    name = _first(fields, CONVERSATION)
    asked = _first(fields, ASKED)
    answered = _first(fields, ANSWERED)
    if name:
        messages = _messages(fields[name], name)
        found.fields["conversation", name] += 1
    elif asked and answered and _is_list_of_turns(fields[asked]):
        # TRL's conversational prompt and completion
        messages = _messages(fields[asked], asked) + _messages(fields[answered], answered)
        found.fields["conversation", asked] += 1
        found.fields["conversation", answered] += 1
    elif asked and answered:
        single = _single(fields, asked, answered, found)
        earlier = _earlier(fields)
        if not earlier and not _first(fields, SYSTEM):
            return single
        messages = [*earlier, *_turn(questions(single)[0], single["output"])]
    elif asked and not any(name in fields for name in ANSWERED):
        raise LeftOut("a question, but no field for its answer")
    elif asked or answered:
        raise LeftOut("no answer" if asked else "no question")
    elif any(name in fields for name in ANSWERED) and any(name in fields for name in ASKED):
        raise LeftOut("neither question nor answer")
    else:
        raise LeftOut("unknown form")
    if system := _system(fields, found):
        messages = [{"role": "system", "content": system}, *messages]
    return _as_record(_checked(messages, found))


def _single(fields: dict, asked: str, answered: str, found: Found) -> dict:
    """One question and one answer, with an input where given."""
    question, answer = _text(fields[asked], asked), _text(fields[answered], answered)
    given, extra = _given(fields, asked)
    if not question or not answer:
        raise LeftOut("no answer" if question else "no question")
    found.fields["question", asked] += 1
    found.fields["answer", answered] += 1
    if extra:
        found.fields["input", given] += 1
    return {"instruction": question, "input": extra, "output": answer}


def _given(fields: dict, asked: str) -> tuple[str, str]:
    """What a question is about, and the field that says so; two empty texts where none does."""
    given = _first(fields, tuple(name for name in GIVEN if name != asked))
    extra = _text(fields[given], given) if given else ""
    if not given or extra.lower() in ("<noinput>", "none", "n/a"):
        return "", ""
    return given, extra


def _earlier(fields: dict) -> list[dict]:
    """The messages of `history`, pairs of question and answer."""
    earlier = fields.get("history") or []
    if not isinstance(earlier, list) or not all(
        isinstance(turn, list | tuple) and len(turn) == 2 for turn in earlier
    ):
        raise LeftOut("`history` is not a list of pairs of question and answer")
    messages = []
    for question, answer in earlier:
        messages += _turn(_text(question, "history"), _text(answer, "history"))
    return messages


def _turn(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _prompt(fields: dict, found: Found) -> dict:
    """`prompt`, `reference` and `follow_ups`; raises LeftOut."""
    name, asked, answered = (_first(fields, names) for names in (CONVERSATION, ASKED, ANSWERED))
    system = _system(fields, found)
    if name:
        messages = _messages(fields[name], name)
        if messages and messages[0]["role"] == "system":
            system = messages[0]["content"]
        said = [turn["content"] for turn in messages if turn["role"] == "user"]
        expected = [turn["content"] for turn in messages if turn["role"] == "assistant"]
        found.fields["conversation", name] += 1
    elif isinstance(fields.get("turns"), list):  # MT-Bench
        said = [_text(turn, "turns") for turn in fields["turns"]]
        answers = fields.get("reference") or []
        answers = answers if isinstance(answers, list) else [answers]
        expected = [_text(answer, "reference") for answer in answers]
        found.fields["question", "turns"] += 1
    elif asked:
        _, extra = _given(fields, asked)
        said = [_text(fields[asked], asked) + (f"\n\n{extra}" if extra else "")]
        expected = [_text(fields[answered], answered) if answered else ""]
        for turn in _follow_ups(fields):
            said.append(_text(turn.get("prompt"), "follow_ups"))
            expected.append(_text(turn.get("reference"), "follow_ups"))
        found.fields["question", asked] += 1
    else:
        raise LeftOut("no question")
    if answered:
        found.fields["answer", answered] += 1
    if not said or not said[0]:
        raise LeftOut("no question")
    if len(said) > MOST_TURNS:
        found.notes[f"only the first {MOST_TURNS} questions are asked"] += 1
    expected += [""] * len(said)
    pairs = zip(said[:MOST_TURNS], expected, strict=False)
    first, *rest = [{"prompt": text, "reference": answer} for text, answer in pairs if text]
    if system:
        first["system"] = system
    return first | ({"follow_ups": rest} if rest else {})


def _follow_ups(fields: dict) -> list[dict]:
    """What the user says next: `follow_ups`, objects or texts, or one `follow_up`."""
    given = fields.get("follow_ups")
    if isinstance(given, list):
        return [turn if isinstance(turn, dict) else {"prompt": turn} for turn in given]
    text = _text(fields.get("follow_up"), "follow_up")
    answer = _text(fields.get("follow_up_reference"), "follow_up_reference")
    return [{"prompt": text, "reference": answer}] if text else []


def _messages(value: object, name: str) -> list[dict]:
    """A conversation in any of its forms as `role` and `content`."""
    if isinstance(value, str):  # in CSV a conversation can only be written as JSON
        try:
            value = json.loads(value)
        except ValueError:
            raise LeftOut(f"`{name}` is not a list of messages") from None
    if isinstance(value, dict):  # columns of a Parquet file: {"role": [...], "content": [...]}
        value = _turned(value, name)
    if not isinstance(value, list) or not value:
        raise LeftOut(f"`{name}` is not a list of messages")
    if all(isinstance(turn, str) for turn in value):  # LIMA: question, answer, question, ...
        roles = ("user", "assistant")
        return [
            {"role": roles[i % 2], "content": _text(turn, name)} for i, turn in enumerate(value)
        ]
    messages = []
    for turn in value:
        if not isinstance(turn, dict):
            raise LeftOut(f"`{name}` is not a list of messages")
        said_by = turn.get("role") or turn.get("from") or turn.get("speaker") or "?"
        role = ROLES.get(str(said_by).lower())
        if role is None:
            raise LeftOut(f"the role {said_by!r} is none of system, user and assistant")
        said = next((turn[key] for key in ("content", "value", "text") if key in turn), None)
        messages.append({"role": role, "content": _text(_parts(said), "content")})
    return messages


def _turned(columns: dict, name: str) -> list[dict]:
    """A list of turns from one list a field."""
    if not columns or not all(isinstance(values, list) for values in columns.values()):
        raise LeftOut(f"`{name}` is not a list of messages")
    turns = zip(*columns.values(), strict=False)
    return [dict(zip(columns, turn, strict=True)) for turn in turns]


def _parts(content: object) -> object:
    """OpenAI's list of parts as one text; a picture cannot be one."""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return content
    if other := [part.get("type") for part in content if part.get("type") not in ("text", None)]:
        raise LeftOut(f"a message has a part of type {other[0]!r}, which is not text")
    return "\n".join(str(part.get("text") or "") for part in content)


def _checked(messages: list[dict], found: Found) -> list[dict]:
    """Messages in the one order that every chat template takes; raises LeftOut for others."""
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    system = messages[: len(messages) - len(turns)]
    if system and not system[0]["content"]:
        system = []  # an empty one says nothing
    if not turns:
        raise LeftOut("only a system message")
    if turns[0]["role"] == "assistant":
        raise LeftOut("it begins with an answer")
    for number, message in enumerate(turns):
        if message["role"] == "system":
            raise LeftOut("a system message after the first place")
        if message["role"] != ("user", "assistant")[number % 2]:
            raise LeftOut(f"two messages of the {message['role']} in a row")
    if turns[-1]["role"] == "user" and len(turns) > 1:
        turns = turns[:-1]
        found.notes["a last question without an answer was cut off"] += 1
    if turns[-1]["role"] == "user":
        raise LeftOut("no answer")
    if not all(message["content"] for message in turns):
        raise LeftOut("a message is empty")
    return system + turns


def _as_record(messages: list[dict]) -> dict:
    """A conversation of one turn is an instruction and its output; a longer one stays."""
    if len(messages) == 2:
        question, answer = (message["content"] for message in messages)
        return {"instruction": question, "input": "", "output": answer}
    return {"messages": messages}


def _system(fields: dict, found: Found) -> str:
    name = _first(fields, SYSTEM)
    if not name:
        return ""
    found.fields["system", name] += 1
    return _text(fields[name], name)


def _first(fields: dict, names: tuple[str, ...]) -> str | None:
    """The first of `names` that the row has with something in it."""
    return next((name for name in names if not _missing(fields.get(name))), None)


def _missing(value: object) -> bool:
    """True for what different tools write for an empty cell."""
    if isinstance(value, float):
        return value != value  # NaN, as pandas and Python's json write it
    if isinstance(value, str):
        return not value.strip() or value.strip() == "nan"
    return value is None or (isinstance(value, list | dict) and not value)


def _is_list_of_turns(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(turn, dict) for turn in value)


def _text(value: object, name: str) -> str:
    """A cell as text, in NFC and with Unix line ends; raises LeftOut for what is no text."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if _missing(value):
        return ""
    if isinstance(value, bool):
        value = "true" if value else "false"
    if isinstance(value, list):
        raise LeftOut(f"`{name}` is a list of {len(value)}, but one text is wanted")
    if isinstance(value, dict):
        raise LeftOut(f"`{name}` is an object, but a text is wanted")
    text = str(value).replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", text).strip()


def _label(fields: dict, names: tuple[str, ...]) -> str:
    """A short text field such as a category, or "" where there is none."""
    name = _first(fields, names)
    value = fields[name] if name else ""
    return value.strip() if isinstance(value, str) else ""


def _code(fields: dict) -> str:
    """The language that a row names, as `ko`, `ko-KR` or `Korean`; "" where it does not."""
    said = _label(fields, LANGUAGE).lower()
    for code, name in settings.LANGUAGES.items():
        if said == name.lower():
            return code
    return said[:2] if re.fullmatch(r"[a-z]{2}([-_].*)?", said) else ""


# --- what a record says ---------------------------------------------------------------------------


def questions(row: dict) -> list[str]:
    """What the user says in a row or an evaluation prompt, turn by turn."""
    if "prompt" in row:
        return [row["prompt"], *(turn["prompt"] for turn in row.get("follow_ups", ()))]
    if "messages" in row:
        return [turn["content"] for turn in row["messages"] if turn["role"] == "user"]
    return [row["instruction"] + (f"\n\n{row['input']}" if row.get("input") else "")]


def answers(row: dict) -> list[str]:
    """What the assistant says in a row, turn by turn."""
    if "messages" in row:
        return [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]
    return [row["output"]]


SCRIPTS = {  # a language that its script gives away; what is left is Latin
    "ko": re.compile("[가-힣ㄱ-ㆎ]"),
    "ja": re.compile("[ぁ-ヿ]"),
    "zh": re.compile("[一-鿿]"),
    "ru": re.compile("[Ѐ-ӿ]"),
    "el": re.compile("[Ͱ-Ͽ]"),
    "he": re.compile("[֐-׿]"),
    "ar": re.compile("[؀-ۿ]"),
    "hi": re.compile("[ऀ-ॿ]"),
    "th": re.compile("[฀-๿]"),
}


def language_of(row: dict, languages: tuple[str, ...] = ()) -> str:
    """The language of what is asked in a row, told by its script; Latin script is the first of
    `languages` that is written in it, else English."""
    text = " ".join(questions(row))[:2000]  # enough to tell
    letters = sum(letter.isalpha() for letter in text)
    for code, script in SCRIPTS.items():
        if len(script.findall(text)) > 0.3 * letters:
            return code
    return next((code for code in languages if code not in SCRIPTS), "en")


# --- from a source to raw rows --------------------------------------------------------------------


def records(source: str | Path) -> Iterator[tuple[str, str, dict | LeftOut]]:
    """The rows of a source as they stand there: `(name, where, row)`, where `name` is short for the
    file or data set and `where` is such as `line 7`.

    A row that cannot be read is a LeftOut in its place.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        yield from _folder(path)
    elif path.exists():
        yield from _file(path)
    elif HUB_ID.fullmatch(str(source)) and not _kind(path):
        yield from _hub(str(source))
    else:
        raise CourseError(
            f"{utils.short(path)} does not exist: give a file, a folder, or owner/name of a data "
            "set of the Hugging Face hub."
        )


def _kind(path: Path) -> str:
    """The suffix that says how to read a file, without `.gz`; "" if it is none of `SUFFIXES`."""
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    return suffix if suffix in SUFFIXES else ""


def _folder(path: Path) -> Iterator[tuple[str, str, dict | LeftOut]]:
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        yield from _saved(path)
        return
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and _kind(file)]
    if not files:
        raise CourseError(f"{utils.short(path)} has no file that ends in {', '.join(SUFFIXES)}.")
    for file in files:
        yield from _file(file)


def _file(path: Path) -> Iterator[tuple[str, str, dict | LeftOut]]:
    kind = _kind(path)
    name = path.name.split(".")[0]
    if not kind:
        raise CourseError(
            f"{utils.short(path)} is none of {', '.join(SUFFIXES)} (or one of them with .gz): save "
            "it as one of these; from a spreadsheet, as 'CSV UTF-8'."
        )
    if kind == ".parquet":
        for number, record in enumerate(_parquet(path), 1):
            yield name, f"row {number}", record
        return
    try:
        with open(path, "rb") as raw:
            packed = gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw
            file = io.TextIOWrapper(packed, encoding="utf-8-sig", newline="")
            rows = _json(file) if "json" in kind else _csv(file, kind)
            with utils.progress(path.stat().st_size >> 20, f"{path.name}, MB") as bar:
                for number, row in rows:
                    yield name, f"line {number}", row
                    bar.update((raw.tell() >> 20) - bar.n)
    except UnicodeDecodeError:
        raise CourseError(
            f"{utils.short(path)} is not UTF-8 (Korean Excel writes CP949): save it as 'CSV "
            "UTF-8', or make a copy with `iconv -f cp949 -t utf-8`."
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CourseError(
            f"{utils.short(path)} is cut off or no gzip file ({error}): copy it again."
        ) from None
    except csv.Error as error:
        raise CourseError(
            f"{utils.short(path)} cannot be read as a table ({error}): save it again as 'CSV "
            "UTF-8', or as JSON Lines."
        ) from None
    except OSError as error:
        raise CourseError(f"{utils.short(path)} cannot be read ({error.strerror}).") from None


def _csv(file: io.TextIOBase, kind: str) -> Iterator[tuple[int, dict | LeftOut]]:
    """Rows of a table whose first line names the columns; quoted cells may hold line ends."""
    csv.field_size_limit(LONGEST)
    header = file.readline()
    marks = ("\t",) if kind == ".tsv" else (",", ";", "\t")
    mark = max(marks, key=header.count)  # a spreadsheet in Europe writes semicolons
    names = next(csv.reader([header], delimiter=mark), [])
    table = csv.DictReader(file, fieldnames=names, delimiter=mark)
    for row in table:
        if None in row:
            yield table.line_num + 1, LeftOut("more cells than the first line has names")
        else:
            yield table.line_num + 1, row


def _json(file: io.TextIOBase) -> Iterator[tuple[int, dict | LeftOut]]:
    """Rows of JSON Lines, of an array, or of the one array in an object, told by the beginning."""
    start = file.read(CHUNK).lstrip()
    file.seek(0)
    if start.startswith("["):
        yield from _array(file)
        return
    first, _, rest = start.partition("\n")
    one_line = len(start) < CHUNK and not rest.strip()
    if one_line or not isinstance(_object(first), dict):  # then an object over several lines?
        value = _object(file.read(LONGEST))
        if isinstance(value, dict):
            yield from enumerate(_only_list(value) or [value], 1)
            return
        file.seek(0)
    lines = iter(lambda: file.readline(LONGEST), "")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, _object(line)


def _object(text: str) -> dict | LeftOut:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return LeftOut("not valid JSON")
    return value if isinstance(value, dict) else LeftOut("not an object in braces")


def _only_list(value: dict) -> list | None:
    """The rows in an object that is not a row itself: its only list of objects."""
    if any(name in value for name in (*CONVERSATION, *ASKED, *ANSWERED)):
        return None
    lists = [item for item in value.values() if item and _is_list_of_turns(item)]
    return lists[0] if len(lists) == 1 else None


def _array(file: io.TextIOBase) -> Iterator[tuple[int, dict | LeftOut]]:
    """The rows of a JSON array, one at a time, so that memory does not grow with the array."""
    decoder = json.JSONDecoder()
    between = re.compile(r"[\s,]*")
    text = file.read(CHUNK)
    place, line = text.index("[") + 1, 1
    while True:
        found = between.match(text, place)
        after = found.end() if found else place
        line += text.count("\n", place, after)
        if text.startswith("]", after):
            return
        try:
            value, place = decoder.raw_decode(text, after)
        except (ValueError, RecursionError):
            more = file.read(max(CHUNK, len(text)))  # doubling, so that a long row is not slow
            if not more or len(text) > LONGEST:
                yield line, LeftOut("not valid JSON from here on")
                return
            text, place = text[after:] + more, 0
            continue
        yield line, value if isinstance(value, dict) else LeftOut("not an object in braces")
        line += text.count("\n", after, place)


# --- what `datasets` reads ------------------------------------------------------------------------


def _parquet(path: Path) -> Iterator[dict]:
    """The rows of a Parquet file, batch by batch."""
    import datasets
    import pyarrow

    try:
        yield from datasets.load_dataset(
            "parquet", data_files=str(path), split="train", streaming=True
        )
    except (pyarrow.ArrowException, datasets.exceptions.DatasetGenerationError) as error:
        raise CourseError(
            f"{utils.short(path)} is no Parquet file or a damaged one "
            f"({str(error).splitlines()[0][:100]}): make it again."
        ) from None


def _saved(path: Path) -> Iterator[tuple[str, str, dict]]:
    """The rows of a folder that `save_to_disk` wrote; of several parts the one called train."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise CourseError(f"{utils.short(path)} is not a whole data set ({error}).") from None
    rows = _part(saved, str(path)) if isinstance(saved, dict) else saved
    for number, row in enumerate(rows, 1):
        yield path.name, f"row {number}", row


def _hub(source: str) -> Iterator[tuple[str, str, dict]]:
    """The rows of a data set of the hub, which `datasets` downloads once and keeps in its cache.

    Code that comes with a data set is never run (`datasets` 4 and later cannot).
    """
    import datasets

    name, _, configuration = source.partition(":")
    try:
        loaded = datasets.load_dataset(
            name, configuration or None, token=utils.secret("HF_TOKEN") or None
        )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise CourseError(_why_not_loaded(source, error)) from None
    for number, row in enumerate(_part(loaded, source), 1):
        yield name.split("/")[-1], f"row {number}", row


def _why_not_loaded(source: str, error: Exception) -> str:
    """One sentence for what `datasets` and the hub say in many."""
    import datasets
    from huggingface_hub import errors

    text = str(error)
    if "gated" in text.lower():
        return f"{source} is gated: accept its terms on its page and set HF_TOKEN."
    # Where the hub answers with an error of its own `datasets` only looks into its cache
    silent = isinstance(error, ConnectionError | errors.HfHubHTTPError)
    if silent or "LocalEntryNotFoundError" in text:
        return (
            f"{source} is no file here, and the hub cannot be reached for a data set of that name: "
            "check the network (and that HF_HUB_OFFLINE is not set), or give a file."
        )
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return (
            f"{source} is no data set of the hub, nor a file here: check the name (a private one "
            "needs HF_TOKEN too)."
        )
    if "Config name is missing" in text:
        choices = text.rpartition("configs: ")[2].splitlines()[0][:200]
        return f"{source} has several configurations: write {source}:NAME, one of {choices}."
    return f"The data set {source} cannot be read ({' '.join(text.split())[:200]})."


def _part(parts: dict, source: str):
    """The part called train, or the only one there is."""
    if "train" in parts:
        return parts["train"]
    if len(parts) == 1:
        return next(iter(parts.values()))
    raise CourseError(
        f"{source} has no part called train, but {', '.join(parts)}: save the one that you want "
        "as a file and give that."
    )


# --- the command line -----------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m preprocessing.rows FILE`: what would be taken for what, before anything is run."""
    parser = argparse.ArgumentParser(prog="python -m preprocessing.rows")
    parser.add_argument("source", help="a file, a folder or owner/name of the hub")
    parser.add_argument("--prompts", action="store_true", help="read evaluation prompts")
    chosen = parser.parse_args(arguments)
    found = prompts(chosen.source) if chosen.prompts else read(chosen.source)
    print(json.dumps(found[0], ensure_ascii=False, indent=1))


if __name__ == "__main__":
    utils.run_command(main)
