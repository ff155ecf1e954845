"""Labelled pictures from files: the course's HDF5, a folder or a zip of pictures by class.

    mydata/cat/anything.jpg            the label is the name of the folder, at whatever depth it
    mydata/non-cat/anything.png        lies, as long as there is one pair of such folders

Pictures are decoded by `model.preprocessing.read_picture`, the function that serving calls. What
file names tell of them follows the rule and the words of names.toml.
"""

import hashlib
import re
import tomllib
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import h5py
import numpy as np
import numpy.typing as npt
from PIL import Image

from model.archive import Entry, EntryType, folder_entries, zip_entries
from model.machine import cores
from model.preprocessing import InvalidImage, Preprocessing, read_picture
from training import Refused

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]  # called with (pictures done, pictures in all)
T = TypeVar("T")

CLASS_NAMES = ("cat", "non-cat")
OTHERS = "others"  # sources of few pictures, together

_HDF5_START, _ZIP_STARTS = b"\x89HDF\r\n\x1a\n", (b"PK\3\4", b"PK\5\6")  # zips: full and empty
_MAX_FILE_BYTES = 256 * 2**20  # a zip may claim more than any picture needs
_PICTURES_A_TASK = 32  # enough to outweigh handing the task to a thread
_SHOWN = 100  # files that a message lists
_SKIP = "Remove or replace them, or leave them out with --skip-bad."


# --- what names tell ----------------------------------------------------------------------------

_NAMES: dict[str, Any] = tomllib.loads(
    Path(__file__).with_name("names.toml").read_text(encoding="utf-8")
)
_RULE: dict[str, Any] = _NAMES["rule"]
_GROUP_OF = {kind: group for group, kinds in _NAMES["groups"].items() for kind in kinds}
LOOKALIKE_SOURCES: tuple[str, ...] = tuple(_RULE["lookalikes"])
PROVENANCE: dict[str, dict[str, str]] = _NAMES["sources"]  # source → what it is, and its terms
TEACHERS: dict[str, str] = _NAMES["teachers"]  # file → what made its log-odds
ROOMS, OTHER_THINGS = "rooms", "things"


@dataclass(frozen=True)
class NameParts:
    """What a picture's file name tells; "" where it tells nothing."""

    source: str
    kind: str = ""  # what it shows: "Chihuahua", "kitchen", "fox in low light"
    group: str = ""  # "small dogs", "rooms"
    repository: str = ""


def name_parts(name: str, source: str) -> NameParts:
    """What the name of a picture tells, as names.toml says.

    name: as in `PictureSet.names`, "non-cat/tiny-n02085620_12.jpg". source: its first word, or the
    name of its data file.
    """
    first, *words = PurePosixPath(name).stem.split("-")
    if first != source or not words:
        return NameParts(source)
    if len(words) == 1:
        wordnet = re.fullmatch(r"(n\d{8})_\d+", words[0])
        return _of_kind(source, "", _imagenet_kind(wordnet[1])) if wordnet else NameParts(source)
    *words, number = words
    if not number.isdecimal() or not all(word[0].isalpha() for word in words if word):
        return NameParts(source)
    repository, *words = words if len(words) > 1 else ["", *words]
    if repository in _RULE["with_folder"] and len(words) > 1:
        words = words[1:]
    kind, *conditions = words
    if repository in _RULE["rooms"]:
        return NameParts(ROOMS, kind.replace("_", " "), ROOMS)
    told = [_RULE["conditions"][word] for word in conditions if word in _RULE["conditions"]]
    return _of_kind(source, repository, _singular(kind), *told)


def _of_kind(source: str, repository: str, kind: str, *conditions: str) -> NameParts:
    return NameParts(
        source, " ".join([kind, *conditions]), _GROUP_OF.get(kind, OTHER_THINGS), repository
    )


