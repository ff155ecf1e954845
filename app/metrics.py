"""Prometheus metrics, and GET /metrics that tells them.

With several workers each keeps its numbers in files in the folder that PROMETHEUS_MULTIPROC_DIR
names, which must be set before this module is imported, and whichever worker is asked adds up
all of them. The numbers of a worker that died stay; what it had in hand vanishes. Labels have
few values, whatever clients send: unknown paths and methods count as "other".
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, Protocol

import prometheus_client.values
from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from app.observation import Facts

OTHER = "other"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
OPENMETRICS = "application/openmetrics-text"
SAMPLING_SECONDS = 0.5
FOLDER = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
_worker = ""  # this process's name in its files, once it is a worker


def be_worker(number: int) -> None:
    """Name this process, after its fork, by its place among the workers.

    A replacement takes over the files of the worker it stands in for, so that they do not pile
    up where workers keep dying. Without a number it is the process's id that names the files.
    """
    global _worker
    _worker = _named(number)


def forget_worker(number: int) -> None:
    """Drop what the worker of that place had in hand when it died. For the supervisor."""
    if FOLDER:
        mark_process_dead(_named(number), FOLDER)


def _identity() -> int | str:
    return _worker or os.getpid()


def _named(number: int) -> str:
    """A worker's name in its files: never a process's id, such as the parent's in a container."""
    return f"w{number}"


if FOLDER:
    prometheus_client.values.ValueClass = prometheus_client.values.MultiProcessValue(_identity)
prometheus_client.disable_created_metrics()
_own = CollectorRegistry()

REQUESTS = Counter(
    "cat_requests",
    "Requests by route, method and status; 499: the client was seen to leave before its answer.",
    ("route", "method", "status"),
    registry=_own,
)
SECONDS = Histogram(
    "cat_request_seconds",
    "Time from a request's headers to the end of its answer, uploading included.",
    ("route",),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=_own,
)
QUEUE_SECONDS = Histogram(
    "cat_queue_seconds",
    "Time that uploaded pictures waited, for a decoder and for others decoded with them.",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=_own,
)
DECODE_SECONDS = Histogram(
    "cat_decode_seconds",
    "Time that a decoder spent on a request: decoding, scaling and the network.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
    registry=_own,
)
REJECTIONS = Counter(
    "cat_rejections",
    "Requests that were answered with a problem, by the last part of its type.",
    ("reason",),
    registry=_own,
)
PROBABILITIES = Histogram(
    "cat_probability",
    "The probabilities that were answered.",
    buckets=[step / 20 for step in range(1, 21)],
    registry=_own,
)
DISTANCES = Histogram(
    "cat_input_distance",
    "How unlike the pictures of training's validation pictures were, in standard deviations (root"
    " mean square) of brightness, contrast, colourfulness and sharpness. Around 1 is usual; a"
    " growing share above 2 means pictures that the model was not measured on.",
    buckets=(0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 6, 10),
    registry=_own,
)
LOST_LINES = Counter(
    "cat_log_lines_lost",
    "Log lines that were dropped because standard output took none.",
    registry=_own,
)
TAKEN = Gauge(
    "cat_requests_in_progress",
    "Requests with pictures that were taken on and not answered yet.",
    multiprocess_mode="livesum",
    registry=_own,
)
WAITING = Gauge(
    "cat_queue_depth",
    "Uploaded pictures that wait for a decoder.",
    multiprocess_mode="livesum",
    registry=_own,
)
BUSY = Gauge("cat_decoders_busy", "Decoders at work.", multiprocess_mode="livesum", registry=_own)
WORKERS = Gauge("cat_workers", "Processes that serve.", multiprocess_mode="livesum", registry=_own)
MODEL = Gauge(
    "cat_model_info",
    "1 for each model that a worker serves: one, but for the moment of a reload.",
    ("name", "version"),
    multiprocess_mode="livemax",
    registry=_own,
)

_request_counter = cache(REQUESTS.labels)
_duration = cache(SECONDS.labels)
_rejection = cache(REJECTIONS.labels)


def count(facts: "Facts", route: str, method: str, status: int, seconds: float) -> None:
    """Count a request that is over. route: a template, or OTHER; method: as the client sent it."""
    _request_counter(route, method if method in METHODS else OTHER, status).inc()
    _duration(route).observe(seconds)
    if facts.problem is not None:
        _rejection(facts.problem).inc()
    if facts.queue_seconds is not None:
        QUEUE_SECONDS.observe(facts.queue_seconds)
    for _, probability in facts.answers:
        PROBABILITIES.observe(probability)
    for distance in facts.distances:
        DISTANCES.observe(distance)


class Load(Protocol):
    """What a worker has in hand; `app.admission.Admission`."""

    @property
    def taken(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def working(self) -> int: ...


@asynccontextmanager
async def told(name: str, version: str, load: Load) -> AsyncIterator[None]:
    """For as long as this worker serves, tell its model and what it has in hand."""
    serve(name, version)
    watching = asyncio.create_task(_watch(load))
    try:
        yield
    finally:
        watching.cancel()
        WORKERS.set(0)


async def _watch(load: Load) -> None:
    # Cheaper than at every change, and other workers can only be told by writing it down.
    while True:
        TAKEN.set(load.taken)
        WAITING.set(load.waiting)
        BUSY.set(load.working)
        await asyncio.sleep(SAMPLING_SECONDS)


_served: tuple[str, str] | None = None


def serve(name: str, version: str) -> None:
    """Say that this worker serves, and from now on with that model: also after a reload."""
    global _served
    if _served:
        MODEL.labels(*_served).set(0)
    _served = name, version
    MODEL.labels(name, version).set(1)
    WORKERS.set(1)


class _AllWorkers(Collector):
    """The metrics of all workers, without the models that are no longer served."""

    def collect(self) -> Iterator[Metric]:
        source = MultiProcessCollector(None, FOLDER) if FOLDER else _own
        for metric in source.collect():
            if metric.name == "cat_model_info":
                metric.samples = [sample for sample in metric.samples if sample.value]
            yield metric


router = APIRouter()


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="Tell the metrics, for Prometheus",
    response_class=Response,
    responses={200: {"description": "All metrics.", "content": {"text/plain": {}}}},
)
def read_metrics(request: Request) -> Response:  # no coroutine: a thread does it
    """In the text format, or as OpenMetrics where that is asked for."""
    # The library takes a malformed version in this header for its own fault.
    wanted = OPENMETRICS if OPENMETRICS in request.headers.get("accept", "") else ""
    encode, content_type = choose_encoder(wanted)
    return Response(encode(_AllWorkers()), headers={"Content-Type": content_type})
