"""`python -m model PICTURE|FOLDER|ZIP…` as people run it: lines, rows and an exit status."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model.__main__ import main
from model.classifier import Classifier
from tests import pictures
from tests.data_folder import REPOSITORY
from tests.pictures import write_files, zipped
from tests.test_archive import PNG, expected

COMMAND = [sys.executable, "-m", "model", "--weights", "weights"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, weights_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder with weights and pictures, good and bad."""
    files = {"weights": weights_path.read_bytes(), "turned.jpg": pictures.turned(6)}
    files |= {"plain.png": PNG, "cut.png": PNG[:-200], "page.jpg": b"<html>"}
    monkeypatch.chdir(write_files(tmp_path, files))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


def run(*arguments: str) -> int:
    return main(["--weights", "weights", *arguments])


def shell(line: str) -> subprocess.CompletedProcess[bytes]:
    """Run `python -m model` with the rest of a line of the shell."""
    return subprocess.run(["sh", "-c", " ".join([*COMMAND, line])], capture_output=True)


def test_a_picture_is_a_line_and_a_bad_one_is_another(
    capsys: pytest.CaptureFixture[str], classifier: Classifier
) -> None:
    assert run("plain.png", "turned.jpg", "plain.png") == 0
    plain, turned, again = capsys.readouterr().out.splitlines()
    answer = classifier.predict(PNG)
    assert plain == again == f"plain.png: {answer.label} ({answer.cat_probability:.4f})"
    assert turned.endswith("; it was rotated upright, following its EXIF orientation")
    assert run("cut.png", "page.jpg", "missing.jpg", "a\n.jpg", "plain.png") == 1
    captured = capsys.readouterr()
    cut, page, missing, odd, good = captured.out.splitlines()
    assert cut.startswith("cut.png: damaged: ")
    assert page.startswith("page.jpg: not-a-picture: ")
    assert missing.startswith("missing.jpg: unreadable: The file cannot be read: No such file")
    assert odd.startswith(r"a\n.jpg: unreadable: ")
    assert good == plain
    assert captured.err == ""
    assert run("--json", "turned.jpg", "cut.png") == 1
    row, bad_row = map(json.loads, capsys.readouterr().out.splitlines())
    assert row == expected(classifier, "turned.jpg", pictures.turned(6))
    assert (bad_row["picture"], bad_row["error"]["reason"]) == ("cut.png", "damaged")


def test_names_that_the_terminal_cannot_show_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    for name in ("kät.png", os.fsdecode(b"\xff.png")):
        Path(name).write_bytes(PNG)
    done = shell("*t.png ?.png no/ö.png")
    shown = [line.partition(b": ")[0] for line in done.stdout.splitlines()]
    assert shown == [rb"cut.png", rb"k\xe4t.png", rb"\xff.png", rb"no/\xf6.png"]
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("line", "status", "printed", "error"),
    [
        ("- < plain.png", 0, b"-: ", b""),
        ("- <&-", 2, b"", b"Standard input is closed; pipe a picture into the command.\n"),
        ("- 0> out", 2, b"", b"- cannot be read: Bad file descriptor. Repeat"),
        ("plain.png >&-", 2, b"", b"Standard output is closed; open it, or name a file"),
        ("plain.png --output rows >&-", 0, b"", b" pictures/s"),
        ("page.jpg > /dev/full", 2, b"", b"Standard output cannot be written: No space left"),
        ("plain.png --output no/rows", 2, b"", b"no/rows cannot be written: No such file"),
        ("plain.png --output page.jpg", 2, b"", b"page.jpg was not written by this command. Name"),
        ("plain.png --weights page.jpg", 2, b"", b"page.jpg cannot be used"),
        ("", 2, b"", b"usage: python -m model"),
        ("$(yes plain.png | head -2000) | head -1", 0, b"plain.png: ", b""),  # enough is seen
    ],
)
def test_what_is_wrong_is_said_on_standard_error(
    line: str, status: int, printed: bytes, error: bytes
) -> None:
    done = shell(line)
    assert done.returncode == status
    assert done.stdout[: len(printed) or None] == printed
    assert error in done.stderr
    assert len(done.stderr.splitlines()) <= (1 if line else 5)  # one sentence, or the usage


