"""Measure the service beside a tutorial's, LitServe, BentoML, MLServer and Ray Serve.

    python -m benchmarks.serving prepare FOLDER
    python -m benchmarks.serving measure FOLDER --output RESULTS

The first makes an environment for each peer, the second measures them all, in turns, with the same
weights and the same pictures. Linux.
"""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.serving import environments, pictures, processes
from benchmarks.serving.measure import CONNECTIONS, Plan, Results, measure_loops, measure_server
from benchmarks.serving.report import BAR_CONNECTIONS, Summary, plot
from benchmarks.serving.servers import CORES, EMPTY, OURS, PEER_SERVERS, REPOSITORY, WHOLE, Server
from model.classifier import BadArtifact, Classifier

LOGISTIC = REPOSITORY / "model/logistic.safetensors"
SERVERS = (OURS, *PEER_SERVERS[:2], WHOLE, *PEER_SERVERS[2:], EMPTY)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare or measure; 1 where that is not possible."""
    options = _options(arguments)
    try:
        if options.step == "prepare":
            environments.prepare(options.folder.absolute(), options.python)
        else:
            _measure(options)
    except (environments.NotPrepared, FileExistsError, BadArtifact) as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"failed: {' '.join(map(str, error.cmd))}", file=sys.stderr)
        return 1
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=(__doc__ or "").partition("\n")[0]
    )
    steps = parser.add_subparsers(dest="step", required=True)
    prepare = steps.add_parser("prepare", help="make an environment for each peer")
    prepare.add_argument("folder", type=Path, help="where the environments go")
    prepare.add_argument("--python", default=sys.executable, help="the Python for them")
    measure = steps.add_parser("measure", help="measure everything, in turns")
    measure.add_argument("folder", type=Path, help="where the environments are")
    measure.add_argument("--output", type=Path, required=True, help="a folder that is made")
    measure.add_argument(
        "--weights", type=Path, default=LOGISTIC, help="a weights file; else the course's"
    )
    measure.add_argument("--rounds", type=int, default=5)
    measure.add_argument("--seconds", type=float, default=4.0, help="for each load")
    measure.add_argument(
        "--only",
        action="append",
        choices=[server.name for server in SERVERS],
        help="this server; may be given several times",
    )
    return parser.parse_args(arguments)


def _measure(options: argparse.Namespace) -> None:
    if options.output.exists():
        raise FileExistsError(f"{options.output} is there already: name another folder")
    folder = options.folder.absolute()
    environments.check(folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends what was started, too
    processes.adopt_orphans()
    servers = [server for server in SERVERS if not options.only or server.name in options.only]
    results = Results()
    with TemporaryDirectory() as name:
        plan = _plan(Path(name), folder, options.weights.absolute(), options.seconds)
        about = _about(plan, servers, options)
        print(about, flush=True)
        for number in range(1, options.rounds + 1):
            _round(plan, servers, number, results)
        network = plan.weights["recipe"].suffix == ".onnx"
        _write(options.output, about, Summary(results, network))


def _round(plan: Plan, servers: Sequence[Server], number: int, results: Results) -> None:
    """Everything once; each round starts with another server, so that none is always after the
    same one."""
    turn = number % len(servers)
    for server in (*servers[turn:], *servers[:turn]):
        print(f"{datetime.now(UTC):%H:%M:%S} round {number}: {server.name}", flush=True)
        measure_server(plan, server, number, results)
    print(f"{datetime.now(UTC):%H:%M:%S} round {number}: bare loops", flush=True)
    measure_loops(plan, number, results)


def _plan(folder: Path, environments_folder: Path, artifact: Path, seconds: float) -> Plan:
    classifier = Classifier.load(artifact)
    whole = folder / "whole.safetensors"
    replace(classifier, preprocessing=replace(classifier.preprocessing, jpeg_times=None)).save(
        whole
    )
    recipe = environments.run_module(
        environments_folder, "benchmarks.serving.convert", str(artifact), str(folder / "recipe")
    )
    photos = {size.name: pictures.jpeg(size) for size in pictures.SIZES}
    by_weights = {"artifact": artifact, "whole": whole, "recipe": Path(recipe)}
    expected = {
        kind: {
            size: Classifier.load(artifact if kind == "artifact" else whole)
            .predict(data)
            .cat_probability
            for size, data in photos.items()
        }
        for kind in by_weights
    }
    return Plan(environments_folder, by_weights, photos, expected, seconds, folder)


def _about(plan: Plan, servers: Sequence[Server], options: argparse.Namespace) -> str:
    """What was measured, on what, when and with which versions, as Markdown."""
    machine = subprocess.run(
        [sys.executable, "-c", "from benchmarks.machine import describe; print(describe())"],
        cwd=REPOSITORY,
        env=processes.environment({}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()
    lines = [
        f"# Serving, with the weights `{options.weights.name}`\n",
        f"{datetime.now(UTC):%d %B %Y}, {options.rounds} rounds of {options.seconds:g} s a load;"
        f" medians. {CORES} cores may be used.\n",
        *(f"    {line}" for line in machine.splitlines()),
        "",
        "Pictures: "
        + ", ".join(
            f"{size.name} {size.width}×{size.height}, {len(plan.pictures[size.name]) / 1e3:,.0f} kB"
            for size in pictures.SIZES
        )
        + f". Connections: {', '.join(map(str, CONNECTIONS))}.",
        "",
        *(f"- **{s.name}**: {s.setup} ({_versions(s, plan.environments)})" for s in servers),
    ]
    return "\n".join(lines)


def _versions(server: Server, folder: Path) -> str:
    found: Mapping[str, str] = environments.versions(server, folder)
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _write(output: Path, about: str, summary: Summary) -> None:
    """The folder, whole or not at all."""
    tables = summary.markdown()
    print(f"\n{tables}")
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as name:
        folder = Path(name) / output.name
        folder.mkdir()
        values = {"about": about, **asdict(summary.results)}
        text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / "rounds.json").write_text(text + "\n", encoding="utf-8")
        (folder / "tables.md").write_text(f"{about}\n\n{tables}", encoding="utf-8")
        caption = (
            f"{BAR_CONNECTIONS} connections, {CORES} cores,"
            f" {'a convolutional network' if summary.network else 'logistic regression'},"
            f" {datetime.now(UTC):%B %Y}"
        )
        plot(summary, folder, caption)
        folder.rename(output)
    print(f"written to {output}")


if __name__ == "__main__":
    sys.exit(main())
