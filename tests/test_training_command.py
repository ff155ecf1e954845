"""`python -m training`: what it writes, what it says, and what it leaves when it is stopped."""

import json
import os
import pty
import re
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from threadpoolctl import threadpool_limits

from model.classifier import Classifier, InputStatistics
from model.preprocessing import to_vector
from tests.data_folder import REPOSITORY
from training.__main__ import main
from training.data import read_pictures
from training.metrics import confusion


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Look for golden pictures among few, on one thread: tests share the processor with others."""
    monkeypatch.setattr("training.golden.CANDIDATES", 2)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twenty pictures, bright ones labelled 'cat', as the course's file holds them."""
    rng = np.random.default_rng(0)
    labels = np.arange(20) % 2
    x = rng.integers(0, 100, (20, 64, 64, 3)) + 100 * labels[:, None, None, None]
    path = tmp_path / "home" / "train.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["train_set_x"], file["train_set_y"] = x.astype(np.uint8), labels
        file["list_classes"] = np.array([b"non-cat", b"cat"])
    return path


def course(data: Path, output: Path, *more: object) -> list[str]:
    return ["course", str(data), "--output", str(output), "--iterations", "120", *map(str, more)]


def start(arguments: Sequence[str], **options: Any) -> "subprocess.Popen[str]":
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "training", *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        **{"stderr": subprocess.PIPE} | options,
    )


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- what it writes -----------------------------------------------------------------------------


