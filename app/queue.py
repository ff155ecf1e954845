"""What the service takes on: bodies as far as their bytes fit, pictures as far as they may wait.

A request enters before its body is read. A slow upload takes bytes, no place in the queue: whoever
was let in is not refused for want of one once the body is here. All of it runs on the event loop:
there is nothing to lock. Nothing here looks into a body.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from math import ceil
from typing import Any

from starlette.requests import ClientDisconnect, Request

from app.capacity import MAX_UPLOAD_SHARE
from app.errors import FAILED, Problem, too_large
from app.observation import RequestInfo
from model.worker import Reply
from model.workers import Failure, JobRefused, PendingJob, Workers

LONGEST_RETRY_SECONDS = 60
LEAST_BYTES_A_SECOND = 50_000  # of an upload, on top of the seconds that any may take
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
        self.body_bytes, self._deadline_seconds = body_bytes, deadline_seconds
        self.in_progress = 0  # requests that have entered and not left
        self.held_bytes = 0  # of their bodies, so far

    @contextmanager
    def enter(self) -> Iterator["BodyMemory"]:
        """The room for a request's body. Raises Problem: busy."""
        if (waiting := self._workers.waiting) >= self._places:
            wait = "picture waits" if waiting == 1 else "pictures wait"
            raise self.busy(f"The queue is full: {waiting} {wait}, at most {self._places} may")
        body = BodyMemory(self)
        self.in_progress += 1
        try:
            yield body
        finally:
            self.in_progress -= 1
            self.held_bytes -= body.held

    async def work(self, request: Request, head: dict[str, Any], body: bytes) -> Reply:
        """Have a worker do a job for a request.

        Raises Problem: deadline-passed, too-many-pixels, takes-too-long, crashes-decoder,
        internal-error, and what the worker refuses; ClientDisconnect.
        """
        facts: RequestInfo = request.scope["facts"]
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        job = self._workers.submit(head, body, quick=head["kind"] == "predict")
        try:
            async with asyncio.timeout_at(arrived + self._deadline_seconds):
                if job.is_waiting:
                    await _reply_or_gone(job, request)
                reply = await job.reply
        except JobRefused as refused:
            raise _refusal(refused, head) from None
        except TimeoutError:
            raise Problem(
                "deadline-passed",
                f"The request's {self._deadline_seconds:g} s passed before the picture was "
                "processed. Try again.",
                self._retry_after(),
            ) from None
        finally:
            taken = loop.time() if job.is_waiting else job.taken
            facts.queue_seconds = max(0.0, taken - arrived)
            job.cancel()
        facts.decode_seconds = reply.head["seconds"]
        # One that was sent ahead has waited at its worker too
        waited = loop.time() - arrived - facts.decode_seconds
        facts.queue_seconds = max(facts.queue_seconds, waited)
        if "fault" in reply.head:
            logger.error("A worker failed:\n%s", reply.head["fault"])
            raise Problem("internal-error", FAILED)
        if "problem" in reply.head:
            said = reply.head
            raise Problem(said["problem"], said["detail"], said["headers"], **said["members"])
        facts.answers = reply.head.get("answers", [])
        facts.distances = reply.head.get("distances", [])
        return reply

    def busy(self, why: str) -> Problem:
        """The refusal of a request that can be sent again."""
        headers = self._retry_after()
        return Problem("busy", f"{why}. Try again in {headers['Retry-After']} s.", headers)

    def _retry_after(self) -> dict[str, str]:
        seconds = min(max(ceil(self._workers.seconds_left), 1), LONGEST_RETRY_SECONDS)
        return {"Retry-After": str(seconds)}


class BodyMemory:
    """The room that one request's body takes."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self.held = 0

    def announce(self, count: int) -> None:
        """Refuse an upload of so many bytes where there is no room now. Who announces much and
        sends little takes little. Raises Problem: busy."""
        queue = self._queue
        if count > MAX_UPLOAD_SHARE * (queue.body_bytes - queue.held_bytes + self.held):
            raise queue.busy("The current uploads use all the memory for uploads")

    def arrived(self, count: int) -> None:
        """Count bytes that were read. Raises Problem: busy, too-large."""
        self.announce(self.held + count)
        self.held += count
        self._queue.held_bytes += count


async def read_body(
    request: Request, room: BodyMemory, *, most: int, limit: int, seconds: float
) -> bytes:
    """The body, of at most `most` bytes; `limit` is what the refusal names. It may take that many
    seconds, and more as it arrives.

    Raises Problem: too-large, busy, slow-upload; and ClientDisconnect.
    """
    length = request.headers.get("content-length", "")
    # A nonsensical length is the server's to refuse; what is read is counted anyway.
    announced = int(length) if length.isascii() and length.isdecimal() and len(length) < 20 else 0
    if announced > most:
        raise too_large(f"The upload has {announced:,} bytes (Content-Length)", limit)
    room.announce(announced)
    clock = asyncio.get_running_loop().time
    began = clock()
    chunk, rest, more = b"", BytesIO(), True
    try:
        async with asyncio.timeout_at(began + seconds) as timeout:
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk, more = message.get("body", b""), message.get("more_body", False)
                if room.held + len(chunk) > most:
                    raise too_large(f"More than {most:,} bytes arrived", limit)
                room.arrived(len(chunk))
                if more or room.held > len(chunk):  # else all of it came at once: no copy
                    rest.write(chunk)
                    timeout.reschedule(began + seconds + room.held / LEAST_BYTES_A_SECOND)
    except TimeoutError:
        raise Problem(
            "slow-upload",
            f"Only {room.held:,} bytes arrived in {clock() - began:.0f} s. An upload may take "
            f"{seconds:g} s, plus 1 s for each {LEAST_BYTES_A_SECOND:,} bytes. Use a faster "
            "connection or send a smaller picture.",
        ) from None
    return rest.getvalue() or bytes(chunk)


async def _reply_or_gone(job: PendingJob, request: Request) -> None:
    """Wait for a reply. Raises ClientDisconnect where nobody waits for it any more."""
    gone = asyncio.ensure_future(request.receive())  # all of the body is here: no more can come
    try:
        await asyncio.wait((job.reply, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
    if not job.reply.done():
        raise ClientDisconnect


def _refusal(refused: JobRefused, head: dict[str, Any]) -> Problem:
    """What to say of a job that no worker could do."""
    what = "request" if head["kind"] == "infer" else "picture"
    if refused.end is not Failure.MEMORY:
        return Problem(refused.end, f"The {what} {refused}")
    if what == "picture":
        return Problem(refused.end, f"The {what} {refused}", limit_pixels=head["max_pixels"])
    why = "The request needs more memory than is available"
    return Problem("too-large", f"{why}. Send fewer pictures per request, or send them in binary.")
