r"""The saturation latency equation with Student-t noise.

A scheduler step of :math:`B` requests and :math:`S` tokens takes

.. math::

    T \sim \mathrm{StudentT}(\nu, \mu(B, S), \sigma), \qquad
    \mu(B, S) = \tau_0 + \frac{w_0 + w_1 S}{P_{max} (1 - e^{-k_B B}) (1 - e^{-k_S S})} + \tau_B B + \tau_S S .

========  ==========================  ======================  ===============================================
name      meaning                     unit                    prior: log-normal, 95 % in
========  ==========================  ======================  ===============================================
P_max     peak effective throughput   tokens/ms               1 - 1000
k_B       batch saturation            1/request               0.01 - 1.0
k_S       token saturation            1/token                 0.001 - 0.1
w_0       fixed work                  effective tokens        0.1 - 100 (documented from 0: three decades)
w_1       work per token              effective tokens/token  0.001 - 1.0
tau_0     fixed latency               ms                      0.05 - 50 (documented from 0)
tau_B     latency per request         ms/request              0.005 - 5 (documented from 0)
tau_S     latency per token           ms/token                0.0001 - 0.1 (documented from 0)
========  ==========================  ======================  ===============================================

Noise, by the option ``noise``:

``proportional``
    :math:`\sigma^2 = \sigma_{floor}^2 + (\sigma_{rel} \mu)^2`: long steps vary more than short ones, and a
    floor stands for the clock and the host. The default: on real traces it predicts better than a constant
    scale.
``constant``
    :math:`\sigma` is the same for all steps.
"""

from __future__ import annotations

import pandas as pd
import pymc as pm
import xarray as xr

from bayes_sched.model.equation import PARAMETERS, Parameter, latency_ms
from bayes_sched.model.likelihood import student_t_model
from bayes_sched.model.priors import Priors
from bayes_sched.sampling.coordinates import SaturationCoordinates

_NU = Parameter("nu", r"\nu", "degrees of freedom of the noise (small: long tails)", "1", 1.0, 30.0)
_NOISE = {
    "proportional": (
        _NU,
        Parameter("sigma_rel", r"\sigma_{rel}", "noise scale relative to the latency", "ms/ms", 0.001, 0.3),
        Parameter("sigma_floor", r"\sigma_{floor}", "noise floor", "ms", 0.01, 3.0),
    ),
    "constant": (_NU, Parameter("sigma", r"\sigma", "noise scale", "ms", 0.03, 30.0)),
}


class Saturation:
    """The documented model; see the module's docstring for the mathematics."""

    name = "saturation"
    title = "saturation equation with Student-t noise"
    parameters = PARAMETERS
    columns: tuple[str, ...] = ("batch_size", "total_tokens")
    noises: tuple[str, ...] = ("proportional", "constant")

    def noise_parameters(self, noise: str) -> tuple[Parameter, ...]:
        """Return the parameters of a noise option."""
        return _NOISE[noise]

    def build(self, steps: pd.DataFrame, priors: Priors, *, noise: str) -> pm.Model:
        """Return the PyMC model: log-normal priors, Student-t observations around :meth:`latency`.

        Parameters
        ----------
        steps : DataFrame
            ``batch_size`` and ``total_tokens``, and ``latency_ms``, the observed latency.
        priors : Priors
            One for each parameter.
        noise : str
            One of :attr:`noises`.
        """
        return student_t_model(self, steps, priors, noise=noise)

    def coordinates(self, steps: pd.DataFrame, priors: Priors, *, noise: str) -> SaturationCoordinates:
        """Return the coordinates that NUTS samples: what a trace identifies, and what it leaves open."""
        return SaturationCoordinates(steps, priors, tuple(p.name for p in self.noise_parameters(noise)))

    def latency(self, draws: xr.Dataset, steps: xr.Dataset) -> xr.DataArray:
        """Return the mean latency in ms."""
        mean: xr.DataArray = latency_ms(
            steps["batch_size"], steps["total_tokens"], **{p.name: draws[p.name] for p in PARAMETERS}
        )
        return mean

    def scale(self, draws: xr.Dataset, mean: xr.DataArray, steps: xr.Dataset) -> xr.DataArray:
        """Return the scale of the noise in ms."""
        if "sigma" in draws:
            return draws["sigma"]
        scale: xr.DataArray = (draws["sigma_floor"] ** 2 + (draws["sigma_rel"] * mean) ** 2) ** 0.5
        return scale

    def combinations(self, draws: xr.Dataset) -> xr.Dataset:
        """Return what the data see of the parameters, whatever single ones they leave open."""
        a_0 = draws["w_0"] / draws["P_max"]
        a_1 = draws["w_1"] / draws["P_max"]
        table = {
            "a_0": (a_0, "saturated cost of the fixed work, w_0 / P_max", "ms"),
            "a_1": (a_1, "saturated cost of a token's work, w_1 / P_max", "ms/token"),
            "c": (a_1 + draws["tau_S"], "slope for large S, a_1 + tau_S", "ms/token"),
            "L_0": (draws["tau_0"] + a_1 / draws["k_S"], "floor for small S, tau_0 + a_1 / k_S", "ms"),
        }
        return xr.Dataset(
            {name: da.assign_attrs(meaning=meaning, unit=unit) for name, (da, meaning, unit) in table.items()}
        )


MODEL = Saturation()
