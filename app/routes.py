"""The addresses of the service, and the shapes of their answers, which workers fill in."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from app import __version__, errors
from app.errors import Problem
from app.observation import RequestInfo
from app.queue import Queue, read_body
from app.settings import Settings
from model.worker import Reply

# For a form's boundaries and other fields, on top of the picture's own limit.
FORM_ALLOWANCE_BYTES = 64 * 2**10
VARY = {"Vary": "Accept"}
BYTES: dict[str, Any] = {"type": "string", "format": "binary", "minLength": 1}
PICTURE_BODY: dict[str, Any] = {
    "required": True,
    "description": "The picture: the whole body, or the field `file` of a form. The service "
    "recognises the format from the bytes and ignores the content type.",
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "required": ["file"], "properties": {"file": BYTES}}
        },
        "application/octet-stream": {"schema": BYTES},
        "image/*": {"schema": BYTES},
    },
}
PNG = "A PNG, in base64."


class ModelName(BaseModel):
    name: str
    version: str = Field(
        description="12 hex digits: a hash of all that affects the answers, and of the name."
    )


class HealthAnswer(BaseModel):
    status: str
    version: str = Field(description="The service's own.")
    model: ModelName


class Answer(BaseModel):
    """The fields that /predict and /explain share."""

    cat_probability: float = Field(
        ge=0,
        le=1,
        description="The probability of the model's first class (`cat` in the default model).",
    )
    label: str = Field(
        description="The first class if the probability is at least the threshold, else the second."
    )
    words: str = Field(description="The answer in words, with its confidence.")
    threshold: float = Field(ge=0, le=1)
    model: ModelName
    warnings: list[str] = Field(description="Changes to the picture that you may not expect.")


class PredictionAnswer(Answer):
    views: int = Field(
        ge=1,
        description="The number of views used: 1 for the whole picture, more if the model "
        "was unsure about it.",
    )


class ViewAnswer(BaseModel):
    """One view of the picture."""

    box: list[float] = Field(
        description="Left, top, right and bottom, as fractions of the upright picture's sides."
    )
    cat_probability: float = Field(ge=0, le=1, description="The probability from this view alone.")
    picture_png: str = Field(description=f"The view as the model saw it. {PNG}")


class ExplanationAnswer(Answer):
    logit: float = Field(
        description="z; the probability is σ(z) = 1 / (1 + e⁻ᶻ). It is `sum` + `bias`."
    )
    bias: float = Field(description="The part of the logit that belongs to no pixel.")
    sum: float = Field(description="The sum of the heat map.")
    heat: list[list[float]] = Field(
        description="The heat map: rows of numbers, one for each pixel of `picture_png`, in "
        "logit units. A positive value is evidence for the first class, a "
        "negative one against it."
    )
    method: dict[str, str] = Field(description="How the heat map was made.")
    views: list[ViewAnswer] = Field(
        description="The views used, the whole picture first. The logit is their mean."
    )
    original: dict[str, int | str] = Field(description="The upright picture's size, and format.")
    picture_png: str = Field(description=f"The whole picture as the model saw it. {PNG}")
    overlay_png: str = Field(
        description="The heat map over `picture_png`, which is shown enlarged in grey. "
        f"Orange is evidence for the first class, blue against it. {PNG}"
    )
    full_colour: float = Field(
        description="The value per pixel, in logit units, that has the strongest colour in "
        "the overlay."
    )


class ModelAnswer(BaseModel):
    name: str
    version: str
    classes: list[str] = Field(
        description="The two class names; `cat_probability` is that of the first."
    )
    threshold: float
    threshold_rule: str | None = Field(description="How the threshold was chosen.")
    bands: list[dict[str, Any]] = Field(description="The lowest probability for each wording.")
    preprocessing: dict[str, Any]
    views: dict[str, Any] = Field(
        description="`boxes`: the views, as left, top, right and bottom in fractions of the "
        "sides. The model uses all of them if the logit of the whole picture "
        "lies between the two numbers of `unsure`. `mirror`: whether the logit of the whole "
        "picture is the mean of its own and its mirror image's."
    )
    network: dict[str, Any] = Field(description="`summary`, number of `parameters`, `layers`.")
    explanation: dict[str, str] = Field(description="How heat maps are made.")
    data: dict[str, Any] = Field(description="The data of its training and evaluation.")
    training: dict[str, Any] = Field(description="The settings of its training.")
    metrics: dict[str, dict[str, dict[str, Any]]] = Field(
        description="By split, source and metric; the source is 'all' if sources were not "
        "measured separately."
    )
    calibration: dict[str, Any]
    limits: list[str] = Field(description="Known limits of the model.")
    learning_curve: dict[str, Any] | None = Field(
        description="`series`: pairs of x and value for each curve. `x`: the unit, epoch or "
        "iteration."
    )
    weights_png: str | None = Field(
        description=f"The weights of logistic regression as a picture; grey is 0. {PNG}"
    )


class ProblemAnswer(BaseModel):
    """An error, as RFC 9457 defines it. Some types have more members: too-large `limit_bytes`,
    too-many-pixels `limit_pixels` and `limit_side`. Under /v2, `error` repeats the detail."""

    type: str = Field(description="The identifier of the error type: a URI reference.")
    title: str = Field(description="The error type in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What arrived, what the limit is, what to do.")
    request_id: str = Field(description="The answer's X-Request-ID.")


# What any operation may answer besides: as plain JSON only under /v2.
RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": f"An error. The page [{errors.PAGE}]({errors.PAGE[1:]}) has all types.",
        "model": ProblemAnswer,
        "content": {errors.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemAnswer"}}},
    }
}


class PlainRoute(APIRoute):
    """A route whose function takes the request alone and returns a response: FastAPI need not
    look for parameters, nor check the answer, which costs a small picture a tenth of its time."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


