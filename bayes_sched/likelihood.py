"""The PyMC model of a latency model: log-normal priors, its mean and scale, Student-t observations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from numpy.typing import NDArray

from bayes_sched.effects import Effect, effects_of
from bayes_sched.model import LatencyModel, all_parameters

if TYPE_CHECKING:
    import pandas as pd

    from bayes_sched.priors import Priors


def student_t_model(
    model: LatencyModel,
    steps: pd.DataFrame,
    priors: Priors,
    *,
    noise: str,
) -> pm.Model:
    """Return the PyMC model whose mean and scale are the model's own ``latency`` and ``scale``.

    Traces repeat themselves, so the mean is evaluated once for each distinct combination of the model's
    columns, a *cell*, and the steps refer to their cells.

    Parameters
    ----------
    model : LatencyModel
        Its ``latency`` and ``scale`` must serve PyTensor variables as they serve xarray objects.
    steps : DataFrame
        The model's columns and ``latency_ms``, the observed latency.
    priors : Priors
        One for each parameter.
    noise : str
        Noise option of the model.
    """
    values, coords = step_data(model, steps)
    with pm.Model(coords=coords) as built:
        table: dict[str, Any] = {name: pm.Data(name, values[name], dims="cell") for name in model.columns}
        cell = pm.Data("cell_of_step", values["cell_of_step"], dims="step")
        observed = pm.Data("observed_ms", values["observed_ms"], dims="step")

        theta: dict[str, Any] = {
            p.name: pm.LogNormal(p.name, priors[p.name].mu, priors[p.name].sigma)
            for p in all_parameters(model, noise)
        }
        if priors.population is not None:
            logs = {name: pt.log(value) for name, value in theta.items()}
            pm.Potential("population", priors.population.log_ratio(logs, priors, pt))
        for effect in effects_of(model):
            theta[effect.name], table[effect.dim] = _log_factors(effect, theta, steps, values[effect.column])
        mean = model.latency(theta, table)  # type: ignore[arg-type]
        scale = model.scale(theta, mean, table) * pt.ones_like(mean)  # type: ignore[arg-type]
        pm.StudentT(
            "latency_ms", nu=theta["nu"], mu=mean[cell], sigma=scale[cell], observed=observed, dims="step"
        )
    return built


def step_data(
    model: LatencyModel, steps: pd.DataFrame
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.int64]]]:
    """Return the values of the model's data, and the coordinates of its dims cell and step.

    Parameters
    ----------
    model : LatencyModel
    steps : DataFrame
        The model's columns and ``latency_ms``.
    """
    columns = list(model.columns)
    cells, cell_of_step = np.unique(steps[columns].to_numpy(float), axis=0, return_inverse=True)
    values: dict[str, NDArray[Any]] = {name: cells[:, i] for i, name in enumerate(columns)}
    values["cell_of_step"] = cell_of_step.astype(np.int64)
    values["observed_ms"] = steps["latency_ms"].to_numpy(float)
    return values, {"step": np.arange(len(steps)), "cell": np.arange(len(cells))}


def _log_factors(effect: Effect, theta: dict[str, Any], steps: pd.DataFrame, column: Any) -> tuple[Any, Any]:
    """Return the log factors of the levels with data, and the position among them of each cell's level."""
    seen = effect.seen(steps)
    pm.modelcontext(None).add_coord(effect.dim, [effect.labels[level] for level in seen])
    spread = theta[effect.scale.name] * effect.relative_spread[seen]
    factors = pm.Normal(effect.name, 0.0, spread, dims=effect.dim)
    position = np.searchsorted(seen, effect.level(column)).clip(max=len(seen) - 1)
    return factors, pm.Data(f"{effect.dim}_of_cell", position, dims="cell")
