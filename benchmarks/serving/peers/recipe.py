"""The usual recipe: from the bytes of a picture to a probability, as tutorials write it.

The environment variable RECIPE_MODEL names what predicts: an .onnx for pictures (m, 3, 64, 64).
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
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path, providers = os.environ["RECIPE_MODEL"], ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(path, options, providers=providers)

    def probability(pixels: Any) -> float:
        x = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        return float(session.run(None, {"x": x})[0][0, 0])

    return probability


def predict(model: Model, data: bytes) -> float:
    """The probability for an encoded picture."""
    image = Image.open(BytesIO(data))
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return model(np.asarray(small, np.float32) / 255)
