"""Where adapters come from: a local folder, an fsspec URL, the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from server.store.errors import SourceError
from server.store.pace import Pace
from server.store.sources.base import Source, SourceFile
from server.store.sources.hub import HubSource
from server.store.sources.local import LocalSource
from server.store.sources.policy import FetchPolicy
from server.store.sources.remote import RemoteSource
from server.store.sources.web import WebSource

__all__ = [
    "PROTOCOLS",
    "FetchPolicy",
    "Source",
    "SourceFile",
    "is_of_the_web",
    "open_source",
    "place_of",
]

PROTOCOLS = frozenset({"file", "s3", "gs", "az", "http", "https", "hf"})

_HUB = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w-][\w./-]*))?", re.ASCII)


def open_source(
    text: str,
    *,
    pace: Pace,
    protocols: Set[str] = PROTOCOLS,
    import_root: Path | None = None,
    policy: FetchPolicy | None = None,
) -> Source:
    """The source that `text` names: a path, `file://`, `hf://OWNER/NAME[@REVISION]` or another URL
    of an allowed protocol. A folder of this machine is relative to `import_root` and must be under
    it; what the web may be asked for is in `policy`. Raises `SourceError`, and for the hub
    `SourceUnavailableError`."""
    if (folder := _local_folder(text)) is not None and "file" in protocols:
        return LocalSource(folder, import_root)
    protocol, is_url, rest = text.partition("://")
    if not is_url:
        protocol = "file"
    # fsspec would chain file systems at "::"; such a protocol is on no list.
    if protocol not in protocols:
        raise SourceError(
            f"source: found the protocol {protocol[:50]!r}, "
            f"expected one of {', '.join(sorted(protocols))}"
        )
    if not rest:
        raise SourceError(f"source: found {text!r}, expected an address after it")
    if protocol == "hf":
        hub = _HUB.fullmatch(rest)
        if hub is None or ".." in rest:
            raise SourceError(f"source: found {text[:200]!r}, expected hf://OWNER/NAME[@REVISION]")
        return HubSource(hub[1], hub[2])
    if protocol in ("http", "https"):
        _check_web_address(text)
        return WebSource(text.rstrip("/"), policy or FetchPolicy(), pace)
    return RemoteSource(protocol, text.rstrip("/"))


def place_of(text: str) -> str:
    """What serves a source, sources of one place being slow together: a host of the web, and of
    the places that the operator has set up the protocol."""
    protocol, is_url, rest = text.partition("://")
    if not is_url:
        return "file"
    return f"{protocol}://{rest.partition('/')[0].lower()}" if is_of_the_web(text) else protocol


def is_of_the_web(text: str) -> bool:
    """Whether whoever names the source says which host is asked."""
    return text.startswith(("http://", "https://"))


def _local_folder(text: str) -> Path | None:
    """The folder that a path or a `file://` URL names; None for a source elsewhere.
    Raises `SourceError` for what is no source at all."""
    _check_printable(text)
    protocol, is_url, rest = text.partition("://")
    if not is_url:
        return Path(text)
    return _path_of(text) if protocol == "file" and rest else None


def _check_printable(text: str) -> None:
    if not text or not text.isprintable():  # also NUL and line ends, which no log should hold
        raise SourceError(f"source: found {text[:100]!r}, expected a path or URL")


def _path_of(url: str) -> Path:
    with _refusing_no_url():
        parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise SourceError(f"source: found {url[:200]!r}, expected file:///ABSOLUTE/PATH")
    path = unquote(parts.path)
    _check_printable(path)
    return Path(path)


@contextmanager
def _refusing_no_url() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise SourceError(f"source: not a URL ({error})") from None


def _check_web_address(url: str) -> None:
    with _refusing_no_url():
        parts = urlsplit(url)
        host = parts.hostname
        # What is no port or name fails later as if the server were away.
        _ = parts.port, (host or "").encode("idna")
    # The address is written down and logged: no place for a password or a signed query.
    if not host or "@" in parts.netloc or "?" in url or "#" in url:
        raise SourceError(
            "source: found a web address with a query, a fragment, a user name or no host, "
            "expected the plain address of a folder"
        )
