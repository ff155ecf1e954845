"""Reports that people look at: plots, a page that holds them, a folder written whole or not at all.

Plots are made with matplotlib's objects, never with pyplot, which keeps global state.
"""

import base64
import errno
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from model.network import Array
from training.metrics import Bin, Confusion

PAGE = "report.html"  # the page of every report folder
# What reports may hold. A folder that holds anything else is not replaced by one.
FILES = {PAGE, "metrics.json", "log.jsonl", "confusion.png", "cost.png", "learning-curve.png"} | {
    "learning-rates.png",
    "reliability.png",
    "weights.png",
}
_LEFT_BY_FILE_MANAGERS = {".DS_Store", "Thumbs.db", "desktop.ini"}

INK, PALE, _GRID = "#22303c", "#7a8793", "#e4e8ec"
COLOURS = ("#1f6fb2", "#d1662a", "#2f8f6b", "#8a5aa8", "#b23a48")
DPI = 144


# --- plots --------------------------------------------------------------------------------------


def cost_curve(costs: Sequence[float], every: int) -> Figure:
    """J against iterations; costs are those at iterations 0, every, 2·every, …"""
    figure, axes = _figure()
    iterations = np.arange(len(costs)) * every
    axes.plot(iterations, costs, color=COLOURS[0], linewidth=2)
    for i, side in ((0, "left"), (len(costs) - 1, "right")):
        axes.plot(iterations[i], costs[i], "o", color=COLOURS[0], markersize=5)
        axes.annotate(
            f"{costs[i]:.6f}",
            (iterations[i], costs[i]),
            xytext=(8 if side == "left" else 0, 2 if side == "left" else 9),
            textcoords="offset points",
            ha=side,
            color=INK,
        )
    axes.set(title="Cost", xlabel="iteration", ylabel="cost J")
    axes.set_ylim(0, max(costs) * 1.08)
    return figure


