"""What a fit says, in numbers: computed once, for its report and whoever else asks."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bayes_sched.checks.calibration import Calibration, calibrate
from bayes_sched.checks.discrepancy import Discrepancy, estimate_discrepancy
from bayes_sched.checks.local import LocalCheck, check_locally
from bayes_sched.checks.views import FitViews, band_sizes
from bayes_sched.errors import InputError
from bayes_sched.format import records
from bayes_sched.model.likelihood import effects_of
from bayes_sched.model.protocol import all_parameters
from bayes_sched.posterior.diagnostics import known_priors
from bayes_sched.posterior.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.posterior.provenance import FitDescription
from bayes_sched.posterior.typical_steps import band_table, cost_table, size_table, typical_steps
from bayes_sched.steps import SIZES

SUMMARY_VERSION = 1
"""Raised when a field of :meth:`FitSummary.to_dict` changes its meaning or goes."""
_METADATA_KEYS = (
    "name",
    "labels",
    "model",
    "noise",
    "trace_sha256",
    "traces",
    "rows",
    "cleaning",
    "bad_lines",
    "priors",
    "sampler",
    "timings_s",
    "package_versions",
    "bayes_sched_version",
    "command",
    "created_at",
    "prior_from",
)


@dataclass(frozen=True, eq=False, kw_only=True)
class FitSummary:
    """What a fit says.

    Attributes
    ----------
    fit : FitDescription
    probability : float
        Of every interval and band.
    table : DataFrame
        What typical steps take: ``step``, ``batch_size``, ``total_tokens``; of the predictive distribution
        ``lower_ms``, ``median_ms``, ``upper_ms``, ``q99_ms`` (99th percentile); of the mean latency
        ``mean_lower_ms``, ``mean_median_ms``, ``mean_upper_ms``; ``extrapolation``; and the trace's own
        answer, :meth:`LocalCheck.beside`.
    costs : DataFrame
        What one more request or token adds to the mean latency: ``cost``, ``at`` (where, in words), ``unit``,
        ``lower``, ``median``, ``upper``; ``is_contradicted``, ``extrapolation``: so is the fit at either end.
    coverage : DataFrame
        Share of the observed steps inside predictive bands, as in :class:`Calibration`.
    parameters : DataFrame
        :meth:`FittedModel.parameter_table`, one row a parameter or combination.
    priors : DataFrame
        One row a parameter: ``parameter``, ``unit``, and of its prior ``low`` and ``high`` (central 95 %) and
        ``median``. Where a pool's took the place of the documented ones, as its draws have them, and
        the combinations that data identify with them.
    convergence : DataFrame
        One row a variable: ``variable``, ``kind``, ``r_hat``, ``ess_bulk``, ``ess_tail``, ``passed``.
    gate : dict
        ``num_divergences``, ``e_bfmi`` (a list, one a chain), ``num_draws``, ``num_gradients``.
    effects : DataFrame
        :func:`effect_table`; empty where the model has no varying effects.
    discrepancy : Discrepancy or None
        How much of the error a richer model would explain; None where there is no richer one.
    typical_load : str
        For what context the bands over (B, S) alone are, a sentence; empty where B and S say it all.
    grid : DataFrame
        The bands of `table` over powers of two and the largest seen.
    largest : tuple of int
        Most requests and most tokens of a step of the trace.
    calibration : Calibration
        The observed steps in their predictive distributions.
    local : LocalCheck
        The fit against its own trace, bin by bin.
    views : FitViews or None
        What the figures show, where they are to be drawn.
    """

    fit: FitDescription
    probability: float
    table: pd.DataFrame
    costs: pd.DataFrame
    coverage: pd.DataFrame
    parameters: pd.DataFrame
    priors: pd.DataFrame
    convergence: pd.DataFrame
    gate: dict[str, Any]
    effects: pd.DataFrame
    discrepancy: Discrepancy | None
    typical_load: str
    grid: pd.DataFrame
    largest: tuple[int, int]
    calibration: Calibration
    local: LocalCheck
    views: FitViews | None

    @property
    def converged(self) -> bool:
        """Whether the convergence gate passed."""
        return self.fit.metadata.converged

    @property
    def problems(self) -> tuple[str, ...]:
        """What the convergence gate found."""
        return self.fit.metadata.problems

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values, ready for JSON; a missing number is None.

        Keys: ``summary_version``; ``name``, ``labels``, ``model``, ``noise``, ``trace_sha256``, ``traces``,
        ``rows``, ``cleaning``, ``bad_lines``, ``priors``, ``sampler``, ``timings_s``, ``package_versions``,
        ``bayes_sched_version``, ``command``, ``created_at``, ``prior_from`` as in
        :class:`~bayes_sched.posterior.provenance.FitMetadata`; ``probability``, ``converged``, ``problems``;
        ``typical_steps``, ``costs``, ``coverage``, ``parameters``, ``convergence``, ``effects``, ``local``:
        lists with one mapping a row of the tables above; ``gate``; ``misfit``: the fields of
        :class:`~bayes_sched.checks.discrepancy.Discrepancy`, or None; ``typical_load``.
        """
        metadata = self.fit.metadata.to_attrs()
        described = {key: json.loads(str(metadata[key])) for key in metadata if key in _METADATA_KEYS}
        return {
            "summary_version": SUMMARY_VERSION,
            **described,
            "probability": self.probability,
            "converged": self.converged,
            "problems": list(self.problems),
            "typical_steps": records(self.table),
            "costs": records(self.costs),
            "coverage": records(self.coverage),
            "parameters": records(self.parameters),
            "convergence": records(self.convergence),
            "gate": self.gate,
            "effects": records(self.effects),
            "local": records(self.local.table),
            "misfit": None if self.discrepancy is None else dataclasses.asdict(self.discrepancy),
            "typical_load": self.typical_load,
        }


