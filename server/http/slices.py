"""Sends what is large in slices: each copy of fifty megabytes is a long turn of the event loop."""

from __future__ import annotations

import asyncio

from starlette.types import Message, Send

SLICE_BYTES = 1 << 20


def in_slices(send: Send) -> Send:
    """Sends bodies of more than `SLICE_BYTES` one slice after the other, as the client takes
    them."""

    async def sliced(message: Message) -> None:
        body = message.get("body", b"")
        begin = 0
        while len(body) - begin > SLICE_BYTES:
            part = bytes(memoryview(body)[begin : begin + SLICE_BYTES])
            await send({"type": message["type"], "body": part, "more_body": True})
            await asyncio.sleep(0)
            begin += SLICE_BYTES
        await send({**message, "body": body[begin:]} if begin else message)

    return sliced