def learning_curve(
    losses: Sequence[float], log_losses: Sequence[float], shares: Sequence[float], best: int
) -> Figure:
    """What each epoch came to, epoch 1 first: the training loss and the log loss on validation,
    and below it the balanced accuracy there; `best` is the epoch that was kept."""
    figure = Figure(dpi=DPI, figsize=(7, 5.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    epochs = np.arange(1, len(losses) + 1)
    marker = "o" if len(losses) == 1 else None
    above.plot(epochs, losses, color=PALE, lw=2, marker=marker, label="training, with variations")
    above.plot(epochs, log_losses, color=COLOURS[0], lw=2, marker=marker, label="validation")
    below.plot(epochs, shares, color=COLOURS[0], lw=2, marker=marker)
    above.set(title="Learning curve", ylabel="loss")
    above.set_ylim(bottom=0)
    below.set(xlabel="epoch", ylabel="balanced accuracy")
    for axes in (above, below):
        if best:
            axes.axvline(best, color=COLOURS[1], lw=1, ls="--", label="kept")
        axes.xaxis.get_major_locator().set_params(integer=True)
        dress(axes)
    above.legend(frameon=False)
    return figure


def learning_rate_curves(curves: Mapping[float, Sequence[float]], every: int) -> Figure:
    """The cost curves of several learning rates on one plot: {learning rate: costs}."""
    figure, axes = _figure()
    for i, (rate, costs) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(np.arange(len(costs)) * every, costs, label=f"{rate:g}", color=colour, lw=2)
    axes.set(title="Cost at different learning rates", xlabel="iteration", ylabel="cost J")
    axes.set_ylim(bottom=0)
    axes.legend(title="learning rate", frameon=False)
    return figure


def confusion_matrices(sets: Mapping[str, Confusion], class_names: tuple[str, str]) -> Figure:
    """Counts of right and wrong answers, one matrix for each named set of pictures."""
    width = min(3.4 * len(sets) + 0.6, 9)  # inches; the page is about as wide
    figure = Figure(dpi=DPI, figsize=(width, width / len(sets) + 0.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(sets), sharey=True))
    for axes, (name, counts) in zip(panels, sets.items(), strict=True):
        _confusion_matrix(axes, name, counts, class_names)
    panels[0].set_ylabel("truth", color=INK)
    return figure


def _confusion_matrix(
    axes: Axes, name: str, counts: Confusion, class_names: tuple[str, str]
) -> None:
    rows = np.array(
        [
            [counts.true_positive, counts.false_negative],
            [counts.false_positive, counts.true_negative],
        ]
    )
    shares = rows / np.maximum(rows.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.15)
    for (row, column), count in np.ndenumerate(rows):
        share = shares[row, column]
        colour = "white" if share > 0.6 else INK
        axes.text(column, row - 0.06, f"{count}", ha="center", va="center", color=colour, size=17)
        axes.text(column, row + 0.24, f"{share:.0%}", ha="center", va="center", color=colour)
    axes.set_xticks((0, 1), class_names)
    axes.set_yticks((0, 1), class_names)
    axes.set_title(f"{name}: {counts.accuracy:.1%} right", size=11)
    axes.set_xlabel("answer")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _ink(axes)


def reliability_diagram(table: Sequence[Bin], class_name: str) -> Figure:
    """How often the class was there, against how probable it was called; the bars below count the
    pictures."""
    figure = Figure(dpi=DPI, figsize=(4.6, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    filled = [bin for bin in table if bin.count]
    above.plot((0, 1), (0, 1), "--", color=PALE, linewidth=1, label="perfect")
    above.plot(
        [bin.mean_probability for bin in filled],
        [bin.positive_rate for bin in filled],
        "o-",
        color=COLOURS[0],
        linewidth=2,
        label="measured",
    )
    below.bar(
        [bin.low for bin in table],
        [bin.count for bin in table],
        [bin.high - bin.low for bin in table],
        align="edge",
        color=COLOURS[0],
        edgecolor="white",
    )
    above.set(title="Reliability", ylabel=f"share that is {class_name}", ylim=(-0.03, 1.03))
    above.legend(frameon=False, loc="lower right")
    below.set(xlabel=f"predicted probability of {class_name}", ylabel="pictures", xlim=(0, 1))
    for axes in (above, below):
        dress(axes)
    return figure


def weights_picture(weights: Array, side: int, class_name: str) -> Figure:
    """Logistic regression's weights (side·side·3,) laid out as the picture that they multiply:
    in colour, and summed over the colours."""
    picture = weights.reshape(side, side, 3)
    figure = Figure(dpi=DPI, figsize=(7.4, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    # One weight far from the others would leave everything else grey.
    scale = np.quantile(np.abs(picture), 0.995) or 1
    left.imshow(np.clip(0.5 + picture / (2 * scale), 0, 1), interpolation="nearest")
    left.set_title("in red, green and blue; grey is 0")
    total = picture.sum(axis=2)
    scale = float(np.quantile(np.abs(total), 0.995)) or 1
    shown = right.imshow(total, cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest")
    right.set_title(f"brighter here speaks for {class_name} (red)\nor against it (blue)")
    bar = figure.colorbar(shown, ax=right, shrink=0.85)
    bar.ax.tick_params(colors=INK, labelsize=8)
    bar.outline.set_visible(False)
    for axes in (left, right):
        axes.set_axis_off()
        axes.title.set(color=INK, size=10)
    return figure


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(dpi=DPI, figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    dress(axes)
    return figure, axes


def dress(axes: Axes) -> None:
    """Give axes the look of every plot here."""
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)
    _ink(axes)


def _ink(axes: Axes) -> None:
    axes.tick_params(labelcolor=INK)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set_color(INK)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    file = BytesIO()
    FigureCanvasAgg(figure)  # gives the figure the canvas that draws it, without a display
    figure.savefig(file, format="png")
    return file.getvalue()


# --- the page -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """A part of a page: a heading and, in this order where given, text, a table and pictures."""

    title: str
    text: str = ""
    table: Sequence[Sequence[str]] = ()  # the first row and the first column are headings
    pictures: Mapping[str, bytes] = field(default_factory=dict)  # description → PNG


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #22303c; background: #fff;
       max-width: 54rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; border-bottom: 1px solid #e4e8ec; }
th:first-child { text-align: left; font-weight: normal; color: #56646f; }
"""


def page(title: str, introduction: str, sections: Sequence[Section]) -> str:
    """One HTML file that needs no other: its pictures are inside."""
    body = "\n".join(_section(section) for section in sections)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{escape(title)}</h1>\n<p>{escape(introduction)}</p>\n"
        f"{body}\n</html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.table:
        head, *rows = section.table
        parts.append("<table>")
        parts.append(_row("th", head))
        parts += [_row("td", row) for row in rows]
        parts.append("</table>")
    for description, picture in section.pictures.items():
        data = base64.b64encode(picture).decode()
        width = int.from_bytes(picture[16:20]) * 96 // DPI  # of the PNG's header, in CSS pixels
        parts.append(
            f'<p><img alt="{escape(description)}" width="{width}" '
            f'src="data:image/png;base64,{data}"></p>'
        )
    return "\n".join(parts)


def _row(cell: str, texts: Sequence[str]) -> str:
    first, *rest = (escape(text) for text in texts)
    return f"<tr><th>{first}</th>" + "".join(f"<{cell}>{text}</{cell}>" for text in rest) + "</tr>"


def percent(share: float | None, digits: int = 2) -> str:
    """0.7 as 70.00 %; a dash for a number that is undefined."""
    return "–" if share is None else f"{share:.{digits}%}".replace("%", " %")


METRICS = {  # of `training.metrics.summary` → (its row in a table, shown as a share)
    "pictures": ("pictures", False),
    "accuracy": ("accuracy", True),
    "balanced_accuracy": ("balanced accuracy", True),
    "precision": ("precision", True),
    "recall": ("recall", True),
    "f1": ("F1", True),
    "roc_auc": ("ROC AUC", False),
    "average_precision": ("average precision", False),
    "brier_score": ("Brier score", False),
    "log_loss": ("log loss", False),
    "expected_calibration_error": ("expected calibration error", False),
}


def metrics_table(
    sets: Mapping[str, Mapping[str, Any]], metrics: Iterable[str] = tuple(METRICS)
) -> list[list[str]]:
    """A row for each of the metrics, a column for each of the sets: a section's table."""
    table = [["", *sets]]
    for metric in metrics:
        name, is_share = METRICS[metric]
        table.append([name, *(_number(each[metric], is_share) for each in sets.values())])
    return table


def _number(value: float | None, is_share: bool) -> str:
    if is_share or value is None:
        return percent(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


# --- the folder ---------------------------------------------------------------------------------


def json_text(values: Mapping[str, Any]) -> str:
    """Values as JSON for people and programs; numbers that JSON does not have are a ValueError."""
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


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
