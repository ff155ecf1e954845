"""From the bytes of a picture to pixels: right for every kind of picture, refused otherwise."""

import contextlib
import io
import random
import re
import struct
import time
from collections.abc import Callable
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from model import DEFAULT_WEIGHTS
from model.classifier import Classifier
from model.formats import accepted_formats, heic_is_installed
from model.preprocessing import (
    Filter,
    InvalidImage,
    Limits,
    Preprocessing,
    Reason,
    read_picture,
    stored_jpeg,
    to_vector,
)
from tests import pictures
from tests.pictures import encode, kinds, picture, scene
from tests.test_fuzz_decoding import noisy_libraries, with_right_checksums

PHOTO = scene(320, 240).resize((640, 480), Image.Resampling.NEAREST)
END = b"\xff\xd9"  # of a JPEG
ON_WHITE = "its transparent parts were filled with white"


def squeezed(image: Image.Image) -> NDArray[np.int64]:
    tile = image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
    return np.asarray(tile).astype(int)


def pixels(data: bytes) -> NDArray[np.int64]:
    return read_picture(data).pixels.astype(int)


def refusal(data: bytes, limits: Limits = Limits()) -> InvalidImage:
    with pytest.raises(InvalidImage) as caught:
        read_picture(data, limits=limits)
    return caught.value


# --- What comes out ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(kinds().keys() - {"16-bit TIFF"}))
def test_every_kind_of_picture_is_what_it_shows_on_white_squeezed(name: str) -> None:
    result = read_picture(kinds()[name])
    shown = ImageOps.exif_transpose(pictures.decode(kinds()[name]))
    if shown.mode.startswith("I"):
        shown = Image.fromarray((np.asarray(shown) / 257).astype(np.uint8))
    size, shown = shown.size, shown.convert("RGBA")
    expected = squeezed(Image.alpha_composite(Image.new("RGBA", size, "white"), shown))
    np.testing.assert_allclose(result.pixels, expected, atol=1)
    assert result.pixels.shape == (64, 64, 3)
    assert result.pixels.dtype == np.uint8
    assert (result.width, result.height) == size
    assert result.format.upper() in name.upper().replace("MPO", "JPEG")
    assert (ON_WHITE in result.warnings) == (shown.getchannel("A").getextrema() != (255, 255))
    is_animated = "only the first of several frames was used" in result.warnings
    assert is_animated == name.startswith("animated")
    is_deep = "its 16 bits per channel were reduced to 8" in result.warnings
    assert is_deep == name.startswith("16-bit")


@pytest.mark.parametrize("name", get_args(Filter))
def test_the_filter_and_the_side_are_those_of_the_specification(name: Filter) -> None:
    spec = Preprocessing(96, name)
    assert Preprocessing.from_json(spec.to_json()) == spec
    expected = np.asarray(scene().resize((96, 96), Image.Resampling[name.upper()]))
    np.testing.assert_array_equal(read_picture(picture("PNG"), spec).pixels, expected)


def test_a_vector_is_the_rows_of_the_pixels_over_255() -> None:
    values = np.arange(2 * 64 * 64 * 3, dtype=np.uint32).reshape(2, 64, 64, 3).astype(np.uint8)
    vectors = to_vector(values)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, (values.reshape(2, -1) / 255).astype(np.float32))
    np.testing.assert_array_equal(to_vector(values[0]), vectors[0])


def test_a_stored_jpeg_is_upright_and_gets_the_answer_of_the_upload(cat_picture: bytes) -> None:
    cat = pictures.decode(cat_picture).convert("RGB").resize((902, 600))
    half_there = cat.copy()
    half_there.putalpha(Image.linear_gradient("L").resize(cat.size))
    classifier = Classifier.load(DEFAULT_WEIGHTS)
    for data in (
        encode(cat.rotate(90, expand=True), "JPEG", exif=pictures.exif(6), comment=b"x"),
        encode(half_there, "PNG", icc_profile=b"profile"),
        encode(cat.convert("CMYK"), "JPEG"),
        encode(cat.convert("L"), "TIFF"),
        encode(cat.resize((1804, 1200)), "JPEG", progressive=True),
    ):
        stored = stored_jpeg(data)
        image = pictures.decode(stored)
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (512, 341))
        assert image.info.keys() <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        assert np.abs(pixels(stored) - pixels(data)).mean() < 1.5
        answers = [classifier.predict(each).cat_probability for each in (stored, data)]
        assert answers[0] == pytest.approx(answers[1], abs=0.02)


