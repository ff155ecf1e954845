"""The service as processes: how it starts, what they hold, what it survives, and how it stops."""

import json
import os
import pty
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from PIL import Image

from app.server import CLIENT_SECONDS
from model.classifier import Classifier
from tests.pictures import encode, picture
from tests.server import (
    CLIENTS,
    PYTHON_M_APP,
    START_SECONDS,
    UVICORN,
    children,
    ended,
    linux_only,
    load,
    running,
    wait_for_more,
    wait_until,
    wait_until_gone,
)

pytestmark = linux_only
KEY = "open-sesame"


def impatient(*times: str) -> list[str]:
    """The command of a service in which these constants are a second."""
    changes = "".join(f"{name} = 1.0; " for name in times)
    code = f"from app import middleware, server; {changes}from app.__main__ import main; main()"
    return [sys.executable, "-c", code]


def is_zero(pid: int, limit: str) -> bool:
    """Whether a process has this limit, and it is 0."""
    return f"Max {limit}".ljust(26) + "0 " in Path(f"/proc/{pid}/limits").read_text()


# --- starting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [PYTHON_M_APP, UVICORN], ids=["python -m app", "uvicorn"])
def test_what_cannot_be_used_stops_the_start_with_one_sentence(
    command: list[str], weights_path: Path, tmp_path: Path
) -> None:
    status, output = ended(command, threshold="high")
    assert status != 0
    assert output.splitlines() == [
        "CAT_THRESHOLD is 'high', but must be a number between 0 and 1. Change it, or unset it"
        " to use the default: the one in the weights file."
    ]
    damaged = tmp_path / "damaged"
    if command is UVICORN:
        damaged.write_bytes(weights_path.read_bytes()[:-1000])
    status, output = ended(command, weights=damaged)
    assert status != 0
    assert output.count(str(damaged)) == 1
    status, output = ended(command, weights=weights_path, collect=weights_path)
    assert status != 0
    assert f"CAT_COLLECT is {weights_path}, which cannot be used: " in output


def test_an_address_that_cannot_be_had_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, output = ended(PYTHON_M_APP, bind_port=port)
    assert status == 1
    assert output.startswith(f"Cannot listen on 127.0.0.1, port {port}: Address already in use")
    assert "CAT_BIND_PORT" in output
    _, output = ended(PYTHON_M_APP, bind_host="192.0.2.1")  # which RFC 5737 keeps for examples
    words = " This machine does not have that address. Set CAT_BIND_HOST to one that it has, or to"
    assert output.endswith(f"{words} 0.0.0.0.\n")


def test_few_open_files_mean_few_connections_and_a_warning(weights_path: Path) -> None:
    few = ["sh", "-c", 'ulimit -n "$1"; shift; exec "$@"', "sh"]
    status, output = ended([*few, "32", *PYTHON_M_APP], weights=weights_path)
    assert status == 1
    assert output.startswith("This process may open only 32 files (ulimit -n). Allow ")
    with running([*few, "64", *PYTHON_M_APP], weights=weights_path) as server:
        assert "This process may open only 64 files (ulimit -n). Allow " in server.log
        connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(80)]
        server.wait_for_log("connections are open, which is the limit: new ones are closed")
        os.kill(server.workers[0], signal.SIGKILL)
        for connection in connections:
            connection.close()
        assert wait_until(lambda: len(server.workers) == 2)
        assert server.stop() == 0


def test_workers_hold_one_socket_and_have_no_rights(weights_path: Path, cat_picture: bytes) -> None:
    nonsense = {"treshold": "0.7", "port": "tcp://10.0.0.1:80"}
    with running(PYTHON_M_APP, weights=weights_path, workers=2, api_keys=KEY, **nonsense) as server:
        key = {"X-API-Key": KEY}
        answer = httpx.post(f"{server.url}/predict", content=cat_picture, headers=key)
        assert answer.status_code == 200
        assert f'@picture.jpg -H "X-API-Key: KEY" {server.url}/predict' in server.log
        as_root = "WARNING Workers are not prevented from starting processes: the service runs as"
        assert (as_root in server.log) == (os.geteuid() == 0)
        for name in ("CAT_TRESHOLD", "CAT_PORT"):
            assert server.log.count(f"WARNING {name} is not a setting") == 1
        front = os.getpriority(os.PRIO_PROCESS, server.process.pid)
        assert len(server.workers) == 2
        for pid in server.workers:
            process = Path(f"/proc/{pid}")
            held = sorted(str(link.readlink()).split(":")[0] for link in (process / "fd").iterdir())
            assert held == ["/dev/null"] * 3 + ["socket"]
            assert b"CAT_" not in (process / "environ").read_bytes()
            assert os.getpriority(os.PRIO_PROCESS, pid) > front
            assert os.sched_getscheduler(pid) == os.SCHED_BATCH
            assert (process / "oom_score_adj").read_text() == "1000\n"
            for name in ("core file size", "file size", "open files", "processes"):
                assert is_zero(pid, name)
            assert len(list((process / "task").iterdir())) == 1
        assert os.sched_getscheduler(server.process.pid) == os.SCHED_OTHER
        # A scheduling policy that the operator chose stands
        os.sched_setscheduler(server.template, os.SCHED_IDLE, os.sched_param(0))
        old = server.workers
        os.kill(old[0], signal.SIGKILL)
        (new,) = wait_until(lambda: {*server.workers} - {*old})
        wait_until(lambda: is_zero(new, "open files"))
        assert os.sched_getscheduler(new) == os.SCHED_IDLE
    assert KEY not in server.log


