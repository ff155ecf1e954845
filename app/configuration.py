"""What the service runs with, for its log: each setting, where it comes from, what follows."""

import logging
import os
from collections.abc import Mapping
from typing import Any

from app.capacity import Capacity
from app.settings import PREFIX, Settings, settings_table
from model.classifier import Classifier

logger = logging.getLogger("uvicorn.error")


def log(settings: Settings, capacity: Capacity, classifier: Classifier) -> None:
    """Write the configuration to the server's log."""
    for name in settings.ignored:
        logger.warning("%s is not a setting of this service and is ignored", name)
    logger.info("Settings:")
    for line in describe(settings, os.environ):
        logger.info("  %s", line)
    logger.info(
        "Workers: %d, decoder threads in each: %d; a worker holds up to %.0f MB of uploads"
        " and %.0f MB of decoding",
        capacity.workers,
        capacity.decoders,
        capacity.upload_bytes / 1e6,
        capacity.decode_bytes / 1e6,
    )
    if settings.max_upload_bytes > capacity.largest_upload_bytes:
        chosen = bool(os.environ.get("CAT_MAX_UPLOAD_BYTES"))
        logger.log(
            logging.WARNING if chosen else logging.INFO,
            "CAT_MAX_UPLOAD_BYTES is more than a worker has room for: %d bytes are accepted."
            " More memory, or fewer workers, give more room",
            capacity.largest_upload_bytes,
        )
    logger.info("Model: %s, version %s", classifier.name, classifier.version)


def describe(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    """A line for each setting: its name, its value, and whether somebody chose it."""
    lines = []
    for name, setting in settings_table().items():
        value = getattr(settings, name.removeprefix(PREFIX).lower())
        chosen = bool(environ.get(name)) and name not in settings.ignored
        shown = _shown(value) if chosen else setting.default
        if chosen and setting.secret:
            shown = f"set, hidden: {len(value)} key{'' if len(value) == 1 else 's'}"
        lines.append(f"{name:<25}{shown} ({'from the environment' if chosen else 'default'})")
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