def summarize(
    fit: FittedModel,
    steps: pd.DataFrame,
    *,
    probability: float = DEFAULT_PROBABILITY,
    is_drawn: bool = True,
) -> FitSummary:
    """Say what a fit found.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame
        The cleaned steps in the order of the trace: ``latency_ms`` (ms) and the model's columns; steps that
        lack one of them are left out. Further columns tell whether a richer model would predict better.
    probability : float
        Of every interval and band, between 0 and 1.
    is_drawn : bool
        Whether to compute what the figures of the report show.

    Returns
    -------
    FitSummary

    Raises
    ------
    InputError
        There are no steps, they lack a column of the model, or the probability is not between 0 and 1.
    """
    steps = _complete(fit, steps)
    typical = typical_steps(steps)
    named, grid = size_table(typical), _grid(steps)
    sizes = {"typical": named, "grid": grid, **(band_sizes(steps) if is_drawn else {})}
    asked = pd.concat(sizes, names=["part", "row"])[[*SIZES]]
    found = band_table(fit, asked, probability=probability).groupby("part")
    bands = {str(part): rows.droplevel("part") for part, rows in found}
    gate, calibration = fit.convergence, calibrate(fit, steps)
    local = check_locally(fit, steps, probability=probability)
    costs = cost_table(fit, typical, probability=probability)
    ends = [costs[[f"{end}_requests", f"{end}_tokens"]].to_numpy().T for end in ("first", "last")]
    costs["is_contradicted"] = np.any([local.is_contradicted(*end) for end in ends], axis=0)
    costs["extrapolation"] = ~np.all([fit.region.contains(*end) for end in ends], axis=0)
    return FitSummary(
        fit=fit.description,
        probability=probability,
        table=local.beside(named.join(bands["typical"].drop(columns=[*SIZES]))),
        costs=costs,
        coverage=calibration.coverage,
        parameters=fit.parameter_table(probability=probability),
        priors=prior_table(fit),
        convergence=gate.table.rename_axis("variable").reset_index(),
        gate={
            "num_divergences": gate.num_divergences,
            "e_bfmi": [float(value) for value in gate.e_bfmi],
            "num_draws": gate.num_draws,
            "num_gradients": gate.num_gradients,
        },
        effects=effect_table(fit, steps, probability=probability),
        discrepancy=estimate_discrepancy(fit, steps),
        typical_load=fit.context_text,
        grid=local.beside(grid.join(bands["grid"].drop(columns=[*SIZES]))),
        largest=(int(fit.cells["batch_size"].max()), int(fit.cells["total_tokens"].max())),
        calibration=calibration,
        local=local,
        views=FitViews.of(fit, steps, bands) if is_drawn else None,
    )


