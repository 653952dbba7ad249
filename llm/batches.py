"""OpenAI's Batch API: many requests in one file, answered within 24 hours at half the price.

What it does: submit each request in exactly one batch, whatever kills this process when, wait, and
hand back the answers by the names under which they were asked. What it does not do: know about
schemas, or book anything.

How nothing is submitted twice: a note of what is about to be submitted goes to the disk first,
under a random name which the batch carries in its metadata. If the process dies before the batch's
id is noted too, that name is looked for among the server's batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import utils
from llm import answers, models
from llm.answers import Answer
from llm.endpoint import Endpoint, Failure
from llm.journal import Journal
from llm.replies import Request
from utils import CourseError

MOST_REQUESTS, MOST_BYTES = 50_000, 200_000_000  # in one file
ENDED = ("completed", "failed", "expired", "cancelled")
FIELDS = ("key", "batch", "status", "worst_usd", "keys")
MARK = "course_submission"  # the name of the note in the batch's metadata


@dataclass(frozen=True)
class Answered:
    """An answer in a batch, and to what."""

    key: str
    answer: Answer
    body: dict  # of the request, where nobody waits for it now; else empty


# Takes a batch's id and its answers, and keeps them
Keep = Callable[[str, list[Answered]], Awaitable[None]]


class Batches:
    """What was submitted and is not collected yet, in a journal of its own beside that of the
    answers.

    A note has `key` (its name), `batch` (the server's id, None until known), `status` ("open",
    "never created" or how the batch ended), `keys` (the requests in it), `worst_usd` (what they may
    cost) and `time`.
    """

    def __init__(self, path: str | Path, endpoint: Endpoint) -> None:
        self.journal, self.endpoint = Journal(path, FIELDS), endpoint
        self._submitting: set[str] = set()  # notes of this process

    def open_notes(self) -> list[dict]:
        return [note for note in self.journal.entries.values() if note["status"] == "open"]

    @property
    def held_usd(self) -> float:
        """Dollars that batches which are not collected yet may still cost."""
        return sum(note["worst_usd"] for note in self.open_notes())

    def waiting(self) -> dict[str, str]:
        """The batch (or its note, while its id is unknown) in which each submitted request
        waits."""
        return {
            key: note["batch"] or note["key"] for note in self.open_notes() for key in note["keys"]
        }

    async def recover(self, sdk) -> None:
        """Find out what became of the submissions during which an earlier process died."""
        for note in self.open_notes():
            if note["batch"] is None and note["key"] not in self._submitting:
                found = await self.endpoint.persist(functools.partial(self._find, sdk, note))
                await self._note(note, batch=found, status="open" if found else "never created")

    async def submit(self, sdk, requests: dict[str, Request]) -> None:
        """Submit requests, by key, in as many batches as their number and size ask for.

        Raises:
            Failure: the server does not take one; what was submitted before is noted.
        """
        for keys, content in files(requests):
            worst = sum(requests[key].worst_usd for key in keys)
            note: dict[str, Any] = {
                "key": uuid.uuid4().hex,
                "batch": None,
                "status": "open",
                "worst_usd": worst * models.BATCH_SHARE,
                "keys": keys,
                "time": time.time(),
            }
            self._submitting.add(note["key"])
            self.journal.write(note)
            await self.journal.synced()
            upload = (f"{note['key']}.jsonl", content)
            try:
                file = await self.endpoint.persist(
                    functools.partial(sdk.files.create, file=upload, purpose="batch")
                )
                batch = await self.endpoint.persist(
                    functools.partial(self._create, sdk, note, file.id)
                )
            except Failure as failure:
                # It said no; after any other failure the batch may exist all the same
                if failure.status is not None and 400 <= failure.status < 500:
                    await self._note(note, status="never created")
                raise
            finally:
                self._submitting.discard(note["key"])
            await self._note(note, batch=batch)

    async def _create(self, sdk, note: dict, file: str) -> str:
        # An earlier attempt may have succeeded without our hearing of it
        if found := await self._find(sdk, note):
            return found
        batch = await sdk.batches.create(
            input_file_id=file,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={MARK: note["key"]},
        )
        return batch.id

    async def _find(self, sdk, note: dict) -> str | None:
        async for batch in sdk.batches.list(limit=100):  # newest first
            if (batch.metadata or {}).get(MARK) == note["key"]:
                return batch.id
            if batch.created_at < note["time"] - 86400:  # a day, in case the clocks differ
                return None
        return None

    async def collect(
        self, sdk, wanted: Set[str], keep: Keep, poll_seconds: float
    ) -> dict[str, str]:
        """Wait for all batches with any of the requests `wanted`, by key, to end and hand over
        their answers, in whatever order they come; a batch may have answers to others too.

        Returns:
            Why there is no answer, for each request without one: it may be asked again.

        Raises:
            CourseError: the server refused a file as a whole, or does not know a batch.
        """
        notes = [note for note in self.open_notes() if not wanted.isdisjoint(note["keys"])]
        total = sum(len(note["keys"]) for note in notes)
        with utils.progress(total, f"{self.endpoint.model}, batch") as bar:

            async def follow(note: dict) -> dict[str, str]:
                with self._known(note):
                    batch = await self._ended(sdk, note, poll_seconds, bar)
                    errors = await self._taken(sdk, note, batch, wanted, keep)
                if batch.status == "failed":
                    raise self._refused(batch)
                return errors

            outcomes = await asyncio.gather(*map(follow, notes), return_exceptions=True)
        # Only now, so that one batch's failure does not keep the others from being collected
        errors: dict[str, str] = {}
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            errors |= outcome
        return errors

    async def _ended(self, sdk, note: dict, poll_seconds: float, bar):
        """The server's record of a batch, once it has ended."""
        shown = 0
        while True:
            batch = await self.endpoint.persist(lambda: sdk.batches.retrieve(note["batch"]))
            counts = batch.request_counts
            done = (counts.completed or 0) + (counts.failed or 0) if counts else 0
            if batch.status in ENDED:
                done = len(note["keys"])
            bar.update(done - shown)
            if batch.status in ENDED:
                return batch
            shown = done
            await asyncio.sleep(poll_seconds)

    async def _taken(self, sdk, note: dict, batch, wanted: Set[str], keep: Keep) -> dict[str, str]:
        """Hand over what an ended batch has answered; why not, for the other requests in it."""
        lines, name = [], note["batch"]
        for file in (batch.output_file_id, batch.error_file_id):
            lines += await self._download(sdk, file) if file else []
        taken = [answers.from_batch(line) for line in lines]
        bodies = {}
        if any(key in note["keys"] and key not in wanted for key, _ in taken):
            asked = await self._download(sdk, batch.input_file_id)
            bodies = {line["custom_id"]: line["body"] for line in asked}
        answered, errors = [], {}
        for number, (key, answer) in enumerate(taken, 1):
            if answer.completion and key not in wanted and key not in bodies:
                # Paid for, but nobody knows for which request: booked and kept all the same
                key = f"{name}, line {number}"
            if answer.completion:
                answered.append(Answered(key, answer, bodies.get(key, {"messages": []})))
            elif key:
                reason = f"{answer.code}: {answer.problem}" if answer.code else answer.problem
                errors[key] = f"{reason} (in {name})"
        await keep(name, answered)
        known = errors.keys() | {one.key for one in answered}
        for key in note["keys"]:
            if key not in known:
                errors[key] = f"{name} {batch.status} before it was answered: ask again"
        await self._note(note, status=batch.status)
        return errors

    def _refused(self, batch) -> CourseError:
        """The sentence for a file that the server refused as a whole."""
        reason = "no reason given"
        if batch.errors and batch.errors.data:
            first = batch.errors.data[0]
            reason = f"line {first.line}: {first.message}"
        return CourseError(
            f"{self.endpoint.name} refused {batch.id} as a whole ({reason}): nothing in it was "
            "answered or paid for."
        )

    @contextlib.contextmanager
    def _known(self, note: dict) -> Iterator[None]:
        """A sentence for a batch, or a file of one, that the server does not know."""
        try:
            yield
        except Failure as failure:
            if failure.status != 404:
                raise
            raise CourseError(
                f"{self.endpoint.name} does not know {note['batch']} or one of its files (404): "
                f"use the key that submitted it, or delete {self.journal.path.name} to ask its "
                "requests again, and pay for them again."
            ) from None

    async def _download(self, sdk, file: str) -> list[Any]:
        """The lines of a file, each as parsed from JSON; one that is none is None: it must not keep
        the others, which are paid for, from being read."""

        async def attempt() -> bytes:
            return (await sdk.files.content(file)).content

        lines: list[Any] = []
        for line in (await self.endpoint.persist(attempt)).split(b"\n"):
            if line.strip():
                try:
                    lines.append(answers.json_value(line.decode("utf-8", "replace").strip())[0])
                except ValueError:
                    lines.append(None)
        return lines

    async def _note(self, note: dict, **changes) -> None:
        note |= changes
        self.journal.write(dict(note))
        await self.journal.synced()


def files(requests: dict[str, Request]) -> Iterator[tuple[list[str], bytes]]:
    """`(keys, content)` of the input files for `requests`: JSON Lines, each within the server's
    limits on number and size."""
    keys: list[str] = []
    lines: list[bytes] = []
    size = 0
    for key, request in requests.items():
        record = {
            "custom_id": key,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": request.body,
        }
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        if keys and (len(keys) == MOST_REQUESTS or size + len(line) > MOST_BYTES):
            yield keys, b"".join(lines)
            keys, lines, size = [], [], 0
        keys.append(key)
        lines.append(line)
        size += len(line)
    if keys:
        yield keys, b"".join(lines)
