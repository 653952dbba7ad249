"""Tiny random models of the families that people swap in, saved as folders: real configs and real
chat templates (as TRL ships them), but a small byte-level vocabulary, trained here on the course's
own rows, so that each is built and loaded in about a second.

Run as a program it trains one of them, for the test that kills it: `python -m
tests.tiny_models MODEL OUTPUT`.
"""

import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import utils

GEMMA = ("<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"])
QWEN = (None, "<|endoftext|>", ["<|im_start|>", "<|im_end|>"])
LLAMA = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
)
# Family: its model type in transformers, its template in TRL, (bos, eos, turn tokens), the token
# that closes a turn
FAMILIES: dict[str, Any] = {
    "gemma": ("gemma", "gemma", GEMMA, "<end_of_turn>"),
    "gemma3": ("gemma3_text", "gemma3", GEMMA, "<end_of_turn>"),
    "llama3": ("llama", "llama3", LLAMA, "<|eot_id|>"),
    "qwen2.5": ("qwen2", "qwen2_5", QWEN, "<|im_end|>"),
    "qwen3": ("qwen3", "qwen3", QWEN, "<|im_end|>"),
}


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nBEGIN{% endif %}"
)
THINKING = CHATML.replace(
    "BEGIN", "<think>\n{% if enable_thinking is false %}{{ '\n</think>\n\n' }}{% endif %}"
)
# Each has one peculiarity of a family that people swap in. The templates were written for these
# tests: (model type, changes of its config, template, (bos, eos, turn tokens), what ends a turn)
PECULIAR: dict[str, Any] = {
    "granite: bos is eos, scaled logits": (
        "granite",
        {"logits_scaling": 8.0},
        "{% for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}"
        "<|end_of_text|>\n{% endfor %}{% if add_generation_prompt %}"
        "<|start_of_role|>assistant<|end_of_role|>{% endif %}",
        ("<|end_of_text|>", "<|end_of_text|>", ["<|start_of_role|>", "<|end_of_role|>"]),
        "<|end_of_text|>",
    ),
    "cohere: scaled logits": (
        "cohere",
        {"logit_scale": 0.0625},
        CHATML.replace("BEGIN", ""),
        ("<bos>", "<eos>", ["<|im_start|>", "<|im_end|>"]),
        "<|im_end|>",
    ),
    "smollm2: every turn begins with bos": (
        "llama",
        {},
        CHATML.replace("BEGIN", ""),
        ("<|im_start|>", "<|im_end|>", []),
        "<|im_end|>",
    ),
    "falcon-h1: scaled logits, recurrent layers": (
        "falcon_h1",
        {
            "lm_head_multiplier": 0.0195,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
        },
        CHATML.replace("BEGIN", ""),
        ("<bos>", "<eos>", ["<|im_start|>", "<|im_end|>"]),
        "<|im_end|>",
    ),
    "lfm2: a convolution": (
        "lfm2",
        {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3},
        "{{ bos_token }}" + CHATML.replace("BEGIN", ""),
        ("<|startoftext|>", "<|endoftext|>", ["<|im_start|>", "<|im_end|>"]),
        "<|im_end|>",
    ),
    "qwen3.5: thinks unless told otherwise": ("qwen3", {}, THINKING, QWEN, "<|im_end|>"),
    "r1: always thinks": (
        "qwen2",
        {},
        CHATML.replace("BEGIN", "<think>\n"),
        QWEN,
        "<|im_end|>",
    ),
    "gpt-oss: names a channel": (
        "llama",
        {},
        "{% for m in messages %}<|im_start|>{{ m.role }}{{ ' final' if m.role == 'assistant' }}:"
        "{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}",
        QWEN,
        "<|im_end|>",
    ),
    "command r7b: begins an answer behind a closed thought": (
        "llama",
        {},
        "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.role == 'assistant' %}<|START|>"
        "{{ m.content }}<|END|>{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant<think></think>{% endif %}",
        (None, "<|im_end|>", ["<|im_start|>", "<|START|>", "<|END|>"]),
        "<|END|>",
    ),
    "llama 3.2: writes today's date": (
        "llama",
        {},
        "{{ bos_token }}{% if date_string is not defined %}"
        "{% set date_string = strftime_now('%d %b %Y') %}{% endif %}Today: {{ date_string }}\n"
        + CHATML.replace("BEGIN", ""),
        ("<bos>", "<eos>", ["<|im_start|>", "<|im_end|>"]),
        "<|im_end|>",
    ),
    "llama 2: joins by a space": (
        "llama",
        {},
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} "
        "[/INST]{% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}{% else %}"
        "{{ raise_exception('no such role') }}{% endif %}{% endfor %}",
        ("<s>", "</s>", []),
        "</s>",
    ),
    "glm: a turn ends where the next begins": (
        "llama",
        {},
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        (None, "<|endoftext|>", ["<|system|>", "<|user|>", "<|assistant|>"]),
        "<|user|>",
    ),
    "alpaca: turns in plain text": (
        "llama",
        {},
        "{{ bos_token }}{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant:\n{% endif %}",
        ("<bos>", "<eos>", []),
        "<eos>",
    ),
    "gemma 3 4b: sees": (
        "gemma3",
        {},
        CHATML.replace("BEGIN", ""),
        ("<bos>", "<eos>", ["<|im_start|>", "<|im_end|>"]),
        "<|im_end|>",
    ),
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def build(folder: Path, family: str, template: bool = True) -> Path:
    """Save a random two-layer model of `family` and its tokenizer; without `template` it is a base
    model that has none."""
    import torch
    import trl
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        PreTrainedTokenizerFast,
    )

    if family in FAMILIES:
        kind, name, (bos, eos, turns), _ = FAMILIES[family]
        path = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
        text, changes = path.read_text(encoding="utf-8"), {}
    else:
        kind, changes, text, (bos, eos, turns), _ = PECULIAR[family]
        changes = {"initializer_range": 0.3} | changes  # so that a wrong scale changes the loss
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(),
        bos_token=bos,
        eos_token=eos,
        pad_token="<pad>",
        additional_special_tokens=turns,
    )
    if template:
        tokenizer.chat_template = text
    torch.manual_seed(0)
    options = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 1024,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    } | changes
    if kind == "gemma3":
        config = AutoConfig.for_model(
            kind, text_config=options, vision_config=VISION, mm_tokens_per_image=4
        )
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    else:
        config = AutoConfig.for_model(kind, **options)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@cache
