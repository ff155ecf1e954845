"""The number of a release is the same wherever it stands."""

import re
import subprocess
from pathlib import Path
from shutil import copy

from app import __version__
from scripts.release_check import missing, missing_in_git
from tests.data_folder import REPOSITORY

FILES = ("CHANGELOG.md", "pyproject.toml", "Dockerfile")


def test_a_release_has_one_version_everywhere_a_clean_commit_and_a_tag(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    for name in FILES:
        copy(REPOSITORY / name, tmp_path)
    changelog = tmp_path / "CHANGELOG.md"
    released = re.sub(r"(?s)(## \[Unreleased\]\n).*?(?=\n## )", r"\1", changelog.read_text("utf-8"))
    changelog.write_text(released, "utf-8")
    assert list(missing(tmp_path, __version__)) == []
    assert [each.split(":")[0] for each in missing(tmp_path, "9.9.9")] == list(FILES)
    changelog.write_text(released.replace("## [Unreleased]", "## [Unreleased]\n\n- More.\n"))
    assert any("[Unreleased]" in each for each in missing(tmp_path, __version__))

    git("init")
    git("commit", "--allow-empty", "--message", "one")
    said = " ".join(missing_in_git(tmp_path, "1.2.3"))
    assert "not committed" in said
    assert "v1.2.3" in said
    git("add", ".")
    git("commit", "--message", "two")
    git("tag", "v1.2.3")
    assert not list(missing_in_git(tmp_path, "1.2.3"))
