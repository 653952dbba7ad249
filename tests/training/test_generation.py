"""Answers: batches equal single answers, the stop is exact, a second turn sees the first, and the
file belongs to its prompts."""

import copy
import sys
import types

import pytest

import utils
from evaluation import judge
from training import generation, head
from training.chat import Stop, chat_prompt
from training.generation import Answer, Decoding

ITEMS = [
    {"id": "a", "prompt": "Why is the sky blue?"},
    {
        "id": "b",
        "prompt": "하늘은 왜 파란가요?",
        "reference": "파란빛이 더 많이 흩어지기 때문입니다.",
        "follow_ups": [{"prompt": "한 문장으로 줄여 주세요.", "reference": ""}],
    },
    {"id": "c", "prompt": "Name a colour."},
]


@pytest.fixture
def stop(tiny):
    tokenizer = tiny[1]
    return Stop(
        "<eos>",
        tokenizer.eos_token_id,
        tokenizer.convert_tokens_to_ids("<end_of_turn>"),
        1,
        len(tokenizer),
    )


def test_batches_give_the_answers_of_single_prompts(tiny, stop):
    """Left padding must not change a word: lengths differ by a factor of ten here, and the answers
    come back in the order asked."""
    texts = [
        "Hi",
        "Explain in two or three sentences why the sky looks blue in the daytime and red at dusk. "
        * 3,
        "하늘은 왜 파란가요?",
    ]
    together = generation.generate(*tiny, texts, stop, max_new_tokens=8, batch_size=3)
    alone = [generation.generate(*tiny, [text], stop, max_new_tokens=8)[0] for text in texts]
    assert together == alone and all(answer.tokens <= 8 for answer in together)


def test_answers_are_written_with_the_quick_head(tiny, stop, monkeypatch):
    multiply, rows = head.head_product, []

    def noted(hidden, weight, out):
        rows.append(len(hidden))
        return multiply(hidden, weight, out)

    monkeypatch.setattr(head, "head_product", noted)
    answers = generation.generate(*tiny, ["Hi", "안녕"], stop, max_new_tokens=4)
    assert rows == [2] * max(answer.tokens + answer.stopped for answer in answers)


def test_rows_that_have_ended_leave_the_batch_and_the_rest_say_the_same(tiny, monkeypatch):
    """Else a batch is computed to the end of its longest row; and a row that goes on from a cache
    of fewer rows must not read another row's past."""
    import torch

    config = copy.deepcopy(tiny[0].config)
    # A random model with a tied head repeats its last token; with small weights, all rows agree
    config.tie_word_embeddings, config.initializer_range = False, 0.3
    torch.manual_seed(1)
    model, tokenizer = type(tiny[0])(config).eval(), tiny[1]
    texts = [
        "Hi",
        "하늘은 왜 파란가요? 두 문장으로 설명해 주세요.",
        "Name a fruit and a colour.",
        "왜?",
    ]
    monkeypatch.setattr(generation, "SLICE", 64)
    inputs = tokenizer(
        [chat_prompt(text, tokenizer) for text in texts],
        padding=True,
        padding_side="left",
        add_special_tokens=False,
        return_tensors="pt",
    )
    how = {"do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    never = len(tokenizer) - 1
    limits = [24] * len(texts)
    settled: list[int] = []  # what the progress bar hears
    open_end = Stop("x", never, never, 1, 1)
    whole = generation._written(model, inputs, open_end, limits, how, settled.append)
    end = Stop("x", whole[0][2], whole[2][9], 1, 1)  # row 0 and row 2 end at different times
    how["eos_token_id"] = end.ids
    expected = generation._written(model, inputs, end, limits, how, settled.append)
    rows = []
    forward = type(model).forward

    def counted(self, input_ids=None, **kwargs):
        rows.append(len(input_ids))
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model), "forward", counted)
    monkeypatch.setattr(generation, "SLICE", 4)
    settled.clear()
    sliced = generation._written(model, inputs, end, limits, how, settled.append)
    assert sum(settled) == sum(limits) and len(settled) > len(limits)

    def until_the_end(ids):
        return generation.cut(ids, tokenizer, end)

    assert [until_the_end(ids) for ids in sliced] == [until_the_end(ids) for ids in expected]
    assert rows[0] == 4 and rows[-1] < 4 and rows == sorted(rows, reverse=True)


