"""From the bytes of a picture to a probability. Imports nothing from `app` or `training`."""

import os
from pathlib import Path
from typing import Final

DEFAULT_WEIGHTS: Final = Path(__file__).with_name("cat.safetensors")

# Set before NumPy loads OpenBLAS; what the environment says already is left alone. Requests,
# and the shards of a batch, run side by side: threads of the library's own inside each would fight
# for the same cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
