"""What the commands share: the arguments that name data and outputs, checks, progress."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Never, TypeAlias

from tqdm import tqdm

from model.classifier import BadArtifact, Classifier
from model.preprocessing import Preprocessing
from training import report
from training.data import CLASS_NAMES, PictureSet, read_pictures
from training.errors import BadArguments, Refused
from training.gradient_descent import RECORD_EVERY

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Say = Callable[[str], None]  # prints a line for the person at the terminal


def add_command(
    commands: Commands,
    name: str,
    *,
    summary: str,
    description: str,
    example: str,
    run: Callable[[argparse.Namespace, Say], None],
) -> argparse.ArgumentParser:
    """A subcommand whose help says what it does and shows an example."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=description.strip(),
        epilog=example.strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Which pictures: data, --classes, --skip-bad."""
    parser.add_argument(
        "data",
        nargs="+",
        type=Path,
        metavar="DATA",
        help="HDF5, folder or zip of pictures; several are joined",
    )
    parser.add_argument(
        "--classes",
        nargs=2,
        default=CLASS_NAMES,
        metavar=("FIRST", "SECOND"),
        help="names of the two classes, which are the names of their folders; the probability is "
        f"that of the first (default: {' '.join(CLASS_NAMES)})",
    )
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out pictures that cannot be read; without it they are listed and nothing is "
        "done",
    )


def add_test_argument(parser: argparse.ArgumentParser) -> None:
    """--test: pictures kept apart."""
    parser.add_argument(
        "--test",
        nargs="+",
        type=Path,
        metavar="DATA",
        help="pictures to measure with that training does not see",
    )


def add_output_arguments(parser: argparse.ArgumentParser, default: Path) -> None:
    """Where weights and report go: --output, --report."""
    parser.add_argument(
        "--output",
        type=Path,
        default=default,
        metavar="FILE",
        help="weights file to write (default: %(default)s)",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FOLDER",
        help="report to write, in place of an earlier one (default: beside the weights, named "
        "like them with -report)",
    )


def outputs(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """The weights file and the report folder that the output arguments name; raises OSError and
    BadArguments, before the work, for what cannot be written."""
    output: Path = arguments.output
    folder: Path = arguments.report or output.with_name(f"{output.stem}-report")
    check_output(output)
    report.check_folder(folder)
    if folder.resolve() in output.resolve().parents:
        raise BadArguments(
            f"The weights {output} would lie in the report {folder}, which is replaced as a whole; "
            "name another folder with --report."
        )
    return output, folder


def positive(text: str) -> float:
    """An argument that is a number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def positive_int(text: str) -> int:
    """An argument that is a whole number above 0."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def seed(text: str) -> int:
    """An argument that seeds a random generator."""
    value = int(text)
    if value < 0:
        raise ValueError
    return value


# argparse shows these in "invalid … value".
positive.__name__ = "positive number"
positive_int.__name__ = "positive whole number"
seed.__name__ = "whole number from 0 on"


def class_names(arguments: argparse.Namespace) -> tuple[str, str]:
    """The two names that --classes gives."""
    first, second = arguments.classes
    if first == second:
        raise BadArguments(f"--classes needs two different names, not {first!r} twice")
    return first, second


def read_data(
    arguments: argparse.Namespace,
    paths: Sequence[Path],
    say: Say,
    *,
    both_classes: bool = True,
    side: int = 64,
    smallest: int | None = None,
    names: Container[str] | None = None,
    preprocessing: Preprocessing = Preprocessing(),
) -> PictureSet:
    """The pictures of the paths, as the data arguments say, with what was read said; the other
    parameters as for `read_pictures`."""
    with progress_bar("reading", "picture") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        pictures = read_pictures(
            paths,
            side,
            class_names(arguments),
            smallest=smallest,
            names=names,
            preprocessing=preprocessing,
            both_classes=both_classes,
            skip_bad=arguments.skip_bad,
            progress=progress,
        )
    counts = ", ".join(f"{pictures.count(name):,} {name}" for name in pictures.class_names)
    skipped = len(pictures.skipped)
    left_out = f"; left out {skipped:,} file{'s' if skipped > 1 else ''}" if skipped else ""
    say(
        f"{', '.join(path.name for path in paths)}: {len(pictures):,} pictures ({counts}){left_out}"
    )
    return pictures


@contextmanager
def costs_shown(iterations: int, label: str, say: Say) -> Iterator[Callable[[int, float], None]]:
    """Show the cost while gradient descent runs: a bar on a terminal, elsewhere a line for each
    point of the cost curve. Yields what `gradient_descent` calls."""
    with progress_bar(label, "iteration", iterations) as bar:

        def progress(iteration: int, cost: float) -> None:
            if bar.disable:
                if iteration % RECORD_EVERY == 0:
                    say(f"{label}: iteration {iteration:,}: cost {cost:.6f}")
            else:
                bar.set_postfix_str(f"cost {cost:.6f}", refresh=False)
                bar.update()

        yield progress


def progress_bar(label: str, unit: str, total: int | None = None) -> "tqdm[Never]":
    """A progress bar on a terminal, nothing elsewhere."""
    on_terminal = sys.stderr.isatty()
    # Terminals made by programs may say that they are 0 × 0; tqdm would show nothing.
    has_size = on_terminal and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    return tqdm(
        desc=label,
        unit=f" {unit}s",
        total=total,
        disable=not on_terminal,
        dynamic_ncols=has_size,
        ncols=None if has_size else 80,
        nrows=None if has_size else 24,
    )


def check_output(path: Path) -> None:
    """Find out before the work, with an OSError, what would keep a file from being written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; name a file", str(path))
    if path.exists() and not path.is_file():  # writing replaces it: a device would be gone
        raise OSError(errno.EINVAL, "is a device, pipe or socket; name a file", str(path))
    if not os.access(path.resolve().parent, os.W_OK):
        raise PermissionError(errno.EACCES, "its folder cannot be written to", str(path))


def save(
    classifier: Classifier, output: Path, dtype: Literal["float32", "float16"] = "float32"
) -> Classifier:
    """`Classifier.save`, with what goes wrong as the command line tells it. Raises Refused, and
    OSError with the file's name."""
    try:
        with report.naming(output):
            return classifier.save(output, dtype)
    except BadArtifact as error:
        raise Refused(str(error)) from error
