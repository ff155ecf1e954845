"""Folders and zips: which pictures are found, what a row says, and that an interruption costs
nothing."""

import asyncio
import io
import json
import os
import signal
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import aclosing, closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from model import archive
from model.__main__ import Output
from model.archive import Entry, EntryType, Found, Pictures, Refused, Row, Unreadable
from model.classifier import Classifier
from model.worker import Handle, Job, Reply, serve
from model.workers import Workers
from tests import pictures
from tests.pictures import write_files, zipped

PNG = pictures.picture("PNG")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: pictures good and bad, in folders and a zip, beside other files."""
    monkeypatch.chdir(tmp_path)
    files = dict.fromkeys(("a.png", "b/deep.PNG", "b/@eaDir/deep.PNG/M.jpg", ".hidden.png"), PNG)
    files |= {"cut.png": PNG[:-200], "notes.txt": b"hello"}
    files["c.zip"] = zipped({"x\\1.png": PNG, "x/readme": b"", "__MACOSX/1.png": b""})
    return write_files(tmp_path, files)


FILES = {  # what each is, in the order in which a folder gives them
    EntryType.HIDDEN: [".thumbnails", "@eaDir", "Thumbs.db", "b/._c.jpg", "b/DESKTOP.INI"],
    EntryType.PICTURE: ["a.JPG", "b.png", "b/c.heic"],
    EntryType.OTHER: ["a.txt", "a.xmp", "noname"],
    EntryType.ZIP: ["b/old.zip"],
}


def names(entries: Iterable[Entry], type_: EntryType = EntryType.PICTURE) -> list[str]:
    return [entry.name for entry in entries if entry.type == type_]


def test_a_folder_and_its_zip_give_the_same_in_the_order_of_names(tmp_path: Path) -> None:
    every = {*chain(*FILES.values())} - {".thumbnails", "@eaDir"}
    every |= {".thumbnails/large/a.png", "@eaDir/a.JPG/SYNOPHOTO_THUMB_M.jpg", "@eaDir/x.jpg"}
    files = dict.fromkeys(sorted(every), b"x")
    in_folder = list(archive.folder_entries(write_files(tmp_path, files)))
    assert [entry.name for entry in in_folder] == sorted(chain(*FILES.values()))
    in_zip = list(archive.zip_entries(zipfile.ZipFile(io.BytesIO(zipped(files)))))
    for found in (in_folder, in_zip):
        assert {each: names(found, each) for each in FILES} == FILES


def test_folders_that_all_link_to_each_other_are_read_a_few_times_each(tmp_path: Path) -> None:
    folders = [write_files(tmp_path / str(i), {"1.jpg": b""}) for i in range(8)]
    for folder in folders:
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    found = names(archive.folder_entries(tmp_path, follow_links=True))
    assert {f"{i}/1.jpg" for i in range(8)} < {*found}
    assert {f"{i}/to-{j}/1.jpg" for i in range(8) for j in range(8) if i != j} < {*found}
    assert len(found) <= 8 + 8 * 7 * 8  # not one for each way from folder to folder


def test_links_to_folders_are_not_followed_and_pipes_no_pictures(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "folder", {"own.jpg": b""})
    (folder / "again").symlink_to(folder)
    (folder / "file.jpg").symlink_to(folder / "own.jpg")
    (folder / "gone.jpg").symlink_to(tmp_path / "nothing")
    os.mkfifo(folder / "pipe.jpg")
    found = list(archive.folder_entries(folder))
    assert names(found) == ["file.jpg", "own.jpg"]
    assert names(found, EntryType.OTHER) == ["again", "pipe.jpg"]
    assert names(found, EntryType.BROKEN) == ["gone.jpg"]
    assert names(archive.folder_entries(tmp_path / "none"), EntryType.BROKEN) == ["."]


def test_pictures_are_found_sorted_and_other_files_are_counted(folder: Path) -> None:
    found = Pictures([str(folder)])
    for _ in range(2):
        names = [each.name for each in found]
        assert names == ["a.png", "b/deep.PNG", "c.zip/x/1.png", "cut.png"]
        assert found.skipped == 5  # @eaDir as one
    assert [each.read() for each in found][:3] == [PNG] * 3


@pytest.mark.usefixtures("folder")
def test_names_begin_as_several_sources_were_given_and_are_valid_text() -> None:
    Path(os.fsdecode(b"b/\xff\n.png")).write_bytes(PNG)
    assert [each.name for each in Pictures(["b", "./c.zip", "a.png"])] == [
        *("b/deep.PNG", "b/\\xff\n.png", "./c.zip/x/1.png", "a.png")
    ]
    assert [each.name for each in Pictures(["./c.zip"])] == ["c.zip/x/1.png"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "sources", [("b", "b/"), ("b", "b/deep.PNG"), ("same", "./same/../b"), (".", "x", "c.zip")]
)
def test_sources_that_have_a_picture_in_common_are_refused(sources: Sequence[str]) -> None:
    Path("same").symlink_to("b")
    for order in (sources, sources[::-1]):
        with pytest.raises(Refused, match="would get two rows"):
            Pictures(order)


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new)


STORED = zipped({"a.png": PNG}, zipfile.ZIP_STORED)
ENCRYPTED = patched(
    patched(STORED, b"PK\3\4\x14\0\0", b"PK\3\4\x14\0\1"), b"\x14\3\x14\0\0", b"\x14\3\x14\0\1"
)
BOMB = zipped({"a.png": bytes(archive.MOST_BYTES + 1)})
SIZE = (archive.MOST_BYTES + 1).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("data", "reason", "says"),
    [
        (ENCRYPTED, "unreadable", "is encrypted"),
        (patched(STORED, PNG[100:110], b"0123456789"), "unreadable", "Bad CRC"),
        (patched(STORED, b"PK\3\4", b"PK\3\5"), "unreadable", "The member cannot be read"),
        (zipped({"a.png": PNG}, zipfile.ZIP_LZMA), "unreadable", "compression method 14"),
        (zipped({"a.zip": STORED}), "unreadable", "zip inside a zip"),
        (STORED[:-30], "unreadable", "The zip cannot be read: File is not a zip file"),
        (BOMB, "too-large", "more than 101,048,576 bytes"),
        (patched(BOMB, SIZE, (10).to_bytes(4, "little")), "unreadable", "Bad CRC"),
    ],
    ids=["encrypted", "bits", "head", "method", "nested", "cut", "bomb", "liar"],
)
def test_what_is_wrong_with_a_zip_is_said(
    tmp_path: Path, data: bytes, reason: str, says: str
) -> None:
    (tmp_path / "a.zip").write_bytes(data)
    (found,) = Pictures([str(tmp_path / "a.zip")])
    with pytest.raises(Unreadable) as error:
        found.read()
    assert error.value.args[0] == reason
    assert says in error.value.args[1]


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "itself.png").symlink_to("itself.png")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(2**40)  # it is not read to its end
    for name, says in (("itself", "symbolic links"), ("large", "smaller"), ("no", "No such file")):
        (found,) = Pictures([str(tmp_path / f"{name}.png")])
        with pytest.raises(Unreadable, match=says):
            found.read()


DEADLY = {
    "crash": "crashes-decoder",
    "spin": "takes-too-long",
    "grow": "too-many-pixels",
    "bug": "internal-error",
}


def load(weights: str) -> tuple[dict[str, Any], Handle]:
    """The archive's program, with pictures that end what decodes them."""
    description, handle = archive.load(weights)

    def deadly(jobs: Sequence[Job]) -> Sequence[Reply]:
        for job in jobs:
            match job.body:
                case b"crash":
                    os.kill(os.getpid(), signal.SIGSEGV)
                case b"spin":
                    while True:
                        pass
                case b"grow":
                    bytearray(2**30)
                case b"bug":
                    raise KeyError("no bytes")
        return handle(jobs)

    return description, deadly


