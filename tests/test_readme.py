"""What the documentation says is what the code does."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from starlette.testclient import TestClient

from app.errors import TYPES
from app.settings import settings_table
from tests.data_folder import REPOSITORY

README = REPOSITORY / "README.md"
PAGES = sorted(
    path
    for path in REPOSITORY.rglob("*.md")
    if not any(part.startswith(".") for part in path.relative_to(REPOSITORY).parts)
)
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")


class Block(NamedTuple):
    """A fenced code block."""

    page: Path
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```", TEXTS[page], re.M | re.S):
        yield Block(page, language, text)


class Command(NamedTuple):
    """A `$ command` of a console block, and the output printed below it."""

    words: tuple[str, ...]
    output: str


def commands(block: Block) -> Iterator[Command]:
    text = block.text.replace("\\\n", " ")
    for line, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.M):
        yield Command(tuple(shlex.split(line.partition("  #")[0])), output.strip())


BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [each for block in BLOCKS if block.language == "console" for each in commands(block)]
CURLS = [command for command in COMMANDS if command.words[0] == "curl"]
PYTHON = [*dict.fromkeys(command for command in COMMANDS if "-m" in command.words[:-1])]
MODEL = [each for each in PYTHON if each.words[each.words.index("-m") + 1] == "model"]


def joined(command: Command) -> str:
    return shlex.join(command.words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_what_a_page_names_exists(page: Path) -> None:
    text = TEXTS[page]
    for link in re.findall(r"\]\(([^)\s#]+)[^)]*\)|(?:src|href)=\"([^\"#]+)\"", text):
        target = link[0] or link[1]
        if not re.match(r"https?:|mailto:", target):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    code = re.findall(r"`[^`]+`|^\$ .*$", text, re.M)
    targets = {name for line in code for name in re.findall(r"\bmake ([a-z][a-z-]*)", line)}
    assert targets <= set(re.findall(r"^([\w-]+):", MAKEFILE, re.M))
    assert set(re.findall(r"\bCAT_[A-Z_]+\b", text)) <= settings_table().keys()
    for status, slug in re.findall(r"\b([45]\d\d) `([a-z-]+)`", text):
        assert TYPES[slug].status == int(status)


def test_the_readme_lists_every_setting_error_and_address(client: TestClient) -> None:
    rows = re.findall(r"^\| `(CAT_\w+)` \| (.*?) \| (.*?) \|$", TEXTS[README], re.M)
    assert rows == [(name, each.default, each.meaning) for name, each in settings_table().items()]
    rows = re.findall(r"^\| (\d{3}) \| `([\w-]+)` \|", TEXTS[README], re.M)
    assert sorted(rows) == sorted((str(each.status), each.slug) for each in TYPES.values())
    addresses = re.findall(r"^\| `(?:(GET|POST) )?(/[\w/]*)` \|", TEXTS[README], re.M)
    assert {"/predict", "/explain", "/model", "/health", "/metrics", "/v2", "/docs"} <= {
        path for _, path in addresses
    }
    for method, path in addresses:
        assert client.request(method or "GET", path).status_code in (200, 422)


def test_snippets_can_be_read_as_what_they_are() -> None:
    for block in BLOCKS:
        if block.language == "python":
            compile(block.text, block.page, "exec")
        if block.language in ("sh", "bash"):
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


@cache
def help_text(module: str, *subcommand: str) -> str:
    """What `python -m module [subcommand] --help` prints."""
    command = [sys.executable, "-m", module, *subcommand, "--help"]
    wide = os.environ | {"COLUMNS": "200"}
    return subprocess.run(
        command, cwd=REPOSITORY, env=wide, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


@pytest.mark.parametrize("command", PYTHON, ids=joined)
def test_options_of_python_commands_exist(command: Command) -> None:
    module, *arguments = command.words[command.words.index("-m") + 1 :]
    options = [word.partition("=")[0] for word in arguments if word.startswith("-")]
    if not (REPOSITORY / module).is_dir() or not options:  # pip and the like
        return
    # A subcommand has its own help; it stands in the list of the program's.
    first = "".join(arguments[:1])
    listed = re.search(rf"^\W+{re.escape(first)}( |$)", help_text(module), re.M)
    shown = help_text(module, *([first] if first and listed else []))
    for option in options:
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", shown), option


def assert_same_but_for_rounding(printed: str, shown: str) -> None:
    """Both texts are equal, where a number with decimals may differ by 0.002: processors differ in
    the last digits, and a page may show fewer."""
    number = r"(?<![\w.])(\d+\.\d+)(?![\w.])"
    printed_parts, shown_parts = re.split(number, printed), re.split(number, shown)
    assert printed_parts[::2] == shown_parts[::2]
    expected = [*map(float, printed_parts[1::2])]
    assert [*map(float, shown_parts[1::2])] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("command", CURLS, ids=joined)
def test_curl_commands_answer_as_shown(default_client: TestClient, command: Command) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--form", "-F", default="")
    parser.add_argument("--data-binary", default="")
    parser.add_argument("--header", "-H", action="append", default=[])
    parser.add_argument("--request", "-X")
    parser.add_argument("--silent", "-s", action="store_true")
    parser.add_argument("--output", "-o")
    parser.add_argument("url")
    curl = parser.parse_args(command.words[1:])
    name, _, path = curl.form.partition("=@")
    files = {name: (REPOSITORY / path).read_bytes()} if path else None
    sent = curl.data_binary.removeprefix("@")
    body = (REPOSITORY / sent).read_bytes() if sent else None
    headers = dict(header.split(": ", 1) for header in curl.header)
    method = curl.request or ("POST" if files or body else "GET")
    answer = default_client.request(method, curl.url, files=files, content=body, headers=headers)
    assert answer.is_success == ("problem" not in command.output), answer.text
    if command.output:
        shown = json.dumps(json.loads(command.output))
        assert_same_but_for_rounding(json.dumps(answer.json()), shown)


@pytest.mark.parametrize("command", [each for each in MODEL if each.output], ids=joined)
def test_the_model_command_prints_what_is_shown(command: Command) -> None:
    arguments = [sys.executable, *command.words[command.words.index("-m") :]]
    environment = {name: value for name, value in os.environ.items() if name[:4] != "CAT_"}
    done = subprocess.run(
        arguments, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    assert_same_but_for_rounding(done.stdout.strip(), command.output)


def test_the_figures_of_accuracy_are_those_of_the_evaluation() -> None:
    found = json.loads((REPOSITORY / "model" / "evaluation.json").read_text(encoding="utf-8"))
    text = " ".join(README.read_text(encoding="utf-8").split())
    sources = found["sources"]
    for each in (sources[name] for name in ("pets", "tiny", "web")):
        shown = f"| {each['roc_auc']:.3f} / {100 * each['balanced_accuracy']:.1f} % |"
        assert shown in text
    for each in (sources[name] for name in ("rooms", "wild")):
        assert f"| {100 * each['called_first']:.1f} % |" in text
    kinds = {each["kind"]: each for each in found["kinds"]["false"]}
    for name in ("rabbit", "small wild cats", "big cats", "foxes, wolves and raccoons"):
        assert f"({kinds[name]['wrong']} of {kinds[name]['pictures']})" in text
    (quarter,) = (r for r in found["changes"]["rows"] if "quarter" in r["change"])
    assert f"balanced accuracy is {quarter['balanced_accuracy']:.0%}".replace("%", " %") in text
