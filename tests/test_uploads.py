"""Limits of uploads, and bodies that nobody foresaw."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from app.routes import FORM_ALLOWANCE_BYTES
from tests.conftest import Service

FORM = {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.fixture(scope="module")
def exact(service: Service, cat_picture: bytes) -> Iterator[TestClient]:
    """A service whose upload limit is exactly the size of the picture."""
    with service(max_upload_bytes=len(cat_picture)) as client:
        yield client


def unannounced(data: bytes) -> Iterator[bytes]:
    """For httpx: sent with Transfer-Encoding chunked, without a length."""
    yield data


def form(data: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    return head + data + b"\r\n--b--\r\n"


def test_a_picture_of_exactly_the_limit_passes_and_one_byte_more_does_not(
    exact: TestClient, cat_picture: bytes
) -> None:
    for picture, status in ((cat_picture, 200), (cat_picture + b"\0", 413)):
        for content, headers in ((picture, None), (form(picture), FORM)):
            for sent in (content, unannounced(content)):
                answer = exact.post("/predict", content=sent, headers=headers)
                assert answer.status_code == status
                if status == 413:
                    problem = answer.json()
                    assert problem["type"] == "/problems#too-large"
                    assert problem["limit_bytes"] == len(cat_picture)
                    assert f"at most {len(cat_picture):,}" in problem["detail"]


def test_a_form_may_have_other_fields_within_its_allowance(
    exact: TestClient, cat_picture: bytes
) -> None:
    room = FORM_ALLOWANCE_BYTES - 1000
    files = {"file": ("cat.jpg", cat_picture)}
    for note, status in (("x" * room, 200), ("x" * (room + 1000), 413)):
        answer = exact.post("/predict", files=files, data={"note": note})
        assert answer.status_code == status


def test_a_nonsensical_length_does_no_harm(client: TestClient, cat_picture: bytes) -> None:
    for length in ("-1", "abc", "²", "9" * 5000, "1e9"):
        headers = [(b"content-length", length.encode("latin-1"))]
        answer = client.post("/predict", content=unannounced(cat_picture), headers=headers)
        assert answer.status_code == 200, length


def test_the_connection_is_closed_only_where_an_answer_comes_before_the_bodys_end(
    client: TestClient, cat_picture: bytes
) -> None:
    for path, headers in (("/nothing", {}), ("/predict", {"Content-Encoding": "gzip"})):
        answer = client.post(path, content=unannounced(bytes(5000)), headers=headers)
        assert answer.is_client_error
        assert answer.headers["connection"] == "close"
    for content in (cat_picture, b"not a picture", unannounced(cat_picture)):
        assert "connection" not in client.post("/predict", content=content).headers


# --- anything at all ----------------------------------------------------------------------------

pieces = st.sampled_from(
    [
        *(b"--b\r\n", b"\r\n--b\r\n", b"\r\n--b--\r\n", b"--b--", b"\r\n", b"\r\n\r\n"),
        b'Content-Disposition: form-data; name="file"; filename="x"\r\n',
        b'content-disposition: ;;;=;name="\xff\xfe"; filename=\xff\r\n',
        b"\xff\xd8\xff\xe0",
    ]
)


@given(
    body=st.lists(pieces | st.binary(max_size=40), max_size=12).map(b"".join),
    content_type=st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=60)
    | st.sampled_from([FORM["Content-Type"], "multipart/form-data; boundary=", "multipart/mixed"]),
)
@settings(deadline=None, max_examples=40)
def test_no_body_ever_makes_the_service_fail(
    client: TestClient, body: bytes, content_type: str
) -> None:
    headers = [(b"content-type", content_type.encode("latin-1"))]
    answer = client.post("/predict", content=body, headers=headers)
    assert answer.status_code in (400, 415, 422)
    assert answer.headers["content-type"] == "application/problem+json"


def test_hostile_forms_are_parsed_in_time(client: TestClient) -> None:
    """Near misses of the boundary are what makes a parser slow; here is 1 MiB of them."""
    for filler in (b"\r\n--b", b"\r\n--", b"\r\n--b-", b"\r\n--b \r\n"):
        body = form(filler * (2**20 // len(filler)))
        assert client.post("/predict", content=body, headers=FORM).status_code in (400, 415)
