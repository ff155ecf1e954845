"""A worker: a process with almost no rights, which processes untrusted bytes.

A program calls `serve`. It then is a *template*: a fresh process with one thread that loads the
model once and forks a worker for each socket that the front (`model.workers`) sends. Workers share
the template's memory, may open nothing, and die with it.

    front → template    one byte and a socket: start a worker on this socket
    template → front    lines of JSON: ready or failed; then started or refused, and ended, for each
    front → worker      jobs;  worker → front  replies: `HEADER`, a head as JSON, a body
"""

import contextlib
import ctypes
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

HEADER: Final = struct.Struct("<II")  # bytes of the head, bytes of the body
MOST_AT_ONCE: Final = 3  # jobs that are handled together, as far as they are here already
QUICK_BYTES: Final = 2**16  # of a body; larger ones are worked on alone
OUT_OF_MEMORY: Final = 12  # exit status
OUT_OF_TIME: Final = -signal.SIGPROF  # exit status
NICENESS: Final = 2  # so that the front gets its turn first

_LOOK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
# Parameters of mallopt(3) and prctl(2).
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_PR_SET_PDEATHSIG: Final = 1
# Pillow takes memory in blocks of up to 16 MB.
_KEPT_BLOCK_BYTES: Final = 2**24 + 2**16


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is asked: the values of its head, and the bytes to work on."""

    head: dict[str, Any]
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """What a worker answers: JSON values, and bytes that the front passes on unread."""

    head: dict[str, Any]
    body: bytes = b""


Handle = Callable[[Sequence[Job]], Sequence[Reply]]


class CannotLoad(Exception):
    """The program cannot start with these arguments; the message says why, and what to do."""


def serve(load: Callable[..., tuple[dict[str, Any], Handle]]) -> NoReturn:
    """Be a template until the front is gone.

    The command line holds the number of the control socket, the bytes of memory and the seconds of
    processor time that a worker may take for its jobs, and the arguments of `load`. That returns
    a description for the front, and the function that handles jobs; it must have run everything
    once, since workers cannot import or open anything. It raises CannotLoad.
    """
    number, memory_bytes, seconds, *arguments = sys.argv[1:]
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # the front decides when its workers end
    control = socket.socket(fileno=int(number))
    try:
        description, handle = load(*arguments)
    except CannotLoad as error:
        _tell(control, failed=str(error))
        sys.exit(1)
    _keep_memory()
    template = _Template(control, handle, int(memory_bytes), float(seconds))
    _tell(control, ready=description)
    template.run()


def missing_limits() -> list[str]:
    """What a worker is not prevented from, and why."""
    linux_only = () if sys.platform == "linux" else ("taking memory", "outliving the service")
    missing = [f"{what}: this system does not allow it" for what in linux_only]
    if os.geteuid() == 0:
        missing.append("starting processes: the service runs as root. Run it as another user.")
    return missing


def _tell(control: socket.socket, **message: Any) -> None:
    try:
        control.sendall(json.dumps(message).encode() + b"\n")
    except ConnectionError:
        os._exit(0)  # the front is gone; workers die with their parent


def _keep_memory() -> None:
    """Keep freed memory at hand between pictures, and shared memory shared.

    glibc would hand the memory of a large picture back to the system and take it again for the
    next one, a quarter of the time. Garbage collections would copy the pages that workers share.
    """
    with contextlib.suppress(AttributeError, OSError):  # musl and macOS have no mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BLOCK_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _KEPT_BLOCK_BYTES)
        libc.malloc_trim(0)
    gc.collect()
    gc.freeze()


class _Template:
    """Forks a worker for each socket that arrives, and tells how each one ends."""

    def __init__(
        self, control: socket.socket, handle: Handle, memory_bytes: int, seconds: float
    ) -> None:
        self.control, self.handle = control, handle
        self.memory_bytes, self.seconds = memory_bytes, seconds
        self.null = os.open(os.devnull, os.O_RDWR)
        self.libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def run(self) -> NoReturn:
        awake, wake = socket.socketpair()
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            readable, _, _ = select.select([self.control, awake], [], [])
            if awake in readable:
                awake.recv(4096)
                self._report_ended()
            if self.control in readable:
                try:
                    asked, sockets, _, _ = socket.recv_fds(self.control, 1, 1)
                except ConnectionError:
                    asked = b""
                if not asked:
                    os._exit(0)  # the front is gone; workers die with their parent
                for descriptor in sockets:
                    self._fork(descriptor, keep=[awake, wake])

    def _fork(self, descriptor: int, keep: Sequence[socket.socket]) -> None:
        try:
            pid = os.fork()
        except OSError as error:  # too many processes, or too little memory, for now
            os.close(descriptor)
            _tell(self.control, refused=error.strerror)
            return
        if pid:
            os.close(descriptor)
            _tell(self.control, started=pid)
            return
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for each in (self.control, *keep):
                each.close()
            self._be_worker(socket.socket(fileno=descriptor))
        finally:
            os._exit(1)

    def _report_ended(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                _tell(self.control, ended=ended[0], status=os.waitstatus_to_exitcode(ended[1]))

    def _be_worker(self, channel: socket.socket) -> None:
        for standard in (0, 1, 2):
            os.dup2(self.null, standard)
        os.close(self.null)
        if self.libc:
            self.libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _restrict(self.memory_bytes)
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                _work(channel, self.handle, self.seconds)
        os._exit(0)


def _restrict(memory_bytes: int) -> None:
    """Give up every right that working on a picture does not need."""
    with contextlib.suppress(OSError, AttributeError):
        if os.sched_getscheduler(0) == os.SCHED_OTHER:  # else the operator has chosen
            # A worker that wakes up then does not interrupt one that is in the midst of its work.
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    with contextlib.suppress(OSError):  # no /proc: a system that does not count RLIMIT_DATA either
        data_pages = int(Path("/proc/self/statm").read_text().split()[5])
        _limit(resource.RLIMIT_DATA, data_pages * resource.getpagesize() + memory_bytes)
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        _limit(limit, 0)
    _limit(resource.RLIMIT_NOFILE, 0)


def _limit(limit: int, value: int) -> None:
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(limit, (value, value))


def _work(channel: socket.socket, handle: Handle, seconds: float) -> None:
    """Read the jobs that are here, or wait for one, and send a reply for each."""
    try:
        jobs = [_receive(channel)]
        while len(jobs[-1].body) <= QUICK_BYTES and len(jobs) < MOST_AT_ONCE:
            if not _is_small_one_here(channel):
                break
            jobs.append(_receive(channel))
        began = time.perf_counter()
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process
        replies = _handle(jobs, handle)
        signal.setitimer(signal.ITIMER_PROF, 0)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # and no more work in an address space that has been full
    each = (time.perf_counter() - began) / len(jobs)
    channel.sendall(
        b"".join(packed({**reply.head, "seconds": each}, reply.body) for reply in replies)
    )


def _handle(jobs: Sequence[Job], handle: Handle) -> Sequence[Reply]:
    """The replies; where one job fails, the others get theirs."""
    try:
        return handle(jobs)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - whatever it is, the front logs it
        if len(jobs) > 1:
            return [reply for job in jobs for reply in _handle([job], handle)]
        return [Reply({"fault": traceback.format_exc()})]


def packed(head: dict[str, Any], body: bytes) -> bytes:
    """A job or a reply as the bytes that are sent."""
    text = json.dumps(head).encode()
    return b"".join((HEADER.pack(len(text), len(body)), text, body))


def _receive(channel: socket.socket) -> Job:
    head_bytes, body_bytes = HEADER.unpack(_read(channel, HEADER.size))
    head = json.loads(_read(channel, head_bytes).decode())
    return Job(head, _read(channel, body_bytes) if body_bytes else b"")


def _read(channel: socket.socket, count: int) -> bytes:
    data = channel.recv(count, socket.MSG_WAITALL)
    if len(data) < count:
        raise EOFError
    return data


def _is_small_one_here(channel: socket.socket) -> bool:
    try:
        header = channel.recv(HEADER.size, _LOOK)
    except BlockingIOError:
        return False
    return len(header) == HEADER.size and HEADER.unpack(header)[1] <= QUICK_BYTES
