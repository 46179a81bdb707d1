"""What may be promised of requests: time to first token, time per output token, end-to-end time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from bayes_sched.arrays import Bools, Floats
from bayes_sched.checks.local import CONTRADICTED, check_locally
from bayes_sched.errors import InputError
from bayes_sched.format import chance, chances, listed, number, records, sentence, span, sureness
from bayes_sched.posterior.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.posterior.prediction import band_levels
from bayes_sched.posterior.provenance import FitDescription
from bayes_sched.sla.convolution import SumDistribution, sum_distribution
from bayes_sched.sla.risk import (
    DEFAULT_CONFIDENCE,
    DEFAULT_QUANTILE,
    Objective,
    noise_draws,
    objectives_of,
    refusals,
)
from bayes_sched.steps import steps_arrays

MAX_DRAWS = 400
"""Posterior draws, evenly spaced, that requests use unless told otherwise: each costs a convolution."""

NAMES = {"ttft": "time to first token", "tpot": "time per output token", "e2e": "end-to-end time"}

_NUM_PLACES = 200  # of a curve of survival, and the shares of the requests between which it is drawn
_ENDS = (0.001, 0.997)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSteps:
    """A request that a scheduler with chunked prefill serves beside running decodes.

    Every step first gives each decode its token; what the token budget leaves goes to the prompt. The first
    output token comes out of the last prefill step, each further one out of a decode-only step. The decodes
    run on all the while, and no other request comes; a wait for the first step is not counted.
    """

    prompt_tokens: int  # tokens to prefill (those in the prefix cache left out)
    output_tokens: int | None = None
    """Tokens to generate, the first one included; None where that is of no interest."""
    decodes: int = 0  # other requests, which decode in every step
    token_budget: int  # tokens of a step, at most, those of the decodes included

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise InputError(f"prompt_tokens = {self.prompt_tokens}: a prompt has at least 1 token")
        if self.output_tokens is not None and self.output_tokens < 1:
            raise InputError(f"output_tokens = {self.output_tokens}: an answer has at least 1 token")
        if self.decodes < 0:
            raise InputError(f"decodes = {self.decodes}: give a number that is not negative")
        if self.token_budget <= self.decodes:
            raise InputError(
                f"a token budget of {self.token_budget:,} leaves no token for a prefill beside "
                f"{self.decodes:,} decodes: give a larger budget or fewer decodes"
            )

    @property
    def num_prefill_steps(self) -> int:
        """Steps until the first output token."""
        return -(-self.prompt_tokens // (self.token_budget - self.decodes))

    @property
    def num_decode_steps(self) -> int:
        """Steps after the first output token."""
        return 0 if self.output_tokens is None else self.output_tokens - 1

    @property
    def table(self) -> pd.DataFrame:
        """The kinds of steps: ``phase`` (prefill, decode), ``batch_size``, ``total_tokens``, ``count``."""
        chunk = self.token_budget - self.decodes
        rest = self.prompt_tokens - (self.num_prefill_steps - 1) * chunk
        requests = self.decodes + 1
        counts: dict[tuple[str, int, int], int] = {}
        for key, count in (
            (("prefill", requests, self.token_budget), self.num_prefill_steps - 1),
            (("prefill", requests, self.decodes + rest), 1),
            (("decode", requests, requests), self.num_decode_steps),
        ):
            counts[key] = counts.get(key, 0) + count
        rows = [(*key, count) for key, count in counts.items() if count]
        return pd.DataFrame(rows, columns=["phase", "batch_size", "total_tokens", "count"])


@dataclass(frozen=True, kw_only=True, eq=False)
class RequestTime:
    """A time of a request, ms: None where beyond all bounds; what is of the limit is None without one."""

    key: str  # ttft, tpot or e2e
    name: str  # the same in words
    median_ms: float | None
    quantile: float  # share of the requests that a promise is about
    quantile_ms: float | None
    """Predictive quantile, draws and noise together; then the credible interval of that of a draw."""
    quantile_lower_ms: float | None
    quantile_upper_ms: float | None
    limit_ms: float | None = None
    probability: float | None = None
    """Of keeping the limit, draws and noise together, with the credible interval of that of a draw."""
    lower: float | None = None
    upper: float | None = None
    confidence: float | None = None  # share of the draws in which the asked share keeps the limit
    is_kept: bool | None = None  # whether the limit may be promised, as far as numbers go
    interval: float  # probability of credible intervals
    distribution: SumDistribution  # one for each posterior draw

    @classmethod
    def of(
        cls, key: str, distribution: SumDistribution, of: Objective | None, quantile: float, interval: float
    ) -> RequestTime:
        """Say what follows from the distribution of a time."""

        def credible(draws: Floats) -> list[float]:
            # Values of draws, not values between two: either may be infinite.
            levels = band_levels(interval)[[0, 2]]
            ends: list[float] = np.quantile(draws, levels, method="inverted_cdf").tolist()
            return ends

        draws_ms = distribution.quantile_draws(quantile)
        ends_ms = [distribution.quantile(0.5), distribution.quantile(quantile), *credible(draws_ms)]
        median_ms, quantile_ms, lower_ms, upper_ms = (ms if math.isfinite(ms) else None for ms in ends_ms)
        of_limit: dict[str, Any] = {}
        if of is not None:
            lower, upper = credible(distribution.cdf_draws(np.array([of.limit_ms]))[:, 0])
            of_limit = {
                "limit_ms": of.limit_ms,
                "probability": distribution.probability_below(of.limit_ms),
                "lower": lower,
                "upper": upper,
                "confidence": float(of.confidence_of(draws_ms)),
                "is_kept": bool(of.is_surely_kept(draws_ms)),
            }
        return cls(
            key=key,
            name=NAMES[key],
            median_ms=median_ms,
            quantile=quantile,
            quantile_ms=quantile_ms,
            quantile_lower_ms=lower_ms,
            quantile_upper_ms=upper_ms,
            interval=interval,
            distribution=distribution,
            **of_limit,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        kept = [field.name for field in fields(self) if field.name not in ("interval", "distribution")]
        return {name: getattr(self, name) for name in kept}

    def survival(self) -> pd.DataFrame:
        """Return the share of the requests that take longer than ``time_ms``, with its interval."""
        ends = [*(self.distribution.quantile(q) for q in _ENDS), self.limit_ms]
        finite = [end for end in ends if end is not None and math.isfinite(end)]
        places = np.linspace(min(finite), max(finite) + 0.03 * (max(finite) - min(finite)), _NUM_PLACES)
        late = 1.0 - self.distribution.cdf_draws(places)
        lower, upper = np.quantile(late, band_levels(self.interval)[[0, 2]], axis=0)
        return pd.DataFrame({"time_ms": places, "late": late.mean(axis=0), "lower": lower, "upper": upper})

    @property
    def text(self) -> str:
        """Sentences a person can paste."""
        share = f"{100 * self.quantile:g}%"
        told = (
            f"{sentence(self.name)}: half of the requests within {number(self.median_ms)} ms, {share} within "
            f"{number(self.quantile_ms)} ms ({span(self.quantile_lower_ms, self.quantile_upper_ms)})"
        )
        if self.limit_ms is None:
            return f"{told}."
        return (
            f"{told}; {self.limit_ms:g} ms {'may' if self.is_kept else 'may NOT'} be promised: "
            f"{chance(self.probability)} of the requests keep it ({chances(self.lower, self.upper)}), and "
            f"the confidence that at least {share} do is {sureness(self.confidence)}."
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class RequestSLA:
    """What may be promised of a kind of request."""

    fit: FitDescription
    """What it was found with."""
    steps: RequestSteps
    """The request, and the steps it takes."""
    times: tuple[RequestTime, ...]
    """What was asked for, or can be said: ``ttft``, and with output tokens ``tpot`` and ``e2e``."""
    own: tuple[RequestTime, ...]
    """The same with the trace's own medians where it contradicts the model; empty where it does not."""
    step_table: pd.DataFrame
    """``phase``, ``batch_size``, ``total_tokens``, ``count``, ``extrapolation``, and the trace's own answer:
    :meth:`~bayes_sched.checks.local.LocalCheck.beside`."""
    refusals: tuple[str, ...]
    """Reasons, besides the numbers, why nothing is promised."""

    @property
    def is_promised(self) -> bool:
        """Whether every limit that was asked for may be promised."""
        return not self.refusals and all(time.is_kept is not False for time in self.times)

    @property
    def table(self) -> pd.DataFrame:
        """One row a time: the fields of `RequestTime`."""
        return pd.DataFrame([time.to_dict() for time in self.times])

    @property
    def request_text(self) -> str:
        """The request and its assumptions in words."""
        steps = self.steps
        chunks = f"{steps.num_prefill_steps:,} prefill step{'s' if steps.num_prefill_steps > 1 else ''}"
        output = "" if steps.output_tokens is None else f" and {steps.output_tokens:,} output tokens"
        return (
            f"A request of {steps.prompt_tokens:,} prompt tokens{output} beside {steps.decodes:,} running "
            f"decodes, token budget {steps.token_budget:,}: {chunks}. Counted from its first step, while no "
            "other request comes; parameters shared by all steps, noise independent between them. Real "
            "steps drift together (contexts grow), so leave a margin of a few percent over many steps."
        )

    @property
    def own_text(self) -> str:
        """What the trace makes of the times where it contradicts the model."""
        if not self.own:
            return ""
        share = f"{100 * self.own[0].quantile:g}%"
        told = listed([f"{time.name} {number(time.quantile_ms)} ms" for time in self.own])
        return (
            "The trace contradicts the model on steps of this request; with its own medians there, "
            f"{share} within: {told}."
        )

    @property
    def text(self) -> str:
        """Sentences a person can paste."""
        outside = "EXTRAPOLATION: the trace holds no such steps as some of this request."
        is_outside = bool(self.step_table["extrapolation"].any())
        parts = [
            self.request_text,
            *(time.text for time in self.times),
            self.own_text,
            *([outside] if is_outside else ()),
        ]
        return " ".join([*filter(None, parts), *self.refusals])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            **asdict(self.steps),
            "num_prefill_steps": self.steps.num_prefill_steps,
            "num_decode_steps": self.steps.num_decode_steps,
            "is_promised": self.is_promised,
            "refusals": list(self.refusals),
            "steps": records(self.step_table),
            "times": [time.to_dict() for time in self.times],
            "own": [time.to_dict() for time in self.own],
        }


