"""Compares servers: the one function that does it all, and what it finds."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike

from bayes_sched.comparison import latency, members, throughput, verdicts
from bayes_sched.comparison.members import DEFAULT_PAIRED_DRAWS, Member, Servers
from bayes_sched.comparison.throughput import DEFAULT_SLO_QUANTILE
from bayes_sched.comparison.verdicts import COMPARISON_PROBABILITY, DEFAULT_ROPE, VALUE_WORDS, ratio_row
from bayes_sched.errors import InputError
from bayes_sched.posterior.diagnostics import WELL
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.prediction import band_levels, check_probability

IDENTIFIED = WELL
"""Contraction from which a verdict is given, on both servers. Not less: two servers whose combinations differ
move even parameters that nothing but a prior separates, such as P_max, apart, and their contractions reach
0.6."""
MAX_PAIRS = 3
"""A figure shows so many pairs of servers; the tables hold all."""
PARAMETER_RATIO_COLUMNS = [
    *("name", "unit", "kind", "gpu", "other", "difference", "difference_lower", "difference_upper"),
    *("ratio_median", "ratio_lower", "ratio_upper", "p_greater", "identified", "verdict"),
]


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison:
    """What two or more fits say of each other.

    Ratios are those of the server in the column ``gpu`` over the one in ``other``: a ratio of latencies below
    1 means that the first is faster. Intervals are credible intervals with equal tails.
    """

    members: tuple[Member, ...]
    """The servers: ``label``, ``fit`` (its description), ``discrepancy``, ``price_per_hour``."""
    rope: float  # half-width of the region of practical equivalence
    probability: float  # of every interval
    slo_ms: float | None  # latency limit
    slo_quantile: float  # share of steps that must stay within it
    seed: int
    mean_latency_ms: xr.DataArray
    """dims (gpu, draw, batch_size, total_tokens): paired draws of the mean latency over the grid; NaN where
    there are fewer tokens than requests."""
    grid: xr.Dataset
    """dims (batch_size, total_tokens): ``possible``, ``in_region`` (also dim gpu), ``extrapolation``,
    ``fewest_like``."""
    maps: xr.Dataset  # over the grid: :func:`bayes_sched.comparison.latency.latency_maps`
    table: pd.DataFrame  # the same as a table: :func:`bayes_sched.comparison.latency.pair_rows`
    steps: pd.DataFrame  # the same columns for a few typical steps, named in ``step``
    shares: pd.DataFrame
    """How often each verdict is given: :func:`bayes_sched.comparison.verdicts.share_table`."""
    further_data: pd.DataFrame
    """Further data that would decide: :func:`bayes_sched.comparison.latency.further_data`."""
    equivalents: pd.DataFrame  # :func:`~bayes_sched.comparison.throughput.equivalent_table`
    throughput: pd.DataFrame  # :func:`~bayes_sched.comparison.throughput.throughput_table`
    cost_ratios: pd.DataFrame  # :func:`~bayes_sched.comparison.throughput.cost_table`
    parameters: pd.DataFrame
    """The columns of :meth:`FittedModel.parameter_table`, before them ``gpu``, and ``identified``: whether
    the contraction reaches :data:`IDENTIFIED`."""
    parameter_ratios: pd.DataFrame  # :func:`parameter_ratios`
    symbols: Mapping[str, str]  # of the documented parameters, in TeX
    differences: pd.DataFrame
    """In what the servers differ: :func:`bayes_sched.comparison.members.difference_table`."""
    bands: Mapping[str, xr.Dataset]  # :func:`bayes_sched.comparison.latency.latency_bands`
    outline: xr.Dataset  # :func:`bayes_sched.comparison.latency.outline`
    seen: pd.DataFrame  # the (B, S) that any of the traces holds
    warnings: tuple[str, ...]  # what to beware of, the worst first

    @property
    def labels(self) -> tuple[str, ...]:
        """The servers' labels, in order."""
        return tuple(member.label for member in self.members)

    @property
    def converged(self) -> bool:
        """Whether every fit passed its convergence gate."""
        return all(member.fit.metadata.converged for member in self.members)

    @property
    def compares_servers(self) -> bool:
        """Whether the servers differ, or may differ, in more than their GPUs."""
        return bool(self.differences["is_server"].any())

    @property
    def rule(self) -> str:
        """How verdicts are given, a sentence."""
        return verdicts.rule(rope=self.rope, probability=self.probability)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the maps and the grid to a netCDF file, dims gpu, pair, batch_size, total_tokens."""
        maps = self.maps.merge(self.grid)
        texts = {name: v for name, v in maps.variables.items() if v.dtype.kind in "OUT"}  # as netCDF has them
        plain = {name: (v.dims, v.to_numpy().astype(object)) for name, v in texts.items()}
        maps = maps.assign_coords({name: v for name, v in plain.items() if name in maps.coords})
        maps = maps.assign({name: v for name, v in plain.items() if name in maps.data_vars})
        attrs = {"rope": self.rope, "probability": self.probability, "rule": self.rule}
        maps.assign_attrs(attrs).to_netcdf(path, engine="h5netcdf")


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
    check_probability(probability, name="probability")
    check_probability(slo_quantile, name="slo_quantile")
    if slo_ms is not None and not 0.0 < slo_ms < math.inf:
        raise InputError(f"slo_ms = {slo_ms:g}: give a positive number of milliseconds")
    rule = {"rope": verdicts.check_rope(rope), "probability": probability}
    chosen = members.labelled(fits)
    price_of = members.prices_of(chosen, prices or {})
    servers = Servers(chosen, max_draws=max_draws, seed=seed)
    grid = latency.shared_grid(servers, batch_size=batch_size, total_tokens=total_tokens)
    mean_ms = servers.mean_latency_ms(grid)
    maps = latency.latency_maps(servers, grid, mean_ms, seed=seed, **rule)
    table = latency.pair_rows(maps, grid)
    cells = latency.shared_cells(servers)
    typical = latency.typical_shared_steps(cells)
    rates = throughput.rates_of(servers, typical, slo_ms=slo_ms, slo_quantile=slo_quantile)
    parameters = parameter_values(chosen, probability=probability)
    differences = members.difference_table(chosen)
    discrepancies = {label: members.discrepancy_of(fit) for label, fit in chosen.items()}
    return Comparison(
        members=tuple(
            Member(label=x, fit=fit.description, discrepancy=discrepancies[x], price_per_hour=price_of[x])
            for x, fit in chosen.items()
        ),
        **rule,
        slo_ms=slo_ms,
        slo_quantile=slo_quantile,
        seed=seed,
        mean_latency_ms=mean_ms,
        grid=grid,
        maps=maps,
        table=table,
        steps=latency.typical_rows(servers, typical, seed=seed, **rule),
        shares=verdicts.share_table(table, latency.seen_rows(servers, cells, **rule)),
        further_data=latency.further_data(servers, table, maps, rope=rope),
        equivalents=throughput.equivalent_table(servers, probability=probability),
        throughput=throughput.throughput_table(rates, price_of, probability=probability),
        cost_ratios=throughput.cost_table(rates, price_of, **rule),
        parameters=parameters,
        parameter_ratios=parameter_ratios(servers, parameters, **rule),
        symbols={p.name: p.symbol for p in next(iter(chosen.values())).model.parameters},
        differences=differences,
        bands=latency.latency_bands(servers, typical, probability=probability),
        outline=latency.outline(servers, grid),
        seen=latency.seen_steps(servers),
        warnings=members.warnings_of(chosen, differences, discrepancies, rope=rope),
    )


def parameter_values(fits: Mapping[str, FittedModel], *, probability: float) -> pd.DataFrame:
    """Return each server's parameters and combinations."""
    tables = []
    for label, fit in fits.items():
        table = fit.parameter_table(probability=probability)
        table.insert(0, "gpu", label)
        tables.append(table.assign(identified=table["contraction"] >= IDENTIFIED))
    return pd.concat(tables, ignore_index=True)