def _vocabulary() -> str:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # Line breaks stand alone, as in the tokenizers of Llama 3 and Qwen; in GPT-2's, two of them are
    # one token only before nothing
    lines = pre_tokenizers.Split(Regex(r"[\r\n]+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [lines, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rows = utils.read_jsonl(utils.DATA / "instruction.jsonl")
    texts = [row["output"] for row in rows if "kind" not in row]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer.to_str()


def byte_level():
    """A byte-level BPE tokenizer of 2,000 tokens, like those of Llama and Qwen but small."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(_vocabulary())


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
    {
        "id": "c",
        "language": "ko",
        "category": "code",
        "instruction": "숫자 셋을 쓰세요.",
        "input": "",
        "output": "1, 2, 3",
    },
]
TURNS = {
    "id": "d",
    "language": "ko",
    "category": "open_qa",
    "messages": [
        {"role": "user", "content": "전세가 뭐예요?"},
        {"role": "assistant", "content": "큰 보증금을 맡기고 월세 없이 사는 계약이에요.\n"},
        {"role": "user", "content": "And monthly rent?"},
        {"role": "assistant", "content": "A smaller deposit, and rent every month."},
        {"role": "user", "content": "고마워요."},
        {"role": "assistant", "content": "천만에요!"},
    ],
}


def trainer(
    model_folder: Path, output: Path, watch=None, callbacks=(), lora=None, stock=False, **changes
):
    """`(trainer, tokenizer, stop, encoded)`: the course's trainer on a tiny model in fp32, with
    small numbers.

    `lora` changes LoraConfig, other keywords change SFTConfig; `stock` takes TRL's own trainer.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from trl import SFTConfig, SFTTrainer

    from training import chat, machine, sft, student

    model, tokenizer = student.load_base(
        str(model_folder), machine.Device("cpu", "float32", "sdpa", "")
    )
    stop = chat.choose_stop(model, tokenizer)
    torch.manual_seed(0)
    chosen = {
        "r": 4,
        "lora_alpha": 32,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    } | (lora or {})
    model = get_peft_model(model, LoraConfig(**chosen))
    encoded, _ = chat.encode_all([*ROWS, TURNS] * 6, tokenizer, stop, 512)
    options = {
        "output_dir": str(output),
        "max_steps": 6,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "gradient_checkpointing": False,
        "padding_free": True,
        "max_length": None,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "optim": "adamw_torch_fused",
        "seed": 1,
    } | changes
    made = (SFTTrainer if stock else sft.trainer_class())(
        model=model,
        args=SFTConfig(**options),
        train_dataset=Dataset.from_list(encoded) if stock else encoded,
        eval_dataset=Dataset.from_list(encoded[:4]) if stock else encoded[:4],
        processing_class=tokenizer,
        callbacks=list(callbacks),
        **({} if stock else {"watch": watch}),
    )
    return made, tokenizer, stop, encoded


def losses(made) -> list[float]:
    return [float(entry["loss"]) for entry in made.state.log_history if "loss" in entry]


if __name__ == "__main__":
    import time

    from transformers import TrainerCallback

    from training import sft

    class Slow(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            time.sleep(0.5)  # so that there is a moment in which to be killed

    checkpoints = Path(sys.argv[2])
    made, *_ = trainer(
        Path(sys.argv[1]),
        checkpoints,
        callbacks=[Slow()],
        save_strategy="steps",
        save_steps=2,
        save_total_limit=1,
    )
    made.train(resume_from_checkpoint=sft.last_checkpoint(checkpoints))
