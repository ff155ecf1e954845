"""The threads that decode and classify, away from the event loop.

Work has two steps: each picture is decoded on its own, and the network answers for several at once
for less than one by one. So a thread that finds more work waiting decodes that too, for a moment,
before it lets the network answer. An executor's futures are made for threads to wait on, which here
none does; handing work over without them is the shorter way.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Self, TypeVar

from model.classifier import PICTURES_AT_ONCE
from model.memory import TooLate, worth_until

T = TypeVar("T")
U = TypeVar("U")

# For how long pictures are gathered. Beyond, the first would wait longer than its company saves.
GATHERING_SECONDS = 0.002

Ended = Callable[[BaseException | None, float], None]
Begin = Callable[[], Any]
Finish = Callable[[Sequence[Any]], Sequence[Any]]


class Job:
    """Work that was handed over, and what became of it."""

    __slots__ = (
        "begin",
        "ended",
        "error",
        "finish",
        "future",
        "loop",
        "result",
        "seconds",
        "until",
    )

    def __init__(
        self,
        begin: Begin,
        finish: Finish | None,
        until: float,
        ended: Ended,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.begin, self.finish, self.until = begin, finish, until
        self.ended, self.loop = ended, loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.result: Any = None
        self.error: BaseException | None = None
        self.seconds = 0.0

    def decode(self, wait_until: float) -> None:
        """Do the first step; until then, in time.monotonic()'s seconds, it may wait for memory."""
        started = time.monotonic()
        self.error = None
        try:
            if started > self.until or self.future.done():
                raise TooLate
            worth_until.set(wait_until)
            self.result = self.begin()
        except BaseException as raised:  # noqa: BLE001 - it is the one who waits that it is for
            self.error = raised
        self.seconds = time.monotonic() - started

    def settle(self) -> None:
        """On the event loop: tell whoever waits, if anybody still does."""
        self.ended(self.error, self.seconds)
        future, error = self.future, self.error
        # An error's traceback leads back here: a circle would keep the picture until the garbage
        # is collected, long after its bytes were given back.
        del self.future, self.error, self.begin
        if future.done():
            return
        if error is None:
            future.set_result(self.result)
        else:
            future.set_exception(error)


class Decoders:
    """A number of threads. Close them by leaving a `with`, which waits for what they do."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._threads = [
            Thread(target=self._serve, name=f"decoder-{number}", daemon=True)
            for number in range(count)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for _thread in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def start(
        self,
        begin: Callable[[], T],
        finish: Callable[[Sequence[T]], Sequence[U]] | None,
        until: float,
        ended: Ended,
    ) -> "asyncio.Future[U]":
        """Call `begin` on a thread, then `finish` with what it gave and what that of other work
        with the same `finish` gave; `finish` answers for each. Without one, what `begin` gave is
        the answer. The answer or the error is for the running event loop.

        until: in time.monotonic()'s seconds; what has not begun by then ends in TooLate.
        Whoever waits may give the future up. A thread cannot be interrupted: `ended` is called on
        the loop, with the error and the seconds that the work took, once it really is at its end.
        """
        job = Job(begin, finish, until, ended, asyncio.get_running_loop())
        self._jobs.put(job)
        return job.future

    def _serve(self) -> None:
        following: Job | None = None
        while (job := following or self._jobs.get()) is not None:
            group, following = self._gather(job)
            _finish(group)
            _tell(group)
            del job, group  # not to keep a picture while idle

    def _gather(self, job: Job) -> tuple[list[Job], Job | None]:
        """The job and those to be finished with it, all decoded; and what comes after them."""
        group = [job]
        until = time.monotonic() + GATHERING_SECONDS
        job.decode(job.until)
        while job.finish and len(group) < PICTURES_AT_ONCE and time.monotonic() < until:
            try:
                other = self._jobs.get_nowait()
            except Empty:
                break
            if other is None:
                self._jobs.put(None)  # the end, which has to be found again
                break
            if other.finish != job.finish:
                return group, other
            other.decode(wait_until=0)
            if type(other.error) is TooLate:  # or else there is no memory for it now: in its turn
                return group, other
            group.append(other)
        return group, None


def _finish(group: Sequence[Job]) -> None:
    finish = group[0].finish
    decoded = [job for job in group if job.error is None]
    if finish is None or not decoded:
        return
    started = time.monotonic()
    try:
        results = finish([job.result for job in decoded])
        for job, result in zip(decoded, results, strict=True):
            job.result = result
    except BaseException as raised:  # noqa: BLE001 - as above
        if len(decoded) > 1:  # what is the matter with one is not the others' fault
            for job in decoded:
                _finish([job])
            return
        decoded[0].error = raised
    each = (time.monotonic() - started) / len(decoded)
    for job in decoded:
        job.seconds += each


def _tell(group: Sequence[Job]) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        group[0].loop.call_soon_threadsafe(_settle, group)


def _settle(group: Sequence[Job]) -> None:
    for job in group:
        job.loop.call_soon(job.settle)  # each by itself, whatever becomes of the others
