"""What the requests of a step bring with them, where only B and S are given: what the trace shows there.

A model may ask more of a step than B and S: the context of its requests, the query-key pairs of its prefill.
Of a step to come nobody knows them. They are integrated over: each posterior draw meets what another one of
the trace's own steps near (B, S) had, of the same kind (decode only or with prefill), so that the mixture
over draws is the mixture over parameters and contexts. At one typical context a band is too narrow by all
that contexts differ in. What a step has is told by request and by chunk, so that it fits a step of somewhat
other sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property

import numpy as np
import pandas as pd
import xarray as xr
from scipy.spatial import KDTree

from bayes_sched.arrays import Bools, Floats, Ints
from bayes_sched.posterior.typical_load import TypicalLoad
from bayes_sched.steps import SIZES

_NEAR = 0.05  # of log B and log S: steps as near are alike
_LEAST, _MOST = 20, 200  # steps that stand for one
_FURTHER = ("num_prefill_reqs", "context_tokens", "prefill_pairs", "kv_cache_usage")


class Contexts:
    """What requests bring with them, for the columns of a model: `loads` are rows as of :func:`_loads`."""

    def __init__(self, loads: pd.DataFrame, columns: Sequence[str]) -> None:
        self._rows, self.columns = loads, tuple(name for name in columns if name not in SIZES)

    @classmethod
    def of(cls, steps: pd.DataFrame, columns: Sequence[str]) -> Contexts | None:
        """Return the contexts of a trace's steps; None where these do not tell a column of the model."""
        needed = [name for name in columns if name not in (*SIZES, "num_prefill_reqs")]
        if not set(needed) <= set(steps) & set(_FURTHER):
            return None
        known = steps.dropna(subset=needed)
        return None if known.empty else cls(_loads(known), columns)

    @classmethod
    def typical(cls, load: TypicalLoad, columns: Sequence[str]) -> Contexts | None:
        """Return one context for all steps; None where the load does not tell a column of the model."""
        if not load.tells(columns):
            return None
        row = {"batch_size": 1.0, "total_tokens": 1.0, "num_prefill_reqs": 0.0}
        row |= {name: value or 0.0 for name, value in asdict(load).items()}
        return cls(pd.DataFrame([row]), columns)

    def at(self, table: xr.Dataset, levels: Floats) -> xr.Dataset:
        """Return steps with the columns they lack, dims (sample, cell).

        Parameters
        ----------
        table : Dataset, dims (cell,)
            ``batch_size``, ``total_tokens`` and any further columns.
        levels : ndarray, dims (sample,)
            Where among the contexts of the steps near a cell each sample's is, from 0 (least) to 1.
        """
        sizes = np.stack([table[name].to_numpy() for name in SIZES], axis=-1)
        prefill = table["num_prefill_reqs"] > 0 if "num_prefill_reqs" in table else None
        near, count = self._near(
            sizes, (sizes[:, 1] > sizes[:, 0]) if prefill is None else prefill.to_numpy()
        )
        rank = np.minimum((levels[:, None] * count).astype(np.int64), count - 1)
        chosen = near[np.arange(len(sizes)), rank]
        loads = {
            str(name): (("sample", "cell"), column.to_numpy()[chosen]) for name, column in self._rows.items()
        }
        return _columns(table, xr.Dataset(loads), self.columns)

    def mean(self, table: xr.Dataset) -> xr.Dataset:
        """Return steps with the means of the columns they lack, dims (cell,)."""
        return self.at(table, (np.arange(_MOST) + 0.5) / _MOST).mean("sample")

    @cached_property
    def _trees(self) -> dict[bool, tuple[KDTree, Ints]]:
        is_prefill = (self._rows["num_prefill_reqs"] > 0).to_numpy()
        logs = np.log(self._rows[list(SIZES)].to_numpy(float))
        found = {kind: np.flatnonzero(is_prefill == kind) for kind in (False, True)}
        return {kind: (KDTree(logs[rows]), rows) for kind, rows in found.items() if len(rows)}

    def _near(self, sizes: Floats, prefill: Bools) -> tuple[Ints, Ints]:
        """Return the rows near each size by increasing context, dims (cell, rank), and how many they are."""
        near = np.zeros((len(sizes), _MOST), dtype=np.int64)
        count = np.ones(len(sizes), dtype=np.int64)
        order = self._rows[["context_per_decode", "cached_per_chunk", "kv_cache_usage_per_request"]].sum(
            axis=1
        )
        for kind in (False, True):
            cells = np.flatnonzero(prefill == kind)
            if not len(cells):
                continue
            tree, rows = self._trees.get(kind) or self._trees[not kind]
            most = min(_MOST, len(rows))
            distance, found = tree.query(np.log(sizes[cells]), k=range(1, most + 1), p=np.inf)
            count[cells] = np.maximum((distance <= _NEAR).sum(axis=1), min(_LEAST, most))
            chosen = rows[found]
            key = np.where(np.arange(most) < count[cells, None], order.to_numpy()[chosen], np.inf)
            near[cells, :most] = np.take_along_axis(chosen, np.argsort(key, axis=1, kind="stable"), axis=1)
        return near, count


