"""The pictures of files, folders and zips: found one after the other, and answered as rows.

A row is what is known of one picture, as JSON values, whoever writes it where:

  picture          its name: the path in the folder, or `archive.zip/member`; always valid text
  cat_probability  of the classifier's first class, in [0, 1]
  label            the name of the class
  warnings         what was done to the picture that its owner may not expect
  model_version    the version of the classifier

A picture that could not be used has instead of the probability, the label and the warnings

  error            reason, a word for programs, and detail, a sentence for people
"""

import errno
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

from model.classifier import Classifier
from model.preprocessing import DEFAULT_LIMITS, InvalidImage

Row = dict[str, Any]

# Beside the reasons of InvalidImage: there are no bytes to judge.
UNREADABLE: Final = "unreadable"
TOO_LARGE: Final = "too-large"

# Enough for the largest picture that is decoded, stored uncompressed with four bytes a pixel.
MOST_BYTES: Final = 4 * DEFAULT_LIMITS.max_pixels + 2**20

# Files of these names are taken for pictures, whatever turns out to be in them. The last ones are
# not decoded, or only with an extra: whoever keeps them learns so from their rows.
PICTURE_SUFFIXES: Final = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib"),
        *(".tif", ".tiff", ".avif"),
        *(".heic", ".heif", ".hif", ".jxl", ".jp2"),
    )
)
ZIP_SUFFIX: Final = ".zip"
_ZIP_STARTS = (b"PK\3\4", b"PK\5\6")  # with members, and empty
_JUNK = "__MACOSX"  # beside names that begin with a dot
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # inflated piece by piece: no bombs
_BROKEN_ZIP = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(NotImplementedError, RuntimeError, ValueError, OverflowError, MemoryError),
)
# Errors that will be the same another time. EINVAL is a zip whose offsets lie before its start,
# ENXIO a socket.
_LASTING = frozenset(
    (
        *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.ENXIO),
    )
)


class BadSources(ValueError):
    """Sources that are not taken together; the message says which, why, and what to do."""


class SourceFailed(Exception):
    """A source cannot be read, but may be another time, as after a disk's or a network's error:
    no row is made of it. The message says which, and why."""


class Unreadable(Exception):
    """There are no bytes of a picture; says why, as a row does."""

    def __init__(self, detail: str, reason: str = UNREADABLE) -> None:
        super().__init__(detail, reason)
        self.detail = detail
        self.reason = reason


class Member(NamedTuple):
    """Where a picture lies in a zip."""

    archive: Path
    name: str


# Where a picture is, or its bytes, or why there are none.
Source = Path | Member | bytes | Unreadable


class Found(NamedTuple):
    """A picture's name in its row, and where it is."""

    name: str
    source: Source


def row(classifier: Classifier, name: str, source: Source) -> Row:
    """Answer for one picture; whatever is wrong with it is in the row. Raises SourceFailed."""
    try:
        prediction = classifier.predict(read(source))
    except InvalidImage as error:
        return error_row(classifier.version, name, error.reason, str(error))
    except Unreadable as error:
        return error_row(classifier.version, name, error.reason, error.detail)
    return {
        "picture": name,
        "cat_probability": prediction.cat_probability,
        "label": prediction.label,
        "warnings": list(prediction.warnings),
        "model_version": classifier.version,
    }


def error_row(version: str, name: str, reason: str, detail: str) -> Row:
    """The row of a picture that could not be used."""
    error = {"reason": str(reason), "detail": detail}
    return {"picture": name, "error": error, "model_version": version}


def is_archive(source: str) -> bool:
    """Say whether this is a folder or a zip, and not a picture or nothing at all. Raises
    SourceFailed."""
    try:
        path = Path(source)
        if path.is_file():
            with path.open("rb") as file:
                return file.read(4) in _ZIP_STARTS or _is_zip_name(source)
        return path.is_dir()
    except (OSError, ValueError) as error:
        _lasting(error, source)
        return False


