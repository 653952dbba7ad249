"""Serve what was trained: the merged weights as GGUF for llama.cpp, and the answers of any served
model for the evaluation.

    python -m scale.serve gguf --merged runs/default/merged --base student.gguf --output tuned.gguf
    python -m scale.serve answers --endpoint http://localhost:8000/v1 --base gemma --tuned tuned
    --output runs/served/answers.jsonl

What it does: ask an OpenAI-compatible server (vLLM, llama.cpp) the evaluation prompts. What it does
not do: make a GGUF by itself (training/export.py), or start a server (README.md says how).
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import utils
from llm.client import Client
from llm.endpoint import Endpoint, Failure
from llm.limits import Limits
from training import generation
from training.export import KINDS, to_gguf
from training.generation import Answer, Conversation, Decoding
from utils import CourseError


@dataclass(frozen=True)
class ServedDecoding(Decoding):
    """How and by whom: the two models as they call themselves in their replies. A server may have
    another model behind the name that it had yesterday."""

    engine: str = "served"
    base_model: str = ""
    tuned_model: str = ""


def answering(model: str, url: str) -> str:
    """The model that answers to a name, as its replies call it; one token is asked for.

    Raises:
        CourseError: none answers.
    """
    server = Endpoint(model, url, _key(), Limits(), attempts=3, timeout=300)
    said = [{"role": "user", "content": "Hello?"}]
    hello = {"model": model, "messages": said, "max_completion_tokens": 1}

    async def ask() -> str:
        async with server.open() as sdk:
            answer = await server.persist(lambda: server.send(sdk, hello))
        return answer.model or model

    try:
        return asyncio.run(ask())
    except Failure as failure:
        raise CourseError(f"{model} at {url} does not answer: {failure}") from None


def _key() -> str:
    """A server of one's own may have been given a key, or have none."""
    return utils.secret("OPENAI_API_KEY") or "none"


@dataclass
class Served:
    """A `generation.Writer` whose two models are served: by one server under two names, or by two
    servers.

    The chat template and the stop tokens are the server's, so that what is evaluated is what users
    of that server get.
    """

    base: Client
    tuned: Client
    decoding: Decoding

    def answers(
        self,
        conversations: Sequence[Conversation],
        adapter: bool,
        limits: Sequence[int] | None = None,
    ) -> list[Answer]:
        """Answers in the order asked.

        Raises:
            CourseError: the server cannot be reached, or one request has no answer.
        """
        asked = [
            [{"role": "user", "content": said}] if isinstance(said, str) else said
            for said in conversations
        ]
        how = {"temperature": self.decoding.temperature, "seed": self.decoding.seed}
        limits = limits or [self.decoding.max_new_tokens] * len(asked)
        client = self.tuned if adapter else self.base
        replies = asyncio.run(
            client.complete(
                [
                    {"messages": messages, "max_completion_tokens": limit} | how
                    for messages, limit in zip(asked, limits, strict=True)
                ]
            )
        )
        for reply, messages in zip(replies, asked, strict=True):
            if reply.error and reply.finish_reason != "length":
                raise CourseError(
                    f"{client.model} gave no answer to {messages[-1]['content'][:60]!r} "
                    f"({reply.error}): run again."
                )
        return [
            Answer(
                reply.text.strip(),
                reply.finish_reason == "stop",
                reply.usage.get("completion_tokens", 0),
            )
            for reply in replies
        ]


def answer(writer: Served, items: list[dict], output: Path) -> Path:
    """`answers.jsonl` of both models, as evaluation.ipynb writes it, for `scale/generate.py
    judge`."""
    job = utils.fingerprint(
        "served", writer.base.model, writer.tuned.model, vars(writer.decoding), items
    )
    base, tuned = (generation.converse(writer, items, adapter) for adapter in (False, True))
    return generation.write_answers(output, items, base, tuned, writer.decoding, job)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("gguf", help="merged weights into a copy of their base's GGUF")
    for name in ("merged", "base", "output"):
        made.add_argument(f"--{name}", type=Path, required=True)
    made.add_argument("--kind", default="q8", choices=KINDS)
    asked = commands.add_parser("answers", help="ask served models the evaluation prompts")
    asked.add_argument("--endpoint", required=True)
    asked.add_argument("--tuned-endpoint", help="where the tuned model has a server of its own")
    asked.add_argument("--base", required=True, help="the base model's name at its server")
    asked.add_argument("--tuned", required=True)
    asked.add_argument("--output", type=Path, required=True)
    asked.add_argument("--prompts", type=Path, default=utils.DATA / "eval_prompts.jsonl")
    asked.add_argument("--max-new-tokens", type=int, default=128)
    asked.add_argument("--concurrency", type=int, default=16)
    a = parser.parse_args()
    if a.command == "gguf":
        print(to_gguf(a.merged, a.base, a.output, a.kind))
        return
    base, base_model = _client("base", a.base, a.endpoint, a)
    tuned, tuned_model = _client("tuned", a.tuned, a.tuned_endpoint or a.endpoint, a)
    how = ServedDecoding(a.max_new_tokens, base_model=base_model, tuned_model=tuned_model)
    writer = Served(base, tuned, how)
    print(answer(writer, utils.read_jsonl(a.prompts, ("id", "prompt")), a.output))


def _client(role: str, name: str, url: str, a: argparse.Namespace) -> tuple[Client, str]:
    """A client of one of the two models, with a journal of the model that answers there, and what
    that one calls itself."""
    model = answering(name, url)
    journal = a.output.with_name(f"served_{role}_{utils.fingerprint(name, model)}.jsonl")
    return Client(name, url, _key(), journal, max_concurrency=a.concurrency), model


if __name__ == "__main__":
    utils.run_command(main, mistake=2)
