"""The battery for a GPU, run on tiny models so that it does not rot; its numbers mean nothing."""

import argparse

import pytest

from benchmarks import gpu_battery
from training import machine, preflight

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_case_runs_on_a_cpu(monkeypatch):
    for module in (machine, preflight):
        monkeypatch.setattr(module, "matmul_flops", lambda device: 1e12)
    options = argparse.Namespace(device="cpu", tiny=True, steps=1)
    results = [
        {"case": case, "found": gpu_battery.measure(options, *case)}
        for case in gpu_battery.cases(options)
    ]
    found = {tuple(result["case"]): result["found"] for result in results}
    assert [case[0] for case in found].count("loss") == 6, "three ways at two lengths"
    losses = [found["loss", 64, way]["loss"] for way in gpu_battery.KINDS]
    assert losses == pytest.approx([losses[0]] * 3, abs=2e-3)
    training = found[("training",)]
    assert training["last loss"] < training["first loss"] and not training["own logits"]
    assert training["apart after resuming"] < 1e-4
    assert all(found["precision", dtype]["loss"] > 0 for dtype in ("float16", "float32"))
    assert all(found["generation", batch]["tokens/s"] > 0 for batch in (1, 4))
    table = gpu_battery.table(results)
    assert table.count("| 64 ") == 3 and "| MFU |" in table and "| 8 steps |" in table
    # A tiny model's memory is Python's; the other promises hold here too
    broken = gpu_battery.broken_promises(results)
    assert all("memory is not within 10 %" in sentence for sentence in broken)


def test_a_broken_promise_is_told():
    case = {"loss": 5.0, "predicted GB": 10.0, "peak GB": 10.0}
    results = [
        {"case": ["loss", 512, "full logits"], "found": case},
        {"case": ["loss", 512, "trained positions only"], "found": case | {"loss": 5.5}},
        {"case": ["loss", 1024, "full logits"], "found": case | {"peak GB": 20.0}},
        {"case": ["training"], "found": {"apart after resuming": float("nan")}},
        {"case": ["precision", "float16"], "found": {"error": "OutOfMemoryError: CUDA"}},
    ]
    said = "\n".join(gpu_battery.broken_promises(results))
    for what in ("not one loss", "not within 10 %", "another one than a whole", "OutOfMemoryError"):
        assert what in said
    assert (
        gpu_battery.broken_promises([{"case": ["loss", 512, "full logits"], "found": case}]) == []
    )


def test_without_a_gpu_it_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("utils.has_gpu", lambda: False)
    assert gpu_battery.main([]) == 1
    assert "No CUDA GPU is here" in capsys.readouterr().out


def test_a_case_runs_in_a_process_of_its_own():
    options = argparse.Namespace(device="cpu", tiny=True, steps=1)
    assert "KeyError" in gpu_battery._in_a_process(options, ["loss", 64, "no such way"])["error"]
