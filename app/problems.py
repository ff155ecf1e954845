"""The service's error answers, RFC 9457 (application/problem+json).

`KINDS` is the one table of them: the answers, the OpenAPI document and the page at /problems,
which an answer's `type` leads to, are made from it.
"""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.observation import current_facts
from model.preprocessing import DEFAULT_LIMITS, InvalidImage, Reason

MEDIA_TYPE = "application/problem+json"
PAGE = "/problems"


@dataclass(frozen=True)
class Kind:
    """One kind of problem: what stays the same from one occurrence to the next."""

    slug: str
    status: int
    title: str
    remedy: str

    @property
    def type(self) -> str:
        """The URI reference that names the kind for programs, and leads people to the page."""
        return f"{PAGE}#{self.slug}"


KINDS: dict[str, Kind] = {
    kind.slug: kind
    for kind in (
        Kind(
            "bad-request",
            400,
            "The request is not valid HTTP",
            "Send HTTP/1.1 as any HTTP client does.",
        ),
        Kind(
            "origin-not-allowed",
            400,
            "Web pages of this origin may not send this request",
            "The operator sets the origins with CAT_CORS_ORIGINS; their pages may use the methods"
            " GET, HEAD and POST.",
        ),
        Kind(
            "malformed-form",
            400,
            "The form cannot be read",
            "Send a complete multipart/form-data body with its boundary in Content-Type; any HTTP"
            " client's form upload does. Or send the picture itself as the body.",
        ),
        Kind(
            "invalid-inference",
            400,
            "The inference request is not valid",
            "Correct what the detail names; GET /v2/models/cat shows the inputs and outputs, and"
            " how many pictures a request may have.",
        ),
        Kind(
            "unauthorized",
            401,
            "The request brings no valid key",
            "Send one of the keys that the operator has set with CAT_API_KEYS, in the header"
            " X-API-Key or as Authorization: Bearer.",
        ),
        Kind(
            "not-found",
            404,
            "There is nothing at this address",
            "POST pictures to /predict; /docs lists the other addresses.",
        ),
        Kind(
            "method-not-allowed",
            405,
            "This address does not answer to this method",
            "Use one of the methods in the answer's Allow header.",
        ),
        Kind(
            "slow-upload",
            408,
            "The upload takes too long",
            "Send the picture faster, or a smaller one. The operator sets the time with"
            " CAT_UPLOAD_SECONDS.",
        ),
        Kind(
            "too-large",
            413,
            "The upload has too many bytes",
            "Scale the picture down or save it with stronger compression: the model looks at"
            " 64×64 pixels. The answer's limit_bytes says how much is accepted; the operator sets"
            " it with CAT_MAX_UPLOAD_BYTES.",
        ),
        Kind(
            Reason.NOT_A_PICTURE,
            415,
            "The upload is not a picture",
            "Send the bytes of a picture file. What counts is what the bytes are, not the file's"
            " name or the content type.",
        ),
        Kind(
            Reason.FORMAT_NOT_ALLOWED,
            415,
            "The picture's format is not accepted",
            "Convert the picture to JPEG or PNG.",
        ),
        Kind(
            "encoded-body",
            415,
            "The body is compressed",
            "Send the picture without Content-Encoding: picture files are compressed already.",
        ),
        Kind(
            Reason.EMPTY,
            422,
            "The upload is empty",
            "Send the picture's bytes; with curl: -F file=@cat.jpg or --data-binary @cat.jpg.",
        ),
        Kind(
            "missing-file",
            422,
            "The form has no field 'file'",
            "Name the form's field 'file': curl -F file=@cat.jpg.",
        ),
        Kind(
            "several-files",
            422,
            "The form has more than one picture",
            "Send one request for each picture.",
        ),
        Kind(
            Reason.DAMAGED,
            422,
            "The picture is damaged or cut off",
            "Check that the file opens elsewhere and was sent whole; save it anew.",
        ),
        Kind(
            Reason.TOO_MANY_PIXELS,
            422,
            "The picture has too many pixels",
            "Scale the picture down: the model looks at 64×64 pixels. The answer's limit_pixels"
            " says how many are accepted, which the operator sets with CAT_MAX_PIXELS, and"
            " limit_side how many a side.",
        ),
        Kind(
            "invalid-request",
            422,
            "The request's values are not valid",
            "Correct the values that the detail names.",
        ),
        Kind(
            "internal-error",
            500,
            "The service failed",
            "This is a fault of the service, not of the request; its log says more.",
        ),
        Kind(
            "busy",
            503,
            "The service has all the work that it takes on at once",
            "Send the request again after the seconds in the answer's Retry-After header. The"
            " operator sets how many may wait with CAT_QUEUE.",
        ),
        Kind(
            "deadline-passed",
            503,
            "The answer would come too late",
            "The service is overloaded: send the request again after the seconds in the answer's"
            " Retry-After header. The operator sets the time with CAT_DEADLINE_SECONDS.",
        ),
        Kind(
            "not-ready",
            503,
            "The service takes no more requests",
            "It is about to stop: send requests to another instance.",
        ),
        Kind(
            "stopping",
            503,
            "The service is stopping",
            "Send the request again after the seconds in the answer's Retry-After header.",
        ),
    )
}


