"""Fits of servers whose ratios are known, made without sampling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayes_sched.comparison.members import Servers, labels_of
from bayes_sched.format import records
from bayes_sched.posterior.fitted import FittedModel
from tests.synthetic_fit import synthetic_cells, synthetic_fit

RATIO = 0.8
"""Latency of the faster of the compared servers over that of the other."""
SMALL: dict[str, Any] = {"batch_size": [4, 16, 64], "total_tokens": [16, 64, 1024, 4096]}
"""A small grid."""
TIMES = ("tau_0", "tau_B", "tau_S")


def server(
    factor: float = 1.0,
    *,
    name: str = "a",
    gpu: str = "",
    llm: str = "llama-3-8b",
    spread: float = 0.002,
    draws: int = 250,
    budget: int = 4096,
    max_b: int = 64,
    **metadata: Any,
) -> FittedModel:
    """A fit of a server that takes `factor` times as long as the synthetic one for every step."""
    labels = {key: text for key, text in {"gpu": gpu, "llm": llm}.items() if text}
    known = {"name": name, "labels": labels, "warnings": (), "trace_sha256": name.encode().hex()}
    made = synthetic_fit(spread=spread, draws=draws, seed=sum(name.encode()), **(known | metadata))
    return scaled(made, factor, cells(budget=budget, max_b=max_b))


def scaled(
    fit: FittedModel, factor: float | NDArray[np.float64], seen: xr.Dataset | None = None
) -> FittedModel:
    """Return the fit with every mean latency times `factor`, a number or an array (chain, draw)."""
    posterior = fit.posterior.copy()
    posterior["P_max"] = posterior["P_max"] / factor
    for parameter in TIMES:
        posterior[parameter] = posterior[parameter] * factor
    return with_groups(fit, posterior=posterior, **({} if seen is None else {"cells": seen}))


def with_groups(fit: FittedModel, **groups: xr.Dataset) -> FittedModel:
    """Return the fit with other groups in place of its own."""
    own = {f"/{key}": node.to_dataset() for key, node in fit.data.children.items()}
    return replace(fit, data=xr.DataTree.from_dict(own | {f"/{key}": group for key, group in groups.items()}))


def cells(*, budget: int, max_b: int) -> xr.Dataset:
    """Return the synthetic cells with at most so many tokens and requests."""
    made = synthetic_cells()
    b, s = made["batch_size"].to_numpy(), np.minimum(made["total_tokens"].to_numpy(), budget)
    kept = np.flatnonzero((b <= max_b) & (s >= b))
    return made.assign(total_tokens=("cell", s)).isel(cell=kept)


def by(table: pd.DataFrame, column: str) -> dict[str, dict[str, Any]]:
    """The rows of a table by one of its columns."""
    return {row[column]: row for row in records(table)}


def servers_of(fits: list[FittedModel]) -> Servers:
    return Servers(dict(zip(labels_of(fits), fits, strict=True)), max_draws=4000, seed=0)
