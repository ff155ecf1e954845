"""A container of half a gigabyte, and two hundred uploads at once of the worst there is."""

import gzip
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from math import sqrt

import numpy as np
import pytest
from PIL import Image

from tests.pictures import HUGE, encode, gif_of_many_frames, with_chunks
from tests.test_container import container_with

pytestmark = pytest.mark.container

UPLOADS = 200
MANY_BYTES = 10 * 2**20
MOST_BYTES = 31 * 2**20  # nearly the limit
TRIES = 5  # that a good request has, after the pause that it is told


def flat(mode: str, width: int = 5000, height: int = 5000) -> Image.Image:
    return Image.new(mode, (width, height))


def noise(most: int, kind: str, **options: object) -> bytes:
    """A picture that cannot be compressed, of nearly so many bytes."""

    def of(side: int) -> bytes:
        values = np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)
        return encode(Image.fromarray(values), kind, **options)

    picture = of(int(400 * sqrt(0.97 * most / len(of(400)))))
    assert 0.9 * most < len(picture) <= most
    return picture


def grey_frames() -> bytes:
    first, *rest = [Image.new("L", (64, 64), value % 256) for value in range(300)]
    return encode(first, "AVIF", speed=10, save_all=True, append_images=rest)


def text_bomb() -> bytes:
    packed = zlib.compress(bytes(300_000_000), 9)
    return with_chunks(encode(flat("L", 100, 100), "PNG"), (b"zTXt", b"Comment\0\0" + packed))


# What the limits allow, and takes most to decode: 25 megapixels, or a phone's 48 or 108 as JPEG.
# Whether a worker's share is enough is another matter: then it is ended, and the answer is 422.
ALLOWED: dict[str, Callable[[], list[bytes]]] = {
    "PNG with transparency": lambda: [encode(flat("RGBA"), "PNG")],
    "progressive JPEG": lambda: [encode(flat("RGB"), "JPEG", progressive=True)],
    "JPEG of 108 megapixels": lambda: [encode(flat("RGB", 12_000, 9000), "JPEG")],
    "CMYK JPEG": lambda: [encode(flat("CMYK"), "JPEG", progressive=True)],
    "WebP": lambda: [encode(flat("RGBA"), "WEBP", method=0)],
    "AVIF": lambda: [encode(flat("RGB"), "AVIF", speed=10)],
    "TIFF in one strip": lambda: [
        encode(flat("RGBA"), "TIFF", compression="tiff_adobe_deflate", tiffinfo={278: 5000})
    ],
    "GIF of 300,000 frames, AVIF of 300": lambda: [gif_of_many_frames(), grey_frames()],
    "PNG whose text inflates": lambda: [text_bomb()],
    "noise of nearly the limit": lambda: [
        noise(MOST_BYTES, "PNG", compress_level=1),
        noise(MOST_BYTES, "JPEG", quality=98),
    ],
}
BOMBS: dict[str, Callable[[], list[bytes]]] = {
    "PNG of 900 megapixels": lambda: [encode(flat("1", 30_000, 30_000), "PNG")],
    "TIFF of 400 megapixels": lambda: [
        encode(flat("1", 20_000, 20_000), "TIFF", compression="group4")
    ],
    "headers that promise billions of pixels": lambda: [
        b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0\0;",
        *(make() for make in HUGE.values()),
    ],
}


def attacked(
    image: str,
    good: bytes,
    bodies: list[bytes],
    path: str = "/predict",
    headers: dict[str, str] | None = None,
) -> Counter[int]:
    """The statuses that two hundred of these got at once, from a container that was of use beside
    them and after them."""
    with (
        container_with(image, "--memory", "512m", "--memory-swap", "512m") as container,
        ThreadPoolExecutor(UPLOADS) as clients,
    ):
        uploads = [
            clients.submit(container.post, body, path, headers)
            for body in islice(cycle(bodies), UPLOADS)
        ]
        for attempt in range(TRIES):
            answer = container.post(good)
            if answer.status_code == 200:
                break
            assert (answer.status_code, attempt < TRIES - 1) == (503, True), answer
            time.sleep(int(answer.headers["retry-after"]))
        answers = [upload.result() for upload in uploads]
        assert all("retry-after" in each.headers for each in answers if each.status_code == 503)
        assert container.post(good).status_code == 200
        assert container.is_well()
        statuses = Counter(each.status_code for each in answers)
        print(f"{statuses}, try {attempt + 1}")  # noqa: T201
        return statuses


# One of each sort always; the others take minutes.
ALWAYS = ("progressive JPEG", "noise of nearly the limit", "PNG of 900 megapixels")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in ALWAYS else pytest.mark.attack)
        for kind in [*ALLOWED, *BOMBS]
    ],
)
def test_two_hundred_of_the_worst_at_once_leave_it_alive_and_of_use(
    image: str, kind: str, cat_picture: bytes
) -> None:
    statuses = attacked(image, cat_picture, {**ALLOWED, **BOMBS}[kind]())
    assert set(statuses) <= {200, 422, 503}
    assert kind in ALLOWED or 200 not in statuses


def test_nor_do_requests_that_inflate(image: str, cat_picture: bytes) -> None:
    """To hundreds of megabytes, or to what a request may well have: JSON, which is hard work."""
    most = MANY_BYTES * 4 // 3
    bodies = [
        gzip.compress(bytes(300_000_000), 6),
        gzip.compress(b'{"inputs": [' + b"0," * (most // 2 - 10) + b"0]}"),
        gzip.compress(b'{"inputs": ["' + b"x" * (most - 20) + b'"]}'),
    ]
    headers = {"Content-Encoding": "gzip"}
    statuses = attacked(image, cat_picture, bodies, "/v2/models/cat/infer", headers)
    assert set(statuses) <= {400, 413, 422, 503}
