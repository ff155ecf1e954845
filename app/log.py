"""What is written to the log: a line for each request, and the server's own lines.

Pictures, bodies, query strings and keys are never logged.
"""

import json
import logging
import os
import re
import select
import sys
from datetime import UTC, datetime
from typing import Any

STDOUT = 1
_is_plain = re.compile(r"[!#-~]+").fullmatch  # visible ASCII but the quotation mark


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
        if sys.platform != "win32" and not select.select((), (STDOUT,), (), 0)[1]:
            return False
        os.write(STDOUT, line)
    except (OSError, ValueError):  # closed, or its reader is gone
        return False
    return True


def configuration(form: str) -> dict[str, Any]:
    """For uvicorn: its lines in our form."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"ours": {"()": Formatter, "form": form}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "ours"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {"uvicorn": {"level": "INFO"}},
    }
