"""Leave-one-out by Pareto-smoothed importance sampling, and models compared by it step by step.

A fit's log density of each of its steps given the others; between models on the same steps, differences of
these and standard errors that autocorrelation does not fool.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import arviz_stats as azs
import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats.base.array import array_stats

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError
from bayes_sched.format import listed, records
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.prediction import as_threshold, component_log_density
from bayes_sched.trace.cleaning import choose_rows

MAX_VALUES: Final = 2**20
"""Draws times steps of one chunk. An array of them takes 8 MB, and at most five are alive at once."""

MAX_K: Final = 0.7
"""Pareto k up to which an estimate is reliable; less where there are fewer than 2,200 draws."""

MAX_UNRELIABLE_SHARE: Final = 0.01
"""With a larger share of steps above, the sum over the steps is not to be trusted either."""

CAVEAT: Final = (
    "Leave-one-out answers for steps like those seen, whose neighbours in time are known. Steps of a trace "
    "are autocorrelated: a standard error that takes them for independent is too small. For stretches of "
    "time that were not seen, see the splits blocks and time of scripts/validate.py."
)

NUM_STRETCHES: Final = 20
"""Stretches of consecutive steps, from whose sums a standard error follows that autocorrelation does not fool
as long as it reaches less far than a stretch."""

SMALL_DIFFERENCE: Final = 4.0
"""Below this, a difference's standard error is no guide to its sign (Sivula et al. 2025)."""

_MIN_DRAWS = 100
_MIN_PER_STRETCH = 5
_NUM_NAMED = 3
_SIZES = ["batch_size", "total_tokens", "latency_ms"]


