"""The service, assembled: `uvicorn app.main:app`, or `python -m app` with the settings' own port.

Assembling reads the settings; the workers load the weights when the server starts, and a server
whose weights cannot be loaded stops with one sentence.
"""

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from fastapi import FastAPI

from app import (
    __version__,
    feedback,
    inference_protocol,
    middleware,
    observation,
    pages,
    routes,
)
from app.capacity import Capacity, plan, workers_for
from app.observation import Metrics
from app.queue import Queue
from app.settings import BadSettings, Settings
from model.worker import missing_limits
from model.workers import CannotStart, Workers

# Allocations, less what was freed, before young objects are looked through. Requests leave little
# that counting references does not free.
YOUNG_OBJECTS = 10_000

logger = logging.getLogger("uvicorn.error")


def create_app(settings: Settings | None = None, workers: Workers | None = None) -> FastAPI:
    """Build the service; without `settings` they come from the environment.

    Raises BadSettings for an environment that cannot be used. Starts nothing: without workers that
    have been started already, the lifespan starts them.
    """
    app = FastAPI(
        title="Cat or not",
        version=__version__,
        description="Says whether a picture shows a cat. Pictures are never logged, stored "
        "or forwarded. The only exception is /feedback, if the operator enables "
        "it. Errors follow RFC 9457.",
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        responses=routes.RESPONSES,
        generate_unique_id_function=lambda route: route.name,
        redirect_slashes=False,  # a redirect would make clients send their picture twice
        telemetry={"tracing": False, "metrics": False, "logs": False},  # there are our own
    )
    settings = Settings.from_env(os.environ) if settings is None else settings
    capacity: Capacity = plan(settings.workers)
    most = min(settings.max_upload_bytes, capacity.largest_upload_bytes)
    state = app.state
    state.settings, state.capacity = replace(settings, max_upload_bytes=most), capacity
    state.workers, state.metrics, state.ready, state.collection = workers, Metrics(), False, None
    app.router.routes.extend(routes.plain_router.routes)  # an included router takes longer
    for module in (routes, feedback, inference_protocol, pages):
        app.include_router(module.router)
    if settings.metrics != "off":
        app.include_router(observation.router)
    middleware.install_handlers(app)
    # What surrounds every request, from the innermost on
    if settings.keys:
        open_metrics = settings.metrics == "open"
        app.add_middleware(middleware.KeysRequired, keys=settings.keys, metrics_open=open_metrics)
        app.openapi = lambda: _document_keys(app)  # type: ignore[method-assign]
    app.add_middleware(middleware.FailedRequests)
    app.add_middleware(middleware.Cors, origins=settings.cors_origins)
    counted = state.metrics if settings.metrics != "off" else None
    app.add_middleware(middleware.RequestMiddleware, log_form=settings.log, metrics=counted)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    access = logging.getLogger("uvicorn.access")  # our line stands in for it, and knows more
    access.handlers, access.propagate = [], False
    state, settings = app.state, app.state.settings
    if settings.collect:
        most = settings.collect_pictures, settings.collect_bytes
        state.collection = feedback.Collection(settings.collect, *most)
    workers: Workers = state.workers or workers_for(settings, state.capacity)
    state.workers = workers
    owned = not workers.description  # else somebody has started them, for several services
    if owned:
        await workers.start()
    state.model = workers.description  # which always says what is served
    state.queue = Queue(
        workers,
        places=settings.queue,
        body_bytes=state.capacity.body_bytes,
        deadline_seconds=settings.deadline_seconds,
    )
    metrics: Metrics = state.metrics
    metrics.set_model(state.model["name"], state.model["version"])
    metrics.in_progress.set_function(lambda: state.queue.in_progress)
    metrics.waiting.set_function(lambda: workers.waiting)
    metrics.busy.set_function(lambda: workers.busy)
    metrics.workers.set_function(lambda: workers.count)
    workers.on_replaced = metrics.replaced.inc
    _reload_on_hangup(app)
    gc.collect()
    gc.freeze()  # what lives as long as the service is kept out of garbage collections
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
    state.ready = True
    _log_startup(app)
    try:
        yield {"log": settings.log, "metrics": metrics}
    finally:
        if owned:
            await workers.stop()


def _log_startup(app: FastAPI) -> None:
    """Log what is served, where, how to try it, and what follows from the settings."""
    state = app.state
    settings, capacity, model = state.settings, state.capacity, state.model
    address = getattr(state, "address", None)
    for each in settings.warnings:
        logger.warning("%s", each)
    logger.info("Model: %s, version %s", model["name"], model["version"])
    if address:
        logger.info("Listening on %s (Ctrl-C stops it)", address)
    command = "curl --data-binary @picture.jpg" + middleware.curl_option(settings.keys)
    logger.info("Try it: %s %s/predict", command, address or "http://ADDRESS:PORT")
    logger.info(
        "Workers: %d, each with %.0f MB of memory; uploads up to %.1f MB each, %.0f MB in total",
        state.workers.count,
        capacity.worker_bytes / 1e6,
        settings.max_upload_bytes / 1e6,
        capacity.body_bytes / 1e6,
    )
    if state.collection:
        count, _ = state.collection.size()
        logger.info("Feedback is saved in %s, which holds %d pictures", settings.collect, count)
    for missing in missing_limits():
        logger.warning("Workers are not prevented from %s", missing)


def _reload_on_hangup(app: FastAPI) -> None:
    """Load the weights again on SIGHUP. Does nothing where SIGHUP has a meaning already, as under
    nohup, nor in a thread, which cannot have it."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL
    ):
        return
    on_terminal = os.isatty(0)

    def on_hangup() -> None:
        if on_terminal and not os.isatty(0):  # the window that the service ran in was closed
            signal.raise_signal(signal.SIGTERM)
        else:
            app.state.workers.run_task(reload(app))

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_hangup)


async def reload(app: FastAPI) -> None:
    """Serve what the weights file holds now; a file that cannot be used changes nothing."""
    state, model = app.state, app.state.model  # the latter always says what is served
    try:
        await state.workers.reload()
        state.metrics.set_model(model["name"], model["version"])
        logger.info("Reloaded: serving %s, version %s", model["name"], model["version"])
    except CannotStart as error:
        logger.error("%s", error)
        still = "The weights were not reloaded: still serving %s, version %s"
        logger.error(still, model["name"], model["version"])


def _document_keys(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, which says what needs a key."""
    document, settings = FastAPI.openapi(app), app.state.settings
    document["components"]["securitySchemes"] = middleware.SCHEMES
    document["security"] = [{name: []} for name in middleware.SCHEMES]  # either will do
    for path, operations in document["paths"].items():
        if middleware.is_open(path, metrics_open=settings.metrics == "open"):
            for operation in operations.values():
                operation["security"] = []
    return document


try:
    app = create_app()
except (
    BadSettings
) as error:  # servers import this module: a traceback would bury the line that helps
    sys.exit(str(error))