def request_sla(
    fit: FittedModel,
    *,
    prompt_tokens: int,
    token_budget: int,
    output_tokens: int | None = None,
    decodes: int = 0,
    ttft_ms: float | None = None,
    tpot_ms: float | None = None,
    e2e_ms: float | None = None,
    quantile: float = DEFAULT_QUANTILE,
    confidence: float = DEFAULT_CONFIDENCE,
    extrapolate: bool = False,
    accept_unconverged: bool = False,
    probability: float = DEFAULT_PROBABILITY,
    max_draws: int | None = MAX_DRAWS,
) -> RequestSLA:
    """Return how long a kind of request takes, and which limits on it may be promised.

    All steps of a request share a posterior draw: if the server is slower than thought, it is so in every
    step. Given the draw, steps are independent of each other.

    Parameters
    ----------
    fit : FittedModel
    prompt_tokens, token_budget, output_tokens, decodes : int
        See :class:`RequestSteps`.
    ttft_ms, tpot_ms, e2e_ms : float, optional
        Limits, ms: time to first token, time per output token (mean over the tokens after the first, as
        clients measure it), end-to-end time. The last two need `output_tokens`.
    quantile, confidence : float
        As for :func:`~bayes_sched.sla.steps.step_sla`, over requests.
    extrapolate, accept_unconverged : bool
    probability : float
        Of credible intervals.
    max_draws : int or None

    Returns
    -------
    RequestSLA

    Raises
    ------
    InputError
        A value is outside its range, `output_tokens` is missing for a limit, or the fit's model needs more
        than B and S.
    """
    limits = {"ttft": ttft_ms, "tpot": tpot_ms, "e2e": e2e_ms}
    objectives = objectives_of(limits, quantile=quantile, confidence=confidence, probability=probability)
    steps = RequestSteps(
        prompt_tokens=prompt_tokens, output_tokens=output_tokens, decodes=decodes, token_budget=token_budget
    )
    _check_output(steps, limits)
    table = steps.table
    kinds = steps_arrays(table["batch_size"], table["total_tokens"])
    local, sizes = check_locally(fit), (table["batch_size"], table["total_tokens"])
    table = local.beside(table.assign(extrapolation=fit.extrapolation(kinds).to_numpy()))
    reasons = [*refusals(fit, accept_unconverged=accept_unconverged)]
    if bool(table["extrapolation"].any()) and not extrapolate and any(objectives.values()):
        reasons.append("Nothing is promised outside of the data unless that is asked for.")
    sums = partial(_sums, fit, table, max_draws=max_draws)

    def times(found: dict[str, SumDistribution]) -> tuple[RequestTime, ...]:
        return tuple(
            RequestTime.of(key, distribution, objectives[key], quantile, probability)
            for key, distribution in found.items()
        )

    told, is_wrong = times(sums()), (table["verdict"] == CONTRADICTED).any()
    own = times(sums(factors=local.factors(*sizes))) if is_wrong else ()
    if any(model.is_kept != seen.is_kept for model, seen in zip(told, own, strict=bool(own))):
        reasons.append("Undecided: the trace's own steps give another answer than the model.")
    return RequestSLA(
        fit=fit.description,
        steps=steps,
        times=told,
        own=own,
        step_table=table,
        refusals=tuple(reasons),
    )


