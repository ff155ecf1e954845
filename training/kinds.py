"""What a picture's file name tells about it: its source, and the kind of thing that it shows.

    pets-dog-09500.jpg             source, then what it shows
    tiny-n02085620_12.jpg          source, then the WordNet id of an ImageNet class
    web-popular-fox-0003.jpg       source, repository, what it shows
    web-places-kitchen-eval-0001   a room: a source of its own, since no cat is ever in one

Names of other sources tell their source, the first word, and no more.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from training.data import PictureSet

ROOMS = "rooms"

# ImageNet's ids, with the English name; of the 200 classes of Tiny ImageNet those with a face,
# fur or eyes that are taken for a cat's, and cats.
WORDNET = {
    "n01882714": "koala",
    "n02085620": "Chihuahua",
    "n02094433": "Yorkshire terrier",
    "n02099601": "golden retriever",
    "n02099712": "Labrador retriever",
    "n02106662": "German shepherd",
    "n02113799": "standard poodle",
    "n02123045": "tabby cat",
    "n02123394": "Persian cat",
    "n02124075": "Egyptian cat",
    "n02125311": "cougar",
    "n02129165": "lion",
    "n02132136": "brown bear",
    "n02364673": "guinea pig",
    "n02395406": "hog",
    "n02403003": "ox",
    "n02410509": "bison",
    "n02415577": "bighorn sheep",
    "n02423022": "gazelle",
    "n02437312": "camel",
    "n02480495": "orangutan",
    "n02481823": "chimpanzee",
    "n02486410": "baboon",
    "n02504458": "elephant",
    "n02509815": "lesser panda",
    "n01855672": "goose",
    "n02002724": "black stork",
    "n02056570": "king penguin",
    "n02058221": "albatross",
    "n02074367": "dugong",
}
# Classes that look alike are few pictures each; together they are enough to count.
GROUPS = {
    "small dogs": ("Chihuahua", "Yorkshire terrier"),
    "large dogs": ("golden retriever", "Labrador retriever", "German shepherd", "standard poodle"),
    "dogs of any kind": ("dog",),
    "big cats": ("cougar", "lion", "tiger", "leopard", "cheetah", "jaguar", "lynx"),
    "foxes, wolves and raccoons": ("fox", "wolf", "coyote", "raccoon"),
    "bears and pandas": ("brown bear", "bear", "lesser panda", "panda", "koala"),
    "rabbits and rodents": ("rabbit", "guinea pig", "squirrel", "hamster"),
    "apes and monkeys": ("orangutan", "chimpanzee", "baboon", "ape", "monkey"),
    "hoofed animals": (
        *("hog", "ox", "bison", "bighorn sheep", "gazelle", "camel", "pig", "cow", "horse"),
        *("goat", "sheep", "deer", "elephant", "kangaroo"),
    ),
    "birds": (
        *("bird", "goose", "black stork", "king penguin", "albatross", "duck", "eagle"),
        *("chicken", "turkey"),
    ),
    "cold-blooded and sea animals": (
        *("alligator", "snake", "fish", "shark", "dolphin", "whale", "seal", "dugong"),
        *("lobster", "spider", "seastar"),
    ),
    "landscapes and streets": ("scene",),
    "food": ("food",),
}
_GROUP_OF = {kind: group for group, kinds in GROUPS.items() for kind in kinds} | {"cat": ""}
_SAME = {"bunny": "rabbit", "catface": "cat", "motorcycle": "motorbike", "bike": "bicycle"}
_FIRST_THING = "n02600000"  # WordNet numbers animals before artefacts, food and landscapes


@dataclass(frozen=True)
class Kind:
    """What a name tells; "" where it tells nothing."""

    source: str
    shows: str = ""  # "Chihuahua", "kitchen", "dog"
    group: str = ""  # "small dogs", "rooms"
    repository: str = ""  # of a web picture


def kind_of(name: str, source: str) -> Kind:
    """The kind of the picture of that name; `source` is its first word, or its data file's name.

    name: as in `PictureSet.names`, "non-cat/tiny-n02085620_12.jpg".
    """
    match source, PurePosixPath(name).stem.split("-"):
        case "pets", ["pets", shows, _]:
            return _shown(Kind(source), shows)
        case "tiny", ["tiny", words] if match := re.match(r"n\d{8}", words):
            return _tiny(source, match[0])
        case "web", ["web", "places", room, *_]:
            return Kind(ROOMS, room.replace("_", " "), ROOMS)
        case "web", ["web", repository, *_, shows, _]:  # between them, some name a folder
            return _shown(Kind(source, repository=repository), shows)
    return Kind(source)


def count_sources(pictures: PictureSet) -> dict[str, dict[str, int]]:
    """How many pictures of each class each source has."""
    counts: dict[str, dict[str, int]] = {}
    for name, source, label in zip(pictures.names, pictures.sources, pictures.labels, strict=True):
        of_source = counts.setdefault(
            kind_of(name, source).source, dict.fromkeys(pictures.class_names, 0)
        )
        of_source[pictures.class_names[0 if label == 1 else 1]] += 1
    return dict(sorted(counts.items()))


def _tiny(source: str, wordnet_id: str) -> Kind:
    shows = WORDNET.get(wordnet_id, "")
    if not shows:
        shows = "things" if wordnet_id >= _FIRST_THING else "cold-blooded and sea animals"
    return Kind(source, shows, _GROUP_OF.get(shows, shows))


def _shown(kind: Kind, word: str) -> Kind:
    shows = word.lower().replace("_", " ")
    if shows.endswith("s") and not shows.endswith(("ss", "us")):
        shows = "watch" if shows == "watches" else shows[:-1]
    shows = _SAME.get(shows, shows)
    group = _GROUP_OF.get(shows, "things" if shows else "")
    return Kind(kind.source, shows, group, kind.repository)
