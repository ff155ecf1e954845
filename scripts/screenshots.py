"""Take the README's pictures of the page from a server of this checkout: docs/screenshots/*.png.

    python -m scripts.screenshots

Needs Chromium and the packages of requirements/browser.txt beside the development packages.
"""

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from tests.browser import NoBrowser, chromium
from tests.data_folder import REPOSITORY
from tests.server import UVICORN, running

FOLDER = REPOSITORY / "docs" / "screenshots"
LARGE, SMALL = {"width": 1000, "height": 700}, {"width": 390, "height": 844}
VIEWS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": LARGE},
    "dark": {"color_scheme": "dark", "viewport": LARGE},
    "phone": {"color_scheme": "light", "viewport": SMALL, "has_touch": True, "is_mobile": True},
}
EXAMPLES = {"light": "A tabby cat", "dark": "A cup of coffee", "phone": "A tabby cat"}


def main() -> None:
    with running(UVICORN) as server, chromium() as browser:
        for name, options in VIEWS.items():
            page = browser.new_page(reduced_motion="reduce", **options)
            page.goto(server.url + "/")
            for _ in range(2):  # once to warm up, so that the time shown is the usual one
                page.reload()
                page.get_by_role("button", name=EXAMPLES[name]).click()
                page.locator(".facts").wait_for()
                page.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
            page.mouse.move(0, 0)
            _save(page.screenshot(), FOLDER / f"{name}.png")


def _save(png: bytes, path: Path) -> None:
    with Image.open(BytesIO(png)) as picture:
        full = picture.convert("RGB")
    palette = full.quantize(256, Image.Quantize.FASTOCTREE)  # half the bytes
    full.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
    print(f"{path.relative_to(REPOSITORY)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    try:
        main()
    except NoBrowser as error:
        sys.exit(f"This {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"This needs {error.name}: pip install -r requirements/browser.txt.")
