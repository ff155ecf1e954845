"""The service's errors, as RFC 9457 has them (application/problem+json).

errors.toml is the one table of them: the answers and the page at /problems, which an answer's
`type` leads to, are made from it. The front and its workers raise them alike.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
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


_TABLE = tomllib.loads(Path(__file__).with_name("errors.toml").read_text("utf-8"))
TYPES = {slug: ProblemType(slug, **row) for slug, row in _TABLE.items()}


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


def too_large(found: str, limit: int) -> Problem:
    """The refusal of an upload of more bytes than the limit; found: what has how many."""
    advice = "Send a smaller picture, or fewer pictures at once."
    detail = f"{found}; at most {limit:,} are accepted. {advice}"
    return Problem("too-large", detail, limit_bytes=limit)
