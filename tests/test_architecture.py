"""The rooms: app → model ← training, and nothing else."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from tests.data_folder import REPOSITORY

ROOMS = {  # room → the rooms it may import
    "app": {"app", "model"},
    "model": {"model"},
    "training": {"training", "model"},
}


UNIMPORTED = {  # runtime dependency → why it is one though neither app nor model imports it
    "h11": "uvicorn's parser, held at a release without known holes",
    "uvloop": "uvicorn's event loop where it is installed",
}


def declared_packages(room: str) -> set[str]:
    """The distributions that a room may import: what is installed where it runs.

    The image holds app and model, so both live on the runtime dependencies and the extras.
    """
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    declared: list[str] = list(project["project"]["dependencies"])
    for extra in project["project"]["optional-dependencies"].values():
        declared += extra
    if room == "training":
        declared += project["dependency-groups"]["training"]
    return {canonicalize_name(Requirement(line).name) for line in declared}


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Each import of the source, wherever it stands, as its line and its top-level name.

    Relative imports cannot leave their top-level package and are left out.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield node.lineno, alias.name.partition(".")[0]
            case ast.ImportFrom(module=str(module), level=0):
                yield node.lineno, module.partition(".")[0]
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield node.lineno, module.partition(".")[0]


def forbidden_imports(root: Path) -> list[str]:
    """The imports in the rooms under root that break the rule, as `file:line imports name`."""
    distributions = packages_distributions()
    found = []
    for room, rooms in ROOMS.items():
        declared = declared_packages(room)
        for path in sorted((root / room).rglob("*.py")):
            for line, name in imports(path.read_text(encoding="utf-8")):
                providers = distributions.get(name, [name])
                if name in rooms or (
                    name not in ROOMS
                    and (
                        name in sys.stdlib_module_names
                        or any(canonicalize_name(provider) in declared for provider in providers)
                    )
                ):
                    continue
                found.append(f"{path.relative_to(root)}:{line} imports {name}")
    return found


def unused_dependencies(root: Path) -> set[NormalizedName]:
    """The runtime dependencies that neither app nor model under root imports."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    distributions = packages_distributions()
    imported = {
        canonicalize_name(provider)
        for room in ("app", "model")
        for path in (root / room).rglob("*.py")
        for _, name in imports(path.read_text(encoding="utf-8"))
        for provider in distributions.get(name, [name])
    }
    declared = project["project"]["dependencies"]
    return {canonicalize_name(Requirement(line).name) for line in declared} - imported


def test_rooms_import_only_what_they_may() -> None:
    assert forbidden_imports(REPOSITORY) == []


def test_what_the_service_depends_on_is_imported_by_it() -> None:
    assert unused_dependencies(REPOSITORY) == UNIMPORTED.keys()


def test_a_dependency_that_nothing_imports_is_found(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "a.py").write_text("import numpy\nfrom PIL import Image")
    unused = unused_dependencies(tmp_path)
    assert "safetensors" in unused
    assert not {"numpy", "pillow"} & unused


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("app/routes.py", "import training.data", "app/routes.py:1 imports training"),
        ("app/a/b.py", "def f():\n    from training import x", "app/a/b.py:2 imports training"),
        ("app/c.py", "import_module('training.x')", "app/c.py:1 imports training"),
        ("app/plot.py", "import matplotlib.pyplot", "app/plot.py:1 imports matplotlib"),
        ("app/test.py", "from tests.data_folder import x", "app/test.py:1 imports tests"),
        ("model/web.py", "from app.main import app", "model/web.py:1 imports app"),
        ("model/h.py", "if 1:\n    import h5py", "model/h.py:2 imports h5py"),
        ("training/t.py", "import os, app", "training/t.py:1 imports app"),
        ("training/t.py", "import pytest", "training/t.py:1 imports pytest"),
        ("training/t.py", "from benchmarks import x", "training/t.py:1 imports benchmarks"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, file: str, source: str, expected: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source, encoding="utf-8")
    assert forbidden_imports(tmp_path) == [expected]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "app/routes.py",
            "import json\nfrom fastapi import FastAPI\nfrom model.classifier import x",
        ),
        ("app/a/b.py", "from . import c\nfrom ..d import e"),
        ("model/heic.py", "def f():\n    import pillow_heif"),
        ("training/data.py", "import h5py, numpy\nfrom model import network"),
    ],
)
def test_an_allowed_import_is_let_through(tmp_path: Path, file: str, source: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source, encoding="utf-8")
    assert forbidden_imports(tmp_path) == []
