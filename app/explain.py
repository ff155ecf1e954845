"""POST /explain: the answer of /predict, and why: a heat map over what the model saw."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from fastapi import APIRouter, Query, Request
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field
from starlette.responses import Response

from app import page, problems
from app.observation import Facts, current_facts
from app.problems import Problem
from app.routes import PICTURE_BODY, UPLOAD_PROBLEMS, ModelName, PredictionAnswer
from app.uploads import read_upload
from model.classifier import Classifier, Prediction
from model.explanation import Explanation, Method, explain, overlay
from model.preprocessing import InvalidImage, Limits

Format = Literal["json", "png", "html"]
FORMATS: dict[str, Format] = {
    "application/json": "json",
    "image/png": "png",
    "text/html": "html",
}
PNG = "A PNG, in base64."
VARY = {"Vary": "Accept"}
PAGE = {"schema": {"type": "string"}}  # what the OpenAPI document says of it

T = TypeVar("T")

router = APIRouter()


class MethodAnswer(BaseModel):
    """How the heat map was made."""

    name: str
    description: str

    @classmethod
    def of(cls, method: Method) -> "MethodAnswer":
        return cls(name=method.name, description=method.description)


class OriginalAnswer(BaseModel):
    """The picture as it arrived, upright."""

    width: int
    height: int
    format: str


class ExplanationAnswer(PredictionAnswer):
    logit: float = Field(
        description="z; the probability is σ(z) = 1 / (1 + e⁻ᶻ). It is `sum` + `bias`."
    )
    bias: float = Field(description="The part of the logit that has no place in the picture.")
    sum: float = Field(description="The sum of the heat map.")
    heat: list[list[float]] = Field(
        description="The heat map: rows of numbers, one for each pixel that the model saw, in"
        " logit units. Above 0 a pixel speaks for the first class, below 0 against it."
    )
    method: MethodAnswer
    original: OriginalAnswer
    picture_png: str = Field(description=f"What the model saw. {PNG}")
    overlay_png: str = Field(
        description="The heat map over what the model saw, in grey and enlarged: orange speaks"
        f" for the first class, blue against it. {PNG}"
    )
    full_colour: float = Field(
        description="Logit units a pixel, either way, from which the overlay has its full colour."
    )


@dataclass(frozen=True)
class Explained:
    """All that is worked out for one picture."""

    prediction: Prediction
    explanation: Explanation
    picture_png: bytes
    overlay_png: bytes
    full_colour: float


def explain_picture(classifier: Classifier, data: bytes, limits: Limits, facts: Facts) -> Explained:
    """Answer and explain, for the bytes of a picture. Raises InvalidImage.

    Runs the network twice forwards and once backwards.
    """
    prediction = classifier.predict(data, limits)
    facts.answered(prediction, classifier.usual)
    pixels = prediction.picture.pixels
    explanation = explain(classifier.layers, pixels)
    over, full_colour = overlay(pixels, explanation.heat)
    return Explained(prediction, explanation, png(pixels), png(over), full_colour)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """The picture (height, width, 3) as a PNG."""
    out = BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _with_page(documented: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of problems, which the page shows too."""
    for entry in documented.values():
        entry["content"]["text/html"] = PAGE
    return documented


@router.post(
    "/explain",
    operation_id="explain",
    summary="Say whether a picture shows a cat, and what in it speaks for and against that",
    response_description="The picture was classified, and the answer taken apart.",
    response_model=ExplanationAnswer,
    openapi_extra={"requestBody": PICTURE_BODY},
    responses={
        200: {
            "content": {
                "image/png": {"schema": {"type": "string", "format": "binary"}},
                "text/html": PAGE,
            }
        },
        **_with_page(problems.responses(*UPLOAD_PROBLEMS, "invalid-request")),
    },
)
async def post_explain(
    request: Request,
    wanted: Annotated[
        Format | None,
        Query(alias="format", description="Instead of an Accept header."),
    ] = None,
) -> Response:
    """Send the picture as to /predict. The answer is JSON; with `Accept: image/png` it is the
    heat map over what the model saw, and with `Accept: text/html` a page."""
    chosen = wanted or accepted(request.headers.get("accept", ""))
    classifier: Classifier = request.app.state.classifier  # once: a reload may change it meanwhile
    if chosen == "html" and request.app.state.settings.page:
        return await _as_page(request, classifier)
    if chosen == "png":
        picture = await _explained(request, classifier, lambda explained: explained.overlay_png)
        return Response(picture, media_type="image/png", headers=VARY)
    text = await _explained(
        request, classifier, lambda explained: _answer(classifier, explained).model_dump_json()
    )
    return Response(text, media_type="application/json", headers=VARY)


def accepted(accept: str) -> Format:
    """Which of our formats an Accept header prefers; JSON where it names none of them."""
    best: tuple[float, Format] = (0.0, "json")
    for entry in accept.split(","):
        media, *parameters = (part.strip().lower() for part in entry.split(";"))
        if media in FORMATS and (quality := _quality(parameters)) > best[0]:
            best = (quality, FORMATS[media])
    return best[1]


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


async def _explained(
    request: Request, classifier: Classifier, write: Callable[[Explained], T]
) -> T:
    """The request's picture, explained. It is written in the decoder's thread too: the numbers of
    a large model's map would keep the event loop from every other client."""
    state = request.app.state
    facts = current_facts()
    facts.model_version = classifier.version

    def explain_and_write(data: bytes) -> T:
        return write(explain_picture(classifier, data, state.limits, facts))

    with state.admission.enter(request) as place:
        picture = await read_upload(request, place)
        written: T = await place.run(explain_and_write, picture)
        return written


def _answer(classifier: Classifier, explained: Explained) -> ExplanationAnswer:
    prediction, explanation = explained.prediction, explained.explanation
    heat = explanation.heat.astype(float)
    picture = prediction.picture
    return ExplanationAnswer(
        cat_probability=prediction.cat_probability,
        label=prediction.label,
        words=prediction.words,
        threshold=classifier.threshold,
        model=ModelName.of(classifier),
        warnings=list(prediction.warnings),
        logit=explanation.logit,
        bias=explanation.bias,
        sum=float(heat.sum()),
        heat=heat.round(6).tolist(),
        method=MethodAnswer.of(explanation.method),
        original=OriginalAnswer(width=picture.width, height=picture.height, format=picture.format),
        picture_png=base64.b64encode(explained.picture_png).decode(),
        overlay_png=base64.b64encode(explained.overlay_png).decode(),
        full_colour=explained.full_colour,
    )


async def _as_page(request: Request, classifier: Classifier) -> Response:
    """The answer as a page, for browsers without JavaScript; problems too."""

    def values(explained: Explained) -> dict[str, Any]:
        return _answer(classifier, explained).model_dump()

    try:
        told = await _explained(request, classifier, values)
    except Problem as problem:
        return page.refused(request, classifier, problem)
    except InvalidImage as error:
        return page.refused(request, classifier, Problem(error.reason, str(error)))
    return page.answered(request, classifier, told)
