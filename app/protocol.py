"""uvicorn's faster HTTP parser, with the guards that its other one has.

By itself it collects headers without end: 24 MB of short header lines take 300 MB of memory. It
lets requests without a Host pass, which RFC 9112, section 3.2, has servers refuse. And it drops the
body of a request that offers to go on in another protocol, as Java's client does with every one.
"""

import asyncio
from typing import Any, cast

import httptools
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.errors import Problem
from app.middleware import Observed, respond

# As in uvicorn's other parser. Of the address and all headers together, and of any one thing.
MOST_HEAD_BYTES = 64 * 2**10
# Browsers send some twenty headers, proxies add a few.
MOST_HEADERS = 100
# Requests sent on one connection before their answers; hardly a client does it at all.
MOST_PIPELINED = 8
# Of answers that a client has not taken; beyond, its next request waits. One answer may be larger.
MOST_UNREAD_BYTES = 16 * 2**10


class WholeAnswers:
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

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, WholeAnswers(transport, self.loop)))
        transport.set_write_buffer_limits(MOST_UNREAD_BYTES)
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
            self.send_400_response(_what_is_wrong(error))
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
            raise BadRequest("CONNECT is for proxies, and this is none.")
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
            raise BadRequest(f"A request needs one Host header; this one has {hosts}.")
        if len(self.pipeline) >= MOST_PIPELINED:
            raise BadRequest(f"More than {MOST_PIPELINED} requests came ahead of their answers.")
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
            raise BadRequest(f"More than {MOST_HEAD_BYTES:,} bytes of body came before their turn.")

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
        self.cycle.more_body = False
        last = self.answering
        if last is None or last.response_complete or last.disconnected:
            self._start_asgi_task(self.cycle, _refusal(self.app_state, msg))
        else:
            self.pipeline.appendleft((self.cycle, _refusal(self.app_state, msg)))

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


def _what_is_wrong(error: httptools.HttpParserError) -> str:
    """For the sender: what the parser found, or one of its callbacks, but nothing of what came."""
    if isinstance(error.__context__, BadRequest):
        return str(error.__context__)
    what = "the address is not valid" if error.__context__ else str(error)
    return f"This cannot be read as HTTP/1.1: {what}."


def _refusal(state: dict[str, Any], detail: str) -> Any:
    """The application for a request that the service's own is spared: logged and counted too.

    state: what the service's lifespan has yielded.
    """

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(Problem("bad-request", detail))(scope, receive, send)

    return Observed(refuse, state["log"], state["metrics"])
