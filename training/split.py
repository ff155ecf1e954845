"""Which pictures are held back, by names alone, before any is decoded."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from model.network import Array
from training.data import Listing
from training.errors import BadData

SHARE = 0.2  # of each class that is held back,
MOST = 2000  # but no more pictures than this
LEAST_HELD_BACK, LEAST_TRAINING = 5, 10  # of each class
OTHERS = "others"


def hold_back(listing: Listing, rng: np.random.Generator) -> set[str]:
    """The names of the pictures held back for validation: a fifth of each class, spread evenly
    over the sources, drawn at random within them. Pictures of one name stay together.

    Call `check_counts` first.
    """
    held: set[str] = set()
    for label in (1, 0):
        chosen = {
            name: source
            for name, source, own in zip(
                listing.names, listing.sources, listing.labels, strict=True
            )
            if own == label
        }
        names = list(chosen)
        shuffled = [names[i] for i in rng.permutation(len(names))]
        in_order = sorted(shuffled, key=lambda name: chosen[name])  # stable: random within a source
        count = min(max(LEAST_HELD_BACK, round(SHARE * len(in_order))), MOST)
        every = len(in_order) / count
        held |= {in_order[int((i + rng.random()) * every)] for i in range(count)}
    return held


def check_counts(
    labels: Array, class_names: tuple[str, str], *, least: int, purpose: str, remedy: str
) -> None:
    """Raises BadData where a class has fewer than `least` pictures."""
    first = int((labels == 1).sum())
    counts = dict(zip(class_names, (first, len(labels) - first), strict=True))
    if min(counts.values()) < least:
        found = " and ".join(f"{count} of {name!r}" for name, count in counts.items())
        raise BadData(
            f"Too few pictures {purpose}: {found}; at least {least} of each are needed. {remedy}"
        )


def join_small(sources: Sequence[str], least: int = 100) -> list[str]:
    """The sources, those with fewer than `least` pictures as one: file names often begin with a
    number or a word that means nothing, and a source of three pictures tells nothing."""
    counts = Counter(sources)
    return [source if counts[source] >= least else OTHERS for source in sources]
