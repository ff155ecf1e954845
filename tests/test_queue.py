"""What the service takes on, what others are told, and how it divides the machine."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message

from app import capacity
from app.capacity import MAX_UPLOAD_SHARE, plan
from app.errors import Problem
from app.main import create_app
from app.queue import Queue
from app.routes import FORM_ALLOWANCE_BYTES
from app.settings import Settings
from model import machine
from model.machine import cores, memory_bytes
from model.workers import AHEAD_BYTES
from tests.conftest import Stuck
from tests.probe_worker import do
from tests.server import scene, started

MIB = 2**20


@asynccontextmanager
async def service(**settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, FastAPI]]:
    """The service with one worker that does what bodies say, and its client."""
    async with started(seconds=settings.get("processor_seconds", 5)) as workers:
        app = create_app(Settings(**settings), workers)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client,
        ):
            yield client, app
            assert (app.state.queue.in_progress, app.state.queue.held_bytes) == (0, 0)


def large(what: str, **values: Any) -> bytes:
    """A body that no worker is given ahead."""
    return do(what, **values) + b" " * AHEAD_BYTES


async def stalled(come: asyncio.Event, body: bytes) -> AsyncIterator[bytes]:
    yield body[:10]
    await come.wait()
    yield body[10:]


async def until(condition: Callable[[], Any]) -> None:
    while not condition():  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0.005)


async def raw(app: FastAPI, arriving: list[Message], path: str = "/predict") -> list[Message]:
    """What is sent to a client from which this arrives, then nothing more."""
    sent: list[Message] = []

    async def receive() -> Message:
        if not arriving:
            await asyncio.Event().wait()
        return arriving.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    await app(
        {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []},
        receive,
        send,
    )
    return sent


@scene
async def test_beyond_its_places_it_refuses_before_it_reads_a_body() -> None:
    async with service(queue=2) as (client, app):
        come = asyncio.Event()  # a slow upload takes no place, and is answered when all are taken
        slow = asyncio.ensure_future(client.post("/predict", content=stalled(come, do("nothing"))))
        await until(lambda: app.state.queue.in_progress == 1)
        taken = [client.post("/predict", content=large("sleep", seconds=0.3)) for _ in range(3)]
        answers = asyncio.gather(*taken)
        await until(lambda: app.state.workers.waiting == 2)
        start, end = await raw(app, [])
        assert start["status"] == 503
        assert 1 <= int(dict(start["headers"])[b"retry-after"]) <= 60
        assert b"/problems#busy" in end["body"]
        assert b"The queue is full: 2 pictures wait, at most 2 may. Try again" in end["body"]
        assert (await client.get("/health")).status_code == 200
        come.set()
        assert [answer.status_code for answer in (await slow, *await answers)] == [200] * 4
        assert (await client.post("/predict", content=do("nothing"))).status_code == 200


def test_a_body_is_refused_before_it_is_read_where_there_is_no_room() -> None:
    queue = Queue(Stuck({}), places=8, body_bytes=1000, deadline_seconds=60)
    with queue.enter() as first, queue.enter() as second:
        first.announce(700)
        assert queue.held_bytes == 0, "who announces and sends nothing takes no room"
        first.arrived(600)
        with pytest.raises(Problem, match="all the memory"):
            second.announce(301)
        second.announce(300)  # which large uploads leave for small ones
        second.arrived(250)
        with pytest.raises(Problem, match="all the memory"):
            first.arrived(100)
    assert queue.held_bytes == 0


@pytest.mark.parametrize("path", ["/predict", "/v2/models/cat/infer"])
@scene
async def test_a_request_whose_client_goes_is_not_worked_on_and_leaves_nothing_behind(
    path: str,
) -> None:
    async with service() as (client, app):
        first = asyncio.ensure_future(client.post(path, content=large("sleep", seconds=0.4)))
        await until(lambda: app.state.workers.busy)
        leaves: Message = {"type": "http.disconnect"}
        for more_body in (False, True):  # while its picture waits, and amid its upload
            body = {"type": "http.request", "body": large("nothing"), "more_body": more_body}
            await raw(app, [body, leaves], path)
        assert app.state.workers.waiting == 0
        cancelled = asyncio.create_task(raw(app, [body], path))
        await until(lambda: app.state.queue.in_progress == 2)
        cancelled.cancel()
        assert not first.done()
        await asyncio.gather(first, cancelled, return_exceptions=True)
        assert (await client.post("/predict", content=do("nothing"))).json()["handled"] == 2


@scene
async def test_what_is_not_done_by_its_deadline_is_given_up_and_if_it_waits_not_begun() -> None:
    async with service(deadline_seconds=0.5) as (client, app):
        bodies = [large("sleep", seconds=1), *[large("nothing")] * 3]
        answers = await asyncio.gather(*(client.post("/predict", content=b) for b in bodies))
        for late in answers:
            assert late.status_code == 503
            assert late.json()["type"] == "/problems#deadline-passed"
            assert int(late.headers["retry-after"]) >= 1
        at_once = {"le": "0.25"}  # the first did not wait: its worker took too long
        sample = app.state.metrics.registry.get_sample_value
        assert sample("cat_queue_seconds_bucket", at_once) == 1
        await until(lambda: not app.state.workers.busy)
        assert (await client.post("/predict", content=do("nothing"))).json()["handled"] == 2


@scene
async def test_an_upload_that_does_not_come_on_is_given_up_one_that_does_gets_more_time() -> None:
    async def steady() -> AsyncIterator[bytes]:
        for _ in range(4):
            await asyncio.sleep(0.35)
            yield b" " * 20_000
        yield do("nothing")

    async with service(upload_seconds=1) as (client, _):
        assert (await client.post("/predict", content=steady())).status_code == 200
        slow = await client.post("/predict", content=stalled(asyncio.Event(), bytes(100)))
        assert (slow.status_code, slow.json()["type"]) == (408, "/problems#slow-upload")


@pytest.mark.parametrize(
    ("count", "memory", "workers"),
    [(1, 8192, 1), (16, 32_768, 16), (2, 256, 1), (2, 512, 2), (16, 1024, 4)],
)
def test_there_are_as_many_workers_as_cores_and_memory_allow_and_all_stays_within_it(
    monkeypatch: pytest.MonkeyPatch, count: int, memory: int, workers: int
) -> None:
    monkeypatch.setattr(capacity, "cores", lambda: count)
    monkeypatch.setattr(capacity, "memory_bytes", lambda: memory * MIB)
    assert plan().workers == workers
    for planned in (plan(), plan(1)):
        shares = planned.workers * planned.worker_bytes + planned.body_bytes
        assert shares <= memory * MIB * 0.94 - 90 * MIB
        # The largest upload fits in a form, and something small beside it.
        most = planned.largest_upload_bytes + FORM_ALLOWANCE_BYTES
        assert 15 * MIB < most <= MAX_UPLOAD_SHARE * planned.body_bytes
        assert planned.body_bytes - most > 5 * MIB
    assert plan(64).worker_bytes >= 32 * MIB


# What /proc/self/cgroup says, for both versions of control groups.
TWO, BELOW, ONE = "0::/", "0::/a/b", "6:memory:/\n4:cpu,cpuacct:/\n0::/"


@pytest.mark.parametrize(
    ("group", "contents", "count", "memory"),
    [
        ("", {}, 8, None),
        (TWO, {"cpu.max": "150000 100000", "memory.max": "1048576"}, 2, MIB),
        (TWO, {"cpu.max": "10000 100000"}, 1, None),
        (BELOW, {"a/b/memory.max": "max", "a/memory.max": "2097152"}, 8, 2 * MIB),
        (ONE, {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4, None),
        (ONE, {"cpu/cpu.cfs_quota_us": "-1", "memory/memory.limit_in_bytes": "9999"}, 8, 9999),
        (ONE, {"memory/memory.limit_in_bytes": "9223372036854771712"}, 8, None),  # no limit
    ],
)
def test_cores_and_memory_are_those_that_the_control_group_allows(
    monkeypatch: pytest.MonkeyPatch,
    group: str,
    contents: dict[str, str],
    count: int,
    memory: int | None,
) -> None:
    files = {"/proc/self/cgroup": group}
    files |= {f"/sys/fs/cgroup/{name}": text for name, text in contents.items()}
    monkeypatch.setattr(machine, "_read", lambda path: files.get(str(path), ""))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cores() == count
    assert memory_bytes() == (memory or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
