"""What may be promised of requests: time to first token, time per output token, end-to-end time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError
from bayes_sched.format import chance, chances, number, records, span, sureness
from bayes_sched.posterior.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.posterior.prediction import Evaluator, check_probability
from bayes_sched.posterior.provenance import FitDescription
from bayes_sched.sla.convolution import SumDistribution, sum_distribution
from bayes_sched.sla.risk import (
    DEFAULT_CONFIDENCE,
    DEFAULT_QUANTILE,
    Objective,
    check_columns,
    refusals,
)
from bayes_sched.steps import steps_arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSteps:
    """A request that a scheduler with chunked prefill serves beside running decodes.

    Every step first gives each decode its token; what the token budget leaves goes to the prompt. The first
    output token comes out of the last prefill step, each further one out of a decode-only step. The decodes
    run on all the while, and no other request comes; a wait for the first step is not counted.

    Attributes
    ----------
    prompt_tokens : int
        Tokens to prefill (those in the prefix cache left out).
    output_tokens : int or None
        Tokens to generate, the first one included; None where that is of no interest.
    decodes : int
        Other requests, which decode in every step.
    token_budget : int
        Tokens of a step, at most, those of the decodes included.

    Raises
    ------
    InputError
        A number is out of range, or the budget has no room for a prefill.
    """

    prompt_tokens: int
    output_tokens: int | None = None
    decodes: int = 0
    token_budget: int

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
    """The time to the first token, the time per output token, or the whole time of a request.

    Attributes
    ----------
    key, name : str
        ``ttft``, ``tpot`` or ``e2e``, and in words.
    distribution : SumDistribution
        One for each posterior draw.
    quantile : float
        Share of the requests that a promise is about.
    probability : float
        Of credible intervals.
    objective : Objective or None
        What was asked for.
    """

    key: str
    name: str
    distribution: SumDistribution
    quantile: float
    probability: float
    objective: Objective | None

    def credible(self, draws: Floats) -> tuple[float, float]:
        """Return the credible interval of what has a value for each draw, dims (draw,)."""
        tail = 0.5 * (1.0 - self.probability)
        # Values of draws, not values between two: either may be infinite.
        lower, upper = np.quantile(draws, [tail, 1.0 - tail], method="inverted_cdf")
        return float(lower), float(upper)

    @property
    def confidence(self) -> float | None:
        """Share of the draws in which the asked share of requests keeps the limit; None without one."""
        if self.objective is None:
            return None
        return float(self.objective.confidence_of(self.distribution.quantile_draws(self.quantile)))

    @property
    def is_kept(self) -> bool | None:
        """Whether the limit may be promised, as far as numbers go; None without one."""
        if self.objective is None or self.confidence is None:
            return None
        return bool(self.objective.is_confident(self.confidence))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON; None where a time is beyond all bounds."""
        risk: dict[str, Any] = dict.fromkeys(
            ("limit_ms", "probability", "lower", "upper", "confidence", "is_kept")
        )
        if self.objective is not None:
            limit = self.objective.limit_ms
            lower, upper = self.credible(self.distribution.cdf_draws(np.array([limit]))[:, 0])
            risk = {
                "limit_ms": limit,
                "probability": self.distribution.probability_below(limit),
                "lower": lower,
                "upper": upper,
                "confidence": self.confidence,
                "is_kept": self.is_kept,
            }
        lower_ms, upper_ms = self.credible(self.distribution.quantile_draws(self.quantile))
        return {
            "key": self.key,
            "name": self.name,
            "median_ms": _finite(self.distribution.quantile(0.5)),
            "quantile": self.quantile,
            "quantile_ms": _finite(self.distribution.quantile(self.quantile)),
            "quantile_lower_ms": _finite(lower_ms),
            "quantile_upper_ms": _finite(upper_ms),
            **risk,
        }

    def survival(self) -> pd.DataFrame:
        """Return the share of the requests that take longer than ``time_ms``, with its interval."""
        ends = [self.distribution.quantile(q) for q in _ENDS]
        if self.objective is not None:
            ends.append(self.objective.limit_ms)
        finite = [end for end in ends if math.isfinite(end)]
        places = np.linspace(min(finite), max(finite) + 0.03 * (max(finite) - min(finite)), _NUM_PLACES)
        late = 1.0 - self.distribution.cdf_draws(places)
        tail = 0.5 * (1.0 - self.probability)
        lower, upper = np.quantile(late, [tail, 1.0 - tail], axis=0)
        return pd.DataFrame({"time_ms": places, "late": late.mean(axis=0), "lower": lower, "upper": upper})

    @property
    def text(self) -> str:
        """Sentences a person can paste."""
        row = self.to_dict()
        share = f"{100 * self.quantile:g}%"
        ends = span(row["quantile_lower_ms"], row["quantile_upper_ms"])
        parts = [
            f"{self.name[0].upper()}{self.name[1:]}: half of the requests within {number(row['median_ms'])} "
            f"ms, {share} within {number(row['quantile_ms'])} ms ({ends})"
        ]
        if self.objective is not None:
            verdict = "may be promised" if self.is_kept else "may NOT be promised"
            parts.append(
                f"{row['limit_ms']:g} ms {verdict}: {chance(row['probability'])} of the requests keep it "
                f"({chances(row['lower'], row['upper'])}), and the confidence that at least {share} do is "
                f"{sureness(row['confidence'])}"
            )
        return "; ".join(parts) + "."


