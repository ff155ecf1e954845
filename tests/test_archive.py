"""Folders and zips: which pictures are found, what a row says, and that an interruption costs
nothing."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path, PosixPath
from typing import Never

import pytest

from model import archive, batch
from model.__main__ import main
from model.archive import (
    BadSources,
    Found,
    Member,
    Pictures,
    SourceFailed,
    Unreadable,
    read,
    row,
)
from model.batch import BadOutput, CannotStart, Output, Pool, answers
from model.classifier import Classifier
from tests import pictures
from tests.data_folder import REPOSITORY

PNG = pictures.picture("PNG")


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures good and bad, in folders and a zip, beside what is none."""
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


def names(*sources: Path) -> list[str]:
    return [found.name for found in Pictures([str(each) for each in sources])]


# --- what is found ------------------------------------------------------------------------------


def test_pictures_are_found_sorted_and_what_is_none_is_counted(folder: Path) -> None:
    found = Pictures([str(folder)])
    expected = ["a.png", "b/deep.PNG", "c.zip/x/1.png", "cut.png"]
    assert [each.name for each in found] == expected
    assert found.skipped == 5  # .thumbnails as one
    assert [each.name for each in found] == expected


def test_names_of_several_sources_begin_as_these_were_given(folder: Path) -> None:
    both = names(folder / "b", folder / "c.zip")
    assert both == [f"{folder}/b/deep.PNG", f"{folder}/c.zip/x/1.png"]
    assert names(folder / "c.zip") == ["c.zip/x/1.png"]


def test_sources_that_have_a_picture_in_common_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    Path("same").symlink_to("b")
    for one, other in (
        ("b", "b/"),
        ("b", "b/deep.PNG"),
        ("same", "b"),
        (".", "c.zip"),
        (str(folder / "b"), "b"),
    ):
        for sources in ([one, other], [other, "../elsewhere", one]):
            with pytest.raises(BadSources, match="would have two rows"):
                Pictures(sources)
    (folder / "b2").mkdir()
    Pictures(["b", "b2", "a.png"])
    assert main(["b", "b/", "--output", "rows"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_links_that_lead_in_circles_are_not_followed(folder: Path) -> None:
    (folder / "b" / "again").symlink_to(folder)
    (folder / "b" / "itself.png").symlink_to("itself.png")
    (folder / "b" / "link.png").symlink_to(folder / "a.png")
    assert names(folder / "b") == ["deep.PNG", "itself.png", "link.png"]


def test_a_pipe_named_like_a_picture_is_left_out(folder: Path) -> None:
    os.mkfifo(folder / "b" / "pipe.png")
    assert names(folder / "b") == ["deep.PNG"]


def test_names_are_valid_text_on_one_line_whatever_the_file_system_allows(tmp_path: Path) -> None:
    (tmp_path / "two\nlines.png").write_bytes(PNG)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_bytes(PNG)
    found = names(tmp_path)
    assert found == ["two\nlines.png", "\\xff.png"]
    assert all(json.dumps(name).isprintable() for name in found)


def test_of_members_with_one_name_the_last_counts(tmp_path: Path, classifier: Classifier) -> None:
    with zipfile.ZipFile(tmp_path / "z", "w") as z:
        z.writestr("a.png", b"old")
        with pytest.warns(UserWarning, match="Duplicate"):
            z.writestr("a.png", PNG)
    (found,) = Pictures([str(tmp_path / "z")])
    assert "label" in row(classifier, *found)


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


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (encrypted(STORED), "encrypted"),
        (patched(STORED, PNG[100:110], b"0123456789"), "damaged within the archive: Bad CRC"),
        (patched(STORED, b"PK\3\4", b"PK\3\5"), "damaged within the archive"),
        (zipped({"a.png": PNG}, zipfile.ZIP_LZMA), "compressed by method 14"),
        (zipped({"a.zip": STORED}), "zip within a zip"),
        (STORED[:-30], "cannot be read: File is not a zip file"),
        (b"PK\3\4", "cannot be read: File is not a zip file"),
    ],
    ids=["encrypted", "bits", "header", "method", "nested", "cut", "start"],
)
def test_what_is_wrong_with_a_zip_is_a_row(
    tmp_path: Path, classifier: Classifier, data: bytes, says: str
) -> None:
    (tmp_path / "a.zip").write_bytes(data)
    (found,) = Pictures([str(tmp_path / "a.zip")])
    answer = row(classifier, *found)
    assert answer["picture"].startswith("a.zip")
    assert answer["error"]["reason"] == "unreadable"
    assert says in answer["error"]["detail"]


