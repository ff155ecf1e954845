"""Training: finds the numbers that `model` predicts with. Imports `model`; nothing imports it."""

from model.archive import Refused

__all__ = ["Refused"]  # what every command here raises where it cannot do its work