_NUM_PLACES = 200
_ENDS = (0.001, 0.997)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


MAX_DRAWS = 400
"""Posterior draws, evenly spaced, that requests use unless told otherwise: each costs a convolution."""

NAMES = {"ttft": "time to first token", "tpot": "time per output token", "e2e": "end-to-end time"}


@dataclass(frozen=True, kw_only=True, eq=False)
class RequestSLA:
    """What may be promised of a kind of request.

    Attributes
    ----------
    fit : FitDescription
        What it was found with.
    steps : RequestSteps
        The request, and the steps it takes.
    times : tuple of RequestTime
        What was asked for, or can be said: ``ttft``, and with output tokens ``tpot`` and ``e2e``.
    step_table : DataFrame
        ``phase``, ``batch_size``, ``total_tokens``, ``count``, ``extrapolation``.
    refusals : tuple of str
        Reasons, besides the numbers, why nothing is promised.
    """

    fit: FitDescription
    steps: RequestSteps
    times: tuple[RequestTime, ...]
    step_table: pd.DataFrame
    refusals: tuple[str, ...]

    @property
    def is_promised(self) -> bool:
        """Whether every limit that was asked for may be promised."""
        return not self.refusals and all(time.is_kept is not False for time in self.times)

    @property
    def table(self) -> pd.DataFrame:
        """One row a time; see :meth:`bayes_sched.sla.request_time.RequestTime.to_dict`."""
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
    def text(self) -> str:
        """Sentences a person can paste."""
        outside = ""
        if bool(self.step_table["extrapolation"].any()):
            outside = "EXTRAPOLATION: the trace holds no such steps as some of this request."
        parts = [self.request_text, *(time.text for time in self.times), outside, *self.refusals]
        return " ".join(part for part in parts if part)

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
        See :class:`~bayes_sched.sla.request_steps.RequestSteps`.
    ttft_ms, tpot_ms, e2e_ms : float, optional
        Limits, ms: time to first token, time per output token (mean over the tokens after the first, as
        clients measure it), end-to-end time. The last two need `output_tokens`.
    quantile, confidence : float
        As for :func:`~bayes_sched.sla.step_promise.step_sla`, over requests.
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
    check_columns(fit)
    check_probability(quantile, name="quantile")
    check_probability(confidence, name="confidence")
    check_probability(probability, name="probability")
    limits = {"ttft": ttft_ms, "tpot": tpot_ms, "e2e": e2e_ms}
    objectives = {
        key: None if ms is None else Objective(limit_ms=ms, quantile=quantile, confidence=confidence)
        for key, ms in limits.items()
    }
    steps = RequestSteps(
        prompt_tokens=prompt_tokens, output_tokens=output_tokens, decodes=decodes, token_budget=token_budget
    )
    _check_output(steps, limits)
    table = steps.table
    columns = steps_arrays(table["batch_size"], table["total_tokens"])
    table = table.assign(extrapolation=fit.extrapolation(columns).to_numpy())
    sums = _sums(fit, table, max_draws=max_draws)
    reasons = [*refusals(fit, accept_unconverged=accept_unconverged)]
    if bool(table["extrapolation"].any()) and not extrapolate and any(objectives.values()):
        reasons.append("Nothing is promised outside of the data unless that is asked for.")
    return RequestSLA(
        fit=fit.description,
        steps=steps,
        times=tuple(
            RequestTime(
                key=key,
                name=NAMES[key],
                distribution=distribution,
                quantile=quantile,
                probability=probability,
                objective=objectives[key],
            )
            for key, distribution in sums.items()
        ),
        step_table=table,
        refusals=tuple(reasons),
    )


def _check_output(steps: RequestSteps, limits: Mapping[str, float | None]) -> None:
    if limits["e2e"] is not None and steps.output_tokens is None:
        raise InputError("a limit on the end-to-end time needs the number of output tokens")
    if limits["tpot"] is not None and steps.num_decode_steps < 1:
        raise InputError("a limit on the time per output token needs at least 2 output tokens")


def _sums(fit: FittedModel, table: pd.DataFrame, *, max_draws: int | None) -> dict[str, Any]:
    """Return the distribution of each time that can be told."""
    evaluator = Evaluator(fit.model, fit.posterior, max_draws=max_draws)
    steps = steps_arrays(table["batch_size"], table["total_tokens"])

    def draws(what: int) -> Floats:
        values = evaluator.per_draw(steps, lambda mean, scale, nu, x: (mean, scale, nu + 0.0 * mean)[what])
        flat: Floats = values.to_numpy().reshape(-1, len(table))
        return flat

    mean, scale, nu = draws(0), draws(1), draws(2)[:, 0]
    counts = table["count"].to_numpy(np.int64)
    is_prefill = (table["phase"] == "prefill").to_numpy()

    def total(which: Any) -> Any:
        return sum_distribution(mean[:, which], scale[:, which], nu, counts[which])

    sums = {"ttft": total(is_prefill)}
    if not is_prefill.all():
        sums["tpot"] = total(~is_prefill).scaled(1.0 / int(counts[~is_prefill].sum()))
        sums["e2e"] = total(np.ones_like(is_prefill))
    return sums
