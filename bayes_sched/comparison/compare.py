"""Compares servers: the one function that does it all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike

from bayes_sched.comparison import words
from bayes_sched.comparison.latency import (
    PAIR_TABLE_COLUMNS,
    latency_maps,
    pair_rows,
    parameter_ratios,
    parameter_values,
)
from bayes_sched.comparison.members import (
    NEAR,
    Member,
    difference_table,
    like_steps,
    marked,
    members_of,
    misfit_warnings,
    region_text,
    shared_cells,
    shared_grid,
    typical_shared_steps,
    warnings_of,
)
from bayes_sched.comparison.throughput import (
    DEFAULT_SLO_QUANTILE,
    equivalent_table,
    money_table,
    rates_of,
    throughput_table,
)
from bayes_sched.comparison.verdicts import (
    COMPARISON_PROBABILITY,
    DEFAULT_PAIRED_DRAWS,
    DEFAULT_ROPE,
    UNDECIDED,
    Servers,
    check_rope,
    data_factor,
    rule,
    seen_rows,
    share_table,
)
from bayes_sched.errors import InputError
from bayes_sched.format import records
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.prediction import check_probability
from bayes_sched.steps import steps_arrays


def wanted_data(
    table: pd.DataFrame, maps: xr.Dataset, fits: dict[str, FittedModel], *, rope: float, num: int = 5
) -> pd.DataFrame:
    """Return which further steps would decide what is undecided: where the interval is widest.

    Parameters
    ----------
    table : DataFrame
        Of :func:`pair_rows`.
    maps : Dataset
        Of :func:`latency_maps`, over the grid.
    fits : dict of str to FittedModel
        By label.
    rope : float
    num : int
        Steps of each pair, at most; they lie apart from each other.

    Returns
    -------
    DataFrame
        ``gpu``, ``other``, ``batch_size``, ``total_tokens``, ``ratio_median``, ``ratio_lower``,
        ``ratio_upper``, ``width`` (upper over lower, less 1), ``measure`` (the server known less well there),
        ``steps_seen`` (steps like it in that server's trace), ``times_data`` (how many times the data would
        decide, roughly; missing where even a hundred times would not).
    """
    open_rows = table[(table["verdict"] == UNDECIDED) & ~table["extrapolation"]].copy()
    open_rows["width"] = open_rows["ratio_upper"] / open_rows["ratio_lower"] - 1.0
    rows = []
    for (first, second), group in open_rows.groupby(["gpu", "other"], sort=False):
        for row in _apart(group.sort_values("width", ascending=False), num).to_dict("records"):
            at = {"batch_size": row["batch_size"], "total_tokens": row["total_tokens"]}
            spread = maps["log_sd"].sel(at)
            measure = max((str(first), str(second)), key=lambda label: float(spread.sel(gpu=label)))
            rows.append(
                {
                    "gpu": first,
                    "other": second,
                    **at,
                    **{name: row[name] for name in ("ratio_median", "ratio_lower", "ratio_upper", "width")},
                    "measure": measure,
                    "steps_seen": int(like_steps(fits[measure], *(np.array(value) for value in at.values()))),
                    "times_data": data_factor(
                        row["ratio_lower"], row["ratio_median"], row["ratio_upper"], rope=rope
                    ),
                }
            )
    return pd.DataFrame(rows, columns=WANTED_COLUMNS).astype({"times_data": float})


WANTED_COLUMNS = [
    *("gpu", "other", "batch_size", "total_tokens", "ratio_median", "ratio_lower", "ratio_upper"),
    *("width", "measure", "steps_seen", "times_data"),
]


def _apart(rows: pd.DataFrame, num: int) -> pd.DataFrame:
    """Return the first rows that are not like one before them."""
    places = np.log(rows[["batch_size", "total_tokens"]].to_numpy(float))
    kept: list[int] = []
    for i, place in enumerate(places):
        if len(kept) < num and all(np.abs(place - places[k]).max() > 2.0 * NEAR for k in kept):
            kept.append(i)
    return rows.iloc[kept]


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


def compare(
    fits: Sequence[FittedModel] | Mapping[str, FittedModel],
    *,
    prices: Mapping[str, float] | None = None,
    slo_ms: float | None = None,
    slo_quantile: float = DEFAULT_SLO_QUANTILE,
    rope: float = DEFAULT_ROPE,
    probability: float = COMPARISON_PROBABILITY,
    batch_size: ArrayLike | None = None,
    total_tokens: ArrayLike | None = None,
    max_draws: int = DEFAULT_PAIRED_DRAWS,
    seed: int = 0,
) -> Comparison:
    """Compare servers by their fits: which is faster, by how much, how sure one may be, and what it costs.

    Parameters
    ----------
    fits : sequence of FittedModel, or mapping of label to FittedModel
        Two or more, of different traces. Without labels each is called by its GPU, or by the name of its
        result where GPUs repeat.
    prices : mapping of str to float, optional
        An hour's price by label or name of the result; all in one currency.
    slo_ms : float, optional
        Latency limit, ms, for the throughput within it.
    slo_quantile : float
        Share of the steps that must stay within `slo_ms`.
    rope : float
        Ratios from 1 / (1 + rope) to 1 + rope count as equal.
    probability : float
        Of every interval, and so of the verdicts.
    batch_size, total_tokens : array-like, optional
        Requests and tokens of the grid; by default logarithmic over the range of all traces.
    max_draws : int
        Draws of each posterior at most; the shortest posterior decides where it has fewer.
    seed : int
        Of the order in which independent posteriors are paired.

    Returns
    -------
    Comparison

    Raises
    ------
    InputError
        Fewer than two fits, one of them twice, models that cannot be compared, regions that do not overlap,
        or an argument that is none.
    """
    _check(rope=rope, probability=probability, slo_ms=slo_ms, slo_quantile=slo_quantile)
    members = members_of(fits, prices=prices or {})
    servers = Servers(
        [member.label for member in members],
        [member.fit for member in members],
        max_draws=max_draws,
        seed=seed,
    )
    grid = shared_grid(servers, batch_size=batch_size, total_tokens=total_tokens)
    mean_ms = servers.mean_latency_ms(grid)
    maps = latency_maps(servers, grid, mean_ms, rope=rope, probability=probability, seed=seed)
    table = pair_rows(maps, grid)
    cells = shared_cells(servers)
    typical = typical_shared_steps(cells)
    shares = share_table(table, seen_rows(servers, cells, rope=rope, probability=probability))
    steps = _typical_rows(servers, typical, rope=rope, probability=probability, seed=seed)
    by_label = {member.label: member.fit for member in members}
    wanted = wanted_data(table, maps, by_label, rope=rope)
    equivalents = equivalent_table(servers, probability=probability)
    rates = rates_of(servers, typical, slo_ms=slo_ms, slo_quantile=slo_quantile)
    throughput = throughput_table(rates, members, probability=probability)
    money = money_table(rates, members, rope=rope, probability=probability)
    values = parameter_values(members, probability=probability)
    ratios = parameter_ratios(servers, values, rope=rope, probability=probability)
    differences = difference_table(members)
    return Comparison(
        members=members,
        rope=rope,
        probability=probability,
        slo_ms=slo_ms,
        slo_quantile=slo_quantile,
        seed=seed,
        servers=servers,
        mean_latency_ms=mean_ms,
        grid=grid,
        maps=maps,
        table=table,
        steps=steps,
        shares=shares,
        wanted=wanted,
        equivalents=equivalents,
        throughput=throughput,
        money=money,
        parameters=values,
        parameter_ratios=ratios,
        differences=differences,
        warnings=(*warnings_of(members, differences), *misfit_warnings(members, rope=rope)),
        sentences=(
            *words.paragraph(
                shares=shares,
                steps=steps,
                equivalents=equivalents,
                money=money,
                throughput=throughput,
                ratios=ratios,
                wanted=wanted,
                rope=rope,
            ),
            region_text(servers.labels, grid),
        ),
    )


def _check(*, rope: float, probability: float, slo_ms: float | None, slo_quantile: float) -> None:
    """Raise InputError where an argument is none."""
    check_probability(probability, name="probability")
    check_probability(slo_quantile, name="slo_quantile")
    check_rope(rope)
    if slo_ms is not None and not 0.0 < slo_ms < math.inf:
        raise InputError(f"slo_ms = {slo_ms:g}: give a positive number of milliseconds")


def _typical_rows(
    servers: Servers, typical: pd.DataFrame, *, rope: float, probability: float, seed: int
) -> pd.DataFrame:
    """Return the rows of `pair_rows` for typical steps, ``step`` first."""
    if typical.empty:
        return pd.DataFrame(columns=["step", *PAIR_TABLE_COLUMNS])
    steps = steps_arrays(typical["batch_size"], typical["total_tokens"])
    mean_ms = servers.mean_latency_ms(steps)
    maps = latency_maps(servers, steps, mean_ms, rope=rope, probability=probability, seed=seed)
    rows = pair_rows(maps, marked(servers, steps))
    names = typical.set_index(["batch_size", "total_tokens"])["step"]
    cells = pd.MultiIndex.from_frame(rows[["batch_size", "total_tokens"]])
    rows.insert(0, "step", names.loc[cells].to_numpy())
    return rows
