"""The measuring: one server is started, asked for each picture by wrk, and ended.

wrk keeps so many connections busy, each of which sends its next request when it has its answer.
"""

import http.client
import json
import re
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any

from benchmarks.serving.processes import cpu_seconds, pss_mb, running, tree
from benchmarks.serving.servers import Body, Server

START_SECONDS = 120
WARM_UP_SECONDS = 1
AGREEMENT = 1e-4  # of probabilities


class Failed(RuntimeError):
    """A server that did not start, died, or gave another answer. The message says which."""


@dataclass(frozen=True)
class Load:
    """For how many seconds, and over how many connections, each picture is sent."""

    seconds: int
    connections: int


def measure(
    server: Server,
    weights: Path,
    peers: Path | None,
    questions: Mapping[Path, float],
    load: Load,
    folder: Path,
) -> dict[str, float]:
    """Figures of one server: `start s`, and for each picture, by its file's name, `NAME requests/s`
    and so on.

    questions: files of pictures, and their right probabilities. folder: empty, the server's own.
    Raises Failed, with the end of its log.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        python, port = server.interpreter(peers), free.getsockname()[1]
    values = {"weights": weights, "folder": folder, "bin": python.parent, "port": port}
    command = [str(python), *(each.format_map(values) for each in server.arguments)]
    variables = {k: v.format_map(values) for k, v in server.variables.items()}
    log = folder / "log"
    began = perf_counter()
    try:
        with running(command, variables, server.tree or folder, log) as process:
            _wait(process, server, port, server.body(next(iter(questions)).read_bytes()))
            figures = {"start s": perf_counter() - began}
            for file, probability in questions.items():
                each = _measure_one(server, port, file, probability, load, folder)
                figures |= {f"{file.stem} {what}": value for what, value in each.items()}
            return figures
    except (Failed, OSError) as error:
        last = log.read_text(encoding="utf-8", errors="replace")[-1500:]
        raise Failed(f"{error}\n{last}") from None


def _measure_one(
    server: Server, port: int, file: Path, probability: float, load: Load, folder: Path
) -> dict[str, float]:
    content_type, body = server.body(file.read_bytes())
    status, answer = _ask(server, port, (content_type, body))
    if status != 200:
        raise Failed(f"status {status} for {file.name}: {answer[:300]!r}")
    found = float(json.loads(answer)["cat_probability"])
    if abs(found - probability) > AGREEMENT:
        raise Failed(f"it gives {found:.6f} for {file.name}, expected {probability:.6f}")
    (folder / "body").write_bytes(body)
    options = f"--threads 1 --timeout 60 --latency --connections {load.connections}".split()
    url, script = f"http://127.0.0.1:{port}{server.path}", Path(__file__).with_name("post.lua")

    def wrk(seconds: int) -> "subprocess.Popen[str]":
        command = ["wrk", *options, "--duration", f"{seconds}s", "--script", str(script), url, "--"]
        command += [str(folder / "body"), content_type]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    wrk(WARM_UP_SECONDS).communicate()
    before = cpu_seconds(tree())
    with wrk(load.seconds) as client:
        sleep(load.seconds / 2)
        memory = pss_mb(tree(besides=[client.pid]))
        report = _result(client.communicate()[0])
    # The client has ended and was waited for, so its time is this process's, not the tree's.
    cpu = cpu_seconds(tree()) - before
    return {
        "requests/s": report["answers"] / report["seconds"],
        "CPU ms": cpu * 1e3 / report["answers"],
        "p50 ms": report["p50_ms"],
        "p99 ms": report["p99_ms"],
        "MB": memory,
        "errors": report["errors"],
    }


def _result(output: str) -> dict[str, Any]:
    found = re.search(r"^RESULT (.*)", output, re.MULTILINE)
    result: dict[str, Any] = json.loads(found[1]) if found else {}
    if not result.get("answers"):
        raise Failed(f"wrk got no answer with 200: {output[-500:]}")
    return result


def _wait(process: "subprocess.Popen[bytes]", server: Server, port: int, body: Body) -> None:
    """Wait for the first answer with 200."""
    deadline, status = monotonic() + START_SECONDS, 0
    while status != 200:
        if process.poll() is not None:
            raise Failed(f"it ended with {process.returncode}")
        if monotonic() > deadline:
            raise Failed(f"not ready after {START_SECONDS} seconds; last status {status}")
        with suppress(OSError, http.client.HTTPException):
            status, _ = _ask(server, port, body)
        sleep(0.01)


def _ask(server: Server, port: int, body: Body) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
    try:
        connection.request("POST", server.path, body[1], {"Content-Type": body[0]})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
