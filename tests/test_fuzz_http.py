"""Requests of every kind to a real server: what the API's document allows, what it forbids, and
what is hardly HTTP at all. More of them: --hypothesis-profile=long"""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.data_folder import REPOSITORY
from tests.server import PYTHON_M_APP, Server, running

KEY = "a-key-for-fuzzing"
# All there are but these: what fits the document may still be refused, for no document can say
# which bytes are a picture (positive_data_acceptance); and nothing but feedback is made or deleted
# (use_after_free, ensure_resource_availability, object_level_authorization).
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance,negative_data_rejection,"
    "missing_required_header,unsupported_method,allow_header_conformance,ignored_auth"
)
EXAMPLES = settings().max_examples  # 100, or as the profile says
SECONDS = 60  # without an answer: a hang, whatever else the machine is doing


@pytest.mark.fuzz
@pytest.mark.skipif(not find_spec("schemathesis"), reason="needs requirements/fuzz.txt")
@pytest.mark.parametrize("keys", ["", KEY], ids=["without keys", "with keys"])
def test_the_api_answers_as_its_document_says(
    keys: str, weights_path: Path, tmp_path: Path
) -> None:
    """In a process of its own: it reports all that it found, each with the curl command for it."""
    chosen: dict[str, str | Path] = {"collect": tmp_path / "feedback"}
    chosen |= {"api_keys": keys, "metrics": "key"} if keys else {}
    with running(PYTHON_M_APP, weights=weights_path, workers=1, **chosen) as server:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
        command += ["--phases", "examples,coverage,fuzzing", "--checks", CHECKS]
        command += ["--max-examples", str(max(EXAMPLES // 5, 1)), "--continue-on-failure"]
        command += ["--request-timeout", str(SECONDS), "--warnings", "off", "--no-color"]
        command += ["--header", f"Authorization: Bearer {keys}"] if keys else []
        env = os.environ | {
            "PYTHONPATH": str(REPOSITORY),
            "SCHEMATHESIS_HOOKS": "tests.fuzz_bodies",
        }
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert server.stop() == 0
        assert "Traceback" not in server.log, server.log


QUIET_SECONDS = 0.1  # after which the server is taken to wait for more
LAST = b"GET /health HTTP/1.1\r\nHost: cat\r\nConnection: close\r\n\r\n"
GOOD = b"POST /predict HTTP/1.1\r\nHost: cat\r\nContent-Length: 4\r\n\r\nmeow"
FORM = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n'
POST = b"POST /predict HTTP/1.1\r\nHost: cat\r\n"
REQUESTS = (
    GOOD,
    b"GET /static/page.js HTTP/1.1\r\nHost: cat\r\nRange: bytes=0-9\r\nIf-None-Match: x\r\n\r\n",
    b"GET /docs/../%ff?x=y HTTP/1.1\r\nHost: cat\r\nAccept: a/*;q=0.1\r\nX-Request-ID: 4\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: cat\r\nOrigin: null\r\nAuthorization: Bearer x\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n4;x=y\r\nmeow\r\n0\r\nTrailer: x\r\n\r\n",
    POST + b"Connection: keep-alive, Upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\nmeow",
    POST + b"Expect: 100-continue\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nmeow",
    POST
    + b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n" % len(FORM)
    + FORM,
    b"POST /v2/models/cat/infer HTTP/1.1\r\nHost: cat\r\nInference-Header-Content-Length: 14\r\n"
    b'Content-Length: 14\r\n\r\n{"inputs": []}',
)
ODD = (
    *b"\x00 \xff : / * -1 +4 0x4 4,4 \xb2 gzip chunked HTTP/0.9 HTTP/2.0 CONNECT http://[".split(),
    *(b"", b" ", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"Host: x\r\n", b"9" * 30, b"x" * 70_000),
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A good request of which up to three parts are replaced."""
    request: bytes = draw(st.sampled_from(REQUESTS))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(request)))
        end = start + draw(st.integers(0, 20))
        odd = draw(st.sampled_from(ODD) | st.binary(max_size=20))
        request = request[:start] + odd + request[end:]
    return request


@pytest.fixture(scope="module")
def server(weights_path: Path) -> Iterator[Server]:
    # A body that never comes has to end soon.
    with running(PYTHON_M_APP, weights=weights_path, workers=1, upload_seconds=1) as server:
        yield server
        assert "Traceback" not in server.log, server.log


def answers(port: int, sent: bytes) -> bytes:
    """All that comes back until the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), QUIET_SECONDS) as connection:
        received = b""
        try:
            connection.sendall(sent)
            with suppress(TimeoutError):
                while part := connection.recv(65_536):
                    received += part
                return received
            # It waits for more, or for another request. Closing our end must end that.
            connection.settimeout(SECONDS)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65_536):
                received += part
        except ConnectionError:
            pass  # closed with something of ours unread
        return received


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests() | st.binary(max_size=200), st.sampled_from((b"", LAST)))
@example(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"")  # TLS
@example(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"")
@example(GOOD * 20, LAST)
@example(GOOD.replace(b"POST", b"CONNECT"), LAST)
def test_what_is_hardly_http_is_refused_or_dropped(
    server: Server, first: bytes, second: bytes
) -> None:
    received = answers(server.port, first + second)
    assert not received or re.match(rb"HTTP/1\.[01] \d{3} ", received), received[:100]
    for status in map(int, re.findall(rb"(?m)^HTTP/1\.[01] (\d{3}) ", received)):
        assert status < 500 or status == 503, received[:2000]
    assert answers(server.port, LAST).startswith(b"HTTP/1.1 200 ")
