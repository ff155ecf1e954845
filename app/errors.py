"""The service's errors, as RFC 9457 has them (application/problem+json).

`TYPES` is the one table of them: the answers, the OpenAPI document and the page at /problems,
which an answer's `type` leads to, are made from it. The front and its workers raise them alike.
"""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.formats import Reason

MEDIA_TYPE = "application/problem+json"
PAGE = "/problems"


@dataclass(frozen=True)
class ProblemType:
    """What stays the same from one occurrence of a problem to the next."""

    slug: str
    status: int
    title: str
    remedy: str

    @property
    def uri(self) -> str:
        """The URI reference that names it for programs, and leads people to the page."""
        return f"{PAGE}#{self.slug}"


TYPES: dict[str, ProblemType] = {
    each.slug: each
    for each in (
        ProblemType(
            "bad-request",
            400,
            "The request is not valid HTTP",
            "Send HTTP/1.1 as any HTTP client does.",
        ),
        ProblemType(
            "origin-not-allowed",
            400,
            "Web pages of this origin may not send this request",
            "The operator sets the origins with CAT_CORS_ORIGINS; their pages may use the methods"
            " GET, HEAD and POST.",
        ),
        ProblemType(
            "malformed-form",
            400,
            "The form cannot be read",
            "Send a complete multipart/form-data body with its boundary in Content-Type; any HTTP"
            " client's form upload does. Or send the picture itself as the body.",
        ),
        ProblemType(
            "invalid-inference",
            400,
            "The inference request is not valid",
            "Correct what the detail names; GET /v2/models/cat shows the inputs and outputs, and"
            " how many pictures a request may have.",
        ),
        ProblemType(
            "unauthorized",
            401,
            "The request brings no valid key",
            "Send one of the keys that the operator has set with CAT_API_KEYS, in the header"
            " X-API-Key or as Authorization: Bearer.",
        ),
        ProblemType(
            "not-found",
            404,
            "There is nothing at this address",
            "POST pictures to /predict; /docs lists the other addresses.",
        ),
        ProblemType(
            "method-not-allowed",
            405,
            "This address does not answer to this method",
            "Use one of the methods in the answer's Allow header.",
        ),
        ProblemType(
            "slow-upload",
            408,
            "The upload takes too long",
            "Send the picture faster, or a smaller one. The operator sets the time with"
            " CAT_UPLOAD_SECONDS.",
        ),
        ProblemType(
            "too-large",
            413,
            "The upload has too many bytes",
            "Scale the picture down or save it with stronger compression: the model looks at"
            " 64×64 pixels. The answer's limit_bytes says how much is accepted; the operator sets"
            " it with CAT_MAX_UPLOAD_BYTES.",
        ),
        ProblemType(
            Reason.NOT_A_PICTURE,
            415,
            "The upload is not a picture",
            "Send the bytes of a picture file. What counts is what the bytes are, not the file's"
            " name or the content type.",
        ),
        ProblemType(
            Reason.FORMAT_NOT_ALLOWED,
            415,
            "The picture's format is not accepted",
            "Convert the picture to JPEG or PNG.",
        ),
        ProblemType(
            "encoded-body",
            415,
            "The body is compressed",
            "Send the picture without Content-Encoding: picture files are compressed already.",
        ),
        ProblemType(
            Reason.EMPTY,
            422,
            "The upload is empty",
            "Send the picture's bytes; with curl: -F file=@cat.jpg or --data-binary @cat.jpg.",
        ),
        ProblemType(
            "missing-file",
            422,
            "The form has no field 'file'",
            "Name the form's field 'file': curl -F file=@cat.jpg.",
        ),
        ProblemType(
            "several-files",
            422,
            "The form has more than one picture",
            "Send one request for each picture.",
        ),
        ProblemType(
            Reason.DAMAGED,
            422,
            "The picture is damaged or cut off",
            "Check that the file opens elsewhere and was sent whole; save it anew.",
        ),
        ProblemType(
            Reason.TOO_MANY_PIXELS,
            422,
            "The picture has too many pixels, or takes too much memory",
            "Scale the picture down: the model looks at 64×64 pixels. The answer's limit_pixels"
            " says how many are accepted, which the operator sets with CAT_MAX_PIXELS, and"
            " limit_side how many a side.",
        ),
        ProblemType(
            "takes-too-long",
            422,
            "Working on the picture takes too much processor time",
            "Scale the picture down, or save it anew as an ordinary JPEG or PNG. The operator sets"
            " the time with CAT_PROCESSOR_SECONDS.",
        ),
        ProblemType(
            "crashes-decoder",
            422,
            "The picture crashes what decodes it",
            "Save the picture anew, with another program if need be: its file is broken.",
        ),
        ProblemType(
            "invalid-request",
            422,
            "The request's values are not valid",
            "Correct the values that the detail names.",
        ),
        ProblemType(
            "internal-error",
            500,
            "The service failed",
            "This is a fault of the service, not of the request; its log says more.",
        ),
        ProblemType(
            "busy",
            503,
            "The service has as much work as it can take",
            "Send the request again after the seconds in the answer's Retry-After header. The"
            " operator sets how many pictures may wait with CAT_QUEUE.",
        ),
        ProblemType(
            "deadline-passed",
            503,
            "The answer would come too late",
            "The service is overloaded: send the request again after the seconds in the answer's"
            " Retry-After header. The operator sets the time with CAT_DEADLINE_SECONDS.",
        ),
        ProblemType(
            "not-ready",
            503,
            "The service takes no more requests",
            "It is about to stop: send requests to another instance.",
        ),
        ProblemType(
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
        self.type = TYPES[slug]
        self.detail = detail
        self.headers = headers
        self.members = members

    def content(self) -> dict[str, Any]:
        """The values of the answer."""
        return {
            "type": self.type.uri,
            "title": self.type.title,
            "status": self.type.status,
            "detail": self.detail,
            **self.members,
        }


SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "Problem",
    "description": "What went wrong, as RFC 9457 has it. Some types add members of their own.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {
            "type": "string",
            "format": "uri-reference",
            "description": "Names the type of problem.",
        },
        "title": {"type": "string", "description": "The type in words."},
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
    """The OpenAPI entries for an operation that may answer with these problems."""
    documented: dict[int | str, dict[str, Any]] = {}
    for each in map(TYPES.__getitem__, slugs):
        media = {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}
        headers = REQUEST_ID | HEADERS.get(each.status, {})
        empty = {"description": "", "headers": headers, "content": {MEDIA_TYPE: media}}
        entry = documented.setdefault(each.status, empty)
        line = f"`{each.uri}`: {each.title}."
        entry["description"] = f"{entry['description']}\n\n{line}".strip()
        entry["content"][MEDIA_TYPE]["examples"][each.slug] = {
            "value": {
                "type": each.uri,
                "title": each.title,
                "status": each.status,
                "detail": f"What arrived. {each.remedy}",
            }
        }
    return documented


def page() -> str:
    """All of them as a page for people: where an answer's `type` leads."""
    rows = "".join(
        f'<dt id="{each.slug}"><strong>{html.escape(each.title)}</strong>'
        f" <code>{each.status} {each.uri}</code></dt><dd>{html.escape(each.remedy)}</dd>\n"
        for each in TYPES.values()
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        "<title>Problems and their remedies</title></head>\n"
        f"<body><h1>Problems and their remedies</h1>\n<dl>\n{rows}</dl></body></html>\n"
    )
