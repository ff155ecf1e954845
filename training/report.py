"""What people see of a run: bars on a terminal, and pages from templates.

Pages are Jinja2 templates in templates/, with everything that comes from data escaped; the texts
are there. A page is one file that needs no other: its pictures are inside.
"""

import base64
import errno
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Never

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from tqdm import tqdm

from model.machine import write_file
from training.metrics import wilson_interval

Say = Callable[[str], None]  # prints a line for the person at the terminal

PAGE, METRICS = "report.html", "metrics.json"  # the files of every report folder


# --- the terminal -------------------------------------------------------------------------------


def progress_bar(label: str, unit: str, total: int | None = None) -> "tqdm[Never]":
    """A progress bar on a terminal, nothing elsewhere."""
    on_terminal = sys.stderr.isatty()
    # Terminals made by programs may say that they are 0 × 0; tqdm would show nothing.
    has_size = on_terminal and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    size: dict[str, Any] = {"dynamic_ncols": True} if has_size else {"ncols": 80, "nrows": 24}
    return tqdm(desc=label, unit=f" {unit}s", total=total, disable=not on_terminal, **size)


def percent(share: float | None, digits: int = 1) -> str:
    """0.7 as 70.0 %; a dash for a number that is undefined."""
    return "–" if share is None else f"{share:.{digits}%}".replace("%", " %")


# --- pages --------------------------------------------------------------------------------------

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters |= {
    "percent": percent,
    "data_url": lambda png: f"data:image/png;base64,{base64.b64encode(png).decode()}",
    "points": lambda rows, key: [(row["epoch"], row[key]) for row in rows],  # of a curve
    "cell": lambda text: str(text).replace("|", "\\|"),  # of a Markdown table
    "interval": lambda bin: wilson_interval(bin["positive_rate"], bin["count"]),
}


def render(template: str, **values: Any) -> str:
    """The page that a template of templates/ makes of the values."""
    return _TEMPLATES.get_template(template).render(**values)


# --- files --------------------------------------------------------------------------------------


def outputs(output: Path) -> Path:
    """The folder of the report, next to the weights file; both are checked as below."""
    folder = output.with_name(f"{output.stem}-report")
    check_output(output)
    check_folder(folder)
    return folder


def check_output(path: Path) -> None:
    """Find out before the work, with an OSError, what would keep a file from being written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; name a file", str(path))
    if path.exists() and not path.is_file():  # writing replaces it: a device would be gone
        raise OSError(errno.EINVAL, "is a device, pipe or socket; name a file", str(path))
    if not os.access(path.resolve().parent, os.W_OK):
        raise PermissionError(errno.EACCES, "you cannot write to its folder", str(path))


def check_folder(folder: Path) -> None:
    """Find out before the work, with an OSError, what would keep a report from being written."""
    if folder.exists() and not folder.is_dir():
        what = "is a file, but the report needs a folder"
        raise NotADirectoryError(errno.ENOTDIR, what, str(folder))


def write_report(
    folder: Path, page: str, facts: Mapping[str, Any], more: Mapping[str, str] | None = None
) -> None:
    """Write report.html, metrics.json and `more` files, each whole or not at all, over those of an
    earlier report; what else the folder holds stays. facts: JSON values without NaN. Raises
    OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics = json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for name, text in {METRICS: metrics, **(more or {}), PAGE: page}.items():
        write_file(folder / name, text.encode())
