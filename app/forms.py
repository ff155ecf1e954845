"""Take the one picture out of a multipart form. Runs in a worker."""

import logging
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import Problem

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD = b"file"
MAX_PARTS = 20

# The parser would log a warning, quoting what arrived, for each form that it cannot read.
_silent = logging.getLogger(f"{__name__}.parser")
_silent.disabled = True


def picture_of(body: bytes, content_type: str) -> bytes:
    """The field `file` of a multipart/form-data body; the body itself if it is something else.

    Raises Problem: empty, malformed-form, missing-file, several-files.
    """
    if not content_type.lower().lstrip().startswith("multipart/form-data"):
        if not body:
            raise Problem("empty", "The request has no body. Send the picture's bytes as the body.")
        return body
    _, options = parse_options_header(content_type)
    if not (boundary := options.get(b"boundary", b"")):
        raise Problem(
            "malformed-form",
            "Content-Type says multipart/form-data but names no boundary. Let the HTTP client"
            " write this header.",
        )
    if not body:
        raise Problem("empty", "The form has no content. Send the picture in the field 'file'.")
    form = _Form()
    try:
        parser = MultipartParser(boundary, form.callbacks())
        parser.logger = _silent
        parser.write(body)
    except FormParserError:
        raise _malformed(_what_is_wrong(body, boundary)) from None
    return form.picture()


def _what_is_wrong(body: bytes, boundary: bytes) -> str:
    if body.lstrip(b"\r\n").startswith(b"--" + boundary):
        return "what stands between its boundaries is not built as a form's parts are"
    return (
        "it does not begin with the boundary that Content-Type names. Let the HTTP client write"
        " this header, or send the picture itself as the body"
    )


def _malformed(reason: str) -> Problem:
    return Problem("malformed-form", f"The multipart form cannot be read: {reason}.")


class _Form:
    """Takes the parser's events and keeps the one field that counts.

    Fields that are no files are let pass: pages add their own, such as the button's.
    """

    def __init__(self) -> None:
        self._pieces: list[memoryview] = []
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
        picture = b"".join(self._pieces)
        if not picture:
            raise Problem("empty", "The form's field 'file' is empty. Choose a picture for it.")
        return picture

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
        if self._in_file:
            self._pieces.append(memoryview(data)[start:end])

    def _end(self) -> None:
        self._complete = True
