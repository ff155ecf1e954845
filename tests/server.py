"""Real processes for tests: servers, and workers without one."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import httpx
import pytest

from model.workers import Workers
from tests.data_folder import REPOSITORY

PYTHON_M_APP = [sys.executable, "-m", "app"]
UVICORN = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", "0"]
# Whatever else the machine is doing
START_SECONDS = 60
STOP_SECONDS = 30
CLIENTS = 8

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits and /proc")
P = ParamSpec("P")


def environment(**settings: str | int | float | Path) -> dict[str, str]:
    """This process's environment with these settings, a free port, and no other setting."""
    inherited = {name: value for name, value in os.environ.items() if name[:4] != "CAT_"}
    chosen = {f"CAT_{name.upper()}": str(value) for name, value in settings.items()}
    return inherited | {"CAT_BIND_PORT": "0"} | chosen


class Server:
    """A running server: where it listens, its processes, and what it has logged."""

    def __init__(self, command: Sequence[str], **settings: str | int | float | Path) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment(**settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,  # as a shell does, so that Ctrl-C can be sent to all of it
        )
        began = time.monotonic()
        self._log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.wait_for_log("Workers: ")
            found = wait_until(lambda: re.search(r"(?:Listening|running) on (\S+)", self.log))
        except BaseException:
            self.process.kill()
            raise
        self.url: str = found[1]
        self.start_seconds = time.monotonic() - began

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def log(self) -> str:
        return "".join(self._log)

    @property
    def template(self) -> int:
        """The process id of the process that forks workers."""
        return int(wait_until(lambda: children(self.process.pid))[0])

    @property
    def workers(self) -> list[int]:
        """The process ids of the workers."""
        return children(self.template)

    def wait_for_log(self, text: str, times: int = 1) -> None:
        """Wait until the log holds the text so many times."""
        deadline = time.monotonic() + START_SECONDS
        while self.log.count(text) < times:
            may_come = self._reader.is_alive() and time.monotonic() < deadline
            assert may_come, f"no {text!r} in:\n{self.log}"
            time.sleep(0.05)

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


@contextmanager
def running(command: Sequence[str], **settings: str | int | float | Path) -> Iterator[Server]:
    """A server for the time of a with block; it is ended with it."""
    server = Server(command, **settings)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.wait()


def ended(command: list[str], **settings: str | int | float | Path) -> tuple[int, str]:
    """The exit status and the output of a command that ends by itself."""
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr


@contextmanager
def load(url: str, body: bytes) -> Iterator[list[httpx.Response]]:
    """Eight clients that post this to /predict for the time of a with block; all answers."""
    answers: list[httpx.Response] = []
    enough = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=60) as client:
            while not enough.wait(0.1):
                answers.append(client.post(f"{url}/predict", content=body))

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(ask) for _ in range(CLIENTS)]
        try:
            wait_for_more(answers, CLIENTS)
            yield answers
        finally:
            enough.set()
        for client in clients:
            client.result()


def wait_for_more(answers: list[httpx.Response], count: int) -> float:
    """Wait for so many more answers; the seconds that it took."""
    began, before = time.monotonic(), len(answers)
    wait_until(lambda: len(answers) >= before + count)
    return time.monotonic() - began


@asynccontextmanager
async def started(*arguments: str, count: int = 1, seconds: float = 5) -> AsyncIterator[Workers]:
    """Workers that run `tests.probe_worker`, for the time of a with block."""
    workers = Workers(
        "tests.probe_worker", arguments, count=count, memory_bytes=2**25, seconds=seconds
    )
    await workers.start()
    try:
        yield workers
    finally:
        await workers.stop()


def scene(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make a coroutine a test."""

    @wraps(test)
    def run(*arguments: P.args, **options: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **options), START_SECONDS))

    return run


def wait_until(condition: Callable[[], Any]) -> Any:
    """What the condition gives, once that is true."""
    deadline = time.monotonic() + START_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def children(pid: int) -> list[int]:
    """The process ids of its child processes that have not ended."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it is gone itself
        return []
    return [child for child in map(int, found) if lives(child)]


def lives(pid: int) -> bool:
    """Whether the process runs; one that ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: Sequence[int]) -> None:
    """Wait until none of these processes runs."""
    wait_until(lambda: not any(map(lives, pids)))
