"""Reading the picture out of a request: raw bodies and forms, with a limit kept while reading.

Nothing is written to disk. A picture is gathered in one growing buffer that becomes the bytes
handed on: each byte is copied once, or not at all where all come at once. A form is parsed as it
streams by, and what is not the picture is dropped at once.
"""

import asyncio
import logging
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from app.admission import Place
from app.problems import Problem

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD = b"file"
# For a form's boundaries, part headers and other fields, on top of the picture's own limit.
FORM_ALLOWANCE_BYTES = 64 * 2**10
MAX_PARTS = 20
LEAST_BYTES_A_SECOND = 50_000

# The parser logs a warning, quoting what arrived, for each malformed form. The answer tells the
# client, and uploads stay out of logs.
_silent = logging.getLogger(f"{__name__}.parser")
_silent.disabled = True


async def read_upload(request: Request, place: Place) -> bytes:
    """The picture's bytes: the form field `file` of multipart/form-data, or else the body itself.

    Raises Problem: encoded-body, too-large, busy, slow-upload, empty, malformed-form,
    missing-file, several-files; and ClientDisconnect.
    """
    limit: int = request.app.state.settings.max_upload_bytes
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise Problem(
            "encoded-body",
            f"The body has Content-Encoding {encoding[:40]!r}, and bodies are taken as they are,"
            " not inflated. Send the picture file's own bytes.",
            {"Accept-Encoding": "identity"},
        )
    content_type, options = parse_options_header(request.headers.get("content-type"))
    if content_type == b"multipart/form-data":
        return await _read_form(request, place, options.get(b"boundary", b""), limit)
    picture = await read_body(request, place, limit)
    if not picture:
        raise Problem("empty", "The request has no body. Send the picture's bytes as the body.")
    return picture


async def read_body(request: Request, place: Place, limit: int) -> bytes:
    """The body, which may have `limit` bytes. Raises Problem: too-large, busy, slow-upload; and
    ClientDisconnect."""
    _announce(request, place, limit, limit)
    body = BytesIO()

    def take(chunk: bytes) -> None:
        nonlocal body
        if body.tell() + len(chunk) > limit:
            raise _too_large(f"More than {limit:,} bytes arrived", limit)
        if body.tell():
            body.write(chunk)
        else:
            body = BytesIO(chunk)  # takes over its bytes, as long as nothing follows
            body.seek(len(chunk))

    await _receive(request, place, take)
    return body.getvalue()  # BytesIO hands over its buffer: no copy


async def _receive(request: Request, place: Place, take: Callable[[bytes], None]) -> None:
    """Read the body to its end, chunk by chunk, counting its bytes and its time."""
    seconds: float = request.app.state.settings.upload_seconds
    began = asyncio.get_running_loop().time()
    received, more = 0, True
    try:
        async with asyncio.timeout_at(began + seconds) as limit:
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk: bytes = message.get("body", b"")
                received += len(chunk)
                place.arrived(len(chunk))
                take(chunk)
                more = message.get("more_body", False)
                if more:
                    limit.reschedule(began + seconds + received / LEAST_BYTES_A_SECOND)
    except TimeoutError:
        raise Problem(
            "slow-upload",
            f"After {asyncio.get_running_loop().time() - began:.0f} s only {received:,} bytes had"
            f" arrived; an upload may take {seconds:g} s and a second more for each"
            f" {LEAST_BYTES_A_SECOND:,} bytes. Send it faster, or a smaller picture.",
            {"Connection": "close"},
        ) from None


async def _read_form(request: Request, place: Place, boundary: bytes, limit: int) -> bytes:
    if not boundary:
        raise Problem(
            "malformed-form",
            "Content-Type says multipart/form-data but names no boundary. Leave writing this"
            " header to the HTTP client.",
        )
    limit_with_form = limit + FORM_ALLOWANCE_BYTES
    _announce(request, place, limit_with_form, limit)
    form = _Form(limit)
    received = 0
    try:
        parser = MultipartParser(boundary, form.callbacks())
        parser.logger = _silent

        def take(chunk: bytes) -> None:
            nonlocal received
            received += len(chunk)
            if received > limit_with_form:
                raise _too_large(f"More than {limit_with_form:,} bytes of form arrived", limit)
            parser.write(chunk)

        await _receive(request, place, take)
    except FormParserError as error:
        raise _malformed(str(error)) from None
    if not received:
        raise Problem("empty", "The form has no content. Send the picture in the field 'file'.")
    return form.picture()


def _announce(request: Request, place: Place, most: int, limit: int) -> None:
    """Refuse what says that it is too large, and make room for it, before any of it is read."""
    length = request.headers.get("content-length", "")
    # A nonsensical length is the server's to refuse; what is read is counted anyway.
    announced = int(length) if length.isascii() and length.isdecimal() and len(length) < 20 else 0
    if announced > most:
        raise _too_large(f"The upload is announced as {announced:,} bytes", limit)
    place.announce(announced)


def _too_large(arrived: str, limit: int) -> Problem:
    return Problem(
        "too-large",
        f"{arrived}; at most {limit:,} are accepted. Scale it down or compress it more.",
        limit_bytes=limit,
    )


def _malformed(reason: str) -> Problem:
    return Problem("malformed-form", f"The multipart form cannot be read: {reason}.")


class _Form:
    """Takes the parser's events and keeps the one field that counts.

    Fields that are no files are let pass: pages add their own, such as the button's.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._picture = BytesIO()
        self._files = self._parts = 0
        self._in_file = self._complete = False
        self._name = self._value = self._disposition = b""
        self._others: list[str] = []  # names of the fields that are not the picture

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_end": self._end,
        }

    def picture(self) -> bytes:
        """The picture, once the form has been read to its end."""
        if not self._complete:
            raise _malformed("it ends before its closing boundary")
        if not self._files:
            there = f"; there are {', '.join(map(repr, self._others))}" if self._others else ""
            raise Problem(
                "missing-file",
                f"The form has no field 'file'{there}. Send the picture in a field of that name.",
                field="file",
            )
        if not self._picture.tell():
            raise Problem("empty", "The form's field 'file' is empty. Choose a picture for it.")
        return self._picture.getvalue()

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise _malformed(f"it has more than {MAX_PARTS} parts; one named 'file' is enough")
        self._name = self._value = self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise _malformed("a part has no Content-Disposition with a name")
        name = options[b"name"]
        shown = name[:40].decode(errors="replace")
        self._in_file = name == FIELD
        if self._in_file:
            self._files += 1
            if self._files > 1:
                raise Problem(
                    "several-files",
                    "The form has more than one field 'file'. Send one request for each picture.",
                )
        elif options.get(b"filename"):
            if self._files:
                raise Problem(
                    "several-files",
                    f"The form has another file beside the field 'file', in the field {shown!r}."
                    " Send one request for each picture.",
                )
            raise Problem(
                "missing-file",
                f"The form has a file in the field {shown!r}. Name the field 'file', and send no"
                " other file with it.",
            )
        else:
            self._others.append(shown)

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if not self._in_file:
            return
        if self._picture.tell() + end - start > self._limit:
            raise _too_large(f"The field 'file' has more than {self._limit:,} bytes", self._limit)
        self._picture.write(memoryview(data)[start:end])

    def _end(self) -> None:
        self._complete = True
