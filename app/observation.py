"""What is known of each request: its id, its line in the log, and the metrics for Prometheus.

Pictures, bodies, query strings and keys are never logged. Labels of metrics have few values,
whatever clients send.
"""

import json
import logging
import os
import re
import select
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any

import prometheus_client
from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from starlette.types import Scope

LONGEST = 100  # characters of what a client wrote
# Asked every few seconds: at 200 their lines would bury the others.
ROUTINE = ("/health", "/v2/health", "/metrics")
OTHER = "other"  # unknown paths and methods
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
OPENMETRICS = "application/openmetrics-text"
STDOUT = 1
_is_plain = re.compile(r"[!#-~]+").fullmatch  # visible ASCII but the quotation mark

prometheus_client.disable_created_metrics()


@dataclass(slots=True)
class RequestInfo:
    """What is known of one request, for its log line and the metrics: `scope["facts"]`."""

    request_id: str
    status: int = 0  # of its answer, as far as that has begun
    seconds: float = 0.0  # from its headers to the end of its answer
    received_bytes: int = 0
    problem: str | None = None  # the slug of the answer, where that is a problem
    model_version: str | None = None
    answers: list[tuple[str, float]] = field(default_factory=list)  # label, probability a picture
    distances: list[float] = field(default_factory=list)  # from training's pictures, one a picture
    queue_seconds: float | None = None  # from the upload's end, without the work
    decode_seconds: float | None = None  # of a worker's time: decoding, scaling, network


# --- metrics ------------------------------------------------------------------------------------


class Metrics:
    """The numbers of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self.requests = counter(
            "cat_requests",
            "Requests by route, method and status; 499: the client left before its answer.",
            ("route", "method", "status"),
        )
        self.seconds = histogram(
            "cat_request_seconds",
            "Time from a request's headers to the end of its answer, uploading included.",
            ("route",),
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )
        self.queue_seconds = histogram(
            "cat_queue_seconds",
            "Time that uploaded pictures waited for a worker.",
            buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        self.decode_seconds = histogram(
            "cat_decode_seconds",
            "Time that a worker spent on a request: decoding, scaling and the network.",
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
        )
        self.rejections = counter(
            "cat_rejections",
            "Requests answered with an error, by the last part of its type.",
            ("reason",),
        )
        self.probabilities = histogram(
            "cat_probability",
            "The probabilities in the answers.",
            buckets=[step / 20 for step in range(1, 21)],
        )
        self.distances = histogram(
            "cat_input_distance",
            "Distance of the pictures from the validation pictures of training: the root mean "
            "square of the z-scores of brightness, contrast, colourfulness and sharpness. Values "
            "around 1 are normal. A growing share above 2 means that the pictures differ from "
            "those that the model was measured on.",
            buckets=(0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 6, 10),
        )
        self.feedback = counter(
            "cat_feedback",
            "Accepted feedback, by class; a repeated picture counts again.",
            ("label",),
        )
        self.lost_lines = counter(
            "cat_log_lines_lost", "Log lines dropped because nobody read standard output."
        )
        self.in_progress = gauge("cat_requests_in_progress", "Requests with pictures in progress.")
        self.waiting = gauge("cat_queue_depth", "Uploaded pictures waiting for a worker.")
        self.busy = gauge("cat_decoders_busy", "Busy workers.")
        self.workers = gauge("cat_workers", "Worker processes.")
        self.replaced = counter("cat_workers_replaced", "Workers that ended and were replaced.")
        self.model = gauge("cat_model_info", "1 for the model that is served.", ("name", "version"))

    def set_model(self, name: str, version: str) -> None:
        """Say which model is served from now on."""
        self.model.clear()
        self.model.labels(name, version).set(1)

    def count(self, facts: RequestInfo, route: str, method: str) -> None:
        """Count a request that is over. route: a template, or OTHER; method: any text."""
        self.requests.labels(route, method if method in METHODS else OTHER, facts.status).inc()
        self.seconds.labels(route).observe(facts.seconds)
        if facts.problem is not None:
            self.rejections.labels(facts.problem).inc()
        if facts.queue_seconds is not None:
            self.queue_seconds.observe(facts.queue_seconds)
        if facts.decode_seconds is not None:
            self.decode_seconds.observe(facts.decode_seconds)
        for _, probability in facts.answers:
            self.probabilities.observe(probability)
        for distance in facts.distances:
            self.distances.observe(distance)


router = APIRouter(tags=["Cat or not"])


@router.get(
    "/metrics",
    name="metrics",
    summary="Return the metrics for Prometheus",
    response_class=Response,
    responses={200: {"description": "All metrics.", "content": {"text/plain": {}}}},
)
async def read_metrics(request: Request) -> Response:
    """In the text format, or as OpenMetrics if the Accept header asks for it."""
    # The library takes a malformed version in this header for its own fault.
    wanted = OPENMETRICS if OPENMETRICS in request.headers.get("accept", "") else ""
    encode, content_type = choose_encoder(wanted)
    registry = request.app.state.metrics.registry
    return Response(encode(registry), headers={"Content-Type": content_type})


# --- the log ------------------------------------------------------------------------------------


def timestamp(moment: datetime) -> str:
    """A moment in UTC: 2026-11-23T10:55:44.123Z."""
    return moment.isoformat(timespec="milliseconds")[:-6] + "Z"


class Formatter(logging.Formatter):
    """The server's own lines, in the same form as those about requests: "json" or text."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def format(self, record: logging.LogRecord) -> str:
        now = timestamp(datetime.fromtimestamp(record.created, UTC))
        level, message = record.levelname, super().format(record)
        if self.form == "json":
            return json.dumps({"time": now, "level": level.lower(), "message": message})
        return f"{now} {level} {message}"


