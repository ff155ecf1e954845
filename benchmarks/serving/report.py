"""What the rounds come to: medians, ratios, the bars, as Markdown and as a plot."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.serving.measure import CONNECTIONS, HEALTH_CONDITION, SAME_DECODE, Cell, Results
from benchmarks.serving.pictures import SIZES
from benchmarks.serving.servers import EMPTY, OURS, PEER_SERVERS, WHOLE

BAR_CONNECTIONS = 8
SIZE_NAMES = tuple(size.name for size in SIZES)
# Requests a second over the best peer's, at least: what the project holds itself to
FASTER = {"small": 1.7, "medium": 3.0, "large": 4.5}  # with logistic regression
FASTER_NETWORK = {"small": 0.9, "medium": 1.0, "large": 1.0}
TAIL, MEMORY, COLD_START, ADDED_MS, WHOLE_FASTER, HEALTH_MS = 0.7, 0.7, 1.3, 0.45, 0.9, 100.0


@dataclass(frozen=True)
class Bar:
    """One thing that is asked of the service, and whether the medians have it."""

    what: str
    found: float
    bound: float
    at_most: bool
    unit: str = "×"

    @property
    def met(self) -> bool:
        return self.found <= self.bound if self.at_most else self.found >= self.bound

    def __str__(self) -> str:
        word = "at most" if self.at_most else "at least"
        verdict = "met" if self.met else "**not met**"
        if np.isnan(self.found):
            verdict = "not measured"
        return f"{self.what} | {self.found:.2f} {self.unit} | {word} {self.bound:g} | {verdict}"


class Summary:
    """Medians over the rounds."""

    def __init__(self, results: Results, network: bool) -> None:
        self.results = results
        self.network = network  # or else logistic regression
        self._cells: dict[tuple[str, str, int], list[Cell]] = {}
        for cell in results.cells:
            self._cells.setdefault((cell.server, cell.size, cell.connections), []).append(cell)
        measured = {cell.server for cell in results.cells}
        self.peers = [each.name for each in PEER_SERVERS if each.name in measured]
        self.servers = [n for n in (OURS.name, WHOLE.name, *self.peers) if n in measured]

    def of(self, what: str, server: str, size: str, connections: int = BAR_CONNECTIONS) -> float:
        """The median of a field of the cells; NaN where nothing was measured."""
        cells = self._cells.get((server, size, connections), [])
        return median([getattr(cell, what) for cell in cells]) if cells else float("nan")

    def best_peer(
        self, what: str, size: str, connections: int, best: Callable[[Sequence[float]], float]
    ) -> float:
        """The best of the peers' medians."""
        values = [self.of(what, peer, size, connections) for peer in self.peers]
        return best(values) if values else float("nan")

    def cold_start(self, server: str) -> float:
        """Seconds from its start to the first answer."""
        seconds = [r["seconds"] for r in self.results.cold_starts if r["server"] == server]
        return median(seconds) if seconds else float("nan")

    def loop(self, what: str, name: str, size: str) -> float:
        """The median of a field of a bare loop."""
        rounds = [r for r in self.results.loops if (r.name, r.size) == (name, size)]
        return median([getattr(r, what) for r in rounds]) if rounds else float("nan")

    def health_p99_ms(self, server: str) -> float:
        """Of the health checks of all rounds together: one round has too few for a p99."""
        all_ms = [
            ms for r in self.results.health if r["server"] == server for ms in r["latencies_ms"]
        ]
        return float(np.percentile(all_ms, 99, method="higher")) if all_ms else float("nan")

    def errors(self, server: str) -> int:
        """Of all rounds together."""
        return sum(cell.errors for cell in self.results.cells if cell.server == server)

    def bars(self) -> Iterator[Bar]:
        """What is asked of the service, beside what it does."""
        for size in SIZE_NAMES:
            faster = self._ratio(OURS.name, "requests_per_s", size, BAR_CONNECTIONS, max)
            bound = (FASTER_NETWORK if self.network else FASTER)[size]
            yield Bar(f"requests/s over the best peer's, {size}", faster, bound, False)
        if self.network:
            return
        for size in SIZE_NAMES:
            tail = self._ratio(OURS.name, "p99_ms", size, BAR_CONNECTIONS, min)
            yield Bar(f"p99 over the best peer's, {size}", tail, TAIL, True)
        for size in SIZE_NAMES:
            memory = self._ratio(OURS.name, "pss_mb", size, BAR_CONNECTIONS, min)
            yield Bar(f"memory over the leanest peer's, {size}", memory, MEMORY, True)
        start = self.cold_start(OURS.name) / self.cold_start(EMPTY.name)
        yield Bar("cold start over an empty application's", start, COLD_START, True)
        added = self.of("cpu_ms", OURS.name, "small") - self.loop("cpu_ms", SAME_DECODE, "small")
        yield Bar("CPU added to a small request's bare loop", added, ADDED_MS, True, "ms")
        health = self.health_p99_ms(OURS.name)
        yield Bar("p99 of health checks while saturated", health, HEALTH_MS, True, "ms")
        for size in SIZE_NAMES:
            for connections in CONNECTIONS:
                whole = self._ratio(WHOLE.name, "requests_per_s", size, connections, max)
                what = f"whole decode, requests/s over the best peer's, {size}, {connections}"
                yield Bar(what, whole, WHOLE_FASTER, False)

    def _ratio(
        self,
        server: str,
        what: str,
        size: str,
        connections: int,
        best: Callable[[Sequence[float]], float],
    ) -> float:
        ours = self.of(what, server, size, connections)
        return ours / self.best_peer(what, size, connections, best)

    def markdown(self) -> str:
        """All tables."""
        loads = [(size, n) for size in SIZE_NAMES for n in CONNECTIONS]
        head = ["", *(f"{size}, {n}" for size, n in loads)]
        parts = [
            "### Requests per second, by picture and connections\n",
            _table(head, self._throughput_rows(loads)),
            "\n### Latency, p50 / p99 in milliseconds\n",
            _table(head, self._latency_rows(loads)),
            f"\n### At {BAR_CONNECTIONS} connections: CPU per request, memory (PSS) under load\n",
            _table(
                [
                    *("", *(f"CPU ms, {size}" for size in SIZE_NAMES)),
                    *(f"MB, {size}" for size in SIZE_NAMES),
                    *("cold start s", "health p99 ms", "errors"),
                ],
                self._cost_rows(),
            ),
            f"\nHealth checks: under {HEALTH_CONDITION[1]} connections of {HEALTH_CONDITION[0]}"
            " pictures.\n\n### Without HTTP, on all cores\n",
            _table(
                [
                    *("", *(f"pictures/s, {size}" for size in SIZE_NAMES)),
                    *(f"CPU ms, {size}" for size in SIZE_NAMES),
                ],
                self._loop_rows(),
            ),
            f"\n### What is asked of the service, at {BAR_CONNECTIONS} connections\n",
            _table(["", "found", "asked", ""], [str(bar).split(" | ") for bar in self.bars()]),
        ]
        failures = [f"- round {r['round']}, {r['server']}: {r['what']}" for r in self._failures()]
        if failures:
            parts += ["\n### Failures\n", *failures]
        return "\n".join(parts) + "\n"

    def _failures(self) -> list[dict[str, object]]:
        return self.results.failures

    def _throughput_rows(self, loads: Sequence[tuple[str, int]]) -> Iterator[list[str]]:
        what = "requests_per_s"
        for server in self.servers:
            yield [server, *(f"{self.of(what, server, *load):,.1f}" for load in loads)]
        for server in (OURS.name, WHOLE.name):
            ratios = [self._ratio(server, what, *load, max) for load in loads]
            yield [f"*{server} / best peer*", *(f"*{ratio:.2f}×*" for ratio in ratios)]

    def _latency_rows(self, loads: Sequence[tuple[str, int]]) -> Iterator[list[str]]:
        for server in self.servers:
            cells = [
                f"{self.of('p50_ms', server, *load):.1f} / {self.of('p99_ms', server, *load):.1f}"
                for load in loads
            ]
            yield [server, *cells]
        ratios = [self._ratio(OURS.name, "p99_ms", *load, min) for load in loads]
        yield [f"*{OURS.name} / best peer, p99*", *(f"*{ratio:.2f}×*" for ratio in ratios)]

    def _cost_rows(self) -> Iterator[list[str]]:
        for server in (*self.servers, EMPTY.name):
            yield [
                server,
                *(f"{self.of('cpu_ms', server, size):.2f}" for size in SIZE_NAMES),
                *(f"{self.of('pss_mb', server, size):.0f}" for size in SIZE_NAMES),
                f"{self.cold_start(server):.2f}",
                f"{self.health_p99_ms(server):.1f}",
                f"{self.errors(server)}",
            ]

    def _loop_rows(self) -> Iterator[list[str]]:
        for name in dict.fromkeys(each.name for each in self.results.loops):
            yield [
                name,
                *(f"{self.loop('pictures_per_s', name, size):,.1f}" for size in SIZE_NAMES),
                *(f"{self.loop('cpu_ms', name, size):.2f}" for size in SIZE_NAMES),
            ]


