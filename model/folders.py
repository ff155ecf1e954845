"""What lies in a folder or a zip: how training and the archive command both find pictures.

Names are paths within the folder or zip, with slashes. Nothing is opened here but folders: whether
a file of a picture's name holds a picture, reading it tells.
"""

import errno
import os
import stat
import zipfile
from collections.abc import Iterator
from enum import StrEnum, auto
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

# Files of these names are taken for pictures, whatever turns out to be in them. The last ones are
# not decoded, or only with an extra: whoever keeps them learns so when they are read.
PICTURE_SUFFIXES: Final = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib"),
        *(".tif", ".tiff", ".avif"),
        *(".heic", ".heif", ".hif", ".jxl", ".jp2"),
    )
)
# What file managers, network drives and systems leave beside pictures, in lower case; besides,
# every name that begins with a dot.
SYSTEM_NAMES: Final = frozenset(
    (
        *("__macosx", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),
        *("@eadir", "#recycle", "@recycle", "#snapshot", "lost+found"),
        *("$recycle.bin", "system volume information"),
    )
)


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
    stored: str  # a member's name as it stands in the zip; in a folder, `name`
    error: OSError | None = None  # of a broken one


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name, without its path, is left out."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def is_picture_name(name: str) -> bool:
    """Whether a file is a picture by its name."""
    return PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES


def is_zip_name(name: str) -> bool:
    """Whether a file is a zip by its name."""
    return name.lower().endswith(".zip")


def folder_entries(folder: Path, *, follow_links: bool = False) -> Iterator[Entry]:
    """What lies in a folder and its folders, each sorted by name, folders as `name/`.

    Held in memory are the names of one folder and of those above it. Links to files are followed
    always. Links to folders are OTHER, or with `follow_links` entered; one that leads to a folder
    that was entered before, itself or above it, is BROKEN: it might lead in a circle.
    """
    yield from _walk(folder, "", set() if follow_links else None)


def _walk(folder: Path, prefix: str, entered: set[tuple[int, int]] | None) -> Iterator[Entry]:
    """entered: device and number of each folder so far; None where links are not followed."""
    try:
        if entered is not None:
            entered.add(_identity(folder))
        with os.scandir(folder) as found:
            entries = sorted(found, key=_sort_key)
    except OSError as error:
        yield Entry(prefix.rstrip("/") or ".", EntryType.BROKEN, prefix, error)
        return
    for entry in entries:
        name = prefix + entry.name
        try:
            kind = _type_in_folder(entry, entered)
        except OSError as error:
            yield Entry(name, EntryType.BROKEN, name, error)
            continue
        if kind is None:
            yield from _walk(Path(entry.path), f"{name}/", entered)
        else:
            yield Entry(name, kind, name)


def _sort_key(entry: os.DirEntry[str]) -> str:
    return f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name


def _type_in_folder(
    entry: os.DirEntry[str], entered: set[tuple[int, int]] | None
) -> EntryType | None:
    """The type of an entry, None for a folder to enter; raises OSError for a broken one."""
    if is_hidden(entry.name):
        return EntryType.HIDDEN
    if entry.is_dir(follow_symlinks=False):
        return None
    if entry.is_symlink() and entry.is_dir():
        if entered is None:
            return EntryType.OTHER
        if _identity(Path(entry.path)) in entered:
            target = os.path.realpath(entry.path)
            raise OSError(errno.ELOOP, f"links to a folder that is read already, {target}")
        return None
    kind = _type_by_name(entry.name)
    if kind != EntryType.OTHER and not stat.S_ISREG(entry.stat().st_mode):
        return EntryType.OTHER
    return kind


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _type_by_name(name: str) -> EntryType:
    if is_picture_name(name):
        return EntryType.PICTURE
    return EntryType.ZIP if is_zip_name(name) else EntryType.OTHER


def zip_entries(archive: zipfile.ZipFile) -> Iterator[Entry]:
    r"""What lies in a zip, in the zip's own order; of members with the same name, the last.

    Backslashes, which some programs for Windows write in place of slashes, are slashes.
    """
    members: dict[str, str] = {}
    for info in archive.infolist():
        parts = [part for part in info.filename.replace("\\", "/").split("/") if part != "."]
        members["/".join(parts)] = info.filename
    hidden: set[str] = set()
    for name, stored in members.items():
        parts = name.split("/")
        depth = next((i for i, part in enumerate(parts) if is_hidden(part)), None)
        if depth is not None:
            name = "/".join(parts[: depth + 1])  # the folder in place of all that is in it
            if name not in hidden:
                hidden.add(name)
                yield Entry(name, EntryType.HIDDEN, stored)
        elif not name.endswith("/"):
            yield Entry(name, _type_by_name(name), stored)
