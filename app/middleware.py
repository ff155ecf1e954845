"""What surrounds every request: small ASGI wrappers round the application."""

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import log
from app.errors import MEDIA_TYPE, Problem
from app.inference_schema import MODEL
from app.metrics import OTHER, Metrics
from model.workers import CannotStart

REQUEST_ID = b"x-request-id"
HARMLESS_ID = re.compile(rb"[A-Za-z0-9._:@/+=-]{1,128}")
CLIENT_GONE = 499  # nginx's number for a client that left before its answer: HTTP has none
LONGEST = 100  # characters of what a client wrote
# Asked every few seconds: at 200 their lines would bury the others.
ROUTINE = ("/health", "/v2/health", "/metrics")
UNTEMPLATED = ("/openapi.json",)  # FastAPI's own route, which leaves no template behind
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


@dataclass(slots=True)
class Facts:
    """What is known of one request, for its log line and the metrics: `scope["facts"]`."""

    request_id: str = ""
    problem: str | None = None  # the slug of the answer, where that is a problem
    model_version: str | None = None
    answers: list[tuple[str, float]] = field(default_factory=list)  # label, probability a picture
    distances: list[float] = field(default_factory=list)  # from training's pictures, one a picture
    queue_seconds: float | None = None  # from the upload's end to the answer, but for the work
    decode_seconds: float | None = None  # of a worker's time: decoding, scaling, network


class ProblemResponse(Response):
    """A problem. Clients of /v2 read only plain JSON, and of it the sentence in `error`."""

    def __init__(
        self, content: dict[str, Any], status: int, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(b"", status, headers, MEDIA_TYPE)
        self.content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        facts: Facts = scope["facts"]
        facts.problem = self.content["type"].rpartition("#")[2]
        content = {**self.content, "request_id": facts.request_id}
        if f"{scope['path']}/".startswith("/v2/"):
            content = {"error": content["detail"], **content}
            self.headers["Content-Type"] = "application/json"
        self.body = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
        self.headers["Content-Length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


def respond(problem: Problem) -> ProblemResponse:
    """The problem as an HTTP response."""
    return ProblemResponse(problem.content(), problem.type.status, problem.headers)


def install_handlers(app: FastAPI) -> None:
    """Make every error of the application a problem."""

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        return respond(error)

    @app.exception_handler(RequestValidationError)
    async def invalid_request(_: Request, error: RequestValidationError) -> Response:
        # Only where and why: what was sent stays out of the answer.
        found = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return respond(Problem("invalid-request", "; ".join(found)))

    @app.exception_handler(HTTPException)
    async def http_exception(request: Request, error: HTTPException) -> Response:
        path = request.url.path[:LONGEST]
        if error.status_code == HTTPStatus.NOT_FOUND:
            detail = f"There is nothing at {path}. POST a picture to /predict, or read /docs."
            model = path.partition("/v2/models/")[2].partition("/")[0]
            if model not in ("", MODEL):
                detail = f"There is no model {model!r}; there is {MODEL}."
            return respond(Problem("not-found", detail))
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and error.headers:
            allowed = error.headers["Allow"]
            detail = f"{path} answers to {allowed}, not to {request.method[:20]}."
            return respond(Problem("method-not-allowed", detail, error.headers))
        # RFC 9457: about:blank means no more than the status itself.
        content = {
            "type": "about:blank",
            "title": HTTPStatus(error.status_code).phrase,
            "status": error.status_code,
            "detail": error.detail,
        }
        return ProblemResponse(content, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def client_gone(_: Request, __: ClientDisconnect) -> Response:
        # Nobody reads this; without it the log would show a client's leaving as our error.
        return Response(status_code=HTTPStatus.BAD_REQUEST)


class Observed:
    """Gives each request an id, adds what every answer has, counts the request and logs it.

    The outermost wrapper. The id is the client's own X-Request-ID if that is harmless to print,
    else a new one. log_form: "text", "json" or "off"; metrics: None where none are kept.
    """

    def __init__(self, app: ASGIApp, log_form: str, metrics: Metrics | None) -> None:
        self.app, self.log_form, self.metrics = app, log_form, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            _silence_access_log()
            await self.app(scope, receive, send)
            return
        began = ended = time.perf_counter()
        status = received = 0
        gone = False
        identity = _request_id(scope)
        facts = scope["facts"] = Facts(identity.decode())

        async def receive_counted() -> Message:
            nonlocal received, gone
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
            elif not status:
                gone = True
            return message

        async def send_with_headers(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
                own = list(message.get("headers", ()))
                names = {name for name, _ in own}
                added = [header for header in SAFE_HEADERS if header[0] not in names]
                message = {**message, "headers": [*own, *added, (REQUEST_ID, identity)]}
                ended = time.perf_counter()
            elif message.get("body"):
                ended = time.perf_counter()  # what follows may be an upload that is dropped
            await send(message)

        try:
            await self.app(scope, receive_counted, send_with_headers)
        finally:
            outcome = CLIENT_GONE if gone else status or 500
            self._tell(scope, facts, outcome, ended - began, received)

    def _tell(self, scope: Scope, facts: Facts, status: int, seconds: float, received: int) -> None:
        route = _route(scope)
        if self.metrics:
            self.metrics.count(facts, route, scope["method"], status, seconds)
        if self.log_form == "off" or (status == HTTPStatus.OK and route.startswith(ROUTINE)):
            return
        client = scope.get("client")
        level = "info" if status < 500 else "error" if status == 500 else "warning"
        values = {
            "request_id": facts.request_id,
            "client": client[0][:LONGEST] if client else None,
            "method": scope["method"][:20],
            "path": scope["path"][:LONGEST] if route == OTHER else route,
            "status": status,
            "duration_ms": _milliseconds(seconds),
            "received_bytes": received,
            "queue_ms": _milliseconds(facts.queue_seconds),
            "decode_ms": _milliseconds(facts.decode_seconds),
            "model": facts.model_version,
            "problem": facts.problem,
        }
        if len(facts.answers) == 1:
            values["label"], probability = facts.answers[0]
            values["probability"] = round(probability, 4)
        elif facts.answers:
            values["pictures"] = len(facts.answers)
        written = log.write(log.request_line(self.log_form, level, values))
        if self.metrics and not written:
            self.metrics.lost_lines.inc()


def _request_id(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == REQUEST_ID:
            if HARMLESS_ID.fullmatch(value):
                return bytes(value)
            break
    return secrets.token_hex(16).encode()


def _route(scope: Scope) -> str:
    """The template of the route that answered, one of few; "other" where none did."""
    route = scope.get("route")
    if route is not None:
        return str(route.path)
    return scope["path"] if scope["path"] in UNTEMPLATED else OTHER


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 2)


def _silence_access_log() -> None:
    """Our line stands in for uvicorn's, which knows less."""
    logger = logging.getLogger("uvicorn.access")
    logger.handlers, logger.propagate = [], False


class PlainStartupFailure:
    """Shows the failure to load the weights as its one sentence instead of a traceback."""

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
        except CannotStart as error:
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


class LostRequests:
    """Answers a request that nothing inside answers any more: one that failed, or that a stopping
    server gives up.

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
            await respond(Problem("stopping", detail, {"Retry-After": "5"}))(scope, receive, send)
        except Exception:
            if not answered and scope["type"] == "http":
                await respond(Problem("internal-error", FAILED))(scope, receive, send)
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
    return any(
        (name == b"content-length" and value != b"0") or name == b"transfer-encoding"
        for name, value in scope["headers"]
    )