def parameter_ratios(
    servers: Servers, values: pd.DataFrame, *, rope: float, probability: float
) -> pd.DataFrame:
    """Compare parameters and combinations of each pair of servers, with `PARAMETER_RATIO_COLUMNS`.

    ``difference`` is the first less the second, in the unit; ``identified``, on both; ``verdict`` is given
    only there and says else on which server the data do not identify the quantity.
    """
    tables = {label: group.set_index("name") for label, group in values.groupby("gpu", sort=False)}
    draws = {label: servers.quantities(label) for label in servers.labels}
    rows = []
    for first, second in combinations(servers.labels, 2):
        for name in tables[first].index.intersection(tables[second].index, sort=False):
            open_on = [label for label in (first, second) if not tables[label].loc[name, "identified"]]
            a, b = draws[first][name], draws[second][name]
            lower, median, upper = (float(x) for x in np.quantile(a - b, band_levels(probability)))
            row = {
                "name": name,
                "gpu": first,
                "other": second,
                "identified": not open_on,
                **{key: tables[first].loc[name, key] for key in ("unit", "kind")},
                "difference": median,
                "difference_lower": lower,
                "difference_upper": upper,
                "p_greater": float((a - b > 0.0).mean()),
                **ratio_row(a / b, rope=rope, probability=probability, words=VALUE_WORDS),
            }
            if open_on:
                row["verdict"] = f"none: not identified on {' and '.join(open_on)}"
            rows.append(row)
    return pd.DataFrame(rows, columns=PARAMETER_RATIO_COLUMNS)
