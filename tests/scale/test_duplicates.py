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
    bucket = duplicates.buckets(hashes, lengths, chosen.bands)
    sketch = duplicates.sketches(hashes, lengths)
    each = [np.repeat(values, chosen.bands) for values in (np.arange(len(texts)), sketch, lengths)]
    found = duplicates.propose(bucket.ravel(), *each, chosen.threshold, anchors=len(texts))
    everything = tuple(np.triu_indices(len(texts), 1))
    i, j, _ = rouge.rouge_l_above(texts, everything, 0.7, tokenizer)
    exact = set(zip(i.tolist(), j.tolist(), strict=True))
    proposed = set(map(tuple, found.pairs.tolist()))
    assert len(exact) > 50 and not found.left_out and not len(found.crowded)
    assert len(exact & proposed) >= 0.97 * len(exact)
    # Any two sentences of one alphabet share letters, so there LSH proposes most pairs, as the
    # README says
    if tokenizer != "char":
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


def test_a_crowded_bucket_costs_no_square_and_is_named(monkeypatch):
    n = 1000
    same = np.full(n, 7, np.uint64), np.arange(n), np.zeros(n, np.uint64), np.full(n, 5)
    found = duplicates.propose(*same, 0.7, anchors=3)
    pairs = {(left, right) for right in range(n) for left in range(min(3, right))}
    assert set(map(tuple, found.pairs.tolist())) == pairs
    assert found.crowded.tolist() == [7] and not found.left_out
    # Texts that no sketch lets be duplicates: nobody has a candidate, so all meet the first few
    monkeypatch.setattr(duplicates, "LARGEST", 10)
    far = np.full(n, 7, np.uint64), np.arange(n), np.zeros(n, np.uint64), np.arange(n) ** 3
    found = duplicates.propose(*far, 0.7, anchors=3)
    assert found.left_out == (n - 11) * (n - 10) // 2 and found.crowded.tolist() == [7]


def edges(texts, threshold=0.7):
    """All duplicates among texts of which no two have the same tokens."""
    return rouge.rouge_l_above(texts, np.triu_indices(len(texts), 1), threshold)


def distinct(texts):
    return list({tuple(rouge.tokenize(text)): text for text in texts}.values())


def test_greedy_decisions_and_neighbours_equal_the_single_machine_filter():
    texts = distinct(corpus(150))
    left, right, score = edges(texts)
    found = duplicates.decide(left, right, score)
    removed = {
        b: (a, s)
        for a, b, s in zip(
            left[found].tolist(), right[found].tolist(), score[found].tolist(), strict=True
        )
    }
    expected = rouge.rouge_l_duplicates(texts).removed
    assert removed == {i: (match.index, match.score) for i, match in expected.items()}
    assert len(removed) > 60


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


@pytest.fixture
def split(monkeypatch):
    """Many small partitions, and few candidates in the first rounds."""
    monkeypatch.setattr(duplicates, "TEXTS", 80)
    monkeypatch.setattr(duplicates, "ENTRIES", 3000)
    monkeypatch.setattr(duplicates, "ANCHORS", (1, 3, 500))


@pytest.mark.parametrize("how", ["whole", "split"])
def test_the_answer_is_that_of_one_machine_however_the_work_is_split(
    ray, sharded, tmp_path, how, request
):
    folder, texts = sharded
    if how == "split":
        request.getfixturevalue("split")
    report = duplicates.run([folder], tmp_path / "out")
    assert report["rounds"] > 1 and not report["crowded_buckets"]
    check(tmp_path / "out", texts)
    row = utils.read_jsonl(tmp_path / "out" / "removed" / "1.jsonl")[0]
    name, line = row["duplicate_of"].split(":")
    kept = utils.read_jsonl(folder / name)[int(line) - 1]
    assert row["rouge_l"] == rouge.rouge_l(row["instruction"], kept["instruction"]) > 0.7
    assert kept["id"] < row["id"]
    with pytest.raises(
        utils.CourseError, match=r"kept holds 0\.jsonl, which is no shard of this input"
    ):
        duplicates.run([folder / "1.jsonl"], tmp_path / "out")
    with pytest.raises(utils.CourseError, match="is the folder of the shards"):
        duplicates.run([folder], folder)
    kept = (tmp_path / "out" / "kept" / "0.jsonl").read_bytes().splitlines()
    assert set(kept) <= set((folder / "0.jsonl").read_bytes().splitlines())  # byte by byte


def test_parquet_in_and_out_of_a_storage_with_an_address(ray, sharded, tmp_path):
    import pandas

    folder, texts = sharded
    for path in folder.glob("*.jsonl"):
        pandas.DataFrame(utils.read_jsonl(path)).to_parquet(path.with_suffix(".parquet"))
        path.unlink()
    duplicates.run([f"file://{folder}"], f"file://{tmp_path}/out")  # as an address of a storage
    kept = pandas.concat(
        map(pandas.read_parquet, sorted((tmp_path / "out" / "kept").glob("*.parquet")))
    )
    assert kept["id"].tolist() == rouge.rouge_l_duplicates(texts).kept


