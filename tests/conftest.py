"""Fixtures that several test files share. Everything runs offline; the packaged student is
converted once and cached."""

import datetime
import importlib
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent.parent))

import pytest
import tiny_models

import settings
import utils

PACKAGED = {"student", "smoke", "merged"}  # fixtures that load the packaged student


def pytest_collection_modifyitems(items):
    """The notebooks first: they take longest, and `make test` gives each of two processes a file at
    a time. Whoever asks for the packaged student, even for its tokenizer, is marked so."""
    items.sort(key=lambda item: item.path.name != "test_run.py")
    for item in items:
        if PACKAGED.intersection(item.fixturenames) or item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.packaged)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """No test sees the developer's keys or settings, or the real .env."""
    for name in list(os.environ):
        if name.startswith("COURSE_") and name != "COURSE_CACHE":
            monkeypatch.delenv(name)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    utils.forget_secrets()


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A copy of the course's root whose runs/ lies in tmp_path, so that tests leave nothing
    behind."""
    monkeypatch.setattr(utils, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """`tell(**answers)`: this process looks like Colab, whose page answers so (see
    tests/colab/stand_in)."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.startswith("google.colab")]:
            del sys.modules[name]

    answers = tmp_path / "colab.json"
    monkeypatch.setenv("COLAB_STAND_IN", str(answers))
    monkeypatch.syspath_prepend(Path(__file__).parent / "colab" / "stand_in")
    forget()
    importlib.import_module("google.colab")

    def tell(**told) -> None:
        answers.write_text(json.dumps(told), encoding="utf-8")
        utils.forget_secrets()

    tell()
    yield tell
    forget()


@pytest.fixture(scope="session")
def endpoint():
    """The base URL of one rehearsal endpoint for the whole session."""
    from rehearsal import stand_ins

    return stand_ins.start()


@pytest.fixture(scope="module")
def one_thread():
    """Tiny layers are too small to share: on a busy machine two threads wait for one another a
    hundred times longer than they compute."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=tiny_models.FAMILIES)
def family_folder(request, tmp_path_factory):
    """`(name, folder)` of a tiny random model of each family, with its real chat template."""
    return request.param, tiny_models.build(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def student():
    """`(model, tokenizer, stop)` of the packaged student."""
    from training import chat, machine, student

    model, tokenizer = student.load_base(settings.PACKAGED_STUDENT, machine.choose_device())
    return model, tokenizer, chat.choose_stop(model, tokenizer)


@pytest.fixture(scope="session")
def tiny(student):
    """`(model, tokenizer)`: a random two-layer Gemma with the real Gemma tokenizer; enough for
    everything but language."""
    import torch
    from transformers import GemmaConfig, GemmaForCausalLM

    tokenizer = student[1]
    torch.manual_seed(0)
    config = GemmaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GemmaForCausalLM(config).eval(), tokenizer


@pytest.fixture
def llama_server():
    """`start(gguf, context)`: the address of llama.cpp's server with the model in a file, until the
    test ends; further settings by name. Skips the test where the package is missing."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="pip install -r requirements/dev.txt")
    servers = []  # each lives as long as it is referred to

    def start(gguf, context: int, **changes) -> str:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(gguf)
        parameters.n_ctx, parameters.n_parallel, parameters.port = context, 1, 0
        parameters.cpuparams.n_threads = 1  # llama.cpp's threads spin while they wait for a core
        for name, value in changes.items():
            setattr(parameters, name, value)
        servers.append(xllamacpp.Server(parameters))
        return f"{servers[-1].listening_address}/v1"

    return start


@pytest.fixture
def judged_by():
    """`start(answer)`: a judge of our own on the wire, whose reply to a body is `answer(body)`, a
    content, a whole message, or a status and a body."""
    from raw_server import Said, Server

    from evaluation import judge
    from llm.client import Client
    from rehearsal import stand_ins

    servers = []

    def start(answer, reply_format: str = "schema", finish: str = "stop", **options) -> judge.Judge:
        def respond(path: str, body: dict, number: int) -> Said:
            if not path.endswith("/chat/completions"):
                return Said({"error": {"message": "Not found"}}, 404)
            said = answer(body)
            if isinstance(said, tuple):
                status, content = said
                return Said(content, status)
            message = {"content": said} if isinstance(said, str) else said
            completion = stand_ins.completion(body, message.get("content") or "", finish, number)
            completion["choices"][0]["message"] |= message
            return Said(completion)

        servers.append(Server(respond))
        client = Client("x", servers[-1].url, "key", attempts=1, **options)
        return judge.Judge(client, "judge X", reply_format)

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(autouse=True)
def english_reader(monkeypatch):
    """Whatever language a test before this one was answered in."""
    monkeypatch.setattr(utils, "_reader", "en")


@pytest.fixture(autouse=True)
def a_held_day():
    """Whatever day a run before this one has told the templates, if anything has loaded them."""
    chat = sys.modules.get("training.chat")
    if chat:
        chat.hold_date(datetime.date(2026, 1, 1))
