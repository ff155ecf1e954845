"""/v2: the Open Inference Protocol, which model servers' clients speak, for the one model here.

The model is called `cat` whatever its artifact is named, so that clients need no change with it;
its version is the artifact's. A request brings one of three inputs and may have many pictures:
`image`, encoded pictures, which are read exactly as /predict reads them; `pixels`, what reading
one gives; and `vector`, what the network gets. One picture that is refused refuses the request:
the protocol has no errors for single rows.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from app import errors
from app.answers import (
    InferAnswer,
    InferRequest,
    ModelMetadataAnswer,
    ModelReadyAnswer,
    ServerAnswer,
    ServerLiveAnswer,
    ServerReadyAnswer,
    TensorAnswer,
)
from app.errors import Problem
from app.inference_schema import HEADER_LENGTH, MAX_PICTURES, MODEL, OUTPUTS, Spec, inputs
from app.middleware import Facts
from app.queue import Queue
from app.routes import UPLOAD_PROBLEMS, check_ready
from app.settings import Settings
from app.uploads import read_body

UNVERSIONED = f"/v2/models/{MODEL}"
VERSIONED = UNVERSIONED + "/versions/{version}"
# For a request's JSON, on top of the pictures themselves, which base64 makes a third larger.
JSON_ALLOWANCE_BYTES = 64 * 2**10

router = APIRouter(tags=["Open Inference Protocol"])


def body_limit(max_upload_bytes: int) -> int:
    """How many bytes a request may have, compressed or not."""
    return max_upload_bytes * 4 // 3 + JSON_ALLOWANCE_BYTES


async def check_version(request: Request) -> None:
    """Raise the Problem not-found where the path names another version than the one served."""
    served = request.app.state.model["version"]
    version = request.path_params.get("version", served)
    if version != served:
        raise Problem(
            "not-found",
            f"There is no version {version[:40]!r} of the model {MODEL}; the one here is"
            f" {served!r}. Leave the version out for whichever is served.",
        )


Served = Annotated[None, Depends(check_version)]


def _problems(*slugs: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's entries for problems as they are sent here: plain JSON with `error`."""
    documented = errors.responses(*slugs)
    for entry in documented.values():
        media = entry["content"].pop(errors.MEDIA_TYPE)
        for example in media["examples"].values():
            example["value"] = {"error": example["value"]["detail"], **example["value"]}
        named = {"required": ["error"], "properties": {"error": {"type": "string"}}}
        media["schema"] = {"allOf": [media["schema"], named]}
        entry["content"]["application/json"] = media
    return documented


# Requests are no parameter of a function: clients leave out the content type, and binary tensors
# follow the JSON. So the OpenAPI document is told of them here.
SCHEMAS = models_json_schema(
    [(InferRequest, "validation")], ref_template="#/components/schemas/{model}"
)[1]["$defs"]
BINARY = {"schema": {"type": "string", "format": "binary"}}
INFER = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}},
            "application/octet-stream": BINARY,
        },
    }
}
HEADER = {
    "name": HEADER_LENGTH,
    "in": "header",
    "description": "The bytes of JSON before binary tensors; 0: the body is one picture.",
    "schema": {"type": "integer", "minimum": 0},
}
VERSION = {
    "name": "version",
    "in": "path",
    "required": True,
    "description": "The version that is served, as the model's metadata have it.",
    "schema": {"type": "string"},
}
INFER_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": InferAnswer,
        "description": "The pictures were classified. Where an output was asked for in binary, its"
        " bytes follow the JSON.",
        "content": {"application/octet-stream": BINARY},
    },
    **_problems("invalid-inference", "unauthorized", "not-found", "empty", *UPLOAD_PROBLEMS[1:]),
}


@router.get(
    "/v2/",
    operation_id="v2_server_slash",
    summary="Name the server and its extensions",
    responses=_problems("unauthorized"),
    include_in_schema=False,
)
@router.get(
    "/v2",
    operation_id="v2_server",
    summary="Name the server and its extensions",
    responses=_problems("unauthorized"),
)
async def server_metadata(request: Request) -> ServerAnswer:
    return ServerAnswer(
        name="cat-or-not", version=request.app.version, extensions=["binary_tensor_data"]
    )


@router.get("/v2/health/live", operation_id="v2_live", summary="Say that the process answers")
async def live() -> ServerLiveAnswer:
    return ServerLiveAnswer(live=True)


