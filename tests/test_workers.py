"""Worker processes: what they may not do, and what becomes of jobs when they end."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from model.worker import MOST_AT_ONCE
from model.workers import (
    AHEAD_BYTES,
    STALLED_SECONDS,
    CannotStart,
    Failure,
    JobRefused,
    PendingJob,
    Workers,
)
from tests.probe_worker import do
from tests.server import children, linux_only, scene, started, wait_until_gone

pytestmark = linux_only

BAD: list[tuple[str, dict[str, Any], Failure]] = [
    ("crash", {}, Failure.CRASH),
    ("crash", {"number": 40}, Failure.CRASH),  # a signal that has no name
    ("allocate", {"count": 2**27}, Failure.MEMORY),  # `started` gives a worker a quarter of it
    ("spin", {}, Failure.TIME),
]


def submit(workers: Workers, what: str, *, quick: bool = False, **values: Any) -> PendingJob:
    return workers.submit({}, do(what, **values), quick=quick)


def sized(workers: Workers, size: int, what: str = "nothing", **values: Any) -> PendingJob:
    """A job that may be sent ahead, with so many bytes more."""
    return workers.submit({}, do(what, **values) + b" " * size, quick=True)


async def reply(workers: Workers, what: str, **values: Any) -> dict[str, Any]:
    return (await submit(workers, what, **values).reply).head


async def refusal(job: PendingJob) -> Failure:
    with pytest.raises(JobRefused) as refused:
        await job.reply
    return refused.value.end


def replaced(workers: Workers) -> list[None]:
    """Has a member for each worker that is replaced from now on."""
    ended: list[None] = []
    workers.on_replaced = lambda: ended.append(None)
    return ended


def template_of(workers: Workers) -> int:
    return int(workers.description["version"])


async def in_hand(workers: Workers, count: int = 1) -> None:
    """Wait until a worker has begun the job that it was given, or many have."""
    while workers.busy < count:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)


@scene
async def test_a_worker_may_neither_open_nor_write_files_nor_connect_nor_fork(
    tmp_path: Path,
) -> None:
    async with started("", str(tmp_path / "kept")) as workers:
        for what, values, refused in (
            ("open", {"path": os.devnull}, "EMFILE"),
            ("connect", {}, "EMFILE"),
            ("write", {}, "EFBIG"),
            ("fork", {}, "EAGAIN"),
        ):
            head = await reply(workers, what, **values)
            if what == "fork" and head.get("refused") == "EPERM":
                pytest.skip("needs root that may become another user, or no root")
            assert head.get("refused") == refused, what
    assert (tmp_path / "kept").read_bytes() == b""


@pytest.mark.parametrize(("what", "values", "end"), BAD)
@scene
async def test_a_job_that_takes_too_much_is_refused_at_once_and_one_that_crashes_at_its_second_try(
    what: str, values: dict[str, Any], end: Failure
) -> None:
    async with started(seconds=0.2) as workers:
        await reply(workers, "sleep", seconds=0.3)  # which takes no processor time
        before, ended = await reply(workers, "allocate", count=2**24), replaced(workers)
        assert "a fault of the program" in (await reply(workers, "fail"))["fault"]
        assert await refusal(submit(workers, what, **values)) is end
        assert len(ended) == (2 if end is Failure.CRASH else 1)
        assert (await reply(workers, "nothing"))["pid"] != before["pid"]


@pytest.mark.parametrize(
    ("head", "body_bytes"), [("no JSON", 0), ("[]", 0), ('{"seconds": NaN}', 0), ("{}", 2**31)]
)
@scene
async def test_a_worker_that_sends_what_is_no_reply_is_replaced(head: str, body_bytes: int) -> None:
    async with started() as workers:
        hostile = submit(workers, "send", head=head, body_bytes=body_bytes)
        assert await refusal(hostile) is Failure.CRASH
        await reply(workers, "nothing")
        assert 0 <= workers.seconds_left < 60


@scene
async def test_jobs_are_done_in_their_order_small_ones_together_and_none_that_is_given_up() -> None:
    async with started() as workers:
        jobs = [submit(workers, "sleep", quick=True, seconds=0.2)]
        await in_hand(workers)
        jobs += [submit(workers, "nothing", quick=True) for _ in range(4)]
        jobs += [sized(workers, size) for size in (2**17, AHEAD_BYTES)]
        left = submit(workers, "nothing")
        jobs.append(submit(workers, "nothing"))
        left.cancel()
        assert workers.waiting == 7
        heads = [(await job.reply).head for job in jobs]
        together = [head["together"] for head in heads]
        assert max(together) == MOST_AT_ONCE
        assert together[-3:] == [1, 1, 1]
        handled = [head["handled"] for head in heads]
        assert handled == sorted(handled)
        assert handled[-1] == len(jobs)


@pytest.mark.parametrize(("what", "values", "end"), BAD)
@scene
async def test_only_the_bad_one_of_the_jobs_that_a_worker_has_is_refused(
    what: str, values: dict[str, Any], end: Failure
) -> None:
    """Whether they are worked on together, or one is sent ahead."""
    async with started(seconds=0.2) as workers:
        for bad_bytes, behind in ((0, 0), (0, 2**17), (2**17, 0)):
            first = submit(workers, "sleep", quick=True, seconds=0.2)
            await in_hand(workers)
            good = [] if bad_bytes else [sized(workers, 0)]
            bad = sized(workers, bad_bytes, what, **values)
            good.append(sized(workers, behind))
            assert await refusal(bad) is end
            for job in (first, *good):
                assert "value" in (await job.reply).head


@scene
async def test_a_stopped_worker_holds_up_only_what_it_has_and_is_replaced() -> None:
    async with started(count=2) as workers:
        stopped = (await reply(workers, "nothing"))["pid"]
        os.kill(stopped, signal.SIGSTOP)
        began = time.monotonic()
        job = workers.submit({}, do("nothing") + b" " * 2**24)  # more than a socket holds
        for _ in range(20):
            assert (await reply(workers, "nothing"))["pid"] != stopped
        assert time.monotonic() - began < STALLED_SECONDS
        assert (await job.reply).head["pid"] != stopped
        wait_until_gone([stopped])


@scene
async def test_a_stopped_template_does_not_keep_workers_from_being_replaced() -> None:
    async with started() as workers:
        worker = (await reply(workers, "nothing"))["pid"]
        template = template_of(workers)
        os.kill(template, signal.SIGSTOP)
        os.kill(worker, signal.SIGKILL)
        assert (await reply(workers, "nothing"))["pid"] != worker
        wait_until_gone([template])


@scene
async def test_a_reload_lets_the_old_ones_finish_what_they_have(tmp_path: Path) -> None:
    needed = tmp_path / "needed"
    needed.touch()
    before = children(os.getpid())
    async with started(str(needed)) as workers:
        old = await reply(workers, "nothing")
        last = submit(workers, "sleep", seconds=1)
        first = {**workers.description}
        await asyncio.gather(workers.reload(), workers.reload())
        assert workers.description != first
        assert (await reply(workers, "nothing"))["pid"] != old["pid"]
        assert (await last.reply).head["pid"] == old["pid"]
        while len(children(os.getpid())) > len(before) + 1:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.02)

        served = workers.description
        needed.unlink()
        with pytest.raises(CannotStart, match="There is no file"):
            await workers.reload()
        assert workers.description == served
        await reply(workers, "nothing")
    assert children(os.getpid()) == before


@pytest.mark.parametrize(
    ("program", "why"),
    [("tests.probe_worker", "There is no file /nowhere"), ("tests.nothing", "ended unexpectedly")],
)
@scene
async def test_workers_that_cannot_start_say_why(program: str, why: str) -> None:
    before = children(os.getpid())
    workers = Workers(program, ["/nowhere"], count=1, memory_bytes=2**25)
    with pytest.raises(CannotStart, match=why):
        await workers.start()
    assert children(os.getpid()) == before