@dataclass(frozen=True, eq=False, kw_only=True)
class LeaveOneOut:
    """How well a fit predicts each of its steps from the others."""

    table: pd.DataFrame
    """One row a step, in the order of the steps: ``batch_size``, ``total_tokens``, ``latency_ms``, ``elpd``
    (log density of the step given the others, latency in ms), ``p_loo`` (effective parameters it takes) and
    ``pareto_k``."""
    num_draws: int  # posterior draws, all chains together
    converged: bool  # whether the fit passed its convergence gate

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self.table)

    @property
    def elpd(self) -> float:
        """Expected log predictive density, summed over the steps; more is better."""
        return float(self.table["elpd"].sum())

    @property
    def se(self) -> float:
        """Standard error of :attr:`elpd`, steps taken for independent; too small, as they are not."""
        return float(np.sqrt(self.num_steps * self.table["elpd"].var(ddof=1)))

    @property
    def p_loo(self) -> float:
        """Effective number of parameters."""
        return float(self.table["p_loo"].sum())

    @property
    def max_k(self) -> float:
        """Pareto k up to which an estimate is reliable, given the number of draws; at most `MAX_K`."""
        return min(MAX_K, 1.0 - 1.0 / math.log10(self.num_draws))

    @cached_property
    def unreliable(self) -> pd.DataFrame:
        """The rows of :attr:`table` whose Pareto k is above :attr:`max_k`, the largest first."""
        is_reliable = self.table["pareto_k"] <= self.max_k  # a k that is no number is none to rely on
        return self.table[~is_reliable].sort_values("pareto_k", ascending=False, na_position="first")

    @property
    def reliable(self) -> bool:
        """Whether at most `MAX_UNRELIABLE_SHARE` of the steps have a Pareto k above :attr:`max_k`."""
        return len(self.unreliable) <= MAX_UNRELIABLE_SHARE * self.num_steps

    @property
    def text(self) -> str:
        """A paragraph a person can paste."""
        failed = "The fit failed its convergence gate, so none of this can be relied on. "
        return (
            f"elpd {self.elpd:,.1f} (standard error at least {self.se:,.1f}) over {self.num_steps:,} steps, "
            f"{self.p_loo:,.1f} effective parameters. {self.pareto_text} "
            f"{'' if self.converged else failed}{CAVEAT}"
        )

    @property
    def pareto_text(self) -> str:
        """What the Pareto k say, and of which steps."""
        num_bad, limit = len(self.unreliable), f"{self.max_k:.2g}"
        if not num_bad:
            return f"Every Pareto k is at most {limit}: the estimate is reliable."
        ranges = []
        for symbol, column in (("B", "batch_size"), ("S", "total_tokens")):
            low, high = self.unreliable[column].min(), self.unreliable[column].max()
            ranges.append(f"{symbol} {low:,g}" if low == high else f"{symbol} {low:,g} to {high:,g}")
        worst = [
            f"step {step} (B = {row.batch_size:g}, S = {row.total_tokens:g}, {row.latency_ms:.1f} ms, "
            f"k = {row.pareto_k:.2f})"
            for step, row in zip(self.unreliable.index, self.unreliable.itertuples(), strict=True)
        ]
        more = f" and {num_bad - _NUM_NAMED:,} more" if num_bad > _NUM_NAMED else ""
        verdict = "of the whole is reliable, of these steps it is not"
        if not self.reliable:
            verdict = "is unreliable: trust held-out scores (scripts/validate.py) instead"
        return (
            f"{num_bad:,} of {self.num_steps:,} steps have Pareto k above {limit} "
            f"({', '.join(ranges)}): {', '.join(worst[:_NUM_NAMED])}{more}. The estimate {verdict}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the sums and the unreliable steps under names that say what they are, ready for JSON."""
        return {
            "elpd": self.elpd,
            "elpd_se": self.se,
            "p_loo": self.p_loo,
            "pareto_k_limit": self.max_k,
            "num_unreliable": len(self.unreliable),
            "unreliable_steps": [int(step) for step in self.unreliable.index],
            "reliable": self.reliable,
            "converged": self.converged,
        }


def leave_one_out(fit: FittedModel, steps: pd.DataFrame, *, max_values: int = MAX_VALUES) -> LeaveOneOut:
    """Estimate how well a fit predicts each of the steps it was made from by the others.

    The answer is for steps like those seen: see the module.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame
        The very steps of the fit, one row each: ``latency_ms`` and the model's columns.
    max_values : int
        Draws times steps that are worked on at once; memory grows with it, the result does not depend on it.

    Raises
    ------
    InputError
        A column is missing, a value is none, the fit has fewer than 100 draws, or the model gives a step no
        finite likelihood.
    """
    posterior = fit.posterior
    num_draws = posterior.sizes["chain"] * posterior.sizes["draw"]
    if num_draws < _MIN_DRAWS:
        raise InputError(f"{num_draws} draws are too few for leave-one-out: give {_MIN_DRAWS} draws or more")
    efficiency = _relative_efficiency(posterior)
    found = []
    for chunk in log_likelihoods(fit, steps, max_values=max_values):
        values: Floats = chunk.to_numpy()
        is_finite = np.isfinite(values).all(axis=(0, 1))
        if not is_finite.all():  # a step without a likelihood must not drop out of a sum
            step = int(chunk["step"][~is_finite][0])
            raise InputError(
                f"the model {fit.model.name} gives step {step} no finite likelihood for some draws"
            )
        # Where no Pareto distribution can be fitted to weights far apart, k is infinite or no number.
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            found.append(array_stats.loo(values, chain_axis=0, draw_axis=1, r_eff=efficiency))
    elpd, pareto_k, p_loo = (np.concatenate(values) for values in zip(*found, strict=True))
    table = steps[_SIZES].reset_index(drop=True).assign(elpd=elpd, p_loo=p_loo, pareto_k=pareto_k)
    return LeaveOneOut(table=table, num_draws=num_draws, converged=fit.converged)


def log_likelihoods(
    fit: FittedModel, steps: pd.DataFrame, *, max_values: int = MAX_VALUES
) -> Iterator[xr.DataArray]:
    """Yield log densities (ms) of consecutive steps for each draw, dims (chain, draw, step), a few at a time.

    `max_values` draws times steps at once, but at least one step; coordinate ``step`` counts all from 0.
    """
    if "latency_ms" not in steps:
        raise InputError("the steps have no latency_ms: leave-one-out scores observed latencies")
    evaluator = fit.evaluator(None)
    size = max(1, max_values // (fit.posterior.sizes["chain"] * fit.posterior.sizes["draw"]))
    for start in range(0, len(steps), size):
        chunk = steps.iloc[start : start + size].reset_index(drop=True)
        observed_ms = as_threshold(chunk["latency_ms"])
        found = evaluator.per_draw(chunk, component_log_density, threshold=observed_ms)
        yield found.assign_coords(step=np.arange(start, start + len(chunk))).rename("log_likelihood")


def _relative_efficiency(posterior: xr.Dataset) -> float:
    """Return effective over actual draws, the mean over all parameters: how long a tail can be smoothed."""
    num_chains, num_draws = posterior.sizes["chain"], posterior.sizes["draw"]
    if num_chains < 2 or num_draws < 4:
        return 1.0
    found = azs.ess(posterior, method="mean")
    values = np.concatenate([found[name].to_numpy().ravel() for name in posterior.data_vars])
    return float(values.mean()) / (num_chains * num_draws)


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelComparison:
    """Models by how well they predict steps like those seen."""

    table: pd.DataFrame
    """One row a model, the best first, index ``model``: ``elpd`` and ``elpd_se``; ``difference`` of the elpd
    from the best model's (0 or less), its standard errors ``difference_se`` (steps taken for independent) and
    ``difference_se_stretches`` (from `NUM_STRETCHES` stretches of consecutive steps; NaN where there are
    fewer than 100 steps); ``p_loo``; ``num_unreliable`` (steps whose Pareto k is too large); ``weight`` in
    the mixture of the models that would predict best (stacking)."""
    members: Mapping[str, LeaveOneOut]

    @property
    def best(self) -> str:
        """Name of the model with the largest elpd."""
        return str(self.table.index[0])

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return next(iter(self.members.values())).num_steps

    def value(self, column: str, model: str) -> float:
        """Return one number of :attr:`table`."""
        return float(self.table[column].to_dict()[model])

    def is_behind(self, model: str) -> bool:
        """Return whether a model is worse than the best by more than twice the larger standard error."""
        errors = [self.value(name, model) for name in ("difference_se", "difference_se_stretches")]
        least = max(2.0 * float(np.nanmax(errors)), SMALL_DIFFERENCE)
        return -self.value("difference", model) > least

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the table says, where it cannot be relied on, and what it is not about."""
        others = [str(name) for name in self.table.index[1:]]
        equals = [name for name in others if not self.is_behind(name)]
        best = self.members[self.best]
        first = f"{self.best} predicts best over {self.num_steps:,} steps."
        if not (best.reliable and best.converged):
            first = (
                f"{self.best} has the largest elpd over {self.num_steps:,} steps, but cannot be relied on, "
                "so neither can the differences from it."
            )
        if equals:
            first += f" Not told apart from it (by twice the standard error): {listed(equals)}."
        warnings = [f"{name}: {loo.pareto_text}" for name, loo in self.members.items() if len(loo.unreliable)]
        gate = [
            f"{name}: the fit failed its convergence gate, so its row cannot be relied on."
            for name, loo in self.members.items()
            if not loo.converged
        ]
        return (first, *warnings, *gate, CAVEAT)

    @property
    def text(self) -> str:
        """The sentences, as paragraphs."""
        return "\n".join(textwrap.fill(text, 100, break_on_hyphens=False) for text in self.sentences)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers, ready for JSON: ``models``, a list from the best, and ``best``."""
        rows = records(self.table.reset_index())
        models = [{**row, **self.members[row["model"]].to_dict()} for row in rows]
        return {"best": self.best, "steps": self.num_steps, "models": models}


def compare_models(members: Mapping[str, LeaveOneOut]) -> ModelComparison:
    """Compare models that were fitted to the same steps, in the order of the trace.

    Parameters
    ----------
    members : mapping of str to LeaveOneOut
        By the models' names.

    Raises
    ------
    InputError
        There is no model, or they were not fitted to the same steps.
    """
    if not members:
        raise InputError("there is no model to compare")
    first, *others = members
    for name in others:
        if not members[first].table[_SIZES].equals(members[name].table[_SIZES]):
            raise InputError(f"{first} and {name} were fitted to different steps: they do not compare")
    order = sorted(members, key=lambda name: -members[name].elpd)
    best = members[order[0]].table["elpd"].to_numpy()
    differences = [members[name].table["elpd"].to_numpy() - best for name in order]
    weights = _weights(members)
    table = pd.DataFrame(
        {
            "elpd": [members[name].elpd for name in order],
            "elpd_se": [members[name].se for name in order],
            "difference": [float(d.sum()) for d in differences],
            "difference_se": [float(np.sqrt(len(d) * d.var(ddof=1))) for d in differences],
            "difference_se_stretches": [_se_of_stretches(d) for d in differences],
            "p_loo": [members[name].p_loo for name in order],
            "num_unreliable": [len(members[name].unreliable) for name in order],
            "weight": [weights[name] for name in order],
        },
        index=pd.Index(order, name="model"),
    )
    return ModelComparison(table=table, members=dict(members))


def _se_of_stretches(difference: Floats) -> float:
    """Return the standard error of the sum from the sums of stretches of consecutive steps."""
    if len(difference) < _MIN_PER_STRETCH * NUM_STRETCHES:
        return float("nan")
    means = np.array([part.mean() for part in np.array_split(difference, NUM_STRETCHES)])
    return float(len(difference) * means.std(ddof=1) / np.sqrt(NUM_STRETCHES))


def _weights(members: Mapping[str, LeaveOneOut]) -> dict[str, float]:
    """Return the stacking weights, by ArviZ."""
    summaries = {
        name: azs.ELPDDataLOO(
            elpd=loo.elpd,
            se=loo.se,
            p=loo.p_loo,
            n_samples=loo.num_draws,
            n_data_points=loo.num_steps,
            scale="log",
            warning=bool(len(loo.unreliable)),
            good_k=loo.max_k,
            elpd_i=xr.DataArray(loo.table["elpd"].to_numpy(), dims="step"),
            pareto_k=xr.DataArray(loo.table["pareto_k"].to_numpy(), dims="step"),
        )
        for name, loo in members.items()
    }
    if len(summaries) == 1:
        return dict.fromkeys(summaries, 1.0)
    weights = azs.compare(summaries, method="stacking", round_to="none")["weight"]
    return {name: float(weights[name]) for name in summaries}


def lacking_columns(steps: pd.DataFrame, needed: Sequence[str]) -> list[str]:
    """Return those of the needed columns that no step holds a value of."""
    return [column for column in needed if column not in steps or steps[column].isna().all()]


def comparable_steps(
    steps: pd.DataFrame, columns: Mapping[str, Sequence[str]], *, max_rows: int, seed: int
) -> pd.DataFrame:
    """Return at most so many random steps that hold what every model needs, in the order of the trace."""
    for name, needed in columns.items():
        missing = lacking_columns(steps, needed)
        if missing:
            lacks = f"needs {', '.join(missing)}, which the trace does not hold"
            raise InputError(f"the model {name} {lacks}: leave the model out")
    union = list(dict.fromkeys(column for needed in columns.values() for column in needed))
    complete = steps.dropna(subset=union)
    if complete.empty:
        raise InputError(f"no step holds all of {', '.join(union)}: compare fewer models")
    return choose_rows(complete, max_rows, seed=seed)
