"""Small web servers that count what they send and can break: files, a proxy, a model hub."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from typing import Any
from urllib.parse import unquote, urlsplit

from server.store import FetchPolicy

TO_TESTS = FetchPolicy(http=True, networks=(ip_network("127.0.0.1"),))
"""The servers of tests are on this machine."""


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass
class Served:
    """One answered request: how many bytes of body really went out."""

    method: str
    path: str
    range: str | None
    status: int
    sent: int = 0


@dataclass
class Cut:
    """Ends the next answer for a path that ends with `path` after `after` bytes of its body, once
    `when` is set; then, with `down`, the server answers 503 to everything until `down` is False."""

    path: str
    after: int
    when: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)
    """Set by the server once the bytes are out."""
    down: bool = False


class Web:
    """A server on a free port. Subclasses say what it answers."""

    host = "127.0.0.1"

    def __init__(self) -> None:
        self.served: list[Served] = []
        self.cut: Cut | None = None
        self.down = False
        self.before: Callable[[str], None] | None = None
        """Called with the path of a GET before it is answered."""
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                web.handle(self)

            do_GET = do_HEAD = do_PUT = do_POST = handle_one

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((self.host, 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def reply(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        raise NotImplementedError

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length)
        method, path = handler.command, handler.path
        if method == "GET" and self.before is not None:
            self.before(path)
        reply = Reply(503) if self.down else self.reply(method, path, handler.headers, body)
        served = Served(method, path, handler.headers.get("Range"), reply.status)
        self.served.append(served)
        data = b"" if method == "HEAD" else reply.body
        cut = self.cut
        if not data or cut is None or not urlsplit(path).path.endswith(cut.path):
            cut = None
        with suppress(ConnectionError):  # the client may go away in the middle
            handler.send_response(reply.status)
            for name, value in {"Content-Length": str(len(data)), **reply.headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(data if cut is None else data[: cut.after])
            handler.wfile.flush()
        served.sent = len(data if cut is None else data[: cut.after])
        if cut is not None:
            cut.reached.set()
            assert cut.when.wait(20)
            self.cut = None
            self.down = cut.down
            handler.close_connection = True

    def bodies(self, name: str) -> list[Served]:
        """The answers that carried bytes of files of this name."""
        return [s for s in self.served if urlsplit(s.path).path.endswith(name) and s.sent]


class FileWeb(Web):
    """Serves `files` with ETags and ranges, as a good static server does, or worse."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.etag = '"{}"'
        self.ranges = True
        super().__init__()

    def reply(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        data = self.files.get(unquote(urlsplit(path).path))
        if data is None:
            return Reply(404)
        return ranged(method, data, headers if self.ranges else {}, self._marks(data))

    def _marks(self, data: bytes) -> dict[str, str]:
        if not self.etag:
            return {}
        return {"ETag": self.etag.format(hashlib.sha256(data).hexdigest()[:16])}


class Proxy(Web):
    """Passes everything on to another server."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)
        super().__init__()

    def reply(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        assert self._upstream.hostname
        connection = http.client.HTTPConnection(self._upstream.hostname, self._upstream.port)
        try:
            connection.request(method, path, body, dict(headers.items()))
            answer = connection.getresponse()
            data = answer.read()
            kept = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP_BY_HOP}
            if method == "HEAD":
                kept["Content-Length"] = answer.getheader("Content-Length") or "0"
            return Reply(answer.status, kept, data)
        finally:
            connection.close()


class Hub(Web):
    """What of the hub's API an import needs, for one model repository."""

    def __init__(self, repository: str, commits: Mapping[str, Mapping[str, bytes]]) -> None:
        self.repository = repository
        self.commits = {sha: dict(files) for sha, files in commits.items()}
        self.branches: dict[str, str] = {}
        self.stated = self.commits
        """What the API says of the files, which may not be what they are."""
        super().__init__()

    def reply(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        path = unquote(urlsplit(path).path)
        if match := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)(?:/revision/(.+))?", path):
            revision = match[2] or "main"
            sha = self.branches.get(revision, revision)
            if match[1] != self.repository:
                return Reply(404, {"X-Error-Code": "RepoNotFound"})
            if sha not in self.commits:
                return Reply(404, {"X-Error-Code": "RevisionNotFound"})
            return Reply(200, _JSON, json.dumps(self._info(sha)).encode())
        if match := re.fullmatch(rf"/{self.repository}/resolve/([0-9a-f]+)/(.+)", path):
            data = self.commits[match[1]][match[2]]
            return ranged(method, data, headers, {})
        return Reply(404, {"X-Error-Code": "EntryNotFound"})

    def _info(self, sha: str) -> dict[str, Any]:
        siblings = []
        for name, data in self.stated[sha].items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
            if name.endswith("_model.safetensors"):
                digest = hashlib.sha256(data).hexdigest()
                sibling["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
            siblings.append(sibling)
        return {"id": self.repository, "sha": sha, "siblings": siblings, "private": False}


_JSON = {"Content-Type": "application/json"}
_HOP_BY_HOP = {"connection", "transfer-encoding", "server", "date", "content-length"}


def ranged(method: str, data: bytes, headers: Mapping[str, str], marks: dict[str, str]) -> Reply:
    if method == "HEAD":
        return Reply(200, {**marks, "Content-Length": str(len(data))})
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("Range") or "")
    if match is None:
        return Reply(200, marks, data)
    start, end = int(match[1]), int(match[2] or len(data) - 1)
    if start >= len(data):
        return Reply(416)
    part = data[start : end + 1]
    content = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
    return Reply(206, {**marks, "Content-Range": content}, part)