# --- what it survives ---------------------------------------------------------------------------


def test_under_load_no_request_fails_whatever_ends_workers(weights_path: Path) -> None:
    """SIGKILL and SIGSEGV of a worker, SIGSTOP of one, SIGKILL of the template, and of all."""
    photo = picture(width=1024, height=768)
    with running(PYTHON_M_APP, weights=weights_path, workers=2) as server:
        with load(server.url, photo) as answers:
            for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGKILL, signal.SIGSTOP):
                victim = server.workers[0]
                os.kill(victim, number)
                wait_until_gone([victim])
                wait_until(lambda: len(server.workers) == 2)
            for all_of_them in (False, True):
                for pid in [server.template, *(server.workers if all_of_them else ())]:
                    os.kill(pid, signal.SIGKILL)
                assert wait_for_more(answers, 2 * CLIENTS) < 2 + 2 * server.start_seconds
        assert {answer.status_code for answer in answers} == {200}
        assert max(answer.elapsed.total_seconds() for answer in answers) < 10
        metrics = httpx.get(f"{server.url}/metrics").text
        assert float(re.findall(r"(?m)^cat_workers_replaced_total (.+)", metrics)[0]) >= 4
        processes = [server.template, *server.workers]
        server.process.kill()
        wait_until_gone(processes)
    assert "Traceback" not in server.log


def test_new_weights_are_taken_up_under_load_and_bad_ones_change_nothing(
    weights_path: Path, classifier: Classifier, tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(weights_path.read_bytes())
    newer = replace(classifier, threshold=0.25).save(tmp_path / "newer.safetensors")
    with running(UVICORN, weights=path) as server:
        with load(server.url, picture(width=1024, height=768)) as answers:
            (tmp_path / "newer.safetensors").replace(path)
            server.process.send_signal(signal.SIGHUP)
            server.wait_for_log(f"Reloaded: serving tiny, version {newer.version}")
            reloaded = len(answers)
            path.write_bytes(path.read_bytes()[:-1000])
            server.process.send_signal(signal.SIGHUP)
            server.wait_for_log(f"not reloaded: still serving tiny, version {newer.version}")
            wait_for_more(answers, 2 * CLIENTS)
        assert {answer.status_code for answer in answers} == {200}
        seen = [answer.json()["model"]["version"] for answer in answers]
        assert seen[0] == classifier.version
        assert {*seen[reloaded + CLIENTS :]} == {newer.version}
        assert httpx.get(f"{server.url}/health").json()["model"]["version"] == newer.version
        assert f"The weights file {path} cannot be used" in server.log
        assert len(children(server.process.pid)) == 1, "the old processes are gone"
        models = re.findall(r"(?m)^cat_model_info.*", httpx.get(f"{server.url}/metrics").text)
        assert models == [f'cat_model_info{{name="tiny",version="{newer.version}"}} 1.0']
        server.stop()
    assert "Traceback" not in server.log


def test_a_picture_that_takes_too_much_processor_time_is_refused(weights_path: Path) -> None:
    slow = encode(Image.new("RGB", (6000, 4000)), "PNG", compress_level=1)
    with running(PYTHON_M_APP, weights=weights_path, processor_seconds=0.05) as server:
        answer = httpx.post(f"{server.url}/predict", content=slow, timeout=60)
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems#takes-too-long")
        assert httpx.post(f"{server.url}/predict", content=picture()).status_code == 200


def test_clients_that_do_not_send_or_do_not_read_are_dropped(weights_path: Path) -> None:
    times = ("middleware.DRAIN_SECONDS", "server.HEAD_SECONDS", "server.ANSWER_SECONDS")
    with running(impatient(*times), weights=weights_path) as server, ExitStack() as stack:
        silent, slow, unread, refused = (stack.enter_context(socket.socket()) for _ in range(4))
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for connection in (silent, slow, unread, refused):
            connection.settimeout(START_SECONDS)
            connection.connect(("127.0.0.1", server.port))
        slow.sendall(b"GET /health HTTP/1.1\r\nHost:")
        unread.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n")
        refused.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        assert silent.recv(1) == slow.recv(1) == b""
        assert refused.makefile().read().startswith("HTTP/1.1 413 ")
        time.sleep(0.5)
        received = 0
        with suppress(ConnectionResetError):
            while part := unread.recv(65536):
                received += len(part)
        assert received < 10**6, "of the 1.4 MB"


# --- where it listens ---------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="needs IPv6")
@pytest.mark.parametrize(
    ("listens", "to", "client"), [("::1", "[::1]", "::1"), ("::", "127.0.0.1", "192.0.2.7")]
)
def test_it_listens_on_ipv6_believes_a_proxy_on_ipv4_and_logs_nothing_but_json(
    weights_path: Path, listens: str, to: str, client: str
) -> None:
    check = [sys.executable, "-m", "app.healthcheck"]
    chosen = {"bind_host": listens, "log": "json", "forwarded_allow_ips": "127.0.0.1"}
    with running(PYTHON_M_APP, weights=weights_path, **chosen) as server:
        url, headers = f"http://{to}:{server.port}/nothing", {"X-Forwarded-For": "192.0.2.7"}
        assert httpx.get(url, headers=headers).status_code == 404
        assert ended(check, bind_host="::", bind_port=server.port) == (0, "")
        assert server.stop() == 0
        status, output = ended(check, bind_host="::1", bind_port=server.port)
        assert (status, "does not answer" in output) == (1, True)
    lines = [json.loads(line) for line in server.log.splitlines()]
    assert {"status", "message"} <= {name for line in lines for name in line}
    assert [line["client"] for line in lines if "status" in line] == [client]
    assert all(line.keys() >= {"time", "level"} for line in lines)


def test_uvicorn_serves_it_on_a_unix_socket(
    weights_path: Path, cat_picture: bytes, tmp_path: Path
) -> None:
    """As behind nginx: `proxy_pass http://unix:/run/cat.sock;`."""
    path = str(tmp_path / "socket")
    with (
        running([*UVICORN[:-2], "--uds", path], weights=weights_path),
        httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://cat") as client,
    ):
        assert client.post("/predict", content=cat_picture).status_code == 200


# --- stopping -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "number"), [(PYTHON_M_APP, signal.SIGINT), (UVICORN, signal.SIGTERM)]
)
def test_what_has_arrived_is_answered_before_it_stops(
    command: list[str], number: int, weights_path: Path, cat_picture: bytes
) -> None:
    with running(command, weights=weights_path, drain_seconds=1) as server:
        processes = [server.template, *server.workers]
        began = time.monotonic()

        def slow_upload() -> Iterator[bytes]:
            yield cat_picture[:1000]
            time.sleep(0.2)
            os.killpg(server.process.pid, number)  # a terminal tells the whole group
            time.sleep(0.3)
            yield cat_picture[1000:]

        answer = httpx.post(f"{server.url}/predict", content=slow_upload(), timeout=30)
        assert answer.status_code == 200
        status = server.wait()
        if command is PYTHON_M_APP:
            assert status == 0
            assert time.monotonic() - began >= 1, "it has drained"
    wait_until_gone(processes)
    assert "Traceback" not in server.log
    assert "ERROR" not in server.log