def test_a_stored_jpeg_is_never_enlarged_and_what_is_refused_is_not_stored() -> None:
    for size, expected in (((160, 120), (160, 120)), ((3000, 2), (512, 1)), ((1, 1), (1, 1))):
        assert pictures.decode(stored_jpeg(picture("JPEG", *size))).size == expected
    with pytest.raises(InvalidImage, match="100 pixels per side"):
        stored_jpeg(picture("PNG"), Limits(max_side=100))


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_picture_is_turned_upright_once(name: str, orientation: int) -> None:
    result = read_picture(pictures.turned(orientation, name))
    assert (result.width, result.height) == (160, 120)
    assert result.warnings == ("it was rotated upright, following its EXIF orientation",)
    tolerance = 14 if name in ("JPEG", "AVIF") else 1
    np.testing.assert_allclose(result.pixels, squeezed(scene()), atol=tolerance)


def test_broken_exif_refuses_no_good_picture() -> None:
    start = b"Exif\0\0II*\0"
    for exif in (
        *(b"Exif\0\0", b"Exif\0\0garbage", start + b"\xff\xff\xff\x7f"),
        *(start + b"\x08\0\0\0\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08" + b"\xff" * 500),
        start + b"\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0\0\0\0\0",  # orientation 9
    ):
        for data in (
            pictures.with_segments(picture("JPEG"), (0xE1, exif)),
            pictures.with_chunks(picture("PNG"), (b"eXIf", exif[6:])),
            encode(scene(), "WEBP", exif=exif),
        ):
            assert read_picture(data).warnings == ()


# --- Layouts of TIFFs -----------------------------------------------------------------------------

GREYS, COLOURS = ("grey", "white is 0"), ("RGB", "RGBA", "grey and alpha", "CMYK")
TIFF_LAYOUTS = [  # kind, bits, planar, compression, predictor, byte order, tiles
    *product(GREYS, (8, 16), [False], (None, "lzw", "deflate"), [False], "<>", (None, (32, 48))),
    *product(COLOURS, (8, 16), (False, True), (None, "lzw"), [False], "<>", (None, (32, 48))),
    *product((*GREYS, *COLOURS), (8, 16), [False], ("lzw", "deflate"), [True], "<>", [None]),
    *product(COLOURS, (8, 16), [True], ("lzw", "deflate"), [True], "<>", [None, (32, 48)]),
    *product(["palette"], [8], [False], (None, "lzw"), [False], "<>", (None, (32, 48))),
    *product(["RGB", "grey"], (8, 16), [False], ("packbits", "zstd", "lzma"), [False], "<", [None]),
    *product(["RGB", "grey"], [8], [False], ["jpeg"], [False], "<>", (None, (32, 48))),
    *product(["RGB"], [8], [True], ["jpeg"], [False], "<>", (None, (32, 48))),
]
SMALL = np.asarray(scene(80, 70)), scene(80, 70, "CMYK")


def layout(
    kind: str,
    bits: int = 8,
    planar: bool = False,
    compression: str | None = None,
    predictor: bool = False,
    order: Any = "<",
    tile: tuple[int, int] | None = None,
) -> tuple[bytes, Image.Image]:
    """`scene` as a TIFF of that layout, written by another library, and what it shows."""
    colour, inks = SMALL
    grey, opaque = colour[..., 1], np.full((70, 80), 255, np.uint8)
    values, photometric, shown = {
        "grey": (grey, "minisblack", grey),
        "white is 0": (grey, "miniswhite", 255 - grey),
        "palette": (grey, "palette", 255 - grey),
        "grey and alpha": (np.dstack([grey, opaque]), "minisblack", grey),
        "RGB": (colour, "rgb", colour),
        "RGBA": (np.dstack([colour, opaque]), "rgb", colour),
        "CMYK": (np.asarray(inks), "separated", np.asarray(inks.convert("RGB"))),
    }[kind]
    options: dict[str, Any] = {"compression": compression, "predictor": predictor}
    if kind in ("RGBA", "grey and alpha"):
        options["extrasamples"] = ["unassalpha"]
    if kind == "palette":
        options["colormap"] = np.arange(256, dtype=np.uint16)[None].repeat(3, 0)[:, ::-1] * 257
    if kind in COLOURS:
        options["planarconfig"] = "separate" if planar else "contig"
    if bits == 16:
        values = values.astype(np.uint16) * 257
    if planar:
        values = values.transpose(2, 0, 1)
    rows, file = None if tile else 30, io.BytesIO()
    options |= {"byteorder": order, "tile": tile, "rowsperstrip": rows}
    tifffile.imwrite(file, values, photometric=photometric, **options)
    return file.getvalue(), Image.fromarray(shown)


