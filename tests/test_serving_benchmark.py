"""The comparison of servers: its load, its processes, its pictures and its verdicts."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.serving import pictures, servers
from benchmarks.serving.load import Job, complete
from benchmarks.serving.measure import CONNECTIONS, SAME_DECODE, Cell, Loop, Results
from benchmarks.serving.peers import recipe
from benchmarks.serving.report import SIZE_NAMES, Bar, Summary
from tests.data_folder import REPOSITORY

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 503 Busy\r\nConnection: close\r\ncontent-length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (GOOD, 200),
        (GOOD[:-1], 0),
        (BUSY, 503),
        (b"HTTP/1.1 200 OK\r\nContent-", 0),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", 0),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 200),
    ],
)
def test_an_answer_is_complete_when_all_of_it_is_there(answer: bytes, status: int) -> None:
    assert complete(answer) == status


@contextmanager
def server_that_answers(answers: list[bytes], request: bytes) -> Iterator[int]:
    """The port of a server that gives these answers in turn, whatever the connection, and hangs
    up after each that says so."""
    lock, given = threading.Lock(), [0]

    def serve(connection: socket.socket) -> None:
        with connection:
            while True:
                missing = len(request)
                while missing:
                    data = connection.recv(missing)
                    if not data:
                        return
                    missing -= len(data)
                with lock:
                    answer = answers[given[0] % len(answers)]
                    given[0] += 1
                connection.sendall(answer)
                if b"close" in answer:
                    return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # the listener was closed
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.skipif(sys.platform != "linux", reason="the load waits with epoll")
def test_the_load_counts_answers_and_refusals_apart(tmp_path: Path) -> None:
    request = b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000)
    file = tmp_path / "request"
    file.write_bytes(request)
    with server_that_answers([GOOD, GOOD, BUSY], request) as port:
        job = Job(port, str(file), connections=3, seconds=0.5, warm_up_seconds=0.05)
        client = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serving.load", job.to_json()],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        with client:
            assert client.stdout is not None
            assert json.loads(client.stdout.readline()) == {}
            report = json.loads(client.stdout.readline())
            client.terminate()
            assert client.wait(30) == 0, "it stops once its last answers are there"
    assert report["answers"] == len(report["latencies_ms"]) > 3
    assert report["errors"].keys() == {"503"}
    assert report["errors"]["503"] == pytest.approx(report["answers"] / 2, abs=3)


ORPHANS = """
import os, subprocess, sys, time
from pathlib import Path
from benchmarks.serving import processes
processes.adopt_orphans()
# A child that ignores SIGTERM, in a session of its own, whose parent has ended
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
middle = (
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]],"
    " start_new_session=True)"
)
outer = "import subprocess, sys, time; subprocess.run(sys.argv[1:]); time.sleep(60)"
command = [sys.executable, "-c", outer, sys.executable, "-c", middle, stubborn]
with processes.running(command, {}, Path.cwd(), Path(os.devnull)) as process:
    while sum("-c" in Path(f"/proc/{pid}/cmdline").read_text() for pid in processes.tree()) != 2:
        time.sleep(0.01)
    assert processes.pss_mb(processes.tree()) > 2
    assert processes.cpu_seconds(processes.tree()) > 0
assert processes.tree() == [], processes.tree()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_process_of_a_server_outlives_it() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", ORPHANS],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize(("size", "kb"), [("small", 17), ("medium", 166)])
def test_pictures_have_the_bytes_of_photos(size: str, kb: int) -> None:
    [chosen] = [each for each in pictures.SIZES if each.name == size]
    data = pictures.jpeg(chosen)
    assert len(data) / 1e3 == pytest.approx(kb, rel=0.1)
    with Image.open(BytesIO(data)) as image:
        assert image.size == (chosen.width, chosen.height)
        assert "progressive" not in image.info


def test_the_recipe_is_logistic_regression_of_the_resized_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = np.full((12288, 1), 1 / 12288, np.float32)
    np.savez(tmp_path / "weights.npz", weights=weights, bias=np.array([-0.5]))
    monkeypatch.setenv("RECIPE_MODEL", str(tmp_path / "weights.npz"))
    white = BytesIO()
    Image.new("L", (100, 50), 255).save(white, "PNG")
    found = recipe.predict(recipe.load(), white.getvalue())
    assert found == pytest.approx(1 / (1 + np.exp(-0.5)), abs=1e-6)


@pytest.mark.parametrize("server", [servers.OURS, *servers.PEER_SERVERS], ids=lambda s: s.name)
def test_requests_hold_the_picture(server: servers.Server) -> None:
    head, _, body = server.request(b"\xff\xd8picture").partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"\xff\xd8picture" in body or b"/9hwaWN0dXJl" in body


def results(ours: float) -> Results:
    """A peer with 100 requests a second and 10 ms, and the service so many times as good."""
    found = Results()
    for size in SIZE_NAMES:
        found.loops.append(Loop(1, SAME_DECODE, size, 1000, 0.5))
        for name, times in ((servers.OURS.name, ours), ("LitServe", 1), ("BentoML", 0.5)):
            found.cells += [
                Cell(1, name, size, n, 100 * times, 5, 10 / times, 0.8, 100 / times, 0, 0.1)
                for n in CONNECTIONS
            ]
    return found


def test_the_best_peer_is_the_measure() -> None:
    bars = {bar.what: bar for bar in Summary(results(2), network=False).bars()}
    faster = bars["requests/s over the best peer's, small"]
    assert (faster.found, faster.met) == (2, True)
    assert not bars["requests/s over the best peer's, medium"].met
    assert bars["p99 over the best peer's, large"].found == 0.5
    assert bars["memory over the leanest peer's, large"].met
    assert bars["CPU added to a small request's bare loop"].found == pytest.approx(0.3)


def test_what_was_not_measured_is_not_called_met() -> None:
    assert "not measured" in str(Bar("x", float("nan"), 1, at_most=False))
    text = Summary(results(2), network=False).markdown()
    assert "| LitServe | 100.0 | 100.0 |" in text
    assert "nan" not in text
