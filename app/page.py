"""The page for people at /, from files that ship with the service.

Its addresses are relative, so it also works behind a proxy under another path. It needs nothing
from elsewhere; its Content-Security-Policy makes sure of that.
"""

import html
from pathlib import Path
from string import Template

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from app import access
from app.settings import Settings

FOLDER = Path(__file__).parent / "static" / "page"
PAGE = "index.html"
FILES = StaticFiles(directory=FOLDER)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:;"
    " connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page(request: Request) -> HTMLResponse:
    """The page, with the model's class names and the settings' limits in it."""
    _refuse_if_off(request)
    settings: Settings = request.app.state.settings
    model = request.app.state.model
    first, other = model["class_names"]
    texts = {
        "title": f"{first[:1].upper()}{first[1:]} or {'not' if first in other else other}?",
        "first": first,
        "other": other,
        "base": str(request.base_url),
        "max_upload_bytes": str(settings.max_upload_bytes),
        "max_megabytes": f"{settings.max_upload_bytes / 1e6:.3g} MB",
        "formats": model["formats"],
        "key_header": f' -H "{access.HEADER}: KEY"' if settings.keys else "",
        "key_state": "required" if settings.keys else "hidden",
        "feedback_state": "" if settings.collect else "hidden",
    }
    template = Template((FOLDER / PAGE).read_text(encoding="utf-8"))
    content = template.substitute({name: html.escape(text) for name, text in texts.items()})
    return HTMLResponse(content, headers={"Content-Security-Policy": POLICY})


@router.get("/static/{name}")
async def page_file(name: str, request: Request) -> Response:
    """One of the files that the page loads."""
    _refuse_if_off(request)
    if name == PAGE:  # its texts are not filled in
        raise HTTPException(404)
    response = await FILES.get_response(name, request.scope)
    response.headers["Cache-Control"] = "no-cache"  # asked for again each time, sent only when new
    return response


def _refuse_if_off(request: Request) -> None:
    if not request.app.state.settings.page:
        raise HTTPException(404)
