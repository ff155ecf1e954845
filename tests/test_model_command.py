"""`python -m model PICTURE|FOLDER|ZIP…` as people run it: lines, rows and an exit status."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from model.__main__ import main
from model.classifier import Classifier
from tests import pictures
from tests.data_folder import REPOSITORY
from tests.test_archive import broken_disk

PNG = pictures.picture("PNG")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, weights_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder with weights and pictures, good and bad."""
    Path(tmp_path / "weights").symlink_to(weights_path)
    (tmp_path / "turned.jpg").write_bytes(pictures.turned(6))
    (tmp_path / "plain.png").write_bytes(PNG)
    (tmp_path / "cut.png").write_bytes(PNG[:-200])
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> int:
    return main(["--weights", "weights", *arguments])


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "model", "--weights", "weights", *arguments]


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run `python -m model` with the rest of a line of the shell."""
    words = " ".join([*command(), line])
    return subprocess.run(["sh", "-c", words], capture_output=True, env=environment(**variables))


def test_a_line_gives_label_probability_and_warnings(
    capsys: pytest.CaptureFixture[str], classifier: Classifier
) -> None:
    assert run("plain.png", "plain.png", "turned.jpg") == 0
    plain, again, turned = capsys.readouterr().out.splitlines()
    expected = classifier.predict(PNG)
    assert plain == again == f"plain.png: {expected.label} ({expected.cat_probability:.4f})"
    assert turned.endswith("; it was turned upright as its EXIF orientation says")


def test_a_bad_picture_is_a_line_and_the_rest_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cut.png", "page.jpg", "missing.jpg", "a\0.jpg", "plain.png") == 1
    captured = capsys.readouterr()
    cut, page, missing, odd, good = captured.out.splitlines()
    assert cut.startswith("cut.png: damaged: ")
    assert page.startswith("page.jpg: not-a-picture: ")
    assert missing.startswith("missing.jpg: unreadable: The file cannot be read: No such file")
    assert odd.startswith(r"a\x00.jpg: unreadable: ")
    assert good.startswith("plain.png: ")
    assert captured.err == ""


def test_json_gives_one_object_a_line(
    capsys: pytest.CaptureFixture[str], classifier: Classifier
) -> None:
    assert run("--json", "turned.jpg", "cut.png") == 1
    good, bad = map(json.loads, capsys.readouterr().out.splitlines())
    expected = classifier.predict(pictures.turned(6))
    assert good == {
        "picture": "turned.jpg",
        "cat_probability": expected.cat_probability,
        "label": expected.label,
        "warnings": list(expected.warnings),
        "model_version": classifier.version,
    }
    assert bad["picture"] == "cut.png"
    assert bad["error"]["reason"] == "damaged"


def test_names_that_the_terminal_cannot_show_are_escaped() -> None:
    for name in ("kät.png", os.fsdecode(b"\xff.png")):
        Path(name).write_bytes(PNG)
    done = shell("*t.png ?.png no/ö.png", PYTHONIOENCODING="ascii", LC_ALL="C.UTF-8")
    kept = [line.partition(b": ")[0] for line in done.stdout.splitlines()]
    assert kept == [rb"cut.png", rb"k\xe4t.png", rb"\xff.png", rb"no/\xf6.png"]
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("line", "status", "printed", "error"),
    [
        ("- < plain.png", 0, b"-: ", b""),
        ("- <&-", 2, b"", b"Standard input is closed; pipe a picture into the command.\n"),
        ("- 0> out", 2, b"", b"- cannot be read: Bad file descriptor. Once it can"),
        ("page.jpg plain.png > /dev/full", 2, b"", b"Standard output cannot be written: No space"),
        ("plain.png --output no/rows", 2, b"", b"no/rows cannot be written: No such file"),
        ("plain.png --weights page.jpg", 2, b"", b"page.jpg cannot be used"),
        ("", 2, b"", b"usage: python -m model"),
    ],
)
def test_what_is_wrong_is_said_on_standard_error(
    line: str, status: int, printed: bytes, error: bytes
) -> None:
    done = shell(line)
    assert done.returncode == status
    assert done.stdout[: len(printed) or None] == printed
    assert error in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_reader_that_stops_reading_ends_the_command_quietly() -> None:
    done = shell("$(yes plain.png | head -2000) | head -1")
    assert done.stdout.startswith(b"plain.png: ")
    assert done.stderr == b""


def test_the_process_that_reads_and_writes_decodes_nothing() -> None:
    check = "import sys, model.__main__; sys.exit(bool({'numpy', 'PIL'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", check], env=environment()).returncode == 0


# --- folders and zips ---------------------------------------------------------------------------


def test_folders_and_zips_are_rows_and_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile("more.zip", "w") as made:
        made.writestr("a.png", PNG)
    assert run(".", "--output", "rows") == 1
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in Path("rows").read_bytes().splitlines()]
    names = ["cut.png", "more.zip/a.png", "page.jpg", "plain.png", "turned.jpg"]
    assert [row["picture"] for row in rows] == names
    good = [row["label"] for row in rows if "label" in row]
    assert captured.out == ""
    assert captured.err.startswith(f"{good.count('cat')} cat, {good.count('non-cat')} non-cat, ")
    assert "1 damaged, 1 not-a-picture; 2 other files left out; " in captured.err
    assert captured.err.endswith(" pictures/s\n")
    before = Path("rows").read_bytes()
    assert run(".", "--output", "rows") == 1
    assert "5 of these from before" in (printed := capsys.readouterr().err)
    assert "no pictures left to do" in printed
    assert Path("rows").read_bytes() == before


def test_rows_go_to_standard_output_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert run("empty", "plain.png") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["picture"] == "plain.png"
    assert run("empty") == 1
    assert "no pictures found" in capsys.readouterr().err


def test_the_command_ends_at_an_error_that_may_pass_and_goes_on_later(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("many").mkdir()
    for number in range(40):
        Path("many", f"{number:02}.png").write_bytes(PNG)
    Path("many", "30.png").unlink()
    broken_disk(Path("many", "30.png"))
    assert run("many", "--output", "rows") == 2
    assert "30.png cannot be read: Input/output error" in capsys.readouterr().err
    assert b"error" not in Path("rows").read_bytes()
    Path("many", "30.png").unlink()
    Path("many", "30.png").write_bytes(PNG)
    assert run("many", "--output", "rows") == 0
    assert len(Path("rows").read_bytes().splitlines()) == 40


def processes(name: str) -> list[str]:
    """Command lines in which a name occurs."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        found += [line] if name in line else []
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("how", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_command_that_was_ended_goes_on_to_the_same_bytes(
    how: signal.Signals, status: int, tmp_path: Path, weights_path: Path
) -> None:
    Path("many").mkdir()
    for number in range(200):
        Path("many", f"{number:03}.png").write_bytes(pictures.picture("PNG", 40 + number))
    own = tmp_path / f"{tmp_path.name}.safetensors"  # by which its processes are known
    own.write_bytes(weights_path.read_bytes())
    options = ["--weights", own.name, "many", "--output"]
    process = subprocess.Popen(
        command(*options, "rows"),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (Path("rows").exists() and Path("rows").read_bytes().count(b"\n") > 20):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, how)  # as a terminal does with Ctrl-C
    _, printed = process.communicate(timeout=60)
    assert process.returncode == status
    if how != signal.SIGKILL:
        assert printed == "Stopped. With --output, the same command goes on from there.\n"
    while left := processes(own.name):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert 20 < Path("rows").read_bytes().count(b"\n") < 200
    assert main([*options, "rows"]) == 0
    assert main([*options, "whole"]) == 0
    assert Path("rows").read_bytes() == Path("whole").read_bytes()
