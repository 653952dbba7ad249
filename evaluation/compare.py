"""Your own comparison: answer files of two or more models, any prompts, a judge of your choice.

    python -m evaluation.compare a.jsonl b.jsonl --judge gpt-4o --report report.html
    python -m evaluation.compare a.json b.json c.json --prompts prompts.jsonl --judge rehearsal

An answer file is AlpacaEval's (`instruction`, `output`, `generator`) or has `id`, `prompt` and
`answer`; several turns are a list of as many answers. `--prompts` adds what the answers' own file
lacks: `reference`, `language`, `category`, and `follow_ups`, a list of `prompt` and `reference`.

What it does: check that all models answered the same prompts, calibrate the judge in the languages
of these prompts, judge all pairs in both orders, and print headline, ranking (Bradley-Terry) and a
page to read. What it does not do: answer prompts (evaluation.ipynb does), or leave anything out
without saying so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import prompts
import settings
import similarity
import utils
from evaluation import calibration, judge, outcomes, ranking, report
from evaluation.calibration import Calibration
from preprocessing import contamination, rows
from training import generation
from utils import CourseError

ASKED = ("prompt", "instruction", "question")
ANSWERED = ("answer", "output", "response", "completion")
KNOWN = ("system", "reference", "language", "category")
SETTINGS = ("judge", "base_url", "reply_format", "judge_tokens", "budget_usd", "run")
TELLING = 30  # letters; of a shorter prompt the language cannot be told
STRAY = 0.02  # share of prompts whose language may be mistaken: 1 of the 805 of AlpacaEval is


# --- reading --------------------------------------------------------------------------------------


@dataclass
class Model:
    """A model and its answers by prompt, in the order of its file."""

    name: str
    source: str
    prompts: dict[str, dict] = field(default_factory=dict)  # id -> item, as far as the file knows
    answers: dict[str, list[str]] = field(default_factory=dict)  # id -> one text a turn
    has_ids: bool = True  # else the prompts themselves stand for ids

    def call_by_prompt(self) -> None:
        """Let the prompts stand for ids. Raises CourseError where one was asked twice."""
        texts = {key: item["prompt"] for key, item in self.prompts.items()}
        if len(set(texts.values())) < len(texts):
            raise CourseError(
                f"{self.source} asks a prompt twice, and another file has no ids to tell them "
                "apart: give every row an id."
            )
        self.answers = {texts[key]: answers for key, answers in self.answers.items()}
        self.prompts = {
            item["prompt"]: item | {"id": item["prompt"]} for item in self.prompts.values()
        }


def read_answers(path: str | Path, name: str = "") -> Model:
    """The answers of one model.

    Args:
        name: of the model; else what the file calls its `generator`, else the file's own name.

    Raises:
        CourseError: a row without prompt or answer, an answer that is no text, a prompt twice.
    """
    model = Model(name or Path(path).name.partition(".")[0], str(path))
    generators = set()
    for source, where, row in rows.records(path):
        at = f"{source}, {where}"
        if not isinstance(row, dict):
            raise CourseError(f"{at}: {row}.")
        asked, answered = _first(row, ASKED), _first(row, ANSWERED)
        if not asked or not answered:
            lacks, wanted = ("prompt", ASKED) if not asked else ("answer", ANSWERED)
            raise CourseError(
                f"{at} has no {lacks}: it has {', '.join(row) or 'no field'}, and one of "
                f"{', '.join(wanted)} is wanted."
            )
        prompt = row[asked]
        answers = row[answered] if isinstance(row[answered], list) else [row[answered]]
        if not isinstance(prompt, str) or not prompt.strip():
            raise CourseError(f"{at}: the prompt is {prompt!r}; a text is wanted.")
        if not answers or not all(isinstance(answer, str) for answer in answers):
            raise CourseError(
                f"{at}: the answer is {row[answered]!r}; give a text, or leave the prompt out of "
                "every file."
            )
        key = str(row.get("id") or prompt)
        model.has_ids = model.has_ids and bool(row.get("id"))
        if key in model.answers:
            raise CourseError(f"{at}: {key[:60]!r} was answered before in this file.")
        known = {name: row[name] for name in KNOWN if isinstance(row.get(name), str)}
        model.prompts[key] = {"id": key, "prompt": prompt} | known
        model.answers[key] = answers
        generators.add(row.get("generator"))
    if not model.answers:
        raise CourseError(f"{path} is empty: it holds no answer.")
    if not name and len(generators) == 1 and None not in generators:
        model.name = str(generators.pop())
    return model


def _first(row: dict, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


def same_prompts(models: Sequence[Model]) -> list[dict]:
    """The prompts that all models answered, in the order of the first file; called by their text
    where a file has no ids.

    Raises:
        CourseError: the files differ in their prompts, two models have one name, or the numbers of
            turns differ.
    """
    first = models[0]
    if not all(model.has_ids for model in models):
        for model in models:
            model.call_by_prompt()
    for name, times in Counter(model.name for model in models).items():
        if times > 1:
            raise CourseError(f"Two models are called {name!r}: name them with --names.")
    for model in models[1:]:
        _answers_all(model, first)
        _answers_all(first, model)
    items = []
    for key, item in first.prompts.items():
        for model in models[1:]:
            theirs = model.prompts[key]
            if theirs["prompt"] != item["prompt"]:
                raise CourseError(
                    f"{model.source} asks something else under the id {key!r} than {first.source}."
                )
            if len(model.answers[key]) != len(first.answers[key]):
                raise CourseError(f"{model.source}: {key[:60]!r} has another number of turns.")
            item = theirs | item  # what the first file does not say of a prompt, another may
        items.append(item)
    return items


def _answers_all(model: Model, other: Model) -> None:
    """CourseError unless `model` answers every prompt of `other`."""
    missing = [key for key in other.answers if key not in model.answers]
    if missing:
        raise CourseError(
            f"{model.source} lacks an answer to {len(missing)} of the {len(other.answers)} prompts "
            f"of {other.source}, {missing[0][:60]!r} among them: both must answer the same."
        )


def complete(items: list[dict], extra: Sequence[dict], language: str = "") -> list[dict]:
    """Prompts with all that a judge needs: `language, category, reference` ("" without one), and
    `follow_ups` where there are any.

    Args:
        extra: records of a prompts file, matched by id, else by the text of the prompt.
        language: of all prompts, where they cannot tell themselves.

    Raises:
        CourseError: `extra` has none of the prompts, or prompts are in a language that is not
            judged.
    """
    known = {str(row[key]): row for row in extra for key in ("prompt", "id") if row.get(key)}
    if extra and not any(item["id"] in known or item["prompt"] in known for item in items):
        raise CourseError("The prompts file has none of these prompts, by id or by text.")
    completed, foreign, guessed = [], [], []
    for item in items:
        more = known.get(item["id"]) or known.get(item["prompt"]) or {}
        told = {name: more[name] for name in KNOWN if isinstance(more.get(name), str)}
        if more.get("follow_ups"):
            told["follow_ups"] = more["follow_ups"]
        item = {"reference": "", "category": "other"} | item | told
        code = language or item.get("language")
        if not code:
            code = language_of(item["prompt"])
            guessed += [item["id"]] if code not in prompts.LANGUAGES else []
        if code not in prompts.LANGUAGES:
            foreign.append(f"{item['id'][:60]!r} ({code})")
            code = prompts.nearest(item["prompt"])
        completed.append(item | {"language": code})
    if len(guessed) == len(foreign) <= STRAY * len(items):
        for one in foreign:
            print(
                f"Judged as one of {', '.join(prompts.LANGUAGES)}, though it looks otherwise: {one}"
            )
    else:
        raise CourseError(
            f"{len(foreign)} of {len(items)} prompts are in a language that is not judged, such as "
            f"{foreign[0]}: this course has a judge's prompt and labelled pairs for "
            f"{', '.join(prompts.LANGUAGES)}. Leave them out of all files, or, if they are in one "
            "of these, say so with --language."
        )
    return completed


def language_of(text: str) -> str:
    """The code of the language that a prompt is written in; of a short one, the language of the
    course with the most of its letters."""
    import py3langid

    code = py3langid.classify(text)[0]
    telling = sum(letter.isalpha() for letter in text) >= TELLING
    return code if telling or code in prompts.LANGUAGES else prompts.nearest(text)


def trained_on(items: Sequence[dict], data: Sequence[Path]) -> list[str]:
    """The ids of prompts that stand in training rows, by words (ROUGE-L above that of the
    contamination gate)."""
    asked: list[str] = []
    for path in data:
        for row in utils.read_jsonl(path):
            asked += rows.questions(row)
    if not asked:
        return []
    found = similarity.rouge_l_nearest([item["prompt"] for item in items], asked)
    near = zip(items, found, strict=True)
    return [item["id"] for item, match in near if match.score > contamination.LEXICAL]


# --- judging --------------------------------------------------------------------------------------


def labelled_pairs(items: Sequence[dict]) -> list[dict]:
    """The labelled pairs in the languages of these prompts, without references if these lack any:
    a judge is calibrated on what it will be asked."""
    guided = all(item["reference"] for item in items)
    spoken = {item["language"] for item in items}
    pairs = utils.read_jsonl(utils.DATA / "judge_calibration.jsonl")
    pairs = [pair for pair in pairs if pair["language"] in spoken]
    return pairs if guided else [pair | {"reference": ""} for pair in pairs]


async def compare(
    judged: judge.Judge, models: Sequence[Model], items: Sequence[dict]
) -> tuple[Calibration, dict[tuple[str, str], list[dict]]]:
    """The judge's calibration, and for every pair of models its verdict records, in which the
    second is the one that wins or loses."""
    pairs = labelled_pairs(items)
    good = [pair["answer_good"] for pair in pairs]
    bad = [pair["answer_bad"] for pair in pairs]
    answers = {model.name: in_order(model, items) for model in models}
    met = list(itertools.combinations(answers, 2))
    cost = judged.estimate(pairs, good, bad)
    cost += sum(judged.estimate(items, answers[b], answers[a]) for a, b in met)
    yours = len(met) * len(items)
    print(f"{len(pairs)} labelled pairs and {yours} of yours cost at most ${cost:.2f}")
    gate = calibration.calibrate(await judged.compare(pairs, good, bad))
    print(f"\n{gate}\n")
    return gate, {(a, b): await judged.compare(items, answers[b], answers[a]) for a, b in met}


def in_order(model: Model, items: Sequence[dict]) -> list:
    """A model's answers, as the items stand."""
    return [model.answers[item["id"]] for item in items]


