"""Pixels of any kind squeezed to a square of RGB, on white, with little memory beside them."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]  # left, upper, right, lower: what of an image is used
Flatten = Callable[[Image.Image], tuple[Image.Image, bool]]

ON_WHITE: Final = "its transparent parts were put on white"
BAND_PIXELS = 1 << 18  # that are converted at a time: a few MiB, which fit a processor's cache
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def squeeze(
    image: Image.Image, side: int, resample: Image.Resampling, box: Box, bits: int
) -> tuple[Image.Image, list[str]]:
    """Return what is in the box as side × side RGB, and notes on what was done to its pixels.

    Bits: those of a channel in the file, where it is no TIFF, whose tags say it.
    """
    notes = []
    tags: Any = getattr(image, "tag_v2", {})
    if 16 in (bits, *tags.get(_TIFF_BITS, ())):
        notes.append("its 16 bits a channel were scaled to 8")
    deep = image.mode.startswith("I;16")
    tile, any_transparent = _resize(image, _flattening(image, bits), side, resample, box)
    if any_transparent:
        notes.append(ON_WHITE)
    if deep:
        # Squeezed before it is scaled: 64 × 64 pixels are rounded, not millions
        values = np.asarray(tile, np.float64) * (255 / _deep_white(image))
        tile = Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8))
    return (tile if tile.mode == "RGB" else tile.convert("RGB")), notes


def _resize(
    image: Image.Image, flatten: Flatten | None, side: int, resample: Image.Resampling, box: Box
) -> tuple[Image.Image, bool]:
    """Return what is in the box, flattened, as side × side, and whether any was transparent.

    A band of rows after the other, so that only a band is ever there flattened, is to the bit what
    the whole would give: Pillow, too, first makes every row narrow, and then every column short.
    """
    if flatten is None:
        return image.resize((side, side), resample, box), False
    rows = max(1, BAND_PIXELS // image.width)
    if rows >= image.height:
        flat, any_transparent = flatten(image)
        return flat.resize((side, side), resample, box), any_transparent
    left, upper, right, lower = box
    narrow: Image.Image | None = None
    any_transparent = False
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        flat, transparent = flatten(band)
        any_transparent |= transparent
        if narrow is None:
            narrow = Image.new(flat.mode, (side, image.height))
        flat = flat.resize((side, flat.height), resample, (left, 0, right, flat.height))
        narrow.paste(flat, (0, top))
    assert narrow is not None
    return narrow.resize((side, side), resample, (0, upper, side, lower)), any_transparent


def _flattening(image: Image.Image, bits: int) -> Flatten | None:
    """Return what makes a band of the picture one whose pixels can be averaged, in RGB or grey,
    and says whether any of it was transparent; None where they can be as they are."""
    if image.mode.startswith("I;16"):
        return partial(_deep_grey, image)
    if image.has_transparency_data:
        _state_transparent_colour(image, bits)
        return _on_white
    if image.mode in ("RGB", "RGBX", "L"):
        return None  # a conversion would be a copy of every pixel
    mode = "L" if image.mode == "1" else "RGB"
    return lambda band: (band.convert(mode), False)


def _deep_grey(image: Image.Image, band: Image.Image) -> tuple[Image.Image, bool]:
    """Return a band of grey of more than 8 bits as one that Pillow resizes right, white on top."""
    tags: Any = getattr(image, "tag_v2", {})
    white = _deep_white(image)
    values = np.asarray(band)
    if tags.get(_TIFF_PHOTOMETRIC, 1) == _WHITE_IS_ZERO:
        values = white - values
    transparent = values == image.info.get("transparency", -1)  # a PNG's one value for nothing
    any_transparent = bool(transparent.any())
    if any_transparent:
        values = np.where(transparent, white, values)
    return Image.fromarray(values.astype(np.uint16)), any_transparent


def _deep_white(image: Image.Image) -> int:
    tags: Any = getattr(image, "tag_v2", {})
    return 4095 if tags.get(_TIFF_BITS) == (12,) else 65535


def _state_transparent_colour(image: Image.Image, bits: int) -> None:
    """Write the one transparent colour of a PNG as Pillow's conversions take it."""
    key = image.info.get("transparency")
    if isinstance(key, int) and image.mode == "L" and bits < 8:
        image.info["transparency"] = key * 255 // (2**bits - 1)  # PNG states it unscaled
    elif isinstance(key, tuple) and bits == 16:
        # Pillow keeps the high bytes of 16-bit colours, so near shades become transparent too
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _on_white(band: Image.Image) -> tuple[Image.Image, bool]:
    """Return a band in RGB on white, and whether any of it was transparent."""
    full = band
    if full.mode == "La":
        full = full.convert("LA")
    if full.mode != "RGBA":
        full = full.convert("RGBA")
    alpha = full.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return full.convert("RGB"), False
    flat = Image.new("RGB", full.size, "white")
    flat.paste(full, mask=alpha)
    return flat, True
