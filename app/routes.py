"""The addresses of the service, and the shapes of their answers, which workers fill in."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from app import __version__, errors
from app.errors import Problem
from app.observation import Facts
from app.queue import Queue, read_body
from app.settings import Settings
from model.worker import Reply

# For a form's boundaries and other fields, on top of the picture's own limit.
FORM_ALLOWANCE_BYTES = 64 * 2**10
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
    *("slow-upload", "too-large", "not-a-picture", "format-not-allowed", "encoded-body", "empty"),
    *("damaged", "too-many-pixels", "takes-too-long", "crashes-decoder", "busy", "deadline-passed"),
    "stopping",
)
FORM_PROBLEMS = ("malformed-form", "missing-file", "several-files")
PNG = "A PNG, in base64."


class ModelName(BaseModel):
    name: str
    version: str = Field(description="12 hex digits that change with whatever decides the answers.")


class HealthAnswer(BaseModel):
    status: str
    version: str = Field(description="The service's own.")
    model: ModelName


class Answer(BaseModel):
    """What /predict and /explain both say."""

    cat_probability: float = Field(
        ge=0, le=1, description="The probability of the model's first class, for ours: cat."
    )
    label: str = Field(description="The first class from the threshold on, else the second.")
    words: str = Field(description="The answer for people, with how sure it is.")
    threshold: float = Field(ge=0, le=1)
    model: ModelName
    warnings: list[str] = Field(
        description="What was done to the picture that its owner may not expect."
    )


class PredictionAnswer(Answer):
    views: int = Field(
        ge=1,
        description="How many views of the picture were looked at: the whole, and other parts of it"
        " where that left the model unsure.",
    )


class ViewAnswer(BaseModel):
    """A part of the picture that the model looked at."""

    box: list[float] = Field(
        description="Left, top, right and bottom, as fractions of the upright picture's sides."
    )
    cat_probability: float = Field(ge=0, le=1, description="What this view alone would have given.")
    picture_png: str = Field(description=f"What the model saw of it. {PNG}")


class ExplanationAnswer(Answer):
    logit: float = Field(
        description="z; the probability is σ(z) = 1 / (1 + e⁻ᶻ). It is `sum` + `bias`."
    )
    bias: float = Field(description="The part of the logit that has no place in the picture.")
    sum: float = Field(description="The sum of the heat map.")
    heat: list[list[float]] = Field(
        description="The heat map: rows of numbers, one for each pixel of `picture_png`, in"
        " logit units. Above 0 a pixel speaks for the first class, below 0 against it."
    )
    method: dict[str, str] = Field(description="How the heat map was made.")
    views: list[ViewAnswer] = Field(
        description="What was looked at, the whole first. The logit is the mean over the views."
    )
    original: dict[str, int | str] = Field(description="The upright picture's size, and format.")
    picture_png: str = Field(description=f"What the model saw of the whole. {PNG}")
    overlay_png: str = Field(
        description="The heat map over `picture_png`, in grey and enlarged: orange speaks"
        f" for the first class, blue against it. {PNG}"
    )
    full_colour: float = Field(
        description="Logit units a pixel, either way, from which the overlay has its full colour."
    )


class ModelAnswer(BaseModel):
    name: str
    version: str
    classes: list[str] = Field(description="The probability is the first one's.")
    threshold: float
    threshold_rule: str | None = Field(description="How the threshold was chosen.")
    bands: list[dict[str, Any]] = Field(description="From which probability on which words.")
    preprocessing: dict[str, Any]
    views: dict[str, Any] = Field(
        description="`boxes`, what of a picture is looked at: left, top, right and bottom, as"
        " fractions of its sides; the others beside the whole where its logit lies between the two"
        " of `unsure`."
    )
    network: dict[str, Any] = Field(description="`summary`, number of `parameters`, `layers`.")
    explanation: dict[str, str] = Field(description="How heat maps are made.")
    data: dict[str, Any] = Field(description="What it was trained on and measured with.")
    training: dict[str, Any] = Field(description="The settings of its training.")
    metrics: dict[str, dict[str, dict[str, Any]]] = Field(
        description="Split, source, metric; the source is 'all' where sources were not told apart."
    )
    calibration: dict[str, Any]
    limits: list[str] = Field(description="What it cannot do, as far as the artifact knows.")
    learning_curve: dict[str, Any] | None = Field(
        description="Lines as pairs, `series`, along `x`: epoch or iteration."
    )
    weights_png: str | None = Field(
        description=f"Logistic regression's weights as a picture: grey is 0. {PNG}"
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
    response_model=PredictionAnswer,
    summary="Say whether a picture shows a cat",
    openapi_extra={"requestBody": PICTURE_BODY},
    responses=errors.responses(*FORM_PROBLEMS, *UPLOAD_PROBLEMS),
)
async def predict(request: Request) -> Response:
    """Send the picture as the request's body, or as the field `file` of a form."""
    reply = await work_on_picture(request, "predict", quick=True)
    return Response(reply.body, media_type="application/json")


