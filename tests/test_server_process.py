"""What only a real server process shows: limits while streaming, starting, stopping."""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app import docs
from app.supervisor import ANSWER_SECONDS
from model.classifier import Classifier
from tests.server import PYTHON_M_APP, UVICORN, Server, environment, running

LIMIT = 10 * 2**20
curl_only = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


@pytest.fixture(scope="module")
def server(weights_path: Path) -> Iterator[Server]:
    with running(UVICORN, weights=weights_path, max_upload_bytes=LIMIT) as server:
        yield server


@pytest.fixture(scope="module")
def strict_server(weights_path: Path) -> Iterator[Server]:
    """The service with the parser of its choice, which uvicorn's command line chooses itself."""
    with running(PYTHON_M_APP, weights=weights_path, workers=1) as server:
        yield server


@pytest.fixture(scope="module")
def large_files(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Files of so many MB, which take no room on the disk."""
    folder = tmp_path_factory.mktemp("large")
    files = {size: folder / f"{size}-megabytes" for size in (12, 300)}
    for size, path in files.items():
        with path.open("wb") as file:
            file.truncate(size * 1_000_000)
    return files


def curl(server: Server, *options: str) -> tuple[int, dict[str, Any]]:
    """The status and the body that curl shows for a POST to /predict."""
    done = subprocess.run(
        ["curl", "-sS", "-m", "30", "-w", "\n%{http_code}", *options, f"{server.url}/predict"],
        capture_output=True,
        text=True,
        check=True,
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(body)


def raw_request(server: Server, head: str, body: bytes = b"", wait: float = 10) -> bytes:
    """All that comes back for bytes written as they are, until the server closes."""
    return raw_answers(server, head.replace("\n", "\r\n").encode() + b"\r\n" + body, wait=wait)


def raw_answers(server: Server, sent: bytes, part: int = 2**30, wait: float = 10) -> bytes:
    """The same for a whole conversation, sent in parts of so many bytes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(sent), part):
            connection.sendall(sent[start : start + part])
        return b"".join(iter(lambda: connection.recv(65536), b""))


