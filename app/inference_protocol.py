"""/v2: the Open Inference Protocol, which model servers' clients speak, for the one model here.

The model is called `cat` whatever its artifact is named, so that clients need no change with it;
its version is the artifact's. A request brings one of three inputs and may have many pictures:
`image`, encoded pictures, which are read exactly as /predict reads them; `pixels`, what reading
one gives; and `vector`, what the network gets. One picture that is refused refuses the request:
the protocol has no errors for single rows.
"""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app import HEADER_LENGTH, MAX_PICTURES, MODEL, __version__
from app.capacity import Capacity
from app.errors import Problem
from app.routes import check_ready, work_on_body
from app.settings import Settings

# For a request's JSON, on top of the pictures themselves, which base64 makes a third larger.
JSON_ALLOWANCE_BYTES = 64 * 2**10
CURRENT = f"/v2/models/{MODEL}"
VERSION = f"{CURRENT}/versions/{{version}}"

router = APIRouter(tags=["Open Inference Protocol"])


def body_limit(max_upload_bytes: int) -> int:
    """How many bytes a request may have, compressed or not, where there is memory for them."""
    return max_upload_bytes * 4 // 3 + JSON_ALLOWANCE_BYTES


def _most_bytes(request: Request) -> int:
    settings: Settings = request.app.state.settings
    capacity: Capacity = request.app.state.capacity
    return min(body_limit(settings.max_upload_bytes), capacity.largest_upload_bytes)


def check_version(request: Request) -> None:
    """Raise the Problem not-found where the address has another version than the one served."""
    served = request.app.state.model["version"]
    version = request.path_params.get("version", served)
    if version != served:
        raise Problem(
            "not-found",
            f"The model {MODEL} has no version {version[:40]!r}; it has {served!r}. Leave the "
            "version out to use the current one.",
        )


# The protocol has an OpenAPI document of its own: ours names the addresses, without the messages.
@router.get("/v2/", include_in_schema=False)
@router.get("/v2")
async def v2_server() -> dict[str, str | list[str]]:
    return {"name": "cat-or-not", "version": __version__, "extensions": ["binary_tensor_data"]}


@router.get("/v2/health/live")
async def v2_live() -> dict[str, bool]:
    return {"live": True}


@router.get("/v2/health/ready")
async def v2_ready(request: Request) -> dict[str, bool]:
    check_ready(request, ready=False, live=True)
    return {"live": True, "ready": True}


@router.get(f"{VERSION}/ready", include_in_schema=False)
@router.get(f"{CURRENT}/ready")
async def v2_model_ready(request: Request) -> dict[str, str | bool]:
    check_version(request)
    check_ready(request, ready=False, name=MODEL)
    return {"name": MODEL, "ready": True}


@router.get(VERSION, include_in_schema=False)
@router.get(CURRENT)
async def v2_model(request: Request) -> dict[str, Any]:
    check_version(request)
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
            "max_request_bytes": _most_bytes(request),
            "artifact": model["name"],
            "threshold": settings.threshold or model["threshold"],
        },
    }


@router.post(f"{VERSION}/infer", include_in_schema=False)
@router.post(f"{CURRENT}/infer", response_class=Response)
async def v2_infer(request: Request) -> Response:
    """Classify the pictures of one input: `image`, `pixels` or `vector`.

    The body is JSON, or JSON followed by binary tensors. The header Inference-Header-Content-Length
    then gives the length of the JSON; 0 means that the body is one picture file. The service
    accepts the Content-Encodings gzip and deflate, and sends answers uncompressed.
    """
    check_version(request)
    most = _most_bytes(request)
    reply = await work_on_body(
        request,
        "infer",
        most,
        header_length=request.headers.get(HEADER_LENGTH),
        encoding=request.headers.get("content-encoding", "").strip().lower(),
        max_body_bytes=most,
    )
    return Response(reply.body, headers=reply.head["headers"])
