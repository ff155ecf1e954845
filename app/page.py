"""The page for people at /, from files that ship with the service.

Its addresses are all relative, so it also works behind a proxy under another path, and it needs
nothing from anywhere else, which its Content-Security-Policy makes sure of.
"""

import html
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from app import access, problems
from app.problems import Problem
from app.settings import Settings
from model.classifier import Classifier
from model.preprocessing import accepted_formats

FOLDER = Path(__file__).parent / "static" / "page"
PAGE = "index.html"
CARDS = '<ol id="answers" aria-label="Answers">'  # where answers go in it
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
    return _page(request, request.app.state.classifier, "")


@router.get("/static/{name}")
async def page_file(name: str, request: Request) -> Response:
    """One of the files that the page loads."""
    _refuse_if_off(request)
    if name.endswith(".html"):  # to be filled in first
        raise HTTPException(404)
    response = await FILES.get_response(name, request.scope)
    response.headers["Cache-Control"] = "no-cache"  # asked for again each time, sent only when new
    return response


def answered(request: Request, classifier: Classifier, told: Mapping[str, Any]) -> HTMLResponse:
    """The page with the classifier's answer, which /explain gives as JSON, for browsers without
    JavaScript."""
    first = classifier.class_names[0]
    probability, threshold = told["cat_probability"], told["threshold"]
    card = _filled(
        "answer.html",
        words=told["words"],
        first=first,
        percent=percent(probability),
        probability=f"{100 * probability:.2f}",
        threshold=f"{100 * threshold:g}",
        rule=f"{first} from {percent(threshold).replace('.0 ', ' ')} on",
        anchor="start" if threshold < 0.25 else "end" if threshold > 0.75 else "middle",
        kind="for" if probability >= threshold else "against",
        side=str(len(told["heat"])),
        notes="".join(f" {note[:1].upper()}{note[1:]}." for note in told["warnings"]),
        picture_png=told["picture_png"],
        overlay_png=told["overlay_png"],
        reckoning=_reckoning(told),
    )
    return _page(request, classifier, card)


def refused(request: Request, classifier: Classifier, problem: Problem) -> HTMLResponse:
    """The page with the problem's own sentence, under the problem's status."""
    plain = problems.answer(problem)
    card = _filled("refusal.html", title=problem.kind.title, detail=problem.detail)
    answer = _page(request, classifier, card)
    answer.status_code = plain.status_code
    answer.headers.update(problem.headers or {})
    return answer


def percent(probability: float) -> str:
    """0.99893 as "99.9 %", never as a certainty."""
    if probability >= 0.9995:
        return "over 99.9 %"
    return "under 0.1 %" if probability < 0.0005 else f"{100 * probability:.1f} %"


def _reckoning(told: Mapping[str, Any]) -> str:
    """How the heat map was made, what it adds up to, and its scale."""
    total, bias, logit = (
        f"{told[name]:.2f}".replace("-", "\N{MINUS SIGN}") for name in ("sum", "bias", "logit")
    )
    return (
        f"Heat map: {told['method']['name']}. Its sum {total} and the bias {bias} make the logit"
        f" {logit}. Full colour from {told['full_colour']:.2g} logit units a pixel on."
    )


def _page(request: Request, classifier: Classifier, card: str) -> HTMLResponse:
    settings: Settings = request.app.state.settings
    first, other = classifier.class_names
    content = _filled(
        PAGE,
        title=f"{first[:1].upper()}{first[1:]} or {'not' if first in other else other}?",
        first=first,
        other=other,
        base=str(request.base_url),
        most_bytes=str(settings.max_upload_bytes),
        most_megabytes=f"{settings.max_upload_bytes / 1e6:.3g} MB",
        formats=accepted_formats(),
        with_key=f' -H "{access.HEADER}: KEY"' if settings.keys else "",
        without_key=NO_KEY if settings.keys else "",
        form_class="js" if settings.keys else "",
    )
    headers = {"Content-Security-Policy": POLICY, "Vary": "Accept"}
    return HTMLResponse(content.replace(CARDS, CARDS + card), headers=headers)


def _filled(name: str, **texts: str) -> str:
    """One of the HTML files with these texts in their places."""
    template = Template((FOLDER / name).read_text(encoding="utf-8"))
    return template.substitute({key: html.escape(text) for key, text in texts.items()})


def _refuse_if_off(request: Request) -> None:
    if not request.app.state.settings.page:
        raise HTTPException(404)
