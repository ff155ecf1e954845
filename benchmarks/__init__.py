"""Measurements side by side with other ways to do the same; not part of the tests."""

import model  # noqa: F401 - settles how NumPy's linear algebra works, before NumPy is loaded
