"""Labelled pictures from files: the course's HDF5, a folder or a zip of pictures by class.

    mydata/cat/anything.jpg            the label is the name of the folder, at whatever depth it
    mydata/non-cat/anything.png        lies, as long as there is one pair of such folders

Pictures are decoded by `model.preprocessing.read_picture`, the function that serving calls.
"""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable, Container, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.preprocessing import InvalidImage, Preprocessing, read_picture
from training.errors import BadData, quoted
from training.hdf5 import START, read_hdf5

Pixels = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]  # (pictures done, pictures in all)

CLASS_NAMES = ("cat", "non-cat")

_ZIP_STARTS = (b"PK\3\4", b"PK\5\6")  # with files, and empty
_JUNK = {"__MACOSX", "Thumbs.db", "ehthumbs.db", "desktop.ini"}  # left by file managers
_MAX_FILE_BYTES = 256 * 2**20  # a zip may claim more than any picture needs
_PICTURES_A_TASK = 32  # enough to outweigh handing the task to a thread
_SHOWN = 10  # bad pictures that a message lists


@dataclass(frozen=True, eq=False)
class PictureSet:
    """m labelled pictures and where they came from."""

    pictures: Pixels  # (m, side, side, 3) RGB; picture i in its first sides[i] rows and columns
    labels: npt.NDArray[np.float32]  # (m,): 1 for the first class, 0 for the second
    names: list[str]  # "cat/pets-cat-0001.jpg"; the same name may come from several files
    sources: list[str]  # first word of the file name, before "-"; the data file's where it has none
    skipped: list[tuple[str, str]]  # (name, reason) of what was left out
    class_names: tuple[str, str]
    fingerprint: str  # SHA-256, in hex, over the bytes of pictures and labels
    sides: npt.NDArray[np.int16]  # (m,): `side`, but for pictures that were kept smaller

    def __len__(self) -> int:
        return len(self.labels)

    def count(self, class_name: str) -> int:
        """How many pictures are of that class."""
        first = int(self.labels.sum())
        return first if class_name == self.class_names[0] else len(self) - first


@dataclass(frozen=True)
class _Size:
    """What size pictures are read at."""

    spec: Preprocessing  # its side is the largest
    smallest: int = 0

    def of(self, width: int, height: int) -> int:
        return max(min(max(width, height), self.spec.side), self.smallest)

    def read(self, data: bytes) -> Pixels:
        picture = read_picture(data, self.spec)
        side = self.of(picture.width, picture.height)
        if side != self.spec.side:
            picture = read_picture(data, replace(self.spec, side=side))
        return picture.pixels


@dataclass(frozen=True)
class _Entry:
    """One picture that is not decoded yet."""

    name: str
    source: str
    label: float
    file: Path  # the data file or folder that it is in
    load: Callable[[], Pixels]


@dataclass(frozen=True)
class Listing:
    """What pictures there are, before any is decoded: m names, sources and labels, in order."""

    names: list[str]
    sources: list[str]
    labels: npt.NDArray[np.float32]


def list_pictures(
    paths: Sequence[Path], class_names: tuple[str, str] = CLASS_NAMES, *, both_classes: bool = True
) -> Listing:
    """The pictures that `read_pictures` would read; raises BadData but for bad pictures."""
    with ExitStack() as open_files:
        entries = [
            entry
            for path in paths
            for entry in _entries(path, class_names, _Size(Preprocessing()), open_files)[0]
        ]
    labels = np.array([entry.label for entry in entries], np.float32)
    _check_classes(paths, labels, class_names, both_classes)
    return Listing([entry.name for entry in entries], [entry.source for entry in entries], labels)


