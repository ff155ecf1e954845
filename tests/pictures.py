"""Pictures for tests, good and hostile, made in code."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from model.preprocessing import WHOLE, Views

Turn = Callable[[Image.Image], Image.Image]

SIX = Views(  # the whole, the middle and the corners
    (
        *(WHOLE, (0.2, 0.2, 0.8, 0.8), (0.0, 0.0, 0.6, 0.6)),
        *((0.4, 0.0, 1.0, 0.6), (0.0, 0.4, 0.6, 1.0), (0.4, 0.4, 1.0, 1.0)),
    )
)
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF")
ADOBE = b"Adobe\0\x64\0\0\0\0"  # a segment of a JPEG, before the kind of its colours

# What a camera does to the upright picture before it writes the orientation beside it
STORED_AS: dict[int, Turn] = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}


def scene(width: int = 160, height: int = 120, mode: str = "RGB") -> Image.Image:
    """A smooth picture without any symmetry, so that every wrong turn and crop shows."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    channels = (x, y * (1 - 0.4 * x), 0.5 + 0.5 * np.sin(5 * x + 3 * y))
    image = Image.fromarray((np.stack(channels, axis=-1) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((width * 0.1, height * 0.15, width * 0.4, height * 0.4), fill=(250, 220, 30))
    draw.rectangle((width * 0.6, height * 0.7, width * 0.95, height * 0.8), fill=(20, 40, 160))
    return image if mode == "RGB" else image.convert(mode)


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:  # noqa: A002
    """The bytes of the image in that format; lossless where the format can be."""
    usual: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": 95, "subsampling": 0},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 95, "speed": 9, "subsampling": "4:4:4"},
    }
    buffer = io.BytesIO()
    image.save(buffer, format, **(usual.get(format, {}) | options))
    return buffer.getvalue()


def decode(data: bytes) -> Image.Image:
    """What Pillow alone makes of the bytes."""
    return Image.open(io.BytesIO(data))


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return file.getvalue()


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files of these names and bytes into the folder, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def picture(format: str = "JPEG", width: int = 160, height: int = 120) -> bytes:  # noqa: A002
    """An ordinary picture in that format."""
    return encode(scene(width, height), format)


def exif(orientation: int) -> bytes:
    """An EXIF block that holds this orientation."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def turned(orientation: int, format: str = "JPEG", width: int = 160, height: int = 120) -> bytes:  # noqa: A002
    """`scene`, stored as a camera stores it that was held that way."""
    stored = STORED_AS[orientation](scene(width, height))
    return encode(stored, format, exif=exif(orientation))


def see_through(mode: str = "RGBA", width: int = 160, height: int = 120) -> Image.Image:
    """`scene`, opaque at the right, and the less the further to the left."""
    image = scene(width, height, mode)
    ramp = np.linspace(0, 255, width).astype(np.uint8)
    image.putalpha(Image.fromarray(np.tile(ramp, (height, 1))))
    return image


def animation(format: str, frames: int = 3) -> bytes:  # noqa: A002
    """`scene` first, then frames of one colour each."""
    rest = [Image.new("RGB", (160, 120), (i % 256, 0, 90)) for i in range(1, frames)]
    options = {} if format in ("GIF", "TIFF") else {"duration": 100}
    return encode(scene(), format, save_all=True, append_images=rest, **options)


def png(
    width: int,
    height: int,
    rows: bytes,
    *,
    depth: int = 8,
    colour: int = 2,
    before: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG of raw rows, each begun by its filter byte, with other chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), *before, (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def chunk(name: bytes, content: bytes) -> bytes:
    """One chunk of a PNG, with its checksum."""
    checksum = zlib.crc32(name + content)
    return struct.pack(">I4s", len(content), name) + content + struct.pack(">I", checksum)


def with_chunks(data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """The PNG with further chunks after its header."""
    return data[:33] + b"".join(chunk(name, content) for name, content in chunks) + data[33:]


def with_segments(data: bytes, *segments: tuple[int, bytes]) -> bytes:
    """The JPEG with further segments (marker, content) after its start."""
    added = b"".join(
        struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
        for marker, content in segments
    )
    return data[:2] + added + data[2:]


def deep_png(values: NDArray[np.uint16]) -> bytes:
    """A PNG of 16 bits a channel; values: (height, width) grey, or (height, width, 4)."""
    height, width = values.shape[:2]
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    with_filter = np.insert(rows, 0, 0, axis=1).tobytes()
    return png(width, height, with_filter, depth=16, colour=0 if values.ndim == 2 else 6)


TIFF_TYPES = {"B": 1, "b": 2, "H": 3, "I": 4}  # b: text


def tiff(
    width: int,
    height: int,
    pixels: bytes,
    *,
    order: str = "<",
    tags: Sequence[tuple[int, str, Sequence[int]]] = (),
) -> bytes:
    """A TIFF of one uncompressed strip; tags: (tag, type as struct names it, values)."""
    entries: dict[int, tuple[str, Sequence[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [8]),
        259: ("H", [1]),
        262: ("H", [1]),
        273: ("I", [8]),
        277: ("H", [1]),
        278: ("I", [height]),
        279: ("I", [len(pixels)]),
    }
    entries |= {tag: (kind, values) for tag, kind, values in tags}
    start = 8 + len(pixels) + len(pixels) % 2
    after = start + 2 + 12 * len(entries) + 4
    directory, values_after = b"", b""
    for tag, (kind, values) in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}{kind}", *values)
        directory += struct.pack(f"{order}HHI", tag, TIFF_TYPES[kind], len(values))
        if len(packed) > 4:
            directory += struct.pack(f"{order}I", after + len(values_after))
            values_after += packed
        else:
            directory += packed.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}I", start) + pixels.ljust(start - 8, b"\0")
    count = struct.pack(f"{order}H", len(entries))
    return head + count + directory + bytes(4) + values_after


def oddly_subsampled_jpeg() -> bytes:
    """A JPEG whose third component has four times the samples of the others; colours are wrong."""
    data = bytearray(encode(scene(160, 128), "JPEG", keep_rgb=True))
    frame = data.index(b"\xff\xc0")
    struct.pack_into(">H", data, frame + 7, 320)
    data[frame + 17] = 0x22
    return bytes(data)


def webp_header(width: int = 16_384, height: int = 16_384) -> bytes:
    """A WebP header alone, of a canvas that a decoder would allocate at once."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


def resized(data: bytes, before: bytes | int, form: str, width: int, height: int) -> bytes:
    """The picture with another size in its header; before: what stands before it, or where."""
    changed = bytearray(data)
    at = before if isinstance(before, int) else data.index(before) + len(before)
    struct.pack_into(form, changed, at, width, height)
    return bytes(changed)


HUGE: dict[str, Callable[[], bytes]] = {  # small files whose headers promise too many pixels
    "JPEG": lambda: resized(picture("JPEG"), b"\xff\xc0\0\x11\x08", ">HH", 65_500, 65_500),
    "PNG": lambda: png(50_000, 50_000, b"\0" * 100, depth=1, colour=0),
    "WebP": webp_header,
    "GIF": lambda: resized(encode(Image.new("P", (1, 1)), "GIF"), 6, "<HH", 65_535, 65_535),
    "BMP": lambda: resized(picture("BMP"), 18, "<ii", 60_000, 60_000),
    "TIFF": lambda: tiff(60_000, 60_000, b"\0" * 100),
    "AVIF": lambda: resized(picture("AVIF"), b"ispe\0\0\0\0", ">II", 16_000, 16_000),
}


def gif_of_many_frames(frames: int = 300_000) -> bytes:
    """A GIF of one pixel and as many frames as wanted, each of a few bytes."""
    single = encode(Image.new("P", (1, 1)), "GIF")
    start = single.index(b",")
    return single[:start] + single[start:-1] * frames + b";"


def png_text_bomb() -> bytes:
    """A good PNG with compressed text and a profile that inflate enormously."""
    packed = zlib.compress(bytes(60_000_000), 9)
    texts = ((b"zTXt", b"Comment\0\0" + packed), (b"iTXt", b"Title\0\1\0\0\0" + packed))
    return with_chunks(picture("PNG"), *texts, (b"iCCP", b"profile\0\0" + packed))


def jpeg_of_many_exif_segments() -> bytes:
    """A good JPEG with EXIF in tiny pieces; a reader that joins them one by one takes for ever."""
    return with_segments(picture("JPEG"), *[(0xE1, b"Exif\0\0" + bytes(60))] * 50_000)


@cache
def kinds() -> dict[str, bytes]:
    """`scene`, 160 × 120, in every format, mode and compression that is read in its own way."""
    grey = np.asarray(scene(mode="L"))
    inverted = (65535 - grey.astype(">u2") * 257).tobytes()
    white_is_0 = [(258, "H", [16]), (262, "H", [0])]
    few_colours = scene().quantize(32)
    flat = few_colours.convert("RGB")
    runs = struct.pack("<IIIIiiHHIIIIII", 0, 0, 1078, 40, 64, 64, 1, 8, 1, 0, 0, 0, 0, 0)
    modes = {"PNG": ["1", "L"], "TIFF": ["1", "L", "CMYK", "YCbCr"]}
    modes |= {"JPEG": ["L", "CMYK"], "BMP": ["1", "L"]}
    alpha = {"PNG": ["RGBA", "LA"], "TIFF": ["RGBA", "LA"], "WEBP": ["RGBA"], "AVIF": ["RGBA"]}
    compressions = ("tiff_lzw", "tiff_deflate", "packbits", "jpeg", "lzma", "zstd")
    return {
        **{name: picture(name) for name in FORMATS},
        **{f"{m} {name}": encode(scene(mode=m), name) for name in modes for m in modes[name]},
        **{f"{m} {name}": encode(see_through(m), name) for name in alpha for m in alpha[name]},
        **{f"TIFF {each}": encode(scene(), "TIFF", compression=each) for each in compressions},
        "TIFF group4": encode(scene(mode="1"), "TIFF", compression="group4"),
        "big TIFF": encode(scene(), "TIFF", big_tiff=True),
        "progressive JPEG": encode(scene(), "JPEG", progressive=True),
        # says that its inks are luma and chroma
        "YCCK JPEG": encode(scene(mode="CMYK"), "JPEG").replace(ADOBE + b"\0", ADOBE + b"\2"),
        "turned JPEG": turned(6),
        "MPO": encode(scene(), "MPO", save_all=True, append_images=[Image.new("RGB", (160, 120))]),
        "lossy WebP": encode(scene(), "WEBP", lossless=False),
        "lossy RGBA WebP": encode(see_through(), "WEBP", lossless=False),
        **{f"animated {name}": animation(name) for name in ("GIF", "PNG", "WEBP", "AVIF", "TIFF")},
        "palette PNG": encode(few_colours, "PNG"),
        "palette BMP": encode(few_colours, "BMP"),
        "see-through palette PNG": encode(few_colours, "PNG", transparency=bytes(range(200, 232))),
        "see-through GIF": encode(few_colours, "GIF", transparency=5, disposal=2),
        "see-through grey PNG": encode(scene(mode="L"), "PNG", transparency=100),
        "see-through colour PNG": encode(flat, "PNG", transparency=flat.getpixel((0, 0))),
        "16-bit PNG": deep_png(grey.astype(np.uint16) * 257),
        "16-bit RGBA PNG": deep_png(np.asarray(see_through()).astype(np.uint16) * 257),
        "16-bit TIFF": tiff(160, 120, inverted, order=">", tags=white_is_0),
        "BMP of runs": b"BM" + runs + bytes(range(256)) * 4 + b"\x40\x07\0\0" * 64 + b"\0\1",
    }
