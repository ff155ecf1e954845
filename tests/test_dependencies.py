"""The locks: complete, free of this or that machine's settings, installable where people run it."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.data_folder import REPOSITORY

LOCKS = sorted((REPOSITORY / "requirements").glob("*.txt"))
RUNTIME = REPOSITORY / "requirements/runtime.txt"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
GROUPS = PROJECT["dependency-groups"]
EXTRAS = PROJECT["project"]["optional-dependencies"]


def versions(lock: Path) -> dict[str, Version]:
    """Package name → the version that the lock holds."""
    text = lock.read_text(encoding="utf-8")
    pins = re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", text, re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in pins}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_locked_package_has_hashes(lock: Path) -> None:
    text = re.sub(r"#.*", "", lock.read_text(encoding="utf-8")).replace("\\\n", " ")
    for entry in text.splitlines():
        assert not entry.strip() or re.fullmatch(
            r"[a-z0-9._-]+==[^ ;]+( ;[^-]+?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*", entry
        ), f"{lock.name} holds an option, an address or a package without hashes: {entry[:100]}"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_names_no_index_host_and_no_path(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    assert not re.search(r"://|--(extra-)?index|--find-links|file:|(^|\s)[./~]*/\w", text)


@pytest.mark.parametrize(
    ("lock", "declared"),
    [
        ("runtime", []),
        ("development", [*GROUPS["training"], *GROUPS["test"], *GROUPS["dev"]]),
        ("heic", EXTRAS["heic"]),
        ("browser", GROUPS["browser"]),
        ("fuzz", GROUPS["fuzz"]),
        ("manifests", [*GROUPS["test"], *GROUPS["manifests"]]),
        ("benchmarks", [*GROUPS["training"], *GROUPS["benchmarks"]]),
        ("ray", [*GROUPS["test"], *GROUPS["ray"]]),
    ],
)
def test_a_lock_holds_what_the_project_declares(lock: str, declared: list[str]) -> None:
    locked = versions(REPOSITORY / f"requirements/{lock}.txt")
    for line in PROJECT["project"]["dependencies"] + declared:
        requirement = Requirement(line)
        assert canonicalize_name(requirement.name) in locked, f"{line}: run `make lock`"
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), (
            f"{lock}.txt does not fit {line}: run `make lock`"
        )


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_what_is_tested_is_what_runs(lock: Path) -> None:
    locked = versions(lock)
    for name, version in versions(RUNTIME).items():
        assert locked.get(name) == version, f"{name} differs between {lock.name} and runtime.txt"


@pytest.mark.parametrize("group", [*GROUPS.values(), *EXTRAS.values()])
def test_direct_dependencies_have_both_bounds(group: list[str]) -> None:
    for line in group + PROJECT["project"]["dependencies"]:
        operators = {specifier.operator for specifier in Requirement(line).specifier}
        assert operators == {">=", "<"}, line


def download(lock: Path, machine: str, python: str, folder: Path) -> str:
    """Download the locked wheels for that machine into folder, hashes checked.

    Returns what pip complains of, empty if all is well.
    """
    # glibc 2.28 is older than that of any Debian, Ubuntu or Raspberry Pi OS still maintained.
    tags = [f"{glibc}_{machine}" for glibc in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes", "--requirement", str(lock), "--dest", str(folder), "--quiet"]
    command += ["--python-version", python, *(f"--platform={tag}" for tag in tags)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return answer.stderr if answer.returncode else ""


@pytest.mark.network
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_runtime_dependencies_have_wheels(machine: str, python: str, tmp_path: Path) -> None:
    assert download(RUNTIME, machine, python, tmp_path) == ""
    windows = re.findall(r"^.*; sys_platform == 'win32'", RUNTIME.read_text("utf-8"), re.MULTILINE)
    assert len(list(tmp_path.glob("*.whl"))) == len(versions(RUNTIME)) - len(windows)


@pytest.mark.network
@pytest.mark.parametrize(
    ("doctored", "complaint"),
    [
        (lambda lock: re.sub("[0-9a-f]{64}", "0" * 64, lock), "DO NOT MATCH THE HASHES"),
        (lambda lock: lock.replace("numpy==2", "numpy==1"), "No matching distribution"),
    ],
    ids=["other hashes", "other version"],
)
def test_a_missing_wheel_is_found(
    doctored: Callable[[str], str], complaint: str, tmp_path: Path
) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(doctored(RUNTIME.read_text(encoding="utf-8")), encoding="utf-8")
    assert complaint in download(lock, "aarch64", "3.12", tmp_path)
