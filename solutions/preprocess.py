"""Solutions of the exercises of preprocess.ipynb: one function each, on the course's own modules.

    python -m solutions.preprocess all three, with the teacher that the notebook would take
    (default: the stand-in, $0)

What it does: ask, filter and measure as the notebook does, with the one thing changed that the
exercise is about. What it does not do: write a data set; its requests are kept in runs/solutions/.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections import Counter

import numpy as np

import settings
import similarity
from evaluation import stats
from llm.client import Client
from preprocessing import curation, self_instruct

USUAL = 0.7  # THRESHOLD of the notebook


def exercise_1(
    rows: list[dict], seeds: list[dict], threshold: float = 0.5
) -> dict[str, list[tuple[dict, str, float]]]:
    """Set `THRESHOLD = 0.5`. Which rows go now? Then compare characters, `tokenizer="char"`: why
    does English lose more rows than Korean?

    By words hardly a row goes that was not gone before: of two, one asks the same and one only
    shares a frame ("... in one sentence"). By characters the same 0.5 takes a quarter of the
    English rows, about bread that goes stale and bread that rises. An alphabet has 26 letters, so
    unrelated sentences share many of them in order by chance; Hangul has thousands of syllables,
    and chance shares few (`by_chance` measures it). The lesson: a threshold belongs to its
    tokenizer *and* to the script, and must be read off examples again when either changes.

    Args:
        rows: tasks that the rules let through.

    Returns:
        For each tokenizer what goes at `threshold` and would have stayed at 0.7: `(row, the
            instruction it resembles, score)`.
    """
    found = {}
    for tokenizer in ("unicode", "char"):
        usual, gone = (_matches(rows, seeds, limit, tokenizer) for limit in (USUAL, threshold))
        found[tokenizer] = [(rows[i], *gone[i]) for i in sorted(gone.keys() - usual.keys())]
    return found


def _matches(rows, seeds, threshold: float, tokenizer: str) -> dict[int, tuple[str, float]]:
    texts = [task["instruction"] for task in seeds + rows]
    index = similarity.RougeLIndex(threshold, tokenizer=tokenizer)
    index.add(texts[: len(seeds)])
    matches = index.add(texts[len(seeds) :])
    return {i: (texts[match.index], match.score) for i, match in enumerate(matches) if match}


def by_chance(rows: list[dict], language: str, tokenizer: str = "char", pairs: int = 200) -> float:
    """Mean ROUGE-L of pairs of instructions drawn at random, which have nothing to do with one
    another."""
    texts = [row["instruction"] for row in rows if row["language"] == language]
    rng = random.Random(0)
    total = 0.0
    for _ in range(pairs):
        one, two = rng.sample(texts, 2)
        total += similarity.rouge_l(one, two, tokenizer)
    return total / pairs


def exercise_2(precisions: tuple[float, ...] = (0.95, curation.PRECISION, 0.80)) -> list[dict]:
    """In section 5 ask for a precision of 0.95, then of 0.8. What happens to the recall, and which
    pairs are false alarms?

    A stricter precision raises the threshold, and the recall pays: the filter then takes only what
    is nearly the same sentence. The false alarms are pairs about one thing that ask for something
    else of it (explain a term, or list what the document shows), Korean
    and English alike: nearness in topic is what an embedding measures. The lesson: the choice is a
    price, not a truth; and because only a handful of pairs lie above a high threshold, its "95 %"
    has an interval that is wide open. More labels, not a finer threshold.

    Returns:
        For each precision asked for: `asked, threshold, recall, precision` (an `Estimate` with its
            interval) and `false_alarms`, pairs.
    """
    pairs, same, scores = curation.labelled_pairs(lexical=USUAL, turned=False)
    found = []
    for asked in precisions:
        threshold = curation.calibrate(scores["E5"], same, asked)
        above = scores["E5"] > threshold
        found.append(
            {
                "asked": asked,
                "threshold": threshold,
                "recall": float(same[above].sum() / same.sum()),
                "precision": stats.rate(same[above].astype(float).tolist()),
                "false_alarms": [
                    pair
                    for pair, hit, label in zip(pairs, above, same, strict=True)
                    if hit and not label
                ],
            }
        )
    return found


async def exercise_3(
    teacher: Client,
    languages: tuple[str, ...],
    domain: str = "housing in Korea",
    requests: int = 16,
) -> dict:
    """Set `DOMAIN` to "housing in Korea" and `SEED_CATEGORIES` to "housing". When does asking stop
    paying, and how alike are the rows?

    It stops earlier, and the rows lie closer together: one domain holds fewer different tasks, so
    the same filters take more and each request brings less. (With the stand-in the end comes
    abruptly, for it has two recorded batches of this domain in each language; a real teacher runs
    dry slowly.) The lesson: narrow data need more *seeds* and source material, not more requests,
    and the embedding threshold, calibrated on all topics, should be calibrated again on pairs of
    the domain.

    Returns:
        For "everything" and for the domain: `yields`, new rows of each request in the order asked,
        and `alike`, the mean cosine of two rows of one language.
    """
    made: dict[str, dict] = {}
    for name, about, categories in (("everything", "", ()), (domain, domain, ("housing",))):
        seeds = self_instruct.load_seeds(languages, categories)
        rows, yields = await ask_until_dry(teacher, seeds, languages, about, requests)
        made[name] = {"rows": [row for row in rows if row["new"]], "yields": yields}
    for part in made.values():
        rows, cosines = part.pop("rows"), []
        for language in languages:
            vectors = similarity.embed(
                [row["instruction"] for row in rows if row["language"] == language]
            )
            each_pair_once = np.triu_indices(len(vectors), 1)
            cosines += (vectors @ vectors.T)[each_pair_once].tolist()
        part["alike"] = sum(cosines) / len(cosines)
    return made


async def ask_until_dry(
    teacher: Client,
    seeds: list[dict],
    languages: tuple[str, ...],
    domain: str = "",
    requests: int = 16,
    together: int = 4,
) -> tuple[list[dict], list[int]]:
    """Sections 2 to 4 of the notebook in one loop: ask by Alpaca's method until the last four
    requests bring fewer than two rows each.

    Returns:
        `(rows, yields)`: the tasks that the rules let through, each with `new` (False: a
        near-duplicate by ROUGE-L), and the new rows of each request.
    """
    ask, rng = functools.partial(self_instruct.ask, teacher), random.Random(42)
    index = similarity.RougeLIndex(USUAL)
    index.add([seed["instruction"] for seed in seeds])
    rows: list[dict] = []
    yields: list[int] = []
    for start in range(0, requests, together):
        if len(yields) >= 4 and sum(yields[-4:]) < 2 * 4:
            break
        asked = []
        for number in range(start, min(start + together, requests)):
            for language in languages:
                shown = self_instruct.sample_demonstrations(seeds, language, 3, rng)
                asked.append(
                    (language, self_instruct.batch_request(shown, language, 20, number, domain))
                )
        replies = await ask([request for _, request in asked], self_instruct.TaskBatch)
        for (language, _), reply in zip(asked, replies, strict=True):
            usable = [{"language": language, **task} for task in self_instruct.tasks_of(reply)]
            usable = [row for row in usable if curation.problem(row) is None]
            for row, match in zip(
                usable, index.add([row["instruction"] for row in usable]), strict=True
            ):
                rows.append(row | {"new": match is None})
            yields.append(sum(row["new"] for row in rows) - sum(yields))
    return rows, yields


async def main() -> None:
    chosen = settings.resolve({"RUN": "solutions"})
    if chosen.rehearsal:
        from rehearsal import stand_ins

        chosen.rehearsal_url = stand_ins.start()
    teacher = Client(
        journal=chosen.folder / "requests.jsonl",
        budget_usd=chosen.budget_usd,
        **chosen.connection(chosen.teacher),
    )
    print(f"teacher: {chosen.label('teacher')}\n\nExercise 1: what goes at 0.5 and stayed at 0.7")
    seeds = self_instruct.load_seeds(chosen.languages)
    rows, _ = await ask_until_dry(teacher, seeds, chosen.languages)
    new = [row for row in rows if row["new"]]
    for tokenizer, gone in exercise_1(new, seeds).items():
        chance = {
            language: round(by_chance(new, language, tokenizer), 2) for language in chosen.languages
        }
        print(
            f"\nby {tokenizer}: {dict(Counter(row['language'] for row, *_ in gone))} more rows; "
            f"unrelated pairs score {chance}"
        )
        for row, like, score in gone[:4]:
            print(f"  {score:.2f}  {row['instruction']}\n        {like}")

    print("\nExercise 2: the price of precision")
    for found in exercise_2():
        print(
            f"\n{found['asked']:.2f}: E5 > {found['threshold']:.3f}, recall "
            f"{found['recall']:.0%}, precision {found['precision'].short}"
        )
        for pair in found["false_alarms"][:3]:
            print(f"  not the same: {pair['a']}\n                {pair['b']}")

    print("\nExercise 3: a narrow domain")
    for name, found in (await exercise_3(teacher, chosen.languages)).items():
        print(
            f"{name}: new rows of each request {found['yields']}; two rows have a cosine of "
            f"{found['alike']:.3f} on average"
        )
    print(f"\npaid: ${teacher.spent_usd:.2f}")


if __name__ == "__main__":
    asyncio.run(main())