def raw_post(body: bytes, more: str = "", *, chunked: bool = False) -> bytes:
    """A POST to /predict as bytes; more: headers, each with the end of its line."""
    if chunked:
        halves = body[: len(body) // 2], body[len(body) // 2 :], b""
        body = b"".join(b"%x\r\n%b\r\n" % (len(half), half) for half in halves)
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    return f"POST /predict HTTP/1.1\r\nHost: x\r\n{more}{length}\r\n\r\n".encode() + body


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


def problem_of(answer: bytes) -> dict[str, Any]:
    """The last answer's problem, checked to be the connection's end and to bring its id."""
    head, _, body = answer[answer.rindex(b"HTTP/1.1 ") :].decode().partition("\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.lower().splitlines()[1:])
    assert headers["content-type"] == "application/problem+json"
    assert headers["connection"] == "close"
    problem: dict[str, Any] = json.loads(body)
    assert headers["x-request-id"] == problem["request_id"]
    return problem


@curl_only
def test_curl_gets_the_models_answer_in_both_ways(
    server: Server, classifier: Classifier, cat_picture: bytes, tmp_path: Path
) -> None:
    picture = tmp_path / "cat.jpg"
    picture.write_bytes(cat_picture)
    expected = classifier.predict(cat_picture).cat_probability
    for options in (
        ["-F", f"file=@{picture}"],
        ["--data-binary", f"@{picture}"],
        ["-T", str(picture), "-X", "POST"],
        ["--data-binary", f"@{picture}", "-H", "Transfer-Encoding: chunked"],
        ["--data-binary", f"@{picture}", "-H", "Content-Type:"],
        ["--data-binary", f"@{picture}", "-H", "Expect: 100-continue"],
    ):
        status, answer = curl(server, *options)
        assert status == 200, options
        assert answer["cat_probability"] == expected, options


@curl_only
@pytest.mark.parametrize("megabytes", [12, 300])
@pytest.mark.parametrize("header", ["Expect: 100-continue", "Expect:"])
@pytest.mark.parametrize("chunked", [False, True], ids=["with-length", "chunked"])
@pytest.mark.parametrize("way", ["-F", "--data-binary"])
def test_curl_shows_why_an_upload_is_too_large(
    server: Server,
    large_files: dict[int, Path],
    megabytes: int,
    header: str,
    chunked: bool,
    way: str,
) -> None:
    path = large_files[megabytes]
    options = [way, f"file=@{path}" if way == "-F" else f"@{path}", "-H", header]
    if chunked:
        options += ["-H", "Transfer-Encoding: chunked"]
    status, problem = curl(server, *options)
    assert (status, problem["type"]) == (413, "/problems#too-large")
    assert problem["limit_bytes"] == LIMIT


@pytest.mark.parametrize("megabytes", [12, 300])
@pytest.mark.parametrize("chunked", [False, True], ids=["with-length", "chunked"])
def test_a_client_that_sends_all_before_it_reads_gets_the_answer_too(
    server: Server, megabytes: int, chunked: bool
) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(megabytes):
            yield bytes(1_000_000)

    headers = {} if chunked else {"Content-Length": str(megabytes * 1_000_000)}
    response = httpx.post(f"{server.url}/predict", content=body(), headers=headers, timeout=30)
    assert response.status_code == 413
    assert response.json()["type"] == "/problems#too-large"


def test_an_announced_size_is_refused_before_anything_is_sent(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=2) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer


def test_a_refused_client_that_stays_is_let_go_in_seconds(server: Server) -> None:
    started = time.monotonic()
    head = "POST /predict HTTP/1.1\nHost: x\nContent-Length: 20000000\n"
    answer = raw_request(server, head, bytes(1000), wait=10)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert time.monotonic() - started < 8


def test_an_endless_upload_is_not_read_for_ever(server: Server) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    mebibyte = b"100000\r\n" + bytes(2**20) + b"\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head)
        with pytest.raises(OSError, match=r"reset|pipe"):
            connection.sendall(mebibyte * 200)


@pytest.mark.parametrize(
    "head",
    [
        "POST /predict HTTP/1.1\nHost: x\nContent-Length: abc\n",
        "POST /predict HTTP/1.1\nHost: x\nContent-Length: -1\n",
        "POST /predict HTTP/1.1\nHost: x\nContent-Length: 1\nContent-Length: 2\n",
        "POST /predict HTTP/1.1\nHost: x\nTransfer-Encoding: gzip\n",
        "POST /predict HTTP/1.1\nContent-Length: 0\n",
        "POST /predict HTTP/1.1\nHost: x\nHost: y\nContent-Length: 0\n",
        "POST /predict HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\nno number\n",
        "GET /\u00e9 HTTP/1.1\nHost: x\n",
        "CONNECT x:443 HTTP/1.1\nHost: x:443\n",
        "CONNECT http://x/ HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: h2c\n",
        "GET /health HTTP/1.1\nHost: x\n" + "a: b\n" * 200,
        "GET /health HTTP/1.1\nHost: x\na: " + "b" * 70_000 + "\n",
        "GET /health HTTP/1.1\nConnection: Upgrade\nUpgrade: h2c\n",
        "NO HTTP AT ALL\n",
    ],
    ids=lambda head: head[:60],
)
def test_what_is_not_http_is_answered_with_a_problem(strict_server: Server, head: str) -> None:
    answer = raw_request(strict_server, head)
    assert statuses(answer) == [400]
    problem = problem_of(answer)
    assert problem["type"] == "/problems#bad-request"
    assert "callback" not in problem["detail"]


def test_what_is_not_http_is_logged_and_counted_like_every_request(strict_server: Server) -> None:
    def count() -> int:
        text = httpx.get(f"{strict_server.url}/metrics").text
        found = re.search(r'(?m)^cat_rejections_total\{reason="bad-request"\} (\d+)', text)
        return int(found[1]) if found else 0

    before = count()
    head = "GET /?secret HTTP/1.1\nX-Request-ID: porch-17\nA: b\nNo header\n"
    assert problem_of(raw_request(strict_server, head))["request_id"] == "porch-17"
    assert count() == before + 1
    strict_server.wait_for_log("request_id=porch-17")
    (line,) = (line for line in strict_server.log.splitlines() if "porch-17" in line)
    assert " status=400 " in line
    assert line.endswith(" problem=bad-request")
    assert "secret" not in line


@pytest.mark.parametrize(
    "later",
    [b"GARBAGE\r\n\r\n", b"\x00", b"GET / HTTP/1.1\r\n\r\n", raw_post(bytes(70_000))],
    ids=["garbage", "a byte", "no host", "too much"],
)
def test_a_bad_request_is_answered_after_those_before_it(
    strict_server: Server, cat_picture: bytes, later: bytes
) -> None:
    answers = raw_answers(strict_server, raw_post(cat_picture) * 2 + later)
    assert statuses(answers) == [200, 200, 400]
    assert problem_of(answers)["type"] == "/problems#bad-request"


@pytest.mark.parametrize("more", ["", "Connection: Upgrade\r\nUpgrade: h2c\r\n"], ids=["", "h2c"])
def test_what_follows_the_last_request_is_ignored(
    strict_server: Server, cat_picture: bytes, more: str
) -> None:
    last = raw_post(cat_picture, f"Connection: close\r\n{more}")
    for later in (b"GARBAGE", last):
        assert statuses(raw_answers(strict_server, last + later)) == [200]


def test_a_body_that_turns_out_bad_after_its_answer_gets_no_other(strict_server: Server) -> None:
    head = b"POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", strict_server.port), timeout=3) as connection:
        connection.sendall(head)
        answer = b""
        while b"}" not in answer:
            answer += connection.recv(65536)
        connection.sendall(b"no number\r\n")
        assert statuses(answer) == [404]
        assert connection.recv(65536) == b""


