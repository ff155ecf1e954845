"""What keeps a command from doing its work. `__main__` tells it in one message, no traceback.

Refused
├── BadArguments            arguments that do not go together
├── data.BadData            data that cannot be used
└── gradient_descent.Diverged
"""


class Refused(Exception):
    """The message says what is wrong, with which file or argument, and what to do."""


class BadArguments(Refused):
    """Arguments that do not go together."""
