"""uvicorn as `python -m app` runs it: strict about HTTP, with slow clients dropped, and a stop in
steps.

uvicorn's faster parser has no guards by itself: it collects headers without end (24 MB of short
header lines take 300 MB of memory). It lets requests without a Host pass, which RFC 9112, section
3.2, has servers refuse. And it drops the body of a request that offers to go on in another
protocol, as Java's client does with every one.
"""

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
import time
from math import ceil, inf
from types import FrameType
from typing import Any, cast

import httptools
import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.errors import Problem
from app.middleware import ProblemResponse, RequestMiddleware
from app.observation import configure_log

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
# As in uvicorn's other parser. Of the address and all headers together, and of any one thing.
MOST_HEAD_BYTES = 64 * 2**10
# Browsers send some twenty headers, proxies add a few.
MOST_HEADERS = 100
# Requests sent on one connection before their answers; hardly a client does it at all.
MOST_PIPELINED = 8
# Of answers that a client has not taken; beyond, its next request waits. One answer may be larger.
MOST_UNREAD_BYTES = 16 * 2**10

logger = logging.getLogger("uvicorn.error")


def run(app: FastAPI) -> int:
    """Serve until told to stop; the exit status. Raises SystemExit, with why and what to do, where
    the address or enough connections cannot be had."""
    settings = app.state.settings
    configure_log(settings.log)
    listening = _listen(settings.bind_host, settings.bind_port)
    host, port = listening.getsockname()[:2]
    app.state.address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    config = uvicorn.Config(
        app,
        log_config=None,
        http=StrictHttp,
        workers=1,  # else uvicorn asks the environment
        ws="none",
        access_log=False,  # app.observation writes a better line
        server_header=False,
        proxy_headers=bool(settings.forwarded_allow_ips),  # anybody could write them
        forwarded_allow_ips=settings.forwarded_allow_ips,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        # Every request that had arrived is then answered, if only that its deadline has passed.
        timeout_graceful_shutdown=max(CLIENT_SECONDS, ceil(settings.deadline_seconds)) + 1,
    )
    most = _most_connections(OTHER_FILES + 2 * app.state.capacity.workers)
    config.limit_concurrency = most + 1  # `StrictHttp` closes those beyond
    server = Server(config, app)
    with contextlib.suppress(KeyboardInterrupt):
        server.run([listening])
    return 0 if server.started else STARTUP_FAILURE


def _most_connections(others: int) -> int:
    """The connections for which this process may have open files, beside so many others; it takes
    what it may have. Raises SystemExit where there are hardly any."""
    wanted = MOST_CONNECTIONS + others
    files, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < wanted:
        files = min(wanted, most_files)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most_files))
    if files >= wanted:
        return MOST_CONNECTIONS
    advice = f"This process may open only {files} files (ulimit -n). Allow {wanted}"
    if files < others + FEWEST_CONNECTIONS:
        raise SystemExit(f"{advice}, or {others + FEWEST_CONNECTIONS} at least.")
    logger.warning("%s, else at most %d connections can be open", advice, files - others)
    return files - others


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens on this host, its IPv4 address if it has one. Raises SystemExit."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found)
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        listening = socket.create_server(
            address, family=family, backlog=BACKLOG, dualstack_ipv6=both
        )
    except OSError as error:
        advice = {
            errno.EACCES: "Set CAT_BIND_PORT to 1024 or more.",
            errno.EADDRINUSE: "Stop what listens there, or set CAT_BIND_PORT.",
            errno.EADDRNOTAVAIL: "This machine does not have that address. Set CAT_BIND_HOST to one"
            " that it has, or to 0.0.0.0.",
        }.get(error.errno or 0, "Set CAT_BIND_HOST.")
        why = (error.strerror or str(error)).partition(" (")[0]
        raise SystemExit(f"Cannot listen on {host}, port {port}: {why}. {advice}") from error
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
    return listening


