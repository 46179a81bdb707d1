"""The parameters of several servers side by side, with a verdict only where the data identify them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bayes_sched.comparison.latencies import pairs_of
from bayes_sched.comparison.members import Member
from bayes_sched.comparison.paired import Servers
from bayes_sched.comparison.verdicts import VALUE_WORDS, Floats, verdicts
from bayes_sched.parameter_table import WELL
from bayes_sched.prediction import band_levels

IDENTIFIED = WELL
"""Contraction from which a verdict is given, on both servers. Not less: two servers whose combinations differ
move even parameters that nothing but a prior separates, such as P_max, apart, and their contractions reach
0.6."""


def parameter_values(members: Sequence[Member], *, probability: float) -> pd.DataFrame:
    """Return each server's parameters and combinations.

    Returns
    -------
    DataFrame
        The columns of :meth:`bayes_sched.fitted.FittedModel.parameter_table`, before them ``gpu``, and
        ``identified``: whether the contraction reaches `IDENTIFIED`.
    """
    tables = []
    for member in members:
        table = member.fit.parameter_table(probability=probability)
        table.insert(0, "gpu", member.label)
        tables.append(table.assign(identified=table["contraction"] >= IDENTIFIED))
    return pd.concat(tables, ignore_index=True)


def parameter_ratios(
    servers: Servers, values: pd.DataFrame, *, rope: float, probability: float
) -> pd.DataFrame:
    """Compare parameters and combinations of each pair of servers.

    Parameters
    ----------
    servers : Servers
    values : DataFrame
        Of :func:`parameter_values`.
    rope, probability : float

    Returns
    -------
    DataFrame
        ``name``, ``unit``, ``kind``, ``gpu``, ``other``, ``difference``, ``difference_lower``,
        ``difference_upper`` (first less second, in the unit), ``ratio_median``, ``ratio_lower``,
        ``ratio_upper`` (first over second), ``p_greater``, ``identified`` (on both), ``verdict`` (``lower``,
        ``higher``, ``equivalent``, ``undecided``, or on which server the data do not identify it).
    """
    tables = {label: group.set_index("name") for label, group in values.groupby("gpu", sort=False)}
    draws = [_quantities(servers, i) for i in range(len(servers.labels))]
    rows = []
    for a, b in pairs_of(servers.labels):
        first, second = servers.labels[a], servers.labels[b]
        for name in tables[first].index.intersection(tables[second].index, sort=False):
            of_first, of_second = tables[first].loc[name], tables[second].loc[name]
            is_known = {first: bool(of_first["identified"]), second: bool(of_second["identified"])}
            row = _ratio(draws[a][name], draws[b][name], rope=rope, probability=probability)
            if not all(is_known.values()):
                open_on = " and ".join(label for label, known in is_known.items() if not known)
                row["verdict"] = f"none: not identified on {open_on}"
            rows.append(
                {
                    "name": name,
                    "unit": of_first["unit"],
                    "kind": of_first["kind"],
                    "gpu": first,
                    "other": second,
                    **{key: value for key, value in row.items() if key != "verdict"},
                    "identified": all(is_known.values()),
                    "verdict": row["verdict"],
                }
            )
    return pd.DataFrame(rows)


def _quantities(servers: Servers, number: int) -> dict[str, Floats]:
    draws = servers.posteriors[number]
    found = {str(name): draws[name].to_numpy() for name in draws.data_vars}
    combinations = servers.models[number].combinations(draws)
    return found | {str(name): combinations[name].to_numpy() for name in combinations.data_vars}


def _ratio(first: Floats, second: Floats, *, rope: float, probability: float) -> dict[str, Any]:
    levels = band_levels(probability)
    difference, ratio = first - second, first / second
    values = np.concatenate([np.quantile(difference, levels), np.quantile(ratio, levels)])
    names = (
        *("difference_lower", "difference", "difference_upper"),
        *("ratio_lower", "ratio_median", "ratio_upper"),
    )
    row: dict[str, Any] = dict(zip(names, map(float, values), strict=True))
    found = verdicts(np.array(row["ratio_lower"]), np.array(row["ratio_upper"]), rope=rope, words=VALUE_WORDS)
    order = (
        *("difference", "difference_lower", "difference_upper"),
        *("ratio_median", "ratio_lower", "ratio_upper"),
    )
    return {
        **{name: row[name] for name in order},
        "p_greater": float((difference > 0.0).mean()),
        "verdict": str(found),
    }
