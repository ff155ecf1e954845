"""Taking up new weights without a stop: the file is read again on SIGHUP.

The new classifier is loaded and checked beside the old one, in a thread, and takes its place in one
assignment. A request reads `app.state.classifier` once, so it is answered by one of the two. A file
that cannot be used leaves the old one serving.
"""

import asyncio
import logging
import os
import signal
import threading
from dataclasses import replace

from fastapi import FastAPI

from app import metrics
from app.settings import Settings
from model.classifier import BadArtifact, Classifier, default_weights

logger = logging.getLogger("uvicorn.error")

_one_at_a_time = asyncio.Lock()
_running: set[asyncio.Task[None]] = set()  # the event loop itself forgets its tasks
_on_terminal = os.isatty(0)


def load_classifier(settings: Settings) -> Classifier:
    """The classifier that the settings ask for. Raises BadArtifact."""
    classifier = Classifier.load(settings.weights or default_weights())
    if settings.threshold is None:
        return classifier
    # Its own words fit its own threshold; empty, they are those that fit this one.
    metadata = {**classifier.metadata, "threshold_rule": "set by CAT_THRESHOLD"}
    return replace(classifier, threshold=settings.threshold, bands=(), metadata=metadata)


def load_next(settings: Settings, serving: Classifier) -> Classifier | None:
    """What the weights file holds now; None, and the reason in the log, if it cannot be used."""
    try:
        return load_classifier(settings)
    except BadArtifact as error:
        logger.error("%s", error)
        logger.error(
            "Nothing was reloaded: still serving %s, version %s", serving.name, serving.version
        )
        return None


async def reload(app: FastAPI, version: str | None = None) -> None:
    """Serve what the weights file holds now; with a version, only if it is that one."""
    async with _one_at_a_time:
        serving: Classifier = app.state.classifier
        loaded = await asyncio.to_thread(load_next, app.state.settings, serving)
        if loaded is None:
            return
        if version not in (None, loaded.version):
            logger.error(
                "The weights file changed while it was reloaded: it holds version %s, and version"
                " %s was checked. Still serving version %s; ask for the reload again",
                loaded.version,
                version,
                serving.version,
            )
            return
        app.state.classifier = loaded
        metrics.serve(loaded.name, loaded.version)
        logger.info("Reloaded: serving %s, version %s", loaded.name, loaded.version)


def start(app: FastAPI, version: str | None = None) -> None:
    """Reload in the background of the running event loop."""
    task = asyncio.get_running_loop().create_task(reload(app, version))
    _running.add(task)
    task.add_done_callback(_running.discard)


def install(app: FastAPI) -> None:
    """Reload on SIGHUP from now on. Call it with the event loop running.

    Does nothing where SIGHUP has a meaning already: under the supervisor, which tells its workers
    itself, and under nohup; nor in a thread or on a system that cannot have it.
    """
    if (
        not hasattr(signal, "SIGHUP")
        or threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL
    ):
        return

    def on_hangup() -> None:
        if terminal_is_gone():
            signal.raise_signal(signal.SIGTERM)
        else:
            start(app)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_hangup)


def terminal_is_gone() -> bool:
    """Whether SIGHUP means its first sense: the window was closed that the service ran in."""
    return _on_terminal and not os.isatty(0)
