"""What a model says to a few fixed prompts before, during and after training, and what changed.

What it does: a table to be read, and a sentence for each prompt that is computed from the answers.
What it does not do: ask the model (generation.py), or judge whether an answer is right (a reader
does). Importing it needs the standard library only.
"""

from __future__ import annotations

import html
import re

import utils

ECHO = 0.8  # share of an answer's words that stand in the prompt, from which on it is an echo


def loops(text: str, n: int = 4, share: float = 0.5) -> bool:
    """True if more than `share` of the word n-grams repeat an earlier one: the model is going round
    in circles. Numbers of a list do not count, for a sentence that is repeated under ten numbers
    is repeated."""
    words = [word for word in text.split() if not re.fullmatch(r"\d+[.)]", word)]
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(grams) > n and 1 - len(set(grams)) / len(grams) > share


def echoes(text: str, prompt: str) -> bool:
    """True if the answer is hardly more than the prompt again."""
    words, asked = text.split(), set(prompt.split())
    return bool(words) and sum(word in asked for word in words) / len(words) >= ECHO


def looks(text: str, prompt: str) -> str:
    """What can be seen of an answer without understanding it."""
    if not text.strip():
        return "is empty"
    if echoes(text, prompt):
        return "echoes the question"
    if loops(text):
        return "runs in circles"
    return "neither echoes nor circles"


def what_changed(prompts: list[str], before: dict, after: dict) -> str:
    """A sentence for each prompt: how the answer looked before training, and after.

    Args:
        before, after: what the notebook's `measure` returned; `samples` is an answer per prompt.
    """
    lines = []
    for prompt, old, new in zip(prompts, before["samples"], after["samples"], strict=True):
        was, now = looks(old, prompt), looks(new, prompt)
        change = f"Before training the answer {was}, after it {now}."
        lines.append(f"{prompt}\n    {change}")
    return "\n".join(lines)


STYLE = (
    "<style>.samples td, .samples th {text-align: left !important; vertical-align: top; "
    "white-space: pre-wrap; overflow-wrap: anywhere; min-width: 9em; max-width: 22em}</style>"
)


class SamplesTable:
    """The answers of every measurement side by side; in Jupyter a table whose cells wrap."""

    def __init__(
        self, prompts: list[str], before: dict, history: list[dict], after: dict, longest: int = 400
    ) -> None:
        """`history` is the trainer's log, whose entries with `samples` were measured on the way;
        answers are shown up to `longest` characters."""
        self.columns = {"before": before["samples"]}
        for entry in history:
            if "samples" in entry:
                self.columns[f"step {entry['step']}"] = entry["samples"]
        self.columns["after"] = after["samples"]
        self.prompts, self.longest = prompts, longest

    def _repr_html_(self) -> str:
        """What a model or a file says is text, never HTML: everything is escaped."""
        names = [utils.translated(name) for name in ("prompt", *self.columns)]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        rows = []
        for i, prompt in enumerate(self.prompts):
            texts = [prompt] + [answers[i][: self.longest] for answers in self.columns.values()]
            rows.append("".join(f"<td>{html.escape(text)}</td>" for text in texts))
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f'{STYLE}<table class="samples"><tr>{head}</tr>{body}</table>'

    def __repr__(self) -> str:
        lines = []
        for i, prompt in enumerate(self.prompts):
            lines.append(f"> {prompt}")
            for name, answers in self.columns.items():
                lines.append(f"  {name:<8} {' '.join(answers[i].split())[: self.longest]}")
        return "\n".join(lines)
