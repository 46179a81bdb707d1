"""What a trace shows at a glance: a few weighted steps that stand for it, and a linear fit to start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import nnls

Floats = NDArray[np.float64]

_MAX_REFERENCE_STEPS = 64
_LEAST_LATENCY = 0.01  # relative to the median
_LEAST_SHARE = 1e-3  # of a latency, that a start gives to each of its terms

type Terms = Callable[[pd.DataFrame], Mapping[str, Floats]]
"""Steps to what some parameters are multiplied by in their latency, dims (step,)."""


@dataclass(frozen=True)
class ReferenceSteps:
    """A few weighted steps that stand for a trace.

    Attributes
    ----------
    batch_size, total_tokens : ndarray, dims (reference,)
    terms : ndarray, dims (term, reference)
        1, B and S of the reference steps.
    precision : ndarray, dims (reference,)
        Inverse of the squared standard error of each reference step's typical latency, 1/ms^2.
    projection : ndarray, dims (term, reference)
        Weighted least-squares projection of a curve over the reference steps on the terms.
    fit : ndarray, dims (term,)
        Projection of the observed latencies: ms, ms/request, ms/token, each at least a hundredth of the
        median latency.
    width : ndarray, dims (term,)
        A tenth of the median latency, as a level, per request and per token.
    """

    batch_size: Floats
    total_tokens: Floats
    terms: Floats
    precision: Floats
    projection: Floats
    fit: Floats
    width: Floats

    @classmethod
    def from_steps(cls, steps: pd.DataFrame, *, departure: float = 0.0) -> ReferenceSteps:
        """Summarise the steps (``batch_size``, ``total_tokens``, ``latency_ms``).

        Parameters
        ----------
        steps : DataFrame
        departure : float
            How far latencies may depart from the equation for other reasons than noise, relative to them.
        """
        cells = steps.groupby(["total_tokens", "batch_size"])["latency_ms"].agg(["size", "median"])
        cells = cells.reset_index().astype(float)
        weight = cells["size"] / cells["median"] ** 2
        group = _groups(np.sqrt(weight.to_numpy()))
        total = weight.groupby(group).sum()
        mean = cells[["batch_size", "total_tokens", "median"]].mul(weight, axis=0).groupby(group).sum()
        batch_size, total_tokens, latency = mean.div(total, axis=0).to_numpy().T

        terms = np.stack([np.ones_like(batch_size), batch_size, total_tokens])
        gram = (terms * total.to_numpy()) @ terms.T
        gram += 1e-6 * np.diag(np.diag(gram))  # steps of one size only leave the three terms collinear
        projection = np.linalg.solve(gram, terms * total.to_numpy())
        fit = projection @ latency

        residual = steps["latency_ms"] - fit @ [
            np.ones(len(steps)),
            steps["batch_size"].to_numpy(float),
            steps["total_tokens"].to_numpy(float),
        ]
        relative_scale = max(1.48 * float((residual / steps["latency_ms"]).abs().median()), 1e-3)
        typical = np.array([1.0, *steps[["batch_size", "total_tokens"]].median().to_numpy(float)])
        width = 0.1 * float(steps["latency_ms"].median()) / typical
        # Of a group, total is the number of steps over the squared latency.
        precision = 1.0 / (relative_scale**2 / total.to_numpy() + (departure * latency) ** 2)
        return cls(
            batch_size, total_tokens, terms, precision, projection, np.maximum(fit, 0.1 * width), width
        )


def _groups(weight: Floats) -> NDArray[np.int64]:
    """Assign consecutive cells to at most `_MAX_REFERENCE_STEPS` groups of about one weight."""
    if len(weight) <= _MAX_REFERENCE_STEPS:
        return np.arange(len(weight))
    position = np.cumsum(weight) / weight.sum() * _MAX_REFERENCE_STEPS
    return np.minimum(position, _MAX_REFERENCE_STEPS - 1).astype(np.int64)


def linear_start(steps: pd.DataFrame, terms: Terms | None) -> dict[str, float]:
    """Return logarithms of the parameters of `terms` by non-negative least squares of relative residuals.

    A parameter that comes out as 0 gets a thousandth of the median latency as its typical share.
    """
    if terms is None:
        return {}
    latency = steps["latency_ms"].to_numpy(float)
    table = {name: term / latency for name, term in terms(steps).items()}
    size = {name: float(np.mean(term)) for name, term in table.items()}
    used = [name for name in table if size[name] > 0.0]
    values, _ = nnls(np.stack([table[name] / size[name] for name in used], axis=1), np.ones(len(latency)))
    return {
        name: float(np.log(max(value, _LEAST_SHARE) / size[name]))
        for name, value in zip(used, values, strict=True)
    }


def with_positive_latencies(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the steps, none faster than a hundredth of the typical absolute latency.

    Absurd simulated servers have steps of negative latency, whose logarithm is no geometry to sample in.
    """
    latency = steps["latency_ms"]
    return steps.assign(latency_ms=latency.clip(lower=_LEAST_LATENCY * float(latency.abs().median())))
