"""Answer for the pictures of an archive on a Ray cluster, and write the rows as Parquet.

    python -m deploy.ray.job FOLDER|ZIP… --output ROWS
    python -m deploy.ray.job PARQUET… --names COLUMN --bytes COLUMN --output ROWS

The rows are those of `python -m model`, whose functions find the pictures and answer: a column a
field, empty where a row has no such field. Folders and zips lie at the same path on every node,
Parquet wherever PyArrow reads it.
"""

import argparse
import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

try:
    import pyarrow as pa
    import ray
    import ray.data
    from pyarrow.dataset import dataset
    from ray import cloudpickle
except ModuleNotFoundError as error:
    sys.exit(f"The job needs {error.name}: pip install -r requirements/ray.txt.")

from model import DEFAULT_WEIGHTS
from model.archive import (
    Found,
    Pictures,
    Refused,
    Row,
    answers,
    raise_unreadable,
    text,
    workers_for,
)
from model.classifier import BadArtifact, Classifier

REPOSITORY = Path(__file__).resolve().parents[2]

ROWS = pa.schema(
    [
        pa.field("picture", pa.string(), nullable=False),
        ("cat_probability", pa.float64()),
        ("label", pa.string()),
        ("warnings", pa.list_(pa.string())),
        pa.field("model_version", pa.string(), nullable=False),
        ("error", pa.struct([("reason", pa.string()), ("detail", pa.string())])),
    ]
)
# An actor's task. Where a node is lost, its tasks are done again, and so are those whose rows lay
# there and were in no file yet.
PICTURES_A_BLOCK = 512
PICTURES_A_FILE = 100_000
NO_CORE = {"num_cpus": 0}  # beside the actors': reading and writing wait for disks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; return 0, 1 if any picture was bad or there was none, 2 if the arguments are."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.names is None) != (options.bytes is None):
        parser.error("--names and --bytes belong together")
    output = _absolute(options.output)
    if "://" not in output and Path(output).exists():
        parser.error(f"{output} is there already; name a new folder")
    try:
        Classifier.load(options.weights)
        found = [] if options.names else list(_blocks(Pictures(options.sources)))
    except (BadArtifact, Refused) as error:
        parser.error(str(error))
    if not (options.names or found):
        print("no pictures found")
        return 1
    _connect()
    started = time.monotonic()
    if options.names:
        data = ray.data.read_parquet(list(map(_absolute, options.sources)), num_cpus=0)
        data = data.select_columns([options.names, options.bytes])
        data = data.rename_columns({options.names: "picture", options.bytes: "bytes"})
    else:
        data = ray.data.from_arrow(found)
    count = _write(data, options.weights.read_bytes(), output)
    seconds, total = time.monotonic() - started, count.total()
    what = ", ".join(f"{number:,} {label}" for label, number in count.most_common())
    print(f"{total:,} pictures in {seconds:.1f} s, {total / seconds:.1f}/s: {what}")
    return 1 if not total or count["error"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.ray.job", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("sources", metavar="FOLDER|ZIP|PARQUET", nargs="+")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="a new one, for Parquet")
    parser.add_argument("--names", metavar="COLUMN", help="of Parquet: the pictures' names")
    parser.add_argument("--bytes", metavar="COLUMN", help="of Parquet: the encoded pictures")
    parser.add_argument("--weights", metavar="FILE", type=Path, default=DEFAULT_WEIGHTS)
    return parser


def _absolute(path: str) -> str:
    """The same on every node, whose current folder is another; addresses are so already."""
    return path if "://" in path else str(Path(path).absolute())


def _connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or this machine alone; bring the room `model`."""
    ray.init(
        log_to_driver=False,
        runtime_env={
            "py_modules": [str(REPOSITORY / "model")],
            "env_vars": {"OPENBLAS_NUM_THREADS": "1"},
        },
    )
    ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()


def _blocks(pictures: Iterable[Found]) -> Iterator[pa.Table]:
    """The pictures' names and what reads them, where they are answered."""
    rest = iter(pictures)
    while block := list(islice(rest, PICTURES_A_BLOCK)):
        read = [cloudpickle.dumps(each.read) for each in block]
        yield pa.table({"picture": [each.name for each in block], "read": read})


class Answer:
    """An actor: makes rows of batches, with a worker that looks into the pictures.

    A process of its own for that, since an actor that ends is started anew with the same pictures,
    for ever.
    """

    def __init__(self, weights: bytes) -> None:
        """Load a weights file, which also checks that this node answers as the one that trained
        it."""
        self._folder = TemporaryDirectory()
        file = Path(self._folder.name, "weights")
        file.write_bytes(weights)
        self._workers = workers_for(file, 1)
        self._runner = asyncio.Runner()
        self._runner.run(self._workers.start())

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return a table of ROWS for one of `_blocks`, or of the columns picture and bytes."""
        return pa.Table.from_pylist(self._runner.run(self._rows(batch)), ROWS)

    async def _rows(self, batch: pa.Table) -> list[Row]:
        return [row async for row in answers(self._workers, map(_found, batch.to_pylist()))]


def _found(columns: dict[str, Any]) -> Found:
    name = columns["picture"]
    name = text(os.fsdecode(name)) if isinstance(name, bytes) else str(name)
    if "read" in columns:
        return Found(name, cloudpickle.loads(columns["read"]))
    data = columns["bytes"]
    missing = partial(raise_unreadable, "The table has no bytes for this picture.")
    return Found(name, missing if data is None else lambda: data)


def _write(data: "ray.data.Dataset", weights: bytes, output: str) -> Counter[str]:
    """Write the rows; return how many there are of each label, and of errors."""
    most = int(ray.cluster_resources().get("CPU", 1))
    data.map_batches(
        Answer,
        fn_constructor_args=[weights],
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
        num_cpus=1,
        batch_size=64,
        batch_format="pyarrow",
    ).write_parquet(output, ray_remote_args=NO_CORE, min_rows_per_file=PICTURES_A_FILE)
    count: Counter[str] = Counter()
    for batch in dataset(output).to_batches(columns=["label"]):
        for value in batch["label"].value_counts().to_pylist():
            count[value["values"] or "error"] += value["counts"]
    return count


if __name__ == "__main__":
    sys.exit(main())
