"""What is compiled gives what PyTensor gives, whatever the operations, lengths and data."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from bayes_sched.compiler.arithmetic import UnsupportedError
from bayes_sched.compiler.function import BoundFunction, CompiledFunction

POINT = pt.vector("point", shape=(5,))
TABLE = pytensor.shared(np.linspace(-1.0, 2.0, 5), "table")
LONG = pytensor.shared(np.linspace(-3.0, 3.0, 19), "long")
WHERE = pytensor.shared(np.arange(19) % 5, "where")
SQUARE = pytensor.shared(np.linspace(0.1, 1.0, 35).reshape(7, 5), "square")
NUMBER = pytensor.shared(np.float64(1.7), "number")
DATA = (TABLE, LONG, WHERE, SQUARE, NUMBER)
X = np.array([0.3, -1.2, 2.5, 0.01, -0.4])

EXPRESSIONS = {
    "elementary": (pt.exp(POINT) + pt.expm1(1e-9 * POINT) + pt.log(POINT**2) + pt.log1p(pt.sqr(POINT))).sum(),
    "logistic": (pt.softplus(30 * POINT) + pt.sigmoid(-20 * POINT) + pt.log1mexp(-pt.exp(POINT))).sum(),
    "far": (pt.exp(300 * POINT[0]) + pt.exp(-900 * POINT[2]) + pt.log(1e-310 + 0 * POINT[0]) + POINT[1] ** 3),
    "of SciPy": pt.gammaln(2.0 + POINT**2).sum() + pt.erf(POINT).sum(),
    "truths": (pt.switch((POINT > 0) & (POINT < 1), POINT**2, -pt.abs(POINT)) * (POINT >= 0.3)).sum(),
    "bounds": (
        pt.clip(POINT, -0.5, 0.5) * LONG.max() + pt.maximum(POINT, TABLE) - pt.minimum(0.0, POINT)
    ).sum(),
    "look-ups": (pt.exp(POINT)[WHERE] * LONG + TABLE[WHERE] / (1.0 + POINT[WHERE] ** 2)).sum(),
    "rows": pt.log((SQUARE * POINT).sum(axis=1) ** 2).sum() * NUMBER + (SQUARE**2).sum(axis=0)[1],
    "columns": ((SQUARE * pt.exp(POINT)[None, :]).sum(axis=0) * POINT).sum() + SQUARE.sum() * POINT[2],
    "products": pt.dot(pt.dot(SQUARE, POINT), SQUARE[:, 1] * SQUARE[2, 3]),
    "stretches": (POINT[1:4] ** 3).sum() + POINT[-1] * (POINT[:2] ** 2).sum(),
    "set": pt.exp(
        pt.set_subtensor(POINT[1], POINT[0] * 2) + pt.inc_subtensor((POINT * TABLE)[1:3], POINT[3])
    ).sum(),
    "tiles": (-(-POINT // 0.25) * POINT).sum() + pt.floor(NUMBER) * POINT[0],
    "logsumexp": pt.log(pt.exp(SQUARE + POINT - (SQUARE + POINT).max()).sum()),
}


def gradient(expression: pt.TensorVariable) -> pt.TensorVariable:
    return pt.grad(expression, POINT, disconnected_inputs="ignore")


def both(expression: pt.TensorVariable) -> tuple[CompiledFunction, pytensor.compile.Function]:
    outputs = [expression, gradient(expression)]
    return CompiledFunction(expression, outputs[1], POINT, DATA), pytensor.function(
        [POINT], outputs, mode="FAST_COMPILE"
    )


def bound(function: CompiledFunction) -> BoundFunction:
    return function.bind({variable: variable.get_value() for variable in DATA})


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_value_and_gradient_are_those_of_pytensor(name: str) -> None:
    compiled, expected = both(EXPRESSIONS[name])
    for point in (X, X[::-1].copy(), np.abs(X) + 0.2):
        value, slope = expected(point)
        found_value, found_slope = bound(compiled)(point)
        assert found_value == pytest.approx(value, rel=1e-13)
        assert found_slope == pytest.approx(slope, rel=1e-12, abs=1e-12)


def test_other_data_of_other_lengths_need_no_compilation() -> None:
    compiled, expected = both(EXPRESSIONS["look-ups"] + EXPRESSIONS["rows"])
    rng = np.random.default_rng(0)
    other = {LONG: rng.normal(size=41), WHERE: rng.integers(0, 5, 41), SQUARE: rng.normal(size=(2, 5))}
    values = {variable: variable.get_value() for variable in DATA}
    found_value, found_slope = compiled.bind(values | other)(X)
    for variable, value in other.items():
        variable.set_value(value)
    value, slope = expected(X)
    for variable in other:
        variable.set_value(values[variable])
    assert found_value == pytest.approx(value, rel=1e-13)
    assert found_slope == pytest.approx(slope, rel=1e-12)


def test_places_count_from_the_end_too_and_lie_inside() -> None:
    compiled, _ = both(EXPRESSIONS["look-ups"])
    values = {variable: variable.get_value() for variable in DATA}
    value, slope = compiled.bind(values | {WHERE: values[WHERE] - 5})(X)
    assert (value, list(slope)) == (bound(compiled)(X)[0], list(bound(compiled)(X)[1]))
    for outside in (values[WHERE] + 1, values[WHERE] - 6):
        with pytest.raises(IndexError, match="where points outside of 5 elements"):
            compiled.bind(values | {WHERE: outside})
    with pytest.raises(ValueError, match="shape"):
        compiled.bind(values | {WHERE: values[WHERE][1:]})


def test_what_has_no_value_is_told_by_the_status_and_the_numbers() -> None:
    compiled, _ = both(pt.log(POINT).sum())
    value, slope = bound(compiled)(X)
    assert np.isnan(value)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize(
    "expression",
    [pt.cumsum(POINT).sum(), pt.concatenate([POINT, TABLE]).sum() * POINT[0], POINT[pt.argmax(POINT)]],
)
def test_what_is_not_known_is_named(expression: pt.TensorVariable) -> None:
    with pytest.raises(UnsupportedError, match=r"operation|part of an array"):
        CompiledFunction(expression, gradient(expression), POINT, DATA)
