"""Measurements side by side with other ways to do the same; not part of the tests."""

import os

os.environ.setdefault("TYPER_USE_RICH", "0")  # plain --help

import model  # noqa: F401 - sets the threads of linear algebra before NumPy is loaded
