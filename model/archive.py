"""The pictures of files, folders and zips: found one after the other, and answered as rows.

Training finds its pictures here too. Names are paths within the folder or zip, with slashes. Only
folders are opened to find them: whether a file of a picture's name holds one, reading it tells.

A row has JSON values: `picture`, the name, as valid text; then either `cat_probability`, `label`
and `warnings`, or `error` with `reason`, for programs, and `detail`, for people; and
`model_version`. The bytes are read here. Workers look into them, whose program is
`python -m model.archive`.
"""

import asyncio
import errno
import os
import stat
import struct
import sys
import zlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum, auto
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

from model.machine import cores, memory_bytes
from model.worker import Handle, Job, Reply, serve
from model.workers import LEAST_SHARE_BYTES, MOST_SHARE_BYTES, JobRefused, Workers

Row = dict[str, Any]

# Files of these names are taken for pictures, whatever turns out to be in them. The last ones are
# not decoded, or only with an extra: whoever keeps them learns so when they are read.
PICTURE_SUFFIXES: Final = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib"),
        *(".tif", ".tiff", ".avif", ".heic", ".heif", ".hif", ".jxl", ".jp2"),
    )
)
# What file managers, network drives and systems leave beside pictures, in lower case; besides,
# every name that begins with a dot.
SYSTEM_NAMES: Final = frozenset(
    (
        *("__macosx", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),
        *("@eadir", "#recycle", "@recycle", "#snapshot", "lost+found"),
        *("$recycle.bin", "system volume information", "icon\r", "picasa.ini"),
    )
)
STANDARD_INPUT: Final = Path("-")
MOST_BYTES: Final = 4 * 25_000_000 + 2**20  # the most pixels, stored with four bytes each, and more
READ_AHEAD: Final = 4  # pictures in memory for each worker, so that none waits for a disk
ROWS_AHEAD: Final = 16  # rows for each worker that wait for an earlier picture's

# What opening and reading raises, of a file or, most of it, of a broken zip.
_BROKEN = (
    *(OSError, ValueError, BadZipFile, zlib.error, struct.error, EOFError, LookupError),
    *(RuntimeError, ArithmeticError, MemoryError),
)
# Errors that will be the same another time. EINVAL: a zip's offsets lie before its start; ENXIO: a
# socket.
_LASTING = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}
_LASTING |= {errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.ENXIO}


class EntryType(StrEnum):
    """What an entry is, by its name and by what the file system says of it."""

    PICTURE = auto()
    ZIP = auto()
    OTHER = auto()  # a note, a sidecar, a film, a device, a linked folder that is not followed
    HIDDEN = auto()  # of a hidden or system folder the folder alone, once
    BROKEN = auto()  # a folder that cannot be read, a link to nothing or in a circle


class Entry(NamedTuple):
    """One thing in a folder or zip."""

    name: str
    type: EntryType
    stored: str = ""  # a member's name as it stands in the zip
    error: OSError | None = None  # of a broken one


def _type_by_name(name: str) -> EntryType:
    """name: of a file or folder, without its path."""
    lower = name.lower()
    if lower.startswith(".") or lower in SYSTEM_NAMES:
        return EntryType.HIDDEN
    if PurePosixPath(lower).suffix in PICTURE_SUFFIXES:
        return EntryType.PICTURE
    return EntryType.ZIP if lower.endswith(".zip") else EntryType.OTHER


def folder_entries(folder: Path, *, follow_links: bool = False) -> Iterator[Entry]:
    """What lies in a folder and its folders, each sorted by name, folders as `name/`.

    Held in memory are the names of one folder and of those above it. Links to files are followed
    always. Links to folders are OTHER, or with `follow_links` entered; one that leads in a circle,
    to a folder above it, is BROKEN. So that links to and fro end, one within a linked folder is
    BROKEN too where that folder has led to the same place before.
    """

    def walk(folder: Path, prefix: str, entered: set[str], in_link: bool) -> Iterator[Entry]:
        entered.add(os.path.realpath(folder))
        try:
            with os.scandir(folder) as found:
                entries = sorted(
                    found, key=lambda each: each.name + "/" * each.is_dir(follow_symlinks=False)
                )
        except OSError as error:
            yield Entry(prefix.rstrip("/") or ".", EntryType.BROKEN, error=error)
            return
        for entry in entries:
            name = prefix + entry.name
            try:
                kind = _type_in_folder(entry, entered if follow_links else None)
            except OSError as error:
                yield Entry(name, EntryType.BROKEN, error=error)
                continue
            if kind:
                yield Entry(name, kind)
            else:
                below = entered if in_link else {*entered}
                inside = in_link or entry.is_symlink()
                yield from walk(Path(entry.path), f"{name}/", below, inside)

    return walk(folder, "", set(), False)


