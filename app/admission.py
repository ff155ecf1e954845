"""Which requests are taken on, and when their turn is: a bounded queue before the decoders.

A request enters before its body is read, if there is a place and room for its bytes; its picture
waits for a free decoder, first come, first served, until its deadline. All of it runs on the
event loop, one thread: there is nothing to lock.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from math import ceil
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from starlette.requests import ClientDisconnect, Request

from app.decoders import Decoders
from app.observation import current_facts
from app.problems import Problem

P = ParamSpec("P")
T = TypeVar("T")

LONGEST_RETRY_SECONDS = 60
# Weight of the newest in the moving average of how long a picture takes.
NEWEST = 0.1


class Admission:
    """A worker's places, bytes and decoders.

    places: requests at once; upload_bytes: that their bodies may hold together;
    deadline_seconds: from a picture's arrival on.
    """

    def __init__(
        self,
        decoders: Decoders,
        *,
        places: int,
        upload_bytes: int,
        deadline_seconds: float,
    ) -> None:
        self._places, self._upload_bytes = places, upload_bytes
        self._deadline_seconds = deadline_seconds
        self._decoders, self._free = decoders, decoders.count
        self._turns: deque[asyncio.Future[bool]] = deque()
        self._seconds_each = 0.05  # a guess until something was measured
        self.taken = 0  # requests that have entered and not left
        self.held_bytes = 0  # of bodies that arrived

    @property
    def waiting(self) -> int:
        """Pictures that wait for a decoder."""
        return len(self._turns)

    @property
    def working(self) -> int:
        """Decoders that are at work."""
        return self._decoders.count - self._free

    def enter(self, request: Request) -> "Place":
        """A place for the request, to be used in a `with`. Raises Problem: busy."""
        if self.taken >= self._places:
            raise self._busy(f"{self.taken} requests are being worked on or wait, which is all")
        return Place(self, request)

    def retry_after(self) -> dict[str, str]:
        """The header that says when the work that is here now will be done."""
        seconds = ceil(self.taken * self._seconds_each / self._decoders.count)
        return {"Retry-After": str(min(max(seconds, 1), LONGEST_RETRY_SECONDS))}

    def fit(self, count: int) -> None:
        """Refuse that many bytes of a body where there is no room for them. Raises Problem."""
        if self.held_bytes + count > self._upload_bytes:
            raise self._busy("The uploads that are here take all the memory there is for them")

    def _busy(self, why: str) -> Problem:
        headers = self.retry_after()
        seconds = headers["Retry-After"]
        detail = f"{why} that this worker takes on at once. Try again in {seconds} s."
        return Problem("busy", detail, headers)

    async def turn(self, request: Request, deadline: float) -> None:
        """Wait for a decoder. Raises Problem: deadline-passed, and ClientDisconnect."""
        if self._free and not self._turns:
            self._free -= 1
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[bool] = loop.create_future()
        self._turns.append(turn)
        timer = loop.call_at(deadline, self._expire, turn)
        try:
            mine = await turn
        except asyncio.CancelledError:
            self._expire(turn)
            if turn.done() and not turn.cancelled() and turn.result():
                self._pass_on()
            raise
        finally:
            timer.cancel()
        if not mine:
            raise self.deadline_passed("the picture waited for its turn")
        try:
            gone = await request.is_disconnected()
        except asyncio.CancelledError:
            self._pass_on()
            raise
        if gone:
            self._pass_on()
            raise ClientDisconnect

    def _expire(self, turn: asyncio.Future[bool]) -> None:
        if turn in self._turns:
            self._turns.remove(turn)
            if not turn.done():
                turn.set_result(False)

    def _pass_on(self) -> None:
        """Give the decoder that became free to the next picture."""
        while self._turns:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(True)
                return
        self._free += 1

    def deadline_passed(self, doing: str) -> Problem:
        detail = f"The request's {self._deadline_seconds:g} s passed while {doing}. Try again."
        return Problem("deadline-passed", detail, self.retry_after())

    def start(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Begin the work of a request whose turn it is; the decoder is passed on when it ends."""
        began = time.perf_counter()

        def end(work: asyncio.Future[T]) -> None:
            self._seconds_each += NEWEST * (time.perf_counter() - began - self._seconds_each)
            self._pass_on()
            if not work.cancelled():
                work.exception()  # seen, even where nobody waits any more

        work = self._decoders.start(call)
        work.add_done_callback(end)
        return work

    def deadline(self) -> float:
        """When what arrived now must be answered, in the event loop's time."""
        return asyncio.get_running_loop().time() + self._deadline_seconds


class Place:
    """One request's place. `work_seconds` is how long its work took, as the event loop saw it."""

    def __init__(self, admission: Admission, request: Request) -> None:
        self._admission, self._request = admission, request
        self._arrived = 0
        self.work_seconds = 0.0

    def __enter__(self) -> Self:
        self._admission.taken += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._admission.taken -= 1
        self._admission.held_bytes -= self._arrived

    def announce(self, count: int) -> None:
        """Refuse an upload of that many bytes, before they are read, where there is no room now.
        Raises Problem: busy.

        The room is taken as they arrive: who announces much and sends nothing takes none.
        """
        self._admission.fit(count)

    def arrived(self, count: int) -> None:
        """Count bytes that were read. Raises Problem: busy."""
        self._admission.fit(count)
        self._admission.held_bytes += count
        self._arrived += count

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function on a decoder when its turn comes, and return what it gives.

        Raises Problem: deadline-passed, ClientDisconnect, and what the function raises. Work
        that is under way at its deadline goes on unheard: a decoder cannot be interrupted.
        """
        admission = self._admission
        loop = asyncio.get_running_loop()
        arrived, deadline = loop.time(), admission.deadline()
        facts = current_facts()
        try:
            await admission.turn(self._request, deadline)
        finally:
            facts.queue_seconds = loop.time() - arrived
        began = loop.time()

        def timed() -> T:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                facts.decode_seconds = time.perf_counter() - started

        # Shielded: whoever stops waiting leaves the decoder at its work.
        answer = asyncio.shield(admission.start(timed))
        late = False

        def give_up() -> None:
            nonlocal late
            late = answer.cancel()

        timer = loop.call_at(deadline, give_up)
        try:
            return await answer
        except asyncio.CancelledError:
            if late:
                raise admission.deadline_passed("the picture was being worked on") from None
            raise
        finally:
            timer.cancel()
            self.work_seconds = loop.time() - began
