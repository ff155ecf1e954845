"""Compare the time of gradient descent with the same algorithm as the course's notebook has it.

    python -m benchmarks.gradient_descent ../shared/data/train_catvnoncat.h5

Both run in turn in one process; medians and the largest difference between the two cost curves are
printed. Every iteration of both forms z, dz, dw and db from X. It does little but read X twice;
float32, where the notebook has float64, halves the bytes. On a busy machine both are slow, because
the threads of the products wait for each other.
"""

from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import typer
from threadpoolctl import threadpool_limits

from benchmarks.machine import describe
from model.machine import cores
from model.network import Array
from model.preprocessing import to_vector
from training.course import LEARNING_RATE, gradient_descent, initialize_with_zeros
from training.data import read_pictures


def notebook(X: Array, Y: Array, iterations: int) -> list[float]:
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
        w = w - LEARNING_RATE * dw
        b = b - LEARNING_RATE * db
        if i % 100 == 0:
            costs.append(float(cost))
    return costs


def main(data: Path, iterations: int = 2000, rounds: int = 5) -> None:
    """How fast is logistic regression, beside the course's notebook? DATA: train_catvnoncat.h5."""
    read = read_pictures([data])
    X, y = to_vector(read.pictures), read.labels
    columns = np.ascontiguousarray(read.pictures.reshape(len(y), -1).T / 255)  # (n_x, m) float64
    before, now = [], []
    with threadpool_limits(cores(), user_api="blas"):  # as `training.course.train` does
        print(f"{describe()}\n{len(y)} pictures, {iterations:,} iterations, median seconds:\n")
        for _ in range(rounds):
            start = perf_counter()
            theirs = notebook(columns, y[None].astype(np.float64), iterations)
            middle = perf_counter()
            layers = initialize_with_zeros(X.shape[1])
            own = gradient_descent(layers, X, y, iterations=iterations)
            before.append(middle - start)
            now.append(perf_counter() - middle)
    print(f"notebook {median(before):.3f}, this project {median(now):.3f}")
    difference = max(abs(a - b) for a, b in zip(theirs, own, strict=True))
    print(f"largest difference in cost: {difference:.1e}")


if __name__ == "__main__":
    typer.run(main)
