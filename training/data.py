"""Labelled pictures from files: the course's HDF5, a folder or a zip of pictures by class.

    mydata/cat/anything.jpg            the label is the name of the folder, at whatever depth it
    mydata/non-cat/anything.png        lies, as long as there is one pair of such folders

Each of the three becomes a `DataListing`. Then all are read alike, as serving reads pictures, by
`model.preprocessing.read_picture`. What file names tell follows the rule and words of names.toml.
"""

import hashlib
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from zipfile import BadZipFile, ZipFile

import h5py
import numpy as np
import numpy.typing as npt

from model import archive
from model.archive import PICTURE_SUFFIXES, Entry, EntryType, folder_entries, printable, zip_entries
from model.machine import cores
from model.preprocessing import InvalidImage, Preprocessing, png, read_picture
from training import Refused
from training.report import Say, progress_bar

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.float32]
Load = Callable[[], bytes]  # the bytes of a picture's file; raises OSError
T = TypeVar("T")

CLASS_NAMES = ("cat", "non-cat")
OTHERS = "others"  # sources of few pictures, together
LEAST_OF_A_SOURCE = 20  # pictures to be reported apart

_HDF5_START, _ZIP_STARTS = b"\x89HDF\r\n\x1a\n", (b"PK\3\4", b"PK\5\6")  # zips: full and empty
_PICTURES_A_TASK = 32  # enough to outweigh handing the task to a thread
_SHOWN = 100  # files that a message lists


# --- what names tell ----------------------------------------------------------------------------

_NAMES: dict[str, Any] = tomllib.loads(Path(__file__).with_name("names.toml").read_text("utf-8"))
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
    repository = ""
    conditions: list[str] = []
    if wordnet := re.fullmatch(r"(n\d{8})_\d+", words[0]):
        animal = wordnet[1] < _RULE["first_thing"]
        other = "reptiles, fish and insects" if animal else OTHER_THINGS
        kind = _NAMES["wordnet"].get(wordnet[1], other)
    else:
        *words, number = words
        if not words or not number.isdecimal() or not all(word[:1].isalpha() for word in words):
            return NameParts(source)
        repository, *words = words if len(words) > 1 else ["", *words]
        if repository in _RULE["with_folder"] and len(words) > 1:
            words = words[1:]
        kind, *words = words
        if repository in _RULE["rooms"]:
            return NameParts(ROOMS, kind.replace("_", " "), ROOMS)
        kind = _singular(kind)
        conditions = [_RULE["conditions"][word] for word in words if word in _RULE["conditions"]]
    group = _GROUP_OF.get(kind, OTHER_THINGS)
    return NameParts(source, " ".join([kind, *conditions]), group, repository)


def _singular(word: str) -> str:
    kind = word.lower().replace("_", " ")
    if kind.endswith("s") and not kind.endswith(("ss", "us")):
        kind = kind[:-1]
    same: str = _NAMES["same"].get(kind, kind)
    return same


def join_small(sources: Sequence[str], least: int = 100) -> list[str]:
    """The sources, those with fewer than `least` pictures as one: file names often begin with a
    number or a word that means nothing."""
    counts = Counter(sources)
    return [source if counts[source] >= least else OTHERS for source in sources]


# --- which pictures there are -------------------------------------------------------------------


@dataclass(frozen=True)
class ListedPicture:
    """One picture that is not decoded yet."""

    name: str
    source: str
    label: float
    file: Path  # the data file or folder that it is in
    load: Load


@dataclass
class DataListing:
    """What is in data files, before any picture is decoded."""

    pictures: list[ListedPicture] = field(default_factory=list)
    unusable: list[tuple[str, str]] = field(default_factory=list)  # (name, reason) of no pictures
    left_out: list[tuple[str, str]] = field(default_factory=list)  # of what is in no class folder
    hidden: int = 0  # hidden and system files and folders


def _list(path: Path, class_names: tuple[str, str], listing: DataListing) -> None:
    """Add what is in one path to the listing."""
    try:
        if path.is_dir():
            entries = folder_entries(path, follow_links=True)
            return _list_classes(path, entries, class_names, listing)
        with path.open("rb") as file:
            start = file.read(len(_HDF5_START))
        if start == _HDF5_START or path.suffix.lower() in (".h5", ".hdf5"):
            listing.pictures += _list_hdf5(path, class_names)
            return None
        if start[:4] in _ZIP_STARTS or path.suffix.lower() == ".zip":
            zipped = ZipFile(path)
            if any(each.flag_bits & 1 for each in zipped.infolist()):
                raise Refused(f"{path} is encrypted. Unpack it, and give the folder.")
            return _list_classes(path, zip_entries(zipped), class_names, listing)
    except FileNotFoundError:
        raise Refused(f"{path} does not exist.") from None
    except BadZipFile as error:
        raise Refused(f"{path} is a damaged or incomplete zip: {error}. Copy it again.") from error
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror or error}.") from error
    expected = "an HDF5 like the course's, or a folder or zip with the folders {}/ and {}/"
    raise Refused(f"{path} is not data for training. Expected: {expected.format(*class_names)}.")


