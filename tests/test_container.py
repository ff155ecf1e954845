"""The container, proven with a real engine: built, started as the README says, used, stopped."""

import http.client
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.data_folder import REPOSITORY

pytestmark = pytest.mark.container

STRICT = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--memory", "256m"]  # noqa: S108
PREDICT_DIRECTLY = (
    "import sys; from model.classifier import Classifier, default_weights;"
    "print(Classifier.load(default_weights()).predict(sys.stdin.buffer.read()).cat_probability)"
)


def docker(*arguments: str, stdin: bytes | None = None) -> str:
    done = subprocess.run(
        ["docker", *arguments], input=stdin, capture_output=True, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 0, (arguments, done.stdout.decode(), done.stderr.decode())
    return done.stdout.decode().strip()


@dataclass(frozen=True)
class Container:
    name: str
    port: int

    def state(self, field: str) -> str:
        return docker("inspect", "--format", f"{{{{.State.{field}}}}}", self.name)

    def log(self) -> str:
        """All that it has written."""
        done = subprocess.run(
            ["docker", "logs", self.name],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=True,
        )
        return done.stdout.decode()

    def run(self, *command: str, stdin: bytes | None = None) -> str:
        """What a command prints inside the container."""
        return docker("exec", "--interactive", self.name, *command, stdin=stdin)


@contextmanager
def container_with(image: str, *options: str) -> Iterator[Container]:
    """A container that is healthy, started with these options."""
    name = docker("run", "--detach", "--publish", "127.0.0.1::8000", *options, image)
    try:
        address = docker("port", name, "8000/tcp")
        container = Container(name, int(address.rpartition(":")[2]))
        deadline = time.monotonic() + 60
        while container.state("Health.Status") != "healthy":
            assert container.state("Running") == "true", docker("logs", name)
            assert time.monotonic() < deadline, docker("logs", name)
            time.sleep(0.3)
        yield container
    finally:
        docker("rm", "--force", "--volumes", name)


@pytest.fixture
def container(image: str) -> Iterator[Container]:
    """A container with every restriction that the README names."""
    with container_with(image, *STRICT) as container:
        yield container


def predict(container: Container, picture: bytes) -> dict[str, object]:
    connection = http.client.HTTPConnection("127.0.0.1", container.port, timeout=10)
    connection.request("POST", "/predict", picture)
    response = connection.getresponse()
    answer: dict[str, object] = json.loads(response.read())
    assert response.status == 200, answer
    connection.close()
    return answer


def test_it_answers_as_the_model_inside_does(container: Container, cat_picture: bytes) -> None:
    direct = container.run("python", "-c", PREDICT_DIRECTLY, stdin=cat_picture)
    assert predict(container, cat_picture)["cat_probability"] == float(direct)


def test_it_runs_without_root_and_holds_app_and_model_only(container: Container) -> None:
    assert container.run("id", "-u") != "0"
    assert docker("inspect", "--format", "{{.Config.User}}", container.name).split(":")[0].isdigit()
    assert sorted(container.run("ls", "-A", "/srv").split()) == ["app", "model"]
    assert "pip" not in container.run("ls", "/venv/bin").split()
    modules = "pytest", "matplotlib", "h5py", "training", "tests"
    for module in modules:
        code = f"import importlib.util as u; print(u.find_spec({module!r}))"
        assert container.run("python", "-c", code) == "None"


def test_its_command_and_health_check_start_no_shell(image: str) -> None:
    config = json.loads(docker("inspect", "--format", "{{json .Config}}", image))
    assert config["Cmd"] == ["python", "-m", "app"]
    assert config["Healthcheck"]["Test"] == ["CMD", "python", "-m", "app.healthcheck"]
    assert list(config["ExposedPorts"]) == ["8000/tcp"]


def test_docker_stop_lets_a_request_in_flight_finish(
    container: Container, cat_picture: bytes
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", container.port, timeout=20)
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Length", str(len(cat_picture)))
    connection.endheaders(cat_picture[:1000])
    time.sleep(0.5)  # until the service has begun to read
    stopping = threading.Thread(target=docker, args=("stop", container.name))
    started = time.monotonic()
    stopping.start()
    time.sleep(2)
    assert container.state("Running") == "true"
    connection.send(cat_picture[1000:])
    response = connection.getresponse()
    assert response.status == 200
    assert "cat_probability" in json.loads(response.read())
    connection.close()
    stopping.join()
    assert time.monotonic() - started < 10
    assert container.state("ExitCode") == "0"
    assert container.state("OOMKilled") == "false"


def test_bad_weights_end_it_with_one_sentence(image: str) -> None:
    done = subprocess.run(
        ["docker", "run", "--rm", *STRICT, "--env", "CAT_WEIGHTS=/nowhere", image],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode not in (0, 125, 126, 127)
    assert (done.stdout + done.stderr).count("/nowhere") == 1
    assert "Traceback" not in done.stderr


def test_the_image_stays_small(image: str) -> None:
    """Most of it is Python itself, then NumPy's linear algebra and Pillow's decoders."""
    assert int(docker("inspect", "--format", "{{.Size}}", image)) < 230e6


def metric(container: Container, name: str) -> float:
    """The sum of a metric's samples."""
    connection = http.client.HTTPConnection("127.0.0.1", container.port, timeout=10)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_metrics_stay_right_when_a_worker_dies(image: str, cat_picture: bytes) -> None:
    """Here the parent's process id is 1, as small as the workers' numbers."""
    answered = 'cat_requests_total{method="POST",route="/predict",status="200"}'
    kill_second = (
        "import os; children = open('/proc/1/task/1/children').read().split();"
        "os.kill(int(children[1]), 9)"
    )
    with container_with(image, "--memory", "512m", "--cpus", "2") as container:
        for _ in range(20):
            predict(container, cat_picture)
        assert metric(container, answered) == 20
        container.run("python", "-c", kill_second)
        deadline = time.monotonic() + 20
        while "takes its place" not in container.log():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(1)  # a sample of the gauges later
        for _ in range(20):
            predict(container, cat_picture)
        assert metric(container, answered) == 40
        assert metric(container, "cat_workers ") == 2
