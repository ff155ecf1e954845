"""A closed loop of requests over so many connections: each sends its next one when it has its
answer. It runs in a process of its own, on raw sockets, so that it takes little of the processor.

    python -m benchmarks.serving.load '{"port": …, "request": FILE, "connections": …, …}'

After a warm-up, in which every connection gets an answer, it prints a line of JSON, `{}`; after the
measured seconds another, the result. It goes on until SIGTERM, and then waits for its last answers.
"""

import json
import select
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

PATIENCE_SECONDS = 60  # without any answer
_READ_BYTES = 65536


@dataclass(frozen=True)
class Job:
    """What to send, where to, and for how long."""

    port: int
    request: str  # a file that holds the whole request, head and body
    connections: int
    seconds: float
    warm_up_seconds: float

    def to_json(self) -> str:
        """Return the job as the command line takes it."""
        return json.dumps(asdict(self))


class Exchange:
    """A connection and the request that it is busy with."""

    def __init__(self, port: int, request: bytes) -> None:
        self.request = request
        self.address = ("127.0.0.1", port)

    def connect(self) -> None:
        self.socket = socket.create_connection(self.address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.descriptor = self.socket.fileno()

    def start(self) -> None:
        self.unsent = memoryview(self.request)
        self.received = b""
        self.started = perf_counter()
        self.send()

    def send(self) -> None:
        """Hand over what the system takes now; `receive` finds out when it is closed."""
        with suppress(BlockingIOError, ConnectionError):
            while self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]

    def receive(self) -> int:
        """The status once the answer is complete, before that 0; raises ConnectionError."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            raise ConnectionResetError("closed before the answer was complete")
        self.received += data
        return complete(self.received)


def complete(answer: bytes) -> int:
    """The status of an HTTP/1.1 answer, or 0 while some of it is still missing."""
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return 0
    head = answer[:end].lower()
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        length = int(head[at + 17 :].partition(b"\r\n")[0])
        whole = len(answer) >= end + 4 + length
    else:  # in chunks
        whole = answer.endswith(b"0\r\n\r\n")
    return int(answer[9:12]) if whole else 0


class Load:
    """All connections, what they are at, and the answers since the measuring began."""

    def __init__(self, job: Job) -> None:
        self.job = job
        request = Path(job.request).read_bytes()
        self.exchanges = [Exchange(job.port, request) for _ in range(job.connections)]
        self.poll = select.epoll()
        self.busy: dict[int, Exchange] = {}
        self.stopping = False
        self.latencies: list[float] = []
        self.statuses: dict[int, int] = {}

    def run(self) -> None:
        """Warm up, measure, go on until told to stop."""
        warm = perf_counter() + self.job.warm_up_seconds
        silent = set(self.exchanges)
        for exchange in self.exchanges:
            self._connect(exchange)
            self._start(exchange)
        while silent or perf_counter() < warm:
            silent.difference_update(self._step())
        self.latencies, self.statuses = [], {}
        began, cpu = perf_counter(), process_time()
        print("{}", flush=True)
        while perf_counter() < began + self.job.seconds:
            self._step()
        elapsed = perf_counter() - began
        self._report(elapsed, process_time() - cpu)
        while self.busy:
            self._step()

    def _report(self, seconds: float, cpu_seconds: float) -> None:
        result: dict[str, Any] = {
            "seconds": seconds,
            "answers": self.statuses.get(200, 0),
            "errors": {str(k): n for k, n in self.statuses.items() if k != 200},
            "latencies_ms": [round(each * 1e3, 3) for each in self.latencies],
            "client_cores": cpu_seconds / seconds,
        }
        print(json.dumps(result), flush=True)

    def _step(self) -> list[Exchange]:
        """Serve the sockets that are ready; the exchanges that were answered."""
        events = self.poll.poll(PATIENCE_SECONDS)
        if not events:
            raise TimeoutError(f"no answer within {PATIENCE_SECONDS} seconds")
        answered = []
        for descriptor, event in events:
            exchange = self.busy[descriptor]
            try:
                status = self._serve(exchange, event)
            except ConnectionError:
                status = -1
            if status:
                answered.append(exchange)
                self._finish(exchange, status)
        return answered

    def _serve(self, exchange: Exchange, event: int) -> int:
        if event != select.EPOLLOUT:
            return exchange.receive()
        exchange.send()
        if not exchange.unsent:
            self.poll.modify(exchange.socket, select.EPOLLIN)
        return 0

    def _connect(self, exchange: Exchange) -> None:
        exchange.connect()
        self.poll.register(exchange.socket, select.EPOLLIN)

    def _start(self, exchange: Exchange) -> None:
        self.busy[exchange.descriptor] = exchange
        exchange.start()
        if exchange.unsent:
            self.poll.modify(exchange.socket, select.EPOLLIN | select.EPOLLOUT)

    def _finish(self, exchange: Exchange, status: int) -> None:
        """Count an answer, -1 for none, and send the next request."""
        now = perf_counter()
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status == 200:
            self.latencies.append(now - exchange.started)
        del self.busy[exchange.descriptor]
        closing = b"\r\nconnection: close" in exchange.received.lower()
        if self.stopping or status < 0 or exchange.unsent or closing:
            exchange.socket.close()  # which takes it out of the poll
            if self.stopping:
                return
            self._connect(exchange)
        self._start(exchange)


def main() -> None:
    """Run the job that the command line names."""
    load = Load(Job(**json.loads(sys.argv[1])))

    def stop(*_: object) -> None:
        load.stopping = True

    signal.signal(signal.SIGTERM, stop)
    load.run()


if __name__ == "__main__":
    main()
