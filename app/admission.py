"""Which requests are taken on, and when their turn is: a bounded queue before the decoders.

A request enters before its body is read, if there is a place and room for its bytes; its picture
waits for a free decoder, first come, first served, until its deadline. An upload that turns out
slow gives its place up, and takes one again once its picture has arrived, even where none is free:
whoever was let in is not refused for want of one. All of it runs on the event loop, one thread:
there is nothing to lock.
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

from app import metrics
from app.capacity import PART_OF_FREE
from app.decoders import Decoders
from app.observation import current_facts
from app.problems import Problem
from model.classifier import PICTURES_AT_ONCE
from model.memory import TooLate

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")

LONGEST_RETRY_SECONDS = 60
# An upload that takes longer is slow: it takes no place until its picture has arrived.
SLOW_SECONDS = 1.0
# How many uploads, slow ones among them, there may be for each place.
UPLOADS_A_PLACE = 8
# Of what an upload announced, so many times what has arrived is kept free for it.
TIMES_AHEAD = 8
# Weight of the newest in the moving average of how long a picture takes.
NEWEST = 0.1
# Pictures that take less than this each are handed to the decoders a few at a time.
QUICK_SECONDS = 0.004


class Admission:
    """A worker's places, bytes and decoders.

    places: requests at once, but for slow uploads; upload_bytes: that bodies may hold together;
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
        # Those of them whose picture has not arrived, with time.monotonic() of when they entered
        self.uploads: dict[Place, float] = {}
        # Of bodies, with what is kept free for them, until nothing works on them any more
        self.held_bytes = 0

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
            if (placed := self._placed()) >= self._places:
                why = f"{placed} requests are arriving, wait or are being worked on"
                raise _busy(f"{why}, which is all that this worker takes on", self._seconds_left())
            if (count := len(self.uploads)) >= self._most_uploads():
                why = f"{count} uploads are under way, which is all that this worker takes on"
                raise _busy(why, self._seconds_of_uploads_left())
        return Place(self, request)

    def _placed(self) -> int:
        """Requests that take a place: all but slow uploads."""
        before = time.monotonic() - SLOW_SECONDS
        return self.taken - sum(entered < before for entered in self.uploads.values())

    def _most_uploads(self) -> float:
        """Uploads at once, of which no more should end than can be answered by their deadline."""
        answered = self._deadline_seconds * self._decoders.count / self._seconds_each
        return max(self._places, min(UPLOADS_A_PLACE * self._places, answered))

    def _seconds_left(self) -> float:
        """When the work that is here now will be done."""
        return self._placed() * self._seconds_each / self._decoders.count

    def _seconds_of_uploads_left(self) -> float:
        """The same where it is uploads that must end: on average they are half through."""
        now = time.monotonic()
        ages = [now - entered for entered in self.uploads.values()]
        return max(self._seconds_left(), sum(ages) / max(len(ages), 1))

    def fit(self, count: int, held: int = 0) -> None:
        """Refuse a body of so many bytes, of which `held` are counted already, where there is no
        room for them. Raises Problem: busy; too-large for what will never fit.

        It may have but a part of what the others leave free: the fuller it is, the smaller is what
        is still let in, so large uploads leave room for small ones.
        """
        if count > (most := int(PART_OF_FREE * self._upload_bytes)):
            raise Problem(
                "too-large",
                f"The upload needs {count:,} bytes, inflated ones among them, and there is room"
                f" for {most:,}. Send a smaller one.",
                limit_bytes=most,
            )
        if count > PART_OF_FREE * (self._upload_bytes - self.held_bytes + held):
            why = "Beside the uploads that are here there is not enough memory for another so large"
            raise _busy(why, self._seconds_of_uploads_left())

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
        return Problem("deadline-passed", detail, _retry_after(self._seconds_left()))

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
        self._announced = self._arrived = 0
        self._held = 0  # bytes that are counted for it
        self._users = 1  # of the bytes: the request, and decoders at work

    def __enter__(self) -> Self:
        self._admission.taken += 1
        self._admission.uploads[self] = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._admission.taken -= 1
        self._admission.uploads.pop(self, None)
        self._let_go()

    def _let_go(self) -> None:
        self._users -= 1
        if not self._users:
            self._admission.held_bytes -= self._held

    def announce(self, count: int) -> None:
        """Refuse an upload of that many bytes, before they are read, where there is no room now.
        Raises Problem: busy, too-large.

        The room is taken as they arrive and some times ahead of that: who announces much and sends
        little takes little.
        """
        self._admission.fit(count)
        self._announced = count

    def arrived(self, count: int) -> None:
        """Count bytes that were read, and keep room for those that were announced. Raises Problem:
        busy, too-large."""
        self._arrived += count
        if self._held < max(self._arrived, self._announced):
            wanted = max(self._arrived, min(self._announced, TIMES_AHEAD * self._arrived))
            self._admission.fit(wanted, self._held)
            self._admission.held_bytes += wanted - self._held
            self._held = wanted

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
        admission.uploads.pop(self, None)  # its picture is here
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
            metrics.DECODE_SECONDS.observe(seconds)  # here, for the answer may be out already

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


def _busy(why: str, seconds: float) -> Problem:
    headers = _retry_after(seconds)
    return Problem("busy", f"{why}. Try again in {headers['Retry-After']} s.", headers)


def _retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(min(max(ceil(seconds), 1), LONGEST_RETRY_SECONDS))}


def _give_up(answer: asyncio.Future[T]) -> None:
    if not answer.done():
        answer.set_exception(TooLate())
