"""`GET /`: one static page with the gauges and a box to try the models."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

router = APIRouter()

_PAGE = files("server.api").joinpath("dashboard.html").read_text(encoding="utf-8")


def _hash_of(element: str) -> str:
    """The hash by which a content security policy allows the page's own script or style."""
    content = _PAGE.partition(f"<{element}>")[2].partition(f"</{element}>")[0]
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"


_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hash_of('script')}; style-src {_hash_of('style')}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@router.get("/", response_class=HTMLResponse)
async def dashboard() -> HTMLResponse:
    """The page itself holds no data, so it needs no key; what it fetches does."""
    return HTMLResponse(_PAGE, headers=_HEADERS)
