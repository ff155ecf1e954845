"""How many workers and decoders fit this machine or container, and how much memory each may use.

memory limit = shared by all workers + workers × (a worker's own + its uploads + its decodes)

A worker refuses what its share does not hold, so the sum stays within the limit, as long as each
worker has the least share.
"""

import os
from dataclasses import dataclass
from math import ceil
from pathlib import Path

# As /proc/PID/smaps_rollup has them after some hundred requests, rounded up.
SHARED_BYTES = 72 * 2**20  # interpreter, libraries, weights: loaded once, before workers are forked
WORKER_BYTES = 28 * 2**20  # what a worker adds: its connections, its passes through the network
MARGIN = 0.1  # of the limit, for what an allocator keeps between requests
# Below this share for uploads and decodes a second worker would only make pictures be refused.
LEAST_SHARE_BYTES = 128 * 2**20
# More is never needed: the worst picture that the limits allow takes less.
MOST_SHARE_BYTES = 1024 * 2**20
UPLOADS_PART = 0.25  # of a worker's share; the rest is for decoding


@dataclass(frozen=True)
class Capacity:
    """What the service may use. Bytes are a worker's."""

    workers: int
    decoders: int  # threads a worker
    upload_bytes: int  # that bodies may take together
    decode_bytes: int  # that decodes may take together

    @property
    def largest_upload_bytes(self) -> int:
        """The largest picture for which there can be room, also in base64 under /v2."""
        return self.upload_bytes * 3 // 4 - 2**17


def plan(workers: int | None = None) -> Capacity:
    """Divide what there is; without a number of workers, as many as cores and memory allow."""
    count, memory = cores(), memory_bytes()
    if workers is None:
        fitting = (n for n in range(count, 1, -1) if _share(memory, n) >= LEAST_SHARE_BYTES)
        workers = next(fitting, 1)
    share = min(max(_share(memory, workers), LEAST_SHARE_BYTES // 4), MOST_SHARE_BYTES)
    uploads = int(share * UPLOADS_PART)
    return Capacity(workers, ceil(count / workers), uploads, share - uploads)


def _share(memory: int, workers: int) -> int:
    """Bytes that uploads and decodes of one worker may take."""
    return (int(memory * (1 - MARGIN)) - SHARED_BYTES) // workers - WORKER_BYTES


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
