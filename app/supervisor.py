"""The processes of `python -m app`: a parent that loads the service, and workers forked from it.

Parent:  settings → app with its classifier → listening sockets → a worker for each socket.
         Replaces workers that died, passes on what it is told by signals, reaps its children.
Worker:  uvicorn on its own socket, answering with what the parent has in memory.

A pipe leads from the parent to each worker: "stop", or "reload FILE", a line each. Its end means
that the parent is gone, and the worker stops too.
"""

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from app.lines import Lines
from app.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

# While it stops, what waits for a client, an upload or an answer to be read, gets this long. Docker
# kills ten seconds after it asked to stop: a client alone can never bring that about.
CLIENT_SECONDS = 7

# Proxies keep idle connections for a minute. If the service closed them first, it would now and
# then close one on which a request is just being sent.
KEEP_ALIVE_SECONDS = 75
# A request's line and headers have to arrive within this time, and some of an answer be read.
HEAD_SECONDS = 10.0
ANSWER_SECONDS = 30.0
# That the system keeps of answers nobody reads, a connection; left to itself it takes megabytes.
SEND_BYTES = 2**17
BACKLOG = 2048

# A worker that died is replaced at once; one that died again this soon after its start has to wait,
# twice as long each time.
SOON_SECONDS = 10.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 5.0

WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM)

logger = logging.getLogger("uvicorn.error")


class CannotStart(Exception):
    """The service cannot start. The message says why, and what to do."""


def stop_seconds(settings: Settings) -> int:
    """How long a worker that stops gives the requests that it has: every one that had arrived is
    then answered, if only with the news that its deadline has passed."""
    return max(CLIENT_SECONDS, ceil(settings.deadline_seconds)) + 1


def kill_seconds(settings: Settings) -> float:
    """The longest that a stop takes, from the signal on: then no process is left."""
    return settings.drain_seconds + stop_seconds(settings) + 2


def run(settings: Settings) -> int:
    """Serve until told to stop; the exit status. Raises CannotStart."""
    # Waited for, never interrupting. What arrives before the first wait is kept until then.
    signal.signal(signal.SIGCHLD, lambda *_: None)  # some systems drop what nobody handles
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    config = _config(settings)
    with _metrics_folder():
        # Imported here: the libraries take their time, and metrics want to know their folder.
        from app import allocator, configuration
        from app.capacity import plan
        from app.main import app
        from app.reload import load_classifier
        from model.classifier import BadArtifact

        try:
            app.state.classifier = load_classifier(settings)
        except BadArtifact as error:
            raise CannotStart(str(error)) from None
        app.state.capacity = capacity = plan(settings.workers)
        config.load()  # here and not in each worker: what it imports is shared
        logger.info("Started parent process [%d]", os.getpid())
        configuration.log(settings, capacity, app.state.classifier)
        sockets = open_sockets(settings.bind_host, settings.bind_port, capacity.workers)
        host, port = sockets[0][0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        logger.info("Uvicorn running on http://%s:%d (Press CTRL+C to quit)", shown, port)
        allocator.settle()
        return Supervisor(app, config, sockets).run()


@contextmanager
def _metrics_folder() -> Iterator[None]:
    """A folder in which the workers' metrics are added up, as long as the service runs.

    In memory where there is a place for that: it is written to with every request.
    """
    memory = "/dev/shm"  # noqa: S108 - a folder of our own is made inside
    folder = tempfile.mkdtemp(prefix="cat-metrics-", dir=memory if os.access(memory, 7) else None)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _config(settings: Settings) -> uvicorn.Config:
    """uvicorn's configuration, and logging set up as it says: before the service is imported,
    whose loggers it would reset."""
    return uvicorn.Config(
        "app.main:app",
        log_config={
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"lines": {"()": Lines, "form": settings.log}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "lines"}},
            "root": {"handlers": ["stderr"], "level": "WARNING"},
            "loggers": {"uvicorn": {"level": "INFO"}},
        },
        http="app.protocol:StrictHttp" if find_spec("httptools") else "h11",
        workers=1,  # of uvicorn's own making; else it asks the environment
        ws="none",
        access_log=False,  # app.observation writes a better line
        server_header=False,
        proxy_headers=bool(settings.forwarded_allow_ips),  # anybody could write them
        forwarded_allow_ips=settings.forwarded_allow_ips,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=stop_seconds(settings),
    )


