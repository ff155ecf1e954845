"""An environment for each peer, with the versions that stand in `peers/NAME.txt`."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.serving.processes import environment
from benchmarks.serving.servers import PEERS, REPOSITORY, Server

NAMES = tuple(sorted(file.stem for file in PEERS.glob("*.txt")))
_SHOWN = ("fastapi", "litserve", "bentoml", "mlserver", "ray", "uvicorn")
_SHARED = ("numpy", "pillow", "onnxruntime")
_VERSIONS = """
import json, platform, sys
from importlib.metadata import PackageNotFoundError, version
found = {"Python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


class NotPrepared(RuntimeError):
    """An environment that is missing. The message says how to make it."""


def prepare(folder: Path, python: str) -> None:
    """Make or complete the environments; raises CalledProcessError, after uv has said why."""
    for name in NAMES:
        print(f"{name}: {folder / name}", flush=True)
        interpreter = folder / name / "bin/python"
        if not interpreter.exists():
            _uv("venv", "--quiet", "--python", python, str(folder / name))
        _uv(
            *("pip", "install", "--quiet", "--python", str(interpreter)),
            *("--requirement", str(PEERS / f"{name}.txt")),
        )


def _uv(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "uv", *arguments], check=True)


def check(folder: Path) -> None:
    """Raise NotPrepared unless every environment is there."""
    missing = [name for name in NAMES if not (folder / name / "bin/python").exists()]
    if missing:
        raise NotPrepared(
            f"{folder} lacks the environments {', '.join(missing)}:"
            f" make them with `python -m benchmarks.serving prepare {folder}`."
        )


def versions(server: Server, folder: Path) -> dict[str, str]:
    """What runs a server: Python and the packages that matter."""
    names = _SHOWN + _SHARED if server.environment else ("fastapi", "uvicorn", *_SHARED[:2])
    command = [str(server.interpreter(folder)), "-c", _VERSIONS, *names]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(answer.stdout)
    return found


def run_module(folder: Path, *arguments: str) -> str:
    """What a module of this package prints in the tutorial's environment, which can run all of
    the recipe."""
    answer = subprocess.run(
        [str(folder / "fastapi/bin/python"), "-m", *arguments],
        cwd=REPOSITORY,
        env=environment({}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return answer.stdout.strip()
