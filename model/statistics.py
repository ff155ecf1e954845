"""How unlike the pictures of its training a picture is, told by four simple numbers.

An artifact keeps the mean and the deviation of each number over pictures that its training held
back. A picture's distance is the root mean square of how many deviations it is from those means:
1 is usual, and what stays above 2 or 3 is not what the network was measured on.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

KEY: Final = "input_statistics"  # in an artifact's metadata
NAMES: Final = ("brightness", "contrast", "colourfulness", "sharpness")
_THIRDS: Final = np.full(3, 1 / 3, np.float32)
LEAST_DEVIATION: Final = 1e-3  # else all others would be infinitely far from pictures all alike


def statistics(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The four numbers of a picture (side, side, 3), side > 1, as NAMES lists them; each 0 to 255.

    Of the grey picture, which is the mean of red, green and blue: its mean, its standard
    deviation, and the mean difference of neighbours; and the mean of max − min of the colours.
    """
    # Every request pays for this: few passes over contiguous numbers, 25 µs in all.
    side, count = len(pixels), pixels.shape[0] * pixels.shape[1]
    flat = pixels.reshape(-1, 3)
    red, green, blue = (np.ascontiguousarray(flat[:, channel]) for channel in range(3))
    spread = np.maximum(np.maximum(red, green), blue)
    spread -= np.minimum(np.minimum(red, green), blue)
    grey = flat.astype(np.float32) @ _THIRDS
    brightness = np.add.reduce(grey) / count
    grey -= brightness
    rows = grey.reshape(side, -1)
    down = _absolute_sum(rows[1:] - rows[:-1])
    across = _absolute_sum(rows[:, 1:] - rows[:, :-1])
    sharpness = (down + across) / (2 * count - len(rows) - rows.shape[1])
    contrast = math.sqrt(grey @ grey / count)
    colourfulness = np.add.reduce(spread, dtype=np.uint64) / count
    return np.array([brightness, contrast, colourfulness, sharpness], np.float64)


def _absolute_sum(values: NDArray[np.float32]) -> float:
    np.abs(values, out=values)
    return float(np.add.reduce(values, axis=None))


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """What the four numbers are for the pictures that a network was measured on: (4,) each."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def of(cls, pictures: Iterable[NDArray[np.uint8]]) -> Self:
        """Mean and standard deviation over pictures, one or more, each (side, side, 3)."""
        rows = np.stack([statistics(pixels) for pixels in pictures])
        return cls(rows.mean(0), np.maximum(rows.std(0), LEAST_DEVIATION))

    def distance(self, pixels: NDArray[np.uint8]) -> float:
        """The root mean square of the z-scores of a picture (side, side, 3); 0 or more."""
        z = (statistics(pixels) - self.mean) / self.deviation
        return math.sqrt(z @ z / len(NAMES))

    def to_json(self) -> dict[str, Any]:
        """The value that an artifact's metadata hold under KEY."""
        mean, deviation = self.mean.tolist(), self.deviation.tolist()
        return {"names": list(NAMES), "mean": mean, "deviation": deviation}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Self | None:
        """What to_json wrote; None where an artifact has none, or one of other numbers."""
        match metadata.get(KEY):
            case {"names": list(names), "mean": list(mean), "deviation": list(deviation)} if (
                tuple(names) == NAMES
                and len(mean) == len(deviation) == len(NAMES)
                and all(type(value) is float and math.isfinite(value) for value in mean + deviation)
                and min(deviation) >= LEAST_DEVIATION
            ):
                return cls(np.array(mean), np.array(deviation))
        return None
