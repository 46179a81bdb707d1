"""Compares servers: the one function that does it all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from numpy.typing import ArrayLike

from bayes_sched.comparison import words
from bayes_sched.comparison.equivalents import equivalent_table
from bayes_sched.comparison.latencies import PAIR_TABLE_COLUMNS, latency_maps, pair_rows
from bayes_sched.comparison.members import difference_table, members_of, warnings_of
from bayes_sched.comparison.misfit import misfit_warnings
from bayes_sched.comparison.paired import DEFAULT_PAIRED_DRAWS, Servers
from bayes_sched.comparison.parameters import parameter_ratios, parameter_values
from bayes_sched.comparison.result import Comparison
from bayes_sched.comparison.shared_grid import (
    marked,
    region_text,
    shared_cells,
    shared_grid,
    typical_shared_steps,
)
from bayes_sched.comparison.shares import seen_rows, share_table
from bayes_sched.comparison.throughput import (
    DEFAULT_SLO_QUANTILE,
    money_table,
    rates_of,
    throughput_table,
)
from bayes_sched.comparison.verdicts import COMPARISON_PROBABILITY, DEFAULT_ROPE, check_rope
from bayes_sched.comparison.wanted import wanted_data
from bayes_sched.errors import InputError
from bayes_sched.fitted import FittedModel
from bayes_sched.predictive import check_probability
from bayes_sched.steps import steps_arrays


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
