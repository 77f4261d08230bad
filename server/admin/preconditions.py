"""A set's revision as its ETag, and If-Match as the revision that a change expects."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Header, Request

from server.http.errors import ApiError

_TAG = re.compile(r'"(0|[1-9][0-9]{0,9})"')


def etag(revision: int) -> dict[str, str]:
    """The ETag header of a revision."""
    return {"ETag": f'"{revision}"'}


def _expected_revision(
    http: Request,
    if_match: Annotated[
        str | None,
        Header(
            alias="If-Match",
            description='The ETag that the set must still have; `*` or none: any. As `"7"`.',
        ),
    ] = None,
) -> int | None:
    """The revision that If-Match states; None if any will do."""
    given = http.headers.getlist("if-match")
    if given in ([], ["*"]):
        return None
    # Revisions are exact, so weak tags are none of ours; a list would be two expectations.
    tag = _TAG.fullmatch(given[0])
    if len(given) > 1 or tag is None:
        raise ApiError(
            HTTPStatus.BAD_REQUEST,
            f"If-Match: found {', '.join(given)[:100]!r}, expected one ETag of this API, "
            'such as "7" with its quotes, or *',
            param="If-Match",
            code="invalid_precondition",
        )
    return int(tag[1])


ExpectedRevision = Annotated[int | None, Depends(_expected_revision)]
