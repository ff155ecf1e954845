"""`python -m training`: what it writes, what it says, and what it leaves when it is stopped."""

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.classifier import Classifier, InputStatistics
from model.preprocessing import to_vector
from tests.data_folder import REPOSITORY
from tests.pictures import encode, write_files
from tests.test_data import make_hdf5
from training.__main__ import main
from training.data import read_pictures
from training.metrics import summary

pytestmark = pytest.mark.usefixtures("one_blas_thread")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for golden pictures among few, on one thread."""
    monkeypatch.setattr("training.golden.CANDIDATES", 2)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twenty pictures, bright ones labelled 'cat', as the course's file holds them."""
    rng = np.random.default_rng(0)
    labels = np.arange(20) % 2
    x = rng.integers(0, 100, (20, 64, 64, 3)) + 100 * labels[:, None, None, None]
    path = tmp_path / "home" / "train.h5"
    path.parent.mkdir()
    datasets = {"train_set_x": x.astype(np.uint8), "train_set_y": labels}
    return make_hdf5(path, **datasets, list_classes=[b"non-cat", b"cat"])


def course(data: Path, output: Path, *more: object) -> list[str]:
    return ["course", str(data), "--output", str(output), "--iterations", "120", *map(str, more)]


def start(arguments: Sequence[str], **environment: str) -> "subprocess.Popen[str]":
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "training", *arguments],
        cwd=REPOSITORY,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_course_writes_weights_that_answer_as_measured(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "mine.safetensors"
    assert main(course(data, output, "--test", data)) == 0
    report = {f"mine-report/{name}" for name in ("report.html", "metrics.json")}
    assert files_in(output.parent) == {"mine.safetensors"} | report
    classifier, pictures = Classifier.load(output), read_pictures([data])
    p = classifier.probabilities(to_vector(pictures.pictures))
    assert summary(pictures.labels, p)["accuracy"] == 1
    assert (classifier.name, classifier.threshold) == ("logistic", 0.5)
    metadata = classifier.metadata
    settings = {"command": "course", "learning_rate": 0.005, "iterations": 120}
    assert metadata["training"] == settings
    facts = metadata["data"]["training"]
    assert (facts["files"], facts["pictures"]) == (["train.h5"], 20)
    assert facts["sources"] == {"course": {"cat": 10, "non-cat": 10}}
    assert facts["sha256"] == pictures.fingerprint
    assert metadata["metrics"]["test"]["accuracy"] == 1
    usual = InputStatistics.from_metadata(metadata)
    assert usual
    distances = [usual.distance(pixels) for pixels in pictures.pictures]
    assert np.sqrt(np.mean(np.square(distances))) == pytest.approx(1)
    assert metadata["costs"]["values"][0] == pytest.approx(np.log(2))


def test_the_report_is_one_page_alone_and_escapes_names(data: Path, tmp_path: Path) -> None:
    data = data.rename(data.with_name(os.fsdecode(b"<u>&\xff.h5")))
    folder = write_files(tmp_path / "w-report", {"thesis.txt": b"before"})
    assert main(course(data, tmp_path / "w.safetensors")) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert page.count('src="data:image/png;base64,') == 1  # the weights as a picture
    assert "100.0 % of the training pictures right" in page
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


def test_what_was_read_and_the_costs_are_lines_where_there_is_no_terminal(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grey, black = (encode(Image.new("RGB", (70, 70), (i, i, i))) for i in (1, 0))
    files = {"cat/1.png": grey, "non-cat/1.png": black, "0.txt": b"", "1.txt": b"", ".hidden": b""}
    folder = write_files(tmp_path / "d", files)
    assert main(course(data, tmp_path / "w.safetensors", "--test", folder)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "train.h5: 20 pictures (10 cat, 10 non-cat)",
        "d: 2 pictures (1 cat, 1 non-cat); left out 2 files; left out 1 hidden file",
        "training: iteration 0: cost 0.693147",
    ]
    assert re.fullmatch(r"training: iteration 100: cost 0\.\d{6}", lines[3])
    assert "training: 100.0 % of 20 pictures right" in lines[4]


def test_help_tells_of_every_command_and_its_examples_are_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--help"]) == 0
    commands = re.findall(r"(?m)^  ([a-z][a-z-]+)  ", capsys.readouterr().out)
    assert {"course", "fit", "evaluate", "card"} <= set(commands)
    for command in commands:
        assert main([command, "--help"]) == 0
        shown = capsys.readouterr().out.split("example", 1)[1]
        examples = re.findall(r"(?m)python -m training (.*)$", shown)
        assert examples, f"the help of {command} shows no example"
        for example in examples:
            # The files of the example are missing here: it must come as far as to say so.
            assert main(shlex.split(example)) == 1
            assert "Traceback" not in capsys.readouterr().err


def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path: Path) -> None:
    names = ("non-cat/1.jpg", "cat/new\nline.jpg", "cat/猫.jpg", os.fsdecode(b"cat/caf\xe9.jpg"))
    folder = write_files(tmp_path / "d", dict.fromkeys(names, b"no picture"))
    process = start(["course", str(folder)], PYTHONIOENCODING="ascii", LC_ALL="C")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in err
    for shown in (r"\u732b.jpg in ", r"caf\xe9.jpg in ", r"new\nline.jpg in "):
        assert f"cat/{shown}" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command"),
        (["course", "d", "--learning-rate", "-1"], "greater than or equal to 0"),
        (["course", "d", "--iterations", "1.5"], "should be a valid integer"),
        (["fit", "d", "--set", "mixup"], "'mixup' is not NAME=VALUE, such as epochs=20"),
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
        (["--output", "{folder}/home/train"], "train-report: is a file, but the report needs"),
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


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [
        (signal.SIGINT, 130, "Stopped. All written files are complete.\n"),
        (signal.SIGTERM, 143, "Stopped. All written files are complete.\n"),
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


def test_a_full_disk_leaves_weights_and_report_of_before(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path, {"w.safetensors": b"before", "w-report/report.html": b"before"})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # an OSError beyond it
    try:
        assert main(course(data, tmp_path / "w.safetensors")) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    printed = capsys.readouterr().err
    assert re.fullmatch(r"error: \S+w-report/report\.html: File too large\.\n", printed)
    (tmp_path / "w-report" / "metrics.json").unlink()  # which was small enough
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
