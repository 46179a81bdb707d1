"""The saturation equation: its value, its limits, its table of parameters."""

from typing import Any

import numpy as np
import pytensor.tensor as pt
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from bayes_sched.model.equation import PARAMETERS, inverse_saturation, latency_ms
from tests.simulation import INTERPRETED

VALUES = {
    "P_max": 40.0,
    "k_B": 0.1,
    "k_S": 0.01,
    "w_0": 3.0,
    "w_1": 0.4,
    "tau_0": 2.0,
    "tau_B": 0.05,
    "tau_S": 0.004,
}


def test_it_is_the_documented_formula() -> None:
    saturation = (1 - np.exp(-0.1 * 8)) * (1 - np.exp(-0.01 * 512))
    expected = 2.0 + (3.0 + 0.4 * 512) / (40.0 * saturation) + 0.05 * 8 + 0.004 * 512
    assert latency_ms(8, 512, **VALUES) == pytest.approx(expected, rel=1e-14)


def test_the_parameters_are_the_documented_ones_with_their_ranges() -> None:
    assert {p.name: (p.low, p.high, p.unit) for p in PARAMETERS} == {
        "P_max": (1.0, 1000.0, "tokens/ms"),
        "k_B": (0.01, 1.0, "1/request"),
        "k_S": (0.001, 0.1, "1/token"),
        "w_0": (0.0, 100.0, "effective tokens"),
        "w_1": (0.001, 1.0, "effective tokens/token"),
        "tau_0": (0.0, 50.0, "ms"),
        "tau_B": (0.0, 5.0, "ms/request"),
        "tau_S": (0.0, 0.1, "ms/token"),
    }


def test_each_parameter_has_a_meaning_and_a_symbol() -> None:
    assert all(p.meaning and p.symbol for p in PARAMETERS)
    assert len({p.symbol for p in PARAMETERS}) == len(PARAMETERS)


@pytest.mark.parametrize("rate", [1e-8, 1e-12, 1e-15])
def test_tiny_rates_keep_their_relative_accuracy(rate: float) -> None:
    # 1 - e^-x = x (1 - x/2 + ...): the next term is below 1e-8 here; `1 - exp` would lose all digits.
    assert inverse_saturation(1, 1, k_B=rate, k_S=rate) == pytest.approx(rate**-2, rel=2e-8)


def test_a_large_step_is_saturated() -> None:
    slope = (latency_ms(500, 20_000, **VALUES) - latency_ms(500, 10_000, **VALUES)) / 10_000
    assert slope == pytest.approx(0.4 / 40.0 + 0.004, rel=1e-9)


def test_xarray_dims_broadcast_by_name() -> None:
    draws = {name: xr.DataArray([value, 2 * value], dims="draw") for name, value in VALUES.items()}
    batch_size = xr.DataArray([1, 2, 4], dims="step")
    result = latency_ms(batch_size, 100 * batch_size, **draws)
    assert result.sizes == {"draw": 2, "step": 3}
    second = {name: 2 * value for name, value in VALUES.items()}
    expected = latency_ms(4, 400, **second)
    assert result.isel(draw=1, step=2).item() == pytest.approx(expected, rel=1e-14)


def test_pytensor_gives_the_value_of_numpy() -> None:
    symbols = {name: pt.as_tensor_variable(value) for name, value in VALUES.items()}
    value = latency_ms(pt.as_tensor_variable(3.0), pt.as_tensor_variable(77.0), **symbols)
    assert value.eval(mode=INTERPRETED) == pytest.approx(latency_ms(3.0, 77.0, **VALUES), rel=1e-13)


@given(
    batch_size=st.integers(1, 1000), extra=st.integers(0, 8000), factor=st.lists(st.floats(-2, 2), min_size=8)
)
def test_latency_grows_with_tokens_up_to_the_limit_of_rounding(
    batch_size: int, extra: int, factor: list[float]
) -> None:
    # S / (1 - exp(-k S)) and S alone grow; 1 / (1 - exp(-k S)) falls, so w_0 is left out.
    values: dict[str, Any] = {
        name: value * 10**exponent for (name, value), exponent in zip(VALUES.items(), factor, strict=False)
    }
    values["w_0"] = 0.0
    tokens = batch_size + extra
    assert latency_ms(batch_size, tokens + 1, **values) >= latency_ms(batch_size, tokens, **values) * (
        1 - 1e-12
    )