def test_requests_far_ahead_of_their_answers_end_the_connection(strict_server: Server) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", strict_server.port), timeout=10) as connection:
        connection.sendall(request * 2000)
        answers = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                answers += part
    assert answers.count(b"HTTP/1.1 200") < 100


@pytest.mark.parametrize(
    ("head", "endless"),
    [
        (b"GET /", b"a" * 1000),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"a" * 1000),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X: aaaaaaaa\r\n" * 80),
        (
            b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
            b"X: aaaaaaaa\r\n" * 80,
        ),
        (
            b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
            b"a" * 1000,
        ),
    ],
    ids=["address", "header", "headers", "trailers", "trailer"],
)
def test_a_head_without_end_is_not_read_for_ever(
    strict_server: Server, head: bytes, endless: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", strict_server.port), timeout=30) as connection:
        connection.sendall(head)
        with pytest.raises(OSError, match=r"reset|pipe"):
            connection.sendall(endless * 50_000)
    assert httpx.get(f"{strict_server.url}/health").status_code == 200


def test_a_large_head_is_fine(strict_server: Server, cat_picture: bytes) -> None:
    headers = {f"X-{number}": "a" * 1000 for number in range(30)}
    url = f"{strict_server.url}/predict?{'a' * 8000}"
    assert httpx.post(url, content=cat_picture, headers=headers).status_code == 200


def test_a_body_far_ahead_of_its_turn_ends_the_connection(strict_server: Server) -> None:
    first = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
    later = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", strict_server.port), timeout=30) as connection:
        connection.sendall(first + bytes(9) + later + bytes(200_000))
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                answer += part
    assert statuses(answer) == [415, 400]


H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIA\r\n"
WEBSOCKET = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"


@pytest.mark.parametrize("part", [2**30, 1000, 37])
@pytest.mark.parametrize("offer", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
def test_an_offer_of_another_protocol_is_ignored(
    strict_server: Server, cat_picture: bytes, offer: str, part: int
) -> None:
    """However the requests are sent, and whatever follows on the connection."""
    get = f"GET /health HTTP/1.1\r\nHost: x\r\n{offer}\r\n".encode()
    sent = raw_post(cat_picture, more=offer) + get + raw_post(cat_picture)
    sent += raw_post(cat_picture, more=offer, chunked=True) + get
    sent += raw_post(cat_picture, more=offer.replace(": ", ": close, ", 1))
    answers = raw_answers(strict_server, sent, part)
    assert statuses(answers) == [200] * 6
    assert answers.count(b'"cat_probability"') == 4
    assert "pgrade" not in strict_server.log


def test_an_offer_of_another_protocol_gets_round_no_limit(strict_server: Server) -> None:
    many = H2C + "a: b\r\n" * 98
    large = H2C + f"a: {'b' * 65_500}\r\n"
    assert statuses(raw_answers(strict_server, raw_post(b"", more=many))) == [400]
    assert statuses(raw_answers(strict_server, raw_post(b"", more=large))) == [400]
    assert statuses(raw_answers(strict_server, raw_post(b"x", more=H2C) * 20))[-1] == 400


@curl_only
@pytest.mark.parametrize("way", [["-F"], ["--data-binary"]], ids=["form", "body"])
@pytest.mark.parametrize("header", ["Expect: 100-continue", "Transfer-Encoding: chunked"])
def test_curl_that_offers_http_2_gets_the_models_answer(
    strict_server: Server,
    classifier: Classifier,
    cat_picture: bytes,
    tmp_path: Path,
    way: list[str],
    header: str,
) -> None:
    picture = tmp_path / "cat.jpg"
    picture.write_bytes(cat_picture)
    body = f"file=@{picture}" if way == ["-F"] else f"@{picture}"
    offer = [option for line in H2C.splitlines() for option in ("-H", line)]
    status, answer = curl(strict_server, *way, body, *offer, "-H", header)
    assert status == 200
    assert answer["cat_probability"] == classifier.predict(cat_picture).cat_probability


def test_the_files_of_the_docs_are_the_same_with_and_without_gzip(server: Server) -> None:
    url = f"{server.url}/docs/swagger-ui-bundle.js"
    for _ in range(2):
        packed = httpx.get(url, headers={"Accept-Encoding": "gzip"})
        plain = httpx.get(url, headers={"Accept-Encoding": "identity"})
        assert packed.headers["content-encoding"] == "gzip"
        assert "content-encoding" not in plain.headers
        assert packed.content == plain.content
    assert docs.kept("start.js") is docs.kept("start.js")
    assert docs.inflated("swagger-ui.css") is docs.inflated("swagger-ui.css")


@pytest.mark.parametrize(
    "stuck",
    [
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc",
        b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["that sends nothing", "that reads nothing"],
)
def test_a_client_alone_cannot_keep_the_server_from_stopping(
    weights_path: Path, stuck: bytes
) -> None:
    """The deadline is long, so it is not what ends it."""
    with (
        running(PYTHON_M_APP, weights=weights_path, deadline_seconds=600) as server,
        socket.socket() as connection,
    ):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(stuck)
        time.sleep(1)
        assert server.stop() == 0
    assert "Traceback" not in server.log


def test_a_client_that_never_reads_its_answer_is_closed(weights_path: Path) -> None:
    with (
        running(PYTHON_M_APP, weights=weights_path, workers=1) as server,
        socket.socket() as connection,
    ):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(ANSWER_SECONDS + 10)
        connection.settimeout(30)
        arrived = 0
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                arrived += len(part)
    assert arrived < len(docs.inflated("swagger-ui-bundle.js"))


def test_a_client_that_leaves_amid_its_upload_leaves_no_trace(weights_path: Path) -> None:
    with running(PYTHON_M_APP, weights=weights_path) as server:
        for kind in ("image/jpeg", "multipart/form-data; boundary=b"):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
                connection.sendall(f"{head}Content-Length: 100000\r\n\r\n--b\r\n".encode())
                time.sleep(0.2)
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert server.stop() == 0
    assert "Traceback" not in server.log
    assert "ERROR" not in server.log


def test_the_log_holds_nothing_of_a_picture(weights_path: Path) -> None:
    secret = b"nobody's business"
    with running(PYTHON_M_APP, weights=weights_path) as server:
        httpx.post(f"{server.url}/predict", content=secret)
        httpx.post(f"{server.url}/predict", files={"file": ("secret-name.jpg", secret)})
        form = {"Content-Type": "multipart/form-data; boundary=b"}
        httpx.post(f"{server.url}/predict", content=secret, headers=form)
        server.stop()
    assert "/predict" in server.log
    for word in ("nobody", "business", "secret-name", "boundary"):
        assert word not in server.log


def test_python_m_app_says_nothing_of_the_server_it_runs_on(weights_path: Path) -> None:
    with running(PYTHON_M_APP, weights=weights_path) as server:
        assert "server" not in httpx.get(f"{server.url}/health").headers


@pytest.mark.parametrize("command", [PYTHON_M_APP, UVICORN], ids=["python -m app", "uvicorn"])
def test_a_request_in_flight_is_finished_before_the_server_stops(
    weights_path: Path, cat_picture: bytes, command: list[str]
) -> None:
    with running(command, weights=weights_path) as server:

        def slow_upload() -> Iterator[bytes]:
            yield cat_picture[:1000]
            time.sleep(0.3)
            server.process.terminate()
            time.sleep(0.7)
            yield cat_picture[1000:]

        response = httpx.post(f"{server.url}/predict", content=slow_upload())
        started = time.monotonic()
        status = server.wait()
    assert response.status_code == 200
    assert time.monotonic() - started < 5
    if command is PYTHON_M_APP:
        assert status == 0
    assert "Traceback" not in server.log


def test_an_upload_that_never_ends_does_not_keep_the_server_from_stopping(
    weights_path: Path,
) -> None:
    with (
        running(PYTHON_M_APP, weights=weights_path) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection,
    ):
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        time.sleep(0.3)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 20
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"/problems#stopping" in answer
    assert "Traceback" not in server.log


def failed_start(command: list[str], **settings: str | int | Path) -> tuple[int, str]:
    """The exit status and the output of a server that ends by itself."""
    done = subprocess.run(
        command,
        cwd=Path(__file__).parent.parent,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


STARTS = [
    pytest.param(PYTHON_M_APP, 1, id="python -m app"),
    pytest.param(PYTHON_M_APP, 4, id="python -m app, four workers"),
    pytest.param(UVICORN, 1, id="uvicorn"),
]


@pytest.mark.parametrize(("command", "workers"), STARTS)
def test_weights_that_cannot_be_loaded_stop_the_start_with_one_sentence(
    tmp_path: Path, weights_path: Path, command: list[str], workers: int
) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(weights_path.read_bytes()[:-1000])
    for path in (tmp_path / "missing.safetensors", damaged):
        status, output = failed_start(command, weights=path, workers=workers)
        assert status not in (0, None)
        assert output.count(str(path)) == 1
        assert "Traceback" not in output


@pytest.mark.parametrize(("command", "workers"), STARTS)
def test_a_bad_setting_stops_the_start_with_one_sentence(command: list[str], workers: int) -> None:
    status, output = failed_start(command, threshold="high", workers=workers)
    assert status != 0
    assert output.splitlines() == [
        "CAT_THRESHOLD is 'high', but must be a number between 0 and 1. Change it, or leave it"
        " out for the default: the artifact's own."
    ]


@pytest.mark.parametrize("command", [PYTHON_M_APP, UVICORN], ids=["python -m app", "uvicorn"])
def test_an_unknown_setting_is_named_in_a_warning_and_does_no_harm(
    weights_path: Path, command: list[str]
) -> None:
    settings = {"treshold": "0.7", "port": "tcp://10.0.0.1:8000"}
    with running(command, weights=weights_path, **settings) as server:
        assert httpx.get(f"{server.url}/health").status_code == 200
    for name in ("CAT_TRESHOLD", "CAT_PORT"):
        assert server.log.count(name) == 1
        assert re.search(rf"WARNING:? +{name} is not a setting", server.log)


def test_the_health_check_of_the_container_tells_ready_from_not(weights_path: Path) -> None:
    check = [*PYTHON_M_APP[:2], "app.healthcheck"]
    with running(PYTHON_M_APP, weights=weights_path) as server:
        assert failed_start(check, bind_port=server.port) == (0, "")
        assert failed_start(check, bind_port=server.port, bind_host="0.0.0.0") == (0, "")
        server.stop()
        status, output = failed_start(check, bind_port=server.port)
    assert status == 1
    assert "does not answer" in output
    assert "Traceback" not in output
    status, output = failed_start(check, workers=0)
    assert status == 1
    assert output.startswith("CAT_WORKERS is '0', but must be a whole number")
