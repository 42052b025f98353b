"""check_set passes the sets of inbounds, and names the law that a broken one breaks."""

import numpy as np
import pytest

import inbounds as ib

pytestmark = pytest.mark.by_turns


class Shell(ib.Set):
    """{w : |w|_inf <= 1}, right; each subclass breaks one law."""

    def __init__(self, bound=1.0):
        self.bound = float(bound)

    def _project(self, units):
        return units.map(self.nearest_entry)

    def nearest_entry(self, x):
        xp = self.namespace(x)
        return xp.where(xp.isfinite(x), xp.clip(x, -self.bound, self.bound), x)

    def _excess(self, rows, unit_shape):
        return self.namespace(rows).max(self.namespace(rows).abs(rows), axis=1) - self.bound

    def _tolerance(self, dtype, size=1):
        return ib.Fixed(self.bound).tolerance(dtype)

    entrywise = True


class Outside(Shell):
    def nearest_entry(self, x):
        return 1.1 * super().nearest_entry(x)


class Decaying(Shell):
    def nearest_entry(self, x):
        return 0.99 * super().nearest_entry(x)


class Elsewhere(Shell):
    def nearest_entry(self, x):
        xp = self.namespace(x)
        return xp.where(xp.isfinite(x) & (abs(x) > self.bound), 0 * x, x)


class Hiding(Shell):
    def nearest_entry(self, x):
        return self.namespace(x).clip(x, -self.bound, self.bound)


class Coupled(Shell):
    def _project(self, units):
        (rows,) = units.parts
        far = self.namespace(rows).max(abs(rows)) > 4 * self.bound
        return units.map(lambda x: self.namespace(x).where(far, 0 * x, self.nearest_entry(x)))


class Forgetting(Shell):
    def get_config(self):
        return {}


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        (Outside, "results are inside"),
        (Decaying, "projecting again changes no bit"),
        (Elsewhere, "results are nearest"),
        (Hiding, "inf stays"),
        (Coupled, "units are independent of each other"),
        (Forgetting, "a set is equal to the one made of its config"),
    ],
)
def test_a_broken_law_is_named_with_the_rows(broken, law):
    with pytest.raises(AssertionError, match=f"A law doesn't hold: {law}. Received: .*Where: {broken.__name__}"):
        ib.testing.check_set(broken(0.5))


def test_a_set_of_ones_own_that_keeps_the_laws_passes():
    ib.testing.check_set(Shell())
    ib.testing.check_set(ib.MaxNorm([0.5, 1.0, 1.5]).where([True, False]), size=2, units=3)
    ib.testing.check_set(ib.Together(ib.L1Ball(1)), size=3, units=3)  # near a corner others are that corner, rounded


class Triangle(ib.SupportSet):
    """{w : w_1 >= 0, w_2 >= 0, w_1 + w_2 <= 1}, and of no other size."""

    def farthest(self, directions):
        xp = self.namespace(directions)
        corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        return xp.take(corners, xp.argmax(xp.matmul(directions, corners.T), axis=1), axis=0)


def test_a_set_for_units_of_one_size_meets_others():
    both = Triangle() & ib.Box(-9, 0.25)
    np.testing.assert_allclose(both.project([[2.0, 2.0], [2.0, -1.0]]), [[0.25, 0.25], [0.25, 0.0]], atol=1e-9)
    with pytest.raises(ib.SetError, match="`farthest` fails for units of this size"):
        both.project([[1.0, 2.0, 3.0]])


def test_what_is_no_set_is_an_error():
    with pytest.raises(TypeError, match="check_set is given no set"):
        ib.testing.check_set(ib.MaxNorm)
    with pytest.raises(ib.SetError, match="`size` of check_set is not a positive integer"):
        ib.testing.check_set(ib.MaxNorm(1.0), size=0)