def _type_in_folder(entry: os.DirEntry[str], entered: set[str] | None) -> EntryType | None:
    """The type of an entry, None for a folder to enter; raises OSError for a broken one.

    entered: real paths that a link may not lead to; None where links are not followed.
    """
    kind = _type_by_name(entry.name)
    if kind is EntryType.HIDDEN:
        return kind
    if entry.is_dir():
        if not entry.is_symlink():
            return None
        if entered is None:
            return EntryType.OTHER
        if (target := os.path.realpath(entry.path)) in entered:
            why = "links to a folder that it lies in, or that is read already"
            raise OSError(errno.ELOOP, f"{why}, {target}")
        return None
    if kind is not EntryType.OTHER and not stat.S_ISREG(entry.stat().st_mode):
        return EntryType.OTHER
    return kind


def zip_entries(archive: ZipFile) -> Iterator[Entry]:
    r"""What lies in a zip, in the zip's own order; of members with the same name, the last.

    Backslashes, which some programs for Windows write in place of slashes, are slashes.
    """
    members: dict[str, str] = {}
    for info in archive.infolist():
        parts = [part for part in info.filename.replace("\\", "/").split("/") if part != "."]
        members["/".join(parts)] = info.filename
    hidden: set[str] = set()
    for name, stored in members.items():
        *folders, last = name.split("/")
        types = [_type_by_name(part) for part in (*folders, last)]
        if EntryType.HIDDEN in types:
            name = "/".join([*folders, last][: types.index(EntryType.HIDDEN) + 1])
            if name not in hidden:  # the folder in place of all that is in it
                hidden.add(name)
                yield Entry(name, EntryType.HIDDEN, stored)
        elif last:
            yield Entry(name, types[-1], stored)


class Refused(Exception):
    """What keeps a command from its work; the message says which file or argument, what is wrong
    with it, and what to do."""


class Unreadable(Exception):
    """There are no bytes of a picture; its arguments are the reason and the detail of its row."""


class Found(NamedTuple):
    """A picture's name in its row, and what gives its bytes; it raises Unreadable and Refused."""

    name: str
    read: Callable[[], bytes]


class Pictures:
    """The pictures of files, folders and zips, in the same order every time.

    Held in memory are the names of one folder's files, of those above it, and of one zip's
    members; never a picture. A single folder is left out of the names, and of a single zip only
    its own name is kept; of several, names begin as the sources were given.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        """Raises Refused, as iterating does; also where a folder's picture would be found twice."""
        self.are_files = not any(map(_is_archive, sources))
        self.skipped = 0  # files that are no pictures by their names, or hidden; so far
        self._sources = sources
        checked = [] if self.are_files else sources
        places = sorted((Path(os.path.realpath(source)), source) for source in checked)
        for (above, one), (below, other) in pairwise(places):  # those below follow theirs
            if below.is_relative_to(above):
                both = f"{text(other)} is in {text(one)}, or is the same"
                raise Refused(f"{both}: each picture would get two rows. Name only one of them.")

    def __iter__(self) -> Iterator[Found]:
        alone = len(self._sources) == 1
        self.skipped = 0
        for source in self._sources:
            path = STANDARD_INPUT if source == str(STANDARD_INPUT) else Path(source).absolute()
            if not _is_archive(source):
                yield Found(text(source), partial(read, path))
            elif path.is_dir():
                yield from self._folder(path, PurePosixPath() if alone else PurePosixPath(source))
            else:
                yield from self._zip(path, path.name if alone else source)

    def _folder(self, folder: Path, prefix: PurePosixPath) -> Iterator[Found]:
        for entry in folder_entries(folder):
            yield from self._entry(entry, str(prefix / entry.name), folder / entry.name)

    def _zip(self, path: Path, name: str) -> Iterator[Found]:
        try:
            archive = _open_zip(path)
        except _BROKEN as error:
            yield _unreadable(name, f"The zip cannot be read: {_why(error, path)}.")
            return
        for entry in zip_entries(archive):
            yield from self._entry(entry, f"{name}/{entry.name}", path, entry.stored)

    def _entry(self, entry: Entry, name: str, path: Path, member: str = "") -> Iterator[Found]:
        if entry.error:
            yield _unreadable(name, f"It cannot be read: {_why(entry.error, path)}.")
        elif entry.type is EntryType.PICTURE:
            yield Found(text(name), partial(read, path, member))
        elif entry.type is not EntryType.ZIP:
            self.skipped += 1
        elif member:
            yield _unreadable(name, "It is a zip inside a zip; unpack the outer one.")
        else:
            yield from self._zip(path, name)


def _unreadable(name: str, why: str) -> Found:
    return Found(text(name), partial(raise_unreadable, why))


def _is_archive(source: str) -> bool:
    is_zip = source.lower().endswith(".zip")
    return is_zip or os.path.isdir(source)  # noqa: PTH112 - this one never raises


def text(name: str) -> str:
    r"""A name as valid Unicode: bytes that are none, which Linux allows, are shown as \xff."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def printable(message: str) -> str:
    """A message, or a name in it, as valid Unicode on one line, whatever is in it."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text(message))


