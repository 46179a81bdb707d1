"""Observed steps against the predictive distribution of the fit that they were used for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.arrays import Bools, Floats
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.steps import sample_steps

PROBABILITIES = (0.5, 0.9, 0.99)
"""Bands whose coverage is counted."""
MAX_STEPS = 12_000
"""Of a longer trace, a random sample of so many steps is checked."""
MAX_MISCOVERAGE = 0.03
"""A 90% band that holds between 87% and 93% of the observed steps counts as right."""
_RESIDUAL_DRAWS = 100


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """How the observed steps lie in their predictive distributions."""

    pit: Floats
    """dims (step,): predictive probability of a latency up to the observed one; uniform if the model is
    right."""
    coverage: pd.DataFrame
    """Columns ``steps`` (which of them: all, decode-only, ...), ``num_steps``, ``probability`` (of the
    predictive band) and ``coverage`` (share of the steps inside it)."""
    max_deviation: float
    """Largest difference between the share of steps below a predictive quantile and its probability."""

    def coverage_of(self, probability: float) -> float:
        """Return the share of all steps inside the central predictive band of a probability."""
        return _share_inside(self.pit, probability)

    @property
    def text(self) -> str:
        """A sentence a person can paste."""
        shares = ", ".join(f"{self.coverage_of(p):.1%} in the {p:.0%} band" for p in PROBABILITIES)
        return (
            f"Of {len(self.pit):,} observed steps, {shares}; the predictive distribution is off by at most "
            f"{100 * self.max_deviation:.1f} percentage points."
        )


def calibrate(fit: FittedModel, steps: pd.DataFrame) -> Calibration:
    """Compare the observed steps with their predictive distributions.

    The steps are those of the fit, so this asks whether the model can describe them, not how it does on
    another day.
    """
    checked = sample_steps(steps, MAX_STEPS)
    pit = fit.probability_below(checked, checked["latency_ms"]).to_numpy()
    rows = [
        {
            "steps": name,
            "num_steps": int(member.sum()),
            "probability": probability,
            "coverage": _share_inside(pit[member], probability),
        }
        for name, member in _groups(checked).items()
        for probability in PROBABILITIES
    ]
    ordered = np.sort(pit)
    rank = np.arange(len(pit) + 1) / len(pit)
    deviation = max(float(np.max(rank[1:] - ordered)), float(np.max(ordered - rank[:-1])))
    return Calibration(pit, pd.DataFrame(rows), deviation)


def _groups(steps: pd.DataFrame) -> dict[str, Bools]:
    """Return which steps belong to each kind: all, decode-only, and halves of the rest by S."""
    tokens = steps["total_tokens"].to_numpy()
    decode = tokens == steps["batch_size"].to_numpy()
    groups = {"all steps": np.ones(len(steps), bool), "decode-only": decode}
    if not decode.all():
        middle = int(np.median(tokens[~decode]))
        groups[f"mixed (S < {middle:,})"] = ~decode & (tokens < middle)
        groups[f"mixed (S ≥ {middle:,})"] = ~decode & (tokens >= middle)
    return {name: member for name, member in groups.items() if member.any()}


def _share_inside(pit: Floats, probability: float) -> float:
    return float(np.mean(np.abs(pit - 0.5) <= probability / 2.0))


def residual_table(fit: FittedModel, steps: pd.DataFrame) -> pd.DataFrame:
    """Return the residuals of the steps, which are in the order of the trace.

    ``batch_size``, ``total_tokens``, ``position`` (number of the step), and the residual from the posterior
    mean of the latency as ``residual_ms`` and, in units of the predictive scale, ``residual_scales``.
    """
    columns = list(fit.model.columns)
    cells = steps[columns].drop_duplicates().reset_index(drop=True)
    draws = thin(fit.posterior, _RESIDUAL_DRAWS)
    table = xr.Dataset({c: ("cell", cells[c].to_numpy(float)) for c in columns})
    mean = fit.model.latency(draws, table)
    scale = fit.model.scale(draws, mean, table).broadcast_like(mean)
    over = [dim for dim in mean.dims if dim != "cell"]
    cells = cells.assign(mean_ms=mean.mean(over).to_numpy(), scale_ms=scale.mean(over).to_numpy())
    joined = steps[columns].merge(cells, on=columns, how="left")
    residual_ms = steps["latency_ms"].to_numpy(float) - joined["mean_ms"].to_numpy()
    return pd.DataFrame(
        {
            "batch_size": steps["batch_size"].to_numpy(),
            "total_tokens": steps["total_tokens"].to_numpy(),
            "position": np.arange(1, len(steps) + 1),
            "residual_ms": residual_ms,
            "residual_scales": residual_ms / joined["scale_ms"].to_numpy(),
        }
    )


def thin(draws: xr.Dataset, max_draws: int) -> xr.Dataset:
    """Return at most about `max_draws` draws over all chains, evenly spaced along ``draw``."""
    num_draws = int(np.prod([draws.sizes[dim] for dim in ("chain", "draw") if dim in draws.sizes]))
    return draws.isel(draw=slice(None, None, max(1, -(-num_draws // max_draws))))
