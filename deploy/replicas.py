"""Two replicas of the service behind HAProxy, on one machine with a plain Docker engine.

    python -m deploy.replicas up [--image cat] [--weights FILE] [--env-file FILE]
    python -m deploy.replicas roll [--image cat] [--weights FILE] [--env-file FILE]
    python -m deploy.replicas down

`up` starts them: HAProxy at 127.0.0.1:8000, the replicas at the three ports above it, of which two
are taken. `roll` changes to another version: each replica in turn gets a successor in the free
place, and is stopped when HAProxy has found that one ready; no request fails. It remembers no
options: give all of them each time. Needs an image
(`docker build -t cat .`) and HAProxy, 2.6 or newer (`apt-get install haproxy`). It is the same as
deploy/compose.yaml, with the same deploy/haproxy.cfg.
"""

import argparse
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CONFIGURATION = Path(__file__).with_name("haproxy.cfg")
PLACES = ("first", "second", "spare")  # the servers in the configuration
REPLICAS = 2
BACKEND = "cat"
READY_SECONDS = 60.0
PROXY_STOP_SECONDS = 35.0  # above its hard-stop-after

# The limits of deploy/compose.yaml.
RESTRICTIONS = (
    *("--restart", "unless-stopped", "--stop-timeout", "20", "--log-driver", "local"),
    *("--read-only", "--tmpfs", "/tmp"),  # noqa: S108 - in the container
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges:true"),
    *("--memory", "512m", "--memory-swap", "512m", "--pids-limit", "128"),
    *("--env", "CAT_LOG=json", "--env", "CAT_DRAIN_SECONDS=5"),
)


class Failed(Exception):
    """Something could not be done. The message says what, and why."""


@dataclass(frozen=True)
class Version:
    """What a replica runs: an image, weights unless it is the image's own, and settings."""

    image: str = "cat"
    weights: Path | None = None
    env_file: Path | None = None  # settings, a NAME=VALUE a line

    def options(self) -> list[str]:
        """What `docker run` is told of them. Raises Failed where a file is missing.

        Weights are mounted by their folder, since a mounted file that is replaced would go on
        showing the old one.
        """
        options = []
        if self.env_file is not None:
            if not self.env_file.is_file():
                raise Failed(f"There are no settings at {self.env_file}.")
            options += ["--env-file", str(self.env_file)]
        if self.weights is not None:
            path = self.weights.resolve()
            if not path.is_file():
                raise Failed(f"There are no weights at {path}.")
            options += ["--volume", f"{path.parent}:/weights:ro"]
            options += ["--env", f"CAT_WEIGHTS=/weights/{path.name}"]
        return options


