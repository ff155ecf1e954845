"""Try the job on a cluster: one node, two nodes, and two of which one is killed in the middle.

    python -m deploy.ray.cluster FOLDER|ZIP…

The nodes are processes of this machine, each with one core to give away. Prints pictures/s of
each run and the efficiency of two nodes, and ends with a status that is not 0 unless every
picture has exactly one row, the same in all runs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ray.cluster_utils import Cluster

from deploy.ray.job import read_rows
from model.archive import Pictures, Row

REPOSITORY = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job three times; return 0 if all rows are as they should be, else 1."""
    parser = argparse.ArgumentParser(prog="python -m deploy.ray.cluster")
    parser.add_argument("sources", metavar="FOLDER|ZIP", nargs="+")
    sources = parser.parse_args(arguments).sources
    names = sorted(found.name for found in Pictures(sources))
    with tempfile.TemporaryDirectory() as folder:
        one, rows = run(sources, Path(folder, "one"), nodes=1)
        two, same = run(sources, Path(folder, "two"), nodes=2)
        lost, again = run(sources, Path(folder, "lost"), nodes=2, kill_after=two * 0.5)
    print(f"{len(names):,} pictures: {len(names) / one:.1f}/s on one node, ", end="")
    print(f"{len(names) / two:.1f}/s on two (efficiency {one / two / 2:.0%}), ", end="")
    print(f"{len(names) / lost:.1f}/s with one of two killed after {two * 0.5:.1f} s")
    whole = [each["picture"] for each in rows] == names and rows == same == again
    print("Every picture has one row, the same each time" if whole else "ROWS ARE NOT THE SAME")
    return 0 if whole else 1


def run(
    sources: Sequence[str], output: Path, nodes: int, kill_after: float | None = None
) -> tuple[float, list[Row]]:
    """Return the seconds that the job took, its start included, and its rows by name."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        others = [cluster.add_node(num_cpus=1) for _ in range(nodes - 1)]
        cluster.wait_for_nodes()
        command = [sys.executable, "-m", "deploy.ray.job", *sources, "--output", str(output)]
        environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        started = time.monotonic()
        job = subprocess.Popen(command, cwd=REPOSITORY, env=environment)
        if kill_after is not None:
            try:
                job.wait(kill_after)
            except subprocess.TimeoutExpired:
                cluster.remove_node(others[0], allow_graceful=False)
                print("One node was killed")
            else:
                raise SystemExit("The job was done before a node could be killed: give it more.")
        job.wait()
        seconds = time.monotonic() - started
    finally:
        cluster.shutdown()
    return seconds, sorted(read_rows(output), key=lambda each: str(each["picture"]))


if __name__ == "__main__":
    sys.exit(main())
