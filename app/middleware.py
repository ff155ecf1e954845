"""What surrounds every request: small ASGI wrappers round the application, and its refusals."""

import asyncio
import hmac
import json
import re
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from http import HTTPStatus

from fastapi import FastAPI, Request
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import HEADER_LENGTH, MODEL, errors
from app.errors import FAILED, Problem
from app.observation import LONGEST, OTHER, Metrics, RequestInfo, record
from model.workers import CannotStart

KEY_HEADER = "X-API-Key"
# What is asked for without a key: by load balancers, and by people who have still to type theirs
# in. None of it tells or does anything that the public source does not.
OPEN = ("/", "*", "/docs", "/openapi.json", errors.PAGE, "/health")
OPEN_FOLDERS = ("/docs/", "/static/", "/health/", "/v2/health/")
METRICS = "/metrics"
METHODS = "GET, HEAD, POST, DELETE"
PREFLIGHT_SECONDS = 600
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": KEY_HEADER},
}
# How much of an upload is still taken in after it was answered, and for how long.
DRAIN_BYTES = 64 * 2**20
DRAIN_SECONDS = 5.0
REQUEST_ID = b"x-request-id"
HARMLESS_ID = re.compile(rb"[A-Za-z0-9._:@/+=-]{1,128}")
CLIENT_GONE = 499  # nginx's number for a client that left before its answer: HTTP has none
# Nothing here is meant to be framed, embedded by other sites, kept in a cache, or run: the pages
# that load something state a policy of their own.
SAFE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class ProblemResponse(Response):
    """A problem. Clients of /v2 read only plain JSON, and of it the sentence in `error`."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(b"", problem.type.status, problem.headers, errors.MEDIA_TYPE)
        self.problem = problem

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        facts: RequestInfo = scope["facts"]
        problem, kind = self.problem, self.problem.type
        facts.problem = kind.slug
        content = {"type": kind.uri, "title": kind.title, "status": kind.status}
        content |= {"detail": problem.detail, **problem.members, "request_id": facts.request_id}
        if f"{scope['path']}/".startswith("/v2/"):
            content = {"error": problem.detail, **content}
            self.headers["Content-Type"] = "application/json"
        self.body = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
        self.headers["Content-Length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


def install_handlers(app: FastAPI) -> None:
    """Make every error of the application a problem."""

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        return ProblemResponse(error)

    @app.exception_handler(HTTPException)
    async def http_exception(request: Request, error: HTTPException) -> Response:
        # Of all that the framework raises, only 405 and 404 come up here.
        path = request.scope["path"][:LONGEST]
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and error.headers:
            allowed = re.sub("(HEAD, )?GET(, HEAD)?", "GET, HEAD", error.headers["Allow"])
            detail = f"{path} answers to {allowed}, not to {request.method[:20]}."
            return ProblemResponse(Problem("method-not-allowed", detail, {"Allow": allowed}))
        if (request.method, path) == ("OPTIONS", "*"):  # the whole service: RFC 9110, section 9.3.7
            text = f"This service accepts {METHODS}. Send a picture to POST /predict.\n"
            return PlainTextResponse(text, headers={"Allow": METHODS})
        detail = f"There is nothing at {path}. Send a picture to POST /predict, or see /docs."
        model = path.partition("/v2/models/")[2].partition("/")[0]
        if model not in ("", MODEL):
            detail = f"There is no model {model!r}; there is {MODEL}."
        return ProblemResponse(Problem("not-found", detail))


# --- who may use the service --------------------------------------------------------------------


class KeysRequired:
    """Refuses requests without one of the keys, before their bodies are read.

    metrics_open: whether /metrics is read without a key.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], *, metrics_open: bool) -> None:
        self.app, self.metrics_open = app, metrics_open
        self._digests = [*map(_digest, keys)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A proxy's own path before ours does not count.
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or is_open(path, metrics_open=self.metrics_open):
            await self.app(scope, receive, send)
            return
        keys = _keys_sent(Headers(scope=scope))
        # Hashed, keys are of one length; every key is compared, whichever fits.
        fits = [hmac.compare_digest(_digest(key), each) for key in keys for each in self._digests]
        what = "The key in the request is not valid"
        if not keys:
            what = "This service needs a key, and the request has none"
        detail = f"{what}. Send {KEY_HEADER}: KEY, or Authorization: Bearer KEY."
        refusal = Problem("unauthorized", detail, {"WWW-Authenticate": "Bearer"})
        await (self.app if any(fits) else ProblemResponse(refusal))(scope, receive, send)


def is_open(path: str, *, metrics_open: bool) -> bool:
    """Whether an address answers without a key."""
    return path in OPEN or path.startswith(OPEN_FOLDERS) or (path == METRICS and metrics_open)


def _digest(key: str) -> bytes:
    return sha256(key.encode()).digest()


def _keys_sent(headers: Headers) -> list[str]:
    """The keys that a request brings: two at most."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    keys = headers.get(KEY_HEADER, ""), key.strip() if scheme.lower() == "bearer" else ""
    return [*filter(None, keys)]


def curl_option(keys: Sequence[str]) -> str:
    """What a curl command that people are shown needs where there are keys."""
    return f' -H "{KEY_HEADER}: KEY"' if keys else ""


class Cors(CORSMiddleware):
    """Lets web pages of these origins call the service and read its answers; "*" is all."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=[
                *("Authorization", "Content-Type", KEY_HEADER, "X-Request-ID", HEADER_LENGTH)
            ],
            expose_headers=["Retry-After", "X-Request-ID", HEADER_LENGTH],
            max_age=PREFLIGHT_SECONDS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Where no origin is allowed, a preflight is refused and nothing else changes."""
        if self.allow_origins or (scope["type"] == "http" and scope["method"] == "OPTIONS"):
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser that asks what a page may do; a refusal is a problem."""
        response = super().preflight_response(request_headers)
        if response.status_code == HTTPStatus.OK:
            return response
        refused = bytes(response.body).decode().removeprefix("Disallowed CORS ")
        asked = ("origin", "access-control-request-method", "access-control-request-headers")
        origin, method, names = (request_headers.get(name, "none")[:100] for name in asked)
        advice = "The operator sets allowed origins with CAT_CORS_ORIGINS."
        if "origin" not in refused:
            advice = (
                f"Allowed: {', '.join(self.allow_methods)} with {', '.join(self.allow_headers)}."
            )
        detail = (
            f"A page of {origin} may not send {method} with the headers {names}, because of its "
            f"{refused}. {advice}"
        )
        kept = {name: text for name, text in response.headers.items() if name[:8] != "content-"}
        return ProblemResponse(Problem("origin-not-allowed", detail, kept))


