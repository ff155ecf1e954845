"""Feedback: pictures with their right class, kept in a folder that training takes as it is.

Off unless CAT_COLLECT names a folder. What is kept is made in a worker: a small upright JPEG
without metadata. Nothing else that the service is sent is ever stored.
"""

import asyncio
import errno
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from app.errors import Problem
from app.routes import PICTURE_BODY, work_on_picture
from model.machine import write_file
from model.workers import CannotStart

ID = re.compile("[0-9a-f]{24}")  # the start of a SHA-256 over the JPEG
OWN_PAGE = ("same-origin", "none")  # none: no page asks, but the browser's user
DEFAULT_PORTS = {"http": ":80", "https": ":443"}  # which an Origin leaves out
logger = logging.getLogger("uvicorn.error")


class Collection:
    """A folder of pictures, one folder in it for each class: FOLDER/cat/ID.jpg.

    most, most_bytes: pictures that it may hold, and their bytes together. People may add, move and
    remove files at any time. Only one service may write to a folder.
    """

    def __init__(self, folder: Path, most: int, most_bytes: int) -> None:
        """Raises CannotStart where the folder cannot be written."""
        self.folder, self._most, self._most_bytes = folder, most, most_bytes
        self._lock = Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob("*/.*.jpg.*.tmp"):  # by a service that was killed
                left.unlink()
            write_file(folder / ".probe", b"")
            (folder / ".probe").unlink()
        except OSError as error:
            why = "it is a file" if folder.is_file() else error.strerror or error
            raise CannotStart(
                f"CAT_COLLECT is {folder}, which cannot be used: {why}. "
                "Name a folder that this user may write to, or unset CAT_COLLECT."
            ) from None

    def keep(self, jpeg: bytes, label: str) -> str:
        """Keep a picture as one of that class, whichever it was before. Returns its id.

        Raises Problem: collection-full, collection-failed.
        """
        name = f"{sha256(jpeg).hexdigest()[:24]}.jpg"
        target = self.folder / label / name
        with self._lock, _disk_failures():
            if label.startswith(".") or Path(label).name != label:
                raise OSError(errno.EINVAL, f"{label!r} cannot be the name of a folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            elsewhere = [path for path in self.folder.glob(f"*/{name}") if path != target]
            if elsewhere:
                elsewhere.pop().replace(target)  # in one step: it is never lost, nor in both
            elif not target.exists():
                self._check_room(len(jpeg))
                write_file(target, jpeg)
            for path in elsewhere:
                path.unlink(missing_ok=True)
        return target.stem

    def forget(self, identity: str) -> bool:
        """Remove a picture; False where there is none. Raises Problem: collection-failed."""
        if not ID.fullmatch(identity):
            return False
        with self._lock, _disk_failures():
            found = [*self.folder.glob(f"*/{identity}.jpg")]
            for path in found:
                path.unlink(missing_ok=True)
        return bool(found)

    def _check_room(self, size: int) -> None:
        count, taken = self.size()
        if count >= self._most or taken + size > self._most_bytes:
            raise Problem(
                "collection-full",
                f"The feedback folder has {count:,} pictures ({taken:,} bytes). It "
                f"may hold at most {self._most:,} pictures (CAT_COLLECT_PICTURES) and "
                f"{self._most_bytes:,} bytes (CAT_COLLECT_BYTES). Ask the operator to remove "
                "some.",
            )

    def size(self) -> tuple[int, int]:
        """Return how many pictures are there, and their bytes."""
        sizes = []
        for path in self.folder.glob("*/*"):
            with suppress(OSError):  # somebody has just removed it
                sizes.append(path.stat().st_size)
        return len(sizes), sum(sizes)


@contextmanager
def _disk_failures() -> Iterator[None]:
    """Turn a failure of the disk into the Problem collection-failed; the log has the path."""
    try:
        yield
    except OSError as error:
        logger.error("The collection cannot be written: %s", error)
        detail = f"The feedback folder cannot be written: {error.strerror}."
        raise Problem("collection-failed", f"{detail} Tell the operator.") from None


class FeedbackAnswer(BaseModel):
    id: str = Field(description="The id of the picture; DELETE /feedback/ID deletes it.")
    label: str = Field(description="The class under which it is saved.")


router = APIRouter(tags=["Cat or not"])


@router.post(
    "/feedback",
    summary="Save a picture with its correct class, for training",
    openapi_extra={"requestBody": PICTURE_BODY},
)
async def give_feedback(
    request: Request,
    label: Annotated[
        str, Query(description="The correct class: one of the model's two class names.")
    ] = "",
) -> FeedbackAnswer:
    """Send the picture as to /predict. With CAT_COLLECT, the service saves a JPEG of at most 512
    pixels per side, without metadata. Sending the same picture with the other label moves it."""
    collection = _collection(request)
    names = request.app.state.model["class_names"]
    if label not in names:
        found = f"is {label[:40]!r}" if label else "is missing"
        first, second = names
        detail = f"The label {found}. Send the correct class: ?label={first} or ?label={second}."
        raise Problem("invalid-request", detail)
    reply = await work_on_picture(request, "keep")
    identity = await asyncio.to_thread(collection.keep, reply.body, label)
    request.app.state.metrics.feedback.labels(label).inc()
    return FeedbackAnswer(id=identity, label=label)


@router.delete("/feedback/{identity}", summary="Delete a saved picture", status_code=204)
async def take_feedback_back(request: Request, identity: str) -> Response:
    """The id comes from the answer to POST /feedback."""
    collection = _collection(request)
    if not await asyncio.to_thread(collection.forget, identity):
        raise Problem("not-found", f"There is no feedback with the id {identity[:40]!r}.")
    return Response(status_code=204)


def _collection(request: Request) -> Collection:
    """The collection, for a request that may change it. Raises Problem: not-found, foreign-page."""
    collection: Collection | None = request.app.state.collection
    if collection is None:
        detail = (
            "This service does not collect feedback. The operator can enable it with CAT_COLLECT."
        )
        raise Problem("not-found", detail)
    origin, site = map(request.headers.get, ("origin", "sec-fetch-site"))
    scheme, _, page = (origin or "").partition("://")
    host = request.headers.get("host", "")
    own = origin is None or page in (host, host.removesuffix(DEFAULT_PORTS.get(scheme, "")))
    if not (site in OWN_PAGE if site else own):
        raise Problem(
            "foreign-page",
            f"A page of {(origin or 'another site')[:100]} sent this request; in a browser, only "
            "the service's own page may. If this is its own page, the proxy must forward the "
            "Host header unchanged.",
        )
    return collection