def _load(path: Path, entry: Entry) -> bytes:
    """The bytes of a file in the folder at `path`, or of a member of the zip there."""
    file = path if entry.stored else path / entry.name
    if not file.is_file():  # reading a pipe would never end
        raise OSError("is not a regular file")
    try:
        return archive.read(file, entry.stored)
    except archive.Unreadable as error:
        raise OSError(error.args[1]) from error


def _list_classes(
    path: Path, entries: Iterable[Entry], class_names: tuple[str, str], listing: DataListing
) -> None:
    """Add the pictures under the class folders, sorted by their paths."""
    found: dict[PurePosixPath, Entry] = {}
    for entry in entries:
        if entry.type == EntryType.HIDDEN:
            listing.hidden += 1
        elif entry.type == EntryType.BROKEN:
            reason = getattr(entry.error, "strerror", None) or entry.error
            listing.unusable.append((printable(entry.name), f"cannot be read: {reason}"))
        else:
            found[PurePosixPath(entry.name)] = entry
    root = _class_root(path, sorted(found), class_names)
    for file, entry in sorted(found.items()):
        name = file.relative_to(root) if file.is_relative_to(root) else None
        if name is None or len(name.parts) < 2 or name.parts[0] not in class_names:
            reason = f"not in {class_names[0]}/ or {class_names[1]}/"
            listing.left_out.append((printable(entry.name), reason))
        elif entry.type != EntryType.PICTURE and file.suffix:  # without one, its bytes will tell
            reason = "is not a picture by its file extension"
            if entry.type == EntryType.ZIP:
                reason = "is a zip: unpack it"
            elif file.suffix.lower() in PICTURE_SUFFIXES:
                reason = "is not a regular file"
            listing.unusable.append((printable(entry.name), reason))
        else:
            first, dash, _ = printable(name.name).partition("-")
            source = first if dash else printable(path.stem)
            label, load = float(name.parts[0] == class_names[0]), partial(_load, path, entry)
            picture = ListedPicture(printable(str(name)), source, label, path, load)
            listing.pictures.append(picture)


def _class_root(
    path: Path, files: Sequence[PurePosixPath], class_names: tuple[str, str]
) -> PurePosixPath:
    """The folder that the class folders are in; raises Refused where there is none, or several."""
    roots = set()
    for file in files:
        depths = [depth for depth, part in enumerate(file.parts[:-1]) if part in class_names]
        if depths:
            roots.add(PurePosixPath(*file.parts[: depths[-1]]))
    if len(roots) == 1:
        return roots.pop()
    first, second = class_names
    if roots:
        places = ", ".join(f"{folder}/" for folder in sorted(roots)[:10])
        found = f"{path} has folders {first}/ or {second}/ in several places: {places}"
        raise Refused(f"{found}. Use one of them (unpack a zip first).")
    if all((path / name).is_dir() for name in class_names):
        raise Refused(f"{first}/ and {second}/ in {path} are empty. Put pictures into both.")
    folders = sorted({file.parts[0] for file in files if len(file.parts) > 1})
    held = f"folders {_quoted(folders[:10])}" if folders else f"{len(files)} files, no folders"
    remedy = "Sort the pictures into two such folders, or name yours with --classes."
    raise Refused(f"{path} has no folders {first}/ and {second}/; it contains {held}. {remedy}")


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{printable(name)}'" for name in names)


def _check_classes(
    paths: Sequence[Path],
    labels: Sequence[float] | Labels,
    class_names: tuple[str, str],
    both_classes: bool,
) -> None:
    where = ", ".join(str(path) for path in paths)
    if not len(labels):
        raise Refused(f"{where}: no pictures that can be used.")
    if both_classes and len(np.unique(labels)) == 1:
        one, other = class_names if labels[0] else class_names[::-1]
        found = f"{where}: all {len(labels)} pictures are {one!r}"
        raise Refused(f"{found}. Training also needs pictures of {other!r}.")


