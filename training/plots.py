"""The plots of an evaluation: sources, curves, calibration, kinds, robustness, mistakes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from model.network import Array
from training.data import Pixels
from training.report import COLOURS, DPI, INK, PALE, dress

WIDTH = 8.6  # inches: what the page is wide
WRONG = "#b23a48"
COLUMNS = 5  # of a contact sheet
_LONGEST = 29  # letters of a name under a picture


def metric_by_source(
    models: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, str], sources: Sequence[str]
) -> Figure:
    """A panel for each of `metrics`, {name: its words}: a dot for each model and source with its
    95 % interval. models: {name: sources as `evaluation.measure_sources` gives them}."""
    height = 0.9 + len(sources) * (0.22 + 0.17 * len(models))
    figure = Figure(dpi=DPI, figsize=(WIDTH, height), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(metrics), sharey=True))
    for axes, (metric, words) in zip(panels, metrics.items(), strict=True):
        for m, (name, by_source) in enumerate(models.items()):
            values = np.array([by_source[source][metric] for source in sources])
            low, high = np.transpose([by_source[s]["intervals"][metric] for s in sources])
            place = np.arange(len(sources)) + 0.6 * ((m + 0.5) / len(models) - 0.5)
            colour = COLOURS[m % len(COLOURS)]
            axes.hlines(place, low, high, color=colour, linewidth=2, alpha=0.45)
            axes.plot(values, place, "o", color=colour, markersize=6, label=name)
            if m == 0:
                for value, at in zip(values, place, strict=True):
                    axes.annotate(
                        f"{value:.3f}",
                        (value, at),
                        xytext=(0, 5),
                        textcoords="offset points",
                        ha="center",
                        color=colour,
                        size=8,
                    )
        axes.set_yticks(range(len(sources)), sources)
        axes.set_ylim(len(sources) - 0.5, -0.6)
        axes.set_title(words, size=11)
        dress(axes)
        axes.grid(axis="y", visible=False)
    if len(models) > 1:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


@dataclass(frozen=True)
class Answers:
    """The labels y (m,) and probabilities p (m,) of one source."""

    y: Array
    p: Array


def curves(sources: Mapping[str, Answers], threshold: float) -> Figure:
    """ROC and precision-recall curves by source; the dots are the stored threshold."""
    figure = Figure(dpi=DPI, figsize=(WIDTH, 4.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (name, answers) in enumerate(sources.items()):
        colour = COLOURS[i % len(COLOURS)]
        order = np.argsort(-answers.p, kind="stable")
        p, positive = answers.p[order], answers.y[order] == 1
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
    for axes in (left, right):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.03))
        dress(axes)
        _percent(axes.xaxis, axes.yaxis)
    left.legend(frameon=False, loc="lower right")
    return figure


def reliability(tables: Mapping[str, Sequence[Mapping[str, Any]]], class_name: str) -> Figure:
    """A reliability diagram for each source, the numbers of pictures below it."""
    figure = Figure(dpi=DPI, figsize=(WIDTH, 3.7), layout="constrained")
    panels = figure.subplots(
        2, len(tables), sharex=True, sharey="row", height_ratios=(4, 1), squeeze=False
    )
    for i, (name, table) in enumerate(tables.items()):
        above, below = panels[:, i]
        filled = [bin for bin in table if bin["count"]]
        colour = COLOURS[i % len(COLOURS)]
        above.plot((0, 1), (0, 1), "--", color=PALE, linewidth=1)
        x = np.array([bin["mean_probability"] for bin in filled])
        rate = np.array([bin["positive_rate"] for bin in filled])
        counts = np.array([bin["count"] for bin in filled])
        low, high = _wilson(rate, counts)
        above.vlines(x, low, high, color=colour, linewidth=2, alpha=0.35)
        above.plot(x, rate, "o-", color=colour, linewidth=1.8, markersize=5)
        below.bar(
            [bin["low"] for bin in table],
            [bin["count"] for bin in table],
            [bin["high"] - bin["low"] for bin in table],
            align="edge",
            color=colour,
            edgecolor="white",
        )
        above.set(ylim=(-0.03, 1.03))
        above.set_title(name, size=11)
        below.set(xlim=(0, 1))
        for axes in (above, below):
            dress(axes)
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


def shares(rows: Sequence[Mapping[str, Any]], words: str) -> Figure:
    """Bars of the share of wrong answers by kind, in the order given, the counts beside them.
    rows: as `evaluation.wrong_by_kind` gives them."""
    figure = Figure(dpi=DPI, figsize=(WIDTH, 0.8 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots()
    values = [row["share"] for row in rows]
    axes.barh(range(len(rows)), values, color=WRONG, alpha=0.85, height=0.7)
    for i, row in enumerate(rows):
        text = (
            f" {row['share']:.1%}".replace("%", " %") + f"  ({row['wrong']} of {row['pictures']:,})"
        )
        axes.text(row["share"], i, text, va="center", color=INK, size=9)
    axes.set_yticks(range(len(rows)), [row["kind"] for row in rows])
    axes.set(xlim=(0, max(0.05, *values) * 1.3), ylim=(len(rows) - 0.4, -0.6))
    axes.set_xlabel(words)
    dress(axes)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    _percent(axes.xaxis)
    return figure


def robustness(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """ROC AUC and balanced accuracy under each change; the lines are the pictures as they are,
    which come first."""
    figure = Figure(dpi=DPI, figsize=(WIDTH, 0.9 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for i, (metric, words) in enumerate(
        {"roc_auc": "ROC AUC", "balanced_accuracy": "balanced accuracy"}.items()
    ):
        values = [row[metric] for row in rows]
        axes.axvline(values[0], color=COLOURS[i], linewidth=1, linestyle="--")
        axes.hlines(range(len(rows)), values, values[0], color=COLOURS[i], alpha=0.35, linewidth=3)
        axes.plot(values, range(len(rows)), "o", color=COLOURS[i], markersize=6, label=words)
    axes.set_yticks(range(len(rows)), [row["change"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    dress(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


@dataclass(frozen=True)
class Tile:
    """A picture (side, side, 3) of a contact sheet and the lines under it."""

    picture: Pixels
    lines: Sequence[str]
    colour: str = INK  # of the last line


def contact_sheet(tiles: Sequence[Tile]) -> Figure:
    """Pictures in rows, with their names."""
    cell, gap, line = WIDTH / COLUMNS, 0.1, 0.15  # inches
    side = cell - gap
    row = side + line * max(len(tile.lines) for tile in tiles) + gap
    height = row * -(-len(tiles) // COLUMNS)
    figure = Figure(dpi=DPI, figsize=(WIDTH, height))
    for i, tile in enumerate(tiles):
        left, top = (i % COLUMNS) * cell + gap / 2, height - (i // COLUMNS) * row
        axes = figure.add_axes(
            (left / WIDTH, (top - side) / height, side / WIDTH, side / height), frameon=False
        )
        axes.set_axis_off()
        axes.imshow(tile.picture, interpolation="bicubic", aspect="auto")
        for n, text in enumerate(tile.lines):
            figure.text(
                (left + side / 2) / WIDTH,
                (top - side - 0.04 - n * line) / height,
                _shortened(text),
                ha="center",
                va="top",
                size=7.5,
                color=tile.colour if n == len(tile.lines) - 1 else INK,
            )
    return figure


def _shortened(text: str) -> str:
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]}…{text[-half + 1 :]}"


def _percent(*sides: Any) -> None:
    for side in sides:
        side.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
