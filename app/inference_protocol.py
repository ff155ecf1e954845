"""/v2: the Open Inference Protocol, which model servers' clients speak, for the one model here.

The model is called `cat` whatever its artifact is named, so that clients need no change with it;
its version is the artifact's. A request brings one of three inputs and may have many pictures:
`image`, encoded pictures, which are read exactly as /predict reads them; `pixels`, what reading
one gives; and `vector`, what the network gets. One picture that is refused refuses the request:
the protocol has no errors for single rows.
"""

from threading import Event
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from app import inference_document, tensors
from app.observation import Facts, current_facts
from app.problems import Problem
from app.routes import check_ready
from app.tensors import HEADER_LENGTH, MAX_PICTURES, Inference, Spec
from app.uploads import read_body
from model.classifier import Classifier
from model.preprocessing import InvalidImage, Limits, to_vector

MODEL = "cat"
UNVERSIONED = f"/v2/models/{MODEL}"
VERSIONED = UNVERSIONED + "/versions/{version}"
# For a request's JSON, on top of the pictures themselves, which base64 makes a third larger.
JSON_ALLOWANCE_BYTES = 64 * 2**10

router = APIRouter(tags=["Open Inference Protocol"])

OUTPUTS = (Spec("cat_probability", "FP32", (-1, 1)), Spec("label", "BYTES", (-1, 1)))


def inputs_of(classifier: Classifier) -> tuple[Spec, ...]:
    side = classifier.preprocessing.side
    return (
        Spec("image", "BYTES", (-1,)),
        Spec("pixels", "UINT8", (-1, side, side, 3)),
        Spec("vector", "FP32", (-1, side * side * 3)),
    )


def body_limit(max_upload_bytes: int) -> int:
    """How many bytes a request may have, compressed or not."""
    return max_upload_bytes * 4 // 3 + JSON_ALLOWANCE_BYTES


async def served(request: Request) -> Classifier:
    """The classifier, if it is of the version that the path names. Raises Problem: not-found."""
    classifier: Classifier = request.app.state.classifier
    version = request.path_params.get("version", classifier.version)
    if version != classifier.version:
        raise Problem(
            "not-found",
            f"There is no version {version[:40]!r} of the model {MODEL}; the one here is"
            f" {classifier.version!r}. Leave the version out for whichever is served.",
        )
    return classifier


Served = Annotated[Classifier, Depends(served)]


class ServerAnswer(BaseModel):
    name: str
    version: str
    extensions: list[str]


class LiveAnswer(BaseModel):
    live: bool


class ReadyAnswer(BaseModel):
    live: bool
    ready: bool


class ModelReadyAnswer(BaseModel):
    name: str
    ready: bool


