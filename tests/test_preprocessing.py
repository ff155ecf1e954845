"""From the bytes of a picture to pixels: right for every kind of picture, refused otherwise."""

import contextlib
import io
import random
import re
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from model.formats import Format, accepted_formats, heic_is_installed, recognise
from model.memory import MemoryBudget, OverBudget
from model.preprocessing import (
    Filter,
    InvalidImage,
    Limits,
    Preprocessing,
    Reason,
    read_picture,
    to_vector,
)
from tests import pictures
from tests.pictures import FORMATS, LOSSLESS, encode, kinds, picture, scene, see_through

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
        Preprocessing().to_json() | {"filter": "nearest"},
        Preprocessing().to_json() | {"filter": ["bilinear"]},
        Preprocessing().to_json() | {"fit": "crop"},
        Preprocessing().to_json() | {"background": "black"},
        Preprocessing().to_json() | {"side": 0},
        Preprocessing().to_json() | {"side": "64"},
        Preprocessing().to_json() | {"jpeg_times": 0},
        Preprocessing().to_json() | {"jpeg_times": 2.0},
        Preprocessing().to_json() | {"jpeg_times": True},
        {"side": 64, "filter": "bilinear", "fit": "squeeze", "background": "white"},
        {"side": 64},
        Preprocessing().to_json() | {"gamma": 2.2},
        [],
        None,
    ],
)
def test_a_specification_that_this_code_does_not_do_is_refused(values: object) -> None:
    with pytest.raises(ValueError, match="preprocessing"):
        Preprocessing.from_json(values)


def test_a_specification_survives_json() -> None:
    for spec in (Preprocessing(side=96, filter="lanczos"), Preprocessing(jpeg_times=None)):
        assert Preprocessing.from_json(spec.to_json()) == spec


