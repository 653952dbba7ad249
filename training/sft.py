"""Supervised fine-tuning with LoRA: what `train.ipynb` calls, and what `evaluation.ipynb` reuses.

In here: the held-out rows, the trainer, and what it watches while it trains. Each idea below has
a module of its own: the rows (data.py), the machine (preflight.py), the base model (student.py),
chat template, stop token and label mask (chat.py), the loss (losses.py), answers (generation.py),
the adapter and its card (adapter.py). Not in here: the LoRA and training settings, which stay
visible in the notebook's cells. torch, transformers, trl and peft are imported inside the functions
that need them.

Sources: LoRA (arXiv 2106.09685), Gemma (arXiv 2403.08295), TRL's SFTTrainer (huggingface/trl).
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import settings
import utils
from preprocessing import deduplicate
from training import losses
from utils import CourseError

# --- data -----------------------------------------------------------------------------------------

PROJECT = "instruction-tuning-from-scratch"  # in wandb


def kind(row: dict) -> str:
    """What a row teaches beside a short answer (`turns`, `system`, `long` ...), else "plain"."""
    return row.get("kind", "plain")


def split(
    rows: list[dict], held_out: int, seed: int, most: int = 0
) -> tuple[list[dict], list[dict]]:
    """`(train, held_out)`, the same share of every language, category and kind in both, the same
    for the same rows and seed. What is nearly a held-out row, in words or in meaning
    (`deduplicate.unlike`), is left out of training, and counted in print.

    Args:
        most: rows to train on at most, so that a CPU's sample has its share of every kind too; 0:
            all that are not held out.

    Raises:
        CourseError: nothing would be left to train on.
    """
    if len(rows) <= held_out:
        raise CourseError(
            f"{len(rows)} rows cannot be trained on with {held_out} of them held out: make more "
            "rows or lower HELD_OUT_ROWS."
        )
    train, held = _parted(rows, held_out, seed)
    if most and most < len(train):
        _, train = _parted(train, most, seed)
    # What is nearly the same must not be trained on and held out
    apart = deduplicate.unlike(train, held)
    if len(apart) < len(train):
        print(f"not trained on, too close to a held-out row: {len(train) - len(apart)}")
    if not apart:
        raise CourseError(
            "Every row resembles one that is held out, so none is left to train on: add other rows."
        )
    return apart, held


def _parted(rows: list[dict], size: int, seed: int) -> tuple[list[dict], list[dict]]:
    """All but `size` of the rows, and these, stratified where every group can be in both."""
    from sklearn.model_selection import train_test_split

    groups = []
    for row in rows:
        # A category's rows are few, so the kinds are groups of their own
        group = row["category"] if kind(row) == "plain" else kind(row)
        groups.append(f"{row['language']} {group}")
    few = min(groups.count(group) for group in set(groups)) < 2
    few = few or min(size, len(rows) - size) < len(set(groups))
    strata = None if few else groups
    return tuple(train_test_split(rows, test_size=size, random_state=seed, stratify=strata))


# --- training -------------------------------------------------------------------------------------


def checked_loss(model, args, row: dict):
    """The function of losses.py to train with, None for TRL's own: on an NVIDIA GPU, and with
    several processes, where the model's wrapper must see the forward pass.

    One row's loss is held against that of the model's own logits; where they differ those are
    trained on, and a sentence says so.
    """
    ours = args.device.type != "cuda" and args.world_size == 1
    wrong = losses.disagreement(model, row, losses.OURS if ours else losses.TRL)
    if wrong:
        print(wrong)
        return losses.full_logits_loss
    return losses.answer_loss if ours else None


def _require_finite_loss(loss, step: int) -> None:
    """Raises CourseError where `loss`, a scalar tensor, is not a number."""
    if not loss.isfinite():
        raise CourseError(
            f"The loss is {float(loss)} at step {step}: lower learning_rate, or with fp16 use a "
            "GPU that has bf16; the last checkpoint is from before, and the next run goes on from "
            "it."
        )


def _require_finite_weights(model, step: int) -> None:
    """Raises CourseError where a trained weight is not a number."""
    for weight in model.parameters():
        if weight.requires_grad and not weight.isfinite().all():
            raise CourseError(
                f"A weight is not a number after step {step}, so it is not saved: lower "
                "learning_rate; the last checkpoint is from before."
            )


class _OnADiskThatMayFail:
    """What a trainer does with its disk: a failure is one sentence, and no checkpoint is half."""

    args: Any
    state: Any

    def train(self, *args, **kwargs):
        with utils.disk_errors(self.args.output_dir):  # checkpoints are read and deleted, too
            return super().train(*args, **kwargs)  # type: ignore[misc]

    def _save_checkpoint(self, model, trial):
        _require_finite_weights(model, self.state.global_step)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            with utils.disk_errors(folder):
                super()._save_checkpoint(model, trial)  # type: ignore[misc]
        except CourseError:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _numbers(seen: dict) -> dict[str, float]:
    """The numbers in what a trainer's `watch` returned, by the names that they are logged under."""
    numbers = {}
    for name, value in seen.items():
        if isinstance(value, int | float):
            numbers[f"eval_{name}"] = value
    return numbers


