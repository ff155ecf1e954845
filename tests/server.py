"""Real server processes for tests: what the TestClient cannot show."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue

from tests.data_folder import REPOSITORY

PYTHON_M_APP = [sys.executable, "-m", "app"]
UVICORN = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", "0"]
START_SECONDS = 60
STOP_SECONDS = 30


def environment(**settings: str | int | Path) -> dict[str, str]:
    """This process's environment with these settings, a free port, and no other setting."""
    inherited = {name: value for name, value in os.environ.items() if name[:4] != "CAT_"}
    chosen = {f"CAT_{name.upper()}": str(value) for name, value in settings.items()}
    return inherited | {"CAT_BIND_PORT": "0"} | chosen


class Server:
    """A running server process: where it listens, and what it has logged."""

    def __init__(self, command: Sequence[str], **settings: str | int | Path) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment(**settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,  # as a shell does, so that Ctrl-C can be sent to all of it
        )
        self._lines: Queue[str] = Queue()
        self._log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self._wait_for(r"running on (http://\S+)")

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def log(self) -> str:
        return "".join(self._log)

    @property
    def workers(self) -> list[int]:
        """The process ids of all workers that were started so far, in that order."""
        return [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", self.log)]

    def wait_for_log(self, text: str, times: int = 1) -> None:
        """Wait until the log holds the text so many times."""
        deadline = time.monotonic() + START_SECONDS
        while self.log.count(text) < times:
            assert time.monotonic() < deadline, f"no {times} × {text!r} in:\n{self.log}"
            time.sleep(0.05)

    def wait_for_workers(self, count: int) -> list[int]:
        """Wait until so many workers were started in all; their process ids."""
        self.wait_for_log("Application startup complete", count)
        return self.workers

    def stop(self) -> int:
        """Ask the server to stop, as service managers do; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        status = self.process.wait(STOP_SECONDS)
        self._reader.join(STOP_SECONDS)
        return status

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                self._log.append(line)
                self._lines.put(line)

    def _wait_for(self, pattern: str) -> str:
        while True:
            try:
                found = re.search(pattern, self._lines.get(timeout=START_SECONDS))
            except Empty:
                self.process.kill()
                raise AssertionError(f"the server did not start:\n{self.log}") from None
            if found:
                return found[1]


@contextmanager
def running(command: Sequence[str], **settings: str | int | Path) -> Iterator[Server]:
    """A server for the time of a with block; it is ended with it."""
    server = Server(command, **settings)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.wait()


def lives(pid: int) -> bool:
    """Whether the process runs; one that ended and waits to be reaped does not."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    return bool(state) and not state.startswith("Z")


def wait_until_gone(pids: Sequence[int]) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    while left := [pid for pid in pids if lives(pid)]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.1)
