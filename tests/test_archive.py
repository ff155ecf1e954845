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
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from model import archive
from model.__main__ import Output
from model.archive import MOST_BYTES, Found, Pictures, Refused, Row, Unreadable, answers, read
from model.classifier import Classifier
from model.worker import Handle, Job, Reply, serve
from model.workers import Workers
from tests import pictures

PNG = pictures.picture("PNG")


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures good and bad, in folders and a zip, beside other files."""
    root = tmp_path / "pictures"
    (root / "b" / ".thumbnails").mkdir(parents=True)
    (root / "b" / "deep.PNG").write_bytes(PNG)
    (root / "b" / ".thumbnails" / "small.png").write_bytes(PNG)
    (root / "a.png").write_bytes(PNG)
    (root / "cut.png").write_bytes(PNG[:-200])
    (root / "notes.txt").write_bytes(b"hello")
    (root / ".hidden.png").write_bytes(PNG)
    (root / "c.zip").write_bytes(zipped({"x/1.png": PNG, "x/readme": b"", "__MACOSX/1.png": b""}))
    return root


def names(*sources: Path | str) -> list[str]:
    return [found.name for found in Pictures([str(each) for each in sources])]


# --- what is found ------------------------------------------------------------------------------


def test_pictures_are_found_sorted_and_other_files_are_counted(folder: Path) -> None:
    found = Pictures([str(folder)])
    for _ in range(2):
        assert [each.name for each in found] == ["a.png", "b/deep.PNG", "c.zip/x/1.png", "cut.png"]
        assert found.skipped == 5  # .thumbnails as one


def test_names_of_several_sources_begin_as_these_were_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert names("b", "./c.zip") == ["b/deep.PNG", "./c.zip/x/1.png"]
    assert names(folder / "c.zip") == ["c.zip/x/1.png"]


@pytest.mark.parametrize(
    "sources", [("b", "b/"), ("b", "b/deep.PNG"), ("same", "../pictures/b"), (".", "x", "c.zip")]
)
def test_sources_that_have_a_picture_in_common_are_refused(
    sources: Sequence[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    Path("same").symlink_to("b")
    for order in (sources, sources[::-1]):
        with pytest.raises(Refused, match="would have two rows"):
            Pictures(order)
    (folder / "b2").mkdir()
    Pictures(["b", "b2", "a.png"])


def test_linked_folders_are_left_out_and_broken_links_have_a_row(folder: Path) -> None:
    (folder / "b" / "again").symlink_to(folder)
    (folder / "b" / "itself.png").symlink_to("itself.png")
    (folder / "b" / "link.png").symlink_to(folder / "a.png")
    deep, itself, link = Pictures([str(folder / "b")])
    assert (deep.name, itself.name, link.name) == ("deep.PNG", "itself.png", "link.png")
    assert link.read() == PNG
    with pytest.raises(Unreadable, match="symbolic links"):
        itself.read()


def test_names_are_valid_text_whatever_the_file_system_allows(tmp_path: Path) -> None:
    (tmp_path / "two\nlines.png").write_bytes(PNG)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_bytes(PNG)
    assert names(tmp_path) == ["two\nlines.png", "\\xff.png"]


def test_zips_of_windows_and_of_network_drives_are_read_as_they_are(tmp_path: Path) -> None:
    kept = {"my\\cat\\1.png": PNG, "my\\cat\\Thumbs.db": b"", "my\\@eaDir\\1.png\\M.jpg": b""}
    (tmp_path / "a.zip").write_bytes(zipped(kept))
    found = Pictures([str(tmp_path / "a.zip")])
    (one,) = found
    assert one.name == "a.zip/my/cat/1.png"
    assert one.read() == PNG
    assert found.skipped == 2


def test_of_members_with_one_name_the_last_counts(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr("a.png", b"old")
        with pytest.warns(UserWarning, match="Duplicate"):
            made.writestr("a.png", PNG)
    (found,) = Pictures([str(tmp_path / "a.zip")])
    assert found.read() == PNG


# --- what cannot be read ------------------------------------------------------------------------


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new)


def encrypted(data: bytes) -> bytes:
    """The same with the flag for encryption set, in both places."""
    changed = bytearray(data)
    changed[6] |= 1
    changed[data.index(b"PK\1\2") + 8] |= 1
    return bytes(changed)


STORED = zipped({"a.png": PNG}, zipfile.ZIP_STORED)
BOMB = zipped({"a.png": bytes(MOST_BYTES + 1)})
SIZE = (MOST_BYTES + 1).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("data", "reason", "says"),
    [
        (encrypted(STORED), "unreadable", "is encrypted"),
        (patched(STORED, PNG[100:110], b"0123456789"), "unreadable", "Bad CRC"),
        (patched(STORED, b"PK\3\4", b"PK\3\5"), "unreadable", "The member cannot be read"),
        (zipped({"a.png": PNG}, zipfile.ZIP_LZMA), "unreadable", "compressed by method 14"),
        (zipped({"a.zip": STORED}), "unreadable", "zip in a zip"),
        (STORED[:-30], "unreadable", "The zip cannot be read: File is not a zip file"),
        (b"PK\3\4", "unreadable", "The zip cannot be read: File is not a zip file"),
        (BOMB, "too-large", "more than the 101,048,576 bytes"),
        (patched(BOMB, SIZE, (10).to_bytes(4, "little")), "unreadable", "Bad CRC"),
    ],
    ids=["encrypted", "bits", "head", "method", "nested", "cut", "start", "bomb", "liar"],
)
def test_what_is_wrong_with_a_zip_is_said(
    tmp_path: Path, data: bytes, reason: str, says: str
) -> None:
    (tmp_path / "a.zip").write_bytes(data)
    (found,) = Pictures([str(tmp_path / "a.zip")])
    assert found.name.startswith("a.zip")
    with pytest.raises(Unreadable) as error:
        found.read()
    assert error.value.args[0] == reason
    assert says in error.value.args[1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_has_a_row(folder: Path) -> None:
    (folder / "b").chmod(0)
    (bad,) = [each for each in Pictures([str(folder)]) if each.name == "b"]
    (folder / "b").chmod(0o755)
    with pytest.raises(Unreadable, match="Permission denied"):
        bad.read()


def test_a_file_that_is_too_large_is_not_read_to_its_end(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(Unreadable, match="save it smaller"):
        read(tmp_path / "a.png")


def broken_disk(path: Path) -> Path:
    """A link to a file whose reading fails with EIO, as on a disk that breaks."""
    path.symlink_to("/proc/self/mem")
    return path


def test_an_error_that_may_pass_is_no_row(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"x.png cannot be read: Input/output error\. Once it can"):
        read(broken_disk(tmp_path / "x.png"))


# --- rows ---------------------------------------------------------------------------------------

DEADLY = {b"crash": "crashes-decoder", b"spin": "takes-too-long", b"grow": "too-many-pixels"}
DEADLY[b"bug"] = "internal-error"


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
    weights: Path, found: Iterable[Found], most: int | None = None, program: str = "model.archive"
) -> list[Row]:
    workers = Workers(program, [str(weights)], count=2, memory_bytes=2**27, seconds=1)
    try:
        await workers.start()
        async with aclosing(answers(workers, found)) as rows:
            if most is None:
                return [row async for row in rows]
            return [await anext(rows) for _ in range(most)]
    finally:
        await workers.stop()


def expected(classifier: Classifier, name: str, data: bytes) -> Row:
    found = classifier.predict(data)
    return {
        "picture": name,
        "cat_probability": found.cat_probability,
        "label": found.label,
        "warnings": list(found.warnings),
        "model_version": classifier.version,
    }


def test_rows_are_the_classifiers_answers_in_the_order_of_the_pictures(
    weights_path: Path, classifier: Classifier
) -> None:
    data = {f"{i}.png": pictures.picture("PNG", 60 + 7 * i) for i in range(50)}
    data["turned.jpg"] = pictures.turned(6)
    found = [Found(name, partial(bytes, each)) for name, each in data.items()]
    rows = asyncio.run(rows_of(weights_path, found))
    assert rows == [expected(classifier, name, each) for name, each in data.items()]


def test_a_picture_that_ends_its_worker_is_a_row_and_the_rest_go_on(
    weights_path: Path, classifier: Classifier
) -> None:
    good = Found("good", partial(bytes, PNG))
    found = [
        each
        for body in DEADLY
        for each in (good, good, Found(body.decode(), partial(bytes, body)), good)
    ]
    rows = asyncio.run(rows_of(weights_path, found, program="tests.test_archive"))
    assert [row["picture"] for row in rows] == [each.name for each in found]
    errors = {row["picture"]: row["error"]["reason"] for row in rows if "error" in row}
    assert errors == {body.decode(): reason for body, reason in DEADLY.items()}
    answer = expected(classifier, "good", PNG)
    assert all(row == answer for row in rows if row["picture"] == "good")


def test_pictures_are_taken_only_as_they_are_needed(weights_path: Path) -> None:
    taken = 0

    def endless() -> Iterator[Found]:
        nonlocal taken
        for each in repeat(Found("a.png", partial(bytes, PNG))):
            taken += 1
            yield each

    asyncio.run(rows_of(weights_path, endless(), most=3))
    assert taken < 50


# --- the output ---------------------------------------------------------------------------------

ROWS: list[Row] = [
    {
        "picture": "a.png",
        "cat_probability": 0.5,
        "label": "cat",
        "warnings": [],
        "model_version": "v",
    },
    {"picture": "b.png", "error": {"reason": "damaged", "detail": "…"}, "model_version": "v"},
    {
        "picture": "c.png",
        "cat_probability": 0.1,
        "label": "dog",
        "warnings": [],
        "model_version": "v",
    },
]
WHOLE = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
FOUND = [Found(row["picture"], partial(bytes, PNG)) for row in ROWS]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def go_on(output: Path, version: str = "v", found: Sequence[Found] = FOUND) -> int:
    """Write the rows that are not there yet; how many there were."""
    rest = iter(found)
    with closing(Output(output, version)) as file:
        there = list(file.rows_of(rest))
        assert there == ROWS[: len(there)]
        assert [each.name for each in rest] == [row["picture"] for row in ROWS[len(there) :]]
        for row in ROWS[len(there) :]:
            file.write(row)
    return len(there)


@pytest.mark.parametrize("tail", [b"", b"{", b'{"picture": "c', bytes(5000), WHOLE[:60] + bytes(9)])
@pytest.mark.parametrize("rows", range(4))
def test_an_output_that_was_interrupted_ends_up_as_if_it_had_not_been(
    output: Path, rows: int, tail: bytes
) -> None:
    assert go_on(output) == 0
    assert output.read_bytes() == WHOLE
    output.write_bytes(b"".join(WHOLE.splitlines(keepends=True)[:rows]) + tail)
    assert go_on(output) == rows
    assert output.read_bytes() == WHOLE


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (patched(WHOLE, b'"model_version": "v', b'"model_version": "x'), "by the model x. Now"),
        (patched(WHOLE, b"a.png", b"a0.png"), "Row 1 of .* is for a0.png"),
        (WHOLE + WHOLE, "Row 4 of .* would be for no picture"),
        (patched(WHOLE, b'{"picture": "a', b'{"name": "a'), "Line 1 of .* is no row"),
        (patched(WHOLE, b'"label": "cat"', b'"label": cat'), "Line 1 of .* is no row"),
        (b"Dear diary", "Line 1 of .* is no row"),
        (WHOLE + b"[]\n", "Line 4 of .* is no row"),
    ],
    ids=["model", "pictures", "more", "not ours", "edited", "diary", "end"],
)
def test_an_output_of_something_else_is_refused_and_kept(
    output: Path, content: bytes, says: str
) -> None:
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
