"""Command line of the training room: `python -m training COMMAND …`."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from types import FrameType

from training.errors import Refused

DESCRIPTION = """\
Train a classifier on your own pictures and look at how good it is.

Data is the course's HDF5, or a folder or zip with the pictures of each class in a folder of its
name (cat/ and non-cat/). A trained classifier is one file, which the service loads:

  python -m training course train_catvnoncat.h5 --test test_catvnoncat.h5
  CAT_WEIGHTS=runs/logistic.safetensors python -m app

`python -m training COMMAND --help` explains each command and shows an example.
"""

# Each module adds its commands to the parser with `add_commands`.
MODULES = (
    "training.fit",
    "training.evaluate",
    "training.card",
    "training.course",
    "training.learning_rates",
)

INTERRUPTED, TERMINATED = 130, 143  # exit statuses, as shells count them: 128 + the signal


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled like Ctrl-C: temporary files are removed on the way out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, or another with one message that says what was wrong."""
    try:
        _run(arguments)
    except KeyboardInterrupt as stopped:
        status = TERMINATED if isinstance(stopped, Terminated) else INTERRUPTED
        return _fail("Stopped; no file was left half-written.", status)
    except Refused as error:
        return _fail(f"error: {error}")
    except ModuleNotFoundError as error:
        return _fail(f"error: training needs {error.name}, which is not installed: `make setup`.")
    except MemoryError as error:
        return _fail(f"error: out of memory: {error}. Use fewer pictures.")
    except BrokenPipeError:  # whoever read the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"error: {where}{error.strerror or error}.")
    return 0


def _run(arguments: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in MODULES:
        import_module(module).add_commands(commands)
    chosen = parser.parse_args(arguments)
    chosen.run(chosen, partial(print, flush=True))


def _fail(message: str, status: int = 1) -> int:
    print(message, file=sys.stderr)
    return status


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
