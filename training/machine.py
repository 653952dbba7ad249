"""What this machine can do: precision and attention for its hardware, its matrix-product ceiling,
its free memory, and the most that a piece of work took of it.

What it does: ask the hardware, and give the reason with the choice. What it does not do: predict
what a training needs (preflight.py does). Importing it does not import torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import utils

# Models whose activations do not fit fp16, which ends at 65,504, by the start of their model_type.
# Gemma 3 270M's residual stream reaches 103,821 (measured): in fp16 every logit is NaN.
TOO_LARGE_FOR_FP16 = ("gemma3",)

PREBUILT = "kernels-community/flash-attn2"  # on the hub, for the package `kernels`

# The CUDA context; Python with torch, transformers, trl and a tokenizer
BASELINE_GB = {"cuda": 0.8, "mps": 0.9, "cpu": 0.9}


@dataclasses.dataclass
class Device:
    """Where and how the model computes, with the reason, to be printed."""

    name: str  # "cuda", "mps" or "cpu"
    dtype: str  # "bfloat16", "float16" or "float32"
    attention: str  # transformers' attn_implementation
    reason: str

    def __str__(self) -> str:
        return f"{self.name}, {self.dtype}, {self.attention} attention: {self.reason}"


def choose_device(config=None) -> Device:
    """Precision and attention from what the hardware computes natively, and with a model's `config`
    from what that model computes.

    On CUDA bf16 needs compute capability 8 (`torch.cuda.is_bf16_supported()` also counts a T4's
    slow emulation), and so does FlashAttention-2. On a CPU bf16 pays only where AMX or AVX512-BF16
    multiplies it; elsewhere it is emulated in fp32. On Apple's GPU it is tried.
    """
    device = _hardware()
    return device if config is None else suited(device, config)


def suited(device: Device, config) -> Device:
    """`device`, corrected where this model cannot compute so, with the reason.

    Gemma 3 computes in float32 where the hardware has only fp16 (see TOO_LARGE_FOR_FP16). Gemma 2
    squashes scores with a tanh (`attn_logit_softcapping`); SDPA has no argument for that, and
    transformers 5.23 refuses to load such a model with it, so its attention is eager.
    FlashAttention-2 has one, and stays.
    """
    text = config.get_text_config()
    if device.dtype == "float16" and text.model_type.startswith(TOO_LARGE_FOR_FP16):
        why = f"{device.reason}; this model's activations are too large for fp16, so fp32"
        device = dataclasses.replace(device, dtype="float32", reason=why)
    cap = getattr(text, "attn_logit_softcapping", None)
    if cap is not None and device.attention == "sdpa":
        why = (
            f"{device.reason}; this model caps attention scores at {cap:g} "
            "(attn_logit_softcapping), which SDPA cannot"
        )
        device = dataclasses.replace(device, attention="eager", reason=why)
    return device


def _hardware() -> Device:
    import torch

    if torch.cuda.is_available():
        return _nvidia()
    if torch.backends.mps.is_available():
        return _apple()
    if torch.cpu._is_amx_tile_supported():
        return Device("cpu", "bfloat16", "sdpa", "no GPU; this CPU multiplies bf16 in AMX tiles")
    if torch.cpu._is_avx512_bf16_supported():
        return Device("cpu", "bfloat16", "sdpa", "no GPU; this CPU has AVX512-BF16 instructions")
    return Device("cpu", "float32", "sdpa", "no GPU, and this CPU would only emulate bf16")


def _nvidia() -> Device:
    import torch

    major, minor = torch.cuda.get_device_capability()
    name = f"{torch.cuda.get_device_name()} (capability {major}.{minor})"
    if major < 8:
        return Device("cuda", "float16", "sdpa", f"{name} has neither bf16 nor FlashAttention-2")
    attention, why = _flash_attention()
    return Device("cuda", "bfloat16", attention, f"{name} has bf16; {why}")


def _apple() -> Device:
    """Apple's GPU: bf16 where it gives the right product (from macOS 14 on), else fp32."""
    import torch

    try:
        row = torch.ones(1, 64, dtype=torch.bfloat16, device="mps")
        works = (row @ row.T).item() == 64
    except (RuntimeError, TypeError):  # older versions of macOS and torch refuse the dtype
        works = False
    if works:
        return Device("mps", "bfloat16", "sdpa", "Apple's GPU (MPS), which computes bf16 here")
    return Device("mps", "float32", "sdpa", "Apple's GPU (MPS), which does not compute bf16 here")