def test_while_it_drains_it_is_not_ready_but_answers_until_it_is_told_again(
    weights_path: Path, cat_picture: bytes
) -> None:
    with running(PYTHON_M_APP, weights=weights_path, drain_seconds=600) as server:
        processes = [server.template, *server.workers]
        server.process.terminate()
        ready = f"{server.url}/health/ready"
        answer = wait_until(lambda: (found := httpx.get(ready)).status_code == 503 and found)
        assert answer.json()["type"] == "/problems#not-ready"
        assert answer.headers["Retry-After"] == "5"
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        answer = httpx.post(f"{server.url}/predict", content=cat_picture)
        assert (answer.status_code, answer.headers["Connection"]) == (200, "close")
        assert server.stop() == 0
    wait_until_gone(processes)
    assert "ERROR" not in server.log


def test_clients_alone_cannot_keep_it_from_stopping(weights_path: Path) -> None:
    """The deadline is long, so it is not what ends them. Docker kills after ten seconds."""
    assert CLIENT_SECONDS < 10
    command = impatient("server.CLIENT_SECONDS")
    with (
        running(command, weights=weights_path, deadline_seconds=600) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as sends_nothing,
        socket.socket() as reads_nothing,
    ):
        reads_nothing.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reads_nothing.connect(("127.0.0.1", server.port))
        reads_nothing.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n")
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc"
        sends_nothing.sendall(head)
        time.sleep(0.5)
        assert server.stop() == 0
        answer = sends_nothing.recv(65536)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"/problems#stopping" in answer
    assert "Traceback" not in server.log


def test_it_ends_with_the_terminal_it_runs_on(weights_path: Path) -> None:
    ours, its = pty.openpty()
    on_it = ["sh", "-c", f'exec "$@" < {os.ttyname(its)}', "sh", *PYTHON_M_APP]
    with running(on_it, weights=weights_path) as server:
        os.close(its)
        server.process.send_signal(signal.SIGHUP)  # a terminal that is there: reload
        server.wait_for_log("Reloaded")
        os.close(ours)
        server.process.send_signal(signal.SIGHUP)
        assert server.wait() == 0