def told(gate: Calibration, verdicts: dict[tuple[str, str], list[dict]]) -> str:
    """The headline of every pair, and with more than two models their ranking."""
    lines = [outcomes.headline(records, gate, names) for names, records in verdicts.items()]
    trusted = {names: gate.believed(records) for names, records in verdicts.items()}
    if len(verdicts) > 1 and all(trusted.values()):
        lines.append("Chance to beat a model of average strength (Bradley-Terry):")
        for name, estimate in ranking.rank(trusted).items():
            lines.append(f"  {name:<24} {estimate.short}")
    return "\n".join(lines)


def write_reports(
    path: Path,
    judged: judge.Judge,
    gate: Calibration,
    models: Sequence[Model],
    items: Sequence[dict],
    verdicts: dict[tuple[str, str], list[dict]],
    notes: Sequence[str],
) -> list[Path]:
    """One page a pair of models; with more than two the names are part of the file's."""
    known = {model.name: model for model in models}
    closed = outcomes.closed_languages(gate)
    said = " ".join([f"right in {gate.accuracy.short} of its verdicts.", *closed])
    written = []
    for (a, b), records in verdicts.items():
        both = (in_order(known[a], items), in_order(known[b], items))
        facts = {
            "run": "comparison",
            "names": (a, b),
            "headline": outcomes.headline(records, gate, (a, b)),
            "judge": judged.name,
            "calibration": said,
            "notes": list(notes),
        }
        place = path
        if len(verdicts) > 1:
            place = path.with_name(f"{path.stem}-{_plain(a)}-{_plain(b)}{path.suffix}")
        written.append(report.write(report.join(records, items, *both), facts, place))
    return written


