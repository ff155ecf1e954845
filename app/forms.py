"""Take the one picture out of a multipart form. Runs in a worker."""

import re
from collections.abc import Iterator

from python_multipart.multipart import parse_options_header

from app.errors import Problem

MAX_PARTS = 20
MAX_HEAD_BYTES = 4096  # of a part's headers


def picture_of(body: bytes, content_type: str) -> bytes:
    """The field `file` of a multipart/form-data body; the body itself if it is something else.

    Fields without a file are ignored: web pages may add fields of their own.
    Raises Problem: empty, malformed-form, missing-file, several-files.
    """
    if not content_type.lower().lstrip().startswith("multipart/form-data"):
        if not body:
            raise Problem("empty", "The request has no body. Send the picture's bytes as the body.")
        return body
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise Problem(
            "malformed-form",
            "Content-Type says multipart/form-data but names no boundary. Let your HTTP client "
            "set this header.",
        )
    if not body:
        raise Problem("empty", "The form has no content. Send the picture in the field 'file'.")
    parts = list(_parts(body, boundary))
    files = [(name, content) for name, is_file, content in parts if is_file or name == b"file"]
    files = [file for file in files if file != (b"file", b"")] or files[:1]
    names = ", ".join(repr(name[:40].decode(errors="replace")) for name, _, _ in parts)
    if len(files) > 1:
        detail = f"The form has {len(files)} files (fields: {names}). Send one request for each."
        raise Problem("several-files", detail)
    if not files or files[0][0] != b"file":
        raise Problem(
            "missing-file",
            f"The form has no picture in a field 'file' (fields: {names or 'none'}). Send it in a "
            "field of that name.",
        )
    if not files[0][1]:
        raise Problem("empty", "The form's field 'file' is empty. Choose a picture.")
    return files[0][1]


def _parts(body: bytes, boundary: bytes) -> Iterator[tuple[bytes, bool, bytes]]:
    """Name, whether it is a file, and content of each part. Raises Problem: malformed-form."""
    first = b"--" + boundary
    body = body.lstrip(b"\r\n") if body[:1] == b"\r" else body
    if not body.startswith(first):
        raise _malformed(
            "it does not begin with the boundary in Content-Type. Let your HTTP client set this "
            "header, or send the picture as the body"
        )
    if body.startswith(first + b"\n"):
        raise _malformed("its lines must end with CR LF")
    at = len(first)
    for _ in range(MAX_PARTS + 1):
        if body.startswith(b"--", at):
            return  # what follows the closing boundary does not count
        end = body.find(b"\r\n" + first, at)
        if end < 0:
            raise _malformed("it ends before its closing boundary")
        # The picture is copied once, as what is yielded: it may be most of what a worker may take.
        head_end = body.find(b"\r\n\r\n", at, min(end, at + MAX_HEAD_BYTES))
        head = re.sub(rb"\r\n[ \t]+", b" ", body[at : max(head_end, at)])  # also folded lines
        line, *lines = head.split(b"\r\n")
        headers = [header.partition(b":") for header in lines]
        if head_end < 0 or line.strip(b" \t") or not all(colon for _, colon, _ in headers):
            raise _malformed("a part between two boundaries is malformed")
        named = {name.strip().lower(): value.strip() for name, _, value in headers}
        _, options = parse_options_header(named.get(b"content-disposition"))
        if b"name" not in options:
            raise _malformed("a part has no Content-Disposition with a name")
        yield options[b"name"], bool(options.get(b"filename")), body[head_end + 4 : end]
        at = end + 2 + len(first)
    raise _malformed(f"it has more than {MAX_PARTS} parts; one named 'file' is enough")


def _malformed(reason: str) -> Problem:
    return Problem("malformed-form", f"The multipart form cannot be read: {reason}.")
