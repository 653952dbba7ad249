"""OpenAI's Batch API: many requests in one file, answered within 24 hours at half the price.

What it does: submit each request in exactly one batch, whatever kills this process when, wait, and
hand back the answers by the names
under which they were asked. What it does not do: know about schemas or what a token costs.

How nothing is submitted twice: a note of what is about to be submitted goes to the disk first,
under a random name which the batch carries in its metadata. If the process dies before the batch's
id is noted too, that name is looked for among the server's batches.
"""

from __future__ import annotations

import asyncio
import functools
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import utils
from llm.endpoint import Endpoint, Unreadable
from llm.journal import Journal
from utils import CourseError

MOST_REQUESTS, MOST_BYTES = 50_000, 200_000_000  # in one file
ENDED = ("completed", "failed", "expired", "cancelled")
# Takes key, request body, completion (both JSON objects) and batch id; returns what is wrong with
# the answer, or None
Answered = Callable[[str, dict, dict, str], Awaitable[str | None]]
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

    async def submit(
        self, endpoint: Endpoint, sdk, bodies: dict[str, dict], worst: dict[str, float]
    ) -> None:
        """Submit request bodies, by key, in as many batches as their number and size ask for.

        Raises:
            openai.APIError: the server does not take one; what was submitted before is noted.
        """
        import openai

        for keys, content in files(bodies):
            note: dict[str, Any] = {
                "key": uuid.uuid4().hex,
                "batch": None,
                "status": "open",
                "worst_usd": sum(worst[key] for key in keys),
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
            except openai.APIStatusError as error:
                # It said no; after any other error the batch may exist all the same
                if error.status_code < 500:
                    await self._note(note, status="never created")
                raise
            finally:
                self._submitting.discard(note["key"])
            await self._note(note, batch=batch)

    async def _create(self, sdk, note: dict, file: str) -> str:
        if found := await self._find(
            sdk, note
        ):  # an earlier attempt may have succeeded without our hearing of it
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
        bodies: dict[str, dict],
        answered: Answered,
        poll_seconds: float,
        title: str,
    ) -> dict[str, str]:
        """Wait for all batches with requests of `bodies` to end and hand over their answers, in
        whatever order they come.

        Args:
            bodies: request bodies, by key; a batch may have others too, which are then looked up in
                its own input.
            answered: called with each answer.

        Returns:
            Why there is no answer, for each request without one: it may be asked again.

        Raises:
            CourseError: the server refused a file as a whole, or does not know a batch.
        """
        notes = [note for note in self.open_notes() if not bodies.keys().isdisjoint(note["keys"])]
        finished = dict.fromkeys((note["key"] for note in notes), 0)
        with utils.progress(sum(len(note["keys"]) for note in notes), f"{title}, batch") as bar:

            def progress(note: dict, count: int) -> None:
                finished[note["key"]] = count
                bar.update(sum(finished.values()) - bar.n)

            following = [
                self._follow(endpoint, sdk, note, bodies, answered, poll_seconds, progress)
                for note in notes
            ]
            outcomes = await asyncio.gather(*following, return_exceptions=True)
        # Only now, so that one batch's failure does not keep the others from being collected
        errors: dict[str, str] = {}
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            errors |= outcome
        return errors

    async def _follow(
        self, endpoint, sdk, note, bodies, answered, poll_seconds, progress
    ) -> dict[str, str]:
        """`collect` for one batch."""
        import openai

        name, errors = note["batch"], {}
        try:
            while (
                batch := await endpoint.persist(lambda: sdk.batches.retrieve(name))
            ).status not in ENDED:
                progress(
                    note,
                    batch.request_counts.completed + batch.request_counts.failed
                    if batch.request_counts
                    else 0,
                )
                await asyncio.sleep(poll_seconds)
            lines = [
                line
                for id in (batch.output_file_id, batch.error_file_id)
                if id
                for line in await _download(endpoint, sdk, id)
            ]
            if any(line["custom_id"] not in bodies for line in lines):
                asked = await _download(endpoint, sdk, batch.input_file_id)
                bodies = {line["custom_id"]: line["body"] for line in asked}
        except openai.NotFoundError as error:
            raise CourseError(
                f"{endpoint.name} does not know {name} or one of its files ({error.status_code}): "
                "use the key that submitted it, or "
                f"delete {self.journal.path.name} to ask its requests again, and pay for them "
                "again."
            ) from None
        handed = {}
        for line in lines:
            key, response = line["custom_id"], line.get("response") or {}
            if response.get("status_code") == 200 and key in bodies:
                handed[key] = answered(key, bodies[key], response["body"], name)
            else:
                problem = line.get("error") or (response.get("body") or {}).get("error") or {}
                errors[key] = (
                    f"{problem.get('code') or 'server error'} in {name}: "
                    f"{str(problem.get('message'))[:200]}"
                )
        done = {line["custom_id"] for line in lines}
        errors |= {
            key: f"{name} {batch.status} before it was answered: ask again"
            for key in note["keys"]
            if key not in done
        }
        problems = zip(handed, await asyncio.gather(*handed.values()), strict=True)
        errors |= {key: problem for key, problem in problems if problem}
        await self._note(note, status=batch.status)
        progress(note, len(note["keys"]))
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

    async def _note(self, note: dict, **changes) -> None:
        note |= changes
        self.journal.write(dict(note))
        await self.journal.synced()


def files(bodies: dict[str, dict]) -> Iterator[tuple[list[str], bytes]]:
    """`(keys, content)` of the input files for `bodies`: JSON Lines, each within the server's
    limits on number and size."""
    keys: list[str] = []
    lines: list[bytes] = []
    size = 0
    for key, body in bodies.items():
        record = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        if keys and (len(keys) == MOST_REQUESTS or size + len(line) > MOST_BYTES):
            yield keys, b"".join(lines)
            keys, lines, size = [], [], 0
        keys.append(key)
        lines.append(line)
        size += len(line)
    if keys:
        yield keys, b"".join(lines)


async def _download(endpoint: Endpoint, sdk, file: str) -> list[dict]:
    async def attempt() -> list[dict]:
        content = (await sdk.files.content(file)).content
        try:
            return [json.loads(line) for line in content.split(b"\n") if line.strip()]
        except ValueError as error:
            raise Unreadable(f"{file} is not JSON Lines ({error})") from None

    return await endpoint.persist(attempt)