def trainer_class():
    """TRL's SFTTrainer as this course needs it.

    - Rows are lists from `encode_all`.
    - Without an NVIDIA GPU the loss is `answer_loss`: on one, TRL's fused head skips masked
      positions, but on a CPU it scores them all. Whichever it is, the first row's loss is held
      against the model's own logits, and where they differ training takes those and says so.
    - `watch(model)` replaces its evaluation: a function that returns `{"loss": ..., "stop_rate":
      ..., "samples": [...]}`. Numbers are logged as `eval_loss` and `eval_stop_rate` (and go to
      wandb), samples stay in `state.log_history`; what else it returns does not.
    - A loss that is not a number, weights that are none, and a full disk each end training with one
      sentence; the last good checkpoint stays.
    """
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTTrainer

    class CourseTrainer(_OnADiskThatMayFail, SFTTrainer):
        def __init__(
            self,
            model,
            args,
            *,
            train_dataset,
            eval_dataset=None,
            watch=None,
            choose_loss=checked_loss,
            **kwargs,
        ):
            self.loss_of = choose_loss(model, args, train_dataset[0])
            super().__init__(
                model,
                args,
                train_dataset=Dataset.from_list(train_dataset),
                eval_dataset=Dataset.from_list(eval_dataset) if eval_dataset else None,
                **kwargs,
            )
            self.watch = watch
            # Of training steps alone, without evaluation and saving
            self.tokens = 0
            self.seconds = 0.0
            self.remove_callback(PrinterCallback)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            if self.loss_of is None:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
                loss, tokens = self.loss_of(model, **inputs)
            loss = loss / (tokens if num_items_in_batch is None else num_items_in_batch)
            return (loss, {"loss": loss}) if return_outputs else loss

        def training_step(self, model, inputs, *args, **kwargs):
            started = time.perf_counter()
            loss = super().training_step(model, inputs, *args, **kwargs)
            self.tokens += inputs["input_ids"].numel()
            self.seconds += time.perf_counter() - started
            _require_finite_loss(loss, self.state.global_step + 1)
            return loss

        def evaluate(self, *args, **kwargs):
            if self.watch is None:
                return super().evaluate(*args, **kwargs)
            seen = self.watch(self.model)
            metrics = _numbers(seen)
            self.log(metrics)
            self.state.log_history[-1]["samples"] = seen.get("samples", [])
            self.control = self.callback_handler.on_evaluate(
                self.args, self.state, self.control, metrics
            )
            return metrics

        @property
        def tokens_per_second(self) -> float:
            """0 where nothing was measured: resumed after the last step."""
            return self.tokens / self.seconds if self.seconds else 0.0

        def trained_model(self):
            """The model as it will be when reloaded: without the autocast that accelerate wraps
            around `forward`."""
            return self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    return CourseTrainer


def count_steps(rows: int, training_settings: dict) -> int:
    """Optimiser steps of a training on one device: in each pass so many batches, and a step for
    every `gradient_accumulation_steps` of them or what is left.

    Args:
        training_settings: as SFTConfig takes them; a `max_steps` above 0 counts, -1 is none.
    """
    if training_settings.get("max_steps", -1) > 0:
        return training_settings["max_steps"]
    batches = math.ceil(rows / training_settings["per_device_train_batch_size"])
    each = math.ceil(batches / training_settings["gradient_accumulation_steps"])
    return math.ceil(each * training_settings["num_train_epochs"])