def test_answer_is_cut_at_the_first_stop_token(tiny, stop):
    tokenizer = tiny[1]
    ids = tokenizer("파란 하늘", add_special_tokens=False).input_ids
    for end in (stop.id, stop.turn_end):
        assert generation.cut([*ids, end, tokenizer.pad_token_id, *ids], tokenizer, stop) == Answer(
            "파란 하늘", True, len(ids)
        )
    assert generation.cut(ids, tokenizer, stop) == Answer("파란 하늘", False, len(ids)), (
        "not stopped: truncated"
    )
    assert generation.cut([stop.id], tokenizer, stop) == Answer("", True, 0)


def test_words_that_look_like_a_prompt_are_not_cut(tiny, stop):
    """Notebooks that split the decoded text at "model" lose what follows it."""
    tokenizer = tiny[1]
    text = "A model answers the user.\nmodel"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert generation.cut([*ids, stop.id], tokenizer, stop).text == text


def test_sampling_is_repeatable_and_greedy_is_the_default(tiny, stop):
    def sample(seed):
        return generation.generate(
            *tiny, ["Hi"], stop, max_new_tokens=12, temperature=1.0, seed=seed
        )

    assert sample(1) == sample(1) != sample(2)
    assert Decoding().temperature == 0


class Parrot:
    """Writes down what it was asked."""

    decoding = Decoding(6, long_new_tokens=40)

    def __init__(self):
        self.seen = []
        self.limits = []

    def answers(self, conversations, adapter, limits=None):
        self.seen.append((conversations, adapter))
        self.limits.append(limits)
        return [
            Answer(f"answer {len(self.seen)}.{i} {adapter}", True, 3)
            for i, _ in enumerate(conversations)
        ]


def test_second_turn_sees_the_models_own_first_answer():
    parrot = Parrot()
    answers = generation.converse(parrot, ITEMS, adapter=True)
    assert [len(turns) for turns in answers] == [1, 2, 1]
    assert answers[1][1].text == "answer 2.0 True"
    (conversation,), adapter = parrot.seen[1]
    assert adapter
    assert [message["role"] for message in conversation] == [
        "user",
        "assistant",
        "user",
    ]
    assert [message["content"] for message in conversation] == [
        "하늘은 왜 파란가요?",
        answers[1][0].text,
        "한 문장으로 줄여 주세요.",
    ]
    assert len(generation.converse(Parrot(), ITEMS[:1], adapter=False)) == 1
    assert parrot.limits == [[6, 40, 6], [6]], "room for a reference that is longer than the limit"


def test_a_third_turn_sees_the_two_before_it():
    third = {"prompt": "그걸 영어로요.", "reference": "Blue light is scattered more."}
    item = ITEMS[1] | {"follow_ups": [*ITEMS[1]["follow_ups"], third]}
    parrot = Parrot()
    (answers,) = generation.converse(parrot, [item], adapter=False)
    (conversation,), _ = parrot.seen[2]
    assert [message["content"] for message in conversation] == [
        item["prompt"],
        answers[0].text,
        "한 문장으로 줄여 주세요.",
        answers[1].text,
        "그걸 영어로요.",
    ]
    assert len(answers) == 3 and parrot.limits[2] == [40]


def test_each_answer_of_a_batch_has_its_own_limit(tiny, monkeypatch):
    """A batch with one long answer in it once needed its limit for all."""
    never = len(tiny[1]) - 1
    stop = Stop("x", never, never, 1, 1)
    texts, limits = ["Hi", "하늘은 왜 파란가요?", "Name a colour."], [5, 33, 16]
    together = generation.generate(*tiny, texts, stop, limits)
    assert [answer.tokens for answer in together] == limits
    for text, limit, answer in zip(texts, limits, together, strict=True):
        assert generation.generate(*tiny, [text], stop, limit) == [answer]
    monkeypatch.setattr(generation, "_divisible", lambda model: False)
    assert generation.generate(*tiny, texts, stop, limits) == together


