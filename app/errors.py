"""The service's errors, as RFC 9457 has them (application/problem+json).

`TYPES`, with `ADVICE`, is the one table of them: the answers and the page at /problems, which an
answer's `type` leads to, are made from it. The front and its workers raise them alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MEDIA_TYPE = "application/problem+json"
PAGE = "/problems"
FAILED = "The service failed. Your picture may be fine; try again."


@dataclass(frozen=True)
class ProblemType:
    """What stays the same from one occurrence of a problem to the next."""

    slug: str
    status: int
    title: str
    advice: str  # what to do

    @property
    def uri(self) -> str:
        """The URI reference that names it for programs, and leads people to the page."""
        return f"{PAGE}#{self.slug}"


ADVICE = {
    "bad-request": "Use an HTTP client or library; do not write the request by hand.",
    "origin-not-allowed": "Ask the operator to add the page's origin to CAT_CORS_ORIGINS.",
    "malformed-form": "Let your HTTP client make the form and its Content-Type; send all of it.",
    "invalid-inference": "Compare the request with the model's metadata at /v2/models/cat.",
    "unauthorized": "Send a valid key as X-API-Key; the service reads new keys when it restarts.",
    "foreign-page": "Open the service's own page; a proxy must pass on Host with its port.",
    "not-found": "Compare the address with the list at /docs; feedback needs CAT_COLLECT.",
    "method-not-allowed": "Use a method that the Allow header of the answer names.",
    "slow-upload": "Send a smaller picture; the operator can raise CAT_UPLOAD_SECONDS.",
    "too-large": "Scale the picture down or compress it more; the operator can raise the limit.",
    "not-a-picture": "Send the bytes of a picture, not a web page, a document or a text.",
    "format-not-allowed": "Save the picture as JPEG or PNG and send that.",
    "encoded-body": "Send the file as it is, without Content-Encoding.",
    "empty": "Choose a picture, and send its bytes.",
    "missing-file": "Send the picture in a field with the name 'file'.",
    "several-files": "Send one request for each picture.",
    "damaged": "Send the whole file, or save the picture again with another program.",
    "too-many-pixels": "Scale the picture down; a baseline JPEG needs the least memory.",
    "takes-too-long": "Scale the picture down, or save it as an ordinary JPEG or PNG.",
    "crashes-decoder": "Save the picture with another program, and report it.",
    "invalid-request": "Correct the values that the detail names; /docs lists what is accepted.",
    "internal-error": "Try again; if it fails again, give the operator the request_id.",
    "collection-failed": "Tell the operator: the disk of CAT_COLLECT is full, read-only or gone.",
    "busy": "Try again as Retry-After says; if it lasts, the service needs more cores.",
    "deadline-passed": "Try again as Retry-After says; if it lasts, the service needs more cores.",
    "not-ready": "Use another replica, or try again later.",
    "stopping": "Send the picture again, if possible to another replica.",
    "collection-full": "Ask the operator to train with the saved pictures and then move them away.",
}
TYPES: dict[str, ProblemType] = {
    slug: ProblemType(slug, status, title, ADVICE[slug])
    for slug, status, title in (
        ("bad-request", 400, "The request is not valid HTTP"),
        ("origin-not-allowed", 400, "Web pages of this origin may not send this request"),
        ("malformed-form", 400, "The form cannot be read"),
        ("invalid-inference", 400, "The inference request is not valid"),
        ("unauthorized", 401, "The request has no valid key"),
        ("foreign-page", 403, "Pages of other sites may not send feedback"),
        ("not-found", 404, "There is nothing at this address"),
        ("method-not-allowed", 405, "This address does not accept this method"),
        ("slow-upload", 408, "The upload takes too long"),
        ("too-large", 413, "The upload has too many bytes"),
        ("not-a-picture", 415, "The upload is not a picture"),
        ("format-not-allowed", 415, "The picture's format is not accepted"),
        ("encoded-body", 415, "The body is compressed"),
        ("empty", 422, "The upload is empty"),
        ("missing-file", 422, "The form has no picture in a field 'file'"),
        ("several-files", 422, "The form has more than one picture"),
        ("damaged", 422, "The picture is damaged or cut off"),
        ("too-many-pixels", 422, "The picture has too many pixels, or takes too much memory"),
        ("takes-too-long", 422, "The picture takes too much processor time"),
        ("crashes-decoder", 422, "The picture crashes its decoder"),
        ("invalid-request", 422, "The request's values are not valid"),
        ("internal-error", 500, "The service failed"),
        ("collection-failed", 500, "The picture could not be saved"),
        ("busy", 503, "The service is busy"),
        ("deadline-passed", 503, "The deadline has passed"),
        ("not-ready", 503, "The service accepts no new requests"),
        ("stopping", 503, "The service is stopping"),
        ("collection-full", 507, "The feedback folder is full"),
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
