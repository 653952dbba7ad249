"""Near-duplicates on Ray: what each stage promises, the same answer as on one machine, also when a
worker is killed, and clear errors."""

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import rouge
import utils
from scale import cluster, duplicates, shards
from scale.duplicates import Filter

SKIP = "this test needs Ray and rensa: run `make scale-test`"


def corpus(count: int) -> list[str]:
    """Real instructions in two languages, shuffled, with copies, small changes and chains of
    changes among them."""
    rng = random.Random(0)
    rows = utils.read_jsonl(utils.DATA / "instruction.jsonl")
    texts = [row["instruction"] for row in rows if "instruction" in row][:count]
    for text in rng.sample(texts, count // 3):
        words = text.split()
        for _ in range(rng.randint(1, 4)):  # each from the one before: a chain
            words[rng.randrange(len(words))] = rng.choice(["really", "조금", "twelve", "사과"])
            texts.append(" ".join(words))
    texts += [text.upper() for text in texts[:40]] + ["", "...", "🙂 \ud800"]
    rng.shuffle(texts)
    return texts


@pytest.fixture
def sharded(tmp_path):
    """Three shards of the corpus, in the order in which they are read, and the texts in that
    order."""
    texts = corpus(150)
    folder = tmp_path / "in"
    for k, part in enumerate(np.array_split(np.arange(len(texts)), 3)):
        utils.write_jsonl(
            folder / f"{k}.jsonl",
            [{"id": int(i), "instruction": texts[i].replace("\ud800", "\\ud800")} for i in part],
        )
    return folder, [text.replace("\ud800", "\\ud800") for text in texts]


@pytest.fixture(scope="module")
def ray():
    """One Ray for the tests that do not break it."""
    pytest.importorskip("ray", reason=SKIP)
    pytest.importorskip("rensa", reason=SKIP)
    with cluster.connected(cpus=2, store_gib=0.2):
        yield sys.modules["ray"]


def ids(folder) -> list[int]:
    return [row["id"] for path in sorted(folder.glob("*.jsonl")) for row in utils.read_jsonl(path)]


# --- the pure functions ---------------------------------------------------------------------------


def test_there_are_enough_bands_for_a_pair_at_the_threshold():
    for threshold in (0.4, 0.5, 0.7, 0.9):
        jaccard = threshold / (2 - threshold)
        assert 1 - (1 - jaccard**duplicates.ROWS) ** Filter(threshold).bands >= duplicates.RECALL


def test_elements_tell_the_occurrences_of_a_token_apart():
    pytest.importorskip("rensa", reason=SKIP)
    hashes, lengths = duplicates.elements([["a", "b", "a"], ["a", "a", "a", "b"], ["b"]])
    first, second, third = (
        set(part.tolist()) for part in np.split(hashes, np.cumsum(lengths)[:-1])
    )
    assert [len(first), len(second), len(third)] == [3, 4, 1] and first < second and third < first


@pytest.mark.parametrize("tokenizer", ["unicode", "char", "rouge_score"])
def test_lsh_proposes_nearly_every_duplicate(tokenizer):
    pytest.importorskip("rensa", reason=SKIP)
    chosen = Filter(0.7, tokenizer)
    texts = [text for text in dict.fromkeys(corpus(400)) if rouge.tokenize(text, tokenizer)]
    hashes, lengths = duplicates.elements([rouge.tokenize(text, tokenizer) for text in texts])
    bucket, sketch = (
        duplicates.buckets(hashes, lengths, chosen.bands),
        duplicates.sketches(hashes, lengths),
    )
    each = [np.repeat(values, chosen.bands) for values in (np.arange(len(texts)), sketch, lengths)]
    found, left_out = duplicates.propose(bucket.ravel(), *each, chosen.threshold)
    everything = tuple(np.triu_indices(len(texts), 1))
    i, j, _ = rouge.rouge_l_above(texts, everything, 0.7, tokenizer)
    exact, proposed = set(zip(i.tolist(), j.tolist(), strict=True)), set(map(tuple, found.tolist()))
    assert len(exact) > 50 and not left_out
    assert len(exact & proposed) >= 0.97 * len(exact)
    if (
        tokenizer != "char"
        # any two sentences of one alphabet share letters, so there LSH proposes most pairs, as the
        # README says
    ):
        assert len(proposed) < 0.05 * len(everything[0])  # and not because it proposes everything


def test_pairs_above_the_threshold_are_those_of_a_plain_loop():
    texts = list(dict.fromkeys(corpus(60)))
    pairs = np.triu_indices(len(texts), 1)
    i, j, scores = rouge.rouge_l_above(texts, pairs, 0.7)
    plain = {(a, b): rouge.rouge_l(texts[a], texts[b]) for a, b in zip(*pairs, strict=True)}
    assert {(a, b): s for a, b, s in zip(i, j, scores, strict=True)} == {
        pair: s for pair, s in plain.items() if s > 0.7
    }
    assert len(i) > 10


def test_a_crowded_bucket_costs_no_square_and_says_what_it_left_out(monkeypatch):
    monkeypatch.setattr(duplicates, "LARGEST", 10)
    n = 100
    same = np.zeros(n, np.uint64), np.arange(n), np.zeros(n, np.uint64), np.full(n, 5)
    pairs, left_out = duplicates.propose(*same, 0.7)
    assert len(pairs) + left_out == n * (n - 1) // 2
    assert set(pairs[:, 0].tolist()) == set(range(10)) and set(pairs[:, 1].tolist()) == set(
        range(1, n)
    )


def edges(texts, threshold=0.7):
    """All duplicates among the first texts of each token sequence, and the copies, as the stages
    hand them to `decide`."""
    first, copies = {}, {}
    for i, text in enumerate(texts):
        if (tokens := tuple(rouge.tokenize(text))) and first.setdefault(tokens, i) != i:
            copies[i] = first[tokens]
    places = np.array(sorted(first.values()))
    i, j, score = rouge.rouge_l_above(
        [texts[k] for k in places], np.triu_indices(len(places), 1), threshold
    )
    return places[i], places[j], score, copies


def test_greedy_decisions_and_neighbours_equal_the_single_machine_filter():
    texts = corpus(150)
    removed = duplicates.decide(*edges(texts), "greedy")
    expected = rouge.rouge_l_duplicates(texts).removed
    assert (
        removed == {i: (match.index, match.score) for i, match in expected.items()}
        and len(removed) > 60
    )


def test_one_survivor_is_the_first_of_each_connected_component():
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    texts = corpus(150)
    left, right, score, copies = edges(texts)
    removed = duplicates.decide(left, right, score, copies, "one")
    pairs = np.array([*zip(left, right, strict=True), *copies.items()])
    _, label = connected_components(
        coo_array((np.ones(len(pairs)), pairs.T), (len(texts), len(texts))), directed=False
    )
    first = {group: i for i, group in reversed(list(enumerate(label.tolist())))}
    assert {i: stays for i, (stays, _) in removed.items()} == {
        i: first[g] for i, g in enumerate(label.tolist()) if first[g] != i
    }
    assert len(removed) > len(duplicates.decide(left, right, score, copies, "greedy"))  # the chains


# --- on Ray ---------------------------------------------------------------------------------------


def check(output, texts):
    """The output is that of the single-machine filter, and nothing is lost."""
    expected = rouge.rouge_l_duplicates(texts)
    assert ids(output / "kept") == expected.kept
    assert ids(output / "removed") == sorted(expected.removed)
    report = utils.read_json(output / "report.json")
    assert (report["kept"], report["removed"], report["torn"]) == (
        len(expected.kept),
        len(expected.removed),
        0,
    )


@pytest.mark.parametrize("partitions", [None, 3])
def test_the_answer_is_that_of_one_machine_however_the_work_is_split(
    ray, sharded, tmp_path, partitions
):
    folder, texts = sharded
    duplicates.run([folder], tmp_path / "out", partitions=partitions)
    check(tmp_path / "out", texts)
    row = utils.read_jsonl(tmp_path / "out" / "removed" / "1.jsonl")[0]
    name, line = row["duplicate_of"].split(":")
    kept = utils.read_jsonl(folder / name)[int(line) - 1]
    assert (
        row["rouge_l"] == rouge.rouge_l(row["instruction"], kept["instruction"]) > 0.7
        and kept["id"] < row["id"]
    )
    with pytest.raises(
        utils.CourseError, match=r"kept holds 0\.jsonl, which is no shard of this input"
    ):
        duplicates.run([folder / "1.jsonl"], tmp_path / "out")
    with pytest.raises(utils.CourseError, match="is the folder of the shards"):
        duplicates.run([folder], folder)
    kept = (tmp_path / "out" / "kept" / "0.jsonl").read_bytes().splitlines()
    assert set(kept) <= set((folder / "0.jsonl").read_bytes().splitlines())  # byte by byte


def test_parquet_in_and_out(ray, sharded, tmp_path):
    import pandas

    folder, texts = sharded
    for path in folder.glob("*.jsonl"):
        pandas.DataFrame(utils.read_jsonl(path)).to_parquet(path.with_suffix(".parquet"))
        path.unlink()
    duplicates.run([folder], tmp_path / "out")
    kept = pandas.concat(
        map(pandas.read_parquet, sorted((tmp_path / "out" / "kept").glob("*.parquet")))
    )
    assert kept["id"].tolist() == rouge.rouge_l_duplicates(texts).kept


def test_a_torn_line_is_named_or_set_aside(ray, sharded, tmp_path):
    folder, texts = sharded
    lines = (folder / "1.jsonl").read_bytes().splitlines()
    (folder / "1.jsonl").write_bytes(b"\n".join([*lines[:4], lines[4][:9], *lines[5:]]))
    with pytest.raises(utils.CourseError, match=r"1\.jsonl, line 5: not valid JSON.*--skip-torn"):
        try:
            duplicates.run([folder], tmp_path / "out")
        except Exception as error:
            raise cluster.sentence(error) from None
    assert not (tmp_path / "out" / "report.json").exists()
    report = duplicates.run([folder], tmp_path / "out", skip_torn=True)
    assert report["torn"] == 1 and report["rows"] == len(texts)
    aside = utils.read_jsonl(tmp_path / "out" / "torn" / "1.jsonl")
    assert aside == [{"line": 5, "bytes": lines[4][:9].decode() + "\n"}]


def test_killed_workers_change_nothing(ray, sharded, tmp_path):
    """Every kind of shuffle task, map and reduce, loses its first worker, by SIGKILL."""
    psutil = pytest.importorskip("psutil")
    folder, texts = sharded
    raylet = next(
        process
        for process in psutil.Process().children(recursive=True)
        if process.name() == "raylet"
    )
    killed, over = {}, threading.Event()

    def hunt():
        while not over.is_set():
            for process in raylet.children(recursive=True):
                try:
                    task = process.cmdline()[0]
                    # Where state could be lost; not the raylet's helpers (ray::RuntimeEnvAgent),
                    # without which a node ends
                    if re.match("ray::HashShuffle", task) and task not in killed:
                        process.kill()
                        killed[task] = process.pid
                except (psutil.Error, IndexError):
                    pass
            time.sleep(0.01)

    hunter = threading.Thread(target=hunt)
    hunter.start()
    try:
        duplicates.run([folder], tmp_path / "out", partitions=4)
    finally:
        over.set()
        hunter.join()
    assert len(killed) >= 3, killed
    check(tmp_path / "out", texts)


# --- bad input ------------------------------------------------------------------------------------


def test_without_ray_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(utils, "installed", lambda module: False)
    with (
        pytest.raises(utils.CourseError, match=r"needs Ray.*make \.venv/scale/\.ready"),
        cluster.connected(),
    ):
        pass


def test_an_unreachable_cluster_is_one_sentence(sharded, tmp_path):
    pytest.importorskip("ray", reason=SKIP)
    command = [
        sys.executable,
        "-m",
        "scale.duplicates",
        str(sharded[0]),
        "--output",
        str(tmp_path / "out"),
        "--address",
        "127.0.0.1:9",
    ]
    done = subprocess.run(
        command,
        cwd=utils.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"RAY_raylet_start_wait_time_s": "5"},
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "Stopped: The Ray cluster at 127.0.0.1:9 cannot be reached" in done.stderr


def test_errors_of_the_cluster_become_sentences():
    ray = pytest.importorskip("ray", reason=SKIP)
    full = ray.exceptions.RayTaskError("f", "trace", OSError(28, "No space left on device"))
    assert "No space left on a disk of the cluster" in str(cluster.sentence(full))
    assert "No space left" in str(cluster.sentence(ray.exceptions.OutOfDiskError()))
    assert "went away" in str(cluster.sentence(ray.exceptions.WorkerCrashedError()))
    ours = ValueError("a bug")
    assert cluster.sentence(ours) is ours


def test_a_full_disk_leaves_the_old_output(sharded, tmp_path, monkeypatch):
    folder, _ = sharded
    shards.divide(folder / "0.jsonl", tmp_path, {}, "instruction")
    before = (tmp_path / "kept" / "0.jsonl").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(utils.CourseError, match="No space left on the disk"):
        shards.divide(
            folder / "0.jsonl",
            tmp_path,
            {2: {"duplicate_of": "0.jsonl:1", "rouge_l": 1.0}},
            "instruction",
        )
    assert (tmp_path / "kept" / "0.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: folder, "has no shards"),
        (lambda folder: folder / "absent.jsonl", "has no shards"),
        (
            lambda folder: (folder / "a.csv", (folder / "a.csv").write_text("x"))[0],
            "neither .jsonl nor .parquet",
        ),
    ],
)
def test_wrong_paths(tmp_path, make, message):
    with pytest.raises(utils.CourseError, match=message):
        shards.find([make(tmp_path)])