# --- every request ------------------------------------------------------------------------------


class RequestMiddleware:
    """Gives each request an id, adds what every answer has, counts the request and logs it.

    The outermost wrapper. The id is the client's own X-Request-ID if that is harmless to print,
    else a new one. HEAD is answered as GET. log_form: "text", "json" or "off"; metrics: None where
    none are kept.

    A server that answers before an upload is through, as refusals do, and then closes, makes the
    client's system reset the connection, and the answer may be lost with it. So the answer goes
    out at once and says that the connection closes; what still arrives is dropped, within bounds.
    """

    def __init__(self, app: ASGIApp, log_form: str, metrics: Metrics | None) -> None:
        self.app, self.log_form, self.metrics = app, log_form, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, partial(_send_plainly, send))
            return
        began = ended = time.perf_counter()
        identity, unread, gone = _request_id(scope), _has_body(scope), False
        facts = scope["facts"] = RequestInfo(identity.decode())

        async def receive_counted() -> Message:
            nonlocal unread, gone
            message = await receive()
            unread = message["type"] == "http.request" and message.get("more_body", False)
            gone = gone or (message["type"] != "http.request" and not facts.status)
            facts.received_bytes += len(message.get("body", b""))
            return message

        async def send_and_drain(message: Message) -> None:
            nonlocal ended
            if message["type"] == "http.response.start":
                facts.status = message["status"]
                message = {**message, "headers": _headers(message, identity, closes=unread)}
            ended = time.perf_counter()
            last = message["type"] == "http.response.body" and not message.get("more_body")
            if not (last and unread) or facts.problem == "stopping":  # which has no time for it
                await send(message)
                return
            await send({**message, "more_body": True})
            most = facts.received_bytes + DRAIN_BYTES
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_SECONDS):
                    while unread and facts.received_bytes < most:
                        await receive_counted()
            await send({"type": "http.response.body"})

        # A copy for HEAD: the server, which leaves out the body, still has to know.
        asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await self.app(asked, receive_counted, send_and_drain)
        finally:
            facts.status = CLIENT_GONE if gone else facts.status or 500
            facts.seconds = ended - began
            # Few values: the template of the route, where one answered.
            route = asked["route"].path if "route" in asked else OTHER
            if not scope.get("refused"):
                record(facts, scope, route, self.log_form, self.metrics)


def _request_id(scope: Scope) -> bytes:
    named = next((value for name, value in scope["headers"] if name == REQUEST_ID), b"")
    return bytes(named) if HARMLESS_ID.fullmatch(named) else secrets.token_hex(16).encode()


def _has_body(scope: Scope) -> bool:
    return any(
        (name == b"content-length" and value != b"0") or name == b"transfer-encoding"
        for name, value in scope["headers"]
    )


def _headers(message: Message, identity: bytes, *, closes: bool) -> list[tuple[bytes, bytes]]:
    """An answer's headers, with those that every answer has."""
    headers = list(message["headers"])
    names = {name for name, _ in headers}
    headers += [header for header in SAFE_HEADERS if header[0] not in names]
    return [*headers, (REQUEST_ID, identity), *([(b"connection", b"close")] if closes else ())]


async def _send_plainly(send: Send, message: Message) -> None:
    """Show why the workers cannot start as that one sentence, without a traceback before it."""
    if message["type"] == "lifespan.startup.failed":
        why = message["message"].rpartition(f"{CannotStart.__name__}: ")[2]
        message = {**message, "message": why.strip()}
    await send(message)


class FailedRequests:
    """Answers a request that failed, or that a stopping server gives up: slow uploads, mostly.

    A failure is answered inside `Cors`, so that web pages can read it; then the exception goes on,
    to the server's log.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except ClientDisconnect:  # nobody would read an answer
            return
        except (Exception, asyncio.CancelledError) as error:
            if scope["type"] != "http" or scope["facts"].status:
                raise
            problem, failed = Problem("internal-error", FAILED), isinstance(error, Exception)
            if not failed:
                detail = "The service stopped before it finished the request. Send it again later."
                problem = Problem("stopping", detail, {"Retry-After": "5"})
            await ProblemResponse(problem)(scope, receive, send)
            if failed:
                raise