def test_conversation_is_rendered_in_the_chat_template_with_one_bos(tiny):
    tokenizer = tiny[1]
    messages = [
        {"role": "user", "content": "p"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "f"},
    ]
    text = chat_prompt(messages, tokenizer)
    assert text.count(tokenizer.bos_token) == 1 and text.endswith("<start_of_turn>model\n")
    assert text.index("p") < text.index("a<end_of_turn>") < text.index("f<end_of_turn>")
    assert chat_prompt(messages[:1], tokenizer) == chat_prompt("p", tokenizer)


def test_one_model_answers_with_and_without_its_adapter(tiny, stop):
    """Off is the base model, to the token; on is another."""
    import torch
    from peft import LoraConfig, get_peft_model

    base, tokenizer = tiny
    decoding = Decoding(max_new_tokens=6)
    expected = generation.generate(base, tokenizer, ["Hi"], stop, max_new_tokens=6)
    torch.manual_seed(0)
    adapted = get_peft_model(
        copy.deepcopy(base),
        LoraConfig(
            r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_alpha=64
        ),
    )
    writer = generation.Transformers(adapted, tokenizer, stop, decoding)
    assert writer.answers(["Hi"], adapter=False) == expected != writer.answers(["Hi"], adapter=True)


# --- vLLM, which runs on GPUs only: the calls that we make, against its documented interface


def test_engine_is_chosen_and_says_why(monkeypatch):
    monkeypatch.setattr(utils, "installed", lambda name: False)
    assert generation.choose_engine()[0] == "transformers"
    assert "vllm is not installed" in generation.choose_engine()[1]
    monkeypatch.setattr(utils, "installed", lambda name: True)
    monkeypatch.setattr(utils, "has_gpu", lambda: False)
    assert generation.choose_engine() == (
        "transformers",
        "vllm is installed, but it needs a GPU and there is none",
    )
    monkeypatch.setattr(utils, "has_gpu", lambda: True)
    assert generation.choose_engine()[0] == "vllm"


