"""How the machine or container is divided: workers, decoders, memory."""

import pytest

from app import capacity
from app.capacity import MARGIN, PART_OF_FREE, SHARED_BYTES, WORKER_BYTES, plan
from app.inference_protocol import body_limit
from app.settings import Settings
from model import machine as model_machine
from model.machine import cores, memory_bytes

MIB = 2**20


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> "Machine":
    return Machine(monkeypatch)


class Machine:
    """A machine of the test's choice."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch

    def has(self, count: int, memory: int) -> None:
        self._patch.setattr(capacity, "cores", lambda: count)
        self._patch.setattr(capacity, "memory_bytes", lambda: memory)

    def files(self, contents: dict[str, str]) -> None:
        self._patch.setattr(model_machine, "_read", lambda path: contents.get(str(path), ""))


@pytest.mark.parametrize(
    ("count", "memory", "workers", "decoders"),
    [(1, 8192, 1, 1), (2, 8192, 2, 1), (16, 32_768, 16, 1), (2, 256, 1, 2), (16, 1024, 5, 4)],
)
def test_there_are_as_many_workers_as_cores_and_memory_allow(
    machine: Machine, count: int, memory: int, workers: int, decoders: int
) -> None:
    machine.has(count, memory * MIB)
    planned = plan()
    assert (planned.workers, planned.decoders) == (workers, decoders)


@pytest.mark.parametrize("workers", [None, 1, 2, 4])
@pytest.mark.parametrize("memory", [256, 512, 1024, 4096, 100_000])
def test_the_shares_together_stay_within_the_memory(
    machine: Machine, memory: int, workers: int | None
) -> None:
    machine.has(4, memory * MIB)
    planned = plan(workers)
    each = WORKER_BYTES + planned.upload_bytes + planned.decode_bytes
    if memory >= 512 or workers in (None, 1):
        assert SHARED_BYTES + planned.workers * each <= memory * MIB * (1 - MARGIN)
    assert planned.upload_bytes > 0
    assert planned.decode_bytes > planned.upload_bytes


@pytest.mark.parametrize(
    ("count", "memory", "megabytes"), [(1, 256, 19), (2, 512, 24), (2, 1024, None)]
)
def test_there_is_room_for_a_photograph_and_something_small_beside_it(
    machine: Machine, count: int, memory: int, megabytes: int | None
) -> None:
    machine.has(count, memory * MIB)
    planned = plan()
    largest = planned.largest_upload_bytes
    if megabytes is None:
        assert largest > Settings().max_upload_bytes
    else:
        assert round(largest / 1e6) == megabytes, "as docs/operations.md has it"
    assert body_limit(largest) <= PART_OF_FREE * planned.upload_bytes
    assert planned.upload_bytes - body_limit(largest) > 5 * MIB


def test_more_workers_than_fit_still_get_something(machine: Machine) -> None:
    machine.has(2, 128 * MIB)
    assert plan(8).decode_bytes >= 16 * MIB


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"/proc/self/cgroup": "0::/", "/sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        ({"/proc/self/cgroup": "0::/", "/sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        ({"/proc/self/cgroup": "0::/", "/sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
        ({"/proc/self/cgroup": "0::/", "/sys/fs/cgroup/cpu.max": "10000 100000"}, 1),
        ({"/proc/self/cgroup": "0::/a/b", "/sys/fs/cgroup/a/cpu.max": "300000 100000"}, 3),
        (
            {
                "/proc/self/cgroup": "4:cpu,cpuacct:/\n0::/",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            4,
        ),
        (
            {
                "/proc/self/cgroup": "4:cpu,cpuacct:/",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            8,
        ),
    ],
)
def test_cores_are_those_that_the_control_group_allows(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    machine.files(files)
    assert cores() == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"/proc/self/cgroup": "0::/", "/sys/fs/cgroup/memory.max": "max"}, None),
        ({"/proc/self/cgroup": "0::/", "/sys/fs/cgroup/memory.max": "1048576"}, MIB),
        (
            {
                "/proc/self/cgroup": "0::/a/b",
                "/sys/fs/cgroup/a/b/memory.max": "max",
                "/sys/fs/cgroup/a/memory.max": "2097152",
            },
            2 * MIB,
        ),
        (
            {
                "/proc/self/cgroup": "6:memory:/",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes": "3145728",
            },
            3 * MIB,
        ),
        (  # how version 1 says that there is no limit
            {
                "/proc/self/cgroup": "6:memory:/",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            None,
        ),
    ],
)
def test_memory_is_what_the_control_group_allows(
    machine: Machine, files: dict[str, str], expected: int | None
) -> None:
    machine.files({})
    whole = memory_bytes()
    machine.files(files)
    assert memory_bytes() == (expected or whole)


def test_this_machine_can_be_read() -> None:
    assert cores() >= 1
    assert memory_bytes() >= 64 * MIB
    assert plan().workers >= 1
