"""What clients of a server measured of their requests."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bayes_sched.errors import InputError
from bayes_sched.planning.measures import KEYS
from bayes_sched.planning.request_records import FIELDS, request_records, request_value
from bayes_sched.planning.workload import Workload

MEASURED = tuple(f"{key}_ms" for key in KEYS)
"""Fields of a measured request beside those of any request."""
LEAST = 20
"""Fewer requests have no quantiles worth a comparison."""

type Floats = NDArray[np.float64]
type Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class MeasuredRequests:
    """Requests with the times that their clients measured, dims (request,), in the order of their arrival.

    Attributes
    ----------
    arrival_s : ndarray
        When they were sent, s, on the clock of the server's trace.
    prompt_tokens, output_tokens : ndarray
    times_ms : Mapping of str to ndarray
        Time to first token, per output token and end to end, by
        :data:`~bayes_sched.planning.measures.KEYS`; NaN where a request has no such time.
    """

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    times_ms: Mapping[str, Floats]

    @property
    def num_requests(self) -> int:
        """How many requests there are."""
        return self.arrival_s.size

    @property
    def finish_s(self) -> Floats:
        """When the last token came, s, dims (request,)."""
        return self.arrival_s + self.times_ms["e2e"] / 1000.0

    @property
    def num_computed(self) -> int:
        """Tokens that a server computes for them, without a prefix cache: the last one is not an input."""
        return int((self.prompt_tokens + self.output_tokens - 1).sum())

    @property
    def workload(self) -> Workload:
        """The requests as a simulator takes them, the first at 0."""
        return Workload.of(self.arrival_s, self.prompt_tokens, self.output_tokens)


def read_measured_requests(path: str | os.PathLike[str]) -> MeasuredRequests:
    """Read requests that were measured: ``arrival_s``, the tokens, ``ttft_ms``, ``tpot_ms``, ``e2e_ms``.

    The time per output token may be missing of requests of one token. Other fields are ignored.

    Raises
    ------
    InputError
        The file cannot be read, holds too few requests, or a field of a line is missing or no such number:
        the message names file and line.
    """
    path = Path(path)
    rows = []
    for place, record in request_records(path, fields=(*FIELDS, *MEASURED)):
        values = {name: request_value(record, name, place) for name in (*FIELDS, "ttft_ms", "e2e_ms")}
        is_single = values["output_tokens"] == 1
        values["tpot_ms"] = np.nan if is_single else request_value(record, "tpot_ms", place)
        if values["e2e_ms"] < values["ttft_ms"]:
            raise InputError(f"{place}: e2e_ms is below ttft_ms: the last token comes before the first")
        rows.append([values[name] for name in (*FIELDS, *MEASURED)])
    if len(rows) < LEAST:
        raise InputError(f"{path}: {len(rows):,} requests are too few: give at least {LEAST}")
    table = np.array(rows, dtype=np.float64)
    arrival, prompt, output, *times = table[np.argsort(table[:, 0], kind="stable")].T
    return MeasuredRequests(
        arrival_s=arrival,
        prompt_tokens=prompt.astype(np.int64),
        output_tokens=output.astype(np.int64),
        times_ms=dict(zip(KEYS, times, strict=True)),
    )
