"""The course's example of a computation graph: J = 3(a + bc), forward and backward.

    a ─────────────────┐
    b ──┐              ├─→ v = a + u ──→ J = 3v
    c ──┴─→ u = bc ────┘

The forward pass goes from left to right and computes J. The backward pass goes from right to left
and computes, for each node, the derivative of J with respect to it: the chain rule multiplies what
the node on the right already knows by one derivative of its own. `dx` is short for dJ/dx.

`model.network` is the same thing for pictures: a list of nodes, `forward`, `backward`.

Source: deeplearning.ai, Neural Networks and Deep Learning, week 2, "Computation Graph" and
"Derivatives with a Computation Graph", where a, b, c = 5, 3, 2.
"""

from typing import NamedTuple


class Nodes(NamedTuple):
    """What the forward pass leaves behind for the backward pass."""

    u: float
    v: float
    J: float


class Derivatives(NamedTuple):
    """dJ/dv, dJ/da, dJ/du, dJ/db and dJ/dc, in the order in which the backward pass finds them."""

    dv: float
    da: float
    du: float
    db: float
    dc: float


def forward(a: float, b: float, c: float) -> Nodes:
    """The three nodes from left to right.

    >>> forward(5, 3, 2)
    Nodes(u=6, v=11, J=33)
    """
    u = b * c
    v = a + u
    J = 3 * v
    return Nodes(u, v, J)


def backward(b: float, c: float) -> Derivatives:
    """The derivatives of J from right to left. Of the numbers of the forward pass only b and c are
    needed: the other nodes are sums and a constant multiple, whose derivatives are constants.

    >>> backward(3, 2)
    Derivatives(dv=3, da=3, du=3, db=6, dc=9)
    """
    dv = 3  # J = 3v:      dJ/dv = 3
    da = dv * 1  # v = a + u:   dJ/da = dJ/dv · dv/da = 3 · 1
    du = dv * 1  # v = a + u:   dJ/du = dJ/dv · dv/du = 3 · 1
    db = du * c  # u = bc:      dJ/db = dJ/du · du/db = 3 · c
    dc = du * b  # u = bc:      dJ/dc = dJ/du · du/dc = 3 · b
    return Derivatives(dv, da, du, db, dc)
