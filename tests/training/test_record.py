"""A training is known by everything it depends on: reused if nothing changed, never otherwise."""

import dataclasses
import types

import pytest

import settings
import utils
from training import adapter, record
from training.machine import Device

DEVICE = Device("cpu", "float32", "sdpa", "for tests")
ROWS = [{"input_ids": [1, 2], "labels": [-100, 2]}]


@dataclasses.dataclass
class Lora:
    r: int = 4
    lora_alpha: int = 32
    use_dora: bool = False
    use_rslora: bool = False

    def to_dict(self) -> dict:
        return vars(self)


def job(rows=ROWS, lora=None, device=DEVICE, **changes) -> record.Job:
    chosen = settings.resolve({"RUN": "x"})
    return record.Job(
        chosen, device, lora or Lora(), {"learning_rate": 1e-4, **changes}, rows, ROWS
    )


@pytest.mark.parametrize(
    "other",
    [
        lambda: job(learning_rate=2e-4),
        lambda: job(lora=Lora(r=8)),
        lambda: job(device=dataclasses.replace(DEVICE, dtype="bfloat16")),
        lambda: job(rows=[*ROWS, *ROWS]),
    ],
)
def test_any_change_is_another_training_with_checkpoints_of_its_own(course, other):
    assert job().key == job().key
    assert other().key != job().key and other().checkpoints != job().checkpoints


def test_a_finished_training_is_found_with_what_was_measured(course, monkeypatch):
    before = {"loss": 3.0, "row_losses": [[6.0, 2]], "stop_rate": 0.0}
    after = {"loss": 2.0, "row_losses": [[4.0, 2]], "stop_rate": 0.9}
    saved = {}

    def save(model, tokenizer, folder, kept, card):
        saved.update(kept)
        utils.write_json(folder / "training.json", kept)

    monkeypatch.setattr(adapter, "save_adapter", save)
    monkeypatch.setattr(adapter, "model_card", lambda *args, **options: "card")
    stop = types.SimpleNamespace(token="<eos>", ids=[1])
    first = job()
    assert not first.finished and first.before is None
    first.save(None, None, stop, before, after)
    again = job()
    assert again.finished and (again.before, again.after) == (before, after)
    assert saved["settings"]["lora_r"] == 4 and saved["train_rows"] == 1
    assert not job(learning_rate=2e-4).finished


def test_what_was_measured_before_the_loss_of_each_row_was_kept_is_measured_again(course):
    first = job()
    measured = {"loss": 3.0, "stop_rate": 0.0}
    old = {"job": first.key, "before": measured, "after": measured, "history": [], "actual": {}}
    first.folder.mkdir(parents=True)
    utils.write_json(first.folder / "training.json", old)
    (first.folder / adapter.WEIGHTS).touch()
    again = job()
    assert again.finished and again.before is None and again.after is None
