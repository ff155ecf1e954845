"""Time gradient descent against the same algorithm written as the course's notebook writes it.

    python -m benchmarks.gradient_descent ../shared/data/train_catvnoncat.h5

Both run alternately in one process; the medians, their ratio and the largest difference between
the two cost curves are printed. Every iteration of both forms z, dz, dw and db from X. An iteration
does little but read X twice; float32, where the notebook has float64, halves the bytes. On a busy
machine both are slow, because the two threads of the products wait for each other.
"""

import argparse
import os
import platform
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from threadpoolctl import threadpool_info

from model.network import Array
from model.preprocessing import to_vector
from training.data import read_pictures
from training.gradient_descent import every_core, gradient_descent, initialize_with_zeros

LEARNING_RATE = 0.005


def notebook(
    X: Array, Y: Array, iterations: int, learning_rate: float = LEARNING_RATE
) -> list[float]:
    """The assignment's `propagate` and `optimize`, in its layout: X (n_x, m) and Y (1, m), float64.
    Returns the cost at every 100th iteration."""
    m = X.shape[1]
    w, b = np.zeros((X.shape[0], 1)), 0.0
    costs = []
    for i in range(iterations):
        A = 1 / (1 + np.exp(-(np.dot(w.T, X) + b)))
        cost = -1 / m * np.sum(Y * np.log(A) + (1 - Y) * np.log(1 - A))
        dz = A - Y
        dw = 1 / m * np.dot(X, dz.T)
        db = 1 / m * np.sum(dz)
        w = w - learning_rate * dw
        b = b - learning_rate * db
        if i % 100 == 0:
            costs.append(float(cost))
    return costs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="the course's train_catvnoncat.h5")
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    pictures = read_pictures([arguments.data])
    columns = np.ascontiguousarray(pictures.pictures.reshape(len(pictures), -1).T / 255)  # (n_x, m)
    rows = to_vector(pictures.pictures)
    with every_core():
        _compare(columns, rows, pictures.labels, arguments.iterations, arguments.rounds)


def _compare(columns: Array, rows: Array, y: Array, iterations: int, rounds: int) -> None:
    _print_machine()
    print(f"{len(y)} pictures, {iterations:,} iterations, seconds:\n")
    print("round   notebook   this project")
    seconds: dict[str, list[float]] = {"notebook": [], "ours": []}
    for number in range(1, rounds + 1):
        start = perf_counter()
        theirs = notebook(columns, y[None].astype(np.float64), iterations)
        middle = perf_counter()
        ours = gradient_descent(
            initialize_with_zeros(rows.shape[1]),
            rows,
            y,
            learning_rate=LEARNING_RATE,
            iterations=iterations,
        )
        end = perf_counter()
        seconds["notebook"].append(middle - start)
        seconds["ours"].append(end - middle)
        print(f"{number:>5}   {middle - start:8.3f}   {end - middle:12.3f}")
    before, now = median(seconds["notebook"]), median(seconds["ours"])
    difference = max(abs(a - b) for a, b in zip(theirs, ours, strict=True))
    print(f"median  {before:8.3f}   {now:12.3f}\n")
    print(f"ratio of the medians            {now / before:.2f}")
    print(f"largest difference in cost      {difference:.1e}")


def _print_machine() -> None:
    [blas] = [each for each in threadpool_info() if each["user_api"] == "blas"] or [{}]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, NumPy {np.__version__}, "
        f"{blas.get('internal_api')} {blas.get('version')} with {blas.get('num_threads')} threads"
    )


if __name__ == "__main__":
    main()
