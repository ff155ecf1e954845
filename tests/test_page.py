"""The page in Chromium against a real server; needs what requirements/browser.txt lists."""

import base64
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from model.classifier import Classifier, default_weights
from tests.browser import NoBrowser, chromium
from tests.data_folder import REPOSITORY
from tests.server import UVICORN, Server, running

playwright_api = pytest.importorskip(
    "playwright.sync_api", reason="browser: `make test-all` runs it with requirements/browser.txt"
)
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

pytestmark = pytest.mark.browser

expect = playwright_api.expect
EXAMPLES = REPOSITORY / "examples"
REFUSED = "Failed to load resource"  # what Chromium logs for a status of 400 or more
# What drops or pastes a file as people do; browsers let no script do it to their own dialogs.
TRANSFER = """(name) => {
    const bytes = Uint8Array.from(atob(PICTURE), (c) => c.charCodeAt(0));
    const transfer = new DataTransfer();
    for (const each of name.split(" ")) {
        transfer.items.add(new File([bytes], each, { type: "image/jpeg" }));
    }
    return transfer;
}"""


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
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page and sees to it that it complains of nothing and asks nobody else."""
    opened = []

    def visit(address: str, before: str = "", **options: Any) -> Any:
        context = browser.new_context(**{"reduced_motion": "reduce", **options})
        if before:
            context.add_init_script(before)
        page = context.new_page()
        page.set_default_timeout(30_000)
        complaints: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        opened.append((context, address, complaints, asked))
        page.goto(address)
        return page

    yield visit
    for context, address, complaints, asked in opened:
        context.close()
        assert [each for each in complaints if REFUSED not in each] == []
        assert [each for each in asked if not each.startswith((address, "blob:", "data:"))] == []


def cards(page: Any) -> Any:
    return page.locator("#answers > li")


def words(card: Any) -> str:
    """The words of a card, once it has its answer."""
    card.locator(".views").wait_for()
    text: str = card.locator("h2").inner_text()
    return text


def transfer(page: Any, names: str) -> Any:
    """A DataTransfer with the photo of a cat under these names."""
    picture = base64.b64encode((EXAMPLES / "cat.jpg").read_bytes()).decode()
    return page.evaluate_handle(TRANSFER.replace("PICTURE", json.dumps(picture)), names)


def hold(page: Any, *numbers: int) -> list[Any]:
    """The requests to /explain of these numbers, from 0 on: they stand still until continued."""
    seen: list[Any] = []
    held: list[Any] = []

    def handle(route: Any) -> None:
        seen.append(route)
        if len(seen) - 1 in numbers:
            held.append(route)
        else:
            route.continue_()

    page.route("**/explain", handle)
    return held


def until(page: Any, fits: Callable[[], bool]) -> None:
    """Wait, and let the page go on meanwhile."""
    deadline = time.monotonic() + 30
    while not fits():
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)


def focused(page: Any) -> str:
    """The text, or else the id, of the element that has the focus."""
    text: str = page.evaluate("document.activeElement.textContent || document.activeElement.id")
    return text


def assert_accessible(page: Any) -> None:
    results = axe.Axe().run(page)
    assert results.violations_count == 0, results.generate_report()


def test_an_example_is_answered_with_picture_words_probability_and_reason(
    server: Server, visit: Callable[..., Any]
) -> None:
    page = visit(server.url + "/")
    page.get_by_role("button", name="A tabby cat").click()
    card = cards(page).first
    assert "cat" in words(card)
    expect(card.locator(".number")).to_contain_text("% probability of cat")
    assert card.get_by_role("img", name="50 %").count() == 1  # the threshold, in the bar's label
    expect(card.locator(".facts")).to_contain_text("451×300 JPEG")
    expect(card.locator(".facts")).to_contain_text(" ms")
    for name in ("The picture as the model saw it", "The heat map over the picture", "cat.jpg"):
        image = card.get_by_role("img", name=name)
        assert image.evaluate("image => image.naturalWidth") > 0
    expect(page.get_by_role("status")).to_contain_text("cat.jpg: ")


def test_several_chosen_files_are_answered_each_on_its_card(
    server: Server, visit: Callable[..., Any]
) -> None:
    page = visit(server.url + "/")
    names = ["cat.jpg", "coffee.jpg", "rocket.jpg"]
    page.locator("#file").set_input_files([EXAMPLES / name for name in names])
    for card, name in zip([cards(page).nth(i) for i in range(3)], names, strict=True):
        words(card)
        expect(card.locator(".facts")).to_contain_text(name)


def test_dropped_and_pasted_pictures_are_answered(
    server: Server, visit: Callable[..., Any]
) -> None:
    page = visit(server.url + "/")
    dropped = transfer(page, "dropped.jpg second.jpg")
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("body", event, {"dataTransfer": dropped})
        assert ("dragging" in page.locator("html").get_attribute("class")) == (event != "drop")
    pasted = transfer(page, "pasted.jpg")
    page.evaluate(
        "data => document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data }))",
        pasted,
    )
    for i, name in enumerate(("pasted.jpg", "dropped.jpg", "second.jpg")):
        words(cards(page).nth(i))
        expect(cards(page).nth(i).locator(".facts")).to_contain_text(name)


def test_what_was_done_to_the_picture_is_told(server: Server, visit: Callable[..., Any]) -> None:
    out = io.BytesIO()
    frames = [Image.new("L", (90, 80), 20 * number) for number in range(12)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    page = visit(server.url + "/")
    file = {"name": "moving.gif", "mimeType": "image/gif", "buffer": out.getvalue()}
    page.locator("#file").set_input_files([file])
    words(cards(page).first)
    expect(cards(page).first.locator(".seen")).to_contain_text("Only the first of 12 frames")


def test_a_refused_file_tells_the_services_own_sentence(
    server: Server, visit: Callable[..., Any]
) -> None:
    page = visit(server.url + "/")
    file = {"name": "<b>notes</b>.txt", "mimeType": "text/plain", "buffer": b"hello"}
    page.locator("#file").set_input_files([file])
    card = cards(page).first
    expect(card.locator("h2")).to_have_text("The upload is not a picture")
    expect(card).to_contain_text("send the bytes of a JPEG, PNG")
    expect(card).to_contain_text("<b>notes</b>.txt")
    expect(page.get_by_role("status")).to_contain_text("send the bytes of a JPEG, PNG")
    assert_accessible(page)


def test_a_picture_that_is_too_large_is_refused_unsent_in_the_services_own_words(
    weights_path: Path, visit: Callable[..., Any]
) -> None:
    with running(UVICORN, weights=weights_path, max_upload_bytes=12_345) as server:
        refused = httpx.post(server.url + "/explain", content=bytes(12_346)).json()
        page = visit(server.url + "/")
        sent: list[str] = []
        page.on("request", lambda request: sent.append(request.url.rpartition("/")[2]))
        large, largest = (
            {"name": "large.jpg", "mimeType": "image/jpeg", "buffer": bytes(size)}
            for size in (12_346, 12_345)
        )
        page.locator("#file").set_input_files([large])
        expect(cards(page).first.locator("h2")).to_have_text(refused["title"])
        expect(cards(page).first).to_contain_text(refused["detail"])
        assert "explain" not in sent
        page.locator("#file").set_input_files([largest])
        expect(cards(page).first.locator("h2")).to_have_text("The upload is not a picture")
        assert "explain" in sent


def test_a_file_that_is_gone_is_not_blamed_on_the_service(
    server: Server, visit: Callable[..., Any], tmp_path: Path
) -> None:
    page = visit(server.url + "/")
    held = hold(page, 0, 1)
    files = [tmp_path / name for name in ("one.jpg", "two.jpg", "three.jpg")]
    for file in files:
        file.write_bytes((EXAMPLES / "cat.jpg").read_bytes())
    page.locator("#file").set_input_files(files)
    until(page, lambda: len(held) == 2)
    files[2].unlink()
    for route in held:
        route.continue_()
    expect(cards(page).nth(2).locator("h2")).to_have_text("The file cannot be read")


def test_no_file_is_kept_in_memory_for_its_picture(
    server: Server, visit: Callable[..., Any]
) -> None:
    counting = """
        const { createObjectURL, revokeObjectURL } = URL;
        window.kept = new Set();
        URL.createObjectURL = (file) => {
            const url = createObjectURL.call(URL, file);
            kept.add(url);
            return url;
        };
        URL.revokeObjectURL = (url) => {
            kept.delete(url);
            revokeObjectURL.call(URL, url);
        };"""
    page = visit(server.url + "/", before=counting)
    file = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"}
    page.locator("#file").set_input_files([file])
    cards(page).first.locator("img.broken").wait_for(state="attached")
    page.get_by_role("button", name="A tabby cat").click()
    words(cards(page).first)
    until(page, lambda: page.evaluate("kept.size") == 0)


def test_a_busy_service_is_asked_again_and_the_wait_is_no_part_of_the_time(
    server: Server, visit: Callable[..., Any]
) -> None:
    page = visit(server.url + "/")
    page.clock.install()
    busy = {"status": 503, "headers": {"Retry-After": "3600"}, "body": "{}"}
    page.route("**/explain", lambda route: route.fulfill(**busy), times=1)
    page.get_by_role("button", name="A tabby cat").click()
    expect(cards(page).first.locator("h2")).to_have_text("Busy, trying again")
    page.clock.fast_forward(60_000)  # it is never waited longer
    words(cards(page).first)
    facts = cards(page).first.locator(".facts").inner_text()
    assert int(re.findall(r"(\d+) ms", facts)[0]) < 60_000


def test_with_keys_the_page_asks_once_and_keeps_the_key_for_the_tab_only(
    weights_path: Path, visit: Callable[..., Any]
) -> None:
    with running(UVICORN, weights=weights_path, api_keys="open-sesame") as server:
        page = visit(server.url + "/")
        page.locator("#file").set_input_files([EXAMPLES / "cat.jpg", EXAMPLES / "coffee.jpg"])
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Key").fill("wrong")
        assert_accessible(page)
        dialog.get_by_role("button", name="Use the key").click()
        expect(dialog).to_contain_text("not one of this service's")
        dialog.get_by_label("Key").fill("open-sesame")
        page.keyboard.press("Enter")
        words(cards(page).nth(0))
        words(cards(page).nth(1))
        page.reload()
        page.get_by_role("button", name="A rocket at its launch").click()
        words(cards(page).first)  # without being asked again
        assert page.evaluate("Object.keys(localStorage).length") == 0
        assert page.context.cookies() == []


def test_whoever_has_no_key_is_told_so_and_asked_again_only_for_something_new(
    weights_path: Path, visit: Callable[..., Any]
) -> None:
    with running(UVICORN, weights=weights_path, api_keys="open-sesame") as server:
        page = visit(server.url + "/")
        page.locator("#file").set_input_files([EXAMPLES / "cat.jpg"] * 5)
        page.get_by_role("button", name="Cancel", exact=True).click()
        for i in range(5):
            expect(cards(page).nth(i)).to_contain_text("This service needs a key")
        expect(page.get_by_role("dialog")).to_be_hidden()
        page.get_by_role("button", name="A tabby cat").click()
        expect(page.get_by_role("dialog")).to_be_visible()


def test_what_was_sent_before_the_key_was_typed_is_sent_again_without_asking(
    weights_path: Path, visit: Callable[..., Any]
) -> None:
    with running(UVICORN, weights=weights_path, api_keys="open-sesame") as server:
        page = visit(server.url + "/")
        held = hold(page, 1)
        page.locator("#file").set_input_files([EXAMPLES / "cat.jpg", EXAMPLES / "coffee.jpg"])
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Key").wait_for()
        until(page, lambda: len(held) == 1)
        dialog.get_by_label("Key").fill("open-sesame")
        page.keyboard.press("Enter")
        expect(page.locator(".views")).to_have_count(1)
        held[0].continue_()
        expect(page.locator(".views")).to_have_count(2)


def test_a_key_that_no_header_can_hold_is_not_taken(
    weights_path: Path, visit: Callable[..., Any]
) -> None:
    with running(UVICORN, weights=weights_path, api_keys="open-sesame") as server:
        page = visit(server.url + "/")
        page.get_by_role("button", name="A tabby cat").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("without spaces")
        for key in ("schlüssel", "open sesame", " "):
            dialog.get_by_label("Key").fill(key)
            dialog.get_by_role("button", name="Use the key").click()
            expect(dialog).to_be_visible()
        dialog.get_by_label("Key").fill(" open-sesame ")
        dialog.get_by_role("button", name="Use the key").click()
        words(cards(page).first)


def test_where_nothing_may_be_kept_the_key_lasts_as_long_as_the_page(
    weights_path: Path, visit: Callable[..., Any]
) -> None:
    forbid = """Object.defineProperty(window, "sessionStorage", {
        get() { throw new DOMException("forbidden", "SecurityError"); },
    });"""
    with running(UVICORN, weights=weights_path, api_keys="open-sesame") as server:
        page = visit(server.url + "/", before=forbid)
        page.get_by_role("button", name="A tabby cat").click()
        page.get_by_role("dialog").get_by_label("Key").fill("open-sesame")
        page.keyboard.press("Enter")
        words(cards(page).first)
        page.get_by_role("button", name="A cup of coffee").click()
        expect(cards(page)).to_have_count(2)
        words(cards(page).first)  # without being asked again


def test_with_keys_the_commands_name_one_and_the_json_is_a_copy(
    weights_path: Path, visit: Callable[..., Any]
) -> None:
    with running(UVICORN, weights=weights_path, api_keys="open-sesame") as server:
        page = visit(server.url + "/")
        page.get_by_text("From a program").click()
        for i in range(2):
            command = page.locator("#program code").nth(i)
            expect(command).to_contain_text('@picture.jpg -H "X-API-Key: KEY" ')
            expect(command).to_contain_text(f" {server.url}/")
        page.get_by_text("The model", exact=True).click()
        page.get_by_role("dialog").get_by_label("Key").fill("open-sesame")
        page.keyboard.press("Enter")
        page.get_by_role("link", name="All of it as JSON").click()
        expect(page.locator("body")).to_contain_text('"threshold_rule"')


def test_with_keys_there_is_no_form_that_could_not_work(
    weights_path: Path, visit: Callable[..., Any]
) -> None:
    with running(UVICORN, weights=weights_path, api_keys="open-sesame") as server:
        page = visit(server.url + "/", java_script_enabled=False)
        assert not page.locator("#ask").is_visible()
        assert page.get_by_text("This service needs an API key").is_visible()
        page = visit(server.url + "/")
        assert page.locator("#ask").is_visible()
        assert not page.get_by_text("This service needs an API key").is_visible()


def test_a_long_upload_shows_its_progress_and_can_be_cancelled(
    server: Server, visit: Callable[..., Any]
) -> None:
    page = visit(server.url + "/")
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 200_000}
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", slow)
    file = {"name": "large.jpg", "mimeType": "image/jpeg", "buffer": bytes(5_000_000)}
    page.locator("#file").set_input_files([file])
    expect(cards(page).first.locator("h2")).to_have_text("Sending")
    bar = page.get_by_role("progressbar", name="large.jpg")
    expect(bar).to_have_attribute("value", re.compile(r"0\.\d+"))
    page.get_by_role("button", name="Cancel large.jpg").click()
    expect(cards(page)).to_have_count(0)
    expect(page.get_by_role("status")).to_have_text("large.jpg: cancelled")


def test_a_picture_that_still_waits_for_its_turn_is_cancelled_at_once(
    server: Server, visit: Callable[..., Any]
) -> None:
    page = visit(server.url + "/")
    held = hold(page, 0, 1)
    names = ["cat.jpg", "coffee.jpg", "rocket.jpg", "rocket.jpg"]
    page.locator("#file").set_input_files([EXAMPLES / name for name in names])
    until(page, lambda: len(held) == 2)
    page.get_by_role("button", name="Cancel rocket.jpg").last.click()
    expect(cards(page)).to_have_count(3)
    assert focused(page) == "file"
    page.locator("#program summary").focus()
    page.get_by_role("button", name="Cancel rocket.jpg").evaluate("button => button.click()")
    expect(cards(page)).to_have_count(2)
    assert focused(page) == "From a program"  # it was elsewhere, and stays there
    expect(page.get_by_role("status")).to_have_text("rocket.jpg: cancelled" * 2)
    again: list[str] = []
    page.on("request", lambda request: again.append(request.url))
    for route in held:
        route.continue_()
    words(cards(page).nth(0))
    words(cards(page).nth(1))
    assert server.url + "/explain" not in again


def test_whoever_is_at_a_card_that_gets_its_answer_stays_there(
    server: Server, visit: Callable[..., Any]
) -> None:
    page = visit(server.url + "/")
    held = hold(page, 0, 1)
    page.locator("#file").set_input_files([EXAMPLES / "cat.jpg", EXAMPLES / "coffee.jpg"])
    until(page, lambda: len(held) == 2)
    page.get_by_role("button", name="Cancel cat.jpg").focus()
    for route in held:
        route.continue_()
    told = [words(cards(page).nth(i)) for i in range(2)]
    assert focused(page).lower() == told[0].lower()
    assert cards(page).first.locator("h2:focus").count() == 1
    for name in ("cat.jpg: ", "coffee.jpg: "):  # neither overwrites the other
        expect(page.get_by_role("status")).to_contain_text(name)


def test_a_service_that_is_gone_is_told(weights_path: Path, visit: Callable[..., Any]) -> None:
    with running(UVICORN, weights=weights_path) as server:
        page = visit(server.url + "/")
        server.process.kill()
        server.wait()
        page.locator("#file").set_input_files([EXAMPLES / "cat.jpg"])
        expect(cards(page).first).to_contain_text("The service cannot be reached")


def test_the_model_panel_and_the_commands_are_there(
    server: Server, visit: Callable[..., Any]
) -> None:
    page = visit(server.url + "/")
    page.get_by_text("The model", exact=True).click()
    expect(page.locator("#model")).to_contain_text("Logistic regression on the pixels")
    expect(page.locator("#model")).to_contain_text("Its weights")
    page.get_by_text("From a program").click()
    expect(page.locator("#program")).to_contain_text(f"@picture.jpg {server.url}/predict")
    assert_accessible(page)


def test_the_network_that_ships_shows_its_metrics_and_its_learning_curve(
    visit: Callable[..., Any],
) -> None:
    threshold = f"{100 * Classifier.load(default_weights()).threshold:.1f} %"
    with running(UVICORN) as server:
        page = visit(server.url + "/")
        page.get_by_text("The model", exact=True).click()
        expect(page.locator("#model table").first).to_contain_text("ROC AUC")
        caption = page.locator("#model caption").first
        expect(caption).to_have_text(f"With a threshold of {threshold}")
        expect(page.locator("#model")).to_contain_text(f"It says cat from {threshold} on")
        expect(page.get_by_role("img", name=re.compile("^Learning curve: loss"))).to_be_visible()
        assert_accessible(page)


def test_odd_metadata_cost_the_panel_no_more_than_their_section(
    classifier: Classifier, tmp_path: Path, visit: Callable[..., Any]
) -> None:
    odd = {
        "calibration": {"rule": 3},
        "data": {"test": {"pictures": 3, "classes": {"cat": None}}},
        "training": {"epochs": 7},
        "metrics": {"test": {"pictures": 3, "accuracy": 1.0, "called_first": 0, "roc_auc": "?"}},
    }
    path = tmp_path / "odd.safetensors"
    replace(classifier, metadata=odd).save(path)
    with running(UVICORN, weights=path) as server:
        page = visit(server.url + "/")
        page.get_by_text("The model", exact=True).click()
        panel = page.locator("#model")
        for text in ("tiny, version", "Its weights", "settings: epochs 7", "All of it as JSON"):
            expect(panel).to_contain_text(text)
        expect(panel.locator("td")).to_have_text(["100 %", "0 %"])  # measured, not thought


def test_everything_is_reached_and_done_with_the_keyboard(
    server: Server, visit: Callable[..., Any]
) -> None:
    page = visit(server.url + "/")
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.outerHTML.slice(0, 40)"))
        assert page.evaluate(
            "getComputedStyle(document.activeElement).outlineStyle !== 'none' ||"
            " getComputedStyle(document.querySelector('#file + label')).outlineStyle !== 'none'"
        ), f"no visible focus on {reached[-1]}"
    kinds = ["<input", "<button", "<button", "<button", "<summary>The", "<summary>From"]
    assert [text.partition(" ")[0] for text in reached] == kinds
    page.get_by_role("button", name="A tabby cat").focus()
    page.keyboard.press("Enter")
    words(cards(page).first)


@pytest.mark.parametrize(
    "options",
    [
        {"color_scheme": "light", "viewport": {"width": 1100, "height": 800}},
        {"color_scheme": "dark", "viewport": {"width": 1100, "height": 800}},
        {"color_scheme": "light", "viewport": {"width": 320, "height": 640}, "has_touch": True},
        {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}, "has_touch": True},
    ],
    ids=["light", "dark", "narrow", "dark phone"],
)
def test_it_is_accessible_and_fits_in_light_and_dark_wide_and_narrow(
    server: Server, visit: Callable[..., Any], options: dict[str, Any]
) -> None:
    page = visit(server.url + "/", **options)
    assert_accessible(page)
    page.get_by_role("button", name="A tabby cat").click()
    words(cards(page).first)
    assert_accessible(page)
    overflow = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not page.evaluate(overflow)
    # The page is dark where dark is asked for: its corner, as it is drawn.
    shot = Image.open(io.BytesIO(page.screenshot())).convert("L")
    assert (np.asarray(shot)[2, 2] < 60) == (options["color_scheme"] == "dark")
    camera = page.get_by_text("Take a photo")
    assert camera.is_visible() == options.get("has_touch", False)


def test_without_javascript_a_form_does_it(server: Server, visit: Callable[..., Any]) -> None:
    page = visit(server.url + "/", java_script_enabled=False)
    assert not page.get_by_text("Or try one of these").is_visible()
    page.locator("#file").set_input_files(EXAMPLES / "cat.jpg")
    page.get_by_role("button", name="Ask").click()
    card = cards(page).first
    expect(card.locator("h2")).to_contain_text("cat")
    expect(card).to_contain_text("% probability of cat")
    assert card.get_by_role("img", name="The heat map over the picture").is_visible()
    scripted = visit(server.url + "/")
    scripted.locator("#file").set_input_files(EXAMPLES / "cat.jpg")
    words(cards(scripted).first)
    for part in (".bar text", ".views + .small"):  # what both say, they say alike
        expect(card.locator(part)).to_have_text(cards(scripted).first.locator(part).text_content())
    expect(card.locator(".views + .small")).to_contain_text("weights times pixels")
    file = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"}
    page.locator("#file").set_input_files([file])
    page.get_by_role("button", name="Ask").click()
    expect(cards(page).first).to_contain_text("The upload is not a picture")
