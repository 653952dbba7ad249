"""Facts for the teacher from a web search: an optional step before tasks are asked for, through
Naver's search API.

What it does: search encyclopedia, Q&A and web pages, keep the few results that fit the topic, and
write them into a block for the teacher's prompt, with their URLs for provenance. What it does not
do: open the pages (a passage is the snippet that the search shows, a few sentences), or check that
they are true. Importing it needs neither requests nor an embedding model.

Naver serves the same search in two places, each with keys of its own; the keys that are set decide
which one is asked. Both allow 25,000 calls a day, and each source of a search is one call. Sources:
api.ncloud-docs.com/docs/naver-api-hub-overview (new keys),
developers.naver.com/docs/serviceapi/search (keys from before 2026-08, served until 2027-06:
developers.naver.com/notice/article/32530).
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from typing import NamedTuple

import prompts
import similarity
import utils
from utils import CourseError

# Encyclopedia, Q&A, web pages, blogs, news, forum posts
SOURCES = ("encyc", "kin", "webkr", "blog", "news", "cafearticle")


@dataclass(frozen=True)
class Passage:
    """One search result as plain text. Third-party material: keep its URL with it, and do not take
    it for true."""

    title: str
    text: str
    url: str
    source: str  # one of SOURCES
    date: str | None = None  # YYYY-MM-DD; only blogs and news have one


class Service(NamedTuple):
    """One of the two places, and which secret goes into which header."""

    name: str
    host: str
    path: str
    keys: dict[str, str]


HUB = Service(
    "NAVER API HUB",
    "https://naverapihub.apigw.ntruss.com",
    "/search/v1/{}",
    {"NCP_APIGW_API_KEY_ID": "X-NCP-APIGW-API-KEY-ID", "NCP_APIGW_API_KEY": "X-NCP-APIGW-API-KEY"},
)
DEVELOPERS = Service(
    "Naver's Developers Center",
    "https://openapi.naver.com",
    "/v1/search/{}.json",
    {"NAVER_CLIENT_ID": "X-Naver-Client-Id", "NAVER_CLIENT_SECRET": "X-Naver-Client-Secret"},
)


class Passing(CourseError):
    """A failure that may pass, so that asking again is worth it."""


# --- searching ------------------------------------------------------------------------------------


def search(
    query: str,
    sources: tuple[str, ...] = ("encyc", "kin", "webkr"),
    count: int = 10,
    start: int = 1,
    timeout: float = 10.0,
    attempts: int = 4,
) -> list[Passage]:
    """The most relevant passages of each source, in the order of `sources`, each page once; [] if
    nothing is found.

    Args:
        query: a few words in any language; Korean finds most.
        sources: some of `SOURCES`, one call each.
        count: passages asked of each source, 1 to 100.
        start: position of the first one, 1 to 1000, to page on.
        timeout: seconds to wait for the connection, and for each part of the answer.
        attempts: tries per source for what may pass (too many calls a second, 5xx, lost
            connections).

    The environment variable NAVER_BASE_URL replaces the host, for a proxy or a test.

    Raises:
        CourseError: no keys or wrong ones, the search API not switched on for them, their quota
            used up, a malformed answer. It contains no key, and nothing of what the server wrote
            but its error code.
    """
    import requests
    import tenacity

    if not query.strip():
        raise CourseError("The search query is empty: give a topic to search for.")
    if unknown := [source for source in sources if source not in SOURCES]:
        raise CourseError(
            f"The search source {unknown[0]!r} is unknown; choose among {', '.join(SOURCES)}."
        )
    if not (1 <= count <= 100 and 1 <= start <= 1000):
        raise CourseError(
            f"Naver gives 1 to 100 results from position 1 to 1000, not {count} from {start}: "
            "change count or start."
        )
    service, headers = _service()
    # No `sort`: by relevance, which is all that encyc and webkr know
    params = {"query": query, "display": count, "start": start}
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Passing),
        stop=tenacity.stop_after_attempt(attempts),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=10),
        reraise=True,
    )
    pages: dict[str, Passage] = {}
    with requests.Session() as session:
        session.headers.update(headers)
        for source in sources:
            for item in retrying(_items, session, service, source, params, timeout):
                # "http" or "https", with or without an anchor: the same page
                if passage := _passage(item, source):
                    pages.setdefault(re.sub(r"^https?://|/?(#.*)?$", "", passage.url), passage)
    return list(pages.values())


def _service() -> tuple[Service, dict[str, str]]:
    """The service whose keys are set, the hub first, and the headers that carry them."""
    for service in (HUB, DEVELOPERS):
        keys = {name: utils.secret(name) for name in service.keys}
        if not any(keys.values()):
            continue
        headers: dict[str, str] = {}
        for name, key in keys.items():
            if not key:
                raise CourseError(
                    f"{service.name} takes two keys, and {name} is not set: set both "
                    f"{' and '.join(keys)}."
                )
            headers[service.keys[name]] = key
        return service, headers
    raise CourseError(
        f"Searching Naver needs keys: set {' and '.join(HUB.keys)} (from NAVER API HUB in the "
        f"console of ncloud.com), or {' and '.join(DEVELOPERS.keys)} (older keys from "
        "developers.naver.com), in the environment, in Colab's key panel or in .env."
    )


def _items(session, service: Service, source: str, params: dict, timeout: float) -> list[dict]:
    """The raw results of one call. Raises Passing, or CourseError for what no retry mends."""
    import requests

    url = (os.environ.get("NAVER_BASE_URL") or service.host).rstrip("/") + service.path.format(
        source
    )
    try:
        # No redirects: requests would take the key headers along to another host
        response = session.get(url, params=params, timeout=timeout, allow_redirects=False)
    except (
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
    ) as error:
        raise Passing(
            f"{service.name} cannot be reached ({type(error).__name__}): check the network, or "
            "try again later."
        ) from None
    except requests.RequestException as error:
        raise CourseError(
            f"{service.name} cannot be asked ({type(error).__name__}): check NAVER_BASE_URL."
        ) from None
    try:
        body = response.json()
    except ValueError:
        body = None
    body = body if isinstance(body, dict) else {}
    if response.status_code != 200:
        raise _failure(service, source, response.status_code, body)
    items = body.get("items")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise CourseError(
            f"{service.name} sent no list of results for {source!r}: check NAVER_BASE_URL, or "
            "whether a proxy answered."
        )
    return items


def _failure(service: Service, source: str, status: int, body: dict) -> CourseError:
    """The sentence for an answer other than 200. The hub wraps its errors once more, and numbers
    them differently."""
    error = body["error"] if isinstance(body.get("error"), dict) else body
    code, message = str(error.get("errorCode", ""))[:4], str(error.get("errorMessage", ""))
    where = f"{service.name} ({status}, error {code})" if code else f"{service.name} ({status})"
    if status == 403 or code == "210" or message.startswith("Scope"):
        return CourseError(
            f"{where} does not let these keys search: switch the search API on for their "
            "application."
        )
    if status == 401:
        other = DEVELOPERS if service is HUB else HUB
        hint = f"keys of {other.name} go into {' and '.join(other.keys)}"
        return CourseError(f"{where} rejects {' and '.join(service.keys)}: check them; {hint}.")
    if status == 429 and code in ("010", "400"):  # the quota; 012, 410 and 420 are the rate
        return CourseError(
            f"{where} says that the quota of these keys is used up: go on tomorrow, or search less."
        )
    if status == 429:
        return Passing(f"{where} was asked too often: wait a minute, then run again.")
    if status >= 500:
        return Passing(f"{where} has trouble of its own: try again later.")
    return CourseError(
        f"{where} does not accept the request for {source!r}: change the query, or check "
        "NAVER_BASE_URL."
    )


# --- cleaning -------------------------------------------------------------------------------------


def _passage(item: dict, source: str) -> Passage | None:
    """A raw result as a Passage; None if it has no text or no web address."""
    # News: the publisher's page before Naver's copy
    url = str(item.get("originallink") or item.get("link") or "").strip()
    title, text = (plain(str(item.get(name) or "")) for name in ("title", "description"))
    if not url.startswith(("http://", "https://")) or not (title or text):
        return None
    return Passage(
        title, text, url, source, _date(str(item.get("pubDate") or item.get("postdate") or ""))
    )


class _Text(HTMLParser):
    """Collects what is no tag: a regular expression would take `3 < 5, 7 > 6` for one."""

    def reset(self) -> None:
        super().reset()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def plain(markup: str) -> str:
    """Text without tags, entities decoded, in NFC, on one line, without characters that nobody
    sees.

    Tags vanish without a space, because Naver marks the query inside words: `<b>주식</b>을` is
    주식을.
    """
    parser = _Text(convert_charrefs=True)
    parser.feed(markup)
    parser.close()
    text = unicodedata.normalize("NFC", "".join(parser.parts))
    unseen = {"Cf": "", "Cc": " "}
    shown = "".join(unseen.get(unicodedata.category(letter), letter) for letter in text)
    return " ".join(shown.split())


def _date(text: str) -> str | None:
    """`20161208` (blogs) or `Mon, 26 Sep 2016 07:50:00 +0900` (news) as YYYY-MM-DD, else None."""
    try:
        return str(
            date.fromisoformat(text) if text.isdigit() else parsedate_to_datetime(text).date()
        )
    except ValueError:
        return None


# --- choosing and showing -------------------------------------------------------------------------


def rank(
    passages: list[Passage],
    query: str,
    keep: int = 5,
    minimum: float = 0.8,
    duplicate: float = 0.95,
) -> list[tuple[Passage, float]]:
    """The passages closest in meaning to the query, best first, with their cosine; of
    near-identical ones only the best.

    Args:
        keep: at most so many.
        minimum: cosine of E5 embeddings below which a passage is off the topic. Its scale is
            narrow: on 9 hand-written topics, Korean and English, 0.8 kept all 18 passages on the
            topic and let 10% of the others through.
        duplicate: cosine above which two passages say the same: copies with another punctuation
            scored 0.985 or more, different passages on one topic 0.925 or less.
    """
    if not passages:
        return []
    vectors = similarity.embed(
        [query] + [f"{passage.title}\n{passage.text}" for passage in passages]
    )
    scores = vectors[1:] @ vectors[0]
    order = [i for i in (-scores).argsort(kind="stable") if scores[i] >= minimum]
    kept = similarity.embedding_duplicates(vectors[1:][order], duplicate).kept
    return [(passages[order[i]], float(scores[order[i]])) for i in kept[:keep]]


def find(query: str) -> list[Passage]:
    """Search and keep what fits best: the passages for a teacher (`prompt_block`) and for
    provenance."""
    return [passage for passage, _ in rank(search(query), query)]


def prompt_block(passages: list[Passage], language: str, limit: int = 300) -> str:
    """The passages as a numbered block to append to the teacher's finished prompt (it may hold
    braces); "" if there are none.

    Each passage is one line of at most `limit` characters after its number, so that no text in it
    can pass for the end of the block. The block says that it is material and no instruction; that
    lowers the risk of a prompt injection and does not remove it, so the rows still go through every
    filter.
    """
    if not passages:
        return ""
    lines = [
        " ".join(f"{passage.title}: {passage.text}".split()).strip(": ") for passage in passages
    ]
    lines = [line if len(line) <= limit else line[: limit - 1].rstrip() + "…" for line in lines]
    return prompts.LANGUAGES[language].grounding.format(
        passages="\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))
    )


def provenance(passages: Sequence[Passage]) -> list[str]:
    """The URLs to keep with each row that was asked for with these passages."""
    return [passage.url for passage in passages]
