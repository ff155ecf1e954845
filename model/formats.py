"""Tell from its first bytes what arrived: a format that is decoded, one that is not, or none.

Names, extensions and content types are never asked: they are claims of the sender.
"""

import codecs
import importlib.util
import re
from enum import StrEnum
from functools import cache


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


_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BMP_HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_HEIF_BRANDS = {b"mif1", b"mif2", b"msf1", b"miaf"}  # of a picture, whatever its codec

# (offset, bytes there, name). Pictures and documents that one could take for a picture.
_OTHER_PICTURES = (
    (0, b"II*\0\x10\0\0\0CR", "Canon camera raw (CR2)"),
    (0, b"IIU\0", "Panasonic camera raw (RW2)"),
    (0, b"IIRO", "Olympus camera raw (ORF)"),
    (0, b"IIRS", "Olympus camera raw (ORF)"),
    (0, b"MMOR", "Olympus camera raw (ORF)"),
    (0, b"FUJIFILMCCD-RAW", "Fujifilm camera raw (RAF)"),
    (0, b"FOVb", "Sigma camera raw (X3F)"),
    (0, b"\0MRM", "Minolta camera raw (MRW)"),
    (0, b"8BPS", "Photoshop (PSD)"),
    (0, b"gimp xcf", "GIMP (XCF)"),
    (0, b"%PDF-", "PDF"),
    (0, b"%!PS", "PostScript (EPS)"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript (EPS)"),
    (0, b"\0\0\1\0", "icon (ICO)"),
    (0, b"\0\0\2\0\0\0\0\0", "Targa (TGA)"),  # where a cursor has its number of pictures
    (0, b"\0\0\2\0", "cursor (CUR)"),
    (0, b"icns", "icon (ICNS)"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"II\xbc\1", "JPEG XR"),
    (0, b"\x8aMNG\r\n\x1a\n", "MNG"),
    (0, b"\x8bJNG\r\n\x1a\n", "JNG"),
    (0, b"DDS ", "DDS"),
    (0, b"qoif", "QOI"),
    (0, b"v/1\1", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"AT&TFORM", "DjVu"),
    (0, b"BPG\xfb", "BPG"),
    (0, b"FLIF", "FLIF"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"\xd7\xcd\xc6\x9a", "WMF"),
    (40, b" EMF", "EMF"),
    (128, b"DICM", "DICOM"),
    (8, b"AVI ", "video (AVI)"),
    (4, b"ftypcrx", "Canon camera raw (CR3)"),
    (4, b"ftyp", "video (MP4, MOV) or related"),
    (0, b"\x1a\x45\xdf\xa3", "video (WebM, Matroska)"),
)
_PNM = re.compile(rb"P[1-7]\s")

_OTHER_FILES = (
    (b"PK\3\4", "a zip archive (or an office document)"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"ID3", "an audio file"),
    (b"OggS", "an audio or video file"),
    (b"RIFF", "an audio file"),
)
_BASE64_PICTURES = (b"/9j/", b"iVBORw0KGgo", b"R0lGOD", b"UklGR", b"data:image/")


# What of the first bytes each format is told by, where they stand behind something else
_STARTS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF89a", "GIF"),
    (b"GIF87a", "GIF"),
)
_SEARCHED = 4096  # bytes in which a picture is looked for
_ENOUGH = 2000  # bytes, among which each of the 256 appears by chance
# The first bytes of a JPEG and of a PNG, read as text of any encoding and written as Unicode
_REPLACED = "\N{REPLACEMENT CHARACTER}"
_READ_AS_TEXT = (
    *("\xff\xd8\xff", 3 * _REPLACED),
    *("\x89PNG", "\N{PER MILLE SIGN}PNG", _REPLACED + "PNG"),
)
_AS_UTF_8 = tuple(each.encode() for each in _READ_AS_TEXT)
_AS_UTF_16 = tuple(("\ufeff" + each).encode("utf-16-le") for each in _READ_AS_TEXT)


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
            Reason.EMPTY, f"No bytes arrived; send the bytes of a {accepted_formats()} picture."
        )
    found = _decoded_format(data)
    if found is not None and (found is not Format.HEIC or heic_is_installed()):
        return found
    other = _heif_name(data) if found is Format.HEIC else _other_picture(data)
    if other is not None:
        raise not_accepted(f"of the format {other}")
    resemblance = _resemblance(data)
    remedy = "" if "send" in resemblance else f"; send the bytes of a {accepted_formats()} picture"
    raise InvalidImage(
        Reason.NOT_A_PICTURE, f"What arrived, {size(data)}, is not a picture{resemblance}{remedy}."
    )


def not_accepted(what: str) -> InvalidImage:
    """Return the refusal of a format; what: as after "The file is"."""
    return InvalidImage(
        Reason.FORMAT_NOT_ALLOWED,
        f"The file is {what}, which is not accepted; "
        f"save it as {accepted_formats()} and send that.",
    )


