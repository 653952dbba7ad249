"""What a config says about a model, before any weight is there: layers, parameters, and what
autograd keeps of them.

What it does: count on a model without memory, so that it holds for any dense decoder. What it does
not do: say what a training costs (preflight.py does). Importing it does not import torch.
"""

from __future__ import annotations

import dataclasses
import re

from utils import CourseError


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a config says about a decoder-only model; sizes in numbers of weights or features."""

    parameters: int  # all, a tied head counted once
    embedding: int  # the input embedding, and the head where it is not tied to it
    tied: bool
    linear: int  # weights of the linear layers that LoRA adapts (all but the head)
    # weights of an adapter of rank 1 on all of them: the sum of inputs + outputs
    lora_per_rank: int
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    queries: int  # heads times their size
    keys: int
    vocabulary: int
    norms: int  # RMSNorms of width `hidden` in a layer
    head_norms: bool  # Gemma 3 and Qwen 3 also normalise queries and keys


def gemma_2b():
    """The config of google/gemma-2b as published, for forecasts on a machine that does not have it
    (the hub asks for a licence first)."""
    from transformers import GemmaConfig

    return GemmaConfig(
        vocab_size=256000,
        hidden_size=2048,
        intermediate_size=16384,
        num_hidden_layers=18,
        num_attention_heads=8,
        num_key_value_heads=1,
        head_dim=256,
        max_position_embeddings=8192,
    )


def skeleton(config):
    """The model of a config on PyTorch's "meta" device: every layer with its name and shape, and no
    memory.

    Raises:
        CourseError: the config is not that of a causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config.get_text_config())
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise CourseError(
            f"A {config.model_type} model is no causal language model, so it cannot continue text: "
            "set BASE_MODEL to a Gemma, Llama or Qwen, say."
        ) from None


def shape(config) -> Shape:
    """Count on the `skeleton`, so that it holds for any dense decoder in transformers.

    Raises:
        CourseError: the config is not that of a dense decoder like Gemma, Llama or Qwen.
    """
    import torch

    text = config.get_text_config()
    for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"):
        if not isinstance(getattr(text, name, None), int):
            raise CourseError(
                f"What training needs cannot be predicted for {config.model_type} models (no "
                f"single {name} in the config): choose a dense "
                "Gemma, Llama or Qwen as BASE_MODEL, or leave the prediction out."
            )
    model = skeleton(config)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings().weight
    linear = [
        module
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]
    tied = bool(getattr(text, "tie_word_embeddings", False))
    parameters = sum(parameter.numel() for parameter in model.parameters()) - (
        0 if head.weight is embedding or not tied else head.weight.numel()
    )
    per_layer = [
        name for name, _ in model.named_modules() if re.search(r"\.layers\.0\..*norm$", name)
    ]
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        parameters=parameters,
        embedding=embedding.numel() + (0 if tied else head.weight.numel()),
        tied=tied,
        linear=sum(module.weight.numel() for module in linear),
        lora_per_rank=sum(module.in_features + module.out_features for module in linear),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        feed_forward=text.intermediate_size,
        heads=text.num_attention_heads,
        queries=text.num_attention_heads * head_size,
        keys=(getattr(text, "num_key_value_heads", None) or text.num_attention_heads) * head_size,
        vocabulary=embedding.shape[0],
        norms=sum("self_attn" not in name for name in per_layer),
        head_norms=any("self_attn" in name for name in per_layer),
    )


def kept_bytes(of: Shape, rank: int, dtype: str) -> int:
    """Bytes that autograd keeps of one layer for one token, with LoRA on all linear layers and
    without checkpointing.

    Four tensors of the feed-forward's width (gate, its activation, up, their product), what LoRA's
    A matrices multiply, queries, keys, values and the attention's output, and the inputs of the
    norms, which compute in float32. In 16 bits PEFT makes a copy of an input for each adapter that
    reads it; in float32 they share it.
    """
    size, inputs, outputs = (4, 2, 2) if dtype == "float32" else (2, 5, 3)
    linear = size * (
        4 * of.feed_forward + inputs * of.hidden + outputs * of.queries + 4 * of.keys + 7 * rank
    )
    return linear + 4 * of.norms * of.hidden + (4 * (of.queries + of.keys) if of.head_norms else 0)
