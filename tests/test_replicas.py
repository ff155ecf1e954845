"""deploy/replicas.py with a real engine and a real HAProxy: what clients see under load."""

import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from deploy.measure_replicas import OTHER_WEIGHTS, Seen, during, large, send
from deploy.replicas import PLACES, Failed, Replicas, Version, docker
from model.classifier import Classifier, default_weights

pytestmark = [
    pytest.mark.container,
    pytest.mark.skipif(not shutil.which("haproxy"), reason="needs haproxy"),
]
CONNECTIONS = 6


def free_ports() -> int:
    """The first of as many free ports in a row as the proxy and the replicas take."""
    for first in range(18100, 20000, 10):
        with ExitStack() as held:
            try:
                for port in range(first, first + 1 + len(PLACES)):
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


@pytest.fixture(scope="module")
def replicas(image: str) -> Iterator[Replicas]:
    replicas = Replicas(free_ports())
    replicas.up(Version(image))
    yield replicas
    replicas.down()
    assert replicas.places() == []
    assert not replicas.folder.exists()


def version(path: Path) -> str:
    return Classifier.load(path).version


def has_no_errors(seen: Seen, replicas: Replicas) -> bool:
    assert seen.errors == {}, (replicas.folder / "haproxy.log").read_text("utf-8")
    assert len(seen.probabilities) == len(seen.versions), "two answers for one picture"
    return seen.versions.total() > 50


@pytest.mark.parametrize("name", ["TERM", "KILL"])
def test_no_client_sees_a_replica_stop_or_be_killed(
    replicas: Replicas, name: str, cat_picture: bytes
) -> None:
    seen = during(replicas, cat_picture, CONNECTIONS, lambda: send(replicas, name))
    assert has_no_errors(seen, replicas)


def test_large_pictures_are_lost_with_a_replica_only_until_the_proxy_knows(
    replicas: Replicas, cat_picture: bytes
) -> None:
    seen = during(replicas, large(cat_picture), CONNECTIONS, lambda: send(replicas, "KILL"))
    # The proxy's answer, which is lost where it comes while the picture is still being sent.
    lost = {"BrokenPipeError", "ConnectionResetError", "RemoteDisconnected"}
    assert seen.errors.keys() <= {"502 about:blank", *lost}
    assert seen.versions.total() > 2 * seen.errors.total()


def test_no_client_sees_an_update(replicas: Replicas, image: str, cat_picture: bytes) -> None:
    other = Version(image, OTHER_WEIGHTS)
    seen = during(replicas, cat_picture, CONNECTIONS, lambda: replicas.roll(other))
    assert has_no_errors(seen, replicas)
    assert seen.versions.keys() == {version(default_weights()), version(OTHER_WEIGHTS)}
    assert {replicas.served(place) for place in replicas.places()} == {version(OTHER_WEIGHTS)}


def test_an_update_that_cannot_serve_changes_nothing(
    replicas: Replicas, image: str, cat_picture: bytes, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"no weights")
    tmp_path.chmod(0o755)
    before = replicas.places()

    def update() -> None:
        with pytest.raises(Failed, match=r"did not become ready"):
            replicas.roll(Version(image, bad))

    assert has_no_errors(during(replicas, cat_picture, CONNECTIONS, update), replicas)
    assert replicas.places() == before


def test_replicas_are_started_once(replicas: Replicas, image: str) -> None:
    with pytest.raises(Failed, match="there already"):
        replicas.up(Version(image))
    assert len(replicas.places()) == 2


def test_a_replica_is_confined(replicas: Replicas) -> None:
    name = replicas.name(replicas.places()[0])
    config = docker(
        "inspect",
        "--format",
        "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}}",
        name,
    )
    assert config == "true [ALL] [no-new-privileges:true]"
    assert docker("exec", name, "id", "-u") == "10001"
