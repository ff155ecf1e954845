"""The locks: complete, free of this or that machine's settings, installable where people run it;
and what a release needs."""

import re
import subprocess
import sys
from pathlib import Path
from shutil import copy

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from app import __version__
from scripts.release_check import missing, missing_in_git
from tests.data_folder import REPOSITORY
from tests.test_architecture import DEPENDENCIES, PROJECT

FOLDER = REPOSITORY / "requirements"
LOCKS = sorted(FOLDER.glob("*.txt"))
RUNTIME = FOLDER / "runtime.txt"
GROUPS: dict[str, list[str]] = PROJECT["dependency-groups"]
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]


def versions(lock: Path) -> dict[str, Version]:
    """Package name → the version that the lock holds."""
    text = lock.read_text(encoding="utf-8")
    pins = re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", text, re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in pins}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_has_hashes_the_versions_of_the_service_and_no_address(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    assert not re.search(r"://|--(extra-)?index|--find-links|file:|(^|\s)[./~]*/\w", text)
    for entry in re.sub(r"#.*", "", text).replace("\\\n", " ").splitlines():
        assert not entry.strip() or re.fullmatch(
            r"[a-z0-9._-]+==[^ ;]+( ;[^-]+?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*", entry
        ), f"{lock.name} holds an option, or a package without hashes: {entry[:100]}"
    locked = versions(lock)
    for name, version in versions(RUNTIME).items():
        assert locked.get(name) == version, f"{name} differs between {lock.name} and runtime.txt"


@pytest.mark.parametrize(
    ("lock", "groups"),
    [
        ("runtime", []),
        ("development", ["training", "test", "dev"]),
        ("heic", ["heic"]),
        ("browser", ["browser"]),
        ("fuzz", ["fuzz"]),
        ("manifests", ["test", "manifests"]),
        ("benchmarks", ["training", "benchmarks"]),
        ("ray", ["test", "ray"]),
    ],
)
def test_a_lock_holds_what_the_project_declares(lock: str, groups: list[str]) -> None:
    locked = versions(FOLDER / f"{lock}.txt")
    declared = [line for group in groups for line in (GROUPS | EXTRAS)[group]]
    for requirement in map(Requirement, DEPENDENCIES + declared):
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{requirement}: run `make lock`"
        assert requirement.specifier.contains(locked[name]), f"{requirement}: run `make lock`"


@pytest.mark.network
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_runtime_dependencies_have_wheels(machine: str, python: str, tmp_path: Path) -> None:
    # glibc 2.28 is older than that of any Debian, Ubuntu or Raspberry Pi OS still maintained.
    tags = [f"{glibc}_{machine}" for glibc in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes", "--requirement", str(RUNTIME), "--dest", str(tmp_path)]
    command += ["--quiet", "--python-version", python, *(f"--platform={tag}" for tag in tags)]
    subprocess.run(command, timeout=300, check=True)
    windows = re.findall(r"^.*; sys_platform == 'win32'", RUNTIME.read_text("utf-8"), re.MULTILINE)
    assert len(list(tmp_path.glob("*.whl"))) == len(versions(RUNTIME)) - len(windows)


def test_a_release_has_one_version_everywhere_a_clean_commit_and_a_tag(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    for name in (places := ("CHANGELOG.md", "pyproject.toml", "Dockerfile")):
        copy(REPOSITORY / name, tmp_path)
    changelog = tmp_path / "CHANGELOG.md"
    released = re.sub(r"(?s)(## \[Unreleased\]\n).*?(?=\n## )", r"\1", changelog.read_text("utf-8"))
    changelog.write_text(released, "utf-8")
    assert list(missing(tmp_path, __version__)) == []
    assert [each.split(":")[0] for each in missing(tmp_path, "9.9.9")] == list(places)
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
