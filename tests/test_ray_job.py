"""The Ray Data job: the rows of `python -m model`, from folders, zips and Parquet.

`make test-ray` has what it needs; skipped elsewhere.
"""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.__main__ import main as model_command
from model.archive import Row
from model.classifier import Classifier
from tests import pictures
from tests.data_folder import REPOSITORY
from tests.pictures import zipped
from tests.test_archive import PNG, expected

pytest.importorskip("ray", reason="needs requirements/ray.txt: `make test-ray` has it")
pytest.importorskip("pyarrow", reason="needs requirements/ray.txt: `make test-ray` has it")

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.cluster_utils import Cluster

from deploy.ray.job import main

# Ray's own: its sockets and processes are closed when Python ends.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("ResourceWarning", "DeprecationWarning", "FutureWarning")
] + [pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


@pytest.fixture(autouse=True)
def stopped_after() -> Iterator[None]:
    yield
    ray.shutdown()


def rows(folder: Path) -> dict[str, Row]:
    """What the job wrote, by name, without empty columns; no name comes twice."""
    every = pq.read_table(folder).to_pylist()
    found = {row["picture"]: {k: v for k, v in row.items() if v is not None} for row in every}
    assert len(found) == len(every)
    return found


def test_the_rows_are_those_of_the_command(tmp_path: Path, weights_path: Path) -> None:
    root = tmp_path / "pictures"
    (root / "deep").mkdir(parents=True)
    (root / "turned.jpg").write_bytes(pictures.turned(6))
    (root / "cut.png").write_bytes(PNG[:-200])
    (root / "deep" / "empty.png").write_bytes(b"")
    (root / "broken.zip").write_bytes(b"PK\3\4")
    (root / "some.zip").write_bytes(zipped({"a/ö.png": PNG, "inner.zip": b""}))
    arguments = ["--weights", str(weights_path), str(root), "--output"]
    assert model_command([*arguments, str(tmp_path / "rows.jsonl")]) == 1
    assert main([*arguments, str(tmp_path / "rows")]) == 1
    lines = map(json.loads, (tmp_path / "rows.jsonl").read_text("utf-8").splitlines())
    assert rows(tmp_path / "rows") == {row["picture"]: row for row in lines}
    assert len(rows(tmp_path / "rows")) == 6


def test_pictures_in_parquet_give_the_same_rows(
    tmp_path: Path, weights_path: Path, classifier: Classifier
) -> None:
    table = {"path": ["ö.png".encode(), b"\xff.png", b"none"], "jpeg": [PNG, PNG[:-200], None]}
    pq.write_table(pa.table(table), tmp_path / "in.parquet")
    arguments = [str(tmp_path / "in.parquet"), "--names", "path", "--bytes", "jpeg"]
    arguments += ["--output", str(tmp_path / "rows")]
    assert main([*arguments, "--weights", str(weights_path)]) == 1
    found = rows(tmp_path / "rows")
    assert found["ö.png"] == expected(classifier, "ö.png", PNG)
    errors = {name: row["error"]["reason"] for name, row in found.items() if "error" in row}
    assert errors == {"\\xff.png": "damaged", "none": "unreadable"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["there", "--output", "there"], "is there already"),
        (["there", "there/deep", "--output", "rows"], "would get two rows"),
        (["there", "--output", "rows", "--names", "path"], "belong together"),
        (["there", "--output", "rows", "--weights", "no/weights"], "cannot be used"),
    ],
)
def test_what_cannot_be_done_is_said_before_ray_starts(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there" / "deep").mkdir(parents=True)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err
    assert not ray.is_initialized()


def test_a_lost_nodes_pictures_are_answered_by_another(tmp_path: Path) -> None:
    count = 6000  # many enough that the job is not done when a node is lost
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(count):
            archive.writestr(f"{number}.png", PNG)
    arguments = [str(tmp_path / "a.zip"), "--output", str(tmp_path / "rows")]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        lost = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.ray.job", *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "RAY_ADDRESS": cluster.address},
        )
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(10)
        cluster.remove_node(lost, allow_graceful=False)
        assert process.wait(300) == 0
    finally:
        cluster.shutdown()
    assert len(rows(tmp_path / "rows")) == count