class Server(uvicorn.Server):
    """uvicorn, stopping in three steps: not ready, later closed to new clients, then ended."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self.app = app
        self.closes_at: float | None = None
        self.is_full = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM and Ctrl-C: be no longer ready, and close when the time for clients to go
        elsewhere is over. A second signal stops the service at once. The exit status is 0."""
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
            self._warn_at_connection_limit()
            if os.getpid() == 1:
                _reap_orphans()
        if self.closes_at is not None and now >= self.closes_at and not self.should_exit:
            self.should_exit = True
            asyncio.get_running_loop().call_later(CLIENT_SECONDS, self._drop_waiting_clients)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the lifespan too where a second signal came: uvicorn would cancel it, and show that
        as an error."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()

    def _close_slow_clients(self, now: float) -> None:
        """Close connections whose request's head, or whose reading of answers, takes too long.

        uvicorn limits the time between requests only; without this, a thousand connections that
        send nothing, or read nothing, would keep everybody else out.
        """
        for connection in self._connections():
            unread = connection.transport.get_write_buffer_size()
            has_head = connection.timeout_keep_alive_task or not _is_over(connection.cycle)
            limit = ANSWER_SECONDS if unread else inf if has_head else HEAD_SECONDS
            state = connection.cycle, unread, limit
            if connection.last_state != state:
                connection.last_state, connection.unchanged_since = state, now
            elif now - connection.unchanged_since > limit:
                connection.transport.abort()

    def _warn_at_connection_limit(self) -> None:
        count, was_full = len(self._connections()), self.is_full
        self.is_full = count + 1 >= (self.config.limit_concurrency or 0)
        if self.is_full and not was_full:
            logger.warning(
                "%d connections are open, which is the limit: new ones are closed", count
            )

    def _drop_waiting_clients(self) -> None:
        """Give up what only waits for clients: uploads, which are answered that the service stops,
        and answers that are not read."""
        for connection in self._connections():
            cycle, unread = connection.cycle, connection.transport.get_write_buffer_size()
            # What still arrives of a body that was answered already would only be dropped.
            if unread or _is_over(cycle) or cycle.response_started:
                connection.transport.abort()
            elif cycle.more_body and not connection.pipeline:
                connection.task.cancel()

    def _connections(self) -> list[Any]:
        return list(self.server_state.connections)  # a copy: closing one takes it out


def _is_over(cycle: Any) -> bool:
    """Whether a connection has no request under way."""
    return cycle is None or cycle.response_complete