def _imagenet_kind(identifier: str) -> str:
    known: str | None = _NAMES["wordnet"].get(identifier)
    animal = identifier < _RULE["first_thing"]
    return known or ("reptiles, fish and insects" if animal else OTHER_THINGS)


def _singular(word: str) -> str:
    kind = word.lower().replace("_", " ")
    if kind.endswith("s") and not kind.endswith(("ss", "us")):
        kind = kind[:-1]
    same: str = _NAMES["same"].get(kind, kind)
    return same


def join_small(sources: Sequence[str], least: int = 100) -> list[str]:
    """The sources, those with fewer than `least` pictures as one: file names often begin with a
    number or a word that means nothing, and a source of three pictures tells nothing."""
    counts = Counter(sources)
    return [source if counts[source] >= least else OTHERS for source in sources]


# --- which pictures there are -------------------------------------------------------------------


@dataclass(frozen=True)
class Listed:
    """One picture that is not decoded yet."""

    name: str
    source: str
    label: float
    file: Path  # the data file or folder that it is in
    load: Callable[[], bytes]  # raises OSError
    pixels: Pixels | None = None  # of the course's HDF5


@dataclass(frozen=True)
class Listing:
    """What is in data files, before any picture is decoded."""

    pictures: list[Listed]
    unusable: list[tuple[str, str]]  # (name, reason) of what is in a class folder and no picture
    left_out: list[tuple[str, str]]  # (name, reason) of files in no class folder
    hidden: int = 0  # hidden and system files and folders

    @property
    def labels(self) -> Labels:
        return np.array([picture.label for picture in self.pictures], np.float32)


def list_pictures(
    paths: Sequence[Path], class_names: tuple[str, str] = CLASS_NAMES, *, both_classes: bool = True
) -> Listing:
    """The pictures of all paths, in the order of the paths and, within one, of the names; for the
    parameters see `read_pictures`. Raises Refused but for single files."""
    found = [_list(path, class_names) for path in paths]
    listing = Listing(
        [picture for each in found for picture in each.pictures],
        [file for each in found for file in each.unusable],
        [file for each in found for file in each.left_out],
        sum(each.hidden for each in found),
    )
    _check_classes(paths, listing.labels, class_names, both_classes)
    return listing


def _list(path: Path, class_names: tuple[str, str]) -> Listing:
    try:
        if path.is_dir():
            entries = folder_entries(path, follow_links=True)
            return _list_classes(path, entries, class_names, lambda e: _file(path / e.name))
        with path.open("rb") as file:
            start = file.read(len(_HDF5_START))
        if start == _HDF5_START or path.suffix.lower() in (".h5", ".hdf5"):
            return Listing(_list_hdf5(path, class_names), [], [])
        if start[:4] in _ZIP_STARTS or path.suffix.lower() == ".zip":
            archive = zipfile.ZipFile(path)  # kept open by those who load from it
            for info in archive.infolist():
                if info.flag_bits & 1:
                    raise Refused(
                        f"{path} is encrypted ({info.filename}). Unpack it, and give the folder."
                    )
            return _list_classes(
                path, zip_entries(archive), class_names, lambda e: _member(archive, e.stored)
            )
    except FileNotFoundError:
        raise Refused(f"{path} does not exist.") from None
    except zipfile.BadZipFile as error:
        raise Refused(f"{path} is a damaged or incomplete zip: {error}. Copy it again.") from error
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror or error}.") from error
    first, second = class_names
    raise Refused(
        f"{path} is not data for training. Expected: an HDF5 like the course's, or a folder or zip "
        f"with the folders {first}/ and {second}/."
    )


def _file(path: Path) -> Callable[[], bytes]:
    def load() -> bytes:
        _check_size(path.stat().st_size)
        return path.read_bytes()

    return load


def _member(archive: zipfile.ZipFile, name: str) -> Callable[[], bytes]:
    def load() -> bytes:
        _check_size(archive.getinfo(name).file_size)
        try:
            return archive.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise OSError(f"is damaged within the zip: {error}") from error

    return load


