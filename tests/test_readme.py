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

from app.main import create_app
from app.problems import KINDS
from app.settings import Settings, settings_table
from model.preprocessing import DEFAULT_LIMITS
from tests.data_folder import REPOSITORY

README = REPOSITORY / "README.md"
PAGES = sorted(
    path
    for path in REPOSITORY.rglob("*.md")
    if not any(part.startswith(".") for part in path.relative_to(REPOSITORY).parts)
)


def page_name(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


class Block(NamedTuple):
    """A fenced code block."""

    page: str
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield Block(page_name(page), language, body)


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Each `$ command` of a console block and the output printed below it."""
    text = block.text.replace("\\\n", " ")
    for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
        yield command.partition("  #")[0].strip(), output.strip()


BLOCKS = [block for page in PAGES for block in blocks(page)]
CONSOLE = [
    (block.page, command, output)
    for block in BLOCKS
    if block.language == "console"
    for command, output in commands(block)
]


def makefile_recipes() -> dict[str, list[str]]:
    """Target → the commands that make echoes for it, variables filled in."""
    text = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    variables = dict(re.findall(r"^(\w+) [:?]?= (.*)$", text, re.MULTILINE)) | {"LOCK_OPTIONS": ""}
    text = re.sub(r"\$\((\w+)\)", lambda match: variables.get(match[1], match[0]), text)
    rules = re.findall(r"^(\.?\w[\w./-]*):(?!=).*\n((?:\t.*\n)*)", text, re.MULTILINE)
    recipes = {
        target: [line.strip() for line in recipe.splitlines() if not line.startswith("\t@")]
        for target, recipe in rules
        if target != ".PHONY"
    }
    recipes["setup"] += recipes.pop(variables["STAMP"])  # the work that `setup` stands for
    return recipes


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_make_target_named_exists(page: Path) -> None:
    code = re.findall(r"`[^`]+`|^\$ .*$", page.read_text(encoding="utf-8"), re.MULTILINE)
    named = {target for line in code for target in re.findall(r"\bmake ([a-z][a-z-]*)", line)}
    assert named <= makefile_recipes().keys()


def test_the_readme_shows_every_target_and_its_plain_commands() -> None:
    text = README.read_text(encoding="utf-8")
    for target, recipe in makefile_recipes().items():
        assert f"`make {target}`" in text
        assert len(recipe) <= 3, f"make {target} is more than three plain commands"
        for command in recipe:
            assert f"`{command}`" in text, f"the README does not show what make {target} runs"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_to_files_resolve(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text)
    for link in (markdown or html for markdown, html in links):
        if not re.match(r"https?:|mailto:|#", link):
            assert (page.parent / link.partition("#")[0]).exists(), f"{page.name} links to {link}"


def test_python_snippets_compile() -> None:
    for block in BLOCKS:
        if block.language == "python":
            compile(block.text, block.page, "exec")


@cache
def help_text(module: str, *subcommand: str) -> str:
    """What `python -m module [subcommand] --help` prints."""
    command = [sys.executable, "-m", module, *subcommand, "--help"]
    answer = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.parametrize(
    ("page", "command"),
    [(page, command) for page, command, _ in CONSOLE if " -m " in command],
)
def test_options_of_python_commands_exist(page: str, command: str) -> None:
    words = shlex.split(command)
    module, *arguments = words[words.index("-m") + 1 :]
    if not (REPOSITORY / module).is_dir():  # pip and the like
        return
    options = [word.partition("=")[0] for word in arguments if word.startswith("-")]
    # A subcommand has its own help; it stands in the list of the program's.
    first = "".join(arguments[:1])
    listed = re.search(rf"^ +{re.escape(first)}$|^ +{re.escape(first)} ", help_text(module), re.M)
    chosen = [first] if first and listed else []
    for option in options:
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", help_text(module, *chosen)), (
            f"{page}: {command}"
        )


def test_shell_snippets_parse() -> None:
    snippets = [command for _, command, _ in CONSOLE]
    snippets += [block.text for block in BLOCKS if block.language in {"sh", "bash"}]
    for text in snippets:
        answer = subprocess.run(
            ["bash", "-n"], input=text, capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stderr


def test_the_readme_lists_every_setting_with_its_default() -> None:
    rows = re.findall(
        r"^\| `(CAT_\w+)` \| (.*?) \| (.*?) \|$", README.read_text("utf-8"), re.MULTILINE
    )
    assert rows == [
        (name, setting.default, setting.meaning) for name, setting in settings_table().items()
    ]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_setting_named_exists(page: Path) -> None:
    named = set(re.findall(r"\bCAT_[A-Z_]+\b", page.read_text("utf-8")))
    assert named <= settings_table().keys()


def test_the_readme_lists_every_problem_with_its_status() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `([\w-]+)` \|", README.read_text("utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted((str(kind.status), kind.slug) for kind in KINDS.values())


def test_the_readme_states_the_limit_of_a_side() -> None:
    assert README.read_text("utf-8").count(f"{DEFAULT_LIMITS.max_side:,}") == 2


def assert_same_but_for_rounding(printed: str, shown: str, where: str) -> None:
    """Both texts are equal, where a number with decimals may differ by 0.002: processors differ in
    the last digits, and a page may show fewer."""
    number = r"(?<![\w.])(\d+\.\d+)(?![\w.])"
    printed_parts, shown_parts = re.split(number, printed), re.split(number, shown)
    assert printed_parts[::2] == shown_parts[::2], where
    assert [*map(float, shown_parts[1::2])] == pytest.approx(
        [*map(float, printed_parts[1::2])], abs=2e-3
    ), where


CURLS = [
    (page, command, output) for page, command, output in CONSOLE if command.startswith("curl ")
]


@pytest.mark.parametrize(("page", "command", "output"), CURLS, ids=[row[1] for row in CURLS])
def test_curl_commands_answer_as_shown(page: str, command: str, output: str) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--form", "-F", action="append", default=[])
    parser.add_argument("--data-binary")
    parser.add_argument("--header", "-H", action="append", default=[])
    parser.add_argument("--request", "-X")
    parser.add_argument("--silent", "-s", action="store_true")
    parser.add_argument("--output", "-o")
    parser.add_argument("url")
    curl = parser.parse_args(shlex.split(command)[1:])

    files = {}
    for field in curl.form:
        name, _, path = field.partition("=@")
        files[name] = (REPOSITORY / path).read_bytes()
    body = (
        (REPOSITORY / curl.data_binary.removeprefix("@")).read_bytes() if curl.data_binary else None
    )
    headers = dict(header.split(": ", 1) for header in curl.header)
    method = curl.request or ("POST" if files or body else "GET")
    with TestClient(create_app(Settings()), base_url="http://127.0.0.1:8000") as client:
        answer = client.request(method, curl.url, files=files, content=body, headers=headers)
    assert answer.is_success == ("problem" not in output), f"{page}: {command}: {answer.text}"
    if output:
        assert_same_but_for_rounding(
            json.dumps(answer.json()), json.dumps(json.loads(output)), f"{page}: {command}"
        )


MODEL_COMMANDS = [row for row in CONSOLE if " -m model" in row[1] and row[2]]


@pytest.mark.parametrize(
    ("page", "command", "output"), MODEL_COMMANDS, ids=[row[1] for row in MODEL_COMMANDS]
)
def test_the_model_command_prints_what_is_shown(page: str, command: str, output: str) -> None:
    words = shlex.split(command)
    arguments = [sys.executable, *words[words.index("-m") :]]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CAT_")}
    answer = subprocess.run(
        arguments,
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert_same_but_for_rounding(answer.stdout.strip(), output, f"{page}: {command}")
