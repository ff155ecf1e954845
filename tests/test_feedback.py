"""Feedback: what is kept, what is refused, and the way round from a wrong answer to a right one."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from model.classifier import Classifier
from tests.conftest import Service
from tests.data_folder import REPOSITORY
from tests.pictures import encode, picture, scene, turned
from tests.server import UVICORN, running
from tests.test_fit import COLD, GREEN, SMALL, WARM, blot, fit, make_data

OWN = "http://testserver"
FOREIGN = [
    *({"Origin": each} for each in ("https://evil.example", "null", f"{OWN}:80", f"{OWN}.evil")),
    *({"Sec-Fetch-Site": each} for each in ("cross-site", "same-site")),
    {"Sec-Fetch-Site": "cross-site", "Origin": OWN},
    {"Host": "testserver:443", "Origin": OWN},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "feedback"


@pytest.fixture
def collecting(service: Service, folder: Path) -> Iterator[TestClient]:
    with service(collect=folder) as client:
        yield client


def give(
    client: TestClient, label: str, content: bytes = b"", headers: dict[str, str] | None = None
) -> httpx.Response:
    answer: httpx.Response = client.post(
        f"/feedback?label={label}", content=content or picture(), headers=headers
    )
    return answer


def kept(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_picture_is_kept_once_in_the_folder_of_its_class_and_moved_by_the_other_label(
    collecting: TestClient, folder: Path
) -> None:
    for label in ("cat", "non-cat", "cat"):
        as_form = collecting.post(f"/feedback?label={label}", files={"file": picture()})
        for answer in (give(collecting, label), as_form):
            assert answer.status_code == 200
            assert answer.json() == {"id": answer.json()["id"], "label": label}
            assert kept(folder) == [f"{label}/{answer.json()['id']}.jpg"]
    metrics = collecting.get("/metrics").text
    assert 'cat_feedback_total{label="cat"} 4.0' in metrics
    assert 'cat_feedback_total{label="non-cat"} 2.0' in metrics


def test_what_is_kept_is_small_and_upright_and_holds_pixels_alone(
    collecting: TestClient, folder: Path
) -> None:
    tags = Image.Exif()
    tags[0x0112], tags[0x010F] = 6, "a camera"
    secrets = {"exif": tags.tobytes(), "comment": b"at home", "icc_profile": b"a profile"}
    sideways = scene(1600, 1200).transpose(Image.Transpose.ROTATE_90)
    give(collecting, "cat", encode(sideways, "JPEG", **secrets)).raise_for_status()
    (path,) = folder.rglob("*.jpg")
    with Image.open(path) as image:
        assert (image.format, image.size) == ("JPEG", (512, 384))
        assert np.abs(np.asarray(image, int) - np.asarray(scene(512, 384), int)).mean() < 3
    assert not any(secret in path.read_bytes() for secret in (b"camera", b"home", b"profile"))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "same-origin"},
        {"Origin": OWN},
        {"Origin": OWN, "Host": "testserver:80"},
        {"Origin": "https://testserver", "Host": "testserver:443"},
    ],
)
def test_programs_and_the_own_page_give_feedback_and_take_it_back_once(
    collecting: TestClient, client: TestClient, folder: Path, headers: dict[str, str]
) -> None:
    collecting.post("/predict", content=picture()).raise_for_status()
    assert kept(folder) == [], "only feedback is stored"
    identity = give(collecting, "cat", turned(8, "PNG"), headers=headers).json()["id"]
    for other in ("*", "..%2Fsecret", "A" * 24, "0" * 23):
        assert collecting.delete(f"/feedback/{other}").status_code == 404
    assert len(kept(folder)) == 1
    for status in (204, 404):
        assert collecting.delete(f"/feedback/{identity}", headers=headers).status_code == status
        assert kept(folder) == []
    for answer in (give(client, "cat"), client.delete(f"/feedback/{'0' * 24}")):
        assert answer.status_code == 404, "without the setting nothing is stored"
        assert "CAT_COLLECT" in answer.json()["detail"]


def test_another_label_and_what_is_no_picture_is_refused(
    collecting: TestClient, folder: Path
) -> None:
    for query in ("", "?label=", "?label=dog", "?label=../cat", "?lable=cat"):
        answer = collecting.post(f"/feedback{query}", content=picture())
        assert answer.status_code == 422
        assert "?label=cat or ?label=non-cat" in answer.json()["detail"]
    no_picture = give(collecting, "cat", b"no picture")
    assert no_picture.status_code == 415
    assert "looks like text" in no_picture.json()["detail"]
    assert kept(folder) == []


def test_a_page_from_elsewhere_may_neither_give_feedback_nor_take_it_back(
    service: Service, folder: Path
) -> None:
    """Not even with a key, from an origin that may ask for predictions."""
    key, origins = {"X-API-Key": "key"}, ("https://evil.example",)
    with service(collect=folder, api_keys=("key",), cors_origins=origins) as client:
        identity = give(client, "cat", headers=key).json()["id"]
        for headers in FOREIGN:
            for answer in (
                give(client, "non-cat", headers=key | headers),
                client.delete(f"/feedback/{identity}", headers=key | headers),
            ):
                assert answer.status_code == 403
                assert answer.json()["type"] == "/problems#foreign-page"
        assert give(client, "non-cat").status_code == 401
        assert client.delete(f"/feedback/{identity}").status_code == 401
    assert kept(folder) == [f"cat/{identity}.jpg"]


@pytest.mark.parametrize(("bound", "value"), [("collect_pictures", 1), ("collect_bytes", 8000)])
def test_a_full_collection_says_so_until_somebody_makes_room(
    service: Service, folder: Path, bound: str, value: int
) -> None:
    other = picture(width=150)
    with service(collect=folder) as client:
        give(client, "cat").raise_for_status()
    with service(collect=folder, **{bound: value}) as client:  # what is there at the start counts
        answer = give(client, "cat", other)
        assert (answer.status_code, answer.json()["type"]) == (507, "/problems#collection-full")
        assert f"{value:,}" in answer.json()["detail"]
        assert f"CAT_{bound.upper()}" in answer.json()["detail"]
        assert give(client, "non-cat").status_code == 200  # moved, which needs no room
        shutil.rmtree(folder)
        assert give(client, "cat", other).status_code == 200


KILLED = """
import os, signal, sys
from pathlib import Path
from app.feedback import Collection

