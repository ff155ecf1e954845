"""What /v2 takes and gives: known to the front, which documents it, and to the workers."""

from dataclasses import dataclass

HEADER_LENGTH = "Inference-Header-Content-Length"
MODEL = "cat"  # the name of the model, whatever its artifact is called
MAX_PICTURES = 32
LONGEST_ID = 1000  # characters


@dataclass(frozen=True)
class Spec:
    """A tensor as the model's metadata declare it; -1 in the shape is the number of pictures."""

    name: str
    datatype: str
    shape: tuple[int, ...]


OUTPUTS = (Spec("cat_probability", "FP32", (-1, 1)), Spec("label", "BYTES", (-1, 1)))


def inputs(side: int) -> tuple[Spec, ...]:
    """The inputs of a model that sees side × side pixels; a request has exactly one of them."""
    return (
        Spec("image", "BYTES", (-1,)),
        Spec("pixels", "UINT8", (-1, side, side, 3)),
        Spec("vector", "FP32", (-1, side * side * 3)),
    )
