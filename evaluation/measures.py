"""What can be seen of an answer without a judge: where it ends, whether it circles, its language,
its likeness to the reference.

What it does: flaws of one answer, and the measures of a set of answers. What it does not do:
generate (training/generation.py) or judge (judge.py).
Importing it imports neither torch nor numpy.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

import prompts
from training import generation
from training.samples import loops

if TYPE_CHECKING:
    from training.chat import Stop
    from training.generation import Answer

SAME = 0.7  # ROUGE-L above which two texts say the same, as everywhere in the course
FLAWS = {
    "truncated": "cut off at the limit",
    "loop": "runs in circles",
    "empty": "empty",
    "wrong_language": "in the wrong language",
}


def flaws(answer: Answer, language: str, reference: str = "") -> list[str]:
    """Which of `FLAWS` an answer has.

    Args:
        language: of the request. The language that is wanted is the reference's where there is one:
            a translation's is the other one.
    """
    own_share = prompts.LANGUAGES[language].share  # blind where two languages share a script
    wanted = own_share(reference) if _letters(reference) else 1.0
    found = {
        "truncated": not answer.stopped,
        "loop": loops(answer.text),
        "empty": not answer.text.strip(),
        "wrong_language": _letters(answer.text) >= 10
        and abs(own_share(answer.text) - wanted) > 0.5,
    }
    return [name for name, there in found.items() if there]


def _letters(text: str) -> int:
    return sum(character.isalpha() for character in text)


def reference_losses(
    model, tokenizer, stop: Stop, items: Sequence[dict]
) -> dict[str, float | None]:
    """The loss in nats per token of `"base"` (the adapter switched off) and `"tuned"` on the
    references; None for both where no prompt has one."""
    from training import chat, losses

    references = [
        {
            "id": item["id"],
            "messages": [
                *generation.system_message(item),
                {"role": "user", "content": item["prompt"]},
                {"role": "assistant", "content": item["reference"]},
            ],
        }
        for item in items
        if item["reference"]
    ]
    if not references:
        return {"base": None, "tuned": None}
    encoded, _ = chat.encode_all(references, tokenizer, stop, max_length=1024)
    with model.disable_adapter():
        base = losses.held_out_loss(model, encoded, tokenizer.pad_token_id)
    return {
        "base": base,
        "tuned": losses.held_out_loss(model, encoded, tokenizer.pad_token_id),
    }


def cut_share(answers: Sequence[Sequence[Answer]]) -> float:
    """Share of answers of which a turn was cut off at the limit of tokens."""
    whole = 0
    for turns in answers:
        whole += all(turn.stopped for turn in turns)
    return 1 - whole / len(answers)


def beside(answers: Sequence[Answer], items: Sequence[dict]) -> dict[str, float]:
    """Measures that need no judge: likeness to the references (of those prompts that have one),
    length, and a rate for each flaw.

    Args:
        answers: one a prompt, of the first turn.
        items: `language` and `reference` of the same prompts.
    """
    import similarity

    with_reference = [
        (answer.text, item["reference"])
        for answer, item in zip(answers, items, strict=True)
        if item["reference"]
    ]
    found = [
        flaws(answer, item["language"], item["reference"])
        for answer, item in zip(answers, items, strict=True)
    ]
    measured = {}
    if with_reference:
        said = similarity.embed([text or " " for text, _ in with_reference])
        wanted = similarity.embed([reference or " " for _, reference in with_reference])
        measured["ROUGE-L to the references"] = _mean(
            similarity.rouge_l(text, reference) for text, reference in with_reference
        )
        measured["embedding similarity to the references"] = float(
            (said * wanted).sum(axis=1).mean()
        )
    measured["tokens of an answer"] = _mean(answer.tokens for answer in answers)
    measured["answers that end by themselves"] = _mean(answer.stopped for answer in answers)
    measured["answers that loop"] = _mean("loop" in names for names in found)
    measured["empty answers"] = _mean("empty" in names for names in found)
    measured["answers in the wrong language"] = _mean("wrong_language" in names for names in found)
    return measured


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


# --- long answers and later turns -----------------------------------------------------------------


def lengths(items: Sequence[dict], answers: Sequence[Sequence[Answer]]) -> dict[str, float]:
    """Median tokens of the first answers to "standard", "hard" and "long" prompts, as far as there
    are any; items without a `difficulty` count as standard."""
    groups: dict[str, list[int]] = {}
    for item, turns in zip(items, answers, strict=True):
        name = "long" if item.get("kind") == "long" else item.get("difficulty", "standard")
        groups.setdefault(name, []).append(turns[0].tokens)
    return {name: statistics.median(groups[name]) for name in sorted(groups)}


def recall(items: Sequence[dict], answers: Sequence[Sequence[Answer]]) -> float | None:
    """How much more the last answers of conversations share with their own earlier turns than with
    those of other conversations, in [-1, 1]; None without two conversations in one language.

    What an answer shares is the part of its words that stand in the earlier turns and not in the
    last request: an answer that only reads the last request shares nothing, and one of common words
    shares as much with other conversations. An answer that says an earlier one again has all its
    words there and has referred to nothing: its gain is 0.
    """
    talks = []
    for item, turns in zip(items, answers, strict=True):
        asked = [turn["prompt"] for turn in generation.turns(item)]
        if len(asked) > 1:
            earlier = [*asked[:-1], *(answer.text for answer in turns[:-1])]
            said = _stems(turns[-1].text) - _stems(asked[-1])
            talks.append((item["language"], said, _stems(" ".join(earlier)), _again(turns)))
    gains = []
    for i, (language, said, own, again) in enumerate(talks):
        others = [talk[2] for j, talk in enumerate(talks) if j != i and talk[0] == language]
        if said and others and again:
            gains.append(0.0)
        elif said and others:
            chance = _mean(len(said & other) / len(said) for other in others)
            gains.append(len(said & own) / len(said) - chance)
    return _mean(gains) if gains else None


def _again(turns: Sequence[Answer]) -> bool:
    """Whether the last answer is one of the earlier ones in nearly the same words."""
    import similarity

    said = [answer.text for answer in turns]
    return any(similarity.rouge_l(text, said[-1]) > SAME for text in said[:-1])


def _stems(text: str) -> set[str]:
    """Words without their endings: Korean ones change with every particle."""
    import similarity

    words = similarity.tokenize(text)
    stems = set()
    for word in words:
        if len(word) > 1:
            kept = 5 if word.isascii() else 2
            stems.add(word[:kept])
    return stems
