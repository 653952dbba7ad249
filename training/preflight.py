"""Before anything is loaded: what a training will cost on this machine, and whether it fits.

What it does: predict parameters, memory, speed and time from a model's config and the batch alone.
What it does not do: load weights, or measure what it really took (machine.py does). The prediction
is arithmetic that can be followed by hand; tests/training/test_preflight.py holds its parts against
what autograd really keeps, benchmarks/loss.py and memory.py its sum against measured steps.
Importing it does not import torch.

Sources: LoRA (arXiv 2106.09685); FLOP accounting as in PaLM (arXiv 2204.02311, appendix B), with
frozen weights.
"""

from __future__ import annotations

import dataclasses

from training.architecture import Shape, kept_bytes, shape
from training.losses import HEAD_CHUNK
from training.machine import BASELINE_GB, Device, free_gb, matmul_flops
from utils import CourseError

# Dense bf16 (T4, V100: fp16) matrix products, in TFLOP/s, from the makers' data sheets: for a GPU
# that is not at hand.
GPU_TFLOPS = {
    "T4": 65,
    "V100": 125,
    "L4": 121,
    "A10G": 70,
    "A100": 312,
    "L40S": 362,
    "RTX 4090": 165,
    "H100": 989,
    "H200": 989,
}
# What training reaches of the matrix-product ceiling. CPU, measured on two cores of AMD EPYCs: in
# float32 0.53 to 0.67 (benchmarks/loss.py), of which products are three quarters of a step's time;
# where bf16 has instructions of its own 0.31 (train.ipynb's run), because products are six times as
# fast there and the rest, in float32, is not. GPU: the middle of what is commonly reached with LoRA
# at 2B parameters, 0.30 to 0.45; not measured here yet (benchmarks/gpu_battery.py does). Apple's
# GPU: not measured either, taken as the other GPUs.
GPU_EFFICIENCY = 0.37
CPU_EFFICIENCY = {"float32": 0.58, "bfloat16": 0.31}
ADAPTER_BYTES = 16  # a float32 weight, its gradient and Adam's two averages
NF4_BYTES = 0.516  # 4 bits and a doubly quantised scale for every 64 weights
# kept for each head and pair of tokens where scores are capped: the tanh, the softmax in float32,
# its copy in 16 bits
EAGER_BYTES = 8
# oneDNN's compiled matrix products on a CPU in bf16: one for each new shape, 0.7 MB each, up to
# 1,024 of them
KERNELS_GB = 0.75
# What should be free on a CPU, in shares of the prediction. glibc keeps holes between the blocks
# that are freed: train.ipynb's training took 4.5 GB in one run and 5.3 in another, where the
# arithmetic says 4.2; its fullest batch alone took 5.1 GB, and 4.16 with
# MALLOC_MMAP_THRESHOLD_=1000000, which gives freed blocks back at once.
CPU_MARGIN = 1.3
LOSSES = ("trained positions", "trl", "full")


