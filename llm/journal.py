"""An append-only file of records, each with a key, that survives being killed at any moment and has
one writer at a time.

What it does: write a record in one piece, tell when it is on the disk, find records again by key,
and refuse a second writer. What it does not do: know what is in a record.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

import utils
from utils import CourseError

GATHER = 0.02  # seconds in which records are gathered for one sync


class Journal:
    """JSON Lines that are only ever added to; where a key occurs again, its last record counts.

    A process killed while writing leaves at most one torn last line. It counts as not written, and
    is cut off by the next writer (never by a reader: another process may be writing that line now).
    A malformed line anywhere else is damage, and a CourseError names it.
    """

    def __init__(self, path: str | Path, fields: tuple[str, ...] = ("key",)) -> None:
        self.path, self.fields = Path(path), fields
        self.records: list[dict] = []  # all, in the order written
        self.entries: dict[str, dict] = {}  # the last one of each key
        self._size = 0  # bytes of whole lines that were read or written
        self._lock = FileLock(f"{self.path}.lock", timeout=0, thread_local=False)
        self._holders = 0
        self._written = self._synced = 0  # records, since this process opened the file
        self._sync: asyncio.Task | None = None
        with utils.disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self.catch_up()

    def catch_up(self) -> None:
        """Read what others have written since."""
        if not self.path.exists() or self.path.stat().st_size == self._size:
            return
        # The size first: what another process adds in between is read again by the next writer
        self._size = self.path.read_bytes().rfind(b"\n") + 1
        self.records = utils.read_jsonl(self.path, self.fields, whole_lines=True)
        self.entries = {record["key"]: record for record in self.records}

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer while the block runs, and know all that was written before.

        Raises:
            CourseError: another process, or another journal of this one, writes the file now.
        """
        self._claim()
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders:
                self._lock.release()

    def _claim(self) -> None:
        if not self._holders:
            try:
                with utils.disk_errors(self.path):
                    self._lock.acquire()
            except Timeout:
                raise CourseError(
                    f"{utils.short(self.path)} is being written by another process or notebook: "
                    "wait until it is done, stop it, or set another RUN for this one (both would "
                    "ask and pay for the same)."
                ) from None
            self.catch_up()
            if self.path.exists() and self.path.stat().st_size > self._size:
                os.truncate(self.path, self._size)  # the line of a writer that was killed
        self._holders += 1

    def write(self, record: dict) -> None:
        """Add one record: from here on it survives the end of this process, `kill -9` included, but
        not yet that of the machine. Outside `writing` this journal is the writer for this record
        only."""
        if not self._holders:
            with self.writing():
                return self.write(record)
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        with utils.disk_errors(self.path), open(self.path, "ab", buffering=0) as file:
            end = file.tell()
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(end)  # else the next record would be glued to half a line
                raise
        self._size = end + len(line)
        self.records.append(record)
        self.entries[record["key"]] = record
        self._written += 1

    async def synced(self) -> None:
        """Return when all that was written before this call is on the disk.

        One sync serves all records written in a fiftieth of a second, and runs in a thread: a slow
        disk holds up neither the event loop nor the requests under way.
        """
        mine = self._written
        while self._synced < mine:
            if self._sync is None or self._sync.done():
                self._sync = asyncio.create_task(self._fsync())
            # Cancelling one request must not stop the sync that others wait for
            await asyncio.shield(self._sync)

    async def _fsync(self) -> None:
        await asyncio.sleep(GATHER)
        written = self._written

        def sync() -> None:
            # Windows syncs only what is open for writing
            with utils.disk_errors(self.path), open(self.path, "r+b") as file:
                os.fsync(file.fileno())

        await asyncio.to_thread(sync)
        self._synced = written
