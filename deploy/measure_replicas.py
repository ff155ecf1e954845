"""What clients see while replicas behind HAProxy are updated, killed and stopped, under load.

    python -m deploy.measure_replicas [--image cat] [--connections 8] [--picture FILE]

starts deploy/replicas.py's two replicas at port 8100 and keeps them busy with requests over kept
connections. Prints a line for each event: how many requests were answered, by which version of the
model, which errors clients saw, and how long the slowest answer took. Needs an image
(`docker build -t cat .`), HAProxy, and a machine that does nothing else.
"""

import argparse
import http.client
import io
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from deploy.replicas import Failed, Replicas, Version, docker, wait

REPOSITORY = Path(__file__).resolve().parent.parent
PICTURE = REPOSITORY / "examples" / "cat.jpg"
OTHER_WEIGHTS = REPOSITORY / "model" / "logistic.safetensors"
BEFORE_SECONDS = 2.0  # of load, before anything happens
AFTER_SECONDS = 3.0
PATIENCE_SECONDS = 60  # that a client has


@dataclass
class Seen:
    """What clients saw: answers by the model's version, errors by kind, all else is good."""

    versions: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    probabilities: set[tuple[str, float]] = field(default_factory=set)  # with the version's
    slowest_seconds: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        total = self.versions.total() + self.errors.total()
        versions = ", ".join(f"{count} by {name}" for name, count in self.versions.items())
        errors = ", ".join(f"{count} × {name}" for name, count in self.errors.items())
        return (
            f"{total} requests in {self.seconds:.1f} s; {self.errors.total()} errors"
            f"{f' ({errors})' if errors else ''}; answered {versions or 'none'};"
            f" slowest {self.slowest_seconds:.2f} s"
        )


@contextmanager
def load(port: int, picture: bytes, connections: int) -> Iterator[Seen]:
    """Keep that many connections to 127.0.0.1 busy with the picture inside a `with`."""
    seen, lock, stop = Seen(), threading.Lock(), threading.Event()

    def ask(connection: http.client.HTTPConnection) -> None:
        began = time.perf_counter()
        error, version, probability = "", "", 0.0
        try:
            connection.request("POST", "/predict", picture)
            response = connection.getresponse()
            answer = json.loads(response.read())
            if response.status == 200:
                version, probability = answer["model"]["version"], answer["cat_probability"]
            else:
                error = f"{response.status} {answer['type'].rpartition('#')[2]}"
        except (OSError, ValueError, http.client.HTTPException) as failure:
            error = type(failure).__name__
            connection.close()  # the next request opens it anew
        with lock:
            seen.slowest_seconds = max(seen.slowest_seconds, time.perf_counter() - began)
            if error:
                seen.errors[error] += 1
            else:
                seen.versions[version] += 1
                # Pictures that go through the network together differ in digits after these.
                seen.probabilities.add((version, round(probability, 5)))

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        while not stop.is_set():
            ask(connection)
        connection.close()

    clients = [threading.Thread(target=client) for _ in range(connections)]
    began = time.perf_counter()
    for each in clients:
        each.start()
    try:
        yield seen
    finally:
        stop.set()
        for each in clients:
            each.join()
        seen.seconds = time.perf_counter() - began


def during(replicas: Replicas, picture: bytes, connections: int, event: Callable[[], None]) -> Seen:
    """What clients see when this happens under load."""
    with load(replicas.port, picture, connections) as seen:
        time.sleep(BEFORE_SECONDS)
        event()
        time.sleep(AFTER_SECONDS)
    return seen


def send(replicas: Replicas, name: str) -> None:
    """Send the first replica a signal, wait until the proxy leaves it out, and bring it back."""
    place = replicas.places()[0]
    docker("kill", "--signal", name, replicas.name(place))
    wait(lambda: replicas.seen_by_proxy(place).startswith("DOWN"))
    docker("wait", replicas.name(place))
    docker("start", replicas.name(place))
    replicas.wait_until_used(place)


def large(picture: bytes) -> bytes:
    """The picture enlarged, as JPEG: more than the proxy keeps to send it again."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        image.resize((4000, 3000)).save(out, "JPEG", quality=95)
    return out.getvalue()


def measure(replicas: Replicas, picture: bytes, connections: int) -> Iterator[tuple[str, Seen]]:
    """Each event, and what clients saw. Expects running replicas of the image's own weights."""
    other = Version(image_of(replicas), OTHER_WEIGHTS)
    events: list[tuple[str, bytes, Callable[[], None]]] = [
        ("a replica turns unready", picture, lambda: send(replicas, "TERM")),
        ("a replica is killed", picture, lambda: send(replicas, "KILL")),
        ("a replica is killed, large pictures", large(picture), lambda: send(replicas, "KILL")),
        ("a rolling update", picture, lambda: replicas.roll(other)),
    ]
    for name, what, event in events:
        yield name, during(replicas, what, connections, event)


def image_of(replicas: Replicas) -> str:
    return docker("inspect", "--format", "{{.Config.Image}}", replicas.name(replicas.places()[0]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", default="cat")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--port", type=int, default=8100)
    arguments = parser.parse_args()
    replicas = Replicas(arguments.port)
    try:
        replicas.up(Version(arguments.image))
        try:
            picture = arguments.picture.read_bytes()
            for name, seen in measure(replicas, picture, arguments.connections):
                print(f"{name}: {seen}", flush=True)
        finally:
            replicas.down()
    except Failed as failure:
        sys.exit(str(failure))


if __name__ == "__main__":
    main()