def open_sockets(host: str, port: int, workers: int) -> list[list[socket.socket]]:
    """Listening sockets for each worker: one for each address that the host has.

    Where the system spreads connections over sockets with one address, each worker has its own:
    workers with a common one leave it to chance who takes how many. Port 0 is any free port, the
    same for all. Raises CannotStart.
    """
    try:
        # Unshared at first: together with another service's sockets we would share its requests.
        alone = _open_alone(host, port)
        if workers == 1 or sys.platform != "linux":
            return [alone] * workers
        addresses = [(each.family, each.getsockname()) for each in alone]
        for each in alone:
            each.close()
        return [
            [_listen(family, address, shared=True) for family, address in addresses]
            for _ in range(workers)
        ]
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        advice = "Stop what listens there, or set CAT_BIND_PORT." if taken else "Set CAT_BIND_HOST."
        message = f"Cannot listen on {host}, port {port}: {error.strerror}. {advice}"
        raise CannotStart(message) from error


def _open_alone(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of the host. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    opened: list[socket.socket] = []
    missing: OSError | None = None
    for family, _, _, _, address in found:
        try:
            opened.append(_listen(family, (address[0], port, *address[2:])))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
            missing = error  # "localhost" is an IPv6 address too, also where there is no IPv6
        else:
            port = opened[0].getsockname()[1]
    if missing and not opened:
        raise missing
    return opened


def _listen(family: int, address: tuple[Any, ...], *, shared: bool = False) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


@dataclass
class _Place:
    """A worker's place, which outlives the worker. `pid` and `control` are 0 without one."""

    number: int
    sockets: Sequence[socket.socket]
    pid: int = 0
    control: int = 0  # the writing end of the pipe
    started: float = 0.0  # monotonic seconds, as are all times here
    due: float = 0.0  # when the next worker may start
    early_ends: int = 0  # workers in a row that ended soon after their start


class Supervisor:
    """The parent: keeps a worker in each place until it is told to stop.

    Signals are waited for one by one, so nothing ever happens in the midst of something else, and
    the process has a single thread, as forking demands.
    """

    def __init__(
        self, app: "FastAPI", config: uvicorn.Config, sockets: Sequence[Sequence[socket.socket]]
    ) -> None:
        self.app, self.config = app, config
        self.places = [_Place(number, each) for number, each in enumerate(sockets)]
        self.stopping = False
        self.served = False  # whether a worker has lived for some time: then others can, too
        self.kill_at: float | None = None  # when workers that do not stop are ended
        self.handed_over = ""  # the file of the last reload
        self.status = 0

    def run(self) -> int:
        """Supervise until all workers have ended; the exit status."""
        from app.reload import terminal_is_gone

        self._fill()
        while not self.stopping or any(place.pid for place in self.places):
            self._set_alarm()
            received = signal.sigwait(WATCHED)
            hung_up = received == signal.SIGHUP and terminal_is_gone()
            if received in (signal.SIGTERM, signal.SIGINT) or hung_up:
                self._kill() if self.stopping else self._stop()
            elif received == signal.SIGHUP and not self.stopping:
                self._reload()
            self._reap()
            if self.kill_at is not None and time.monotonic() >= self.kill_at:
                self._kill()
            self._fill()
        logger.info("Stopped")
        return self.status

    def _fill(self) -> None:
        """Start the workers that are due."""
        now = time.monotonic()
        for place in self.places:
            if not (place.pid or self.stopping) and now >= place.due:
                self._fork(place)

    def _set_alarm(self) -> None:
        """Have SIGALRM sent when the next thing is due, if anything is."""
        times = [place.due for place in self.places if not (place.pid or self.stopping)]
        if self.kill_at is not None:
            times.append(self.kill_at)
        delay = max(min(times) - time.monotonic(), 0.001) if times else 0.0
        signal.setitimer(signal.ITIMER_REAL, delay)  # 0: none

    def _fork(self, place: _Place) -> None:
        place.started = time.monotonic()
        control, writing = os.pipe()
        try:
            place.pid = os.fork()
        except OSError as error:  # too many processes, or too little memory, for now
            os.close(control)
            os.close(writing)
            place.due = place.started + LONGEST_PAUSE_SECONDS
            logger.error("No worker could be started (%s); trying again", error.strerror)
            return
        place.control = writing
        if place.pid == 0:
            self._be_worker(place, control)
        os.close(control)

    def _be_worker(self, place: _Place, control: int) -> NoReturn:
        """Serve, in the child, and end the process: nothing of the parent's must run in it."""
        status = 1
        try:
            for other in self.places:
                if other.control:
                    os.close(other.control)  # or the end of a pipe would never be seen
                if other.sockets is not place.sockets:
                    for each in other.sockets:
                        each.close()
            from app import metrics

            metrics.be_worker(place.number)
            _interrupt_less()
            worker = Worker(self.config, self.app, control)
            worker.run(list(place.sockets))
            if worker.orphaned and metrics.FOLDER:
                shutil.rmtree(metrics.FOLDER, ignore_errors=True)  # who else would?
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            logger.exception("The worker failed")
            raise
        finally:
            with contextlib.suppress(Exception):
                logging.shutdown()
            os._exit(status)

    def _reap(self) -> None:
        """Take note of the children that ended; as a container's first process, of any others."""
        from app import metrics

        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, code = ended[0], os.waitstatus_to_exitcode(ended[1])
                for place in self.places:
                    if place.pid == pid:
                        os.close(place.control)
                        place.pid = place.control = 0
                        metrics.forget_worker(place.number)
                        self._note_end(place, pid, code)

    def _note_end(self, place: _Place, pid: int, code: int) -> None:
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        if self.stopping:
            if code:
                logger.error("Worker %d %s", pid, how)
                self.status = self.status or 1
            return
        if code == STARTUP_FAILURE and not self.served:
            logger.error("Worker %d could not start, so no other one can", pid)
            self.status = STARTUP_FAILURE
            self._stop()
            return
        now = time.monotonic()
        early = now - place.started < SOON_SECONDS
        self.served = self.served or not early
        place.early_ends = place.early_ends + 1 if early else 0
        pause = 0.0
        if place.early_ends > 1:
            pause = min(FIRST_PAUSE_SECONDS * 2 ** (place.early_ends - 2), LONGEST_PAUSE_SECONDS)
        place.due = now + pause
        when = f"in {pause:g} s" if pause else "at once"
        logger.warning("Worker %d %s; another one takes its place %s", pid, how, when)

    def _stop(self) -> None:
        settings: Settings = self.app.state.settings
        self.stopping = True
        self.kill_at = time.monotonic() + kill_seconds(settings)
        self._tell("stop")
        # Open as long as a worker accepts from them, and no longer.
        for place in self.places:
            for each in place.sockets:
                each.close()

    def _kill(self) -> None:
        for place in self.places:
            if place.pid:
                os.kill(place.pid, signal.SIGKILL)
        self.kill_at = None

    def _reload(self) -> None:
        """Load new weights, for the workers of the future, and hand them over to those of today."""
        from app import allocator, metrics, reload

        file = f"{metrics.FOLDER}/model-{time.monotonic_ns()}"
        state = self.app.state
        shared = reload.share_next(state.settings, state.classifier, file)
        if shared is not None:
            last, self.handed_over = self.handed_over, file
            state.classifier = shared
            self._tell(f"reload {file}")
            if last:
                Path(last).unlink(missing_ok=True)
        allocator.settle()

    def _tell(self, message: str) -> None:
        for place in self.places:
            if place.control:
                with contextlib.suppress(BrokenPipeError):  # it just died
                    os.write(place.control, f"{message}\n".encode())


def _interrupt_less() -> None:
    """Let this process's threads, when they wake, wait for those that are at work.

    A worker's loop wakes for every request's bytes and result; where all cores are busy, it would
    each time stop a thread that decodes, its own or another worker's, for a moment's work. See
    SCHED_BATCH in sched(7): it wakes later, and its weight among processes stays the same.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # where it is forbidden, all goes on as before
            if os.sched_getscheduler(0) == os.SCHED_OTHER:
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


class Worker(uvicorn.Server):
    """uvicorn, stopping in three steps: not ready, later closed to new clients, then ended.

    control: the reading end of the pipe from the parent.
    """

    def __init__(self, config: uvicorn.Config, app: "FastAPI", control: int) -> None:
        super().__init__(config)
        self.app, self.control = app, control
        self.orphaned = False
        self.closes_at: float | None = None
        self.waits: dict[Any, tuple[Any, float]] = {}  # connection → what it waits for, since when

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """SIGTERM asks this worker alone to stop. The parent decides on all others, which a
        terminal sends to both."""
        signal.signal(signal.SIGTERM, lambda *_: self.drain())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, lambda *_: self._point_to_parent())
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
        return nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        asyncio.get_running_loop().add_reader(self.control, self._listen_to_parent)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        now = time.monotonic()
        if counter % 10 == 0:
            self._close_slow_clients(now)
        if self.closes_at is not None and now >= self.closes_at and not self.should_exit:
            self.should_exit = True
            asyncio.get_running_loop().call_later(CLIENT_SECONDS, self._leave_clients)
        return await super().on_tick(counter)

    def drain(self) -> None:
        """Be no longer ready, and close when the time for clients to go elsewhere is over."""
        if self.closes_at is None:
            self.closes_at = time.monotonic() + self.app.state.settings.drain_seconds
            self.app.state.ready = False
            # Clients that keep a connection must not send a request just when it is closed.
            self.config.encoded_headers.append((b"connection", b"close"))
            self.server_state.default_headers.append((b"connection", b"close"))

    def _point_to_parent(self) -> None:
        """Say who reloads, unless a terminal that went has told all processes."""
        from app.reload import terminal_is_gone

        if not terminal_is_gone():
            logger.warning("SIGHUP does nothing here: send it to the parent, PID %d", os.getppid())

    def _listen_to_parent(self) -> None:
        from app import reload

        messages = os.read(self.control, 4096).decode().splitlines()
        if not messages:
            logger.warning("The parent process is gone, so this worker stops")
            asyncio.get_running_loop().remove_reader(self.control)
            self.orphaned = True
            self.drain()
        for message in messages:
            word, _, file = message.partition(" ")
            if word == "reload":
                reload.take_over(self.app, file)
            else:
                self.drain()

    def _close_slow_clients(self, now: float) -> None:
        """Close connections whose request's head, or whose reading of answers, takes too long.

        uvicorn limits the time between requests only; without this, a thousand connections that
        send nothing, or read nothing, would keep everybody else out.
        """
        waits = {}
        for connection in self._connections():
            cycle, unread = connection.cycle, connection.transport.get_write_buffer_size()
            if unread:
                limit = ANSWER_SECONDS
            elif connection.timeout_keep_alive_task is None and is_over(cycle):
                limit = HEAD_SECONDS
            else:
                continue
            what = cycle, unread
            last, since = self.waits.get(connection, (what, now))
            waits[connection] = (what, since if last == what else now)
            if now - waits[connection][1] > limit:
                connection.transport.abort()
        self.waits = waits

    def _leave_clients(self) -> None:
        """Give up what only waits for clients: uploads, which are answered that the service stops,
        and answers that are not read."""
        for connection in self._connections():
            cycle, unread = connection.cycle, connection.transport.get_write_buffer_size()
            # What still arrives of a body that was answered already would only be dropped.
            if unread or is_over(cycle) or cycle.response_started:
                connection.transport.abort()
            elif cycle.more_body and not getattr(connection, "pipeline", True):
                connection.task.cancel()

    def _connections(self) -> list[Any]:
        return list(self.server_state.connections)


def is_over(cycle: Any) -> bool:
    """Whether a connection has no request under way."""
    return cycle is None or cycle.response_complete