def test_wrong_settings():
    for wrong in (
        {"threshold": 0.1},
        {"threshold": 1.5},
        {"survivors": "two"},
        {"tokenizer": "bytes"},
    ):
        with pytest.raises(utils.CourseError):
            Filter(**wrong)


def test_a_field_that_is_missing_or_no_text_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"text": "x"}) + "\n" + json.dumps({"instruction": 3}) + "\n"
    )
    with pytest.raises(
        utils.CourseError, match=r"a\.jsonl, line 1: no object with the field 'instruction'"
    ):
        list(shards.texts(tmp_path / "a.jsonl", "instruction"))
    assert list(shards.texts(tmp_path / "a.jsonl", "text", skip_torn=True)) == [([1], ["x"])]


@pytest.mark.parametrize(("times", "starts"), [(2, 3), (9, 3)])
def test_a_busy_machine_is_given_another_chance(monkeypatch, times, starts):
    """Ray gives its agents 15 seconds, and that is all: the next start finds warm files."""
    module = pytest.importorskip("ray", reason=SKIP)
    calls = []

    def init(address, **options):
        calls.append(address)
        if len(calls) <= times:
            raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.setattr(module, "init", init)
    monkeypatch.setattr(module, "shutdown", lambda: None)
    refused = pytest.raises(utils.CourseError, match="does not start on this machine.*less else")
    with contextlib.nullcontext() if times < starts else refused, cluster.connected(cpus=1):
        pass
    assert calls == ["local"] * starts


def test_a_cluster_that_refuses_is_asked_once(monkeypatch):
    module = pytest.importorskip("ray", reason=SKIP)
    calls = []

    def init(address, **options):
        calls.append(address)
        raise RuntimeError("Version mismatch: the cluster was started with Ray 2.1")

    monkeypatch.setattr(module, "init", init)
    refused = pytest.raises(utils.CourseError, match="cluster at auto cannot be reached .*mismatch")
    with refused, cluster.connected("auto"):
        pass
    assert calls == ["auto"]
