"""The result of a comparison: the numbers, the words, and what to beware of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import xarray as xr

from bayes_sched.comparison.members import Member
from bayes_sched.comparison.paired import Servers
from bayes_sched.comparison.verdicts import rule
from bayes_sched.records import records

COMPARISON_VERSION = 1
"""Raised when a field of :meth:`Comparison.to_dict` changes its meaning or goes."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison:
    """What two or more fits say of each other.

    Ratios are those of the server in the column ``gpu`` over the one in ``other``: a ratio of latencies below
    1 means that the first is faster. Intervals are credible intervals with equal tails.

    Attributes
    ----------
    members : tuple of Member
        The servers: ``label``, ``fit``, ``price_per_hour``.
    rope, probability : float
        Half-width of the region of practical equivalence; of every interval.
    slo_ms, slo_quantile : float
        The latency limit (ms, or None) and the share of steps that must stay within it.
    seed : int
    servers : Servers
        The paired draws.
    mean_latency_ms : DataArray, dims (gpu, draw, batch_size, total_tokens)
        Draws of the mean latency over the grid; NaN where there are fewer tokens than requests.
    grid : Dataset, dims (batch_size, total_tokens)
        ``possible``, ``in_region`` (also dim gpu), ``extrapolation``.
    maps : Dataset
        Over the grid: :func:`bayes_sched.comparison.latencies.latency_maps`.
    table : DataFrame
        The same as a table: :func:`bayes_sched.comparison.latencies.pair_rows`.
    steps : DataFrame
        The same columns for a few typical steps, named in ``step``.
    shares : DataFrame
        How often each verdict is given: :func:`bayes_sched.comparison.shares.share_table`.
    wanted : DataFrame
        Further data that would decide: :func:`bayes_sched.comparison.wanted.wanted_data`.
    equivalents : DataFrame
        :func:`bayes_sched.comparison.equivalents.equivalent_table`.
    throughput, money : DataFrame
        :func:`~bayes_sched.comparison.throughput.throughput_table` and
        :func:`~bayes_sched.comparison.throughput.money_table`.
    parameters, parameter_ratios : DataFrame
        :func:`~bayes_sched.comparison.parameters.parameter_values` and
        :func:`~bayes_sched.comparison.parameters.parameter_ratios`.
    differences : DataFrame
        In what the servers differ: :func:`bayes_sched.comparison.members.difference_table`.
    warnings : tuple of str
        What to beware of, the worst first.
    sentences : tuple of str
        The plain-language paragraph.
    """

    members: tuple[Member, ...]
    rope: float
    probability: float
    slo_ms: float | None
    slo_quantile: float
    seed: int
    servers: Servers
    mean_latency_ms: xr.DataArray
    grid: xr.Dataset
    maps: xr.Dataset
    table: pd.DataFrame
    steps: pd.DataFrame
    shares: pd.DataFrame
    wanted: pd.DataFrame
    equivalents: pd.DataFrame
    throughput: pd.DataFrame
    money: pd.DataFrame
    parameters: pd.DataFrame
    parameter_ratios: pd.DataFrame
    differences: pd.DataFrame
    warnings: tuple[str, ...]
    sentences: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The servers' labels, in order."""
        return self.servers.labels

    @property
    def converged(self) -> bool:
        """Whether every fit passed its convergence gate."""
        return all(member.fit.converged for member in self.members)

    @property
    def compares_servers(self) -> bool:
        """Whether the servers differ, or may differ, in more than their GPUs."""
        return bool(self.differences["is_server"].any())

    @property
    def rule(self) -> str:
        """How verdicts are given, a sentence."""
        return rule(rope=self.rope, probability=self.probability)

    @property
    def text(self) -> str:
        """The paragraph, and one line for each warning after it."""
        return "\n".join([" ".join(self.sentences), *(f"Warning: {warning}" for warning in self.warnings)])

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values, ready for JSON; a missing number is None.

        Keys: ``comparison_version``, ``labels``, ``fits`` (``label``, ``name``, ``labels``,
        ``trace_sha256``, ``converged``, ``problems``, ``price_per_hour``), ``rope``, ``probability``,
        ``slo_ms``, ``slo_quantile``, ``seed``, ``num_draws``, ``converged``, ``compares_servers``, ``rule``,
        ``text``, ``warnings``, and lists with one mapping a row: ``shares``, ``steps``, ``grid``, ``wanted``,
        ``equivalents``, ``throughput``, ``money``, ``parameters``, ``parameter_ratios``, ``differences``.
        """
        tables = {
            "shares": self.shares,
            "steps": self.steps,
            "grid": self.table,
            "wanted": self.wanted,
            "equivalents": self.equivalents,
            "throughput": self.throughput,
            "money": self.money,
            "parameters": self.parameters,
            "parameter_ratios": self.parameter_ratios,
            "differences": self.differences,
        }
        return {
            "comparison_version": COMPARISON_VERSION,
            "labels": list(self.labels),
            "fits": [_member_dict(member) for member in self.members],
            "rope": self.rope,
            "probability": self.probability,
            "slo_ms": self.slo_ms,
            "slo_quantile": self.slo_quantile,
            "seed": self.seed,
            "num_draws": self.mean_latency_ms.sizes["draw"],
            "converged": self.converged,
            "compares_servers": self.compares_servers,
            "rule": self.rule,
            "text": " ".join(self.sentences),
            "warnings": list(self.warnings),
            **{name: records(table) for name, table in tables.items()},
        }


def _member_dict(member: Member) -> dict[str, Any]:
    metadata = member.fit.metadata
    return {
        "label": member.label,
        "name": metadata.name,
        "labels": dict(metadata.labels),
        "trace_sha256": metadata.trace_sha256,
        "converged": member.fit.converged,
        "problems": list(metadata.problems),
        "price_per_hour": member.price_per_hour,
    }
