r"""The saturation equation with attention and a staircase: departures level by level of S.

Latency is a staircase in S, because kernels work in tiles: on one GPU a step of 260 tokens takes twice as
long as one of 250. The documented equation is smooth. Here it is taken at the tokens with their padding to
whole tiles, and for each level of S a factor multiplies what tokens cost in steps with prefill:

.. math::

    \mu = T_{sat}(B, S') + \begin{cases} \tau_C C & \text{decode only} \\
    (e^{p} - 1)\, c_B S' + \tau_P + \tau_R B + \tau_M C + \tau_Q Q & \text{with prefill,} \end{cases}

with :math:`S' = S + \varphi\, (h \lceil S / h \rceil - S)`, or S where a step only decodes; tiles of
h = 16, 32, 64 or 128 tokens, the smallest that holds the step, or 128; the slope :math:`c_B = w_1 / (P_{max}
(1 - e^{-k_B B})) + \tau_S`; a log factor p for each level of S; and the rest as in ``saturation_context``.
The factors come from a population whose spread is learned: at a level up to S,

.. math::  p \sim \mathrm{Normal}\left(0, \frac{s_p}{1 + S / 256}\right),

so that a departure in ms, which comes from tiles, grows with S no more once a step has several of them.
Where a level has no data its factor is drawn from the population: the equation extrapolates, and the band
says how far levels were seen to depart from it. The factors leave the floor alone; if they multiplied all
of the latency they could carry its whole trend, and the slope would be free to vanish. Steps with prefill
may cost more for each request: without :math:`\tau_R` factors take that over.

===================  ==================================================  ==========  ==================
name                 meaning                                             unit        95 % of prior in
===================  ==================================================  ==========  ==================
tau_R                latency per request, with prefill                   ms/request  0.001 - 1
phi                  what a token of padding costs, relative to a token  1           0.05 - 2
s_p                  spread of the log factors of the smallest steps     1           0.02 - 1
sigma_prefill_floor  noise floor, with prefill                           ms          0.01 - 3
===================  ==================================================  ==========  ==================

(log-normal priors) and the parameters, priors and noise options of ``saturation_context``. In ``regime`` the
noise of steps with prefill has a floor of its own: what the staircase leaves of them is nearly as large in
ms for small steps as for large ones.

.. math::

    \sigma^2 = \begin{cases} \sigma_{floor}^2 + (\sigma_{rel} \mu)^2 & \text{decode only} \\
    \sigma_{prefill\,floor}^2 + (\sigma_{prefill} \mu)^2 & \text{with prefill} \end{cases}
"""

from __future__ import annotations

from itertools import chain, pairwise
from typing import Any

import numpy as np
import pandas as pd
import pymc as pm
import xarray as xr
from numpy.typing import NDArray

from bayes_sched.model.equation import PARAMETERS, Parameter, latency_ms
from bayes_sched.model.likelihood import Effect, student_t_model
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import load_model
from bayes_sched.sampling.group_coordinates import DepartureCoordinates, EffectCoordinates

SATURATION = load_model("saturation")
CONTEXT: Any = load_model("saturation_context")


def _every(*stretches: tuple[int, int]) -> tuple[float, ...]:
    """Return the upper ends of levels: (up to, width) for each stretch."""
    starts = (0, *(top for top, _ in stretches[:-1]))
    ranges = (
        range(below + width, top + 1, width) for below, (top, width) in zip(starts, stretches, strict=True)
    )
    return tuple(float(top) for top in chain(*ranges))


TILES = (16.0, 32.0, 64.0, 128.0)
"""Tokens that kernels work on together: the smallest tile that holds a step, or the largest."""
SEVERAL_TILES = 256.0
"""Tokens beyond which the departure of a level, in ms, no longer grows with its tokens."""
PHI = Parameter("phi", r"\varphi", "what a token of padding costs, relative to a token", "1", 0.05, 2.0)
TAU_R = Parameter("tau_R", r"\tau_R", "latency per request, with prefill", "ms/request", 1e-3, 1.0)
SIGMA_PREFILL_FLOOR = Parameter(
    "sigma_prefill_floor", r"\sigma_{prefill\,floor}", "noise floor, with prefill", "ms", 0.01, 3.0
)
FACTOR = Effect(
    "prefill_factor",
    "log factors by tokens, with prefill",
    Parameter("s_p", "s_p", "spread of the log factors of the smallest steps", "1", 0.02, 1.0),
    "total_tokens",
    _every((32, 16), (512, 32), (1024, 64), (2048, 128), (4096, 256), (8192, 512)),
    prefill=True,
    fade=SEVERAL_TILES,
)


