"""Words for probabilities: "cat, quite sure", "not sure", "no cat, probably"."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LONGEST = 80  # characters of words


@dataclass(frozen=True)
class Band:
    """The words for probabilities of the first class from `start` on, up to the next band."""

    start: float
    words: str


def default_bands(class_names: tuple[str, str], threshold: float) -> tuple[Band, ...]:
    """Five bands: quite sure from 0.9 on (and below 0.1), not sure between 1/3 and 2/3.

    A threshold far from 0.5 moves them, so that "not sure" lies on both sides of it and no words
    contradict the label: each border is at most a third, or two thirds, of the way from its end
    to the threshold.
    """
    first, other = class_names
    no = f"no {first}" if other in (f"non-{first}", f"not-{first}", f"no-{first}") else other
    below, above = threshold, 1 - threshold
    return (
        Band(0.0, f"{no}, quite sure"),
        Band(min(0.1, below / 3), f"{no}, probably"),
        Band(min(1 / 3, below * 2 / 3), "not sure"),
        Band(max(2 / 3, 1 - above * 2 / 3), f"{first}, probably"),
        Band(max(0.9, 1 - above / 3), f"{first}, quite sure"),
    )


def words_for(probability: float, bands: Sequence[Band]) -> str:
    """The words of the band that a probability of the first class lies in."""
    found = (band.words for band in reversed(bands) if probability >= band.start)
    return next(found, bands[0].words)


def to_json(bands: Sequence[Band]) -> list[dict[str, Any]]:
    """The bands as JSON values."""
    return [{"from": band.start, "words": band.words} for band in bands]


def from_json(value: object) -> tuple[Band, ...]:
    """Read what `to_json` wrote; raises ValueError for anything else."""
    found = [_band(entry) for entry in value] if isinstance(value, list) else []
    starts = [band.start for band in found if band is not None]
    if not found or None in found or starts[0] != 0 or sorted(set(starts)) != starts:
        raise ValueError(
            "its bands must be a list of {'from': probability, 'words': text}, from 0 upwards,"
            f" with texts of at most {LONGEST} printable characters, not {value!r:.200}"
        )
    return tuple(band for band in found if band is not None)


def _band(entry: object) -> Band | None:
    match entry:
        case {"from": (float() | int()) as start, "words": str(words), **rest} if not rest:
            if 0 <= start < 1 and 0 < len(words) <= LONGEST and words.isprintable():
                return Band(float(start), words)
    return None
