"""A network in a process of its own, run by this project, or an .onnx file by ONNX Runtime.

    python -m benchmarks.engine CORE VIEWS FILE…

First it prints its version, memory and probabilities, a line of JSON. Then it works on one thread,
and only when asked through its standard input (`Process`). It imports one of the two alone. A
second .onnx file is for the other views of a picture.
"""

import json
import os
import subprocess
import sys
import timeit
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

REPOSITORY = Path(__file__).parent.parent
WHOLE, OTHERS = 0, 1  # the passes: a whole picture; its other views, together


class Engine(NamedTuple):
    """passes: the one of WHOLE, and that of OTHERS if there is one, from `prepare`, which is not
    timed, of rows X (m, 12,288) float32 to probabilities (m,)."""

    version: str
    prepare: Callable[[Array], Any]
    passes: list[Callable[[Any], Array]]


def this_project(weights: str) -> Engine:
    """As `model.classifier` runs it: a whole picture in the mirror too, other views not."""
    from model.classifier import Classifier
    from model.network import Scratch, forward, sigmoid

    classifier, scratch = Classifier.load(weights), Scratch()

    def others(X: Array) -> Array:
        return sigmoid(forward(classifier.layers, X, scratch)[-1][:, 0])

    return Engine(f"NumPy {np.__version__}", np.asarray, [classifier.probabilities, others])


def onnx_runtime(*models: str) -> Engine:
    """With all its optimisations. A model for larger pictures gets black ones."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(model, options) for model in models]
    side = sessions[WHOLE].get_inputs()[0].shape[-1]

    def prepare(X: Array) -> Array:
        if side != 64:
            return np.zeros((len(X), 3, side, side), np.float32)
        return np.ascontiguousarray(X.reshape(len(X), 64, 64, 3).transpose(0, 3, 1, 2))

    def pass_of(session: Any) -> Callable[[Any], Array]:
        return lambda x: session.run(None, {"x": x})[0][:, 0]

    version = f"ONNX Runtime {onnxruntime.__version__}"
    return Engine(version, prepare, [pass_of(session) for session in sessions])


class Process:
    """The parent's side. Leaving the `with` block ends the process."""

    def __init__(self, core: int, views: int, *files: Path) -> None:
        """views: of a picture, the whole among them; with 1 there is no second pass."""
        arguments = [str(core), str(views), *(str(file.absolute()) for file in files)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.engine", *arguments],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        # Memory: megabytes beside NumPy's own, step by step; the probabilities are of each pass
        self.version, self.memory, self.probabilities = self._read()

    def seconds(self, which: int, repetitions: int) -> list[float]:
        """How long each of so many repetitions of a pass takes."""
        assert self._process.stdin is not None
        print(which, repetitions, file=self._process.stdin, flush=True)
        return list(self._read())

    def _read(self) -> Any:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the engine ended with {self._process.wait()}")
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def main() -> None:
    """Be the child: time the passes that standard input names."""
    core, views, *files = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    before = _resident_mb()  # NumPy is here, and nothing else
    engine = (onnx_runtime if files[0].endswith(".onnx") else this_project)(*files)
    memory = {"loaded": _resident_mb() - before}
    X = np.random.default_rng(0).random((int(views), 64 * 64 * 3), dtype=np.float32)
    inputs = [engine.prepare(rows) for rows in (X[:1], X[1:]) if len(rows)]
    probabilities = []
    for predict, x, step in zip(engine.passes, inputs, ("whole", "other views"), strict=False):
        probabilities.append(predict(x).astype(float).tolist())
        memory[step] = _resident_mb() - before
    print(json.dumps([engine.version, memory, probabilities]), flush=True)
    for line in sys.stdin:
        which, repetitions = map(int, line.split())
        one = partial(engine.passes[which], inputs[which])
        print(json.dumps(timeit.repeat(one, repeat=repetitions, number=1)), flush=True)


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
