r"""The saturation equation with the cost of attention: what is read of the KV cache, and what is paired.

A step of :math:`B` requests and :math:`S` tokens, of which :math:`C` tokens are in the KV cache already and
whose prefill chunks form :math:`Q` query-key pairs, takes

.. math::

    T \sim \mathrm{StudentT}(\nu, \mu, \sigma), \qquad
    \mu = T_{sat}(B, S) + \begin{cases} \tau_C C & \text{decode only} \\
    \tau_P + \tau_M C + \tau_Q Q & \text{with prefill,} \end{cases}

with :math:`T_{sat}` the documented equation (``saturation``). A decode reads the keys and values of its
whole context; kernels for steps with prefill do so at another speed, and such steps run without a captured
graph. The pairs of a chunk of c tokens behind k cached ones are c k + c (c + 1) / 2.

=================  =========================================  ========  ================================
name               meaning                                    unit      prior: log-normal, 95 % in
=================  =========================================  ========  ================================
tau_P              fixed latency of a step with prefill       ms        0.02 - 20 (three decades)
tau_C              latency per context token, decode only     ms/token  0.000001 - 0.01
tau_M              latency per context token, with prefill    ms/token  0.000001 - 0.01
tau_Q              latency per query-key pair of prefill      ms/pair   0.00000001 - 0.0001
=================  =========================================  ========  ================================

and the eight parameters of ``saturation``, with their priors. Noise, by the option ``noise``:

``regime``
    :math:`\sigma^2 = \sigma_{floor}^2 + (\sigma_{rel} \mu)^2`, with :math:`\sigma_{prefill}` in the place of
    :math:`\sigma_{rel}` for steps with prefill. The default.
``proportional``, ``constant``
    As in ``saturation``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pymc as pm
import xarray as xr
from numpy.typing import NDArray

from bayes_sched.model.equation import Parameter
from bayes_sched.model.likelihood import student_t_model
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import load_model
from bayes_sched.sampling.coordinates import SaturationCoordinates

SATURATION = load_model("saturation")

_PER_CONTEXT = (1e-6, 1e-2)  # a token's keys and values: 10 kB to 1 MB, at 0.1 to 10 TB/s
ATTENTION = (
    Parameter("tau_P", r"\tau_P", "fixed latency of a step with prefill", "ms", 0.0, 20.0),
    Parameter("tau_C", r"\tau_C", "latency per context token, decode only", "ms/token", *_PER_CONTEXT),
    Parameter("tau_M", r"\tau_M", "latency per context token, with prefill", "ms/token", *_PER_CONTEXT),
    Parameter("tau_Q", r"\tau_Q", "latency per query-key pair of prefill", "ms/pair", 1e-8, 1e-4),
)
_SIGMA_PREFILL = Parameter(
    "sigma_prefill",
    r"\sigma_{prefill}",
    "noise scale relative to the latency, with prefill",
    "ms/ms",
    0.001,
    0.3,
)


class SaturationContext:
    """The documented equation and attention; see the module's docstring for the mathematics."""

    name = "saturation_context"
    title = "saturation equation with the cost of attention, Student-t noise"
    parameters = (*SATURATION.parameters, *ATTENTION)
    columns: tuple[str, ...] = (*SATURATION.columns, "context_tokens", "prefill_pairs", "num_prefill_reqs")
    noises: tuple[str, ...] = ("regime", *SATURATION.noises)

    def noise_parameters(self, noise: str) -> tuple[Parameter, ...]:
        """Return the parameters of a noise option."""
        if noise == "regime":
            return (*SATURATION.noise_parameters("proportional"), _SIGMA_PREFILL)
        return SATURATION.noise_parameters(noise)

    def build(self, steps: pd.DataFrame, priors: Priors, *, noise: str) -> pm.Model:
        """Return the PyMC model: log-normal priors, Student-t observations around :meth:`latency`."""
        return student_t_model(self, steps, priors, noise=noise)

    def coordinates(self, steps: pd.DataFrame, priors: Priors, *, noise: str) -> SaturationCoordinates:
        """Return the coordinates that NUTS samples: those of ``saturation``, and logarithms of the rest."""
        others = tuple(p.name for p in (*ATTENTION, *self.noise_parameters(noise)))
        return SaturationCoordinates(steps, priors, others, terms=self.terms)

    def terms(self, steps: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
        """Return what the parameters in which the latency is linear are multiplied by, dims (step,)."""
        has_prefill = steps["num_prefill_reqs"] > 0
        table = {
            "tau_0": pd.Series(1.0, index=steps.index),
            "tau_B": steps["batch_size"],
            "tau_S": steps["total_tokens"],
            "tau_P": 1.0 * has_prefill,
            "tau_C": steps["context_tokens"] * ~has_prefill,
            "tau_M": steps["context_tokens"] * has_prefill,
            "tau_Q": steps["prefill_pairs"],
        }
        return {name: column.to_numpy(float) for name, column in table.items()}

    def latency(self, draws: xr.Dataset, steps: xr.Dataset) -> xr.DataArray:
        """Return the mean latency in ms."""
        return SATURATION.latency(draws, steps) + self.attention(draws, steps)

    def attention(self, draws: xr.Dataset, steps: xr.Dataset) -> xr.DataArray:
        """Return what attention and prefill add to the documented equation, ms."""
        has_prefill = steps["num_prefill_reqs"] > 0
        per_context = has_prefill * draws["tau_M"] + ~has_prefill * draws["tau_C"]
        reads = per_context * steps["context_tokens"]
        attention: xr.DataArray = (
            reads + draws["tau_Q"] * steps["prefill_pairs"] + draws["tau_P"] * has_prefill
        )
        return attention

    def scale(self, draws: xr.Dataset, mean: xr.DataArray, steps: xr.Dataset) -> xr.DataArray:
        """Return the scale of the noise in ms."""
        if "sigma_prefill" not in draws:
            return SATURATION.scale(draws, mean, steps)
        has_prefill = steps["num_prefill_reqs"] > 0
        relative = has_prefill * draws["sigma_prefill"] + ~has_prefill * draws["sigma_rel"]
        scale: xr.DataArray = (draws["sigma_floor"] ** 2 + (relative * mean) ** 2) ** 0.5
        return scale

    def combinations(self, draws: xr.Dataset) -> xr.Dataset:
        """Return what the data see of the parameters, whatever single ones they leave open."""
        return SATURATION.combinations(draws)


MODEL = SaturationContext()
