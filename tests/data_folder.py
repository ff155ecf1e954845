"""Where tests find pictures that are not part of the repository."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
# The folder may lie beside the checkout, or anywhere that TEST_DATA_FOLDER says. The name is
# outside the service's own prefix, whose unknown settings it warns about.
DATA_FOLDER = REPOSITORY / os.environ.get("TEST_DATA_FOLDER", "../shared/data")


def data_file(name: str) -> Path:
    """The file of that name in the data folder; skips the test that asks where there is none."""
    path = DATA_FOLDER / name
    if not path.is_file():
        pytest.skip(f"needs {name} in the folder that TEST_DATA_FOLDER names")
    return path
