"""`accelerate launch -m scale.train`: two processes train as one does, and a run that was killed
goes on.

Run as a program it is one process of such a training on a tiny model: `accelerate launch ...
tests/scale/test_train.py ROOT MODEL SECONDS`.
"""

import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

import pytest

import settings
import utils
from scale import train
from training import machine

STEPS = 8


def command(processes: int, *arguments: str) -> list[str]:
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        "scale/configs/ddp.yaml",
        "--num_processes",
        str(processes),
    ]
    launch += ["--main_process_port", "0"] if processes > 1 else []
    return [sys.executable, *(launch if processes > 1 else []), __file__, *arguments]


def start(processes: int, *arguments) -> subprocess.Popen:
    return subprocess.Popen(
        command(processes, *map(str, arguments)),
        cwd=utils.ROOT,
        env=os.environ | {"PYTHONPATH": str(utils.ROOT)},  # a program's path begins at its folder
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def losses(root: Path) -> list[float]:
    record = utils.read_json(root / "runs" / "tiny" / "adapter" / "training.json")
    return [float(entry["loss"]) for entry in record["history"] if "loss" in entry]


def test_two_processes_train_as_one_and_go_on_after_a_kill(tmp_path):
    pytest.importorskip(
        "ray", reason="this test takes a minute: run `make scale-test`, where Ray is"
    )
    import psutil
    import tiny_models

    model = tiny_models.build(tmp_path / "model", "gemma3")
    one, two = tmp_path / "one", tmp_path / "two"
    said, _ = (process := start(1, one, model, 0)).communicate(timeout=300)
    assert process.returncode == 0, said[-2000:]
    killed = start(2, two, model, 1)
    deadline = time.time() + 240
    while not list(two.glob("runs/tiny/checkpoints/*/checkpoint-*/trainer_state.json")):
        assert killed.poll() is None and time.time() < deadline, killed.communicate()[0][-2000:]
        time.sleep(0.1)
    # One by one, for torchrun puts its workers into groups of their own
    for process in [
        psutil.Process(killed.pid),
        *psutil.Process(killed.pid).children(recursive=True),
    ]:
        process.kill()
    killed.wait()
    assert not (two / "runs" / "tiny" / "adapter").exists()
    said, _ = (process := start(2, two, model, 0)).communicate(timeout=300)
    assert process.returncode == 0, said[-2000:]
    assert "step   1/" not in said and "on 2 processes" in said, said[-3000:]  # it went on
    assert len(losses(one)) == STEPS and losses(one)[-1] < losses(one)[0] - 0.02
    assert losses(two) != losses(
        one
    )  # sums of another order: were they equal, there would have been one process
    assert losses(two) == pytest.approx(losses(one), rel=2e-4)
    weights = [
        root / "runs" / "tiny" / "adapter" / "adapter_model.safetensors" for root in (one, two)
    ]
    from safetensors.torch import load_file

    first, second = map(load_file, weights)
    assert (
        all((first[name] - second[name]).abs().max() < 0.02 for name in first)
        and first.keys() == second.keys()
    )


def test_a_global_batch_is_divided_evenly_or_refused():
    assert train.batches(8, 4, 1) == {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
    }
    assert train.batches(8, 4, 2) == {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
    }
    with pytest.raises(
        utils.CourseError, match="global batch of 8 rows cannot be divided among 3 processes"
    ):
        train.batches(8, 4, 3)


def test_the_settings_are_those_of_the_notebook():
    """One of the two would be changed and the other forgotten. The notebook's small student takes
    a step after every four rows; here the global batch says how many."""
    cells = json.loads((utils.ROOT / "train.ipynb").read_text(encoding="utf-8"))["cells"]
    by_id = {cell["id"]: "".join(cell["source"]) for cell in cells}

    def chosen(packaged: bool) -> dict:
        scope: dict = {
            "device": machine.Device("cuda", "bfloat16", "flash_attention_2", "an L4"),
            "S": types.SimpleNamespace(seed=42, packaged=packaged, max_steps=0),
        }
        for part in ("pace", "all", "machine"):
            exec(by_id[f"train-settings-{part}"], scope)
        return scope["training_settings"]

    assert {key: chosen(packaged=False)[key] for key in train.COURSE} == train.COURSE
    assert {key: chosen(packaged=True)[key] for key in train.SMALL} == train.SMALL
    lora = by_id["train-lora-config"]
    assert all(f"{key}={json.dumps(value)}" in lora for key, value in train.LORA.items())


@pytest.mark.parametrize("name", ["single", "ddp", "fsdp"])
def test_accelerate_reads_the_committed_configs(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(utils.ROOT / "scale" / "configs" / f"{name}.yaml"))
    expected = {"single": "NO", "ddp": "MULTI_GPU", "fsdp": "FSDP"}
    assert config.distributed_type == expected[name]


def test_the_fsdp_options_are_known_to_accelerate():
    import yaml
    from accelerate.commands.launch import launch_command_parser

    options = yaml.safe_load((utils.ROOT / "scale" / "configs" / "fsdp.yaml").read_text())[
        "fsdp_config"
    ]
    known = {action.dest for action in launch_command_parser()._actions}
    assert set(options) <= known


def worker() -> None:
    """One process of a training on the tiny model, in fp32; the third argument slows every step
    down, to be killed in."""
    from transformers import TrainerCallback

    from training import machine

    class Slow(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            time.sleep(float(sys.argv[3]))

    rows = utils.read_jsonl(utils.DATA / "instruction.jsonl")[
        :85
    ]  # 64 to train on: with a full last batch nothing is filled up
    utils.ROOT = Path(sys.argv[1])
    machine.choose_device = lambda config=None: machine.Device("cpu", "float32", "sdpa", "")
    chosen = settings.resolve({"RUN": "tiny", "BASE_MODEL": sys.argv[2], "TRACKING": "disabled"})
    train.train(
        chosen,
        rows=rows,
        callbacks=[Slow()],
        max_steps=STEPS,
        learning_rate=3e-2,
        logging_steps=1,
        eval_steps=3,
        save_steps=3,
    )


if __name__ == "__main__":
    worker()
