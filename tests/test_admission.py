"""Which requests are taken on, in which order, and what the others are told."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from contextvars import copy_context
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from app import decoders
from app.admission import SLOW_SECONDS, UPLOADS_A_PLACE, Admission
from app.decoders import Decoders
from app.metrics import DECODE_SECONDS
from app.problems import Problem
from model.memory import MemoryBudget, TooLate, worth_until
from model.preprocessing import Limits, read_picture


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


def grow_old(queue: Admission) -> None:
    """As if the uploads under way had begun earlier: so much that they are slow."""
    for place in queue.uploads:
        queue.uploads[place] -= SLOW_SECONDS + 0.1


def test_slow_uploads_take_no_place_from_others(admission: Make) -> None:
    queue = admission(places=2)
    with ExitStack() as slow:
        for _ in range(2):
            slow.enter_context(queue.enter(request()))
        with pytest.raises(Problem, match="2 requests are arriving"):
            queue.enter(request())
        grow_old(queue)
        with queue.enter(request()), queue.enter(request()):
            assert queue.taken == 4
            with pytest.raises(Problem, match="2 requests are arriving"):
                queue.enter(request())
    assert (queue.taken, len(queue.uploads)) == (0, 0)


def test_slow_uploads_are_bounded_too_and_take_the_time_that_they_have_taken(
    admission: Make,
) -> None:
    queue = admission(places=2)
    with ExitStack() as slow:
        for _ in range(2 * UPLOADS_A_PLACE):
            slow.enter_context(queue.enter(request()))
            grow_old(queue)
        with pytest.raises(Problem, match="16 uploads are under way") as refused:
            queue.enter(request())
        # 1.1 s to 17.6 s
        assert refused.value.headers == {"Retry-After": "10"}
    with queue.enter(request()):
        assert queue.taken == 1


def test_a_slow_upload_that_was_let_in_waits_its_turn_also_where_all_places_are_taken(
    admission: Make,
) -> None:
    async def scene() -> None:
        queue, gate, order = admission(places=1), Gate(), list[str]()
        with queue.enter(request()) as slow:
            slow.arrived(1)
            grow_old(queue)
            with queue.enter(request()) as quick:
                first = asyncio.create_task(quick.run(gate.work))
                await gate.until_begun()
                second = asyncio.create_task(slow.run(order.append, "slow"))
                await asyncio.sleep(0)
                assert (queue.waiting, queue.working, len(queue.uploads)) == (1, 1, 0)
                gate.open.set()
                await first
            with pytest.raises(Problem, match="1 requests"):  # it has its place again
                queue.enter(request())
            await second
        assert order == ["slow"]
        assert (queue.taken, queue.held_bytes) == (0, 0)

    run(scene)


@pytest.mark.parametrize("ending", ["error", "disconnect", "cancellation"])
def test_an_upload_that_ends_early_leaves_no_place_and_no_byte_behind(
    admission: Make, ending: str
) -> None:
    async def scene() -> None:
        queue, begun = admission(), asyncio.Event()

        async def upload() -> None:
            with queue.enter(request()) as place:
                place.announce(500)
                place.arrived(100)
                begun.set()
                if ending == "error":
                    raise Problem("too-large", "")
                if ending == "disconnect":
                    raise ClientDisconnect
                await asyncio.Event().wait()

        task = asyncio.create_task(upload())
        await begun.wait()
        if ending == "cancellation":
            assert (queue.taken, len(queue.uploads), queue.held_bytes) == (1, 1, 500)
            task.cancel()
        with pytest.raises((Problem, ClientDisconnect, asyncio.CancelledError)):
            await task
        assert (queue.taken, len(queue.uploads), queue.held_bytes) == (0, 0, 0)

    run(scene)


def test_what_is_announced_is_refused_before_it_is_read_where_there_is_no_room(
    admission: Make,
) -> None:
    queue = admission(upload_bytes=1000)
    with queue.enter(request()) as first, queue.enter(request()) as second:
        first.announce(700)
        assert queue.held_bytes == 0, "who announces and sends nothing takes no room"
        first.arrived(10)
        assert queue.held_bytes == 80, "who has begun, some times what came"
        first.arrived(90)
        assert queue.held_bytes == 700, "and soon may send all of it"
        with pytest.raises(Problem, match="memory"):
            second.announce(300)
        second.announce(200)
        second.arrived(200)
        first.arrived(600)
        assert queue.held_bytes == 900
    assert queue.held_bytes == 0


def test_bytes_are_counted_as_they_arrive_where_they_were_not_announced(admission: Make) -> None:
    queue = admission(upload_bytes=1000)
    with queue.enter(request()) as first, queue.enter(request()) as second:
        first.arrived(400)
        second.arrived(200)
        second.arrived(150)
        assert queue.held_bytes == 750
        with pytest.raises(Problem, match="memory"):
            first.arrived(100)
    assert queue.held_bytes == 0


def test_what_comes_beyond_what_was_announced_is_counted_too(admission: Make) -> None:
    queue = admission(upload_bytes=1000)
    with queue.enter(request()) as place:
        place.announce(100)
        for expected in (100, 200):
            place.arrived(100)
            assert queue.held_bytes == expected
        place.arrived(500)
        assert queue.held_bytes == 700
    assert queue.held_bytes == 0


def test_what_can_never_fit_is_told_so_and_not_to_try_again(admission: Make) -> None:
    queue = admission(upload_bytes=1000)
    with queue.enter(request()) as place:
        for take in (place.announce, place.arrived):
            with pytest.raises(Problem, match="room for 750") as refusal:
                take(751)
            assert refusal.value.kind.slug == "too-large"
    assert queue.held_bytes == 0


def test_of_those_that_announced_the_same_room_the_late_are_refused_early(
    admission: Make,
) -> None:
    queue = admission(upload_bytes=1000)
    with queue.enter(request()) as first, queue.enter(request()) as late:
        first.announce(600)
        late.announce(600)
        first.arrived(100)
        with pytest.raises(Problem, match="memory"):
            late.arrived(100)
        assert queue.held_bytes == 600


def test_large_uploads_leave_room_for_small_ones(admission: Make) -> None:
    queue = admission(places=100, upload_bytes=10**6)
    with ExitStack() as uploads:

        def upload(size: int) -> None:
            place = uploads.enter_context(queue.enter(request()))
            place.announce(size)
            place.arrived(size // 8)

        for size in (100_000, 10_000, 1_000):
            with suppress(Problem):
                while True:
                    upload(size)
            upload(size // 4)
        assert queue.held_bytes < 10**6
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
                queue._handed += 1  # of which there is none
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
        assert queue.working == 0

    run(scene)


def test_the_bytes_of_a_body_are_held_until_its_work_has_really_ended(admission: Make) -> None:
    async def scene() -> None:
        queue, gate = admission(deadline_seconds=0.05), Gate()
        with queue.enter(request()) as place:
            place.arrived(600)
            with pytest.raises(Problem, match="being worked on"):
                await place.run(gate.work)
        assert (queue.taken, queue.held_bytes, queue.working) == (0, 600, 1)
        gate.open.set()
        while queue.working:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.001)
        assert queue.held_bytes == 0

    run(scene)


def test_the_bytes_of_a_cancelled_request_are_held_until_its_work_has_ended(
    admission: Make,
) -> None:
    async def scene() -> None:
        queue, gate = admission(), Gate()

        async def answer() -> None:
            with queue.enter(request()) as place:
                place.arrived(600)
                await place.run(gate.work)

        task = asyncio.create_task(answer())
        await gate.until_begun()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (queue.taken, queue.held_bytes) == (0, 600)
        gate.open.set()
        while queue.held_bytes:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.001)
        assert queue.working == 0

    run(scene)


def test_work_that_waits_for_memory_is_given_up_at_its_deadline(admission: Make) -> None:
    async def scene() -> None:
        queue, memory, begun = admission(deadline_seconds=0.1), MemoryBudget(1000), list[int]()

        def work() -> None:
            with memory.reserve(600):
                begun.append(1)

        with memory.reserve(600):
            with pytest.raises(Problem) as refused, queue.enter(request()) as place:
                await place.run(work)
            assert refused.value.kind.slug == "deadline-passed"
            while queue.working:  # noqa: ASYNC110 - its thread is free before the memory is
                await asyncio.sleep(0.001)
            assert memory.waiting == 0
        assert not begun
        with queue.enter(request()) as place:
            await place.run(work)
        assert begun

    run(scene)


def test_a_picture_that_waits_for_memory_too_long_is_not_called_damaged(
    cat_picture: bytes,
) -> None:
    memory = MemoryBudget(10**9)

    def read() -> None:
        worth_until.set(time.monotonic())
        with pytest.raises(TooLate):
            read_picture(cat_picture, limits=Limits(memory=memory))

    with memory.reserve(10**9):
        copy_context().run(read)


def test_refusals_at_a_glance_do_not_shorten_retry_after(admission: Make) -> None:
    def refuse() -> None:
        raise ValueError

    async def scene() -> None:
        queue = admission()
        queue._seconds_each = 5.0
        for _ in range(50):
            with pytest.raises(ValueError), queue.enter(request()) as place:  # noqa: PT011
                await place.run(refuse)
        assert queue._seconds_each == 5.0
        with queue.enter(request()) as place:
            await place.run(str)
        assert queue._seconds_each < 5.0

    run(scene)


class Network:
    """What answers for several at once, and remembers for how many."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def answers(self, items: Sequence[int]) -> list[str]:
        self.sizes.append(len(items))
        return [f"answer {item}" for item in items]


