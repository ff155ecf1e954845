"""The page in Chromium against a real server; needs what requirements/browser.txt lists."""

import base64
import re
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.browser import NoBrowser, chromium
from tests.data_folder import REPOSITORY
from tests.server import PYTHON_M_APP, UVICORN, Server, running

REASON = "browser: `make test-all` runs it with requirements/browser.txt"
expect = pytest.importorskip("playwright.sync_api", reason=REASON).expect
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=REASON)

pytestmark = pytest.mark.browser

EXAMPLES = REPOSITORY / "examples"
CAT, COFFEE = (EXAMPLES / name for name in ("cat.jpg", "coffee.jpg"))
REFUSED = "Failed to load resource"  # what Chromium logs for a status of 400 or more

Visit = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        with chromium() as browser:
            yield browser
    except NoBrowser as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def server(weights_path: Path) -> Iterator[Server]:
    with running(UVICORN, weights=weights_path) as server:
        yield server


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """Opens a page; it must log no complaint and ask nobody but its own server."""
    complaints: list[str] = []
    contexts = []

    def visit(server: Server, before: str = "", **options: Any) -> Any:
        def check_address(request: Any) -> None:
            if not request.url.startswith((server.url, "blob:", "data:")):
                complaints.append(f"asks {request.url}")

        context = browser.new_context(**options)
        contexts.append(context)
        context.add_init_script(before)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", check_address)
        page.goto(server.url + "/")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert [each for each in complaints if REFUSED not in each] == []


def upload(name: str, content: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "image/jpeg", "buffer": content}


def choose(page: Any, *files: Any) -> None:
    page.locator("#file").set_input_files(list(files))


def cards(page: Any) -> Any:
    return page.locator("#answers > li")


def expect_answers(page: Any, *names: str) -> None:
    """Wait until the cards, from the top on, have the answers for these files."""
    for i, name in enumerate(names):
        expect(cards(page).nth(i).locator(".probability")).to_be_visible()
        expect(cards(page).nth(i).locator(".facts")).to_contain_text(name)


def focused(page: Any) -> str:
    """The text, or else the id, of the element that has the focus."""
    text: str = page.evaluate("document.activeElement.textContent || document.activeElement.id")
    return text


def assert_accessible(page: Any) -> None:
    results = axe.Axe().run(page)
    assert results.violations_count == 0, results.generate_report()


def test_an_example_is_answered_and_explained(server: Server, visit: Visit) -> None:
    page = visit(server)
    page.get_by_role("button", name="A tabby cat").click()
    expect_answers(page, "cat.jpg · 451×300 JPEG")
    card = cards(page)
    expect(card.locator(".probability")).to_contain_text("% probability of cat")
    rule = "At 50 % or more (the mark), the label is cat."
    expect(card.locator(".threshold")).to_contain_text(rule)
    expect(card.locator(".sum")).to_contain_text("Heat map: weights times pixels. Its sum")
    expect(card.locator(".views")).to_have_count(0)
    expect(feedback_of(page)).to_have_count(0)
    expect(page.get_by_text("saves a small copy")).to_be_hidden()
    expect(card.get_by_role("img", name="threshold 50 %")).to_be_visible()
    pictures = {"The picture as the model saw it": 64, "The heat map over the picture": 256}
    for name, width in {"cat.jpg": 451, **pictures}.items():
        image = card.get_by_role("img", name=name, exact=True)
        expect(image).to_have_js_property("naturalWidth", width)
    expect(page.get_by_role("status")).to_contain_text("cat.jpg: ")


def test_chosen_dropped_and_pasted_pictures_get_a_card_each(server: Server, visit: Visit) -> None:
    page = visit(server)
    choose(page, CAT, COFFEE)
    expect_answers(page, "cat.jpg", "coffee.jpg")
    make_transfer = """(picture) => {
        const bytes = Uint8Array.from(atob(picture), (character) => character.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "one.jpg"));
        return transfer;
    }"""
    picture = base64.b64encode(CAT.read_bytes()).decode()
    transfer = page.evaluate_handle(make_transfer, picture)
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    expect_answers(page, "one.jpg", "cat.jpg")
    paste = "d => document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: d }))"
    page.evaluate(paste, transfer)
    expect_answers(page, "one.jpg", "one.jpg", "cat.jpg", "coffee.jpg")


