"""Which of several servers should take a request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from bayes_sched.errors import InputError
from bayes_sched.predictor import Predictor

_SAME = 0.001  # probabilities closer than that are settled by the expected time


class ServerLoad(NamedTuple):
    """A server and what it is doing.

    Attributes
    ----------
    predictor : Predictor
        Its compiled posterior, one for each kind of server; its level follows what the server does.
    decodes : int
        Requests that decode.
    waiting_tokens : int
        Prompt tokens before the request's own.
    token_budget : int
        Most tokens of a step.
    """

    predictor: Predictor
    decodes: int
    waiting_tokens: int
    token_budget: int


class ServerChoice(NamedTuple):
    """The server to take, and why.

    Attributes
    ----------
    number : int
        Its place among the loads.
    expected_ms : tuple of float
        Mean time of the request on each server, ms; infinite where there is no room for a prefill.
    probabilities : tuple of float or None
        That it keeps the limit on each; None without a limit.
    """

    number: int
    expected_ms: tuple[float, ...]
    probabilities: tuple[float, ...] | None


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
    many of them where the limit is above the expected time.

    Parameters
    ----------
    loads : sequence of ServerLoad
    prompt_tokens, output_tokens : int
        Of the request; with 1 output token the time is that to the first token.
    limit_ms : float, optional
        Limit on the time of the request, ms.

    Returns
    -------
    ServerChoice

    Raises
    ------
    InputError
        There is no server, or a number is out of range, or beyond a predictor's tables.
    """
    if not loads:
        raise InputError("there is no server to choose from")
    if prompt_tokens < 1 or output_tokens < 1:
        raise InputError(
            f"a request of {prompt_tokens} prompt and {output_tokens} output tokens: give 1 at least"
        )
    expected, probabilities = [], []
    for load in loads:
        mean_ms, probability = _time(load, prompt_tokens, output_tokens, limit_ms)
        expected.append(mean_ms)
        probabilities.append(probability)
    number = min(range(len(loads)), key=expected.__getitem__)
    if limit_ms is None:
        return ServerChoice(number, tuple(expected), None)
    enough = max(probabilities) - _SAME
    probable = [i for i, probability in enumerate(probabilities) if probability >= enough]
    return ServerChoice(min(probable, key=expected.__getitem__), tuple(expected), tuple(probabilities))


def _time(
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
    steps = [(budget, full), (decodes + rest, 1 if rest else 0), (requests, output_tokens - 1)]
    parts = [
        (count * step_ms, tokens, step_ms)
        for tokens, count in steps
        if count
        for step_ms in (predictor.mean_latency(requests, tokens),)
    ]
    total_ms = sum(part for part, _, _ in parts)
    if limit_ms is None:
        return total_ms, math.nan
    _, tokens, step_ms = max(parts)
    return total_ms, predictor.probability_below(requests, tokens, limit_ms * step_ms / total_ms)
