"""One short training of the packaged student, for the measurements that compare several of them.

What it does: load the student with its stop, and make the course's trainer for some encoded rows
with LoRA on all linear layers. What it does not do: choose rows, or measure anything.
"""

from __future__ import annotations

import os
from pathlib import Path

import settings
import utils
from training import chat, machine, sft, student

SEED, RANK = 42, 4


def give_way() -> None:
    """Work without a network, and on a shared machine let others go first; before torch is
    imported."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def base() -> tuple:
    """`(model, tokenizer, stop)`: the packaged student, before any training."""
    utils.seed_everything(SEED)
    model, tokenizer = student.load_base(settings.PACKAGED_STUDENT, machine.choose_device())
    return model, tokenizer, chat.choose_stop(model, tokenizer)


def trainer(model, tokenizer, encoded: list[dict], output: Path, callbacks=(), **changes):
    """The trainer of `sft.trainer_class`, which keeps nothing and measures nothing unless told to.

    Args:
        encoded: rows of `chat.encode_all`.
        output: folder for checkpoints.
        changes: what SFTConfig is told beyond the settings here.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from trl import SFTConfig

    lora = LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    config = {
        "output_dir": str(output),
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "optim": "adamw_torch_fused",
        "bf16": model.dtype == torch.bfloat16,
        "gradient_checkpointing": False,
        "padding_free": True,
        "max_length": None,
        "use_cpu": model.device.type == "cpu",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": SEED,
    }
    return sft.trainer_class()(
        model=get_peft_model(model, lora),
        args=SFTConfig(**config | changes),
        train_dataset=encoded,
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
