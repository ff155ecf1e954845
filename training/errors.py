"""What keeps a command from doing its work. `__main__` tells it in one message, no traceback.

Refused
├── BadArguments            arguments that do not go together
├── BadData                 data that cannot be used
├── checkpoint.BadCheckpoint a run that cannot be gone on with
└── gradient_descent.Diverged
"""

from collections.abc import Iterable


class Refused(Exception):
    """The message says what is wrong, with which file or argument, and what to do."""


class BadArguments(Refused):
    """Arguments that do not go together."""


class BadData(Refused, ValueError):
    """The data cannot be used: which file, what is wrong with it, what to do."""


def quoted(names: Iterable[str]) -> str:
    """Names as a message lists them."""
    return ", ".join(repr(name) for name in names)