def _flash_attention() -> tuple[str, str]:
    """transformers' name for FlashAttention-2 where it says that it can be used, else "sdpa"; and
    why. It is never compiled: building flash-attn takes hours on Colab."""
    from transformers.utils import is_flash_attn_2_available, is_kernels_available

    if is_flash_attn_2_available():
        return "flash_attention_2", "flash-attn is installed"
    if not utils.installed("kernels"):
        return "sdpa", "neither flash-attn nor kernels is installed"
    if not is_kernels_available():  # transformers takes a narrow range of its versions
        return "sdpa", (
            "this version of kernels is none that transformers takes (the right one: pip install "
            "'transformers[kernels]')"
        )
    try:  # kernels fetches it from the hub, built for this torch and this GPU
        from transformers.modeling_flash_attention_utils import lazy_import_flash_attention

        lazy_import_flash_attention(PREBUILT)
    except Exception as error:  # no network, no build for this torch: of any kind
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        return "sdpa", f"FlashAttention-2 could not be had through kernels ({reason})"
    return PREBUILT, "FlashAttention-2 comes ready-made through kernels"


def matmul_flops(device: Device, seconds: float = 1.0) -> float:
    """This machine's matrix-product ceiling in FLOP/s, in the dtype of the training: the median of
    products within `seconds`."""
    import torch

    size = {"cuda": 8192, "mps": 4096, "cpu": 1024}[device.name]
    a, b = (
        torch.randn(size, size, dtype=getattr(torch, device.dtype), device=device.name)
        for _ in range(2)
    )
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize, "cpu": lambda: None}
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 4 or time.perf_counter() < end:
        started = time.perf_counter()
        a @ b
        wait[device.name]()
        times.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(times[1:])  # the first one warms up


def free_gb(device: Device) -> float:
    """Memory that this process can still get or already has, GB: VRAM or RAM."""
    if device.name == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info()
        # The context is up, and is in the prediction too
        return (free + torch.cuda.memory_reserved()) / 1e9 + BASELINE_GB["cuda"]
    import psutil

    own = psutil.Process().memory_info()
    # Weights that are mapped from a file are in the page cache, which counts as available already
    return (psutil.virtual_memory().available + own.rss - getattr(own, "shared", 0)) / 1e9


@dataclasses.dataclass
class Peak:
    """Filled when the block of `peak_memory` ends."""

    gb: float = 0.0


@contextlib.contextmanager
def peak_memory() -> Iterator[Peak]:
    """The highest memory of this process inside the block, in GB (1e9 bytes), everything that was
    loaded before it included.

    On a GPU: PyTorch's highest allocation and what the driver holds beside it (the CUDA context).
    On Linux: the kernel's own record (`VmHWM`), reset at the start. Elsewhere: resident memory,
    sampled a hundred times a second.
    """
    import torch

    peak = Peak()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        yield peak
        free, total = torch.cuda.mem_get_info()
        peak.gb = (
            torch.cuda.max_memory_allocated() + max(0, total - free - torch.cuda.memory_reserved())
        ) / 1e9
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        with _sampled(peak):
            yield peak
        return
    yield peak
    (kilobytes,) = re.findall(
        r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii")
    )
    peak.gb = int(kilobytes) * 1024 / 1e9


@contextlib.contextmanager
def _sampled(peak: Peak) -> Iterator[None]:
    """Keep `peak.gb` at the highest resident memory seen, for systems without /proc."""
    import psutil

    process, stop = psutil.Process(), threading.Event()

    def sample() -> None:
        while True:
            peak.gb = max(peak.gb, process.memory_info().rss / 1e9)
            if stop.wait(0.01):
                return

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
