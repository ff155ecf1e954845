"""Limits of uploads, and bodies that nobody foresaw."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.main import create_app
from app.settings import Settings
from app.uploads import FORM_ALLOWANCE_BYTES


@pytest.fixture
def exact(weights_path: Path, cat_picture: bytes) -> Iterator[TestClient]:
    """A service whose upload limit is exactly the size of the picture."""
    limit = len(cat_picture)
    with TestClient(create_app(Settings(weights=weights_path, max_upload_bytes=limit))) as client:
        yield client


def in_chunks(data: bytes, size: int = 1000) -> Iterator[bytes]:
    """For httpx: sent with Transfer-Encoding chunked, without a length."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def form(data: bytes) -> tuple[bytes, dict[str, str]]:
    """A multipart body with the picture, and its headers."""
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    return head + data + b"\r\n--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}


def test_a_picture_of_exactly_the_limit_passes_however_it_is_sent(
    exact: TestClient, cat_picture: bytes
) -> None:
    body, headers = form(cat_picture)
    answers = [
        exact.post("/predict", content=cat_picture),
        exact.post("/predict", content=in_chunks(cat_picture)),
        exact.post("/predict", content=body, headers=headers),
        exact.post("/predict", content=in_chunks(body), headers=headers),
        exact.post("/predict", content=in_chunks(body, 7), headers=headers),
    ]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert len({answer.text for answer in answers}) == 1


def test_one_byte_more_is_too_large_however_it_is_sent(
    exact: TestClient, cat_picture: bytes
) -> None:
    larger = cat_picture + b"\0"
    body, headers = form(larger)
    for answer in (
        exact.post("/predict", content=larger),
        exact.post("/predict", content=in_chunks(larger)),
        exact.post("/predict", content=body, headers=headers),
        exact.post("/predict", content=in_chunks(body), headers=headers),
    ):
        problem = answer.json()
        assert (answer.status_code, problem["type"]) == (413, "/problems#too-large")
        assert problem["limit_bytes"] == len(cat_picture)
        assert f"at most {len(cat_picture):,}" in problem["detail"]


def test_a_form_may_have_other_fields_within_its_allowance(
    exact: TestClient, cat_picture: bytes
) -> None:
    room = FORM_ALLOWANCE_BYTES - 1000
    files = {"file": ("cat.jpg", cat_picture)}
    assert exact.post("/predict", files=files, data={"note": "x" * room}).status_code == 200
    too_much = exact.post("/predict", files=files, data={"note": "x" * (room + 1000)})
    assert too_much.status_code == 413


def test_an_announced_length_that_is_too_large_is_refused_unread(exact: TestClient) -> None:
    read = []

    def body() -> Iterator[bytes]:
        for _ in range(3):
            read.append(True)
            yield b"x"

    # The TestClient passes the header on as it is, and the body as it is asked for.
    answer = exact.post("/predict", content=body(), headers={"Content-Length": "1000000000"})
    assert answer.status_code == 413
    assert "announced as 1,000,000,000 bytes" in answer.json()["detail"]
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("length", ["-1", "abc", "²", "9" * 5000, "1e9"])
def test_a_nonsensical_length_does_no_harm(
    client: TestClient, cat_picture: bytes, length: str
) -> None:
    headers = [(b"content-length", length.encode("latin-1"))]
    answer = client.post("/predict", content=in_chunks(cat_picture), headers=headers)
    assert answer.status_code == 200


def test_an_answer_before_the_end_of_the_body_closes_the_connection(client: TestClient) -> None:
    for path, headers in (("/nothing", {}), ("/predict", {"Content-Encoding": "gzip"})):
        answer = client.post(path, content=in_chunks(bytes(5000)), headers=headers)
        assert answer.is_client_error
        assert answer.headers["connection"] == "close"


def test_an_answer_after_the_end_of_the_body_keeps_the_connection(
    client: TestClient, cat_picture: bytes
) -> None:
    for content in (cat_picture, b"not a picture", in_chunks(cat_picture)):
        assert "connection" not in client.post("/predict", content=content).headers


def test_a_detailed_photograph_of_48_megapixels_is_answered(
    client: TestClient, cat_picture: bytes
) -> None:
    """As a phone writes it: a baseline JPEG of many bytes, since its noise is as large."""
    noise = np.random.default_rng(0).integers(0, 12, (1000, 1000, 3), np.uint8)
    with Image.open(BytesIO(cat_picture)) as cat:
        enlarged = np.asarray(cat.convert("RGB").resize((1000, 1000))) // 2 + noise
    picture = BytesIO()
    Image.fromarray(np.tile(enlarged, (6, 8, 1))).save(picture, "JPEG", quality=95)
    assert 12e6 < len(picture.getvalue()) < Settings().max_upload_bytes
    answer = client.post("/predict", content=picture.getvalue())
    assert answer.status_code == 200, answer.text


pieces = st.sampled_from(
    [
        b"--b\r\n",
        b"\r\n--b\r\n",
        b"\r\n--b--\r\n",
        b"--b--",
        b'Content-Disposition: form-data; name="file"; filename="x"\r\n',
        b'Content-Disposition: form-data; name="other"\r\n',
        b"Content-Disposition: form-data; name=file\r\n",
        b"Content-Disposition:\r\n",
        b"content-disposition: ;;;=;name\r\n",
        b'Content-Disposition: form-data; name="\xff\xfe"; filename="\xff"\r\n',
        b"\r\n",
        b"\r\n\r\n",
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
    ]
)
form_like = st.lists(pieces | st.binary(max_size=40), max_size=12).map(b"".join)
content_types = st.sampled_from(
    [
        "multipart/form-data; boundary=b",
        'multipart/form-data; boundary="b"; charset=utf-8',
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=\xff",
        "MULTIPART/FORM-DATA; BOUNDARY=b",
        "multipart/mixed; boundary=b",
        "image/jpeg",
        "",
    ]
) | st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=60)


@given(body=form_like, content_type=content_types, chunk=st.integers(1, 50))
@settings(deadline=None, max_examples=300)
def test_no_body_ever_makes_the_service_fail(
    client: TestClient, body: bytes, content_type: str, chunk: int
) -> None:
    answer = client.post(
        "/predict",
        content=in_chunks(body, chunk),
        headers=[(b"content-type", content_type.encode("latin-1"))],
    )
    assert answer.status_code in (400, 415, 422)
    assert answer.headers["content-type"] == "application/problem+json"


@given(
    headers=st.dictionaries(
        st.sampled_from(["content-encoding", "content-length", "accept", "expect", "x-odd"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30),
    ),
    path=st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(quote),
    method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH"]),
)
@settings(deadline=None, max_examples=200)
def test_no_address_or_header_ever_makes_the_service_fail(
    client: TestClient, headers: dict[str, str], path: str, method: str
) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    for address in ("/predict", f"/{path}"):
        assert client.request(method, address, headers=raw).status_code < 500


def test_hostile_forms_are_parsed_in_time(client: TestClient) -> None:
    """Near misses of the boundary are what makes a parser slow; here are 10 MiB of them."""
    for filler in (b"\r\n--b", b"\r\n--", b"\r\n--b-", b"\r\n--b \r\n"):
        body, headers = form(filler * (10 * 2**20 // len(filler)))
        assert client.post("/predict", content=body, headers=headers).status_code in (400, 415)
