"""From the bytes of a picture to a probability. Imports nothing from `app` or `training`."""

import os

# Set before NumPy loads OpenBLAS; what the environment says already is left alone. Requests,
# and the shards of a batch, run side by side: threads of the library's own inside each would fight
# for the same cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
