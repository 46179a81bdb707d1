r"""The saturation equation times partially pooled factors, level by level, with noise by level.

The documented equation is smooth; real latency is a staircase. CUDA graphs are captured for some batch sizes,
so that decode latency jumps between them, and kernels work in tiles of tokens. Here the equation, with what a
step with prefill costs more, is right up to a factor for each level: of B where a step only decodes, of S
where it has prefill (p = 1), which is taken to be where S > B.

.. math::

    \mu = \bigl[T_{sat}(B, S) + p\,(\tau_P + \tau_R B)\bigr]\, e^{r}, \qquad
    \sigma = \mu\, e^{q} \times \begin{cases} \sigma_{decode} & \text{decode only} \\
    \sigma_{prefill} & \text{with prefill,} \end{cases} \qquad T \sim \mathrm{StudentT}(\nu, \mu, \sigma)

with :math:`T_{sat}` the documented equation (``saturation``). Each level has a log factor of the latency, r,
and one of the noise, q, from populations whose spreads are learned. A decode step's r is the sum of that of
its level and of one of its own number of requests B, so that neighbours resemble each other:

.. math::

    r &= r_{level} + r_B, & r_{level}, r_B &\sim \mathrm{Normal}(0, s_d), & q &\sim \mathrm{Normal}(0, s_{qd})
    & \text{(decode only)} \\
    r &= r_{level}, & r_{level} &\sim \mathrm{Normal}(0, s_p), & q &\sim \mathrm{Normal}(0, s_{qp})
    & \text{(with prefill).}

A level with data learns its factors; one without has its factors drawn from the population: the equation
extrapolates, and the band says how far levels were seen to depart from it. The equation is tied to the levels
through their population alone: however many steps a level has, it weighs at most like :math:`s^2 / \sigma^2`.

==============  ===================================================  ==========  ========================
name            meaning                                              unit        prior: log-normal, 95 % in
==============  ===================================================  ==========  ========================
tau_P           fixed latency of a step with prefill                 ms          0.02 - 20 (three decades)
tau_R           latency per request, with prefill                    ms/request  0.001 - 1
s_d, s_p        spread of the log factors: decode only, prefill      1           0.01 - 0.5
sigma_decode    typical noise scale relative to the latency          ms/ms       0.001 - 0.3
sigma_prefill   the same, of steps with prefill                      ms/ms       0.001 - 0.3
s_qd, s_qp      spread of the log factors of the noise               1           0.1 - 1
==============  ===================================================  ==========  ========================

and the eight parameters of ``saturation`` and its nu, with their priors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import pymc as pm
import xarray as xr

from bayes_sched.arrays import Floats
from bayes_sched.model.equation import Parameter
from bayes_sched.model.likelihood import Effect, student_t_model
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import load_model
from bayes_sched.sampling.coordinates import SaturationCoordinates
from bayes_sched.sampling.whitened import LevelCoordinates

SATURATION = load_model("saturation")
STAIRCASE: Any = load_model("saturation_staircase")
TAU_P, TAU_R = (p for p in STAIRCASE.parameters if p.name in {"tau_P", "tau_R"})


def _parameters(*rows: tuple[str, str, str], unit: str, low: float, high: float) -> tuple[Parameter, ...]:
    return tuple(Parameter(name, symbol, meaning, unit, low, high) for name, symbol, meaning in rows)


S_D, S_P = _parameters(
    ("s_d", "s_d", "spread of the log factors, decode only"),
    ("s_p", "s_p", "spread of the log factors, with prefill"),
    unit="1",
    low=0.01,
    high=0.5,
)
S_QD, S_QP = _parameters(
    ("s_qd", "s_{qd}", "spread of the log factors of the noise, decode only"),
    ("s_qp", "s_{qp}", "spread of the log factors of the noise, with prefill"),
    unit="1",
    low=0.1,
    high=1.0,
)
SIGMA = _parameters(
    ("sigma_decode", r"\sigma_{decode}", "typical noise scale relative to the latency, decode only"),
    ("sigma_prefill", r"\sigma_{prefill}", "typical noise scale relative to the latency, with prefill"),
    unit="ms/ms",
    low=0.001,
    high=0.3,
)
NU = next(p for p in SATURATION.noise_parameters("constant") if p.name == "nu")


def _upper(*ranges: Iterable[int]) -> tuple[float, ...]:
    return tuple(float(top) for top in chain(*ranges))


# CUDA graphs are captured for 1, 2, 4, 8, 16, 24, ... requests.
_BY_REQUESTS = (
    "batch_size",
    _upper(range(2, 17, 2), range(20, 65, 4), range(72, 257, 8), range(288, 1025, 32)),
)
_NOISE_BY_REQUESTS = "batch_size", _upper((2, 4), range(8, 257, 8), range(288, 1025, 32))
_BY_REQUEST = "batch_size", _upper(range(1, 65), range(66, 129, 2), range(132, 257, 4), range(272, 1025, 16))
_BY_TOKENS = "total_tokens", STAIRCASE.effects[0].upper
EFFECTS = tuple(
    Effect(name, meaning, spread, column, upper, prefill, noise=noise, by_size=True)
    for name, meaning, spread, column, upper, prefill, noise in (
        ("decode_factor", "log factors by requests, decode only", S_D, *_BY_REQUESTS, False, False),
        (
            "own_factor",
            "log factors of single numbers of requests, decode only",
            S_D,
            *_BY_REQUEST,
            False,
            False,
        ),
        ("prefill_factor", "log factors by tokens, with prefill", S_P, *_BY_TOKENS, True, False),
        (
            "decode_noise",
            "log factors of the noise by requests, decode only",
            S_QD,
            *_NOISE_BY_REQUESTS,
            False,
            True,
        ),
        ("prefill_noise", "log factors of the noise by tokens, with prefill", S_QP, *_BY_TOKENS, True, True),
    )
)
"""Those on the latency, and last those on the noise of decode steps and of steps with prefill."""
_DEPARTURE = 0.05  # of latencies from the equation, relative to them, as coordinates take it


@dataclass(frozen=True)
class SaturationLevels:
    """A smooth equation times factors by level; see the module's docstring for the mathematics."""

    name: str
    title: str
    parameters: tuple[Parameter, ...]
    columns: tuple[str, ...]
    effects: tuple[Effect, ...]
    smooth: Callable[[Any, Any], Any]
    """(draws, steps) -> the latency of steps without the factors, ms."""
    linear: Callable[[pd.DataFrame], dict[str, Floats]]
    """What parameters in which the latency is linear are multiplied by, dims (step,)."""
    noises: tuple[str, ...] = ("levels",)

    def noise_parameters(self, noise: str) -> tuple[Parameter, ...]:
        """Return the parameters of a noise option."""
        return (NU, *SIGMA, S_QD, S_QP)

    def build(self, steps: pd.DataFrame, priors: Priors, *, noise: str) -> pm.Model:
        """Return the PyMC model: the priors, the factors of levels with data, Student-t observations."""
        return student_t_model(self, steps, priors, noise=noise)

    def coordinates(self, steps: pd.DataFrame, priors: Priors, *, noise: str) -> LevelCoordinates:
        """Return the coordinates that NUTS samples: those of ``saturation``, and of the factors."""
        documented = {p.name for p in SATURATION.parameters}
        others = tuple(name for name in priors if name not in documented)
        base = SaturationCoordinates(steps, priors, others, departure=_DEPARTURE, terms=self.linear)
        return LevelCoordinates(base, self.effects, steps, self.multiplied)

    def latency(self, draws: xr.Dataset, steps: xr.Dataset) -> xr.DataArray:
        """Return the mean latency in ms."""
        factors = sum(effect.at(draws, steps) for effect in self.effects if not effect.noise)
        latency: xr.DataArray = self.smooth(draws, steps) * np.exp(factors)
        return latency

    def scale(self, draws: xr.Dataset, mean: xr.DataArray, steps: xr.Dataset) -> xr.DataArray:
        """Return the scale of the noise in ms."""
        *_, decode, prefill = self.effects
        noise = decode.at(draws, steps) + prefill.at(draws, steps)
        has_prefill = prefill.acts_on(steps)
        typical = has_prefill * draws["sigma_prefill"] + ~has_prefill * draws["sigma_decode"]
        scale: xr.DataArray = mean * typical * np.exp(noise)
        return scale

    def multiplied(self, effect: Effect, draws: Any, steps: Any) -> Any:
        """Return what the factors of an effect multiply at steps that it acts on."""
        if effect.noise:
            return draws["sigma_prefill" if effect.prefill else "sigma_decode"]
        return self.smooth(draws, steps)

    def combinations(self, draws: xr.Dataset) -> xr.Dataset:
        """Return what the data see of the parameters, whatever single ones they leave open."""
        return SATURATION.combinations(draws)


def _smooth(draws: Any, steps: Any) -> Any:
    prefill = draws["tau_P"] + draws["tau_R"] * steps["batch_size"]
    return SATURATION.latency(draws, steps) + prefill * EFFECTS[-1].acts_on(steps)


def _linear(steps: pd.DataFrame) -> dict[str, Floats]:
    has_prefill = EFFECTS[-1].acts_on(steps)
    batch_size, tokens = steps["batch_size"], steps["total_tokens"]
    terms = {"tau_0": 1.0 + 0.0 * tokens, "tau_B": batch_size, "tau_S": tokens}
    terms |= {"tau_P": 1.0 * has_prefill, "tau_R": batch_size * has_prefill}
    return {name: term.to_numpy(float) for name, term in terms.items()}


MODEL = SaturationLevels(
    name="saturation_levels",
    title="saturation equation times factors by level, Student-t noise by level",
    parameters=(*SATURATION.parameters, TAU_P, TAU_R, S_D, S_P),
    columns=SATURATION.columns,
    effects=EFFECTS,
    smooth=_smooth,
    linear=_linear,
)
