r"""The saturation latency equation: one pure function and the table of its parameters.

.. math::

    T(B, S) = \tau_0 + \frac{w_0 + w_1 S}{P_{max} (1 - e^{-k_B B}) (1 - e^{-k_S S})} + \tau_B B + \tau_S S

``B`` is the number of requests in a scheduler step, ``S`` the number of tokens, ``T`` the latency in ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bayes_sched.arrays import Floats


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a latency model and the range that is documented for it.

    Attributes
    ----------
    name : str
        Name of the variable in every posterior.
    symbol : str
        The name as mathematics, for figures (matplotlib mathtext, without the dollar signs).
    meaning, unit : str
        What it is, in words, and its unit.
    low, high : float
        The documented typical range. ``low`` may be 0, which counts as three decades below ``high``.
    """

    name: str
    symbol: str
    meaning: str
    unit: str
    low: float
    high: float


PARAMETERS: tuple[Parameter, ...] = (
    Parameter("P_max", r"P_{\max}", "peak effective throughput", "tokens/ms", 1.0, 1000.0),
    Parameter("k_B", "k_B", "batch saturation", "1/request", 0.01, 1.0),
    Parameter("k_S", "k_S", "token saturation", "1/token", 0.001, 0.1),
    Parameter("w_0", "w_0", "fixed work", "effective tokens", 0.0, 100.0),
    Parameter("w_1", "w_1", "work per token", "effective tokens/token", 0.001, 1.0),
    Parameter("tau_0", r"\tau_0", "fixed latency", "ms", 0.0, 50.0),
    Parameter("tau_B", r"\tau_B", "latency per request", "ms/request", 0.0, 5.0),
    Parameter("tau_S", r"\tau_S", "latency per token", "ms/token", 0.0, 0.1),
)


def latency_ms(
    batch_size: Any,
    total_tokens: Any,
    *,
    P_max: Any,
    k_B: Any,
    k_S: Any,
    w_0: Any,
    w_1: Any,
    tau_0: Any,
    tau_B: Any,
    tau_S: Any,
) -> Any:
    """Return the latency of a scheduler step by the saturation equation.

    The same function serves NumPy arrays, xarray objects (dims broadcast by name) and PyTensor variables.

    Parameters
    ----------
    batch_size, total_tokens : array-like, DataArray or TensorVariable
        Requests and tokens of each step, positive; raw units.
    P_max, k_B, k_S, w_0, w_1, tau_0, tau_B, tau_S : array-like, DataArray or TensorVariable
        The parameters of :data:`PARAMETERS`, in the units given there.

    Returns
    -------
    array-like, DataArray or TensorVariable
        Latency in ms, the dims of all arguments broadcast.
    """
    work = (w_0 + w_1 * total_tokens) / P_max
    slowdown = inverse_saturation(batch_size, total_tokens, k_B=k_B, k_S=k_S)
    return tau_0 + work * slowdown + tau_B * batch_size + tau_S * total_tokens


def inverse_saturation(batch_size: Any, total_tokens: Any, *, k_B: Any, k_S: Any) -> Any:
    r"""Return :math:`1 / ((1 - e^{-k_B B}) (1 - e^{-k_S S}))`, the slowdown of an unsaturated device.

    It falls towards 1 as the step grows. ``expm1`` keeps its relative accuracy where ``k_B B`` is tiny.
    """
    return 1.0 / (np.expm1(-k_B * batch_size) * np.expm1(-k_S * total_tokens))


def softplus(x: Any, backend: Any) -> Any:
    """Return log(1 + e^x), by NumPy or by :mod:`pytensor.tensor`."""
    return np.logaddexp(0.0, x) if backend is np else backend.softplus(x)


def inverse_softplus(y: Floats) -> Floats:
    """Return x with softplus(x) = y."""
    return y + np.log(-np.expm1(-y))