def test_vllm_gets_token_ids_and_the_adapter_by_request(tiny, stop, tmp_path, monkeypatch):
    tokenizer, calls = tiny[1], []
    ids = tokenizer("파란 하늘", add_special_tokens=False).input_ids

    class LLM:
        def __init__(self, **options):
            calls.append(options)

        def generate(self, prompts, parameters, lora_request=None, use_tqdm=True):
            calls.append((prompts, parameters, lora_request))
            return [
                types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=[*ids, stop.id])])
                for _ in prompts
            ]

    vllm = types.SimpleNamespace(LLM=LLM, SamplingParams=lambda **options: options)
    lora = types.SimpleNamespace(LoRARequest=lambda name, number, path: (name, number, path))
    for name, module in (
        ("vllm", vllm),
        ("vllm.lora", types.SimpleNamespace(request=lora)),
        ("vllm.lora.request", lora),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    (tmp_path / "adapter_config.json").write_text('{"r": 12}')
    writer = generation.Vllm(
        "folder", tmp_path, tokenizer, stop, Decoding(32, engine="vllm"), "float16"
    )
    assert writer.answers(["Hi"], adapter=True) == [Answer("파란 하늘", True, len(ids))]
    writer.answers(["Hi"], adapter=False)
    options, (prompts, parameters, request), (_, _, without) = calls
    assert options["max_lora_rank"] == 16
    assert options["enable_lora"]
    assert options["dtype"] == "float16"
    assert prompts[0]["prompt_token_ids"].count(tokenizer.bos_token_id) == 1
    assert parameters == [
        {"temperature": 0.0, "max_tokens": 32, "stop_token_ids": stop.ids, "seed": 42}
    ]
    assert request == ("tuned", 1, str(tmp_path)) and without is None


# --- the file


def written(path, items=ITEMS):
    answers = [
        [Answer(f"x {item['id']}", True, 2) for _ in range(1 + ("follow_ups" in item))]
        for item in items
    ]
    generation.write_answers(path, items, answers, answers, Decoding(96), "job 1")
    return answers


def test_answers_are_recorded_with_how_they_were_decoded(tmp_path):
    path = tmp_path / "answers.jsonl"
    answers = written(path)
    record = utils.read_jsonl(path)[1]
    assert record["decoding"] == {
        "max_new_tokens": 96,
        "long_new_tokens": 0,
        "temperature": 0.0,
        "seed": 42,
        "engine": "transformers",
    }
    assert len(record["base"]) == 2 and record["follow_ups"] == ITEMS[1]["follow_ups"]
    assert generation.read_answers(path, ITEMS) == (answers, answers)
    assert generation.read_answers(path, ITEMS[::-1])[0] == answers[::-1], (
        "in the order of the prompts, not of the file"
    )
    assert generation.job_of(path) == "job 1" and generation.job_of(tmp_path / "none") is None


def test_answers_to_other_prompts_are_refused_with_their_line(tmp_path):
    path = tmp_path / "answers.jsonl"
    written(path)
    other = [ITEMS[0], ITEMS[1], ITEMS[2] | {"prompt": "Name a fruit."}]
    with pytest.raises(
        utils.CourseError,
        match=r"answers.jsonl, line 3: 'c' is not a prompt of this evaluation; delete the file",
    ):
        generation.read_answers(path, other)
    with pytest.raises(utils.CourseError, match="line 2: 'b' is not a prompt"):
        generation.read_answers(
            path, [ITEMS[0], {"id": "b", "prompt": ITEMS[1]["prompt"]}, ITEMS[2]]
        )
    with pytest.raises(utils.CourseError, match="has no answer to 'd'"):
        generation.read_answers(path, [*ITEMS, {"id": "d", "prompt": "?"}])
    path.write_bytes(path.read_bytes() + path.read_bytes().split(b"\n")[0] + b"\n")
    with pytest.raises(utils.CourseError, match="line 4: 'a' is answered twice"):
        generation.read_answers(path, ITEMS)


def test_a_system_message_is_seen_by_the_models_and_by_the_judge():
    """And a file of answers to the same prompts without it, or with another one, is refused."""
    item = {
        "id": "a",
        "language": "ko",
        "system": "한 문장으로 답합니다.",
        "prompt": "비는 왜 오나요?",
        "reference": "",
        "follow_ups": [{"prompt": "눈은요?", "reference": ""}],
    }

    class Echo:
        decoding = generation.Decoding()

        def answers(self, conversations, adapter, limits=None):
            self.seen = conversations
            return [generation.Answer("네.", True, 2) for _ in conversations]

    echo = Echo()
    generation.converse(echo, [item], adapter=True)
    assert [turn["role"] for turn in echo.seen[0]] == ["system", "user", "assistant", "user"]
    assert echo.seen[0][0]["content"] == item["system"]
    asked = judge.pair_request(item, ["가", "나"], ["다", "라"], turn=2)["messages"][1]["content"]
    assert asked.startswith("[시스템 메시지]\n한 문장으로 답합니다.\n\n[요청]")


def test_answers_to_another_system_message_are_not_read(tmp_path):
    item = {"id": "a", "prompt": "비는 왜 오나요?", "system": "한 문장으로 답합니다."}
    said = [[generation.Answer("네.", True, 2)]]
    path = generation.write_answers(tmp_path / "a.jsonl", [item], said, said, generation.Decoding())
    assert generation.read_answers(path, [item]) == (said, said)
    with pytest.raises(utils.CourseError, match="not a prompt of this evaluation"):
        generation.read_answers(path, [item | {"system": "두 문장으로 답합니다."}])
