"""The table of parameters: what the posterior says, how well the chains mixed, what the data added."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.model.priors import Prior, Priors
from bayes_sched.model.protocol import LatencyModel
from bayes_sched.posterior.diagnostics import Convergence, mixing_table

WELL, PARTLY, WEAKLY = 0.9, 0.5, 0.1
"""Contractions from which a parameter counts as well, partly and weakly identified."""
SHIFTED = 0.5
"""Prior standard deviations by which a mean has to move for the data to have said something nonetheless."""


@dataclass(frozen=True)
class KnownPrior:
    """A prior of a positive parameter in numbers: moments of its logarithm, median and central 95 %."""

    mu: float
    sigma: float
    median: float
    low: float
    high: float


type AnyPrior = Prior | KnownPrior


def known_priors(prior: xr.Dataset, priors: Priors | None) -> dict[str, AnyPrior]:
    """Return the prior of each parameter: as documented, else as its draws have it."""
    if priors is not None:
        return dict(priors)
    found: dict[str, AnyPrior] = {}
    for name, draws in prior.items():
        logs = np.log(draws.to_numpy())
        low, median, high = np.exp(np.quantile(logs, [0.025, 0.5, 0.975]))
        mu, sigma = float(logs.mean()), float(logs.std(ddof=1))
        found[str(name)] = KnownPrior(mu, sigma, float(median), float(low), float(high))
    return found


def parameter_table(
    model: LatencyModel,
    posterior: xr.Dataset,
    prior: xr.Dataset,
    gate: Convergence,
    *,
    priors: Priors | None,
    noise: str,
    probability: float,
) -> pd.DataFrame:
    """Return the rows of the documented parameters, the noise parameters and the identified combinations.

    The columns: :meth:`bayes_sched.posterior.fitted.FittedModel.parameter_table`. `priors` is None where a
    population's took their place: their draws tell of them, as those of combinations always do.
    """
    known = known_priors(prior, priors)
    mixing = gate.table[gate.table["kind"] == "parameter"]
    rows = []
    for kind, parameters in (("parameter", model.parameters), ("noise", model.noise_parameters(noise))):
        for p in parameters:
            about = {"name": p.name, "meaning": p.meaning, "unit": p.unit}
            rows.append(_row(about, posterior[p.name], known[p.name], mixing, probability) | {"kind": kind})
    combinations, drawn = model.combinations(posterior), model.combinations(prior)
    mixing = mixing_table(combinations)
    for name, draws in combinations.items():
        about = {"name": str(name), "meaning": draws.attrs["meaning"], "unit": draws.attrs["unit"]}
        logs, median = np.log(drawn[name]), float(drawn[name].median())
        own = KnownPrior(float(logs.mean()), float(logs.std(ddof=1)), median, 0.0, math.inf)
        rows.append(_row(about, draws, own, mixing, probability) | {"kind": "combination"})
    return pd.DataFrame(rows)


def _row(
    about: dict[str, str], draws: xr.DataArray, prior: AnyPrior, mixing: pd.DataFrame, probability: float
) -> dict[str, Any]:
    name, values = about["name"], draws.to_numpy().ravel()
    logs, tail = np.log(values), 0.5 * (1.0 - probability)
    lower, median, upper = np.quantile(values, [tail, 0.5, 1.0 - tail]).tolist()
    contraction = float(1.0 - np.var(logs, ddof=1) / prior.sigma**2)
    words = verdict(name, contraction=contraction, shift=float((logs.mean() - prior.mu) / prior.sigma))
    if not prior.low <= float(np.median(values)) <= prior.high:
        words += f"; outside the prior's central 95 %, {prior.low:.4g} - {prior.high:.4g} {about['unit']}"
    return {
        **about,
        "mean": float(values.mean()),
        "median": median,
        "lower": lower,
        "upper": upper,
        **{column: float(mixing[column].to_dict()[name]) for column in ("ess_bulk", "ess_tail", "r_hat")},
        "prior_median": prior.median,
        "contraction": contraction,
        "verdict": words,
    }


def verdict(name: str, *, contraction: float, shift: float) -> str:
    """Say in words what the data know of a parameter."""
    if contraction >= WELL:
        return "well identified by the data"
    if contraction >= PARTLY:
        return "partly identified by the data"
    if contraction >= WEAKLY:
        return "weakly identified: the prior matters"
    if abs(shift) >= SHIFTED:
        side = "above" if shift > 0 else "below"
        return (
            f"the data move {name} {side} its prior by {abs(shift):.1f} prior standard deviations, "
            "but do not narrow it"
        )
    if contraction <= -WEAKLY:
        return f"the data do not narrow {name}: its posterior is wider than its prior"
    return f"the data say nothing about {name}: its posterior is its prior"
