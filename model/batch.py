"""Many pictures: answered on all cores, written to a file that survives every interruption."""

import json
import multiprocessing
import os
import signal
import stat
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from io import BufferedRandom
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from model.archive import Found, Member, Row, Unreadable, error_row, read, row
from model.classifier import Classifier
from model.machine import cores, memory_bytes

if os.name == "posix":
    import fcntl

CRASHED: Final = "crashed"  # beside the reasons of a row

# A process's own, with a large photograph in it; the largest pictures take more.
_PROCESS_BYTES = 256 * 2**20
# A task: enough pictures to outweigh handing it over, and few bytes to hold.
_TASK_PICTURES, _TASK_BYTES = 16, 4 * 2**20
_TASKS_A_PROCESS = 3  # under way or waiting, so that none is idle
_BYTES_UNDER_WAY = 64 * 2**20  # read from zips and not yet answered; a larger picture goes alone

_SYNC_SECONDS = 5.0  # what a power cut may cost
_MOST_LINE_BYTES = 2**20
_FIRST_BYTES = b'{"picture": '

Task = list[Found]


class CannotStart(RuntimeError):
    """The processes that answer cannot be started, or end before they were given a picture."""


# --- on all cores -------------------------------------------------------------------------------


def processes() -> int:
    """As many as there are cores, as far as the memory reaches."""
    return max(1, min(cores(), memory_bytes() // _PROCESS_BYTES))


def answers(classifier: Classifier, pictures: Iterable[Found]) -> Generator[Row, None, None]:
    """Yield a row for each picture, in their order; pictures are taken only as they are needed.

    A picture that ends the process that decodes it is tried once more alone; if it does so
    again, that is its row. Raises CannotStart and SourceFailed.
    """
    count = processes()
    pool = Pool(classifier, count)
    waiting: deque[tuple[Task, Future[list[Row]]]] = deque()
    try:
        for task in _tasks(pictures):
            while waiting and (
                len(waiting) >= count * _TASKS_A_PROCESS
                or sum(_size(each) for each, _ in waiting) + _size(task) > _BYTES_UNDER_WAY
            ):
                yield from _first(pool, waiting)
            waiting.append((task, pool.submit(task)))
        while waiting:
            yield from _first(pool, waiting)
    except BaseException:  # nobody wants what is under way, and it may take long
        pool.kill()
        raise
    finally:
        pool.close()


def _tasks(pictures: Iterable[Found]) -> Iterator[Task]:
    task: Task = []
    for found in pictures:
        task.append(_read_here(found))
        if len(task) == _TASK_PICTURES or _size(task) >= _TASK_BYTES:
            yield task
            task = []
    if task:
        yield task


def _read_here(found: Found) -> Found:
    """Members of zips are read here: else every process would hold the archive's list of them."""
    if not isinstance(found.source, Member):
        return found
    try:
        return Found(found.name, read(found.source))
    except Unreadable as error:
        return Found(found.name, error)


def _size(task: Task) -> int:
    return sum(len(found.source) for found in task if isinstance(found.source, bytes))


def _first(pool: "Pool", waiting: "deque[tuple[Task, Future[list[Row]]]]") -> Iterator[Row]:
    """The rows of the task that has waited longest, or of all where a process has ended."""
    task, future = waiting.popleft()
    try:
        yield from future.result()
    except BrokenProcessPool:
        # Which picture it was is not known; it was one of those under way.
        pool.kill()
        for each in [task, *(other for other, _ in waiting)]:
            for found in each:
                yield from pool.alone(found)
        waiting.clear()


class Pool:
    """Processes with the classifier in them, started anew after one of them has ended."""

    def __init__(self, classifier: Classifier, count: int) -> None:
        self._classifier = classifier
        self._count = count
        self._executor: ProcessPoolExecutor | None = None

    def submit(self, task: Task) -> "Future[list[Row]]":
        """Have a task answered; raises CannotStart, and the future BrokenProcessPool."""
        with _interrupts_held():
            try:
                if self._executor is None:
                    # Not forked: whatever threads there are here, each begins from nothing. The
                    # classifier is handed over, so that all answer with the weights that were
                    # checked; a copy, which is without the buffers of earlier passes.
                    self._executor = ProcessPoolExecutor(
                        self._count,
                        multiprocessing.get_context("spawn"),
                        initializer=_begin,
                        initargs=(replace(self._classifier),),
                    )
                return self._executor.submit(_answer, task)
            except BrokenProcessPool as error:  # since the last one was given
                failed: Future[list[Row]] = Future()
                failed.set_exception(error)
                return failed
            except OSError as error:
                raise CannotStart(
                    "The processes that answer for pictures cannot be started: "
                    f"{error.strerror or error}."
                ) from None

    def answer(self, task: Task) -> list[Row]:
        """Answer for pictures while no others are under way; one that ends its process is a row.

        Raises CannotStart and SourceFailed.
        """
        try:
            return self.submit(task).result()
        except BrokenProcessPool:
            self.kill()
            return [each for found in task for each in self.alone(found)]

    def alone(self, found: Found) -> list[Row]:
        """Answer for one picture while no other is under way."""
        try:
            return self.submit([found]).result()
        except BrokenProcessPool:
            self.kill()
        try:
            self.submit([]).result()
        except BrokenProcessPool:
            self.kill()
            raise CannotStart(
                "The processes that answer for pictures end as soon as they start; is there "
                "enough memory?"
            ) from None
        detail = (
            "The process that decoded it ended, also when it was tried alone: it takes more "
            "memory than there is, or has found a fault in a decoder."
        )
        return [error_row(self._classifier.version, found.name, CRASHED, detail)]

    def kill(self) -> None:
        """Close after a process has ended. The executor ends the others itself, but not one that
        was just being started, and would wait for it for ever."""
        for child in multiprocessing.active_children():
            child.kill()
        self.close()

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C reaches the whole group, but is for the parent: processes started here never see it,
    since they inherit what is blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_classifier: Classifier | None = None  # of this process


def _begin(classifier: Classifier) -> None:
    global _classifier
    _classifier = classifier
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot tell; its children would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _answer(task: Task) -> list[Row]:
    assert _classifier is not None
    return [row(_classifier, found.name, found.source) for found in task]


# --- the file -----------------------------------------------------------------------------------


class BadOutput(ValueError):
    """A file that rows are not added to; the message says which, why, and what to do."""


class Output:
    """A file of rows, a JSON object a line, which may already hold the first ones.

    Rows go there in the order of the pictures, so those that are there are the first pictures'.
    One process writes it at a time.
    """

    def __init__(self, path: Path, version: str) -> None:
        """Open or create the file; raises BadOutput, and OSError where it cannot be written."""
        self._path = path
        self._version = version
        self._synced = time.monotonic()
        self._file = _open(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._file:
            self._sync()

    def rows_of(self, pictures: Iterator[Found]) -> Iterator[Row]:
        """Yield the rows that are there, and take their pictures off the iterator.

        When all were yielded, the file is ready for the next row: what an interruption left of a
        line is cut off. Raises BadOutput, before anything is changed, where the file is not this
        command's, or of another model, or of other pictures.
        """
        end = 0
        for number, there in enumerate(self._rows(), 1):
            version = there["model_version"]
            if version != self._version:
                raise BadOutput(
                    f"{self._path} was made by the model version {version}, and this one is "
                    f"{self._version}. Name another output, or those weights."
                )
            found = next(pictures, None)
            if found is None or found.name != there["picture"]:
                now = "there is none" if found is None else f"it is {found.name!r}"
                raise BadOutput(
                    f"Row {number:,} of {self._path} is for {there['picture']!r}, and now {now} at "
                    "this place: these are other pictures, or some were added, removed or renamed. "
                    "Name another output."
                )
            yield there
            end = self._file.tell()
        self._file.seek(end)
        self._file.truncate()

    def _rows(self) -> Iterator[Row]:
        """The rows up to the end, or up to where an interruption tore the last line."""
        self._file.seek(0)
        number = 1
        while line := self._file.readline(_MOST_LINE_BYTES):
            there = _parse(line)
            if there is not None:
                yield there
                number += 1
                continue
            starts = line[: len(_FIRST_BYTES)] == _FIRST_BYTES[: len(line)]
            ends = line.endswith(b"\n") or len(line) == _MOST_LINE_BYTES
            torn = not line.strip(b"\0") or (starts and not ends)
            if number == 1 and not torn:
                raise BadOutput(
                    f"{self._path} is there already, and holds no rows of this command. Name "
                    "another output."
                )
            after = iter(lambda: self._file.readline(_MOST_LINE_BYTES), b"")
            if any(_parse(line) is not None for line in after):
                raise BadOutput(
                    f"Line {number:,} of {self._path} is no row of this command, but rows follow "
                    f"it. Keep the {number - 1:,} lines before it, or name another output."
                )
            return

    def write(self, answer: Row) -> None:
        """Add a row; if the process is killed later, it stays."""
        self._file.write(json.dumps(answer).encode() + b"\n")
        self._file.flush()
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self._sync()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()


def _open(path: Path) -> BufferedRandom:
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise BadOutput(
            f"{path} is not a regular file. Name one, or leave it out for standard output."
        )
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
    if os.name == "posix":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise BadOutput(f"Another process is writing {path}; wait for it, or end it.") from None
    return file


def _parse(line: bytes) -> Row | None:
    """The row that a line is, or None."""
    try:
        parsed: Row | None = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    match parsed:
        case {"picture": str(), "model_version": str(), "label": str()}:
            return parsed
        case {"picture": str(), "model_version": str(), "error": {"reason": str()}}:
            return parsed
    return None