@router.get(
    "/v2/health/ready",
    operation_id="v2_ready",
    summary="Say that the service takes requests",
    responses=_problems("not-ready"),
)
async def ready(request: Request) -> ServerReadyAnswer:
    check_ready(request, ready=False, live=True)
    return ServerReadyAnswer(live=True, ready=True)


@router.get(
    f"{VERSIONED}/ready",
    operation_id="v2_model_version_ready",
    summary="Say that this version of the model is ready",
    responses=_problems("unauthorized", "not-found", "not-ready"),
    openapi_extra={"parameters": [VERSION]},
)
@router.get(
    f"{UNVERSIONED}/ready",
    operation_id="v2_model_ready",
    summary="Say that the model is ready",
    responses=_problems("unauthorized", "not-ready"),
)
async def model_ready(request: Request, _: Served) -> ModelReadyAnswer:
    check_ready(request, ready=False, name=MODEL)
    return ModelReadyAnswer(name=MODEL, ready=True)


@router.get(
    VERSIONED,
    operation_id="v2_model_version",
    summary="Describe this version of the model",
    responses=_problems("unauthorized", "not-found"),
    openapi_extra={"parameters": [VERSION]},
)
@router.get(
    UNVERSIONED,
    operation_id="v2_model",
    summary="Describe the model: its version, inputs and outputs",
    responses=_problems("unauthorized"),
)
async def model_metadata(request: Request, _: Served) -> ModelMetadataAnswer:
    model = request.app.state.model
    first, second = model["class_names"]
    meaning = {
        "image": "picture files, JPEG, PNG and others; in JSON as base64",
        "pixels": "upright RGB pictures, squeezed to this size: one view of each",
        "vector": "pixels in that order, divided by 255: from 0 to 1",
        "cat_probability": f"of the first class, {first}",
        "label": f"{first} from the threshold on, else {second}",
    }

    def answer(spec: Spec) -> TensorAnswer:
        return TensorAnswer(
            name=spec.name,
            datatype=spec.datatype,
            shape=list(spec.shape),
            parameters={"description": meaning[spec.name]},
        )

    settings: Settings = request.app.state.settings
    return ModelMetadataAnswer(
        name=MODEL,
        versions=[model["version"]],
        platform="numpy",
        inputs=list(map(answer, inputs(model["side"]))),
        outputs=list(map(answer, OUTPUTS)),
        parameters={
            "inputs_a_request": 1,
            "max_pictures": MAX_PICTURES,
            "max_request_bytes": body_limit(settings.max_upload_bytes),
            "artifact": model["name"],
            "threshold": settings.threshold or model["threshold"],
        },
    )


@router.post(
    f"{VERSIONED}/infer",
    operation_id="v2_infer_version",
    summary="Classify pictures with this version of the model",
    response_class=Response,
    responses=INFER_RESPONSES,
    openapi_extra={**INFER, "parameters": [HEADER, VERSION]},
)
@router.post(
    f"{UNVERSIONED}/infer",
    operation_id="v2_infer",
    summary="Classify pictures",
    response_class=Response,
    responses=INFER_RESPONSES,
    openapi_extra={**INFER, "parameters": [HEADER]},
)
async def infer(request: Request, _: Served) -> Response:
    """Classify the pictures of one input: `image`, `pixels` or `vector`.

    The body is JSON, or JSON and then tensors as bytes where the header
    Inference-Header-Content-Length says how long the JSON is; 0 means that the body is one picture
    file and nothing else. Content-Encoding gzip and deflate are undone. Answers are not compressed.
    """
    settings: Settings = request.app.state.settings
    queue: Queue = request.app.state.queue
    most = body_limit(settings.max_upload_bytes)
    with queue.enter() as room:
        body = await read_body(request, room, most, most)
        head = {
            "kind": "infer",
            "header_length": request.headers.get(HEADER_LENGTH),
            "encoding": request.headers.get("content-encoding", "").strip().lower(),
            "threshold": settings.threshold,
            "views": settings.views,
            "max_pixels": settings.max_pixels,
            "max_bytes": settings.max_upload_bytes,
            "max_body_bytes": most,
        }
        facts: Facts = request.scope["facts"]
        facts.model_version = request.app.state.model["version"]
        reply = await queue.work(request, head, body)
    return Response(reply.body, headers=reply.head["headers"])
