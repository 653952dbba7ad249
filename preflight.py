"""What this machine can do: precision and attention from what the hardware computes natively.

What it does: look at the hardware and say why it chooses. What it does not do: load a model. Importing it does not import torch.
"""

from __future__ import annotations

import dataclasses

import utils


@dataclasses.dataclass
class Device:
    """Where and how the model computes, with the reason, to be printed."""

    name: str  # "cuda" or "cpu"
    dtype: str  # "bfloat16", "float16" or "float32"
    attention: str  # transformers' attn_implementation
    reason: str

    def __str__(self) -> str:
        return f"{self.name}, {self.dtype}, {self.attention} attention: {self.reason}"


def choose_device() -> Device:
    """Precision and attention from what the hardware computes natively.

    On CUDA bf16 needs compute capability 8 (`torch.cuda.is_bf16_supported()` also counts a T4's slow emulation), and so does
    FlashAttention-2. On a CPU bf16 pays only where AMX or AVX512-BF16 multiplies it; elsewhere it is emulated in fp32.
    """
    import torch

    if torch.cuda.is_available():
        name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        if major < 8:
            return Device("cuda", "float16", "sdpa", f"{name} (capability {major}.{minor}) has neither bf16 nor FlashAttention-2")
        if utils.installed("flash_attn"):
            return Device("cuda", "bfloat16", "flash_attention_2", f"{name} (capability {major}.{minor}) and flash-attn is installed")
        if utils.installed("kernels"):  # a prebuilt FlashAttention-2 from the hub, so that nothing is compiled
            return Device(
                "cuda", "bfloat16", "kernels-community/flash-attn2", f"{name} (capability {major}.{minor}), prebuilt by `kernels`"
            )
        return Device("cuda", "bfloat16", "sdpa", f"{name} has bf16; neither flash-attn nor kernels is installed")
    if torch.cpu._is_amx_tile_supported():
        return Device("cpu", "bfloat16", "sdpa", "no GPU; this CPU multiplies bf16 in AMX tiles")
    if torch.cpu._is_avx512_bf16_supported():
        return Device("cpu", "bfloat16", "sdpa", "no GPU; this CPU has AVX512-BF16 instructions")
    return Device("cpu", "float32", "sdpa", "no GPU, and this CPU would only emulate bf16")
