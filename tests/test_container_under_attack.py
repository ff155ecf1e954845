"""A container of half a gigabyte, and two hundred uploads at once of the worst there is."""

import gzip
import http.client
import io
import json
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import cycle, islice
from math import sqrt

import numpy as np
import pytest
from PIL import Image

from app.inference_protocol import body_limit
from tests.pictures import HUGE, gif_of_many_frames, png, with_chunks
from tests.test_container import Container, container_with

pytestmark = pytest.mark.container

UPLOADS = 200
# Of pictures of many bytes; and the largest that a worker of two in half a gigabyte has room for.
MANY_BYTES = 10 * 2**20
MOST_BYTES = 23 * 2**20
TRIES = 5  # that a good request has, after the pause that it is told
Answer = tuple[int, dict[str, str], bytes]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def flat(mode: str, width: int, height: int) -> Image.Image:
    return Image.new(mode, (width, height))


def detailed(width: int, height: int) -> Image.Image:
    """With as much noise as a phone's picture of that size."""
    values = np.random.default_rng(1).integers(100, 116, (500, 500, 3), np.uint8)
    return Image.fromarray(np.tile(values, (height // 500, width // 500, 1)))


# What the limits allow, and takes most to decode: 25 megapixels, or a phone's 48 or 108 as JPEG.
ALLOWED: dict[str, Callable[[], bytes]] = {
    "PNG with transparency": lambda: encoded(flat("RGBA", 5000, 5000), "PNG"),
    "PNG of 16 bits": lambda: png(5000, 5000, bytes(30_001) * 5000, depth=16),
    "progressive JPEG": lambda: encoded(
        flat("RGB", 5000, 5000), "JPEG", progressive=True, subsampling=0
    ),
    "JPEG of 108 megapixels": lambda: encoded(flat("RGB", 12_000, 9000), "JPEG"),
    "detailed JPEG of 48 megapixels": lambda: encoded(detailed(8000, 6000), "JPEG", quality=95),
    "CMYK JPEG": lambda: encoded(flat("CMYK", 5000, 5000), "JPEG", progressive=True),
    "WebP": lambda: encoded(flat("RGBA", 5000, 5000), "WEBP", lossless=True, method=0),
    "AVIF": lambda: encoded(flat("RGB", 5000, 5000), "AVIF", speed=10),
    "TIFF in one strip": lambda: encoded(
        flat("RGBA", 5000, 5000), "TIFF", compression="tiff_adobe_deflate", tiffinfo={278: 5000}
    ),
    "GIF": lambda: encoded(flat("P", 5000, 5000), "GIF"),
}
# Their decoders take more than a worker's share; they are refused, which is what is shown of them.
TOO_LARGE = {
    "progressive JPEG",
    "CMYK JPEG",
    "WebP",
    "AVIF",
    "TIFF in one strip",
}
BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG of 900 megapixels": lambda: encoded(flat("1", 30_000, 30_000), "PNG"),
    "WebP of 268 megapixels": lambda: encoded(
        flat("RGB", 16_383, 16_383), "WEBP", lossless=True, method=0
    ),
    "PNG with 300 MB of compressed text": lambda: with_chunks(
        encoded(flat("L", 100, 100), "PNG"),
        (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(300_000_000), 9)),
    ),
    "TIFF of 400 megapixels": lambda: encoded(
        flat("1", 20_000, 20_000), "TIFF", compression="group4"
    ),
}


# The same for several pictures, which are sent in turns.
MIXTURES: dict[str, Callable[[], list[bytes]]] = {
    "headers that promise billions of pixels": lambda: [
        b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0\0;",
        *(make() for make in HUGE.values()),
    ],
    "GIF of 300,000 frames, AVIF of 300": lambda: [
        gif_of_many_frames(),
        encoded(grey(0), "AVIF", speed=10, save_all=True, append_images=map(grey, range(1, 300))),
    ],
    "noise of many bytes": lambda: [
        noise(MANY_BYTES, "PNG", compress_level=1),
        noise(MANY_BYTES, "JPEG", quality=98, subsampling=0),
        noise(MANY_BYTES, "WEBP", lossless=True, method=0),
    ],
    "noise of nearly the limit": lambda: [
        noise(MOST_BYTES, "PNG", compress_level=1),
        noise(MOST_BYTES, "JPEG", quality=98, subsampling=0),
    ],
}


def grey(value: int) -> Image.Image:
    return Image.new("L", (64, 64), value % 256)


def noise(most: int, kind: str, **options: object) -> bytes:
    """A picture that cannot be compressed, of nearly so many bytes."""

    def of(side: int) -> bytes:
        values = np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)
        return encoded(Image.fromarray(values), kind, **options)

    picture = of(int(400 * sqrt(0.97 * most / len(of(400)))))
    assert 0.9 * most < len(picture) <= most
    return picture


