"""Solutions of the exercises of evaluation.ipynb: one function each, on the course's own modules.

    python -m solutions.evaluation exercises 1 and 2, judge as in the notebook (default: the
    stand-in) python -m solutions.evaluation made shipped exercise 3 as well, on the adapters of
    runs/made/ and runs/shipped/

What it does: calibrate, count and compare as the notebook does, with the one thing changed that the
exercise is about. What it does not
do: train the adapters of exercise 3; it prints the commands that do. Exercise 2 reads the verdicts
of runs/default/.
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import sys
from pathlib import Path

import settings
import utils
from evaluation import calibration, judge, outcomes, stats
from preprocessing import contamination
from training import adapter, chat, generation, losses, machine, student

# Ten pairs for exercise 1: the longer answer says more, and is worse for it
LONGER_IS_WORSE = [
    {
        "language": "en",
        "prompt": "Which planet is closest to the Sun? One word.",
        "reference": "Mercury",
        "answer_good": "Mercury",
        "answer_bad": "Mercury, which is also the hottest planet of all, because nothing stands "
        "between it and the Sun.",
    },
    {
        "language": "en",
        "prompt": "How many minutes are there in two and a half hours?",
        "reference": "It is 150 minutes.",
        "answer_good": "150 minutes.",
        "answer_bad": "Two and a half hours are 150 minutes, as an hour has 60 of them; three "
        "hours would make 210 minutes.",
    },
    {
        "language": "en",
        "prompt": 'Make this shorter: "Owing to the fact that it was raining, we stayed at home."',
        "reference": "It was raining, so we stayed at home.",
        "answer_good": "As it was raining, we stayed at home.",
        "answer_bad": "Owing to the fact that it was raining rather heavily outside, we decided "
        "that it was best to stay at home.",
    },
    {
        "language": "en",
        "prompt": 'What does "a.m." stand for in a time of day?',
        "reference": 'It stands for the Latin "ante meridiem", before noon.',
        "answer_good": 'Ante meridiem, "before noon".',
        "answer_bad": 'It stands for the Latin "ante meridiem", before noon, so that 12 a.m. is '
        "the middle of the day.",
    },
    {
        "language": "en",
        "prompt": 'Answer this with a short no: "Dinner at ours on Friday?"',
        "reference": "Thank you, but I'm afraid Friday doesn't work for me.",
        "answer_good": "Thanks, but I can't on Friday.",
        "answer_bad": "Thank you, what a lovely idea! I'm afraid I have missed you both, so "
        "Friday it is; shall I bring a dessert?",
    },
    {
        "language": "ko",
        "prompt": "대한민국의 수도는 어디인가요? 도시 이름만 쓰세요.",
        "reference": "서울",
        "answer_good": "서울",
        "answer_bad": "대한민국의 수도는 서울이고, 서울은 남쪽 바닷가에 자리한 항구 도시입니다.",
    },
    {
        "language": "ko",
        "prompt": "3만 원짜리 책을 10% 할인받으면 얼마를 내나요?",
        "reference": "27,000원을 냅니다.",
        "answer_good": "27,000원입니다.",
        "answer_bad": "10%는 3,000원이니 27,000원을 냅니다. 20%를 할인받으면 25,000원을 내고요.",
    },
    {
        "language": "ko",
        "prompt": "'지금 바로'라는 뜻으로는 '금새'와 '금세' 가운데 어느 쪽이 맞나요?",
        "reference": "'금시에'가 줄어든 말이므로 '금세'가 맞습니다.",
        "answer_good": "'금세'가 맞습니다.",
        "answer_bad": "'금시에'가 줄어든 말이므로 '금세'가 맞지만, 요즘은 '금새'로 적어도 "
        "표준어로 인정됩니다.",
    },
    {
        "language": "ko",
        "prompt": "높임말로 바꿔 주세요: 할머니가 밥을 먹는다.",
        "reference": "할머니께서 진지를 드십니다.",
        "answer_good": "할머니께서 진지를 잡수십니다.",
        "answer_bad": "할머니가 밥을 맛있게 먹고 있는데, 할머니는 언제나 밥을 천천히 먹는 분이다.",
    },
    {
        "language": "ko",
        "prompt": "전세 계약서를 쓴 뒤에 할 일을 한 가지만 알려 주세요.",
        "reference": "주민센터나 인터넷등기소에서 확정일자를 받으세요.",
        "answer_good": "확정일자를 받으세요.",
        "answer_bad": "주민센터에서 확정일자를 받는 일은 나중에 하시고, 먼저 계약서를 집주인에게 "
        "맡긴 다음 짐부터 옮기세요.",
    },
]


async def exercise_1(
    judged: judge.Judge, pairs: list[dict], added: list[dict] = LONGER_IS_WORSE
) -> dict[str, dict]:
    """Add ten calibration pairs, half Korean, in which the *longer* answer is worse. How accurate
    is the judge on all pairs, and on these?

    Over all pairs nothing seems to happen: ten of 178 can move the accuracy by six points at most.
    On the ten alone the stand-in is right in nine, an interval that reaches from 60 to 98 %: not
    bad, and not proof. What such pairs are for shows a judge that always takes the longer answer
    (`longer_wins`): on the shipped pairs it is right in about half, for their lengths are balanced:
    the gate stays closed; on the ten it is never right. In a set whose better answers are mostly
    the longer ones it would have passed. The lesson: an accuracy is an average over the faults that
    *you* put in. Look at it kind by kind, and put in what your two models differ in.

    Returns:
        For "before", "after" (with the ten) and "added" (the ten alone): `judge`, its calibration,
        and `longer`, that of `longer_wins`.
    """
    added = [
        pair | {"id": f"longer-{number}", "kind": "longer_is_worse"}
        for number, pair in enumerate(added, 1)
    ]
    every = [*pairs, *added]
    good = [pair["answer_good"] for pair in every]
    bad = [pair["answer_bad"] for pair in every]
    records = await judged.compare(every, good, bad)
    parts = {"before": records[: len(pairs)], "after": records, "added": records[len(pairs) :]}
    shown = {"before": pairs, "after": every, "added": added}
    return {
        name: {"judge": calibration.calibrate(part), "longer": longer_wins(shown[name])}
        for name, part in parts.items()
    }


def longer_wins(pairs: list[dict]) -> stats.Estimate:
    """How often the rule "the longer answer is better" is right on labelled pairs; equal lengths
    are a tie."""
    longer = [len(pair["answer_good"]) - len(pair["answer_bad"]) for pair in pairs]
    return stats.rate([0.5 if gap == 0 else float(gap > 0) for gap in longer])


def exercise_2(
    records: list[dict], sizes: tuple[int, ...] = (10, 20, 40, 80), seed: int = 0
) -> list[tuple[int, stats.Estimate, str]]:
    """Call `outcomes.headline` on 10, 20, 40 ... `verdicts` drawn at random. When does it name a
    winner, and how fast does the interval shrink?

    At ten prompts it mostly says "not distinguishable" or names a winner whose interval covers half
    the scale; each doubling of the prompts divides the interval by 1.4, the root of two, and not by
    two. So half the width costs four times the prompts. Drawn at random, because the file begins
    with the English ones: the first twenty would be another population. The lesson: fix the number
    of prompts before you look, for whoever adds prompts until a winner is named will find one.

    Returns:
        For each size (and for all records): the size, the win rate with its interval, the headline.
    """
    shuffled = random.Random(seed).sample(records, len(records))
    steps = [size for size in sizes if size < len(records)] + [len(records)]
    return [
        (n, stats.win_rate(outcomes.values(shuffled[:n])), outcomes.headline(shuffled[:n]))
        for n in steps
    ]


async def exercise_3(
    base: str,
    adapters: dict[str, Path],
    items: list[dict],
    judged: judge.Judge,
    device=None,
    new_tokens: int = 96,
) -> dict:
    """Tune on `DATA = "run"` and, under another `RUN`, on "shipped". Compare the two adapters
    prompt by prompt: which rows teach more?

    Let the two adapters meet each other, on the same prompts; do not compare two win rates against
    the base, which saturate and whose errors add up. Take the difference of the losses prompt by
    prompt: prompts differ more than adapters do, so the paired interval is far narrower than that
    of two separate means. And read it by language: an adapter that saw more Korean wins on Korean
    and may lose on English, where one figure would say "the same". The lesson: "better data" needs
    an "at what", pairs, and more than one seed.

    Args:
        adapters: name and folder of two adapters.

    Returns:
        By language: `difference` in the loss on the references (second minus first, nats per token;
        below 0 the second is better) and `apart`, half the width of its interval had the prompts
        not been paired. And `headline`, with the adapters' names.
    """
    device = device or machine.choose_device()
    reference_losses, answers = [], []
    for folder in adapters.values():
        model, tokenizer = student.load_base(base, device)
        stop = chat.choose_stop(model, tokenizer)
        model = adapter.load_adapter(model, folder)
        asked = [
            {"id": item["id"], "instruction": item["prompt"], "output": item["reference"]}
            for item in items
        ]
        encoded = [chat.encode(row, tokenizer, stop) for row in asked]
        reference_losses.append(
            [losses.held_out_loss(model, [example], tokenizer.pad_token_id) for example in encoded]
        )
        writer = generation.Transformers(model, tokenizer, stop, generation.Decoding(new_tokens))
        texts = []
        for turns in generation.converse(writer, items, adapter=True):
            texts.append([turn.text for turn in turns])
        answers.append(texts)
    found = {}
    for language in sorted({item["language"] for item in items}):
        places = [i for i, item in enumerate(items) if item["language"] == language]
        first_losses, second_losses = reference_losses
        one, two = [first_losses[i] for i in places], [second_losses[i] for i in places]
        spread = statistics.variance(one) / len(one) + statistics.variance(two) / len(two)
        found[language] = {
            "difference": _paired(one, two),
            "apart": stats.Z95 * math.sqrt(spread),
        }
    first, second = adapters
    records = await judged.compare(items, answers[1], answers[0])
    return found | {"headline": outcomes.headline(records, names=(first, second))}


def _paired(one: list[float], two: list[float]) -> stats.Estimate:
    """The mean difference (second minus first) with Student's interval: a loss has no upper bound,
    as `stats.rate` would need one."""
    from scipy.stats import ttest_rel

    found = ttest_rel(two, one)
    interval = found.confidence_interval()
    value = sum(two) / len(two) - sum(one) / len(one)
    se = abs(value / found.statistic) if found.statistic else 0.0
    return stats.Estimate(value, se, interval.low, interval.high, len(one))


async def main() -> None:
    chosen = settings.resolve({"RUN": "solutions"})
    if chosen.rehearsal:
        from rehearsal import stand_ins

        chosen.rehearsal_url = stand_ins.start()
    judged = judge.connect(chosen)
    print(f"judge: {judged.name}\n\nExercise 1: ten pairs in which the longer answer is worse")
    pairs = utils.read_jsonl(utils.DATA / "judge_calibration.jsonl")
    for name, found in (await exercise_1(judged, pairs)).items():
        gate = found["judge"]
        print(
            f"{name:<7} {gate.accuracy}, open for {', '.join(gate.languages) or 'no language'}; "
            f"the longer answer is right in {found['longer']}"
        )

    print("\nExercise 2: how many prompts name a winner")
    verdicts = settings.run_folder() / "verdicts.jsonl"
    if verdicts.exists():
        for n, rate, said in exercise_2(utils.read_jsonl(verdicts)):
            print(f"{n:>4} {rate.high - rate.low:.2f} wide: {said}")
    else:
        print(f"There is no {utils.short(verdicts)}: run evaluation.ipynb first.")

    print("\nExercise 3: which rows teach more")
    adapters = {name: settings.run_folder(name) / "adapter" for name in sys.argv[1:3]}
    if len(adapters) < 2:
        print("Make two adapters, then name them: python -m solutions.evaluation made shipped")
        print("  python run.py --run made --data run --only preprocess train")
        print("  python run.py --run shipped --data shipped --only train")
        return
    items = [
        item
        for item in utils.read_jsonl(utils.DATA / "eval_prompts.jsonl", contamination.PROMPT_FIELDS)
        if item["reference"]
    ]
    items = judge.sample([item for item in items if "follow_ups" not in item], 24, chosen.seed)
    for name, value in (await exercise_3(chosen.base_model, adapters, items, judged)).items():
        if name == "headline":
            print(value)
        else:
            gap = value["difference"]
            print(f"{name}: {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}] nats per token")


if __name__ == "__main__":
    utils.run_command(lambda: asyncio.run(main()))
