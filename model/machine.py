"""The machine: cores and memory that this process may use, and files that are written whole.

It imports no NumPy, so that the front of the service can use it.
"""

import errno
import os
import secrets
from contextlib import suppress
from math import ceil
from pathlib import Path


def cores() -> int:
    """Processor cores that this process may use, by its affinity and its control group."""
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
    else:
        usable = os.cpu_count() or 1
    return max(1, min([usable, *map(ceil, _quotas())]))


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or less where a control group says so."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [
        int(text)
        for folder in _groups("memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := _read(folder / name)).isdecimal()  # "max" is no limit
    ]
    return min([machine, *limits])


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a new file, then rename it: readers see the old file or the new one, never half of one.

    Raises OSError, named `path`. Interrupted at any point, it leaves the old file as it was.
    """
    # Behind a symbolic link it is the file that is replaced, not the link
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():  # replacing a device or a pipe would destroy it
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    except OSError as error:  # a full disk gives no name, other errors that of the file beside it
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):  # after the rename, or in a folder that is none, nothing is there
            beside.unlink()


def _quotas() -> list[float]:
    """Cores that control groups allow, which need not be whole."""
    quotas = []
    for folder in _groups("cpu"):
        two = _read(folder / "cpu.max").split()  # version 2: "150000 100000", or "max 100000"
        one = [_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]  # -1: none
        for quota, period in (two, one) if len(two) == 2 else (one,):
            if quota.isdecimal() and period.isdecimal() and int(period):
                quotas.append(int(quota) / int(period))
    return quotas


def _groups(controller: str) -> list[Path]:
    """The folders of this process's control group and of all above it, of both versions.

    In a container the group is usually the root of what is seen; outside, it is below.
    """
    root = Path("/sys/fs/cgroup")
    folders: list[Path] = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root  # only version 1 names controllers
        group = top / path.lstrip("/")
        folders += [each for each in (group, *group.parents) if each.is_relative_to(top)]
    return folders


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
