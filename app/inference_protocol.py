"""/v2: the Open Inference Protocol, which model servers' clients speak, for the one model here.

The model is called `cat` whatever its artifact is named, so that clients need no change with it;
its version is the artifact's. A request brings one of three inputs and may have many pictures:
`image`, encoded pictures, which are read exactly as /predict reads them; `pixels`, what reading
one gives; and `vector`, what the network gets. One picture that is refused refuses the request:
the protocol has no errors for single rows.
"""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Request
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


async def check_version(
    request: Request,
    version: Annotated[str, Path(description="The current version, as in the model's metadata.")],
) -> None:
    """Raise the Problem not-found for another version than the one served."""
    served = request.app.state.model["version"]
    if version != served:
        raise Problem(
            "not-found",
            f"The model {MODEL} has no version {version[:40]!r}; it has {served!r}. Leave the "
            "version out to use the current one.",
        )


_problems = partial(errors.responses, media_type="application/json")

# The protocol has the shapes of the messages, and the model's metadata its tensors: an example
# says enough. Requests are no parameter of a function: binary tensors follow the JSON.
IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["a picture in base64"]}
JSON: dict[str, Any] = {"schema": {"type": "object"}}
BINARY = {"schema": {"type": "string", "format": "binary"}}
INFER = {
    "required": True,
    "content": {
        "application/json": JSON | {"example": {"inputs": [IMAGE]}},
        "application/octet-stream": BINARY,
    },
}
INFER_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The pictures were classified. Outputs requested in binary follow the JSON.",
        "content": {"application/json": JSON, "application/octet-stream": BINARY},
    },
    **_problems("invalid-inference", "unauthorized", "not-found", *UPLOAD_PROBLEMS),
}

router = APIRouter(tags=["Open Inference Protocol"])


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

    return {
        "name": MODEL,
        "versions": [model["version"]],
        "platform": "numpy",
        "inputs": model["inputs"],
        "outputs": model["outputs"],
        "parameters": {
            "inputs_a_request": 1,
            "max_pictures": MAX_PICTURES,
            "max_request_bytes": body_limit(settings.max_upload_bytes),
            "artifact": model["name"],
            "threshold": settings.threshold or model["threshold"],
        },
    }


async def infer(
    request: Request,
    header_length: Annotated[
        str | None,
        Header(
            alias=HEADER_LENGTH,
            description="The length of the JSON before the binary tensors, in bytes; 0 if the body "
            "is one picture.",
        ),
    ] = None,
) -> Response:
    """Classify the pictures of one input: `image`, `pixels` or `vector`.

    The body is JSON, or JSON followed by binary tensors. The header Inference-Header-Content-Length
    then gives the length of the JSON; 0 means that the body is one picture file. The service
    accepts the Content-Encodings gzip and deflate, and sends answers uncompressed.
    """
    most = body_limit(request.app.state.settings.max_upload_bytes)
    reply = await work_on_body(
        request,
        "infer",
        most,
        header_length=header_length,
        encoding=request.headers.get("content-encoding", "").strip().lower(),
        max_body_bytes=most,
    )
    return Response(reply.body, headers=reply.head["headers"])


def _add_model_routes(path: str, end: str, dependencies: list[Any]) -> None:
    """The addresses of the model; the version may be named or left out."""
    add = partial(router.add_api_route, dependencies=dependencies)
    add(
        path,
        model_metadata,
        operation_id=f"v2_model{end}",
        summary="Describe the model: its version, inputs and outputs",
        responses=_problems("unauthorized", "not-found"),
    )
    add(
        f"{path}/ready",
        model_ready,
        operation_id=f"v2_model{end}_ready",
        summary="Say that the model is ready",
        responses=_problems("unauthorized", "not-found", "not-ready"),
    )
    add(
        f"{path}/infer",
        infer,
        methods=["POST"],
        operation_id=f"v2_infer{end}",
        response_class=Response,
        responses=INFER_RESPONSES,
        openapi_extra={"requestBody": INFER},
        summary="Classify pictures",
    )


_add_model_routes(f"/v2/models/{MODEL}", "", [])
_add_model_routes(f"/v2/models/{MODEL}/versions/{{version}}", "_version", [Depends(check_version)])
