"""A server of raw bytes: it sends exactly what a test gives it, right or wrong, and counts what it
was asked."""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass
class Said:
    """What the server answers: status, body, headers; or what it does instead."""

    body: bytes | str | dict = b""
    status: int = 200
    headers: dict = field(default_factory=dict)
    delay: float = 0.0  # seconds before it answers
    hang_up: bool = False  # close the connection in the middle of the body
    hang_up_before: bool = False  # close it without a byte

    @property
    def content(self) -> bytes:
        if isinstance(self.body, dict | list):
            return json.dumps(self.body).encode()
        return self.body.encode() if isinstance(self.body, str) else self.body


Answers = Callable[[str, dict, int], Said]  # path, request body and number of the chat request


class Server:
    """`asked`: the body of every chat request; `paths`: of every request."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.asked: list[dict] = []
        self.paths: list[str] = []
        self.most, self._now = 0, 0  # chat requests under way at once
        self._lock = threading.Lock()
        server = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                with contextlib.suppress(ConnectionError):
                    while server.serve(self.rfile, self.wfile):
                        pass

        self._tcp = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler, False)
        self._tcp.daemon_threads, self._tcp.request_queue_size = True, 128
        self._tcp.server_bind()
        self._tcp.server_activate()
        threading.Thread(target=self._tcp.serve_forever, daemon=True).start()
        self.root = f"http://127.0.0.1:{self._tcp.server_address[1]}"
        self.url = f"{self.root}/v1"

    def serve(self, source, sink) -> bool:
        """One request on a connection; False where that ends."""
        first = source.readline().split()
        if len(first) < 2:
            return False
        headers = {}
        while (line := source.readline().strip()) != b"":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        raw = source.read(int(headers.get("content-length", 0)))
        path = first[1].decode().partition("?")[0]
        chat = path.endswith("/chat/completions")
        body = json.loads(raw) if chat else {}
        with self._lock:
            self.paths.append(path)
            number = len(self.asked)
            if chat:
                self.asked.append(body)
                self._now += 1
                self.most = max(self.most, self._now)
        said = self.answers(path, body, number)
        time.sleep(said.delay)
        if chat:
            with self._lock:
                self._now -= 1
        return self._write(sink, said)

    def _write(self, sink, said: Said) -> bool:
        if said.hang_up_before:
            return False
        content = said.content
        named = {"content-type": "application/json", "content-length": str(len(content))}
        lines = [f"HTTP/1.1 {said.status} Whatever"]
        lines += [f"{name}: {value}" for name, value in (named | said.headers).items()]
        sink.write("\r\n".join([*lines, "", ""]).encode())
        sink.write(content[: len(content) // 2] if said.hang_up else content)
        sink.flush()
        return not said.hang_up

    def stop(self) -> None:
        self._tcp.shutdown()
        self._tcp.server_close()


@contextlib.contextmanager
def serving(answers: Answers | Said) -> Iterator[Server]:
    """A server for as long as the block runs; `answers` may be one answer to everything but the
    list of models, which it does not have."""
    if isinstance(answers, Said):
        always = answers

        def answers(path: str, body: dict, number: int) -> Said:
            if path.endswith("/chat/completions"):
                return always
            return Said({"error": {"message": "Not found"}}, 404)

    server = Server(answers)
    try:
        yield server
    finally:
        server.stop()


def completion(content: object = "네, 좋아요.", usage: object = ..., **choice) -> dict:
    """A correct chat completion, and what a test changes in it."""
    counted = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "teacher",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content},
                "finish_reason": "stop",
            }
            | choice
        ],
        "usage": counted if usage is ... else usage,
    }


def without(value: dict, *names: str) -> dict:
    return {key: content for key, content in value.items() if key not in names}
