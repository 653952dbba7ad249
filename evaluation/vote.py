"""A blind vote by the learner: which answer is better, and does the judge agree?

    python -m evaluation.vote --run default opens a page on this machine: pairs without names, in
    shuffled order and on shuffled sides python -m evaluation.vote --run default --result prints the
    agreement so far, without a page

What it does: show pairs, write every vote to `runs/<name>/votes.jsonl` at once (stop whenever you
like, the same command goes on), and report the learner-judge agreement as LLM-as-a-judge (arXiv
2306.05685, section 4.2) does. What it does not do: judge, or send anything
anywhere: the page listens on 127.0.0.1 only, is not shared, and Gradio's telemetry is off.

Gradio is imported only where the page is made. It lives in an environment of its own
(requirements/vote.txt says why); where this Python lacks it, the command starts again with the one
in `.venv/vote`.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import utils
from evaluation import stats
from evaluation.outcomes import Outcome
from evaluation.stats import Agreement
from llm.journal import Journal
from utils import CourseError

TIE = "tie"
JUDGED = {
    Outcome.WIN: "tuned",
    Outcome.LOSS: "base",
    Outcome.TIE: TIE,
    Outcome.INCONSISTENT: TIE,
}  # a failed verdict is no vote


# --- the pairs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Two answers without names. Which of them is whose is known here and never sent to the
    page."""

    id: str
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
        names = (
            ["base", "tuned"]
            if random.Random(f"side {seed} {record['id']}").random() < 0.5
            else ["tuned", "base"]
        )
        first, second = (
            "\n\n--- answer to the follow-up ---\n\n".join(texts[name]) for name in names
        )
        prompt = "\n\n--- follow-up ---\n\n".join(
            [record["prompt"], *(turn["prompt"] for turn in record.get("follow_ups", ()))]
        )
        made.append(
            Pair(
                record["id"],
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
        is left out."""
        pair = next(pair for pair in self.pairs if pair.key == key)
        if key not in self.journal.entries:
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

    s1: (
        Agreement | None
        # all votes; a tie and an inconsistent verdict are both a tie; a coin with three sides
        # agrees in 33 %
    )
    s2: Agreement | None  # only where neither calls a tie; a coin agrees in 50 %
    judge: str
    failed: int  # votes on prompts without a readable verdict: in neither setup
    unjudged: int  # votes on prompts that the judge was not asked about
    first: int  # votes for the answer on the left ...
    second: int  # ... and on the right

    def __str__(self) -> str:
        chosen = f"{self.first} votes for the first answer shown, {self.second} for the second"
        lines = [
            f"You and the judge {self.judge}:",
            f"S1, all votes, inconsistent verdicts are ties: {_agreed(self.s1, '33 %')}",
            f"S2, only where neither called a tie: {_agreed(self.s2, '50 %')}",
            f"Your own position bias: {chosen}, exact binomial test "
            f"{stats.p_value(stats.binomial_test(self.first, self.second))}.",
        ]
        for number, what in (
            (self.failed, "have no readable verdict"),
            (self.unjudged, "were not judged"),
        ):
            lines += (
                [f"Left out: {number} of your votes, on prompts that {what}."] if number else []
            )
        return "\n".join(lines)


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
    if not both:
        return None
    return stats.agreement([one for one, _ in both], [two for _, two in both])


def _agreed(found: Agreement | None, chance: str) -> str:
    if found is None:
        return "no votes."
    (value, low, high), (kappa, kappa_low, kappa_high) = found.accuracy, found.kappa
    return (
        f"{100 * value:.0f} % [{100 * low:.0f}, {100 * high:.0f}] of {found.n} votes agree "
        f"(chance {chance}), "
        f"kappa {kappa:.2f} [{kappa_low:.2f}, {kappa_high:.2f}]."
    )


def result(ballot: Ballot, folder: Path) -> str:
    """The agreement in sentences. Raises CourseError where nothing was voted or judged."""
    if not ballot.votes:
        raise CourseError(
            "There are no votes on the answers of this run: run `python -m evaluation.vote` and "
            "choose "
            "between a few pairs first."
        )
    return str(
        agreement(ballot.votes, utils.read_jsonl(folder / "verdicts.jsonl", ("id", "outcome")))
    )


# --- the page -------------------------------------------------------------------------------------


def page(ballot: Ballot, folder: Path):
    """The Gradio page. Text goes into text boxes, which show any markup in it as it was written."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import, which reads it
    import gradio as gr

    def show() -> list:
        """What all parts of the page show for the next pair."""
        pair, done = ballot.next(), len(ballot.votes)
        texts = [pair.prompt, pair.first, pair.second] if pair else ["", "", ""]
        status = (
            f"{done} of {len(ballot.pairs)} votes"
            if pair
            else f"All {done} votes are in: thank you."
        )
        boxes = [gr.update(value=text, visible=pair is not None) for text in texts]
        return [
            pair.key if pair else "",
            status,
            *boxes,
            *[gr.update(interactive=pair is not None)] * 3,
        ]

    def cast(position: str):
        def handler(key: str) -> list:
            # comes from the page, so that a hasty second click votes on the pair that was seen, and
            # not on the next one
            if key:
                ballot.vote(key, position)
            return show()

        return handler

    def finish():
        try:
            text = result(ballot, folder)
        except CourseError as error:
            text = str(error)
        print(f"\n{text}\n", flush=True)
        return gr.update(value=text, visible=True)

    with gr.Blocks(title="Blind vote", analytics_enabled=False) as blocks:
        key = gr.Textbox(visible=False)
        gr.Markdown(
            "# Which answer is better?\nYou are not told which model wrote which. Choose for what "
            "the prompt asks, not for length."
        )
        status = gr.Markdown(elem_id="status")
        prompt = gr.Textbox(label="Prompt", interactive=False, max_lines=30, elem_id="prompt")
        with gr.Row():
            first = gr.Textbox(
                label="Answer 1", interactive=False, lines=6, max_lines=60, elem_id="first"
            )
            second = gr.Textbox(
                label="Answer 2", interactive=False, lines=6, max_lines=60, elem_id="second"
            )
        with gr.Row():
            buttons = [
                gr.Button(text, elem_id=f"choose-{text.split()[-1]}")
                for text in ("Choose answer 1", "Call it a tie", "Choose answer 2")
            ]
        end = gr.Button("Show how often the judge agrees", variant="secondary", elem_id="end")
        told = gr.Textbox(
            label="Result", interactive=False, max_lines=30, visible=False, elem_id="result"
        )
        parts = [key, status, prompt, first, second, *buttons]
        for button, position in zip(buttons, ("first", TIE, "second"), strict=True):
            button.click(
                cast(position),
                key,
                parts,
                api_visibility="private",
                show_progress="hidden",
                concurrency_limit=1,
            )
        end.click(finish, None, told, api_visibility="private")
        blocks.load(show, None, parts, api_visibility="private", show_progress="hidden")
    return blocks


def serve(ballot: Ballot, folder: Path, port: int | None = None) -> None:
    """Show the page until the command is interrupted."""
    blocks = page(ballot, folder)
    import gradio as gr

    theme = gr.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )  # the default ones are fetched
    blocks.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        footer_links=[],
        theme=theme,
        quiet=True,
        prevent_thread_lock=True,
    )
    print(
        f"Vote at {blocks.local_url} (this machine only); Ctrl-C ends it, and every vote is kept.",
        flush=True,
    )
    try:
        blocks.block_thread()
    finally:
        blocks.close()


# --- the command ----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="default", help="name of the folder under runs/")
    parser.add_argument("--seed", type=int, default=0, help="of the order and the sides")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument(
        "--result", action="store_true", help="print the agreement so far, without a page"
    )
    chosen = parser.parse_args(arguments)
    folder = utils.ROOT / "runs" / chosen.run
    try:
        ballot = Ballot(pairs(folder, chosen.seed), folder / "votes.jsonl")
        if chosen.result:
            print(result(ballot, folder))
        else:
            with_gradio()
            serve(ballot, folder, chosen.port)
    except CourseError as error:
        print(f"Stopped: {error}", file=sys.stderr)
        return 1
    return 0


def with_gradio() -> None:
    """Go on where Gradio is installed; else start this command again in the environment that has
    it."""
    if utils.installed("gradio"):
        return
    python = utils.ROOT / ".venv" / "vote" / "bin" / "python"
    if not python.exists():
        raise CourseError(
            "The voting page needs Gradio, which is not installed here: run `make vote`, which "
            "gives it an environment of its own, or, on "
            "Colab, `pip install gradio`."
        )
    os.execv(python, [str(python), "-m", "evaluation.vote", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
