"""The cost model's measured factors are those of the data and of the README, and its sums are
right."""

import dataclasses
import json
import re
import statistics

import pytest

import settings
import utils
from llm import models
from scale import cost, generate
from training import chat

A = cost.Assumptions()


@pytest.fixture(scope="module")
def count():
    """Tokens of a text, by Gemma's own tokenizer."""
    folder = utils.CACHE / settings.PACKAGED_STUDENT
    if not (folder / "tokenizer.json").exists():
        pytest.skip("this test needs the converted student's tokenizer: run `make run` once")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda text: len(tokenizer(text, add_special_tokens=False).input_ids)


def test_token_counts_are_those_of_the_data(count):
    def mean(texts) -> float:
        return statistics.mean([count(text) for text in texts])

    def asked(request: dict) -> str:
        return "".join(message["content"] for message in request["messages"])

    def as_json(value: dict) -> str:
        return json.dumps(value, ensure_ascii=False)

    rows = utils.read_jsonl(utils.DATA / "instruction.jsonl")[::4]
    texts = ["".join(turn["content"] for turn in chat.conversation(row)) for row in rows]
    assert mean(texts) == pytest.approx(A.row_tokens, rel=0.1)
    requests = [item["request"] for item in generate.teach_items(40, ("en", "ko"))]
    assert mean(map(asked, requests)) == pytest.approx(A.prompt_tokens, rel=0.1)
    tasks = []
    for code in settings.LANGUAGES:
        for batch in utils.read_jsonl(utils.DATA / "rehearsal" / f"teacher_{code}.jsonl"):
            tasks += batch.get("tasks", ())
    fields = ("category", "instruction", "input", "output")
    written = [as_json({key: task[key] for key in fields}) for task in tasks[::4]]
    assert mean(written) == pytest.approx(A.task_tokens, rel=0.1)


def test_the_share_that_is_kept_is_the_one_of_the_notebook():
    page = (utils.ROOT / "preprocess.ipynb").read_text(encoding="utf-8")
    (said,) = re.findall(r"(\d+)% of the rows are left", page)
    assert int(said) == round(100 * A.kept_share)


def test_training_tokens_are_those_of_the_notebook():
    cells = json.loads((utils.ROOT / "train.ipynb").read_text(encoding="utf-8"))["cells"]
    said = "".join(
        text
        for cell in cells
        for output in cell.get("outputs", ())
        for text in output.get("text", ())
    )
    (rows,) = re.search(r"(\d+) rows to train on, \d+ held out, \d+ too long", said).groups()
    tokens, learnt = re.search(r"([\d,]+) tokens, of which (\d+)% are learnt", said).groups()
    assert int(tokens.replace(",", "")) / int(rows) == pytest.approx(
        A.row_tokens + A.template_tokens, rel=0.1
    )
    assert int(learnt) / 100 == pytest.approx(A.trained_share, abs=0.03)


def test_seconds_of_the_exact_filter_are_those_of_the_readme():
    text = (utils.ROOT / "README.md").read_text(encoding="utf-8")
    first = float(re.search(r"near-duplicates, 52,000 texts \| ([\d.]+) s", text)[1])
    second, gib = map(float, re.search(r"208,000 texts \| ([\d.]+) s, ([\d.]+) GiB", text).groups())
    # Two runs on a shared machine differ, by half at most so far
    assert A.exact_seconds == (pytest.approx(first, rel=0.5), pytest.approx(second, rel=0.5))
    assert A.exact_bytes == pytest.approx(gib * 2**30 / 208_000, rel=0.2)
    assert cost.exact_seconds(104_000, A) == pytest.approx((first * second) ** 0.5, rel=0.5)


def test_seconds_of_lsh_are_those_of_the_page():
    """Both were measured on two cores; the model is a straight line through the last two."""
    page = (utils.ROOT / "scale" / "README.md").read_text(encoding="utf-8")
    section = page.split("## Near-duplicates")[1].split("\n## ")[0]
    found = re.findall(r"^\| ([\d,]{6,})[^|]*\| (\d+) \|", section, re.M)
    assert len(found) >= 2
    for texts, seconds in found:
        predicted = A.lsh_start_seconds + int(texts.replace(",", "")) * A.lsh_core_seconds / 2
        assert predicted == pytest.approx(int(seconds), rel=0.3), texts


def test_a_row_on_disk_is_as_large_as_the_shipped_ones():
    lines = (utils.DATA / "instruction.jsonl").read_bytes().splitlines()
    assert statistics.mean(map(len, lines)) == pytest.approx(A.record_bytes, rel=0.1)


def test_bands_are_those_of_the_driver():
    pytest.importorskip("numpy")
    from scale.duplicates import Filter

    assert A.lsh_bands == Filter(0.7).bands


def test_sums_by_hand():
    plain = dataclasses.replace(
        A,
        kept_share=0.5,
        prompt_tokens=1000,
        task_tokens=80,
        row_tokens=90,
        template_tokens=10,
    )
    one = cost.of(1_000_000, plain, "gpt-4o", "L4")
    assert (one.asked, one.prompt_tokens, one.written_tokens) == (2_000_000, 1e8, 1.6e8)
    assert one.dollars == pytest.approx(100 * 2.50 + 160 * 10)
    assert one.dollars_batch == pytest.approx(one.dollars / 2)
    assert one.train_tokens == 3e8
    assert one.train_gpu_hours == pytest.approx(
        3e8 / cost.training(plain, "L4").tokens_per_second / 3600
    )
    assert one.own_gpu_hours == pytest.approx(1.6e8 / plain.teacher_tokens_per_second / 3600)


def test_the_table_names_every_size_and_the_figure_draws():
    import matplotlib

    matplotlib.use("agg")
    costs = [cost.of(size) for size in cost.SIZES]
    text = cost.table(costs, "gpt-4o-mini", "H100", A)
    assert "| | 52,000 | 1 M | 100 M | rests on |" in text
    assert len({line.count("|") for line in text.splitlines()}) == 1
    page = (utils.ROOT / "scale" / "README.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "\n".join(rows) in page, "put the table of `python -m scale.cost` into scale/README.md"
    assert len(cost.figure(A, "gpt-4o-mini", "H100").axes) == 2
    assert all(
        a.dollars < b.dollars and a.train_gpu_hours < b.train_gpu_hours
        for a, b in zip(costs, costs[1:], strict=False)
    )


def test_unknown_names_are_refused():
    with pytest.raises(utils.CourseError, match="No price is known for 'nobody'"):
        cost.of(10, teacher="nobody")
    with pytest.raises(utils.CourseError, match="The GPU 'GTX' is not in the table"):
        cost.of(10, gpu="GTX")
    assert set(models.PRICES) >= {"gpt-4o-mini"}
