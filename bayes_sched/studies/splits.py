"""Servers whose steps are known, and ways of holding some out: to learn from, and to predict."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.random import Generator

from bayes_sched.arrays import Bools
from bayes_sched.errors import InputError
from bayes_sched.steps import regime
from bayes_sched.studies.names import SPLIT_TITLES
from bayes_sched.trace.cleaning import clean_steps, thin_steps
from bayes_sched.trace.reader import Trace

SERVER_MARK = "_chunk"
"""In the name of a trace, what stands before it names the server, where no label does."""
CONTEXT_COLUMNS = (
    *("context_tokens", "prefill_pairs", "num_prefill_reqs", "num_decode_reqs", "prefill_tokens"),
    *("max_prefill_chunk", "kv_cache_usage"),
)
"""What a trace may tell of a step besides B and S that is known before the step runs."""
NO_LIMITS_MS = (1e-9, 1e9)
"""Limits for the cleaning of a fit to steps of a :class:`Server`, which are clean."""
HELD_OUT = 0.2
"""Share of the steps that the random split and the split in time hold out."""
BLOCK = 100
"""Consecutive steps that are held out together: neighbours in time resemble each other, and a step whose
neighbours were learned from is half seen."""
MIN_ROWS = 20
"""Fewer training steps or held-out steps than this say nothing."""
_NEEDED = ("batch_size", "total_tokens", "latency_ms")
_SAME_BUDGET = 0.9
_MAX_SEED = 2**31


@dataclass(frozen=True, kw_only=True, eq=False)
class Server:
    """The steps of one server."""

    name: str
    steps: pd.DataFrame
    traces: tuple[str, ...]
    sha256: str
    warnings: tuple[str, ...] = ()


def servers_of(
    traces: Sequence[Trace],
    *,
    pooled: bool = True,
    mark: str = SERVER_MARK,
    min_latency_ms: float | None = None,
    max_latency_ms: float | None = None,
) -> tuple[Server, ...]:
    """Group traces, one a file, by their servers, cleaned.

    If `pooled`, traces with the same labels (``gpu``, ``llm``), or without labels the same name up to `mark`,
    are of one server; else each is on its own.
    """
    groups: dict[str, list[Trace]] = {}
    for trace in traces:
        key = _server_name(trace, mark) if pooled else trace.name
        groups.setdefault(key, []).append(trace)
        if not pooled and len(groups[key]) > 1:
            raise InputError(f"two traces have the name {key}: rename one of the files")
    limits = (min_latency_ms, max_latency_ms)
    return tuple(_server(name, members, limits) for name, members in groups.items())


def _server_name(trace: Trace, mark: str) -> str:
    labels = [trace.labels[key] for key in ("gpu", "llm") if trace.labels.get(key)]
    if labels:
        return " ".join(labels)
    return (trace.name.partition(mark)[0] if mark else trace.name) or trace.name


def _server(name: str, traces: Sequence[Trace], given_ms: tuple[float | None, float | None]) -> Server:
    parts, warnings, limits = [], [], []
    for number, trace in enumerate(traces):
        cleaned = clean_steps(trace.steps, min_latency_ms=given_ms[0], max_latency_ms=given_ms[1])
        limits.append(cleaned.limits_ms)
        warnings += [f"{trace.name}: {text}" for text in (*trace.warnings, *cleaned.warnings)]
        budget = int(cleaned.steps["total_tokens"].max())
        parts.append(cleaned.steps.assign(trace=number, budget=budget))
    columns = [*_NEEDED, *(c for c in CONTEXT_COLUMNS if all(c in part for part in parts))]
    pooled = pd.concat([part[[*columns, "trace", "budget"]] for part in parts], ignore_index=True)
    complete = pooled.dropna().reset_index(drop=True)
    if len(complete) < len(pooled):
        lacking = ", ".join(column for column in columns if pooled[column].isna().any())
        warnings.append(
            f"{name}: {len(pooled) - len(complete):,} of {len(pooled):,} steps lack {lacking}: left out"
        )
    limits_ms = min(low for low, _ in limits), max(high for _, high in limits)
    digests = [*(trace.sha256 for trace in traces), *map(repr, limits_ms)]
    return Server(
        name=name,
        steps=complete,
        traces=tuple(trace.name for trace in traces),
        sha256=hashlib.sha256(" ".join(digests).encode()).hexdigest(),
        warnings=tuple(warnings),
    )


type Choose = Callable[[pd.DataFrame, Generator], tuple[Bools, Bools]]
"""Steps and a random generator to the steps to learn from and the steps to predict, dims (row,) both."""


@dataclass(frozen=True)
class Split:
    """A way of holding steps out."""

    name: str
    choose: Choose
    is_random: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """Steps to learn from and steps to predict, and how many there were before they were thinned."""

    train: pd.DataFrame
    test: pd.DataFrame
    num_train: int
    num_test: int


def cut(
    steps: pd.DataFrame,
    split: Split,
    *,
    rng: Generator,
    max_train: int,
    max_test: int,
    rare_first: bool = False,
) -> Cut:
    """Hold steps of a :class:`Server` out.

    Where there are more than `max_train` or `max_test`, a random choice of so many stays; those to learn from
    may be chosen as a fit chooses them, the rare ones first (:func:`~bayes_sched.trace.cleaning.thin_steps`).
    InputError, a sentence, says why steps do not allow a split.
    """
    train, test = (np.flatnonzero(mask) for mask in split.choose(steps, rng))
    for rows, what in ((train, "to learn from"), (test, "to predict")):
        if len(rows) < MIN_ROWS:
            raise InputError(f"{len(rows)} steps {what}, fewer than {MIN_ROWS}")
    kept = [steps.iloc[rows].reset_index(drop=True) for rows in (train, test)]
    if rare_first:
        kept[0] = thin_steps(kept[0], max_train, seed=int(rng.integers(_MAX_SEED))).steps
    chosen = [_thinned(rows, most, rng) for rows, most in zip(kept, (max_train, max_test), strict=True)]
    return Cut(train=chosen[0], test=chosen[1], num_train=len(train), num_test=len(test))


def _thinned(steps: pd.DataFrame, most: int, rng: Generator) -> pd.DataFrame:
    if len(steps) <= most:
        return steps
    return steps.iloc[np.sort(rng.choice(len(steps), most, replace=False))].reset_index(drop=True)


def _random(steps: pd.DataFrame, rng: Generator) -> tuple[Bools, Bools]:
    test = _some(len(steps), round(HELD_OUT * len(steps)), rng)
    return ~test, test


def _some(number: int, chosen: int, rng: Generator) -> Bools:
    found = np.zeros(number, dtype=bool)
    found[rng.choice(number, chosen, replace=False)] = True
    return found


def _blocks(steps: pd.DataFrame, rng: Generator) -> tuple[Bools, Bools]:
    """Hold out stretches of consecutive steps of each trace."""
    position = steps.groupby("trace").cumcount() // BLOCK
    block = steps.groupby(["trace", position], sort=False).ngroup().to_numpy()
    number = int(block.max()) + 1
    test = np.isin(block, rng.choice(number, round(HELD_OUT * number), replace=False))
    return ~test, test


def _last_in_time(steps: pd.DataFrame, rng: Generator) -> tuple[Bools, Bools]:
    """Hold out the end of each trace."""
    position = steps.groupby("trace").cumcount().to_numpy()
    length = steps.groupby("trace")["trace"].transform("size").to_numpy()
    test = position >= (1.0 - HELD_OUT) * length
    return ~test, test


def _largest_budget(steps: pd.DataFrame, rng: Generator) -> tuple[Bools, Bools]:
    """Hold out the traces with the largest budget."""
    budget = steps["budget"].to_numpy()
    test = budget >= _SAME_BUDGET * budget.max()
    if test.all():
        raise InputError(f"all its traces have one token budget, about {budget.max():,}")
    return ~test, test


def _decode_only(steps: pd.DataFrame, rng: Generator) -> tuple[Bools, Bools]:
    train = (regime(steps) == "decode").to_numpy()
    return train, ~train


def _few(num_rows: int) -> Choose:
    def choose(steps: pd.DataFrame, rng: Generator) -> tuple[Bools, Bools]:
        if len(steps) < num_rows + MIN_ROWS:
            raise InputError(f"it has {len(steps):,} steps")
        train = _some(len(steps), num_rows, rng)
        return train, ~train

    return choose


_WAYS = {
    "random": Split("random", _random, is_random=True),
    "blocks": Split("blocks", _blocks, is_random=True),
    "time": Split("time", _last_in_time),
    "rows-1000": Split("rows-1000", _few(1000), is_random=True),
    "rows-200": Split("rows-200", _few(200), is_random=True),
    "rows-50": Split("rows-50", _few(50), is_random=True),
    "budget": Split("budget", _largest_budget),
    "decode-only": Split("decode-only", _decode_only),
}
SPLITS = {name: _WAYS[name] for name in SPLIT_TITLES}
"""By name, in the order of the tables."""
