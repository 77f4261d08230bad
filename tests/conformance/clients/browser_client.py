"""A browser: a page of another origin fetches, with a key, plain and streamed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from calls import API_KEY, BASE_URL, CALL_SECONDS, MODEL, report

PAGE = (Path(__file__).parent / "browser.html").read_text()
PORT = int(os.environ["CONFORMANCE_ORIGIN"].rpartition(":")[2])
"""The server was told to allow this origin."""


class Page(BaseHTTPRequestHandler):
    """Serves the page, and takes the rows that it sends back when all calls ended."""

    rows: list[dict[str, str]] | None = None
    done = threading.Event()

    def do_GET(self) -> None:
        known = {"base": BASE_URL, "key": API_KEY, "model": MODEL}
        body = PAGE.replace("SETTINGS", json.dumps(known)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).rows = json.loads(body)
        self.send_response(204)
        self.end_headers()
        self.done.set()

    def log_message(self, *_: object) -> None:
        pass


server = HTTPServer(("127.0.0.1", PORT), Page)
threading.Thread(target=server.serve_forever, daemon=True).start()
browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))))
with tempfile.TemporaryDirectory() as profile:
    options = ["--headless", "--disable-gpu", "--no-sandbox", f"--user-data-dir={profile}"]
    shown = subprocess.Popen(
        [browser, *options, f"http://127.0.0.1:{PORT}/"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        Page.done.wait(CALL_SECONDS)
    finally:
        shown.kill()
        shown.wait()
for row in Page.rows or [{"call": "the page", "status": "failed", "detail": "sent nothing back"}]:
    report(row["call"], row["status"], re.sub(r"\s+", " ", row["detail"]))
