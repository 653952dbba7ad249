"""Attention of packed rows on a CPU: each row attends within itself, so only its own block of
scores is computed.

What it does: give PyTorch's SDPA the rows of a packed batch one by one, as FlashAttention-2 does on
a GPU. What it does not do: any arithmetic of its own. Importing it does not import torch.

Sources: FlashAttention-2 (arXiv 2307.08691) for the sequence lengths in the place of a mask;
transformers' AttentionInterface.
"""

from __future__ import annotations

import itertools

from training.machine import Device

BY_ROW = "sdpa_by_row"


def implementation(device: Device) -> str:
    """What transformers is to compute for a device's `attention`: on a CPU SDPA by rows, elsewhere
    as it is called there."""
    return register() if device.name == "cpu" and device.attention == "sdpa" else device.attention


def register() -> str:
    """Make SDPA by rows known to transformers and return its name.

    SDPA alone computes all (total x total) scores of a packed batch and masks most of them away.
    TRL's collator says where rows begin (`cu_seq_lens_q`, and the total at its end), so the blocks
    on the diagonal are enough. Every block keeps its part of the mask: a sliding window stays as it
    is, and the result is the same (tests/training/test_losses.py). Batches that are not packed go
    to SDPA as they are.
    """
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def by_row(module, query, key, value, attention_mask, cu_seq_lens_q=None, **kwargs):
        """Queries (1, heads, total, size), keys and values likewise, mask (1, 1, total, total);
        returns (1, total, heads, size)."""
        if cu_seq_lens_q is None or attention_mask is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        rows = []
        for a, b in itertools.pairwise(cu_seq_lens_q.tolist()):
            block = (
                query[:, :, a:b],
                key[:, :, a:b],
                value[:, :, a:b],
                attention_mask[:, :, a:b, a:b],
            )
            rows.append(sdpa_attention_forward(module, *block, **kwargs)[0])
        return torch.cat(rows, dim=1), None

    AttentionInterface.register(BY_ROW, by_row)
    AttentionMaskInterface.register(BY_ROW, sdpa_mask)
    return BY_ROW
