"""Near copies among pictures: saved again, resized, mirrored.

A picture is compared as 16×16 grey values. Two are copies of each other where these are almost
proportional (a correlation of `LEAST_CORRELATION`) and differ nowhere by much against the picture's
own contrast: that tells frames of a fixed camera with and without a cat apart, which are the same
everywhere but in one place.

Comparing every picture with every other would take an hour for 100,000. Each is written as its
cosine transform of length 1, in which a mirror image has other signs and nothing else. The distance
of two such vectors is at least that of any part of their coordinates: one coordinate, by which the
pictures are sorted, leaves few to compare, and 35 leave hardly any that are no copies.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from model.network import Array, pieces
from training.augmentation import LUMA

SIDE = 16  # of the grey pictures
LEAST_CORRELATION = 0.98
MOST_DIFFERENCE = 0.22  # of one grey value, in standard deviations of the picture,
LEAST_DIFFERENCE = 1.5  # but not less than this, of 255: rounding and compression
LEAST_DEVIATION = 1.0  # of 255; below it there is nothing to compare
_REACH = np.float32(np.sqrt(2 * (1 - LEAST_CORRELATION)))  # distance of vectors of length 1
_LOW = 6  # coarse cosines a direction that are compared first
_AT_ONCE = 256

_PLACE = np.arange(SIDE)
_COSINES = np.sqrt(2 / SIDE) * np.cos(np.pi * (_PLACE + 0.5) * _PLACE[:, None] / SIDE)
_COSINES[0] /= np.sqrt(2)
_MIRROR = np.tile(np.where(_PLACE[:_LOW] % 2, -1, 1), _LOW).astype(np.float32)  # signs of `low`


def grey_pictures(pictures: Array, sides: Array) -> Array:
    """Grey values (m, 16, 16) float32, 0 to 255, of pictures uint8 (m, s, s, 3), of which picture
    i fills its first sides[i] rows and columns: the mean over each of 16×16 areas."""
    result = np.empty((len(pictures), SIDE, SIDE), np.float32)
    for side in np.unique(sides).tolist():
        areas = np.linspace(0, side, SIDE + 1)
        covered = np.clip(areas[1:, None] - np.arange(side), 0, 1)
        covered -= np.clip(areas[:-1, None] - np.arange(side), 0, 1)
        mean = (covered / covered.sum(axis=1, keepdims=True)).astype(np.float32)  # (16, side)
        own = np.flatnonzero(sides == side)
        for part in pieces(len(own), _AT_ONCE):
            grey = pictures[own[part], :side, :side] @ LUMA
            result[own[part]] = mean @ grey @ mean.T
    return result


def copy_groups(grey: Array) -> Array:
    """A number (m,) for each of the grey pictures (m, 16, 16), the same for copies of each other
    and for copies of copies. Pictures of one colour are copies of none."""
    groups = _Groups(len(grey))
    deviation = grey.std(axis=(1, 2))
    standard = grey - grey.mean(axis=(1, 2), keepdims=True)
    standard /= np.maximum(deviation, 1e-6)[:, None, None]
    transform = (_COSINES @ standard @ _COSINES.T).astype(np.float32) / SIDE  # of length 1
    order = np.argsort(transform[:, 1, 0], kind="stable")  # a mirror image has the same
    order = order[deviation[order] > LEAST_DEVIATION]
    key = transform[order, 1, 0]
    low = transform[order, :_LOW, :_LOW].reshape(-1, _LOW * _LOW)
    squares = np.einsum("ij,ij->i", low, low)
    tolerance = np.maximum(MOST_DIFFERENCE, LEAST_DIFFERENCE / np.maximum(deviation, 1e-6))
    for part in pieces(len(order), _AT_ONCE):
        end = int(np.searchsorted(key, key[part.stop - 1] + _REACH, side="right"))
        others = slice(part.start, end)
        for mirrored in (False, True):
            rows = low[part] * _MIRROR if mirrored else low[part]
            near = squares[part, None] + squares[others] - 2 * rows @ low[others].T <= _REACH**2
            for row in np.flatnonzero(near.any(axis=1)).tolist():
                i, candidates = order[part.start + row], order[others][near[row]]
                candidates = candidates[groups.of(candidates) != groups.of(i)]
                own, theirs = standard[i, :, :: -1 if mirrored else 1], standard[candidates]
                alike = np.einsum("ij,nij->n", own, theirs) >= LEAST_CORRELATION * SIDE**2
                theirs -= own
                difference = np.abs(theirs, out=theirs).max(axis=(1, 2))
                alike &= difference <= np.maximum(tolerance[i], tolerance[candidates])
                groups.join(i, candidates[alike])
    return groups.of(np.arange(len(grey)))


class _Groups:
    """Numbers that belong together: every one knows a smaller one of its group, or itself."""

    def __init__(self, count: int) -> None:
        self.known = np.arange(count)

    def of(self, numbers: Array) -> Array:
        """The smallest number of the group of each."""
        found = self.known[numbers]
        while (found != (further := self.known[found])).any():
            found = further
        self.known[numbers] = found  # the next search is shorter
        return found

    def join(self, one: int, others: Array) -> None:
        every = self.of(np.append(others, one))
        self.known[every] = every.min()


def copies_of(grey: Array, others: Array) -> Array:
    """Whether each of the grey pictures (m, 16, 16) is a copy of one of the others."""
    groups = copy_groups(np.concatenate([grey, others]))
    result: Array = np.isin(groups[: len(grey)], groups[len(grey) :])
    return result


def count_copies(groups: Sequence[int] | Array) -> int:
    """How many pictures are copies of another one."""
    return sum(size for size in Counter(np.asarray(groups).tolist()).values() if size > 1)