def read_pictures(
    paths: Sequence[Path],
    side: int = 64,
    class_names: tuple[str, str] = CLASS_NAMES,
    *,
    smallest: int | None = None,
    names: Container[str] | None = None,
    preprocessing: Preprocessing = Preprocessing(),
    both_classes: bool = True,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> PictureSet:
    """All pictures of all paths, joined in the order of the paths and, within one, of the names.

    side: pixels of a side of what comes out; everything else as `preprocessing` says. Pictures of
    an HDF5 that have this side are taken as they are.
    class_names: of the two folders, or the HDF5's `list_classes`; the first one is labelled 1.
    smallest: keep pictures whose larger side is less than `side` at that size, as long as it is no
    less than this; they fill the first rows and columns, black beyond. Without it all are resized.
    names: read these pictures only.
    both_classes: refuse data of which all pictures are of one class; training needs both.
    skip_bad: leave out pictures that cannot be read, instead of refusing the data.

    Raises BadData: a path that is missing, damaged, encrypted or nothing of the above, pictures
    that cannot be read, no pictures, only one class.
    """
    size = _Size(replace(preprocessing, side=side), smallest or side)
    with ExitStack() as open_files:
        entries: list[_Entry] = []
        skipped: list[tuple[str, str]] = []
        for path in paths:
            found, left_out = _entries(path, class_names, size, open_files)
            entries += [entry for entry in found if names is None or entry.name in names]
            skipped += left_out
        pictures = _room_for(len(entries), side, paths)
        sides = np.full(len(entries), side, np.int16)
        failures = _load(entries, pictures, sides, progress)
    if failures and not skip_bad:
        raise BadData(_describe(failures, entries))
    skipped += [(entries[i].name, reason) for i, reason in failures.items()]
    kept = [i for i in range(len(entries)) if i not in failures]
    for place, i in enumerate(kept):
        if place != i:  # in place: a copy of a large set would not fit into memory
            pictures[place] = pictures[i]
    entries = [entries[i] for i in kept]
    pictures, sides = pictures[: len(entries)], sides[kept]
    labels = np.array([entry.label for entry in entries], np.float32)
    _check_classes(paths, labels, class_names, both_classes)
    return PictureSet(
        pictures=pictures,
        sides=sides,
        labels=labels,
        names=[entry.name for entry in entries],
        sources=[entry.source for entry in entries],
        skipped=skipped,
        class_names=class_names,
        fingerprint=_fingerprint(pictures, labels),
    )


def _room_for(count: int, side: int, paths: Sequence[Path]) -> Pixels:
    try:
        return np.zeros((count, side, side, 3), np.uint8)
    except (MemoryError, ValueError):  # ValueError: more than there are addresses
        where = ", ".join(str(path) for path in paths)
        raise BadData(
            f"{where}: {count:,} pictures of {side}×{side} do not fit into memory. Use fewer."
        ) from None


def _entries(
    path: Path, class_names: tuple[str, str], size: _Size, open_files: ExitStack
) -> tuple[list[_Entry], list[tuple[str, str]]]:
    """The pictures in one path, and (name, reason) of the files that are in no class."""
    try:
        if path.is_dir():
            return _folder_entries(path, class_names, size)
        with path.open("rb") as file:
            start = file.read(len(START))
        if start == START or path.suffix.lower() in (".h5", ".hdf5"):
            return _hdf5_entries(path, class_names, size), []
        if start[:4] in _ZIP_STARTS or path.suffix.lower() == ".zip":
            archive = open_files.enter_context(zipfile.ZipFile(path))
            return _zip_entries(path, archive, class_names, size)
    except FileNotFoundError:
        raise BadData(f"{path} does not exist.") from None
    except zipfile.BadZipFile as error:
        raise BadData(f"{path} is a damaged or incomplete zip: {error}. Copy it again.") from error
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror or error}.") from error
    first, second = class_names
    raise BadData(
        f"{path} is not data for training. Expected: an HDF5 like the course's, or a folder or zip "
        f"with the folders {first}/ and {second}/."
    )


# --- the course's HDF5 --------------------------------------------------------------------------


def _hdf5_entries(path: Path, class_names: tuple[str, str], size: _Size) -> list[_Entry]:
    pictures, labels = read_hdf5(path, class_names)
    return [
        _Entry(
            name=f"{class_names[0] if label else class_names[1]}/course-{i:05d}",
            source="course",
            label=label,
            file=path,
            load=lambda picture=picture: _resized(picture, size),  # type: ignore[misc]
        )
        for i, (picture, label) in enumerate(zip(pictures, labels, strict=True))
    ]


def _resized(picture: Pixels, size: _Size) -> Pixels:
    """Pixels that are no file go through the same function as files, as a lossless one."""
    if len(picture) == size.of(*picture.shape[:2]):
        return picture
    file = BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return size.read(file.getvalue())


# --- folders and zips ---------------------------------------------------------------------------


def _folder_entries(
    folder: Path, class_names: tuple[str, str], size: _Size
) -> tuple[list[_Entry], list[tuple[str, str]]]:
    files = {
        PurePosixPath(file.relative_to(folder).as_posix()): file
        for file in folder.rglob("*")
        if file.is_file()
    }

    def loader(name: PurePosixPath) -> Callable[[], Pixels]:
        return lambda: size.read(files[name].read_bytes())

    return _class_entries(folder, files, class_names, loader)


def _zip_entries(
    path: Path, archive: zipfile.ZipFile, class_names: tuple[str, str], size: _Size
) -> tuple[list[_Entry], list[tuple[str, str]]]:
    members = {
        PurePosixPath(info.filename): info for info in archive.infolist() if not info.is_dir()
    }
    encrypted = [str(name) for name, info in members.items() if info.flag_bits & 1]
    if encrypted:
        raise BadData(f"{path} is encrypted ({encrypted[0]}). Unpack it, and give the folder.")

    def loader(name: PurePosixPath) -> Callable[[], Pixels]:
        return lambda: size.read(_unzip(archive, members[name]))

    return _class_entries(path, members, class_names, loader)


