"""Three JPEGs with the sizes and the detail of photos, made from the photo that ships."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

PHOTO = Path(__file__).parents[2] / "examples/cat.jpg"
QUALITY = 85


@dataclass(frozen=True)
class Size:
    """A size of pictures. Enlarging leaves a photo smooth; noise, in grey levels, gives it back
    the detail, and with it the bytes, that a camera's picture of this size has."""

    name: str
    width: int
    height: int
    noise: float


SIZES = (
    Size("small", 256, 256, 4.0),
    Size("medium", 1024, 768, 5.25),
    Size("large", 4000, 3000, 7.0),
)


def jpeg(size: Size) -> bytes:
    """The photo in this size, as a baseline JPEG; always the same for one release of Pillow."""
    with Image.open(PHOTO) as photo:
        smooth = photo.convert("RGB").resize((size.width, size.height), Image.Resampling.BICUBIC)
    shape = (size.height, size.width, 1)  # grey, as most of a sensor's noise is
    noise = np.random.default_rng(0).standard_normal(shape, np.float32) * size.noise
    detailed = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(detailed).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
