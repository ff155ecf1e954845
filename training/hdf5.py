"""The course's HDF5: m pictures of one size and their labels, for training or for testing.

train_set_x   (m, side, side, 3) uint8, RGB       or test_set_x and test_set_y
train_set_y   m labels of 0 and 1
list_classes  the names of the classes 0 and 1; may be missing
"""

from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from training.errors import BadData, quoted

START = b"\x89HDF\r\n\x1a\n"  # of every HDF5 file


def read_hdf5(
    path: Path, class_names: tuple[str, str]
) -> tuple[npt.NDArray[np.uint8], list[float]]:
    """Pictures (m, side, side, 3) and m labels: 1 for the first class, 0 for the second.

    Raises BadData: no HDF5, or none like the course's.
    """
    try:
        with h5py.File(path) as file:
            prefix = _prefix(path, file)
            pictures = _pictures(path, file[f"{prefix}_set_x"])
            y = np.asarray(file[f"{prefix}_set_y"][()])
            classes = file.get("list_classes")
            listed = np.asarray(classes[()]) if isinstance(classes, h5py.Dataset) else None
    except OSError as error:
        raise BadData(f"{path} is not an HDF5, or a damaged one: {error}.") from error
    labels = _labels(path, f"{prefix}_set_y", y, listed, class_names)
    if len(pictures) != len(labels):
        raise BadData(f"{path}: {len(pictures)} pictures but {len(labels)} labels.")
    return pictures, labels


def _prefix(path: Path, file: h5py.File) -> str:
    """Which of the course's two files this is: "train" or "test"."""
    for prefix in ("train", "test"):
        names = (f"{prefix}_set_x", f"{prefix}_set_y")
        if all(isinstance(file.get(name), h5py.Dataset) for name in names):
            return prefix
    found = ", ".join(sorted(file)) or "nothing"
    raise BadData(
        f"{path} has no datasets train_set_x and train_set_y, nor test_set_x and test_set_y; "
        f"it holds: {found}."
    )


def _pictures(path: Path, x: h5py.Dataset) -> npt.NDArray[np.uint8]:
    name: str = x.name.removeprefix("/")
    shape: tuple[int, ...] = x.shape or ()
    if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3 or x.dtype != np.uint8:
        raise BadData(
            f"{path}: {name} has shape {shape} of {x.dtype}; expected (m, side, side, 3) of "
            "uint8, one RGB picture each."
        )
    try:
        pictures: npt.NDArray[np.uint8] = x[()]
    except (MemoryError, ValueError):  # ValueError: more than there are addresses
        raise BadData(
            f"{path}: {name} has shape {shape}, which does not fit into memory. Use fewer "
            "pictures; if there should not be so many, the file is damaged."
        ) from None
    return pictures


def _labels(
    path: Path,
    name: str,
    y: npt.NDArray[np.generic],
    listed: npt.NDArray[np.generic] | None,
    class_names: tuple[str, str],
) -> list[float]:
    """y as 1 for the first class and 0 for the second; `listed` names the classes of 0 and 1."""
    if y.size != max(y.shape, default=0) or not np.isin(y, (0, 1)).all():
        raise BadData(f"{path}: {name} of shape {y.shape} should hold one 0 or 1 for each picture.")
    ones = y.reshape(-1) == 1
    if listed is None:
        return [float(one) for one in ones]
    names = [
        each.decode(errors="replace") if isinstance(each, bytes) else str(each)
        for each in listed.flat
    ]
    if sorted(names) != sorted(class_names):
        raise BadData(
            f"{path}: its classes are {quoted(names)}, not {quoted(class_names)}. "
            "Name them with --classes, the one to look for first."
        )
    return [float(one) for one in (ones if names[1] == class_names[0] else ~ones)]
