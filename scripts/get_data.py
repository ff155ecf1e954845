"""Make training, validation and test zips from the public sets PetImages and Tiny ImageNet.

    python -m scripts.get_data --pets kagglecatsanddogs_5340.zip --tiny tiny-imagenet-200.zip mydata

writes mydata/pictures-train.zip, -val.zip and -test.zip with the folders cat/ and non-cat/, which
`python -m training` reads. Each archive is a file, or an address that it is fetched from.
docs/data.md tells where the archives come from, on what terms, and what is missing in them.

Which pictures are taken, and which split each is in, is decided by the SHA-256 of its file alone:
the same archives give the same zips, and a picture that is there twice is not in two splits.
"""

import argparse
import hashlib
import sys
import urllib.request
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from shutil import copyfileobj

from PIL import Image

from model.preprocessing import InvalidImage, Preprocessing, read_picture

SPLITS = {"train": 0.8, "val": 0.1, "test": 0.1}
PETS_SIDE, PETS_QUALITY = 96, 90  # room to crop from, for a network that sees 64×64
CATS = {"n02123045", "n02123394", "n02124075"}  # Tiny ImageNet's tabby, Persian, Egyptian cat
LOOKALIKES = {
    "n01882714",  # koala
    "n02085620",  # Chihuahua
    "n02094433",  # Yorkshire terrier
    "n02099601",  # golden retriever
    "n02099712",  # Labrador retriever
    "n02106662",  # German shepherd
    "n02113799",  # standard poodle
    "n02125311",  # cougar
    "n02129165",  # lion
    "n02132136",  # brown bear
    "n02364673",  # guinea pig
    "n02415577",  # bighorn
    "n02423022",  # gazelle
    "n02480495",  # orangutan
    "n02481823",  # chimpanzee
    "n02486410",  # baboon
    "n02509815",  # red panda
}
_DATE = (1980, 1, 1, 0, 0, 0)  # of every file in the zips: the same content, the same bytes
_JPEG_ENDINGS = {".jpg", ".jpeg"}


class BadArchive(ValueError):
    """An archive that does not hold what it should: which, what, what to do."""


@dataclass(frozen=True)
class Found:
    """A picture in an archive."""

    name: str  # that it gets: "cat/pets-cat-00012.jpg"
    kind: str  # within it, pictures are chosen
    digest: str  # SHA-256 of the file
    member: str
    archive: zipfile.ZipFile

    @property
    def cat(self) -> bool:
        return self.name.startswith("cat/")


def pets(archive: zipfile.ZipFile) -> Iterator[Found]:
    """PetImages: PetImages/Cat/12.jpg, PetImages/Dog/12.jpg."""
    for member, path in _members(archive):
        kind = path.parent.name.lower()
        if kind in ("cat", "dog") and path.stem.isdigit():
            folder = "cat" if kind == "cat" else "non-cat"
            name = f"{folder}/pets-{kind}-{int(path.stem):05}.jpg"
            yield Found(name, f"pets-{kind}", _digest(archive.read(member)), member, archive)


def tiny(archive: zipfile.ZipFile) -> Iterator[Found]:
    """Tiny ImageNet: train/WNID/images/WNID_0.JPEG, and val/images/val_0.JPEG with the classes in
    val/val_annotations.txt. Its test pictures have no labels."""
    classes = _validation_classes(archive)
    for member, path in _members(archive):
        parts = path.parts
        if "train" in parts and path.parent.name == "images":
            wnid = path.parent.parent.name
        elif "val" in parts and path.name in classes:
            wnid = classes[path.name]
        else:
            continue
        folder = "cat" if wnid in CATS else "non-cat"
        stem = path.stem if path.stem.startswith(wnid) else f"{wnid}_{path.stem}"
        digest = _digest(archive.read(member))
        yield Found(f"{folder}/tiny-{stem}.jpg", f"tiny-{wnid}", digest, member, archive)


def _members(archive: zipfile.ZipFile) -> Iterator[tuple[str, PurePosixPath]]:
    for member in archive.namelist():
        path = PurePosixPath(member)
        if path.suffix.lower() in _JPEG_ENDINGS:
            yield member, path


def _validation_classes(archive: zipfile.ZipFile) -> dict[str, str]:
    """File name of each validation picture → its class."""
    for member in archive.namelist():
        if PurePosixPath(member).name == "val_annotations.txt":
            lines = archive.read(member).decode("utf-8").splitlines()
            return {name: wnid for name, wnid, *_ in (line.split("\t") for line in lines)}
    return {}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def choose(found: Iterable[Found], others: int, lookalikes: int) -> tuple[list[Found], int]:
    """The pictures to use, and how many were left out for being there twice or in both classes.

    All cats and dogs; of Tiny ImageNet's other classes `others` each, of those that resemble cats
    or that a network takes for them, `lookalikes` each.
    """
    by_digest: dict[str, list[Found]] = defaultdict(list)
    for each in sorted(found, key=lambda each: each.name):
        by_digest[each.digest].append(each)
    groups = by_digest.values()
    unique = [same[0] for same in groups if len({each.cat for each in same}) == 1]
    left_out = sum(len(same) for same in groups) - len(unique)
    by_kind: dict[str, list[Found]] = defaultdict(list)
    for each in unique:
        by_kind[each.kind].append(each)
    chosen = []
    for kind, members in by_kind.items():
        wnid = kind.removeprefix("tiny-")
        limit = len(members)
        if wnid != kind and wnid not in CATS:
            limit = lookalikes if wnid in LOOKALIKES else others
        # Another hash than the one that splits, or all that are chosen would be in one split.
        chosen += sorted(members, key=lambda each: _digest(each.digest.encode()))[:limit]
    return sorted(chosen, key=lambda each: each.name), left_out


