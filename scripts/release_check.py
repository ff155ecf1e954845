"""What is missing before a release: `make release-check`.

A release has one number in five places: the changelog's newest release, `app.__version__`,
pyproject.toml, the image's label and a tag of this commit. Nothing may be uncommitted, and nothing
left under the changelog's "Unreleased". Exit status 1 where something is missing.
"""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from app import __version__

ROOT = Path(__file__).parents[1]
_LABEL = re.compile(r'org\.opencontainers\.image\.version="([^"]*)"')
_RELEASE = re.compile(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", re.MULTILINE)


def missing(root: Path, version: str) -> Iterator[str]:
    """A sentence for each thing that a release of the files under `root` still lacks.

    version: that of the service, X.Y.Z.
    """
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = _RELEASE.search(changelog)
    if not newest or newest[1] != version:
        found = newest[1] if newest else "no release"
        yield f"CHANGELOG.md: its newest is {found}; add ## [{version}] - YYYY-MM-DD."
    waiting = changelog.split("## [Unreleased]", 1)[-1].split("\n## ", 1)[0]
    if "## [Unreleased]" not in changelog or waiting.strip():
        yield "CHANGELOG.md: move what stands under [Unreleased] to a release; keep the heading."
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if project["version"] != version:
        yield f"pyproject.toml: its version is {project['version']}; app/__init__.py has {version}."
    label = _LABEL.search((root / "Dockerfile").read_text(encoding="utf-8"))
    if not label or label[1] != version:
        found = label[1] if label else "missing"
        yield f"Dockerfile: the label of the version is {found}; app/__init__.py has {version}."


def missing_in_git(root: Path, version: str) -> Iterator[str]:
    """The same for the repository."""
    if _git(root, "status", "--porcelain"):
        yield "git: there are changes that are not committed."
    if f"v{version}" not in _git(root, "tag", "--points-at", "HEAD").split():
        yield f"git: this commit has no tag; make one with git tag --annotate v{version}."


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    problems = [*missing(ROOT, __version__), *missing_in_git(ROOT, __version__)]
    print(*problems, sep="\n") if problems else print(f"{__version__} can be released.")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
