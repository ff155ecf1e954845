"""The service's errors, as RFC 9457 has them (application/problem+json).

`TYPES` is the one table of them: the answers and the page at /problems, which an answer's `type`
leads to, are made from it. The front and its workers raise them alike.
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

    @property
    def uri(self) -> str:
        """The URI reference that names it for programs, and leads people to the page."""
        return f"{PAGE}#{self.slug}"


TYPES: dict[str, ProblemType] = {
    slug: ProblemType(slug, status, title)
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
        ("missing-file", 422, "The form has no field 'file'"),
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
