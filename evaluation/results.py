"""What an evaluation keeps: the answers of both models, and `results.json` with every number of it.

What it does: answer each prompt once per model and reuse the answers while nothing that they depend
on has changed; put verdicts and answers into tables; write the results. What it does not do: judge
(judge.py) or compute a statistic (stats.py, outcomes.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import settings
import utils
from evaluation import judge, outcomes, stats
from evaluation.calibration import Calibration, Probe
from evaluation.judge import Judge
from evaluation.stats import Estimate
from training import generation, student
from training.adapter import WEIGHTS
from training.chat import Stop
from training.generation import Answer, Decoding

if TYPE_CHECKING:
    import pandas as pd

MODELS = ("base", "tuned")
Answers = dict[str, list[list[Answer]]]  # of each model, an answer per turn of each prompt


# --- answers --------------------------------------------------------------------------------------


def answers(
    chosen: settings.Settings,
    model,
    tokenizer,
    stop: Stop,
    folder: Path,
    items: Sequence[dict],
    decoding: Decoding,
) -> Answers:
    """The answers of base and tuned to every prompt, from `answers.jsonl` where that was made from
    the same weights, prompts and decoding.

    Args:
        model: with the adapter in `folder`; switched off it is the base model.
        items: `id`, `prompt`, and further turns.
    """
    path = chosen.folder / "answers.jsonl"
    weights = utils.file_hash(folder / WEIGHTS)
    job = utils.fingerprint(chosen.base_model, str(model.dtype), weights, items, vars(decoding))
    if generation.job_of(path) != job:
        writer = _writer(chosen, model, tokenizer, stop, folder, decoding)
        base = generation.converse(writer, items, adapter=False)
        tuned = generation.converse(writer, items, adapter=True)
        generation.write_answers(path, items, base, tuned, decoding, job)
    base, tuned = generation.read_answers(path, items)
    return {"base": base, "tuned": tuned}


def _writer(chosen, model, tokenizer, stop, folder, decoding: Decoding) -> generation.Writer:
    if decoding.engine == "vllm":
        source = student.packaged_student() if chosen.packaged else chosen.base_model
        dtype = str(model.dtype).removeprefix("torch.")
        return generation.Vllm(source, folder, tokenizer, stop, decoding, dtype)
    return generation.Transformers(model, tokenizer, stop, decoding)


def texts(answered: Answers) -> tuple[list[list[str]], list[list[str]]]:
    """`(base, tuned)`: the text of every turn, as a judge reads it."""
    return generation.texts(answered["base"]), generation.texts(answered["tuned"])


def lengths(answered: Answers) -> pd.DataFrame:
    """Tokens of the answers, all turns together: a row a prompt, a column a model."""
    import pandas as pd

    table: dict[str, list[int]] = {name: [] for name in MODELS}
    for name in MODELS:
        for turns in answered[name]:
            table[name].append(sum(turn.tokens for turn in turns))
    return pd.DataFrame(table)


# --- verdicts as tables ---------------------------------------------------------------------------


def scores(verdicts: Sequence[dict]) -> pd.DataFrame:
    """The judge's scores from 1 to 10: a row a prompt, a column a model; empty where it failed."""
    import pandas as pd

    given = [verdict["scores"] for verdict in verdicts]
    return pd.DataFrame(given, columns=list(MODELS)).astype(float)


def by_group(verdicts: Sequence[dict]) -> pd.DataFrame:
    """The win rate of tuned by language, difficulty, kind and category, with intervals."""
    import pandas as pd

    rows = []
    for key in ("language", "difficulty", "kind", "category"):
        there = [verdict for verdict in verdicts if key in verdict]
        for name, group in outcomes.by_group(there, key).items():
            rows.append({"group": name, "tuned wins": group.short, "prompts": group.n})
    return pd.DataFrame(rows, columns=["group", "tuned wins", "prompts"])


def agreement(verdicts: Sequence[dict], others: Sequence[dict], one: str, two: str) -> str:
    """How far two judges give the same outcome, in one sentence."""
    ours = [record["outcome"] for record in verdicts]
    theirs = [record["outcome"] for record in others]
    found = stats.agreement(ours, theirs)
    return f"{one} and {two}: the same outcome in {found.accuracy.short}, kappa {found.kappa_text}"


# --- the file of results --------------------------------------------------------------------------


def facts(chosen: settings.Settings, by: Judge, gate: Calibration, headline: str) -> dict:
    """What stands above the report and in the results: who was compared, who judged, what came
    out."""
    note = judge.same_model(chosen)
    calibration = [f"right in {gate.accuracy.short} of its verdicts."]
    calibration += outcomes.closed_languages(gate)
    return {
        "headline": headline,
        "judge": by.name,
        "teacher": chosen.label("teacher"),
        "run": chosen.run,
        "base_model": chosen.base_model,
        "notes": [note] if note else [],
        "spent_usd": by.client.spent_usd,
        "calibration": " ".join(map(utils.translated, calibration)),
    }


def write(
    path: Path,
    known: dict,
    *,
    verdicts: Sequence[dict],
    labelled: Sequence[dict],
    gate: Calibration,
    probes: Sequence[Probe],
    cut: dict[str, float],
    close: Estimate | None,
    measures: dict,
    training: dict,
) -> Path:
    """Write `results.json`: the `facts`, and every number of the evaluation.

    A win rate, what follows from it, and the single scores are in it only if the judge may be
    believed in at least one language.
    """
    values = outcomes.values(gate.believed(verdicts))
    rate = stats.win_rate(values) if len(values) >= outcomes.FEWEST else None
    fair = stats.corrected(values, gate.values) if rate else None
    right = sum(record["outcome"] == outcomes.Outcome.WIN for record in labelled)
    calibration = {
        "right": right,
        "n": len(labelled),
        "languages": gate.languages,
        "accuracy": asdict(gate.accuracy),
    }
    ours = [verdict["outcome"] for verdict in verdicts]
    return utils.write_json(
        path,
        {
            **known,
            "calibration": calibration,
            "outcomes": outcomes.count(verdicts),
            "win_rate": asdict(rate) if rate else None,
            "corrected": asdict(fair) if fair else None,
            "sign_test_p": outcomes.sign_test(ours) if rate else None,
            "single_scores": scores(verdicts).mean().to_dict() if rate else None,
            "cut": cut,
            "similar_length": asdict(close) if rate and close else None,
            "probes": {probe.name: asdict(probe.fooled) for probe in probes},
            "measures": measures,
            "held_out": {"before": training["before"], "after": training["after"]},
        },
    )
