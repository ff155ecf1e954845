"""A weights file in the form that the recipe reads: python -m benchmarks.serving.convert FILE STEM

It writes STEM.npz for logistic regression and STEM.onnx for a network, and prints which.
"""

import sys
from pathlib import Path

import numpy as np

from model.classifier import Classifier


def main() -> None:
    """Convert the file that the command line names."""
    source, stem = sys.argv[1:]
    layers = Classifier.load(source).layers
    if [layer.kind for layer in layers] == ["linear"]:
        target = Path(f"{stem}.npz")
        np.savez(target, **layers[0].parameters)  # type: ignore[arg-type]
    else:
        from benchmarks.onnx_graph import from_layers

        target = Path(f"{stem}.onnx")
        target.write_bytes(from_layers(layers))
    print(target)


if __name__ == "__main__":
    main()
