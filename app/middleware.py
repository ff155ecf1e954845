"""What surrounds every request and the start: small wrappers round the application."""

import asyncio

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.problems import Problem, answer
from model.classifier import BadArtifact

# How much of an upload is still taken in after it was answered, and for how long.
DRAIN_BYTES = 64 * 2**20
DRAIN_SECONDS = 5.0


class PlainStartupFailure:
    """Shows the failure to load an artifact as its one sentence instead of a traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        failures: list[Message] = []

        async def hold_failure(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                failures.append(message)
            else:
                await send(message)

        try:
            await self.app(scope, receive, hold_failure)
        except BadArtifact as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        except BaseException:
            for failure in failures:
                await send(failure)
            raise


class HeadAsGet:
    """Answers HEAD wherever GET is answered; the server leaves out the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # a copy: the server still has to know
        await self.app(scope, receive, send)


class NoSniffing:
    """Tells browsers to believe our content types."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
            await send(message)

        await self.app(scope, receive, send_with_header)


class StoppedRequests:
    """Answers a request that a stopping server gives up, which would else be a fault of ours.

    uvicorn cancels what is not done when its time to stop is over: slow uploads, mostly.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answered = False

        async def note_answer(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self.app(scope, receive, note_answer)
        except asyncio.CancelledError:
            if answered or scope["type"] != "http":
                raise
            detail = "The service stops before the request is done. Send it again in a while."
            await answer(Problem("stopping", detail, {"Retry-After": "5"}))(scope, receive, send)


class UnreadBodies:
    """Lets a client read an answer that comes before its upload is through, as a refusal does.

    A server that answers, stops reading and closes makes the client's system reset the
    connection, and the answer may be lost with it. So the answer goes out at once and says that
    the connection closes, then what is still arriving is read and dropped, within bounds, and
    only then the connection is closed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self.app(scope, receive, send)
            return
        unread = True

        async def note_end() -> Message:
            nonlocal unread
            message = await receive()
            unread = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def send_then_drain(message: Message) -> None:
            if message["type"] == "http.response.start" and unread:
                MutableHeaders(scope=message)["Connection"] = "close"
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if not (last and unread):
                await send(message)
                return
            await send({**message, "more_body": True})
            await drain()
            await send({"type": "http.response.body"})

        async def drain() -> None:
            left = DRAIN_BYTES
            try:
                async with asyncio.timeout(DRAIN_SECONDS):
                    while unread and left > 0:
                        left -= len((await note_end()).get("body", b""))
            except TimeoutError:
                pass

        await self.app(scope, note_end, send_then_drain)


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
