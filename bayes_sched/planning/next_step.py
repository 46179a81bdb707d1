"""The token budget of the next step: what a scheduler asks for every few milliseconds."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError
from bayes_sched.predictor.predictor import Predictor

if TYPE_CHECKING:
    from bayes_sched.posterior.fitted import FittedModel

_EXACT = 64
_RATIO = 1.02


class StepBudget(NamedTuple):
    """What the next step may hold.

    Attributes
    ----------
    total_tokens : int
        Decodes and prefill tokens together.
    prefill_tokens : int
        Those for prefills.
    is_kept : bool
        Whether the step keeps the limit. Decodes run in any case, so it may not.
    """

    total_tokens: int
    prefill_tokens: int
    is_kept: bool


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
        What steps of 1, 2, ... requests and so many tokens stay below; NaN where a step is impossible.
    predictor : Predictor, optional
        Whose level, which follows what the server does, scales the latencies.
    """

    def __init__(self, nodes: Floats, latency_ms: Floats, *, predictor: Predictor | None = None) -> None:
        self._predictor = predictor
        self._tokens: list[list[int]] = [[]]
        self._ms: list[list[float]] = [[]]
        for row in latency_ms:
            is_possible = ~np.isnan(row)
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

        Parameters
        ----------
        predictor : Predictor
            Asked again at each step for its level alone.
        quantile : float
        max_batch_size, max_tokens : int, optional
            Largest step; by default that of the trace.

        Raises
        ------
        InputError
            A number is out of range, or beyond the predictor's tables.
        """
        corners = np.exp(predictor.region.corners.max(axis=0))
        last_b, last_s = _ends(corners, max_batch_size, max_tokens)
        nodes, b = _nodes(last_s), np.arange(1.0, last_b + 1.0)
        level = predictor.level
        latency = np.stack(
            [predictor.quantile(np.full(len(nodes), n), np.maximum(nodes, n), quantile) for n in b]
        )
        return cls(nodes, _possible(latency / level, b, nodes), predictor=predictor)

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

        Parameters
        ----------
        fit : FittedModel
        quantile, confidence : float
            Risk and confidence kept apart, as in :class:`~bayes_sched.sla.Objective`.
        max_batch_size, max_tokens : int, optional
            Largest step; by default that of the trace.

        Raises
        ------
        InputError
            A number is out of range, or the fit's model needs more than B and S.
        """
        from bayes_sched.posterior.prediction import check_probability
        from bayes_sched.sla.risk import check_columns
        from bayes_sched.steps import steps_arrays

        check_columns(fit)
        corners = np.exp(fit.region.corners.max(axis=0))
        last_b, last_s = _ends(corners, max_batch_size, max_tokens)
        nodes, b = _nodes(last_s), np.arange(1.0, last_b + 1.0)
        level = check_probability(confidence, name="confidence")
        rows = []
        for requests in b:  # one by one, as the draws of all would fill the memory
            steps = steps_arrays(requests, np.maximum(nodes, requests))
            draws = fit.quantile_draws(steps, quantile).transpose("chain", "draw", "step").to_numpy()
            rows.append(np.quantile(draws.reshape(-1, len(nodes)), level, axis=0, method="inverted_cdf"))
        return cls(nodes, _possible(np.stack(rows), b, nodes))

    def next_step(
        self, *, slo_ms: float, decodes: int, waiting_tokens: int = 0, prefills: int = 1
    ) -> StepBudget:
        """Return the budget of a step.

        Parameters
        ----------
        slo_ms : float
            Limit on the step, ms.
        decodes : int
            Running decodes; each takes a token.
        waiting_tokens : int
            Prompt tokens that wait.
        prefills : int
            Requests that they may belong to in one step.

        Returns
        -------
        StepBudget

        Raises
        ------
        InputError
            A number is negative, or there is nothing to do.
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


def _ends(largest: Floats, max_batch_size: int | None, max_tokens: int | None) -> tuple[int, int]:
    given = zip(("max_batch_size", "max_tokens"), (max_batch_size, max_tokens), largest, strict=True)
    ends = [round(float(seen)) if end is None else end for _, end, seen in given]
    if min(ends) < 1 or ends[1] < ends[0]:
        raise InputError(
            f"budgets of up to {ends[0]:,} requests and {ends[1]:,} tokens: give at least one of each, and a "
            "token for each request"
        )
    return ends[0], ends[1]


def _nodes(last: int) -> Floats:
    """Return token counts: every number up to 64 and 2 % apart from there."""
    exact = np.arange(1.0, min(_EXACT, last) + 1.0)
    if last <= _EXACT:
        return exact
    num = math.ceil(math.log(last / _EXACT) / math.log(_RATIO)) + 1
    return np.union1d(exact, np.rint(np.geomspace(_EXACT, last, num)))


def _possible(latency_ms: Floats, b: Floats, nodes: Floats) -> Floats:
    return np.where(nodes[None, :] >= b[:, None], latency_ms, np.nan)
