"""The work of a request without HTTP, in a loop in one process.

    python -m benchmarks.serving.bare_loop classifier|recipe WEIGHTS PICTURE SECONDS

`classifier` does what the service does, `recipe` what the peers do. It prints a line when it is
ready, starts at a line of its input, and prints a line of JSON.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

from benchmarks.serving.peers import recipe


def work(kind: str, weights: str) -> Callable[[bytes], object]:
    """What is repeated, for the bytes of a picture."""
    if kind == "classifier":
        from model.classifier import Classifier

        return Classifier.load(weights).predict
    os.environ["RECIPE_MODEL"] = weights
    model = recipe.load()
    return lambda data: recipe.predict(model, data)


def main() -> None:
    """Run the loop that the command line names."""
    kind, weights, picture, seconds = sys.argv[1:]
    predict, data = work(kind, weights), Path(picture).read_bytes()
    predict(data)
    print("ready", flush=True)
    sys.stdin.readline()
    began, cpu, count = perf_counter(), process_time(), 0
    while (elapsed := perf_counter() - began) < float(seconds):
        predict(data)
        count += 1
    print(json.dumps({"count": count, "seconds": elapsed, "cpu": process_time() - cpu}))


if __name__ == "__main__":
    main()
