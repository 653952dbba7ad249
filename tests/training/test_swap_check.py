"""The swap check on tiny models of the families that people swap in: whole folders, folders with a
tokenizer only, and broken ones."""

import os
import shutil
import subprocess

import pytest
import tiny_models
from tiny_models import FAMILIES

import settings
import utils
from training import chat, machine, preflight, student, swap_check


@pytest.fixture(autouse=True)
def quick(monkeypatch, one_thread):
    """Every eighth shipped row of one short turn, a stated speed and one thread: the checks are the
    same. (Short, for the tiny vocabulary makes many tokens of a long one.)"""
    rows = utils.read_jsonl(utils.DATA / "instruction.jsonl")[::8]
    rows = [row for row in rows if len(row.get("input") or "") + len(row.get("output", "")) < 400]
    monkeypatch.setattr(utils, "read_jsonl", lambda path: rows)
    monkeypatch.setattr(preflight, "matmul_flops", lambda device: 1e11)


@pytest.fixture
def llama(tmp_path):
    return tiny_models.build(tmp_path / "llama3", "llama3")


def without(folder, *names):
    for name in names:
        (folder / name).unlink()
    return folder


def edit(folder, name: str, old: str, new: str):
    text = (folder / name).read_text(encoding="utf-8")
    assert old in text
    (folder / name).write_text(text.replace(old, new), encoding="utf-8")
    return folder


def found(folder, *languages) -> dict[str, swap_check.Finding]:
    findings, _ = swap_check.check(str(folder), *([languages] if languages else []))
    return {finding.check: finding for finding in findings}


