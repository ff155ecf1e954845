"""How a line of the log begins, whoever writes it: with the time, then how grave it is."""

import json
import logging
from datetime import UTC, datetime


def timestamp(moment: datetime) -> str:
    """A moment in UTC, as lines have it: 2026-11-23T10:55:44.123Z."""
    return moment.isoformat(timespec="milliseconds")[:-6] + "Z"


class Lines(logging.Formatter):
    """The server's own lines, which begin as those about requests do; "json" or text."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def format(self, record: logging.LogRecord) -> str:
        now = timestamp(datetime.fromtimestamp(record.created, UTC))
        level, message = record.levelname, super().format(record)
        if self.form == "json":
            return json.dumps({"time": now, "level": level.lower(), "message": message})
        return f"{now} {level} {message}"
