"""Processes that are measured in turn: each with its own libraries and threads, and asleep while
another one works."""

from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self


class Worker:
    """An object that lives in a process of its own; `call` runs one of its methods there.

    An exception in there is raised here. Leaving the `with` block ends the process.
    """

    def __init__(self, make: Callable[..., object], *arguments: object) -> None:
        context = get_context("spawn")  # nothing that this process loaded comes along
        self._connection, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, make, arguments), daemon=True)
        self._process.start()
        far.close()
        self._answer()

    def call(self, method: str, *arguments: object) -> Any:
        """The result of the method, once it is there."""
        self._connection.send((method, arguments))
        return self._answer()

    def _answer(self) -> Any:
        try:
            good, value = self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"the process ended, with {self._process.exitcode}") from None
        if not good:
            raise value
        return value

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.close()
        self._process.join(timeout=10)
        self._process.kill()


def _serve(
    connection: Connection, make: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    def attempt(function: Callable[..., object], values: tuple[object, ...]) -> Any:
        try:
            result = function(*values)
        except Exception as error:  # noqa: BLE001 - it is raised where the call was made
            connection.send((False, error))
            return None
        connection.send((True, None if function is make else result))
        return result

    made = attempt(make, arguments)
    while True:
        try:
            method, values = connection.recv()
        except EOFError:
            return
        attempt(getattr(made, method), values)
