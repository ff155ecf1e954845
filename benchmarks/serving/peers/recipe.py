"""The usual recipe: from the bytes of a picture to a probability, as tutorials write it.

The environment variable RECIPE_MODEL names what predicts: an .npz of logistic regression (`weights`
(12,288, 1) and `bias` (1,)), or an .onnx of a network for pictures (m, 3, 64, 64).
"""

import os
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

SIDE = 64  # pixels
Model = Callable[[Any], float]  # from (64, 64, 3) float32 in [0, 1] to a probability


def load() -> Model:
    """The model that RECIPE_MODEL names."""
    path = os.environ["RECIPE_MODEL"]
    return _network(path) if path.endswith(".onnx") else _logistic_regression(path)


def predict(model: Model, data: bytes) -> float:
    """The probability for an encoded picture."""
    return predict_image(model, Image.open(BytesIO(data)))


def predict_image(model: Model, image: Image.Image) -> float:
    """The probability for an opened picture."""
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return model(np.asarray(small, np.float32) / 255)


def _logistic_regression(path: str) -> Model:
    with np.load(path) as stored:
        weights, bias = stored["weights"], stored["bias"]

    def probability(pixels: Any) -> float:
        z = pixels.reshape(1, -1) @ weights + bias
        return float(1 / (1 + np.exp(-z[0, 0])))

    return probability


def _network(path: str) -> Model:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def probability(pixels: Any) -> float:
        x = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        return float(session.run(None, {"x": x})[0][0, 0])

    return probability