def test_several_views_are_shown(server: Server, visit: Visit) -> None:
    boxes = {"whole": (0, 0, 1, 1), "left": (0, 0, 0.6, 1), "top right": (0.5, 0, 1, 0.5)}

    def add_views(route: Any) -> None:
        response = route.fetch()
        view = {"cat_probability": 0.25, "picture_png": response.json()["picture_png"]}
        views = [{**view, "box": box} for box in boxes.values()]
        route.fulfill(response=response, json={**response.json(), "views": views})

    page = visit(server)
    page.route("**/explain", add_views)
    choose(page, upload("cat.jpg", CAT.read_bytes()))
    views = cards(page).locator(".views li")
    expect(views).to_have_text([re.compile(f"{place}.*25 %", re.DOTALL) for place in boxes])
    share = cards(page).locator(".probability b").inner_text()
    expect(cards(page).locator(".views")).to_contain_text(
        f"The mean of their logits gives the answer: {share}."
    )
    page.unroute_all(behavior="wait")
    assert_accessible(page)


def test_a_file_or_a_service_that_is_gone_is_told(
    weights_path: Path, visit: Visit, tmp_path: Path
) -> None:
    (gone := tmp_path / "gone.jpg").write_bytes(CAT.read_bytes())
    with running(UVICORN, weights=weights_path, max_upload_bytes=112_345) as server:
        page = visit(server)
        sent: list[str] = []
        page.on("request", lambda request: sent.append(request.method))
        choose(page, upload("large.jpg", bytes(112_346)))
        expect(cards(page)).to_contain_text("It has 112,346 bytes. The limit is 112,345.")
        assert "POST" not in sent
        held: list[Any] = []
        page.route("**/explain", lambda route: held.append(route), times=2)
        choose(page, CAT, COFFEE, gone)
        deadline = time.monotonic() + 30
        while len(held) < 2:
            assert time.monotonic() < deadline
            page.wait_for_timeout(20)
        gone.unlink()
        for route in held:
            route.continue_()
        expect(cards(page).nth(2).locator("h2")).to_have_text("The file cannot be read")
        server.process.kill()
        server.wait()
        page.get_by_role("button", name="A tabby cat").click()
        expect(cards(page).first).to_contain_text("The service cannot be reached")


def test_a_busy_service_is_asked_again(server: Server, visit: Visit) -> None:
    page = visit(server)
    page.clock.install()
    busy = {"status": 503, "headers": {"Retry-After": "3600"}, "body": "{}"}
    page.route("**/explain", lambda route: route.fulfill(**busy), times=1)
    choose(page, CAT)
    expect(cards(page).locator("h2")).to_have_text("The service is busy. Trying again")
    page.clock.fast_forward(60_000)  # it never waits longer
    expect_answers(page, "cat.jpg")
    facts = cards(page).locator(".facts").inner_text()
    assert int(re.findall(r"(\d+) ms", facts)[0]) < 60_000


def test_nothing_is_sent_without_the_key_that_is_needed(weights_path: Path, visit: Visit) -> None:
    with running(UVICORN, weights=weights_path, api_keys="open-sesame") as server:
        page = visit(server)
        field = page.get_by_label("API key")
        assert_accessible(page)
        for unusable in ("", "open sesame", "schlüssel"):
            field.fill(unusable)
            choose(page, CAT)
            assert focused(page) == "key"
            expect(cards(page)).to_have_count(0)
        field.fill("wrong")
        choose(page, CAT)
        expect(cards(page)).to_contain_text("This key is not valid. Enter another one above.")
        field.fill(" open-sesame ")
        choose(page, CAT)
        expect_answers(page, "cat.jpg")
        page.reload()
        choose(page, CAT)
        expect_answers(page, "cat.jpg")
        assert page.evaluate("localStorage.length") == 0
        assert page.context.cookies() == []


def test_a_long_upload_shows_progress_and_can_be_cancelled(server: Server, visit: Visit) -> None:
    page = visit(server)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 200_000}
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", slow)
    choose(page, upload("large.jpg", bytes(5_000_000)))
    expect(cards(page).locator("h2")).to_have_text("Sending")
    bar = page.get_by_role("progressbar", name="large.jpg")
    expect(bar).to_have_attribute("value", re.compile(r"0\.\d+"))
    page.get_by_role("button", name="Cancel large.jpg").click()
    expect(cards(page)).to_have_count(0)
    expect(page.get_by_role("status")).to_have_text("large.jpg: cancelled")
    assert focused(page) == "file"  # its own place is gone