def _table(head: Sequence[str], rows: Iterator[list[str]] | list[list[str]]) -> str:
    lines = [list(head), ["---"] + ["---:"] * (len(head) - 1), *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return text.replace(" nan ", " – ").replace(" *nan×* ", " – ").replace(" nan / nan ", " – ")


def plot(summary: Summary, folder: Path, caption: str) -> None:
    """Requests a second and p99 at the bars' number of connections: plot.png and plot.svg."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "serving"  # the same figures, the same file
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: a third of the size
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(SIZE_NAMES), figsize=(11, 5.2), sharey=True)
    servers = summary.servers[::-1]
    colours = ["#c0504d" if name in (OURS.name, WHOLE.name) else "#8a94a0" for name in servers]
    for column, size in enumerate(SIZES):
        for row, (what, title) in enumerate(
            (("requests_per_s", "requests/s"), ("p99_ms", "p99, ms"))
        ):
            axis = axes[row, column]
            values = [summary.of(what, server, size.name) for server in servers]
            bars = axis.barh(servers, values, color=colours)
            axis.bar_label(
                bars,
                [f"{v:,.0f}" if v >= 100 else f"{v:.1f}" for v in values],
                padding=2,
                fontsize=7,
            )
            axis.set_title(f"{size.name}, {size.width}×{size.height}: {title}", fontsize=8)
            axis.tick_params(labelsize=7)
            axis.margins(x=0.18)
            axis.spines[["top", "right"]].set_visible(False)
        limit = summary.loop("pictures_per_s", SAME_DECODE, size.name)
        axes[0, column].axvline(limit, color="#c0504d", linestyle=":", linewidth=1)
    figure.suptitle(f"{caption}; dotted: our decode without HTTP", fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "plot.png", dpi=110, metadata={"Software": None})
    figure.savefig(folder / "plot.svg", metadata={"Date": None})
    pyplot.close(figure)
