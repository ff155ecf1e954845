"""The front side of the worker processes: hand jobs out, await replies, replace what ends.

    workers = Workers("app.work", ["cat.safetensors"], count=2, memory_bytes=2**28)
    await workers.start()
    reply = await workers.submit({"kind": "predict"}, picture).reply

A *generation* is a template and the workers that it forked (`model.worker`). Whatever ends one of
them ends no more than a job: its worker is replaced, its jobs go to another one. A reload makes a
new generation next to the old one. All of it runs on one event loop: there is nothing to lock.
"""

import asyncio
import contextlib
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from model.worker import HEADER, MOST_AT_ONCE, OUT_OF_MEMORY, OUT_OF_TIME, QUICK_BYTES, Reply

MOST_IN_HAND: Final = 2 * MOST_AT_ONCE  # small jobs that a worker has, the ones ahead among them
AHEAD_BYTES: Final = 2**20  # the largest body sent ahead: until it is read, it is held twice
MOST_REPLY_HEAD_BYTES: Final = 2**20  # a worker that sends more has been taken over
MOST_REPLY_BYTES: Final = 2**24
LEAST_SHARE_BYTES: Final = 128 * 2**20  # of a worker: with less it would refuse many pictures
MOST_SHARE_BYTES: Final = 768 * 2**20  # the worst picture that the limits allow takes less
MOST_CRASHES: Final = 2  # of one job: then it is its fault
MOST_TRIES: Final = 5  # of one job, whoever ended its workers
START_SECONDS: Final = 60.0  # that a template may take to load
STALLED_SECONDS: Final = 2.0  # without progress, before a worker is replaced
CHECK_SECONDS: Final = 0.5
# Before a new worker: where none can live, starting them over and over would take all there is.
PAUSE_SECONDS: Final = 0.02
LONGEST_PAUSE_SECONDS: Final = 5.0  # between starts that fail
NEWEST: Final = 0.1  # weight of the newest in the moving average of how long a job takes
_ROOT: Final = Path(__file__).parent.parent  # where programs are found

logger = logging.getLogger("uvicorn.error")


class Failure(StrEnum):
    """Why no worker could do a job: the reason, for programs."""

    MEMORY = "too-many-pixels"
    TIME = "takes-too-long"
    CRASH = "crashes-decoder"


_SENTENCES: Final = {
    Failure.MEMORY: "needs more memory than is available. Make it smaller, or save it as a "
    "baseline JPEG.",
    Failure.TIME: "takes too much processor time. Make it smaller, or save it again as JPEG or "
    "PNG.",
    Failure.CRASH: "crashed its decoder twice. Save it again as JPEG or PNG.",
}


class JobRefused(Exception):
    """No worker could do this job. The message says why, and what to do, of "The picture"."""

    def __init__(self, end: Failure) -> None:
        super().__init__(_SENTENCES[end])
        self.end = end


class CannotStart(Exception):
    """Workers cannot be started; the message says why, and what to do."""


class PendingJob:
    """A job on its way. Await `reply`: a Reply, or JobRefused is raised."""

    __slots__ = ("_queue", "crashes", "data", "is_waiting", "quick", "reply", "taken", "tries")

    def __init__(self, queue: "deque[PendingJob]", data: tuple[bytes, bytes], quick: bool) -> None:
        self._queue = queue
        self.data = data  # head and body, kept for another try
        self.quick = quick  # may share a worker: not after it was there when one ended
        self.is_waiting = True  # no worker has it yet
        self.taken = 0.0  # when the latest one got it, by the event loop's clock
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.tries = self.crashes = 0

    @property
    def is_small(self) -> bool:
        """Whether a worker may work on it together with others."""
        return len(self.data[1]) <= QUICK_BYTES

    def cancel(self) -> None:
        """Cancel the job. If a worker has already begun it, the reply is dropped."""
        self.reply.cancel()
        self.data = (b"", b"")
        if self.is_waiting:
            self._queue.remove(self)
            self.is_waiting = False


