"""Pictures are found in folders and zips as people and their programs leave them."""

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from model.archive import Entry, EntryType, folder_entries, zip_entries

FILES = {  # name → what it is, in the order in which a folder gives them
    ".thumbnails": EntryType.HIDDEN,
    "@eaDir": EntryType.HIDDEN,
    "Thumbs.db": EntryType.HIDDEN,
    "a.JPG": EntryType.PICTURE,
    "a.txt": EntryType.OTHER,
    "a.xmp": EntryType.OTHER,
    "b.png": EntryType.PICTURE,
    "b/._c.jpg": EntryType.HIDDEN,
    "b/DESKTOP.INI": EntryType.HIDDEN,
    "b/c.heic": EntryType.PICTURE,
    "b/old.zip": EntryType.ZIP,
    "noname": EntryType.OTHER,
}
INSIDE_HIDDEN = (".thumbnails/large/a.png", "@eaDir/a.JPG/SYNOPHOTO_THUMB_M.jpg", "@eaDir/x.jpg")


def files() -> list[str]:
    return [name for name in FILES if name not in (".thumbnails", "@eaDir")] + [*INSIDE_HIDDEN]


def fill(folder: Path, names: Iterable[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def pack(path: Path, names: Iterable[str]) -> list[Entry]:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    with zipfile.ZipFile(path) as archive:
        return list(zip_entries(archive))


def types(entries: Iterable[Entry]) -> dict[str, EntryType]:
    return {entry.name: entry.type for entry in entries}


def names(entries: Iterable[Entry], type_: EntryType = EntryType.PICTURE) -> list[str]:
    return [entry.name for entry in entries if entry.type == type_]


def test_a_folder_gives_pictures_and_the_rest_in_the_order_of_their_names(tmp_path: Path) -> None:
    found = types(folder_entries(fill(tmp_path, files())))
    assert list(found.items()) == list(FILES.items())


def test_a_zip_of_a_folder_gives_the_same(tmp_path: Path) -> None:
    assert types(pack(tmp_path / "x.zip", files())) == FILES


def test_backslashes_in_a_zip_are_slashes(tmp_path: Path) -> None:
    found = pack(tmp_path / "x.zip", ["my\\cat\\1.jpg", "my\\cat\\@eaDir\\1.jpg", "./my/2.jpg"])
    assert [(entry.name, entry.stored) for entry in found if entry.type == EntryType.PICTURE] == [
        ("my/cat/1.jpg", "my\\cat\\1.jpg"),
        ("my/2.jpg", "./my/2.jpg"),
    ]
    assert names(found, EntryType.HIDDEN) == ["my/cat/@eaDir"]


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with links: to a folder and a file elsewhere, to nothing, and in circles."""
    fill(tmp_path / "elsewhere", ["1.jpg"])
    folder = fill(tmp_path / "folder", ["cat/own.jpg"])
    (folder / "cat" / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "cat" / "file.jpg").symlink_to(tmp_path / "elsewhere" / "1.jpg")
    (folder / "cat" / "gone.jpg").symlink_to(tmp_path / "nothing")
    (folder / "cat" / "again").symlink_to(folder)
    (tmp_path / "elsewhere" / "back").symlink_to(folder / "cat")
    return folder


def test_links_to_folders_are_followed_on_request_and_never_in_a_circle(linked: Path) -> None:
    found = list(folder_entries(linked, follow_links=True))
    assert names(found) == ["cat/file.jpg", "cat/linked/1.jpg", "cat/own.jpg"]
    broken = {entry.name: str(entry.error) for entry in found if entry.error}
    assert list(broken) == ["cat/again", "cat/gone.jpg", "cat/linked/back"]
    assert "read already" in broken["cat/again"]
    assert "No such file" in broken["cat/gone.jpg"]


def test_links_to_folders_are_left_alone_otherwise(linked: Path) -> None:
    found = list(folder_entries(linked))
    assert names(found) == ["cat/file.jpg", "cat/own.jpg"]
    assert names(found, EntryType.OTHER) == ["cat/again", "cat/linked"]
    assert names(found, EntryType.BROKEN) == ["cat/gone.jpg"]


def test_links_between_many_folders_end(tmp_path: Path) -> None:
    """Every one of twelve folders links to all others: 12! ways through them."""
    folders = [fill(tmp_path / f"f{i}", ["x.jpg"]) for i in range(12)]
    for folder in folders:
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    assert len(list(folder_entries(tmp_path, follow_links=True))) < 2000


def test_a_folder_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        entries = list(folder_entries(tmp_path / "none"))
        assert [(entry.name, entry.type) for entry in entries] == [(".", EntryType.BROKEN)]
        return
    folder = fill(tmp_path, ["open/a.jpg", "shut/b.jpg"])
    (folder / "shut").chmod(0)
    found = list(folder_entries(folder))
    (folder / "shut").chmod(0o700)
    assert names(found, EntryType.BROKEN) == ["shut"]
    assert names(found) == ["open/a.jpg"]


def test_what_is_no_file_is_no_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert names(folder_entries(tmp_path), EntryType.OTHER) == ["pipe.jpg"]
