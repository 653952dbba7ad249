"""Train the adapter as `train.ipynb` does, as a script that `accelerate launch` runs on one GPU, on
several, or on several machines.

    .venv/bin/accelerate launch --config_file scale/configs/ddp.yaml -m scale.train --run big
    --base-model google/gemma-2b-it

What it does: the notebook's settings and `sft` functions with a fixed *global* batch, so that more
processes mean fewer accumulation steps and the same training; killed and started again, it goes on
from the last whole checkpoint. What it does not do: show anything. The adapter lies in
runs/<run>/adapter, where `evaluation.ipynb` finds it.
"""

from __future__ import annotations

import argparse
import functools
import sys
import types
from pathlib import Path

import settings
import utils
from training import adapter, chat, data, losses, machine, sft, student
from utils import CourseError

# What train.ipynb shows and explains; a test holds the two together
COURSE = {
    "learning_rate": 1e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "optim": "adamw_torch_fused",
    "padding_free": True,
    "max_length": None,
}
SMALL = {"learning_rate": 5e-4, "num_train_epochs": 1}  # for the packaged student
LORA = {"r": 4, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
HELD_OUT, MAX_LENGTH = 48, 1152  # as ROW_TOKENS, which lets the long rows in


def batches(global_batch: int, batch: int, processes: int) -> dict:
    """How a global batch is divided: rows a process at once, and steps of accumulation.

    Raises:
        CourseError: it cannot be divided evenly, so that the training would be another one.
    """
    if global_batch % (batch * processes):
        raise CourseError(
            f"A global batch of {global_batch} rows cannot be divided among {processes} processes "
            f"of {batch} rows: set --batch or "
            f"--global-batch so that {batch} x {processes} divides it."
        )
    return {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": global_batch // (batch * processes),
    }


def train(
    chosen: settings.Settings,
    global_batch: int = 8,
    batch: int = 4,
    callbacks=(),
    rows: list[dict] | None = None,
    **changes,
) -> list[dict]:
    """Train on this process's share and, in the first process, save the adapter; returns the
    trainer's log history.

    Args:
        changes: of `SFTConfig`, such as max_steps.
        rows: instead of `data.training_rows`.
    """
    import torch
    from accelerate import PartialState
    from peft import LoraConfig, get_peft_model
    from trl import SFTConfig

    # First: it gives this process its GPU, and "cuda" means that one from here on; without GPUs the
    # processes talk over gloo
    state = PartialState(cpu=not torch.cuda.is_available())
    say = print if state.is_main_process else (lambda *_: None)
    device = machine.choose_device()
    with state.main_process_first():  # the packaged student is converted once
        model, tokenizer = student.load_base(chosen.base_model, device, chosen.quantize)
    stop = chat.choose_stop(model, tokenizer)
    utils.seed_everything(chosen.seed)
    rows = data.training_rows(chosen) if rows is None else rows
    kept, held = sft.split(rows, min(HELD_OUT, len(rows) // 4), chosen.seed)
    train_set, too_long = chat.encode_all(kept, tokenizer, stop, MAX_LENGTH)
    held_out, _ = chat.encode_all(held, tokenizer, stop, MAX_LENGTH)
    torch.manual_seed(chosen.seed)  # the same first adapter in every process
    variant = {"use_dora": chosen.adapter == "dora", "use_rslora": chosen.adapter == "rslora"}
    model = get_peft_model(model, LoraConfig(**LORA, **variant))
    training_settings = (
        COURSE
        | (SMALL if chosen.packaged else {})
        | batches(global_batch, batch, state.num_processes)
    )
    training_settings |= {
        "bf16": device.dtype == "bfloat16",
        "fp16": device.dtype == "float16",
        "seed": chosen.seed,
    }
    training_settings |= {"gradient_checkpointing": device.name == "cuda"}
    if not losses.keeps_rows_apart(model, train_set):  # a convolution, say
        training_settings["padding_free"] = False
    training_settings |= changes
    steps = (
        training_settings.get("max_steps")
        or -(-len(train_set) // global_batch) * training_settings["num_train_epochs"]
    )
    # The job does not depend on the number of processes: a run goes on with more or fewer of them
    same = {
        key: value
        for key, value in training_settings.items()
        if key not in batches(global_batch, batch, 1)
    }
    job = utils.fingerprint(
        chosen.base_model, device.dtype, LORA, variant, same, global_batch, train_set, held_out
    )
    if record := adapter.finished(chosen.folder / "adapter", job):
        say(
            f"{utils.short(chosen.folder / 'adapter')} comes from exactly this training: nothing "
            "to do."
        )
        return record["history"]
    checkpoints = chosen.folder / "checkpoints" / job
    say(
        f"{len(train_set):,} rows in {steps} steps of {global_batch} on {state.num_processes} "
        f"processes; {len(too_long)} rows were too long"
    )
    with state.main_process_first():
        last = sft.last_checkpoint(checkpoints) if state.is_main_process else _whole(checkpoints)
    report_to = sft.track(chosen) if state.is_main_process else "none"
    plumbing = sft.plumbing(checkpoints, steps, report_to) | {"use_cpu": device.name == "cpu"}
    trainer = sft.trainer_class()(
        model=model,
        args=SFTConfig(**(plumbing | training_settings)),
        train_dataset=train_set,
        eval_dataset=held_out,
        processing_class=tokenizer,
        callbacks=[*callbacks, *([sft.progress_callback(steps)] if state.is_main_process else [])],
    )
    trainer.train(resume_from_checkpoint=last)
    history = trainer.state.log_history
    weights = trainer.accelerator.get_state_dict(
        trainer.model_wrapped
    )  # gathers what FSDP has cut up, so every process must ask
    if state.is_main_process:
        first, final = (
            [entry["eval_loss"] for entry in history if "eval_loss" in entry][at] for at in (0, -1)
        )
        record = {
            "job": job,
            "stop": stop.token,
            "stop_ids": stop.ids,
            "train_rows": len(train_set),
            "held_out_rows": len(held_out),
        }
        record |= {
            "settings": LORA
            | variant
            | training_settings
            | vars(device)
            | {"processes": state.num_processes},
            "history": history,
        }
        record |= {
            "base_model": chosen.base_model,
            "held_out_loss": {"first": first, "last": final},
        }
        whole = types.SimpleNamespace(
            save_pretrained=functools.partial(
                trainer.trained_model().save_pretrained, state_dict=weights
            )
        )
        adapter.save_adapter(
            whole, tokenizer, chosen.folder / "adapter", record, card(chosen, record)
        )
        say(
            f"held-out loss {first:.3f} -> {final:.3f}; the adapter lies in "
            f"{utils.short(chosen.folder / 'adapter')}"
        )
    state.wait_for_everyone()
    return history


def _whole(folder: Path) -> str | None:
    """The newest checkpoint; the first process has removed those that were cut off."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return str(found[-1]) if found else None


def card(chosen: settings.Settings, record: dict) -> str:
    """A short model card; the notebook's has answers and stop rates too, which this script does not
    measure."""
    loss = record["held_out_loss"]
    return (
        f"# LoRA adapter: {chosen.base_model}, instruction-tuned\n\nMade by `scale/train.py` of "
        "*Instruction Tuning from Scratch* (run "
        f"`{chosen.run}`), on {record['train_rows']} rows in {record['settings']['processes']} "
        "processes. Held-out loss "
        f"{loss['first']:.3f} at the first evaluation, {loss['last']:.3f} at the last, in nats "
        "per answer token. Generation stops at "
        f"{record['stop']}. The weights derive from {chosen.base_model} and stay under its "
        "licence.\n"
    )


def main() -> None:
    """The command line: the notebook's settings by name, each also as COURSE_<NAME>."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("run", "base-model", "train-on", "language", "adapter", "quantize", "tracking"):
        parser.add_argument(f"--{name}")
    parser.add_argument(
        "--global-batch", type=int, default=8, help="rows of one optimizer step, over all processes"
    )
    parser.add_argument("--batch", type=int, default=4, help="rows of one process at once")
    parser.add_argument("--max-steps", type=int)
    a = vars(parser.parse_args())
    sizes, steps = (a.pop("global_batch"), a.pop("batch")), a.pop("max_steps")
    changes = {"max_steps": steps} if steps else {}
    try:
        train(
            settings.resolve({name.upper(): value for name, value in a.items() if value}),
            *sizes,
            **changes,
        )
    except CourseError as error:
        print(f"Stopped: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
