"""Pages of lists: so many items, written one by one, and whether there are more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Annotated, Any, TypeVar

from fastapi import Query, Response
from pydantic import TypeAdapter

from remix_runtime.turn import Turn
from server.admin import schemas

Item = TypeVar("Item")

Limit = Annotated[int, Query(ge=1, le=schemas.MAX_PAGE, description="Items of the page.")]
After = Annotated[
    str | None,
    Query(max_length=64, description="Only items behind this one: the last one of a page."),
]


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


async def page(
    kind: Any, limit: int, items: Callable[[int], Awaitable[Sequence[Item]]]
) -> Response:
    """The answer with at most `limit` of the items, each of the type `kind`. `items` gets the most
    that are wanted: one more, since only that tells whether there are more."""
    found = await items(limit + 1)
    adapter = _adapter(kind)
    written: list[bytes] = []
    turn = Turn()
    for item in found[:limit]:
        written.append(adapter.dump_json(item))
        await turn.end_if_long()  # a revision may have a thousand adapters
    more = b"true" if len(found) > limit else b"false"
    body = b'{"data":[' + b",".join(written) + b'],"has_more":' + more + b"}"
    return Response(body, media_type="application/json")
