"""An append-only file of records, each with a key, that survives being killed at any moment.

What it does: write a record in one piece, tell when it is on the disk, and find records again by
key. What it does not do: know what is in a record. It needs the standard library only.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
from pathlib import Path

import utils

REPLIES = ("key", "reply", "cost_usd", "usage")  # the fields of an answered request
GATHER = 0.02  # seconds in which records are gathered for one sync


class Journal:
    """JSON Lines that are only ever added to; where a key occurs again, its last record counts.

    A process killed while writing leaves at most one torn last line, which is cut off when the
    journal is opened again: what it was about counts as not written. A malformed line anywhere else
    is damage, and a CourseError names it.
    """

    def __init__(self, path: str | Path, fields: tuple[str, ...] = REPLIES) -> None:
        self.path = Path(path)
        with utils.disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            content = self.path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                os.truncate(self.path, len(whole))
        records = utils.read_jsonl(self.path, fields) if self.path.exists() else []
        self.entries = {record["key"]: record for record in records}
        self._written = self._synced = 0  # records, since this process opened the file
        self._sync: asyncio.Task | None = None

    def write(self, record: dict) -> None:
        """Add one record: from here on it survives the end of this process, `kill -9` included, but
        not yet that of the machine."""
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        with utils.disk_errors(self.path), open(self.path, "ab", buffering=0) as file:
            end = file.tell()
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(end)  # else the next record would be glued to half a line
                raise
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
            await asyncio.shield(
                self._sync
            )  # cancelling one request must not stop the sync that others wait for

    async def _fsync(self) -> None:
        await asyncio.sleep(GATHER)
        written = self._written

        def sync() -> None:
            # Windows syncs only what is open for writing
            with utils.disk_errors(self.path), open(self.path, "r+b") as file:
                os.fsync(file.fileno())

        await asyncio.to_thread(sync)
        self._synced = written