@pytest.mark.parametrize(
    ("command", "imported"), [("model", "tqdm"), ("training", "typer"), ("app", "fastapi")]
)
def test_ctrl_c_while_a_command_still_imports_ends_it_quietly(command: str, imported: str) -> None:
    Path(f"{imported}.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)")
    run = [sys.executable, "-m", command]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == -signal.SIGINT


def test_the_process_that_reads_and_writes_decodes_nothing() -> None:
    check = "import sys, model.__main__; sys.exit(bool({'numpy', 'PIL'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_folders_and_zips_are_rows_and_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    Path("more.zip").write_bytes(zipped({"a.png": PNG}))
    Path("empty").mkdir()
    assert run(".", "--output", "rows") == 1
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in Path("rows").read_bytes().splitlines()]
    names = ["cut.png", "more.zip/a.png", "page.jpg", "plain.png", "turned.jpg"]
    assert [row["picture"] for row in rows] == names
    labels = [row["label"] for row in rows if "label" in row]
    assert captured.out == ""
    assert captured.err.startswith(
        f"{labels.count('cat')} cat, {labels.count('non-cat')} non-cat, 1 damaged, 1 not-a-picture;"
        " 2 other files left out; "
    )
    assert captured.err.endswith(" pictures/s\n")
    assert run(".", "--output", "rows") == 1
    assert "; 5 of these from the previous run; " in (printed := capsys.readouterr().err)
    assert printed.endswith("; no pictures left\n")
    assert run("empty", "plain.png") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {**rows[3], "picture": "plain.png"}
    assert run("empty") == 1
    none_found = "No pictures found in empty. Expected files such as .jpg or .png.\n"
    assert capsys.readouterr().err == none_found


def many(count: int) -> None:
    files = {f"{number:03}.png": pictures.picture("PNG", 40 + number) for number in range(count)}
    write_files(Path("many"), files)


def test_an_error_that_may_pass_ends_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    many(40)
    picture = Path("many", "030.png")
    picture.rename("elsewhere")
    picture.symlink_to("/proc/self/mem")  # reading it fails with EIO, as a disk that breaks
    assert run("many", "--output", "rows") == 2
    assert "030.png cannot be read: Input/output error" in capsys.readouterr().err
    assert b"error" not in Path("rows").read_bytes()
    Path("elsewhere").replace(picture)
    assert run("many", "--output", "rows") == 0
    assert len(Path("rows").read_bytes().splitlines()) == 40


def processes(name: str) -> list[bytes]:
    """Command lines in which a name occurs."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(entry.read_bytes())
    return [line for line in found if name.encode() in line]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_command_that_was_ended_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    many(240)
    rows = Path("rows")
    deadline = time.monotonic() + 120
    ends = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
    for written, (how, status) in zip((20, 80, 140), ends.items(), strict=True):
        process = subprocess.Popen(
            [*COMMAND, "many", "--output", "rows"], stderr=subprocess.PIPE, start_new_session=True
        )
        while not (rows.exists() and rows.read_bytes().count(b"\n") > written):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, how)  # as a terminal does with Ctrl-C
        _, printed = process.communicate(timeout=60)
        assert process.returncode == status
        if how != signal.SIGKILL:
            assert re.fullmatch(rb"Stopped\..* the same command continues from here\.\n", printed)
        while left := processes(str(tmp_path)):  # by the weights that they were given
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
    assert rows.read_bytes().count(b"\n") < 240
    assert run("many", "--output", "rows") == 0
    assert run("many", "--output", "whole") == 0
    assert rows.read_bytes() == Path("whole").read_bytes()