class Replicas:
    """The replicas and the proxy whose port is this one. What runs is asked, never remembered."""

    def __init__(self, port: int = 8000) -> None:
        self.port = port
        self.ports = {place: port + 1 + number for number, place in enumerate(PLACES)}
        self.folder = state_folder() / f"cat-replicas-{port}"  # HAProxy's socket, pid and log
        self.socket = self.folder / "haproxy.sock"
        self._started: subprocess.Popen[bytes] | None = None  # the proxy, where it is our child

    def name(self, place: str) -> str:
        """The container's."""
        return f"cat-{self.port}-{place}"

    def places(self) -> list[str]:
        """The places in which there is a container, running or not."""
        names = docker("ps", "--all", "--format", "{{.Names}}").split()
        return [place for place in PLACES if self.name(place) in names]

    def up(self, version: Version) -> None:
        """Start the replicas, then the proxy. Raises Failed, and then nothing is left running."""
        if self.places() or self._proxy():
            raise Failed("They are there already: `roll` changes the version, `down` ends them.")
        if accepts(self.port):
            raise Failed(f"Another program listens at port {self.port}: name another --port.")
        try:
            for place in PLACES[:REPLICAS]:
                self.start(place, version)
            self._start_proxy()
            for place in PLACES[:REPLICAS]:
                self.wait_until_used(place)
        except Failed:
            self.down()
            raise

    def roll(self, version: Version) -> None:
        """Replace each replica by one of this version. Raises Failed, and the others go on."""
        old = self.places()
        if len(old) != REPLICAS:
            raise Failed(
                f"There are {len(old)} replicas ({', '.join(old) or 'none'}) instead of"
                f" {REPLICAS}: `docker rm --force` the one too many, or `down` and `up`."
            )
        (free,) = set(PLACES) - set(old)
        for place in old:
            self.start(free, version)
            self.wait_until_used(free)
            print(f"{free} serves {self.served(free)}; stopping {place}", flush=True)
            self.stop(place)
            free = place

    def down(self) -> None:
        """Stop the proxy when its requests are done, then the replicas."""
        self._stop_proxy()
        self.stop(*self.places())
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, place: str, version: Version) -> None:
        """Start a replica and wait until it is ready. Raises Failed, and then there is none."""
        # Connections to a published port come from the bridge's own address.
        bridge = "{{(index .IPAM.Config 0).Gateway}}"
        proxy = docker("network", "inspect", "bridge", "--format", bridge)
        name = self.name(place)
        command = (
            *("run", "--detach", "--name", name),
            *("--publish", f"127.0.0.1:{self.ports[place]}:8000"),
            *("--env", f"CAT_FORWARDED_ALLOW_IPS={proxy}"),
            *RESTRICTIONS,
            *version.options(),
            version.image,
        )

        def ready() -> bool:
            state = docker("inspect", "--format", "{{.State.Running}} {{.RestartCount}}", name)
            if state != "true 0":
                raise Failed("it ended")
            return bool(self.served(place))

        try:
            docker(*command)  # one that fails may have made the container
            wait(ready)
        except Failed as failure:
            log = subprocess.run(
                ["docker", "logs", "--tail", "5", name], capture_output=True, text=True, check=False
            )
            with suppress(Failed):
                docker("rm", "--force", name)
            raise Failed(
                f"The new replica did not become ready ({failure}):\n{log.stdout}{log.stderr}"
            ) from None

    def stop(self, *places: str) -> None:
        """Let replicas drain, finish and end, and remove them. One that is dead is removed."""
        if names := [self.name(place) for place in places]:
            docker("stop", *names)
            docker("rm", *names)

    def served(self, place: str) -> str:
        """The version of the model that a replica is ready to answer with; else empty."""
        try:
            address = f"http://127.0.0.1:{self.ports[place]}/health/ready"
            with urllib.request.urlopen(address, timeout=3) as answer:
                return str(json.load(answer)["model"]["version"])
        except OSError:
            return ""

    def wait_until_used(self, place: str) -> None:
        """Wait until the proxy sends requests to a replica. Raises Failed."""
        wait(lambda: self.seen_by_proxy(place).startswith("UP"))

    def seen_by_proxy(self, place: str) -> str:
        """The state in which HAProxy sees a place: "UP", "DOWN", and more."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(5)
                connection.connect(str(self.socket))
                connection.sendall(b"show stat\n")
                table = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        except OSError as error:
            raise Failed(f"HAProxy does not answer at {self.socket}: {error}") from None
        for row in csv.DictReader(table.removeprefix("# ").splitlines()):
            if (row["pxname"], row["svname"]) == (BACKEND, place):
                return row["status"]
        raise Failed(f"HAProxy knows no {place} in {CONFIGURATION}.")

    def _start_proxy(self) -> None:
        if not (program := shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")):
            raise Failed("There is no haproxy: `apt-get install haproxy`, or the like.")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Failed(f"{error}. XDG_STATE_HOME names a folder that can be used.") from None
        user = "haproxy" if os.geteuid() == 0 else None  # who that is, the package has seen to
        configuration = self.folder / CONFIGURATION.name  # where that user can read it
        shutil.copyfile(CONFIGURATION, configuration)
        if user:
            shutil.chown(self.folder, user, user)
            shutil.chown(configuration, user, user)
        addresses = {place.upper(): f"127.0.0.1:{port}" for place, port in self.ports.items()}
        own = {"BIND": f"127.0.0.1:{self.port}", "SOCKET": str(self.socket)}
        self.socket.unlink(missing_ok=True)  # of one that was killed
        with (self.folder / "haproxy.log").open("ab") as log:
            process = subprocess.Popen(
                [program, "-db", "-f", str(configuration)],
                env={**os.environ, **addresses, **own},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=[] if user else None,
            )
        self._started = process
        (self.folder / "haproxy.pid").write_text(str(process.pid), encoding="ascii")

        def listens() -> bool:
            if process.poll() is not None:
                text = (self.folder / "haproxy.log").read_text("utf-8", "replace")
                raise Failed(f"HAProxy did not start:\n{text}")
            return self.socket.exists()

        wait(listens)

    def _proxy(self) -> int | None:
        """The process id of the proxy, if it runs."""
        try:
            pid = int((self.folder / "haproxy.pid").read_text(encoding="ascii"))
            name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
        return pid if name == "haproxy" and alive(pid) else None  # else it is another's by now

    def _stop_proxy(self) -> None:
        if pid := self._proxy():
            os.kill(pid, signal.SIGUSR1)
            wait(lambda: not alive(pid), PROXY_STOP_SECONDS)
        if self._started:
            self._started.wait()
            self._started = None
        if accepts(self.port):
            raise Failed(
                f"A program that was not started from {self.folder} still listens at port "
                f"{self.port}: end it first. The replicas were left as they are."
            )


def state_folder() -> Path:
    """Where what is known of the proxy outlives the login: root's folder is one that HAProxy's own
    user can get into."""
    if os.geteuid() == 0:
        return Path("/run")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")


def accepts(port: int) -> bool:
    """Whether anything listens at this port of 127.0.0.1."""
    with socket.socket() as connection:
        connection.settimeout(5)
        return connection.connect_ex(("127.0.0.1", port)) == 0


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and was not asked after does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def docker(*arguments: str) -> str:
    """What a docker command prints. Raises Failed with what it complains of."""
    try:
        done = subprocess.run(
            ["docker", *arguments], capture_output=True, text=True, check=False, timeout=120
        )
    except FileNotFoundError:
        raise Failed(
            "There is no docker: a Docker engine and its command line are needed."
        ) from None
    except subprocess.TimeoutExpired:
        raise Failed(f"docker {arguments[0]} takes too long.") from None
    if done.returncode:
        raise Failed(f"docker {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def wait(condition: Callable[[], bool], seconds: float = READY_SECONDS) -> None:
    """Wait until the condition holds. Raises Failed when it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"not within {seconds:g} s")
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("up", "roll", "down"):
        command = commands.add_parser(name)
        command.add_argument("--port", type=int, default=8000, help="the proxy's (default: 8000)")
        if name != "down":
            command.add_argument("--image", default="cat", help="(default: cat)")
            command.add_argument("--weights", type=Path, help="(default: the image's own)")
            command.add_argument("--env-file", type=Path, help="settings, a NAME=VALUE a line")
    arguments = parser.parse_args()
    replicas = Replicas(arguments.port)
    try:
        if arguments.command == "down":
            replicas.down()
        else:
            version = Version(arguments.image, arguments.weights, arguments.env_file)
            replicas.up(version) if arguments.command == "up" else replicas.roll(version)
            print(f"http://127.0.0.1:{arguments.port}")
    except Failed as failure:
        sys.exit(str(failure))


if __name__ == "__main__":
    main()
