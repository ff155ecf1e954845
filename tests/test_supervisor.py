"""Parent and workers of `python -m app`: real processes, stopped, killed and told to reload."""

import json
import logging
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from app import configuration, reload
from app.lines import Lines
from app.settings import Settings
from app.supervisor import (
    CLIENT_SECONDS,
    CannotStart,
    kill_seconds,
    open_sockets,
    stop_seconds,
)
from model.classifier import Classifier, default_weights
from model.network import parameters
from tests.data_folder import REPOSITORY
from tests.server import (
    PYTHON_M_APP,
    START_SECONDS,
    UVICORN,
    Server,
    environment,
    lives,
    running,
    wait_until_gone,
)

BOTH = pytest.mark.parametrize("command", [PYTHON_M_APP, UVICORN], ids=["python -m app", "uvicorn"])


@pytest.fixture
def replaceable(weights_path: Path, tmp_path: Path) -> Path:
    """Weights of its own for a test that replaces them."""
    path = tmp_path / "weights.safetensors"
    path.write_bytes(weights_path.read_bytes())
    return path


@pytest.fixture
def newer(classifier: Classifier, tmp_path: Path) -> Classifier:
    """Another version, saved as `newer.safetensors` in the test's folder."""
    return replace(classifier, threshold=0.25).save(tmp_path / "newer.safetensors")


def ask_for_health(connection: socket.socket) -> None:
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")


def answers(connection: socket.socket, seconds: float) -> bool:
    """Whether a whole answer with status 200 comes in this time; False if none comes."""
    connection.settimeout(seconds)
    answer = b""
    try:
        while not answer.endswith(b"}"):
            part = connection.recv(65536)
            assert part, "the connection was closed"
            answer += part
    except TimeoutError:
        assert not answer
        return False
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    return True


def version(server: Server, client: httpx.Client | None = None) -> str:
    response = (client or httpx).get(f"{server.url}/health", timeout=30)
    assert response.status_code == 200
    answered: str = response.json()["model"]["version"]
    return answered


def test_several_workers_answer_and_end_with_status_0(
    weights_path: Path, cat_picture: bytes
) -> None:
    with running(PYTHON_M_APP, weights=weights_path, workers=2) as server:
        workers = server.wait_for_workers(2)
        assert f"Started parent process [{server.process.pid}]" in server.log
        for _ in range(4):
            assert httpx.post(f"{server.url}/predict", content=cat_picture).status_code == 200
        assert server.stop() == 0
    wait_until_gone(workers)
    assert "Traceback" not in server.log
    assert "ERROR" not in server.log


def test_the_parent_has_one_thread_as_forking_demands(weights_path: Path) -> None:
    if not Path("/proc/self/task").exists():
        pytest.skip("needs Linux: counts threads in /proc")
    with running(PYTHON_M_APP, weights=weights_path, workers=2) as server:
        server.wait_for_workers(2)
        assert len(list(Path(f"/proc/{server.process.pid}/task").iterdir())) == 1


@pytest.mark.skipif(
    sys.platform != "linux" or os.sched_getscheduler(0) != os.SCHED_OTHER,
    reason="needs Linux and its usual scheduling policy, which the service inherits",
)
def test_a_worker_that_wakes_interrupts_no_other_thread(weights_path: Path) -> None:
    with running(PYTHON_M_APP, weights=weights_path, workers=2) as server:
        for worker in server.wait_for_workers(2):
            threads = [int(task.name) for task in Path(f"/proc/{worker}/task").iterdir()]
            assert len(threads) > 1
            assert {os.sched_getscheduler(each) for each in threads} == {os.SCHED_BATCH}
        assert os.sched_getscheduler(server.process.pid) == os.SCHED_OTHER


@pytest.mark.skipif(shutil.which("chrt") is None, reason="needs Linux's chrt")
def test_a_scheduling_policy_that_the_operator_chose_stands(weights_path: Path) -> None:
    command = ["chrt", "--idle", "0", *PYTHON_M_APP]
    with running(command, weights=weights_path, workers=1) as server:
        assert os.sched_getscheduler(server.wait_for_workers(1)[0]) == os.SCHED_IDLE


def test_ctrl_c_stops_parent_and_workers_once_requests_are_answered(
    weights_path: Path, cat_picture: bytes
) -> None:
    with running(PYTHON_M_APP, weights=weights_path, workers=2) as server:
        workers = server.wait_for_workers(2)

        def slow_upload() -> Iterator[bytes]:
            yield cat_picture[:1000]
            time.sleep(0.5)
            os.killpg(server.process.pid, signal.SIGINT)  # a terminal tells the whole group
            time.sleep(0.5)
            yield cat_picture[1000:]

        response = httpx.post(f"{server.url}/predict", content=slow_upload(), timeout=30)
        assert response.status_code == 200
        assert server.wait() == 0
    wait_until_gone(workers)
    assert "Traceback" not in server.log