def _check_size(size: int) -> None:
    if size > _MAX_FILE_BYTES:
        raise OSError(f"has {size} bytes, more than a picture")


def _list_classes(
    path: Path,
    entries: Iterable[Entry],
    class_names: tuple[str, str],
    loader: Callable[[Entry], Callable[[], bytes]],
) -> Listing:
    """The pictures under the class folders, sorted by their paths."""
    hidden = 0
    unusable, left_out, pictures = [], [], []
    found: dict[PurePosixPath, Entry] = {}
    for entry in entries:
        if entry.type == EntryType.HIDDEN:
            hidden += 1
        elif entry.type == EntryType.BROKEN:
            reason = getattr(entry.error, "strerror", None) or entry.error
            unusable.append((entry.name, f"cannot be read: {reason}"))
        else:
            found[PurePosixPath(entry.name)] = entry
    root = _class_root(path, sorted(found), class_names)
    for file, entry in sorted(found.items()):
        name = file.relative_to(root) if file.is_relative_to(root) else None
        if name is None or len(name.parts) < 2 or name.parts[0] not in class_names:
            left_out.append((entry.name, f"not in {class_names[0]}/ or {class_names[1]}/"))
        elif entry.type != EntryType.PICTURE and file.suffix:  # without one, its bytes will tell
            what = "a zip: unpack it" if entry.type == EntryType.ZIP else "no picture by its name"
            unusable.append((entry.name, f"is {what}"))
        else:
            first, dash, _ = name.name.partition("-")
            label = float(name.parts[0] == class_names[0])
            source = first if dash else path.stem
            pictures.append(Listed(str(name), source, label, path, loader(entry)))
    return Listing(pictures, unusable, left_out, hidden)


def _class_root(
    path: Path, files: Sequence[PurePosixPath], class_names: tuple[str, str]
) -> PurePosixPath:
    """The folder that the class folders are in; raises Refused where there is none, or several,
    or one class folder within the other."""
    classes: dict[PurePosixPath, set[str]] = defaultdict(set)  # folder → classes it has folders of
    for file in files:
        for depth, part in enumerate(file.parts[:-1]):
            if part in class_names:
                classes[PurePosixPath(*file.parts[:depth])].add(part)
    complete = [folder for folder, found in classes.items() if len(found) == 2]
    candidates = complete or list(classes)
    first, second = class_names
    if len(candidates) == 1:
        root = candidates[0]
        for one, other in ((first, second), (second, first)):
            for folder, found in classes.items():
                if folder.is_relative_to(root / one) and other in found:
                    raise Refused(
                        f"{path} has the folder {folder / other}/ within {root / one}/. Move one "
                        "of them: a picture has one class."
                    )
        return root
    if candidates:
        places = ", ".join(f"{folder}/" for folder in sorted(candidates)[:10])
        raise Refused(
            f"{path} has folders {first}/ and {second}/ in several places: {places}. Give one of "
            "them (unpacked, if this is a zip)."
        )
    folders = sorted({file.parts[0] for file in files if len(file.parts) > 1})
    held = f"folders {quoted(folders[:10])}" if folders else f"{len(files)} files, no folders"
    raise Refused(
        f"{path} has no folders {first}/ and {second}/; it holds {held}. Sort the pictures into "
        "two folders of these names, or name yours with --classes, the one to look for first."
    )


def quoted(names: Iterable[str]) -> str:
    """Names as a message lists them."""
    return ", ".join(repr(name) for name in names)


def _check_classes(
    paths: Sequence[Path], labels: Labels, class_names: tuple[str, str], both_classes: bool
) -> None:
    where = ", ".join(str(path) for path in paths)
    if not len(labels):
        raise Refused(f"{where}: no pictures.")
    for name, label in zip(class_names, (1, 0), strict=True):
        if both_classes and not (labels == label).any():
            raise Refused(
                f"{where}: all {len(labels)} pictures are {class_names[label]!r}; training needs "
                f"pictures of {name!r} too."
            )