router = APIRouter(tags=["Cat or not"])
plain_router = APIRouter(route_class=PlainRoute, responses=RESPONSES, tags=["Cat or not"])


@plain_router.post(
    "/predict",
    operation_id="predict",
    response_model=PredictionAnswer,
    summary="Say whether a picture shows a cat",
    openapi_extra={"requestBody": PICTURE_BODY},
)
async def predict(request: Request) -> Response:
    """Send the picture as the request's body, or as the field `file` of a form."""
    reply = await work_on_picture(request, "predict")
    return Response(reply.body, media_type="application/json")


@router.post(
    "/explain",
    summary="Classify a picture and explain the answer with a heat map",
    response_model=ExplanationAnswer,
    openapi_extra={"requestBody": PICTURE_BODY},
    responses={200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}},
)
async def explain(request: Request) -> Response:
    """Send the picture as to /predict. The answer is JSON; with `Accept: image/png` it is the
    heat map over what the model saw."""
    accept = request.headers.get("accept", "").lower()
    is_png = "application/json" not in accept and ("image/png" in accept or "image/*" in accept)
    reply = await work_on_picture(request, "explain", format="png" if is_png else "json")
    return Response(reply.body, media_type=reply.head["type"], headers=VARY)


@router.get(
    "/model", name="model", summary="Return facts about the model", response_model=ModelAnswer
)
async def get_model(request: Request) -> Response:
    """Data, training and metrics come from the weights file. Other files may lack some of
    them."""
    reply = await work(request, "about", b"")
    return Response(reply.body, media_type="application/json")


@router.get("/health", summary="Report that the service is ready, and its model")
@router.get(
    "/health/ready",
    name="ready",
    summary="Report whether the service accepts requests (not while it stops)",
)
async def health(request: Request) -> HealthAnswer:
    check_ready(request)
    model = request.app.state.model
    named = ModelName(name=model["name"], version=model["version"])
    return HealthAnswer(status="ready", version=__version__, model=named)


@router.get("/health/live", summary="Report that the process is alive, even while it stops")
async def live() -> dict[str, str]:
    return {"status": "live"}


def check_ready(request: Request, **members: Any) -> None:
    """Raise the Problem not-ready, with these members, where the service is about to stop."""
    if not request.app.state.ready:
        detail = "The service is stopping. Send requests to another replica, or try again later."
        raise Problem("not-ready", detail, {"Retry-After": "5"}, **members)


async def work(request: Request, kind: str, body: bytes, **options: Any) -> Reply:
    """Have a worker do this with a body. Raises Problem, and ClientDisconnect."""
    state = request.app.state
    queue: Queue = state.queue
    settings: Settings = state.settings
    facts: RequestInfo = request.scope["facts"]
    facts.model_version = state.model["version"]
    head = {
        "kind": kind,
        "threshold": settings.threshold,
        "views": settings.views,
        "max_pixels": settings.max_pixels,
        "max_bytes": settings.max_upload_bytes,
        **options,
    }
    return await queue.work(request, head, body)


async def work_on_picture(request: Request, kind: str, **options: Any) -> Reply:
    """Read the picture that a request sends, and have a worker answer it."""
    content_type = request.headers.get("content-type", "")
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise Problem(
            "encoded-body",
            f"The body has Content-Encoding {encoding[:40]!r}; compressed bodies are not accepted "
            "here. Send the picture file as it is.",
            {"Accept-Encoding": "identity"},
        )
    limit: int = request.app.state.settings.max_upload_bytes
    allowance = FORM_ALLOWANCE_BYTES if content_type.lower().startswith("multipart/") else 0
    return await work_on_body(request, kind, limit, allowance, content_type=content_type, **options)


async def work_on_body(
    request: Request, kind: str, limit: int, allowance: int = 0, **options: Any
) -> Reply:
    """Read a body of at most `limit` bytes and so many more, and have a worker answer it."""
    queue: Queue = request.app.state.queue
    seconds: float = request.app.state.settings.upload_seconds
    with queue.enter() as room:
        body = await read_body(request, room, most=limit + allowance, limit=limit, seconds=seconds)
        return await work(request, kind, body, **options)
