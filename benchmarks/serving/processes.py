"""Whole trees of processes: started, measured from /proc, and ended to the last one. Linux."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

STOP_SECONDS = 20
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_NOT_INHERITED = ("OPENBLAS_", "CAT_", "MALLOC_", "PYTHON", "RAY_")


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parents end, so that `tree` still finds them."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@contextmanager
def running(
    command: Sequence[str], variables: Mapping[str, str], folder: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The command, with its output in a file; the block's end ends it and all that it started.

    Of this process's environment it gets nothing that tunes Python, memory or a server.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_INHERITED)}
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=inherited | dict(variables),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        _kill_tree(process)


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    deadline = monotonic() + STOP_SECONDS
    while left := tree():
        if monotonic() > deadline:
            raise RuntimeError(f"still there after SIGKILL: {left}")
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        sleep(0.05)
        process.poll()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


def tree(besides: Collection[int] = ()) -> list[int]:
    """All descendants of this process, without those processes and theirs."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], [os.getpid()]
    while waiting:
        new = [pid for pid in children.get(waiting.pop(), ()) if pid not in besides]
        found += new
        waiting += new
    return found


def cpu_seconds(pids: Collection[int]) -> float:
    """Processor time of the processes, and of children of theirs that have ended."""
    ticks = sum(sum(map(int, fields[11:15])) for pid in pids if (fields := _stat(pid)))
    return ticks / os.sysconf("SC_CLK_TCK")


def pss_mb(pids: Collection[int]) -> float:
    """Memory in megabytes (10⁶ bytes); of a page that n processes share, each counts 1/n."""
    lines = [line for pid in pids for line in _read(pid, "smaps_rollup").splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third, the state, on; empty where the process is gone."""
    return _read(pid, "stat").rpartition(")")[2].split()


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