def test_while_it_drains_the_service_is_not_ready_but_answers(
    weights_path: Path, cat_picture: bytes
) -> None:
    with running(PYTHON_M_APP, weights=weights_path, workers=2, drain_seconds=8) as server:
        server.wait_for_workers(2)
        assert httpx.get(f"{server.url}/health/ready").status_code == 200
        server.process.terminate()
        deadline = time.monotonic() + START_SECONDS
        while (response := httpx.get(f"{server.url}/health/ready")).status_code == 200:
            assert time.monotonic() < deadline
        assert response.status_code == 503
        assert response.headers["Retry-After"]
        response = httpx.post(f"{server.url}/predict", content=cat_picture)
        assert response.status_code == 200
        assert response.headers["Connection"] == "close"
        assert server.wait() == 0


def test_a_second_signal_does_not_wait(weights_path: Path) -> None:
    with running(PYTHON_M_APP, weights=weights_path, workers=2, drain_seconds=600) as server:
        workers = server.wait_for_workers(2)
        server.process.terminate()
        deadline = time.monotonic() + START_SECONDS
        while httpx.get(f"{server.url}/health").status_code == 200:
            assert time.monotonic() < deadline
        server.process.terminate()
        assert server.wait() == 1
    wait_until_gone(workers)


def test_a_killed_worker_is_replaced_and_no_other_request_fails(weights_path: Path) -> None:
    with running(PYTHON_M_APP, weights=weights_path, workers=2) as server:
        victim, other = server.wait_for_workers(2)
        os.kill(victim, signal.SIGSTOP)  # what comes for it waits in its queue
        connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(16)]
        for connection in connections:
            ask_for_health(connection)
        waiting = [each for each in connections if not answers(each, 1)]
        os.kill(victim, signal.SIGKILL)
        served = [each for each in connections if each not in waiting]
        for connection in served * 5:
            ask_for_health(connection)
            assert answers(connection, 30)
        for connection in waiting:
            assert answers(connection, 30)
        assert server.wait_for_workers(3)[-1] not in (victim, other)
        assert lives(other)
        for connection in connections:
            ask_for_health(connection)
            assert answers(connection, 30)
            connection.close()
        assert server.stop() == 0
    assert "was ended by SIGKILL; another one takes its place at once" in server.log


def test_a_worker_that_ends_again_and_again_is_replaced_ever_later(weights_path: Path) -> None:
    with running(PYTHON_M_APP, weights=weights_path, workers=1) as server:
        for count in (1, 2):
            os.kill(server.wait_for_workers(count)[-1], signal.SIGKILL)
        server.wait_for_workers(3)
        assert version(server)
        assert server.stop() == 0
    assert server.log.count("takes its place at once") == 1
    assert server.log.count("takes its place in 0.5 s") == 1


def test_a_worker_that_is_asked_to_stop_finishes_its_requests_and_is_replaced(
    weights_path: Path, cat_picture: bytes
) -> None:
    with running(PYTHON_M_APP, weights=weights_path, workers=1) as server:
        (worker,) = server.wait_for_workers(1)

        def slow_upload() -> Iterator[bytes]:
            yield cat_picture[:1000]
            time.sleep(0.5)
            os.kill(worker, signal.SIGTERM)
            time.sleep(0.5)
            yield cat_picture[1000:]

        response = httpx.post(f"{server.url}/predict", content=slow_upload(), timeout=30)
        assert response.status_code == 200
        server.wait_for_workers(2)
        assert version(server)
        assert server.stop() == 0


def test_workers_whose_parent_was_killed_stop(weights_path: Path) -> None:
    with running(PYTHON_M_APP, weights=weights_path, workers=2) as server:
        workers = server.wait_for_workers(2)
        server.process.kill()
        wait_until_gone(workers)
        server.wait()
    assert server.log.count("The parent process is gone") == 2


def test_a_connection_that_sends_no_request_is_closed(weights_path: Path) -> None:
    with (
        running(PYTHON_M_APP, weights=weights_path, workers=1) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as silent,
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as slow,
    ):
        ask_for_health(slow)
        assert answers(slow, 30)
        slow.sendall(b"GET /health HTTP/1.1\r\nHost:")
        assert silent.recv(1) == b""
        assert slow.recv(1) == b""


