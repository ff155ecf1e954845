"""How fast is the service, compared with other commits and other servers?

\b
    git worktree add ../before COMMIT
    python -m benchmarks.serving measure --beside ../before
    python -m benchmarks.serving prepare PEERS
    python -m benchmarks.serving measure --peers PEERS

All get the same pictures and, but for other commits, the same weights. Needs Linux and wrk.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.machine import describe
from benchmarks.serving import measure, processes, servers
from benchmarks.serving.peers import recipe
from benchmarks.serving.pictures import SIZES, jpeg
from benchmarks.serving.servers import CORES, PEER_SERVERS, REPOSITORY, THIS, Server
from model.classifier import Classifier

WEIGHTS = [Path("model/logistic.safetensors"), Path("model/cat.safetensors")]
Figures = Mapping[str, float]
Round = Mapping[str, Figures]  # by the servers' names

commands = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@commands.command()
def prepare(
    folder: Annotated[Path, typer.Argument(help="where the environments go; about 2 GB")],
) -> None:
    """Make an environment for each peer."""
    servers.prepare(folder.absolute())


@commands.command("measure")
def measure_all(
    peers: Annotated[Path | None, typer.Option(help="the folder that `prepare` made")] = None,
    beside: Annotated[
        list[Path] | None, typer.Option(help="a worktree of this project at another commit")
    ] = None,
    weights: Annotated[
        list[Path], typer.Option(help="a weights file; a relative path is each worktree's own")
    ] = WEIGHTS,
    size: Annotated[list[str] | None, typer.Option(help="small, medium or large")] = None,
    rounds: int = 5,
    seconds: Annotated[int, typer.Option(help="of load, for each picture")] = 4,
    connections: int = 8,
) -> None:
    """Measure servers in turn, each round starting with another one; print medians as Markdown.

    The ratio in brackets is this service's figure over that server's, the median of the rounds'
    ratios. CPU ms is the processor time of all of the server's processes, divided by its answers
    with 200; MB is their proportional set size under load; start s is the time from the command to
    the first answer.
    """
    if not shutil.which("wrk"):
        sys.exit("wrk is missing: `apt-get install wrk`.")
    compared = [servers.service(REPOSITORY, THIS), *map(servers.service, beside or [])]
    compared += PEER_SERVERS if peers else ()
    load = measure.Load(seconds, connections)
    sizes = [each for each in SIZES if not size or each.name in size]
    processes.adopt_orphans()
    print(f"{datetime.now(UTC):%d %B %Y}, {rounds} rounds of {load}, {CORES} cores.\n")
    print(describe())
    with TemporaryDirectory() as name:
        files = []
        for each in sizes:
            files.append(Path(name) / f"{each.name}.jpg")
            files[-1].write_bytes(jpeg(each))
        for path in weights:
            found = list(_rounds(compared, path, peers, files, load, rounds, Path(name)))
            print(f"\n## {path}\n\n{table(found)}", flush=True)


def _rounds(
    compared: Sequence[Server],
    weights: Path,
    peers: Path | None,
    files: Sequence[Path],
    load: measure.Load,
    rounds: int,
    folder: Path,
) -> Iterator[Round]:
    recipe_model = _recipe_model(weights, peers, folder) if peers else None
    expected = {each.name: _expected(each, weights, files) for each in compared}
    for number in range(rounds):
        found: dict[str, Figures] = {}
        turn = number % len(compared)
        for server in (*compared[turn:], *compared[:turn]):
            print(f"round {number + 1}: {server.name}", file=sys.stderr, flush=True)
            own = server.tree / weights if server.tree else recipe_model
            assert own
            questions = dict(zip(files, expected[server.name], strict=True))
            with TemporaryDirectory(dir=folder) as name:
                try:
                    found[server.name] = measure.measure(
                        server, own, peers, questions, load, Path(name)
                    )
                except measure.Failed as error:
                    print(f"{server.name} failed: {error}", file=sys.stderr, flush=True)
        yield found


def _recipe_model(weights: Path, peers: Path, folder: Path) -> Path:
    """The weights in the form that the peers read, made where `onnx` is installed."""
    python, model = peers.absolute() / "fastapi/bin/python", folder / f"{weights.stem}.onnx"
    files = (str(REPOSITORY / weights), str(model))
    command = [str(python), "-m", "benchmarks.onnx_graph", *files]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    return model


def _expected(server: Server, weights: Path, files: Sequence[Path]) -> list[float]:
    """The right probabilities: for a checkout by its own command line, for peers by the recipe."""
    if server.tree is None:
        classifier = Classifier.load(REPOSITORY / weights)

        def model(pixels: Any) -> float:
            return float(classifier.probabilities(pixels.reshape(1, -1))[0])

        return [recipe.predict(model, file.read_bytes()) for file in files]
    command = [str(server.interpreter(None)), "-m", "model", "--json", "--weights", str(weights)]
    command += map(str, files)
    rows = subprocess.check_output(command, cwd=server.tree, text=True).splitlines()
    return [json.loads(row)["cat_probability"] for row in rows]


def table(rounds: Sequence[Round]) -> str:
    """Medians over the rounds as a Markdown table, with ratios to the first server's figures."""
    names = [THIS, *sorted({name for each in rounds for name in each} - {THIS})]
    whats = dict.fromkeys(what for each in rounds for figures in each.values() for what in figures)
    lines = [["", *names], ["---", *["---:"] * len(names)]]
    lines += [[what, *(_cell(rounds, name, what) for name in names)] for what in whats]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(rounds: Sequence[Round], name: str, what: str) -> str:
    values = [each[name][what] for each in rounds if name in each]
    if not values:
        return "–"
    ratios = [
        each[THIS][what] / each[name][what]
        for each in rounds
        if name != THIS and name in each and THIS in each and each[name][what]
    ]
    digits = 0 if median(values) >= 100 or what.endswith(("MB", "errors")) else 2
    ratio = f" ({median(ratios):.2f}×)" if ratios else ""
    return f"{median(values):,.{digits}f}{ratio}"


if __name__ == "__main__":
    commands()
