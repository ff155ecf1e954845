"""A network in a process of its own, with what runs it: this project, PyTorch or ONNX Runtime.

    python -m benchmarks.engine NAME WEIGHTS [CORE]

It works on one thread, and only when asked through its standard input (`Process`). An engine gives
probabilities (m,) for rows X (m, 12,288) float32; what it would rather have is made beforehand by
`prepare(X)`, which is not timed. It imports what it needs itself, so that a process holds one only.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

REPOSITORY = Path(__file__).parent.parent
LOCK = "python -m pip install --require-hashes -r requirements/benchmarks.txt"
BATCHES = (1, 8, 32)


class Ours:
    """This project, as the service runs it."""

    packages: tuple[str, ...] = ()

    def __init__(self, weights: str) -> None:
        from model.classifier import Classifier

        self.version = f"NumPy {np.__version__}"
        self.prepare: Callable[[Array], Any] = np.asarray
        self.predict: Callable[[Any], Array] = Classifier.load(weights).probabilities


class Torch:
    """PyTorch, eager, channels_last."""

    packages = ("torch",)

    def __init__(self, weights: str) -> None:
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

        self.version = f"PyTorch {torch.__version__}"
        self.prepare, self.predict = torch_network.pictures, predict


class OnnxRuntime:
    """ONNX Runtime, with all its optimisations."""

    packages = ("onnx", "onnxruntime")

    def __init__(self, weights: str) -> None:
        import onnxruntime

        from benchmarks.onnx_graph import from_layers, session
        from model.classifier import Classifier

        run = session(from_layers(Classifier.load(weights).layers)).run
        self.version = f"ONNX Runtime {onnxruntime.__version__}"
        self.prepare = _planes
        self.predict = lambda x: run(None, {"x": x})[0][:, 0]


class Lite:
    """A pretrained network's .onnx file on ONNX Runtime; for its memory, whatever the pictures."""

    packages = ("onnxruntime",)

    def __init__(self, weights: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(weights, options)
        shape = session.get_inputs()[0].shape[1:]
        self.version = f"ONNX Runtime {onnxruntime.__version__}"
        self.prepare = lambda X: np.zeros((len(X), *shape), np.float32)
        self.predict = lambda x: session.run(None, {"x": x})[0][:, 281:286].sum(axis=1)


def _planes(X: Array) -> Array:
    """Rows as ONNX has pictures: (m, 3, 64, 64)."""
    return np.ascontiguousarray(X.reshape(len(X), 64, 64, 3).transpose(0, 3, 1, 2))


ENGINES: dict[str, type[Ours | Torch | OnnxRuntime | Lite]] = {
    "this project": Ours,
    "PyTorch": Torch,
    "ONNX Runtime": OnnxRuntime,
    "Lite": Lite,
}


def missing(name: str) -> str:
    """What an engine lacks here, with the remedy; empty if it can run."""
    absent = [each for each in ENGINES[name].packages if find_spec(each) is None]
    remedy = "python -m pip install torch==2.13.0" if "torch" in absent else LOCK
    return f"{name}: {' and '.join(absent)} not installed ({remedy})" if absent else ""


class Process:
    """The parent's side. Leaving the `with` block ends the process."""

    def __init__(self, name: str, weights: Path | str, core: int | None = None) -> None:
        command = [sys.executable, "-m", "benchmarks.engine", name, str(weights)]
        self._process = subprocess.Popen(
            command + ([] if core is None else [str(core)]),
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, method: str, *arguments: object) -> Any:
        """The answer of a method of `Measured`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([method, *arguments]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the engine ended with {self._process.wait()}")
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


class Measured:
    """The child's side: the engine, and what can be asked of it."""

    def __init__(self, name: str, weights: str) -> None:
        before = _resident_mb()  # NumPy is here, and nothing else
        engine = self._engine = ENGINES[name](weights)
        self._memory = {"loaded": _resident_mb() - before}
        X = np.random.default_rng(0).random((max(BATCHES), 64 * 64 * 3), dtype=np.float32)
        self._inputs = {m: engine.prepare(X[:m]) for m in BATCHES}
        for m in (min(BATCHES), max(BATCHES)):
            self._probabilities = engine.predict(self._inputs[m])
            self._memory[f"batch of {m}"] = _resident_mb() - before

    def version(self) -> str:
        return self._engine.version

    def memory(self) -> dict[str, float]:
        """Megabytes beside NumPy's own, step by step."""
        return self._memory

    def probabilities(self) -> list[float]:
        """Of the largest batch."""
        return [float(p) for p in self._probabilities]

    def run(self, batch: int, repetitions: int) -> list[float]:
        """Seconds of each of so many batches."""
        x, predict = self._inputs[batch], self._engine.predict
        return [_seconds(lambda: predict(x)) for _ in range(repetitions)]


def _seconds(function: Callable[[], object]) -> float:
    start = perf_counter()
    function()
    return perf_counter() - start


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Answer the questions on standard input."""
    name, weights, *core = sys.argv[1:]
    if core:
        os.sched_setaffinity(0, {int(core[0])})
    measured = Measured(name, weights)
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        print(json.dumps(getattr(measured, method)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
