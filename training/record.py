"""One training and what came of it, so that a finished one is reused and an interrupted one goes
on.

What it does: know a training by everything it depends on, hold what was measured before, during and
after it, and write adapter, card and record. What it does not do: train (sft.py) or measure (the
notebook does). Importing it imports neither torch nor peft.
"""

from __future__ import annotations

from pathlib import Path

import settings
import utils
from training import adapter, chat, export, student
from training.chat import Stop
from training.machine import Device


class Job:
    """A training of `train.ipynb`: its inputs as a fingerprint, and the record of its results.

    The fingerprint covers base model, precision, adapter, settings and every encoded row: change
    any of them and it is another training, with checkpoints of its own.

    Attributes:
        finished: True where this very training was done before; then `before`, `after`, `history`
            and `actual` come from its record.
        before, after: `{"loss", "row_losses", "stop_rate", "samples"}` as the notebook's `measure`
            returns them, or None where not yet measured.
        history: the trainer's log.
        actual: `{"peak GB", "tokens/s"}` of the training.
        checkpoints: the folder in which an interrupted training finds its own steps.
    """

    def __init__(
        self,
        chosen: settings.Settings,
        device: Device,
        lora,
        training_settings: dict,
        train_set: list[dict],
        held_out: list[dict],
    ) -> None:
        self.chosen, self.device, self.lora = chosen, device, lora
        self.settings = training_settings
        self.rows = {"train_rows": len(train_set), "held_out_rows": len(held_out)}
        self.key = utils.fingerprint(
            chosen.base_model,
            chosen.quantize,
            device.dtype,
            lora.to_dict(),
            training_settings,
            train_set,
            held_out,
        )
        self.folder = chosen.folder / "adapter"
        self.checkpoints = chosen.folder / "checkpoints" / self.key
        day = chosen.folder / settings.DAY
        if not day.exists():  # later days ask and go on in the same templates
            with utils.atomic(day) as file:
                file.write(f"{chat.held_date()}\n")
        found = adapter.finished(self.folder, self.key)
        self.finished = found is not None
        self._record: dict = found or {}
        self.before = self._measured("before")
        self.after = self._measured("after")
        self.history: list[dict] = self._record.get("history", [])
        self.actual: dict = self._record.get("actual", {})

    def _measured(self, when: str) -> dict | None:
        """What the record says of the model, unless it was made before each row's loss was kept."""
        found = self._record.get(when)
        return found if found and "row_losses" in found else None

    def load(self, model):
        """The base model with the finished adapter on it, in the place of the untrained one."""
        return adapter.load_adapter(model.unload(), self.folder)

    def trained(self, trainer, peak_gb: float) -> None:
        """Note what the trainer logged and what it took; `peak_gb` is memory in GB."""
        self.history = trainer.state.log_history
        self.actual = {"peak GB": peak_gb, "tokens/s": trainer.tokens_per_second}

    def compare(self, forecast):
        """What was predicted (`preflight.Forecast`) beside what it took, as a table."""
        import pandas as pd

        predicted = {"peak GB": forecast.gb, "tokens/s": forecast.tokens_per_second}
        return pd.DataFrame({"predicted": predicted, "actual": self.actual}).round(1)

    def save(self, model, tokenizer, stop: Stop, before: dict, after: dict) -> Path:
        """Write adapter, tokenizer, model card and `training.json`, all or nothing, unless this
        training was finished before; return the folder."""
        if not self.finished:
            variants = {"use_dora": self.lora.use_dora, "use_rslora": self.lora.use_rslora}
            ranks = {"lora_r": self.lora.r, "lora_alpha": self.lora.lora_alpha}
            self._record = {
                "job": self.key,
                "base_model": self.chosen.base_model,
                "sees": student.sees(self.chosen.base_model),
                "stop": stop.token,
                "stop_ids": stop.ids,
                **self.rows,
                "before": before,
                "after": after,
                "actual": self.actual,
                "settings": {**ranks, **variants, **self.settings, **vars(self.device)},
                "history": self.history,
            }
            card = adapter.model_card(self.chosen.base_model, self._record, self.chosen)
            adapter.save_adapter(model, tokenizer, self.folder, self._record, card)
        return self.folder

    def hand_over(self, model, tokenizer, stop: Stop) -> None:
        """Merge, export and push as MERGE, EXPORT and PUSH_ADAPTER_TO say."""
        if self.chosen.merge:
            folder = self.chosen.folder / "merged"
            card = adapter.model_card(
                self.chosen.base_model, self._record, self.chosen, merged=True
            )
            adapter.save_merged(model, tokenizer, stop, folder, card)
            print(f"merged weights in {utils.short(folder)}")
        if self.chosen.export == "gguf":
            export.export(self.chosen)
        if self.chosen.push_adapter_to:
            print(adapter.push_adapter(self.folder, self.chosen.push_adapter_to))
