"""Answer for pictures on the command line: `python -m model PICTURE|FOLDER|ZIP…`."""

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import FrameType
from typing import Never

from tqdm import tqdm

from model.archive import (
    BadSources,
    Pictures,
    Row,
    Source,
    SourceFailed,
    is_archive,
    row,
    text,
)
from model.batch import BadOutput, CannotStart, Output, answers
from model.classifier import BadArtifact, Classifier, default_weights
from model.preprocessing import accepted_formats

STANDARD_INPUT = "-"
INTERRUPTED, TERMINATED = 130, 143  # exit statuses, as shells count them: 128 + the signal


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled like Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line a picture, or write a row; return 0, 1 if any picture was bad, 2 if the
    arguments, the weights, the output or a disk are."""
    options = _parser().parse_args(arguments)
    goes_on = " The same command goes on from there." if options.output else ""
    try:
        classifier = Classifier.load(options.weights)
        if options.output or any(map(is_archive, options.pictures)):
            return _answer_archives(classifier, options.pictures, options.output)
        return _answer_pictures(classifier, options.pictures, options.json)
    except (BadArtifact, BadOutput, BadSources, CannotStart) as error:
        return _fail(str(error), 2)
    except SourceFailed as error:
        return _fail(f"The pictures cannot be read: {error}.{goes_on}", 2)
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # pictures that cannot be read have rows: this is the output
        what = options.output or "Standard output"
        return _fail(f"{what} cannot be written: {error.strerror or error}.", 2)
    except KeyboardInterrupt as stopped:
        status = TERMINATED if isinstance(stopped, Terminated) else INTERRUPTED
        return _fail(f"Stopped.{goes_on}", status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model",
        description="Say for each picture how probable it is that it shows a cat: a readable line "
        "for pictures, JSON lines for folders and zips, which are answered on all cores.",
        epilog="The exit status is 0, 1 if any picture could not be used or there was none, and 2 "
        "if the weights, the output or the arguments could not, or a disk failed.",
    )
    parser.add_argument(
        "pictures",
        metavar="PICTURE|FOLDER|ZIP",
        nargs="+",
        help=f"a {accepted_formats()} file (- is standard input), or a folder or zip of them, "
        "with all its folders",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="write JSON lines there; if it has some already, go on after them",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        type=Path,
        default=default_weights(),
        help="weights file (default: %(default)s)",
    )
    return parser


def _fail(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status


# --- a few pictures -----------------------------------------------------------------------------


def _answer_pictures(classifier: Classifier, names: Sequence[str], as_json: bool) -> int:
    bad = False
    for name in names:
        source: Source = Path(name)
        if name == STANDARD_INPUT:
            try:
                source = sys.stdin.buffer.read()
            except OSError as error:
                raise SourceFailed(f"standard input: {error.strerror or error}") from error
        answer = row(classifier, text(name), source)
        bad = bad or "error" in answer
        print(json.dumps(answer) if as_json else _sentence(answer), flush=True)
    return 1 if bad else 0


def _sentence(answer: Row) -> str:
    name = _printable(answer["picture"])
    if "error" in answer:
        return f"{name}: {answer['error']['reason']}: {answer['error']['detail']}"
    notes = "".join(f"; {note}" for note in answer["warnings"])
    return f"{name}: {answer['label']} ({answer['cat_probability']:.4f}){notes}"


def _printable(name: str) -> str:
    """The name on one line, whatever is in it."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in name)


# --- archives -----------------------------------------------------------------------------------


def _answer_archives(classifier: Classifier, sources: Sequence[str], path: Path | None) -> int:
    if STANDARD_INPUT in sources:
        return _fail("Beside folders, zips and --output, - is not taken.", 2)
    tally = Tally(classifier.class_names)
    pictures = Pictures(sources)
    found = iter(pictures)
    with ExitStack() as stack:
        output = stack.enter_context(Output(path, classifier.version)) if path else None
        bar = stack.enter_context(_progress_bar(sources, output is not None))
        if output:
            for there in output.rows_of(found):
                tally.count(there)
                bar.update()
            tally.start_here()
        for answer in stack.enter_context(closing(answers(classifier, found))):
            if output:
                output.write(answer)
            else:
                print(json.dumps(answer), flush=True)
            tally.count(answer)
            bar.update()
    print(tally.summary(pictures.skipped), file=sys.stderr)
    return 1 if tally.bad or not tally.rows else 0


def _progress_bar(sources: Sequence[str], rows_in_file: bool) -> "tqdm[Never]":
    """A bar where a terminal shows it and not the rows as well."""
    shown = sys.stderr.isatty() and (rows_in_file or not sys.stdout.isatty())
    total = sum(1 for _ in Pictures(sources)) if shown else None
    return tqdm(total=total, unit=" pictures", disable=not shown, dynamic_ncols=True)


class Tally:
    """What the rows were."""

    def __init__(self, class_names: tuple[str, str]) -> None:
        self._counts = Counter(dict.fromkeys(class_names, 0))
        self._errors: Counter[str] = Counter()
        self.start_here()

    def start_here(self) -> None:
        """Measure speed from now on: the rows so far were there already."""
        self._there = self.rows
        self._started = time.monotonic()

    def count(self, answer: Row) -> None:
        if "error" in answer:
            self._errors[answer["error"]["reason"]] += 1
        else:
            self._counts[answer["label"]] += 1

    @property
    def bad(self) -> int:
        return self._errors.total()

    @property
    def rows(self) -> int:
        return self._counts.total() + self.bad

    def summary(self, skipped: int) -> str:
        """One line for people."""
        parts = [f"{count:,} {label}" for label, count in self._counts.items()]
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self._errors.most_common())
        parts.append(
            f"{self.bad:,} error{'' if self.bad == 1 else 's'}"
            + (f" ({reasons})" if reasons else "")
        )
        if self._there:
            parts.append(f"{self._there:,} of these from before")
        if skipped:
            parts.append(f"{skipped:,} other files left out")
        if self.rows == self._there:
            parts.append("no pictures left to do" if self._there else "no pictures found")
        else:
            rate = (self.rows - self._there) / (time.monotonic() - self._started)
            parts.append(f"{rate:,.1f} pictures/s")
        return "; ".join([", ".join(parts[:3]), *parts[3:]])


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
