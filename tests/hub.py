"""A small Hugging Face hub on this machine, so that `datasets` and `huggingface_hub` themselves are
asked, over HTTP, and not a stand-in for their functions.

It speaks the endpoints that reading a data set and pushing a folder need. What a test does with it
runs in a process of its own, because both libraries read HF_ENDPOINT when they are imported.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import utils

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What lies on it, and what was asked and pushed. Use as a context."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}  # a data set's files
        self.gated: set[str] = set()
        self.failing: set[str] = set()  # answer 500
        self.token = ""  # that may write
        self.pushed: dict[str, dict[str, bytes]] = {}  # by repository
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}  # of Git LFS
        self.asked: list[str] = []

    def __enter__(self) -> Hub:
        hub = self

        class Handler(_Handler):
            of = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def run(self, code: str, home: Path, **variables: str) -> subprocess.CompletedProcess:
        """Run Python code that talks to this hub, with an empty cache in `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        kept |= {"HF_ENDPOINT": self.address, "HF_HOME": str(home), "PYTHONPATH": str(utils.ROOT)}
        kept |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(utils.__file__).parent,
            env=kept | variables,
            capture_output=True,
            encoding="utf-8",
            timeout=300,
        )


class _Handler(BaseHTTPRequestHandler):
    of: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.of.asked.append(f"{self.command} {path}")
        found = re.fullmatch(r"(?:/api)?/datasets/([\w.-]+/[\w.-]+)(/.*)?", path)
        if not found:
            return self.answer(404, {"error": "Not found"}, {"X-Error-Code": "RepoNotFound"})
        name, rest = found[1], found[2] or ""
        if not self.may_read(name):
            return None
        files = self.of.files[name]
        if rest.startswith("/resolve/"):
            return self.content(files.get(rest.split("/", 3)[3]))
        if rest.startswith("/tree/"):
            under = "/".join(rest.split("/")[3:])
            return self.answer(200, _listing(files, under, "recursive=true" in self.path.lower()))
        siblings = [{"rfilename": file} for file in files]
        info = {"_id": "1", "id": name, "sha": REVISION, "siblings": siblings, "private": False}
        return self.answer(200, info | {"gated": False, "tags": [], "downloads": 0, "likes": 0})

    def may_read(self, name: str) -> bool:
        if name in self.of.failing:
            self.answer(500, {"error": "Internal error"})
        elif name in self.of.gated:
            said = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}
            self.answer(401, {"error": "Access is restricted."}, said)
        elif name not in self.of.files:
            self.answer(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        else:
            return True
        return False

    def content(self, text: bytes | None) -> None:
        if text is None:
            return self.answer(404, {"error": "Entry"}, {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{hashlib.sha1(text).hexdigest()}"', "X-Repo-Commit": REVISION}
        return self.answer(200, text, headers)

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.of.asked.append(f"POST {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if found := re.fullmatch(r"/api/datasets/([\w.-]+/[\w.-]+)/paths-info/\w+", path):
            if not self.may_read(found[1]):
                return None
            files = self.of.files[found[1]]
            wanted = json.loads(body)["paths"]
            return self.answer(200, [_entry(name, files[name]) for name in wanted if name in files])
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {self.of.token}":
            return self.answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.of.private[name] = asked.get("private") or asked.get("visibility") == "private"
            return self.answer(200, {"url": f"{self.of.address}/{name}", "id": name, "name": name})
        if path.endswith("/preupload/main"):
            ways = [{"path": one["path"], **_way(one["path"])} for one in json.loads(body)["files"]]
            return self.answer(200, {"files": ways})
        if path.endswith("/info/lfs/objects/batch"):
            return self.answer(200, self.places(json.loads(body)["objects"]))
        if found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/commit/main", path):
            return self.commit(found[1], body)
        return self.answer(404, {"error": "Not found"})

    def places(self, objects: list[dict]) -> dict:
        for one in objects:
            one["actions"] = {"upload": {"href": f"{self.of.address}/lfs/{one['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.of.objects[self.path.rpartition("/")[2]] = body
        self.answer(200, {})

    def commit(self, name: str, body: bytes) -> None:
        files = self.of.pushed.setdefault(name, {})
        for line in body.splitlines():
            part = json.loads(line)
            value = part["value"]
            if part["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif part["key"] == "lfsFile":
                files[value["path"]] = self.of.objects[value["oid"]]
        address = f"{self.of.address}/{name}/commit/{REVISION}"
        self.answer(200, {"success": True, "commitOid": REVISION, "commitUrl": address})

    def answer(self, status: int, body, headers: dict | None = None) -> None:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)


def _listing(files: dict[str, bytes], folder: str, deep: bool) -> list[dict]:
    start, entries, folders = f"{folder}/" if folder else "", [], set()
    for name, text in files.items():
        inner = name.removeprefix(start)
        if not name.startswith(start):
            continue
        if deep or "/" not in inner:
            entries.append(_entry(name, text))
        if "/" in inner:
            folders.add(start + inner.partition("/")[0])
    return entries + [{"type": "directory", "path": name, "oid": "0"} for name in sorted(folders)]


def _entry(name: str, text: bytes) -> dict:
    oid = hashlib.sha1(text).hexdigest()
    return {"type": "file", "path": name, "size": len(text), "oid": oid}


def _way(name: str) -> dict:
    mode = "lfs" if name.endswith(".safetensors") else "regular"
    return {"uploadMode": mode, "shouldIgnore": False, "oid": None}
