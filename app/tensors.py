"""The Open Inference Protocol's messages: bytes of a request → one tensor, results → bytes.

A message is JSON, or JSON followed by tensors as plain bytes (the binary tensor data extension);
the header Inference-Header-Content-Length, and nothing else, says which, and where the JSON ends.
BYTES elements are text in JSON, which for pictures is base64, and in binary 4 bytes of length,
little-endian, before the bytes themselves. Runs in a worker.
"""

import binascii
import json
import re
import reprlib
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app import HEADER_LENGTH, MAX_PICTURES
from app.errors import Problem, too_large

LONGEST_ID = 1000  # characters
_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib's wbits
_WHITE = b" \t\r\n"
_BASE64 = re.compile(rb"[A-Za-z0-9+/_\s-]{32}")  # how a picture in it begins
_STANDARD_LETTERS = bytes.maketrans(b"-_", b"+/")
_NUMBERS: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "FP32": np.dtype("<f4")}
# Extensions that would change what a client gets back: ignoring them would answer wrongly.
_NOT_OFFERED = ("shared_memory_region", "classification")

Data = list[bytes] | NDArray[Any]


@dataclass(frozen=True)
class Spec:
    """A tensor as the model's metadata declare it; -1 in the shape is the number of pictures."""

    name: str
    datatype: str
    shape: tuple[int, ...]


OUTPUTS = (Spec("cat_probability", "FP32", (-1, 1)), Spec("label", "BYTES", (-1, 1)))


def inputs(side: int) -> tuple[Spec, ...]:
    """The inputs of a model that sees side × side pixels; a request has exactly one of them."""
    return (
        Spec("image", "BYTES", (-1,)),  # picture files; in JSON as base64
        Spec("pixels", "UINT8", (-1, side, side, 3)),  # upright, RGB: one view
        Spec("vector", "FP32", (-1, side * side * 3)),  # the same divided by 255
    )


@dataclass(frozen=True)
class Inference:
    """A request: the input it brings, and the outputs it wants, each in binary or not."""

    id: str | None
    input: Spec
    data: Data  # BYTES: a list; numbers: an array of the shape that the request stated
    outputs: tuple[tuple[Spec, bool], ...]


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """Undo a Content-Encoding, never beyond `limit` bytes. Raises Problem: encoded-body,
    too-large, invalid-inference."""
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOWS:
        raise Problem(
            "encoded-body",
            f"The body has Content-Encoding {encoding[:40]!r}; only gzip and deflate are "
            "supported. Use one of them, or send the body uncompressed.",
            {"Accept-Encoding": "gzip, deflate"},
        )
    stream = zlib.decompressobj(_WINDOWS[encoding])
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise _invalid(
            f"The body is not valid {encoding}, but Content-Encoding says so: {error}."
        ) from None
    if len(plain) > limit:
        raise too_large(f"The decompressed body has more than {limit:,} bytes", limit)
    complete = stream.eof and not stream.unused_data
    _check(complete, f"The body is not one complete {encoding} stream.")
    return plain


def read(body: bytes, header_length: str | None, side: int) -> Inference:
    """Read a request. A header length of 0 means a body that is one picture file.

    Raises Problem: invalid-inference.
    """
    json_end = _json_end(header_length, len(body))
    if header_length is not None and not json_end:
        return Inference(None, inputs(side)[0], [body], tuple((spec, False) for spec in OUTPUTS))
    message = _object(_parse(body[:json_end]), "The request")
    identity = message.get("id")
    fits = identity is None or (isinstance(identity, str) and len(identity) <= LONGEST_ID)
    _check(fits, f"The id must be a string of at most {LONGEST_ID:,} characters.")
    tensors = memoryview(body)[json_end:]
    spec, data = _input(message.get("inputs"), tensors, inputs(side))
    return Inference(identity, spec, data, tuple(_outputs(message)))


