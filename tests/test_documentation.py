"""docs/operations.md and docs/recipes.md: what they name exists, and what can run, runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml
from starlette.testclient import TestClient

from app import capacity
from app.inference_protocol import body_limit
from app.observation import Metrics
from app.settings import Settings
from tests.data_folder import REPOSITORY
from tests.test_readme import TEXTS, blocks

OPERATIONS = REPOSITORY / "docs" / "operations.md"
RECIPES = REPOSITORY / "docs" / "recipes.md"
EXAMPLE = REPOSITORY / "examples" / "cat.jpg"
DEFAULT_SERVICE = "http://127.0.0.1:8000"
LONGEST_STOP_SECONDS = 13  # beside the drain, with the default deadline
METRICS = {each._name: each for each in vars(Metrics()).values() if hasattr(each, "_labelnames")}


def block(page: Path, language: str, having: str = "") -> str:
    """The one block of this language that has this text in it."""
    (found,) = [b.text for b in blocks(page) if b.language == language and having in b.text]
    return found


def rows(page: Path, pattern: str) -> list[tuple[str, ...]]:
    return re.findall(rf"^\| {pattern} \|", TEXTS[page], re.MULTILINE)


def test_the_table_of_memory_is_what_the_service_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    table = rows(OPERATIONS, r"(\d+) \| (\d+) MiB \| (\d+) \| (\d+) MB \| (\d+) MB \| ([\d.]+) MB")
    assert table
    for cores, memory, *shown in table:
        monkeypatch.setattr(capacity, "cores", lambda cores=cores: int(cores))
        monkeypatch.setattr(capacity, "memory_bytes", lambda memory=memory: int(memory) * 2**20)
        plan = capacity.plan()
        largest = min(plan.largest_upload_bytes, Settings().max_upload_bytes)
        megabytes = [f"{each / 1e6:.0f}" for each in (plan.worker_bytes, plan.body_bytes)]
        assert shown == [str(plan.workers), *megabytes, f"{largest / 1e6:.1f}"], (cores, memory)


def test_every_metric_is_explained_and_those_in_queries_exist() -> None:
    table = {name: labels.strip() for name, labels in rows(OPERATIONS, r"`(cat_\w+)` \|(.*?)")}
    series = set()
    for name, each in METRICS.items():
        counted = "_total" if each._type == "counter" else ""
        labels = ", ".join(f"`{label}`" for label in each._labelnames)
        assert table.pop(name + counted) == labels
        series |= {name + counted, *(f"{name}_{end}" for end in ("bucket", "sum", "count"))}
    assert table == {}
    assert {*re.findall(r"\bcat_[a-z_]+\b", TEXTS[OPERATIONS])} <= series
    for name, bound in re.findall(r"(cat_\w+)_bucket\{le=\"([\d.]+)\"\}", TEXTS[OPERATIONS]):
        assert float(bound) in METRICS[name]._upper_bounds


def test_the_files_fit_the_service() -> None:
    """The texts of proxies, of what starts and of what stops it."""
    nginx, caddy, unit = block(RECIPES, "nginx"), block(RECIPES, "caddy"), block(RECIPES, "ini")
    (mebibytes,) = re.findall(r"client_max_body_size (\d+)m;", nginx)
    (megabytes,) = re.findall(r"max_size (\d+)MB", caddy)
    most = body_limit(Settings().max_upload_bytes)
    assert int(mebibytes) * 2**20 > most < int(megabytes) * 10**6
    (patience,) = re.findall(r"proxy_read_timeout (\d+)s;", nginx)
    assert int(patience) > Settings().deadline_seconds
    compose = block(RECIPES, "yaml", "services:")
    (drain,) = re.findall(r"CAT_DRAIN_SECONDS: \"(\d+)\"", compose)
    (waits,) = re.findall(r"stop_grace_period: (\d+)s", compose)
    assert int(waits) > int(drain) + LONGEST_STOP_SECONDS
    (waits,) = re.findall(r"TimeoutStopSec=(\d+)", unit)
    assert int(waits) > LONGEST_STOP_SECONDS
    for each in [*blocks(OPERATIONS), *blocks(RECIPES)]:
        assert each.language != "yaml" or yaml.safe_load(each.text)


@pytest.fixture
def busy_service(client: TestClient) -> Iterator[str]:
    """The address of a service that is too busy for the first request, and answers the next."""
    statuses: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = client.post(self.path, content=body)
            status = answer.status_code if statuses else 503
            statuses.append(status)
            self.send_response(status)
            self.send_header("Retry-After", "1")
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
    assert statuses[0] == 503
    assert len(statuses) == 2, "it did not come back"


def commands(service: str, folder: Path) -> dict[str, list[str]]:
    """Recipe → the command that asks a service about the example."""
    camera = folder / "ffmpeg"
    camera.write_text(f'#!/bin/sh\ncat "{EXAMPLE}"\n', "utf-8")
    camera.chmod(0o755)
    shell = f"set -eu -o pipefail\nPATH={folder}:$PATH\n{block(RECIPES, 'bash', 'ffmpeg')}"
    python = block(RECIPES, "python", "httpx.Client").replace(DEFAULT_SERVICE, service)
    javascript = block(RECIPES, "javascript").replace(DEFAULT_SERVICE, service)
    picture = f"require('fs').readFileSync({json.dumps(str(EXAMPLE))})"
    javascript += f"\nclassify({picture}).then((answer) => console.log(answer.label));"
    assistant = yaml.safe_load(block(RECIPES, "yaml", "shell_command:\n"))["shell_command"]
    command = assistant["is_it_a_cat"].replace("/config/snapshots/door.jpg", str(EXAMPLE))
    look = [sys.executable, "-c", block(RECIPES, "python", "look.py")]
    return {
        "camera": [*look, EXAMPLE.as_uri()],
        "camera that sends text": [*look, (REPOSITORY / "LICENSE").as_uri()],
        "curl": ["bash", "-c", shell],
        "Python": [sys.executable, "-c", python],
        "JavaScript": ["node", "-e", javascript],
        "Home Assistant": ["sh", "-c", command.replace("http://192.168.1.10:8000", service)],
    }


@pytest.mark.parametrize(
    ("recipe", "status", "words"),
    [
        ("camera", 1, "no cat, quite sure (0.0"),
        ("camera that sends text", 2, "not-a-picture"),
        *((name, 0, "non-cat") for name in ("curl", "Python", "JavaScript", "Home Assistant")),
    ],
)
def test_a_recipe_waits_and_answers(
    busy_service: str, tmp_path: Path, recipe: str, status: int, words: str
) -> None:
    command = commands(busy_service, tmp_path)[recipe]
    if not shutil.which("curl") or not shutil.which(command[0]):
        pytest.skip("needs curl, and Node for JavaScript")
    environment = os.environ | {"SERVICE": busy_service}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert words in done.stdout + done.stderr
