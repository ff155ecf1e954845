"""Which requests are taken on, in which order, and what the others are told."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from app.admission import Admission
from app.decoders import Decoders
from app.problems import Problem


def request(*, gone: bool = False) -> Request:
    async def receive() -> dict[str, Any]:
        if not gone:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http", "headers": []}, receive)


@pytest.fixture
def admission() -> Iterator[Callable[..., Admission]]:
    with ExitStack() as stack:

        def make(*, decoders: int = 1, **changes: Any) -> Admission:
            usual = {"places": 8, "upload_bytes": 1000, "deadline_seconds": 60.0}
            threads = stack.enter_context(Decoders(decoders))
            return Admission(threads, **{**usual, **changes})

        yield make


Make = Callable[..., Admission]


def test_beyond_its_places_it_refuses_at_once_and_says_when_to_come_back(admission: Make) -> None:
    queue = admission(places=2)
    with queue.enter(request()), queue.enter(request()):
        with pytest.raises(Problem) as refused:
            queue.enter(request())
        assert refused.value.kind.slug == "busy"
        assert refused.value.kind.status == 503
        assert int((refused.value.headers or {})["Retry-After"]) >= 1
    assert queue.taken == 0
    with queue.enter(request()):
        assert queue.taken == 1


def test_what_is_announced_is_refused_before_it_is_read_where_there_is_no_room(
    admission: Make,
) -> None:
    queue = admission(upload_bytes=1000)
    with queue.enter(request()) as first, queue.enter(request()) as second:
        first.announce(900)
        assert queue.held_bytes == 0, "who announces and sends nothing takes no room"
        first.arrived(900)
        with pytest.raises(Problem, match="memory"):
            second.announce(200)
        second.announce(100)
    assert queue.held_bytes == 0


def test_bytes_are_counted_as_they_arrive(admission: Make) -> None:
    queue = admission(upload_bytes=1000)
    with queue.enter(request()) as first, queue.enter(request()) as second:
        first.arrived(400)
        second.arrived(350)
        assert queue.held_bytes == 750
        with pytest.raises(Problem, match="memory"):
            first.arrived(300)
    assert queue.held_bytes == 0


class Gate:
    """Work that goes on until the test lets it end."""

    def __init__(self) -> None:
        self.begun, self.open = threading.Event(), threading.Event()

    def work(self) -> str:
        self.begun.set()
        assert self.open.wait(30)
        return "done"

    async def until_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, 30)


def run(scene: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(scene(), 30)

    asyncio.run(limited())


def test_pictures_are_worked_on_in_the_order_of_their_arrival(admission: Make) -> None:
    async def scene() -> None:
        queue, gate, order = admission(), Gate(), list[int]()
        with queue.enter(request()) as place:
            first = asyncio.create_task(place.run(gate.work))
            await gate.until_begun()
            others = [asyncio.create_task(place.run(order.append, i)) for i in range(5)]
            await asyncio.sleep(0)
            assert (queue.waiting, queue.working) == (5, 1)
            gate.open.set()
            assert await first == "done"
            await asyncio.gather(*others)
        assert order == [0, 1, 2, 3, 4]
        assert (queue.waiting, queue.working) == (0, 0)

    run(scene)


def test_as_much_is_worked_on_at_once_as_there_are_decoders(admission: Make) -> None:
    async def scene() -> None:
        queue, gates = admission(decoders=2), [Gate(), Gate(), Gate()]
        with queue.enter(request()) as place:
            tasks = [asyncio.create_task(place.run(gate.work)) for gate in gates]
            await gates[0].until_begun()
            await gates[1].until_begun()
            assert (queue.waiting, queue.working) == (1, 2)
            assert not gates[2].begun.is_set()
            gates[1].open.set()
            await gates[2].until_begun()
            gates[0].open.set()
            gates[2].open.set()
            assert await asyncio.gather(*tasks) == ["done"] * 3

    run(scene)


def test_what_waits_beyond_its_deadline_is_never_started(admission: Make) -> None:
    async def scene() -> None:
        queue, gate, started = admission(deadline_seconds=0.05), Gate(), list[int]()
        with queue.enter(request()) as place:
            first = asyncio.create_task(place.run(gate.work))
            await gate.until_begun()
            with pytest.raises(Problem) as late:
                await place.run(started.append, 1)
            assert late.value.kind.slug == "deadline-passed"
            assert int((late.value.headers or {})["Retry-After"]) >= 1
            with pytest.raises(Problem, match="worked on"):
                await first
            assert queue.working == 1, "a decoder at work is not free, whoever gave it up"
            gate.open.set()
            await asyncio.sleep(0)
            assert await place.run(str, 7) == "7"
        assert started == []
        assert (queue.waiting, queue.working) == (0, 0)

    run(scene)


def test_a_client_that_has_gone_away_is_not_computed(admission: Make) -> None:
    async def scene() -> None:
        queue, gate, started = admission(), Gate(), list[str]()
        with queue.enter(request()) as place, queue.enter(request(gone=True)) as leaver:
            first = asyncio.create_task(place.run(gate.work))
            await gate.until_begun()
            left = asyncio.create_task(leaver.run(started.append, "gone"))
            stays = asyncio.create_task(place.run(started.append, "stays"))
            await asyncio.sleep(0)
            gate.open.set()
            await asyncio.gather(first, stays)
            with pytest.raises(ClientDisconnect):
                await left
        assert started == ["stays"]

    run(scene)


@pytest.mark.parametrize("moment", ["while it waits", "when its turn has come"])
def test_a_cancelled_request_passes_its_turn_on(admission: Make, moment: str) -> None:
    async def scene() -> None:
        queue, gate = admission(), Gate()
        with queue.enter(request()) as place:
            first = asyncio.create_task(place.run(gate.work))
            await gate.until_begun()
            waiting = asyncio.create_task(place.run(gate.work))
            await asyncio.sleep(0)
            if moment == "when its turn has come":
                queue._pass_on()  # as if another decoder had become free,
                queue._free -= 1  # of which there is none
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            gate.open.set()
            await first
            assert (queue.waiting, queue.working) == (0, 0)

    run(scene)


def test_an_error_of_the_work_is_the_requests(admission: Make) -> None:
    def fail() -> None:
        raise TimeoutError("of the work itself")

    async def scene() -> None:
        queue = admission()
        with queue.enter(request()) as place:
            with pytest.raises(TimeoutError, match="of the work itself"):
                await place.run(fail)
            assert await place.run(str, 7) == "7"
            assert place.work_seconds > 0
        assert queue.working == 0

    run(scene)


def test_retry_after_follows_how_long_pictures_take(admission: Make) -> None:
    queue = admission(places=100)
    queue._seconds_each = 0.5
    places = [queue.enter(request()) for _ in range(20)]
    for place in places:
        place.__enter__()
    assert queue.retry_after() == {"Retry-After": "10"}
    queue._seconds_each = 100.0
    assert queue.retry_after() == {"Retry-After": "60"}
