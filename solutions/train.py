"""Solutions of the exercises of train.ipynb: one function each, on the course's own modules.

    python -m solutions.train 2 exercise 2 on the packaged student, some minutes on two cores (also
    1, 3, or none for all)

What it does: train small adapters that differ in the one thing that an exercise asks about, from
the same base, rows and seed. What it
does not do: keep an adapter; checkpoints lie in runs/solutions/. tests/test_solutions.py runs all
three on a tiny model that was pretrained for a few seconds, and asserts what the docstrings say of
it.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from typing import TYPE_CHECKING

import settings
import utils
from training import chat, data, generation, losses, machine, sft, student

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

SETTINGS = {  # of the notebook's student; exercises change one thing at a time
    "learning_rate": 5e-4,
    # so that a point says what stopping there would have given
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 2,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "optim": "adamw_torch_fused",
    "gradient_checkpointing": False,
    "padding_free": True,
    "max_length": None,
    "seed": 42,
}


@dataclasses.dataclass
class Tuned:
    """A trained adapter and what is needed to ask it something."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    stop: chat.Stop
    held_out: list[dict]  # encoded
    history: list[dict]  # of the trainer, one entry with `eval_loss` a pass
    before: float  # held-out loss of the base model, in nats per answer token

    @property
    def losses(self) -> list[float]:
        """Held-out loss before training and after each pass."""
        return [
            self.before,
            *(entry["eval_loss"] for entry in self.history if "eval_loss" in entry),
        ]

    def loss(self) -> float:
        return losses.held_out_loss(self.model, self.held_out, self.tokenizer.pad_token_id)


