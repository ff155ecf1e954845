"""The addresses of the service, beside the shapes of their answers."""

import asyncio
from concurrent.futures import Executor
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field

from app import problems
from app.uploads import Upload
from model.classifier import Classifier
from model.preprocessing import Limits

router = APIRouter()


async def get_classifier(request: Request) -> Classifier:
    classifier: Classifier = request.app.state.classifier
    return classifier


async def get_limits(request: Request) -> Limits:
    return Limits(max_pixels=request.app.state.settings.max_pixels)


async def get_decoders(request: Request) -> Executor:
    decoders: Executor = request.app.state.decoders
    return decoders


ServedClassifier = Annotated[Classifier, Depends(get_classifier)]
PictureLimits = Annotated[Limits, Depends(get_limits)]
Decoders = Annotated[Executor, Depends(get_decoders)]


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
    threshold: float = Field(ge=0, le=1)
    model: ModelName
    warnings: list[str] = Field(
        description="What was done to the picture that its owner may not expect."
    )


class HealthAnswer(BaseModel):
    status: str
    model: ModelName


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


@router.post(
    "/predict",
    operation_id="predict",
    summary="Say whether a picture shows a cat",
    response_description="The picture was classified.",
    openapi_extra={"requestBody": PICTURE_BODY},
    responses=problems.responses(
        "malformed-form",
        "too-large",
        "not-a-picture",
        "format-not-allowed",
        "encoded-body",
        "empty",
        "missing-file",
        "several-files",
        "damaged",
        "too-many-pixels",
        "stopping",
    ),
)
async def predict(
    picture: Upload, classifier: ServedClassifier, limits: PictureLimits, decoders: Decoders
) -> PredictionAnswer:
    """Send the picture as the request's body, or as the field `file` of a form."""
    # Decoding takes most of the time, and would keep the event loop from every other client.
    predict_it = partial(classifier.predict, picture, limits)
    prediction = await asyncio.get_running_loop().run_in_executor(decoders, predict_it)
    return PredictionAnswer(
        cat_probability=prediction.cat_probability,
        label=prediction.label,
        threshold=classifier.threshold,
        model=ModelName.of(classifier),
        warnings=list(prediction.warnings),
    )


@router.get(
    "/health",
    operation_id="health",
    summary="Say that the service is ready, and with which model",
    response_description="The service is ready.",
)
async def health(classifier: ServedClassifier) -> HealthAnswer:
    return HealthAnswer(status="ready", model=ModelName.of(classifier))


@router.get(problems.PAGE, include_in_schema=False)
async def problems_page() -> HTMLResponse:
    return HTMLResponse(problems.page())