def _reap_orphans() -> None:
    """As a container's first process, take note of those that ended without a parent."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


class CoalescedWrites:
    """A connection's transport that sends an answer's head together with what follows it.

    uvicorn writes them one after the other, and uvloop hands each write to the system at once:
    two calls, two packets, and a client that is woken twice.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send it with what is held, or hold it until the next write or turn of the loop."""
        if self._held:
            data, self._held = self._held + data, b""
            self._transport.write(data)
        else:
            self._held = data
            self._loop.call_soon(self._send)

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._held and not self._transport.is_closing():
            data, self._held = self._held, b""
            self._transport.write(data)


class BadRequest(Exception):
    """A request is refused before the application sees it. The message is for its sender."""


class StrictHttp(HttpToolsProtocol):
    """Answers 400 to a request whose head is too large or names no host, as to a malformed one.

    It gets its answer in its turn, after those before it, and is the connection's last.
    """

    head_bytes = 0  # of the present request: address, headers, trailers
    pending_bytes = 0  # that arrived since the parser last understood something
    refused = False  # whether what arrives is not read any more
    task: asyncio.Task[None] | None = None  # what answers the present request
    answering: Any = None  # the same as uvicorn knows it, its cycle
    last_state: Any = None  # as `Server` saw it last
    unchanged_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, CoalescedWrites(transport, self.loop)))
        transport.set_write_buffer_limits(MOST_UNREAD_BYTES)
        if self.client and "." in self.client[0]:  # IPv4 on ::, as ::ffff:1.2.3.4
            self.client = self.client[0].removeprefix("::ffff:"), self.client[1]
        if self.limit_concurrency and len(self.connections) >= self.limit_concurrency:
            transport.close()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self.refused:
            return
        self.pending_bytes += len(data)
        try:
            while data:
                data = self._parse(data)
        except httptools.HttpParserError as error:
            self.send_400_response(_parse_error_text(error))
        else:
            if self.pending_bytes > MOST_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(f"A line has more than {MOST_HEAD_BYTES:,} bytes.")

    def _parse(self, data: bytes) -> bytes:
        """Parse it; what is left to be parsed, empty for nothing.

        The parser stops behind a head that offers another protocol, and takes what follows for
        that protocol's. So a new one gets the head again, without the offer: RFC 9110, section 7.8,
        has servers ignore what they do not speak. Raises HttpParserError.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            method, version = self.scope["method"].encode(), self.scope["http_version"].encode()
            kept = [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
            head = [b"%b %b HTTP/%b" % (method, self.url, version), *kept, b"", b""]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
            return b"\r\n".join(head) + data[upgrade.args[0] :]
        return b""

    def _should_upgrade(self) -> bool:
        """Whether a request with such an offer is no request yet, but parsed again: always."""
        if self.parser.get_method() == b"CONNECT":
            raise BadRequest("CONNECT is not supported: this is not a proxy.")
        return True

    def on_message_begin(self) -> None:
        self.head_bytes = self.pending_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self.scope["method"] = self.parser.get_method().decode()  # a refused HEAD has no body
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() != "1.0"):
            raise BadRequest(f"A request needs exactly one Host header; this one has {hosts}.")
        if len(self.pipeline) >= MOST_PIPELINED:
            raise BadRequest(
                f"More than {MOST_PIPELINED} requests were sent before the first "
                "answer (pipelining)."
            )
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.pending_bytes = 0
        # A piece that is alone is handed on as it is; in a bytearray it would be copied twice.
        cycle: Any = self.cycle
        if not cycle.body:
            cycle.body = b""
        elif type(cycle.body) is bytes:
            cycle.body = bytearray(cycle.body)
        super().on_body(body)
        if self.pipeline and len(self.cycle.body) > MOST_HEAD_BYTES:
            raise BadRequest(
                f"More than {MOST_HEAD_BYTES:,} bytes of the next body were sent "
                "too early (pipelining)."
            )

    def send_400_response(self, msg: str) -> None:
        """Answer the present request with a problem, after those before it, and then close."""
        self.refused = True
        begun = self.cycle if self.cycle is not None and self.cycle.scope is self.scope else None
        if self.scope is None or (begun and not begun.more_body):
            self.on_message_begin()  # what arrived is not even the beginning of one
        elif begun and self.pipeline:  # it still waits
            self.pipeline.popleft()
        elif begun and begun.response_started:  # it has its answer already
            begun.keep_alive = begun.more_body = False
            begun.message_event.set()
            if begun.response_complete:
                self.transport.close()
            return
        elif begun:
            begun.disconnected = True
            begun.message_event.set()
        self.cycle = RequestResponseCycle(
            scope={"method": "-", "path": "-", "query_string": b"", **self.scope},
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=False,
            on_response=self.on_response_complete,
        )
        # What had begun is logged and counted as this alone
        self.scope["refused"] = True  # type: ignore[typeddict-unknown-key]
        self.cycle.more_body = False
        self.cycle.message_event.set()  # there is nothing to wait for
        refusal = ProblemResponse(Problem("bad-request", msg))
        # Logged and counted too, with what the service's lifespan has yielded
        app: Any = RequestMiddleware(refusal, self.app_state["log"], self.app_state["metrics"])
        last = self.answering
        if last is None or last.response_complete or last.disconnected:
            self._start_asgi_task(self.cycle, app)
        else:
            self.pipeline.appendleft((self.cycle, app))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # uvicorn tells only the newest request, which may still wait behind the one in hand.
        if self.answering is not None and not self.answering.response_complete:
            self.answering.disconnected = True
            self.answering.message_event.set()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self.answering = cycle
        self.task = self.loop.create_task(cycle.run_asgi(app))
        self.task.add_done_callback(self.tasks.discard)
        self.tasks.add(self.task)

    def _count(self, size: int) -> None:
        self.pending_bytes = 0
        self.head_bytes += size + 4  # the colon, the space and the end of the line
        if self.head_bytes > MOST_HEAD_BYTES or len(self.headers) > MOST_HEADERS:
            raise BadRequest(
                f"The head has more than {MOST_HEAD_BYTES:,} bytes or {MOST_HEADERS} headers."
            )


def _parse_error_text(error: httptools.HttpParserError) -> str:
    """For the sender: what the parser found, or one of its callbacks, but nothing of what came."""
    if isinstance(error.__context__, BadRequest):
        return str(error.__context__)
    if "PRI" in str(error):
        return "This looks like HTTP/2 (or gRPC); this service speaks HTTP/1.1."
    what = "the address is not valid" if error.__context__ else str(error)
    return f"This cannot be read as HTTP/1.1: {what}."
