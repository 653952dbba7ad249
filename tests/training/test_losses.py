"""The same loss three ways, in value and in the adapter's gradients, and packing without
contamination; on tiny random models."""

import random

import pytest

from training import attention, head, losses
from training.chat import IGNORED

VOCABULARY = 500


pytestmark = pytest.mark.usefixtures("one_thread")


def build(kind: str = "gemma", rank: int = 4, by_row: bool = False):
    """A tiny random model with a LoRA adapter that already does something. Large weights, so that
    what a token sees matters."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        Gemma2Config,
        Gemma3TextConfig,
        GemmaConfig,
        LlamaConfig,
    )

    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "initializer_range": 0.3,
        "pad_token_id": 0,
    }
    config = {
        "gemma": lambda: GemmaConfig(**options),
        "gemma 2, soft-capped": lambda: Gemma2Config(
            **options, final_logit_softcapping=5.0, sliding_window=8
        ),
        "gemma 3, sliding window": lambda: Gemma3TextConfig(
            **options, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
        ),
        "llama, untied head": lambda: LlamaConfig(**options),
    }[kind]()
    torch.manual_seed(0)
    # No SDPA for Gemma 2, whose attention is capped too
    how = attention.register() if by_row else "eager" if "gemma 2" in kind else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=how, dtype=torch.float32)
    lora = LoraConfig(
        r=rank,
        lora_alpha=8,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    return get_peft_model(model, lora)


def encoded(count: int = 6) -> list[dict]:
    """Rows of different lengths: a masked prompt, a trained answer."""
    draw = random.Random(1)
    rows = []
    for length in [draw.randint(9, 30) for _ in range(count)]:
        ids = [draw.randint(1, VOCABULARY - 1) for _ in range(length)]
        prompt = length // 2
        rows.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
    return rows


KINDS = ("gemma", "gemma 2, soft-capped", "gemma 3, sliding window", "llama, untied head")


def value_and_gradients(model, loss_of, batch):
    model.zero_grad()
    loss, count = loss_of(model, **batch)
    (loss / count).backward()
    return (loss / count).item(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("kind", KINDS)
def test_three_ways_one_loss_and_one_gradient(kind):
    import torch

    model = build(kind)
    batch = losses.padded(encoded(), 0, "cpu")
    of = head.head_of(model, batch["input_ids"])
    assert of == head.Head(1.0, 5.0 if "soft-capped" in kind else None)
    value, gradients = value_and_gradients(model, losses.full_logits_loss, batch)
    assert len(gradients) == 2 * 7 * 2
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())
    ways = {
        "trl": losses.trl_loss,
        "ours": losses.answer_loss,
        "chunks of 7": lambda *a, **k: losses.answer_loss(*a, chunk=7, **k),
    }
    for way in ways:
        other, theirs = value_and_gradients(model, ways[way], batch)
        assert other == pytest.approx(value, abs=1e-4), way
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, theirs[name], atol=1e-4), (way, name)
    assert "forward" not in vars(model.get_base_model()), "TRL's head is taken off again"


def test_our_gradient_passes_the_numerical_check():
    """The autograd function by itself, in float64, against finite differences; with and without
    soft-capping."""
    import torch

    torch.manual_seed(0)
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 4, dtype=torch.float64)
    bias = torch.randn(11, dtype=torch.float64)
    targets = torch.tensor([0, 3, 10, 3, 7])
    for softcap in (None, 2.0):
        logits = hidden @ weight.T + bias
        logits = softcap * (logits / softcap).tanh() if softcap else logits
        expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        loss = losses._frozen_head()(hidden, weight, bias, targets, softcap, 2)
        assert torch.allclose(loss.double(), expected, rtol=1e-6)
        share = torch.rand(5)  # each position's own part in what is minimised
        wanted = torch.autograd.grad((share * expected).sum(), hidden)[0]
        got = torch.autograd.grad((share * loss).sum(), hidden)[0]
        assert torch.allclose(wanted, got, rtol=1e-5, atol=1e-6)


def test_the_logits_of_all_positions_never_exist_at_once(monkeypatch):
    """With chunks of 8, no tensor of the loss has more than 8 rows of the vocabulary's width."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Widest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if (
                    isinstance(tensor, torch.Tensor)
                    and tensor.dim() > 1
                    and tensor.shape[-1] == VOCABULARY
                    and tensor is not args[0]
                ):
                    self.rows = max(self.rows, tensor.numel() // VOCABULARY)
            return result

    model, batch = build(), losses.padded(encoded(), 0, "cpu")
    trained = int((batch["labels"][:, 1:] != IGNORED).sum())
    # 32: the transposed head itself, hidden_size rows
    for chunk, expected in ((8, 32), (1000, trained)):
        with Widest() as widest:
            loss, _ = losses.answer_loss(model, **batch, chunk=chunk)
            loss.backward()
        assert widest.rows == expected
    with Widest() as widest:
        losses.full_logits_loss(model, **batch)[0].backward()
    assert widest.rows == batch["input_ids"].numel()


def test_a_trained_head_gets_its_gradient():
    import torch

    model = build("llama, untied head").unload()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    batch = losses.padded(encoded(), 0, "cpu")
    heads = []
    for loss_of in (losses.full_logits_loss, losses.answer_loss):
        model.zero_grad()
        loss_of(model, **batch)[0].backward()
        heads.append(model.lm_head.weight.grad.clone())
    assert heads[0].abs().max() > 0 and torch.allclose(*heads, atol=1e-3)


def test_a_batch_without_trained_tokens_is_zero():
    model, row = build(), {"input_ids": [5, 6, 7], "labels": [IGNORED] * 3}
    loss, count = losses.answer_loss(model, **losses.padded([row], 0, "cpu"))
    loss.backward()
    assert loss.item() == 0 and count == 0


def test_compare_measures_the_three_ways():
    model = build()
    rows = losses.compare(model, losses.padded(encoded(), 0, "cpu"), repeats=1)
    assert [row["name"] for row in rows] == list(losses.WAYS)
    assert [row["loss"] for row in rows] == pytest.approx([rows[0]["loss"]] * 3, abs=1e-4)
    assert all(row["tokens_per_second"] > 0 and 0.05 < row["peak_gb"] < 100 for row in rows)
    assert all(parameter.grad is None for parameter in model.parameters())


# --- packing


def batches(strategy: str, rows: list[dict]) -> list[dict]:
    """What TRL's own packing and collator give the model; `pack_dataset` and the collator are those
    inside SFTTrainer."""
    from datasets import Dataset
    from trl import pack_dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    if strategy == "padding_free":
        return [DataCollatorForLanguageModeling(0, padding_free=True)(rows)]
    if strategy == "padded":
        return [DataCollatorForLanguageModeling(0)(rows)]
    packed = pack_dataset(Dataset.from_list(rows), 64, strategy)
    examples = [packed[i] for i in range(len(packed))]
    assert strategy != "bfd" or max(len(example["seq_lengths"]) for example in examples) > 1, (
        "something is packed"
    )
    return [DataCollatorForLanguageModeling(0, padding_free=strategy == "bfd")(examples)]


BY_ROW = [
    (kind, by_row)
    for kind in KINDS
    for by_row in (False, True)
    if not (by_row and "gemma 2" in kind)
]


def total(model, prepared: list[dict], loss_of=losses.answer_loss) -> tuple[float, int]:
    import torch

    with torch.no_grad():
        results = [loss_of(model, **batch) for batch in prepared]
    return sum(loss.item() for loss, _ in results), sum(int(count) for _, count in results)


@pytest.mark.parametrize(("kind", "by_row"), BY_ROW)
def test_packing_does_not_contaminate(kind, by_row):
    """Rows laid end to end see only themselves (trl#3067, #3695): on SDPA, without FlashAttention,
    the loss is that of single rows."""
    model, rows = build(kind, by_row=by_row), encoded(8)
    alone = total(model, [losses.padded([row], 0, "cpu") for row in rows])
    assert alone[1] == sum(label != IGNORED for row in rows for label in row["labels"])
    for strategy in ("padded", "padding_free", "bfd"):
        loss, count = total(model, batches(strategy, rows))
        assert (loss, count) == (pytest.approx(alone[0], rel=1e-5), alone[1]), strategy


@pytest.mark.parametrize("kind", ("gemma", "gemma 3, sliding window", "llama, untied head"))
def test_row_by_row_is_the_same_attention_on_fewer_scores(kind, monkeypatch):
    """Loss and gradients of a packed batch are those of plain SDPA, from blocks of one row, longer
    than the sliding window of 8."""
    import torch

    rows, asked = encoded(), []
    batch = dict(batches("padding_free", rows)[0])
    value, gradients = value_and_gradients(build(kind), losses.answer_loss, batch)
    plain = torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, value, **kwargs):
        asked.append((query.shape[2], key.shape[2]))
        return plain(query, key, value, **kwargs)

    model = build(kind, by_row=True)
    head.head_of(model, batch["input_ids"])  # once, on a few tokens
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    other, theirs = value_and_gradients(model, losses.answer_loss, batch)
    lengths = [len(row["input_ids"]) for row in rows]
    assert asked == [(length, length) for length in lengths] * 2 and max(lengths) > 8, (
        "two layers, a block for every row"
    )
    assert other == pytest.approx(value, abs=1e-5)
    assert all(torch.allclose(gradients[name], theirs[name], atol=1e-4) for name in gradients)

    asked.clear()
    padded = losses.padded(rows, 0, "cpu")
    losses.answer_loss(model, **padded)
    assert asked == [(max(lengths), max(lengths))] * 2, "a padded batch goes to SDPA whole"