class Pictures:
    """The pictures of files, folders and zips, in the same order every time.

    Held in memory are the names of one folder's files, of those above it, and of one zip's
    members; never a picture. A single folder is left out of the names, and of a single zip only
    its own name is kept; of several, names begin as the sources were given.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        """Raises BadSources where a picture would be found twice; iterating raises SourceFailed."""
        places = sorted((Path(os.path.realpath(source)), source) for source in sources)
        for (above, one), (below, other) in pairwise(places):  # those below follow theirs
            if below.is_relative_to(above):
                raise BadSources(
                    f"{text(other)} lies in {text(one)}, or is the same: its pictures would have "
                    "two rows each. Name only one of them."
                )
        self.skipped = 0  # files that are no pictures by their names, or hidden; so far
        self._sources = sources

    def __iter__(self) -> Iterator[Found]:
        alone = len(self._sources) == 1
        self.skipped = 0
        for source in self._sources:
            path = Path(source)
            if not is_archive(source):
                yield Found(text(source), path)
            elif path.is_dir():
                yield from self._folder(path, PurePosixPath() if alone else PurePosixPath(source))
            else:
                yield from self._zip(path, path.name if alone else source)

    def _folder(self, folder: Path, prefix: PurePosixPath) -> Iterator[Found]:
        try:
            names = self._names(folder)
        except OSError as error:
            why = _lasting(error, folder)
            yield Found(text(str(prefix)), Unreadable(f"The folder cannot be read: {why}."))
            return
        for name in names:
            if name.endswith("/"):
                yield from self._folder(folder / name, prefix / name)
            elif _is_zip_name(name):
                yield from self._zip(folder / name, str(prefix / name))
            else:
                yield Found(text(str(prefix / name)), folder / name)

    def _names(self, folder: Path) -> list[str]:
        """The pictures, zips and folders (with a slash) in a folder, sorted.

        Links to folders are not followed: they may lead in circles.
        """
        names = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_hidden(entry.name):
                    self.skipped += 1
                elif entry.is_dir(follow_symlinks=False):
                    names.append(f"{entry.name}/")
                elif _is_wanted(entry):
                    names.append(entry.name)
                else:
                    self.skipped += 1
        return sorted(names)

    def _zip(self, path: Path, name: str) -> Iterator[Found]:
        try:
            members = _open_zip(path).NameToInfo  # of members with the same name, the last
        except Unreadable as error:
            yield Found(text(name), error)
            return
        for member in members:
            inside = text(f"{name}/{member}")
            if member.endswith("/"):
                continue
            if any(map(_is_hidden, member.split("/"))):
                self.skipped += 1
            elif _is_zip_name(member):
                yield Found(inside, Unreadable("It is a zip within a zip; unpack the outer one."))
            elif _is_picture_name(member):
                yield Found(inside, Member(path, member))
            else:
                self.skipped += 1


def text(name: str) -> str:
    r"""A name as valid Unicode: bytes that are none, which Linux allows, are shown as \xff."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == _JUNK


def _is_wanted(entry: os.DirEntry[str]) -> bool:
    """A picture or a zip by its name, and a file."""
    if not (_is_picture_name(entry.name) or _is_zip_name(entry.name)):
        return False
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:  # a link to nothing, or to itself: its row will say so
        return True


def _is_picture_name(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES


def _is_zip_name(name: str) -> bool:
    return name.lower().endswith(ZIP_SUFFIX)


def read(source: Source) -> bytes:
    """Return the bytes of a picture; raises Unreadable and SourceFailed."""
    match source:
        case bytes():
            data = source
        case Path():
            data = _read_file(source)
        case Member():
            data = _read_member(source)
        case Unreadable():
            raise source
    if len(data) > MOST_BYTES:
        raise _too_large("more")
    return data


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise Unreadable(f"The file cannot be read: {_lasting(error, path)}.") from None


def _read_member(source: Member) -> bytes:
    """Inflate a member, but no more of it than its entry in the archive claims."""
    archive = _open_zip(source.archive)
    info = archive.NameToInfo.get(source.name)
    if info is None:
        raise Unreadable("The member is no longer in the archive.")
    if info.flag_bits & 1:
        raise Unreadable("The member is encrypted; unpack the archive, and give the folder.")
    if info.compress_type not in _ZIP_METHODS:
        raise Unreadable(
            f"The member is compressed by method {info.compress_type}, neither stored nor "
            "deflated; unpack the archive, and give the folder."
        )
    if info.file_size > MOST_BYTES:
        raise _too_large(f"{info.file_size:,} bytes, more")
    try:
        with archive.open(info) as member:
            data = member.read(info.file_size)
    except _BROKEN_ZIP as error:
        why = _lasting(error, source.archive)
        raise Unreadable(f"The member is damaged within the archive: {why}.") from None
    if len(data) < info.file_size:
        raise Unreadable("The member is damaged within the archive: it is cut off.")
    return data


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        status = path.stat()
        return _open_zip_as_it_is(path, status.st_mtime_ns, status.st_size)
    except _BROKEN_ZIP as error:
        raise Unreadable(f"The zip archive cannot be read: {_lasting(error, path)}.") from None


@lru_cache(maxsize=1)  # members are read one archive after the other
def _open_zip_as_it_is(path: Path, _changed: int, _size: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _too_large(how_much: str) -> Unreadable:
    return Unreadable(
        f"The file has {how_much} than the {MOST_BYTES:,} that a picture may have; "
        "save it smaller.",
        TOO_LARGE,
    )


def _lasting(error: Exception, path: Path | str) -> str:
    """Why there are no bytes; raises SourceFailed where there may be some another time."""
    if isinstance(error, OSError) and error.errno not in _LASTING:
        raise SourceFailed(f"{text(str(path))}: {_why(error)}") from error
    return _why(error)


def _why(error: Exception) -> str:
    return text(getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
