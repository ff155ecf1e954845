"""What the service takes on: bodies as far as their bytes fit, pictures as far as they may wait.

A request enters before its body is read. A slow upload takes bytes, no place in the queue: whoever
was let in is not refused for want of one once the body is here. All of it runs on the event loop:
there is nothing to lock.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

from starlette.requests import ClientDisconnect, Request

from app.capacity import PART_OF_FREE
from app.errors import Problem
from app.middleware import FAILED, Facts
from model.worker import Reply
from model.workers import End, JobRefused, Submitted, Workers

LONGEST_RETRY_SECONDS = 60
logger = logging.getLogger("uvicorn.error")


class Queue:
    """Takes requests on, and has workers answer them.

    places: pictures that may wait; body_bytes: that bodies may hold together; deadline_seconds:
    from a body's arrival on.
    """

    def __init__(
        self, workers: Workers, *, places: int, body_bytes: int, deadline_seconds: float
    ) -> None:
        self._workers, self._places = workers, places
        self._body_bytes, self._deadline_seconds = body_bytes, deadline_seconds
        self.in_progress = 0  # requests that have entered and not left
        self.held_bytes = 0  # of their bodies, so far

    @contextmanager
    def enter(self) -> Iterator["Body"]:
        """The room for a request's body. Raises Problem: busy."""
        if (waiting := self._workers.waiting) >= self._places:
            raise self._busy(f"{waiting} pictures wait already, which is all that may")
        body = Body(self)
        self.in_progress += 1
        try:
            yield body
        finally:
            self.in_progress -= 1
            self.held_bytes -= body.held

    def fit(self, count: int, held: int) -> None:
        """Refuse a body of so many bytes, of which `held` are here, where there is no room for
        them. Raises Problem: busy; too-large for what will never fit."""
        if count > (most := int(PART_OF_FREE * self._body_bytes)):
            raise Problem(
                "too-large",
                f"The upload has {count:,} bytes or more, and there is room for {most:,}. Send a"
                " smaller one.",
                limit_bytes=most,
            )
        if count > PART_OF_FREE * (self._body_bytes - self.held_bytes + held):
            raise self._busy("Beside the uploads that are here there is no memory for another one")

    async def work(
        self, request: Request, head: dict[str, Any], body: bytes, *, quick: bool = False
    ) -> Reply:
        """Have a worker do a job for a request.

        Raises Problem: deadline-passed, too-many-pixels, takes-too-long, crashes-decoder,
        internal-error, and what the worker refuses; ClientDisconnect.
        """
        facts: Facts = request.scope["facts"]
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        job = self._workers.submit(head, body, quick=quick)
        timer = loop.call_at(arrived + self._deadline_seconds, _expire, job)
        try:
            if job.is_waiting:
                await _reply_or_gone(job, request)
            reply = await job.reply
        except JobRefused as refused:
            raise _refusal(refused.end, head) from None
        except TimeoutError:
            raise Problem(
                "deadline-passed",
                f"The request's {self._deadline_seconds:g} s passed while the picture waited or was"
                " being worked on. Try again.",
                self._retry_after(),
            ) from None
        finally:
            timer.cancel()
            job.cancel()
            facts.queue_seconds = loop.time() - arrived
        facts.decode_seconds = reply.head["seconds"]
        facts.queue_seconds = max(0.0, facts.queue_seconds - reply.head["seconds"])
        _raise_refusal(reply)
        facts.answers = reply.head.get("answers", [])
        facts.distances = reply.head.get("distances", [])
        return reply

    def _busy(self, why: str) -> Problem:
        headers = self._retry_after()
        return Problem("busy", f"{why}. Try again in {headers['Retry-After']} s.", headers)

    def _retry_after(self) -> dict[str, str]:
        seconds = min(max(ceil(self._workers.seconds_left), 1), LONGEST_RETRY_SECONDS)
        return {"Retry-After": str(seconds)}


class Body:
    """The room that one request's body takes."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self.held = 0

    def announce(self, count: int) -> None:
        """Refuse an upload of so many bytes, before they are read, where there is no room now.
        Who announces much and sends little takes little. Raises Problem: busy, too-large."""
        self._queue.fit(count, 0)

    def arrived(self, count: int) -> None:
        """Count bytes that were read. Raises Problem: busy, too-large."""
        self._queue.fit(self.held + count, self.held)
        self.held += count
        self._queue.held_bytes += count


def _expire(job: Submitted) -> None:
    if not job.reply.done():
        job.reply.set_exception(TimeoutError())


async def _reply_or_gone(job: Submitted, request: Request) -> None:
    """Wait for a reply. Raises ClientDisconnect where nobody waits for it any more."""
    gone = asyncio.ensure_future(request.receive())  # all of the body is here: no more can come
    try:
        await asyncio.wait((job.reply, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
    if not job.reply.done():
        raise ClientDisconnect


def _refusal(end: End, head: dict[str, Any]) -> Problem:
    """What to say of a job that no worker could do."""
    what = "request" if head["kind"] == "infer" else "picture"
    if end is End.TIME:
        detail = f"Working on the {what} takes more processor time than one may have."
        return Problem("takes-too-long", f"{detail} Scale it down, or save it anew.")
    if end is End.CRASH:
        detail = f"What decodes the {what} crashed, and crashed again when it was tried once more."
        return Problem("crashes-decoder", f"{detail} Save it anew, as JPEG or PNG.")
    if what == "request":
        detail = "Reading the request takes more memory than there is for one."
        return Problem("too-large", f"{detail} Send fewer pictures a request, or in binary.")
    detail = "Decoding the picture takes more memory than there is for one."
    limit = head.get("max_pixels", 0)
    advice = "Scale it down, or save it as a baseline JPEG."
    return Problem("too-many-pixels", f"{detail} {advice}", limit_pixels=limit)


def _raise_refusal(reply: Reply) -> None:
    """Raise what a worker says of a job that it did not do."""
    head = reply.head
    if "fault" in head:
        logger.error("A worker failed:\n%s", head["fault"])
        raise Problem("internal-error", FAILED)
    if "problem" in head:
        raise Problem(head["problem"], head["detail"], head["headers"], **head["members"])
