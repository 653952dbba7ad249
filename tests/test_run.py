"""`run.py`: the whole course in its smoke profile, then what happens when something is wrong."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import pytest

import run
import settings
import utils


def course_run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "run.py", "--tracking", "disabled", *arguments]
    return subprocess.run(
        command,
        cwd=utils.ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | environment,
    )


@pytest.fixture(scope="session")
def smoke():
    """The finished smoke run, executed once a session from scratch."""
    shutil.rmtree(utils.ROOT / "runs" / "smoke", ignore_errors=True)
    done = course_run("--profile", "smoke")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return utils.ROOT / "runs" / "smoke", done


@pytest.mark.slow
def test_smoke_run_leaves_everything(smoke):
    folder, done = smoke
    expected = (
        "adapter answers.jsonl contamination.json data_card.md funnel.png "
        "instruction.jsonl ledger.jsonl lengths.png loss.png"
    )
    expected += " map.png outcomes.png requests.jsonl threshold.png verbs.png yield.png"
    expected += " results.json verdicts.jsonl calibration.png spread.png report.html "
    expected += " ".join(f"{name}.ipynb {name}.html" for name in settings.NOTEBOOKS)
    assert set(expected.split()) <= {path.name for path in folder.iterdir()}
    said = " ".join(done.stdout.split())
    headline = utils.read_json(folder / "results.json")["headline"]
    assert headline[1:] in said, (
        "four steps make no promise about who wins; the sentence is printed all the same"
    )
    assert "Outcomes: " in said and "stand-in" in said and "runs/smoke/" in said
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_smoke_run_teaches_the_model_to_stop(smoke):
    results = utils.read_json(smoke[0] / "results.json")
    assert results["held_out"]["after"]["loss"] < results["held_out"]["before"]["loss"]
    end = "answers that end by themselves"
    assert results["measures"]["tuned"][end] > results["measures"]["base"][end]
    assert sum(results["outcomes"].values()) == 12 and results["spent_usd"] == 0


@pytest.mark.slow
def test_executed_notebooks_are_clean(smoke):
    for name in settings.NOTEBOOKS:
        notebook = nbformat.read(smoke[0] / f"{name}.ipynb", as_version=4)
        outputs = [
            output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
        ]
        assert outputs
        assert not any(
            output.get("name") == "stderr" or output.output_type == "error" for output in outputs
        )


@pytest.mark.slow
def test_rows_say_who_made_them(smoke):
    rows = utils.read_jsonl(
        smoke[0] / "instruction.jsonl", ("teacher", "request", "demonstrations", "cost_usd")
    )
    assert all("stand-in" in row["teacher"] for row in rows)
    assert all(
        "stand-in" in record["judge"]
        for record in utils.read_jsonl(smoke[0] / "verdicts.jsonl", ("judge", "outcome", "orders"))
    )


@pytest.mark.slow
def test_a_korean_reader_runs_the_whole_course():
    """On Korean rows only, and by the other branch of every setting of preprocess.ipynb: three
    steps instead of one, plain text, housing only."""
    name = f"test-housing-{os.getpid()}"
    settings = {
        "LANGUAGE": "ko",
        "METHOD": "self-instruct",
        "REPLY_FORMAT": "text",
        "DOMAIN": "한국의 주거",
        "SEED_CATEGORIES": "housing",
        "DATA": "run",  # the shipped rows would be embedded anew
    }
    environment = {f"COURSE_{key}": value for key, value in settings.items()}
    done = course_run("--profile", "smoke", "--run", name, **environment)
    folder = utils.ROOT / "runs" / name
    try:
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        rows = utils.read_jsonl(
            folder / "instruction.jsonl",
            ("category", "instruction", "output", "critique", "similar"),
        )
        kept = {row["id"] for row in rows}
        siblings = [row for row in rows if "sibling" in row]
        assert len(rows) > 30 and siblings and {row["language"] for row in rows} == {"ko"}
        assert all(row["sibling"] in kept for row in siblings)
        assert "'self-instruct'" in done.stdout
        verdicts = utils.read_jsonl(folder / "verdicts.jsonl", ("language",))
        assert {verdict["language"] for verdict in verdicts} == {"ko"}
        for page in ("ledger.html", "report.html"):
            assert '<html lang="ko">' in (folder / page).read_text(encoding="utf-8")
        assert re.search("[가-힣]", utils.read_json(folder / "results.json")["headline"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_second_run_reuses_paid_replies_and_training(smoke):
    folder, _ = smoke
    journal = (folder / "requests.jsonl").read_bytes()
    adapter = utils.file_hash(folder / "adapter" / "adapter_model.safetensors")
    done = course_run("--profile", "smoke", "--only", "preprocess", "train")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "nothing has changed since the last run, so its adapter is loaded" in done.stdout
    assert (folder / "requests.jsonl").read_bytes() == journal
    assert utils.file_hash(folder / "adapter" / "adapter_model.safetensors") == adapter


def test_failing_cell_is_named_and_the_work_so_far_is_kept(tmp_path):
    """A base model that does not exist: one sentence with notebook and cell, no traceback."""
    name = f"test-{os.getpid()}"
    done = course_run(
        "--profile", "smoke", "--run", name, "--only", "train", "--base-model", "./no-such-folder"
    )
    try:
        assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("Stopped: train.ipynb, cell ")
        assert "./no-such-folder" in last
        assert "BASE_MODEL" in last
        assert (utils.ROOT / "runs" / name / "train.html").exists()
    finally:
        import shutil

        shutil.rmtree(utils.ROOT / "runs" / name, ignore_errors=True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("--teacher", "gpt-4o"),
            "TEACHER is gpt-4o, a paid model, but there is no OPENAI_API_KEY",
        ),
        (("--run", "a/b"), "RUN is 'a/b'"),
        (("--budget-usd", "-3"), "BUDGET_USD is '-3'"),
    ],
)
def test_wrong_settings_stop_before_anything_runs(arguments, sentence):
    done = course_run(*arguments)
    assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr


def test_default_never_pays_even_with_a_key(monkeypatch, capsys):
    """`make run` with OPENAI_API_KEY in the environment must not reach OpenAI."""
    monkeypatch.setattr(sys, "argv", ["run.py"])
    monkeypatch.setenv("OPENAI_API_KEY", "sk-real")
    monkeypatch.setattr(run, "execute", lambda name, folder: 0.0)
    monkeypatch.setattr(run, "report", lambda *arguments: None)
    before = dict(os.environ)
    try:
        assert run.main() == 0
        chosen = settings.resolve({})
        assert (chosen.teacher, chosen.judge) == (
            "rehearsal",
            "rehearsal",
        )
        assert "sk-real" not in capsys.readouterr().out
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_ctrl_c_stops_the_kernel_and_says_how_to_go_on():
    """A real SIGINT in the middle of a cell: one sentence, no traceback, no orphaned kernel, the
    pages so far on disk."""
    import psutil

    name = f"test-interrupt-{os.getpid()}"
    command = [
        sys.executable,
        "-u",
        "run.py",
        "--profile",
        "smoke",
        "--run",
        name,
        "--tracking",
        "disabled",
    ]
    process = subprocess.Popen(
        command, cwd=utils.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in process.stdout:
            if line.startswith("[preprocess.ipynb 5/"):
                break
        time.sleep(0.5)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130 and "Traceback" not in errors, errors
        assert errors.strip().endswith("the same command goes on from there.")
        assert children and not psutil.wait_procs(children, timeout=10)[1]
        assert (utils.ROOT / "runs" / name / "preprocess.html").exists()
    finally:
        process.kill()
        shutil.rmtree(utils.ROOT / "runs" / name, ignore_errors=True)


def test_a_kernel_that_cannot_be_reached_is_one_sentence(tmp_path, monkeypatch):
    """Where a firewall or a sandbox closes the ports of 127.0.0.1, the kernel lives and never
    answers."""
    from jupyter_client.asynchronous.client import AsyncKernelClient

    async def silence(self, timeout=None):
        raise RuntimeError("Kernel didn't respond in 60 seconds")

    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), tmp_path / "deaf.ipynb"
    )
    monkeypatch.setattr(utils, "ROOT", tmp_path)
    monkeypatch.setattr(AsyncKernelClient, "wait_for_ready", silence)
    with pytest.raises(
        utils.CourseError,
        match=r"deaf.ipynb: its kernel did not start \(Kernel didn't respond.*ports of 127.0.0.1",
    ):
        run.execute("deaf", tmp_path / "out")


def test_dead_kernel_is_one_sentence(tmp_path, monkeypatch):
    """The usual cause is the kernel's memory; the reader should not have to know what a
    DeadKernelError is."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import os\nos._exit(1)")])
    nbformat.write(notebook, tmp_path / "broken.ipynb")
    monkeypatch.setattr(utils, "ROOT", tmp_path)
    with pytest.raises(
        utils.CourseError,
        match=r"broken.ipynb, cell 1: the kernel died, most likely for lack of memory",
    ):
        run.execute("broken", tmp_path / "out")
