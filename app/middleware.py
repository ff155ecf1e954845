"""What surrounds every request and the start: small wrappers round the application."""

import asyncio

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.problems import Problem, answer
from model.classifier import BadArtifact

# How much of an upload is still taken in after it was answered, and for how long.
DRAIN_BYTES = 64 * 2**20
DRAIN_SECONDS = 5.0
# Nothing here is meant to be framed, embedded by other sites, kept in a cache, or run: the pages
# that load something state a policy of their own.
SAFE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


FAILED = "Something went wrong inside the service; the picture may be fine."


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
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        as_get = {**scope, "method": "GET"}  # a copy: the server still has to know
        await self.app(as_get, receive, send)
        scope["route"] = as_get.get("route")  # for the log and the metrics


class SafeHeaders:
    """Adds to every answer what keeps browsers from misusing it; an answer's own header stands."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = message.get("headers", ())
                names = {name for name, _ in own}
                added = [header for header in SAFE_HEADERS if header[0] not in names]
                message = {**message, "headers": [*own, *added]}
            await send(message)

        await self.app(scope, receive, send_with_headers)


class LostRequests:
    """Answers a request that nothing inside answers any more: one that failed, or that a stopping
    server gives up, which would else be a fault of ours.

    uvicorn cancels what is not done when its time to stop is over: slow uploads, mostly. Failures
    are answered here, below the other wrappers, so that the answer gets what they add; then the
    exception goes on, to the server's log.
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
        except Exception:
            if not answered and scope["type"] == "http":
                await answer(Problem("internal-error", FAILED))(scope, receive, send)
            raise


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
