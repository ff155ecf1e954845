"""`python -m model PICTURE…`: an answer a line, and an exit status that can be relied on."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.__main__ import main
from model.classifier import Classifier
from tests import pictures
from tests.test_classifier import logistic

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder with weights, two good pictures and two bad ones."""
    logistic().save(tmp_path / "weights")
    (tmp_path / "turned.jpg").write_bytes(pictures.turned(6))
    (tmp_path / "plain.png").write_bytes(pictures.picture("PNG"))
    (tmp_path / "cut.png").write_bytes(pictures.picture("PNG")[:-200])
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> int:
    return main(["--weights", "weights", *arguments])


def test_a_line_gives_label_probability_and_remarks(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plain.png", "turned.jpg") == 0
    plain, turned = capsys.readouterr().out.splitlines()
    expected = Classifier.load("weights").predict(pictures.picture("PNG"))
    assert plain == f"plain.png: {expected.label} ({expected.cat_probability:.4f})"
    assert turned.endswith("; it was turned upright as its EXIF orientation says")


def test_json_gives_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", "turned.jpg", "cut.png") == 1
    good, bad = map(json.loads, capsys.readouterr().out.splitlines())
    expected = Classifier.load("weights").predict(pictures.turned(6))
    assert good == {
        "picture": "turned.jpg",
        "cat_probability": expected.cat_probability,
        "label": expected.label,
        "warnings": list(expected.warnings),
        "model_version": Classifier.load("weights").version,
    }
    assert bad["picture"] == "cut.png"
    assert bad["error"]["reason"] == "damaged"
    assert "cut off" in bad["error"]["detail"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cut.png", "damaged"),
        ("page.jpg", "not-a-picture"),
        ("missing.jpg", "unreadable"),
        ("name\0.jpg", "unreadable"),
    ],
)
def test_a_bad_picture_is_a_line_and_the_rest_go_on(
    capsys: pytest.CaptureFixture[str], name: str, reason: str
) -> None:
    assert run(name, "plain.png") == 1
    captured = capsys.readouterr()
    bad, good = captured.out.splitlines()
    shown = name.replace("\0", r"\x00")  # one line, whatever the name
    assert bad.startswith(f"{shown}: {reason}: ")
    assert good.startswith("plain.png: ")
    assert captured.err == ""


def test_a_dash_is_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(pictures.picture("PNG")))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert run("-") == 0
    assert capsys.readouterr().out.startswith("-: ")


def test_a_standard_input_that_fails_is_told_apart_from_the_output() -> None:
    command = [sys.executable, "-m", "model", "--weights", "weights", "-"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    unreadable = os.open("for-writing", os.O_WRONLY | os.O_CREAT)
    try:
        finished = subprocess.run(
            command, capture_output=True, text=True, env=environment, stdin=unreadable
        )
    finally:
        os.close(unreadable)
    assert finished.returncode == 2
    assert finished.stderr == (
        "The pictures cannot be read: standard input: Bad file descriptor.\n"
    )


def test_bad_weights_are_one_message_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--weights", "plain.png", "turned.jpg"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert "plain.png cannot be used" in captured.err


def test_without_pictures_the_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "usage: python -m model" in capsys.readouterr().err


def test_the_command_runs_as_people_type_it() -> None:
    command = [sys.executable, "-m", "model", "--weights", "weights", "turned.jpg", "page.jpg"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert finished.returncode == 1
    assert len(finished.stdout.splitlines()) == 2
    assert finished.stderr == ""


def test_a_reader_that_stops_reading_ends_the_command_quietly() -> None:
    names = ["plain.png"] * 2000
    command = [sys.executable, "-m", "model", "--weights", "weights", *names]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
