"""From the bytes of a picture to pixels: right for every kind of picture, refused otherwise."""

import io
import random
import re
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from model.formats import Format, accepted_formats, heic_is_installed, recognise
from model.preprocessing import (
    Filter,
    InvalidImage,
    Limits,
    Picture,
    Preprocessing,
    Reason,
    read_picture,
    to_vector,
)
from tests import pictures
from tests.pictures import FORMATS, LOSSLESS, encode, picture, scene

NAMES = {"WEBP": "WebP"}  # Pillow's name → ours


def squeezed(
    image: Image.Image, resample: Image.Resampling = Image.Resampling.BILINEAR
) -> NDArray[np.int64]:
    return np.asarray(image.convert("RGB").resize((64, 64), resample)).astype(int)


def pixels(data: bytes) -> NDArray[np.int64]:
    return read_picture(data).pixels.astype(int)


def refusal(data: bytes, limits: Limits = Limits()) -> InvalidImage:
    with pytest.raises(InvalidImage) as caught:
        read_picture(data, limits=limits)
    return caught.value


# --- What comes out ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_whole_picture_squeezed(name: str) -> None:
    result = read_picture(picture(name))
    assert result.pixels.shape == (64, 64, 3)
    assert result.pixels.dtype == np.uint8
    assert (result.width, result.height, result.warnings) == (160, 120, ())
    assert result.format == NAMES.get(name, name)
    original = Image.open(io.BytesIO(picture(name)))
    np.testing.assert_allclose(result.pixels, squeezed(original), atol=0)
    np.testing.assert_allclose(result.pixels, squeezed(scene()), atol=35 if name == "GIF" else 12)


@pytest.mark.parametrize("name", get_args(Filter))
def test_the_filter_is_the_one_that_the_specification_names(name: Filter) -> None:
    expected = squeezed(scene(), Image.Resampling[name.upper()])
    actual = read_picture(picture("PNG"), Preprocessing(filter=name)).pixels
    np.testing.assert_array_equal(actual, expected)


def test_the_side_is_the_one_that_the_specification_names() -> None:
    assert read_picture(picture(), Preprocessing(side=96)).pixels.shape == (96, 96, 3)


def test_a_vector_is_the_rows_of_the_pixels_over_255() -> None:
    values = np.arange(2 * 64 * 64 * 3, dtype=np.uint32).reshape(2, 64, 64, 3).astype(np.uint8)
    vectors = to_vector(values)
    assert vectors.shape == (2, 12288)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, (values.reshape(2, -1) / 255).astype(np.float32))
    np.testing.assert_array_equal(to_vector(values[0]), vectors[0])
    assert vectors.min() == 0
    assert vectors.max() == 1


@pytest.mark.parametrize(
    "values",
    [
        {"side": 64, "filter": "nearest", "fit": "squeeze", "background": "white"},
        {"side": 64, "filter": "bilinear", "fit": "crop", "background": "white"},
        {"side": 64, "filter": "bilinear", "fit": "squeeze", "background": "black"},
        {"side": 0, "filter": "bilinear", "fit": "squeeze", "background": "white"},
        {"side": "64", "filter": "bilinear", "fit": "squeeze", "background": "white"},
        {"side": 64, "filter": ["bilinear"], "fit": "squeeze", "background": "white"},
        {"side": 64},
        {**Preprocessing().to_json(), "gamma": 2.2},
        [],
        None,
    ],
)
def test_a_specification_that_this_code_does_not_do_is_refused(values: object) -> None:
    with pytest.raises(ValueError, match="preprocessing"):
        Preprocessing.from_json(values)


def test_a_specification_survives_json() -> None:
    spec = Preprocessing(side=96, filter="lanczos")
    assert Preprocessing.from_json(spec.to_json()) == spec


