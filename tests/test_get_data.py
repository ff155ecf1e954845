"""scripts/get_data.py, on archives laid out like the real ones."""

import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import get_data
from training.data import read_pictures

OTHER = "n01443537"  # goldfish
CAT, LOOKALIKE = "n02123045", "n02085620"


def jpeg(seed: int, size: tuple[int, int]) -> bytes:
    pixels = np.random.default_rng(seed).integers(256, size=(*size[::-1], 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def pets_zip(tmp_path: Path) -> Path:
    path = tmp_path / "pets.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(40):
            archive.writestr(f"PetImages/Cat/{i}.jpg", jpeg(i, (120, 90)))
            archive.writestr(f"PetImages/Dog/{i}.jpg", jpeg(100 + i, (90, 130)))
        archive.writestr("PetImages/Cat/666.jpg", b"")  # the real set has such ones
        archive.writestr("PetImages/Cat/700.jpg", jpeg(3, (120, 90)))  # as number 3
        archive.writestr("PetImages/Dog/701.jpg", jpeg(4, (120, 90)))  # as cat number 4
        archive.writestr("PetImages/Dog/Thumbs.db", b"junk")
        archive.writestr("readme[1].txt", b"terms")
    return path


@pytest.fixture
def tiny_zip(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for kind, wnid in enumerate((CAT, LOOKALIKE, OTHER)):
            for i in range(30):
                name = f"tiny-imagenet-200/train/{wnid}/images/{wnid}_{i}.JPEG"
                archive.writestr(name, jpeg(1000 * (kind + 1) + i, (64, 64)))
        archive.writestr("tiny-imagenet-200/val/images/val_0.JPEG", jpeg(5000, (64, 64)))
        archive.writestr("tiny-imagenet-200/test/images/test_0.JPEG", jpeg(5001, (64, 64)))
        archive.writestr(
            "tiny-imagenet-200/val/val_annotations.txt", f"val_0.JPEG\t{CAT}\t0\t0\t9\t9\n"
        )
    return path


def names(folder: Path, split: str) -> set[str]:
    with zipfile.ZipFile(folder / f"pictures-{split}.zip") as archive:
        return set(archive.namelist())


def all_names(folder: Path) -> set[str]:
    return set.union(*(names(folder, split) for split in get_data.SPLITS))


def test_every_picture_is_in_one_split(tmp_path: Path, pets_zip: Path, tiny_zip: Path) -> None:
    out = tmp_path / "out"
    assert get_data.main([str(out), "--pets", str(pets_zip), "--tiny", str(tiny_zip)]) == 0
    splits = [names(out, split) for split in get_data.SPLITS]
    assert len(splits[0] | splits[1] | splits[2]) == sum(map(len, splits))
    assert len(splits[0]) > len(splits[1]) > 0 < len(splits[2])
    cats = {name for name in all_names(out) if name.startswith("cat/")}
    assert f"cat/tiny-{CAT}_val_0.jpg" in cats
    assert f"cat/tiny-{CAT}_7.jpg" in cats
    assert f"non-cat/tiny-{LOOKALIKE}_7.jpg" in all_names(out)
    assert "non-cat/pets-dog-00012.jpg" in all_names(out)


def test_what_is_there_twice_or_broken_is_left_out(
    tmp_path: Path, pets_zip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert get_data.main([str(tmp_path), "--pets", str(pets_zip)]) == 0
    assert "cat/pets-cat-00003.jpg" in all_names(tmp_path)
    for gone in ("cat-00700", "cat-00004", "dog-00701", "cat-00666"):
        assert not any(gone in name for name in all_names(tmp_path)), gone
    assert "3 were there twice, or as both classes" in (printed := capsys.readouterr().out)
    assert "PetImages/Cat/666.jpg" in printed


def test_the_same_archives_give_the_same_bytes(tmp_path: Path, pets_zip: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        assert get_data.main([str(folder), "--pets", str(pets_zip)]) == 0
    for split in get_data.SPLITS:
        first, second = ((f / f"pictures-{split}.zip").read_bytes() for f in folders)
        assert first == second


def test_so_many_of_each_class_are_taken(tmp_path: Path, tiny_zip: Path) -> None:
    options = ["--tiny", str(tiny_zip), "--others", "5", "--lookalikes", "20"]
    assert get_data.main([str(tmp_path), *options]) == 0
    taken = [name.partition("tiny-")[2].partition("_")[0] for name in all_names(tmp_path)]
    assert {wnid: taken.count(wnid) for wnid in set(taken)} == {CAT: 31, LOOKALIKE: 20, OTHER: 5}


def test_training_reads_the_zips(tmp_path: Path, pets_zip: Path, tiny_zip: Path) -> None:
    get_data.main([str(tmp_path), "--pets", str(pets_zip), "--tiny", str(tiny_zip)])
    pictures = read_pictures([tmp_path / "pictures-train.zip"])
    assert set(pictures.sources) == {"pets", "tiny"}
    assert 0 < pictures.count("cat") < len(pictures)
    with zipfile.ZipFile(tmp_path / "pictures-train.zip") as archive:
        sizes = {
            name.partition("/")[2][:4]: Image.open(BytesIO(archive.read(name))).size
            for name in archive.namelist()
        }
    assert sizes == {"pets": (96, 96), "tiny": (64, 64)}


def test_an_address_is_fetched_once(tmp_path: Path, tiny_zip: Path) -> None:
    address = "https://127.0.0.1:9/sets/tiny.zip"  # nothing answers there
    assert get_data.fetch(address, tiny_zip.parent) == tiny_zip
    assert get_data.main([str(tmp_path / "empty"), "--tiny", address]) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"not a zip", "not a whole zip"), (None, "holds no pictures of PetImages")],
)
def test_another_archive_is_refused(
    tmp_path: Path, content: bytes | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.zip"
    if content is None:
        zipfile.ZipFile(path, "w").close()
    else:
        path.write_bytes(content)
    assert get_data.main([str(tmp_path), "--pets", str(path)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "pictures-train.zip").exists()


def test_a_missing_archive_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert get_data.main([str(tmp_path), "--pets", str(tmp_path / "absent.zip")]) == 2
    assert "absent.zip" in capsys.readouterr().err