@BOTH
def test_new_weights_are_taken_up_without_failing_a_request(
    command: list[str],
    replaceable: Path,
    newer: Classifier,
    classifier: Classifier,
    cat_picture: bytes,
) -> None:
    workers = 2 if command is PYTHON_M_APP else 1
    enough = threading.Event()
    with running(command, weights=replaceable, workers=workers) as server:
        server.wait_for_workers(workers)

        def ask_steadily() -> list[tuple[str, float]]:
            seen = []
            with httpx.Client(timeout=30) as client:
                while not enough.is_set():
                    response = client.post(f"{server.url}/predict", content=cat_picture)
                    assert response.status_code == 200
                    answer = response.json()
                    seen.append((answer["model"]["version"], answer["threshold"]))
            return seen

        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(ask_steadily) for _ in range(4)]
            try:
                time.sleep(0.5)
                (replaceable.parent / "newer.safetensors").replace(replaceable)
                server.process.send_signal(signal.SIGHUP)
                server.wait_for_log(f"Reloaded: serving tiny, version {newer.version}", workers)
                time.sleep(0.5)
            finally:
                enough.set()
            seen = [client.result() for client in clients]
        for _ in range(16):  # each on a connection of its own: both workers
            assert version(server) == newer.version
        if command is PYTHON_M_APP:  # a worker forked later has the new weights too
            os.kill(server.workers[0], signal.SIGKILL)
            server.wait_for_workers(3)
            for _ in range(16):
                assert version(server) == newer.version
        server.stop()
    old, new = (classifier.version, 0.5), (newer.version, 0.25)
    assert {each for answered in seen for each in answered} == {old, new}
    for answered in seen:
        changed = answered.index(new)
        assert set(answered[changed:]) == {new}, "an old answer after a new one"
    assert "Traceback" not in server.log


def test_a_worker_that_is_told_to_reload_names_its_parent(weights_path: Path) -> None:
    with running(PYTHON_M_APP, weights=weights_path, workers=1) as server:
        (worker,) = server.wait_for_workers(1)
        os.kill(worker, signal.SIGHUP)
        server.wait_for_log(f"send it to the parent, PID {server.process.pid}")
        assert version(server)
        assert server.stop() == 0
    assert "Reloaded" not in server.log


@BOTH
def test_weights_that_cannot_be_used_leave_the_old_ones_serving(
    command: list[str], replaceable: Path, classifier: Classifier
) -> None:
    with running(command, weights=replaceable) as server:
        damaged = replaceable.with_name("damaged")
        damaged.write_bytes(replaceable.read_bytes()[:-1000])
        damaged.replace(replaceable)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log(
            f"Nothing was reloaded: still serving tiny, version {classifier.version}"
        )
        assert f"The weights file {replaceable} cannot be used" in server.log
        assert version(server) == classifier.version
        server.stop()
    assert "Traceback" not in server.log


