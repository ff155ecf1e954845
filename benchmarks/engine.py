"""A network in a process of its own, with what runs it: this project, PyTorch or ONNX Runtime.

    python -m benchmarks.engine NAME WEIGHTS [CORE]

It works on one thread, and only when asked through its standard input (`Process`). An engine
imports what it needs itself, so that a process holds one only.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

REPOSITORY = Path(__file__).parent.parent
LOCK = "python -m pip install --require-hashes -r requirements/benchmarks.txt"
BATCHES = (1, 8, 32)


class Engine(NamedTuple):
    """predict: from `prepare`, which is not timed, of rows X (m, 12,288) float32 to probabilities
    (m,)."""

    version: str
    prepare: Callable[[Array], Any]
    predict: Callable[[Any], Array]


def this_project(weights: str) -> Engine:
    """As the service runs it."""
    from model.classifier import Classifier

    return Engine(f"NumPy {np.__version__}", np.asarray, Classifier.load(weights).probabilities)


def pytorch(weights: str) -> Engine:
    """Eager, channels_last."""
    import torch

    from benchmarks import torch_network
    from model.classifier import Classifier

    torch.set_num_threads(1)
    layers = Classifier.load(weights).layers
    own = torch_network.tensors(layers)

    def predict(x: Any) -> Array:
        with torch.inference_mode():
            a: Array = torch.sigmoid(torch_network.forward(layers, own, x)).numpy()
            return a[:, 0]

    return Engine(f"PyTorch {torch.__version__}", torch_network.pictures, predict)


def onnx_runtime(weights: str) -> Engine:
    """With all its optimisations. Of an .onnx file, which may be of any network, for the time and
    the memory that it takes: its pictures are black, and the first of its numbers is the answer."""
    import onnxruntime

    if weights.endswith(".onnx"):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(weights, options)
        shape = session.get_inputs()[0].shape[1:]
    else:
        from benchmarks import onnx_graph
        from model.classifier import Classifier

        session = onnx_graph.session(onnx_graph.from_layers(Classifier.load(weights).layers))
        shape = []

    def prepare(X: Array) -> Array:
        if shape:
            return np.zeros((len(X), *shape), np.float32)
        return np.ascontiguousarray(X.reshape(len(X), 64, 64, 3).transpose(0, 3, 1, 2))

    version = f"ONNX Runtime {onnxruntime.__version__}"
    return Engine(version, prepare, lambda x: session.run(None, {"x": x})[0][:, 0])


ENGINES = {"this project": this_project, "PyTorch": pytorch, "ONNX Runtime": onnx_runtime}
NEEDED = {"PyTorch": ("torch",), "ONNX Runtime": ("onnx", "onnxruntime")}


def missing(name: str) -> str:
    """What an engine lacks here, with the remedy; empty if it can run."""
    absent = [each for each in NEEDED.get(name, ()) if find_spec(each) is None]
    remedy = "python -m pip install torch==2.13.0" if "torch" in absent else LOCK
    return f"{name}: {' and '.join(absent)} not installed ({remedy})" if absent else ""


class Process:
    """The parent's side. Leaving the `with` block ends the process."""

    def __init__(self, name: str, weights: Path | str, core: int | None = None) -> None:
        command = [sys.executable, "-m", "benchmarks.engine", name, str(weights)]
        command += [] if core is None else [str(core)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, text=True
        )

    def ask(self, *question: object) -> Any:
        """ "version"; "memory": megabytes beside NumPy's own, step by step; "probabilities" of the
        largest batch; or a batch and repetitions: the seconds of each."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the engine ended with {self._process.wait()}")
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def main() -> None:
    """Be the child: answer the questions on standard input."""
    name, weights, *core = sys.argv[1:]
    if core:
        os.sched_setaffinity(0, {int(core[0])})
    before = _resident_mb()  # NumPy is here, and nothing else
    engine = ENGINES[name](weights)
    memory = {"loaded": _resident_mb() - before}
    X = np.random.default_rng(0).random((max(BATCHES), 64 * 64 * 3), dtype=np.float32)
    inputs = {m: engine.prepare(X[:m]) for m in BATCHES}
    for m in (min(BATCHES), max(BATCHES)):
        probabilities = [float(p) for p in engine.predict(inputs[m])]
        memory[f"batch of {m}"] = _resident_mb() - before
    known = {"version": engine.version, "memory": memory, "probabilities": probabilities}
    for line in sys.stdin:
        match json.loads(line):
            case [str(what)]:
                answer: Any = known[what]
            case [batch, repetitions]:
                answer = [_seconds(engine.predict, inputs[batch]) for _ in range(repetitions)]
        print(json.dumps(answer), flush=True)


def _seconds(predict: Callable[[Any], Array], x: Any) -> float:
    start = perf_counter()
    predict(x)
    return perf_counter() - start


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
