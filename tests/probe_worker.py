"""A program for workers whose jobs do what pictures must not be able to make a worker do.

    await workers.submit({}, do("open", path="/etc/passwd")).reply

Its arguments: a file that has to exist, and one that its workers keep open, each "" for none.
"""

import contextlib
import errno
import json
import os
import signal
import socket
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.worker import HEADER, CannotLoad, Handle, Job, Reply, serve

NOBODY = 65534


def do(what: str, **values: Any) -> bytes:
    """The body of a job that does this."""
    return json.dumps({"do": what, **values}).encode()


def load(needed: str = "", kept: str = "") -> tuple[dict[str, Any], Handle]:
    if needed and not Path(needed).exists():
        raise CannotLoad(f"There is no file {needed}.")
    probe = Probe(os.open(kept, os.O_WRONLY | os.O_CREAT) if kept else -1)
    return {"name": "probe", "version": str(os.getpid())}, probe


class Probe:
    """Does what each job's body says. What the method returns, or which error of the system it
    meets, is in the reply's head; so are the worker's pid and how many jobs it has handled."""

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self.handled = 0

    def __call__(self, jobs: Sequence[Job]) -> list[Reply]:
        self.handled += len(jobs)
        return [self.reply(json.loads(job.body or do("nothing")), len(jobs)) for job in jobs]

    def reply(self, asked: dict[str, Any], together: int) -> Reply:
        head = {"pid": os.getpid(), "handled": self.handled, "together": together}
        method = getattr(self, asked.pop("do"))
        try:
            value = method(**asked)
        except OSError as error:
            return Reply({**head, "refused": errno.errorcode[error.errno or 0]})
        return Reply({**head, "value": value}, json.dumps(head).encode())

    def nothing(self) -> None: ...

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def fail(self) -> None:
        raise ValueError("a fault of the program")

    def allocate(self, count: int) -> int:
        return len(bytearray(count))

    def open(self, path: str) -> None:
        os.open(path, os.O_RDONLY)

    def connect(self) -> None:
        socket.socket()

    def write(self) -> int:
        return os.write(self.kept, b"written")

    def fork(self) -> None:
        if os.geteuid() == 0:  # root may always
            os.setuid(NOBODY)
        if os.fork() == 0:
            os._exit(0)

    def spin(self) -> None:
        while True:
            pass

    def crash(self, number: int = signal.SIGSEGV) -> None:
        os.kill(os.getpid(), number)

    def send(self, head: str, body_bytes: int = 0) -> None:
        """Send the front this for a reply, and go on as if nothing had happened."""
        for descriptor in range(3, 20):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                    os.write(descriptor, HEADER.pack(len(head), body_bytes) + head.encode())
        time.sleep(60)


if __name__ == "__main__":
    serve(load)
