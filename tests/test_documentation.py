"""docs/operations.md and docs/recipes.md: what they name exists, and what can run, runs."""

import configparser
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from app import capacity, metrics
from app.inference_protocol import body_limit
from app.problems import KINDS
from app.settings import Settings, settings_table
from app.supervisor import KEEP_ALIVE_SECONDS, kill_seconds
from tests.data_folder import REPOSITORY
from tests.server import PYTHON_M_APP, Server, running
from tests.test_readme import blocks, page_name

OPERATIONS = REPOSITORY / "docs" / "operations.md"
RECIPES = REPOSITORY / "docs" / "recipes.md"
BOTH = (OPERATIONS, RECIPES)
EXAMPLE = REPOSITORY / "examples" / "cat.jpg"
DEFAULT_SERVICE = "http://127.0.0.1:8000"


def block(page: Path, language: str, having: str = "") -> str:
    """The one block of this language that has this text in it."""
    (found,) = [b.text for b in blocks(page) if b.language == language and having in b.text]
    return found


def rows(page: Path, pattern: str) -> list[tuple[str, ...]]:
    return re.findall(rf"^\| {pattern} \|", page.read_text("utf-8"), re.MULTILINE)


def test_the_table_of_capacity_is_what_the_service_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    table = rows(OPERATIONS, r"(\d+) \| (\d+) MiB \| (\d+) \| (\d+) \| (\d+) MB \| (\d+) MB")
    assert table
    for cores, memory, *told in table:
        monkeypatch.setattr(capacity, "cores", lambda cores=cores: int(cores))
        monkeypatch.setattr(capacity, "memory_bytes", lambda memory=memory: int(memory) * 2**20)
        plan = capacity.plan()
        megabytes = [round(each / 1e6) for each in (plan.upload_bytes, plan.decode_bytes)]
        assert [*map(int, told)] == [plan.workers, plan.decoders, *megabytes], (cores, memory)


def test_every_metric_is_explained_with_its_labels() -> None:
    table = {name: told.strip() for name, told in rows(OPERATIONS, r"`(cat_\w+)` \|(.*?)")}
    kept = [each for each in vars(metrics).values() if hasattr(each, "_labelnames")]
    names = {
        each._name + ("_total" if each._type == "counter" else ""): ", ".join(
            f"`{label}`" for label in each._labelnames
        )
        for each in kept
    }
    assert len(names) > 10
    assert table == names


@pytest.mark.parametrize("page", BOTH, ids=page_name)
def test_metrics_in_queries_exist(page: Path) -> None:
    kept = {m._name: m._type for m in vars(metrics).values() if hasattr(m, "_labelnames")}
    series = {
        name + suffix
        for name, kind in kept.items()
        for suffix in {"counter": ["_total"], "histogram": ["", "_bucket", "_sum", "_count"]}.get(
            kind, [""]
        )
    }
    named = set(re.findall(r"\bcat_[a-z_]+\b", page.read_text("utf-8")))
    others = {"cat_requests", "cat_connections", "cat_keys", "cat_probability"}  # of other things
    assert named - others <= series


def test_borders_in_queries_are_buckets() -> None:
    text = OPERATIONS.read_text("utf-8")
    for name, border in re.findall(r"(cat_\w+)_bucket\{le=\"([\d.]+)\"\}", text):
        (kept,) = [m for m in vars(metrics).values() if getattr(m, "_name", "") == name]
        assert border in map(str, kept._upper_bounds)


@pytest.mark.parametrize("page", BOTH, ids=page_name)
def test_addresses_named_exist(page: Path, client: TestClient) -> None:
    text = page.read_text("utf-8")
    first = "health|predict|explain|metrics|model|docs|v2"
    named = {
        address
        for pattern in (
            r"\b(?:GET|POST) (/[\w./-]*)",
            r"(?:SERVICE|:8000|\$\{service\})(/[\w./-]+)",
            r"(?:path:|health_uri|location =|respond) (/[\w./-]+)",
            rf"`(/(?:{first})\b[\w./-]*)`",
        )
        for address in re.findall(pattern, text)
    }
    assert named
    for address in named:
        assert client.get(address).status_code in (200, 405), address


@pytest.mark.parametrize("page", BOTH, ids=page_name)
def test_problems_named_exist_with_their_status(page: Path) -> None:
    named = re.findall(r"\b([45]\d\d) `([a-z-]+)`", page.read_text("utf-8"))
    for status, slug in named:
        assert KINDS[slug].status == int(status)
    if page == OPERATIONS:
        assert {slug for slug, kind in KINDS.items() if kind.status == 503} <= {s for _, s in named}


