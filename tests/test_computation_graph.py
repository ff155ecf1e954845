"""The course's example, J = 3(a + bc), to the number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.computation_graph import Derivatives, Nodes, backward, forward

numbers = st.floats(-100, 100)


def test_the_forward_pass_gives_the_course_s_33() -> None:
    assert forward(a=5, b=3, c=2) == Nodes(u=6, v=11, J=33)


def test_the_backward_pass_gives_the_course_s_derivatives() -> None:
    assert backward(b=3, c=2) == Derivatives(dv=3, da=3, du=3, db=6, dc=9)


def test_a_nudge_of_an_input_moves_j_as_in_the_lecture() -> None:
    assert pytest.approx(33.003) == forward(5.001, 3, 2).J
    assert pytest.approx(33.006) == forward(5, 3.001, 2).J
    assert pytest.approx(33.009) == forward(5, 3, 2.001).J


@given(a=numbers, b=numbers, c=numbers)
def test_derivatives_are_those_of_finite_differences(a: float, b: float, c: float) -> None:
    derivatives = backward(b, c)
    step = 1e-3

    def slope(da: float, db: float, dc: float) -> float:
        above = forward(a + step * da, b + step * db, c + step * dc).J
        below = forward(a - step * da, b - step * db, c - step * dc).J
        return (above - below) / (2 * step)

    assert slope(1, 0, 0) == pytest.approx(derivatives.da, abs=1e-5)
    assert slope(0, 1, 0) == pytest.approx(derivatives.db, abs=1e-5)
    assert slope(0, 0, 1) == pytest.approx(derivatives.dc, abs=1e-5)