def write(
    message: Mapping[str, Any], results: Sequence[tuple[Spec, list[Any], bool]]
) -> tuple[bytes, dict[str, str]]:
    """Write an answer: what its JSON begins with, and the outputs, one row a picture, each in
    binary or not. Returns the body and its headers."""
    described, binary = [], []
    for spec, values, is_binary in results:
        shape = [len(values), 1]
        output: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": shape}
        if is_binary:
            binary.append(_to_binary(spec.datatype, values))
            output["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            is_text = spec.datatype == "BYTES"
            output["data"] = [value.decode() for value in values] if is_text else values
        described.append(output)
    header = json.dumps({**message, "outputs": described}).encode()
    if not binary:
        return header, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
    return b"".join([header, *binary]), headers


def _invalid(detail: str) -> Problem:
    return Problem("invalid-inference", detail)


def _check(is_valid: bool, otherwise: str) -> None:
    if not is_valid:
        raise _invalid(otherwise)


# --- the message --------------------------------------------------------------------------------


def _json_end(header_length: str | None, size: int) -> int:
    text = str(size) if header_length is None else header_length
    digits = text.isascii() and text.isdecimal() and len(text) < 20
    _check(
        digits and int(text) <= size,
        f"{HEADER_LENGTH} is {text[:20]!r}, but must be the length of the JSON at the start of "
        f"the body, at most {size:,}.",
    )
    return int(text)


def _parse(text: bytes) -> Any:
    try:
        # UTF-8, as RFC 8259 has it; for bytes `json` would load the codecs of other encodings
        return json.loads(text.decode().removeprefix("\ufeff"), parse_constant=_no_number)
    except UnicodeDecodeError:
        raise _invalid(
            "The request is not JSON: it has bytes that are not UTF-8. For one picture as the "
            f"whole body, send {HEADER_LENGTH}: 0, or use POST /predict."
        ) from None
    except (ValueError, RecursionError) as error:
        raise _invalid(f"The request is not JSON: {str(error)[:100]}.") from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _object(value: Any, what: str) -> dict[str, Any]:
    _check(isinstance(value, dict), f"{what} must be a JSON object.")
    return dict(value)


def _parameters(value: dict[str, Any], what: str) -> dict[str, Any]:
    """Clients may send null for none."""
    parameters = value.get("parameters")
    return {} if parameters is None else _object(parameters, what)


def _named(value: Any, what: str, specs: Sequence[Spec]) -> tuple[Spec, dict[str, Any]]:
    """The declared tensor that an entry of `inputs` or `outputs` names, and its parameters."""
    entry = _object(value, f"Each of the {what}")
    name = entry.get("name")
    known = [spec for spec in specs if spec.name == name]
    names = ", ".join(spec.name for spec in specs)
    _check(bool(known), f"The name of an {what[:-1]} is {_shown(name)}. Use one of {names}.")
    parameters = _parameters(entry, f"The parameters of {name}")
    for each in _NOT_OFFERED:
        _check(each not in parameters, f"{name} has the parameter {each}, which is not supported.")
    return known[0], parameters


def _shown(value: Any) -> str:
    return "missing" if value is None else reprlib.repr(value)  # of a few characters


def _outputs(message: dict[str, Any]) -> Iterator[tuple[Spec, bool]]:
    parameters = _parameters(message, "The request's parameters")
    by_default = _boolean(parameters, "binary_data_output", False)
    wanted = message.get("outputs")
    _check(isinstance(wanted, list | None), "The outputs must be a list.")
    seen = set()
    for value in wanted or [{"name": spec.name} for spec in OUTPUTS]:
        spec, parameters = _named(value, "outputs", OUTPUTS)
        _check(spec not in seen, f"The output {spec.name} is requested twice.")
        seen.add(spec)
        yield spec, _boolean(parameters, "binary_data", by_default)


def _boolean(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    _check(isinstance(value, bool), f"The parameter {name} must be true or false.")
    return bool(value)


def _input(values: Any, tensors: memoryview, specs: Sequence[Spec]) -> tuple[Spec, Data]:
    names = ", ".join(spec.name for spec in specs)
    found = len(values) if isinstance(values, list) else "no list"
    _check(found == 1, f"The inputs must be a list of exactly one of {names}; it has {found}.")
    entry = values[0]
    spec, parameters = _named(entry, "inputs", specs)
    name, datatype, size = spec.name, entry.get("datatype"), parameters.get("binary_data_size")
    fits = datatype == spec.datatype
    _check(fits, f"The datatype of {name} is {_shown(datatype)}. Use {spec.datatype}.")
    shape = _shape(entry.get("shape"), spec)
    _check(
        ("data" in entry) == (size is None),
        f"{name} must have either data or the parameter binary_data_size, and not both.",
    )
    _check(
        (size is None or type(size) is int) and (size or 0) == len(tensors),
        f"The binary_data_size of {name} is {_shown(size)}, but the number of bytes after the JSON,"
        f" whose length the header {HEADER_LENGTH} gives, is {len(tensors):,}.",
    )
    if size is None:
        return spec, _from_json(entry["data"], shape, spec)
    return spec, _from_binary(tensors, shape, spec)


def _shape(value: Any, spec: Spec) -> tuple[int, ...]:
    """The shape that the request states, if it is one of the input's; a column of pictures, as
    (n, 1), passes for a row of them."""
    sizes = value if isinstance(value, list) and all(type(each) is int for each in value) else [0]
    row = sizes[:1] if spec.datatype == "BYTES" and sizes[1:] == [1] else sizes
    fits = sizes is value and row[1:] == list(spec.shape[1:]) and len(row) > 0
    _check(
        fits,
        f"The shape of {spec.name} is {_shown(value)}, but must be {list(spec.shape)}, where -1 is "
        "the number of pictures.",
    )
    advice = " Split it into several requests." * (row[0] > MAX_PICTURES)
    several = f"A request may have 1 to {MAX_PICTURES} pictures, not {_shown(row[0])}.{advice}"
    _check(1 <= row[0] <= MAX_PICTURES, several)
    return tuple(sizes)


# --- data ---------------------------------------------------------------------------------------


def _from_json(data: Any, shape: tuple[int, ...], spec: Spec) -> Data:
    values = _flat(data, shape, spec.name)
    if spec.datatype == "BYTES":
        return [_base64(value, f"{spec.name}[{index}]") for index, value in enumerate(values)]
    types, whole = {*map(type, values)}, spec.datatype == "UINT8"
    fits = types <= ({int} if whole else {int, float})
    _check(fits, f"The data of {spec.name} must be {'whole ' * whole}numbers.")
    fits = not whole or (min(values) >= 0 and max(values) <= 255)
    _check(fits, f"The data of {spec.name} must be from 0 to 255.")
    try:
        return np.array(values, _NUMBERS[spec.datatype]).reshape(shape)
    except OverflowError:  # whole numbers that no floating-point number holds
        raise _invalid(f"The data of {spec.name} contain a number too large for FP32.") from None


def _flat(data: Any, shape: tuple[int, ...], name: str) -> list[Any]:
    """The elements in order, from a flat list of them or from lists nested as the shape says."""
    values = np.array(data, object)
    _check(
        values.shape in (shape, (prod(shape),)),
        f"The data of {name} must be a list for the shape {list(shape)}, flat or nested, but have "
        f"the shape {list(values.shape)}.",
    )
    return list(values.reshape(-1))


def _base64(value: Any, name: str) -> bytes:
    try:
        text: bytes = value.encode("ascii", "replace")
        return _decoded(text.partition(b",")[2] if text.startswith(b"data:") else text)
    except (AttributeError, ValueError) as error:
        why = str(error) if isinstance(value, str) else f"it is {_shown(value)}"
        raise _invalid(f"{name} must be a picture file as one base64 string: {why}.") from None


def _decoded(text: bytes) -> bytes:
    """Decode base64, also with white space in it, with - and _ for + and /, or without the padding
    at its end. Raises ValueError."""
    letters, _, padding = text.partition(b"=")
    if padding.strip(b"=" + _WHITE):
        raise ValueError("there is text after the padding")
    letters = letters.translate(_STANDARD_LETTERS, _WHITE)
    return binascii.a2b_base64(letters + b"=" * (-len(letters) % 4), strict_mode=True)


def _from_binary(tensor: memoryview, shape: tuple[int, ...], spec: Spec) -> Data:
    if spec.datatype == "BYTES":
        return _elements(tensor, shape[0], spec.name)
    dtype = _NUMBERS[spec.datatype]
    size = prod(shape) * dtype.itemsize
    _check(
        len(tensor) == size,
        f"{spec.name} with shape {list(shape)} and datatype {spec.datatype} needs {size:,} bytes, "
        f"but {len(tensor):,} arrived.",
    )
    # A copy, since the tensor may begin at any byte of the body
    return np.frombuffer(tensor, dtype).reshape(shape).copy()


def _elements(tensor: memoryview, count: int, name: str) -> list[bytes]:
    elements: list[bytes] = []
    at = 0
    while at + 4 <= len(tensor) and len(elements) < count:
        (length,) = struct.unpack_from("<I", tensor, at)
        elements.append(bytes(tensor[at + 4 : at + 4 + length]))
        at += 4 + length
    _check(
        at == len(tensor) and len(elements) == count,
        f"{name} must have elements of a 4-byte little-endian length and then that many bytes, "
        f"{count} in all. The length of what arrived is {len(tensor):,}.",
    )
    return [_decoded_where_text(element) for element in elements]


def _decoded_where_text(element: bytes) -> bytes:
    """`mlserver infer -b` sends the base64 text of its input file as the bytes. No picture file
    has nothing but such letters in it."""
    try:
        return _decoded(element) if _BASE64.match(element) else element
    except ValueError:
        return element


def _to_binary(datatype: str, values: Any) -> bytes:
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(value)) + value for value in values)
    return np.asarray(values, _NUMBERS[datatype]).tobytes()
