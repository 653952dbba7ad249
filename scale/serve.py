"""Serve what was trained: the merged weights as GGUF for llama.cpp, and the answers of any served
model for the evaluation.

    python -m scale.serve gguf --merged runs/default/merged --base student.gguf --output tuned.gguf
    python -m scale.serve answers --endpoint http://localhost:8000/v1 --base gemma --tuned tuned
    --output runs/served/answers.jsonl

What it does: put merged weights into a copy of their base's GGUF file, tokenizer and all, and ask
an OpenAI-compatible server (vLLM, llama.cpp) the evaluation prompts. What it does not do: convert
any model, for which llama.cpp has convert_hf_to_gguf.py, or start a server (README.md says how).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import utils
from llm.client import Client
from training import generation
from training.generation import Answer, Conversation, Decoding
from utils import CourseError

KINDS = {"q8": "Q8_0", "bf16": "BF16", "f32": "F32"}


def to_gguf(merged: Path, base: Path, output: Path, kind: str = "q8") -> Path:
    """Write `merged` (the folder of `adapter.save_merged`) as GGUF, with everything that LoRA does
    not change taken from `base`.

    Matrices are replaced; vectors (the norms) stay as they are. Chat template and stop token come
    from the merged folder.

    Args:
        base: a GGUF of the same base model.
        kind: "q8", 8 bits a weight; "bf16"; "f32".

    Raises:
        CourseError: not a Gemma (llama.cpp orders the weights of others anew), or the two are not
            the same model, or the disk is full.
    """
    import gguf
    import torch
    from safetensors import safe_open
    from transformers import AutoTokenizer

    if not (merged / "model.safetensors").exists():
        raise CourseError(
            f"{utils.short(merged)} has no model.safetensors: run train.ipynb with MERGE = 'on' "
            "first."
        )
    if kind not in KINDS:
        raise CourseError(f"The kind {kind!r} is unknown: choose one of {', '.join(KINDS)}.")
    reader = gguf.GGUFReader(base)
    family = reader.fields["general.architecture"].contents()
    if family not in ("gemma", "gemma2", "gemma3"):
        raise CourseError(
            f"{base.name} is a {family} model, and only Gemma's weights can be copied one by one: "
            "use convert_hf_to_gguf.py."
        )
    named = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    blocks = reader.fields[f"{family}.block_count"].contents()
    names = gguf.get_tensor_name_map(named[family], blocks)
    form = gguf.GGMLQuantizationType[KINDS[kind]]
    settings = utils.read_json(merged / "generation_config.json")
    with _whole(output) as path:
        writer = gguf.GGUFWriter(path, family)
        for name, part in reader.fields.items():
            if not name.startswith("GGUF.") and name not in (
                "general.architecture",
                "general.file_type",
                "tokenizer.chat_template",
            ):
                writer.add_key_value(
                    name,
                    part.contents(),
                    part.types[0],
                    part.types[-1] if len(part.types) > 1 else None,
                )
        writer.add_file_type(
            gguf.LlamaFileType[{"q8": "MOSTLY_Q8_0", "bf16": "MOSTLY_BF16", "f32": "ALL_F32"}[kind]]
        )
        writer.add_chat_template(AutoTokenizer.from_pretrained(merged).chat_template)
        stops = settings.get("eos_token_id") or []
        for turn in set(stops if isinstance(stops, list) else [stops]) - {
            reader.fields["tokenizer.ggml.eos_token_id"].contents()
        }:
            writer.add_eot_token_id(turn)
        with safe_open(merged / "model.safetensors", "pt") as weights:
            own = {names.get_name(name, try_suffixes=(".weight",)): name for name in weights.keys()}  # noqa: SIM118 (no mapping)
            for tensor in reader.tensors:
                shape = tuple(int(size) for size in reversed(tensor.shape))
                if tensor.name not in own or weights.get_slice(
                    own[tensor.name]
                ).get_shape() != list(shape):
                    raise CourseError(
                        f"{base.name} has {tensor.name} of shape {shape}, and "
                        f"{utils.short(merged)} does not: not its base."
                    )
                if len(shape) < 2:
                    writer.add_tensor(tensor.name, tensor.data)
                    continue
                matrix = weights.get_tensor(own[tensor.name]).to(torch.float32).numpy()
                writer.add_tensor(tensor.name, gguf.quants.quantize(matrix, form), raw_dtype=form)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return output


@contextlib.contextmanager
def _whole(output: Path) -> Iterator[Path]:
    """A neighbour of `output` for a library that opens files by itself, moved over it as the last
    step."""
    output.parent.mkdir(parents=True, exist_ok=True)
    path = output.with_name(f".{output.name}.part")
    with utils.disk_errors(output):
        try:
            yield path
            os.replace(path, output)
        finally:
            path.unlink(missing_ok=True)


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
    """The command line; a mistake of the reader's ends in one sentence and status 2."""
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
    try:
        if a.command == "gguf":
            print(to_gguf(a.merged, a.base, a.output, a.kind))
            return
        urls = {a.base: a.endpoint, a.tuned: a.tuned_endpoint or a.endpoint}
        base, tuned = [
            Client(
                name,
                urls[name],
                journal=a.output.with_name(f"served_{k}.jsonl"),
                max_concurrency=a.concurrency,
            )
            for k, name in enumerate((a.base, a.tuned))
        ]
        writer = Served(base, tuned, Decoding(a.max_new_tokens, engine="served"))
        print(answer(writer, utils.read_jsonl(a.prompts, ("id", "prompt")), a.output))
    except CourseError as error:
        print(f"Stopped: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