class TensorAnswer(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1 for any number of pictures.")
    parameters: dict[str, str]


class ModelAnswer(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorAnswer] = Field(description="A request has exactly one of them.")
    outputs: list[TensorAnswer]
    parameters: dict[str, str | int | float]


@router.get(
    "/v2/",
    operation_id="v2_server_slash",
    summary="Name the server and its extensions",
    responses=inference_document.errors("unauthorized"),
    include_in_schema=False,
)
@router.get(
    "/v2",
    operation_id="v2_server",
    summary="Name the server and its extensions",
    responses=inference_document.errors("unauthorized"),
)
async def server_metadata(request: Request) -> ServerAnswer:
    return ServerAnswer(
        name="cat-or-not", version=request.app.version, extensions=["binary_tensor_data"]
    )


@router.get("/v2/health/live", operation_id="v2_live", summary="Say that the process answers")
async def live() -> LiveAnswer:
    return LiveAnswer(live=True)


@router.get(
    "/v2/health/ready",
    operation_id="v2_ready",
    summary="Say that the service takes requests",
    responses=inference_document.errors("not-ready"),
)
async def ready(request: Request) -> ReadyAnswer:
    check_ready(request, ready=False, live=True)
    return ReadyAnswer(live=True, ready=True)


@router.get(
    f"{VERSIONED}/ready",
    operation_id="v2_model_version_ready",
    summary="Say that this version of the model is ready",
    responses=inference_document.errors("unauthorized", "not-found", "not-ready"),
    openapi_extra=inference_document.VERSION,
)
@router.get(
    f"{UNVERSIONED}/ready",
    operation_id="v2_model_ready",
    summary="Say that the model is ready",
    responses=inference_document.errors("unauthorized", "not-ready"),
)
async def model_ready(request: Request, _: Served) -> ModelReadyAnswer:
    check_ready(request, ready=False, name=MODEL)
    return ModelReadyAnswer(name=MODEL, ready=True)


@router.get(
    VERSIONED,
    operation_id="v2_model_version",
    summary="Describe this version of the model",
    responses=inference_document.errors("unauthorized", "not-found"),
    openapi_extra=inference_document.VERSION,
)
@router.get(
    UNVERSIONED,
    operation_id="v2_model",
    summary="Describe the model: its version, inputs and outputs",
    responses=inference_document.errors("unauthorized"),
)
async def model_metadata(request: Request, classifier: Served) -> ModelAnswer:
    meaning = {
        "image": "picture files, JPEG, PNG and others; in JSON as base64",
        "pixels": "upright RGB pictures, squeezed to this size",
        "vector": "pixels in that order, divided by 255: from 0 to 1",
        "cat_probability": f"of the first class, {classifier.class_names[0]}",
        "label": f"{classifier.class_names[0]} from the threshold on,"
        f" else {classifier.class_names[1]}",
    }

    def answer(spec: Spec) -> TensorAnswer:
        return TensorAnswer(
            name=spec.name,
            datatype=spec.datatype,
            shape=list(spec.shape),
            parameters={"description": meaning[spec.name]},
        )

    return ModelAnswer(
        name=MODEL,
        versions=[classifier.version],
        platform="numpy",
        inputs=list(map(answer, inputs_of(classifier))),
        outputs=list(map(answer, OUTPUTS)),
        parameters={
            "inputs_a_request": 1,
            "max_pictures": MAX_PICTURES,
            "max_request_bytes": body_limit(request.app.state.settings.max_upload_bytes),
            "artifact": classifier.name,
            "threshold": classifier.threshold,
        },
    )


@router.post(
    f"{VERSIONED}/infer",
    operation_id="v2_infer_version",
    summary="Classify pictures with this version of the model",
    response_class=Response,
    responses=inference_document.inference_responses(),
    openapi_extra=inference_document.VERSIONED_INFER,
)
@router.post(
    f"{UNVERSIONED}/infer",
    operation_id="v2_infer",
    summary="Classify pictures",
    response_class=Response,
    responses=inference_document.inference_responses(),
    openapi_extra=inference_document.INFER,
)
async def infer(request: Request, classifier: Served) -> Response:
    """Classify the pictures of one input: `image`, `pixels` or `vector`.

    The body is JSON, or JSON and then tensors as bytes where the header
    Inference-Header-Content-Length says how long the JSON is; 0 means that the body is one picture
    file and nothing else. Content-Encoding gzip and deflate are undone. Answers are not compressed.
    """
    state = request.app.state
    facts = current_facts()
    facts.model_version = classifier.version
    work = _Work(
        classifier,
        facts,
        state.limits,
        state.settings.max_upload_bytes,
        request.headers.get(HEADER_LENGTH),
    )
    encoding = request.headers.get("content-encoding", "").strip().lower()
    with state.admission.enter(request) as place:
        body = await read_body(request, place, work.body_limit)
        work.body = await tensors.inflate(body, encoding, work.body_limit, place.arrived)
        del body
        try:
            content, headers = await place.run(work.answer)
        finally:
            work.abandoned.set()  # nobody waits any more: where pictures are left, leave them
    return Response(content, headers=headers)


class _Work:
    """What a decoder does for a request: everything that takes time, from reading its JSON on.

    The body is dropped once its tensor was taken out of it, so that a request never holds more
    than its body's bytes, but for what is reserved while JSON is read.
    """

    def __init__(
        self,
        classifier: Classifier,
        facts: Facts,
        limits: Limits,
        max_picture_bytes: int,
        header_length: str | None,
    ) -> None:
        self.body = b""
        self.abandoned = Event()
        self.body_limit = body_limit(max_picture_bytes)
        self._classifier, self._facts, self._limits = classifier, facts, limits
        self._max_picture_bytes = max_picture_bytes
        self._header_length = header_length

    def answer(self) -> tuple[bytes, dict[str, str]]:
        """The answer's body and headers. Raises Problem and InvalidImage."""
        classifier = self._classifier
        body, self.body = self.body, b""
        inference = tensors.read(
            body, self._header_length, inputs_of(classifier), OUTPUTS, self._limits.memory
        )
        del body
        probabilities = self._probabilities(inference)
        first, second = classifier.class_names
        labels = [first if p >= classifier.threshold else second for p in probabilities]
        self._facts.answers += zip(labels, probabilities, strict=True)
        results: dict[str, list[Any]] = {
            "cat_probability": probabilities,
            "label": [label.encode() for label in labels],
        }
        message = {"model_name": MODEL, "model_version": classifier.version}
        if inference.id is not None:
            message["id"] = inference.id
        return tensors.write(
            message, [(spec, results[spec.name], binary) for spec, binary in inference.outputs]
        )

    def _probabilities(self, inference: Inference) -> list[float]:
        data = inference.data
        if isinstance(data, list):
            return [self._of_picture(index, picture) for index, picture in enumerate(data)]
        if inference.input.datatype == "UINT8":
            for pixels in data:
                self._facts.saw(pixels, self._classifier.usual)
            data = to_vector(data)
        _check_range(data)
        probabilities: list[float] = self._classifier.probabilities(data).tolist()
        return probabilities

    def _of_picture(self, index: int, picture: bytes) -> float:
        if self.abandoned.is_set():
            raise TimeoutError
        if len(picture) > self._max_picture_bytes:
            raise Problem(
                "too-large",
                f"image[{index}]: It has {len(picture):,} bytes; a picture may have at most"
                f" {self._max_picture_bytes:,}. Scale it down or compress it more.",
                limit_bytes=self._max_picture_bytes,
            )
        try:
            prediction = self._classifier.predict(picture, self._limits)
        except InvalidImage as error:
            raise InvalidImage(error.reason, f"image[{index}]: {error}") from error
        self._facts.saw(prediction.picture.pixels, self._classifier.usual)
        return prediction.cat_probability


def _check_range(rows: Any) -> None:
    wrong = ~((rows >= 0) & (rows <= 1))  # also true for NaN
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise Problem(
            "invalid-inference",
            f"vector[{row}][{column}] is {rows[row, column]:g}, and must be from 0 to 1: pixels"
            " divided by 255. Send pixels as they are in the input `pixels`.",
        )
