"""The addresses of the service."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response
from fastapi.routing import APIRoute

from app import errors
from app.answers import (
    ExplanationAnswer,
    HealthAnswer,
    LiveAnswer,
    ModelAnswer,
    ModelName,
    PredictionAnswer,
)
from app.errors import Problem
from app.middleware import Facts
from app.queue import Queue
from app.settings import Settings
from app.uploads import read_picture
from model.worker import Reply

VARY = {"Vary": "Accept"}
BYTES: dict[str, Any] = {"type": "string", "format": "binary", "minLength": 1}
PICTURE_BODY: dict[str, Any] = {
    "required": True,
    "description": "The picture: the body itself, or a form's field `file`. What its bytes are"
    " decides, not the content type; with any other type than a form's the body is the picture.",
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "required": ["file"], "properties": {"file": BYTES}}
        },
        "application/octet-stream": {"schema": BYTES},
        "image/*": {"schema": BYTES},
    },
}

# What reading and classifying a picture may end in.
UPLOAD_PROBLEMS = (
    "malformed-form",
    "slow-upload",
    "too-large",
    "not-a-picture",
    "format-not-allowed",
    "encoded-body",
    "empty",
    "missing-file",
    "several-files",
    "damaged",
    "too-many-pixels",
    "takes-too-long",
    "crashes-decoder",
    "busy",
    "deadline-passed",
    "stopping",
)


class PlainRoute(APIRoute):
    """A route whose function takes the request alone and returns a response: FastAPI need not
    look for parameters, nor check the answer, which costs a small picture a tenth of its time."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


router = APIRouter()
plain_router = APIRouter(route_class=PlainRoute)


@plain_router.post(
    "/predict",
    operation_id="predict",
    response_model=PredictionAnswer,
    summary="Say whether a picture shows a cat",
    response_description="The picture was classified.",
    openapi_extra={"requestBody": PICTURE_BODY},
    responses=errors.responses(*UPLOAD_PROBLEMS),
)
async def predict(request: Request) -> Response:
    """Send the picture as the request's body, or as the field `file` of a form."""
    reply = await work_on_picture(request, "predict", quick=True)
    return Response(reply.body, media_type="application/json")


@router.post(
    "/explain",
    operation_id="explain",
    summary="Say whether a picture shows a cat, and what in it speaks for and against that",
    response_description="The picture was classified, and the answer taken apart.",
    response_model=ExplanationAnswer,
    openapi_extra={"requestBody": PICTURE_BODY},
    responses={
        200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
        **errors.responses(*UPLOAD_PROBLEMS, "invalid-request"),
    },
)
async def explain(
    request: Request,
    wanted: Annotated[
        Literal["json", "png"] | None,
        Query(alias="format", description="Instead of an Accept header."),
    ] = None,
) -> Response:
    """Send the picture as to /predict. The answer is JSON; with `Accept: image/png` it is the
    heat map over what the model saw."""
    chosen = wanted or preferred(request.headers.get("accept", ""))
    reply = await work_on_picture(request, "explain", format=chosen)
    return Response(reply.body, media_type=reply.head["type"], headers=VARY)


def preferred(accept: str) -> str:
    """Which of our formats an Accept header prefers; JSON where it names none of them."""
    best = (0.0, "json")
    for entry in accept.split(","):
        media, *parameters = (part.strip().lower() for part in entry.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        try:
            found = (float(quality), media.rpartition("/")[2])
        except ValueError:
            continue
        if media in ("application/json", "image/png") and found[0] > best[0]:
            best = found
    return best[1]


async def work_on_picture(
    request: Request, kind: str, *, quick: bool = False, **options: Any
) -> Reply:
    """Read the picture that a request sends, and have a worker answer it."""
    settings: Settings = request.app.state.settings
    queue: Queue = request.app.state.queue
    with queue.enter() as room:
        body = await read_picture(request, room)
        head = {
            "kind": kind,
            "content_type": request.headers.get("content-type", ""),
            "threshold": settings.threshold,
            "views": settings.views,
            "max_pixels": settings.max_pixels,
            "max_bytes": settings.max_upload_bytes,
            **options,
        }
        facts: Facts = request.scope["facts"]
        facts.model_version = request.app.state.model["version"]
        return await queue.work(request, head, body, quick=quick)


@router.get(
    "/model",
    operation_id="model",
    summary="Say what is known of the model",
    response_model=ModelAnswer,
    response_description="What the artifact says of itself.",
    responses=errors.responses("busy", "deadline-passed"),
)
async def get_model(request: Request) -> Response:
    """Data, training, measurements and limits are what the artifact holds; one of your own may
    leave any of them out."""
    queue: Queue = request.app.state.queue
    settings: Settings = request.app.state.settings
    head = {"kind": "about", "threshold": settings.threshold, "views": settings.views}
    reply = await queue.work(request, head, b"")
    return Response(reply.body, media_type="application/json")


@router.get(
    "/health",
    operation_id="health",
    summary="Say that the service is ready, and with which model",
    response_description="The service is ready.",
    responses=errors.responses("not-ready"),
)
@router.get(
    "/health/ready",
    operation_id="ready",
    summary="Say that the service takes requests; while it stops, it does not",
    response_description="The service is ready.",
    responses=errors.responses("not-ready"),
)
async def health(request: Request) -> HealthAnswer:
    check_ready(request)
    model = request.app.state.model
    return HealthAnswer(
        status="ready", model=ModelName(name=model["name"], version=model["version"])
    )


def check_ready(request: Request, **members: Any) -> None:
    """Raise the Problem not-ready, with these members, where the service is about to stop."""
    if not request.app.state.ready:
        detail = "The service is about to stop and should get no more requests."
        raise Problem("not-ready", detail, {"Retry-After": "5"}, **members)


@router.get(
    "/health/live",
    operation_id="live",
    summary="Say that the process answers, whether or not it takes more requests",
    response_description="The process answers.",
)
async def live() -> LiveAnswer:
    return LiveAnswer(status="live")


@router.get(errors.PAGE, include_in_schema=False)
async def problems_page() -> HTMLResponse:
    return HTMLResponse(errors.page())
