"""The admin API of a server, for every command that speaks to one: where it is, its key, its errors
as one line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from remix_runtime.errors import ConfigError, RemixError
from remix_runtime.given_keys import USABLE_KEY, is_usable_key

if TYPE_CHECKING:
    import httpx

Url = Annotated[
    str, typer.Option("--admin-url", envvar="REMIX_ADMIN_URL", help="Of the admin API.")
]
AsJson = Annotated[bool, typer.Option("--json", help="The API's own answer, for scripts.")]

DEFAULT_URL = "http://127.0.0.1:8001"
_CONNECT_SECONDS = 5.0
_PAGE = 100
"""Items of a page: as many as any list gives."""


class AdminError(RemixError):
    """The admin API refused a call, or did not answer. `status` is None where it did not."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Admin:
    """Calls of the admin API. Every failure is an `AdminError`."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def call(self, method: str, path: str, **kwargs: Any) -> Any:
        """The decoded answer; None for an empty one."""
        answer = self.answer(method, path, **kwargs)
        return answer.json() if answer.content else None

    def pages(self, path: str, by: str, *, most: int | None = None, **params: Any) -> Any:
        """The answer with the items of all pages, or the first `most`. `by` is the parameter of a
        page that names the last item before it, and the item's field."""
        parameter, field = by.split("=")
        listed: list[Any] = []
        while True:
            wanted = _PAGE if most is None else min(_PAGE, most - len(listed))
            answer = self.call("GET", path, params={"limit": wanted, **params})
            listed += answer["data"]
            if not answer["has_more"] or len(listed) == most:
                return {"data": listed, "has_more": answer["has_more"]}
            params[parameter] = listed[-1][field]

    def answer(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        with self._failures():
            answer = self._client.request(method, f"/admin/v1{path}", **kwargs)
            _check(answer)
            return answer

    def upload(self, path: str, file: Path) -> None:
        """PUTs the bytes of a file as they are."""
        headers = {"Content-Type": "application/octet-stream"}
        with file.open("rb") as stream:
            self.answer("PUT", path, content=stream, headers=headers)

    def download(self, path: str, file: Path, *, max_bytes: int) -> None:
        """Writes what a GET gives into a file. Raises `AdminError` for more than `max_bytes`."""
        with (
            self._failures(),
            self._client.stream("GET", f"/admin/v1{path}") as answer,
            file.open("wb") as stream,
        ):
            if not answer.is_success:
                answer.read()
                _check(answer)
            done = 0
            for chunk in answer.iter_bytes():
                done += len(chunk)
                if done > max_bytes:
                    raise AdminError(f"{path}: found more than {max_bytes} bytes")
                stream.write(chunk)

    def lines(self, path: str, body: Any) -> Iterator[Any]:
        """The answer to a POST, line by line as it comes."""
        headers = {"Accept": "application/x-ndjson"}
        url = f"/admin/v1{path}"
        with (
            self._failures(),
            self._client.stream("POST", url, json=body, headers=headers) as answer,
        ):
            if not answer.is_success:
                answer.read()
                _check(answer)
            for line in answer.iter_lines():
                yield _without_error(json.loads(line), answer.status_code)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.HTTPError as error:
            base = str(self._client.base_url).rstrip("/")
            raise AdminError(f"no answer of the admin API at {base}: {error}") from error
        except json.JSONDecodeError as error:
            raise AdminError(f"what answers is not the admin API: {error}") from error


@contextmanager
def admin_api(url: str) -> Iterator[Admin]:
    """Raises `ConfigError` where the key is not set."""
    import httpx

    key = os.environ.get("REMIX_ADMIN_KEY", "")
    if not is_usable_key(key):
        raise ConfigError(
            f"REMIX_ADMIN_KEY: set it to the key that the server was started with: {USABLE_KEY}"
        )
    try:
        client = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            # Loading a set and importing an adapter take as long as they take.
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
            trust_env=False,
        )
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigError(f"--admin-url: {error}") from error
    with client:
        yield Admin(client)


def ask(url: str, method: str, path: str, **kwargs: Any) -> Any:
    """One call of the admin API at `url`."""
    with admin_api(url) as admin:
        return admin.call(method, path, **kwargs)


def ask_all(url: str, path: str, by: str, *, most: int | None = None, **params: Any) -> Any:
    """All that the admin API lists at `path`; see `Admin.pages`."""
    with admin_api(url) as admin:
        return admin.pages(path, by, most=most, **params)


def part(text: str) -> str:
    """Quotes one part of a path, whatever its characters. Raises `ConfigError` for dots, which HTTP
    clients resolve: another path would be meant."""
    if text in ("", ".", ".."):
        raise ConfigError(f"found {text!r}, expected a name")
    return quote(text, safe="")


def _check(answer: httpx.Response) -> None:
    if answer.is_success:
        return
    with suppress(ValueError):
        _without_error(answer.json(), answer.status_code)
    raise AdminError(f"HTTP {answer.status_code} {answer.reason_phrase}", status=answer.status_code)


def _without_error(body: Any, status: int) -> Any:
    if not isinstance(body, dict) or not isinstance(body.get("error"), dict):
        return body
    error = body["error"]
    message = str(error.get("message", ""))
    reasons = error.get("reasons") or {}
    more = "; ".join(f"{name}: {why}" for name, why in reasons.items() if why not in message)
    raise AdminError(f"{message}{'; ' if more else ''}{more}", status=status)