class Workers:
    """A number of workers, and the queue before them.

    program: the module that calls `model.worker.serve`, with these arguments; memory_bytes: that
    each worker may take for its jobs; seconds: of processor time for a job.
    """

    def __init__(
        self,
        program: str,
        arguments: Sequence[str],
        *,
        count: int,
        memory_bytes: int,
        seconds: float = 5.0,
    ) -> None:
        self.count = count
        self.command = [str(memory_bytes), str(seconds), *arguments]
        self.program = program
        self.queue: deque[PendingJob] = deque()
        self.description: dict[str, Any] = {}  # what the template that serves now says of itself
        self.seconds_each = 0.05  # a guess, until something was measured
        self.current: _Generation | None = None
        self.on_replaced: Callable[[], object] = int  # called for each worker that is replaced
        self._launched: _Generation | None = None
        self._generations: list[_Generation] = []  # the current one, and those that still work
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = asyncio.Lock()  # one generation at a time
        self._stopping = False

    # --- for users ------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Jobs that no worker works on yet."""
        return len(self.queue) + sum(max(len(worker.jobs) - 1, 0) for worker in self._workers())

    @property
    def busy(self) -> int:
        """Workers at work."""
        return sum(bool(worker.jobs) for worker in self._workers())

    @property
    def seconds_left(self) -> float:
        """When the work that is here now will be done."""
        return (self.waiting + self.busy) * self.seconds_each / self.count

    def launch(self) -> None:
        """Start loading at once, before there is an event loop. Raises CannotStart."""
        try:
            self._launched = _Generation(self)
        except OSError as error:
            raise _cannot_start(error) from None

    async def start(self) -> None:
        """Start all workers. Raises CannotStart."""
        await self.reload()
        self.run_task(self._watch())

    async def reload(self) -> None:
        """Load everything again in new processes; once they are ready, they take over. Raises
        CannotStart, and the old ones go on."""
        async with self._starting:
            new = await self._generation()
            old, self.current = self.current, new
            self._generations.append(new)
            self.description.clear()  # in place: whoever holds it sees the new one
            self.description.update(new.description)
        if old:
            old.retired = True
            old.end_if_done()
        self.hand_out()

    def submit(self, head: dict[str, Any], body: bytes, *, quick: bool = False) -> PendingJob:
        """Queue a job. quick: it takes a moment, and may be sent to a worker that has others."""
        text = json.dumps(head).encode()
        job = PendingJob(self.queue, (HEADER.pack(len(text), len(body)) + text, body), quick)
        self.queue.append(job)
        self.hand_out()
        return job

    async def stop(self) -> None:
        """End all processes; jobs that are left are cancelled."""
        self._stopping = True
        for task in [*self._tasks]:
            task.cancel()
        for generation in [*self._generations]:
            generation.kill()
        for job in [*self.queue]:
            job.cancel()

    # --- the processes --------------------------------------------------------------------------

    async def _generation(self) -> "_Generation":
        generation = None
        try:
            generation, self._launched = self._launched or _Generation(self), None
            async with asyncio.timeout(START_SECONDS):
                await generation.start()
            return generation
        except BaseException as error:
            if generation:
                generation.kill()
            if isinstance(error, TimeoutError):
                raise CannotStart(
                    f"The weights did not load within {START_SECONDS:g} s: the machine is too "
                    "busy or too small."
                ) from None
            if isinstance(error, OSError):
                raise _cannot_start(error) from None
            raise

    def _workers(self) -> list["_Worker"]:
        return self.current.workers if self.current else []

    def run_task(self, coroutine: Any) -> None:
        """Run it in the background until it is done, or all is stopped."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def hand_out(self) -> None:
        """Give waiting jobs to workers that may have them, the first first."""
        while self.queue:
            job = self.queue[0]
            able = [worker for worker in self._workers() if worker.takes(job)]
            if not able:
                return
            min(able, key=_Worker.load).send(self.queue.popleft())

    def worker_ended(self, worker: "_Worker", status: int | None) -> None:
        """Find out whose fault it was, and see to the jobs that it had. status: its exit status,
        negative for a signal; None where it ended with its template."""
        jobs = [job for job in worker.jobs if not job.reply.done()]
        first = worker.jobs[0] if worker.jobs else None
        alone = len(worker.jobs) == 1 or not all(job.is_small for job in [*worker.jobs][:2])
        worker.jobs.clear()
        for job in reversed(jobs):
            job.quick = False  # it has a worker of its own, so that an end says whose fault it is
            end = _failure(status) if job is first else None
            job.tries += job is first and status is not None
            job.crashes += end is Failure.CRASH
            if end and (alone if end is not Failure.CRASH else job.crashes >= MOST_CRASHES):
                job.reply.set_exception(JobRefused(end))
            elif job.tries >= MOST_TRIES:
                job.reply.set_exception(JobRefused(Failure.CRASH))
            else:
                job.is_waiting = True
                self.queue.appendleft(job)
        if status is not None and not self._stopping:
            logger.warning("Worker %d %s and was replaced", worker.pid, _exit_text(status))
            self.on_replaced()
        self.hand_out()

    def generation_ended(self, generation: "_Generation") -> None:
        """Replace a generation whose template ended."""
        with contextlib.suppress(ValueError):  # it may not have served yet
            self._generations.remove(generation)
        if generation is self.current:
            self.current = None
            if not self._stopping:
                logger.warning("The template process ended and is being restarted")
                self.run_task(self._start_anew())

    async def _start_anew(self) -> None:
        pause = 0.1
        while self.current is None:
            try:
                await self.reload()
            except CannotStart as error:
                logger.error("%s", error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _watch(self) -> None:
        """Kill what makes no progress, so that it is replaced."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            for generation in [*self._generations]:
                generation.check(time.monotonic())


