"""Start Ray, or join a cluster, and turn what Ray says into one sentence.

What it does: connect with settings that keep a run on this machine and its memory bounded. What it
does not do: any work. Importing it does not import ray.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import utils
from utils import CourseError

INSTALL = (
    "run `make .venv/scale/.ready` and use .venv/scale/bin/python (or `pip install -r "
    "requirements/scale.txt`)"
)
STORE_GIB = 2.0
STARTS = 3  # attempts to start Ray on a busy machine
ADDED = "Failed to apply UDF transform"  # Ray Data's own words, after those of an error
BUSY = "timed out during startup"
# Beside what .gitignore names, which holds for folders and not for links to them
NOT_SENT = (".git", ".venv", ".cache", ".env", "runs", "*.ipynb", "assets")


@contextlib.contextmanager
def connected(
    address: str | None = None, store_gib: float | None = None, cpus: int | None = None
) -> Iterator[None]:
    """A Ray session for the block, with all of Ray's errors as `CourseError`s of one sentence.

    Args:
        address: of a running cluster, such as "10.0.0.5:6379" or "auto"; None starts Ray on this
            machine, for this block only.
        store_gib: memory for shared objects on this machine; what does not fit is spilled to disk
            by Ray; None for `STORE_GIB`.
        cpus: for a session of its own; None for all.

    Raises:
        CourseError: Ray is not installed, the cluster cannot be reached, a node or the disk gave
            up, or the work itself failed.
    """
    if not utils.installed("ray"):
        raise CourseError(f"This program needs Ray, which is not installed here: {INSTALL}.")
    # A run on this machine is nobody else's business; one thread a task, since Ray gives each task
    # one core
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    # Seconds; Ray's own 30 are too few on a busy machine
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "60")
    # Ray ends idle workers after a second, and to start one takes longer than most of its tasks
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    import logging

    import ray

    alone: dict = {}
    variables = {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment: dict = {"env_vars": variables}
    if address:  # Ray sends the nodes what git would: no secrets, no runs
        environment |= {"working_dir": str(utils.ROOT), "excludes": list(NOT_SENT)}
    else:
        variables |= {"PYTHONPATH": str(utils.ROOT), "COURSE_CACHE": str(utils.CACHE)}
        memory = int((store_gib or STORE_GIB) * 2**30)
        alone |= {"object_store_memory": memory, "num_cpus": cpus, "include_dashboard": False}
    try:
        if address and address != "auto":  # asked at once, for Ray itself tries for minutes
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        _init(
            address or "local",
            runtime_env=environment,
            logging_level=logging.WARNING,
            log_to_driver=False,
            **alone,
        )
    except Exception as error:
        # Ray's "timed out during startup" is a plain Exception
        if not (isinstance(error, OSError | RuntimeError | ValueError) or type(error) is Exception):
            raise
        if not address or BUSY in str(error):
            raise CourseError(
                f"Ray does not start on this machine ({_first(error)}): run this again when less "
                "else is running; Ray's own words are in /tmp/ray/session_latest/logs."
            ) from None
        raise CourseError(
            f"The Ray cluster at {address} cannot be reached ({_first(error)}): is `ray start "
            f"--head` running there, with the same Ray {ray.__version__}, and is the port open?"
        ) from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Its errors are raised as well; what it prints of them is a hundred lines before our one
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        with sentences():
            yield
    finally:
        ray.shutdown()


def _init(address: str, **options) -> None:
    """`ray.init`, again where the machine was too busy. Ray gives its agents 15 seconds to start,
    which no setting changes, and what was read once from the disk is read faster the next time."""
    import ray

    for left in reversed(range(STARTS)):
        try:
            ray.init(address, **options)
            return
        except Exception as error:
            if not left or BUSY not in str(error):
                raise
            ray.shutdown()


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Errors of the block that have a sentence (see `sentence`) become that."""
    try:
        yield
    except Exception as error:
        said = sentence(error)
        if said is error:
            raise
        raise said from error


def sentence(error: BaseException) -> BaseException:
    """What a distributed error says to its reader; an error of our own code stays as it is, so that
    its traceback is not lost."""
    import ray

    for cause in _chain(error):
        # Ray's wrapper is a CourseError too, whose text is a traceback of a hundred lines
        if isinstance(cause, CourseError) and not isinstance(cause, ray.exceptions.RayTaskError):
            return CourseError(str(cause).partition("\n" + ADDED)[0])
    for cause in _chain(error):
        text = str(cause)
        if (
            isinstance(cause, ray.exceptions.OutOfDiskError)
            or "No space left on device" in text
            or "Errno 28" in text
        ):
            return CourseError(
                "No space left on a disk of the cluster (Ray spills to its temporary folder, "
                "/tmp/ray unless RAY_TMPDIR says otherwise): free some or point RAY_TMPDIR to a "
                "larger disk, and run again; files that were written are whole."
            )
        if isinstance(cause, ray.exceptions.OutOfMemoryError):
            return CourseError(
                "A node ran out of memory and Ray ended the task: use fewer cores (--cpus) or "
                "smaller shards."
            )
        e = ray.exceptions
        if isinstance(
            cause,
            e.NodeDiedError
            | e.ObjectLostError
            | e.WorkerCrashedError
            | e.ActorDiedError
            | e.RaySystemError,
        ):
            return CourseError(
                "A node of the cluster or its worker went away and its work could not be done "
                f"elsewhere ({_first(cause)}): check "
                "`ray status`, and run again; files that were written are whole."
            )
    return error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what caused it: Ray wraps the error of a task in one of its own."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        error = waiting.pop(0)
        if isinstance(error, BaseException) and id(error) not in seen:
            seen.add(id(error))
            yield error
            waiting += [error.__cause__, error.__context__, getattr(error, "cause", None)]


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
