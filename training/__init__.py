"""Training: finds the numbers that `model` predicts with. Imports `model`; nothing imports it."""

import model  # noqa: F401 - settles how NumPy's linear algebra works, before NumPy is loaded
