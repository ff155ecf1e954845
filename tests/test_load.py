"""The service with more to do than it can, and when it stops: what clients are told."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from model.classifier import Classifier
from tests.gate import Gate
from tests.test_admission import grow_old

Served = Callable[..., Any]


@pytest.fixture
def served(weights_path: Path, classifier: Classifier) -> Served:
    """A service whose network waits for a gate, with these settings."""

    @asynccontextmanager
    async def serve(**settings: Any) -> AsyncIterator[tuple[Gate, httpx.AsyncClient, FastAPI]]:
        gate, app = Gate(), create_app(Settings(weights=weights_path, **settings))
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://test", timeout=30
            ) as client,
        ):
            gated = dataclasses.replace(classifier, layers=[gate, *classifier.layers])
            app.state.classifier = gated
            try:
                yield gate, client, app
            finally:
                gate.opened.set()

    return serve


def test_what_the_queue_does_not_hold_is_refused_at_once(
    served: Served, cat_picture: bytes
) -> None:
    async def scene() -> None:
        async with served(queue=2) as (gate, client, app):
            tasks = [asyncio.create_task(client.post("/predict", content=cat_picture))]
            assert await asyncio.to_thread(gate.reached.wait, 30)
            tasks.append(asyncio.create_task(client.post("/predict", content=cat_picture)))
            while app.state.admission.taken < 2:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.001)

            refused = await client.post("/predict", content=cat_picture)
            assert refused.status_code == 503
            assert refused.json()["type"] == "/problems#busy"
            assert int(refused.headers["retry-after"]) >= 1
            assert (await client.get("/health")).status_code == 200

            gate.opened.set()
            assert [(await task).status_code for task in tasks] == [200, 200]
            assert (await client.post("/predict", content=cat_picture)).status_code == 200

    asyncio.run(scene())


def test_a_refused_upload_is_refused_before_it_is_read(served: Served, cat_picture: bytes) -> None:
    async def scene() -> None:
        async with served(queue=1) as (gate, client, app):
            first = asyncio.create_task(client.post("/predict", content=cat_picture))
            assert await asyncio.to_thread(gate.reached.wait, 30)
            sent = asyncio.Queue[dict[str, Any]]()
            scope = {
                "type": "http",
                "method": "POST",
                "path": "/predict",
                "query_string": b"",
                "headers": [(b"content-length", b"1000")],
            }

            async def receive() -> dict[str, Any]:
                assert not sent.empty(), "the body was asked for before the answer"
                return {"type": "http.disconnect"}

            await app(scope, receive, sent.put)
            assert sent.get_nowait()["status"] == 503
            gate.opened.set()
            await first

    asyncio.run(scene())


def test_slow_uploads_shut_nobody_out_while_decoders_are_idle(
    served: Served, cat_picture: bytes
) -> None:
    async def stalls(until: asyncio.Event) -> AsyncIterator[bytes]:
        yield cat_picture[:100]
        await until.wait()
        yield cat_picture[100:]

    async def scene() -> None:
        async with served(queue=2) as (gate, client, app):
            gate.opened.set()
            admission, until = app.state.admission, asyncio.Event()
            slow = []
            for count in range(1, 6):
                upload = client.post("/predict", content=stalls(until))
                slow.append(asyncio.create_task(upload))
                while len(admission.uploads) < count:
                    assert not slow[-1].done(), "it was refused"
                    await asyncio.sleep(0.001)
                grow_old(admission)
            assert (await client.post("/predict", content=cat_picture)).status_code == 200
            until.set()
            assert [(await each).status_code for each in slow] == [200] * 5
            assert (admission.taken, len(admission.uploads), admission.held_bytes) == (0, 0, 0)

    asyncio.run(scene())


def test_room_that_an_upload_has_been_promised_is_refused_to_others(
    served: Served, cat_picture: bytes
) -> None:
    size = 5000 + len(cat_picture)

    async def stalls(until: asyncio.Event) -> AsyncIterator[bytes]:
        yield cat_picture
        await until.wait()
        yield bytes(5000)

    async def scene() -> None:
        async with served() as (gate, client, app):
            gate.opened.set()
            admission, until = app.state.admission, asyncio.Event()
            admission._upload_bytes = 2 * size
            length = {"Content-Length": str(size)}
            upload = client.post("/predict", content=stalls(until), headers=length)
            first = asyncio.create_task(upload)
            while not admission.held_bytes:
                assert not first.done(), "it was refused"
                await asyncio.sleep(0.001)
            assert admission.held_bytes == size
            busy = await client.post("/predict", content=bytes(size))
            assert busy.status_code == 503
            assert "memory" in busy.json()["detail"]
            assert int(busy.headers["retry-after"]) >= 1
            until.set()
            assert (await first).status_code == 200
            assert admission.held_bytes == 0

    asyncio.run(scene())


@pytest.mark.parametrize("path", ["/predict", "/explain", "/v2/models/cat/infer"])
@pytest.mark.parametrize("ending", ["refused", "malformed", "disconnected", "cancelled"])
def test_an_upload_that_ends_early_leaves_no_place_and_no_byte_behind(
    served: Served, path: str, ending: str
) -> None:
    async def scene() -> None:
        async with served(max_upload_bytes=5000) as (_, _, app):
            admission, waits = app.state.admission, asyncio.Event()
            headers = {"malformed": [(b"content-type", b"multipart/form-data; boundary=b")]}
            length = [] if ending == "refused" else [(b"content-length", b"5000")]
            scope = {
                "type": "http",
                "method": "POST",
                "path": path,
                "query_string": b"",
                "headers": headers.get(ending, []) + length,
            }
            size = 100_000 if ending == "refused" else 100
            last = "http.request" if ending == "malformed" else "http.disconnect"
            messages: list[dict[str, Any]] = [
                {"type": "http.request", "body": bytes(size), "more_body": True},
                {"type": last},
            ]

            async def receive() -> dict[str, Any]:
                if len(messages) == 1 and ending == "cancelled":
                    waits.set()
                    await asyncio.Event().wait()
                return messages.pop(0)

            async def send(_: dict[str, Any]) -> None:
                pass

            request = asyncio.create_task(app(scope, receive, send))
            if ending == "cancelled":
                await waits.wait()
                assert (admission.taken, len(admission.uploads)) == (1, 1)
                assert admission.held_bytes == 800  # some times what has arrived
                request.cancel()
            await asyncio.gather(request, return_exceptions=True)
            assert (admission.taken, len(admission.uploads), admission.held_bytes) == (0, 0, 0)

    asyncio.run(scene())


def test_what_is_not_done_by_its_deadline_is_given_up(served: Served, cat_picture: bytes) -> None:
    async def scene() -> None:
        async with served(deadline_seconds=0.3) as (gate, client, app):
            late = await client.post("/predict", content=cat_picture)
            assert late.status_code == 503
            assert late.json()["type"] == "/problems#deadline-passed"
            assert int(late.headers["retry-after"]) >= 1
            assert app.state.admission.taken == 0
            gate.opened.set()
            assert (await client.post("/predict", content=cat_picture)).status_code == 200

    asyncio.run(scene())


def test_an_upload_that_does_not_come_on_is_given_up(served: Served, cat_picture: bytes) -> None:
    async def stalls() -> AsyncIterator[bytes]:
        yield cat_picture[:100]
        await asyncio.sleep(60)
        yield cat_picture[100:]

    async def scene() -> None:
        async with served(upload_seconds=0.2) as (_, client, app):
            slow = await client.post("/predict", content=stalls())
            assert slow.status_code == 408
            assert slow.json()["type"] == "/problems#slow-upload"
            assert "100 bytes" in slow.json()["detail"]
            assert (app.state.admission.taken, app.state.admission.held_bytes) == (0, 0)

    asyncio.run(scene())


def test_an_upload_that_comes_on_gets_more_time(served: Served, cat_picture: bytes) -> None:
    async def steady() -> AsyncIterator[bytes]:
        for start in range(0, len(cat_picture), 20_000):
            await asyncio.sleep(0.15)
            yield cat_picture[start : start + 20_000]

    async def scene() -> None:
        assert len(cat_picture) > 30_000
        async with served(upload_seconds=0.25) as (gate, client, _):
            gate.opened.set()
            assert (await client.post("/predict", content=steady())).status_code == 200

    asyncio.run(scene())


def test_a_service_that_is_about_to_stop_says_so_and_still_answers(
    weights_path: Path, cat_picture: bytes
) -> None:
    app = create_app(Settings(weights=weights_path))
    with TestClient(app) as client:
        assert client.get("/health/ready").json()["status"] == "ready"
        app.state.ready = False
        for path in ("/health", "/health/ready"):
            answer = client.get(path)
            assert answer.status_code == 503
            assert answer.json()["type"] == "/problems#not-ready"
            assert "retry-after" in answer.headers
        assert client.get("/health/live").json() == {"status": "live"}
        assert client.post("/predict", content=cat_picture).status_code == 200
