"""The files of the page for people, as a client without a browser sees them."""

import re

import pytest
from fastapi.testclient import TestClient

from app import pages
from app.main import create_app
from app.settings import Settings
from tests.conftest import Service, SharedWorkers, Stuck
from tests.data_folder import REPOSITORY

BROWSER = {"Accept": "text/html,*/*;q=0.8"}


def test_its_files_are_small_and_allow_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/", headers=BROWSER)
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    addresses = re.findall(r'(?:href|src|action)="([^"]+)"', page.text)
    files = [each for each in (pages.FOLDER / "page").iterdir() if each.suffix != ".jpg"]
    text = "".join(each.read_text() for each in files)
    modules = re.findall(r'from "\./(.+)"', text)
    for address in {*addresses, *(f"static/{name}" for name in modules)} - {"docs"}:
        assert re.fullmatch(r"static/[a-z.]+", address)
        assert client.get(f"/{address}").status_code == 200, address
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert len(text) < 40_000


def test_files_are_sent_again_only_when_they_changed_and_nothing_else_is_sent(
    client: TestClient, service: Service
) -> None:
    first = client.get("/static/cat.jpg")
    assert first.content == (REPOSITORY / "examples" / "cat.jpg").read_bytes()
    again = client.get("/static/cat.jpg", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    for name in ("index.html", "no.js", "..%2fpage.py", "%2e%2e/page.py", "%00"):
        assert client.get(f"/static/{name}").status_code == 404
    with service(page=False) as without:
        assert {without.get(path).status_code for path in ("/", "/static/page.js")} == {404}


def test_names_of_classes_are_text_not_markup(workers: SharedWorkers) -> None:
    named = workers.description | {"class_names": ("<b>&", '"$title')}
    with TestClient(create_app(Settings(), Stuck(named))) as client:
        text = client.get("/", headers=BROWSER).text
    assert "<title>&lt;b&gt;&amp; or &quot;$title?</title>" in text
    assert "<b>&" not in text


@pytest.mark.parametrize("accept", ["*/*", "", "text/plain;q=0.9,text/html;q=0.1"])
def test_whoever_does_not_ask_for_a_page_gets_the_commands_to_try(
    client: TestClient, service: Service, accept: str
) -> None:
    answer = client.get("/", headers={"Accept": accept})
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["vary"] == "Accept"
    assert "\ncurl --data-binary @picture.jpg http://testserver/predict\n" in answer.text
    with service(api_keys=("secret",)) as locked:
        text = locked.get("/", headers={"Accept": accept}).text
    assert '\ncurl -H "X-API-Key: KEY" --data-binary @picture.jpg' in text
    assert "secret" not in text
