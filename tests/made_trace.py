"""Traces made of columns, for tests of what is said about them."""

from typing import Any

import numpy as np
import pandas as pd

from bayes_sched.trace.reader import BadLines, Source, Trace

START = 1_700_000_000.0
"""2023-11-14 22:13:20 UTC."""


def made_trace(num: int = 600, *, formats: tuple[str, ...] = ("documented",), **columns: Any) -> Trace:
    """A quiet server: 8 requests decode, 20 ms a step; `columns` replace or add some, `...` removes one."""
    table: dict[str, Any] = {
        "batch_size": 8,
        "total_tokens": 8,
        "latency_ms": 20.0,
        "num_prefill_reqs": 0,
        "num_decode_reqs": 8,
        "schedule_ms": 0.5,
        "kv_cache_usage": 0.3,
        "num_waiting_reqs": 0,
        "num_running_reqs": 8,
        "timestamp": START + 0.0205 * np.arange(num),
        "step_ms": 20.5,
        "prefill_tokens": 0,
        "max_prefill_chunk": 0,
    }
    table |= columns
    steps = pd.DataFrame({name: values for name, values in table.items() if values is not ...}, range(num))
    names = [f"t{number}.jsonl" for number in range(len(formats))]
    codes = np.arange(num) * len(formats) // num
    steps["source"] = pd.Categorical.from_codes(codes, categories=pd.Index(names))
    steps["line"] = steps.groupby("source", observed=False).cumcount() + 1
    sources = tuple(
        Source(path=name, format=kind, sha256="0" * 64, num_lines=num, num_steps=num)
        for name, kind in zip(names, formats, strict=True)
    )
    return Trace(steps=steps, sources=sources, bad_lines=BadLines({}, (), num), sha256="0" * 64, name="t")


def changed(value: Any, num: int = 600, **at: Any) -> Any:
    """An array of one value, other ones `at` slices: ``changed(0.5, slow=(slice(3, 5), 12.0))``."""
    values = np.full(num, value, dtype=float)
    for where, other in at.values():
        values[where] = other
    return values
