"""The cost of a network's answers and its derivatives: one forward and one backward pass.

Letters, as in the course: m examples, n_x numbers each; X (m, n_x) holds one example a row and is
the course's X (n_x, m) transposed; y the label, 1 for the first class ('cat') and 0 for the other,
or a probability between; z the network's last stage, a = σ(z) the prediction ŷ. `dz` is short for
dL/dz, `dw` for dJ/dw, `db` for dJ/db.

For logistic regression the computation graph is

    x, w, b ──→ z = wᵀx + b ──→ a = σ(z) ──→ L(a, y) = −(y log a + (1 − y) log(1 − a))

and the chain rule, from right to left, gives

    da = dL/da = −y/a + (1 − y)/(1 − a)
    dz = dL/dz = da · da/dz = (−y/a + (1 − y)/(1 − a)) · a(1 − a) = a − y
    dw = dL/dw = dz · dz/dw = x dz
    db = dL/db = dz · dz/db = dz

because σ'(z) = σ(z)(1 − σ(z)) = a(1 − a). The cost of m examples is the mean of their losses,
J = 1/m Σ L(aⁱ, yⁱ), so its derivatives are the means of theirs:

    dw = 1/m Σ xⁱ dzⁱ = 1/m Xᵀ dz          db = 1/m Σ dzⁱ

A network with more layers has the same right end. Only the last line is longer: `backward` takes
dz through every layer, and the last `Linear` among them makes dw and db as above.

Source: deeplearning.ai, Neural Networks and Deep Learning, week 2, "Logistic Regression Cost
Function", "Logistic Regression Gradient Descent", "Gradient Descent on m Examples" and
"Vectorizing Logistic Regression's Gradient Output".
"""

from collections.abc import Sequence

import numpy as np

from model.network import Array, Gradients, Layer, Scratch, backward, forward, pieces, sigmoid
from model.preprocessing import to_vector

# Rows that go through the network at a time: enough that the course's 209 are one matrix product,
# few enough that a block of a large set is still in a processor's cache when the backward pass
# reads it again, and that a set of bytes is never held as floats.
ROWS_AT_ONCE = 256


def loss(z: Array, y: Array) -> Array:
    """L(a, y) = −(y log a + (1 − y) log(1 − a)) of each example, from the logit: a = σ(z).

    z, y: of one shape; z any finite number, y in [0, 1]. Returns that shape, numbers ≥ 0.

    Written out with σ, log a = −log(1 + e⁻ᶻ) and log(1 − a) = −z − log(1 + e⁻ᶻ), so
    L = z − yz + log(1 + e⁻ᶻ) = max(z, 0) − yz + log(1 + e^−|z|). The textbook form rounds a to 0 or
    1 where σ saturates, and log 0 makes the cost infinite or NaN; this one stays exact.
    """
    result: Array = np.maximum(z, 0) - y * z + np.log1p(np.exp(-np.abs(z)))
    return result


def cost(z: Array, y: Array) -> float:
    """J = 1/m Σ L(aⁱ, yⁱ): the mean loss of m examples; z and y as for `loss`."""
    return float(np.mean(loss(z, y), dtype=np.float64))


def as_floats(X: Array) -> Array:
    """The rows that the network takes, from what `propagate` takes: pictures (m, side, side, 3)
    uint8 unrolled and scaled, (m, n_x) floats as they are."""
    return to_vector(X) if X.dtype == np.uint8 else X


def propagate(
    layers: Sequence[Layer],
    X: Array,
    y: Array,
    scratch: Scratch | None = None,
    rows_at_once: int = ROWS_AT_ONCE,
) -> tuple[Gradients, float]:
    """One forward and one backward pass over m examples: (dJ/dparameter by name, J).

    X: (m, n_x) floats in [0, 1], one picture a row; or pictures (m, side, side, 3) uint8, which
    are unrolled and scaled as they are used. y: (m,) in [0, 1].
    scratch: made with `keep=True`; given by a caller that propagates often.

    The examples go through the network a block of rows at a time, and the sums are added up: the
    gradients are the same, up to rounding, for any `rows_at_once`.
    """
    m = len(X)
    if len(y) != m or m == 0:
        raise ValueError(f"propagate needs one label for each example: {m} of X, {len(y)} of y")
    scratch = scratch or Scratch(keep=True)
    gradients: Gradients = {}
    total = 0.0
    for block in pieces(m, rows_at_once):
        x = as_floats(X[block])
        # Forward: from x through every layer to z, and the loss.
        stages = forward(layers, x, scratch)
        z = stages[-1]  # (rows, 1)
        labels = y[block].reshape(z.shape).astype(z.dtype, copy=False)
        total += float(np.sum(loss(z, labels), dtype=np.float64))
        # Backward: from the loss to dz, and through every layer to dw and db.
        dz = sigmoid(z) - labels
        _, dparameters = backward(layers, stages, dz, scratch, input_gradient=False)
        for name, gradient in dparameters.items():
            # A layer may give out its scratch memory, which the next block writes over.
            gradients[name] = gradients[name] + gradient if name in gradients else gradient.copy()
    return {name: gradient / m for name, gradient in gradients.items()}, total / m
