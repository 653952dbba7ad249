"""The head's product in blocks is the product, and a model gets its own head back."""

import pytest
import torch

from training import head, losses


@pytest.fixture
def model(monkeypatch):
    """A tiny Llama whose 100 words are seven blocks, the last of them not full."""
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.setattr(head, "HEAD_ROWS", 16)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("words", [1, 15, 16, 17, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_give_the_whole_product(words, dtype, monkeypatch):
    monkeypatch.setattr(head, "HEAD_ROWS", 16)
    hidden, weight = torch.randn(5, 8).to(dtype), torch.randn(words, 8).to(dtype)
    out = torch.full((5, words), torch.nan, dtype=dtype)
    assert head.head_product(hidden, weight, out) is out
    torch.testing.assert_close(out, hidden @ weight.T)


@pytest.mark.parametrize("biased", [False, True])
def test_a_model_with_the_quick_head_gives_its_own_logits(model, biased, monkeypatch):
    if biased:
        model.lm_head.bias = torch.nn.Parameter(torch.randn(100))
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with torch.no_grad():
        expected = model(ids).logits
        shapes = written_shapes(monkeypatch)
        with head.quick_head(model):
            torch.testing.assert_close(model(ids).logits, expected)
    assert shapes == [(6, 16)] * 6 + [(6, 4)]
    assert "forward" not in vars(model.lm_head)


def test_gradients_are_asked_of_the_models_own_head(model):
    ids = torch.tensor([[1, 2, 3]])
    with head.quick_head(model):
        model(ids).logits.sum().backward()
    assert model.lm_head.weight.grad is not None


def test_the_own_head_is_back_after_an_error(model):
    with pytest.raises(KeyboardInterrupt), head.quick_head(model):
        assert "forward" in vars(model.lm_head)
        raise KeyboardInterrupt
    assert "forward" not in vars(model.lm_head)


def test_a_head_with_an_adapter_and_one_in_bf16_are_left_alone(model):
    from peft import LoraConfig, get_peft_model

    with head.quick_head(model.to(torch.bfloat16)):
        assert "forward" not in vars(model.lm_head)
    model.to(torch.float32)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"]))
    with head.quick_head(tuned):
        assert "forward" not in vars(model.lm_head)


def test_training_and_the_held_out_loss_multiply_in_blocks(model, monkeypatch):
    row = {"input_ids": [1, 2, 3, 4], "labels": [-100, 2, 3, 4]}
    head.head_of(model, torch.tensor([[1, 2]]))  # once, by the model's own head
    shapes = written_shapes(monkeypatch)
    losses.row_losses(model, [row], 0)
    assert shapes == [(3, 16)] * 6 + [(3, 4)]


def written_shapes(monkeypatch) -> list[tuple[int, ...]]:
    """A list that from now on gets the shape of every product that is written into given memory."""
    multiply, shapes = torch.mm, []

    def noted(*matrices, out):
        shapes.append(tuple(out.shape))
        return multiply(*matrices, out=out)

    monkeypatch.setattr(torch, "mm", noted)
    return shapes
