"""The measuring: servers in turn, each started, asked at every size and number of connections, and
ended before the next one starts."""

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, perf_counter, sleep
from typing import Any

import numpy as np

from benchmarks.serving import processes
from benchmarks.serving.load import Job
from benchmarks.serving.servers import CORES, REPOSITORY, Server, Start

CONNECTIONS = (1, 8, 32)
HEALTH_CONDITION = ("medium", 32)  # the load under which the health check is timed
WARM_UP_SECONDS = 0.4  # of each load; longer where answers take longer
START_SECONDS = 120
HEALTH_PATIENCE_SECONDS = 10.0
AGREEMENT = 1e-4  # of probabilities
# Memory of one picture is kept for the next; glibc would give it back and fault it in anew.
HEAP_KEPT = {
    "MALLOC_MMAP_THRESHOLD_": str(17 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(34 * 2**20),
}

SAME_DECODE = "bare loop, ours"
LOOPS = (
    (SAME_DECODE, "classifier", "artifact"),
    ("bare loop, ours, whole decode", "classifier", "whole"),
    ("bare loop, the peers' recipe", "recipe", "recipe"),
)


class Failed(RuntimeError):
    """A server that did not start, died, or gave another answer. The message says which."""


@dataclass(frozen=True)
class Cell:
    """One server under one load in one round."""

    round: int
    server: str
    size: str
    connections: int
    requests_per_s: float  # answers with 200
    p50_ms: float
    p99_ms: float
    cpu_ms: float  # of the server's processes, per answer
    pss_mb: float
    errors: int  # answers other than 200, and connections lost
    client_cores: float  # what the load itself took of the processor


@dataclass(frozen=True)
class Loop:
    """The work without HTTP, on as many processes as cores, in one round."""

    round: int
    name: str
    size: str
    pictures_per_s: float
    cpu_ms: float  # per picture


@dataclass
class Results:
    """Everything that was measured."""

    cells: list[Cell] = field(default_factory=list)
    loops: list[Loop] = field(default_factory=list)
    cold_starts: list[dict[str, Any]] = field(default_factory=list)  # round, server, seconds
    health: list[dict[str, Any]] = field(default_factory=list)  # round, server, latencies_ms
    failures: list[dict[str, Any]] = field(default_factory=list)  # round, server, what


@dataclass(frozen=True)
class Plan:
    """What is measured, and with what."""

    environments: Path
    weights: Mapping[str, Path]  # "artifact", "whole" and "recipe"
    pictures: Mapping[str, bytes]  # by the names of their sizes
    expected: Mapping[str, Mapping[str, float]]  # weights → size → probability
    seconds: float
    folder: Path  # for what is written on the way


def measure_server(plan: Plan, server: Server, round_number: int, results: Results) -> None:
    """Start a server, ask it everything, end it; a failure is a result, too."""
    key: dict[str, Any] = {"round": round_number, "server": server.name}
    with TemporaryDirectory(dir=plan.folder) as name:
        start = server.start(plan.environments, plan.weights, Path(name))
        log = Path(name) / "log"
        try:
            _measure_all(plan, server, start, log, key, results)
        except (Failed, processes.NotStopped, OSError) as error:
            last = log.read_text(encoding="utf-8", errors="replace")[-1500:]
            results.failures.append({**key, "what": str(error), "log": last})
            print(f"  {server.name} failed: {error}\n{last}", file=sys.stderr, flush=True)


def _measure_all(
    plan: Plan, server: Server, start: Start, log: Path, key: Mapping[str, Any], results: Results
) -> None:
    began = perf_counter()
    with processes.running(start.command, start.variables, log.parent, log) as process:
        _first_answer(plan, server, start, process)
        results.cold_starts.append({**key, "seconds": perf_counter() - began})
        if server.probability is None:  # an empty application: nothing to ask
            return
        for size in plan.pictures:
            _check_answer(plan, server, start, size)
        for size in plan.pictures:
            for connections in CONNECTIONS:
                _measure_cell(plan, server, start, size, connections, key, results)


def measure_loops(plan: Plan, round_number: int, results: Results) -> None:
    """The same work without HTTP: as the service does it, with and without scaled decoding, and as
    the peers do it."""
    for name, kind, weights in LOOPS:
        for size, picture in plan.pictures.items():
            file = plan.folder / f"{size}.jpg"
            file.write_bytes(picture)
            answers = _run_loops(plan, kind, str(plan.weights[weights]), file)
            results.loops.append(
                Loop(
                    round_number,
                    name,
                    size,
                    sum(each["count"] / each["seconds"] for each in answers),
                    sum(each["cpu"] for each in answers)
                    / sum(each["count"] for each in answers)
                    * 1e3,
                )
            )


def _run_loops(plan: Plan, kind: str, weights: str, file: Path) -> list[dict[str, float]]:
    recipe = plan.environments / "fastapi/bin/python"
    python = str(recipe) if kind == "recipe" else sys.executable
    command = [python, "-m", "benchmarks.serving.bare_loop", kind, weights, str(file)]
    loops = [
        subprocess.Popen(
            [*command, str(plan.seconds)],
            cwd=REPOSITORY,
            env=processes.environment(HEAP_KEPT),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(CORES)
    ]
    for loop in loops:
        assert loop.stdout is not None
        if loop.stdout.readline() != "ready\n":
            raise RuntimeError(f"a bare loop ended: {' '.join(command)}")
    for loop in loops:
        assert loop.stdin is not None
        loop.stdin.write("\n")
        loop.stdin.flush()
    return [json.loads(loop.communicate()[0]) for loop in loops]


def _first_answer(
    plan: Plan, server: Server, start: Start, process: subprocess.Popen[bytes]
) -> None:
    """Wait until the server gives its first answer with 200."""
    deadline = monotonic() + START_SECONDS
    picture = next(iter(plan.pictures.values()))
    status: object = "no answer"
    while monotonic() < deadline:
        if process.poll() is not None:
            raise Failed(f"it ended with {process.returncode}")
        try:
            status, _ = _ask(server, start.port, picture, deadline - monotonic())
        except (OSError, http.client.HTTPException) as error:
            status = error
        if status == 200:
            return
        sleep(0.01)
    raise Failed(f"not ready after {START_SECONDS} seconds: {status}")


def _ask(server: Server, port: int, picture: bytes, timeout: float) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        if server.probability is None:
            connection.request("GET", server.path)
        else:
            content_type, body = server.body(picture)
            connection.request("POST", server.path, body, {"Content-Type": content_type})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _check_answer(plan: Plan, server: Server, start: Start, size: str) -> None:
    """All do the same work: their probabilities are those of a direct call."""
    assert server.probability is not None
    status, answer = _ask(server, start.port, plan.pictures[size], START_SECONDS)
    if status != 200:
        raise Failed(f"status {status} for the {size} picture: {answer[:300]!r}")
    found, expected = server.probability(json.loads(answer)), plan.expected[server.weights][size]
    if abs(found - expected) > AGREEMENT:
        raise Failed(f"it gives {found:.6f} for the {size} picture, expected {expected:.6f}")


def _measure_cell(
    plan: Plan,
    server: Server,
    start: Start,
    size: str,
    connections: int,
    key: Mapping[str, Any],
    results: Results,
) -> None:
    request = plan.folder / "request"
    request.write_bytes(server.request(plan.pictures[size]))
    job = Job(start.port, str(request), connections, plan.seconds, WARM_UP_SECONDS)
    with _loading(job) as client:
        _read_line(client)
        before = processes.cpu_seconds(processes.tree(besides=[client.pid]))
        report = _read_line(client)
        pids = processes.tree(besides=[client.pid])
        cpu = processes.cpu_seconds(pids) - before
        pss = processes.pss_mb(pids)
        if server.health and (size, connections) == HEALTH_CONDITION:
            latencies = _health_latencies(server, start, plan.seconds)
            results.health.append({**key, "latencies_ms": latencies})
    if not report["answers"]:
        raise Failed(f"no answer with 200 to {size}, {connections} connections: {report}")
    p50, p99 = np.percentile(report["latencies_ms"], (50, 99))
    results.cells.append(
        Cell(
            **key,
            size=size,
            connections=connections,
            requests_per_s=report["answers"] / report["seconds"],
            p50_ms=float(p50),
            p99_ms=float(p99),
            cpu_ms=cpu * 1e3 / report["answers"],
            pss_mb=pss,
            errors=sum(report["errors"].values()),
            client_cores=report["client_cores"],
        )
    )


@contextmanager
def _loading(job: Job) -> Iterator[subprocess.Popen[str]]:
    """The load, which lasts until the block ends; it then waits for its last answers."""
    client = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving.load", job.to_json()],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield client
        client.terminate()
        client.wait(START_SECONDS)
    except subprocess.TimeoutExpired:
        raise Failed("it left requests without an answer") from None
    finally:
        client.kill()
        client.wait()


def _read_line(client: subprocess.Popen[str]) -> dict[str, Any]:
    assert client.stdout is not None
    line = client.stdout.readline()
    if not line:
        raise Failed("the load broke off")
    values: dict[str, Any] = json.loads(line)
    return values


def _health_latencies(server: Server, start: Start, seconds: float) -> list[float]:
    """Milliseconds of health checks, twenty a second, each over a connection of its own as an
    orchestrator's are, while the load goes on; the whole patience for one without a 200."""
    latencies: list[float] = []
    until = monotonic() + seconds
    while (began := monotonic()) < until:
        connection = http.client.HTTPConnection(
            "127.0.0.1", start.port, timeout=HEALTH_PATIENCE_SECONDS
        )
        try:
            connection.request("GET", server.health)
            good = connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            good = False
        finally:
            connection.close()
        seconds_taken = monotonic() - began if good else HEALTH_PATIENCE_SECONDS
        latencies.append(round(seconds_taken * 1e3, 3))
        sleep(max(0.0, began + 0.05 - monotonic()))
    return latencies
