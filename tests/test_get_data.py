"""scripts/get_data.py, on archives laid out like the real ones."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from scripts import get_data
from tests.pictures import decode, encode, write_files, zipped
from training.data import read_pictures

OTHER = "n01443537"  # goldfish
CAT, LOOKALIKE = "n02123045", "n02085620"


def jpeg(seed: int, size: tuple[int, int]) -> bytes:
    pixels = np.random.default_rng(seed).integers(256, size=(*size[::-1], 3), dtype=np.uint8)
    return encode(Image.fromarray(pixels), "JPEG")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """PetImages and Tiny ImageNet, in small."""
    pets = {"readme[1].txt": b"terms"}
    for i in range(40):
        pets[f"PetImages/Cat/{i}.jpg"] = jpeg(i, (120, 90))
        pets[f"PetImages/Dog/{i}.jpg"] = jpeg(100 + i, (90, 130))
    pets["PetImages/Cat/666.jpg"] = b""  # the real set has such ones
    pets["PetImages/Cat/700.jpg"] = jpeg(3, (120, 90))  # as number 3
    pets["PetImages/Dog/701.jpg"] = jpeg(4, (120, 90))  # as cat number 4
    pets["PetImages/Dog/Thumbs.db"] = b"junk"
    tiny = {
        f"train/{wnid}/images/{wnid}_{i}.JPEG": jpeg(1000 * (kind + 1) + i, (64, 64))
        for kind, wnid in enumerate((CAT, LOOKALIKE, OTHER))
        for i in range(30)
    }
    tiny["val/images/val_0.JPEG"] = jpeg(5000, (64, 64))
    tiny["test/images/test_0.JPEG"] = jpeg(5001, (64, 64))
    tiny["val/val_annotations.txt"] = f"val_0.JPEG\t{CAT}\t0\t0\t9\t9\n".encode()
    tiny = {f"tiny-imagenet-200/{name}": data for name, data in tiny.items()}
    folder = tmp_path_factory.mktemp("archives")
    write_files(folder, {"pets.zip": zipped(pets), "tiny.zip": zipped(tiny)})
    return folder / "pets.zip", folder / "tiny.zip"


def members(folder: Path) -> list[dict[str, bytes]]:
    """Name → bytes, of each split."""
    found = []
    for split in get_data.SPLITS:
        with zipfile.ZipFile(folder / f"pictures-{split}.zip") as archive:
            found.append({name: archive.read(name) for name in archive.namelist()})
    return found


def test_every_picture_is_in_one_split_the_same_each_time_and_training_reads_it(
    tmp_path: Path, archives: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    get_data.main(tmp_path, *archives)
    train, val, test = members(tmp_path)
    every = train | val | test
    assert len(every) == len(train) + len(val) + len(test)
    assert len(train) > len(val) > 0 < len(test)
    kept = {f"cat/tiny-{CAT}_val_0.jpg", f"cat/tiny-{CAT}_7.jpg", f"non-cat/tiny-{LOOKALIKE}_7.jpg"}
    assert kept | {"cat/pets-cat-00003.jpg", "non-cat/pets-dog-00012.jpg"} <= every.keys()
    # There twice, in both classes, or broken
    for gone in ("cat-00700", "cat-00004", "dog-00701", "cat-00666", "test_0"):
        assert not any(gone in name for name in every), gone
    printed = capsys.readouterr().out
    assert "3 were there twice, or as both classes" in printed
    assert "PetImages/Cat/666.jpg" in printed
    sizes = {name.split("/")[1][:4]: decode(data).size for name, data in every.items()}
    assert sizes == {"pets": (96, 96), "tiny": (64, 64)}
    pictures = read_pictures([tmp_path / "pictures-train.zip"])
    assert set(pictures.sources) == {"pets", "tiny"}
    get_data.main(tmp_path / "again", *archives)
    for name in ("pictures-train.zip", "pictures-val.zip", "pictures-test.zip"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_so_many_of_each_class_are_taken(tmp_path: Path, archives: tuple[Path, Path]) -> None:
    get_data.main(tmp_path, None, archives[1], others=5, lookalikes=20)
    names = [name for split in members(tmp_path) for name in split]
    taken = [name.partition("tiny-")[2].partition("_")[0] for name in names]
    assert {wnid: taken.count(wnid) for wnid in set(taken)} == {CAT: 31, LOOKALIKE: 20, OTHER: 5}


def test_another_archive_or_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit):
        get_data.main(tmp_path)
    assert "--pets FILE or --tiny FILE" in capsys.readouterr().err
    path = tmp_path / "some.zip"
    for content, message in (
        (None, "No such file or directory"),
        (b"not a zip", "File is not a zip file"),
        (zipped({}), "no pictures as --pets or --tiny has them"),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(typer.Exit) as stopped:
            get_data.main(tmp_path, path)
        assert stopped.value.exit_code == 2
        assert str(path) in (printed := capsys.readouterr().err)
        assert message in printed
    assert not (tmp_path / "pictures-train.zip").exists()
