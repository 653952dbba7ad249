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
from collections.abc import Awaitable, Callable, Iterator
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
# Takes a request, its answer and the batch's id, and keeps them
Answered = Callable[[Request, Answer, str], Awaitable[None]]
FIELDS = ("key", "batch", "status", "worst_usd", "keys")
MARK = "course_submission"  # the name of the note in the batch's metadata


class Batches:
    """What was submitted and is not collected yet, in a journal of its own beside that of the
    answers.

    A note has `key` (its name), `batch` (the server's id, None until known), `status` ("open",
    "never created" or how the batch ended), `keys` (the requests in it), `worst_usd` (what they may
    cost) and `time`.
    """

    def __init__(self, path: str | Path) -> None:
        self.journal = Journal(path, FIELDS)
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

    async def recover(self, endpoint: Endpoint, sdk) -> None:
        """Find out what became of the submissions during which an earlier process died."""
        for note in self.open_notes():
            if note["batch"] is None and note["key"] not in self._submitting:
                found = await endpoint.persist(functools.partial(self._find, sdk, note))
                await self._note(note, batch=found, status="open" if found else "never created")

    async def submit(self, endpoint: Endpoint, sdk, requests: dict[str, Request]) -> None:
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
                file = await endpoint.persist(
                    functools.partial(sdk.files.create, file=upload, purpose="batch")
                )
                batch = await endpoint.persist(functools.partial(self._create, sdk, note, file.id))
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
        self,
        endpoint: Endpoint,
        sdk,
        requests: dict[str, Request],
        named: Callable[[str, dict], Request],
        answered: Answered,
        poll_seconds: float,
        title: str,
    ) -> dict[str, str]:
        """Wait for all batches with any of `requests` to end and hand over their answers, in
        whatever order they come.

        Args:
            requests: by key; a batch may have others too.
            named: makes those others, from their key and body in the batch's own input.
            answered: called with each answer.

        Returns:
            Why there is no answer, for each request without one: it may be asked again.

        Raises:
            CourseError: the server refused a file as a whole, or does not know a batch.
        """
        notes = [note for note in self.open_notes() if not requests.keys().isdisjoint(note["keys"])]
        finished = dict.fromkeys((note["key"] for note in notes), 0)
        with utils.progress(sum(len(note["keys"]) for note in notes), f"{title}, batch") as bar:

            def progress(note: dict, count: int) -> None:
                finished[note["key"]] = count
                bar.update(sum(finished.values()) - bar.n)

            async def follow(note: dict) -> dict[str, str]:
                batch = await self._ended(endpoint, sdk, note, poll_seconds, progress)
                return await self._taken(endpoint, sdk, note, batch, requests, named, answered)

            outcomes = await asyncio.gather(*map(follow, notes), return_exceptions=True)
        # Only now, so that one batch's failure does not keep the others from being collected
        errors: dict[str, str] = {}
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            errors |= outcome
        return errors

    async def _ended(self, endpoint, sdk, note, poll_seconds, progress):
        """The server's record of a batch, once it has ended."""
        while True:
            with self._known(endpoint, note):
                batch = await endpoint.persist(lambda: sdk.batches.retrieve(note["batch"]))
            counts = batch.request_counts
            if batch.status in ENDED:
                progress(note, len(note["keys"]))
                return batch
            progress(note, (counts.completed or 0) + (counts.failed or 0) if counts else 0)
            await asyncio.sleep(poll_seconds)

    async def _taken(self, endpoint, sdk, note, batch, requests, named, answered) -> dict[str, str]:
        """Hand over what an ended batch has answered; why not, for the other requests in it."""
        lines, name = [], note["batch"]
        with self._known(endpoint, note):
            for file in (batch.output_file_id, batch.error_file_id):
                lines += await _download(endpoint, sdk, file) if file else []
            taken = [answers.from_batch(line) for line in lines]
            if any(key in note["keys"] and key not in requests for key, _ in taken):
                asked = await _download(endpoint, sdk, batch.input_file_id)
                others = {line["custom_id"]: line["body"] for line in asked}
                requests = {key: named(key, body) for key, body in others.items()} | requests
        handed, errors = {}, {}
        for number, (key, answer) in enumerate(taken, 1):
            if answer.completion and key not in requests:
                # Paid for, but nobody knows for which request: booked and kept all the same
                key = f"{name}, line {number}"
                requests = requests | {key: named(key, {"messages": []})}
            if answer.completion:
                handed[key] = answered(requests[key], answer, name)
            elif key:
                reason = f"{answer.code}: {answer.problem}" if answer.code else answer.problem
                errors[key] = f"{reason} (in {name})"
        await asyncio.gather(*handed.values())
        for key in note["keys"]:
            if key not in handed and key not in errors:
                errors[key] = f"{name} {batch.status} before it was answered: ask again"
        await self._note(note, status=batch.status)
        if batch.status == "failed":
            reasons = (batch.errors.data if batch.errors else None) or []
            reason = (
                f"line {reasons[0].line}: {reasons[0].message}" if reasons else "no reason given"
            )
            raise CourseError(
                f"{endpoint.name} refused {name} as a whole ({reason}): nothing in it was "
                "answered or paid for."
            )
        return errors

    @contextlib.contextmanager
    def _known(self, endpoint: Endpoint, note: dict) -> Iterator[None]:
        """A sentence for a batch, or a file of one, that the server does not know."""
        try:
            yield
        except Failure as failure:
            if failure.status != 404:
                raise
            raise CourseError(
                f"{endpoint.name} does not know {note['batch']} or one of its files (404): use the "
                f"key that submitted it, or delete {self.journal.path.name} to ask its requests "
                "again, and pay for them again."
            ) from None

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


async def _download(endpoint: Endpoint, sdk, file: str) -> list[Any]:
    """The lines of a file, each as parsed from JSON; one that is none is None: it must not keep the
    others, which are paid for, from being read."""

    async def attempt() -> bytes:
        return (await sdk.files.content(file)).content

    lines = []
    for line in (await endpoint.persist(attempt)).split(b"\n"):
        if line.strip():
            try:
                lines.append(answers.json_of(line))
            except ValueError:
                lines.append(None)
    return lines
