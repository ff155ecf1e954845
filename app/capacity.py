"""How many workers and decoders fit this machine or container, and how much memory each may use.

memory limit = shared by all workers + workers × (a worker's own + its uploads + its decodes)

A worker refuses what its share does not hold, so the sum stays within the limit, as long as each
worker has the least share.
"""

from dataclasses import dataclass
from math import ceil

from model.machine import cores, memory_bytes

# As /proc/PID/smaps_rollup has them after some hundred requests, rounded up.
SHARED_BYTES = 72 * 2**20  # interpreter, libraries, weights: loaded once, before workers are forked
WORKER_BYTES = 28 * 2**20  # what a worker adds: its connections, its passes through the network
MARGIN = 0.1  # of the limit, for what an allocator keeps between requests
# Below this share for uploads and decodes a second worker would only make pictures be refused.
LEAST_SHARE_BYTES = 128 * 2**20
# More is never needed: the worst picture that the limits allow takes less.
MOST_SHARE_BYTES = 1024 * 2**20
UPLOADS_PART = 0.25  # of a worker's share; the rest is for decoding
# Of the bytes for uploads that are free, what a single one may take. Less would keep more room for
# small uploads beside large ones, but make the largest picture smaller where memory is small.
PART_OF_FREE = 0.75


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
        return int(self.upload_bytes * PART_OF_FREE) * 3 // 4 - 2**17


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