def test_operations_tell_of_every_setting_that_limits_something() -> None:
    text = OPERATIONS.read_text("utf-8")
    elsewhere = {"CAT_THRESHOLD", "CAT_PAGE", "CAT_BIND_HOST", "CAT_BIND_PORT"}
    for name in settings_table().keys() - elsewhere:
        assert name in text


def test_what_stops_the_service_waits_long_enough() -> None:
    compose = block(RECIPES, "yaml", "services:")
    unit = block(RECIPES, "ini")
    kubernetes = block(OPERATIONS, "yaml", "containers:")
    for text, waits in (
        (compose, r"stop_grace_period: (\d+)s"),
        (kubernetes, r"terminationGracePeriodSeconds: (\d+)"),
        (unit, r"TimeoutStopSec=(\d+)"),
    ):
        drain = re.search(r"CAT_DRAIN_SECONDS(?::|\s+value:) \"(\d+)\"", text)
        settings = Settings(drain_seconds=int(drain[1]) if drain else 0)
        found = re.search(waits, text)
        assert found
        assert int(found[1]) > kill_seconds(settings)
    stated = f"at most `CAT_DRAIN_SECONDS` + {kill_seconds(Settings()):g} s"
    assert stated in " ".join(OPERATIONS.read_text("utf-8").split())


def test_the_proxies_leave_refusing_to_the_service() -> None:
    most = body_limit(Settings().max_upload_bytes)
    nginx, caddy = block(RECIPES, "nginx"), block(RECIPES, "caddy")
    (mebibytes,) = re.findall(r"client_max_body_size (\d+)m;", nginx)
    (megabytes,) = re.findall(r"max_size (\d+)MB", caddy)
    (patience,) = re.findall(r"proxy_read_timeout (\d+)s;", nginx)
    assert int(mebibytes) * 2**20 > most
    assert int(megabytes) * 10**6 > most
    assert int(patience) > Settings().deadline_seconds
    assert f"({KEEP_ALIVE_SECONDS} s)" in RECIPES.read_text("utf-8")
    for statement in re.sub(r"#.*", "", nginx).splitlines():
        assert not statement.strip() or statement.strip()[-1] in ";{}"
    for text in (nginx, caddy):
        assert text.count("{") == text.count("}")


@pytest.mark.parametrize("page", BOTH, ids=page_name)
def test_yaml_is_laid_out_as_yaml(page: Path) -> None:
    """Without a parser: keys or items, indented evenly, but for the lines of block texts."""
    texts = [each.text for each in blocks(page) if each.language == "yaml"]
    assert texts
    for text in texts:
        inside = -1  # how far the block text's own key is indented
        for line in filter(None, text.splitlines()):
            indent = len(line) - len(line.lstrip(" "))
            if 0 <= inside < indent:
                continue
            inside = indent if line.endswith((": >-", ": |")) else -1
            assert indent % 2 == 0, line
            assert re.fullmatch(
                r" *(- )?[\w-]+:( [^\s&*%@`].*)?| *- [^\s:]+(:\S+|: .+)?", line
            ) or (re.fullmatch(r' *- "[^"]+"', line)), line


def test_the_unit_starts_and_reloads_the_service() -> None:
    unit = configparser.RawConfigParser(strict=False)  # systemd has keys more than once
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(block(RECIPES, "ini"))
    assert unit["Service"]["ExecStart"].endswith("-m app")
    assert "-HUP" in unit["Service"]["ExecReload"]
    assert unit["Service"]["KillMode"] == "mixed"  # the parent tells its workers itself


def test_the_examples_of_log_lines_are_true(weights_path: Path) -> None:
    fields = {
        name
        for cell in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", OPERATIONS.read_text("utf-8"), re.M)
        for name in re.findall(r"\w+", cell)
    }
    example = json.loads(block(OPERATIONS, "json"))
    (text,) = [b.text for b in blocks(OPERATIONS) if " INFO request_id=" in b.text]
    with running(PYTHON_M_APP, weights=weights_path, workers=1, log="json") as server:
        httpx.post(f"{server.url}/predict", content=EXAMPLE.read_bytes())
        httpx.post(f"{server.url}/predict", content=b"no picture")
        server.stop()
        answered, refused = (
            json.loads(line) for line in server.log.splitlines() if '"request_id"' in line
        )
    assert list(answered) == list(example)
    assert re.findall(r"(\w+)=", text) == list(example)[2:]
    assert refused.keys() | answered.keys() <= fields
    assert example["received_bytes"] == EXAMPLE.stat().st_size


