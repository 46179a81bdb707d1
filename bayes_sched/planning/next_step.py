"""What a scheduler asks at every step: the token budget of the next one, and which server takes a request."""

from __future__ import annotations

import math
import timeit
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError
from bayes_sched.format import sentence
from bayes_sched.planning.replay import whole_numbers
from bayes_sched.posterior.fitted import DEFAULT_MAX_DRAWS, DEFAULT_PROBABILITY, FittedModel
from bayes_sched.posterior.prediction import check_probability
from bayes_sched.predictor.predictor import Predictor
from bayes_sched.region import Region
from bayes_sched.sla.limits import StepLine, StepSearch
from bayes_sched.sla.risk import DEFAULT_CONFIDENCE, DEFAULT_QUANTILE, Objective
from bayes_sched.steps import steps_arrays

_EXACT, _RATIO = 64, 1.02
_SAME = 0.001  # probabilities closer than that are settled by the expected time


class StepBudget(NamedTuple):
    """What the next step may hold."""

    total_tokens: int  # decodes and prefill tokens together
    prefill_tokens: int  # those for prefills
    is_kept: bool  # whether the step keeps the limit. Decodes run in any case, so it may not.


class StepBudgets:
    """For each number of requests, how many tokens a step may have under a limit.

    Made once, asked before every step: an answer is a bisection in a list, about a microsecond.

    >>> budgets = StepBudgets.of_predictor(Predictor.load("predictor.npz"), quantile=0.99)
    >>> budgets.next_step(slo_ms=50.0, decodes=16, waiting_tokens=2000)
    StepBudget(total_tokens=512, prefill_tokens=496, is_kept=True)

    Parameters
    ----------
    nodes : ndarray, dims (node,)
        Token counts, rising.
    latency_ms : ndarray, dims (batch_size, node)
        What steps of 1, 2, ... requests and so many tokens stay below; those with fewer tokens than requests
        are not looked at.
    predictor : Predictor, optional
        Whose level, which follows what the server does, scales the latencies.
    """

    def __init__(self, nodes: Floats, latency_ms: Floats, *, predictor: Predictor | None = None) -> None:
        self._predictor = predictor
        self._tokens: list[list[int]] = [[]]
        self._ms: list[list[float]] = [[]]
        for requests, row in enumerate(latency_ms, start=1):
            is_possible = nodes >= requests
            self._tokens.append(nodes[is_possible].astype(int).tolist())
            # All steps up to a budget have to keep the limit, whatever is waiting.
            self._ms.append(np.maximum.accumulate(row[is_possible]).tolist())

    @classmethod
    def of_predictor(
        cls,
        predictor: Predictor,
        *,
        quantile: float = 0.99,
        max_batch_size: int | None = None,
        max_tokens: int | None = None,
    ) -> StepBudgets:
        """Return budgets whose steps keep a limit with probability `quantile`, all uncertainty together.

        What the fit asks of a step besides is as in the trace, and the predictor is asked again at each step
        for its level alone. The largest step is by default that of
        the trace; numbers out of range, or beyond the predictor's tables, raise InputError.
        """
        b, nodes = _axes(predictor.region, max_batch_size, max_tokens, predictor.token_nodes)
        rows = [predictor.quantile(np.full(len(nodes), n), np.maximum(nodes, n), quantile) for n in b]
        return cls(nodes, np.stack(rows) / predictor.level, predictor=predictor)

    @classmethod
    def of_fit(
        cls,
        fit: FittedModel,
        *,
        quantile: float = 0.99,
        confidence: float = 0.95,
        max_batch_size: int | None = None,
        max_tokens: int | None = None,
    ) -> StepBudgets:
        """Return budgets of which one is as sure as `confidence` that a share `quantile` keeps the limit.

        Risk and confidence are kept apart, as in :class:`~bayes_sched.sla.risk.Objective`. The largest step
        is by default that of the trace; numbers out of range, and a fit whose model needs more than B and S,
        raise InputError.
        """
        b, nodes = _axes(fit.region, max_batch_size, max_tokens)
        level = check_probability(confidence, name="confidence")
        rows = []
        for requests in b:  # one by one, as the draws of all would fill the memory
            steps = steps_arrays(requests, np.maximum(nodes, requests))
            draws = fit.quantile_draws(steps, quantile).transpose("chain", "draw", "step").to_numpy()
            rows.append(np.quantile(draws.reshape(-1, len(nodes)), level, axis=0, method="inverted_cdf"))
        return cls(nodes, np.stack(rows))

    def next_step(
        self, *, slo_ms: float, decodes: int, waiting_tokens: int = 0, prefills: int = 1
    ) -> StepBudget:
        """Return the budget of a step under a limit, ms; negative numbers and no work raise InputError.

        Each running decode takes a token; `waiting_tokens` of prompts may belong to as many as `prefills`
        requests in one step.
        """
        if decodes < 0 or waiting_tokens < 0 or prefills < 1 or decodes + waiting_tokens < 1:
            raise InputError(
                f"a step of {decodes} decodes and {waiting_tokens} waiting tokens in {prefills} requests: "
                "give numbers that are not negative, and something to do"
            )
        limit = slo_ms if self._predictor is None else slo_ms / self._predictor.level
        if waiting_tokens:
            requests = decodes + min(prefills, waiting_tokens)
            most = self._most(requests, limit)
            if most >= requests:
                total = min(most, decodes + waiting_tokens)
                return StepBudget(total, total - decodes, True)
        return StepBudget(decodes, 0, decodes == 0 or self._most(decodes, limit) >= decodes)

    def _most(self, requests: int, limit_ms: float) -> int:
        """Return the most tokens of a step of so many requests, 0 where none keeps the limit."""
        if requests >= len(self._ms):
            return 0
        ms, tokens = self._ms[requests], self._tokens[requests]
        place = bisect_right(ms, limit_ms)
        if place == 0:
            return 0
        first = tokens[place - 1]
        if place == len(ms):
            return first
        rise = ms[place] - ms[place - 1]
        return first + int((limit_ms - ms[place - 1]) / rise * (tokens[place] - first))