# --- Upright -------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_picture_is_turned_upright_once(name: str, orientation: int) -> None:
    result = read_picture(pictures.turned(orientation, name))
    assert (result.width, result.height) == (160, 120)
    assert any("upright" in note for note in result.warnings) == (orientation != 1)
    tolerance = 14 if name in ("JPEG", "AVIF") else 1
    np.testing.assert_allclose(result.pixels, squeezed(scene()), atol=tolerance)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 8), st.integers(64, 200), st.integers(64, 200), st.sampled_from(["JPEG", "PNG"])
)
def test_turning_pixels_and_saying_so_changes_nothing(
    orientation: int, width: int, height: int, name: str
) -> None:
    turned = read_picture(pictures.turned(orientation, name, width, height))
    plain = read_picture(picture(name, width, height))
    assert (turned.width, turned.height) == (width, height)
    assert np.abs(turned.pixels.astype(int) - plain.pixels).mean() < 2


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage that is no TIFF",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0\0\0\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08" + b"\xff" * 500,
    ],
)
def test_broken_exif_refuses_no_good_picture(exif: bytes) -> None:
    for data in (
        pictures.with_segments(picture("JPEG"), (0xE1, exif)),
        pictures.with_chunks(picture("PNG"), (b"eXIf", exif[6:])),
        encode(scene(), "WEBP", exif=exif),
    ):
        assert read_picture(data).warnings == ()


# --- Kinds of pixels -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSLESS)
def test_grey_is_colour_of_equal_channels(name: str) -> None:
    grey = scene(mode="L")
    expected = squeezed(grey)
    np.testing.assert_allclose(pixels(encode(grey, name)), expected, atol=1)


@pytest.mark.parametrize("name", ["PNG", "BMP", "TIFF", "GIF"])
def test_black_and_white_is_antialiased(name: str) -> None:
    image = scene(mode="1")
    np.testing.assert_allclose(pixels(encode(image, name)), squeezed(image.convert("L")), atol=1)


@pytest.mark.parametrize("name", ["PNG", "BMP", "TIFF", "GIF"])
def test_a_palette_is_looked_up_before_anything_is_averaged(name: str) -> None:
    image = scene().quantize(32)
    np.testing.assert_allclose(pixels(encode(image, name)), squeezed(image.convert("RGB")), atol=1)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_in_a_png_are_scaled_not_clipped(channels: int) -> None:
    shallow = np.asarray(scene())[..., :3]
    alpha = np.full((*shallow.shape[:2], 1), 255, np.uint8)
    kinds = [
        shallow[..., 0],
        np.dstack([shallow[..., :1], alpha]),
        shallow,
        np.dstack([shallow, alpha]),
    ]
    values = kinds[channels - 1]
    result = read_picture(pictures.deep_png(values.astype(np.uint16) * 257))
    plain = shallow if channels > 2 else np.repeat(shallow[..., :1], 3, axis=2)
    np.testing.assert_allclose(result.pixels, squeezed(Image.fromarray(plain)), atol=1)
    assert result.warnings == ("its 16 bits a channel were scaled to 8",)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("bits", "white", "photometric"), [(16, 65535, 1), (16, 65535, 0)])
def test_16_bits_in_a_tiff_are_scaled_not_clipped(
    order: str, bits: int, white: int, photometric: int
) -> None:
    grey = np.asarray(scene(mode="L"))
    values = grey.astype(np.uint16) * 257
    values = values if photometric else white - values
    data = pictures.tiff(
        160,
        120,
        values.astype(f"{order}u2").tobytes(),
        order=order,
        tags=[(258, "H", [bits]), (262, "H", [photometric])],
    )
    result = read_picture(data)
    np.testing.assert_allclose(result.pixels, squeezed(Image.fromarray(grey)), atol=1)
    assert result.warnings == ("its 16 bits a channel were scaled to 8",)


def test_16_bit_colour_in_a_tiff_is_scaled() -> None:
    values = np.asarray(scene()).astype("<u2") * 257
    tags = [(258, "H", [16, 16, 16]), (262, "H", [2]), (277, "H", [3])]
    result = read_picture(pictures.tiff(160, 120, values.tobytes(), tags=tags))
    np.testing.assert_allclose(result.pixels, squeezed(scene()), atol=1)
    assert result.warnings == ("its 16 bits a channel were scaled to 8",)


