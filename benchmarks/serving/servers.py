"""The servers that are compared: how each is started, asked and read, at its best on all cores."""

import base64
import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
PEERS = Path(__file__).parent / "peers"
BOUNDARY = b"5ee1b2a9c0"
CORES = len(os.sched_getaffinity(0))

Body = tuple[str, bytes]  # content type, bytes


def raw(picture: bytes) -> Body:
    return "image/jpeg", picture


def form(picture: bytes) -> Body:
    head = b'Content-Disposition: form-data; name="file"; filename="cat.jpg"\r\n'
    parts = (b"--%b\r\n" % BOUNDARY, head, b"Content-Type: image/jpeg\r\n\r\n", picture)
    return (
        f"multipart/form-data; boundary={BOUNDARY.decode()}",
        b"".join(parts) + b"\r\n--%b--\r\n" % BOUNDARY,
    )


def inference_protocol(picture: bytes) -> Body:
    tensor = {
        "name": "image",
        "shape": [1],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(picture).decode()],
    }
    return "application/json", json.dumps({"inputs": [tensor]}).encode()


def _probability(answer: Any) -> float:
    return float(answer["cat_probability"])


@dataclass(frozen=True)
class Server:
    """One row of the comparison.

    In the command and the variables, {port} is a free port, {port2} and {port3} further ones,
    {weights} what this server reads its weights from, {folder} an empty folder of its own, {bin}
    the folder of the interpreter.
    """

    name: str
    setup: str  # in words
    arguments: tuple[str, ...]  # after the interpreter
    environment: str = ""  # of `prepare`; empty: this interpreter, with this project's locks
    variables: Mapping[str, str] = field(default_factory=dict)
    weights: str = "recipe"  # "recipe", "artifact" or "whole": keys of `Weights`
    path: str = "/predict"
    body: Callable[[bytes], Body] = raw
    probability: Callable[[Any], float] | None = _probability  # None: it has none to give
    health: str = ""

    def interpreter(self, environments: Path) -> Path:
        """What runs the server."""
        if self.environment:
            return environments / self.environment / "bin/python"
        return Path(sys.executable)

    def start(self, environments: Path, weights: Mapping[str, Path], folder: Path) -> "Start":
        """What starting it takes, on ports that are free now."""
        values = {"folder": str(folder), "weights": str(weights.get(self.weights, ""))}
        values |= zip(("port", "port2", "port3"), map(str, _free_ports(3)), strict=True)
        python = self.interpreter(environments)
        values["bin"] = str(python.parent)
        shared = {
            "PYTHONPATH": str(REPOSITORY),
            "PATH": f"{python.parent}:{os.environ['PATH']}",
            "OPENBLAS_NUM_THREADS": "1",  # for the peers; the service settles it by itself
        }
        variables = shared if self.environment else {"PYTHONPATH": str(REPOSITORY)}
        return Start(
            int(values["port"]),
            [str(python), *(each.format_map(values) for each in self.arguments)],
            {**variables, **{k: v.format_map(values) for k, v in self.variables.items()}},
        )

    def request(self, picture: bytes) -> bytes:
        """The whole HTTP/1.1 request for a picture."""
        content_type, body = self.body(picture)
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass(frozen=True)
class Start:
    """A command line, its variables, and the port that it will listen on."""

    port: int
    command: list[str]
    variables: dict[str, str]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


_OURS = {"CAT_WEIGHTS": "{weights}", "CAT_BIND_PORT": "{port}"}
_RECIPE = {"RECIPE_MODEL": "{weights}", "WORKERS": str(CORES)}
_PACKAGE = "benchmarks.serving.peers"
_UVICORN = ("-m", "uvicorn", "--port", "{port}")

OURS = Server(
    "ours",
    "`python -m app` with its defaults; the picture is the body",
    ("-m", "app"),
    variables=_OURS,
    weights="artifact",
    health="/health",
)
WHOLE = Server(
    "ours, whole decode",
    "the same, with weights whose preprocessing decodes every pixel, as the peers do",
    ("-m", "app"),
    variables=_OURS,
    weights="whole",
)
PEER_SERVERS = (
    Server(
        "FastAPI, tutorial",
        f"async handler, UploadFile; uvicorn --workers {CORES} --no-access-log",
        (*_UVICORN, "--workers", str(CORES), "--no-access-log", f"{_PACKAGE}.fastapi_service:app"),
        environment="fastapi",
        variables=_RECIPE,
        body=form,
    ),
    Server(
        "LitServe",
        f"workers_per_device={CORES}, num_api_servers={CORES}, fast_queue, no access log; form",
        ("-m", f"{_PACKAGE}.litserve_service", "{port}", str(CORES)),
        environment="litserve",
        variables=_RECIPE,
        body=form,
        health="/health",
    ),
    Server(
        "BentoML",
        f"workers={CORES}, threads=2, no access log, no metrics; the picture is the body",
        (
            *("-m", "bentoml", "serve", f"{_PACKAGE}.bentoml_service:Cat"),
            *("--host", "127.0.0.1", "--port", "{port}"),
        ),
        environment="bentoml",
        variables={**_RECIPE, "BENTOML_HOME": "{folder}", "BENTOML_DO_NOT_TRACK": "True"},
        health="/livez",
    ),
    Server(
        "MLServer",
        f"parallel_workers={CORES}, no debug, no gzip; base64 in the inference protocol's JSON",
        ("{bin}/mlserver", "start", str(PEERS / "mlserver")),
        environment="mlserver",
        variables={
            **_RECIPE,
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_HTTP_PORT": "{port}",
            "MLSERVER_GRPC_PORT": "{port2}",
            "MLSERVER_METRICS_PORT": "{port3}",
            "MLSERVER_METRICS_DIR": "{folder}/metrics",
            "MLSERVER_ENVIRONMENTS_DIR": "{folder}/environments",
            "MLSERVER_PARALLEL_WORKERS": str(CORES),
            "MLSERVER_DEBUG": "false",
            "MLSERVER_GZIP_ENABLED": "false",
        },
        path="/v2/models/cat/infer",
        body=inference_protocol,
        probability=lambda answer: float(answer["outputs"][0]["data"][0]),
        health="/v2/health/live",
    ),
    Server(
        "Ray Serve",
        f"{CORES} replicas, RAY_SERVE_THROUGHPUT_OPTIMIZED=1 behind HAProxy, no access log;"
        " the picture is the body",
        ("-m", f"{_PACKAGE}.ray_service", "{port}", str(CORES)),
        environment="ray",
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
        health="/-/healthz",
    ),
)
EMPTY = Server(
    "empty FastAPI",
    f"an application that does nothing; uvicorn --workers {CORES}: for its start only",
    (*_UVICORN, "--workers", str(CORES), f"{_PACKAGE}.empty:app"),
    path="/",
    probability=None,
)