def read(path: Path, member: str = "") -> bytes:
    """Return the bytes of a picture: a file, or a member of a zip by its name there; raises
    Unreadable, and Refused for a broken disk."""
    what = "member" if member else "file"
    try:
        data = _read_member(path, member) if member else _read_file(path)
    except _BROKEN as error:
        raise Unreadable("unreadable", f"The {what} cannot be read: {_why(error, path)}.") from None
    if len(data) > MOST_BYTES:
        most = f"more than {MOST_BYTES:,} bytes, the limit for a picture"
        raise Unreadable("too-large", f"The {what} has {most}; save it smaller.")
    return data


def raise_unreadable(why: str) -> bytes:
    """Raise Unreadable where there are no bytes to read."""
    raise Unreadable("unreadable", why)


def _read_file(path: Path) -> bytes:
    if path != STANDARD_INPUT:
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1)
    if sys.stdin is None:
        raise Refused("Standard input is closed; pipe a picture into the command.")
    return sys.stdin.buffer.read(MOST_BYTES + 1)


def _read_member(path: Path, name: str) -> bytes:
    """Inflate a member, but no more of it than its entry in the archive claims."""
    archive = _open_zip(path)
    info = archive.getinfo(name)
    what = "it is encrypted" if info.flag_bits & 1 else ""
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):  # others may be bombs
        what = f"its compression method {info.compress_type} is not supported"
    if what:
        raise NotImplementedError(f"{what}; unpack it, and give the folder")
    size = min(info.file_size, MOST_BYTES + 1)
    with archive.open(info) as file:
        data = file.read(size)
    if len(data) < size:
        raise EOFError("it is cut off")
    return data


@lru_cache(maxsize=8)  # members are read one archive after the other, or from a few in turn
def _open_zip(path: Path) -> ZipFile:
    return ZipFile(path)


def _why(error: Exception, path: Path) -> str:
    """Why there are no bytes. Raises Refused where there may be some another time, as after a
    disk's or a network's error: no row is made of that."""
    why = text(getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
    if isinstance(error, OSError) and error.errno not in _LASTING:
        where = f"{text(str(path))} cannot be read: {why}."
        raise Refused(f"{where} Repeat the command when it can be read.") from error
    return why


def workers_for(weights: str | os.PathLike[str], most: int = sys.maxsize) -> Workers:
    """Workers that answer with these weights, not started yet: one per core, fewer if memory is
    short, and no more than `most`."""
    memory = memory_bytes() * 3 // 4
    count = max(1, min(cores(), memory // LEAST_SHARE_BYTES, most))
    share = min(memory // count, MOST_SHARE_BYTES)
    return Workers("model.archive", [str(Path(weights).resolve())], count=count, memory_bytes=share)


async def answers(workers: Workers, pictures: Iterable[Found]) -> AsyncGenerator[Row, None]:
    """Yield a row for each picture, in their order; pictures are taken only as they are needed.

    Raises Refused.
    """
    most = READ_AHEAD * workers.count
    room, readers = asyncio.Semaphore(most), ThreadPoolExecutor(most)
    under_way: deque[asyncio.Task[Row]] = deque()
    version = workers.description["version"]

    async def answer(found: Found) -> Row:
        try:
            async with room:
                data = await asyncio.get_running_loop().run_in_executor(readers, found.read)
                head = (await workers.submit({}, data, quick=True).reply).head
            if "fault" in head:
                raise Unreadable("internal-error", head["fault"].splitlines()[-1])
        except Unreadable as error:
            head = error_row(version, *error.args)
        except JobRefused as refused:
            head = error_row(version, refused.end, f"The picture {refused}")
        head.pop("seconds", None)
        return {"picture": found.name, **head}

    try:
        for found in pictures:
            if len(under_way) >= ROWS_AHEAD * workers.count:
                yield await under_way.popleft()
            under_way.append(asyncio.create_task(answer(found)))
        while under_way:
            yield await under_way.popleft()
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        readers.shutdown(wait=False, cancel_futures=True)


def error_row(version: str, reason: str, detail: str) -> Row:
    """The row of a picture without an answer, but for its name."""
    return {"error": {"reason": reason, "detail": detail}, "model_version": version}


def load(weights: str) -> tuple[dict[str, Any], Handle]:
    """Load an artifact, and what decodes pictures. Raises CannotLoad."""
    # Not at the top: the process that reads and writes needs neither NumPy nor Pillow.
    from model.classifier import Classifier
    from model.preprocessing import InvalidImage, preload

    classifier = Classifier.load(weights)
    preload()
    version = classifier.version

    def answer(job: Job) -> Reply:
        try:
            found = classifier.predict(job.body)
        except InvalidImage as error:
            return Reply(error_row(version, error.reason, str(error)))
        values = {"cat_probability": found.cat_probability, "label": found.label}
        return Reply({**values, "warnings": list(found.warnings), "model_version": version})

    def handle(jobs: Sequence[Job]) -> list[Reply]:
        # One by one, though together they would take less time: the last digits depend on which
        # ones are together, and an interrupted output ends up as if nothing had happened.
        return [answer(job) for job in jobs]

    return {"version": version, "class_names": classifier.class_names}, handle


if __name__ == "__main__":
    serve(load)
