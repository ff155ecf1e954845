"""Reading a request's body, within its limits of bytes and time. Nothing looks into it here."""

import asyncio
from io import BytesIO

from starlette.requests import ClientDisconnect, Request

from app.errors import Problem
from app.queue import Body

# For a form's boundaries and other fields, on top of the picture's own limit.
FORM_ALLOWANCE_BYTES = 64 * 2**10
LEAST_BYTES_A_SECOND = 50_000


async def read_picture(request: Request, body: Body) -> bytes:
    """The body of a request that sends one picture, or a form with one.

    Raises Problem: encoded-body, and as `read_body`.
    """
    limit: int = request.app.state.settings.max_upload_bytes
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise Problem(
            "encoded-body",
            f"The body has Content-Encoding {encoding[:40]!r}; here bodies are not inflated. Send"
            " the picture file's own bytes.",
            {"Accept-Encoding": "identity"},
        )
    is_form = request.headers.get("content-type", "").lower().startswith("multipart/")
    most = limit + FORM_ALLOWANCE_BYTES if is_form else limit
    return await read_body(request, body, most, limit)


async def read_body(request: Request, body: Body, most: int, limit: int) -> bytes:
    """The body, of at most `most` bytes; `limit` is what the refusal names.

    Raises Problem: too-large, busy, slow-upload; and ClientDisconnect.
    """
    length = request.headers.get("content-length", "")
    # A nonsensical length is the server's to refuse; what is read is counted anyway.
    announced = int(length) if length.isascii() and length.isdecimal() and len(length) < 20 else 0
    if announced > most:
        raise _too_large(f"The upload is announced as {announced:,} bytes", limit)
    body.announce(announced)
    seconds: float = request.app.state.settings.upload_seconds
    began = asyncio.get_running_loop().time()
    first, rest, received, more = b"", BytesIO(), 0, True
    try:
        async with asyncio.timeout_at(began + seconds) as timeout:
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk: bytes = message.get("body", b"")
                received += len(chunk)
                if received > most:
                    raise _too_large(f"More than {most:,} bytes arrived", limit)
                body.arrived(len(chunk))
                more = message.get("more_body", False)
                if more or received > len(chunk):
                    rest.write(chunk)
                else:
                    first = chunk  # all of it came at once: no copy
                if more:
                    timeout.reschedule(began + seconds + received / LEAST_BYTES_A_SECOND)
    except TimeoutError:
        raise Problem(
            "slow-upload",
            f"After {asyncio.get_running_loop().time() - began:.0f} s only {received:,} bytes had"
            f" arrived; an upload may take {seconds:g} s and a second more for each"
            f" {LEAST_BYTES_A_SECOND:,} bytes. Send it faster, or a smaller picture.",
            {"Connection": "close"},
        ) from None
    return bytes(first) or rest.getvalue()


def _too_large(arrived: str, limit: int) -> Problem:
    return Problem(
        "too-large",
        f"{arrived}; at most {limit:,} are accepted. Scale it down or compress it more.",
        limit_bytes=limit,
    )
