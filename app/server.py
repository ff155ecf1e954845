"""uvicorn as `python -m app` runs it: a stop in steps, and slow clients dropped."""

import asyncio
import contextlib
import errno
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from math import ceil
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE

from app import log
from app.capacity import plan
from app.settings import Settings

# While it stops, a client that has still to send or to read gets this long. Docker kills ten
# seconds after it asked to stop: a client alone can never bring that about.
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
# Connections that are kept open, as far as this process may have so many files.
MOST_CONNECTIONS = 960
FEWEST_CONNECTIONS = 8
OTHER_FILES = 32  # listeners, the log, the event loop; besides two for each worker

logger = logging.getLogger("uvicorn.error")


class CannotListen(Exception):
    """The address, or enough connections, cannot be had. The message says why, and what to do."""


def run(app: FastAPI) -> int:
    """Serve until told to stop; the exit status. Raises CannotListen."""
    settings: Settings = app.state.settings
    listening = listen(settings.bind_host, settings.bind_port)
    host, port = listening[0].getsockname()[:2]
    app.state.address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    config = _config(app)
    config.limit_concurrency = _most_connections(settings) + 1  # `StrictHttp` closes those beyond
    server = Server(config, app)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(listening)
    return 0 if server.started else STARTUP_FAILURE


def _most_connections(settings: Settings) -> int:
    """The connections for which this process may have open files; it takes what it may have.
    Raises CannotListen where there are hardly any."""
    others = OTHER_FILES + 2 * plan(settings.workers).workers
    wanted = MOST_CONNECTIONS + others
    files, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < wanted:
        files = min(wanted, most_files)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most_files))
    if files >= wanted:
        return MOST_CONNECTIONS
    advice = f"Only {files} files may be open (ulimit -n). Allow {wanted}"
    if files < others + FEWEST_CONNECTIONS:
        raise CannotListen(f"{advice}, or {others + FEWEST_CONNECTIONS} at the least.")
    logger.warning("%s, else at most %d connections are kept open", advice, files - others)
    return files - others


def _config(app: FastAPI) -> uvicorn.Config:
    settings: Settings = app.state.settings
    return uvicorn.Config(
        app,
        log_config=log.configuration(settings.log),
        http="app.protocol:StrictHttp" if find_spec("httptools") else "h11",
        workers=1,  # else uvicorn asks the environment
        ws="none",
        access_log=False,  # app.middleware writes a better line
        server_header=False,
        proxy_headers=bool(settings.forwarded_allow_ips),  # anybody could write them
        forwarded_allow_ips=settings.forwarded_allow_ips,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        # Every request that had arrived is then answered, if only that its deadline has passed.
        timeout_graceful_shutdown=max(CLIENT_SECONDS, ceil(settings.deadline_seconds)) + 1,
    )


def listen(host: str, port: int) -> list[socket.socket]:
    """A listening socket for each address of the host, all with the same port; 0 is any free one.
    Raises CannotListen."""
    opened: list[socket.socket] = []
    missing: OSError | None = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
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
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        advice = "Stop what listens there, or set CAT_BIND_PORT." if taken else "Set CAT_BIND_HOST."
        message = f"Cannot listen on {host}, port {port}: {error.strerror}. {advice}"
        raise CannotListen(message) from error
    return opened


def _listen(family: int, address: tuple[Any, ...]) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


class Server(uvicorn.Server):
    """uvicorn, stopping in three steps: not ready, later closed to new clients, then ended."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self.app = app
        self.closes_at: float | None = None
        self.waits: dict[Any, tuple[Any, float]] = {}  # connection → what it waits for, since when
        self.is_full = False

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C stop the service, a second time at once; the exit status is 0."""
        signals = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, lambda *_: self.drain()) for number in signals]
        try:
            yield
        finally:
            for number, handler in zip(signals, before, strict=True):
                signal.signal(number, handler)

    def drain(self) -> None:
        """Be no longer ready, and close when the time for clients to go elsewhere is over."""
        if self.closes_at is not None:
            self.should_exit = self.force_exit = True
            return
        self.closes_at = time.monotonic() + self.app.state.settings.drain_seconds
        self.app.state.ready = False
        # Clients that keep a connection must not send a request just when it is closed.
        self.config.encoded_headers.append((b"connection", b"close"))
        self.server_state.default_headers.append((b"connection", b"close"))

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        now = time.monotonic()
        if counter % 10 == 0:
            self._close_slow_clients(now)
            self._note_fullness()
            if os.getpid() == 1:
                _reap_orphans()
        if self.closes_at is not None and now >= self.closes_at and not self.should_exit:
            self.should_exit = True
            asyncio.get_running_loop().call_later(CLIENT_SECONDS, self._leave_clients)
        return await super().on_tick(counter)

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
            elif connection.timeout_keep_alive_task is None and _is_over(cycle):
                limit = HEAD_SECONDS
            else:
                continue
            what = cycle, unread
            last, since = self.waits.get(connection, (what, now))
            waits[connection] = (what, since if last == what else now)
            if now - waits[connection][1] > limit:
                connection.transport.abort()
        self.waits = waits

    def _note_fullness(self) -> None:
        count, was_full = len(self._connections()), self.is_full
        self.is_full = count + 1 >= (self.config.limit_concurrency or 0)
        if self.is_full and not was_full:
            logger.warning("%d connections are open, as many as may: new ones are closed", count)

    def _leave_clients(self) -> None:
        """Give up what only waits for clients: uploads, which are answered that the service stops,
        and answers that are not read."""
        for connection in self._connections():
            cycle, unread = connection.cycle, connection.transport.get_write_buffer_size()
            # What still arrives of a body that was answered already would only be dropped.
            if unread or _is_over(cycle) or cycle.response_started:
                connection.transport.abort()
            elif cycle.more_body and not getattr(connection, "pipeline", True):
                connection.task.cancel()

    def _connections(self) -> list[Any]:
        return list(self.server_state.connections)


def _is_over(cycle: Any) -> bool:
    """Whether a connection has no request under way."""
    return cycle is None or cycle.response_complete


def _reap_orphans() -> None:
    """As a container's first process, take note of those that ended without a parent."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
