"""What a server is asked to do: requests with their arrivals, prompts and outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bayes_sched.errors import InputError

MAX_TOKENS = 10_000_000
"""A request of more tokens is no request of any server."""

type Floats = NDArray[np.float64]
type Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Workload:
    """Requests in the order of their arrival.

    Attributes
    ----------
    arrival_s : ndarray, dims (request,)
        Seconds since the first one, rising.
    prompt_tokens, output_tokens : ndarray, dims (request,)
        At least 1 each.

    Raises
    ------
    InputError
        There is no request, or a number is out of range.
    """

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints

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
    """How many tokens requests have: a median, and a log-normal spread around it.

    Attributes
    ----------
    median : int
        Tokens.
    spread : float
        Factor by which two requests in three stay within of the median; 1: all have as many.

    Raises
    ------
    InputError
        A number is out of range.
    """

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
    """Requests that come independently of each other, so many a second in the mean.

    Attributes
    ----------
    rate_per_s : float
    prompt, output : Lengths
    num_requests : int

    Raises
    ------
    InputError
        A number is out of range.
    """

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
