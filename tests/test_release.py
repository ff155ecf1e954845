"""The number of a release is the same wherever it stands."""

import re
import subprocess
from pathlib import Path
from shutil import copy

import pytest

from app import __version__
from scripts.release_check import missing, missing_in_git
from tests.data_folder import REPOSITORY

FILES = ("CHANGELOG.md", "pyproject.toml", "Dockerfile")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in FILES:
        copy(REPOSITORY / name, tmp_path)
    return tmp_path


def test_the_version_is_the_same_everywhere(files: Path) -> None:
    left = [each for each in missing(files, __version__) if "Unreleased" not in each]
    assert left == []


def test_every_place_with_another_version_is_named(files: Path) -> None:
    said = list(missing(files, "9.9.9"))
    assert [each.split(":")[0] for each in said if "Unreleased" not in each] == list(FILES)


def test_changes_that_belong_to_no_release_are_named(files: Path) -> None:
    changelog = files / "CHANGELOG.md"
    text = re.sub(r"## \[Unreleased\]", "## [Unreleased]\n\n- More.\n", changelog.read_text())
    changelog.write_text(text)
    assert any("[Unreleased]" in each for each in missing(files, __version__))


def test_a_release_is_a_clean_commit_with_a_tag(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "--message", "one")
    (tmp_path / "new").touch()
    said = " ".join(missing_in_git(tmp_path, "1.2.3"))
    assert "not committed" in said
    assert "v1.2.3" in said
    (tmp_path / "new").unlink()
    git("tag", "v1.2.3")
    assert not list(missing_in_git(tmp_path, "1.2.3"))
