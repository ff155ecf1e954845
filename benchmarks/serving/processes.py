"""Whole trees of processes: started, measured from /proc, and ended to the last one. Linux."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

PROC = Path("/proc")
STOP_SECONDS = 20
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_FALSIFYING = ("OPENBLAS_", "CAT_", "MALLOC_", "PYTHON", "RAY_", "BENTOML_", "MLSERVER_")


class NotStopped(RuntimeError):
    """Processes that are still there after they were killed."""


def adopt_orphans() -> None:
    """Become the parent of descendants whose parents end, so that none escapes from `tree`."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without what would tune or falsify a server's, plus these."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(_FALSIFYING)}
    return inherited | dict(variables)


def tree(besides: Collection[int] = ()) -> list[int]:
    """All descendants of this process, without those processes and theirs."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
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
    """Memory in megabytes (10⁶ bytes); pages that several share count once, in parts."""
    return sum(map(_pss_kb, pids)) * 1024 / 1e6


@contextmanager
def running(
    command: Sequence[str], variables: Mapping[str, str], folder: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The command, with its output in a file. Leaving ends it and all that it started; raises
    NotStopped where that fails."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=environment(variables),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    finally:
        _kill_the_rest(process)


def _kill_the_rest(process: subprocess.Popen[bytes]) -> None:
    deadline = monotonic() + STOP_SECONDS
    while left := tree():
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        sleep(0.05)
        _reap(process)
        if monotonic() > deadline:
            raise NotStopped(f"still there after SIGKILL: {left}")


def _reap(process: subprocess.Popen[bytes]) -> None:
    process.poll()
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third, the state, on; empty where the process is gone."""
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()


def _pss_kb(pid: int) -> int:
    try:
        text = (PROC / str(pid) / "smaps_rollup").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    [line] = [line for line in text.splitlines() if line.startswith("Pss:")]
    return int(line.split()[1])