def give(item: int) -> Callable[[], int]:
    def begin() -> int:
        if item < 0:
            raise ValueError(f"{item} is bad")
        return item

    return begin


def gathered(
    admission: Make,
    begins: Sequence[Callable[[], int]],
    networks: Sequence[Network],
    **changes: Any,
) -> list[str | BaseException]:
    """What becomes of work that waits while a decoder is held up, quick work going before."""

    async def scene() -> None:
        queue, gate = admission(**changes), Gate()
        queue._seconds_each = 0.001
        with queue.enter(request()) as place:
            first = asyncio.create_task(place.run(gate.work))
            await gate.until_begun()
            others = [
                asyncio.create_task(place.run_together(begin, network.answers))
                for begin, network in zip(begins, networks, strict=True)
            ]
            await asyncio.sleep(changes.get("deadline_seconds", 0) * 1.5)
            assert queue.working == 1
            gate.open.set()
            ended.extend(await asyncio.gather(*others, return_exceptions=True))
            await asyncio.gather(first, return_exceptions=True)
        while queue.working:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.001)
        assert (queue.waiting, queue.working) == (0, 0)

    ended: list[str | BaseException] = []
    run(scene)
    return ended


def test_quick_pictures_that_wait_are_answered_together(
    admission: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "GATHERING_SECONDS", 60)
    network = Network()
    answers = gathered(admission, [give(i) for i in range(3)], [network] * 3)
    assert answers == ["answer 0", "answer 1", "answer 2"]
    assert network.sizes == [3]


