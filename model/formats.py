"""Recognise a file's format from its first bytes, and say why a picture is refused.

Names, extensions and content types are never asked: they are claims of the sender.
"""

import codecs
import importlib.util
import re
from collections.abc import Iterable
from enum import StrEnum
from functools import cache
from typing import Final


class Reason(StrEnum):
    """Why a picture was refused; the values are stable, for programs."""

    EMPTY = "empty"
    NOT_A_PICTURE = "not-a-picture"
    FORMAT_NOT_ALLOWED = "format-not-allowed"
    DAMAGED = "damaged"
    TOO_MANY_PIXELS = "too-many-pixels"


class InvalidImage(ValueError):
    """The bytes cannot be used as a picture; the message says what arrived and what to do."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Format(StrEnum):
    """The formats that are decoded. The values are the names shown to people."""

    JPEG = "JPEG"
    PNG = "PNG"
    WEBP = "WebP"
    GIF = "GIF"
    BMP = "BMP"
    TIFF = "TIFF"
    AVIF = "AVIF"
    HEIC = "HEIC"


_SPACE: Final = rb"[\xef\xbb\xbf\s]*"  # with a byte order mark
# What files begin with: a pattern, and a format that is decoded or the name of one that is not. The
# first that matches counts.
_SIGNATURES: Final = (
    (rb"\xff\xd8\xff", Format.JPEG),
    (rb"\x89PNG.{8}CgBI", "CgBI (a PNG optimised for iOS)"),
    (rb"\x89PNG", Format.PNG),
    (rb"GIF8[79]a", Format.GIF),
    (rb"RIFF....WEBP", Format.WEBP),
    (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", Format.BMP),  # size of a header
    (rb"II\*\0....CR|....ftypcrx", "Canon camera raw (CR2, CR3)"),
    (rb"MM\0\+", "big-endian BigTIFF"),  # which Pillow takes for a TIFF
    (rb"II[*+]\0|MM\0\*", Format.TIFF),
    (rb"II(U\0|R[OS])|MMOR|FUJIFILMCCD-RAW|FOVb|\0MRM", "camera raw (such as RW2, ORF or RAF)"),
    (rb"8BPS|gimp xcf", "Photoshop (PSD) or GIMP (XCF)"),
    (rb"%PDF-|%!PS|\xc5\xd0\xd3\xc6", "PDF or PostScript (EPS)"),
    (rb"\0\0\x02\0\0\0\0\0", "Targa (TGA)"),  # where a cursor has its number of pictures
    (rb"\0\0[\x01\x02]\0|icns", "icon or cursor (ICO, CUR, ICNS)"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "JPEG XL"),
    (
        rb"II\xbc\x01|\x8bJNG\r\n|\x8aMNG\r\n|BPG\xfb|FLIF|qoif",
        "JPEG XR, JNG, MNG, BPG, FLIF or QOI",
    ),
    (rb"DDS |v/1\x01|#\?RADIANCE|AT&TFORM", "DDS, OpenEXR, Radiance or DjVu"),
    (rb"SIMPLE  =|.{128}DICM|\xd7\xcd\xc6\x9a|.{40} EMF", "FITS, DICOM, WMF or EMF"),
    (rb".{8}AVI |....ftyp|\x1a\x45\xdf\xa3", "video (such as MP4, MOV, AVI or WebM) or related"),
    (rb"P[1-7]\s", "PNM"),
    (rb"(?i)%s<(svg|(\?xml|!doctype svg|!--).{0,2000}<svg)" % _SPACE, "SVG"),
)
# What else is sent by mistake
_OTHER_FILES: Final = (
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", "an archive (zip, gzip, 7z, RAR) or office document"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (rb"\x7fELF|MZ", "a program"),
    (rb"ID3|RIFF|OggS", "an audio or video file"),
    (
        rb"%s(/9j/|iVBORw0KGgo|R0lGOD|UklGR|data:image/)" % _SPACE,
        "a picture encoded as base64 text",
    ),
    (rb"%s<" % _SPACE, "HTML or XML"),
    (rb"%s[{\[]" % _SPACE, "JSON"),
    (rb"--.{0,2000}Content-Disposition", "a whole multipart form"),
)
_AVIF_BRANDS: Final = {b"avif", b"avis"}
_HEIC_BRANDS: Final = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_HEIF_BRANDS: Final = {b"mif1", b"mif2", b"msf1", b"miaf"}  # of a picture, whatever its codec
_PICTURE_LATER: Final = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<GIF>GIF8[79]a)|"
    rb"(?P<WebP>RIFF....WEBP)|(?P<TIFF>II\*\0|MM\0\*)|(?P<AVIF>....ftypavif)",
    re.DOTALL,
)
_SEARCHED: Final = 4096  # bytes in which a picture is looked for
_ENOUGH: Final = 2000  # bytes, among which each of the 256 appears by chance
# The first bytes of a JPEG and of a PNG, read as text of any encoding and written as Unicode
_REPLACED: Final = "\N{REPLACEMENT CHARACTER}"
_READ_AS_TEXT: Final = (
    *("\xff\xd8\xff", 3 * _REPLACED),
    *("\x89PNG", "\N{PER MILLE SIGN}PNG", _REPLACED + "PNG"),
)
_AS_UTF_8: Final = tuple(each.encode() for each in _READ_AS_TEXT)
_AS_UTF_16: Final = tuple(("\ufeff" + each).encode("utf-16-le") for each in _READ_AS_TEXT)


@cache  # a process that may open no files cannot look again
def heic_is_installed() -> bool:
    """Say whether the optional decoder for HEIC (pillow-heif) is there."""
    return importlib.util.find_spec("pillow_heif") is not None


def accepted_formats() -> str:
    """Name the accepted formats as in a sentence, such as 'JPEG, PNG or WebP'."""
    names = [each for each in Format if each is not Format.HEIC or heic_is_installed()]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def size(data: bytes) -> str:
    """Say how many bytes these are, in words."""
    return f"{len(data):,} byte{'' if len(data) == 1 else 's'}"


def recognise(data: bytes) -> Format:
    """Return the format that the first bytes of `data` announce.

    Raises InvalidImage: EMPTY, FORMAT_NOT_ALLOWED for a format that is known but not decoded,
    NOT_A_PICTURE for everything else, saying what it looks like where that can be told.
    """
    if not data:
        raise InvalidImage(
            Reason.EMPTY, f"The picture is empty. Send a {accepted_formats()} picture."
        )
    found = _first_match(_SIGNATURES, data)
    if data[4:8] == b"ftyp":
        found = _iso_media_format(data) or found
    if isinstance(found, Format):
        if len(data) > _stated_size(found, data) and transfer_damage(data):
            raise damaged(data, found)  # its decoder would answer from shifted pixels
        return found
    if found:
        raise not_accepted(f"of the format {found}")
    resemblance = _resemblance(data)
    remedy = "" if "send" in resemblance else f"; send the bytes of a {accepted_formats()} picture"
    raise InvalidImage(
        Reason.NOT_A_PICTURE, f"The file ({size(data)}) is not a picture{resemblance}{remedy}."
    )


def _stated_size(kind: Format, data: bytes) -> int:
    """Return how many bytes a BMP, WebP, AVIF or HEIC says that it has; of others, what it has."""
    if kind is Format.BMP:
        return int.from_bytes(data[2:6], "little")
    if kind is Format.WEBP:
        return int.from_bytes(data[4:8], "little") + 8
    end = 0 if kind in (Format.AVIF, Format.HEIC) else len(data)
    while end < len(data):
        box = int.from_bytes(data[end : end + 4], "big")
        end = end + box if box >= 8 else len(data)
    return end


def not_accepted(what: str) -> InvalidImage:
    """Return the refusal of a format; what: as after "The file is"."""
    return InvalidImage(
        Reason.FORMAT_NOT_ALLOWED,
        f"The file is {what}, which is not accepted. Save it as {accepted_formats()}.",
    )


def damaged(data: bytes, kind: Format, *, cut_off: bool = False) -> InvalidImage:
    """Return the refusal of a picture that cannot be decoded, with what may have happened to it."""
    if happened := transfer_damage(data):
        what = f"is damaged: {happened}"
    elif cut_off or (kind is not Format.BMP and len(data) < _stated_size(kind, data)):
        what = f"of {size(data)} is cut off, or a part of it is missing; send the whole file"
    else:
        what = (
            f"of {size(data)} cannot be decoded. It is damaged, or uses an unsupported variant of "
            f"{kind}; save it again"
        )
    return InvalidImage(Reason.DAMAGED, f"The {kind} picture {what}.")


def transfer_damage(data: bytes) -> str | None:
    """Say what was done to a picture on its way, and what to do, where its look tells it."""
    if text := _as_text(data):
        return text
    if len(data) >= _ENOUGH and not any(each in data for each in (b"\r", b"\n", b"\0")):
        return (
            "its line ends and zero bytes are missing, as after `curl -d`; use "
            "`curl --data-binary @file`"
        )
    line_ends = data.count(b"\n")
    if data.startswith(b"\x89PNG\n") or (line_ends >= 8 and line_ends == data.count(b"\r\n")):
        return "its line ends were changed, as FTP text mode does; transfer it in binary mode"
    return None


def _as_text(data: bytes) -> str | None:
    if data.startswith(_AS_UTF_8) or data[:_ENOUGH].count(_REPLACED.encode()) > 50:
        return "it was converted to UTF-8 text; send the file's bytes, not text"
    if data.startswith(_AS_UTF_16):
        return "it was converted to UTF-16 text; send the file's bytes, not text"
    return None


def _first_match(signatures: Iterable[tuple[bytes, str]], data: bytes) -> str | None:
    matches = (name for pattern, name in signatures if re.match(pattern, data, re.DOTALL))
    return next(matches, None)


def _iso_media_format(data: bytes) -> Format | str | None:
    """AVIF and HEIC share a container; the main brand may be a neutral one (mif1)."""
    end = min(int.from_bytes(data[:4], "big"), 256)
    main = data[8:12]
    brands = {main, *(data[at : at + 4] for at in range(16, end, 4))}
    if main not in _HEIC_BRANDS and brands & _AVIF_BRANDS:
        return Format.AVIF
    if not brands & (_HEIC_BRANDS | _HEIF_BRANDS):
        return None
    if heic_is_installed():
        return Format.HEIC
    return "HEIC" if brands & _HEIC_BRANDS else "HEIF"


def _resemblance(data: bytes) -> str:
    """Say what the bytes look like, as ' (it looks like …)', or nothing."""
    if data.startswith(_AS_UTF_8 + _AS_UTF_16):
        return f": {_as_text(data)}"
    name = _first_match(_OTHER_FILES, data[:2048])
    if name is None and (later := _PICTURE_LATER.search(data, 1, _SEARCHED)):
        before = size(data[: later.start()])
        return f", but a picture ({later.lastgroup}) begins after {before}: send it without these"
    if name is None and _is_text(data[:2048]):
        name = "text"
    return f" (it looks like {name})" if name else ""


def _is_text(head: bytes) -> bool:
    try:  # incremental: the head may end within a character
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return bool(text) and all(each.isprintable() or each.isspace() for each in text)
