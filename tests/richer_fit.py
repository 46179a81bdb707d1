"""Fits without sampling of models that know more of a step than its size, for `staircase.staircase_steps`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pymc as pm
import xarray as xr

from bayes_sched.model.equation import Parameter
from bayes_sched.model.likelihood import Effect, effects_of, with_effects
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import LatencyModel, all_parameters, load_model, load_model_file
from bayes_sched.posterior.fit import summarise_cells
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.provenance import ModelIdentity
from bayes_sched.posterior.typical_load import TypicalLoad
from tests import staircase
from tests.synthetic_fit import synthetic_fit, synthetic_metadata

STEPS = staircase.staircase_steps(800, seed=4)
"""The trace of the fits."""

_SATURATION = load_model("saturation")
_REQUESTS = tuple(float(b) for b in (*range(1, 17), 20, 24, 28, 32, 64))
_TOKENS = tuple(float(s) for s in (*range(32, 513, 32), *range(576, 1025, 64)))


def _effect(name: str, column: str, upper: tuple[float, ...], *, prefill: bool) -> Effect:
    kind = "with prefill" if prefill else "decode only"
    words = f"log factors by {column.replace('_', ' ')}, {kind}"
    scale = Parameter(f"s_{name}", f"s_{name[0]}", f"spread of the {words}", "1", 0.005, 0.3)
    return Effect(name, words, scale, column, upper, prefill)


class Stairs:
    """The equation times a factor by level, and the cost of context: what the simulation does."""

    name = "stairs"
    title = "a staircase for tests"
    effects = (
        _effect("decode", "batch_size", _REQUESTS, prefill=False),
        _effect("tokens", "total_tokens", _TOKENS, prefill=True),
    )
    parameters = (
        *_SATURATION.parameters,
        *(Parameter(name, name, name, "ms/token", 1e-8, 1e-2) for name in ("tau_C", "tau_M", "tau_Q")),
        *(effect.scale for effect in effects),
    )
    columns: tuple[str, ...] = (*_SATURATION.columns, "context_tokens", "prefill_pairs", "num_prefill_reqs")
    noises: tuple[str, ...] = ("proportional",)

    def noise_parameters(self, noise: str) -> tuple[Parameter, ...]:
        """Those of the equation alone."""
        return _SATURATION.noise_parameters(noise)

    def build(self, steps: pd.DataFrame, priors: Priors, *, noise: str) -> pm.Model:
        """It is never sampled."""
        raise NotImplementedError

    def coordinates(self, steps: pd.DataFrame, priors: Priors, *, noise: str) -> None:
        """It is never sampled."""

    def latency(self, draws: xr.Dataset, steps: xr.Dataset) -> xr.DataArray:
        """Return the mean latency in ms."""
        has_prefill = steps["num_prefill_reqs"] > 0
        per_context = has_prefill * draws["tau_M"] + ~has_prefill * draws["tau_C"]
        smooth = _SATURATION.latency(draws, steps) * np.exp(sum(e.at(draws, steps) for e in self.effects))
        mean: xr.DataArray = (
            smooth + per_context * steps["context_tokens"] + draws["tau_Q"] * steps["prefill_pairs"]
        )
        return mean

    def scale(self, draws: xr.Dataset, mean: xr.DataArray, steps: xr.Dataset) -> xr.DataArray:
        """Return the scale of the noise in ms."""
        return _SATURATION.scale(draws, mean, steps)

    def combinations(self, draws: xr.Dataset) -> xr.Dataset:
        """Those of the equation alone."""
        return _SATURATION.combinations(draws)


_VALUES = {
    # the equation as a line
    "P_max": 500.0,
    "k_B": 1.0,
    "k_S": 0.1,
    "w_0": 0.1,
    "w_1": 0.001,
    "tau_0": staircase.TRUTH["floor_ms"],
    "tau_B": staircase.TRUTH["per_request"],
    "tau_S": staircase.TRUTH["per_token"],
    **{name: staircase.TRUTH[name] for name in ("tau_C", "tau_M", "tau_Q")},
    "s_decode": 0.02,
    "s_tokens": 0.3,
    "nu": 5.0,
    "sigma_rel": 0.02,
    "sigma_prefill": 0.02,
    "sigma_floor": 0.02,
}


def richer_fit(name: str | None = None) -> FittedModel:
    """A fit of `Stairs`, or of a shipped model without effects, narrow around the simulation's truth.

    What the simulation does not know of, such as a fixed cost of prefill, is next to nothing.
    """
    loaded = None if name is None else load_model_file(name)
    model: LatencyModel = Stairs() if loaded is None else loaded.model
    identity = ModelIdentity(
        name=model.name, sha256=loaded.sha256 if loaded else "0" * 64, shipped=loaded is not None
    )
    parameters = all_parameters(model, model.noises[0])
    priors = Priors.from_parameters(parameters)
    values = {key: prior.low for key, prior in priors.items()} | _VALUES
    base, rng = synthetic_fit(chains=4, draws=100), np.random.default_rng(5)
    posterior = xr.Dataset(
        {
            p.name: (("chain", "draw"), values[p.name] * np.exp(0.01 * rng.standard_normal((4, 100))))
            for p in parameters
        },
        coords={"chain": np.arange(4), "draw": np.arange(100)},
    )
    prior = xr.Dataset(
        {key: ("draw", np.exp(p.mu + p.sigma * rng.standard_normal(500))) for key, p in priors.items()}
    )
    posterior, prior = (with_effects(draws, effects_of(model), rng) for draws in (posterior, prior))
    for effect in effects_of(model):
        seen = effect.seen(STEPS)
        learned = true_factors(effect)[seen] + 0.01 * rng.standard_normal((4, 100, len(seen)))
        posterior[effect.name][..., seen] = learned
    groups = {f"/{key}": node.to_dataset() for key, node in base.data.children.items()}
    groups |= {
        "/posterior": posterior,
        "/prior": prior,
        "/cells": summarise_cells(STEPS),
        "/typical": TypicalLoad.of(STEPS).to_dataset(),
    }
    metadata = synthetic_metadata(
        name="richer", model=identity, noise=model.noises[0], priors=priors, warnings=()
    )
    return FittedModel(data=xr.DataTree.from_dict(groups), model=model, metadata=metadata)


def true_factors(effect: Effect) -> np.ndarray[Any, Any]:
    """Return the log factors that lift the line to the simulation's stairs, dims (level,)."""
    if not effect.prefill:
        return np.zeros(effect.num_levels)
    first = np.array([0.0, *effect.upper]) + 1.0
    line = _VALUES["tau_0"] + _VALUES["tau_B"] * 14.0 + _VALUES["tau_S"] * (first + 15.0)
    stairs = sum(height * (first > edge) for edge, height in staircase.STAIR_MS.items())
    factors: np.ndarray[Any, Any] = np.log1p(stairs / line)
    return factors


def without_context(steps: pd.DataFrame) -> pd.DataFrame:
    """The steps as a trace shows them that holds no context."""
    return steps.drop(columns=["context_tokens", "prefill_pairs"])