def _plain(name: str) -> str:
    """A model's name as a part of a file's name."""
    return "".join(letter if letter.isalnum() or letter in "._" else "_" for letter in name)


# --- the command ----------------------------------------------------------------------------------


@contextlib.contextmanager
def stand_in(chosen: settings.Settings) -> Iterator[None]:
    """The rehearsal's judge in a process of its own, where it was chosen."""
    if not chosen.rehearsal:
        yield
        return
    utils.require("starlette", "the stand-in", "choose another --judge")
    command = [sys.executable, "-m", "rehearsal.stand_ins"]
    house = Path(__file__).parents[1]
    with subprocess.Popen(
        command, cwd=house, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        try:
            chosen.rehearsal_url = process.stdout.readline().strip() if process.stdout else ""
            if not chosen.rehearsal_url:
                raise CourseError("The stand-in judge did not start; choose another --judge.")
            yield
        finally:
            process.kill()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("answers", nargs="+", help="a file of answers a model, two or more")
    parser.add_argument("--names", nargs="+", default=(), help="of the models, in that order")
    parser.add_argument("--prompts", help="a file with references and follow-ups")
    parser.add_argument("--language", choices=sorted(prompts.LANGUAGES), help="of all prompts")
    parser.add_argument("--rows", nargs="*", help="of training; default: the course's")
    parser.add_argument("--judge", default="auto", help="a model's name, or rehearsal")
    parser.add_argument("--base-url", default="auto")
    parser.add_argument("--reply-format", default="auto", choices=("auto", "schema", "text"))
    parser.add_argument("--judge-tokens", default="auto")
    parser.add_argument("--budget-usd", default="auto")
    parser.add_argument("--run", default="compare", help="folder under runs/ for the journal")
    parser.add_argument("--report", type=Path, help="write a page to read")
    run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> None:
    """One comparison, from the files to the page. Raises CourseError before anything is paid."""
    if len(options.answers) < 2:
        raise CourseError("A comparison needs the answers of two models or more.")
    if options.names and len(options.names) != len(options.answers):
        raise CourseError(f"{len(options.answers)} files, but {len(options.names)} names.")
    names = options.names or [""] * len(options.answers)
    models = [read_answers(*pair) for pair in zip(options.answers, names, strict=True)]
    items = same_prompts(models)
    extra = utils.read_jsonl(options.prompts) if options.prompts else []
    items = complete(items, extra, options.language or "")
    judge.check_items(items, str(options.prompts or options.answers[0]))
    for item in items:
        turns = {len(model.answers[item["id"]]) for model in models}
        wanted = len(generation.turns(item))
        if turns != {wanted}:
            found = (turns - {wanted}).pop()
            raise CourseError(
                f"{item['id'][:60]!r} has {found} answers of a model and {wanted} turns: one is "
                "wanted, and one more for each of the prompt's follow_ups (see --prompts)."
            )
    chosen = settings.resolve({name.upper(): vars(options)[name] for name in SETTINGS})
    if chosen.judge == settings.REHEARSAL and not all(item["reference"] for item in items):
        raise CourseError(
            "The stand-in judge compares wording with a reference, and some of these prompts have "
            "none: give references (--prompts), or choose a language model as --judge."
        )
    data = options.rows
    if data is None:
        shipped, own = utils.DATA / "instruction.jsonl", chosen.folder / "instruction.jsonl"
        data = [path for path in (shipped, own) if path.exists()]
    notes = []
    if seen := trained_on(items, [Path(path) for path in data]):
        notes.append(
            f"{len(seen)} of {len(items)} prompts stand in the training rows, {seen[0][:60]!r} "
            "among them: a model that was trained on them has seen these questions."
        )
    with stand_in(chosen):
        judged = judge.connect(chosen)
        gate, verdicts = asyncio.run(compare(judged, models, items))
    print("\n".join([told(gate, verdicts), *notes]))
    if options.report:
        written = write_reports(options.report, judged, gate, models, items, verdicts, notes)
        print(f"To read: {', '.join(map(str, written))}")


if __name__ == "__main__":
    utils.run_command(main)