# --- the prediction -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a LoRA training will need. Print it, compare it, or ask `check` whether it fits."""

    of: Shape
    device: Device
    batch: int  # rows in one forward pass
    length: int  # tokens in a row, padding included; `batch * length` is what counts
    row: int  # tokens that attend to one another: `length`, or of packed rows a usual one
    rank: int
    trained: float  # share of the tokens that are trained, in [0, 1]
    loss: str  # one of LOSSES
    # keep only each layer's input and compute the rest again: less memory, more time
    checkpointing: bool
    quantize: bool  # QLoRA: the linear layers in 4 bits
    # rows that are answered at once between steps, and tokens of the longest, prompt and answer
    # together
    answers: tuple[int, int]
    flops: float  # the machine's matrix-product ceiling, FLOP/s
    ceiling: str  # where that number comes from

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def lora(self) -> int:
        """Trainable parameters."""
        return self.rank * self.of.lora_per_rank

    @property
    def flop_per_token(self) -> float:
        """Forward, backward without gradients of frozen weights (the same again) and, with
        checkpointing, the forward once more.

        The head's share: every position, or only trained ones. TRL's head on a GPU skips masked
        positions, on a CPU it does not; it computes its logits twice.
        """
        passes = 3 if self.checkpointing else 2
        # scores and mixing, half of them masked as future
        attention = 2 * self.row * self.of.queries * self.of.layers
        body = passes * (2 * self.of.linear + attention) + (2 + 2 * passes) * self.lora
        skips = self.loss == "trained positions" or (
            self.loss == "trl" and self.device.name == "cuda"
        )
        head = (6 if self.loss == "trl" else 4) * self.of.vocabulary * self.of.hidden
        return body + head * (self.trained if skips else 1)

    @property
    def memory(self) -> dict[str, float]:
        """GB (1e9 bytes) by part, at the peak of whichever needs more, a training step or answering
        between steps.

        In a step the head's logits and a layer's recomputation never meet: the larger counts. On a
        CPU in bf16 compiled kernels stay: after some thirty-five batches of different lengths
        oneDNN's cache is full (ONEDNN_PRIMITIVE_CACHE_CAPACITY makes it smaller). What the C
        library keeps of freed memory between steps is used again by the next one, so it does not
        count twice.
        """
        size = 4 if self.device.dtype == "float32" else 2
        linear = self.of.linear * (NF4_BYTES if self.quantize else size)
        pair = self.pair_bytes
        layer = kept_bytes(self.of, self.rank, self.device.dtype) + pair * self.length
        if self.loss == "full":
            # Logits, in float32 their softmax and its gradient, and that as 16 bits
            head = self.tokens * self.of.vocabulary * 12
        elif self.loss == "trl":
            # Triton folds in place
            head = (
                min(self.tokens, 4096) * 32768 * (size if self.device.name == "cuda" else size + 16)
            )
        else:
            # In float32 product, logits and softmax share one buffer; in 16 bits the product has
            # its own, and the softmax is narrowed for its product with the head
            each = 4 if size == 4 else 2 + 4 + 2
            head = (
                min(round(self.tokens * self.trained) + 1, HEAD_CHUNK) * self.of.vocabulary * each
            )
        slow = self.device.name == "cpu" and size == 2
        head += self.head_layout if slow else 0
        # One layer, and its widest gradients
        again = self.tokens * (layer + pair * self.length + 3 * size * self.of.feed_forward)
        kept = (
            self.of.layers * self.tokens * (size * self.of.hidden if self.checkpointing else layer)
        )
        step = {
            "activations": kept / 1e9,
            "logits or recomputation": max(head, again if self.checkpointing else 0) / 1e9,
        }
        between = {"answering": self.answering / 1e9}
        fixed = {
            "context" if self.device.name == "cuda" else "Python": BASELINE_GB[self.device.name],
            "weights": (linear + (self.of.parameters - self.of.linear) * size) / 1e9,
            "adapter": ADAPTER_BYTES * self.lora / 1e9,
        }
        return (
            fixed
            | ({"kernels": KERNELS_GB} if slow else {})
            | max(step, between, key=lambda part: sum(part.values()))
        )

    @property
    def pair_bytes(self) -> int:
        """Bytes that a layer keeps for each pair of tokens: the capped scores of eager attention,
        or on a CPU the mask, which SDPA turns into numbers for each layer anew."""
        if self.device.attention == "eager":
            return EAGER_BYTES * self.of.heads
        if self.device.name == "cpu":
            return 4 if self.device.dtype == "float32" else 2
        return 0

    @property
    def head_layout(self) -> int:
        """Bytes of the head laid out anew, which oneDNN does for each product in bf16."""
        return 2 * self.of.vocabulary * self.of.hidden

    @property
    def answering(self) -> float:
        """Bytes of `generation.generate` on `answers`, weights not counted; the adapter is switched
        on in the one model, so none is copied.

        Keys and values of all layers; one layer's widest tensors while the prompts are read, with
        the float32 input of its adapter; and the logits of one step, as they come and in float32.
        The held-out loss between steps needs less than a training step.
        """
        rows, length = self.answers
        size = 4 if self.device.dtype == "float32" else 2
        cache = 2 * self.of.layers * self.of.keys * size * rows * length
        reading = rows * length * (3 * size + 4) * self.of.feed_forward
        scores = (
            EAGER_BYTES * self.of.heads * rows * length**2
            if self.device.attention == "eager"
            else 0
        )
        logits = rows * self.of.vocabulary * (size + 4)
        layout = self.head_layout if rows and self.device.name == "cpu" and size == 2 else 0
        return cache + reading + scores + logits + layout

    @property
    def gb(self) -> float:
        """Peak memory, GB: VRAM on a GPU, RAM elsewhere."""
        return sum(self.memory.values())

    @property
    def wanted_gb(self) -> float:
        """GB that should be free: what it takes, with room for what the arithmetic leaves out."""
        return self.gb * (CPU_MARGIN if self.device.name == "cpu" else 1)

    @property
    def efficiency(self) -> float:
        """What training reaches of `flops`, a share."""
        return CPU_EFFICIENCY[self.device.dtype] if self.device.name == "cpu" else GPU_EFFICIENCY

    @property
    def tokens_per_second(self) -> float:
        return self.flops * self.efficiency / self.flop_per_token

    def seconds(self, tokens: int) -> float:
        """Time to train on so many tokens (those of all passes together)."""
        return tokens / self.tokens_per_second

    def __str__(self) -> str:
        of, place = self.of, "VRAM" if self.device.name == "cuda" else "RAM"
        parts = " + ".join(f"{name} {gb:.1f}" for name, gb in self.memory.items())
        return "\n".join(
            (
                f"parameters   {of.parameters:,}: embedding {of.embedding:,} "
                f"({'tied' if of.tied else 'not tied'}), rest {of.parameters - of.embedding:,}",
                f"LoRA r={self.rank:<4}  {self.lora:,} ({self.lora / of.parameters:.2%})",
                f"compute      {self.flop_per_token / 1e9:.2f} GFLOP a "
                f"token{', recomputing activations' if self.checkpointing else ''}",
                f"{place:<11}  {self.gb:.1f} GB = {parts}",
                f"speed        {self.tokens_per_second:,.0f} tokens/s = {self.efficiency:.0%} of "
                f"{self.flops / 1e12:.3g} TFLOP/s ({self.ceiling})",
            )
        )