def fullest_batch(lengths: list[int], training_settings: dict) -> int:
    """Tokens of the fullest batch that a training on one device will see, padding included: what
    its memory depends on. Rows are shuffled by the seed alone, so the batches are known before it
    starts, and the longest rows hardly ever meet in one.

    Args:
        lengths: tokens of each row, in the order of the training set.
        training_settings: as SFTConfig takes them.
    """
    import torch

    size = training_settings["per_device_train_batch_size"]
    fullest = 0
    for epoch in range(math.ceil(training_settings["num_train_epochs"])):
        # as accelerate's SeedableRandomSampler orders them
        generator = torch.Generator().manual_seed(training_settings["seed"] + epoch)
        shuffled = torch.randperm(len(lengths), generator=generator).tolist()
        for start in range(0, len(shuffled), size):
            batch = [lengths[row] for row in shuffled[start : start + size]]
            packed = training_settings["padding_free"]
            fullest = max(fullest, sum(batch) if packed else len(batch) * max(batch))
    return fullest


def plumbing(output: Path, steps: int, report_to: str) -> dict:
    """The arguments of SFTConfig that say nothing about learning: log twelve times, evaluate and
    save three times, keep the best."""
    import torch

    every = max(1, -(-steps // 3))
    return {
        "output_dir": str(output),
        "logging_steps": max(1, steps // 12),
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_steps": every,
        "save_total_limit": 1,  # beside the best one
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "greater_is_better": False,
        "report_to": report_to,
        "disable_tqdm": True,
        "use_cpu": not (torch.cuda.is_available() or torch.backends.mps.is_available()),
    }


def last_checkpoint(folder: Path) -> str | None:
    """The newest *whole* checkpoint in `folder`, for `trainer.train(resume_from_checkpoint=...)`;
    None where there is none.

    `trainer_state.json` is the last file of a checkpoint that transformers writes, so one without
    it was cut off while it was saved (a crash, a kill, a full disk): it is removed, and the one
    before it counts.
    """
    for checkpoint in sorted(
        folder.glob("checkpoint-*"),
        key=lambda path: int(path.name.rpartition("-")[2]),
        reverse=True,
    ):
        if utils.read_json(checkpoint / "trainer_state.json"):
            return str(checkpoint)
        shutil.rmtree(checkpoint)
    return None


def progress_callback(total: int):
    """Prints one line for every logged step: loss, held-out loss, stop rate, seconds so far and
    seconds left at the same pace. No widgets, so that it is readable anywhere."""
    from transformers import TrainerCallback

    shown = {
        "loss": "loss {:.3f}",
        "eval_loss": "held-out loss {:.3f}",
        "eval_stop_rate": "stop rate {:.0%}",
    }

    class Progress(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.started, self.first = time.time(), state.global_step  # not 0 where it goes on

        def on_log(self, args, state, control, logs=None, **kwargs):
            logs = logs or {}
            values = [text.format(float(logs[key])) for key, text in shown.items() if key in logs]
            if not values:
                return
            step, seconds = state.global_step, time.time() - self.started
            left = (total - step) * seconds / max(1, step - self.first)
            clock = f"{seconds:4.0f} s, {left:3.0f} s left"
            print(f"step {step:>3}/{total}  {'  '.join(values):<36} {clock}", flush=True)

    return Progress()


def track(chosen: settings.Settings, timeout: float = 20) -> str:
    """Start wandb as the settings say; returns what TRL's `report_to` takes: "wandb" or "none".

    Offline and disabled runs need no account. Where the server cannot be reached training is not
    held up: the run is logged offline, and a printed sentence says so and how to upload it.
    `timeout` is in seconds.

    Raises:
        CourseError: TRACKING is online and there is no key.
    """
    if chosen.tracking == "disabled":
        return "none"
    os.environ |= {
        "WANDB_MODE": chosen.tracking,
        "WANDB_DIR": str(chosen.folder),
        "WANDB_PROJECT": PROJECT,
        "WANDB_NAME": chosen.run,
        "WANDB_SILENT": "true",
    }
    import wandb

    if chosen.tracking == "online" and (key := utils.secret("WANDB_API_KEY")):
        os.environ["WANDB_API_KEY"] = key
    mode: Literal["online", "offline"] = "online" if chosen.tracking == "online" else "offline"
    begin = functools.partial(
        wandb.init,
        project=PROJECT,
        name=chosen.run,
        dir=str(chosen.folder),
        reinit="finish_previous",
        settings=wandb.Settings(init_timeout=timeout, login_timeout=timeout, silent=True),
    )
    try:
        begin(mode=mode)
    except wandb.errors.UsageError as error:
        raise CourseError(
            f"TRACKING is online, but wandb refuses ({str(error).splitlines()[0][:100]}): set "
            "WANDB_API_KEY, or TRACKING to 'offline'."
        ) from None
    except wandb.errors.CommError as error:
        print(
            f"wandb cannot be reached ({str(error).splitlines()[0][:100]}), so this run is logged "
            f"offline: upload it later with `wandb sync runs/{chosen.run}/wandb/offline-run-*`."
        )
        begin(mode="offline")
    return "wandb"


def loss_by_kind(
    by_row: Sequence[tuple[float, int]], kinds: Sequence[str]
) -> dict[str, tuple[float, int]]:
    """`{kind: (mean loss of its answers in nats per token, rows)}`, the most rows first.

    Args:
        by_row: of each row its loss and tokens, from `losses.row_losses`.
        kinds: of each row, from `kind`.
    """
    found = {}
    for name, count in Counter(kinds).most_common():
        own = [row for row, its in zip(by_row, kinds, strict=True) if its == name]
        found[name] = losses.mean_loss(own), count
    return found


def kind_figure(before: dict[str, tuple[float, int]], after: dict[str, tuple[float, int]]):
    """Held-out loss by kind of row before and after training, from `loss_by_kind`."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 0.4 * len(before) + 0.9))
    for place, (name, (loss, _)) in enumerate(before.items()):
        axes.plot([after[name][0], loss], [place, place], color="#d5dae0", zorder=1)
    for measured, colour, label in ((before, "#9aa5b1", "before"), (after, "#3b7dd8", "after")):
        losses = [loss for loss, _ in measured.values()]
        axes.scatter(losses, range(len(losses)), color=colour, label=label, zorder=2)
    names = [f"{name} ({count} rows)" for name, (_, count) in before.items()]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="nats per answer token", title="Held-out loss by kind of row")
    axes.legend(frameon=False)
    figure.tight_layout()
    return figure


def matrix_figure(matrices: dict):
    """Small matrices side by side as colours, each with its name and number of entries, drawn to
    one scale of squares."""
    import matplotlib.pyplot as plt

    widths = [matrix.shape[1] for matrix in matrices.values()]
    figure, axes = plt.subplots(
        1, len(matrices), figsize=(0.15 * sum(widths) + 1, 2), width_ratios=widths
    )
    for ax, (name, matrix) in zip(axes, matrices.items(), strict=True):
        ax.imshow(matrix, cmap="RdBu")
        ax.set_title(f"{name}\n{matrix.numel()}", fontsize=9)
        ax.axis("off")
    figure.tight_layout()
    return figure


def _curve(
    history: list[dict], key: str, before: float | None = None
) -> tuple[list[int], list[float]]:
    """The steps at which a number was logged, and the numbers; `before` stands at step 0."""
    steps = [] if before is None else [0]
    values = [] if before is None else [before]
    for entry in history:
        if key in entry:
            steps.append(entry["step"])
            values.append(float(entry[key]))
    return steps, values


def training_figure(history: list[dict], before: dict, title: str):
    """Training and held-out loss on the left, the stop rate of held-out prompts on the right,
    against steps.

    Args:
        history: the trainer's `state.log_history`.
        before: `{"loss": ..., "stop_rate": ...}` of the base model, drawn at step 0.
    """
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 2.8), width_ratios=(3, 2))
    steps, losses = _curve(history, "loss")
    left.plot(steps, losses, color="#9aa5b1", label="training")
    steps, losses = _curve(history, "eval_loss", before["loss"])
    left.plot(steps, losses, "o--", color="#3b7dd8", label="held out")
    left.set(xlabel="step", ylabel="nats per answer token", title=title)
    left.legend(frameon=False)
    steps, rates = _curve(history, "eval_stop_rate", before["stop_rate"])
    right.plot(steps, rates, "o--", color="#3b7dd8")
    right.set(xlabel="step", ylim=(-0.05, 1.05), title="answers that stop")
    right.yaxis.set_major_formatter("{x:.0%}")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.tight_layout()
    return figure
