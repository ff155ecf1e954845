"""What operators get to know of a request: its id, a line in the log, and the metrics.

Pictures, bodies, query strings and keys are never logged.
"""

import json
import logging
import os
import re
import secrets
import select
import sys
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import metrics
from app.lines import timestamp
from model.classifier import Prediction
from model.statistics import Usual

HEADER = b"x-request-id"
ID = re.compile(rb"[A-Za-z0-9._:@/+=-]{1,128}")
STDOUT = 1
CLIENT_GONE = 499  # nginx's number for a client that left before its answer: HTTP has none
LONGEST = 100  # characters of what a client wrote
# Asked every few seconds: at 200 their lines would bury the others.
ROUTINE = ("/health", "/v2/health", "/metrics")
# FastAPI's own route, which leaves no template behind
UNTEMPLATED = ("/openapi.json",)


MEASURING_SECONDS = 0.02
_measured = -1.0


@dataclass(slots=True)
class Facts:
    """What is known of one request, for its log line and the metrics: whoever comes to know more
    adds it to `current_facts()`."""

    request_id: str = ""
    problem: str | None = None  # the slug of the answer, where that is a problem
    model_version: str | None = None
    answers: list[tuple[str, float]] = field(default_factory=list)  # label, probability a picture
    distances: list[float] = field(default_factory=list)  # from training's pictures, one a picture
    queue_seconds: float | None = None  # from the upload's end to the answer, but for the work
    decode_seconds: float | None = None  # of a decoder's time: decoding, scaling, network

    def answered(self, prediction: Prediction, usual: Usual | None) -> None:
        """Note an answer, and how unlike training's its picture is."""
        self.answers.append((prediction.label, prediction.cat_probability))
        self.saw(prediction.picture.pixels, usual)

    def saw(self, pixels: NDArray[np.uint8], usual: Usual | None) -> None:
        """Note how unlike training's a picture (side, side, 3) is, where the artifact tells.

        At most every MEASURING_SECONDS in each worker: under load a sample says as much as all.
        """
        global _measured
        now = time.monotonic()
        if usual and now >= _measured + MEASURING_SECONDS:
            _measured = now
            self.distances.append(usual.distance(pixels))


_current: ContextVar[Facts] = ContextVar("facts")


def current_facts() -> Facts:
    """The facts of the request that this coroutine answers; outside of one, some that nobody
    reads. A decoder's thread is outside: it must be given them."""
    return _current.get(None) or Facts()


class Observed:
    """Gives each request an id, echoes it, counts the request and logs it: the outermost wrapper.

    The id is the client's own X-Request-ID if that is harmless to print, else a new one.
    log: "text", "json" or "off"; counted: whether metrics are kept.
    """

    def __init__(self, app: ASGIApp, log: str = "text", *, counted: bool = True) -> None:
        self.app, self.log, self.counted = app, log, counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            _silence_access_log()
            await self.app(scope, receive, send)
            return
        began = ended = time.perf_counter()
        status = received = 0
        gone = False
        identity = _request_id(scope)
        facts = Facts(identity.decode())
        _current.set(facts)

        async def receive_counted() -> Message:
            nonlocal received, gone
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
            elif not status:
                gone = True
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (HEADER, identity)]
                ended = time.perf_counter()
            elif message.get("body"):
                ended = time.perf_counter()  # what follows may be an upload that is dropped
            await send(message)

        try:
            await self.app(scope, receive_counted, send_with_id)
        finally:
            outcome = CLIENT_GONE if gone else status or 500
            self._tell(scope, facts, outcome, ended - began, received)

    def _tell(self, scope: Scope, facts: Facts, status: int, seconds: float, received: int) -> None:
        route = _route(scope)
        if self.counted:
            metrics.count(facts, route, scope["method"], status, seconds)
        if self.log != "off" and not (status == 200 and route.startswith(ROUTINE)):
            line = _line(self.log, scope, facts, route, status, seconds, received)
            if not _write(line):
                metrics.LOST_LINES.inc()


def _request_id(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == HEADER:
            if ID.fullmatch(value):
                return bytes(value)
            break
    return secrets.token_hex(16).encode()


def _route(scope: Scope) -> str:
    """The template of the route that answered, one of few; "other" where none did."""
    route = scope.get("route")
    if route is not None:
        return str(route.path)
    return scope["path"] if scope["path"] in UNTEMPLATED else metrics.OTHER


def _line(
    form: str,
    scope: Scope,
    facts: Facts,
    route: str,
    status: int,
    seconds: float,
    received: int,
) -> bytes:
    now = timestamp(datetime.now(UTC))
    level = "info" if status < 500 else "error" if status == 500 else "warning"
    client = scope.get("client")
    told: dict[str, Any] = {
        "request_id": facts.request_id,
        "client": client[0][:LONGEST] if client else None,
        "method": scope["method"][:20],
        "path": scope["path"][:LONGEST] if route == metrics.OTHER else route,
        "status": status,
        "duration_ms": _milliseconds(seconds),
        "received_bytes": received,
        "queue_ms": _milliseconds(facts.queue_seconds),
        "decode_ms": _milliseconds(facts.decode_seconds),
        "model": facts.model_version,
        "problem": facts.problem,
    }
    if len(facts.answers) == 1:
        told["label"], probability = facts.answers[0]
        told["probability"] = round(probability, 4)
    elif facts.answers:
        told["pictures"] = len(facts.answers)
    if form == "json":
        known = {name: value for name, value in told.items() if value is not None}
        return (json.dumps({"time": now, "level": level, **known}) + "\n").encode()
    pairs = [
        # One word as it is; all else between quotation marks, escaped
        f" {name}={value if type(value) is not str or _PLAIN(value) else json.dumps(value)}"
        for name, value in told.items()
        if value is not None
    ]
    return f"{now} {level.upper()}{''.join(pairs)}\n".encode()


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 2)


_PLAIN = re.compile(r"[!#-~]+").fullmatch  # visible ASCII but the quotation mark


def _write(line: bytes) -> bool:
    """Write a line to standard output; False if it was dropped, as where nobody reads it.

    A pipe takes a line this short whole or not at all, so lines of several workers never mix. A
    full pipe would block the event loop, and with it every client: its lines are dropped.
    """
    try:
        if sys.platform != "win32" and not select.select((), (STDOUT,), (), 0)[1]:
            return False
        os.write(STDOUT, line)
    except (OSError, ValueError):  # closed, or its reader gone
        return False
    return True


def _silence_access_log() -> None:
    """Our line stands in for uvicorn's, which knows less."""
    logger = logging.getLogger("uvicorn.access")
    logger.handlers, logger.propagate = [], False
