"""The page for people at /, from files that ship with the service.

Its addresses are all relative, so it also works behind a proxy under another path, and it needs
nothing from anywhere else, which its Content-Security-Policy makes sure of.
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
NO_KEY = "This service needs an API key, which a page without JavaScript cannot send."
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:;"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page(request: Request) -> HTMLResponse:
    """The page, still without an answer."""
    _refuse_if_off(request)
    return _page(request)


@router.get("/static/{name}")
async def page_file(name: str, request: Request) -> Response:
    """One of the files that the page loads."""
    _refuse_if_off(request)
    if name.endswith(".html"):  # to be filled in first
        raise HTTPException(404)
    response = await FILES.get_response(name, request.scope)
    response.headers["Cache-Control"] = "no-cache"  # asked for again each time, sent only when new
    return response


def _page(request: Request) -> HTMLResponse:
    settings: Settings = request.app.state.settings
    model = request.app.state.model
    first, other = model["class_names"]
    content = _filled(
        PAGE,
        title=f"{first[:1].upper()}{first[1:]} or {'not' if first in other else other}?",
        first=first,
        other=other,
        base=str(request.base_url),
        most_bytes=str(settings.max_upload_bytes),
        most_megabytes=f"{settings.max_upload_bytes / 1e6:.3g} MB",
        formats=model["formats"],
        with_key=f' -H "{access.HEADER}: KEY"' if settings.keys else "",
        without_key=NO_KEY if settings.keys else "",
        form_class="js" if settings.keys else "",
    )
    headers = {"Content-Security-Policy": POLICY, "Vary": "Accept"}
    return HTMLResponse(content, headers=headers)


def _filled(name: str, **texts: str) -> str:
    """One of the HTML files with these texts in their places."""
    template = Template((FOLDER / name).read_text(encoding="utf-8"))
    return template.substitute({key: html.escape(text) for key, text in texts.items()})


def _refuse_if_off(request: Request) -> None:
    if not request.app.state.settings.page:
        raise HTTPException(404)
