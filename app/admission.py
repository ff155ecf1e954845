"""Which requests are taken on, and when their turn is: a bounded queue before the decoders.

A request enters before its body is read, if there is a place and room for its bytes; its picture
waits for a free decoder, first come, first served, until its deadline. All of it runs on the
event loop, one thread: there is nothing to lock.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from starlette.requests import ClientDisconnect, Request

from app.decoders import Decoders
from app.observation import current_facts
from app.problems import Problem
from model.classifier import PICTURES_AT_ONCE
from model.memory import TooLate

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")

LONGEST_RETRY_SECONDS = 60
# Weight of the newest in the moving average of how long a picture takes.
NEWEST = 0.1
# Pictures that take less than this each are handed to the decoders a few at a time.
QUICK_SECONDS = 0.004


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
        self._decoders = decoders
        self._handed = 0  # requests whose turn has come: they are with the decoders
        self._turns: deque[asyncio.Future[bool]] = deque()
        self._seconds_each = 0.05  # a guess until something was measured
        self.taken = 0  # requests that have entered and not left
        self.held_bytes = 0  # of bodies that arrived, until nothing works on them any more

    @property
    def waiting(self) -> int:
        """Pictures that wait for a decoder."""
        return len(self._turns) + self._handed - self.working

    @property
    def working(self) -> int:
        """Decoders that are at work, as far as there is work for each."""
        return min(self._handed, self._decoders.count)

    @property
    def _turns_left(self) -> bool:
        """Whether another picture may be handed over. Where they are quick, a few are ahead of
        time: a decoder then need not wait for the event loop between them, and can have the
        network answer for several at once."""
        each = 2 * PICTURES_AT_ONCE if self._seconds_each < QUICK_SECONDS else 1
        return self._handed < each * self._decoders.count

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
        if self._turns_left and not self._turns:
            self._handed += 1
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
        """Give the turn of a request that is over to those that wait."""
        self._handed -= 1
        while self._turns and self._turns_left:
            turn = self._turns.popleft()
            if not turn.done():
                self._handed += 1
                turn.set_result(True)

    def deadline_passed(self, doing: str) -> Problem:
        detail = f"The request's {self._deadline_seconds:g} s passed while {doing}. Try again."
        return Problem("deadline-passed", detail, self.retry_after())

    def start(
        self,
        begin: Callable[[], T],
        finish: Callable[[Sequence[T]], Sequence[U]] | None,
        until: float,
        ended: Callable[[float], None],
    ) -> asyncio.Future[U]:
        """Begin the work of a request whose turn it is. When it ends, `ended` is called with the
        seconds that it took and the turn is passed on."""

        def end(error: BaseException | None, seconds: float) -> None:
            # A picture refused at a glance says nothing of how long the others take.
            if error is None or seconds > self._seconds_each:
                self._seconds_each += NEWEST * (seconds - self._seconds_each)
            ended(seconds)
            self._pass_on()

        return self._decoders.start(begin, finish, until, end)

    def deadline(self) -> float:
        """When what arrived now must be answered, in the event loop's time."""
        return asyncio.get_running_loop().time() + self._deadline_seconds


class Place:
    """One request's place, and the bytes of its body."""

    def __init__(self, admission: Admission, request: Request) -> None:
        self._admission, self._request = admission, request
        self._arrived = 0
        self._users = 1  # of the bytes: the request, and decoders at work

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
        self._let_go()

    def _let_go(self) -> None:
        self._users -= 1
        if not self._users:
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
        that is under way at its deadline goes on unheard, but for one that still waits for memory:
        a decoder cannot be interrupted.
        """
        result: T = await self._run(partial(function, *args, **kwargs), None)
        return result

    async def run_together(
        self, begin: Callable[[], T], finish: Callable[[Sequence[T]], Sequence[U]]
    ) -> U:
        """The same in two steps, the second at once for all that have come so far: `begin` for
        each, then `finish` for several, which answers for each."""
        result: U = await self._run(begin, finish)
        return result

    async def _run(
        self, begin: Callable[[], Any], finish: Callable[[Sequence[Any]], Sequence[Any]] | None
    ) -> Any:
        admission = self._admission
        loop = asyncio.get_running_loop()
        arrived, deadline = loop.time(), admission.deadline()
        facts = current_facts()
        try:
            await admission.turn(self._request, deadline)
        finally:
            facts.queue_seconds = loop.time() - arrived

        def ended(seconds: float) -> None:
            facts.decode_seconds = seconds
            facts.queue_seconds = max(0.0, loop.time() - arrived - seconds)
            self._let_go()

        self._users += 1
        until = time.monotonic() + deadline - loop.time()  # the loop may have a clock of its own
        answer = admission.start(begin, finish, until, ended)
        timer = loop.call_at(deadline, _give_up, answer)
        try:
            return await answer
        except TooLate:
            raise admission.deadline_passed("the picture waited or was being worked on") from None
        finally:
            timer.cancel()
            if answer.done() and not answer.cancelled():
                answer.exception()  # seen, also where the request was cancelled at the same time
            del answer  # an error's traceback leads back here


def _give_up(answer: asyncio.Future[T]) -> None:
    if not answer.done():
        answer.set_exception(TooLate())
