"""Make training, validation and test zips from the public sets PetImages and Tiny ImageNet.

    python -m scripts.get_data mydata --pets kagglecatsanddogs_5340.zip --tiny tiny-imagenet-200.zip

writes mydata/pictures-train.zip, -val.zip and -test.zip with the folders cat/ and non-cat/, which
`python -m training` reads. docs/training.md tells where the archives come from, on what terms, and
what is missing in them.

Which pictures are taken, and which split each is in, is decided by the SHA-256 of its file alone:
the same archives give the same zips, and a picture that is there twice is not in two splits.
"""

import hashlib
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Annotated, NamedTuple
from zipfile import BadZipFile, ZipFile, ZipInfo

import typer
from PIL import Image

from model.preprocessing import InvalidImage, Preprocessing, read_picture

SPLITS = {"train": 0.8, "val": 0.1, "test": 0.1}
PETS_SIDE, PETS_QUALITY = 96, 90  # room to crop from, for a network that sees 64×64
CATS = {"n02123045", "n02123394", "n02124075"}  # Tiny ImageNet's tabby, Persian, Egyptian cat
LOOKALIKES = {  # small dogs, large dogs, big cats, bears, monkeys, …: training/names.toml has names
    *("n01882714", "n02085620", "n02094433", "n02099601", "n02099712", "n02106662", "n02113799"),
    *("n02125311", "n02129165", "n02132136", "n02364673", "n02415577", "n02423022", "n02480495"),
    *("n02481823", "n02486410", "n02509815"),
}
_DATE = (1980, 1, 1, 0, 0, 0)  # of every file in the zips: the same content, the same bytes


class Found(NamedTuple):
    """A picture in an archive."""

    name: str  # that it gets: "cat/pets-cat-00012.jpg"
    kind: str  # within it, pictures are chosen: "pets-cat", "tiny-n02123045"
    digest: str  # SHA-256 of the file
    member: str
    archive: ZipFile

    @property
    def cat(self) -> bool:
        return self.name.startswith("cat/")


def pets(archive: ZipFile) -> Iterator[Found]:
    """PetImages: PetImages/Cat/12.jpg, PetImages/Dog/12.jpg."""
    for member, path in _jpegs(archive):
        kind = path.parent.name.lower()
        if kind in ("cat", "dog") and path.stem.isdigit():
            folder = "cat" if kind == "cat" else "non-cat"
            name = f"{folder}/pets-{kind}-{int(path.stem):05}.jpg"
            yield Found(name, f"pets-{kind}", _digest(archive.read(member)), member, archive)


def tiny(archive: ZipFile) -> Iterator[Found]:
    """Tiny ImageNet: train/WNID/images/WNID_0.JPEG, and val/images/val_0.JPEG with the classes in
    val/val_annotations.txt. Its test pictures have no labels."""
    annotated = [each for each in archive.namelist() if each.endswith("/val_annotations.txt")]
    lines = [line for each in annotated for line in archive.read(each).decode().splitlines()]
    classes = {name: wnid for name, wnid, *_ in (line.split("\t") for line in lines)}
    for member, path in _jpegs(archive):
        in_training = "train" in path.parts and path.parent.name == "images"
        wnid = path.parent.parent.name if in_training else classes.get(path.name, "")
        if not wnid:
            continue
        folder = "cat" if wnid in CATS else "non-cat"
        stem = path.stem if path.stem.startswith(wnid) else f"{wnid}_{path.stem}"
        digest = _digest(archive.read(member))
        yield Found(f"{folder}/tiny-{stem}.jpg", f"tiny-{wnid}", digest, member, archive)


def _jpegs(archive: ZipFile) -> Iterator[tuple[str, PurePosixPath]]:
    for member in archive.namelist():
        path = PurePosixPath(member)
        if path.suffix.lower() in (".jpg", ".jpeg"):
            yield member, path


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def choose(found: Iterable[Found], others: int, lookalikes: int) -> tuple[list[Found], int]:
    """The pictures to use, and how many were left out for being there twice or in both classes.

    All cats and dogs; of Tiny ImageNet's other classes `others` each, of those that resemble cats
    or that a network takes for them, `lookalikes` each.
    """
    by_digest: dict[str, list[Found]] = defaultdict(list)
    for each in sorted(found):
        by_digest[each.digest].append(each)
    unique = [same[0] for same in by_digest.values() if len({each.cat for each in same}) == 1]
    left_out = sum(map(len, by_digest.values())) - len(unique)
    by_kind: dict[str, list[Found]] = defaultdict(list)
    for each in unique:
        by_kind[each.kind].append(each)
    chosen = []
    for kind, members in by_kind.items():
        wnid = kind.removeprefix("tiny-")
        limit = lookalikes if wnid in LOOKALIKES else others
        if wnid == kind or wnid in CATS:
            limit = len(members)
        # Another hash than the one that splits, or all that are chosen would be in one split.
        chosen += sorted(members, key=lambda each: _digest(each.digest.encode()))[:limit]
    return sorted(chosen), left_out


