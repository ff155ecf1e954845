"""What people see of a run: bars on a terminal, pages from templates, folders written whole.

Pages are Jinja2 templates in templates/, with everything that comes from data escaped; the texts
are there. A page is one file that needs no other: its pictures are inside.
"""

import base64
import errno
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Never

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from tqdm import tqdm

from model.classifier import BadArtifact, Classifier
from training import Refused
from training.plots import DPI

Say = Callable[[str], None]  # prints a line for the person at the terminal

PAGE = "report.html"  # the page of every report folder
# What reports may hold. A folder that holds anything else is not replaced by one.
FILES = {PAGE, "metrics.json", "log.jsonl"} | {
    f"{name}.png"
    for name in ("confusion", "cost", "learning-curve", "learning-rates", "reliability", "weights")
}
_LEFT_BY_FILE_MANAGERS = {".DS_Store", "Thumbs.db", "desktop.ini"}


# --- the terminal -------------------------------------------------------------------------------


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


@contextmanager
def counted(label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; yields what is called with (done, in all)."""
    with progress_bar(label, unit) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def percent(share: float | None, digits: int = 2) -> str:
    """0.7 as 70.00 %; a dash for a number that is undefined."""
    return "–" if share is None else f"{share:.{digits}%}".replace("%", " %")


# --- pages --------------------------------------------------------------------------------------


def _image(picture: bytes) -> dict[str, Any]:
    """A PNG as a page holds it: its data and its width in CSS pixels, from its header."""
    width = int.from_bytes(picture[16:20]) * 96 // DPI
    return {"data": base64.b64encode(picture).decode(), "width": width}


def _cell(text: object) -> str:
    """A text as a cell of a Markdown table."""
    return str(text).replace("|", "\\|")


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters |= {"image": _image, "percent": percent, "cell": _cell}


def render(template: str, **values: Any) -> str:
    """The page that a template of templates/ makes of the values."""
    return _TEMPLATES.get_template(template).render(**values)


def json_text(values: Mapping[str, Any]) -> str:
    """Values as JSON for people and programs; numbers that JSON does not have are a ValueError."""
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


# --- files --------------------------------------------------------------------------------------


def outputs(output: Path, folder: Path | None) -> Path:
    """The report folder that goes with a weights file: `folder`, or one beside it. Finds out before
    the work what would keep both from being written; raises OSError and Refused."""
    folder = folder or output.with_name(f"{output.stem}-report")
    check_output(output)
    check_folder(folder)
    if folder.resolve() in output.resolve().parents:
        raise Refused(
            f"The weights {output} would lie in the report {folder}, which is replaced as a whole; "
            "name another folder with --report."
        )
    return folder


def check_output(path: Path) -> None:
    """Find out before the work, with an OSError, what would keep a file from being written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; name a file", str(path))
    if path.exists() and not path.is_file():  # writing replaces it: a device would be gone
        raise OSError(errno.EINVAL, "is a device, pipe or socket; name a file", str(path))
    if not os.access(path.resolve().parent, os.W_OK):
        raise PermissionError(errno.EACCES, "its folder cannot be written to", str(path))


def check_folder(folder: Path) -> None:
    """Refuse, with an OSError, a folder for a report that holds something else."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.name not in FILES | _LEFT_BY_FILE_MANAGERS or path.is_dir():
                message = f"holds {path.name}, which is no part of a report; name another folder"
                raise FileExistsError(errno.EEXIST, message, str(folder))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is a file; a report is a folder", str(folder))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError the name of the file that was being written: a full disk is told without."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextmanager
def write_folder(folder: Path, files: Mapping[str, bytes]) -> Iterator[None]:
    """Write the files of a report, whole or not at all, in place of an earlier report.

    They are complete, under another name beside `folder`, when the body of the `with` runs, and
    take their place when it ends; if it raises, nothing has changed. So something else can be
    written in the body that must not be there without the report.
    """
    assert files.keys() <= FILES, "the next report could not take this one's place"
    check_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        new.mkdir()
        for name, content in files.items():
            with naming(folder / name):
                (new / name).write_bytes(content)
        yield
        with suppress(FileNotFoundError):
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            with suppress(FileNotFoundError):
                old.rename(folder)
            raise


def save(
    classifier: Classifier, output: Path, dtype: Literal["float32", "float16"] = "float32"
) -> Classifier:
    """`Classifier.save`, with what goes wrong as the command line tells it. Raises Refused, and
    OSError with the file's name."""
    try:
        with naming(output):
            return classifier.save(output, dtype)
    except BadArtifact as error:
        raise Refused(str(error)) from error


def load(path: Path) -> Classifier:
    """`Classifier.load`; raises Refused."""
    try:
        return Classifier.load(path)
    except BadArtifact as error:
        raise Refused(str(error)) from error


def report_files(
    page: str, facts: Mapping[str, Any], plots: Mapping[str, bytes]
) -> dict[str, bytes]:
    """The files of a report by name: the page, metrics.json and the plots, NAME.png."""
    return {
        PAGE: page.encode(),
        "metrics.json": json_text(facts).encode(),
        **{f"{name}.png": plot for name, plot in plots.items()},
    }
