"""The addresses of the service, beside the shapes of their answers."""

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from app import problems
from app.access import own_path
from app.observation import current_facts
from app.problems import Problem
from app.uploads import read_upload
from model.classifier import Classifier
from model.preprocessing import InvalidImage

router = APIRouter()

# Pictures of up to so many bytes are decoded in a moment, and may be decoded with others before
# the network answers; larger ones would keep their company waiting.
QUICK_BYTES = 2**16


class ModelName(BaseModel):
    name: str
    version: str = Field(description="12 hex digits that change with whatever decides the answers.")

    @classmethod
    def of(cls, classifier: Classifier) -> "ModelName":
        return cls(name=classifier.name, version=classifier.version)


class PredictionAnswer(BaseModel):
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


class HealthAnswer(BaseModel):
    status: str
    model: ModelName


class LiveAnswer(BaseModel):
    status: str


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
    "busy",
    "deadline-passed",
    "stopping",
)


@router.post(
    "/predict",
    operation_id="predict",
    response_model=PredictionAnswer,
    summary="Say whether a picture shows a cat",
    response_description="The picture was classified.",
    openapi_extra={"requestBody": PICTURE_BODY},
    responses=problems.responses(*UPLOAD_PROBLEMS),
)
async def predict(request: Request) -> Response:
    """Send the picture as the request's body, or as the field `file` of a form."""
    state = request.app.state
    classifier: Classifier = state.classifier  # once: a reload may change it meanwhile
    facts = current_facts()
    facts.model_version = classifier.version
    with state.admission.enter(request) as place:
        picture = await read_upload(request, place)
        # Decoding takes most of the time, and would keep the event loop from every other client.
        if len(picture) > QUICK_BYTES:
            prediction = await place.run(classifier.predict, picture, state.limits)
        else:
            read = partial(classifier.read, picture, state.limits)
            prediction = await place.run_together(read, classifier.answers)
    facts.answered(prediction, classifier.usual)
    answer = PredictionAnswer(
        cat_probability=prediction.cat_probability,
        label=prediction.label,
        words=prediction.words,
        threshold=classifier.threshold,
        model=ModelName.of(classifier),
        warnings=list(prediction.warnings),
    )
    return Response(answer.model_dump_json(), media_type="application/json")


class Direct:
    """Answers POST /predict without FastAPI's routing, reading of parameters and checking of
    answers, on which a small picture's request would spend an eighth of its time. The innermost
    wrapper: the router's own route documents the address and answers its other methods."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or own_path(scope) != PREDICT.path:
            await self.app(scope, receive, send)
            return
        scope["route"] = PREDICT  # for the log and the metrics
        request = Request(scope, receive)
        try:
            response = await predict(request)
        except (Problem, InvalidImage, ClientDisconnect) as error:
            response = await request.app.exception_handlers[type(error)](request, error)
            error.__traceback__ = None  # it leads to the picture
        await response(scope, receive, send)


PREDICT = Route("/predict", predict, methods=["POST"])


@router.get(
    "/health",
    operation_id="health",
    summary="Say that the service is ready, and with which model",
    response_description="The service is ready.",
    responses=problems.responses("not-ready"),
)
@router.get(
    "/health/ready",
    operation_id="ready",
    summary="Say that the service takes requests; while it stops, it does not",
    response_description="The service is ready.",
    responses=problems.responses("not-ready"),
)
async def health(request: Request) -> HealthAnswer:
    check_ready(request)
    return HealthAnswer(status="ready", model=ModelName.of(request.app.state.classifier))


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


@router.get(problems.PAGE, include_in_schema=False)
async def problems_page() -> HTMLResponse:
    return HTMLResponse(problems.page())