@dataclass(frozen=True, kw_only=True)
class NextStep:
    """The budget of one step of a server, and how long the answer takes."""

    slo_ms: float
    decodes: int
    waiting_tokens: int
    budget: StepBudget
    is_promised: bool
    """Whether the step keeps the limit, is like steps of the trace and not contradicted by them, and the fit
    has converged or is trusted all the same."""
    microseconds: float
    notes: tuple[str, ...] = ()
    """What the trace says: of how many such steps how many were late, and where it contradicts the model."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        asked = {"slo_ms": self.slo_ms, "decodes": self.decodes, "waiting_tokens": self.waiting_tokens}
        answer = {"is_promised": self.is_promised, "microseconds": round(self.microseconds, 2)}
        return asked | self.budget._asdict() | answer | {"notes": list(self.notes)}


def plan_next_step(
    fit: FittedModel,
    *,
    slo_ms: float,
    decodes: int,
    waiting_tokens: int = 0,
    quantile: float = DEFAULT_QUANTILE,
    confidence: float = DEFAULT_CONFIDENCE,
    extrapolate: bool = False,
    accept_unconverged: bool = False,
) -> NextStep:
    """Ask :class:`StepBudgets` of a fit for one step, with as many requests as it needs."""
    seen = round(float(fit.cells["batch_size"].max()))
    needed = decodes + 1  # beyond the data only where that is asked for
    most = needed if extrapolate else min(needed, seen)
    budgets = StepBudgets.of_fit(fit, quantile=quantile, confidence=confidence, max_batch_size=most)

    def ask() -> StepBudget:
        return budgets.next_step(slo_ms=slo_ms, decodes=decodes, waiting_tokens=waiting_tokens)

    budget = ask()
    objective = Objective(limit_ms=slo_ms, quantile=quantile, confidence=confidence)
    search = StepSearch(fit, objective, extrapolate, DEFAULT_PROBABILITY, DEFAULT_MAX_DRAWS)
    line = StepLine(decodes + 1 if budget.prefill_tokens or not decodes else None)
    limit = search.limit(line, max(budget.total_tokens, line.first))
    objection = "" if limit.asked is None else limit.asked.objection
    is_kept = (budget.is_kept or limit.asked_is_kept) and not objection
    return NextStep(
        slo_ms=slo_ms,
        decodes=decodes,
        waiting_tokens=waiting_tokens,
        budget=budget,
        is_promised=bool(is_kept) and (fit.converged or accept_unconverged),
        notes=tuple(
            filter(None, (objection and f"{sentence(objection)}.", limit.seen_text, limit.wrong_text))
        ),
        microseconds=1e6 * float(np.median(timeit.repeat(ask, repeat=5, number=2000))) / 2000,
    )


def _axes(
    region: Region, max_batch_size: int | None, max_tokens: int | None, further: Floats | None = None
) -> tuple[Floats, Floats]:
    """Return the numbers of requests and of tokens of a table of budgets; some may be asked for."""
    seen_b, seen_s = region.largest
    last_b = round(seen_b) if max_batch_size is None else max_batch_size
    last_s = round(seen_s) if max_tokens is None else max_tokens
    if last_b < 1 or last_s < last_b:
        raise InputError(
            f"budgets of up to {last_b:,} requests and {last_s:,} tokens: give at least one of each, and a "
            "token for each request"
        )
    nodes = whole_numbers(last_s, max(_EXACT, last_b), _RATIO).astype(np.float64)
    if further is not None:
        nodes = np.union1d(nodes, further[further <= last_s])
    return np.arange(1.0, last_b + 1.0), nodes


class ServerLoad(NamedTuple):
    """A server and what it is doing."""

    predictor: Predictor
    """Its compiled posterior, one for each kind of server; its level follows what the server does."""
    decodes: int  # requests that decode
    waiting_tokens: int  # prompt tokens before the request's own
    token_budget: int  # most tokens of a step


class ServerChoice(NamedTuple):
    """The server to take, and why."""

    number: int  # its place among the loads
    expected_ms: tuple[float, ...]
    """Mean time of the request on each server, ms; infinite where there is no room for a prefill."""
    probabilities: tuple[float, ...] | None  # that it keeps the limit on each; None without a limit


def choose_server(
    loads: Sequence[ServerLoad],
    *,
    prompt_tokens: int,
    output_tokens: int = 1,
    limit_ms: float | None = None,
) -> ServerChoice:
    """Return the server on which a request keeps a limit most probably, or is expected to take least time.

    A request waits for the prompt tokens before it and is then prefilled in chunks, beside the decodes that
    run; its further tokens come out of decode-only steps. The probability takes all of its steps to be
    equally late, each at the same quantile of its own distribution: exact for a single step, and cautious for
    many of them where the limit is above the expected time. With one output token the time is that to the
    first token. No server, and numbers out of range or beyond a predictor's tables, raise InputError.
    """
    if not loads:
        raise InputError("there is no server to choose from")
    if prompt_tokens < 1 or output_tokens < 1:
        raise InputError(
            f"a request of {prompt_tokens} prompt and {output_tokens} output tokens: give 1 at least"
        )
    times = [_request_time(load, prompt_tokens, output_tokens, limit_ms) for load in loads]
    expected, probabilities = zip(*times, strict=True)
    if limit_ms is None:
        return ServerChoice(min(range(len(loads)), key=expected.__getitem__), expected, None)
    enough = max(probabilities) - _SAME
    probable = [i for i, probability in enumerate(probabilities) if probability >= enough]
    return ServerChoice(min(probable, key=expected.__getitem__), expected, probabilities)


def _request_time(
    load: ServerLoad, prompt_tokens: int, output_tokens: int, limit_ms: float | None
) -> tuple[float, float]:
    """Return the mean time of a request on a server, ms, and the probability that it keeps the limit."""
    predictor, decodes, waiting, budget = load
    if decodes < 0 or waiting < 0:
        raise InputError(
            f"a server with {decodes} decodes and {waiting} waiting tokens: give no negative number"
        )
    chunk = budget - decodes
    if chunk < 1:
        return math.inf, 0.0
    requests = decodes + 1
    full, rest = divmod(waiting + prompt_tokens, chunk)
    steps = [(budget, full), (decodes + rest, int(rest > 0)), (requests, output_tokens - 1)]
    kinds = [(predictor.mean_latency(requests, tokens), tokens, count) for tokens, count in steps if count]
    total_ms = sum(count * step_ms for step_ms, _, count in kinds)
    if limit_ms is None:
        return total_ms, math.nan
    step_ms, tokens, _ = max(kinds, key=lambda kind: (kind[0] * kind[2], kind[1], kind[0]))
    return total_ms, predictor.probability_below(requests, tokens, limit_ms * step_ms / total_ms)