def _cannot_start(error: OSError) -> CannotStart:
    what = f"{sys.executable}, which the workers run in, cannot be started"
    return CannotStart(f"{what}: {error.strerror}.")


class _Generation:
    """A template, as the front sees it, and the workers that it forked.

    Making one starts a fresh interpreter, which inherits nothing but a socket. Raises OSError.
    """

    def __init__(self, owner: Workers) -> None:
        self.owner = owner
        self.description: dict[str, Any] = {}
        self.workers: list[_Worker] = []
        self.retired = self.ended = False
        self._forking: deque[_Worker] = deque()  # asked for, but not reported yet
        self._lines = b""
        self._failure = (
            "The process that loads the weights ended unexpectedly; the log may say why."
        )
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        with theirs:
            number = str(theirs.fileno())
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own program
                    [sys.executable, "-m", owner.program, number, *owner.command],
                    cwd=_ROOT,
                    env={name: value for name, value in os.environ.items() if name[:4] != "CAT_"},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C is for the front alone
                )
            except OSError:
                self._control.close()
                raise

    async def start(self) -> None:
        """Load, and start all workers. Raises CannotStart, and OSError."""
        self._is_ready = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._control, self._read)
        await self._is_ready.wait()
        for _ in range(self.owner.count):
            await self._add_worker()
        if self.ended:
            raise CannotStart(self._failure)

    async def _add_worker(self) -> None:
        if self.retired or self.ended:
            return
        ours, theirs = socket.socketpair()
        worker = _Worker(self)
        with theirs:
            loop = asyncio.get_running_loop()
            await loop.create_unix_connection(lambda: worker, sock=ours)
            try:
                socket.send_fds(self._control, [b"w"], [theirs.fileno()])
            except OSError:
                worker.close()
                raise
        self._forking.append(worker)
        self.workers.append(worker)
        self.owner.hand_out()

    async def _replace(self, pause: float) -> None:
        await asyncio.sleep(pause)
        try:
            await self._add_worker()
        except OSError as error:  # too many open files, say, or the template is gone
            logger.error("No worker can be started: %s", error.strerror)
            self.owner.run_task(self._replace(LONGEST_PAUSE_SECONDS))

    def _read(self) -> None:
        try:
            data = self._control.recv(2**20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.kill()
            return
        *lines, self._lines = (self._lines + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        match message:
            case {"ready": description}:
                self.description = description
                self._is_ready.set()
            case {"failed": why}:
                self._failure = why
                self.kill()
            case {"started": pid}:
                worker = self._forking.popleft()
                worker.pid = pid
                if not worker.is_open:
                    worker.kill()
            case {"refused": why}:
                logger.error("No worker could be started (%s); trying again", why)
                self._worker_ended(self._forking.popleft(), None, LONGEST_PAUSE_SECONDS)
            case {"ended": pid, "status": status}:
                for worker in [each for each in self.workers if each.pid == pid]:
                    self._worker_ended(worker, status, PAUSE_SECONDS)

    def _worker_ended(self, worker: "_Worker", status: int | None, pause: float) -> None:
        self.workers.remove(worker)
        worker.close()
        self.owner.worker_ended(worker, status)
        self.owner.run_task(self._replace(pause))
        self.end_if_done()

    def end_if_done(self) -> None:
        """End a generation that another has replaced, once its workers have no more jobs."""
        if self.retired and not any(worker.jobs for worker in self.workers):
            self.kill()

    def check(self, now: float) -> None:
        """Kill workers, or the template, that make no progress."""
        for worker in self.workers:
            if not worker.is_stalled(now):
                continue
            if worker.is_open and worker.pid:
                logger.warning("Worker %d makes no progress and was killed", worker.pid)
                worker.kill()
            else:  # its template should have said how it started, or ended
                self.kill()
                return

    def kill(self) -> None:
        """End the template, and with it its workers."""
        if self.ended:
            return
        self.ended = True
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        self._process.kill()
        self._process.wait()
        self._is_ready.set()
        workers, self.workers = self.workers, []
        for worker in workers:
            worker.close()
            worker.kill()
        self.owner.generation_ended(self)
        for worker in workers:
            self.owner.worker_ended(worker, None)


class _Worker(asyncio.Protocol):
    """A worker, as the front sees it: the jobs that it has, and the bytes of replies so far."""

    def __init__(self, generation: _Generation) -> None:
        self.generation = generation
        self.pid = 0  # until the template has reported it
        self.jobs: deque[PendingJob] = deque()
        self.is_open = True
        self._received = bytearray()
        self._progress: tuple[int, float] = (-1, 0.0)  # processor time, and when it last changed

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport

    def takes(self, job: PendingJob) -> bool:
        """Whether it may have this job now: small ones ahead, or one that is not so small."""
        if not self.is_open or not self.jobs:
            return self.is_open
        both = (job, *self.jobs)
        if not all(each.quick for each in both):
            return False
        if all(each.is_small for each in both):
            return len(self.jobs) < MOST_IN_HAND
        return len(self.jobs) == 1 and len(job.data[1]) <= AHEAD_BYTES

    def load(self) -> int:
        """How much it has to do, as far as bytes tell."""
        return sum(1 + len(job.data[1]) for job in self.jobs)

    def send(self, job: PendingJob) -> None:
        if not self.jobs:
            self._progress = (-1, time.monotonic())
        self.jobs.append(job)
        job.is_waiting, job.taken = False, asyncio.get_running_loop().time()
        head, body = job.data
        if job.is_small:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            while (reply := self._next_reply()) is not None:
                self._replied(reply)
        except (ValueError, LookupError, TypeError, RecursionError):
            logger.error("Worker %d sent an invalid reply and was killed", self.pid)
            self._received.clear()
            self._transport.abort()
        self.generation.end_if_done()
        self.generation.owner.hand_out()

    def _next_reply(self) -> Reply | None:
        """The next reply, where all of it is here.

        Raises ValueError and others for anything else: a worker may have been taken over.
        """
        if len(self._received) < HEADER.size:
            return None
        head_bytes, body_bytes = HEADER.unpack_from(self._received)
        size = HEADER.size + head_bytes + body_bytes
        if head_bytes > MOST_REPLY_HEAD_BYTES or body_bytes > MOST_REPLY_BYTES or not self.jobs:
            raise ValueError
        if len(self._received) < size:
            return None
        body_start = HEADER.size + head_bytes
        head = json.loads(self._received[HEADER.size : body_start].decode())
        if not 0 <= head["seconds"] < math.inf:
            raise ValueError
        body = bytes(self._received[body_start:size])
        del self._received[:size]
        return Reply(head, body)

    def _replied(self, reply: Reply) -> None:
        job = self.jobs.popleft()
        self._progress = (-1, time.monotonic())
        owner = self.generation.owner
        owner.seconds_each += NEWEST * (reply.head["seconds"] - owner.seconds_each)
        if not job.reply.done():
            job.reply.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._progress = (-1, time.monotonic())
        self.kill()  # where it goes on all the same; its template will tell how it ended

    def close(self) -> None:
        self.is_open = False
        self._transport.close()

    def kill(self) -> None:
        """End the process at once, where there is one."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def is_stalled(self, now: float) -> bool:
        """Whether it has taken no processor time for a while, though it could have."""
        if self.is_open and not self.jobs:
            return False
        spent, since = self._progress
        found, is_running = _processor_time(self.pid)
        if found != spent or is_running:
            self._progress = (found, now)
            return False
        return now - since > STALLED_SECONDS


def _processor_time(pid: int) -> tuple[int, bool]:
    """Ticks that a process has taken, and whether it runs or waits for a processor."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it is gone, or the system has no /proc
        return -1, sys.platform != "linux"
    return int(fields[11]) + int(fields[12]), fields[0] == "R"


def _failure(status: int | None) -> Failure | None:
    """Whether a worker was ended by its job; a SIGKILL comes from outside."""
    if status is None or status == -signal.SIGKILL:
        return None
    return {OUT_OF_MEMORY: Failure.MEMORY, OUT_OF_TIME: Failure.TIME}.get(status, Failure.CRASH)


def _exit_text(status: int) -> str:
    """How a worker ended, for the log."""
    if status == OUT_OF_MEMORY:
        return "ran out of memory"
    if status == OUT_OF_TIME:
        return "took too much processor time for a job"
    if status >= 0:
        return f"ended with {status}"
    known = -status in set(signal.Signals)  # real-time signals have numbers only
    return f"was killed by {signal.Signals(-status).name if known else f'signal {-status}'}"
