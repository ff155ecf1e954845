"""The Ray Data job: the rows of `python -m model`, from folders, zips and Parquet.

`make test-ray` has what it needs; skipped elsewhere.
"""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.__main__ import main as model_command
from model.archive import MOST_BYTES, Pictures, Row, read, row
from model.classifier import Classifier
from tests import pictures
from tests.test_archive import Fatal

pytest.importorskip("ray", reason="needs requirements/ray.txt: `make test-ray` has it")
pytest.importorskip("pyarrow", reason="needs requirements/ray.txt: `make test-ray` has it")

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from deploy.ray import job
from deploy.ray.job import Answer, main, read_rows

# Ray's own: its sockets and processes are closed when Python ends.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def stopped_after() -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good and bad pictures, in folders and zips."""
    root = tmp_path / "pictures"
    (root / "deep").mkdir(parents=True)
    (root / "turned.jpg").write_bytes(pictures.turned(6))
    (root / "cut.png").write_bytes(pictures.picture("PNG")[:-200])
    (root / "deep" / "empty.png").write_bytes(b"")
    (root / "broken.zip").write_bytes(b"PK\3\4")
    with zipfile.ZipFile(root / "some.zip", "w") as archive:
        archive.writestr("a/ö.png", pictures.picture("PNG"))
        archive.writestr("inner.zip", b"")
    return root


def sorted_rows(output: Path) -> list[Row]:
    return sorted(read_rows(output), key=lambda each: str(each["picture"]))


def test_the_rows_are_those_of_the_command(
    folder: Path, tmp_path: Path, weights_path: Path
) -> None:
    weights = ["--weights", str(weights_path)]
    lines = tmp_path / "rows.jsonl"
    assert model_command([*weights, str(folder), "--output", str(lines)]) == 1
    assert main([*weights, str(folder), "--output", str(tmp_path / "rows")]) == 1
    rows = [json.loads(line) for line in lines.read_text("utf-8").splitlines()]
    assert len(rows) == 6
    assert sorted_rows(tmp_path / "rows") == sorted(rows, key=lambda each: str(each["picture"]))


def test_pictures_in_parquet_give_the_same_rows(
    folder: Path, tmp_path: Path, weights_path: Path, classifier: Classifier
) -> None:
    found = [each for each in Pictures([str(folder)]) if each.name.endswith(("g", "G"))]
    table = {"path": [each.name for each in found], "jpeg": [read(each.source) for each in found]}
    pq.write_table(pa.table(table), tmp_path / "in.parquet")
    arguments = [str(tmp_path / "in.parquet"), "--names", "path", "--bytes", "jpeg"]
    arguments += ["--weights", str(weights_path), "--output", str(tmp_path / "rows")]
    assert main(arguments) == 1
    expected = [row(classifier, *each) for each in found]
    assert sorted_rows(tmp_path / "rows") == sorted(expected, key=lambda each: each["picture"])


def test_a_folder_that_is_there_already_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(folder), "--output", str(folder)])
    assert stopped.value.code == 2
    assert "is there already" in capsys.readouterr().err


def test_a_picture_that_ends_its_process_is_a_row_and_the_actor_goes_on(
    folder: Path, weights_path: Path, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = Answer(weights_path.read_bytes())
    good = folder / "turned.jpg"
    sources = {"good": good, "fatal": Fatal("x")}
    monkeypatch.setattr(job, "_source", lambda columns: sources[columns["picture"]])
    try:
        rows = actor(pa.table({"picture": ["good", "fatal", "good"]})).to_pylist()
    finally:
        actor._pool.close()
    assert rows[1]["error"]["reason"] == "crashed"
    assert [each["label"] for each in rows[::2]] == [row(classifier, "good", good)["label"]] * 2


def test_names_that_are_no_text_and_bytes_too_many_are_told(
    tmp_path: Path, weights_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {"path": [b"\xff.png", "ö".encode()], "jpeg": [b"", bytes(MOST_BYTES + 1)]}
    pq.write_table(pa.table(table), tmp_path / "in.parquet")
    monkeypatch.chdir(tmp_path)
    arguments = ["in.parquet", "--names", "path", "--bytes", "jpeg"]
    assert main([*arguments, "--weights", str(weights_path), "--output", "rows"]) == 1
    rows = {each["picture"]: each["error"]["reason"] for each in read_rows(tmp_path / "rows")}
    assert rows == {"\\xff.png": "empty", "ö": "too-large"}


def test_sources_that_have_a_picture_in_common_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(folder), str(folder / "deep"), "--output", str(tmp_path / "rows")])
    assert stopped.value.code == 2
    assert "would have two rows" in capsys.readouterr().err
