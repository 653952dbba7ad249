"""The committed check against published figures runs, finds them all, and notices when one is off.
Skipped without the data."""

import importlib.util
import json
import shutil
import sys

import pytest

import utils
from evaluation import stats

PATH = utils.ROOT / "benchmarks" / "judge_reference.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("judge_reference", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(script):
    if not script.FOLDER.is_dir():
        pytest.skip("this test needs the labelled data of others, shared/reference/")
    return script.FOLDER


def test_all_published_figures_are_met(script, data, capsys):
    assert script.main([str(data)]) == 0
    printed = capsys.readouterr().out
    assert "| LLMBar: judge runs whose accuracy is as published | 333 | 333 | yes |" in printed
    assert "(18, 35, 20, 2) | (18, 35, 20, 2) | yes" in printed and "| NO |" not in printed


def test_a_changed_verdict_is_noticed(script, data, tmp_path):
    """One of 75 pairs with its winner turned over."""
    for file in (data / "mt_bench").iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    path = tmp_path / "pair_phi3_vs_phi3dpo.jsonl"
    pairs = utils.read_jsonl(path)
    won = next(pair for pair in pairs if pair["g1_winner"] == pair["g2_winner"] == "model_1")
    won |= {"g1_winner": "model_2", "g2_winner": "model_2"}
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    rows = script.fastchat(tmp_path)
    assert [row.what for row in rows if not row.met] == [row.what for row in rows[:3]]


def test_a_wrong_function_is_noticed(script, data, monkeypatch):
    """Kappa in which the labels of one rater are mixed up, which is the fault of the published
    ones."""
    true = stats.agreement
    monkeypatch.setattr(
        stats, "agreement", lambda a, b, **more: true([{"2": "0"}.get(x, x) for x in a], b, **more)
    )
    assert sum(not row.met for row in script.pandalm(data / "pandalm")) >= 3


def test_without_the_data_one_sentence_says_so(script, tmp_path):
    sentence = "llmbar does not exist: give the folder that holds llmbar/, pandalm/ and mt_bench/."
    with pytest.raises(utils.CourseError, match=sentence):
        script.main([str(tmp_path)])
