"""The numbers of a pool's report in one object, which its words, tables and JSON file are made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from bayes_sched.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.pooling import UNSEEN, Pool, Population
from bayes_sched.pooling.spread import change_table, spread_table
from bayes_sched.records import records
from bayes_sched.report.pool_words import notes, paragraph
from bayes_sched.report.typical import TypicalStep, band_table, typical_steps
from bayes_sched.steps import steps_arrays

SUMMARY_VERSION = 1
"""Raised when a field of :meth:`PoolSummary.to_dict` changes its meaning or goes."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PoolSummary:
    """What a pool says, in numbers and in words.

    Attributes
    ----------
    population : Population
    probability : float
        Of every interval.
    spread : DataFrame
        How alike servers are; columns of :func:`bayes_sched.pooling.spread.spread_table`.
    changes : DataFrame
        What pooling did to each trace; columns of :func:`bayes_sched.pooling.spread.change_table`.
    members : DataFrame
        One row a trace: ``trace``, ``server``, ``steps`` (used), ``draws``, ``effective_draws``,
        ``converged`` (of the fit alone).
    steps : DataFrame
        What typical steps take on each trace's server and on one not yet seen: ``step``, ``batch_size``,
        ``total_tokens``, ``trace``, and the columns of :func:`bayes_sched.report.typical.band_table`.
    gate : dict
        ``num_divergences``, ``e_bfmi`` (a list, one a chain), ``num_draws``, ``num_gradients``,
        ``worst_r_hat``, ``worst_ess``, ``ess_per_1000_gradients`` of the population.
    seconds : float or None
        Wall time of pooling, the fits of the traces apart.
    sentences : tuple of str
        The plain-language paragraph.
    notes : tuple of str
        What to beware of.
    """

    population: Population
    probability: float
    spread: pd.DataFrame
    changes: pd.DataFrame
    members: pd.DataFrame
    steps: pd.DataFrame
    gate: dict[str, Any]
    seconds: float | None
    sentences: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def converged(self) -> bool:
        """Whether the gate passed."""
        return self.population.converged

    @property
    def problems(self) -> tuple[str, ...]:
        """What the gate found."""
        return self.population.problems

    @property
    def text(self) -> str:
        """The paragraph, and one line for each warning after it."""
        return "\n".join([" ".join(self.sentences), *(f"Warning: {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values, ready for JSON; a missing number is None.

        Keys: ``summary_version``; ``name``, ``model``, ``noise``, ``command``, ``created_at``,
        ``server_of_trace`` of the population; ``probability``, ``converged``, ``problems``, ``text``,
        ``warnings``; ``spread``, ``changes``, ``members``, ``typical_steps``: lists with one mapping a row of
        the tables above; ``gate``; ``pooling_seconds``.
        """
        population = self.population
        return {
            "summary_version": SUMMARY_VERSION,
            "name": population.name,
            "model": population.model,
            "noise": population.noise,
            "command": population.command,
            "created_at": population.created_at,
            "server_of_trace": dict(population.server_of_trace),
            "probability": self.probability,
            "converged": self.converged,
            "problems": list(self.problems),
            "text": " ".join(self.sentences),
            "warnings": list(self.notes),
            "spread": records(self.spread),
            "changes": records(self.changes),
            "members": records(self.members),
            "typical_steps": records(self.steps),
            "gate": self.gate,
            "pooling_seconds": self.seconds,
        }


def pool_summary(
    pool: Pool, *, probability: float = DEFAULT_PROBABILITY, seconds: float | None = None
) -> PoolSummary:
    """Say what pooling found.

    Parameters
    ----------
    pool : Pool
    probability : float
        Of every interval, between 0 and 1.
    seconds : float, optional
        Wall time that pooling took.
    """
    spread = spread_table(pool, probability=probability)
    changes = change_table(pool, probability=probability)
    members = _member_table(pool)
    steps = _step_table(pool, probability)
    return PoolSummary(
        population=pool.population,
        probability=probability,
        spread=spread,
        changes=changes,
        members=members,
        steps=steps,
        gate=_gate(pool.population),
        seconds=None if seconds is None else round(seconds, 1),
        sentences=paragraph(pool, spread, changes, members, steps, probability=probability),
        notes=notes(pool, spread),
    )


def fits_by_name(pool: Pool) -> dict[str, FittedModel]:
    """Return the pooled fits and that of the server not yet seen, which comes last."""
    return {**pool.pooled, UNSEEN: pool.unseen}


def _member_table(pool: Pool) -> pd.DataFrame:
    population = pool.population
    return pd.DataFrame(
        [
            {
                "trace": name,
                "server": population.server_of_trace[name],
                "steps": fit.metadata.rows.used,
                "draws": fit.posterior.sizes["chain"] * fit.posterior.sizes["draw"],
                "effective_draws": float(population.effective_draws[name]),
                "converged": fit.converged,
            }
            for name, fit in pool.alone.items()
        ]
    )


def _step_table(pool: Pool, probability: float) -> pd.DataFrame:
    """Return what typical steps of all traces together take on each server, with typical context."""
    typical = _typical(pool)
    names = pd.DataFrame(
        [(step.name, step.batch_size, step.total_tokens) for step in typical],
        columns=["step", "batch_size", "total_tokens"],
    )
    completing = next(iter(pool.alone.values()))
    points = completing.completed(steps_arrays(names["batch_size"], names["total_tokens"]))
    tables = [
        names.assign(trace=name).join(band_table(fit, points, probability=probability).reset_index(drop=True))
        for name, fit in fits_by_name(pool).items()
    ]
    return pd.concat(tables, ignore_index=True)


def _typical(pool: Pool) -> tuple[TypicalStep, ...]:
    cells = pool.unseen.cells.to_dataframe()
    every = cells.loc[cells.index.repeat(cells["count"].to_numpy()), ["batch_size", "total_tokens"]]
    return typical_steps(every.reset_index(drop=True))


def _gate(population: Population) -> dict[str, Any]:
    found = population.convergence
    return {
        "num_divergences": found.num_divergences,
        "e_bfmi": [float(value) for value in found.e_bfmi],
        "num_draws": found.num_draws,
        "num_gradients": found.num_gradients,
        "worst_r_hat": found.worst_r_hat,
        "worst_ess": found.worst_ess,
        "ess_per_1000_gradients": found.ess_per_1000_gradients if found.num_gradients else None,
    }