def test_a_member_that_grows_too_large_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MOST_BYTES", 1_000_000)
    bomb = zipped({"a.png": bytes(1_000_001)})
    (tmp_path / "a.zip").write_bytes(bomb)
    with pytest.raises(Unreadable, match="more than the 1,000,000"):
        read(Member(tmp_path / "a.zip", "a.png"))
    size = (1_000_001).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(patched(bomb, size, (10).to_bytes(4, "little")))
    with pytest.raises(Unreadable, match="damaged"):  # it claims less than it has
        read(Member(tmp_path / "a.zip", "a.png"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_a_row(folder: Path, classifier: Classifier) -> None:
    (folder / "b").chmod(0)
    try:
        rows = [row(classifier, *found) for found in Pictures([str(folder)])]
    finally:
        (folder / "b").chmod(0o755)
    (bad,) = [each for each in rows if each["picture"] == "b"]
    assert "Permission denied" in bad["error"]["detail"]


def test_a_file_too_large_is_a_row(
    folder: Path, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MOST_BYTES", len(PNG) - 1)
    assert row(classifier, "a.png", folder / "a.png")["error"]["reason"] == "too-large"


def test_bytes_too_many_are_a_row_wherever_they_come_from(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MOST_BYTES", len(PNG) - 1)
    assert row(classifier, "a.png", PNG)["error"]["reason"] == "too-large"


class Failing(PosixPath):
    """A file whose reading fails as on a disk that breaks."""

    def open(self, *_: object, **__: object) -> Never:
        raise OSError(errno.EIO, "Input/output error")


def fails(*_: object, **__: object) -> Never:
    raise OSError(errno.ESTALE, "Stale file handle")


def test_an_error_that_may_pass_is_no_row(classifier: Classifier) -> None:
    with pytest.raises(SourceFailed, match=r"^x.png: Input/output error$"):
        row(classifier, "x.png", Failing("x.png"))


@pytest.mark.usefixtures("two_processes")
@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        (archive, "_open_zip_as_it_is", fails),
        (os, "scandir", fails),
        # What another process reads.
        (Pictures, "_zip", lambda *_: [Found("x.png", Failing("x.png"))]),
    ],
    ids=["zip", "folder", "file"],
)
def test_the_command_ends_at_an_error_that_may_pass_and_goes_on_later(
    folder: Path,
    output: Path,
    weights: list[str],
    whole: bytes,
    owner: object,
    name: str,
    broken: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output.unlink()
    capsys.readouterr()
    with monkeypatch.context() as disk:
        disk.setattr(owner, name, broken)
        assert main([*weights, str(folder), "--output", str(output)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("The pictures cannot be read: ")
    assert printed.endswith(". The same command goes on from there.\n")
    assert b"error" not in output.read_bytes()
    assert main([*weights, str(folder), "--output", str(output)]) == 1
    assert output.read_bytes() == whole


# --- on all cores -------------------------------------------------------------------------------


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "processes", lambda: 2)


@pytest.mark.usefixtures("two_processes")
def test_rows_come_in_order_and_are_those_of_one_process(
    folder: Path, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_TASK_PICTURES", 2)
    found = list(Pictures([str(folder)])) * 5
    assert list(answers(classifier, found)) == [row(classifier, *each) for each in found]


@pytest.mark.usefixtures("two_processes")
def test_pictures_are_found_only_as_they_are_needed(
    folder: Path, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_TASK_PICTURES", 1)
    taken = 0

    def endless() -> Iterator[Found]:
        nonlocal taken
        while True:
            taken += 1
            yield Found("a.png", folder / "a.png")

    rows = answers(classifier, endless())
    next(rows)
    rows.close()
    assert taken <= 2 * batch._TASKS_A_PROCESS + 1


class Fatal(PosixPath):
    """A file whose reading ends the process."""

    def open(self, *_: object, **__: object) -> Never:
        os._exit(9)


@pytest.mark.usefixtures("two_processes")
def test_a_picture_that_ends_its_process_is_a_row_and_the_rest_go_on(
    folder: Path, classifier: Classifier
) -> None:
    good = Found("good", folder / "a.png")
    rows = list(answers(classifier, [good] * 20 + [Found("fatal", Fatal("x"))] + [good] * 20))
    assert [each["picture"] for each in rows] == ["good"] * 20 + ["fatal"] + ["good"] * 20
    assert rows.pop(20)["error"]["reason"] == "crashed"
    assert all(each == row(classifier, *good) for each in rows)


def test_pictures_answered_by_a_pool_of_one_are_rows_whatever_they_do(
    folder: Path, classifier: Classifier
) -> None:
    good = Found("good", folder / "a.png")
    pool = Pool(classifier, 1)
    try:
        rows = pool.answer([good, Found("fatal", Fatal("x")), good])
        assert pool.answer([good]) == [row(classifier, *good)]
    finally:
        pool.close()
    assert rows[1]["error"]["reason"] == "crashed"
    assert rows[::2] == [row(classifier, *good)] * 2


class Slow(PosixPath):
    """A file whose reading takes longer than a test."""

    def open(self, *_: object, **__: object) -> Never:
        time.sleep(600)
        raise AssertionError


@pytest.mark.usefixtures("two_processes")
def test_whoever_stops_does_not_wait_for_what_is_under_way(
    folder: Path, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_TASK_PICTURES", 1)
    rows = answers(classifier, [Found("a", folder / "a.png"), *[Found("slow", Slow("x"))] * 5])
    next(rows)
    began = time.monotonic()
    rows.close()
    assert time.monotonic() - began < 60


def test_processes_that_cannot_be_started_are_not_the_outputs_fault(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "ProcessPoolExecutor", fails)
    with pytest.raises(CannotStart, match=r"cannot be started: Stale file handle\.$"):
        Pool(classifier, 1).submit([])


# --- the output ---------------------------------------------------------------------------------


@pytest.fixture
def weights(weights_path: Path) -> list[str]:
    return ["--weights", str(weights_path)]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


@pytest.fixture
def whole(folder: Path, output: Path, weights: list[str]) -> bytes:
    """An output that was not interrupted."""
    assert main([*weights, str(folder), "--output", str(output)]) == 1
    return output.read_bytes()


def test_the_output_has_a_row_a_picture_and_a_summary_is_printed(
    folder: Path,
    output: Path,
    weights: list[str],
    classifier: Classifier,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*weights, str(folder), "--output", str(output)]) == 1
    expected = [row(classifier, *found) for found in Pictures([str(folder)])]
    assert [json.loads(line) for line in output.read_bytes().splitlines()] == expected
    captured = capsys.readouterr()
    assert captured.out == ""
    cats = sum(each.get("label") == "cat" for each in expected)
    assert captured.err.startswith(
        f"{cats} cat, {3 - cats} non-cat, 1 error (1 damaged); 5 other files left out; "
    )
    assert captured.err.endswith(" pictures/s\n")


@pytest.mark.parametrize("kept", [0, 1, 11, 12, 13, 100, -1])
def test_an_output_cut_anywhere_goes_on_to_the_same_bytes(
    folder: Path, output: Path, weights: list[str], whole: bytes, kept: int
) -> None:
    output.write_bytes(whole[:kept])
    assert main([*weights, str(folder), "--output", str(output)]) == 1
    assert output.read_bytes() == whole


@pytest.mark.parametrize("tail", [bytes(5000), b'{"picture": "cu', b"garbage\n"])
def test_what_an_interruption_left_after_the_rows_is_cut_off(
    folder: Path, output: Path, weights: list[str], whole: bytes, tail: bytes
) -> None:
    lines = whole.splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:2]) + tail)
    assert main([*weights, str(folder), "--output", str(output)]) == 1
    assert output.read_bytes() == whole


def test_a_finished_output_is_left_as_it_is(
    folder: Path,
    output: Path,
    weights: list[str],
    whole: bytes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    assert main([*weights, str(folder), "--output", str(output)]) == 1
    assert output.read_bytes() == whole
    assert "4 of these from before; 5 other files left out; no pictures left" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (rb'"model_version": "', rb'"model_version": "x', "was made by the model version x"),
        (b'"a.png"', b'"a0.png"', "Row 1 of "),
        (b'{"picture": "a', b'{"name": "a', "holds no rows of this command"),
        (b'"model_version"', b'"model"', "holds no rows of this command"),
        (b'"b/deep.PNG", "c', b'"b/deep.PNG", c', "Line 2 of "),
    ],
    ids=["model", "pictures", "not ours", "other rows", "edited"],
)
def test_an_output_of_something_else_is_refused_and_kept(
    folder: Path,
    output: Path,
    weights: list[str],
    whole: bytes,
    capsys: pytest.CaptureFixture[str],
    old: bytes,
    new: bytes,
    says: str,
) -> None:
    capsys.readouterr()
    changed = patched(whole, old, new)
    output.write_bytes(changed)
    assert main([*weights, str(folder), "--output", str(output)]) == 2
    printed = capsys.readouterr().err
    assert says in printed
    assert len(printed.splitlines()) == 1
    assert output.read_bytes() == changed


def test_outputs_that_cannot_be_written_are_one_sentence(
    folder: Path, weights: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for path, says in (
        (folder, "is not a regular file"),
        (Path(os.devnull), "is not a regular file"),
        (folder / "no" / "rows", "No such file or directory"),
    ):
        assert main([*weights, str(folder), "--output", str(path)]) == 2
        printed = capsys.readouterr().err
        assert says in printed
        assert len(printed.splitlines()) == 1


def test_two_processes_do_not_write_one_output(output: Path) -> None:
    with Output(output, "x"), pytest.raises(BadOutput, match="Another process is writing"):
        Output(output, "x")


def test_an_empty_folder_is_told(
    tmp_path: Path, weights: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main([*weights, str(tmp_path / "empty")]) == 1
    assert "no pictures found" in capsys.readouterr().err


# --- as people run it ---------------------------------------------------------------------------


def started(folder: Path, output: Path, weights: list[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "model", *weights, str(folder), "--output", str(output)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_rows(output: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while not output.exists() or output.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def has_ended(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(
    ("how", "status"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)],
    ids=["killed", "terminated", "interrupted"],
)
def test_a_command_that_was_ended_goes_on_and_has_each_row_once(
    tmp_path: Path, output: Path, weights: list[str], how: signal.Signals, status: int
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(600):
        (folder / f"{number:04d}.png").write_bytes(PNG)
    process = started(folder, output, weights)
    wait_for_rows(output, 50)
    # As a terminal does with Ctrl-C: to all of them. Others are sent to the parent alone.
    os.killpg(process.pid, how) if how == signal.SIGINT else process.send_signal(how)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == status
    if how != signal.SIGKILL:
        assert printed == "Stopped. The same command goes on from there.\n"
    deadline = time.monotonic() + 30
    while not has_ended(process.pid):  # those that it had started
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert output.read_bytes().count(b"\n") < 600

    process = started(folder, output, weights)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    answered = [json.loads(line)["picture"] for line in output.read_bytes().splitlines()]
    assert answered == [f"{number:04d}.png" for number in range(600)]