# --- the course's HDF5 --------------------------------------------------------------------------
#
# train_set_x   (m, side, side, 3) uint8, RGB       or test_set_x and test_set_y
# train_set_y   m labels of 0 and 1
# list_classes  the names of the classes 0 and 1; may be missing


def _list_hdf5(path: Path, class_names: tuple[str, str]) -> list[Listed]:
    try:
        with h5py.File(path) as file:
            found = {name: each for name, each in file.items() if isinstance(each, h5py.Dataset)}
            prefix = next(
                (p for p in ("train", "test") if {f"{p}_set_x", f"{p}_set_y"} <= set(found)), ""
            )
            if not prefix:
                raise Refused(
                    f"{path} has no datasets train_set_x and train_set_y, nor test_set_x and "
                    f"test_set_y; it holds: {', '.join(sorted(file)) or 'nothing'}."
                )
            x = found[f"{prefix}_set_x"]
            if len(x.shape) != 4 or x.shape[1] != x.shape[2] or x.shape[3] != 3 or x.dtype != "u1":
                raise Refused(
                    f"{path}: {prefix}_set_x has shape {x.shape} of {x.dtype}; expected (m, side, "
                    "side, 3) of uint8, one RGB picture each."
                )
            pictures = _values(path, x)
            y = np.asarray(found[f"{prefix}_set_y"][()])
            names = (
                [_text(name) for name in np.ravel(found["list_classes"][()])]
                if "list_classes" in found
                else None
            )
    except OSError as error:
        raise Refused(f"{path} is not an HDF5, or a damaged one: {error}.") from error
    if y.size != max(y.shape, default=0) or not np.isin(y, (0, 1)).all():
        raise Refused(
            f"{path}: {prefix}_set_y of shape {y.shape} should hold one 0 or 1 for each picture."
        )
    if len(pictures) != y.size:
        raise Refused(f"{path}: {len(pictures)} pictures but {y.size} labels.")
    if names and sorted(names) != sorted(class_names):
        raise Refused(
            f"{path}: its classes are {quoted(names)}, not {quoted(class_names)}. "
            "Name them with --classes, the one to look for first."
        )
    first = y.reshape(-1) == (1 if not names or names[1] == class_names[0] else 0)
    return [
        Listed(
            f"{class_names[0 if is_first else 1]}/course-{i:05d}",
            "course",
            float(is_first),
            path,
            partial(as_png, picture),
            picture,
        )
        for i, (picture, is_first) in enumerate(zip(pictures, first.tolist(), strict=True))
    ]


def _values(path: Path, x: h5py.Dataset) -> Pixels:
    try:
        pictures: Pixels = x[()]
    except (MemoryError, ValueError):  # ValueError: more than there are addresses
        raise Refused(
            f"{path}: {x.name[1:]} has shape {x.shape}, which does not fit into memory. Use fewer "
            "pictures; if there should not be so many, the file is damaged."
        ) from None
    return pictures


