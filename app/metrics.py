"""Prometheus metrics. Labels have few values, whatever clients send."""

from collections.abc import Sequence
from typing import Any

import prometheus_client
from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

OTHER = "other"  # unknown paths and methods
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
OPENMETRICS = "application/openmetrics-text"

prometheus_client.disable_created_metrics()


class Metrics:
    """The numbers of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
            return Gauge(name, text, labels, registry=self.registry)

        def histogram(
            name: str, text: str, buckets: Sequence[float], labels: Sequence[str] = ()
        ) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

        self.requests = counter(
            "cat_requests",
            "Requests by route, method and status; 499: the client left before its answer.",
            ("route", "method", "status"),
        )
        self.seconds = histogram(
            "cat_request_seconds",
            "Time from a request's headers to the end of its answer, uploading included.",
            (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            ("route",),
        )
        self.queue_seconds = histogram(
            "cat_queue_seconds",
            "Time that uploaded pictures waited: for a worker, and on the way to it and back.",
            (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        self.decode_seconds = histogram(
            "cat_decode_seconds",
            "Time that a worker spent on a request: decoding, scaling and the network.",
            (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
        )
        self.rejections = counter(
            "cat_rejections",
            "Requests that were answered with a problem, by the last part of its type.",
            ("reason",),
        )
        self.probabilities = histogram(
            "cat_probability",
            "The probabilities that were answered.",
            [step / 20 for step in range(1, 21)],
        )
        self.distances = histogram(
            "cat_input_distance",
            "How unlike the pictures of training's validation pictures were, in standard"
            " deviations (root mean square) of brightness, contrast, colourfulness and sharpness."
            " Around 1 is usual; a growing share above 2 means other pictures than those that the"
            " model was measured on.",
            (0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 6, 10),
        )
        self.feedback = counter(
            "cat_feedback", "Pictures that were sent as feedback and kept, by class.", ("label",)
        )
        self.lost_lines = counter(
            "cat_log_lines_lost", "Log lines that were dropped because standard output took none."
        )
        self.in_progress = gauge(
            "cat_requests_in_progress", "Requests with pictures that have no answer yet."
        )
        self.waiting = gauge("cat_queue_depth", "Uploaded pictures that wait for a worker.")
        self.busy = gauge("cat_decoders_busy", "Workers at work.")
        self.workers = gauge("cat_workers", "Workers: processes that work on pictures.")
        self.replaced = counter("cat_workers_replaced", "Workers that ended and were replaced.")
        self.model = gauge("cat_model_info", "1 for the model that is served.", ("name", "version"))

    def serve(self, name: str, version: str) -> None:
        """Say which model is served from now on."""
        self.model.clear()
        self.model.labels(name, version).set(1)

    def count(self, facts: Any, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request that is over. facts: `app.middleware.Facts`; route: a template, or
        OTHER; method: as the client sent it."""
        self.requests.labels(route, method if method in METHODS else OTHER, status).inc()
        self.seconds.labels(route).observe(seconds)
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


router = APIRouter()


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="Tell the metrics, for Prometheus",
    response_class=Response,
    responses={200: {"description": "All metrics.", "content": {"text/plain": {}}}},
)
async def read_metrics(request: Request) -> Response:
    """In the text format, or as OpenMetrics where that is asked for."""
    # The library takes a malformed version in this header for its own fault.
    wanted = OPENMETRICS if OPENMETRICS in request.headers.get("accept", "") else ""
    encode, content_type = choose_encoder(wanted)
    registry = request.app.state.metrics.registry
    return Response(encode(registry), headers={"Content-Type": content_type})