def tune(
    base: str,
    rows: list[dict],
    held_out: list[dict],
    folder: Path,
    device=None,
    turn_end=False,
    patience=0,
    lora=None,
    **changes,
) -> Tuned:
    """Train one adapter on `rows`, measuring the held-out loss after every pass.

    Args:
        base: as in `sft.load_base`.
        turn_end: learn the template's end of turn, whatever `choose_stop` says.
        patience: end after so many passes in a row without a lower held-out loss, and keep the best
            weights; 0: train to the end.
        lora, changes: what differs from the notebook's LoraConfig and from `SETTINGS`.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import EarlyStoppingCallback
    from trl import SFTConfig

    device = device or machine.choose_device()
    utils.seed_everything(42)
    model, tokenizer = student.load_base(base, device)
    stop = chat.choose_stop(model, tokenizer)
    if turn_end:
        stop.id, stop.token = stop.turn_end, tokenizer.convert_ids_to_tokens(stop.turn_end)
    train, held = (chat.encode_all(part, tokenizer, stop, 512)[0] for part in (rows, held_out))
    utils.seed_everything(42)  # A is drawn here: the same for every adapter of one rank
    config = {
        "r": 4,
        "lora_alpha": 32,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    } | (lora or {})
    model = get_peft_model(model, LoraConfig(**config))

    def measure(model) -> dict[str, float]:
        return {"loss": losses.held_out_loss(model, held, tokenizer.pad_token_id)}

    before = measure(model)["loss"]
    plumbing = sft.plumbing(folder, 3, "none") | {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
    }
    precision = {"bf16": device.dtype == "bfloat16", "fp16": device.dtype == "float16"}
    trainer = sft.trainer_class()(
        model=model,
        args=SFTConfig(
            **plumbing | {"load_best_model_at_end": bool(patience)} | precision | SETTINGS | changes
        ),
        train_dataset=train,
        eval_dataset=held,
        processing_class=tokenizer,
        watch=measure,
        callbacks=[EarlyStoppingCallback(patience)] if patience else [],
    )
    trainer.train()
    return Tuned(trainer.trained_model(), tokenizer, stop, held, trainer.state.log_history, before)


def exercise_1(
    base: str, rows: list[dict], held_out: list[dict], folder: Path, passes: int = 5, **options
) -> Tuned:
    """Train on 64 rows for five passes (`num_train_epochs = 5`). Does the early stop end it, with
    which weights?

    Yes: the held-out loss turns after the first passes while the training loss goes on falling
    (section 11 of the notebook draws the same on the packaged student), and when it has not
    improved twice in a row training ends. What is kept is not the last state but the checkpoint
    with the lowest held-out loss. The lesson: passes are an upper limit, held-out rows decide;
    without `load_best_model_at_end` early stopping would hand you weights two evaluations past
    their best.

    Returns:
        The kept model; `.losses` has the held-out loss before training and after each pass.
    """
    return tune(base, rows, held_out, folder, patience=2, num_train_epochs=passes, **options)


def exercise_2(
    base: str,
    rows: list[dict],
    held_out: list[dict],
    folder: Path,
    asked: int = 12,
    new_tokens: int = 40,
    **options,
) -> dict:
    """After `choose_stop` set `stop.id = stop.turn_end`. How high does the stop rate get, and why?

    It stays far behind, though both are trained equally often. `<end_of_turn>` is a row of the
    embedding matrix that pretraining only ever pushed away, and LoRA keeps that matrix frozen: all
    that training can do is turn the hidden state towards a row that lies nowhere in particular.
    `<eos>` has been learnt from the end of every document and needs only to be said at the right
    place. The lesson: a held-out loss hardly shows this (one token of an answer), so look at the
    stop token's own probability, and learn one that the base model knows.

    Returns:
        For "eos" and "turn_end": `token`, `before` and `after`, the mean log-probability (nats) of
        that token where a held-out answer ends, and `stop_rate`, the share of `asked` prompts whose
        answer ended with it.
    """
    found = {}
    for name in ("eos", "turn_end"):
        tuned = tune(base, rows, held_out, folder / name, turn_end=name == "turn_end", **options)
        with tuned.model.disable_adapter():
            before = stop_log_probability(tuned)
        texts = [chat.question(row) for row in held_out[:asked]]
        answers = generation.generate(tuned.model, tuned.tokenizer, texts, tuned.stop, new_tokens)
        rate = sum(answer.stopped for answer in answers) / len(answers)
        found[name] = {
            "token": tuned.stop.token,
            "before": before,
            "after": stop_log_probability(tuned),
            "stop_rate": rate,
        }
    return found


def stop_log_probability(tuned: Tuned) -> float:
    """Mean log-probability, in nats, of the stop token after whole held-out answers."""
    import torch

    total = 0.0
    with torch.inference_mode():
        for example in tuned.held_out:
            ids = torch.tensor([example["input_ids"][:-1]], device=tuned.model.device)
            logits = tuned.model.eval()(ids).logits[0, -1].float()
            total += logits.log_softmax(-1)[tuned.stop.id].item()
    return total / len(tuned.held_out)


RANKS = {
    "r = 4": {},
    "r = 16": {"r": 16},
    "r = 16, rsLoRA": {"r": 16, "use_rslora": True},
    "r = 16, alpha = 128": {"r": 16, "lora_alpha": 128},
}


def exercise_3(base: str, rows: list[dict], held_out: list[dict], folder: Path, **options) -> dict:
    """Compare r = 4 with r = 16, plain and with `ADAPTER = "rslora"`. Is it the rank or the scale
    that lowers the loss?

    LoRA multiplies BA by alpha / r: at alpha = 32 that is 8 for r = 4, but 2 for r = 16, so that "a
    higher rank" is also a quarter of the step, and learns less. rsLoRA divides by the root of r and
    is back at 8 for r = 16; so is alpha = 128, and the two are the same adapter to the last digit.
    At an equal scale four times the parameters change little on few rows. The lesson: change one
    thing at a time; who doubles r and keeps alpha has halved the scale too.

    Returns:
        For each of `RANKS`: `scale`, `parameters` trained and held-out `loss` after training (and
            "base", the loss before).
    """
    from peft.tuners.lora import LoraLayer

    found: dict = {}
    for number, (name, lora) in enumerate(RANKS.items()):
        tuned = tune(base, rows, held_out, folder / str(number), lora=lora, **options)
        layer = next(module for module in tuned.model.modules() if isinstance(module, LoraLayer))
        parameters = sum(
            weight.numel() for name, weight in tuned.model.named_parameters() if "lora_" in name
        )
        found |= {
            "base": tuned.before,
            name: {
                "scale": layer.scaling["default"],
                "parameters": parameters,
                "loss": tuned.loss(),
            },
        }
    return found


def shortest(rows: list[dict], count: int) -> list[dict]:
    """The `count` shortest rows of each language, those of several turns left out."""
    ordered = sorted(
        (row for row in rows if "output" in row),
        key=lambda row: len(row["instruction"] + row["input"] + row["output"]),
    )
    found = []
    for language in sorted({row["language"] for row in rows}):
        own = [row for row in ordered if row["language"] == language]
        found += own[:count]
    return found


def main() -> None:
    chosen = settings.resolve({"RUN": "solutions", "DATA": "shipped"})
    # So that a pass takes about a minute
    train, held_out = sft.split(shortest(data.training_rows(chosen), 44), 24, chosen.seed)
    common = (chosen.base_model, train, held_out, chosen.folder)
    for number in map(int, sys.argv[1:] or "123"):
        print(
            f"\nExercise {number}: {chosen.base_model}, {len(train)} short rows, {len(held_out)} "
            "held out",
            flush=True,
        )
        if number == 1:
            tuned = exercise_1(*common)
            print(
                "held-out loss, before and after each pass:",
                [round(loss, 3) for loss in tuned.losses],
            )
            print(f"kept: {tuned.loss():.3f}")
        elif number == 2:
            for found in exercise_2(*common).values():
                print(
                    "{token}: log-probability {before:.2f} -> {after:.2f}, stop rate "
                    "{stop_rate:.0%}".format(**found)
                )
        else:
            for name, found in exercise_3(*common).items():
                print(f"{name:<20} {found}")


if __name__ == "__main__":
    main()