def predict(
    config,
    device: Device,
    batch: int,
    length: int,
    rank: int = 4,
    trained: float = 1.0,
    row: int = 0,
    loss: str | None = None,
    checkpointing: bool = False,
    quantize: bool = False,
    answers: tuple[int, int] = (0, 0),
    gpu: str | None = None,
) -> Prediction:
    """What training will need, from the config and the batch.

    Args:
        config: a transformers config (`AutoConfig.from_pretrained(name)` or `model.config`).
        batch, length: rows in a forward pass and tokens in the longest, padding included; for
            packed rows, 1 and their sum.
        trained: share of trained tokens.
        row: of packed rows the tokens in a usual one; 0: `length`.
        answers: if rows are answered between training steps: how many at once, and the tokens of
            the longest, prompt and answer together.
        loss: one of `LOSSES`; None is what `sft.trainer_class` uses (a CPU: trained positions, a
            GPU: TRL's head).
        gpu: a key of `GPU_TFLOPS`, to predict for a GPU that is not here; None measures this
            machine for a second.

    Raises:
        CourseError: an unknown loss or GPU.
    """
    if loss is None:
        loss = "trl" if device.name == "cuda" else "trained positions"
    if loss not in LOSSES:
        raise CourseError(f"The loss {loss!r} is not known: choose one of {', '.join(LOSSES)}.")
    if gpu is not None and gpu not in GPU_TFLOPS:
        raise CourseError(
            f"The GPU {gpu!r} is not in the table: choose one of {', '.join(GPU_TFLOPS)}, or None "
            "to measure this machine."
        )
    flops, ceiling = (
        (GPU_TFLOPS[gpu] * 1e12, f"{gpu}, data sheet")
        if gpu
        else (matmul_flops(device), "measured here")
    )
    return Prediction(
        shape(config),
        device,
        batch,
        length,
        row or length,
        rank,
        trained,
        loss,
        checkpointing,
        quantize,
        answers,
        flops,
        ceiling,
    )


# --- does it fit? ---------------------------------------------------------------------------------


def check(prediction: Prediction, free: float | None = None) -> Prediction:
    """Refuse what cannot fit, with the first change of a setting that makes it fit.

    Args:
        prediction: from `predict`.
        free: GB; None asks the machine.

    Returns:
        `prediction`, so that a cell can print it.

    Raises:
        CourseError: more memory is wanted than is free.
    """
    free = free_gb(prediction.device) if free is None else free
    if prediction.wanted_gb <= free:
        return prediction
    place = "VRAM" if prediction.device.name == "cuda" else "RAM"
    wrong = (
        f"Training needs about {prediction.wanted_gb:.1f} GB of {place} and {free:.1f} GB are free"
    )
    advice, changed, left = [], prediction, _changes(prediction)
    # The first change that helps, and again: what needs less than the rest is not worth a change
    # yet
    while helpful := [
        (name, new)
        for name, change in left
        if (new := dataclasses.replace(changed, **change)).wanted_gb < changed.wanted_gb
    ]:
        setting, changed = helpful[0]
        left = [change for change in left if change[0] != setting]
        advice.append(setting)
        if changed.wanted_gb <= free:
            raise CourseError(
                f"{wrong}: set {', '.join(advice)} (then about {changed.wanted_gb:.1f} GB) or "
                "choose a smaller BASE_MODEL."
            )
    raise CourseError(
        f"{wrong}, and no setting brings it down to that: choose a smaller BASE_MODEL or a "
        "machine with more memory."
    )


def _changes(p: Prediction) -> list[tuple[str, dict]]:
    """`(setting, change)`, the cheapest first."""
    steps: list[tuple[str, dict]] = []
    if p.loss == "full":
        steps.append(("the loss over trained positions only", {"loss": "trained positions"}))
    if not p.checkpointing:
        steps.append(("gradient_checkpointing = True", {"checkpointing": True}))
    if p.batch > 1:
        steps.append(
            (
                f"per_device_train_batch_size = 1 with {p.batch} times the "
                "gradient_accumulation_steps",
                {"batch": 1},
            )
        )
    if p.answers[0] > 4:
        steps.append(("batch_size = 4 where `measure` generates", {"answers": (4, p.answers[1])}))
    if p.device.name == "cuda" and not p.quantize:
        steps.append(("QUANTIZE = '4bit'", {"quantize": True}))
    if p.length >= 256:
        steps.append((f"ROW_TOKENS = {p.length // 2}", {"length": p.length // 2}))
    return steps