class Problem(Exception):
    """Ends a request with the problem of that slug; `members` are added to the answer."""

    def __init__(
        self, slug: str, detail: str, headers: Mapping[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(detail)
        self.kind = KINDS[slug]
        self.detail = detail
        self.headers = headers
        self.members = members


class ProblemResponse(JSONResponse):
    """A problem. Clients of /v2 read only plain JSON, and of it the sentence in `error`."""

    media_type = MEDIA_TYPE

    def __init__(
        self, content: dict[str, Any], status: int, headers: Mapping[str, str] | None
    ) -> None:
        facts = current_facts()
        facts.problem = content["type"].rpartition("#")[2]
        self._content = {**content, "request_id": facts.request_id}
        super().__init__(self._content, status, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if f"{scope['path']}/".startswith("/v2/"):
            self.body = self.render({"error": self._content["detail"], **self._content})
            self.headers["Content-Type"] = "application/json"
            self.headers["Content-Length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


def answer(problem: Problem) -> Response:
    """The problem as an HTTP response."""
    kind = problem.kind
    content = {
        "type": kind.type,
        "title": kind.title,
        "status": kind.status,
        "detail": problem.detail,
        **problem.members,
    }
    return ProblemResponse(content, kind.status, problem.headers)


def install(app: FastAPI) -> None:
    """Make every error of the application a problem."""

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        return answer(error)

    @app.exception_handler(InvalidImage)
    async def invalid_image(request: Request, error: InvalidImage) -> Response:
        members = {}
        if error.reason is Reason.TOO_MANY_PIXELS:
            members["limit_pixels"] = request.app.state.settings.max_pixels
            members["limit_side"] = DEFAULT_LIMITS.max_side
        return answer(Problem(error.reason, str(error), **members))

    @app.exception_handler(RequestValidationError)
    async def invalid_request(_: Request, error: RequestValidationError) -> Response:
        # Only where and why: what was sent stays out of the answer.
        found = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return answer(Problem("invalid-request", "; ".join(found)))

    @app.exception_handler(HTTPException)
    async def http_exception(request: Request, error: HTTPException) -> Response:
        from app.inference_protocol import MODEL

        path = request.url.path[:100]
        if error.status_code == HTTPStatus.NOT_FOUND:
            detail = f"There is nothing at {path}. POST a picture to /predict, or read /docs."
            model = path.partition("/v2/models/")[2].partition("/")[0]
            if model not in ("", MODEL):
                detail = f"There is no model {model!r}; there is {MODEL}."
            return answer(Problem("not-found", detail))
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and error.headers:
            allowed = error.headers["Allow"]
            detail = f"{path} answers to {allowed}, not to {request.method[:20]}."
            return answer(Problem("method-not-allowed", detail, error.headers))
        # RFC 9457: about:blank means no more than the status itself.
        content = {
            "type": "about:blank",
            "title": HTTPStatus(error.status_code).phrase,
            "status": error.status_code,
            "detail": error.detail,
        }
        return ProblemResponse(content, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def client_gone(_: Request, __: ClientDisconnect) -> Response:
        # Nobody reads this; without it the log would show a client's leaving as our error.
        return Response(status_code=HTTPStatus.BAD_REQUEST)


SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "Problem",
    "description": "What went wrong, as RFC 9457 has it. Kinds may add members of their own.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference", "description": "Names the kind."},
        "title": {"type": "string", "description": "The kind in words."},
        "status": {"type": "integer", "description": "The HTTP status."},
        "detail": {"type": "string", "description": "What arrived, what the limit is, what to do."},
        "request_id": {"type": "string", "description": "The answer's X-Request-ID."},
        "limit_bytes": {"type": "integer", "description": "With too-large: the upload limit."},
        "limit_pixels": {"type": "integer", "description": "With too-many-pixels: the limit."},
        "limit_side": {"type": "integer", "description": "With too-many-pixels: the limit a side."},
    },
}

# Headers of answers with these statuses; with any, the request's id.
REQUEST_ID = {
    "X-Request-ID": {
        "description": "The request's own, or a new one.",
        "required": True,
        "schema": {"type": "string"},
    }
}
HEADERS: dict[int, dict[str, Any]] = {
    401: {
        "WWW-Authenticate": {
            "description": "How to send a key.",
            "required": True,
            "schema": {"type": "string"},
        }
    },
    503: {
        "Retry-After": {
            "description": "Seconds until it is worth trying again.",
            "required": True,
            "schema": {"type": "integer", "minimum": 1},
        }
    },
}


def responses(*slugs: str) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries for an operation that may answer with these kinds."""
    documented: dict[int | str, dict[str, Any]] = {}
    for kind in map(KINDS.__getitem__, slugs):
        media = {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}
        headers = REQUEST_ID | HEADERS.get(kind.status, {})
        empty = {"description": "", "headers": headers, "content": {MEDIA_TYPE: media}}
        entry = documented.setdefault(kind.status, empty)
        line = f"`{kind.type}`: {kind.title}."
        entry["description"] = f"{entry['description']}\n\n{line}".strip()
        entry["content"][MEDIA_TYPE]["examples"][kind.slug] = {
            "value": {
                "type": kind.type,
                "title": kind.title,
                "status": kind.status,
                "detail": f"What arrived. {kind.remedy}",
            }
        }
    return documented


def page() -> str:
    """All kinds as a page for people: where an answer's `type` leads."""
    rows = "".join(
        f'<dt id="{kind.slug}"><strong>{html.escape(kind.title)}</strong>'
        f" <code>{kind.status} {kind.type}</code></dt><dd>{html.escape(kind.remedy)}</dd>\n"
        for kind in KINDS.values()
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        "<title>Problems and their remedies</title></head>\n"
        f"<body><h1>Problems and their remedies</h1>\n<dl>\n{rows}</dl></body></html>\n"
    )