def split_of(digest: str) -> str:
    """The split that a picture is in."""
    place = int(digest[:16], 16) / 2**64
    for name, share in SPLITS.items():
        place -= share
        if place < 0:
            return name
    return name


def stored(found: Found) -> bytes:
    """The picture as it goes into the zips: of PetImages as the service reads it, upright and
    resized to a square, of 96×96 pixels; of Tiny ImageNet as it is. Raises InvalidImage."""
    data = found.archive.read(found.member)
    picture = read_picture(data, Preprocessing(side=PETS_SIDE))
    if not found.kind.startswith("pets-"):
        return data
    file = BytesIO()
    Image.fromarray(picture.pixels).save(file, "JPEG", quality=PETS_QUALITY)
    return file.getvalue()


def write(chosen: Sequence[Found], out: Path) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Write the zips; pictures counted by (split, kind of source and class), and a line for each
    that cannot be read and is left out. Whole zips or none: they are renamed at the end."""
    counts: Counter[tuple[str, str]] = Counter()
    refused = []
    parts = {split: out / f"pictures-{split}.part" for split in SPLITS}
    with ExitStack() as stack:
        zips = {split: stack.enter_context(ZipFile(part, "w")) for split, part in parts.items()}
        for number, each in enumerate(chosen, start=1):
            try:
                data = stored(each)
            except InvalidImage as error:
                refused.append(f"{each.member}: {error}")
                continue
            split = split_of(each.digest)
            zips[split].writestr(ZipInfo(each.name, _DATE), data)
            counts[split, f"{each.kind[:4]} {each.name.partition('/')[0]}"] += 1
            if number % 1000 == 0:
                print(f"{number:,} of {len(chosen):,} pictures", file=sys.stderr)
    for part in parts.values():
        part.replace(part.with_suffix(".zip"))
    return counts, refused


def main(
    out: Annotated[Path, typer.Argument(help="a folder to write to")],
    pets_zip: Annotated[Path | None, typer.Option("--pets", help="PetImages, a zip")] = None,
    tiny_zip: Annotated[Path | None, typer.Option("--tiny", help="Tiny ImageNet, a zip")] = None,
    others: Annotated[int, typer.Option(help="pictures of each ordinary class")] = 125,
    lookalikes: Annotated[int, typer.Option(help="pictures of each class like a cat")] = 425,
) -> None:
    """Make training, validation and test zips; exit status 2 where an archive is not right."""
    found: list[Found] = []
    archives = {pets: pets_zip, tiny: tiny_zip}
    file = None
    if not any(archives.values()):
        print("Name at least one archive: --pets FILE or --tiny FILE.", file=sys.stderr)
        raise typer.Exit(2)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for read, file in ((read, file) for read, file in archives.items() if file):
            print(f"reading {file}", file=sys.stderr)
            found += read(ZipFile(file))
        if not found:
            raise BadZipFile("no pictures as --pets or --tiny has them")
        chosen, left_out = choose(found, others, lookalikes)
        _report(*write(chosen, out), left_out)
    except (BadZipFile, OSError) as error:
        advice = f"{file or out}: {error}. Is it the right archive, and whole?"
        print(advice if isinstance(error, BadZipFile) else error, file=sys.stderr)
        raise typer.Exit(2) from None


def _report(counts: Counter[tuple[str, str]], refused: Sequence[str], left_out: int) -> None:
    kinds = sorted({kind for _, kind in counts})
    print(f"{'':<6}" + "".join(f"{kind:>15}" for kind in kinds))
    for split in SPLITS:
        print(f"{split:<6}" + "".join(f"{counts[split, kind]:>15,}" for kind in kinds))
    print(f"\n{left_out} were there twice, or as both classes, and were left out")
    print(f"{len(refused)} cannot be read and were left out", *refused, sep="\n  ")


if __name__ == "__main__":
    typer.run(main)
