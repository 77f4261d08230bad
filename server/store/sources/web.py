"""A folder behind a web server, fetched as the policy allows: every connection is judged by the
address that it goes to, and every redirect by its host."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from server.store.errors import SourceError, SourceUnavailableError
from server.store.pace import Pace
from server.store.sources.base import RangeRefusedError, Readable, SourceFile, reading
from server.store.sources.policy import FetchPolicy
from server.store.sources.remote import RemoteSource

if TYPE_CHECKING:
    import aiohttp
    from aiohttp.client_middlewares import ClientHandlerType

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 30
_SILENT_SECONDS = 60
_ANSWER_SECONDS = 60
"""Seconds until the head of an answer is there, however slowly it comes."""


class WebSource(RemoteSource):
    """Redirects are followed on the same host only, and from http to its https."""

    def __init__(self, url: str, policy: FetchPolicy, pace: Pace) -> None:
        protocol = url.partition("://")[0]
        if protocol != "https" and not policy.http:
            raise SourceError(
                "source: found http://, which anybody on the way can change, expected https:// "
                "(--import-http allows it)"
            )
        self._client = _Client(url, policy, pace)
        super().__init__(protocol, url, get_client=self._client.session)

    @contextmanager
    def open(self, file: SourceFile, offset: int) -> Iterator[Readable]:
        # One request, read as it comes: a server that sends more than it was asked for costs no
        # memory. The size given here saves a question.
        path = f"{self._root}/{file.name}"
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        with (
            self._reading(),
            self._fs.open(path, "rb", block_size=0, size=file.size, headers=headers) as stream,
        ):
            if offset and stream.r.status != 206:
                raise RangeRefusedError
            yield stream

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            with reading(self.address):
                yield
        except (SourceError, SourceUnavailableError) as error:
            if not self._client.refused:
                raise
            raise SourceError(
                f"{self.address}: leads to an address that is not of the internet "
                "(--import-network allows some)"
            ) from error

    def _info(self, path: str) -> Mapping[str, object]:
        try:
            return super()._info(path)
        except FileNotFoundError as error:
            # The file system says so of every failure; the cause tells which one it was.
            cause = error.__cause__
            if cause is None or getattr(cause, "status", None) in (404, 410):
                raise
            raise cause from None


class _Client:
    """The connections of one source."""

    def __init__(self, url: str, policy: FetchPolicy, pace: Pace) -> None:
        self._url = url
        self._policy = policy
        self._pace = pace
        self.refused = False
        """Whether the last request failed where the policy allows no connection."""

    async def session(self, **options: Any) -> aiohttp.ClientSession:
        import aiohttp
        import yarl

        source = yarl.URL(self._url).origin()
        allowed = {source, source.with_scheme("https").with_port(None)}

        async def check(
            request: aiohttp.ClientRequest, handler: ClientHandlerType
        ) -> aiohttp.ClientResponse:
            if request.url.origin() not in allowed:
                raise SourceError(
                    f"{self._url}: the server redirects to another host, expected the address "
                    "where the files are"
                )
            self.refused = False
            async with asyncio.timeout(min(_ANSWER_SECONDS, self._pace.left())):
                answer = await handler(request)
            self.refused = False  # another address of this host was fine
            return answer

        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(socket_factory=self._socket),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS
            ),
            middlewares=(check,),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,  # a proxy would connect for us, to wherever it is told
            **options,
        )

    def _socket(self, address: tuple[Any, ...]) -> socket.socket:
        """Makes the socket for one address that the name was resolved to: this very one is then
        connected to."""
        family, kind, protocol, _, place = address
        if not self._policy.allows(place[0]):
            self.refused = True
            log.warning("%s leads to %s, from where nothing is fetched", self._url, place[0])
            raise PermissionError(errno.EACCES, "the policy allows no connection")
        return socket.socket(family, kind, protocol)