def test_a_torn_line_is_named_or_set_aside(ray, sharded, tmp_path, capfd):
    folder, texts = sharded
    lines = (folder / "1.jsonl").read_bytes().splitlines()
    (folder / "1.jsonl").write_bytes(b"\n".join([*lines[:4], lines[4][:9], *lines[5:]]))
    with pytest.raises(utils.CourseError) as stopped, cluster.sentences():
        duplicates.run([folder], tmp_path / "out")
    said = r"1\.jsonl, line 5: not valid JSON \(.*\); mend or delete .* --skip-torn\."
    assert re.fullmatch(said, str(stopped.value))  # one line, and nothing of Ray's around it
    assert "Traceback" not in capfd.readouterr().err
    assert not (tmp_path / "out" / "report.json").exists()
    report = duplicates.run([folder], tmp_path / "out", skip_torn=True)
    assert report["torn"] == 1 and report["rows"] == len(texts)
    aside = utils.read_jsonl(tmp_path / "out" / "torn" / "1.jsonl")
    assert aside == [{"line": 5, "bytes": lines[4][:9].decode() + "\n"}]


def test_killed_workers_change_nothing(ray, sharded, tmp_path, split):
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
        duplicates.run([folder], tmp_path / "out")
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
    shards.divide(str(folder / "0.jsonl"), str(tmp_path), {}, "instruction")
    before = (tmp_path / "kept" / "0.jsonl").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(utils.CourseError, match="No space left on the disk"):
        shards.divide(
            str(folder / "0.jsonl"),
            str(tmp_path),
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
        list(shards.texts(str(tmp_path / "a.jsonl"), "instruction"))
    assert list(shards.texts(str(tmp_path / "a.jsonl"), "text", skip_torn=True)) == [([1], ["x"])]


@pytest.mark.parametrize(("times", "starts"), [(2, 3), (9, 3)])
@pytest.mark.parametrize("address", [None, "auto"])
def test_a_busy_machine_is_given_another_chance(monkeypatch, address, times, starts):
    """Ray gives its agents 15 seconds, and that is all: the next start finds warm files. To start a
    head would not help, on a cluster either."""
    module = pytest.importorskip("ray", reason=SKIP)
    calls = []

    def init(address, **options):
        calls.append(address)
        if len(calls) <= times:
            raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.setattr(module, "init", init)
    monkeypatch.setattr(module, "shutdown", lambda: None)
    refused = pytest.raises(utils.CourseError, match="does not start on this machine.*less else")
    with contextlib.nullcontext() if times < starts else refused, cluster.connected(address):
        pass
    assert calls == [address or "local"] * starts


def test_what_belongs_to_a_ray_of_its_own_is_refused_with_a_cluster(monkeypatch):
    for option in ("--cpus", "--store-gib"):
        command = ["duplicates", "in", "--output", "out", "--address", "auto", option, "2"]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(utils.CourseError, match="leave them out, or give --num-cpus"):
            duplicates.main()


def test_a_clusters_nodes_are_sent_the_code(monkeypatch):
    module = pytest.importorskip("ray", reason=SKIP)
    calls = []
    monkeypatch.setattr(module, "init", lambda address, **options: calls.append(options))
    with cluster.connected("auto"):
        pass
    (options,) = calls
    assert options["runtime_env"]["working_dir"] == str(utils.ROOT)
    assert {".env", ".venv"} <= set(options["runtime_env"]["excludes"])


def test_parquet_with_missing_texts_takes_time_in_proportion(tmp_path):
    """A set was built anew for every row: 49 minutes for a million rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count, folder = 300_000, str(tmp_path / "out")
    texts = [None if k % 10 == 0 else f"글 {k}" for k in range(count)]
    pq.write_table(pa.table({"instruction": texts}), tmp_path / "a.parquet")
    removed = {2: {"duplicate_of": "a.parquet:4", "rouge_l": 0.8}}
    started = time.time()
    counts = shards.divide(str(tmp_path / "a.parquet"), folder, removed, "instruction")
    assert counts == {"kept": count * 9 // 10 - 1, "removed": 1, "torn": count // 10}
    assert time.time() - started < 30  # 300,000 rows took 4 minutes
    kept = pq.read_table(tmp_path / "out" / "kept" / "a.parquet")["instruction"].to_pylist()
    assert kept == [text for text in texts if text and text != "글 1"]
    gone = pq.read_table(tmp_path / "out" / "removed" / "a.parquet").to_pylist()
    assert gone == [{"instruction": "글 1"} | removed[2]]


def test_a_storage_that_is_unknown_or_does_not_answer_is_one_sentence(tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(utils.CourseError, match="ftp://a/b is no address of a storage"):
        shards.find(["ftp://a/b"])
    away = "s3://key:secret@bucket/rows?endpoint_override=127.0.0.1:9&scheme=http&region=eu"
    with pytest.raises(utils.CourseError, match="s3://bucket/rows cannot be reached") as stopped:
        shards.find([away])
    assert "secret" not in str(stopped.value)
    with pytest.raises(utils.CourseError, match="ftp://a/b is no address") as stopped:
        shards.find(["ftp://key:secret@a/b"])
    assert "secret" not in str(stopped.value)


def test_options_of_an_address_stay_at_its_end():
    assert (
        shards.inside("s3://a/b?region=eu", "kept", "0.jsonl") == "s3://a/b/kept/0.jsonl?region=eu"
    )
    assert shards.name("s3://a/b/0.jsonl?region=eu") == "0.jsonl"
    assert shards.parent("s3://a/b/0.jsonl?region=eu") == "s3://a/b"
    assert shards.inside("/a?b", "c") == "/a?b/c" and shards.name("/a/what?.jsonl") == "what?.jsonl"


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
