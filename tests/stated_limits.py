"""Limits that a request states and a script can count, in English and in Korean.

What it knows: sentences, words, characters, lines and items ("in two sentences", "at most 40
words", "세 가지", "40자 이내"). What it does not: limits on a part of an answer that only a reader
finds, code, and time ("thirty seconds"). It would rather overlook a limit than see one where a
request only talks about its material ("combine these three sentences").
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

ENGLISH = {
    "a single": 1,
    "single": 1,
    "one": 1,
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "half a dozen": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "twelve": 12,
    "fifteen": 15,
    "twenty": 20,
    "twenty-five": 25,
    "thirty": 30,
    "forty": 40,
    "fifty": 50,
    "sixty": 60,
}
KOREAN = {
    "한": 1,
    "두": 2,
    "세": 3,
    "네": 4,
    "다섯": 5,
    "여섯": 6,
    "일곱": 7,
    "여덟": 8,
    "아홉": 9,
    "열": 10,
    "열두": 12,
    "열다섯": 15,
    "스무": 20,
    "서른": 30,
    "마흔": 40,
    "쉰": 50,
}


def _any(numbers: dict[str, int]) -> str:
    """A pattern for a figure or one of the number words, the longest first."""
    return r"(?:\d+|" + "|".join(sorted(numbers, key=len, reverse=True)) + ")"


# n is the number, or the range from n to m ("한두" is one or two). `after` looks on without taking,
# so that a limit in the next words is found too.
EN = rf"\b(?P<n>{_any(ENGLISH)})(?: ?(?:or|to|-|–) ?(?P<m>{_any(ENGLISH)}))?"
KO = rf"(?<![가-힣\d,.])(?P<n>{_any(KOREAN)})(?:[~-](?P<m>\d+)|(?P<both>두))?"
EN_AFTER = r"(?=(?P<after>[^.?!]{0,25}))"
KO_AFTER = r"(?=(?P<after>[^.?!]{0,12}))"

# What a request for a number of items calls them
ITEMS = (
    "bullet points|points|things|tips|ideas|names|ways|questions|activities|titles|gifts|presents|"
    "habits|plants|topics|jobs|steps|uses|purposes|rules|prompts|snacks|versions|openings|exhibits|"
    "facts|hobbies|reasons|benefits|risks|games|mottos|slogans|starters|discoveries|tasks|measures|"
    "foods|examples|methods|mistakes|themes|arguments|objections|reminders"
)
BOUND = (
    r"(?P<before>at most|no more than|max\.?|fewer than|under|less than|up to|about|around|roughly|"
    r"of|in|with|at least)"
)
# What follows a Korean unit where it limits the answer, and not where it counts the material
KO_SENTENCES = (
    r"(?=[.,]|$|으로|로|만|이상| ?(?:이내|이하|안|쯤|정도|이면|적|써)|짜리 (?!회의)| 덧붙)"
)
KO_WORD = r"(?=(?:로|로만|면)(?: (?:답|말|대답|판정|적|써|줄|돼)|[.]?$))"
KO_LINES = r"(?=[.]|$|로|짜리| 시|만 적| 메모|을 넘| 정도| 부탁)"
KO_ITEMS = r"(?=[만를을로는은와,.!?]|$|이면|면| (?!중|가운데|에서|맛|행동))"
PATTERNS = {
    "sentences": [
        rf"{EN}[ -](?:[\w-]+,? ){{0,2}}?sentences?\b{EN_AFTER}",
        rf"{KO} ?문장{KO_SENTENCES}{KO_AFTER}",
    ],
    "words": [
        rf"{BOUND} {EN} words?\b{EN_AFTER}",
        rf"\b(?P<n>\d+)(?:-|–| to | and )(?P<m>\d+) words\b{EN_AFTER}",
        rf"{EN} words?(?P<after> (?:or fewer|or less|or so|at most|each))",
        rf"{EN} words?(?=, please|[.;]?$| only|\.){EN_AFTER}",
        rf"{KO} ?(?:어절|단어)(?= ?(?:이내|이하|안|쯤|정도|내외)){KO_AFTER}",
        rf"{KO} ?단어{KO_WORD}{KO_AFTER}",
        rf"(?P<n>단어 하나)(?P<m>)(?=로만? (?:답|말|적)){KO_AFTER}",
    ],
    "characters": [
        rf"{BOUND} {EN} characters{EN_AFTER}",
        rf"{KO} ?(?:글자|자)(?= ?(?:이내|이하|안팎|안쪽|안으로|내외)){KO_AFTER}",
    ],
    "lines": [
        rf"{EN}[ -](?:(?!per )[\w-]+ )?lines?\b{EN_AFTER}",
        rf"{KO} ?(?:줄|행|마디){KO_LINES}{KO_AFTER}",
    ],
    "items": [
        rf"{EN} (?:[\w'-]+,? ){{0,4}}?(?:{ITEMS})\b{EN_AFTER}",
        rf"{KO} ?(?:가지|개|군데|단계){KO_ITEMS}{KO_AFTER}",
    ],
}

# Words before a number that make it a description of the material, or of one line of several
GIVEN = re.compile(
    r"(?:\b(?:these|those|the|both|my|which|following|\d+|"
    + "|".join(word for word, number in ENGLISH.items() if number > 1)
    + r")|'s|(?<![가-힣])(?:다음|아래|위|이|그|후기|끊어진|상위|집)|별|당|줄, [가-힣]+) $",
    re.IGNORECASE,
)
# A limit on a part of the answer that only a reader can find
PART = re.compile(
    r"\bbetween \S+ and \||\| ?(?:more\b|below|above|at the end|더)|"
    r"(?:끝에|마지막에|마지막으로|아래에|위에|부분마다|항목마다|하루에)[^.?!]*\||"
    r"도 \||(?:뜻|이유|설명)[을를은는] \| ?(?:이내|이하)"
)
FOR_EACH_LINE = re.compile(r" ?(?:per|apiece|a|for each|each (?:side|person))\b| ?(?:씩|에 하나)")
# How a number bounds: "|" stands for the number and its unit
MOST = re.compile(
    r"(?:at most|no more than|max\.?|up to) \||"
    r"\| ?(?:or fewer|or less|at most|이내|이하|안에서|안으로|안쪽|을 넘기지)",
    re.IGNORECASE,
)
LESS = re.compile(r"(?:fewer than|under|less than) \|", re.IGNORECASE)
LEAST = re.compile(r"at least \||\| ?(?:or more|이상)", re.IGNORECASE)
ABOUT = re.compile(r"(?:about|around|roughly) \||\| ?(?:or so|안팎|쯤|정도|내외)", re.IGNORECASE)
# A reason, a meaning and the like follow an answer that the limit does not count
EXTRA = re.compile(
    r"\b(?:and|with) [^.?!]*(?:reason|why|meaning|sense|explain|say)[^.?!]*\||"
    r"\b(?:then|add)\b[^.?!]*\||\| of reason|\bwith \| why|\|, then|\|[^.?!]{0,9}덧붙|"
    r"(?:(?:고르|나누|판단하|가르|쓰|정하|답하)고|후|뒤),? [^.?!]{0,10}"
    r"(?:이유|까닭|근거)[^.?!]{0,14}\||"
    r"(?:이유|까닭|근거)도 \|"
)
REASON_TOO = re.compile(r"이유|까닭|근거|reason|explain|why")


@dataclass(frozen=True)
class Limit:
    """From `low` to `high` of a `unit`.

    `each`: every line keeps it. `extra`: an answer stands before what is counted. `spaces`: they
    count as characters.
    """

    unit: str
    low: int
    high: int
    each: bool = False
    extra: bool = False
    spaces: bool = True


def stated(request: str) -> set[Limit]:
    """The limits that a request states."""
    limits = set()
    for unit, patterns in PATTERNS.items():
        for pattern in patterns:
            for match in re.finditer(pattern, request, re.IGNORECASE):
                if limit := _limit(unit, match):
                    limits.add(limit)
    return limits


def _limit(unit: str, match: re.Match) -> Limit | None:
    """The limit of one match; None where the number says something else."""
    found = match.groupdict()
    request, after = match.string, found["after"] or ""
    before = request[: match.start("n")]
    near = f"{before[-60:]}|{after}"
    if GIVEN.search(before) and not found.get("before"):
        return None
    if PART.search(near) or FOR_EACH_LINE.match(after) or re.search(r"\bper $", before):
        return None
    low, high = _range(found)
    if (
        unit == "words"
        and high == 1
        and (found["n"] == "a single" or REASON_TOO.search(request, match.end("n")))
    ):
        return None  # "without changing a single word"; one word, and then the reason for it
    if MOST.search(near):
        low = 0
    elif LESS.search(near):
        low, high = 0, high - 1
    elif LEAST.search(near):
        high = 10**6
    elif ABOUT.search(near):
        slack = 1 if high < 10 else math.ceil(high * 0.15)
        low, high = low - slack, high + slack
    each = re.search(
        r"(?i)\beach\b.{0,20}$|\bfor (?:each|every)\b|각각? $|각 줄은[^.?!]*$", before
    ) or re.match(" each", after)
    extra = EXTRA.search(near)
    spaces = not re.search("띄어쓰기[를는] (?:빼|세지)", request)
    return Limit(unit, low, high, bool(each), bool(extra), spaces)


def _range(found: dict[str, str | None]) -> tuple[int, int]:
    if found["n"] == "단어 하나":
        return 1, 1
    low = _number(found["n"])
    if found.get("m"):
        return low, _number(found["m"])
    return low, low + 1 if found.get("both") else low


def _number(text: str | None) -> int:
    assert text is not None  # the pattern has found it
    return int(text) if text.isdigit() else (ENGLISH | KOREAN)[text.lower()]


# --- counting ------------------------------------------------------------------------------------

LIST = re.compile(r"^\s*(?:[-*•]|\d+[.)]) +")
LABEL = re.compile(r"^(?:\S+ ){0,2}\S+[:.] ")
ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|no|vs|e\.g|i\.e|a\.m|p\.m)\.", re.IGNORECASE)
# A final mark with its closing quotes, unless a small letter follows ('"Hi!" she said') or what
# reports a quotation in Korean
END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s+(?![a-z])(?!하고 |하며 |하는 |라고 |라며 )|$)")


def broken(limit: Limit, answer: str) -> str | None:
    """What is wrong with an answer under a limit, or None."""
    parts = [answer]
    if limit.each:
        parts = [LIST.sub("", line) for line in prose(answer)]
    high = limit.high
    if limit.extra and limit.unit in ("sentences", "lines"):
        high += 1
    for part in parts:
        number = count(limit, part)
        if number is not None and not limit.low <= number <= high:
            return f"{number} {limit.unit}, not {limit.low} to {high}"
    return None


def count(limit: Limit, text: str) -> int | None:
    """How many of the limit's units a text has; None where only a reader can tell."""
    if limit.unit == "sentences":
        return sentences(text)
    if limit.unit == "words":
        return words(LABEL.sub("", text) if limit.extra else text)
    if limit.unit == "characters":
        return len(text) if limit.spaces else sum(character.isalnum() for character in text)
    if limit.unit == "lines":
        return len(prose(text))
    return items(text)


def sentences(text: str) -> int:
    """Sentences by their final marks.

    A line without one (a greeting, a signature) counts only where no line has one.
    """
    lines, ended = prose(text), 0
    for line in lines:
        line = ABBREVIATION.sub(lambda found: found[0].replace(".", ""), LIST.sub("", line))
        ended += len(END.findall(line))
    return ended or len(lines)


def words(text: str) -> int:
    """What stands between spaces and holds a letter or a figure (in Korean: 어절)."""
    return sum(bool(re.search(r"\w", word)) for word in " ".join(prose(text)).split())


def items(text: str) -> int | None:
    """Entries of a list or parts between commas; None for prose, where only a reader can count."""
    lines = prose(text)
    listed = sum(bool(LIST.match(line)) for line in lines)
    if listed:
        return listed
    if len(lines) == 1 and "," in text and not END.search(text):
        return len(re.split("[,;] ", text))
    return None


def prose(text: str) -> list[str]:
    """The lines of a text, without code blocks and empty lines."""
    return [
        line
        for line in re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines()
        if line.strip()
    ]
