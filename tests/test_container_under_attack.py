"""A container of half a gigabyte, and two hundred uploads at once of the worst there is."""

import http.client
import io
import json
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from tests.pictures import png, with_chunks
from tests.test_container import Container, container_with

pytestmark = pytest.mark.container

UPLOADS = 200
TRIES = 5  # that a good request has, after the pause that it is told
Answer = tuple[int, dict[str, str], bytes]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def flat(mode: str, width: int, height: int) -> Image.Image:
    return Image.new(mode, (width, height))


# What the limits allow, and takes most to decode: 25 megapixels, or a phone's 108 as JPEG.
ALLOWED: dict[str, Callable[[], bytes]] = {
    "PNG with transparency": lambda: encoded(flat("RGBA", 5000, 5000), "PNG"),
    "PNG of 16 bits": lambda: png(5000, 5000, bytes(30_001) * 5000, depth=16),
    "progressive JPEG": lambda: encoded(
        flat("RGB", 5000, 5000), "JPEG", progressive=True, subsampling=0
    ),
    "JPEG of 108 megapixels": lambda: encoded(flat("RGB", 12_000, 9000), "JPEG"),
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
GIF_HEADER = b"GIF89a\xff\xff\xff\xff\0\0\0"
BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG of 900 megapixels": lambda: encoded(flat("1", 30_000, 30_000), "PNG"),
    "GIF of 4 gigapixels": lambda: (
        b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0\0;"
    ),
    "GIF of 2,000 frames": lambda: encoded(
        flat("P", 500, 500),
        "GIF",
        save_all=True,
        append_images=[Image.new("P", (500, 500), i % 256) for i in range(1, 2000)],
    ),
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


def post(container: Container, picture: bytes) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", container.port, timeout=60)
    try:
        connection.request("POST", "/predict", picture)
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return response.status, headers, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("kind", [*ALLOWED, *BOMBS])
def test_two_hundred_of_the_worst_at_once_leave_it_alive_and_of_use(
    image: str, kind: str, cat_picture: bytes
) -> None:
    picture = {**ALLOWED, **BOMBS}[kind]()
    with (
        container_with(image, "--memory", "512m", "--memory-swap", "512m") as container,
        ThreadPoolExecutor(UPLOADS + 1) as clients,
    ):
        uploads = [clients.submit(post, container, picture) for _ in range(UPLOADS)]
        for attempt in range(TRIES):
            status, headers, body = post(container, cat_picture)
            if status == 200:
                break
            assert (status, attempt < TRIES - 1) == (503, True), (status, body)
            time.sleep(int(headers["retry-after"]))
        assert "cat_probability" in json.loads(body)
        answers = [upload.result() for upload in uploads]
        statuses = Counter(status for status, _, _ in answers)
        assert set(statuses) <= {200, 422, 503}, (statuses, answers[0])
        assert all("retry-after" in headers for status, headers, _ in answers if status == 503)
        if kind in BOMBS and "pixels" in kind:
            assert 200 not in statuses
        if kind in ALLOWED and kind not in TOO_LARGE:
            assert 200 in statuses
        assert post(container, cat_picture)[0] == 200
        assert container.state("OOMKilled") == "false"
        assert container.state("Running") == "true"
        assert "takes its place" not in container.log(), "a worker was killed"
