"""A network that answers when the test lets it."""

import threading

from model.network import Array, Layer, Scratch


class Gate(Layer):
    """A layer that waits until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.opened = threading.Event()

    def forward(self, x: Array, scratch: Scratch) -> Array:
        self.reached.set()
        assert self.opened.wait(30)
        return x