def _loads(steps: pd.DataFrame) -> pd.DataFrame:
    """Return what the requests of each step bring with them, by decoding request and by prefill chunk."""
    batch_size, tokens = steps["batch_size"].astype(float), steps["total_tokens"].astype(float)
    prefills = (
        steps["num_prefill_reqs"] if "num_prefill_reqs" in steps else (tokens > batch_size).astype(float)
    )
    prefills = prefills.clip(upper=batch_size)
    cached = pd.Series(0.0, index=steps.index)
    if "prefill_pairs" in steps:
        chunk = (tokens - batch_size + prefills) / prefills.clip(lower=1.0)
        pairs = steps["prefill_pairs"] / (prefills * chunk).clip(lower=1.0)
        cached = (pairs - (chunk + 1.0) / 2.0).clip(lower=0.0).where(prefills > 0, 0.0)
    context = steps["context_tokens"] if "context_tokens" in steps else 0.0 * tokens
    usage = steps["kv_cache_usage"] if "kv_cache_usage" in steps else 0.0 * tokens
    decodes = batch_size - prefills
    return pd.DataFrame(
        {
            "batch_size": batch_size,
            "total_tokens": tokens,
            "num_prefill_reqs": prefills,
            "cached_per_chunk": cached,
            "context_per_decode": ((context - cached * prefills) / decodes.clip(lower=1.0)).clip(lower=0.0),
            "kv_cache_usage_per_request": usage / batch_size,
        }
    ).reset_index(drop=True)


def _columns(table: xr.Dataset, loads: xr.Dataset, columns: Sequence[str]) -> xr.Dataset:
    """Return steps with the columns that they lack, from what their requests bring with them.

    Chunks are even: c tokens behind k cached ones have c k + c (c + 1) / 2 pairs.
    """
    batch_size, tokens = table["batch_size"], table["total_tokens"]
    prefills = table["num_prefill_reqs"] if "num_prefill_reqs" in table else _prefills(table, loads)
    chunk = (tokens - batch_size + prefills) / prefills.clip(min=1.0)
    cached = loads["cached_per_chunk"]
    values = {
        "num_prefill_reqs": prefills,
        "context_tokens": loads["context_per_decode"] * (batch_size - prefills) + cached * prefills,
        "prefill_pairs": prefills * (chunk * cached + chunk * (chunk + 1.0) / 2.0),
        "kv_cache_usage": loads["kv_cache_usage_per_request"] * batch_size,
    }
    return table.assign({name: values[name] for name in columns if name not in table})


def _prefills(table: xr.Dataset, loads: xr.Dataset) -> xr.DataArray:
    """Return the prefill chunks of a step: as many as those near it have, and requests allow."""
    few = loads["num_prefill_reqs"].clip(min=1.0)
    prefills: xr.DataArray = few.where(few < table["batch_size"], table["batch_size"])
    return prefills.where(table["total_tokens"] > table["batch_size"], 0.0)
