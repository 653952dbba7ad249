"""The four worked examples of docs/your_own.md work as they are written, in both languages."""

import re
import shlex
import subprocess
import sys

import pytest

import run
import settings
import utils
from evaluation import judge
from preprocessing import self_instruct
from training import data, export, talk

PAGE = (utils.ROOT / "docs" / "your_own.md").read_text(encoding="utf-8")
ENGLISH, KOREAN = PAGE.split("\n---\n")


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


@pytest.fixture
def files(tmp_path):
    """The files of the page, as a reader would save them."""
    faq, prompts = blocks(ENGLISH, "csv")
    (tmp_path / "faq.csv").write_text(faq, encoding="utf-8")
    (tmp_path / "prompts.csv").write_text(prompts, encoding="utf-8-sig")
    (tmp_path / "seeds.jsonl").write_text(blocks(ENGLISH, "jsonl")[0], encoding="utf-8")
    return tmp_path


def commands(text):
    return [line for block in blocks(text, "bash") for line in block.strip().splitlines()]


def test_the_korean_half_has_other_commands():
    assert commands(ENGLISH) == commands(KOREAN) and len(commands(ENGLISH)) == 9


def test_a_command_is_not_understood(files):
    makefile = (utils.ROOT / "Makefile").read_text(encoding="utf-8")
    for line in commands(ENGLISH):
        if line.startswith("python -m"):
            arguments = [sys.executable, *shlex.split(line)[1:]]
            path = arguments.index("preprocessing.rows") + 1
            arguments[path] = str(files / arguments[path])
            done = subprocess.run(arguments, cwd=utils.ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert "rows are usable" in done.stdout
        elif "make" in line:
            *chosen, _, target = line.partition(" ARGS=")[0].rpartition("make ")
            assert re.search(rf"^{target}:", makefile, re.M), line
            for name, _, value in (part.partition("=") for part in "".join(chosen).split()):
                entries = {entry.name for entry in settings.entries().values()}
                assert name.removeprefix("COURSE_") in entries and value
    for name in re.findall(r"COURSE_([A-Z_]+)", PAGE):
        assert name in {entry.name for entry in settings.entries().values()}, name


def test_example_1_own_rows(files, course, capsys):
    rows = data.training_rows(settings.resolve({"DATA": str(files / "faq.csv")}))
    assert [row["language"] for row in rows] == ["en", "ko"]
    printed = capsys.readouterr().out
    assert "2 of 3 rows are usable" in printed and "1: no answer (first: line 4)" in printed


def test_example_2_own_seeds(files):
    source = str(files / "seeds.jsonl")
    with pytest.raises(
        utils.CourseError, match="1 seeds in English, and 6 are needed.*write 5 more"
    ):
        self_instruct.load_seeds(("en", "ko"), source=source)
    text = (files / "seeds.jsonl").read_text(encoding="utf-8")
    (files / "seeds.jsonl").write_text(text * 10, encoding="utf-8")  # twenty, as the page advises
    seeds = self_instruct.load_seeds(("en", "ko"), source=source)
    assert len(seeds) == 20 and self_instruct.categories_of(seeds, own=True) == ("library",)


def test_example_3_own_prompts(files, course):
    chosen = settings.resolve({"EVAL_PROMPTS": str(files / "prompts.csv")})
    first, second = judge.evaluation_prompts(chosen)
    assert first["follow_ups"][0]["prompt"] == "When is it open?" and "follow_ups" not in second
    assert (first["language"], second["language"]) == ("en", "ko")


def test_example_4_talk_and_export_ask_for_the_training_first(course):
    (settings.resolve({"RUN": "library"}).folder / "x").touch()
    with pytest.raises(utils.CourseError, match="run train.ipynb with MERGE"):
        talk.load("library", merged=True)
    with pytest.raises(utils.CourseError, match="names one folder under runs/"):
        export.main(["--run", "../library"])
    assert run  # `make run` is `python run.py`


def test_the_reader_is_not_led_here():
    for name in ("README.md", "README.ko.md"):
        assert "docs/your_own.md" in (utils.ROOT / name).read_text(encoding="utf-8"), name