def test_course_writes_weights_that_answer_as_measured(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "mine.safetensors"
    assert main(course(data, output, "--test", data)) == 0
    report = {f"mine-report/{name}" for name in ("report.html", "metrics.json")}
    assert files_in(output.parent) == {"mine.safetensors"} | report
    classifier = Classifier.load(output)
    pictures = read_pictures([data])
    p = classifier.probabilities(to_vector(pictures.pictures))
    assert confusion(pictures.labels, p).accuracy == 1
    assert (classifier.name, classifier.threshold) == ("logistic", 0.5)
    metadata = classifier.metadata
    settings = {"command": "course", "learning_rate": 0.005, "iterations": 120}
    assert metadata["training"] == settings
    assert metadata["data"]["training"] == {
        "files": ["train.h5"],
        "pictures": 20,
        "classes": {"cat": 10, "non-cat": 10},
        "sources": {"course": {"cat": 10, "non-cat": 10}},
        "left_out": 0,
        "sha256": pictures.fingerprint,
    }
    assert metadata["metrics"]["test"]["accuracy"] == 1
    usual = InputStatistics.from_metadata(metadata)
    assert usual
    distances = [usual.distance(pixels) for pixels in pictures.pictures]
    assert np.sqrt(np.mean(np.square(distances))) == pytest.approx(1)
    assert metadata["costs"]["every"] == 100
    assert metadata["costs"]["values"][0] == pytest.approx(np.log(2))


def test_the_report_is_one_page_that_needs_nothing_else_and_escapes_names(
    data: Path, tmp_path: Path
) -> None:
    data = data.rename(data.with_name(os.fsdecode(b"<u>&\xff.h5")))
    folder = tmp_path / "w-report"
    folder.mkdir()
    (folder / "thesis.txt").write_bytes(b"before")
    assert main(course(data, tmp_path / "w.safetensors")) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert page.count('src="data:image/png;base64,') == 2  # the weights as pictures
    assert page.count("<svg") == 2
    assert "100.00 % of the training pictures right" in page
    assert "<u>" not in page
    assert r"&lt;u&gt;&amp;\xff.h5" in page
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["metrics"]["training"]["true_positive"] == 10
    assert (folder / "thesis.txt").read_bytes() == b"before"


def test_the_same_data_give_the_same_bytes(data: Path, tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in ("a", "b"))
    for folder in (first, second):
        assert main(course(data, folder / "mine.safetensors")) == 0
    for name in files_in(first) | files_in(second):
        assert (first / name).read_bytes() == (second / name).read_bytes()


# --- what it says -------------------------------------------------------------------------------


def test_what_was_read_and_the_costs_are_lines_where_there_is_no_terminal(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "d"
    for i, name in enumerate(("cat", "non-cat")):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (70, 70), (i, i, i)).save(folder / name / "1.png")
        (folder / f"{i}.txt").write_bytes(b"")
    (folder / ".hidden").write_bytes(b"")
    assert main(course(data, tmp_path / "w.safetensors", "--test", folder)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "train.h5: 20 pictures (10 cat, 10 non-cat)",
        "d: 2 pictures (1 cat, 1 non-cat); left out 2 files; left out 1 hidden file",
        "training: iteration 0: cost 0.693147",
    ]
    assert re.fullmatch(r"training: iteration 100: cost 0\.\d{6}", lines[3])
    assert "training: 100.00 % of 20 pictures right" in lines[4]


def test_a_terminal_gets_a_bar_with_the_cost(data: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = start(course(data, tmp_path / "w.safetensors"), stderr=theirs)
    out, _ = process.communicate(timeout=60)
    os.close(theirs)
    shown = os.read(ours, 1_000_000).decode()
    os.close(ours)
    assert process.returncode == 0
    assert re.search(r"training: 100%.*120/120 .*cost 0\.\d{6}", shown)
    assert "iteration 100" not in out


def test_help_tells_of_every_command_and_its_examples_are_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--help"]) == 0
    commands = re.findall(r"^  ([a-z][a-z-]+)  ", capsys.readouterr().out, re.MULTILINE)
    assert {"course", "fit", "evaluate", "card"} <= set(commands)
    for command in commands:
        assert main([command, "--help"]) == 0
        shown = capsys.readouterr().out
        examples = re.findall(
            r"python -m training (.*)$", shown.split("example", 1)[1], re.MULTILINE
        )
        assert examples, f"the help of {command} shows no example"
        for example in examples:
            # The files of the example are missing here: it must come as far as to say so.
            assert main(shlex.split(example)) == 1
            assert "Traceback" not in capsys.readouterr().err


def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "d" / "cat"
    folder.mkdir(parents=True)
    for name in (b"caf\xe9.jpg", b"new\nline.jpg", "猫.jpg".encode()):
        (folder / os.fsdecode(name)).write_bytes(b"no picture")
    (tmp_path / "d" / "non-cat").mkdir()
    (tmp_path / "d" / "non-cat" / "1.jpg").write_bytes(b"no picture")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    process = start(["course", str(tmp_path / "d")], env=environment)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert r"cat/\u732b.jpg in " in err
    assert r"cat/caf\xe9.jpg in " in err
    assert r"cat/new\nline.jpg in " in err


# --- what it refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command"),
        (["corse"], "corse"),
        (["course"], "DATA"),
        (["course", "d", "--learning-rate", "-1"], "greater than or equal to 0"),
        (["course", "d", "--iterations", "1.5"], "should be a valid integer"),
        (["fit", "d", "--set", "mixup"], "'mixup' is not NAME=VALUE, such as mixup=0.2"),
        (["fit", "d", "--set", "a b=1"], "'a b=1' is not NAME=VALUE"),
    ],
)
def test_wrong_arguments_are_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--classes", "cat", "cat"], "two different names"),
        (["--classes", "dog", "no-dog"], "its classes are 'non-cat', 'cat'"),
        (["--test", "nowhere.zip"], "nowhere.zip does not exist"),
        (["--learning-rate", "1e39"], "learning rate 1e+39 is too large"),
        (["--output", "{folder}/home"], "home: is a folder; name a file"),
        (
            ["--output", "{folder}/home/train"],
            "train-report: is a file, but the report needs a folder",
        ),
        (["--output", "{folder}/home/link"], "is a device, pipe or socket; name a file"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_message_and_nothing_is_written(
    data: Path, tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    home = data.parent
    (home / "train-report").write_bytes(b"")
    os.mkfifo(home / "pipe")
    (home / "link").symlink_to(home / "pipe")
    arguments = [each.replace("{folder}", str(tmp_path)) for each in more]
    assert main(course(data, tmp_path / "w.safetensors", *arguments)) == 1
    assert message in capsys.readouterr().err
    assert files_in(tmp_path) == {"home/train.h5", "home/train-report"}
    assert (home / "link").is_symlink()
    assert (home / "pipe").is_fifo()


# --- what it leaves when it is stopped ----------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [
        (signal.SIGINT, 130, "Stopped. No file is incomplete.\n"),
        (signal.SIGTERM, 143, "Stopped. No file is incomplete.\n"),
        (signal.SIGKILL, -9, ""),
    ],
)
def test_stopping_it_leaves_the_weights_of_before(
    data: Path, tmp_path: Path, number: int, status: int, message: str
) -> None:
    output = tmp_path / "w.safetensors"
    output.write_bytes(b"before")
    process = start(course(data, output, "--iterations", 10**9))
    assert process.stdout
    while "iteration 100:" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert err == message
    assert output.read_bytes() == b"before"
    assert files_in(tmp_path) == {"w.safetensors", "home/train.h5"}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a full disk: writing beyond that many bytes of a file is an OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_weights_and_report_of_before(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "w.safetensors"
    output.write_bytes(b"before")
    (tmp_path / "w-report").mkdir()
    (tmp_path / "w-report" / "report.html").write_bytes(b"before")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with files_of_at_most(20_000):
        assert main(course(data, output)) == 1
    told = capsys.readouterr().err
    assert re.fullmatch(r"error: \S+w-report/report\.html: File too large\.\n", told)
    (tmp_path / "w-report" / "metrics.json").unlink()  # which was small enough
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