class SaturationStaircase:
    """The equation, attention and a staircase; see the module's docstring for the mathematics."""

    name = "saturation_staircase"
    title = "saturation equation with attention and a staircase, Student-t noise"
    parameters = (*CONTEXT.parameters, TAU_R, PHI, FACTOR.scale)
    columns: tuple[str, ...] = CONTEXT.columns
    noises: tuple[str, ...] = CONTEXT.noises
    effects = (FACTOR,)

    def noise_parameters(self, noise: str) -> tuple[Parameter, ...]:
        """Return the parameters of a noise option."""
        parameters: tuple[Parameter, ...] = CONTEXT.noise_parameters(noise)
        return (*parameters, SIGMA_PREFILL_FLOOR) if noise == "regime" else parameters

    def build(self, steps: pd.DataFrame, priors: Priors, *, noise: str) -> pm.Model:
        """Return the PyMC model: the priors, the factors of levels with data, Student-t observations."""
        return student_t_model(self, steps, priors, noise=noise)

    def coordinates(self, steps: pd.DataFrame, priors: Priors, *, noise: str) -> EffectCoordinates:
        """Return the coordinates that NUTS samples: those of ``saturation_context``, and of the factors."""
        others = (*self.parameters[len(SATURATION.parameters) :], *self.noise_parameters(noise))
        names = tuple(p.name for p in others)
        base = DepartureCoordinates(steps, priors, names, departure=0.2, terms=self.terms)
        return EffectCoordinates(base, (FACTOR,), steps, self.split)

    def terms(self, steps: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
        """Return what parameters in which the latency is nearly linear are multiplied by, dims (step,)."""
        per_request = steps["batch_size"].where(steps["num_prefill_reqs"] > 0, 0.0)
        return {**CONTEXT.terms(steps), "tau_R": per_request.to_numpy(float)}

    def latency(self, draws: xr.Dataset, steps: xr.Dataset) -> xr.DataArray:
        """Return the mean latency in ms."""
        work, rest = self.split(draws, steps)
        latency: xr.DataArray = work * np.exp(FACTOR.at(draws, steps)) + rest
        return latency

    def split(self, draws: Any, steps: Any) -> tuple[Any, Any]:
        """Return what the factors multiply, the slope times the tokens, and what they do not, both in ms."""
        has_prefill = steps["num_prefill_reqs"] > 0
        tokens = steps["total_tokens"]
        tile = TILES[0] + sum((tokens > small) * (large - small) for small, large in pairwise(TILES))
        padding = -(-tokens // tile) * tile - tokens
        padded = tokens + has_prefill * draws["phi"] * padding
        batch_size = steps["batch_size"]
        equation = latency_ms(batch_size, padded, **{p.name: draws[p.name] for p in PARAMETERS})
        slope = draws["tau_S"] - draws["w_1"] / draws["P_max"] / np.expm1(-draws["k_B"] * batch_size)
        work = slope * padded
        per_request = has_prefill * draws["tau_R"] * batch_size
        return work, equation - work + CONTEXT.attention(draws, steps) + per_request

    def scale(self, draws: xr.Dataset, mean: xr.DataArray, steps: xr.Dataset) -> xr.DataArray:
        """Return the scale of the noise in ms."""
        scale: xr.DataArray = CONTEXT.scale(draws, mean, steps)
        if "sigma_prefill_floor" not in draws:
            return scale
        prefill = (draws["sigma_prefill_floor"] ** 2 + (draws["sigma_prefill"] * mean) ** 2) ** 0.5
        has_prefill = steps["num_prefill_reqs"] > 0
        return has_prefill * prefill + ~has_prefill * scale

    def combinations(self, draws: xr.Dataset) -> xr.Dataset:
        """Return what the data see of the parameters, whatever single ones they leave open."""
        return SATURATION.combinations(draws)


MODEL = SaturationStaircase()