# --- the course's HDF5 --------------------------------------------------------------------------
#
# train_set_x   (m, side, side, 3) uint8, RGB       or test_set_x and test_set_y
# train_set_y   m labels of 0 and 1
# list_classes  the names of the classes 0 and 1; may be missing


def _list_hdf5(path: Path, class_names: tuple[str, str]) -> list[ListedPicture]:
    try:
        with h5py.File(path) as file:
            datasets = {n for n in file if isinstance(file.get(n), h5py.Dataset)}
            split = "train" if {"train_set_x", "train_set_y"} <= datasets else "test"
            wanted = (f"{split}_set_x", f"{split}_set_y", "list_classes")
            held = {n: np.asarray(file[n][()]) for n in datasets.intersection(wanted)}
            holds = ", ".join(sorted(file)) or "nothing"
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # h5py raises each of them
        raise Refused(f"{path} is not an HDF5 file, or is damaged: {error}.") from error
    if not {f"{split}_set_x", f"{split}_set_y"} <= held.keys():
        expected = "train_set_x and train_set_y, nor test_set_x and test_set_y"
        raise Refused(f"{path} has no datasets {expected}; it holds: {holds}.")
    x, y = held[f"{split}_set_x"], held[f"{split}_set_y"]
    if x.ndim != 4 or x.shape[1] != x.shape[2] or x.shape[3] != 3 or x.dtype != np.uint8:
        found = f"{split}_set_x has shape {x.shape} of {x.dtype}"
        expected = "(m, side, side, 3) of uint8, one RGB picture each"
        raise Refused(f"{path}: {found}; expected {expected}.")
    one_each = y.size == len(x) == max(y.shape, default=0)
    if not one_each or y.dtype.kind not in "biuf" or not np.isin(y, (0, 1)).all():
        found = f"{split}_set_y has shape {y.shape} of {y.dtype}"
        raise Refused(f"{path}: {found}; expected a 0 or 1 for each of the {len(x)} pictures.")
    listed = np.ravel(held.get("list_classes", [])).tolist() or class_names[::-1]
    names = [n.decode(errors="replace") if isinstance(n, bytes) else str(n) for n in listed]
    if sorted(names) != sorted(class_names):
        found = f"{path}: its classes are {_quoted(names)}, not {_quoted(class_names)}"
        raise Refused(f"{found}. Use --classes with these names, the class to detect first.")
    pictures = []
    for i, (pixels, number) in enumerate(zip(x, y.astype(int).ravel(), strict=True)):
        label, name = float(names[number] == class_names[0]), f"{names[number]}/course-{i:05d}"
        pictures.append(ListedPicture(name, "course", label, path, partial(png, pixels)))
    return pictures


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
    files: Sequence[Load] = ()  # (m,): what gives the bytes of each

    def __len__(self) -> int:
        return len(self.labels)

    def __str__(self) -> str:
        counts = ", ".join(f"{self.count(name):,} {name}" for name in self.class_names)
        return f"{len(self):,} pictures ({counts})"

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

    @property
    def reported_sources(self) -> list[str]:
        """The sources (m,) as figures are given for them: rooms apart, small ones together."""
        return join_small([part.source for part in self.parts], LEAST_OF_A_SOURCE)

    def describe(self, paths: Sequence[Path]) -> dict[str, Any]:
        """What weights and reports say of these data, as JSON values: names of files, never where
        they lay."""
        first, second = self.class_names
        counts = Counter(zip(self.reported_sources, self.labels.tolist(), strict=True))
        sources = sorted({source for source, _ in counts})
        return {
            "files": [printable(path.name) for path in paths],
            "pictures": len(self),
            "classes": {name: self.count(name) for name in self.class_names},
            "sources": {s: {first: counts[s, 1], second: counts[s, 0]} for s in sources},
            "left_out": len(self.skipped),
            "sha256": self.fingerprint,
        }

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
            files=[self.files[i] for i in places.tolist()] if self.files else (),
        )