@pytest.fixture(scope="module")
def small_server(weights_path: Path) -> Iterator[Server]:
    """A server that takes on one request at a time."""
    with running(PYTHON_M_APP, weights=weights_path, workers=1, queue=1) as server:
        yield server


def run_against(server: Server, command: list[str], **environment: str) -> str:
    """Run the command while the server is busy with other uploads, which then go away; what
    it prints."""
    refused = " path=/predict status=503 "
    before = server.log.count(refused)
    with ExitStack() as others:

        def upload() -> None:
            other = others.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            other.sendall(b"POST /explain HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx")

        upload()
        program = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        while server.log.count(refused) == before:
            assert program.poll() is None, "it was answered at once"
            time.sleep(0.05)
            upload()  # again and again: a slow one leaves its place to others
    printed, _ = program.communicate(timeout=60)
    assert program.returncode in (0, 1), printed
    return printed


@pytest.fixture(scope="module")
def label(small_server: Server) -> str:
    answer = httpx.post(f"{small_server.url}/predict", content=EXAMPLE.read_bytes())
    return str(answer.json()["label"])


def at(server: Server, text: str) -> str:
    assert DEFAULT_SERVICE in text
    return text.replace(DEFAULT_SERVICE, server.url)


def test_the_camera_script_in_python_waits_and_answers(
    small_server: Server, tmp_path: Path, label: str
) -> None:
    script = tmp_path / "look.py"
    script.write_text(block(RECIPES, "python", "look.py"), "utf-8")
    command = [sys.executable, str(script), EXAMPLE.as_uri()]
    printed = run_against(small_server, command, SERVICE=small_server.url)
    assert re.fullmatch(r"[\w ,]+ \([01]\.\d{3}\)\n", printed)
    status = subprocess.run(
        command, env=os.environ | {"SERVICE": small_server.url}, capture_output=True, check=False
    ).returncode
    assert status == (0 if label == "cat" else 1)


def test_the_camera_script_in_python_tells_a_refusal_from_no_cat(
    small_server: Server, tmp_path: Path
) -> None:
    script = tmp_path / "look.py"
    script.write_text(block(RECIPES, "python", "look.py"), "utf-8")
    done = subprocess.run(
        [sys.executable, str(script), (REPOSITORY / "LICENSE").as_uri()],
        env=os.environ | {"SERVICE": small_server.url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "not-a-picture" in done.stderr


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_the_camera_script_with_curl_waits_and_answers(
    small_server: Server, tmp_path: Path, label: str
) -> None:
    camera = tmp_path / "ffmpeg"
    camera.write_text(f'#!/bin/sh\ncat "{EXAMPLE}"\n', "utf-8")
    camera.chmod(0o755)
    script = f"set -eu -o pipefail\n{block(RECIPES, 'bash', 'ffmpeg')}"
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-c", script]
    printed = run_against(small_server, command, SERVICE=small_server.url, PATH=path)
    assert json.loads(printed[printed.rindex('{"cat_probability') :])["label"] == label


def test_the_client_in_python_waits_and_answers(small_server: Server, label: str) -> None:
    code = at(small_server, block(RECIPES, "python", "httpx.Client"))
    assert run_against(small_server, [sys.executable, "-c", code]).strip() == label


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_the_client_in_javascript_waits_and_answers(small_server: Server, label: str) -> None:
    code = at(small_server, block(RECIPES, "javascript"))
    read = f"require('fs').readFileSync({json.dumps(str(EXAMPLE))})"
    call = f"\nclassify({read}).then((answer) => console.log(answer.label));"
    assert run_against(small_server, ["node", "-e", code + call]).strip() == label


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_home_assistants_command_waits_and_answers(small_server: Server, label: str) -> None:
    setup = block(RECIPES, "yaml", "shell_command:\n")
    (command,) = re.findall(r"is_it_a_cat: >-\n((?: {4}.*\n)+)", setup)
    words = " ".join(command.split())
    for shown, ours in {
        "/config/snapshots/door.jpg": str(EXAMPLE),
        "http://192.168.1.10:8000": small_server.url,
    }.items():
        assert shown in words
        words = words.replace(shown, ours)
    printed = run_against(small_server, ["sh", "-c", words])
    assert json.loads(printed[printed.rindex('{"cat_probability') :])["label"] == label


def test_nothing_else_in_these_pages_could_run() -> None:
    """Whoever adds a block of code adds a test that runs it."""
    expected: Mapping[str, int] = {"bash": 1, "python": 2, "javascript": 1, "sh": 0}
    for language, count in expected.items():
        assert sum(b.language == language for page in BOTH for b in blocks(page)) == count
