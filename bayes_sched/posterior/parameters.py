"""The table of parameters: what the posterior says, how well the chains mixed, what the data added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.model.equation import Parameter
from bayes_sched.model.priors import Prior, Priors
from bayes_sched.model.protocol import LatencyModel
from bayes_sched.posterior.diagnostics import mixing_table

WELL, PARTLY, WEAKLY = 0.9, 0.5, 0.1
"""Contractions from which a parameter counts as well, partly and weakly identified."""
SHIFTED = 0.5
"""Prior standard deviations by which a mean has to move for the data to have said something nonetheless."""


def parameter_table(
    model: LatencyModel,
    posterior: xr.Dataset,
    prior: xr.Dataset,
    *,
    priors: Priors | None,
    noise: str,
    probability: float,
) -> pd.DataFrame:
    """Return the rows of the documented parameters, the noise parameters and the identified combinations.

    Parameters
    ----------
    model : LatencyModel
    posterior : Dataset, dims (chain, draw)
    prior : Dataset, dims (draw,)
        Draws from the prior, by which the priors of the combinations are known.
    priors : Priors or None
        None where a population's took their place: draws tell of the parameters' priors too.
    noise : str
        Noise option of the model.
    probability : float
        Of the credible interval, equal tails.

    Returns
    -------
    DataFrame
        See :meth:`bayes_sched.fitted.FittedModel.parameter_table`.
    """
    known = known_priors(prior, priors)
    tables = {
        "parameter": parameter_rows(posterior, known, model.parameters, probability=probability),
        "noise": parameter_rows(posterior, known, model.noise_parameters(noise), probability=probability),
        "combination": combination_rows(
            model.combinations(posterior), model.combinations(prior), probability=probability
        ),
    }
    return pd.concat([table.assign(kind=kind) for kind, table in tables.items()], ignore_index=True)


@dataclass(frozen=True, kw_only=True)
class KnownPrior:
    """A prior of a positive parameter in numbers: moments of its logarithm, median and central 95 %."""

    mu: float
    sigma: float
    median: float
    low: float
    high: float


def known_priors(prior: xr.Dataset, priors: Priors | None) -> dict[str, Prior | KnownPrior]:
    """Return the prior of each parameter: as documented, else as its draws have it."""
    if priors is not None:
        return dict(priors)
    found: dict[str, Prior | KnownPrior] = {}
    for name, draws in prior.items():
        logs = np.log(draws.to_numpy())
        low, median, high = np.exp(np.quantile(logs, [0.025, 0.5, 0.975]))
        found[str(name)] = KnownPrior(
            mu=float(logs.mean()),
            sigma=float(logs.std(ddof=1)),
            median=float(median),
            low=float(low),
            high=float(high),
        )
    return found


def parameter_rows(
    posterior: xr.Dataset,
    priors: Mapping[str, Prior | KnownPrior],
    parameters: Sequence[Parameter],
    *,
    probability: float,
) -> pd.DataFrame:
    """Return the rows of parameters with known priors.

    Parameters
    ----------
    posterior : Dataset, dims (chain, draw)
    priors : mapping of str to Prior or KnownPrior
    parameters : sequence of Parameter
    probability : float
        Of the credible interval, equal tails.

    Returns
    -------
    DataFrame
        See :meth:`bayes_sched.fitted.FittedModel.parameter_table`, without ``kind``.
    """
    mixing = mixing_table(posterior[[p.name for p in parameters]])
    rows = []
    for parameter in parameters:
        prior = priors[parameter.name]
        draws = posterior[parameter.name]
        contraction, shift = _against(draws, mean=prior.mu, sd=prior.sigma)
        rows.append(
            {
                "name": parameter.name,
                "meaning": parameter.meaning,
                "unit": parameter.unit,
                **_summary(draws, probability=probability),
                **_mixing(mixing, parameter.name),
                "prior_median": prior.median,
                "contraction": contraction,
                "verdict": verdict(parameter.name, contraction=contraction, shift=shift)
                + _outside(draws, prior, parameter.unit),
            }
        )
    return pd.DataFrame(rows)


def combination_rows(combinations: xr.Dataset, prior: xr.Dataset, *, probability: float) -> pd.DataFrame:
    """Return the rows of combinations, whose priors are known by draws.

    Parameters
    ----------
    combinations : Dataset, dims (chain, draw)
        Positive quantities, each with attrs ``meaning`` and ``unit``.
    prior : Dataset, dims (draw,)
        The same quantities, drawn from the prior.
    probability : float
        Of the credible interval, equal tails.

    Returns
    -------
    DataFrame
        See :meth:`bayes_sched.fitted.FittedModel.parameter_table`, without ``kind``.
    """
    mixing = mixing_table(combinations)
    rows = []
    for name, draws in combinations.items():
        log_prior = np.log(prior[name])
        contraction, shift = _against(draws, mean=float(log_prior.mean()), sd=float(log_prior.std(ddof=1)))
        rows.append(
            {
                "name": str(name),
                "meaning": draws.attrs["meaning"],
                "unit": draws.attrs["unit"],
                **_summary(draws, probability=probability),
                **_mixing(mixing, str(name)),
                "prior_median": float(prior[name].median()),
                "contraction": contraction,
                "verdict": verdict(str(name), contraction=contraction, shift=shift),
            }
        )
    return pd.DataFrame(rows)


def verdict(name: str, *, contraction: float, shift: float) -> str:
    """Say in words what the data know of a parameter.

    Parameters
    ----------
    name : str
        The parameter.
    contraction : float
        1 - var(log posterior) / var(log prior).
    shift : float
        Distance of the posterior mean of the logarithm from the prior's, in prior standard deviations.

    Returns
    -------
    str
    """
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


def _against(draws: xr.DataArray, *, mean: float, sd: float) -> tuple[float, float]:
    """Return contraction and shift of a positive quantity against the log-normal prior."""
    logs = np.log(draws.to_numpy().ravel())
    return float(1.0 - np.var(logs, ddof=1) / sd**2), float((logs.mean() - mean) / sd)


def _summary(draws: xr.DataArray, *, probability: float) -> dict[str, float]:
    values = draws.to_numpy().ravel()
    tail = 0.5 * (1.0 - probability)
    lower, median, upper = np.quantile(values, [tail, 0.5, 1.0 - tail])
    return {
        "mean": float(values.mean()),
        "median": float(median),
        "lower": float(lower),
        "upper": float(upper),
    }


def _mixing(table: pd.DataFrame, name: str) -> dict[str, float]:
    return {column: float(table.loc[name, column]) for column in ("ess_bulk", "ess_tail", "r_hat")}  # type: ignore[arg-type]


def _outside(draws: xr.DataArray, prior: Prior | KnownPrior, unit: str) -> str:
    median = float(draws.median())
    if prior.low <= median <= prior.high:
        return ""
    return f"; outside the prior's central 95 %, {prior.low:.4g} - {prior.high:.4g} {unit}"
