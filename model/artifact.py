"""The file a classifier is kept in: safetensors, which is tensors and a header of named texts.

Reading it runs no code. Here each text of the header is a JSON value. What the values mean is
the business of model.classifier.
"""

import errno
import json
import os
import secrets
import struct
from pathlib import Path
from stat import S_ISREG
from typing import Any, Final

import numpy as np
import safetensors
from numpy.typing import NDArray

MAX_BYTES = 2**30
_DTYPES: Final[dict[str, np.dtype[Any]]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}


def pack(values: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> bytes:
    """Lay out a file; the same content gives the same bytes on every run.

    The library's own writer puts the header in an order that changes from run to run.
    tensors: float32 or float16, of any shape.
    """
    header: dict[str, Any] = {
        "__metadata__": {key: json.dumps(values[key], sort_keys=True) for key in sorted(values)}
    }
    codes = {dtype: code for code, dtype in _DTYPES.items()}
    blocks = []
    at = 0
    for name, value in sorted(tensors.items()):
        little = value.astype(value.dtype.newbyteorder("<"))
        header[name] = {
            "dtype": codes[little.dtype],
            "shape": value.shape,
            "data_offsets": [at, at + little.nbytes],
        }
        blocks.append(little.tobytes())
        at += little.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format asks for aligned tensors
    return b"".join((struct.pack("<Q", len(text)), text, *blocks))


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Return the values and the tensors, in float32, of a file; raises ValueError."""
    if not data:
        raise ValueError("it is empty")
    try:
        stored = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise ValueError(f"it is damaged or no safetensors file ({error})") from error
    header_size = int.from_bytes(data[:8], "little")
    texts = json.loads(data[8 : 8 + header_size]).get("__metadata__") or {}
    values = {key: _json(key, text) for key, text in texts.items()}
    return values, {name: _tensor(name, entry) for name, entry in stored}


def _json(key: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(
            f"it is no classifier of this project, or damaged: its {key} is not JSON"
        ) from None


def _tensor(name: str, entry: dict[str, Any]) -> NDArray[np.float32]:
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        expected = " or ".join(_DTYPES)
        raise ValueError(f"its tensor {name} is stored as {entry['dtype']}, expected {expected}")
    stored: NDArray[Any] = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
    return stored.astype(np.float32)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a file; raises ValueError where it is no file, missing or too large."""
    try:
        with Path(path).open("rb") as file:
            status = os.fstat(file.fileno())
            if not S_ISREG(status.st_mode):
                raise ValueError("it is not a regular file")
            if status.st_size > MAX_BYTES:
                raise ValueError(f"it has {status.st_size:,} bytes, too many for a weights file")
            return file.read()
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror or error})") from error


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write beside, then rename: readers see the old file or the new one, never half of one.

    Raises OSError. Interrupted at any point, it leaves the old file as it was.
    """
    # Behind a symbolic link it is the file that is replaced, not the link
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():  # replacing a device or a pipe would destroy it
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