def post(
    container: Container,
    body: bytes,
    path: str = "/predict",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", container.port, timeout=60)
    try:
        # Refused before all of it was sent: what it was told is still to be read.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", path, body, headers or {})
        response = connection.getresponse()
        told = {name.lower(): value for name, value in response.getheaders()}
        return response.status, told, response.read()
    finally:
        connection.close()


def attacked(
    image: str,
    good: bytes,
    bodies: list[bytes],
    path: str = "/predict",
    headers: Mapping[str, str] | None = None,
) -> Counter[int]:
    """The statuses that two hundred of these got at once, from a container that was of use beside
    them and after them."""
    with (
        container_with(image, "--memory", "512m", "--memory-swap", "512m") as container,
        ThreadPoolExecutor(UPLOADS + 1) as clients,
    ):
        uploads = [
            clients.submit(post, container, body, path, headers)
            for body in islice(cycle(bodies), UPLOADS)
        ]
        for attempt in range(TRIES):
            status, told, answer = post(container, good)
            if status == 200:
                break
            assert (status, attempt < TRIES - 1) == (503, True), (status, answer)
            time.sleep(int(told["retry-after"]))
        assert "cat_probability" in json.loads(answer)
        answers = [upload.result() for upload in uploads]
        assert all("retry-after" in told for status, told, _ in answers if status == 503)
        assert post(container, good)[0] == 200
        assert container.state("OOMKilled") == "false"
        assert container.state("Running") == "true"
        assert "takes its place" not in container.log(), "a worker was killed"
        return Counter(status for status, _, _ in answers)


@pytest.mark.parametrize("kind", [*ALLOWED, *BOMBS])
def test_two_hundred_of_the_worst_at_once_leave_it_alive_and_of_use(
    image: str, kind: str, cat_picture: bytes
) -> None:
    statuses = attacked(image, cat_picture, [{**ALLOWED, **BOMBS}[kind]()])
    assert set(statuses) <= {200, 422, 503}
    if kind in BOMBS and "pixels" in kind:
        assert 200 not in statuses
    if kind in ALLOWED and kind not in TOO_LARGE:
        assert 200 in statuses


@pytest.mark.parametrize("kind", MIXTURES)
def test_nor_do_several_kinds_in_turns(image: str, kind: str, cat_picture: bytes) -> None:
    statuses = attacked(image, cat_picture, MIXTURES[kind]())
    assert set(statuses) <= {200, 422, 503}
    assert (200 in statuses) == ("pixels" not in kind)


def test_nor_do_forms_of_nearly_the_limit(image: str, cat_picture: bytes) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    forms = [head + noise(MOST_BYTES, "PNG", compress_level=1) + b"\r\n--b--\r\n"]
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    statuses = attacked(image, cat_picture, forms, headers=headers)
    assert set(statuses) <= {200, 503}
    assert 200 in statuses


def test_nor_do_requests_that_inflate(image: str, cat_picture: bytes) -> None:
    """To hundreds of megabytes, or to what a request may well have: JSON, which is hard work."""
    most = body_limit(MANY_BYTES)
    bodies = [
        gzip.compress(bytes(300_000_000), 6),
        gzip.compress(b'{"inputs": [' + b"0," * (most // 2 - 10) + b"0]}"),
        gzip.compress(b'{"inputs": ["' + b"x" * (most - 20) + b'"]}'),
    ]
    headers = {"Content-Encoding": "gzip"}
    statuses = attacked(image, cat_picture, bodies, "/v2/models/cat/infer", headers)
    assert set(statuses) <= {400, 413, 503}
    assert statuses[413] + statuses[400] > 0
