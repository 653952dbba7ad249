"""Rows and prompts come from a hub, and an adapter goes to one, through `datasets` and
`huggingface_hub` themselves and a small hub on this machine (tests/hub.py)."""

import json

import pytest
from hub import Hub

import utils

ROWS = [
    {"instruction": "김장은 언제 하나요?", "input": "", "output": "십일월 말에 많이 해요."},
    {"instruction": "When does the library open?", "input": "", "output": "At nine."},
    {"instruction": "And a row without an answer?", "input": "", "output": ""},
]
PROMPTS = "prompt,reference\n열람실에서 먹어도 되나요?,아니요.\nMay I eat here?,No.\n"
TURNS = [
    {"from": "human", "value": "짐을 맡길 곳이 있나요?"},
    {"from": "gpt", "value": "입구 왼쪽에 보관함이 있어요."},
]


def lines(records: list[dict]) -> bytes:
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records).encode()


@pytest.fixture(scope="module")
def hub():
    with Hub() as hub:
        hub.token = "hf_write"
        yield hub


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def read(hub, home, source: str, **variables: str):
    code = f"""
import utils
from preprocessing import rows
utils.run_command(lambda: rows.main([{source!r}]))
"""
    return hub.run(code, home, **variables)


@pytest.mark.slow
def test_rows_and_prompts_of_a_hub_are_not_read(hub, home):
    """DATA and EVAL_PROMPTS as a hub id, a file and a configuration in it, Hangul included."""
    hub.files["someone/faq"] = {"README.md": b"# FAQ", "data/train.jsonl": lines(ROWS)}
    config = (
        "configs:\n- config_name: a\n  data_files: a.json\n- config_name: b\n  data_files: b.json"
    )
    hub.files["someone/chats"] = {
        "README.md": f"---\n{config}\n---\n".encode(),
        "a.json": json.dumps([ROWS[1]]).encode(),
        "b.json": json.dumps([{"conversations": TURNS}], ensure_ascii=False).encode(),
    }
    hub.files["someone/prompts"] = {"test.csv": PROMPTS.encode()}
    code = """
import json, settings
from evaluation import judge
from training import data
chosen = settings.resolve({
    "DATA": "someone/faq, someone/chats:b", "EVAL_PROMPTS": "someone/prompts", "RUN": "hub-test",
})
found = data.training_rows(chosen), judge.evaluation_prompts(chosen)
print(json.dumps(found, ensure_ascii=False))
"""
    done = hub.run(code, home)
    assert done.returncode == 0, done.stderr
    *printed, last = done.stdout.splitlines()
    rows, prompts = json.loads(last)
    assert [row["id"] for row in rows] == ["faq/faq-1", "faq/faq-2", "chats/chats-1"]
    assert rows[0]["instruction"] == ROWS[0]["instruction"] and rows[0]["language"] == "ko"
    assert rows[2]["output"] == TURNS[1]["value"]
    assert "  left out     1: no answer (first: row 3)" in printed
    assert [item["language"] for item in prompts] == ["ko", "en"]
    assert prompts[0]["prompt"] == "열람실에서 먹어도 되나요?"
    before = len(hub.asked)
    assert hub.run(code, home, HF_HUB_OFFLINE="1").stdout.splitlines()[-1] == last
    assert len(hub.asked) == before, "what was fetched once is read without the hub"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("someone/none", "is no data set of the hub, nor a file here: check the name (a private"),
        ("someone/gated", "is gated: accept its terms on its page and set HF_TOKEN."),
        ("someone/failing", "the hub cannot be reached for a data set of that name: check the"),
        ("someone/scripted", "cannot be read (Dataset scripts are no longer supported"),
        ("someone/damaged", "cannot be read (Parquet magic bytes not found"),
        ("someone/nothing", "doesn't contain any data files)"),
        ("someone/unnamed", "several configurations: write someone/unnamed:NAME, one of ['x', 'y"),
    ],
)
def test_what_a_hub_refuses_is_a_traceback(hub, home, source, sentence):
    hub.gated.add("someone/gated")
    hub.failing.add("someone/failing")
    hub.files["someone/scripted"] = {"scripted.py": b"raise SystemExit('its code was run')"}
    hub.files["someone/damaged"] = {"data.parquet": b"PAR1, and nothing after it"}
    hub.files["someone/nothing"] = {"README.md": b"# nothing"}
    configs = (
        "configs:\n- config_name: x\n  data_files: a.json\n- config_name: y\n  data_files: a.json"
    )
    hub.files["someone/unnamed"] = {"README.md": f"---\n{configs}\n---".encode(), "a.json": b"[]"}
    done = read(hub, home, source)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    *_, last = done.stderr.strip().splitlines()
    assert last.startswith("Stopped: ") and sentence in last, done.stderr
    assert "its code was run" not in done.stderr


@pytest.mark.slow
def test_no_network_is_a_traceback(hub, home):
    done = read(hub, home, "someone/faq", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "the hub cannot be reached for a data set of that name" in done.stderr


PUSH = """
import sys
from pathlib import Path
from training import adapter
try:
    print(adapter.push_adapter(Path(sys.argv[1]) if sys.argv[1:] else Path(FOLDER), "me/library"))
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.mark.slow
def test_the_pushed_adapter_lacks_its_weights_or_its_card(hub, home, tmp_path):
    """What arrives is what lies in the folder, privately, and the card names the base model."""
    from safetensors.numpy import load, load_file

    folder = utils.DATA / "example_adapter"
    code = PUSH.replace("FOLDER", repr(str(folder)))
    done = hub.run(code, home, HF_TOKEN="hf_write")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("/me/library") and hub.private["me/library"]
    pushed = hub.pushed["me/library"]
    assert set(pushed) == {path.name for path in folder.iterdir()}
    card = pushed["README.md"].decode()
    assert "base_model: google/gemma-3-270m" in card and "AutoPeftModelForCausalLM" in card
    weights = load(pushed["adapter_model.safetensors"])
    here = load_file(folder / "adapter_model.safetensors")
    assert weights.keys() == here.keys() and all((weights[k] == here[k]).all() for k in here)
    refused = hub.run(code, home, HF_TOKEN="hf_of_somebody")
    assert refused.returncode == 1 and "could not be pushed to me/library" in refused.stderr
    assert "check PUSH_ADAPTER_TO and that HF_TOKEN may write" in refused.stderr
    assert "hf_of_somebody" not in refused.stderr
    assert "there is no HF_TOKEN" in hub.run(code, home, HF_TOKEN="").stderr
