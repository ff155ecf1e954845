"""Taking up new weights without a stop: the file is read again on SIGHUP.

The new classifier is loaded and checked beside the old one, and takes its place in one assignment.
A request reads `app.state.classifier` once, so it is answered by one of the two. A file that cannot
be used leaves the old one serving.

Of several processes the parent loads, once, and hands the result over in a file whose pages all of
them share: loading takes several times the memory of the weights, and a copy in each worker would
not be in the plan that `app.capacity` makes.
"""

import asyncio
import logging
import mmap
import os
import pickle
import signal
import threading
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from fastapi import FastAPI

from app import metrics
from app.settings import Settings
from model.classifier import BadArtifact, Classifier, default_weights

logger = logging.getLogger("uvicorn.error")

_one_at_a_time = asyncio.Lock()
_running: set[asyncio.Task[None]] = set()  # the event loop itself forgets its tasks
_on_terminal = os.isatty(0)

ALIGNED = 64  # bytes: what the linear algebra libraries read in one go


def load_classifier(settings: Settings) -> Classifier:
    """The classifier that the settings ask for. Raises BadArtifact."""
    path = settings.weights or default_weights()
    try:
        classifier = Classifier.load(path)
    except MemoryError:
        raise BadArtifact(path, "there is too little memory to load it") from None
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
        _nothing(str(error), serving)
        return None


def _nothing(why: str, serving: Classifier) -> None:
    logger.error("%s", why)
    logger.error(
        "Nothing was reloaded: still serving %s, version %s", serving.name, serving.version
    )


def _serve(app: FastAPI, loaded: Classifier) -> None:
    app.state.classifier = loaded
    metrics.serve(loaded.name, loaded.version)
    logger.info("Reloaded: serving %s, version %s", loaded.name, loaded.version)


def share_next(settings: Settings, serving: Classifier, file: str) -> Classifier | None:
    """As load_next, in memory that is shared with whoever takes it over from the file, which is
    written. For the supervisor."""
    loaded = load_next(settings, serving)
    if loaded is None:
        return None
    try:
        share(loaded, Path(file))
        return shared(Path(file))
    except (OSError, MemoryError) as error:
        Path(file).unlink(missing_ok=True)
        _nothing(f"There is no room to hand the new weights over ({error})", serving)
        return None


def take_over(app: FastAPI, file: str) -> None:
    """Serve what the supervisor has loaded."""
    try:
        _serve(app, shared(Path(file)))
    except (OSError, MemoryError) as error:
        _nothing(f"The new weights could not be taken over ({error})", app.state.classifier)


def share(classifier: Classifier, path: Path) -> None:
    """Write a classifier for `shared`: its arrays, each aligned, then all else and where they are,
    pickled, then the length of that. Raises OSError."""
    arrays: list[pickle.PickleBuffer] = []
    rest = pickle.dumps(replace(classifier), 5, buffer_callback=arrays.append)
    sizes = [array.raw().nbytes for array in arrays]
    begins = list(accumulate((-(-size // ALIGNED) * ALIGNED for size in sizes), initial=0))
    index = pickle.dumps((rest, list(zip(begins, sizes, strict=False))))
    with path.open("xb") as out:
        for begin, array in zip(begins, arrays, strict=False):
            out.seek(begin)
            out.write(array.raw())
        out.seek(begins[-1])
        out.write(index + len(index).to_bytes(8))


def shared(path: Path) -> Classifier:
    """The classifier that `share` wrote in this service, read-only. Raises OSError.

    Nobody else can write the file: unpickling it runs no code but ours.
    """
    with path.open("rb") as file:
        pages = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    index = int.from_bytes(pages[-8:])
    rest, spans = pickle.loads(pages[-8 - index : -8])  # noqa: S301
    arrays = [pages[begin : begin + size] for begin, size in spans]
    classifier: Classifier = pickle.loads(rest, buffers=arrays)  # noqa: S301
    return classifier


async def reload(app: FastAPI) -> None:
    """Serve what the weights file holds now, in a process that is alone."""
    async with _one_at_a_time:
        settings, serving = app.state.settings, app.state.classifier
        loaded = await asyncio.to_thread(load_next, settings, serving)
        if loaded is not None:
            _serve(app, loaded)


def start(app: FastAPI) -> None:
    """Reload in the background of the running event loop."""
    task = asyncio.get_running_loop().create_task(reload(app))
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
