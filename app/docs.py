"""/docs: the OpenAPI document in Swagger UI, from files that ship with the service.

Every address in the page is relative, so it also works behind a proxy under another path, and
nothing in it is inline script, so it works under a Content-Security-Policy that allows none.
"""

import gzip
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

FOLDER = Path(__file__).parent / "static" / "swagger-ui"
MEDIA_TYPES = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "start.js": "text/javascript",
}
GZIP = b"\x1f\x8b"  # what its files begin with
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Cat or not: the API</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" href="data:,">
</head>
<body>
<div id="swagger-ui"></div>
<noscript>This page needs JavaScript. It shows <a href="openapi.json">openapi.json</a>.</noscript>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs() -> HTMLResponse:
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY})


@router.get("/docs/{name}")
async def docs_file(name: str, request: Request) -> Response:
    """One of the files that the page loads, sent as it is kept wherever gzip is understood."""
    if name not in MEDIA_TYPES:
        raise HTTPException(404)
    headers = {"Cache-Control": "max-age=3600", "Vary": "Accept-Encoding"}
    content = kept(name)
    if content[:2] == GZIP:
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
        else:
            content = inflated(name)
    return Response(content, 200, headers, MEDIA_TYPES[name])


# Answers that nobody reads yet share these bytes, however many there are. Threads, of which several
# can miss a cache at a time, would each keep their own.
@cache
def kept(name: str) -> bytes:
    path = FOLDER / name
    return (path if path.exists() else FOLDER / f"{name}.gz").read_bytes()


@cache
def inflated(name: str) -> bytes:
    return gzip.decompress(kept(name))
