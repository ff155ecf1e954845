"""uvicorn's faster HTTP parser, with what it leaves out against its other one.

It collects headers without end: 24 MB of short header lines take 300 MB of memory, and a single
long one more time with each part that arrives. And it lets requests without a Host pass, which
RFC 9112, section 3.2, has servers refuse.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# As in uvicorn's other parser. Of the address and all headers together, and of any one thing.
MOST_HEAD_BYTES = 64 * 2**10
# Browsers send some twenty headers, proxies add a few.
MOST_HEADERS = 100
# Requests sent on one connection before their answers; hardly a client does it at all.
MOST_PIPELINED = 8
# Connections that one worker keeps open.
MOST_CONNECTIONS = 1000
# Of answers that a client has not taken; beyond, its next request waits. One answer may be larger.
MOST_UNREAD_BYTES = 16 * 2**10


class StrictHttp(HttpToolsProtocol):
    """Answers 400 to a request whose head is too large or names no host.

    What a callback of the parser raises counts as a malformed request.
    """

    head_bytes = 0  # of the present request: address, headers, trailers
    pending_bytes = 0  # that arrived since the parser last understood something
    task: asyncio.Task[None] | None = None  # what answers the present request
    answering: Any = None  # the same as uvicorn knows it, its cycle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(MOST_UNREAD_BYTES)
        if len(self.server_state.connections) > MOST_CONNECTIONS:
            transport.close()

    def data_received(self, data: bytes) -> None:
        self.pending_bytes += len(data)
        super().data_received(data)
        if self.pending_bytes > MOST_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request has a line that is too long.")

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
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() != "1.0"):
            raise ValueError("not one Host")
        if len(self.pipeline) >= MOST_PIPELINED:
            raise ValueError("too many requests ahead of their answers")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.pending_bytes = 0
        super().on_body(body)
        if self.pipeline and len(self.cycle.body) > MOST_HEAD_BYTES:
            raise ValueError("too much ahead of its turn")

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: there is nothing to upgrade to, and clients may ask for it all the same."""

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
            raise ValueError("the head is too large")