def damaged(data: bytes, kind: Format, *, cut_off: bool = False) -> InvalidImage:
    """Return the refusal of a picture that cannot be decoded, with what may have happened to it."""
    if happened := mangled(data):
        what = f"is damaged: {happened}"
    elif cut_off:
        what = f"is cut off: its data ends after {size(data)}, in the middle; send the whole file"
    else:
        what = (
            f"of {size(data)} cannot be decoded: it is damaged, or of a variant of {kind} that is"
            " not supported; save it anew and send that"
        )
    return InvalidImage(Reason.DAMAGED, f"The {kind} picture {what}.")


def mangled(data: bytes) -> str | None:
    """Say what was done to a picture on its way, and what to do, where its look tells it."""
    if text := _as_text(data):
        return text
    if len(data) >= _ENOUGH and not any(each in data for each in (b"\r", b"\n", b"\0")):
        return (
            "all its line ends and zeros are gone, as `curl -d` leaves it; send it with"
            " `curl --data-binary @file`"
        )
    line_ends = data.count(b"\n")
    if data.startswith(b"\x89PNG\n") or (line_ends >= 8 and line_ends == data.count(b"\r\n")):
        return "its line ends were changed, as FTP does in text mode; transfer it in binary mode"
    return None


def _as_text(data: bytes) -> str | None:
    if data.startswith(_AS_UTF_8) or data[:_ENOUGH].count(_REPLACED.encode()) > 50:
        return "it was read as text and written as UTF-8; send the bytes of the file, not text"
    if data.startswith(_AS_UTF_16):
        return "it was written as UTF-16 text; send the bytes of the file, not text"
    return None


def _decoded_format(data: bytes) -> Format | None:
    if data.startswith(b"\xff\xd8\xff"):
        return Format.JPEG
    if data.startswith(b"\x89PNG"):
        return Format.PNG
    if data.startswith((b"GIF87a", b"GIF89a")):
        return Format.GIF
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return Format.WEBP
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADER_SIZES:
        return Format.BMP
    if data.startswith(_TIFF_STARTS) and data[8:10] != b"CR":
        return Format.TIFF
    if data[4:8] == b"ftyp":
        return _iso_media_format(data)
    return None


def _iso_media_format(data: bytes) -> Format | None:
    """AVIF and HEIC share a container; the main brand may be a neutral one (mif1)."""
    brands = _brands(data)
    if data[8:12] in _HEIC_BRANDS:
        return Format.HEIC
    if brands & _AVIF_BRANDS:
        return Format.AVIF
    return Format.HEIC if brands & (_HEIC_BRANDS | _HEIF_BRANDS) else None


def _brands(data: bytes) -> set[bytes]:
    box_end = min(int.from_bytes(data[:4], "big"), 256)
    return {data[8:12], *(data[at : at + 4] for at in range(16, box_end, 4))}


def _heif_name(data: bytes) -> str:
    return "HEIC" if _brands(data) & _HEIC_BRANDS else "HEIF"


def _other_picture(data: bytes) -> str | None:
    for offset, magic, name in _OTHER_PICTURES:
        if data.startswith(magic, offset):
            return name
    if _PNM.match(data):
        return "PNM"
    head = data[:2048].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<svg", b"<?xml", b"<!doctype svg", b"<!--")) and b"<svg" in head:
        return "SVG"
    return None


def _resemblance(data: bytes) -> str:
    """Say what the bytes look like, as ' (it looks like …)', or nothing."""
    if data.startswith(_AS_UTF_8 + _AS_UTF_16):
        return f": {_as_text(data)}"
    name = next((name for magic, name in _OTHER_FILES if data.startswith(magic)), None)
    head = data[:2048].lstrip(b"\xef\xbb\xbf \t\r\n")
    if name is None and head.startswith(_BASE64_PICTURES):
        name = "a picture encoded as base64 text"
    elif name is None and head.lower().startswith((b"<!doctype html", b"<html", b"<head")):
        name = "an HTML page"
    elif name is None and head.startswith(b"<"):
        name = "XML or HTML"
    elif name is None and head.startswith((b"{", b"[")):
        name = "JSON"
    elif name is None and data.startswith(b"--") and b"Content-Disposition" in data[:2048]:
        name = "a whole multipart form"
    if name is None:
        for start, picture in _STARTS:
            if (at := data.find(start, 0, _SEARCHED)) > 0:
                return f", but a {picture} begins {size(data[:at])} in: send it from there on"
        name = "text" if _is_text(data[:2048]) else None
    return f" (it looks like {name})" if name else ""


def _is_text(head: bytes) -> bool:
    try:  # incremental: the head may end within a character
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return bool(text) and all(each.isprintable() or each.isspace() for each in text)
