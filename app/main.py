"""The service, assembled: `uvicorn app.main:app`, or `python -m app` with the settings' own port.

Assembling reads the settings; the weights are loaded when the server starts, and a server whose
weights cannot be loaded stops with one sentence.
"""

import logging
import os
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app import docs, problems, routes
from app.middleware import HeadAsGet, NoSniffing, PlainStartupFailure, StoppedRequests, UnreadBodies
from app.settings import BadSettings, Settings
from model.classifier import Classifier, default_weights

API_VERSION = "1"
# uvicorn's exit status for a start that failed; a worker that ends with it is not started again.
STARTUP_FAILURE = 3

# The server's own log: the only one that is set up whichever way the service is started.
logger = logging.getLogger("uvicorn.error")


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the service; without `settings` they come from the environment.

    Raises BadSettings for an environment that cannot be used. Loads nothing: that is the
    lifespan's, which leaves the classifier on `app.state`.
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
    )
    app.state.settings = Settings.from_env(os.environ) if settings is None else settings
    app.include_router(routes.router)
    app.include_router(docs.router)
    problems.install(app)
    for wrapper in (HeadAsGet, UnreadBodies, StoppedRequests, NoSniffing, PlainStartupFailure):
        app.add_middleware(wrapper)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def load_classifier(settings: Settings) -> Classifier:
    """The classifier that the settings ask for. Raises BadArtifact."""
    classifier = Classifier.load(settings.weights or default_weights())
    if settings.threshold is None:
        return classifier
    return replace(classifier, threshold=settings.threshold)


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    for name in settings.ignored:
        logger.warning("%s is not a setting of this service and is ignored", name)
    app.state.classifier = classifier = load_classifier(settings)
    # More decodes at once than cores would only wait for each other, each holding its memory.
    with ThreadPoolExecutor(cores(), thread_name_prefix="decoder") as decoders:
        app.state.decoders = decoders
        logger.info("Serving the model %s, version %s", classifier.name, classifier.version)
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