def test_12_bits_in_a_tiff_are_scaled_by_their_own_white() -> None:
    data = pictures.tiff(80, 60, b"\xff" * (80 * 60 * 3 // 2), tags=[(258, "H", [12])])
    assert pixels(data).min() == 255


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(65, 150), st.integers(65, 150))
def test_any_16_bit_picture_is_its_8_bit_version_within_a_level(
    seed: int, width: int, height: int
) -> None:
    deep = np.random.default_rng(seed).integers(0, 65536, (height, width), dtype=np.uint16)
    shallow = np.round(deep / 257).astype(np.uint8)
    expected = squeezed(Image.fromarray(shallow))
    np.testing.assert_allclose(pixels(pictures.deep_png(deep)), expected, atol=1)


@pytest.mark.parametrize(
    "image",
    [
        Image.new("F", (80, 80), 0.5),
        Image.new("I", (80, 80), 70_000),
        Image.new("I", (80, 80), 200),
    ],
)
def test_numbers_without_a_known_white_are_refused(image: Image.Image) -> None:
    error = refusal(encode(image, "TIFF"))
    assert error.reason == Reason.FORMAT_NOT_ALLOWED
    assert "8 or 16 bits" in str(error)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "sample_format"), [("u4", 1), ("i4", 2), ("i2", 2)])
@pytest.mark.parametrize("value", [0, 1, 200, 30_000])
def test_numbers_without_a_known_white_are_refused_whatever_they_are(
    order: str, kind: str, sample_format: int, value: int
) -> None:
    values = np.full((80, 80), value, f"{order}{kind}")
    tags = [(258, "H", [8 * values.itemsize]), (339, "H", [sample_format])]
    error = refusal(pictures.tiff(80, 80, values.tobytes(), order=order, tags=tags))
    assert error.reason == Reason.FORMAT_NOT_ALLOWED, str(error)


def test_cmyk_is_shown_in_its_colours() -> None:
    inks = scene().convert("CMYK")
    for data in (encode(inks, "TIFF"), encode(inks, "JPEG")):
        np.testing.assert_allclose(pixels(data), squeezed(scene()), atol=14)


def test_a_jpeg_of_inverted_and_transformed_inks_is_shown_in_its_colours() -> None:
    ycck = bytearray(encode(scene().convert("CMYK"), "JPEG"))
    adobe = ycck.index(b"Adobe")
    assert ycck[adobe + 11] == 0
    ycck[adobe + 11] = 2  # says YCCK; what is inside is then read as luma and chroma of the inks
    decoded = Image.open(io.BytesIO(ycck))
    assert decoded.mode == "CMYK"
    np.testing.assert_allclose(pixels(bytes(ycck)), squeezed(decoded.convert("RGB")), atol=0)


def test_lab_and_ycbcr_are_shown_in_their_colours() -> None:
    ycbcr = encode(scene().convert("YCbCr"), "TIFF")
    np.testing.assert_allclose(pixels(ycbcr), squeezed(scene()), atol=4)
    grey = pictures.tiff(
        80,
        60,
        bytes([128, 0, 0]) * 80 * 60,
        tags=[(258, "H", [8, 8, 8]), (262, "H", [8]), (277, "H", [3])],
    )
    np.testing.assert_allclose(pixels(grey), 119, atol=2)  # L* = 50.2 in sRGB


# --- Transparency --------------------------------------------------------------------------------


