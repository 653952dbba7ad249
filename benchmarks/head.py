"""The product with the packaged student's head on a CPU, in one go and as training/head.py does it.

Run: .venv/bin/python -m benchmarks.head (20 seconds)
In float32 with random numbers: a token of 1, 12 and 60 answers, and a chunk of trained positions.
The logits must be equal to rounding. Prints Markdown.
"""

from __future__ import annotations

import time

from training.head import head_product

VOCABULARY, WIDTH = 262_144, 640  # Gemma 3 270M
ROWS = (1, 12, 60, 256)
REPEATS = 5


def main() -> None:
    import torch

    torch.manual_seed(0)
    weight = torch.randn(VOCABULARY, WIDTH)
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}\n")
    print("| rows | in one go | in blocks | times as fast |\n|---|---|---|---|")
    for rows in ROWS:
        hidden = torch.randn(rows, WIDTH)
        whole, ours = torch.empty(rows, VOCABULARY), torch.empty(rows, VOCABULARY)
        seconds: dict[str, list[float]] = {"whole": [], "ours": []}
        for _ in range(REPEATS):  # in turns, so that a busy machine slows both
            started = time.perf_counter()
            torch.mm(hidden, weight.T, out=whole)
            seconds["whole"].append(time.perf_counter() - started)
            started = time.perf_counter()
            head_product(hidden, weight, ours)
            seconds["ours"].append(time.perf_counter() - started)
        assert torch.allclose(whole, ours, atol=1e-3), "the blocks give other logits"
        before, after = min(seconds["whole"]), min(seconds["ours"])
        print(f"| {rows} | {1000 * before:.0f} ms | {1000 * after:.0f} ms | {before / after:.2f} |")


if __name__ == "__main__":
    main()