def test_a_picture_is_not_kept_waiting_for_others_that_are_slow(
    admission: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "GATHERING_SECONDS", 0)
    network = Network()
    gathered(admission, [give(i) for i in range(3)], [network] * 3)
    assert network.sizes == [1, 1, 1]


def test_a_bad_picture_among_others_is_its_own_affair(
    admission: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "GATHERING_SECONDS", 60)
    network = Network()
    good, bad, fine = gathered(admission, [give(1), give(-1), give(2)], [network] * 3)
    assert (good, fine) == ("answer 1", "answer 2")
    assert isinstance(bad, ValueError)
    assert network.sizes == [2]


def test_only_those_for_the_same_network_are_answered_together(
    admission: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "GATHERING_SECONDS", 60)
    old, new = Network(), Network()
    answers = gathered(admission, [give(1), give(2), give(3)], [old, new, new])
    assert answers == ["answer 1", "answer 2", "answer 3"]
    assert (old.sizes, new.sizes) == ([1], [2])


def test_what_was_handed_over_ahead_is_not_started_after_its_deadline(admission: Make) -> None:
    started: list[int] = []

    def begin() -> int:
        started.append(1)
        return 1

    answers = gathered(admission, [begin] * 2, [Network()] * 2, deadline_seconds=0.05)
    slugs = [each.kind.slug for each in answers if isinstance(each, Problem)]
    assert slugs == ["deadline-passed"] * 2
    assert not started