def test_a_whole_folder_is_ready(family_folder, capsys):
    name, folder = family_folder
    assert swap_check.main([str(folder)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "FAIL" not in said
    assert ("warn" in said) == (name == "qwen3")  # it rewrites earlier turns
    assert "asked with: tokenizer, config, weights" in said
    assert f"closes a turn with {FAMILIES[name][3]}" in said
    assert f"a base model, so answers end in {FAMILIES[name][2][1]}" in said
    assert (
        "14 layers (q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj), 3,968 "
        "parameters at r = 4" in said
    )
    assert f"Ready: set BASE_MODEL to '{folder}'" in said
    assert "Korean text" in said
    assert "English text" in said


def test_the_adapters_size_is_that_of_the_training(family_folder):
    from transformers import AutoConfig

    _, folder = family_folder
    config = AutoConfig.from_pretrained(folder)
    assert (
        f"{preflight.predict(config, machine.choose_device(), 1, 8, gpu='L4').lora:,} parameters"
        in found(folder)["LoRA targets"].sentence
    )


def test_no_weights_are_loaded_where_there_are_none(family_folder, tmp_path, monkeypatch):
    """A folder with tokenizer and config only: everything but the rank is asked, and the rule is
    told."""
    name, folder = family_folder
    bare = without(shutil.copytree(folder, tmp_path / name), "model.safetensors")
    monkeypatch.setattr(student, "load_base", lambda *args: pytest.fail("weights were asked for"))
    findings = found(bare)
    warned = [check for check, finding in findings.items() if finding.status != "ok"]
    assert warned == ["chat template"] * (name == "qwen3") + ["end token"]
    assert (
        f"By the rule answers end in {FAMILIES[name][3]} if the weights rank it among the first 100"
        in findings["end token"].sentence
    )
    assert "3,968 parameters" in findings["LoRA targets"].sentence
    assert "GB" in findings["memory"].sentence


def test_a_tokenizer_alone_is_asked_what_it_can_say(llama, capsys):
    without(llama, "model.safetensors", "config.json", "generation_config.json")
    assert swap_check.main([str(llama), "--language", "ko"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "asked with: tokenizer " in said
    assert "There is no config.json, so neither could be asked: copy it beside" in said
    assert "Korean text" in said and "English text" not in said


def test_gemma_2_is_computed_eagerly(tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "gemma2", ("gemma2", "gemma", tiny_models.GEMMA, "<end_of_turn>"))
    findings = found(tiny_models.build(tmp_path, "gemma2"))
    assert {finding.status for finding in findings.values()} == {"ok"}
    assert "eager attention: " in findings["machine"].sentence
    assert "attn_logit_softcapping" in findings["machine"].sentence


def test_a_language_without_rows_is_told(llama, monkeypatch):
    monkeypatch.setitem(settings.LANGUAGES, "de", "German")
    findings = found(llama, "de")
    assert findings["German text"].status == "FAIL"
    assert "write some into data/instruction.jsonl" in findings["German text"].sentence


def test_one_possible_end_needs_no_rank(llama):
    """Instruction-tuned Llama 3 and Qwen name the turn's end their <eos>."""
    without(
        edit(
            llama,
            "tokenizer_config.json",
            '"eos_token": "<|end_of_text|>"',
            '"eos_token": "<|eot_id|>"',
        ),
        "model.safetensors",
    )
    findings = found(llama)
    assert findings["end token"].status == "ok"
    assert "one choice only: answers end in <|eot_id|>" in findings["end token"].sentence


def test_a_tuned_model_keeps_its_own_token(llama, monkeypatch):
    monkeypatch.setattr(
        chat, "choose_stop", lambda model, tokenizer: chat.Stop("<|eot_id|>", 3, 3, 1, 2006)
    )
    assert "instruction-tuned, so answers end in <|eot_id|>" in found(llama)["end token"].sentence


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] "
    "}}<|end_header_id|>{{ m['content'] }}<|eot_id|>{% endfor %}"
)
BEGIN = "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{% endif %}"


@pytest.mark.parametrize(
    ("template", "check", "status", "sentence"),
    [
        (TEMPLATE + BEGIN, "chat template", "ok", "One turn and two are rendered"),
        (
            TEMPLATE.replace("{{ bos_token }}", "") + BEGIN,
            "<bos>",
            "warn",
            "writes no <|begin_of_text|>",
        ),
        (
            TEMPLATE.replace("{% for", "{{ bos_token }}{% for") + BEGIN,
            "<bos>",
            "FAIL",
            "out of the chat template",
        ),
        (
            (TEMPLATE + BEGIN).replace("<|end_header_id|>", "<|end_header_id|>: "),
            "chat template",
            "warn",
            "as if prompt and answer were joined",
        ),
        (
            TEMPLATE + BEGIN.replace("{% endif", "<think>{% endif"),
            "chat template",
            "warn",
            "the thought is closed at once",
        ),
        (
            TEMPLATE + "{{ messages | length }}" + BEGIN,
            "chat template",
            "warn",
            "rewrites earlier turns, so of a row with several turns only the last answer",
        ),
        (
            "{{ raise_exception('one turn only') if messages | length > 2 }}" + TEMPLATE + BEGIN,
            "chat template",
            "FAIL",
            "one turn only",
        ),
        (
            TEMPLATE.replace("<|eot_id|>", "\n") + BEGIN,
            "turn's end",
            "ok",
            "Turns end in <|end_of_text|>, as documents do",
        ),
    ],
)
def test_templates_with_a_fault_are_told_apart(llama, template, check, status, sentence, capsys):
    (without(llama, "model.safetensors") / "chat_template.jinja").write_text(template)
    finding = found(llama)[check]
    assert finding.status == status and sentence in finding.sentence
    assert swap_check.main([str(llama)]) == (status == "FAIL")
    assert ("Not ready: " in capsys.readouterr().out) == (status == "FAIL")


def test_a_tokenizer_without_eos_fails(llama):
    edit(
        without(llama, "model.safetensors"),
        "tokenizer_config.json",
        '"eos_token": "<|end_of_text|>",',
        "",
    )
    finding = found(llama)["turn's end"]
    assert finding.status == "FAIL" and "has no <eos>" in finding.sentence


def test_a_vocabulary_without_hangul_fails(llama):
    """A tokenizer of Latin letters loses what it does not know, silently."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    known = AutoTokenizer.from_pretrained(llama)
    latin = Tokenizer(models.BPE(unk_token="<unk>"))
    latin.pre_tokenizer = pre_tokenizers.Metaspace()
    latin.train_from_iterator(
        ["".join(map(chr, range(33, 127)))],
        trainers.BpeTrainer(special_tokens=["<unk>"], show_progress=False),
    )
    _, _, (bos, eos, turns), _ = FAMILIES["llama3"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=latin,
        bos_token=bos,
        eos_token=eos,
        unk_token="<unk>",
        additional_special_tokens=turns,
    )
    tokenizer.chat_template = known.chat_template
    tokenizer.save_pretrained(llama)
    finding = found(llama, "ko")["Korean text"]
    assert finding.status == "FAIL" and "this vocabulary lacks their letters" in finding.sentence


def test_bytes_for_hangul_are_slow(llama):
    """No merges: three tokens a syllable. It works, and is said to be slow."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [],
        trainers.BpeTrainer(
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    status, sentence, _ = swap_check.round_trip(["전세가 뭐예요?"], made)
    assert status == "warn"
    assert "1.0 bytes a token" in sentence
    assert "choose a multilingual base model" in sentence


def test_what_does_not_fit_is_a_warning_where_a_setting_helps_and_fails_where_none_does(
    llama, monkeypatch
):
    monkeypatch.setattr(
        machine, "choose_device", lambda config=None: machine.Device("cpu", "float32", "sdpa", "")
    )
    monkeypatch.setattr(preflight, "free_gb", lambda device: 0.001)
    findings = found(llama)
    assert findings["memory"].status == "FAIL"
    assert "no setting brings it down" in findings["memory"].sentence
    assert "could not be asked without weights" in findings["end token"].sentence, (
        "what does not fit is not loaded"
    )
    forecast, made = preflight.predict, []
    monkeypatch.setattr(
        preflight,
        "predict",
        lambda *args, **options: made.append(forecast(*args, **options, loss="full")) or made[-1],
    )
    monkeypatch.setattr(preflight, "free_gb", lambda device: made[-1].wanted_gb - 0.001)
    findings = found(llama)
    assert findings["memory"].status == "warn"
    assert "set the loss over trained positions only" in findings["memory"].sentence


def test_experts_are_told(llama):
    """Of a mixture of experts most weights lie in no linear layer, and the prediction of memory
    does not know them."""
    from transformers import Qwen3MoeConfig

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "moe_intermediate_size": 32,
    }
    Qwen3MoeConfig(vocab_size=2006, num_hidden_layers=2, num_experts=8, **sizes).save_pretrained(
        without(llama, "model.safetensors")
    )
    findings = found(llama)
    assert findings["memory"].status == "warn"
    assert "lie in no linear layer (in experts?)" in findings["memory"].sentence
    assert "experts" in findings["LoRA targets"].sentence


def test_nothing_to_check_is_one_sentence(llama, tmp_path, capsys, monkeypatch):
    from transformers import T5Config

    def stops(name) -> str:
        assert swap_check.main([str(name)]) == 1
        out = capsys.readouterr().out
        assert out.startswith("FAIL") and out.count("\n") == 1 and "Traceback" not in out
        return out

    assert "There is no folder" in stops(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "has no tokenizer" in stops(tmp_path / "empty")
    assert "the Hugging Face hub cannot be reached" in stops("google/gemma-2b-it")
    for error, sentence in (
        ("401 Client Error: gated repo", "is gated: accept its terms"),
        ("404 Client Error", "check the spelling"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(
                "transformers.AutoTokenizer.from_pretrained",
                lambda *a, error=error, **o: (_ for _ in ()).throw(OSError(error)),
            )
            assert sentence in stops("google/gemma-2b-it")
    assert "has no chat template" in stops(
        tiny_models.build(tmp_path / "plain", "qwen3", template=False)
    )
    T5Config().save_pretrained(without(llama, "model.safetensors"))
    assert "A t5 model is no causal language model" in stops(llama)
    assert "there is no data/languages/fr.toml" in (
        swap_check.main([str(llama), "--language", "fr"]) and capsys.readouterr().out
    )


def test_weights_count_only_if_all_shards_are_there(llama):
    assert swap_check.weights_here(str(llama)) and not swap_check.weights_here("google/gemma-2b-it")
    (llama / "model.safetensors").rename(llama / "model-1.safetensors")
    utils.write_json(
        llama / "model.safetensors.index.json",
        {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}},
    )
    assert not swap_check.weights_here(str(llama))
    shutil.copy(llama / "model-1.safetensors", llama / "model-2.safetensors")
    assert swap_check.weights_here(str(llama))


@pytest.mark.parametrize(("given", "passed"), [("LANGUAGE=ko", '--language "ko"'), ("", "")])
def test_make_passes_a_language_only_if_it_is_given(given, passed):
    """Desktops set LANGUAGE for their own translations, to "en_US:en", say."""
    command = [
        "make",
        "-n",
        "--no-print-directory",
        "-o",
        ".venv/.ready",
        "swap-check",
        "MODEL=a b",
        *filter(None, [given]),
    ]
    shown = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=utils.ROOT,
        env=os.environ | {"LANGUAGE": "en_US:en"},
        check=True,
    )
    assert (
        shown.stdout.splitlines()[-1].strip()
        == f'.venv/bin/python -m training.swap_check "a b" {passed}'.strip()
    )
