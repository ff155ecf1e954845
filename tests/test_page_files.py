"""The files of the page for people, as a client without a browser sees them."""

import re
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app import pages
from app.settings import Settings
from tests.data_folder import REPOSITORY


def open_page(class_names: tuple[str, str] = ("cat", "non-cat"), **settings: Any) -> TestClient:
    """A client of a service that has nothing but the page."""
    app = FastAPI()
    app.include_router(pages.router)
    app.state.settings = Settings(**settings)
    app.state.model = {"class_names": class_names, "formats": "JPEG, PNG or WebP"}
    return TestClient(app, headers={"Accept": "text/html,*/*;q=0.8"})


def test_it_allows_nothing_from_elsewhere_and_no_inline_code() -> None:
    response = open_page().get("/")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy


def test_its_files_are_small_and_every_address_in_them_is_relative() -> None:
    client = open_page()
    addresses = re.findall(r'(?:href|src|action)="([^"]+)"', client.get("/").text)
    texts = [
        each.read_text() for each in (pages.FOLDER / "page").iterdir() if each.suffix != ".jpg"
    ]
    modules = re.findall(r'from "\./(.+)"', "".join(texts))
    for address in {*addresses, *(f"static/{name}" for name in modules)} - {"docs"}:
        assert re.fullmatch(r"static/[a-z.]+", address)
        assert client.get(f"/{address}").status_code == 200, address
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", "".join(texts))
    assert sum(map(len, texts)) < 40_000


def test_files_are_sent_again_only_when_they_changed_and_nothing_else_is_sent() -> None:
    client = open_page()
    first = client.get("/static/cat.jpg")
    assert first.content == (REPOSITORY / "examples" / "cat.jpg").read_bytes()
    again = client.get("/static/cat.jpg", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    for name in ("index.html", "no.js", "..%2fpage.py", "%2e%2e/page.py", "%00"):
        assert client.get(f"/static/{name}").status_code == 404
    for address in ("/", "/static/page.js"):  # it can be switched off
        assert open_page(page=False).get(address).status_code == 404


@pytest.mark.parametrize(
    ("class_names", "title"),
    [
        (("cat", "non-cat"), "Cat or not?"),
        (("cat", "dog"), "Cat or dog?"),
        (("<b>&", '"$title'), "&lt;b&gt;&amp; or &quot;$title?"),
    ],
)
def test_names_of_classes_are_text_not_markup(class_names: tuple[str, str], title: str) -> None:
    text = open_page(class_names).get("/").text
    assert f"<title>{title}</title>" in text
    assert "<b>&" not in text


@pytest.mark.parametrize(
    "accept", ["*/*", "", "application/json", "text/plain;q=0.9,text/html;q=0.1"]
)
def test_whoever_does_not_ask_for_a_page_gets_the_commands_to_try(accept: str) -> None:
    for keys, header in (((), ""), (("secret",), ' -H "X-API-Key: KEY"')):
        answer = open_page(api_keys=keys).get("/", headers={"Accept": accept})
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.headers["vary"] == "Accept"
        commands = [line for line in answer.text.splitlines() if line.startswith("curl")]
        assert len(commands) == 3
        assert f"curl{header} --data-binary @picture.jpg http://testserver/predict" in commands
        assert "secret" not in answer.text
        assert "feedback are not saved: this service answers 404" in answer.text
    collecting = open_page(collect="/srv/feedback").get("/", headers={"Accept": accept})
    assert "feedback are saved for training" in collecting.text