def read_pictures(
    paths: Sequence[Path],
    side: int = 64,
    class_names: tuple[str, str] = CLASS_NAMES,
    *,
    smallest: int | None = None,
    preprocessing: Preprocessing = Preprocessing(),
    both_classes: bool = True,
    skip_bad: bool = False,
    say: Say | None = None,
) -> PictureSet:
    """All pictures of all paths, joined in the order of the paths and, within one, of the names.

    side: pixels of a side of what comes out; everything else as `preprocessing` says.
    class_names: of the two folders, or the HDF5's `list_classes`; the first one is labelled 1.
    smallest: as for `read_at_own_size`; smaller pictures fill the first rows and columns, black
    beyond. Without it all are resized.
    both_classes: refuse data of which all pictures are of one class; training needs both.
    skip_bad: leave out what cannot be used, instead of refusing the data.
    say: is given a line that says what was read and how much was left out.

    Raises Refused: a path that is missing, damaged, encrypted or nothing of the above, files that
    are no pictures, pictures that cannot be read or are there in both classes, only one class.
    """
    if class_names[0] == class_names[1]:
        raise Refused(f"--classes needs two different names, not {class_names[0]!r} twice.")
    listing = DataListing()
    for path in paths:
        _list(path, class_names, listing)
    listed = listing.pictures
    _check_classes(paths, [each.label for each in listed], class_names, both_classes)
    pictures = np.zeros((len(listed), side, side, 3), np.uint8)
    sides = np.full(len(listed), side, np.int16)
    spec = replace(preprocessing, side=side)

    def read(i: int) -> str | None:
        """What is wrong with the picture, if anything is."""
        try:
            pixels = read_at_own_size(listed[i].load(), spec, smallest or side)
        except (InvalidImage, OSError) as error:
            return str(error)
        sides[i] = len(pixels)
        pictures[i, : sides[i], : sides[i]] = pixels
        return None

    wrong = on_all_cores(read, len(listed), "reading")
    bad = {i: reason for i, reason in enumerate(wrong) if reason is not None}
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
    bad |= _same_in_both_classes(data, bad)
    unusable = [(f"{listed[i].name} in {listed[i].file}", bad[i]) for i in sorted(bad)]
    unusable += listing.unusable
    if unusable and not skip_bad:
        lines = [f"  {name}: {reason}" for name, reason in unusable[:_SHOWN]]
        if len(unusable) > _SHOWN:
            lines.append(f"  and {len(unusable) - _SHOWN:,} more")
        count = f"{len(unusable):,} file{'s' if len(unusable) > 1 else ''}"
        remedy = "Remove or replace them, or skip them with --skip-bad."
        raise Refused("\n".join([f"{count} cannot be used:", *lines, remedy]))
    if bad:
        skipped = data.skipped + [(listed[i].name, bad[i]) for i in sorted(bad)]
        data = replace(data.only(~np.isin(np.arange(len(listed)), list(bad))), skipped=skipped)
        _check_classes(paths, data.labels, class_names, both_classes)
    if say:
        line = f"{', '.join(printable(path.name) for path in paths)}: {data}"
        for n, what in ((len(data.skipped), "file"), (data.hidden, "hidden file")):
            line += f"; left out {n:,} {what}{'s' if n > 1 else ''}" if n else ""
        say(line)
    return data


def read_at_own_size(data: bytes, spec: Preprocessing, smallest: int) -> Pixels:
    """The picture of a file, resized to (s, s, 3): s is its larger side, but at least `smallest`
    and at most the side of `spec`. Raises InvalidImage."""
    picture = read_picture(data, spec)
    side = max(min(max(picture.width, picture.height), spec.side), smallest)
    if side != spec.side:
        picture = read_picture(data, replace(spec, side=side))
    return picture.pixels


def on_all_cores(function: Callable[[int], T], count: int, label: str) -> list[T]:
    """function(i) for each i below `count`, on as many threads as there are cores: Pillow and NumPy
    let go of the interpreter lock. label: of the progress bar. Raises Refused for an InvalidImage
    or OSError of the function: what it reads was read before."""
    tasks = [range(count)[i : i + _PICTURES_A_TASK] for i in range(0, count, _PICTURES_A_TASK)]
    results: list[T] = []
    try:
        with ThreadPoolExecutor(cores()) as pool, progress_bar(label, "picture", count) as bar:
            for done in pool.map(lambda rows: [function(i) for i in rows], tasks):
                results += done
                bar.update(len(done))
    except (InvalidImage, OSError) as error:
        raise Refused(f"A picture could be read before, but not now: {error}.") from error
    return results


def _same_in_both_classes(data: PictureSet, unread: Mapping[int, str]) -> dict[int, str]:
    """{i: reason} of the pictures that are in both classes, pixel for pixel."""
    same: dict[bytes, list[int]] = defaultdict(list)
    for i, side in enumerate(data.sides):
        if i not in unread:
            pixels = np.ascontiguousarray(data.pictures[i, :side, :side])
            same[hashlib.blake2b(pixels.data, digest_size=16).digest()].append(i)
    found = {}
    for copies in same.values():
        of_label = {float(data.labels[i]): data.names[i] for i in reversed(copies)}
        if len(of_label) == 2:
            for i in copies:
                found[i] = f"is the same picture as {of_label[1 - float(data.labels[i])]}"
    return found