def _check_output(steps: RequestSteps, limits: Mapping[str, float | None]) -> None:
    if limits["e2e"] is not None and steps.output_tokens is None:
        raise InputError("a limit on the end-to-end time needs the number of output tokens")
    if limits["tpot"] is not None and steps.num_decode_steps < 1:
        raise InputError("a limit on the time per output token needs at least 2 output tokens")


def _sums(
    fit: FittedModel, table: pd.DataFrame, *, max_draws: int | None, factors: Floats | float = 1.0
) -> dict[str, SumDistribution]:
    """Return the distribution of each time that can be told, the times of steps multiplied by factors."""
    steps = steps_arrays(table["batch_size"], table["total_tokens"])
    mean, scale, nu = noise_draws(fit, steps, max_draws=max_draws)
    mean, scale = mean * factors, scale * factors
    counts = table["count"].to_numpy(np.int64)
    is_prefill = (table["phase"] == "prefill").to_numpy()

    def total(which: Bools) -> SumDistribution:
        return sum_distribution(mean[:, which], scale[:, which], nu, counts[which])

    sums = {"ttft": total(is_prefill)}
    if not is_prefill.all():
        sums["tpot"] = total(~is_prefill).scaled(1.0 / int(counts[~is_prefill].sum()))
        sums["e2e"] = total(np.ones_like(is_prefill))
    return sums