def _text(name: object) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def as_png(pixels: Pixels) -> bytes:
    """Pixels that are no file go through the same function as files, as a lossless one."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


# --- reading ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PictureSet:
    """m labelled pictures and where they came from."""

    pictures: Pixels  # (m, side, side, 3) RGB; picture i in its first sides[i] rows and columns
    sides: npt.NDArray[np.int16]  # (m,): `side`, but for pictures that were kept smaller
    labels: Labels  # (m,): 1 for the first class, 0 for the second
    names: list[str]  # "cat/pets-cat-0001.jpg"; the same name may come from several files
    sources: list[str]  # first word of the file name, before "-"; the data file's where it has none
    class_names: tuple[str, str]
    skipped: list[tuple[str, str]]  # (name, reason) of what was left out
    hidden: int = 0  # hidden and system files that were passed over
    files: Sequence[Callable[[], bytes]] = ()  # (m,): what gives the bytes of each; raises OSError

    def __len__(self) -> int:
        return len(self.labels)

    def count(self, class_name: str) -> int:
        """How many pictures are of that class."""
        first = int(self.labels.sum())
        return first if class_name == self.class_names[0] else len(self) - first

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over the bytes of pictures and labels."""
        digest = hashlib.sha256(np.ascontiguousarray(self.pictures).data)
        digest.update(self.labels.data)
        return digest.hexdigest()

    @property
    def parts(self) -> list[NameParts]:
        """What the names tell."""
        return [name_parts(n, s) for n, s in zip(self.names, self.sources, strict=True)]

    def count_sources(self, least: int = 1) -> dict[str, dict[str, int]]:
        """How many pictures of each class each source has, those of fewer than `least` as one."""
        counts: dict[str, dict[str, int]] = {}
        for source, label in zip(
            join_small([part.source for part in self.parts], least), self.labels, strict=True
        ):
            of_source = counts.setdefault(source, dict.fromkeys(self.class_names, 0))
            of_source[self.class_names[0 if label == 1 else 1]] += 1
        return dict(sorted(counts.items()))

    def only(self, kept: npt.NDArray[np.bool_]) -> "PictureSet":
        """The pictures of which `kept` (m,) says so. They are moved within the memory of this set,
        which must not be used any more: a copy of a large one would not fit."""
        places = np.flatnonzero(kept)
        for place, i in enumerate(places):
            if place != i:
                self.pictures[place] = self.pictures[i]
        return replace(
            self,
            pictures=self.pictures[: len(places)],
            sides=self.sides[places],
            labels=self.labels[places],
            names=[self.names[i] for i in places],
            sources=[self.sources[i] for i in places],
            files=[self.files[int(i)] for i in places] if self.files else (),
        )


