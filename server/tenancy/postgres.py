"""Connections to PostgreSQL that can be left at any moment."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
from psycopg import waiting


class LeavableConnection(psycopg.AsyncConnection[Any]):
    """Cancelling what waits for the server returns at once, whatever the server does.

    psycopg would ask the server to cancel, and wait for its answer: for seconds where the server
    is silent. Here the connection is closed, and with it goes the transaction.
    """

    async def wait(self, gen: Any, interval: float = 0.1, *args: Any, **options: Any) -> Any:
        try:
            return await waiting.wait_async(gen, self.pgconn.socket, interval, *args, **options)
        except (asyncio.CancelledError, KeyboardInterrupt):
            self.pgconn.finish()
            raise
