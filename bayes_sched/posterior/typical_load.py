"""Steps of which only requests and tokens are given, completed by what is typical of a trace.

A model may ask more of a step than B and S: the context of its requests, the query-key pairs of its prefill.
Tables and figures over (B, S) need an answer nonetheless, and it has to be an open one: whoever asks for
bands over (B, S) completes the steps first, and says for what context they are. Predictions never do so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.spatial import KDTree

from bayes_sched.arrays import Bools, Floats
from bayes_sched.errors import InputError
from bayes_sched.format import listed, percent
from bayes_sched.region import ALIKE, LEAST
from bayes_sched.steps import SIZES, Steps, as_steps

LOADS = ("context_tokens", "prefill_pairs", "kv_cache_usage")
"""What a step may bring with it besides requests and tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TypicalLoad:
    """What the requests of a trace's steps bring with them, besides their tokens; None: it does not say.

    Attributes
    ----------
    context_per_decode : float or None
        Median context of a decoding request, tokens: over decode-only steps, their context a request.
    cached_per_chunk : float or None
        Median of the tokens in the KV cache before a prefill chunk; 0 where there is no prefill.
    kv_cache_usage_per_request : float or None
        Median share of the KV cache in use, by request.
    """

    context_per_decode: float | None = None
    cached_per_chunk: float | None = None
    kv_cache_usage_per_request: float | None = None

    @classmethod
    def of(cls, steps: pd.DataFrame) -> TypicalLoad:
        """Return what is typical of a trace.

        Parameters
        ----------
        steps : DataFrame
            Cleaned steps: ``batch_size``, ``total_tokens``, and what else the trace holds of
            ``num_prefill_reqs``, ``context_tokens``, ``prefill_pairs`` and ``kv_cache_usage``.
        """
        usage = None
        if "kv_cache_usage" in steps:
            usage = _median(steps["kv_cache_usage"] / steps["batch_size"])
        columns = [*SIZES, "num_prefill_reqs", "context_tokens", "prefill_pairs"]
        known = steps[columns].dropna() if set(columns) <= set(steps) else steps.head(0)
        if known.empty:
            return cls(kv_cache_usage_per_request=usage)
        cached = _cached_per_chunk(known)
        return cls(
            context_per_decode=_context_per_decode(known, cached),
            cached_per_chunk=cached,
            kv_cache_usage_per_request=usage,
        )

    @classmethod
    def from_dataset(cls, dataset: xr.Dataset) -> TypicalLoad:
        """Return what :meth:`to_dataset` wrote; names that are not known are left alone."""
        return cls(**{f.name: float(dataset[f.name]) for f in fields(cls) if f.name in dataset})

    def to_dataset(self) -> xr.Dataset:
        """Return the numbers that are known as variables without dims."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return xr.Dataset({name: ((), value) for name, value in values.items() if value is not None})

    def tells(self, columns: Sequence[str]) -> bool:
        """Return whether every column of a model, in `columns`, can be completed from it."""
        further = [name for name in columns if name not in SIZES]
        return all(name in _TAKES for name in further) and not any(
            getattr(self, taken) is None for name in further for taken in _TAKES[name]
        )

    def text(self, columns: Sequence[str]) -> str:
        """Return a sentence on the steps that bands over (B, S) are for; empty where B and S say it all.

        Parameters
        ----------
        columns : sequence of str
            Columns of the model.
        """
        parts = []
        if self.context_per_decode is not None and "context_tokens" in columns:
            parts.append(f"{self.context_per_decode:,.0f} tokens of context for each decoding request")
        if self.cached_per_chunk is not None and {"context_tokens", "prefill_pairs"} & set(columns):
            parts.append(f"one prefill chunk behind {self.cached_per_chunk:,.0f} cached tokens where S > B")
        if self.kv_cache_usage_per_request is not None and "kv_cache_usage" in columns:
            parts.append(f"{percent(self.kv_cache_usage_per_request, 2)} of the KV cache for each request")
        if not parts:
            return ""
        return f"Bands over requests and tokens alone are for steps with typical context: {listed(parts)}."


class SeenLoads:
    """The steps of a trace with some of their loads: which others are like at least `LEAST` of them.

    Requests and tokens are alike within the factor `ALIKE`, and so are loads a request above the trace's
    mean; far below it, where they cost next to nothing, they are alike anyway.
    """

    def __init__(self, steps: pd.DataFrame, names: tuple[str, ...]) -> None:
        self.names = names
        self._mean = {name: float((steps[name] / steps["batch_size"]).mean()) or 1.0 for name in names}
        self._tree = KDTree(self._places(steps)) if names else None

    def contain(self, steps: xr.Dataset) -> Bools:
        """Return whether steps, dims (cell,), are like enough of them."""
        if self._tree is None:
            return np.ones(steps.sizes["cell"], dtype=bool)
        away, _ = self._tree.query(self._places(steps), k=[LEAST], p=np.inf, distance_upper_bound=1.0)
        found: Bools = np.isfinite(away[:, 0])
        return found

    def _places(self, steps: pd.DataFrame | xr.Dataset) -> Floats:
        """Return where steps lie, dims (step, axis), such that those within 1 of each other are alike."""
        b, s, *loads = (np.asarray(steps[name], float) for name in (*SIZES, *self.names))
        each = [np.log1p(load / b / mean) for load, mean in zip(loads, self._mean.values(), strict=True)]
        return np.column_stack([np.log(b), np.log(s), 2.0 * (s > b), *each]) / math.log(ALIKE)


def complete(steps: Steps, *, columns: Sequence[str], typical: TypicalLoad, model: str) -> xr.Dataset:
    """Return steps with every column of a model, dims of `steps`; those that they lack are what is typical.

    InputError where nobody knows how to complete a column, or the trace does not say what is typical of it.
    """
    given = [name for name in columns if name in steps and name not in SIZES]
    whole = as_steps(steps, columns=(*SIZES, *given))
    lacking = [name for name in columns if name not in whole]
    if not lacking:
        return whole
    unknown = [name for name in lacking if name not in _TAKES]
    if unknown:
        raise InputError(
            f"the model {model} needs {listed(unknown)} of every step, and what is typical of that is not "
            "known: bands over requests and tokens alone cannot be drawn; give steps with every column"
        )
    if any(getattr(typical, taken) is None for name in lacking for taken in _TAKES[name]):
        raise InputError(
            f"the model {model} needs {listed(lacking)} of every step, and the fit does not keep what is "
            "typical of its trace: fit the trace again, or give steps that hold every column"
        )
    if "num_prefill_reqs" not in whole:
        whole = whole.assign(num_prefill_reqs=(whole["total_tokens"] > whole["batch_size"]).astype(float))
    values = _typical_values(whole, typical)
    return whole.assign({name: values[name] for name in lacking if name in values})


_TAKES = {
    "num_prefill_reqs": (),
    "context_tokens": ("context_per_decode", "cached_per_chunk"),
    "prefill_pairs": ("cached_per_chunk",),
    "kv_cache_usage": ("kv_cache_usage_per_request",),
}
"""Columns that can be completed, and what of a typical load each takes."""


def _typical_values(steps: xr.Dataset, typical: TypicalLoad) -> dict[str, xr.DataArray]:
    """Return the columns; chunks are even: c tokens behind k cached ones have c k + c (c + 1) / 2 pairs."""
    said = {f.name: getattr(typical, f.name) for f in fields(typical)}
    context, cached, usage = (math.nan if value is None else value for value in said.values())
    prefills = steps["num_prefill_reqs"]
    chunk = (steps["total_tokens"] - steps["batch_size"] + prefills) / prefills.clip(min=1.0)
    return {
        "context_tokens": context * (steps["batch_size"] - prefills) + cached * prefills,
        "prefill_pairs": prefills * (chunk * cached + chunk * (chunk + 1.0) / 2.0),
        "kv_cache_usage": usage * steps["batch_size"],
    }


def _cached_per_chunk(steps: pd.DataFrame) -> float:
    """Return the median of the cached tokens before a chunk: of steps with one chunk where there are any."""
    prefill = steps[steps["num_prefill_reqs"] > 0]
    single = prefill[prefill["num_prefill_reqs"] == 1]
    chosen = prefill if single.empty else single
    tokens = chosen["total_tokens"] - chosen["batch_size"] + chosen["num_prefill_reqs"]
    cached = chosen["prefill_pairs"] / tokens - (tokens / chosen["num_prefill_reqs"] + 1.0) / 2.0
    return max(_median(cached) or 0.0, 0.0)


def _context_per_decode(steps: pd.DataFrame, cached_per_chunk: float) -> float:
    """Return the median context of a decoding request: of decode-only steps where there are any."""
    decode = steps[steps["num_prefill_reqs"] == 0]
    if not decode.empty:
        return _median(decode["context_tokens"] / decode["batch_size"]) or 0.0
    decodes = steps["batch_size"] - steps["num_prefill_reqs"]
    rest = steps["context_tokens"] - cached_per_chunk * steps["num_prefill_reqs"]
    found = _median((rest / decodes)[decodes > 0])
    return cached_per_chunk if found is None else max(found, 0.0)


def _median(values: pd.Series[Any]) -> float | None:
    found = float(values.median())
    return found if math.isfinite(found) else None