@pytest.mark.parametrize("kind", ("gemma", "gemma 3, sliding window"))
def test_wrapped_and_naive_packing_do(kind):
    """The test above can fail: cut at a fixed length, or concatenated without positions, rows do
    see one another."""
    model, rows = build(kind), encoded(8)
    alone, count = total(model, [losses.padded([row], 0, "cpu") for row in rows])
    wrapped, wrapped_count = total(model, batches("wrapped", rows))
    assert abs(wrapped / wrapped_count - alone / count) > 1e-2
    naive = dict(batches("padding_free", rows)[0])
    loss, naive_count = total(model, [{"input_ids": naive["input_ids"], "labels": naive["labels"]}])
    assert naive_count == count and abs(loss - alone) / alone > 1e-3


# --- the overfitting lesson's record


def test_the_sweep_goes_on_where_it_stopped_and_is_drawn(tmp_path, monkeypatch):
    import matplotlib

    matplotlib.use("agg")
    from benchmarks import sweep

    monkeypatch.setattr(sweep, "RESULTS", tmp_path / "results" / "overfitting.json")
    assert sweep.last_step("1e-4") == -1
    point = {"step": 0, "epoch": 0.0, "held_out_loss": 2.9, "train_loss": None, "stop_rate": 0.0}
    for rate in ("1e-4", "2e-3"):
        sweep.write(rate, point)
        sweep.write(rate, point | {"step": sweep.STEPS, "epoch": 4.0, "train_loss": 1.5})
    assert sweep.last_step("1e-4") == sweep.STEPS and len(sweep.points("2e-3")) == 2
    monkeypatch.setattr(sweep, "run", lambda *arguments: pytest.fail("what is there is done again"))
    monkeypatch.setattr("sys.argv", ["sweep.py", "--rates", "1e-4", "2e-3"])
    sweep.main()
    assert sweep.table().count("\n| 1e-4 | ") == 2
    assert "| 2e-3 | 64 | 4.0 | 1.50 | 2.900 | 0% |" in sweep.table()
    axes = sweep.figure().axes
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["0.0001", "0.002"]
    assert all(len(line.get_xdata()) == 2 for line in axes[1].get_lines())


def test_each_rows_loss_is_its_own_in_the_order_given():
    """Rows are computed in batches by length; a row without a trained token has none."""
    model = build("gemma 2, soft-capped").eval()
    rng = random.Random(5)
    rows = []
    for length in (9, 3, 30, 12, 4, 21):
        ids = [rng.randrange(3, 60) for _ in range(length)]
        labels = [IGNORED] * 2 + ids[2:] if length != 4 else [IGNORED] * 4
        rows.append({"input_ids": ids, "labels": labels})
    found = losses.row_losses(model, rows, 0, batch_size=4)
    for row, (loss, tokens) in zip(rows, found, strict=True):
        expected, count = losses.full_logits_loss(model, **losses.padded([row], 0, "cpu"))
        assert tokens == count
        assert loss == pytest.approx(expected.item(), abs=1e-3)
    total = sum(loss for loss, _ in found) / sum(tokens for _, tokens in found)
    assert losses.held_out_loss(model, rows, 0) == pytest.approx(total, abs=1e-5)
