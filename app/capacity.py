"""How many workers fit this machine or container, and how its memory is divided.

memory = front + bodies + template + workers × (a worker's own + its share)

What the shares do not hold is refused, so the sum stays within the limit.
"""

from dataclasses import dataclass

from app.settings import Settings
from model import DEFAULT_WEIGHTS
from model.machine import cores, memory_bytes
from model.workers import AHEAD_BYTES, LEAST_SHARE_BYTES, MOST_SHARE_BYTES, Workers

# Of the bytes that are free, what a single upload may take: large ones leave room for small ones.
MAX_UPLOAD_SHARE = 0.75

# Memory, as /proc/PID/smaps_rollup has it after some hundred requests, rounded up.
FRONT_BYTES = 44 * 2**20
TEMPLATE_BYTES = 46 * 2**20  # interpreter, libraries, weights: workers share it
# What a worker adds before it works on anything, and of the body that is sent ahead to it.
WORKER_OVERHEAD_BYTES = 10 * 2**20 + AHEAD_BYTES
MARGIN = 0.06  # of the limit, for what allocators keep
BODIES_PART = 0.18  # of what is left; the rest is for the workers
COPIES = 1.25  # of a body in the front: the bytes themselves, and a buffer on their way
MOST_BODY_BYTES = 512 * 2**20  # of all bodies together


@dataclass(frozen=True)
class Capacity:
    """How the memory of this machine or container is divided."""

    workers: int
    worker_bytes: int  # that each worker may take for its work
    body_bytes: int  # that all bodies may take together

    @property
    def largest_upload_bytes(self) -> int:
        """The largest picture for which there can be room, a form around it included."""
        return int(self.body_bytes * MAX_UPLOAD_SHARE) - 2**17


def plan(workers: int | None = None) -> Capacity:
    """Divide what there is; without a number of workers, as many as cores and memory allow."""
    rest = int(memory_bytes() * (1 - MARGIN)) - FRONT_BYTES - TEMPLATE_BYTES
    bodies = min(max(int(rest * BODIES_PART), 2**22), MOST_BODY_BYTES)
    rest -= int(bodies * COPIES)
    if workers is None:
        fitting = rest // (LEAST_SHARE_BYTES + WORKER_OVERHEAD_BYTES)
        workers = max(1, min(cores(), fitting))
    share = rest // workers - WORKER_OVERHEAD_BYTES
    return Capacity(workers, min(max(share, 2**25), MOST_SHARE_BYTES), bodies)


def workers_for(settings: Settings, capacity: Capacity) -> Workers:
    """The workers of a service with these settings, not started yet."""
    return Workers(
        "app.work",
        [str(settings.weights or DEFAULT_WEIGHTS)],
        count=capacity.workers,
        memory_bytes=capacity.worker_bytes,
        seconds=settings.processor_seconds,
    )
