"""A blind vote by the learner: which answer is better, and does the judge agree?

    python -m evaluation.vote --run default             a page on this machine: pairs without names,
                                                        in shuffled order and on shuffled sides
    python -m evaluation.vote --run default --result    print the agreement so far, without a page

What it does: show pairs, write every vote to `runs/<name>/votes.jsonl` at once (stop whenever you
like, the same command goes on), and report the learner-judge agreement as LLM-as-a-judge (arXiv
2306.05685, section 4.2) does. What it does not do: judge, or send anything anywhere: the page needs
no script, listens on 127.0.0.1 only, and asks for nothing but itself.
"""

from __future__ import annotations

import argparse
import random
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs

import pages
import prompts
import settings
import utils
from evaluation import stats
from evaluation.outcomes import Outcome
from evaluation.stats import Agreement
from llm.journal import Journal
from utils import CourseError

TIE = "tie"
# A failed verdict is no vote
JUDGED = {Outcome.WIN: "tuned", Outcome.LOSS: "base", Outcome.TIE: TIE, Outcome.INCONSISTENT: TIE}


# --- the pairs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Two answers without names. Which of them is whose is known here and never sent to the
    page."""

    id: str
    language: str
    prompt: str
    first: str
    second: str
    first_is: str  # "base" or "tuned"
    key: str  # changes with the answers, so that a vote on other answers does not count


def pairs(folder: Path, seed: int = 0) -> list[Pair]:
    """The pairs of a run in shuffled order, each with its sides thrown by a coin that depends on
    `seed` and its id only."""
    records = utils.read_jsonl(folder / "answers.jsonl", ("id", "prompt", "base", "tuned"))
    made = []
    for record in sorted(
        records, key=lambda record: random.Random(f"order {seed} {record['id']}").random()
    ):
        texts = {name: _texts(record[name]) for name in ("base", "tuned")}
        names = ["base", "tuned"]
        if random.Random(f"side {seed} {record['id']}").random() >= 0.5:
            names.reverse()
        language = record.get("language") or prompts.nearest(record["prompt"])
        label = prompts.LANGUAGES[prompts.around(language)].page
        later = f"\n\n--- {label['follow_up_answer']} ---\n\n"
        first, second = (later.join(texts[name]) for name in names)
        turns = [record, *record.get("follow_ups", ())]
        prompt = f"\n\n--- {label['follow_up']} ---\n\n".join(turn["prompt"] for turn in turns)
        if record.get("system"):
            prompt = f"--- {label['system']} ---\n\n{record['system']}\n\n---\n\n{prompt}"
        made.append(
            Pair(
                record["id"],
                language,
                prompt,
                first,
                second,
                names[0],
                utils.fingerprint(record["prompt"], texts),
            )
        )
    return made


def _texts(answer) -> list[str]:
    """The texts of a stored answer, one a turn: it is a text, an object with a `text`, or a list of
    those."""
    if isinstance(answer, list):
        return [text for turn in answer for text in _texts(turn)]
    return [answer if isinstance(answer, str) else answer["text"]]


class Ballot:
    """Pairs and the votes on them, kept in an append-only file.

    Where a pair was voted on twice (two windows), the first vote counts.
    """

    def __init__(self, pairs: Sequence[Pair], path: Path) -> None:
        self.pairs = list(pairs)
        self.journal = Journal(path, ("key", "id", "vote", "position"))

    @property
    def votes(self) -> dict[str, dict]:
        """The vote on each pair that has one, by id: `vote` ("base", "tuned", "tie") and `position`
        ("first", "second", "tie")."""
        return {
            pair.id: self.journal.entries[pair.key]
            for pair in self.pairs
            if pair.key in self.journal.entries
        }

    def next(self) -> Pair | None:
        """The first pair without a vote, None when there is none left."""
        return next((pair for pair in self.pairs if pair.key not in self.journal.entries), None)

    def vote(self, key: str, position: str) -> None:
        """Write one vote; `position` is "first", "second" or "tie". A second vote on the same pair
        is left out, and so is what is no vote on one of these pairs."""
        pair = next((pair for pair in self.pairs if pair.key == key), None)
        known = position in ("first", "second", TIE)
        if pair and known and key not in self.journal.entries:
            other = "tuned" if pair.first_is == "base" else "base"
            voted = {"first": pair.first_is, "second": other, TIE: TIE}[position]
            self.journal.write(
                {
                    "key": key,
                    "id": pair.id,
                    "vote": voted,
                    "position": position,
                    "time": time.time(),
                }
            )


# --- agreement ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """Agreement of a learner with a judge, in the two setups of the paper."""

    # all votes; a tie and an inconsistent verdict are both a tie; a coin with three sides agrees
    # in 33 %
    s1: Agreement | None
    s2: Agreement | None  # only where neither calls a tie; a coin agrees in 50 %
    judge: str
    failed: int  # votes on prompts without a readable verdict: in neither setup
    unjudged: int  # votes on prompts that the judge was not asked about
    first: int  # votes for the answer on the left ...
    second: int  # ... and on the right

    def __str__(self) -> str:
        chosen = f"{self.first} votes for the first answer shown, {self.second} for the second"
        tested = stats.p_value(stats.binomial_test(self.first, self.second))
        lines = [
            f"You and the judge {self.judge}:",
            f"S1, all votes, inconsistent verdicts are ties: {_agreed(self.s1, '33 %')}",
            f"S2, only where neither called a tie: {_agreed(self.s2, '50 %')}",
            f"Your own position bias: {chosen}, exact binomial test {tested}.",
        ]
        if self.failed:
            lines.append(
                f"Left out: {self.failed} of your votes, on prompts that have no readable verdict."
            )
        if self.unjudged:
            lines.append(
                f"Left out: {self.unjudged} of your votes, on prompts that were not judged."
            )
        return "\n".join(map(utils.translated, lines))


def agreement(votes: dict[str, dict], verdicts: Sequence[dict]) -> Result:
    """How often learner and judge prefer the same answer.

    Args:
        votes: as `Ballot.votes`.
        verdicts: as `Judge.compare` returns them.

    Source: arXiv 2306.05685, section 4.2, which gives the shares; intervals (Wilson) and Cohen's
    kappa (bootstrap) are added here.
    """
    outcomes = {verdict["id"]: Outcome(verdict["outcome"]) for verdict in verdicts}
    known = [name for name in votes if name in outcomes]
    both = [
        (votes[name]["vote"], JUDGED[outcomes[name]]) for name in known if outcomes[name] in JUDGED
    ]
    decided = [pair for pair in both if TIE not in pair]
    return Result(
        s1=_agreement(both),
        s2=_agreement(decided),
        judge=next(
            (verdict["judge"] for verdict in verdicts if "judge" in verdict), "without a name"
        ),
        failed=len(known) - len(both),
        unjudged=len(votes) - len(known),
        first=sum(vote["position"] == "first" for vote in votes.values()),
        second=sum(vote["position"] == "second" for vote in votes.values()),
    )


def _agreement(both: list[tuple[str, str]]) -> Agreement | None:
    return stats.agreement(*zip(*both, strict=True)) if both else None


def _agreed(found: Agreement | None, chance: str) -> str:
    if found is None:
        return "no votes."
    kappa = f", kappa {found.kappa_text}" if found.kappa else ""
    return f"{found.accuracy.short} of {found.n} votes agree (chance {chance}){kappa}."


def result(ballot: Ballot, folder: Path) -> str:
    """The agreement in sentences. Raises CourseError where nothing was voted or judged."""
    if not ballot.votes:
        raise CourseError(
            "There are no votes on the answers of this run: run `python -m evaluation.vote` and "
            "choose between a few pairs first."
        )
    return str(
        agreement(ballot.votes, utils.read_jsonl(folder / "verdicts.jsonl", ("id", "outcome")))
    )


# --- the page -------------------------------------------------------------------------------------

# The report's style, so that both pages look alike
CSS = (
    pages.CSS
    + """
form { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem;
  margin: 1rem 0; }
"""
)


def page(ballot: Ballot) -> str:
    """The next pair as a page with three buttons; the last page thanks."""
    pair, done, total = ballot.next(), len(ballot.votes), len(ballot.pairs)
    code = prompts.around(pair.language if pair else "en")
    label = prompts.LANGUAGES[code].page
    if pair is None:
        body = f'<p role="status">{label["thanks"].format(all=total)}</p>'
    else:
        # The key comes back with the vote, so that a hasty second click votes on the pair that was
        # seen, and not on the next one
        buttons = "".join(
            f'<button name="position" value="{position}" id="choose-{name}">'
            f"{label[f'choose_{name}']}</button>"
            for position, name in (("first", "1"), (TIE, "tie"), ("second", "2"))
        )
        said = f'dir="auto" lang="{pages.attribute(pair.language)}"'
        body = f"""<p>{label["vote_how"]}</p>
<p role="status" id="status">{label["votes"].format(done=done, all=total)}</p>
<h2>{label["prompt"]}</h2><div class="said" id="prompt" {said}>{pages.shown(pair.prompt)}</div>
<div class="pair">
<section><h2>{label["answer_1"]}</h2>
<div class="said" id="first" {said}>{pages.shown(pair.first)}</div></section>
<section><h2>{label["answer_2"]}</h2>
<div class="said" id="second" {said}>{pages.shown(pair.second)}</div></section>
</div>
<form method="post" action="/vote"><input type="hidden" name="key" value="{pair.key}">
{buttons}</form>
"""
    end = f'<p><a id="end" href="/agreement">{label["agreement"]}</a></p>'
    return _html(code, label["vote"], body + end)


def agreement_page(ballot: Ballot, folder: Path) -> str:
    """How often learner and judge agree so far, or why that cannot be said."""
    try:
        told = result(ballot, folder)
    except CourseError as error:
        told = str(error)
    print(f"\n{told}\n", flush=True)
    label = prompts.LANGUAGES[utils.reader()].page
    said = f'<div class="said" id="result">{pages.shown(told)}</div>'
    return _html(
        utils.reader(), label["agreement"], f'{said}<p><a href="/">{label["back"]}</a></p>'
    )


def _html(code: str, title: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="{code}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{CSS}</style>
</head>
<body><main><h1>{title}</h1>
{body}</main></body>
</html>
"""


