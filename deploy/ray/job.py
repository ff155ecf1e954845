"""Answer for the pictures of an archive on a Ray cluster, and write the rows as Parquet.

    python -m deploy.ray.job FOLDER|ZIP… --output ROWS
    python -m deploy.ray.job PARQUET… --names COLUMN --bytes COLUMN --output ROWS

The rows are those of `python -m model`, whose functions find the pictures and answer: a column a
field, empty where a row has no such field. Folders and zips lie at the same path on every node,
Parquet wherever PyArrow reads it.
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pyarrow as pa
import ray
import ray.data
from pyarrow.dataset import dataset

from model.archive import (
    BadSources,
    Found,
    Member,
    Pictures,
    Row,
    Source,
    SourceFailed,
    Unreadable,
    text,
)
from model.batch import Pool
from model.classifier import BadArtifact, Classifier, default_weights

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
# Where a picture is: a file, or with `member` a member of a zip, or why there is none.
FOUND = pa.schema([(name, pa.binary()) for name in ("picture", "path", "member", "reason", "why")])

# An actor's task. Where a node is lost, its tasks are done again, and so are those whose rows lay
# there and were in no file yet.
PICTURES_A_BLOCK = 512
PICTURES_A_FILE = 100_000
# Beside the actors, which have a core each: reading and writing wait for disks.
ASIDE = {"num_cpus": 0}


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
    except BadArtifact as error:
        parser.error(str(error))
    weights = options.weights.read_bytes()
    try:
        pictures = Pictures(options.sources)
    except BadSources as error:
        parser.error(str(error))
    _connect()
    started = time.monotonic()
    if options.names is None:
        try:
            data = _found(pictures)
        except SourceFailed as error:
            parser.error(f"the pictures cannot be read: {error}")
    else:
        sources = [_absolute(each) for each in options.sources]
        data = _in_parquet(sources, options.names, options.bytes)
    count = _write(data, weights, output) if data is not None else Counter()
    seconds = time.monotonic() - started
    total = count.total()
    words = ", ".join(f"{number:,} {what}" for what, number in count.most_common())
    print(f"{total:,} pictures in {seconds:.1f} s, {total / seconds:.1f}/s: {words or 'none'}")
    return 1 if not total or count["error"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.ray.job", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("sources", metavar="FOLDER|ZIP|PARQUET", nargs="+")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="a new one, for Parquet")
    parser.add_argument("--names", metavar="COLUMN", help="of Parquet: the pictures' names")
    parser.add_argument("--bytes", metavar="COLUMN", help="of Parquet: the encoded pictures")
    parser.add_argument("--weights", metavar="FILE", type=Path, default=default_weights())
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


def _found(pictures: Pictures) -> "ray.data.Dataset | None":
    """The names and places of the pictures; their bytes are read where they are answered."""
    blocks = list(_blocks(iter(pictures)))
    return ray.data.from_arrow(blocks) if blocks else None


def _blocks(found: Iterator[Any]) -> Iterator[pa.Table]:
    block: list[dict[str, bytes]] = []
    for name, source in found:
        block.append({"picture": name.encode(), **_place(source)})
        if len(block) == PICTURES_A_BLOCK:
            yield pa.Table.from_pylist(block, FOUND)
            block = []
    if block:
        yield pa.Table.from_pylist(block, FOUND)


def _place(source: Source) -> dict[str, bytes]:
    """A source as columns. Paths are bytes, since Linux allows any in them."""
    match source:
        case Unreadable(detail=why, reason=reason):
            return {"why": why.encode(), "reason": reason.encode()}
        case Member(archive=path, name=member):
            return {"path": os.fsencode(path.absolute()), "member": os.fsencode(member)}
        case Path() as path:
            return {"path": os.fsencode(path.absolute())}
    raise TypeError(f"{source!r} is no place")


def _in_parquet(paths: Sequence[str], names: str, pictures: str) -> "ray.data.Dataset":
    data = ray.data.read_parquet(list(paths), num_cpus=0).select_columns([names, pictures])
    return data.rename_columns({names: "picture", pictures: "bytes"})


def _source(columns: dict[str, Any]) -> Source:
    """What `_place` made columns of, or the bytes in a Parquet file."""
    if "bytes" in columns:
        missing = Unreadable("The table has no bytes for this picture.")
        return missing if columns["bytes"] is None else columns["bytes"]
    if columns["why"] is not None:
        return Unreadable(columns["why"].decode(), columns["reason"].decode())
    path = Path(os.fsdecode(columns["path"]))
    return path if columns["member"] is None else Member(path, os.fsdecode(columns["member"]))


class Answer:
    """An actor: has a process with the classifier in it, and makes rows of batches.

    A process of its own, since an actor that ends is started anew with the same pictures, for ever.
    """

    def __init__(self, weights: bytes) -> None:
        """Load a weights file, which also checks that this node answers as the one that trained
        it."""
        with NamedTemporaryFile() as file:
            file.write(weights)
            file.flush()
            self._pool = Pool(Classifier.load(file.name), 1)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return a table of ROWS for one of FOUND, or of the columns picture and bytes."""
        task = [Found(_name(columns["picture"]), _source(columns)) for columns in batch.to_pylist()]
        return pa.Table.from_pylist(self._pool.answer(task), ROWS)


def _name(value: Any) -> str:
    """A name in a table, as valid text."""
    return text(os.fsdecode(value)) if isinstance(value, bytes) else str(value)


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
    ).write_parquet(output, ray_remote_args=ASIDE, min_rows_per_file=PICTURES_A_FILE)
    count: Counter[str] = Counter()
    for batch in dataset(output).to_batches(columns=["label"]):
        for value in batch["label"].value_counts().to_pylist():
            count[value["values"] or "error"] += value["counts"]
    return count


def read_rows(folder: str | os.PathLike[str]) -> Iterator[Row]:
    """The rows in a folder that the job wrote, as `python -m model` has them."""
    for batch in dataset(folder).to_batches():
        for columns in batch.to_pylist():
            yield {name: value for name, value in columns.items() if value is not None}


if __name__ == "__main__":
    sys.exit(main())
