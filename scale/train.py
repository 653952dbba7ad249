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
import dataclasses
import functools
import os
import types
from pathlib import Path

import settings
import utils
from training import adapter, attention, chat, data, losses, machine, sft, student
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
FSDP_SINCE = "1.15"  # before, a full state dict lacks all shards but the first (accelerate PR 4206)


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
    from accelerate.utils import DistributedType
    from peft import LoraConfig, get_peft_model
    from trl import SFTConfig

    # First: it gives this process its GPU, and "cuda" means that one from here on; without GPUs the
    # processes talk over gloo
    state = PartialState(cpu=not torch.cuda.is_available())
    say = print if state.is_main_process else (lambda *_: None)
    sharded = _shards(state, chosen.quantize)
    device = machine.choose_device()
    load = _load_once if sharded else _load_in_each
    model, tokenizer = load(chosen, device, state)
    # Only the first process has weights to ask where they are sharded
    asks = state.is_main_process or not sharded
    stop = _agreed(chat.choose_stop(model, tokenizer) if asks else None)
    utils.seed_everything(chosen.seed)
    rows = data.training_rows(chosen) if rows is None else rows
    kept, held = sft.split(rows, min(HELD_OUT, len(rows) // 4), chosen.seed)
    train_set, too_long = chat.encode_all(kept, tokenizer, stop, MAX_LENGTH)
    held_out, _ = chat.encode_all(held, tokenizer, stop, MAX_LENGTH)
    torch.manual_seed(chosen.seed)  # the same first adapter in every process
    variant = {"use_dora": chosen.adapter == "dora", "use_rslora": chosen.adapter == "rslora"}
    model = get_peft_model(model, LoraConfig(**LORA, **variant))
    if not asks:
        _give_memory_to_the_adapter(model)
    training_settings = (
        COURSE
        | (SMALL if chosen.packaged else {})
        | batches(global_batch, batch, state.num_processes)
    )
    training_settings |= {
        "bf16": device.dtype == "bfloat16",
        "fp16": device.dtype == "float16",
        "seed": chosen.seed,
        "gradient_checkpointing": device.name == "cuda",
    }
    if not _agreed(losses.keeps_rows_apart(model, train_set) if asks else None):
        training_settings["padding_free"] = False  # a convolution, say
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
    checkpoints = chosen.folder / "checkpoints" / (f"{job}-shards" if sharded else job)
    say(
        f"{len(train_set):,} rows in {steps} steps of {global_batch} on {state.num_processes} "
        f"processes{', which share the weights' if sharded else ''}; {len(too_long)} rows were too "
        "long"
    )
    with state.main_process_first():
        last = sft.last_checkpoint(checkpoints) if state.is_main_process else _whole(checkpoints)
    report_to = sft.track(chosen) if state.is_main_process else "none"
    plumbing = sft.plumbing(checkpoints, steps, report_to) | {"use_cpu": device.name == "cpu"}
    args = SFTConfig(**(plumbing | training_settings))
    if sharded:
        # Asked to shard on CPUs, accelerate quietly trains a whole copy in each process. FSDP2 can
        # do it over gloo, so that what is tried on a laptop is what runs on GPUs
        args.distributed_state.distributed_type = DistributedType.MULTI_GPU
    trainer = sft.trainer_class()(
        model=model,
        args=args,
        train_dataset=train_set,
        eval_dataset=held_out,
        processing_class=tokenizer,
        callbacks=[*callbacks, *([sft.progress_callback(steps)] if state.is_main_process else [])],
        choose_loss=_sharded_loss if sharded else sft.checked_loss,
    )
    trainer.train(resume_from_checkpoint=last)
    record = {
        "job": job,
        "stop": stop.token,
        "stop_ids": stop.ids,
        "train_rows": len(train_set),
        "held_out_rows": len(held_out),
        "settings": LORA
        | variant
        | training_settings
        | vars(device)
        | {"processes": state.num_processes},
        "history": trainer.state.log_history,
        "base_model": chosen.base_model,
    }
    _save(trainer, tokenizer, chosen, record, state.is_main_process)
    state.wait_for_everyone()
    return record["history"]


def _save(trainer, tokenizer, chosen: settings.Settings, record: dict, first: bool) -> None:
    """Write the adapter, in the first process; every one must take part, for each has a share of
    it."""
    weights = _adapter_weights(trainer.model_wrapped)
    if not first:
        return
    held_out = [entry["eval_loss"] for entry in record["history"] if "eval_loss" in entry]
    record["held_out_loss"] = {"first": held_out[0], "last": held_out[-1]}
    whole = types.SimpleNamespace(
        save_pretrained=functools.partial(
            trainer.trained_model().save_pretrained, state_dict=weights
        )
    )
    folder = chosen.folder / "adapter"
    adapter.save_adapter(whole, tokenizer, folder, record, card(chosen, record))
    print(
        f"held-out loss {held_out[0]:.3f} -> {held_out[-1]:.3f}; the adapter lies in "
        f"{utils.short(folder)}"
    )


def _shards(state, quantize: str) -> bool:
    """True if `accelerate launch` was told to shard the model (configs/fsdp.yaml) among several
    processes.

    Raises:
        CourseError: FSDP1, an accelerate that loses shards, one process, or 4-bit weights.
    """
    import accelerate
    from accelerate.utils import compare_versions

    if os.environ.get("ACCELERATE_USE_FSDP", "false") != "true":
        return False
    if compare_versions("accelerate", "<", FSDP_SINCE):
        raise CourseError(
            f"accelerate {accelerate.__version__} saves only the first process's shards of an "
            f"adapter: install a newer one with `pip install 'accelerate>={FSDP_SINCE}'`, or use "
            "scale/configs/ddp.yaml."
        )
    if os.environ.get("FSDP_VERSION") != "2" or quantize != "none":
        raise CourseError(
            "Shards are made with FSDP2 and of weights in 16 or 32 bits: use "
            "scale/configs/fsdp.yaml, and for 4-bit weights scale/configs/ddp.yaml."
        )
    if state.num_processes == 1:
        raise CourseError(
            "One process has nobody to share the weights with: use scale/configs/single.yaml, or "
            "set --num_processes."
        )
    return True


def _load_in_each(chosen: settings.Settings, device: machine.Device, state) -> tuple:
    """`(model, tokenizer)` of `student.load_base` in every process."""
    with state.main_process_first():  # the packaged student is converted once
        return student.load_base(chosen.base_model, device, chosen.quantize)


def _load_once(chosen: settings.Settings, device: machine.Device, state) -> tuple:
    """`(model, tokenizer)`: the first process has the weights in its memory (not in its GPU's), the
    others a model without any, which accelerate gives its shard of each.

    `device` is corrected as by `student.load_base`.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    name, asked = chosen.base_model, dataclasses.replace(device, name="cpu", attention="sdpa")
    if state.is_main_process:
        model, tokenizer = student.load_base(name, asked)
    dtype = _agreed(asked.dtype)
    config = student.load_config(name).get_text_config()
    fits = machine.suited(dataclasses.replace(device, dtype=dtype), config)
    device.dtype, device.attention, device.reason = fits.dtype, fits.attention, fits.reason
    chosen_attention = attention.implementation(device)
    if state.is_main_process:
        model.set_attn_implementation(chosen_attention)
        return model, tokenizer
    # Buffers, such as the frequencies of positions, are in no checkpoint and are computed here
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), attn_implementation=chosen_attention
        )
    model.tie_weights()  # the context has made two of a head that is the embedding
    return model.eval(), student.load_tokenizer(name)


def _give_memory_to_the_adapter(model) -> None:
    """Trained weights with nothing in them, where weights have no memory: accelerate tells the
    optimizer's weights apart by their addresses."""
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own and all(weight.requires_grad for weight in own):
            module.to_empty(device="cpu", recurse=False)


def _agreed(found):
    """What the first process found, in all of them."""
    from accelerate.utils import broadcast_object_list

    box = [found]
    broadcast_object_list(box)
    return box[0]


def _sharded_loss(model, args, row: dict):
    """`sft.checked_loss`, asked by the first process, which alone has weights before they are
    sharded."""
    first = args.process_index == 0
    return _agreed(sft.checked_loss(model, args, row) if first else None)


def _adapter_weights(model) -> dict:
    """The trained weights by name, whole, in the first process's memory; frozen ones stay where
    they are."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    return get_model_state_dict(model, options=options)


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
        f"*Instruction Tuning from Scratch* (run `{chosen.run}`), on {record['train_rows']} rows "
        f"in {record['settings']['processes']} processes. Held-out loss {loss['first']:.3f} at the "
        f"first evaluation, {loss['last']:.3f} at the last, in nats per answer token. Generation "
        f"stops at {record['stop']}. The weights derive from {chosen.base_model} and stay under "
        "its licence.\n"
    )


def main() -> None:
    """The command line: the notebook's settings by name, each also as COURSE_<NAME>."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("run", "base-model", "data", "language", "adapter", "quantize", "tracking"):
        parser.add_argument(f"--{name}")
    parser.add_argument(
        "--global-batch", type=int, default=8, help="rows of one optimizer step, over all processes"
    )
    parser.add_argument("--batch", type=int, default=4, help="rows of one process at once")
    parser.add_argument("--max-steps", type=int)
    a = vars(parser.parse_args())
    sizes, steps = (a.pop("global_batch"), a.pop("batch")), a.pop("max_steps")
    changes = {"max_steps": steps} if steps else {}
    chosen = settings.resolve({name.upper(): value for name, value in a.items() if value})
    train(chosen, *sizes, **changes)


if __name__ == "__main__":
    utils.run_command(main, mistake=2)
