"""The Ray Data job: the rows of `python -m model`, from folders, zips and Parquet.

`make test-ray` has what it needs; skipped elsewhere.
"""

import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from model.__main__ import main as model_command
from model.archive import Row
from model.classifier import Classifier
from model.workers import Workers
from tests import pictures
from tests.test_archive import PNG, expected

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
    (root / "cut.png").write_bytes(PNG[:-200])
    (root / "deep" / "empty.png").write_bytes(b"")
    (root / "broken.zip").write_bytes(b"PK\3\4")
    with zipfile.ZipFile(root / "some.zip", "w") as archive:
        archive.writestr("a/ö.png", PNG)
        archive.writestr("inner.zip", b"")
    return root


def by_name(rows: Iterable[Row]) -> dict[str, Row]:
    return {row["picture"]: row for row in rows}


def test_the_rows_are_those_of_the_command(folder: Path, weights_path: Path) -> None:
    lines, rows = folder.with_name("rows.jsonl"), folder.with_name("rows")
    arguments = ["--weights", str(weights_path), str(folder), "--output"]
    assert model_command([*arguments, str(lines)]) == 1
    assert main([*arguments, str(rows)]) == 1
    found = by_name(read_rows(rows))
    assert found == by_name(map(json.loads, lines.read_text("utf-8").splitlines()))
    assert len(found) == 6


def test_pictures_in_parquet_give_the_same_rows(
    tmp_path: Path, weights_path: Path, classifier: Classifier
) -> None:
    table = {"path": ["ö.png".encode(), b"\xff.png", b"none"], "jpeg": [PNG, PNG[:-200], None]}
    pq.write_table(pa.table(table), tmp_path / "in.parquet")
    arguments = [str(tmp_path / "in.parquet"), "--names", "path", "--bytes", "jpeg"]
    arguments += ["--output", str(tmp_path / "rows")]
    assert main([*arguments, "--weights", str(weights_path)]) == 1
    rows = by_name(read_rows(tmp_path / "rows"))
    assert rows["ö.png"] == expected(classifier, "ö.png", PNG)
    errors = {name: row["error"]["reason"] for name, row in rows.items() if "error" in row}
    assert errors == {"\\xff.png": "damaged", "none": "unreadable"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pictures", "--output", "pictures"], "is there already"),
        (["pictures", "pictures/deep", "--output", "rows"], "would have two rows"),
        (["pictures", "--output", "rows", "--names", "path"], "belong together"),
        (["pictures", "--output", "rows", "--weights", "pictures/cut.png"], "cannot be used"),
    ],
)
def test_what_cannot_be_done_is_said_before_ray_starts(
    arguments: list[str],
    says: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder.parent)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err
    assert not ray.is_initialized()


def test_a_picture_that_ends_its_process_is_a_row_and_the_actor_goes_on(
    weights_path: Path, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deadly(weights: Path, count: int) -> Workers:
        return Workers("tests.test_archive", [str(weights)], count=count, memory_bytes=2**27)

    monkeypatch.setattr(job, "workers_for", deadly)
    actor = Answer(weights_path.read_bytes())
    batch = pa.table({"picture": ["good", "fatal", "good"], "bytes": [PNG, b"crash", PNG]})
    for _ in range(2):
        good, fatal, again = actor(batch).to_pylist()
        assert fatal["error"]["reason"] == "crashes-decoder"
        assert (
            good["cat_probability"]
            == again["cat_probability"]
            == (classifier.predict(PNG).cat_probability)
        )
