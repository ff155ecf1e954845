"""Plain `pytest` needs Python alone: tests that need more are skipped, and say what runs them."""

import signal

import pytest
from hypothesis import settings

import model  # noqa: F401 - settles linear algebra before NumPy is loaded

# What starts tests in the background (`&`, nohup) has these ignored, which would be handed down to
# the processes that tests stop with them.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        default = signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL
        signal.signal(_number, default)

settings.register_profile("long", max_examples=50_000)  # for tests/test_fuzz_*.py

# Markers, explained in pyproject.toml
NEEDS_MORE = ("attack", "browser", "container", "fuzz", "network", "slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs more unless `-m` chooses."""
    if config.option.markexpr:
        return
    for item in items:
        for marker in NEEDS_MORE:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"{marker}: `make test-all` runs it"))
