"""What this course knows about models: families with their prices and terms, shutdown dates,
parameters. Three small tables to change when they change.

What it does: find a model's family, price a request, say when a model goes, and adjust a request to
what a model accepts. What it does not do: ask a server, or guess: of a model that no table knows it
says nothing. It needs the standard library only.
"""

from __future__ import annotations

import re
from datetime import date

# Dollars per million tokens: input, cached input, output, as several price tables that quote
# OpenAI's agree in 2026-11. From gpt-5.6 on, a prompt that OpenAI writes to its cache, as it does
# by itself, costs a quarter more: gpt-6-luna's input is $0.10, booked as if all were written.
PRICES = {
    "gpt-4o": (2.50, 1.25, 10.00),
    "gpt-4o-mini": (0.15, 0.075, 0.60),
    "gpt-6-luna": (0.125, 0.01, 0.50),
}
# The same for models that the course does not offer, but readers use: by the name without a date,
# with "ft:" for fine-tuned ones. Where no table has a price for cached input, it is that of input.
OTHER_PRICES = {
    "chatgpt-4o-latest": (5.00, 5.00, 15.00),
    "gpt-4o-2024-05-13": (5.00, 5.00, 15.00),
    "ft:gpt-4o": (3.75, 3.75, 15.00),
    "ft:gpt-4o-mini": (0.30, 0.30, 1.20),
    "o4-mini": (1.10, 0.275, 4.40),
}
FREE = (0.0, 0.0, 0.0)
BATCH_SHARE = 0.5  # what a request costs in a batch, as a share of these prices

# Announced shutdowns, from the documentation of the openai package 3.54
# (`chat.completions.create`), and what to use instead.
SHUTDOWN = {
    "gpt-4o": date(2027, 1, 14),
    "gpt-4o-2024-11-20": date(2027, 1, 14),
    "gpt-4o-2024-08-06": date(2027, 1, 14),
    "gpt-4o-2024-05-13": date(2026, 10, 23),
    "gpt-4o-mini": date(2027, 1, 14),
    "gpt-4o-mini-2024-07-18": date(2027, 1, 14),
}
SUCCESSOR = "gpt-6-luna"
NOTICE_DAYS = 90

# Reasoning models, with what is sent where a request says nothing: without reasoning they take a
# temperature like gpt-4o, and `max_completion_tokens` is spent on the answer alone.
REASONING = {"gpt-6-luna": {"reasoning_effort": "none"}}
ONLY_WITHOUT_REASONING = ("temperature", "top_p")

# Whose terms the output of a model is under, by the start of its name. The open ones come first:
# gpt-oss is OpenAI's, but its weights are published under a licence of their own.
OPEN, OPENAI, UNKNOWN = "open", "openai", "unknown"
FAMILIES = (
    (r"gpt-oss", OPEN),
    (r"gemma|llama|qwen|mistral|mixtral|phi-|deepseek|exaone|solar|olmo|smollm|hyperclovax", OPEN),
    (r"gpt-|chatgpt-|o\d+(-|$)|text-davinci|davinci|curie|babbage", OPENAI),
)


def bare(model: str) -> str:
    """A model's own name in lower case: without a router's `openai/`, and of a fine-tuned model
    (`ft:gpt-4o-2024-08-06:account::id`) that of its base."""
    name = model.strip().lower()
    name = name.split(":")[1] if name.startswith("ft:") else name
    return name.rpartition("/")[2]


def family(model: str) -> str:
    """Under whose terms a model's output is: OPENAI, OPEN (published weights under a licence of
    their own) or UNKNOWN."""
    name = bare(model)
    for pattern, terms in FAMILIES:
        if re.match(pattern, name):
            return terms
    return UNKNOWN


def price(model: str) -> tuple[float, float, float] | None:
    """Dollars per million tokens for a model of OpenAI's, also behind a router's `openai/`, as a
    dated version, or fine-tuned; None where the tables have none."""
    table = PRICES | OTHER_PRICES
    tuned = "ft:" if model.startswith("ft:") else ""
    name = tuned + bare(model)
    undated = re.sub(r"-\d{4}-\d{2}-\d{2}$", "", name)
    return table.get(name) or table.get(undated)


def cost(prices: tuple[float, float, float] | None, tokens: dict) -> float:
    """Dollars for `prompt_tokens`, `cached_tokens` (part of them) and `completion_tokens`; 0 where
    no price is known."""
    if prices is None:
        return 0.0
    cached = min(tokens.get("cached_tokens", 0), tokens["prompt_tokens"])
    return (
        (tokens["prompt_tokens"] - cached) * prices[0]
        + cached * prices[1]
        + tokens["completion_tokens"] * prices[2]
    ) / 1e6


def retirement(model: str, today: date | None = None) -> str | None:
    """One sentence where `model` is shut down within 90 days, or has been; None otherwise and for
    models not in the table."""
    gone = SHUTDOWN.get(model)
    if gone is None or (left := (gone - (today or date.today())).days) > NOTICE_DAYS:
        return None
    near = {1: "tomorrow", 0: "today"}
    when = near.get(left, f"in {left} days" if left > 1 else "which has passed")
    return (
        f"OpenAI announced to shut {model} down on {gone}, {when}: set TEACHER or JUDGE to "
        f"{SUCCESSOR!r}, which it recommends instead (other answers, so calibrate the judge again)."
    )


def warn_of_retirement(names: list[str]) -> None:
    """Print a sentence for every model among `names` that is about to be shut down."""
    for name in names:
        if notice := retirement(name):
            print(f"notice      {notice}")


def adjusted(model: str, request: dict, settings: dict | None = None) -> dict:
    """The parameters that `model` is sent: the table's, over them the request's, over them the
    reader's `settings`.

    A setting of None leaves that parameter out. Temperature is left out where a reasoning model
    reasons: it would be refused.
    """
    sent = REASONING.get(model, {}) | request | (settings or {})
    dropped = {name for name, value in (settings or {}).items() if value is None}
    if model in REASONING and sent.get("reasoning_effort") != "none":
        dropped.update(ONLY_WITHOUT_REASONING)
    return {name: value for name, value in sent.items() if name not in dropped}