@dataclass(frozen=True)
class _Size:
    """What size pictures are read at."""

    spec: Preprocessing  # its side is the largest
    smallest: int

    def read(self, listed: Listed) -> Pixels:
        if listed.pixels is not None and len(listed.pixels) == self._side(*listed.pixels.shape[:2]):
            return listed.pixels
        data = listed.load()
        picture = read_picture(data, self.spec)
        side = self._side(picture.width, picture.height)
        if side != self.spec.side:
            picture = read_picture(data, replace(self.spec, side=side))
        return picture.pixels

    def _side(self, width: int, height: int) -> int:
        return max(min(max(width, height), self.spec.side), self.smallest)


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
    skip_bad: leave out what cannot be used, instead of refusing the data.

    Raises Refused: a path that is missing, damaged, encrypted or nothing of the above, files that
    are no pictures, pictures that cannot be read or are there in both classes, only one class.
    """
    listing = list_pictures(paths, class_names, both_classes=both_classes)
    listed = [each for each in listing.pictures if names is None or each.name in names]
    pictures = _room_for(len(listed), side, paths)
    sides = np.full(len(listed), side, np.int16)
    size = _Size(replace(preprocessing, side=side), smallest or side)

    def read(i: int) -> None:
        picture = size.read(listed[i])
        sides[i] = len(picture)
        pictures[i, : sides[i], : sides[i]] = picture

    _, failures = on_all_cores(read, len(listed), progress)
    check_usable(replace(listing, pictures=listed), failures, skip_bad)
    data = PictureSet(
        pictures,
        sides,
        np.array([each.label for each in listed], np.float32),
        [each.name for each in listed],
        [each.source for each in listed],
        class_names,
        listing.left_out + listing.unusable,
        listing.hidden,
        [each.load for each in listed],
    )
    failures |= same_in_both_classes(data, failures, skip_bad)
    if failures:
        kept = np.ones(len(listed), bool)
        kept[list(failures)] = False
        skipped = [(listed[i].name, reason) for i, reason in sorted(failures.items())]
        data = replace(data.only(kept), skipped=data.skipped + skipped)
        _check_classes(paths, data.labels, class_names, both_classes)
    return data


def _room_for(count: int, side: int, paths: Sequence[Path]) -> Pixels:
    try:
        return np.zeros((count, side, side, 3), np.uint8)
    except (MemoryError, ValueError):  # ValueError: more than there are addresses
        where = ", ".join(str(path) for path in paths)
        raise Refused(
            f"{where}: {count:,} pictures of {side}×{side} do not fit into memory. Use fewer."
        ) from None


def on_all_cores(
    function: Callable[[int], T], count: int, progress: Progress | None = None
) -> tuple[dict[int, T], dict[int, str]]:
    """function(i) for each i below `count`, on as many threads as there are cores: its results,
    and the messages of its failures, InvalidImage and OSError, by i. Pillow and NumPy let go of the
    interpreter lock."""
    results: dict[int, T] = {}
    failures: dict[int, str] = {}

    def run(rows: range) -> int:
        for i in rows:
            try:
                results[i] = function(i)
            except (InvalidImage, OSError) as error:
                failures[i] = str(error)
        return len(rows)

    with ThreadPoolExecutor(cores()) as pool:
        try:
            parts = [
                range(count)[i : i + _PICTURES_A_TASK] for i in range(count)[::_PICTURES_A_TASK]
            ]
            done = 0
            for task in as_completed([pool.submit(run, part) for part in parts]):
                done += task.result()
                if progress:
                    progress(done, count)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl-C should not wait for the rest
            raise
    return results, dict(sorted(failures.items()))


def check_usable(listing: Listing, failures: Mapping[int, str], skip_bad: bool) -> None:
    """Refuse the data, but for `skip_bad`, for what lies in the class folders and cannot be used,
    all in one message. failures: why pictures of the listing could not be read, by place."""
    pictures = listing.pictures
    bad = [(f"{pictures[i].name} in {pictures[i].file}", why) for i, why in failures.items()]
    if skip_bad or not (bad or listing.unusable):
        return
    parts = []
    if bad:
        count = f"{len(bad):,} of {len(pictures):,} pictures"
        parts += [f"{count} cannot be read:", *_lines(bad)]
    if listing.unusable:
        count = f"{len(listing.unusable):,} file{'s' if len(listing.unusable) > 1 else ''}"
        parts += [f"{count} among the pictures cannot be used:", *_lines(listing.unusable)]
    raise Refused("\n".join([*parts, _SKIP]))


def _lines(files: Sequence[tuple[str, str]]) -> list[str]:
    lines = [f"  {name}: {reason}" for name, reason in files[:_SHOWN]]
    return [*lines, f"  and {len(files) - _SHOWN:,} more"] if len(files) > _SHOWN else lines


def same_in_both_classes(
    data: PictureSet, unread: Container[int], skip_bad: bool
) -> dict[int, str]:
    """{i: reason} of the pictures that are in both classes, pixel for pixel; without `skip_bad`
    they are refused with their names."""
    same: dict[bytes, list[int]] = defaultdict(list)
    for i, side in enumerate(data.sides):
        if i not in unread:
            pixels = np.ascontiguousarray(data.pictures[i, :side, :side])
            same[hashlib.blake2b(pixels.data, digest_size=16).digest()].append(i)
    found: dict[int, str] = {}
    for copies in same.values():
        first = next((i for i in copies if data.labels[i] == 1), None)
        other = next((i for i in copies if data.labels[i] == 0), None)
        if first is not None and other is not None:
            for i in copies:
                twin = data.names[other if data.labels[i] == 1 else first]
                found[i] = f"is the same picture as {twin}"
    if found and not skip_bad:
        pairs = [(data.names[i], why) for i, why in found.items() if data.labels[i] == 1]
        count = f"{len(pairs):,} picture{'s are' if len(pairs) > 1 else ' is'}"
        raise Refused("\n".join([f"{count} in both classes:", *_lines(pairs), _SKIP]))
    return found
