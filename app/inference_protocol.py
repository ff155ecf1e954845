"""/v2: the Open Inference Protocol, which model servers' clients speak, for the one model here.

The model is called `cat` whatever its artifact is named, so that clients need no change with it;
its version is the artifact's. A request brings one of three inputs and may have many pictures:
`image`, encoded pictures, which are read exactly as /predict reads them; `pixels`, what reading
one gives; and `vector`, what the network gets. One picture that is refused refuses the request:
the protocol has no errors for single rows.
"""

from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app import HEADER_LENGTH, MAX_PICTURES, MODEL, __version__, errors
from app.errors import Problem
from app.routes import UPLOAD_PROBLEMS, check_ready, work_on_body
from app.settings import Settings

# For a request's JSON, on top of the pictures themselves, which base64 makes a third larger.
JSON_ALLOWANCE_BYTES = 64 * 2**10


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


# The protocol has the shapes of the messages, and the model's metadata its tensors: examples say
# enough. Requests are no parameter of a function: binary tensors follow the JSON.
BINARY = {"schema": {"type": "string", "format": "binary"}}
IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["a picture in base64"]}
INFER = {
    "required": True,
    "content": {
        "application/json": {"schema": {"type": "object"}, "example": {"inputs": [IMAGE]}},
        "application/octet-stream": BINARY,
    },
}
ANSWER = {
    "model_name": MODEL,
    "model_version": "5d21ad618caf",
    "outputs": [
        {"name": "cat_probability", "datatype": "FP32", "shape": [1, 1], "data": [0.98]},
        {"name": "label", "datatype": "BYTES", "shape": [1, 1], "data": ["cat"]},
    ],
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
        "description": "The pictures were classified. Where an output was asked for in binary, its"
        " bytes follow the JSON.",
        "content": {
            "application/json": {"schema": {"type": "object"}, "example": ANSWER},
            "application/octet-stream": BINARY,
        },
    },
    **_problems("invalid-inference", "unauthorized", "not-found", *UPLOAD_PROBLEMS),
}

router = APIRouter(tags=["Open Inference Protocol"])
model_router = APIRouter(tags=router.tags, dependencies=[Depends(check_version)])


@router.get("/v2/", include_in_schema=False)
@router.get(
    "/v2", summary="Name the server and its extensions", responses=_problems("unauthorized")
)
async def v2_server() -> dict[str, str | list[str]]:
    return {"name": "cat-or-not", "version": __version__, "extensions": ["binary_tensor_data"]}


@router.get("/v2/health/live", summary="Say that the process answers")
async def v2_live() -> dict[str, bool]:
    return {"live": True}


@router.get(
    "/v2/health/ready",
    summary="Say that the service takes requests",
    responses=_problems("not-ready"),
)
async def v2_ready(request: Request) -> dict[str, bool]:
    check_ready(request, ready=False, live=True)
    return {"live": True, "ready": True}


async def model_ready(request: Request) -> dict[str, str | bool]:
    check_ready(request, ready=False, name=MODEL)
    return {"name": MODEL, "ready": True}


async def model_metadata(request: Request) -> dict[str, Any]:
    model = request.app.state.model
    settings: Settings = request.app.state.settings

    def described(tensors: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                **{name: each[name] for name in ("name", "datatype", "shape")},
                "parameters": {"description": each["meaning"]},
            }
            for each in tensors
        ]

    return {
        "name": MODEL,
        "versions": [model["version"]],
        "platform": "numpy",
        "inputs": described(model["inputs"]),
        "outputs": described(model["outputs"]),
        "parameters": {
            "inputs_a_request": 1,
            "max_pictures": MAX_PICTURES,
            "max_request_bytes": body_limit(settings.max_upload_bytes),
            "artifact": model["name"],
            "threshold": settings.threshold or model["threshold"],
        },
    }


async def infer(request: Request) -> Response:
    """Classify the pictures of one input: `image`, `pixels` or `vector`.

    The body is JSON, or JSON and then tensors as bytes where the header
    Inference-Header-Content-Length says how long the JSON is; 0 means that the body is one picture
    file and nothing else. Content-Encoding gzip and deflate are undone. Answers are not compressed.
    """
    most = body_limit(request.app.state.settings.max_upload_bytes)
    reply = await work_on_body(
        request,
        "infer",
        most,
        header_length=request.headers.get(HEADER_LENGTH),
        encoding=request.headers.get("content-encoding", "").strip().lower(),
        max_body_bytes=most,
    )
    return Response(reply.body, headers=reply.head["headers"])


def _add_model_routes(prefix: str, end: str, which: str, parameters: list[Any]) -> None:
    """The addresses of the model; the version may be named or left out."""
    add = model_router.add_api_route
    add(
        prefix,
        model_metadata,
        operation_id=f"v2_model{end}",
        summary=f"Describe {which}: its version, inputs and outputs",
        responses=_problems("unauthorized", "not-found"),
        openapi_extra={"parameters": parameters},
    )
    add(
        f"{prefix}/ready",
        model_ready,
        operation_id=f"v2_model{end}_ready",
        summary=f"Say that {which} is ready",
        responses=_problems("unauthorized", "not-found", "not-ready"),
        openapi_extra={"parameters": parameters},
    )
    add(
        f"{prefix}/infer",
        infer,
        methods=["POST"],
        operation_id=f"v2_infer{end}",
        summary=f"Classify pictures with {which}",
        response_class=Response,
        responses=INFER_RESPONSES,
        openapi_extra={"requestBody": INFER, "parameters": [HEADER, *parameters]},
    )


_add_model_routes(f"/v2/models/{MODEL}", "", "the model", [])
_add_model_routes(f"/v2/models/{MODEL}/versions/{{version}}", "_version", "this version", [VERSION])
router.include_router(model_router)
