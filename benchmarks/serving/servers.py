"""The servers that are compared: how each is started, asked and read, at its best on all cores."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PEERS = Path(__file__).parent / "peers"
CORES = len(os.sched_getaffinity(0))
THIS = "this service"

Body = tuple[str, bytes]  # content type, bytes


def _raw(picture: bytes) -> Body:
    return "image/jpeg", picture


def _form(picture: bytes) -> Body:
    disposition = b'Content-Disposition: form-data; name="file"; filename="cat.jpg"'
    lines = (b"--B0undary", disposition, b"Content-Type: image/jpeg", b"", picture, b"--B0undary--")
    return "multipart/form-data; boundary=B0undary", b"\r\n".join((*lines, b""))


@dataclass(frozen=True)
class Server:
    """One row of the comparison.

    In the arguments and the variables, {port} is a free port, {folder} an empty folder, {weights}
    what the server reads its weights from, {bin} its interpreter's folder.
    """

    name: str
    arguments: tuple[str, ...]  # after the interpreter
    tree: Path | None = None  # a checkout of this project; None: a peer, with its own environment
    variables: Mapping[str, str] = field(default_factory=dict)
    path: str = "/predict"
    body: Callable[[bytes], Body] = _raw

    def interpreter(self, peers: Path | None) -> Path:
        """What runs the server; `peers` is the folder of the peers' environments."""
        if self.tree:
            own = self.tree / ".venv/bin/python"
            return own if own.exists() else Path(sys.executable)
        assert peers
        return peers / self.name / "bin/python"


def service(tree: Path, name: str = "") -> Server:
    """This project as it stands in a checkout, by default named for its commit."""
    if not name:
        command = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
        name = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    variables = {"CAT_WEIGHTS": "{weights}", "CAT_BIND_PORT": "{port}"}
    return Server(name, ("-m", "app"), tree=tree.absolute(), variables=variables)


_PACKAGE = "benchmarks.serving.peers"
_RECIPE = {
    "RECIPE_MODEL": "{weights}",
    "WORKERS": str(CORES),
    "PYTHONPATH": str(REPOSITORY),
    "PATH": f"{{bin}}:{os.environ['PATH']}",
    "OPENBLAS_NUM_THREADS": "1",
}
PEER_SERVERS = (
    Server(
        "fastapi",  # async handler, UploadFile, as tutorials have it
        (
            *("-m", "uvicorn", f"{_PACKAGE}.fastapi_service:app", "--port", "{port}"),
            *("--workers", str(CORES), "--no-access-log"),
        ),
        variables=_RECIPE,
        body=_form,
    ),
    Server(
        "litserve",  # a worker and an API server a core, fast_queue, no access log
        ("-m", f"{_PACKAGE}.litserve_service", "{port}", str(CORES)),
        variables=_RECIPE,
        body=_form,
    ),
    Server(
        "ray",  # a replica a core, optimised for throughput, behind HAProxy, no access log
        ("-m", f"{_PACKAGE}.ray_service", "{port}", str(CORES)),
        variables={
            **_RECIPE,
            "RAY_TMPDIR": "{folder}",
            "RAY_AUTH_MODE": "disabled",
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
        },
        path="/",
    ),
)


def prepare(folder: Path) -> None:
    """Make or complete the peers' environments; raises CalledProcessError after uv has said why."""
    for server in PEER_SERVERS:
        python = folder / server.name / "bin/python"
        print(f"{server.name}: {python.parent.parent}", flush=True)
        if not python.exists():
            _uv("venv", "--quiet", "--python", sys.executable, str(python.parent.parent))
        lock = PEERS / f"{server.name}.txt"
        _uv("pip", "install", "--quiet", "--python", str(python), "--requirement", str(lock))


def _uv(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "uv", *arguments], check=True)