def test_everything_is_reached_and_done_with_the_keyboard(server: Server, visit: Visit) -> None:
    page = visit(server)
    for kind in ("<input", "<button", "<button", "<button", "<summary>The", "<summary>Use"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.outerHTML").startswith(kind)
        outlined = page.locator(":is(:focus-visible, input:focus-visible + label)").last
        expect(outlined).to_have_css("outline-style", "solid")
    page.get_by_role("button", name="A tabby cat").press("Enter")
    expect_answers(page, "cat.jpg")


@pytest.mark.parametrize(
    ("scheme", "width", "touch"),
    [("light", 1100, False), ("dark", 1100, False), ("light", 320, True), ("dark", 390, True)],
)
def test_it_is_accessible_and_fits_in_light_and_dark_wide_and_narrow(
    server: Server, visit: Visit, scheme: str, width: int, touch: bool
) -> None:
    viewport = {"width": width, "height": 800}
    page = visit(server, color_scheme=scheme, viewport=viewport, has_touch=touch)
    assert page.get_by_text("Take a photo").is_visible() == touch
    choose(page, CAT)
    choose(page, upload("<b>notes</b>.txt", b"hello"))
    expect(page.locator(".facts")).to_have_count(2)
    for place in (cards(page).first, page.get_by_role("status")):
        expect(place).to_contain_text("send the bytes of a JPEG, PNG")
    expect(cards(page).first).to_contain_text("<b>notes</b>.txt")
    choose(page, upload("half.jpg", CAT.read_bytes()[:9000]))
    expect(cards(page).first).to_contain_text("damaged or cut off")
    expect(cards(page).first.locator("img")).to_have_count(0)
    page.get_by_text("The model", exact=True).click()
    page.get_by_text("Use it from a program").click()
    page.get_by_role("link", name="All of this as JSON").wait_for()
    assert_accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    corner = np.asarray(Image.open(BytesIO(page.screenshot())).convert("L"))[2, 2]
    assert (corner < 60) == (scheme == "dark")


def feedback_of(page: Any) -> Any:
    return page.get_by_role("group", name="What it really shows")


def test_feedback_is_given_changed_and_undone_with_the_keyboard(
    weights_path: Path, visit: Visit, tmp_path: Path
) -> None:
    def kept(label: str = "*") -> int:
        return len([*tmp_path.glob(f"{label}/*.jpg")])

    with running(PYTHON_M_APP, weights=weights_path, collect=tmp_path) as server:
        page = visit(server, viewport={"width": 320, "height": 800}, has_touch=True)
        choose(page, CAT, COFFEE)
        expect_answers(page, "cat.jpg", "coffee.jpg")
        group = feedback_of(page).first
        buttons, said = group.get_by_role("button"), group.locator("[aria-live]")
        for name in ("cat", "non-cat"):
            button = buttons.get_by_text(name, exact=True)
            button.press("Enter")
            expect(button).to_have_attribute("aria-pressed", "true")
            expect(said).to_have_text(f"Thank you. The picture was saved as {name}.")
            assert kept() == kept(name) == 1
        assert_accessible(page)
        for button in buttons.all():
            box = button.bounding_box()
            assert min(box["width"], box["height"]) >= 44, "large enough for a thumb"
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        page.keyboard.press("Tab")
        assert focused(page) == "Undo"
        page.keyboard.press("Enter")
        expect(said).to_have_text("Undone. The picture was deleted.")
        expect(buttons).to_have_text(["cat", "non-cat"])
        assert focused(page) == "non-cat"
        assert kept() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_problems_page_is_accessible(server: Server, visit: Visit, scheme: str) -> None:
    page = visit(server, color_scheme=scheme, viewport={"width": 320, "height": 800})
    page.goto(f"{server.url}/problems#busy")
    expect(page.get_by_text("The service is busy")).to_be_in_viewport()
    assert_accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.locator("body").evaluate("it => getComputedStyle(it).maxWidth") == "928px"


def test_without_javascript_one_sentence_gives_the_command(server: Server, visit: Visit) -> None:
    page = visit(server, java_script_enabled=False)
    command = f"curl --data-binary @picture.jpg {server.url}/predict"
    expect(page.locator("noscript code")).to_have_text(command)
    expect(page.locator("noscript code")).to_be_visible()
    expect(page.locator("main")).to_be_hidden()
