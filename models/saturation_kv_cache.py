r"""The saturation equation with KV-cache usage: attention, where a trace tells of it no more than that.

The documented trace schema holds the share U of the KV cache that is in use, and not how many tokens each
request has there, which ``saturation_context`` needs. The share is those tokens over what the server can
hold: a step takes

.. math::

    T \sim \mathrm{StudentT}(\nu, \mu, \sigma), \qquad
    \mu = T_{sat}(B, S) + \begin{cases} \tau_U U & \text{decode only} \\
    \tau_P + \tau_V U & \text{with prefill,} \end{cases}

with :math:`T_{sat}` the documented equation (``saturation``). The share counts the keys and values of every
running request, those that a step writes included; what prefill chunks pair with them it does not tell.

=====  =============================================  ====  ================================
name   meaning                                        unit  prior: log-normal, 95 % in
=====  =============================================  ====  ================================
tau_P  fixed latency of a step with prefill           ms    0.02 - 20 (three decades)
tau_U  latency of reading a full cache, decode only   ms    0.1 - 1000
tau_V  latency of reading a full cache, with prefill  ms    0.1 - 1000
=====  =============================================  ====  ================================

and the eight parameters of ``saturation``, with their priors, and the noise options of
``saturation_context``.
"""

from __future__ import annotations

from typing import Any

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
CONTEXT: Any = load_model("saturation_context")

_FULL_CACHE = (0.1, 1000.0)  # 1 GB at 10 TB/s to 100 GB at 0.1 TB/s
TAU_P = next(p for p in CONTEXT.parameters if p.name == "tau_P")
TAU_U = Parameter("tau_U", r"\tau_U", "latency of reading a full cache, decode only", "ms", *_FULL_CACHE)
TAU_V = Parameter("tau_V", r"\tau_V", "latency of reading a full cache, with prefill", "ms", *_FULL_CACHE)


class SaturationKvCache:
    """The documented equation and KV-cache usage; see the module's docstring for the mathematics."""

    name = "saturation_kv_cache"
    title = "saturation equation with KV-cache usage, Student-t noise"
    parameters = (*SATURATION.parameters, TAU_P, TAU_U, TAU_V)
    columns: tuple[str, ...] = (*SATURATION.columns, "kv_cache_usage", "num_prefill_reqs")
    noises: tuple[str, ...] = CONTEXT.noises

    def noise_parameters(self, noise: str) -> tuple[Parameter, ...]:
        """Return the parameters of a noise option."""
        parameters: tuple[Parameter, ...] = CONTEXT.noise_parameters(noise)
        return parameters

    def build(self, steps: pd.DataFrame, priors: Priors, *, noise: str) -> pm.Model:
        """Return the PyMC model: log-normal priors, Student-t observations around :meth:`latency`."""
        return student_t_model(self, steps, priors, noise=noise)

    def coordinates(self, steps: pd.DataFrame, priors: Priors, *, noise: str) -> SaturationCoordinates:
        """Return the coordinates that NUTS samples: those of ``saturation``, and logarithms of the rest."""
        others = (*self.parameters[len(SATURATION.parameters) :], *self.noise_parameters(noise))
        return SaturationCoordinates(steps, priors, tuple(p.name for p in others), terms=self.terms)

    def terms(self, steps: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
        """Return what the parameters in which the latency is linear are multiplied by, dims (step,)."""
        has_prefill = steps["num_prefill_reqs"] > 0
        table = {
            "tau_0": pd.Series(1.0, index=steps.index),
            "tau_B": steps["batch_size"],
            "tau_S": steps["total_tokens"],
            "tau_P": 1.0 * has_prefill,
            "tau_U": steps["kv_cache_usage"] * ~has_prefill,
            "tau_V": steps["kv_cache_usage"] * has_prefill,
        }
        return {name: column.to_numpy(float) for name, column in table.items()}

    def latency(self, draws: xr.Dataset, steps: xr.Dataset) -> xr.DataArray:
        """Return the mean latency in ms."""
        has_prefill = steps["num_prefill_reqs"] > 0
        full = has_prefill * draws["tau_V"] + ~has_prefill * draws["tau_U"]
        latency: xr.DataArray = (
            SATURATION.latency(draws, steps) + full * steps["kv_cache_usage"] + draws["tau_P"] * has_prefill
        )
        return latency

    def scale(self, draws: xr.Dataset, mean: xr.DataArray, steps: xr.Dataset) -> xr.DataArray:
        """Return the scale of the noise in ms."""
        scale: xr.DataArray = CONTEXT.scale(draws, mean, steps)
        return scale

    def combinations(self, draws: xr.Dataset) -> xr.Dataset:
        """Return what the data see of the parameters, whatever single ones they leave open."""
        return SATURATION.combinations(draws)


MODEL = SaturationKvCache()
