"""A cluster of three nodes on this machine, and one of them lost in the middle of the work.

A node is a network namespace with an address of its own, its own Ray and its own folder for Ray's
files; the token is shared by a file, as scale/README.md says. Losing one means that every process
in it is killed at once. What this does not show: slow or full disks, a network that loses packets,
and locks on a network file system, because all nodes share this machine's.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import utils
from scale import cluster

HEAD, WORKERS = "course0", ("course1", "course2")
RAY = Path(sys.executable).with_name("ray")


def address(node: str) -> str:
    return f"10.77.0.{int(node[-1]) + 1}"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def killed(node: str) -> None:
    """All processes of a node, at once."""
    found = subprocess.run(["ip", "netns", "pids", node], capture_output=True, text=True)
    for pid in found.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), 9)


def at_work(node: str) -> bool:
    """True if one of Ray's workers there has a task."""
    import psutil

    found = subprocess.run(["ip", "netns", "pids", node], capture_output=True, text=True)
    for pid in found.stdout.split():
        with contextlib.suppress(psutil.Error):
            title = " ".join(psutil.Process(int(pid)).cmdline())
            if title.startswith("ray::") and "IDLE" not in title:
                return True
    return False


class Nodes:
    """The cluster: `command` runs on its head."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "RAY_raylet_start_wait_time_s": "120",
            "RAY_health_check_timeout_ms": "3000",  # a lost node is noticed sooner
            "PYTHONPATH": str(utils.ROOT),
        }

    def start(self, node: str) -> None:
        where = ["--address", f"{address(HEAD)}:6379"]
        if node == HEAD:  # it starts no tasks, so that a lost node always has some
            where = ["--head", "--port", "6379", "--include-dashboard", "false"]
        self.ray(
            node,
            "start",
            *where,
            f"--num-cpus={0 if node == HEAD else 1}",
            f"--node-ip-address={address(node)}",
            f"--object-store-memory={2**28}",
            f"--temp-dir=/tmp/{node}",  # short, for Ray makes sockets in it
            "--disable-usage-stats",
        )

    def ray(self, node: str, *arguments: str) -> str:
        for _ in range(cluster.STARTS):  # as the programs do on a busy machine
            done = subprocess.run(
                ["ip", "netns", "exec", node, str(RAY), *arguments],
                env=self.variables,
                capture_output=True,
                text=True,
                timeout=180,
            )
            if done.returncode == 0:
                return done.stdout
            if cluster.BUSY not in done.stderr:
                break
            killed(node)
        raise AssertionError(done.stdout + done.stderr)

    def alive(self) -> list[str]:
        """Addresses of the nodes that the cluster counts on."""
        program = (
            "import ray, sys; ray.init(sys.argv[1], logging_level='ERROR');"
            "print(*[n['NodeManagerAddress'] for n in ray.nodes() if n['Alive']])"
        )
        done = subprocess.run(
            ["ip", "netns", "exec", HEAD, sys.executable, "-c", program, f"{address(HEAD)}:6379"],
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=180,
            check=True,
        )
        return done.stdout.split()

    def command(self, *arguments) -> subprocess.Popen:
        return subprocess.Popen(
            ["ip", "netns", "exec", HEAD, sys.executable, "-m", *map(str, arguments)],
            cwd=utils.ROOT,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    pytest.importorskip("ray", reason="this test needs Ray: run `make scale-test`")
    if os.name != "posix" or os.geteuid() or not shutil.which("ip"):
        pytest.skip("this test needs root and `ip netns`, for nodes with networks of their own")
    made = Nodes(tmp_path_factory.mktemp("nodes"))
    try:
        ip("link", "add", "course", "type", "bridge")
        ip("link", "set", "course", "up")
        for node in (HEAD, *WORKERS):
            ip("netns", "add", node)
            ip("link", "add", node, "type", "veth", "peer", "name", "eth0", "netns", node)
            ip("link", "set", node, "master", "course", "up")
            ip("-n", node, "address", "add", f"{address(node)}/24", "dev", "eth0")
            ip("-n", node, "link", "set", "eth0", "up")
            ip("-n", node, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        removed()
        pytest.skip(f"this test needs network namespaces, which are refused here: {error.stderr}")
    try:
        (made.folder / "token").write_text(token(made.folder), encoding="utf-8")
        for node in (HEAD, *WORKERS):
            made.start(node)
        yield made
    finally:
        removed()


def token(home: Path) -> str:
    """As scale/README.md makes one."""
    done = subprocess.run(
        [RAY, "get-auth-token", "--generate"],
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def removed() -> None:
    for node in (HEAD, *WORKERS):
        killed(node)
        subprocess.run(["ip", "netns", "delete", node], capture_output=True)
        shutil.rmtree(f"/tmp/{node}", ignore_errors=True)
    subprocess.run(["ip", "link", "delete", "course"], capture_output=True)


def lose_one_at_work(process: subprocess.Popen, seconds: float) -> str:
    """Kill a node that has had tasks for so long; its name."""
    deadline = time.time() + 180
    while time.time() < deadline and process.poll() is None:
        for node in WORKERS:
            if at_work(node):
                time.sleep(seconds)
                assert process.poll() is None, "the work ended before a node could be lost"
                killed(node)
                return node
        time.sleep(0.05)
    raise AssertionError(f"no node had a task: {process.communicate()[0][-2000:]}")


def report_of(process: subprocess.Popen) -> dict:
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said[-3000:]
    return json.loads(said[said.index("{\n") : said.rindex("\n}") + 2])


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def test_a_lost_node_changes_nothing_in_what_duplicates_writes(nodes, tmp_path):
    rows = [
        row for row in utils.read_jsonl(utils.DATA / "instruction.jsonl") if "instruction" in row
    ]
    for shard in range(2):  # each row and, nearly, the same again
        texts = [{"instruction": f"{row['instruction']} ({shard})"} for row in rows]
        utils.write_jsonl(tmp_path / "rows" / f"{shard}.jsonl", texts)

    def duplicates(name: str) -> subprocess.Popen:
        return nodes.command("scale.duplicates", tmp_path / "rows", "--output", tmp_path / name)

    report = report_of(duplicates("whole"))
    assert report["removed"] >= len(rows) / 2
    lost = lose_one_at_work(process := duplicates("lost"), 2)
    again = report_of(process)
    assert again | {"seconds": 0} == report | {"seconds": 0}
    for part in ("kept/*", "removed/*"):
        assert contents(tmp_path / "lost", part) == contents(tmp_path / "whole", part)

    nodes.start(lost)  # it comes back, with the same address and token
    assert sorted(nodes.alive()) == sorted(map(address, (HEAD, *WORKERS)))
