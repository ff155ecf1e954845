"""The pages for people: / and what it loads, /docs in Swagger UI, and /problems.

Every address in them is relative, so they also work behind a proxy under another path. They need
nothing from elsewhere, and nothing in them is inline script; their Content-Security-Policies make
sure of that.
"""

import html
from pathlib import Path
from string import Template

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

from app import errors
from app.middleware import curl_option
from app.routes import VARY
from app.settings import Settings

FOLDER = Path(__file__).parent / "static"
PAGE = "index.html"
PAGE_FILES = StaticFiles(directory=FOLDER / "page")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:;"
    " connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
MEDIA_TYPES = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "start.js": "text/javascript",
}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page(request: Request) -> Response:
    """For browsers the page, with the model's class names and the settings' limits in it; for
    others, such as curl, the commands to try."""
    settings: Settings = request.app.state.settings
    if not settings.page:
        raise HTTPException(404)
    model = request.app.state.model
    first, other = model["class_names"]
    second = "not" if first in other else other
    base = str(request.base_url)
    key = curl_option(settings.keys)
    if "text/html" not in request.headers.get("accept", "").lower():
        commands = (
            f"curl{key} --data-binary @picture.jpg {base}predict",
            f"curl{key} --data-binary @picture.jpg -H 'Accept: image/png' -o why.png {base}explain",
            f"curl{key} {base}model",
        )
        lines = [f"Is it a {first} or {second}? Send a picture:", "", *commands, ""]
        if settings.collect:
            lines += [f"Pictures sent to {base}feedback are saved for training.", ""]
        text = "\n".join(lines)
        return PlainTextResponse(text, headers=VARY)
    texts = {
        "title": f"{first[:1].upper()}{first[1:]} or {second}?",
        "first": first,
        "other": other,
        "base": base,
        "max_upload_bytes": str(settings.max_upload_bytes),
        "max_megabytes": f"{settings.max_upload_bytes / 1e6:.3g} MB",
        "formats": model["formats"],
        "key_header": key,
        "key_state": "required" if settings.keys else "hidden",
        "feedback_state": "" if settings.collect else "hidden",
    }
    template = Template((FOLDER / "page" / PAGE).read_text(encoding="utf-8"))
    content = template.substitute({name: html.escape(text) for name, text in texts.items()})
    return HTMLResponse(content, headers={"Content-Security-Policy": POLICY, **VARY})


@router.get("/static/{name}")
async def page_file(name: str, request: Request) -> Response:
    """One of the files that the page loads."""
    needed = request.app.state.settings.page or name in ("page.css", "icon.svg")  # for /problems
    if name == PAGE or not needed:  # the texts of PAGE are not filled in
        raise HTTPException(404)
    response = await PAGE_FILES.get_response(name, request.scope)
    response.headers["Cache-Control"] = "no-cache"  # asked for again each time, sent only when new
    return response


@router.get("/docs")
async def docs() -> FileResponse:
    return FileResponse(FOLDER / "swagger-ui" / PAGE, headers={"Content-Security-Policy": POLICY})


@router.get("/docs/{name}")
async def docs_file(name: str) -> FileResponse:
    """One of the files that the page loads, as it is kept: large ones as gzip."""
    if name not in MEDIA_TYPES:
        raise HTTPException(404)
    headers = {"Cache-Control": "max-age=3600"}
    path = FOLDER / "swagger-ui" / name
    if not path.exists():
        path, headers["Content-Encoding"] = path.with_name(f"{name}.gz"), "gzip"
    return FileResponse(path, headers=headers, media_type=MEDIA_TYPES[name])


@router.get(errors.PAGE)
async def problems() -> HTMLResponse:
    """All types of problems: where an answer's `type` leads."""
    rows = "".join(
        f'<dt id="{each.slug}"><b>{html.escape(each.title)}</b></dt><dd>{html.escape(each.advice)}'
        f'<br><code class="small">{each.status} {each.uri}</code></dd>\n'
        for each in errors.TYPES.values()
    )
    template = Template((FOLDER / "problems.html").read_text(encoding="utf-8"))
    content = template.substitute(problems=rows)
    return HTMLResponse(content, headers={"Content-Security-Policy": POLICY})
