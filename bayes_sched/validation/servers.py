"""Traces grouped by the server that wrote them: what is learned of a server is tried on that server."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from bayes_sched.errors import InputError
from bayes_sched.trace import Trace, clean_steps

SERVER_MARK = "_chunk"
"""In the name of a trace, what stands before it names the server, where no label does."""

CONTEXT_COLUMNS = (
    "context_tokens",
    "prefill_pairs",
    "num_prefill_reqs",
    "num_decode_reqs",
    "prefill_tokens",
    "max_prefill_chunk",
    "kv_cache_usage",
)
"""What a trace may tell of a step besides B and S that is known before the step runs."""

NO_LIMITS_MS = (1e-9, 1e9)
"""Limits for the cleaning of a fit to steps of a :class:`Server`, which are clean."""

_NEEDED = ("batch_size", "total_tokens", "latency_ms")


@dataclass(frozen=True, kw_only=True, eq=False)
class Server:
    """The steps of one server.

    Attributes
    ----------
    name : str
    steps : DataFrame
        Cleaned steps, trace after trace, each in its order: the columns that all traces hold, and ``trace``
        (number of the trace) and ``budget`` (largest S of the trace).
    traces : tuple of str
        Names of the traces.
    sha256 : str
        Digest of the traces and of the cleaning.
    warnings : tuple of str
    """

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
    min_latency_ms: float = 1.0,
    max_latency_ms: float = 300.0,
) -> tuple[Server, ...]:
    """Group traces by their servers, cleaned.

    Parameters
    ----------
    traces : sequence of Trace
        One a file.
    pooled : bool
        Whether traces with the same labels (``gpu``, ``llm``), or without labels the same name up to `mark`,
        are of one server; else each is on its own.
    mark : str
    min_latency_ms, max_latency_ms : float
        Limits of the cleaning.

    Raises
    ------
    InputError
        No step of a trace is left after cleaning, or two servers have one name.
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


def _server(name: str, traces: Sequence[Trace], limits_ms: tuple[float, float]) -> Server:
    parts, warnings = [], []
    for number, trace in enumerate(traces):
        cleaned = clean_steps(trace.steps, min_latency_ms=limits_ms[0], max_latency_ms=limits_ms[1])
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
    digests = [*(trace.sha256 for trace in traces), *map(repr, limits_ms)]
    return Server(
        name=name,
        steps=complete,
        traces=tuple(trace.name for trace in traces),
        sha256=hashlib.sha256(" ".join(digests).encode()).hexdigest(),
        warnings=tuple(warnings),
    )