async def rows_of(
    weights: Path, found: Iterable[Found], most: int = 1000, memory: int = 2**27, seconds: int = 1
) -> list[Row]:
    limits = {"memory_bytes": memory, "seconds": seconds}
    workers = Workers("tests.test_archive", [str(weights)], count=2, **limits)
    rows = []
    try:
        await workers.start()
        async with aclosing(archive.answers(workers, found)) as every:
            async for row in every:
                rows.append(row)
                if len(rows) == most:
                    break
    finally:
        await workers.stop()
    return rows


def expected(classifier: Classifier, name: str, data: bytes) -> Row:
    found = classifier.predict(data)
    values = {"cat_probability": found.cat_probability, "label": found.label}
    warnings = list(found.warnings)
    return {"picture": name, **values, "warnings": warnings, "model_version": classifier.version}


def test_rows_are_answers_in_order_of_pictures(weights_path: Path, classifier: Classifier) -> None:
    """For every kind of picture, as workers that may open no file answer. A picture that ends
    its worker is a row too, and the rest go on."""
    data = pictures.kinds() | {each: each.encode() for each in DEADLY}
    names = [*pictures.kinds()]
    names[35:35], names[20:20], names[1:1] = ["crash"], ["grow", "bug"], ["spin"]
    found = [Found(name, partial(bytes, data[name])) for name in names]
    rows = asyncio.run(rows_of(weights_path, found))
    assert [row["picture"] for row in rows] == names
    for row in rows:
        name = row["picture"]
        if name in DEADLY:
            assert row["error"]["reason"] == DEADLY[name]
        else:
            assert row == expected(classifier, name, data[name])