collection = Collection(Path(sys.argv[1]), 10, 10**6)
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
collection.keep(b"a picture", "cat")
"""


def test_a_write_that_fails_or_is_killed_leaves_no_half_picture(
    service: Service, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", KILLED, str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [Path(name).name[:1] for name in kept(folder)] == ["."]  # training leaves them out

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with service(collect=folder) as client:
        assert kept(folder) == []  # the start removed it
        monkeypatch.setattr(os, "fsync", fail)
        answer = give(client, "cat")
    assert (answer.status_code, answer.json()["type"]) == (500, "/problems#collection-failed")
    assert "No space left on device" in answer.json()["detail"]
    assert kept(folder) == []


def learn(*arguments: object) -> str:
    """Run the script that learns from feedback; what it says."""
    command = ["sh", str(REPOSITORY / "examples" / "learn-nightly.sh"), *map(str, arguments)]
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def test_it_learns_from_its_mistakes_and_only_what_is_better_is_served(
    tmp_path: Path, folder: Path
) -> None:
    """With real processes: wrong answer, feedback, fit, reload, right answer."""
    served = tmp_path / "served.safetensors"
    gentle = ("--set", "augmentation_strength=0.3", "--epochs", 6)
    assert fit(make_data(tmp_path / "data", 40), *SMALL, *gentle, "--output", served) == 0
    rng = np.random.default_rng(7)
    fine_tuning = ["--epochs", 12, "--set", "batch=8", "max_lr=0.05"]
    with (
        running(UVICORN, weights=served, collect=folder) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):

        def label() -> str:
            answer = client.post("/predict", content=blot(rng, GREEN, 90))
            return str(answer.raise_for_status().json()["label"])

        wrong = label()
        right, colour = ("non-cat", WARM) if wrong == "cat" else ("cat", COLD)
        for _ in range(50):  # mistakes, and right answers that are confirmed
            for given, shown in ((right, GREEN), (wrong, colour)):
                client.post(f"/feedback?label={given}", content=blot(rng, shown, 90))
        hangup = shlex.join(["kill", "-HUP", str(server.process.pid)])
        assert "clearly better" in learn(folder, served, hangup, *fine_tuning)
        version = Classifier.load(served).version
        server.wait_for_log(f"Reloaded: serving served, version {version}")
        assert {label() for _ in range(5)} == {right}
        # Once more: nothing is better than what is served now.
        said = learn(folder, served, hangup, *fine_tuning, "max_lr=1e-9")
        assert re.search(r"^Not deployed: .*no better", said, re.M)
        assert Classifier.load(served).version == version
    assert server.log.count("Reloaded") == 1
