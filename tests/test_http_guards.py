"""HTTP as clients really speak it, to a real server: what is refused, and that the others go on."""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.classifier import Classifier
from tests.pictures import kinds
from tests.server import PYTHON_M_APP, Server, running

LIMIT = 10 * 2**20  # bytes of an upload
H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIA\r\n"
WEBSOCKET = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
curl_only = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


@pytest.fixture(scope="module")
def server(weights_path: Path) -> Iterator[Server]:
    with running(PYTHON_M_APP, weights=weights_path, max_upload_bytes=LIMIT) as server:
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.log
        assert "ERROR" not in server.log


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


def connected(server: Server) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def answers(server: Server, sent: bytes, part: int = 2**30) -> bytes:
    """All that comes back for these bytes, sent in parts of that size, until the server closes."""
    with connected(server) as connection:
        for start in range(0, len(sent), part):
            connection.sendall(sent[start : start + part])
        return rest(connection)


def rest(connection: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += part
    return received


def post(body: bytes, more: str = "", *, chunked: bool = False) -> bytes:
    """A POST to /predict as bytes; more: headers, each with the end of its line."""
    if chunked:
        halves = body[: len(body) // 2], body[len(body) // 2 :], b""
        body = b"".join(b"%x\r\n%b\r\n" % (len(half), half) for half in halves)
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    return f"POST /predict HTTP/1.1\r\nHost: x\r\n{more}{length}\r\n\r\n".encode() + body


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


def problem_of(received: bytes) -> dict[str, Any]:
    """The last answer's problem, checked to be the connection's end and to bring its id."""
    head, _, body = received[received.rindex(b"HTTP/1.1 ") :].decode().partition("\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.lower().splitlines()[1:])
    assert headers["content-type"] == "application/problem+json"
    assert headers["connection"] == "close"
    assert "server" not in headers
    problem: dict[str, Any] = json.loads(body)
    assert headers["x-request-id"] == problem["request_id"]
    return problem


@curl_only
@pytest.mark.parametrize("way", ["-F", "--data-binary"])
def test_curl_gets_the_models_answer_however_it_sends(
    server: Server, classifier: Classifier, cat_picture: bytes, tmp_path: Path, way: str
) -> None:
    picture = tmp_path / "cat.jpg"
    picture.write_bytes(cat_picture)
    expected = classifier.predict(cat_picture).cat_probability
    body = f"file=@{picture}" if way == "-F" else f"@{picture}"
    offer = [option for line in H2C.splitlines() for option in ("-H", line)]
    for header in ("Transfer-Encoding: chunked", "Expect: 100-continue"):
        for options in ([], offer):
            status, answer = curl(server, way, body, "-H", header, *options)
            assert (status, answer.get("cat_probability")) == (200, expected)


@curl_only
@pytest.mark.parametrize(
    ("way", "header", "megabytes"),
    [("-F", "Expect:", 12), ("--data-binary", "Transfer-Encoding: chunked", 80)],
)
def test_curl_shows_why_an_upload_is_too_large(
    server: Server, tmp_path: Path, way: str, header: str, megabytes: int
) -> None:
    with (path := tmp_path / "large").open("wb") as file:
        file.truncate(megabytes * 10**6)  # takes no room on the disk
    body = f"file=@{path}" if way == "-F" else f"@{path}"
    status, problem = curl(server, way, body, "-H", header)
    assert (status, problem["type"]) == (413, "/problems#too-large")
    assert problem["limit_bytes"] == LIMIT


def test_a_client_that_leaves_amid_its_upload_leaves_no_trace(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\nabc")
        time.sleep(0.1)
    server.wait_for_log(" status=499 ")


def test_no_body_needs_what_a_worker_cannot_load(server: Server) -> None:
    """Such as another decoder, or a codec that the body names."""
    part = b"--b\r\nContent-Disposition: form-data; name*=utf-16''file\r\n\r\nx\r\n--b--\r\n"
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for data in kinds().values():
            assert client.post("/predict", content=data).status_code == 200
        for text in (b"\xff", "{}".encode("utf-16"), "{}".encode("utf-32")):
            assert client.post("/v2/models/cat/infer", content=text).status_code == 400
        assert client.post("/predict", content=part, headers=form).is_client_error


@pytest.mark.parametrize(
    "head",
    [
        "POST /predict HTTP/1.1\nHost: x\nContent-Length: abc\n",
        "POST /predict HTTP/1.1\nHost: x\nContent-Length: 1\nContent-Length: 2\n",
        "POST /predict HTTP/1.1\nContent-Length: 0\n",
        "POST /predict HTTP/1.1\nHost: x\nHost: y\nContent-Length: 0\n",
        "POST /predict HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\nno number\n",
        "CONNECT x:443 HTTP/1.1\nHost: x:443\n",
        "GET /health HTTP/1.1\nHost: x\n" + "a: b\n" * 200,
        "GET /health HTTP/1.1\nHost: x\na: " + "b" * 70_000 + "\n",
        "GET /health HTTP/1.1\nConnection: Upgrade\nUpgrade: h2c\n",
        "NO HTTP AT ALL\n",
        "PRI * HTTP/2.0\n\nSM\n",
    ],
    ids=lambda head: head[:60],
)
def test_what_is_not_http_is_answered_with_a_problem(server: Server, head: str) -> None:
    received = answers(server, head.replace("\n", "\r\n").encode() + b"\r\n")
    assert statuses(received) == [400]
    problem = problem_of(received)
    assert problem["type"] == "/problems#bad-request"
    assert "callback" not in problem["detail"]
    assert ("HTTP/2 (or gRPC)" in problem["detail"]) == head.startswith("PRI")


def test_options_for_the_whole_service_says_what_it_answers(server: Server) -> None:
    received = answers(server, b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert statuses(received) == [200]
    assert b"\r\nallow: GET, HEAD, POST, DELETE\r\n" in received


@pytest.mark.parametrize(
    ("name", "begin", "end"),
    [
        ("porch-17", b"GET /?secret HTTP/1.1\r\n", b"A: b\r\nNo header\r\n\r\n"),
        ("porch-18", CHUNKED[:-2], b"\r\nno number\r\n"),  # after it has begun
    ],
)
def test_what_is_not_http_is_logged_and_counted_once_like_every_request(
    server: Server, name: str, begin: bytes, end: bytes
) -> None:
    def count() -> int:
        text = httpx.get(f"{server.url}/metrics").text
        found = re.search(r'(?m)^cat_rejections_total\{reason="bad-request"\} (\d+)', text)
        return int(found[1]) if found else 0

    before = count()
    sent = begin + b"X-Request-ID: %b\r\n" % name.encode() + end
    assert problem_of(answers(server, sent))["request_id"] == name
    assert count() == before + 1
    server.wait_for_log(f"request_id={name}")
    (line,) = (line for line in server.log.splitlines() if name in line)
    assert " status=400 " in line
    assert line.endswith(" problem=bad-request")
    assert "secret" not in line


def test_requests_far_ahead_of_their_answers_end_the_connection(server: Server) -> None:
    received = answers(server, HEALTH * 2000)
    assert 0 < statuses(received).count(200) < 100


@pytest.mark.parametrize(
    ("head", "endless"),
    [
        (b"GET /", b"a" * 1000),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X: aaaaaaaa\r\n" * 80),
        (CHUNKED + b"0\r\nX: ", b"a" * 1000),
        (CHUNKED, (b"f4240\r\n" + bytes(1_000_000) + b"\r\n")),
    ],
    ids=["address", "headers", "trailer", "body"],
)
def test_what_has_no_end_is_not_read_for_ever(server: Server, head: bytes, endless: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(head)
        with pytest.raises(OSError, match=r"reset|pipe"):
            connection.sendall(endless * (10**8 // len(endless)))


@pytest.mark.parametrize(("part", "offer"), [(2**30, H2C), (37, H2C), (1000, WEBSOCKET)])
def test_an_offer_of_another_protocol_is_ignored_and_its_body_kept(
    server: Server, cat_picture: bytes, offer: str, part: int
) -> None:
    """However the requests are sent, and whatever follows on the connection."""
    get = HEALTH.replace(b"\r\n\r\n", b"\r\n" + offer.encode() + b"\r\n")
    sent = post(cat_picture, offer) + get + post(cat_picture)
    sent += post(cat_picture, offer, chunked=True)
    sent += post(cat_picture, offer.replace(": ", ": close, ", 1))
    received = answers(server, sent, part)
    assert statuses(received) == [200] * 5
    assert received.count(b'"cat_probability"') == 4
    # And it gets round no limit
    assert statuses(answers(server, post(b"", offer + "a: b\r\n" * 99))) == [400]
    assert statuses(answers(server, post(b"x", offer) * 20))[-1] == 400
