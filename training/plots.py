"""The plots of reports, drawn with matplotlib's objects, never with pyplot, whose state is global.

Functions return the figure; `png` makes a file of it.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from model.network import Array
from training.metrics import Bin

DPI = 144
WIDTH = 8.6  # inches: what the page is wide
INK, PALE = "#22303c", "#7a8793"
COLOURS = ("#1f6fb2", "#d1662a", "#2f8f6b", "#8a5aa8", "#b23a48")


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    file = BytesIO()
    FigureCanvasAgg(figure)  # gives the figure the canvas that draws it, without a display
    figure.savefig(file, format="png")
    return file.getvalue()


def _figure(width: float, height: float) -> Figure:
    return Figure(dpi=DPI, figsize=(width, height), layout="constrained")


def _dress(*several: Axes) -> None:
    """Give axes the look of every plot here."""
    for axes in several:
        axes.grid(color="#e4e8ec", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(PALE)
        _ink(axes)


def _ink(axes: Axes) -> None:
    axes.tick_params(labelcolor=INK)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set_color(INK)


def _percent(*sides: Any) -> None:
    for side in sides:
        side.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))


# --- training -----------------------------------------------------------------------------------


def cost_curves(curves: Mapping[str, Sequence[float]], every: int) -> Figure:
    """J against iterations, at iterations 0, every, 2·every, …, by the name of each curve; the
    first and the last cost are written beside a curve that is alone."""
    figure = _figure(7, 4)
    axes = figure.subplots()
    for i, (name, costs) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        iterations = np.arange(len(costs)) * every
        axes.plot(iterations, costs, label=name, color=colour, lw=2)
        if len(curves) == 1:
            for at, align in ((0, "left"), (len(costs) - 1, "right")):
                axes.plot(iterations[at], costs[at], "o", color=colour, markersize=5)
                axes.annotate(
                    f"{costs[at]:.6f}",
                    (iterations[at], costs[at]),
                    xytext=(8 if align == "left" else 0, 2 if align == "left" else 9),
                    textcoords="offset points",
                    ha=align,
                    color=INK,
                )
    axes.set(title="Cost", xlabel="iteration", ylabel="cost J")
    axes.set_ylim(0, max(max(costs) for costs in curves.values()) * 1.08)
    _dress(axes)
    if len(curves) > 1:
        axes.legend(title="learning rate", frameon=False)
    return figure


def learning_curve(curve: Sequence[Mapping[str, Any]], best: int) -> Figure:
    """What each epoch came to: the training loss and the log loss on validation, and below it the
    balanced accuracy there; `best` is the epoch that was kept, 0 where none was."""
    figure = _figure(7, 5.4)
    above, below = figure.subplots(2, 1, sharex=True)
    epochs = [row["epoch"] for row in curve]
    for axes, key, colour, label in (
        (above, "loss", PALE, "training, with variations"),
        (above, "log_loss", COLOURS[0], "validation"),
        (below, "balanced_accuracy", COLOURS[0], None),
    ):
        marker = "o" if len(curve) == 1 else None
        values = [row[key] for row in curve]
        axes.plot(epochs, values, color=colour, lw=2, marker=marker, label=label)
    above.set(title="Learning curve", ylabel="loss")
    above.set_ylim(bottom=0)
    below.set(xlabel="epoch", ylabel="balanced accuracy")
    for axes in (above, below):
        if best:
            axes.axvline(best, color=COLOURS[1], lw=1, ls="--", label="kept")
        axes.xaxis.get_major_locator().set_params(integer=True)
    _dress(above, below)
    above.legend(frameon=False)
    return figure


def weights_picture(weights: Array, side: int, class_name: str) -> Figure:
    """Logistic regression's weights (side·side·3,) laid out as the picture that they multiply:
    in colour, and summed over the colours."""
    picture = weights.reshape(side, side, 3)
    figure = _figure(7.4, 3.6)
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


# --- answers ------------------------------------------------------------------------------------


def reliability(tables: Mapping[str, Sequence[Bin]], class_name: str) -> Figure:
    """How often the class was there, against how probable it was called, with 95 % intervals, and
    the numbers of pictures below: a diagram for each named table."""
    figure = _figure(min(WIDTH, 4.6 * len(tables)), 3.9)
    panels = figure.subplots(
        2, len(tables), sharex=True, sharey="row", height_ratios=(4, 1), squeeze=False
    )
    for i, (name, table) in enumerate(tables.items()):
        above, below = panels[:, i]
        colour = COLOURS[i % len(COLOURS)]
        filled = [bin for bin in table if bin.count]
        x = np.array([bin.mean_probability for bin in filled])
        rate = np.array([bin.positive_rate for bin in filled])
        low, high = _wilson(rate, np.array([bin.count for bin in filled]))
        above.plot((0, 1), (0, 1), "--", color=PALE, linewidth=1)
        above.vlines(x, low, high, color=colour, linewidth=2, alpha=0.35)
        above.plot(x, rate, "o-", color=colour, linewidth=1.8, markersize=5)
        below.bar(
            [bin.low for bin in table],
            [bin.count for bin in table],
            [bin.high - bin.low for bin in table],
            align="edge",
            color=colour,
            edgecolor="white",
        )
        above.set(ylim=(-0.03, 1.03))
        above.set_title(name, size=11)
        below.set(xlim=(0, 1))
        _dress(above, below)
        _percent(above.yaxis)
        below.set_xticks((0, 0.5, 1), ("0", "50 %", "100 %"))
    panels[0, 0].set_ylabel(f"share that is {class_name}", color=INK)
    panels[1, 0].set_ylabel("pictures", color=INK)
    figure.supxlabel(f"predicted probability of {class_name}", color=INK, size=10)
    return figure


def _wilson(rate: Array, counts: Array) -> tuple[Array, Array]:
    """The 95 % interval of a share of `counts` (Wilson 1927), which stays within [0, 1]."""
    z = 1.96
    middle = (rate + z**2 / (2 * counts)) / (1 + z**2 / counts)
    half = z * np.sqrt(rate * (1 - rate) / counts + (z / (2 * counts)) ** 2) / (1 + z**2 / counts)
    return middle - half, middle + half


def roc_and_precision(sources: Mapping[str, tuple[Array, Array]], threshold: float) -> Figure:
    """ROC and precision-recall curves of the labels and probabilities (y, p) of each source; the
    dots are the stored threshold."""
    figure = _figure(WIDTH, 4.3)
    left, right = figure.subplots(1, 2)
    for i, (name, (labels, probabilities)) in enumerate(sources.items()):
        colour = COLOURS[i % len(COLOURS)]
        order = np.argsort(-probabilities, kind="stable")
        p, positive = probabilities[order], labels[order] == 1
        last = np.append(p[1:] != p[:-1], True)  # of those that share a probability
        found, false = np.cumsum(positive)[last], np.cumsum(~positive)[last]
        recall, fall_out = found / positive.sum(), false / (~positive).sum()
        precision = found / (found + false)
        left.plot([0, *fall_out], [0, *recall], color=colour, linewidth=1.8, label=name)
        right.plot(recall, precision, color=colour, linewidth=1.8, label=name)
        at = np.searchsorted(-p[last], -threshold, side="right") - 1
        if at >= 0:
            left.plot(fall_out[at], recall[at], "o", color=colour, markersize=6)
            right.plot(recall[at], precision[at], "o", color=colour, markersize=6)
    left.plot((0, 1), (0, 1), "--", color=PALE, linewidth=1)
    left.set(title="ROC", xlabel="others called so", ylabel="found (recall)")
    right.set(title="Precision and recall", xlabel="found (recall)", ylabel="right when called so")
    _dress(left, right)
    for axes in (left, right):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.03))
        _percent(axes.xaxis, axes.yaxis)
    left.legend(frameon=False, loc="lower right")
    return figure