def test_weights_that_take_more_memory_than_there_is_leave_the_old_ones_serving(
    weights_path: Path,
    classifier: Classifier,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def load(_: Path) -> Classifier:
        raise MemoryError

    monkeypatch.setattr(Classifier, "load", load)
    assert reload.load_next(Settings(weights=weights_path), classifier) is None
    assert "there is too little memory to load it" in caplog.text
    assert "Nothing was reloaded: still serving tiny" in caplog.text


def test_weights_that_cannot_be_handed_over_leave_the_old_ones_serving(
    weights_path: Path, classifier: Classifier, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings, missing = Settings(weights=weights_path), str(tmp_path / "missing" / "model")
    assert reload.share_next(settings, classifier, missing) is None
    app = FastAPI()
    app.state.classifier = classifier
    reload.take_over(app, missing)
    assert app.state.classifier is classifier
    assert caplog.text.count("Nothing was reloaded: still serving tiny") == 2


def test_a_shared_classifier_answers_the_same_from_memory_that_is_in_the_file(
    tmp_path: Path, cat_picture: bytes
) -> None:
    loaded = Classifier.load(default_weights())
    reload.share(loaded, tmp_path / "model")
    shared = reload.shared(tmp_path / "model")
    assert (
        shared.predict(cat_picture).cat_probability == loaded.predict(cat_picture).cat_probability
    )
    assert (shared.version, shared.metadata) == (loaded.version, loaded.metadata)
    originals, arrays = parameters(loaded.layers), parameters(shared.layers)
    for name, array in arrays.items():
        assert np.array_equal(array, originals[name])
        assert not array.flags.writeable
        assert array.ctypes.data % reload.ALIGNED == 0


def test_the_time_to_stop_lets_every_request_reach_its_deadline() -> None:
    for seconds in (0.5, 10.0, 33.3):
        settings = Settings(deadline_seconds=seconds, drain_seconds=4)
        assert stop_seconds(settings) > seconds
        assert kill_seconds(settings) > 4 + stop_seconds(settings)
    assert CLIENT_SECONDS < 10, "docker stop's"


@BOTH
def test_the_service_ends_with_the_terminal_it_runs_on(
    weights_path: Path, command: list[str]
) -> None:
    ours, its = pty.openpty()
    with subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment(weights=weights_path),
        stdin=its,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            os.close(its)
            assert process.stderr
            lines: list[str] = []
            while not lines or "startup complete" not in lines[-1]:
                lines.append(process.stderr.readline())
                assert lines[-1], lines
            process.send_signal(signal.SIGHUP)  # with a terminal, as long as that is there
            while "Reloaded" not in lines[-1]:
                lines.append(process.stderr.readline())
                assert lines[-1], lines
            os.close(ours)
            process.send_signal(signal.SIGHUP)
            assert process.wait(START_SECONDS) in (0, -signal.SIGTERM)
        finally:
            process.kill()


def test_a_taken_port_stops_the_start_with_one_sentence(weights_path: Path) -> None:
    with running(PYTHON_M_APP, weights=weights_path, workers=2) as server:
        second = subprocess.run(
            PYTHON_M_APP,
            cwd=REPOSITORY,
            env=environment(weights=weights_path, workers=2, bind_port=server.port),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert second.returncode == 1
    assert (
        f"Cannot listen on 127.0.0.1, port {server.port}: Address already in use" in second.stderr
    )
    assert "CAT_BIND_PORT" in second.stderr
    assert "Traceback" not in second.stderr


def test_the_configuration_is_logged_and_secrets_are_not(weights_path: Path) -> None:
    secret = "open-sesame"  # noqa: S105
    with running(PYTHON_M_APP, weights=weights_path, workers=2, api_keys=secret) as server:
        server.stop()
    lines = {line.split()[2]: line for line in server.log.splitlines() if "CAT_" in line}
    assert lines["CAT_WEIGHTS"].endswith(f"{weights_path} (from the environment)")
    assert lines["CAT_QUEUE"].endswith("64 (default)")
    assert lines["CAT_API_KEYS"].endswith("set, hidden: 1 key (from the environment)")
    assert secret not in server.log


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_servers_own_lines_have_a_time_and_the_form_of_the_others(form: str) -> None:
    lines = Lines(form)
    record = logging.LogRecord("uvicorn.error", logging.INFO, "", 0, "pid [%d]", (7,), None)
    record.created = 1764000000.5
    told = lines.format(record)
    if form == "json":
        moment = "2025-11-24T16:00:00.500Z"
        assert json.loads(told) == {"time": moment, "level": "info", "message": "pid [7]"}
    else:
        assert told == "2025-11-24T16:00:00.500Z INFO pid [7]"


def test_a_service_that_logs_json_writes_nothing_else(weights_path: Path) -> None:
    with running(PYTHON_M_APP, weights=weights_path, workers=1, log="json") as server:
        assert httpx.get(f"{server.url}/nope").status_code == 404
        server.stop()
    told = [json.loads(line) for line in server.log.splitlines()]
    assert {"status", "message"} <= {name for line in told for name in line}
    assert all(line.keys() >= {"time", "level"} for line in told)


def test_each_setting_has_a_line_with_its_value() -> None:
    lines = configuration.describe(
        Settings(workers=3, page=False, cors_origins=("a", "b"), drain_seconds=1.5),
        {
            "CAT_WORKERS": "3",
            "CAT_PAGE": "off",
            "CAT_CORS_ORIGINS": "a,b",
            "CAT_DRAIN_SECONDS": "1.5",
        },
    )
    shown = {name: rest.strip() for name, _, rest in (line.partition(" ") for line in lines)}
    assert shown["CAT_WORKERS"] == "3 (from the environment)"
    assert shown["CAT_PAGE"] == "off (from the environment)"
    assert shown["CAT_CORS_ORIGINS"] == "a, b (from the environment)"
    assert shown["CAT_DRAIN_SECONDS"] == "1.5 (from the environment)"
    assert shown["CAT_THRESHOLD"] == "the artifact's own (default)"


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_listen_on_one_port_and_each_on_its_own_socket_where_that_helps(
    workers: int,
) -> None:
    opened = open_sockets("127.0.0.1", 0, workers)
    sockets = {each for place in opened for each in place}
    assert len(opened) == workers
    assert len({each.getsockname() for each in sockets}) == 1
    assert len(sockets) == (workers if sys.platform == "linux" else 1)
    for each in sockets:
        each.close()


def test_a_name_is_listened_on_at_all_its_addresses() -> None:
    (place,) = open_sockets("localhost", 0, 1)
    assert "127.0.0.1" in {each.getsockname()[0] for each in place}
    assert len({each.getsockname()[1] for each in place}) == 1
    for each in place:
        each.close()


def test_a_host_that_is_not_ours_is_named() -> None:
    with pytest.raises(
        CannotStart, match=r"^Cannot listen on 192\.0\.2\.1, port 0: .*CAT_BIND_HOST"
    ):
        open_sockets("192.0.2.1", 0, 2)
