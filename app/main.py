"""The service, assembled: `uvicorn app.main:app`, or `python -m app` with the settings' own port.

Assembling reads the settings; the weights are loaded when the server starts, and a server whose
weights cannot be loaded stops with one sentence.
"""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from uvicorn.config import STARTUP_FAILURE

from app import (
    about,
    access,
    allocator,
    configuration,
    docs,
    explain,
    inference_protocol,
    metrics,
    page,
    problems,
    reload,
    routes,
)
from app.admission import Admission
from app.capacity import Capacity, plan
from app.decoders import Decoders
from app.middleware import (
    HeadAsGet,
    LostRequests,
    PlainStartupFailure,
    SafeHeaders,
    UnreadBodies,
)
from app.observation import Observed
from app.reload import load_classifier
from app.settings import BadSettings, Settings
from model.classifier import Classifier
from model.preprocessing import Limits, MemoryBudget

API_VERSION = "1"


def create_app(
    settings: Settings | None = None,
    classifier: Classifier | None = None,
    capacity: Capacity | None = None,
) -> FastAPI:
    """Build the service; without `settings` they come from the environment.

    Raises BadSettings for an environment that cannot be used. Loads nothing: without a classifier
    the lifespan loads it, and without a capacity it plans for a process that is alone.
    """
    app = FastAPI(
        title="Cat or not",
        version=API_VERSION,
        description="Says whether a picture shows a cat. Pictures are not logged, stored or sent"
        " on. Errors are problems as RFC 9457 has them.",
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would make clients send their picture twice
        telemetry={"tracing": False, "metrics": False, "logs": False},  # there are our own
    )
    app.state.settings = Settings.from_env(os.environ) if settings is None else settings
    app.state.classifier = classifier
    app.state.capacity = capacity
    app.include_router(routes.router)
    app.include_router(inference_protocol.router)
    app.include_router(explain.router)
    app.include_router(about.router)
    app.include_router(docs.router)
    app.include_router(page.router)
    problems.install(app)
    if app.state.settings.metrics != "off":
        app.include_router(metrics.router)
    _wrap(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _wrap(app: FastAPI) -> None:
    """Put what surrounds every request round the application, from the innermost on."""
    settings: Settings = app.state.settings
    app.add_middleware(routes.Direct)
    app.add_middleware(HeadAsGet)
    if settings.keys:
        open_metrics = settings.metrics == "open"
        app.add_middleware(access.KeysRequired, keys=settings.keys, metrics_open=open_metrics)
    app.add_middleware(UnreadBodies)
    app.add_middleware(LostRequests)
    if settings.cors_origins:
        app.add_middleware(access.Cors, origins=settings.cors_origins)
    app.add_middleware(SafeHeaders)
    app.add_middleware(Observed, log=settings.log, counted=settings.metrics != "off")
    app.add_middleware(PlainStartupFailure)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    state = app.state
    if state.capacity is None:  # nobody has prepared this process: it is alone
        state.classifier = state.classifier or load_classifier(settings)
        state.capacity = plan(workers=1)
        configuration.log(settings, state.capacity, state.classifier)
        allocator.settle()
    classifier: Classifier = state.classifier
    capacity: Capacity = state.capacity
    most = min(settings.max_upload_bytes, capacity.largest_upload_bytes)
    state.settings = settings = replace(settings, max_upload_bytes=most)
    memory = MemoryBudget(capacity.decode_bytes)
    state.limits = Limits(max_pixels=settings.max_pixels, memory=memory)
    reload.install(app)
    state.ready = True
    with Decoders(capacity.decoders) as decoders:
        state.admission = Admission(
            decoders,
            places=settings.queue,
            upload_bytes=capacity.upload_bytes,
            deadline_seconds=settings.deadline_seconds,
        )
        async with metrics.told(classifier.name, classifier.version, state.admission):
            yield


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the schema that all problems share."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
        )
        document["components"]["schemas"]["Problem"] = problems.SCHEMA
        settings: Settings = app.state.settings
        if settings.keys:
            access.document(document, metrics_open=settings.metrics == "open")
        app.openapi_schema = document
    return app.openapi_schema


def _app_from_environment() -> FastAPI:
    try:
        return create_app()
    except BadSettings as error:
        # Servers import this module: a traceback would bury the one line that helps.
        sys.stderr.write(f"{error}\n")
        raise SystemExit(STARTUP_FAILURE) from None


app = _app_from_environment()