@router.post(
    "/explain",
    summary="Say whether a picture shows a cat, and what in it speaks for and against that",
    response_model=ExplanationAnswer,
    openapi_extra={"requestBody": PICTURE_BODY},
    responses={
        200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
        **errors.responses(*FORM_PROBLEMS, *UPLOAD_PROBLEMS, "invalid-request"),
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
    accept = request.headers.get("accept", "")
    chosen = wanted or preferred(accept, "application/json", "image/png").rpartition("/")[2]
    reply = await work_on_picture(request, "explain", format=chosen)
    return Response(reply.body, media_type=reply.head["type"], headers=VARY)


@router.get(
    "/model",
    name="model",
    summary="Say what is known of the model",
    response_model=ModelAnswer,
    responses=errors.responses("busy", "deadline-passed"),
)
async def get_model(request: Request) -> Response:
    """Data, training, measurements and limits are what the artifact holds; one of your own may
    leave any of them out."""
    reply = await work(request, "about", b"")
    return Response(reply.body, media_type="application/json")


@router.get(
    "/health",
    summary="Say that the service is ready, and with which model",
    responses=errors.responses("not-ready"),
)
@router.get(
    "/health/ready",
    name="ready",
    summary="Say that the service takes requests; while it stops, it does not",
    responses=errors.responses("not-ready"),
)
async def health(request: Request) -> HealthAnswer:
    check_ready(request)
    model = request.app.state.model
    named = ModelName(name=model["name"], version=model["version"])
    return HealthAnswer(status="ready", version=__version__, model=named)


@router.get(
    "/health/live",
    name="live",
    summary="Say that the process answers, whether or not it takes more requests",
)
async def live() -> dict[str, str]:
    return {"status": "live"}


def preferred(accept: str, usual: str, other: str) -> str:
    """Which of two media types an Accept header prefers; the usual one where it names neither."""
    best = (0.0, usual)
    for entry in accept.lower().split(","):
        media, *parameters = (part.strip() for part in entry.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        try:
            found = (float(quality), media)
        except ValueError:
            continue
        if media in (usual, other) and found[0] > best[0]:
            best = found
    return best[1]


def check_ready(request: Request, **members: Any) -> None:
    """Raise the Problem not-ready, with these members, where the service is about to stop."""
    if not request.app.state.ready:
        detail = "The service is about to stop and should get no more requests."
        raise Problem("not-ready", detail, {"Retry-After": "5"}, **members)


async def work(
    request: Request, kind: str, body: bytes, *, quick: bool = False, **options: Any
) -> Reply:
    """Have a worker do this with a body. Raises Problem, and ClientDisconnect."""
    state = request.app.state
    queue: Queue = state.queue
    settings: Settings = state.settings
    facts: Facts = request.scope["facts"]
    facts.model_version = state.model["version"]
    head = {
        "kind": kind,
        "threshold": settings.threshold,
        "views": settings.views,
        "max_pixels": settings.max_pixels,
        "max_bytes": settings.max_upload_bytes,
        **options,
    }
    return await queue.work(request, head, body, quick=quick)


async def work_on_picture(
    request: Request, kind: str, *, quick: bool = False, **options: Any
) -> Reply:
    """Read the picture that a request sends, and have a worker answer it."""
    content_type = request.headers.get("content-type", "")
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise Problem(
            "encoded-body",
            f"The body has Content-Encoding {encoding[:40]!r}; here bodies are not inflated."
            " Send the picture file's own bytes.",
            {"Accept-Encoding": "identity"},
        )
    limit: int = request.app.state.settings.max_upload_bytes
    allowance = FORM_ALLOWANCE_BYTES if content_type.lower().startswith("multipart/") else 0
    return await work_on_body(
        request, kind, limit, allowance, quick=quick, content_type=content_type, **options
    )


async def work_on_body(
    request: Request,
    kind: str,
    limit: int,
    allowance: int = 0,
    *,
    quick: bool = False,
    **options: Any,
) -> Reply:
    """Read a body of at most `limit` bytes and so many more, and have a worker answer it."""
    queue: Queue = request.app.state.queue
    seconds: float = request.app.state.settings.upload_seconds
    with queue.enter() as room:
        body = await read_body(request, room, most=limit + allowance, limit=limit, seconds=seconds)
        return await work(request, kind, body, quick=quick, **options)