# --- JPEGs that are shrunk in decoding -----------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "times", "shrunk"),
    [
        (1025, 1100, 2, 8),
        (1023, 1100, 2, 4),
        (512, 4000, 2, 4),
        (511, 4000, 2, 2),
        (257, 300, 2, 2),
        (256, 255, 2, 1),
        (513, 600, 1, 8),
        (513, 600, 3, 2),
        (2000, 2000, None, 1),
    ],
)
def test_a_jpeg_is_shrunk_in_decoding_as_far_as_the_specification_allows(
    width: int, height: int, times: int | None, shrunk: int
) -> None:
    data = encode(scene(width, height), "JPEG", progressive=height % 200 == 0)
    result = read_picture(data, Preprocessing(jpeg_times=times))
    assert (result.width, result.height, result.warnings) == (width, height, ())
    decoded = pictures.decode(data)
    box: tuple[float, float, float, float] = (0, 0, width / shrunk, height / shrunk)
    if shrunk > 1:
        decoded.draft(None, (width // shrunk, height // shrunk))
    assert decoded.size == (-(-width // shrunk), -(-height // shrunk))
    expected = decoded.resize((64, 64), Image.Resampling.BILINEAR, box)
    np.testing.assert_array_equal(result.pixels, np.asarray(expected))
    np.testing.assert_allclose(result.pixels, squeezed(scene(width, height)), atol=25)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_shrunk_jpeg_lies_where_the_whole_one_does(mode: str) -> None:
    """Its last row and column of blocks lie beyond the edge in part: without them, all is moved."""
    for width, height in ((1031, 1029), (1032, 1032)):
        data = encode(scene(width, height).convert(mode), "JPEG")
        whole = read_picture(data, Preprocessing(jpeg_times=None)).pixels.astype(int)
        assert np.abs(pixels(data) - whole).mean() < 0.7


def test_only_a_jpeg_is_shrunk_in_decoding() -> None:
    for name in ("PNG", "WEBP", "TIFF"):
        np.testing.assert_array_equal(
            pixels(picture(name, 1031, 1029)), squeezed(scene(1031, 1029))
        )


# --- Bands ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [Preprocessing(), Preprocessing(side=96, filter="lanczos")])
def test_working_in_bands_changes_no_bit(
    spec: Preprocessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = kinds() | {"shrunk JPEG of inks": encode(scene(333, 347, "CMYK"), "JPEG")}
    at_once = {name: read_picture(data, spec) for name, data in samples.items()}
    for pixels_a_band in (1, 160 * 7, 160 * 119):
        monkeypatch.setattr("model.squeeze.BAND_PIXELS", pixels_a_band)
        for name, data in samples.items():
            banded = read_picture(data, spec)
            np.testing.assert_array_equal(banded.pixels, at_once[name].pixels, name)
            assert banded.warnings == at_once[name].warnings, name


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


def test_a_jpeg_counts_as_large_as_it_is_decoded() -> None:
    data = picture("JPEG", 3000, 2000)  # decoded as 375 × 250
    result = read_picture(data, limits=Limits(max_pixels=375 * 250 * 8, max_side=375))
    assert (result.width, result.height) == (3000, 2000)
    for limits in (Limits(max_side=374), Limits(max_pixels=375 * 250 * 8 - 1)):
        error = refusal(data, limits)
        assert error.reason == Reason.TOO_MANY_PIXELS
        assert "3,000 × 2,000" in str(error)
        assert "baseline JPEG" in str(error)


@pytest.mark.parametrize("options", [{"progressive": True}, {"sequential": True}])
def test_a_jpeg_of_which_all_coefficients_are_held_counts_whole(options: dict[str, bool]) -> None:
    data = picture("JPEG", 600, 400)
    if "progressive" in options:
        data = encode(scene(600, 400), "JPEG", **options)
    else:  # the first of several scans holds the first component alone
        start = data.index(b"\xff\xda")
        data = data[:start] + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + data[start + 14 :]
    assert refusal(data, Limits(max_pixels=600 * 400 - 1)).reason == Reason.TOO_MANY_PIXELS
    assert refusal(data, Limits(max_side=599)).reason == Reason.TOO_MANY_PIXELS
    if "progressive" in options:
        assert read_picture(data, limits=Limits(max_pixels=600 * 400)).width == 600


def test_a_gif_whose_first_frame_is_larger_than_its_screen_is_refused_unopened() -> None:
    """Its decoder fills what is to be seen after the frame before anything is asked of it."""
    data = bytearray(encode(Image.new("P", (70, 70)), "GIF", disposal=2, transparency=0))
    frame = data.index(b",", 13 + 3 * 2)
    struct.pack_into("<HH", data, frame + 5, 65_535, 65_535)
    error = refusal(bytes(data))
    assert error.reason == Reason.TOO_MANY_PIXELS
    assert "65,535 × 65,535" in str(error)


def test_a_bmp_of_runs_is_refused_where_unpacking_it_would_take_long() -> None:
    def runs(width: int, height: int, packed: bytes) -> bytes:
        numbers = (0, 0, 1078, 40, width, height, 1, 8, 1, 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IIIIiiHHIIIIII", *numbers) + bytes(1024) + packed

    assert refusal(runs(2000, 1001, b"")).reason == Reason.TOO_MANY_PIXELS
    assert "runs" in str(refusal(runs(64, 64, b"\0\0" * 20_000)))


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("rest", [b"trailing junk" * 100, bytes(100), b"\n"])
def test_what_follows_a_picture_changes_nothing(name: str, rest: bytes) -> None:
    data = picture(name)
    assert np.array_equal(read_picture(data + rest).pixels, read_picture(data).pixels)


def test_an_avif_of_many_hidden_frames_is_refused() -> None:
    data = picture("AVIF")
    header = data.index(b"mdat\x12\0") + 6  # after the temporal delimiter
    first = header + 2 + data[header + 1]
    hidden = bytes([3 << 3 | 2, 0]) * 9  # frame headers of no bytes
    messy = data[:first] + hidden + data[first + len(hidden) :]
    assert refusal(messy).reason == Reason.DAMAGED
    assert "layers" in str(refusal(messy))


# --- Memory --------------------------------------------------------------------------------------


def test_a_picture_that_needs_more_memory_than_there_is_is_refused() -> None:
    limits = Limits(memory=MemoryBudget(8_000_000))
    for name in ("PNG", "WEBP", "AVIF"):
        error = refusal(picture(name, 2000, 1500), limits)
        assert error.reason == Reason.TOO_MANY_PIXELS
        assert re.search(r"2,000 × 1,500 pixels needs \d+ MB .* there are 8 MB: send", str(error))
        assert str(error).endswith("baseline JPEG.")
    assert read_picture(picture("JPEG", 2000, 1500), limits=limits).width == 2000


def test_memory_is_given_back_whatever_happens() -> None:
    budget = MemoryBudget(3_000_000)
    for data in (picture(), picture("PNG"), picture("WEBP"), picture("AVIF"), picture("GIF")):
        for each in (data, data[: len(data) * 2 // 3], data[:40], data + b"more"):
            with contextlib.suppress(InvalidImage):
                read_picture(each, limits=Limits(memory=budget))
            assert budget.taken == 0


def test_pictures_wait_in_line_for_memory() -> None:
    budget = MemoryBudget(100)
    order: list[int] = []

    def take(amount: int) -> None:
        with budget.reserve(amount):
            assert budget.taken <= 100
            order.append(amount)
            time.sleep(0.02)

    with budget.reserve(60):
        threads = []
        for amount in (90, 30, 31, 32):  # the small ones would fit, but came after a large one
            threads.append(threading.Thread(target=take, args=(amount,)))
            threads[-1].start()
            while budget.waiting < len(threads):
                time.sleep(0.001)
        assert order == []
    for thread in threads:
        thread.join()
    assert order[0] == 90
    assert sorted(order[1:]) == [30, 31, 32]
    assert (budget.taken, budget.waiting) == (0, 0)


def test_what_no_budget_can_hold_is_refused_without_waiting() -> None:
    budget = MemoryBudget(100)
    with budget.reserve(100), pytest.raises(OverBudget), budget.reserve(101):
        pass
    with MemoryBudget().reserve(10**15):
        pass


_LARGE = (2000, 1500)


def large_see_through() -> Image.Image:
    return see_through().resize(_LARGE)


def progressive_in_tiff() -> bytes:
    """A TIFF whose one strip is a progressive JPEG."""
    tags = [(258, "H", [8, 8, 8]), (259, "H", [7]), (262, "H", [2]), (277, "H", [3])]
    return pictures.tiff(*_LARGE, encode(scene(*_LARGE), "JPEG", progressive=True), tags=tags)


def one_strip(mode: str, compression: str | None) -> bytes:
    """A TIFF of a single strip, which is decoded as a whole."""
    return encode(scene(*_LARGE, mode), "TIFF", compression=compression, strip_size=2**31 - 1)


# What takes the most memory a pixel, of every format and of every kind that differs
HEAVY: dict[str, Callable[[], bytes]] = {
    "baseline JPEG": lambda: picture("JPEG", *_LARGE),
    "progressive JPEG": lambda: encode(scene(*_LARGE), "JPEG", progressive=True),
    "progressive JPEG of inks": lambda: encode(
        scene(*_LARGE, "CMYK"), "JPEG", progressive=True, subsampling=2
    ),
    "PNG": lambda: picture("PNG", *_LARGE),
    "palette PNG": lambda: encode(scene(*_LARGE).quantize(64), "PNG", transparency=3),
    "transparent PNG": lambda: encode(large_see_through(), "PNG"),
    "16-bit PNG": lambda: pictures.deep_png(
        np.asarray(scene(*_LARGE, "L")).astype(np.uint16) * 257
    ),
    "GIF": lambda: encode(scene(*_LARGE, "P"), "GIF", disposal=2, transparency=9),
    "BMP": lambda: picture("BMP", *_LARGE),
    "WebP": lambda: encode(large_see_through(), "WEBP", lossless=True, quality=0, method=0),
    "lossy WebP": lambda: encode(scene(*_LARGE), "WEBP", lossless=False, method=0),
    "AVIF": lambda: picture("AVIF", *_LARGE),
    "AVIF of less colour": lambda: encode(scene(*_LARGE), "AVIF", speed=10, subsampling="4:2:0"),
    "transparent AVIF": lambda: encode(large_see_through(), "AVIF", speed=10),
    "TIFF of a progressive JPEG": progressive_in_tiff,
    **{
        f"TIFF {mode} {compression}": partial(one_strip, mode, compression)
        for mode, compression in (
            ("RGB", None),
            ("RGB", "tiff_lzw"),
            ("CMYK", "tiff_deflate"),
            ("YCbCr", "tiff_lzw"),
            ("RGB", "zstd"),
        )
    },
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize("name", HEAVY)
def test_no_picture_takes_more_memory_than_was_reserved_for_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(HEAVY[name]())
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "large"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert not run.stderr, run.stderr
    taken, reserved = map(int, run.stdout.split())
    assert taken < reserved + 400_000, f"{taken:,} of {reserved:,}"
    # The rest: bands and what decoders take whatever the size, which weigh less the larger it is
    assert reserved < 1.4 * taken + 5_000_000, f"{taken:,} of {reserved:,}"


MEASURE = """
import re, sys
from pathlib import Path
from model.preprocessing import Limits, MemoryBudget, read_picture

class Watched(MemoryBudget):
    reserved = 0
    def reserve(self, amount):
        self.reserved += amount
        return super().reserve(amount)

def resident(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

data = Path(sys.argv[1]).read_bytes()
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
budget = Watched(10**12)
before = resident("VmRSS")
read_picture(data, limits=Limits(memory=budget))
print(resident("VmHWM") - before, budget.reserved)
"""


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


@pytest.mark.parametrize("kind", ["H", "I"])
def test_a_tiff_tile_larger_than_its_picture_counts(kind: str) -> None:
    tiles = [(322, kind, [60_000]), (323, kind, [60_000]), (324, "I", [8]), (325, "I", [100])]
    data = pictures.tiff(64, 64, bytes(100), tags=[(259, "H", [8]), *tiles])
    assert refusal(data).reason == Reason.TOO_MANY_PIXELS


def test_a_tile_of_a_big_tiff_counts_whatever_numbers_state_it() -> None:
    data = encode(scene(), "TIFF", big_tiff=True)
    (directory,) = struct.unpack_from("<Q", data, 8)
    (count,) = struct.unpack_from("<Q", data, directory)
    tiles = b"".join(struct.pack("<HHQQ", tag, 16, 1, 60_000) for tag in (322, 323))
    entries = data[directory + 8 : directory + 8 + 20 * count] + tiles
    moved = struct.pack("<Q", count + 2) + entries + bytes(8)
    tiled = data[:8] + struct.pack("<Q", len(data)) + data[16:] + moved
    assert refusal(tiled).reason == Reason.TOO_MANY_PIXELS


def test_a_grid_of_tiles_in_an_avif_counts_as_large_as_it_says() -> None:
    data = bytearray(picture("AVIF"))
    place = data.index(b"iloc")
    grid = struct.pack(">BBBBHH", 0, 0, 7, 7, 50_000, 40_000)
    (offset,) = struct.unpack_from(">I", data, place + 4 + 4 + 2 + 2 + 6)
    assert data[offset : offset + 2] == b"\x12\0"  # where the first item lies
    data[offset : offset + 8] = grid
    struct.pack_into(">I", data, place + 4 + 4 + 2 + 2 + 10, 8)
    error = refusal(bytes(data))
    assert error.reason == Reason.TOO_MANY_PIXELS
    assert "50,000 × 40,000" in str(error)


def test_a_webp_whose_picture_is_larger_than_its_canvas_is_refused() -> None:
    large = encode(Image.new("RGB", (3000, 2000)), "WEBP")
    small = pictures.huge_webp(64, 64)
    body = small[8:] + large[12:]
    data = b"RIFF" + struct.pack("<I", len(body)) + body
    assert refusal(data, Limits(max_pixels=100_000)).reason == Reason.DAMAGED


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


SEVERAL_PICTURES = {"MPO", "animated TIFF"}  # where the one that is read is not the last


@pytest.mark.parametrize("name", sorted(kinds().keys() - SEVERAL_PICTURES))
def test_a_truncated_file_is_refused(name: str) -> None:
    data = kinds()[name]
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
