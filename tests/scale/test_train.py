"""`accelerate launch -m scale.train`: two processes train as one does, and a run that was killed
goes on.

Run as a program it is one process of such a training on a tiny model: `accelerate launch ...
tests/scale/test_train.py ROOT MODEL SECONDS`.
"""

import json
import os
import re
import resource
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
LOAD_ONLY = -1


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a tiny model whose head is its embedding."""
    pytest.importorskip(
        "ray", reason="these tests take minutes: run `make scale-test`, where Ray is"
    )
    import tiny_models

    return tiny_models.build(tmp_path_factory.mktemp("tiny"), "gemma3")


@pytest.fixture(scope="module")
def one(model, tmp_path_factory):
    """The adapter folder of an undisturbed training in one process."""
    return finished("single", 1, tmp_path_factory.mktemp("one"), model)


def start(config: str, processes: int, root: Path, model: Path, seconds: float, **environment: str):
    launch = ["-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    launch += ["--config_file", f"scale/configs/{config}.yaml", "--main_process_port", "0"]
    return subprocess.Popen(
        [sys.executable, *launch, __file__, str(root), str(model), str(seconds)],
        cwd=utils.ROOT,
        # A program's path begins at its folder
        env=os.environ | {"PYTHONPATH": str(utils.ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(config: str, processes: int, root: Path, model: Path) -> Path:
    """Train to the end, or go on to it; the adapter's folder."""
    said, _ = (process := start(config, processes, root, model, 0)).communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    (root / "said.txt").write_text(said, encoding="utf-8")
    return root / "runs" / "tiny" / "adapter"


def losses(adapter: Path) -> list[float]:
    record = utils.read_json(adapter / "training.json")
    return [float(entry["loss"]) for entry in record["history"] if "loss" in entry]


def weights(adapter: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(adapter / "adapter_model.safetensors")


@pytest.mark.parametrize("config", ["ddp", "fsdp"])
def test_two_processes_train_as_one_and_go_on_after_a_kill(config, one, model, tmp_path):
    import psutil

    two = finished(config, 2, tmp_path / "undisturbed", model)
    said = (tmp_path / "undisturbed" / "said.txt").read_text(encoding="utf-8")
    assert "on 2 processes" in said
    assert ("which share the weights" in said) == (config == "fsdp")
    assert len(losses(one)) == STEPS and losses(one)[-1] < losses(one)[0] - 0.02
    # Sums of another order: were they equal, there would have been one process
    assert losses(two) != losses(one)
    assert losses(two) == pytest.approx(losses(one), rel=2e-4)
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    assert all((first[name] - second[name]).abs().max() < 0.02 for name in first)

    root = tmp_path / "killed"
    killed = start(config, 2, root, model, 1)
    deadline = time.time() + 240
    while not list(root.glob("runs/tiny/checkpoints/*/checkpoint-*/trainer_state.json")):
        assert killed.poll() is None and time.time() < deadline, killed.communicate()[0][-2000:]
        time.sleep(0.1)
    # One by one, for torchrun puts its workers into groups of their own
    for process in [
        psutil.Process(killed.pid),
        *psutil.Process(killed.pid).children(recursive=True),
    ]:
        process.kill()
    killed.wait()
    assert not (root / "runs" / "tiny" / "adapter").exists()
    again = finished(config, 2, root, model)
    assert "step   1/" not in (root / "said.txt").read_text(encoding="utf-8")  # it went on
    assert losses(again) == losses(two)
    third = weights(again)
    assert all(second[name].equal(third[name]) for name in second)


def test_only_the_first_process_holds_a_whole_model_while_it_is_sharded(model, tmp_path, capsys):
    """A model of 350 MB, so that weights stand out: the first process holds all of it once, the
    second no more than its half and the largest weight."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 6}
    config = AutoConfig.from_pretrained(model, **sizes, layer_types=["full_attention"] * 6)
    large = AutoModelForCausalLM.from_config(config)
    large.save_pretrained(tmp_path / "large")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "large")
    whole = sum(weight.numel() for weight in large.parameters()) * 4 / 1e6  # MB
    del large
    _, floor = held_and_peak(tmp_path / "a", model)  # of Python and its libraries
    held, peak = held_and_peak(tmp_path / "b", tmp_path / "large")
    above = [one - other for one, other in zip(peak, floor, strict=True)]
    with capsys.disabled():
        print(f"\nMB: model {whole:.0f}; shards {held}; above a tiny model at the peak {above}")
    assert sum(held) == pytest.approx(whole, rel=0.02)
    assert held[0] == pytest.approx(held[1], rel=0.02)
    assert above[0] > 0.95 * whole
    assert above[1] < 0.75 * whole


def held_and_peak(root: Path, model: Path) -> tuple[list[int], list[int]]:
    """MB of weights in each of two processes after sharding, and of all memory at the peak, where
    what is freed goes back to the system: glibc otherwise keeps up to half of the model in holes
    between the shards."""
    process = start("fsdp", 2, root, model, LOAD_ONLY, MALLOC_MMAP_THRESHOLD_="1000000")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    found = sorted(re.findall(r"process (\d): (\d+) MB of weights, (\d+) MB at the peak", said))
    assert len(found) == 2, said[-3000:]
    return [int(held) for _, held, _ in found], [int(peak) for _, _, peak in found]


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


@pytest.mark.parametrize(
    ("environment", "processes", "quantize", "since", "said"),
    [
        ({}, 2, "none", "99", "install a newer one with `pip install 'accelerate>=99'`"),
        ({"FSDP_VERSION": "1"}, 2, "none", None, "use scale/configs/fsdp.yaml"),
        ({}, 2, "4bit", None, "for 4-bit weights scale/configs/ddp.yaml"),
        ({}, 1, "none", None, "One process has nobody to share the weights with"),
    ],
)
def test_what_cannot_be_sharded_is_refused_at_the_start(
    environment, processes, quantize, since, said, monkeypatch
):
    settled = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} | environment
    for name, value in settled.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(train, "FSDP_SINCE", since or train.FSDP_SINCE)
    with pytest.raises(utils.CourseError, match=re.escape(said)):
        train._shards(types.SimpleNamespace(num_processes=processes), quantize)


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
    down, to be killed in, or ends the training before the first."""
    import torch
    from torch.distributed.tensor import DTensor
    from transformers import TrainerCallback

    seconds = float(sys.argv[3])

    class Slow(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            own = [
                weight.to_local() if isinstance(weight, DTensor) else weight
                for weight in model.parameters()
            ]
            held = sum(weight.numel() * weight.element_size() for weight in own) / 1e6
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
            print(
                f"process {args.process_index}: {held:.0f} MB of weights, {peak:.0f} MB at the "
                "peak of loading",
                flush=True,
            )
            if seconds == LOAD_ONLY:
                torch.distributed.barrier()
                os._exit(0)

        def on_step_end(self, *args, **kwargs):
            time.sleep(seconds)

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