def configure_log(form: str) -> None:
    """Send the server's lines to standard error in our form, but for uvicorn's steps of starting:
    the service says when it is ready."""
    steps = ("Started server process", "Waiting for application", "Application startup ")
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter(form))
    handler.addFilter(lambda record: not record.getMessage().startswith(steps))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("uvicorn").setLevel(logging.INFO)


def request_line(form: str, level: str, values: dict[str, Any]) -> bytes:
    """A line about a request; values that are None are left out."""
    now = timestamp(datetime.now(UTC))
    known = {name: value for name, value in values.items() if value is not None}
    if form == "json":
        return (json.dumps({"time": now, "level": level, **known}) + "\n").encode()
    pairs = "".join(
        # One word as it is; all else in quotation marks, escaped
        f" {name}={value if type(value) is not str or _is_plain(value) else json.dumps(value)}"
        for name, value in known.items()
    )
    return f"{now} {level.upper()}{pairs}\n".encode()


def write(line: bytes) -> bool:
    """Write a line to standard output; False if it was dropped, because nobody reads.

    A full pipe would block the event loop, and with it every client.
    """
    try:
        if not select.select((), (STDOUT,), (), 0)[1]:
            return False
        os.write(STDOUT, line)
    except (OSError, ValueError):  # closed, or its reader is gone
        return False
    return True


def record(
    facts: RequestInfo, scope: Scope, route: str, log_form: str, metrics: Metrics | None
) -> None:
    """Count a request that is over, and log it. route: a template, or OTHER."""
    status, client = facts.status, scope.get("client")
    if metrics:
        metrics.count(facts, route, scope["method"])
    if log_form == "off" or (status == HTTPStatus.OK and route.startswith(ROUTINE)):
        return
    values = {
        "request_id": facts.request_id,
        "client": client[0][:LONGEST] if client else None,
        "method": scope["method"][:20],
        "path": scope["path"][:LONGEST] if route == OTHER else route,
        "status": status,
        "duration_ms": _milliseconds(facts.seconds),
        "received_bytes": facts.received_bytes,
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
    level = "info" if status < 500 else "error" if status == 500 else "warning"
    if not write(request_line(log_form, level, values)) and metrics:
        metrics.lost_lines.inc()


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 2)
