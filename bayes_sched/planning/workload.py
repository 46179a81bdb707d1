"""Requests that a server is to carry: drawn from distributions, or read from a log of requests.

A log is CSV with a header or one JSON object a line, plain or packed; each slip is named with file and line.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from bayes_sched.arrays import Floats, Ints
from bayes_sched.errors import InputError
from bayes_sched.sla.request import NAMES

MAX_TOKENS = 10_000_000
"""A request of more tokens is no request of any server."""


@dataclass(frozen=True, eq=False)
class Workload:
    """Requests in the order of their arrival; InputError without any, or for a number out of range."""

    arrival_s: Floats
    """Seconds since the first one, rising, dims (request,)."""
    prompt_tokens: Ints
    output_tokens: Ints
    """At least 1 each, dims (request,)."""

    def __post_init__(self) -> None:
        if not self.arrival_s.size:
            raise InputError("the workload holds no request")
        if not (np.isfinite(self.arrival_s).all() and (np.diff(self.arrival_s) >= 0.0).all()):
            raise InputError("arrival_s has to be finite and in order: use Workload.of")
        for name in ("prompt_tokens", "output_tokens"):
            values = getattr(self, name)
            if values.min() < 1 or values.max() > MAX_TOKENS:
                wrong = int(np.flatnonzero((values < 1) | (values > MAX_TOKENS))[0])
                raise InputError(f"{name} of request {wrong} is {values[wrong]:,}: give 1 to {MAX_TOKENS:,}")

    @classmethod
    def of(cls, arrival_s: Floats, prompt_tokens: Ints, output_tokens: Ints) -> Workload:
        """Return requests in any order as a workload that begins at 0."""
        order = np.argsort(arrival_s, kind="stable")
        arrival = np.asarray(arrival_s, dtype=np.float64)[order]
        first = arrival[0] if arrival.size else 0.0
        tokens = (np.asarray(values, dtype=np.int64)[order] for values in (prompt_tokens, output_tokens))
        return cls(arrival - first, *tokens)

    @property
    def num_requests(self) -> int:
        """How many requests there are."""
        return self.arrival_s.size

    @property
    def rate_per_s(self) -> float:
        """Mean arrivals a second; infinite where all come at once."""
        span = float(self.arrival_s[-1])
        return (self.num_requests - 1) / span if span else math.inf

    @property
    def text(self) -> str:
        """A phrase a person can paste."""
        prompt, output = (f"{np.median(v):,.0f}" for v in (self.prompt_tokens, self.output_tokens))
        rate = "all at once" if math.isinf(self.rate_per_s) else f"{self.rate_per_s:.3g} a second"
        return (
            f"{self.num_requests:,} requests, {rate}, of {prompt} prompt and {output} output tokens (medians)"
        )

    def part(self, number: int, of: int) -> Workload | None:
        """Return the requests that round-robin gives to one of several servers; None where there are none."""
        if number >= self.num_requests:
            return None
        which = slice(number, None, of)
        return Workload(self.arrival_s[which], self.prompt_tokens[which], self.output_tokens[which])


@dataclass(frozen=True, slots=True)
class Lengths:
    """How many tokens requests have: log-normal, two in three within a factor `spread` of the median."""

    median: int
    spread: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.median <= MAX_TOKENS:
            raise InputError(f"a median of {self.median:,} tokens: give 1 to {MAX_TOKENS:,}")
        if not 1.0 <= self.spread <= 100.0:
            raise InputError(f"a spread of {self.spread:g}: give a factor from 1 (none) to 100")

    def draw(self, num: int, rng: np.random.Generator) -> Ints:
        """Draw numbers of tokens, at least 1, dims (request,)."""
        values = self.median * np.exp(math.log(self.spread) * rng.standard_normal(num))
        return np.clip(np.rint(values), 1, MAX_TOKENS).astype(np.int64)

    @property
    def text(self) -> str:
        """A phrase a person can paste."""
        return f"{self.median:,}" + (f" (within a factor of {self.spread:g})" if self.spread > 1.0 else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoissonWorkload:
    """Requests that come independently, `rate_per_s` a second in the mean; InputError for a bad number."""

    rate_per_s: float
    prompt: Lengths
    output: Lengths
    num_requests: int = 1000

    def __post_init__(self) -> None:
        if not 0.0 < self.rate_per_s < math.inf:
            raise InputError(f"a rate of {self.rate_per_s:g} requests a second: give a positive number")
        if self.num_requests < 1:
            raise InputError("the workload holds no request: give at least 1")

    def draw(self, rng: np.random.Generator) -> Workload:
        """Draw a workload."""
        arrival = np.cumsum(rng.exponential(1.0 / self.rate_per_s, self.num_requests))
        prompt, output = (lengths.draw(self.num_requests, rng) for lengths in (self.prompt, self.output))
        return Workload(arrival - arrival[0], prompt, output)

    @property
    def text(self) -> str:
        """A phrase a person can paste."""
        return (
            f"{self.num_requests:,} requests, {self.rate_per_s:g} a second (Poisson), of {self.prompt.text} "
            f"prompt and {self.output.text} output tokens"
        )


type AnyWorkload = Workload | PoissonWorkload

FIELDS = ("arrival_s", "prompt_tokens", "output_tokens")
"""What every request of a log has."""
MEASURED = tuple(f"{key}_ms" for key in NAMES)
"""What one has beside that whose client measured its times."""
LEAST = 20
"""Fewer measured requests have no quantiles worth a comparison."""


def read_workload(path: str | os.PathLike[str]) -> Workload:
    """Read the requests of a file: ``.csv`` or ``.jsonl`` (or ``.gz`` of it), with `FIELDS` of each.

    They may come in any order; other fields are ignored.

    Raises
    ------
    InputError
        The file cannot be read, holds no request, or a field of a line is missing, negative or no number: the
        message names file and line.
    """
    path = Path(path)
    rows = [
        [request_value(record, name, place) for name in FIELDS] for place, record in request_records(path)
    ]
    if not rows:
        raise InputError(f"{path}: the file holds no request")
    arrival, prompt, output = np.array(rows, dtype=np.float64).T
    return Workload.of(arrival, prompt.astype(np.int64), output.astype(np.int64))


@dataclass(frozen=True, eq=False, kw_only=True)
class MeasuredRequests:
    """Requests with the times that their clients measured, dims (request,), in the order of their arrival."""

    arrival_s: Floats  # when they were sent, on the clock of the server's trace
    prompt_tokens: Ints
    output_tokens: Ints
    times_ms: Mapping[str, Floats]  # by the keys of `NAMES`; NaN where a request has no such time

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
    """Read requests with `FIELDS` and `MEASURED`; those of one token may lack the time per output token."""
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
        times_ms=dict(zip(NAMES, times, strict=True)),
    )


def request_records(path: Path, *, fields: tuple[str, ...] = FIELDS) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of each request (``FILE, line 7``) and its record; the header of a CSV has `fields`."""
    is_packed = path.suffix == ".gz"
    kind = Path(path.stem).suffix if is_packed else path.suffix
    if kind not in (".csv", ".jsonl"):
        raise InputError(
            f"{path}: a log of requests is a .csv or a .jsonl file (or .gz of it) with {', '.join(fields)}"
        )
    try:
        with (gzip.open if is_packed else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield from _csv_records(path, file, fields) if kind == ".csv" else _json_records(path, file)
    except (UnicodeDecodeError, csv.Error, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: not a text file of requests ({error})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _csv_records(path: Path, file: TextIO, fields: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(file)
    missing = [name for name in fields if name not in (reader.fieldnames or ())]
    if missing and reader.fieldnames is not None:
        raise InputError(f"{path}, line 1: the header names no {', '.join(missing)}")
    for record in reader:
        yield f"{path}, line {reader.line_num}", record


def _json_records(path: Path, file: TextIO) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise InputError(f"{place}: no JSON object; each line holds one request")
        yield place, record


def request_value(record: dict[str, Any], name: str, place: str) -> float:
    """Return a number of a record: whole for tokens, and 0 or more for what is measured."""
    value = record.get(name)
    if value is None or value == "":
        raise InputError(f"{place}: {name} is missing")
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if name.endswith("_tokens"):
        is_fine = 1 <= number <= MAX_TOKENS and number.is_integer()
        right = f"a whole number from 1 to {MAX_TOKENS:,}"
    else:
        is_fine = 0.0 <= number < math.inf
        right = f"{'milliseconds' if name.endswith('_ms') else 'seconds'}, 0 or more"
    if not is_fine:
        raise InputError(f"{place}: {name} is {str(value)[:40]!r}: give {right}")
    return number