def see_through(mode: str = "RGBA") -> Image.Image:
    image = scene(mode=mode)
    ramp = np.linspace(0, 255, 160).astype(np.uint8)
    image.putalpha(Image.fromarray(np.tile(ramp, (120, 1))))
    return image


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("name", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_put_on_white(name: str, mode: str) -> None:
    image = see_through(mode).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    expected = squeezed(Image.alpha_composite(white, image))
    saved = encode(see_through(mode), name, **({"exact": True} if name == "WEBP" else {}))
    result = read_picture(saved)
    np.testing.assert_allclose(result.pixels, expected, atol=2)
    assert result.warnings == ("its transparent parts were put on white",)


def test_opaque_alpha_is_nothing_to_warn_of() -> None:
    image = scene(mode="RGBA")
    result = read_picture(encode(image, "PNG"))
    np.testing.assert_array_equal(result.pixels, squeezed(scene()))
    assert result.warnings == ()


def test_hidden_colours_under_full_transparency_do_not_shine_through() -> None:
    hidden = scene(mode="RGBA")
    hidden.putalpha(0)
    assert pixels(encode(hidden, "PNG")).min() == 255


@pytest.mark.parametrize("name", ["PNG", "GIF"])
def test_a_transparent_palette_colour_is_white(name: str) -> None:
    image = Image.new("P", (80, 80), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.paste(0, (40, 0, 80, 80))
    result = read_picture(encode(image, name, transparency=1))
    assert result.pixels[32, 5].tolist() == [255, 255, 255]
    assert result.pixels[32, 60].tolist() == [0, 0, 0]
    assert result.warnings == ("its transparent parts were put on white",)


def test_palette_colours_of_half_transparency_are_mixed_with_white() -> None:
    image = Image.new("P", (80, 80), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    np.testing.assert_allclose(
        pixels(encode(image, "PNG", transparency=bytes([255, 128])))[5, 5], [227, 127, 127], atol=1
    )


@pytest.mark.parametrize(
    ("depth", "colour", "key", "row"),
    [
        (1, 0, [1], b"\0" + b"\xf0" * 10),
        (2, 0, [3], b"\0" + b"\xff\xff\0\0" * 5),
        (4, 0, [15], b"\0" + b"\xff\xff\0\0" * 10),
        (8, 0, [200], b"\0" + b"\xc8" * 40 + b"\0" * 40),
        (16, 0, [0x1234], b"\0" + b"\x12\x34" * 40 + b"\0\0" * 40),
        (8, 2, [9, 8, 7], b"\0" + b"\x09\x08\x07" * 40 + b"\0" * 120),
        (16, 2, [0x1234, 0, 0xFFFF], b"\0" + b"\x12\x34\0\0\xff\xff" * 40 + b"\0" * 240),
    ],
)
def test_the_transparent_colour_of_a_png_is_found_at_every_depth(
    depth: int, colour: int, key: list[int], row: bytes
) -> None:
    transparency = (b"tRNS", struct.pack(f">{len(key)}H", *key))
    data = pictures.png(80, 80, row * 80, depth=depth, colour=colour, before=[transparency])
    result = read_picture(data)
    assert "its transparent parts were put on white" in result.warnings
    assert result.pixels.max() == 255
    assert result.pixels.min() == 0 or depth == 1


@pytest.mark.parametrize(
    ("depth", "colour", "key", "row"),
    [
        (8, 0, [200], b"\0" + b"\xc9" * 80),
        (16, 0, [0x1234], b"\0" + b"\x12\x35" * 80),
        (8, 2, [9, 8, 7], b"\0" + b"\x09\x08\x06" * 80),
    ],
)
def test_a_transparent_colour_that_the_picture_does_not_have_is_nothing_to_warn_of(
    depth: int, colour: int, key: list[int], row: bytes
) -> None:
    transparency = (b"tRNS", struct.pack(f">{len(key)}H", *key))
    data = pictures.png(80, 80, row * 80, depth=depth, colour=colour, before=[transparency])
    result = read_picture(data)
    assert "its transparent parts were put on white" not in result.warnings
    assert result.pixels.max() < 255


def test_the_transparent_colour_of_16_bits_is_compared_by_its_high_bytes() -> None:
    """The decoder keeps no more of 16-bit colours: the shades beside the key go with it."""
    key = (b"tRNS", struct.pack(">3H", 0x1234, 0, 0))
    row = b"\0" + b"\x12\x35\0\0\0\0" * 80
    data = pictures.png(80, 80, row * 80, depth=16, colour=2, before=[key])
    assert pixels(data).min() == 255


# --- Animations and other remarks ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_first_frame_is_used_and_the_others_are_mentioned(name: str) -> None:
    result = read_picture(pictures.animation(name, frames=12))
    assert result.warnings == ("only the first of 12 frames was used",)
    np.testing.assert_allclose(result.pixels, squeezed(scene()), atol=40)


def test_a_phone_picture_with_a_second_picture_inside_is_one_jpeg() -> None:
    result = read_picture(pictures.mpo())
    assert (result.format, result.warnings) == ("JPEG", ())


def test_an_enormous_number_of_frames_is_not_counted_to_the_end() -> None:
    data = pictures.gif_of_many_frames()
    start = time.perf_counter()
    result = read_picture(data)
    assert "only the first of several frames was used" in result.warnings
    assert time.perf_counter() - start < 1


def test_an_animation_of_no_frames_is_a_picture() -> None:
    data = pictures.with_chunks(picture("PNG"), (b"acTL", bytes(8)))
    assert read_picture(data).warnings == ()


def test_a_refusal_does_not_keep_the_pixels() -> None:
    with pytest.raises(InvalidImage) as caught:
        read_picture(picture("BMP")[:-100])
    assert caught.value.__cause__ is not None
    assert caught.value.__cause__.__traceback__ is None


def test_a_chain_of_pages_that_turns_in_a_circle_ends() -> None:
    data = bytearray(pictures.animation("TIFF"))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    assert read_picture(bytes(data)).warnings == ()


def test_a_tiff_that_is_cut_after_its_first_page_is_refused() -> None:
    data = pictures.animation("TIFF", frames=3)
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    (second,) = struct.unpack_from("<I", data, first + 2 + 12 * count)
    (count,) = struct.unpack_from("<H", data, second)
    (third,) = struct.unpack_from("<I", data, second + 2 + 12 * count)
    for length in (second, second + 1, second + 40, (second + third) // 2, third, third + 9):
        assert "cut off" in str(refusal(data[:length])), length
    assert read_picture(data).warnings == ("only the first of 3 frames was used",)


def test_a_chain_of_pages_that_leads_astray_is_of_several() -> None:
    data = bytearray(pictures.animation("TIFF"))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    (second,) = struct.unpack_from("<I", data, first + 2 + 12 * count)
    struct.pack_into("<H", data, second, 65_535)
    assert read_picture(bytes(data)).warnings == ("only the first of several frames was used",)


def test_a_picture_smaller_than_the_network_sees_is_mentioned() -> None:
    result = read_picture(picture("PNG", 63, 200))
    assert result.warnings == ("it is smaller than 64 pixels a side and was enlarged",)
    assert read_picture(picture("PNG", 64, 64)).warnings == ()


def test_a_single_pixel_is_a_picture() -> None:
    assert (pixels(encode(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG")) == [9, 8, 7]).all()


# --- Limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", pictures.HUGE)
def test_too_many_pixels_are_refused_by_the_header(name: str) -> None:
    data = pictures.HUGE[name]()
    tracemalloc.start()
    try:
        error = refusal(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error.reason == Reason.TOO_MANY_PIXELS
    assert "25 million" in str(error)
    assert re.search(r"\d\d,\d{3} × \d\d,\d{3}", str(error))
    assert peak < 2_000_000


def test_a_side_may_be_limited_alone() -> None:
    data = picture("PNG", 300, 10)
    assert refusal(data, Limits(max_side=299)).reason == Reason.TOO_MANY_PIXELS
    assert read_picture(data, limits=Limits(max_side=300, max_pixels=3000)).width == 300


def test_limits_larger_than_those_of_the_decoding_library_hold() -> None:
    flat = encode(Image.new("1", (9_700, 9_700)), "PNG")  # 94 million: Pillow would warn
    assert read_picture(flat, limits=Limits(max_pixels=100_000_000)).width == 9_700


def test_an_avif_that_promises_less_than_it_holds_is_judged_by_what_it_holds() -> None:
    data = bytearray(encode(Image.new("RGB", (2_000, 1_000)), "AVIF"))
    size = data.index(b"ispe") + 8
    data[size : size + 8] = struct.pack(">II", 64, 64)
    error = refusal(bytes(data), Limits(max_pixels=1_000_000))
    assert error.reason == Reason.TOO_MANY_PIXELS
    assert "2,000 × 1,000" in str(error)


def test_an_avif_of_countless_pieces_is_refused_at_once() -> None:
    data = picture("AVIF")
    start = data.index(b"iloc") + 8
    count = struct.pack(">H", 65_535)
    empty = bytes(2) + bytes(2) + count  # an item of 65,535 pieces that take no room
    listing = bytes(2) + count + empty * 1000
    messy = data[:start] + listing + data[start + len(listing) :]
    begin = time.perf_counter()
    assert refusal(messy).reason == Reason.DAMAGED
    assert time.perf_counter() - begin < 0.5


def test_a_tiff_tile_larger_than_its_picture_counts() -> None:
    tiles = [(322, "I", [60_000]), (323, "I", [60_000]), (324, "I", [8]), (325, "I", [100])]
    data = pictures.tiff(64, 64, bytes(100), tags=[(259, "H", [8]), *tiles])
    assert refusal(data).reason == Reason.TOO_MANY_PIXELS


# --- Metadata that costs more than the picture ----------------------------------------------------


@pytest.mark.parametrize("bomb", [pictures.png_text_bomb, pictures.jpeg_of_many_exif_segments])
def test_metadata_bombs_are_never_opened(bomb: Callable[[], bytes]) -> None:
    data = bomb()
    tracemalloc.start()
    start = time.perf_counter()
    try:
        assert read_picture(data).warnings == ()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (pictures.with_segments(picture(), *[(0xFE, b"")] * 100_001), "segments"),
        (encode(scene(), "JPEG", progressive=True)[:-2] + b"\xff\xda\0\x02" * 101, "scans"),
        (pictures.with_chunks(picture("PNG"), *[(b"tEXt", b"")] * 100_001), "chunks"),
        (picture("GIF")[:13] + b"!\xfe" + b"\1a" * 100_001 + b"\0", "blocks"),
        (pictures.tiff(9, 9, bytes(81), tags=[(t, "H", [1]) for t in range(900, 5000)]), "tags"),
        (pictures.tiff(9, 9, bytes(81), tags=[(273, "H", [8] * 100_001)]), "strips"),
    ],
    ids=["segments", "scans", "chunks", "blocks", "tags", "strips"],
)
def test_clutter_without_end_is_refused(data: bytes, what: str) -> None:
    error = refusal(data)
    assert error.reason == Reason.DAMAGED
    assert what in str(error)


def test_odd_metadata_refuse_no_good_picture() -> None:
    png = pictures.with_chunks(
        picture("PNG"),
        (b"gAMA", b"\0"),
        (b"iCCP", b"x\0\7"),
        (b"zTXt", b"k\0\0not compressed"),
        (b"tIME", b""),
        (b"acTL", b"\0"),
        (b"prIv", b"whatever"),
    )
    jpeg = pictures.with_segments(
        picture("JPEG"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<broken"),
        (0xE2, b"MPF\0II*\0garbage"),
        (0xE2, b"ICC_PROFILE\0\1\3short"),
        (0xED, b"Photoshop 3.0\x008BIM\4\4"),
        (0xFE, b"\xff\xd8\xff"),
    )
    tiff = pictures.tiff(
        160,
        120,
        scene().tobytes(),
        tags=[
            (258, "H", [8, 8, 8]),
            (262, "H", [2]),
            (277, "H", [3]),
            (700, "B", [1] * 50),
            (34665, "I", [2**31]),
            (33432, "B", [255] * 9),
        ],
    )
    for data in (png, jpeg, tiff):
        np.testing.assert_allclose(pixels(data), squeezed(scene()), atol=12)


def test_odd_metadata_are_nobodys_warnings() -> None:
    code = (
        "import sys; from model.preprocessing import read_picture; from tests import pictures as p;"
        "d = p.tiff(160, 120, bytes(19200), tags=[(317, 'H', [1, 1, 1]), (282, 'H', [])]);"
        "print(read_picture(d).warnings, read_picture(p.huge_gif(9000, 2000)).width)"
    )
    root = Path(__file__).parent.parent
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=root
    )
    assert (run.stdout, run.stderr) == ("() 9000\n", "")


# --- What is no picture --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\n <html><body>404", "HTML"),
        (b'{"error": "not found"}', "JSON"),
        (b"<?xml version='1.0'?><error/>", "XML"),
        ("Plain wörds".encode(), "text"),
        (b"PK\3\4" + bytes(50), "zip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"/9j/4AAQSkZJRgABAQ", "base64"),
        (b"data:image/png;base64,iVBOR", "base64"),
        (b"--x\r\nContent-Disposition: form-data", "multipart"),
        (b"BM, said the text", "text"),
        (b"\x93\xff\xfe\0\1\2", "not a picture;"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, what: str) -> None:
    error = refusal(data)
    assert error.reason == Reason.NOT_A_PICTURE
    assert what in str(error)
    assert "JPEG" in str(error)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\0\0\1\0\1\0\x10\x10", "ICO"),
        (b"\0\0\2\0\1\0\x10\x10", "CUR"),
        (encode(scene(), "TGA"), "TGA"),
        (b"%PDF-1.7", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF", "EPS"),
        (b"8BPS\0\1", "PSD"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"\xff\x0a\0", "JPEG XL"),
        (b"P6 2 2 255 ", "PNM"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<?xml version='1.0'?>\n<svg/>", "SVG"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "MP4"),
        (b"II*\0\x10\0\0\0CR\2\0", "CR2"),
        (pictures.tiff(8, 8, bytes(64), tags=[(50706, "B", [1, 4, 0, 0])]), "DNG"),
    ],
)
def test_a_format_that_is_not_decoded_is_named_with_those_that_are(data: bytes, what: str) -> None:
    error = refusal(data)
    assert error.reason == Reason.FORMAT_NOT_ALLOWED
    assert what in str(error)
    assert "JPEG" in str(error)


@pytest.mark.parametrize("name", ["ICO", "PPM", "TGA", "PCX", "EPS", "JPEG2000", "SGI", "DDS"])
def test_no_other_decoder_is_ever_tried(name: str) -> None:
    error = refusal(encode(scene(), name))
    assert error.reason in (Reason.FORMAT_NOT_ALLOWED, Reason.NOT_A_PICTURE)


def test_one_byte_is_called_one_byte() -> None:
    assert str(refusal(b"\xfe")).startswith("What arrived, 1 byte, is not a picture;")
    assert str(refusal(b"\xfe" * 2000)).startswith("What arrived, 2,000 bytes, is not")


def test_nothing_is_refused_as_empty() -> None:
    assert refusal(b"").reason == Reason.EMPTY


def test_the_first_bytes_decide_not_the_claims() -> None:
    assert recognise(b"\xff\xd8\xff\xe0") is Format.JPEG
    assert recognise(b"\0\0\0\x20ftypmif1\0\0\0\0mif1avif") is Format.AVIF


def test_heic_is_accepted_with_its_decoder_and_named_without() -> None:
    header = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    if heic_is_installed():
        assert "HEIC" in accepted_formats()
        assert refusal(header).reason == Reason.DAMAGED
        return
    error = refusal(header)
    assert error.reason == Reason.FORMAT_NOT_ALLOWED
    assert "HEIC, which is not accepted; save it as JPEG" in str(error)


@pytest.mark.skipif(not heic_is_installed(), reason="needs the extra `heic`")
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_heic_is_decoded_and_turned_once(orientation: int) -> None:
    import pillow_heif

    stored = pictures.STORED_AS[orientation](scene())
    heif = pillow_heif.from_pillow(stored)
    buffer = io.BytesIO()
    heif.save(buffer, quality=95, exif=pictures.exif(orientation))
    result = read_picture(buffer.getvalue())
    assert (result.format, result.width, result.height) == ("HEIC", 160, 120)
    assert np.abs(result.pixels - squeezed(scene())).mean() < 3


# --- Damage --------------------------------------------------------------------------------------

VARIANTS = {
    **{name: picture(name) for name in FORMATS},
    "progressive JPEG": encode(scene(), "JPEG", progressive=True),
    "lossy WebP": encode(scene(), "WEBP", lossless=False),
    **{
        f"TIFF {name}": encode(scene(), "TIFF", compression=name)
        for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")
    },
    "animated GIF": pictures.animation("GIF"),
    "animated PNG": pictures.animation("PNG"),
    "animated WebP": pictures.animation("WEBP"),
    "animated AVIF": pictures.animation("AVIF"),
    "palette PNG": encode(scene().quantize(16), "PNG"),
    "16-bit PNG": pictures.deep_png(np.asarray(scene(mode="L")).astype(np.uint16) * 257),
    "transparent PNG": encode(see_through(), "PNG"),
    "turned JPEG": pictures.turned(6),
    "CMYK JPEG": encode(scene().convert("CMYK"), "JPEG"),
    "BMP of runs": b"BM"
    + struct.pack("<IIIIiiHHIIIIII", 0, 0, 1078, 40, 64, 64, 1, 8, 1, 0, 0, 0, 0, 0)
    + bytes(range(256)) * 4
    + b"\x40\x07\0\0" * 64
    + b"\0\1",
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_truncated_file_is_refused(name: str) -> None:
    data = VARIANTS[name]
    read_picture(data)
    dispensable = 1 if "GIF" in name else 4 if "runs" in name else 0  # a mark that says: end
    lengths = {*range(max(1, len(data) - 20), len(data) - dispensable)}
    lengths |= {random.Random(1).randrange(1, len(data) - dispensable) for _ in range(40)}
    for length in lengths:
        assert refusal(data[:length]).reason in (Reason.DAMAGED, Reason.NOT_A_PICTURE), length


def test_a_checksum_that_does_not_match_is_refused() -> None:
    data = bytearray(picture("PNG"))
    data[data.index(b"IDAT") + 40] ^= 1
    assert "checksum" in str(refusal(bytes(data)))


def test_rubbish_between_the_segments_of_a_jpeg_is_stepped_over() -> None:
    data = picture("JPEG")
    after_first = 4 + int.from_bytes(data[4:6], "big")
    messy = data[:after_first] + b"\0rubbish\xff\xff" + data[after_first:]
    np.testing.assert_array_equal(read_picture(messy).pixels, read_picture(data).pixels)


def check_result_or_refusal(data: bytes) -> None:
    refused = None
    try:
        result = read_picture(data, limits=Limits(max_pixels=1_000_000, max_side=5_000))
    except InvalidImage as error:
        refused = error
    if refused is not None:
        assert str(refused).endswith(".")
        assert len(str(refused)) < 500
        assert refused.reason in Reason
        assert "0x" not in str(refused)
        return
    assert isinstance(result, Picture)
    assert result.pixels.shape == (64, 64, 3)
    assert result.pixels.dtype == np.uint8
    assert result.width * result.height <= 1_000_000


quiet = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
noisy_libraries = pytest.mark.filterwarnings(
    r"ignore:::PIL\."
)  # the filter that runs outside pytest

STARTS = [data[:length] for data in VARIANTS.values() for length in (4, 12, 16, 30)]


@noisy_libraries
@settings(quiet, max_examples=400)
@given(st.sampled_from([b"", *STARTS]), st.binary(max_size=300))
def test_arbitrary_bytes_give_pixels_or_a_reason(start: bytes, rest: bytes) -> None:
    check_result_or_refusal(start + rest)


@noisy_libraries
@settings(quiet, max_examples=1000)
@given(st.sampled_from(sorted(VARIANTS)), st.data())
def test_damaged_pictures_give_pixels_or_a_reason(name: str, choose: st.DataObject) -> None:
    data = bytearray(VARIANTS[name])
    near_start = st.integers(0, min(400, len(data) - 1))  # headers: where a bit means most
    anywhere = st.integers(0, len(data) - 1)
    for at in choose.draw(st.lists(near_start | anywhere, min_size=1, max_size=6)):
        data[at] = choose.draw(st.integers(0, 255) | st.sampled_from([0, 0x7F, 0x80, 0xFF]))
    start = choose.draw(anywhere)
    end = choose.draw(st.integers(start, min(start + 20, len(data))))
    data[start:end] = choose.draw(st.binary(max_size=20))
    if name.endswith("PNG") and choose.draw(st.booleans()):
        data = bytearray(with_right_checksums(bytes(data)))
    check_result_or_refusal(bytes(data))


def with_right_checksums(data: bytes) -> bytes:
    """So that damage gets past the checksums, to the decoder."""
    parts = [data[:8]]
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        content = data[at + 4 : at + 8 + length]
        parts.append(data[at : at + 4] + content + struct.pack(">I", zlib.crc32(content)))
        at += 12 + length
    return b"".join(parts)


# --- Many at once --------------------------------------------------------------------------------


def test_threads_do_not_disturb_each_other() -> None:
    samples = [pictures.turned(6), picture("PNG"), pictures.animation("GIF"), see_through_png()]
    expected = [read_picture(data).pixels for data in samples]
    failures: list[object] = []

    def work(offset: int) -> None:
        for i in range(12):
            which = (i + offset) % len(samples)
            if not np.array_equal(read_picture(samples[which]).pixels, expected[which]):
                failures.append(which)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def see_through_png() -> bytes:
    return encode(see_through(), "PNG")


def test_what_needs_no_change_is_not_copied() -> None:
    """The decoder gets the very bytes where they hold nothing but the picture."""
    from model.containers import open_container

    for name, kind in (("JPEG", Format.JPEG), ("PNG", Format.PNG), ("WEBP", Format.WEBP)):
        data = picture(name)
        assert open_container(data, kind).data is data


def test_an_upright_copy_made_by_pillow_agrees() -> None:
    data = pictures.turned(7)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.abs(pixels(data) - squeezed(upright)).max() <= 1