def test_a_picture_is_not_kept_waiting_for_memory_that_another_needs(
    admission: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "GATHERING_SECONDS", 60)
    memory, network = MemoryBudget(1000), Network()

    def large() -> int:
        with memory.reserve(600):
            return 2

    async def scene() -> None:
        queue, gate = admission(), Gate()
        queue._seconds_each = 0.001
        with queue.enter(request()) as place:
            first = asyncio.create_task(place.run(gate.work))
            await gate.until_begun()
            small = asyncio.create_task(place.run_together(give(1), network.answers))
            other = asyncio.create_task(place.run_together(large, network.answers))
            await asyncio.sleep(0)
            with memory.reserve(600):
                gate.open.set()
                assert await small == "answer 1"
                assert not other.done()
            assert await other == "answer 2"
            await first
        assert network.sizes == [1, 1]

    run(scene)


def test_what_is_the_matter_with_one_answer_is_not_the_others_fault(
    admission: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "GATHERING_SECONDS", 60)

    class Fragile(Network):
        def answers(self, items: Sequence[int]) -> list[str]:
            if 2 in items:
                raise MemoryError(len(items))
            return super().answers(items)

    network = Fragile()
    good, bad = gathered(admission, [give(1), give(2)], [network] * 2)
    assert good == "answer 1"
    assert isinstance(bad, MemoryError)
    assert bad.args == (1,)


def test_work_that_nobody_waits_for_any_more_is_not_begun(admission: Make) -> None:
    async def scene() -> None:
        queue, gate, begun = admission(), Gate(), list[int]()
        queue._seconds_each = 0.001
        with queue.enter(request()) as place:
            first = asyncio.create_task(place.run(gate.work))
            await gate.until_begun()
            left = asyncio.create_task(place.run(begun.append, 1))
            await asyncio.sleep(0)
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)
            gate.open.set()
            await first
            assert await place.run(str, 7) == "7"
        assert not begun

    run(scene)


@pytest.mark.parametrize("ending", ["refused", "late"])
def test_a_picture_that_was_not_answered_is_not_kept(admission: Make, ending: str) -> None:
    class Body:
        def refuse(self) -> None:
            if ending == "late":
                time.sleep(0.1)
            raise ValueError("no picture")

    async def answer(queue: Admission, body: Body) -> None:
        with queue.enter(request()) as place:
            try:
                await place.run(body.refuse)
            except (ValueError, Problem) as error:
                error.__traceback__ = None  # as whoever answers does

    async def scene() -> None:
        queue, body = admission(deadline_seconds=0.03 if ending == "late" else 60), Body()
        kept = weakref.ref(body)
        await answer(queue, body)
        while queue.working:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        del body
        assert kept() is None

    gc.collect()
    gc.disable()
    try:
        run(scene)
    finally:
        gc.enable()


def test_slow_pictures_are_not_handed_over_ahead(admission: Make) -> None:
    async def scene() -> None:
        queue, gate = admission(), Gate()
        queue._seconds_each = 0.03
        with queue.enter(request()) as place:
            tasks = [asyncio.create_task(place.run(gate.work)) for _ in range(4)]
            await gate.until_begun()
            assert (len(queue._turns), queue.waiting, queue.working) == (3, 3, 1)
            gate.open.set()
            await asyncio.gather(*tasks)

    run(scene)


def test_retry_after_follows_how_long_pictures_take(admission: Make) -> None:
    queue = admission(places=20)
    queue._seconds_each = 0.5

    def told() -> str:
        with pytest.raises(Problem) as refused:
            queue.enter(request())
        return (refused.value.headers or {})["Retry-After"]

    with ExitStack() as places:
        slow = places.enter_context(queue.enter(request()))
        grow_old(queue)
        for _ in range(20):
            places.enter_context(queue.enter(request()))
        assert slow in queue.uploads, "which is none of the work that must be waited for"
        assert told() == "10"
        queue._seconds_each = 100.0
        assert told() == "60"


def test_a_decode_that_overruns_its_deadline_is_measured(admission: Make) -> None:
    def measured() -> float:
        (decodes,) = DECODE_SECONDS.collect()
        (count,) = [each.value for each in decodes.samples if each.name.endswith("_count")]
        return float(count)

    async def scene() -> None:
        queue, gate = admission(deadline_seconds=0.02), Gate()
        before = measured()
        with queue.enter(request()) as place, pytest.raises(Problem, match="worked on"):
            await place.run(gate.work)
        assert measured() == before
        gate.open.set()
        while queue.working:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.001)
        assert measured() == before + 1

    run(scene)
