"""The rooms: app → model ← training, nothing else, and no circle of imports in any of them."""

import ast
import graphlib
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.data_folder import REPOSITORY
from tests.pictures import write_files

ROOMS = {"app": {"app", "model"}, "model": {"model"}, "training": {"training", "model"}}
UNIMPORTED = {  # runtime dependency → why it is one though neither app nor model imports it
    "h11": "uvicorn's parser, held at a release without known holes",
    "uvloop": "uvicorn's event loop where it is installed",
}
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
DEPENDENCIES: list[str] = PROJECT["project"]["dependencies"]
EXTRAS = [*chain.from_iterable(PROJECT["project"]["optional-dependencies"].values())]
TRAINING: list[str] = PROJECT["dependency-groups"]["training"]
PROVIDERS = packages_distributions()  # name → the distributions that it may come from


def distributions(lines: Iterable[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in lines}


def providers(name: str) -> set[str]:
    return {canonicalize_name(each) for each in PROVIDERS.get(name, [name])}


def imports(source: str) -> Iterator[tuple[int, str]]:
    """The line and the full name of each thing that is imported, wherever the import stands."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)


def forbidden_imports(root: Path) -> list[str]:
    """The imports in the rooms under root that break the rule, as `file:line imports name`."""
    found = []
    for room, rooms in ROOMS.items():
        allowed = distributions([*DEPENDENCIES, *EXTRAS, *(TRAINING if room == "training" else [])])
        for path in sorted((root / room).rglob("*.py")):
            for line, full_name in imports(path.read_text(encoding="utf-8")):
                name = full_name.partition(".")[0]
                known = name in sys.stdlib_module_names or providers(name) & allowed
                if not (name in rooms if name in ROOMS else known):
                    found.append(f"{path.relative_to(root)}:{line} imports {name}")
    return found


def circle_of_imports(root: Path) -> list[str]:
    """Modules of the rooms under root of which each imports the one before; empty for none."""
    modules = {
        ".".join(path.relative_to(root).with_suffix("").parts): path.read_text(encoding="utf-8")
        for room in ROOMS
        for path in (root / room).rglob("*.py")
    }
    graph = {}
    for module, source in modules.items():
        names = {name for _, name in imports(source)}
        names |= {name.rpartition(".")[0] for name in names}  # of `from module import name`
        graph[module] = names & modules.keys() - {module}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_rooms_import_only_what_they_may() -> None:
    assert forbidden_imports(REPOSITORY) == []


def test_no_room_imports_in_circles() -> None:
    assert circle_of_imports(REPOSITORY) == []


def test_what_the_service_depends_on_is_imported_by_it() -> None:
    sources = [*(REPOSITORY / "app").rglob("*.py"), *(REPOSITORY / "model").rglob("*.py")]
    names = {name.partition(".")[0] for path in sources for _, name in imports(path.read_text())}
    imported = {distribution for name in names for distribution in providers(name)}
    assert distributions(DEPENDENCIES) - imported == UNIMPORTED.keys()


def test_forbidden_imports_and_circles_are_found(tmp_path: Path) -> None:
    files = {
        "app/a.py": b"import json\ndef f():\n    from training import x",
        "model/h.py": b"if 1:\n    import h5py",
        "training/t.py": b"import os, app, h5py\nfrom training import u",
        "training/u.py": b"def f():\n    from training.t import x",
    }
    assert forbidden_imports(write_files(tmp_path, files)) == [
        "app/a.py:3 imports training",
        "model/h.py:2 imports h5py",
        "training/t.py:1 imports app",
    ]
    assert {*circle_of_imports(tmp_path)} == {"training.t", "training.u"}


FRONT = """
import sys
from pathlib import Path
from starlette.testclient import TestClient
import app.server
from app.main import create_app
from app.settings import Settings

weights, collect = map(Path, sys.argv[1:])
with TestClient(create_app(Settings(weights=weights, collect=collect, workers=1))) as client:
    picture = Path("examples/cat.jpg").read_bytes()
    length = {"Inference-Header-Content-Length": "0"}
    client.post("/v2/models/cat/infer", content=picture, headers=length).raise_for_status()
    for path in ("/predict", "/explain", "/feedback?label=cat"):
        client.post(path, files={"file": picture}).raise_for_status()
    for path in ("/", "/docs", "/health", "/metrics", "/model", "/openapi.json", "/v2/models/cat"):
        client.get(path).raise_for_status()
heavy = {"numpy", "PIL", "simplejpeg", "safetensors", "app.work"} & sys.modules.keys()
assert not heavy, heavy
"""


def test_the_front_loads_nothing_that_decodes_pictures(weights_path: Path, tmp_path: Path) -> None:
    """Neither at its start nor with what it answers: its workers do all that."""
    command = [sys.executable, "-c", FRONT, str(weights_path), str(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, check=True)