def app(ballot: Ballot, folder: Path):
    """The Starlette application. It answers this machine only, by the name that it listens on: a
    page from elsewhere can neither read a pair nor, without its key, vote."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, RedirectResponse
    from starlette.routing import Route

    policy = (
        f"default-src 'none'; style-src '{pages.source_hash(CSS)}'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store"}

    async def show(request):
        return HTMLResponse(page(ballot), headers=headers)

    async def cast(request):
        sent = parse_qs((await request.body()).decode(errors="replace"))
        ballot.vote(sent.get("key", [""])[0], sent.get("position", [""])[0])
        return RedirectResponse("/", status_code=303)

    async def agree(request):
        return HTMLResponse(agreement_page(ballot, folder), headers=headers)

    routes = [
        Route("/", show),
        Route("/vote", cast, methods=["POST"]),
        Route("/agreement", agree),
    ]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1"])
    return Starlette(routes=routes, middleware=[hosts])


def serve(ballot: Ballot, folder: Path, port: int = 0) -> None:
    """Show the page until the command is interrupted. Raises CourseError where the port is taken or
    the packages are missing."""
    utils.require("starlette", "the voting page", "use --result, which needs no page")
    utils.require("uvicorn", "the voting page", "use --result, which needs no page")
    import uvicorn

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()  # before the address is told
        except OSError:
            raise CourseError(f"Port {port} is in use: choose another --port, or none.") from None
        port = listener.getsockname()[1]
        print(
            f"Vote at http://127.0.0.1:{port}/ (this machine only); Ctrl-C ends it, and every vote "
            "is kept.",
            flush=True,
        )
        server = uvicorn.Server(
            uvicorn.Config(app(ballot, folder), log_level="critical", access_log=False)
        )
        server.run(sockets=[listener])


# --- the command ----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    settings.add_run_options(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the order and the sides")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument(
        "--result", action="store_true", help="print the agreement so far, without a page"
    )
    chosen = parser.parse_args(arguments)
    folder = settings.run_folder(chosen.run, chosen.save_to)
    settings.speak_to_reader({})
    utils.print_to_reader()
    ballot = Ballot(pairs(folder, chosen.seed), folder / "votes.jsonl")
    if chosen.result:
        print(result(ballot, folder))
    else:
        serve(ballot, folder, chosen.port)


if __name__ == "__main__":
    utils.run_command(main)