def _complete(fit: FittedModel, steps: pd.DataFrame) -> pd.DataFrame:
    """Return the steps that hold every column of the model."""
    missing = [name for name in fit.model.columns if name not in steps]
    if missing:
        raise InputError(
            f"the steps have no {', '.join(missing)}: a report on a fit of the model {fit.model.name} is "
            "made from steps with every column that it needs"
        )
    steps = steps.dropna(subset=[*fit.model.columns])
    if steps.empty:
        raise InputError("there are no steps to report on")
    return steps


def _grid(steps: pd.DataFrame) -> pd.DataFrame:
    batch_size, total_tokens = (_doubling(int(steps[name].max())) for name in ("batch_size", "total_tokens"))
    pairs = [(b, s) for b in batch_size for s in total_tokens if s >= b]
    return pd.DataFrame(pairs, columns=["batch_size", "total_tokens"])


def _doubling(largest: int) -> list[int]:
    return sorted({2**k for k in range(largest.bit_length())} | {largest})


def prior_table(fit: FittedModel) -> pd.DataFrame:
    """Return what the prior allowed each parameter; columns of :attr:`FitSummary.priors`."""
    documented = fit.metadata.priors if fit.metadata.prior_from is None else None
    known: dict[str, Any] = dict(known_priors(fit.prior[list(fit.metadata.priors)], documented))
    units = {p.name: p.unit for p in all_parameters(fit.model, fit.metadata.noise)}
    if documented is None:
        combinations = fit.model.combinations(fit.prior)
        known |= known_priors(combinations, None)
        units |= {str(name): str(draws.attrs.get("unit", "")) for name, draws in combinations.items()}
    return pd.DataFrame(
        [
            {"parameter": name, "unit": units[name], "low": p.low, "high": p.high, "median": p.median}
            for name, p in known.items()
        ]
    )


def effect_table(fit: FittedModel, steps: pd.DataFrame, *, probability: float) -> pd.DataFrame:
    """Return the factors by which latencies depart from the equation; the steps say which levels have data.

    One row a level of an effect: ``effect``, ``meaning``, ``column`` (of the steps), ``level`` (the values it
    holds, in words), ``first`` and ``last`` of them (the last level of an effect is open: missing),
    ``num_steps``, and the factor: ``lower``, ``median``, ``upper`` (equal tails). Of a level without steps
    the factor is the population's.
    """
    tail = 0.5 * (1.0 - probability)
    tables = []
    for effect in effects_of(fit.model):
        log_factors = fit.posterior[effect.name].transpose("chain", "draw", effect.dim)
        levels = log_factors.quantile([tail, 0.5, 1.0 - tail], ("chain", "draw"))
        lower, median, upper = np.exp(levels.to_numpy())
        level = effect.level(steps.loc[effect.acts_on(steps), effect.column])
        table = pd.DataFrame(
            {
                "level": effect.labels,
                "first": np.array([0.0, *effect.upper]) + 1.0,
                "last": [*effect.upper, np.nan],
                "num_steps": np.bincount(level, minlength=effect.num_levels),
                "lower": lower,
                "median": median,
                "upper": upper,
            }
        )
        told = {"effect": effect.name, "meaning": effect.meaning, "column": effect.column}
        tables.append(table.assign(**told)[[*told, *table.columns]])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
