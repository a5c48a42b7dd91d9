"""What a browser gets: the shop at /, the API's documentation at /docs, and how both are fenced in.

Pages hold nothing of a model, so they need no token; what they then fetch does. They load nothing
from elsewhere: Swagger UI comes out of the package fastapi-offline.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse, HTMLResponse

from rectrain.errors import DataError, PackageError
from serve.answering import Answerer
from serve.samples import samples
from serve.schemas import ENDPOINTS
from serve.sections import Limits

__all__ = ["add_pages"]

_PAGES = Path(__file__).with_name("page")
_SWAGGER = Path(str(files("fastapi_offline"))) / "static"
_ASSETS = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}
_CATALOGUE_TASK = ENDPOINTS["recommend"]
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",
}
_KEPT = {"Cache-Control": "max-age=86400"}


def add_pages(api: FastAPI, answerers: Mapping[str, Answerer], limits: Limits) -> None:
    """Adds the routes of the pages and of what they load.

    Args:
        api: made with `docs_url=None`.
        answerers: name of a pair of models -> what answers by it.
        limits: of a request.
    """
    shop = _Page("shop", scripts=("ask", "draw", "shop"))
    docs = _Page("docs", scripts=("docs",), others=True)

    @api.get("/", include_in_schema=False)
    async def show_shop() -> HTMLResponse:
        return shop.response()

    @api.get("/docs", include_in_schema=False)
    async def show_docs() -> HTMLResponse:
        return docs.response()

    for name, kind in _ASSETS.items():
        _add_asset(api, name, kind)

    @cache
    def shown() -> bytes:
        catalogues = {name: _item_ids(one) for name, one in answerers.items()}
        return samples(catalogues, max_candidates=limits.candidates)

    @api.get("/samples", include_in_schema=False)
    def shop_samples() -> Response:  # not async: the first one takes a third of a second
        return Response(shown(), media_type="application/json")


class _Page:
    """NAME.html with NAME.css and its scripts inside, and a policy that lets nothing else run.

    Args:
        name: of the page.
        scripts: names of files, in this order.
        others: whether it loads scripts, styles and pictures of this server's too.
    """

    def __init__(self, name: str, *, scripts: Sequence[str], others: bool = False) -> None:
        css, js = _read(f"{name}.css"), "".join(_read(f"{script}.js") for script in scripts)
        html = _read(f"{name}.html")
        self._text = html.replace("/*css*/", css, 1).replace("/*js*/", js, 1)
        own = "'self'" if others else ""
        policy = {
            "default-src": "'none'",
            "script-src": f"{own} {_hash(js)}",
            "style-src": f"{own} {_hash(css)}",
            "img-src": "data:",
            "connect-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        directives = "; ".join(
            f"{name} {' '.join(value.split())}" for name, value in policy.items()
        )
        self._headers = {"Content-Security-Policy": directives, **_HEADERS}

    def response(self) -> HTMLResponse:
        return HTMLResponse(self._text, headers=self._headers)


def _read(name: str) -> str:
    return (_PAGES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """An inline text's name in a Content-Security-Policy (CSP Level 3, section 2.3.1)."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _add_asset(api: FastAPI, name: str, kind: str) -> None:
    @api.get(f"/docs/{name}", include_in_schema=False)
    async def asset() -> FileResponse:
        return FileResponse(_SWAGGER / name, media_type=kind, headers={**_HEADERS, **_KEPT})


def _item_ids(answerer: Answerer) -> list[str]:
    """Of the catalogue that a pair recommends from; none where it has none."""
    try:
        return answerer.small.index(_CATALOGUE_TASK).ids
    except (DataError, PackageError):  # no such task, no index: a package may be without
        return []