def _unzip(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.file_size > _MAX_FILE_BYTES:
        raise OSError(f"has {member.file_size} bytes, more than a picture")
    try:
        return archive.read(member)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise OSError(f"is damaged within the zip: {error}") from error


def _class_entries(
    path: Path,
    names: Iterable[PurePosixPath],
    class_names: tuple[str, str],
    loader: Callable[[PurePosixPath], Callable[[], Pixels]],
) -> tuple[list[_Entry], list[tuple[str, str]]]:
    """Entries for the files under the class folders; the others as (name, reason)."""
    files = sorted(name for name in names if not _is_junk(name))
    root = _class_root(path, files, class_names)
    entries, left_out = [], []
    for file in files:
        name = file.relative_to(root) if file.is_relative_to(root) else None
        if name is None or len(name.parts) < 2 or name.parts[0] not in class_names:
            left_out.append((str(file), f"not in {class_names[0]}/ or {class_names[1]}/"))
            continue
        first, dash, _ = name.name.partition("-")
        label = float(name.parts[0] == class_names[0])
        source = first if dash else path.stem
        entries.append(_Entry(str(name), source, label, path, loader(file)))
    return entries, left_out


def _is_junk(name: PurePosixPath) -> bool:
    return any(part in _JUNK or part.startswith(".") for part in name.parts)


def _class_root(
    path: Path, files: Sequence[PurePosixPath], class_names: tuple[str, str]
) -> PurePosixPath:
    """The folder that the class folders are in; BadData where there is none or several."""
    classes: dict[PurePosixPath, set[str]] = {}  # folder → classes that it has folders of
    for file in files:
        for depth, part in enumerate(file.parts[:-1]):
            if part in class_names:
                classes.setdefault(PurePosixPath(*file.parts[:depth]), set()).add(part)
    complete = [folder for folder, found in classes.items() if len(found) == 2]
    candidates = complete or list(classes)
    if len(candidates) == 1:
        return candidates[0]
    first, second = class_names
    if candidates:
        places = ", ".join(f"{folder}/" for folder in sorted(candidates)[:_SHOWN])
        raise BadData(
            f"{path} has folders {first}/ and {second}/ in several places: {places}. Give one of "
            "them (unpacked, if this is a zip)."
        )
    folders = sorted({file.parts[0] for file in files if len(file.parts) > 1})
    held = f"folders {quoted(folders[:_SHOWN])}" if folders else f"{len(files)} files, no folders"
    raise BadData(
        f"{path} has no folders {first}/ and {second}/; it holds {held}. Sort the pictures into "
        "two folders of these names, or name yours with --classes, the one to look for first."
    )


# --- reading ------------------------------------------------------------------------------------


def _load(
    entries: Sequence[_Entry],
    pictures: Pixels,
    sides: npt.NDArray[np.int16],
    progress: Progress | None,
) -> dict[int, str]:
    """Decode every entry into its row of pictures, on all cores; {row: reason} of the bad ones."""
    failures: dict[int, str] = {}

    def load(rows: range) -> int:
        for i in rows:
            try:
                picture = entries[i].load()
                sides[i] = len(picture)
                pictures[i, : sides[i], : sides[i]] = picture
            except (InvalidImage, OSError) as error:
                failures[i] = str(error)
        return len(rows)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without the interpreter lock
        try:
            every = range(len(entries))
            starts = every[::_PICTURES_A_TASK]
            tasks = [pool.submit(load, every[i : i + _PICTURES_A_TASK]) for i in starts]
            done = 0
            for task in as_completed(tasks):
                done += task.result()
                if progress:
                    progress(done, len(entries))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl-C should not wait for the rest
            raise
    return dict(sorted(failures.items()))


def _describe(failures: dict[int, str], entries: Sequence[_Entry]) -> str:
    shown = [
        f"  {entries[i].name} in {entries[i].file}: {reason}"
        for i, reason in list(failures.items())[:_SHOWN]
    ]
    more = len(failures) - len(shown)
    return "\n".join(
        [
            f"{len(failures)} of {len(entries)} pictures cannot be read:",
            *shown,
            *([f"  and {more} more"] if more else []),
            "Remove or replace them, or leave them out with --skip-bad.",
        ]
    )


def _check_classes(
    paths: Sequence[Path],
    labels: npt.NDArray[np.float32],
    class_names: tuple[str, str],
    both_classes: bool,
) -> None:
    where = ", ".join(str(path) for path in paths)
    if not len(labels):
        raise BadData(f"{where}: no pictures.")
    for name, label in zip(class_names, (1, 0), strict=True):
        if both_classes and not (labels == label).any():
            other = class_names[label]
            raise BadData(
                f"{where}: all {len(labels)} pictures are {other!r}; training needs pictures of "
                f"{name!r} too."
            )


def _fingerprint(pictures: Pixels, labels: npt.NDArray[np.float32]) -> str:
    digest = hashlib.sha256(pictures.data)
    digest.update(labels.data)
    return digest.hexdigest()
