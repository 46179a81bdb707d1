"""Risk and confidence of single steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from bayes_sched.arrays import Bools, Floats
from bayes_sched.errors import InputError
from bayes_sched.posterior.fitted import DEFAULT_MAX_DRAWS, DEFAULT_PROBABILITY, FittedModel
from bayes_sched.posterior.prediction import PerDraw, band_levels, check_probability
from bayes_sched.steps import Steps

DEFAULT_QUANTILE = 0.99
"""Share of the steps, or of the requests, that must keep a limit, unless told otherwise."""
DEFAULT_CONFIDENCE = 0.95
"""How sure one must be of that, unless told otherwise."""

ROUNDING = 1e-12
"""A share of draws such as 19/20 must count as 0.95."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A share `quantile` within `limit_ms`, known with `confidence`; InputError for a value out of range."""

    limit_ms: float
    """Latency not to exceed, ms, positive."""
    quantile: float = DEFAULT_QUANTILE
    """Share of the steps (or requests) that must keep the limit, between 0 and 1."""
    confidence: float = DEFAULT_CONFIDENCE
    """Posterior probability with which they must, between 0 and 1."""

    def __post_init__(self) -> None:
        if not 0.0 < self.limit_ms < math.inf:
            raise InputError(f"a limit of {self.limit_ms:g} ms: give a positive number of milliseconds")
        check_probability(self.quantile, name="quantile")
        check_probability(self.confidence, name="confidence")

    @property
    def text(self) -> str:
        """A phrase a person can paste."""
        return (
            f"{100 * self.quantile:g}% within {self.limit_ms:g} ms, with {100 * self.confidence:g}% "
            "confidence"
        )

    def to_dict(self) -> dict[str, float]:
        """Return plain values, ready for JSON."""
        return {"slo_ms": self.limit_ms, "quantile": self.quantile, "confidence": self.confidence}

    def confidence_of(self, quantile_ms: Floats) -> Floats:
        """Return the share of draws whose quantile keeps the limit, dims (draw, ...) -> (...)."""
        share: Floats = np.mean(quantile_ms <= self.limit_ms, axis=0)
        return share

    def is_confident(self, confidence: Floats | float) -> Bools:
        """Return whether confidences are as high as asked."""
        return np.asarray(confidence >= self.confidence - ROUNDING)

    def is_surely_kept(self, quantile_ms: Floats) -> Bools:
        """Return whether enough draws have a quantile that keeps the limit, dims (draw, ...) -> (...)."""
        return self.is_confident(self.confidence_of(quantile_ms))


def objectives_of(
    limits_ms: Mapping[str, float | None], *, quantile: float, confidence: float, probability: float
) -> dict[str, Objective | None]:
    """Return what is asked of each time, None where it has no limit; all probabilities are checked."""
    for name, share in (("quantile", quantile), ("confidence", confidence), ("probability", probability)):
        check_probability(share, name=name)
    return {
        key: None if ms is None else Objective(limit_ms=ms, quantile=quantile, confidence=confidence)
        for key, ms in limits_ms.items()
    }


def flat_draws(draws: xr.DataArray) -> Floats:
    """Return values of each draw, dims (draw, step), the chains after one another."""
    values: Floats = np.ascontiguousarray(draws.transpose("chain", "draw", "step"), dtype=np.float64)
    return values.reshape(-1, values.shape[-1])


def noise_draws(fit: FittedModel, steps: Steps, *, max_draws: int | None) -> tuple[Floats, Floats, Floats]:
    """Return location and scale of each draw, ms, dims (draw, step), and degrees of freedom, dims (draw,)."""
    evaluator = fit.evaluator(max_draws)
    functions: tuple[PerDraw, ...] = (
        lambda mean, scale, nu, x: mean,
        lambda mean, scale, nu, x: scale,
        lambda mean, scale, nu, x: nu + 0.0 * mean,
    )
    mean, scale, nu = (flat_draws(evaluator.per_draw(steps, function)) for function in functions)
    return mean, scale, np.ascontiguousarray(nu[:, 0])


def refusals(fit: FittedModel, *, accept_unconverged: bool) -> tuple[str, ...]:
    """Return why nothing is promised whatever the numbers say; empty where nothing stands against it."""
    if fit.converged or accept_unconverged:
        return ()
    return (
        f"The fit {fit.metadata.name} has not converged: its numbers are shown, and nothing is promised "
        "on them.",
    )


def step_risk(
    fit: FittedModel,
    steps: Steps,
    objective: Objective,
    *,
    probability: float = DEFAULT_PROBABILITY,
    max_draws: int | None = DEFAULT_MAX_DRAWS,
) -> xr.Dataset:
    """Return how probably each step keeps the limit, and how sure one may be that the quantile does.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame or Dataset
    objective : Objective
    probability : float
        Of the credible interval.
    max_draws : int or None

    Returns
    -------
    Dataset, dims of the steps
        ``probability``: risk, P(latency <= limit) of the posterior predictive; ``lower``, ``upper``: credible
        interval of P(latency <= limit) over the draws, equal tails; ``confidence``: share of the draws in
        which at least the asked share of such steps keeps the limit; ``extrapolation`` (bool).

    Raises
    ------
    InputError
        A step is impossible, or the probability is not between 0 and 1.
    """
    levels = band_levels(probability)
    below = fit.probability_below_draws(steps, objective.limit_ms, max_draws=max_draws)
    is_possible = below.isel(chain=0, draw=0, drop=True).notnull()
    values = below.transpose("chain", "draw", ...).to_numpy().reshape(-1, *is_possible.shape)
    lower, upper = np.quantile(values, levels[[0, 2]], axis=0)
    parts = {
        "probability": values.mean(axis=0),
        "lower": lower,
        "upper": upper,
        "confidence": (values >= objective.quantile).mean(axis=0),
    }
    columns = {name: is_possible.copy(data=part).where(is_possible) for name, part in parts.items()}
    return xr.Dataset({**columns, "extrapolation": fit.extrapolation(steps)})
