"""Training: finds the numbers that `model` predicts with. Imports `model`; nothing imports it."""

import model  # noqa: F401 - settles how NumPy's linear algebra works, before NumPy is loaded


class Refused(Exception):
    """What keeps a command from its work: which file or argument, what is wrong, what to do.
    `training.__main__` prints it as one message without a traceback."""