def split_of(digest: str) -> str:
    """The split that a picture is in."""
    place = int(digest[:16], 16) / 2**64
    for name, share in SPLITS.items():
        place -= share
        if place < 0:
            return name
    return name


def small_jpeg(data: bytes) -> bytes:
    """The picture as the service reads it, upright and squeezed to a square, of 96×96 pixels;
    raises InvalidImage."""
    picture = read_picture(data, Preprocessing(side=PETS_SIDE))
    file = BytesIO()
    Image.fromarray(picture.pixels).save(file, "JPEG", quality=PETS_QUALITY)
    return file.getvalue()


def write(chosen: Sequence[Found], out: Path) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Write the zips; pictures counted by (split, kind of source and class), and a line for each
    that cannot be read and is left out. Whole zips or none: they are renamed at the end."""
    counts: Counter[tuple[str, str]] = Counter()
    refused = []
    files = {split: out / f"pictures-{split}.zip" for split in SPLITS}
    parts = {split: file.with_suffix(".part") for split, file in files.items()}
    zips = {split: zipfile.ZipFile(part, "w") for split, part in parts.items()}
    try:
        for number, each in enumerate(chosen, start=1):
            data = each.archive.read(each.member)
            try:  # Tiny ImageNet's are as small as they should be, and stay as they are
                data = small_jpeg(data) if each.kind.startswith("pets-") else _readable(data)
            except InvalidImage as error:
                refused.append(f"{each.member}: {error}")
                continue
            split = split_of(each.digest)
            zips[split].writestr(zipfile.ZipInfo(each.name, _DATE), data)
            counts[split, f"{each.kind[:4]} {each.name.partition('/')[0]}"] += 1
            if number % 1000 == 0:
                print(f"{number:,} of {len(chosen):,} pictures", file=sys.stderr)
    finally:
        for each_zip in zips.values():
            each_zip.close()
    for split, part in parts.items():
        part.replace(files[split])
    return counts, refused


def _readable(data: bytes) -> bytes:
    read_picture(data)
    return data


def fetch(place: str, folder: Path) -> Path:
    """The archive as a file: as it is, or fetched into the folder unless it is there already."""
    if not place.startswith(("http://", "https://")):
        return Path(place)
    file = folder / PurePosixPath(place).name
    if file.exists():
        print(f"{file} is there already", file=sys.stderr)
        return file
    print(f"fetching {place}", file=sys.stderr)
    part = file.with_suffix(".part")
    with urllib.request.urlopen(place, timeout=60) as answer, part.open("wb") as target:  # noqa: S310 - http(s) only
        copyfileobj(answer, target, 2**20)
    part.replace(file)
    return file


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the zips; 2 where an archive is missing or not what it should be."""
    options = _options(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        sources = (("PetImages", options.pets, pets), ("Tiny ImageNet", options.tiny, tiny))
        found: list[Found] = []
        for name, place, read in sources:
            if place is None:
                continue
            file = fetch(place, options.out)
            print(f"reading {file}", file=sys.stderr)
            pictures = list(read(zipfile.ZipFile(file)))
            if not pictures:
                raise BadArchive(f"{file} holds no pictures of {name}. Is it another archive?")
            found += pictures
        chosen, left_out = choose(found, options.others, options.lookalikes)
        counts, refused = write(chosen, options.out)
    except zipfile.BadZipFile as error:
        print(f"not a whole zip: {error}. Fetch it again.", file=sys.stderr)
        return 2
    except (BadArchive, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    _report(counts, left_out, refused)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--pets", metavar="ARCHIVE", help="PetImages: a file or an address")
    parser.add_argument("--tiny", metavar="ARCHIVE", help="Tiny ImageNet: a file or an address")
    parser.add_argument("--others", type=int, default=125, help="of each ordinary class")
    parser.add_argument("--lookalikes", type=int, default=425, help="of each class like a cat")
    options = parser.parse_args(arguments)
    if options.pets is None and options.tiny is None:
        parser.error("give --pets, --tiny or both")
    return options


def _report(counts: Counter[tuple[str, str]], left_out: int, refused: Sequence[str]) -> None:
    kinds = sorted({kind for _, kind in counts})
    print(f"{'':<6}" + "".join(f"{kind:>15}" for kind in kinds))
    for split in SPLITS:
        print(f"{split:<6}" + "".join(f"{counts[split, kind]:>15,}" for kind in kinds))
    if left_out:
        print(f"\n{left_out} were there twice, or as both classes, and were left out")
    if refused:
        print(f"\n{len(refused)} cannot be read and were left out:")
        print(*(f"  {line}" for line in refused[:10]), sep="\n")
        print(f"  and {len(refused) - 10} more" if len(refused) > 10 else "", end="")


if __name__ == "__main__":
    sys.exit(main())