@pytest.mark.parametrize(("mebibytes", "answered"), [(6, 1), (16, 4), (32, 7)])
def test_memory_that_is_refused_is_never_taken_for_damage(
    mebibytes: int, answered: int, unsure_path: Path
) -> None:
    large = pictures.scene(1600, 1250)  # 2 million pixels: 8 MB in Pillow's memory
    heavy = {
        "baseline": pictures.encode(large, "JPEG"),
        "progressive": pictures.encode(large.convert("CMYK"), "JPEG", progressive=True),
        "transparent": pictures.encode(pictures.see_through().resize(large.size), "PNG"),
        "GIF": pictures.encode(large.convert("P"), "GIF"),
        "WebP": pictures.encode(large, "WEBP", lossless=False, method=0),
        "AVIF": pictures.encode(large, "AVIF", speed=10, subsampling="4:2:0"),
        "LZMA": pictures.encode(large, "TIFF", compression="lzma"),
    }
    found = [Found(name, partial(bytes, data)) for name, data in heavy.items()]
    rows = asyncio.run(rows_of(unsure_path, found, memory=mebibytes * 2**20, seconds=9))
    reasons = [row["error"]["reason"] if "error" in row else None for row in rows]
    assert {*reasons} <= {None, "too-many-pixels"}
    assert reasons.count(None) >= answered


def test_pictures_are_taken_only_as_they_are_needed(weights_path: Path) -> None:
    taken = []

    def endless() -> Iterator[Found]:
        while True:
            taken.append(Found("a.png", partial(bytes, PNG)))
            yield taken[-1]

    assert len(asyncio.run(rows_of(weights_path, endless(), most=3))) == 3
    assert len(taken) < 50


ROWS: list[Row] = [
    {"picture": "a.png", "cat_probability": 0.5, "label": "cat", "model_version": "v"},
    {"picture": "b.png", "error": {"reason": "damaged", "detail": "…"}, "model_version": "v"},
    {"picture": "c.png", "cat_probability": 0.1, "label": "dog", "model_version": "v"},
]
LINES = [json.dumps(row).encode() + b"\n" for row in ROWS]
WHOLE = b"".join(LINES)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def go_on(output: Path) -> int:
    """Write the rows that are not there yet; how many there were."""
    rest = iter([Found(row["picture"], partial(bytes, PNG)) for row in ROWS])
    with closing(Output(output, "v")) as file:
        there = list(file.rows_of(rest))
        assert there == ROWS[: len(there)]
        for row in ROWS[len(there) :]:
            assert next(rest).name == row["picture"]
            file.write(row)
    return len(there)


@pytest.mark.parametrize("tail", [b"", b"{", b'{"picture": "c', bytes(5000), WHOLE[:60] + bytes(9)])
@pytest.mark.parametrize("count", range(4))
def test_an_interrupted_output_ends_up_whole(output: Path, count: int, tail: bytes) -> None:
    output.write_bytes(b"".join(LINES[:count]) + tail)
    assert go_on(output) == count
    assert output.read_bytes() == WHOLE


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (patched(WHOLE, b'"model_version": "v', b'"model_version": "x'), "by the model x. This"),
        (patched(WHOLE, b"a.png", b"a0.png"), "Row 1 of .* is for a0.png"),
        (WHOLE + WHOLE, "Row 4 of .* would write no picture"),
        (patched(WHOLE, b'{"picture": "a', b'{"name": "a'), "command. Name another output.$"),
        (patched(WHOLE, b'"label": "dog"', b'"label": dog'), "Line 3 of .* was not written"),
    ],
    ids=["model", "pictures", "more", "not ours", "edited"],
)
def test_an_output_of_something_else_is_kept(output: Path, content: bytes, says: str) -> None:
    output.write_bytes(content)
    with pytest.raises(Refused, match=says):
        go_on(output)
    assert output.read_bytes() == content


def test_only_regular_files_are_written_and_by_one_process(output: Path) -> None:
    for place in (output.parent, Path(os.devnull)):
        with pytest.raises(Refused, match="is not a regular file"):
            Output(place, "v")
    with closing(Output(output, "v")), pytest.raises(Refused, match="Another process is writing"):
        Output(output, "v")


if __name__ == "__main__":
    serve(load)