def test_every_tiff_layout_is_read_right_or_refused_by_name() -> None:
    answered, refused, reasons = 0, set(), set()
    for each in TIFF_LAYOUTS:
        data, shown = layout(*each)
        try:
            actual = pixels(data)
        except InvalidImage as error:
            reasons.add(error.reason)
            refused.add((*each[:2], "planar" if each[2] else "chunky"))
            continue
        difference = np.abs(actual - squeezed(shown))
        assert difference.mean() < 6 if each[3] == "jpeg" else difference.max() <= 1, each
        answered += 1
    assert answered > 200
    assert reasons == {Reason.FORMAT_NOT_ALLOWED}
    assert refused == {
        *(("RGB", 16, "planar"), ("RGBA", 16, "planar")),  # uncompressed
        *(("CMYK", 8, "planar"), ("CMYK", 16, "planar")),
        *(("grey and alpha", bits, "planar") for bits in (8, 16)),
        ("grey and alpha", 16, "chunky"),
    }


def test_numbers_without_a_known_white_and_what_pillow_misreads_are_refused() -> None:
    subsampled = [(258, "H", [8, 8, 8]), (262, "H", [6]), (277, "H", [3]), (530, "H", [2, 2])]
    samples = [
        (layout("RGB", 16, planar=True)[0], "separate planes"),
        (pictures.tiff(160, 120, bytes(160 * 120 * 3 // 2), tags=subsampled), "subsampled"),
    ]
    for kind in ("<u4", ">u4", "<i4", ">i2", "<i1", "<f4", ">f4"):
        sample_format = {"u": 1, "i": 2, "f": 3}[kind[1]]
        values = np.full((80, 80), 100, kind)
        tags = [(258, "H", [8 * values.itemsize]), (339, "H", [sample_format])]
        data = pictures.tiff(80, 80, values.tobytes(), order=kind[0], tags=tags)
        samples.append((data, "8 or 16 bits"))
    for data, words in samples:
        error = refusal(data)
        assert error.reason == Reason.FORMAT_NOT_ALLOWED
        assert words in str(error)


def test_12_bits_and_palettes_of_8_bits_in_a_tiff_are_scaled_by_their_own_white() -> None:
    deep = pictures.tiff(80, 60, b"\xff" * (80 * 60 * 3 // 2), tags=[(258, "H", [12])])
    assert pixels(deep).min() == 255
    few = scene().quantize(32)
    palette = np.zeros((256, 3), np.uint16)
    palette[:32] = np.reshape(few.getpalette() or [], (-1, 3))[:32]
    tags = [(262, "H", [3]), (320, "H", palette.T.reshape(-1).tolist())]
    data = pictures.tiff(160, 120, few.tobytes(), tags=tags)
    np.testing.assert_allclose(pixels(data), squeezed(few), atol=1)


@pytest.mark.parametrize(
    ("maker", "name"),
    [("NIKON CORPORATION", "(NEF)"), ("SONY", "(ARW)"), ("Nobody", "or similar")],
)
def test_a_camera_raw_is_never_answered_from_its_thumbnail(maker: str, name: str) -> None:
    tags = [(258, "H", [8, 8, 8]), (262, "H", [2]), (277, "H", [3])]
    tags.append((271, "b", list(maker.encode() + b"\0")))
    sensor = pictures.tiff(80, 60, b"", tags=[(262, "H", [32803])])
    is_a_preview, keeps_a_larger_picture_apart = (254, "I", [1]), (330, "I", [20_000])
    for tag in (is_a_preview, keeps_a_larger_picture_apart):
        data = pictures.tiff(80, 60, scene(80, 60).tobytes(), tags=[*tags, tag])
        error = refusal(data.ljust(20_000, b"\0") + sensor[8:])
        assert error.reason == Reason.FORMAT_NOT_ALLOWED
        assert "camera raw" in str(error)
        assert name in str(error)


def test_a_tiff_of_half_a_directory_is_refused() -> None:
    """Pillow would take the tags that are there, and no predictor where that is not."""
    data, _ = layout("RGB", compression="lzw", predictor=True)
    (start,) = struct.unpack_from("<I", data, 4)
    moved = data + data[start : start + 2 + 12 * 9]
    half = moved[:4] + struct.pack("<I", len(data)) + moved[8:]
    assert "cut off" in str(refusal(half))


def test_a_bmp_that_is_transparent_everywhere_is_opaque() -> None:
    """Programs that know nothing of alpha leave it 0; viewers show such pictures."""
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + bytes(68)
    head = struct.pack("<IIIIiiHHIIIIII", 0, 0, 138, 124, 160, -120, 1, 32, 3, 0, 0, 0, 0, 0)
    image = scene(mode="RGBA")
    for alpha, warnings in ((0, ()), (128, (ON_WHITE,))):
        image.putalpha(alpha)
        result = read_picture(b"BM" + head + masks + image.tobytes("raw", "BGRA"))
        assert result.warnings == warnings
        assert alpha or (result.pixels == squeezed(scene())).all()


def test_opaque_alpha_is_nothing_to_warn_of_and_hidden_colours_do_not_shine_through() -> None:
    image = scene(mode="RGBA")
    assert read_picture(encode(image, "PNG")).warnings == ()
    image.putalpha(0)
    assert pixels(encode(image, "PNG")).min() == 255


@pytest.mark.parametrize(
    ("depth", "colour", "key", "row", "found"),
    [
        (1, 0, [1], b"\xf0" * 10, True),
        (8, 0, [200], b"\xc8" * 40 + b"\0" * 40, True),
        (8, 2, [9, 8, 7], b"\x09\x08\x07" * 40 + b"\0" * 120, True),
        (8, 2, [9, 8, 7], b"\x09\x08\x06" * 80, False),
        (16, 2, [0x1234, 0, 0xFFFF], b"\x12\x34\0\0\xff\xff" * 40 + b"\0" * 240, True),
    ],
)
def test_the_transparent_colour_of_a_png_is_found_at_every_depth(
    depth: int, colour: int, key: list[int], row: bytes, found: bool
) -> None:
    transparency = (b"tRNS", struct.pack(f">{len(key)}H", *key))
    data = pictures.png(
        80, 80, (b"\0" + row) * 80, depth=depth, colour=colour, before=[transparency]
    )
    result = read_picture(data)
    assert (ON_WHITE in result.warnings) == found
    assert (result.pixels.max() == 255) == found
    assert result.pixels.min() == 0 or depth == 1 or not found


def test_around_the_first_frame_of_a_gif_there_is_nothing() -> None:
    """Browsers show no background colour there."""
    frame = bytearray(encode(Image.new("P", (100, 90)), "GIF"))
    struct.pack_into("<HH", frame, 6, 200, 90)
    result = read_picture(bytes(frame))
    assert (result.pixels[:, :31].max(), result.pixels[:, 33:].min()) == (0, 255)
    assert result.warnings == (ON_WHITE,)


def test_a_palette_png_may_state_more_transparency_than_colours() -> None:
    more = [(b"PLTE", bytes(3)), (b"tRNS", b"\x80" * 300)]
    data = pictures.png(80, 80, (b"\0" + bytes(80)) * 80, colour=3, before=more)
    assert set(np.unique(pixels(data))) == {127}


def test_a_picture_smaller_than_the_network_sees_is_mentioned() -> None:
    result = read_picture(picture("PNG", 63, 200))
    assert result.warnings == ("it is smaller than 64 pixels per side and was enlarged",)
    assert read_picture(picture("PNG", 64, 64)).warnings == ()
    assert (pixels(encode(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG")) == [9, 8, 7]).all()


# --- Limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", pictures.HUGE)
def test_too_many_pixels_are_refused_by_the_header(name: str) -> None:
    error = refusal(pictures.HUGE[name]())
    assert error.reason == Reason.TOO_MANY_PIXELS
    assert re.search(r"\d\d,\d{3} × \d\d,\d{3}.*25 million", str(error))


def test_a_jpeg_counts_as_large_as_it_is_decoded() -> None:
    data = picture("JPEG", 1200, 800)  # decoded as 150 × 100
    assert read_picture(data, limits=Limits(150 * 100 * 8, 150)).width == 1200
    for limits in (Limits(max_side=149), Limits(max_pixels=150 * 100 * 8 - 1)):
        assert re.search("1,200 × 800.*baseline JPEG", str(refusal(data, limits)))


def test_a_jpeg_of_which_all_coefficients_are_held_counts_whole() -> None:
    progressive, baseline = encode(scene(600, 400), "JPEG", progressive=True), picture("JPEG")
    start = baseline.index(b"\xff\xda")  # the first of several scans holds one component alone
    several = baseline[:start] + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + baseline[start + 14 :]
    for data, width, height in ((progressive, 600, 400), (several, 160, 120)):
        for limits in (Limits(max_pixels=width * height - 1), Limits(max_side=width - 1)):
            assert refusal(data, limits).reason == Reason.TOO_MANY_PIXELS
    assert read_picture(progressive, limits=Limits(max_pixels=600 * 400)).width == 600


@pytest.mark.parametrize("name", pictures.FORMATS)
def test_what_follows_a_picture_changes_nothing(name: str) -> None:
    for rest in (b"trailing junk" * 100, bytes(100), b"\n"):
        np.testing.assert_array_equal(pixels(picture(name) + rest), pixels(picture(name)))


def test_the_decoders_own_limits_do_not_hold() -> None:
    data = picture("PNG", 300, 10)
    assert refusal(data, Limits(max_side=299)).reason == Reason.TOO_MANY_PIXELS
    flat = encode(Image.new("1", (9_700, 9_700)), "PNG")  # 94 million: Pillow would warn
    assert read_picture(flat, limits=Limits(max_pixels=100_000_000)).width == 9_700


def test_a_webp_whose_picture_is_larger_than_its_canvas_is_refused() -> None:
    body = pictures.webp_header(64, 64)[8:] + encode(Image.new("RGB", (3000, 2000)), "WEBP")[12:]
    data = b"RIFF" + struct.pack("<I", len(body)) + body
    assert refusal(data, Limits(max_pixels=100_000)).reason == Reason.DAMAGED


@pytest.mark.parametrize("bomb", [pictures.png_text_bomb, pictures.jpeg_of_many_exif_segments])
def test_metadata_bombs_are_never_opened(bomb: Callable[[], bytes]) -> None:
    data = bomb()
    start = time.process_time()
    assert read_picture(data).warnings == ()
    assert time.process_time() - start < 2


@noisy_libraries
def test_odd_metadata_refuse_no_good_picture() -> None:
    png = pictures.with_chunks(
        picture("PNG"),
        *((b"gAMA", b"\0"), (b"iCCP", b"x\0\7"), (b"zTXt", b"k\0\0not compressed")),
        *((b"tIME", b""), (b"acTL", b"\0"), (b"prIv", b"whatever")),
    )
    jpeg = pictures.with_segments(
        picture("JPEG"),
        *((0xE1, b"http://ns.adobe.com/xap/1.0/\0<broken"), (0xE2, b"MPF\0II*\0garbage")),
        *((0xE2, b"ICC_PROFILE\0\1\3short"), (0xED, b"Photoshop 3.0\x008BIM\4\4")),
        (0xE0, b"JFIF\0\7"),
    )
    padded = picture("JPEG")[:-2] + bytes(12) + END + bytes(5000) + END
    colours = [(258, "H", [8, 8, 8]), (262, "H", [2]), (277, "H", [3])]
    odd = [(700, "B", [1] * 50), (34665, "I", [2**31]), (33432, "B", [255] * 9), (282, "H", [])]
    tiff = pictures.tiff(160, 120, scene().tobytes(), tags=[*colours, *odd])
    for data in (png, jpeg, padded, tiff):
        np.testing.assert_allclose(pixels(data), squeezed(scene()), atol=12)
        assert read_picture(data).warnings == ()


# --- What is no picture --------------------------------------------------------------------------


MJPEG_PART = b"--frame\r\nContent-Type: image/jpeg\r\n\r\n"
DEEP = b"\xc1\0\x11\x0c"  # a frame of 12 bits
NOT_A_PICTURE, NOT_ALLOWED = Reason.NOT_A_PICTURE, Reason.FORMAT_NOT_ALLOWED


@pytest.mark.parametrize(
    ("reason", "data", "what"),
    [
        (Reason.EMPTY, b"", "The picture is empty. Send"),
        (NOT_A_PICTURE, b"\xfe", "The file (1 byte) is not a picture;"),
        (NOT_A_PICTURE, b"\n <html><body>404", "HTML"),
        (NOT_A_PICTURE, b'{"error": "not found"}', "JSON"),
        (NOT_A_PICTURE, "Plain wörds".encode(), "text"),
        (NOT_A_PICTURE, b"PK\3\4" + bytes(50), "zip"),
        (NOT_A_PICTURE, b"/9j/4AAQSkZJRgABAQ", "base64"),
        (NOT_A_PICTURE, b"--x\r\nContent-Disposition: form-data", "multipart"),
        (NOT_A_PICTURE, encode(scene(), "PCX"), "JPEG"),
        (NOT_A_PICTURE, MJPEG_PART + picture(), "(JPEG) begins after 37 bytes"),
        (NOT_A_PICTURE, b"\xef\xbb\xbf" + picture("PNG"), "(PNG) begins after 3 bytes"),
        (NOT_ALLOWED, b"\0\0\1\0\1\0\x10\x10", "ICO"),
        (NOT_ALLOWED, encode(scene(), "JPEG2000"), "JPEG 2000"),
        (NOT_ALLOWED, b"<?xml version='1.0'?>\n<svg/>", "SVG"),
        (NOT_ALLOWED, b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "MP4"),
        (NOT_ALLOWED, b"II*\0\x10\0\0\0CR\2\0", "CR2"),
        (NOT_ALLOWED, pictures.tiff(8, 8, bytes(64), tags=[(50706, "B", [1, 4, 0, 0])]), "DNG"),
        (NOT_ALLOWED, pictures.tiff(8, 8, bytes(64), tags=[(259, "H", [50001])]), "WebP compress"),
        (NOT_ALLOWED, pictures.tiff(8, 8, bytes(64), tags=[(258, "H", [7])]), "channels, bits or"),
        (NOT_ALLOWED, encode(scene(mode="LAB"), "TIFF"), "LAB"),
        (NOT_ALLOWED, b"MM\0+\0\x08\0\0", "big-endian BigTIFF"),
        (NOT_ALLOWED, picture("PNG")[:8] + b"\0\0\0\4CgBI\x50\0\x20\2", "CgBI"),
        *(
            (NOT_ALLOWED, picture().replace(b"\xc0\0\x11\x08", frame), "arithmetic-coded JPEG")
            for frame in (b"\xc3\0\x11\x08", b"\xc9\0\x11\x08", b"\xf7\0\x11\x08", DEEP)
        ),
    ],
)
def test_what_is_not_decoded_is_named(reason: Reason, data: bytes, what: str) -> None:
    error = refusal(data)
    assert error.reason == reason
    assert what in str(error)
    assert re.search("(?i)save|send", str(error))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda data: data.decode("utf-8", "replace").encode(), "UTF-8"),
        (lambda data: ("\ufeff" + data.decode("latin-1", "replace")).encode("utf-16-le"), "UTF-16"),
        (lambda data: re.sub(rb"[\r\n\0]", b"", data), "--data-binary"),
        (lambda data: data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"), "binary mode"),
    ],
    ids=["UTF-8", "UTF-16", "curl -d", "FTP"],
)
@pytest.mark.parametrize("name", ["JPEG", "PNG"])
def test_what_was_done_to_a_picture_on_its_way_is_named(
    name: str, change: Callable[[bytes], bytes], what: str
) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (120, 160, 3), np.uint8)
    error = refusal(change(encode(Image.fromarray(noise), name)))
    assert error.reason in (Reason.NOT_A_PICTURE, Reason.DAMAGED)
    assert what in str(error)


def test_heif_is_accepted_with_its_decoder_and_named_without() -> None:
    assert heic_is_installed() == ("HEIC" in accepted_formats())
    for brands, name in ((b"heic\0\0\0\0mif1heic", "HEIC"), (b"mif1\0\0\0\0mif1miaf", "HEIF")):
        error = refusal(b"\0\0\0\x18ftyp" + brands)
        assert error.reason == (Reason.DAMAGED if heic_is_installed() else NOT_ALLOWED)
        assert heic_is_installed() or f"{name}, which is not accepted. Save it" in str(error)


@pytest.mark.skipif(not heic_is_installed(), reason="needs the extra `heic`")
def test_heic_is_decoded_and_turned_once() -> None:
    import pillow_heif

    buffer = io.BytesIO()
    stored = pillow_heif.from_pillow(pictures.STORED_AS[6](scene()))
    stored.save(buffer, quality=95, exif=pictures.exif(6))
    result = read_picture(buffer.getvalue())
    assert (result.format, result.width, result.height) == ("HEIC", 160, 120)
    assert np.abs(result.pixels - squeezed(scene())).mean() < 3


# --- Damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(kinds()))
def test_no_answer_rests_on_pixels_that_were_cut_off(name: str) -> None:
    data = kinds()[name]
    whole = pixels(data)
    cuts = {random.Random(1).randrange(1, len(data)) for _ in range(40)}
    for length in cuts.union(range(max(1, len(data) - 20), len(data))):
        with contextlib.suppress(InvalidImage):
            np.testing.assert_array_equal(pixels(data[:length]), whole, str(length))


JPEGS = {
    f"{mode} {options}": encode(PHOTO.convert(mode), "JPEG", **options)
    for mode in ("RGB", "L", "CMYK")
    for options in ({}, {"progressive": True}, {"restart_marker_rows": 1})
} | {"subsampled": encode(PHOTO, "JPEG", subsampling=2, restart_marker_blocks=4)}


def with_a_hole(data: bytes) -> bytes:
    """The JPEG without some bytes in the middle of its pixels."""
    middle = (data.rindex(b"\xff\xda") + len(data)) // 2
    return data[:middle] + data[middle + 200 :]


@pytest.mark.parametrize("data", JPEGS.values(), ids=JPEGS.keys())
def test_a_jpeg_with_a_hole_is_refused_and_one_without_end_marker_answered(data: bytes) -> None:
    """The end marker says nothing of what came before it."""
    for holed in (with_a_hole(data), data[: len(data) * 9 // 10] + END, data[: len(data) // 3]):
        assert refusal(holed).reason == Reason.DAMAGED
    result = read_picture(data[:-2])
    np.testing.assert_array_equal(result.pixels, read_picture(data).pixels)
    assert result.warnings == ("its end marker is missing, but its pixels are complete",)


@pytest.mark.parametrize(
    ("found", "odd"),
    [(b"JFIF\0\1", b"JFIF\0\2"), (b"\0\x3f\0", b"\0\0\0"), (b"\xff\xd9", bytes(64) + END)],
    ids=["JFIF 2", "no coefficients", "padding"],
)
def test_an_oddity_of_a_jpeg_hides_no_missing_pixels(found: bytes, odd: bytes) -> None:
    data = encode(PHOTO, "JPEG")
    strange = data.replace(found, odd)
    assert strange != data
    np.testing.assert_array_equal(pixels(strange), pixels(data))
    for part in (strange[: len(strange) // 2], with_a_hole(strange)):
        for end in (b"", END, bytes(64)):
            assert refusal(part + end).reason == Reason.DAMAGED


def test_a_progressive_jpeg_without_some_of_its_scans_is_refused() -> None:
    data = encode(PHOTO, "JPEG", progressive=True)
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    without_first = data[: scans[0]] + data[scans[1] :]
    for cut in (data[: scans[-1]], data[: scans[-1]] + END, data[: scans[2]] + END, without_first):
        assert "cut off" in str(refusal(cut))


def test_what_is_cut_off_is_said_to_be() -> None:
    for whole in (picture("AVIF"), kinds()["animated WEBP"], pictures.oddly_subsampled_jpeg()):
        assert read_picture(whole).warnings in ((), ("only the first of several frames was used",))
        for end in (b"", END):
            cut = whole[: len(whole) // 2] + end
            assert "is cut off, or a part of it is missing; send" in str(refusal(cut))


def test_missing_strips_of_a_tiff_and_a_wrong_checksum_of_a_png_are_refused() -> None:
    data, _ = layout("RGB")
    with TiffImageFile(io.BytesIO(data)) as image:
        sizes = image.tag_v2[279]
    place = data.index(struct.pack(f"<{len(sizes)}H", *sizes))
    assert refusal(data[:place] + bytes(2) + data[place + 2 :]).reason == Reason.DAMAGED
    jpeg, _ = layout("RGB", compression="jpeg")
    hole = len(jpeg) // 2  # in one strip of several
    assert refusal(jpeg[:hole] + END + bytes(398) + jpeg[hole + 400 :]).reason == Reason.DAMAGED
    png = bytearray(picture("PNG"))
    png[png.index(b"IDAT") + 40] ^= 1
    assert "checksum" in str(refusal(bytes(png)))
    no_colours = kinds()["palette PNG"].replace(b"PLTE", b"prIv")
    assert refusal(with_right_checksums(no_colours)).reason == Reason.DAMAGED
