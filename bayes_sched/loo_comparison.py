"""Several models on the same steps: differences of their leave-one-out log densities, step by step."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from bayes_sched.errors import InputError
from bayes_sched.loo import CAVEAT, LeaveOneOut
from bayes_sched.numbers import listed
from bayes_sched.records import records

NUM_STRETCHES: Final = 20
"""Stretches of consecutive steps, from whose sums a standard error follows that autocorrelation does not fool
as long as it reaches less far than a stretch."""

SMALL_DIFFERENCE: Final = 4.0
"""Below this, a difference's standard error is no guide to its sign (Sivula et al. 2025)."""

_MIN_PER_STRETCH = 5
_SIZES = ["batch_size", "total_tokens", "latency_ms"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelComparison:
    """Models by how well they predict steps like those seen.

    Attributes
    ----------
    table : DataFrame
        One row a model, the best first, index ``model``: ``elpd`` and ``elpd_se``; ``difference`` of the elpd
        from the best model's (0 or less), its standard errors ``difference_se`` (steps taken for independent)
        and ``difference_se_stretches`` (from `NUM_STRETCHES` stretches of consecutive steps; NaN where there
        are fewer than 100 steps); ``p_loo``; ``num_unreliable`` (steps whose Pareto k is too large);
        ``weight`` in the mixture of the models that would predict best (stacking).
    members : mapping of str to LeaveOneOut
    """

    table: pd.DataFrame
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

    Returns
    -------
    ModelComparison

    Raises
    ------
    InputError
        There is no model, or they were not fitted to the same steps.
    """
    if not members:
        raise InputError("there is no model to compare")
    _check_same_steps(members)
    order = sorted(members, key=lambda name: -members[name].elpd)
    best = members[order[0]].table["elpd"].to_numpy()
    weights = _weights(members)
    rows = []
    for name in order:
        loo = members[name]
        difference = loo.table["elpd"].to_numpy() - best
        rows.append(
            {
                "model": name,
                "elpd": loo.elpd,
                "elpd_se": loo.se,
                "difference": float(difference.sum()),
                "difference_se": float(np.sqrt(len(difference) * difference.var(ddof=1))),
                "difference_se_stretches": _se_of_stretches(difference),
                "p_loo": loo.p_loo,
                "num_unreliable": len(loo.unreliable),
                "weight": weights[name],
            }
        )
    return ModelComparison(table=pd.DataFrame(rows).set_index("model"), members=dict(members))


def lacking_columns(steps: pd.DataFrame, needed: Sequence[str]) -> list[str]:
    """Return those of the needed columns that no step holds a value of."""
    return [column for column in needed if column not in steps or steps[column].isna().all()]


def comparable_steps(
    steps: pd.DataFrame, columns: Mapping[str, Sequence[str]], *, max_rows: int, seed: int
) -> pd.DataFrame:
    """Return random steps that hold what every model needs, in the order of the trace.

    Parameters
    ----------
    steps : DataFrame
        Cleaned steps.
    columns : mapping of str to sequence of str
        What each model needs, by its name.
    max_rows : int
        Steps to return at most.
    seed : int
        Of the choice.

    Returns
    -------
    DataFrame
        Rows counted from 0.

    Raises
    ------
    InputError
        The table lacks a column that a model needs, or no row holds all of them.
    """
    for name, needed in columns.items():
        missing = lacking_columns(steps, needed)
        if missing:
            raise InputError(
                f"the model {name} needs {', '.join(missing)}, which the trace does not hold: "
                "leave the model out"
            )
    union = list(dict.fromkeys(column for needed in columns.values() for column in needed))
    complete = steps.dropna(subset=union)
    if complete.empty:
        raise InputError(f"no step holds all of {', '.join(union)}: compare fewer models")
    if len(complete) > max_rows:
        chosen = np.random.default_rng(seed).choice(len(complete), max_rows, replace=False)
        complete = complete.iloc[np.sort(chosen)]
    return complete.reset_index(drop=True)


def _check_same_steps(members: Mapping[str, LeaveOneOut]) -> None:
    first, *others = members
    for name in others:
        if not members[first].table[_SIZES].equals(members[name].table[_SIZES]):
            raise InputError(f"{first} and {name} were fitted to different steps: they do not compare")


def _se_of_stretches(difference: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """Return the standard error of the sum from the sums of stretches of consecutive steps."""
    if len(difference) < _MIN_PER_STRETCH * NUM_STRETCHES:
        return float("nan")
    means = np.array([part.mean() for part in np.array_split(difference, NUM_STRETCHES)])
    return float(len(difference) * means.std(ddof=1) / np.sqrt(NUM_STRETCHES))


def _weights(members: Mapping[str, LeaveOneOut]) -> dict[str, float]:
    """Return the stacking weights, by ArviZ."""
    import arviz as az
    import xarray as xr

    summaries = {
        name: az.ELPDDataLOO(
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
    weights = az.compare(summaries, method="stacking", round_to="none")["weight"]
    return {name: float(weights[name]) for name in summaries}
