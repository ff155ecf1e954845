"""Print the probability of a cat for each picture: a readable line for each file, or JSON Lines for
folders and zips. Exit status: 0 if every picture was classified; 1 if a picture could not be used
or there was none; 2 for wrong arguments, unusable weights or a disk error.
"""

import signal

# Until the command handles Ctrl-C, while the imports below take their time, it ends this quietly.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import asyncio
import fcntl
import io
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, closing
from pathlib import Path
from typing import Final

from tqdm import tqdm

from model import DEFAULT_WEIGHTS
from model.archive import Found, Pictures, Refused, Row, answers, printable, workers_for
from model.workers import CannotStart

FIRST_BYTES: Final = b'{"picture": '  # of a row


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line a picture, or write a row; return the exit status."""
    options = _parser().parse_args(arguments)
    if sys.stderr is None:  # closed; what is printed there would go to standard output
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - it stays open
    if sys.stdout is None and not options.output:
        return _fail("Standard output is closed; open it, or name a file with --output.", 2)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # rows tell what ends a worker
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # asyncio then cancels the task
        return asyncio.run(_answer(options))
    except (Refused, CannotStart) as error:
        return _fail(str(error), 2)
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # pictures that cannot be read have rows: this is the output
        what = options.output or "Standard output"
        return _fail(f"{what} cannot be written: {error.strerror or error}.", 2)
    except (KeyboardInterrupt, asyncio.CancelledError) as stopped:
        number = signal.SIGINT if isinstance(stopped, KeyboardInterrupt) else signal.SIGTERM
        what = "Stopped. If you used --output, the same command continues from here."
        return _fail(what, 128 + number)  # as shells count signals


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model", description=__doc__)
    what = "a picture (- for standard input), or a folder or zip, including its subfolders"
    parser.add_argument("pictures", metavar="PICTURE|FOLDER|ZIP", nargs="+", help=what)
    parser.add_argument("--json", action="store_true", help="print JSON Lines")
    what = "write JSON Lines to this file; if it has some already, continue after them"
    parser.add_argument("--output", metavar="FILE", type=Path, help=what)
    what = "default: model/cat.safetensors"
    parser.add_argument("--weights", metavar="FILE", type=Path, default=DEFAULT_WEIGHTS, help=what)
    return parser


async def _answer(options: argparse.Namespace) -> int:
    """Do it; SIGTERM cancels it between two steps of the event loop, as asyncio does at Ctrl-C."""
    if task := asyncio.current_task():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    pictures = Pictures(options.pictures)
    few = pictures.are_files and options.output is None
    workers = workers_for(options.weights, len(options.pictures) if few else sys.maxsize)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(workers.stop)
        await workers.start()
        labels = dict.fromkeys(workers.description["class_names"], 0)
        counts, found, output = Counter(labels), iter(pictures), None
        if options.output:
            output = Output(options.output, workers.description["version"])
            stack.enter_context(closing(output))
            counts.update(map(_kind, output.rows_of(found)))
        before, began = counts.total(), time.monotonic()
        shown = sys.stderr.isatty() and (output is not None or not sys.stdout.isatty())
        total = sum(1 for _ in Pictures(options.pictures)) if shown else None
        bar = tqdm(total=total, initial=before, unit=" pictures", disable=not shown)
        stack.enter_context(bar)
        async for row in await stack.enter_async_context(aclosing(answers(workers, found))):
            if output:
                output.write(row)
            else:
                print(_sentence(row) if few and not options.json else json.dumps(row), flush=True)
            counts[_kind(row)] += 1
            bar.update()
    if not counts.total():
        where, others = ", ".join(options.pictures), pictures.skipped
        left = f" Other files left out: {others:,}." if others else ""
        return _fail(f"No pictures found in {where}. Expected files such as .jpg or .png.{left}", 1)
    if not few:
        _print_summary(counts, before, pictures.skipped, time.monotonic() - began)
    return 1 if counts.keys() - labels else 0


def _kind(row: Row) -> str:
    """The label, or what was wrong."""
    return str(row["error"]["reason"] if "error" in row else row["label"])


def _print_summary(counts: Counter[str], before: int, skipped: int, seconds: float) -> None:
    new = counts.total() - before
    parts = (
        ", ".join(f"{count:,} {kind}" for kind, count in counts.items()),
        f"{before:,} of these from the previous run" if before else "",
        f"{skipped:,} other file{'s' * (skipped > 1)} left out" if skipped else "",
        f"{new / seconds:,.1f} pictures/s" if new else "",
        "" if new else "no pictures left",
    )
    print("; ".join(filter(None, parts)), file=sys.stderr)


def _sentence(row: Row) -> str:
    name = printable(row["picture"])
    if "error" in row:
        return f"{name}: {row['error']['reason']}: {row['error']['detail']}"
    notes = "".join(f"; {note}" for note in row["warnings"])
    return f"{name}: {row['label']} ({row['cat_probability']:.4f}){notes}"


def _fail(message: str, status: int) -> int:
    print(printable(message), file=sys.stderr)
    return status


class Output:
    """A file of rows, a JSON object a line, which may already hold the first pictures'.

    Rows are written in the order of the pictures. One process writes them at a time.
    """

    def __init__(self, path: Path, version: str) -> None:
        """Open or create the file; raises Refused, and OSError where it cannot be written."""
        if path.exists() and not path.is_file():
            raise Refused(
                f"{path} is not a regular file. Name a regular file, or leave out "
                "--output for standard output."
            )
        self._path, self._version = path, version
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise Refused(f"Another process is writing {path}; wait for it, or end it.") from None

    def rows_of(self, pictures: Iterator[Found]) -> Iterator[Row]:
        """Yield the rows that are there, and take their pictures off the iterator.

        When all were yielded, the file is ready for the next row: what an interruption left of a
        line is cut off. Raises Refused, before anything is changed, where the file is not this
        command's, or of another model, or of other pictures.
        """
        end = 0
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            start, is_whole = line.strip(b"\0")[: len(FIRST_BYTES)], line.endswith(b"\n")
            if not is_whole and FIRST_BYTES.startswith(start):
                break  # torn, or zeros, as interruptions leave it
            try:
                row = json.loads(line if is_whole else b"")
                there = row["picture"], row["model_version"]
                _kind(row)
            except (ValueError, TypeError, LookupError):
                why = f"{self._path} was not written by this command. Name another output"
                if number > 1:
                    why = f"Line {number:,} of {why}, or keep only the lines before it"
                raise Refused(f"{why}.") from None
            found = next(pictures, None)
            now = (found.name if found else "no picture", self._version)
            if now != there:
                raise Refused(
                    f"Row {number:,} of {self._path} is for {there[0]} by the model {there[1]}. "
                    f"This run would write {now[0]} by {now[1]} there: the weights or the "
                    "pictures have changed. Name another output file."
                )
            yield row
            end += len(line)
        self._file.truncate(end)

    def write(self, row: Row) -> None:
        """Add a row; if the process is killed later, it stays."""
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())


if __name__ == "__main__":
    status = main()
    if status > 128:
        os._exit(status)  # a thread may wait for a disk that does not answer
    sys.exit(status)
