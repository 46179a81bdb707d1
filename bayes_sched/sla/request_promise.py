"""What may be promised of requests: time to first token, time per output token, end-to-end time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from bayes_sched.errors import InputError
from bayes_sched.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.prediction import Evaluator
from bayes_sched.predictive import check_probability
from bayes_sched.records import records
from bayes_sched.sla.objective import DEFAULT_CONFIDENCE, DEFAULT_QUANTILE, Objective
from bayes_sched.sla.request_steps import RequestSteps
from bayes_sched.sla.request_time import RequestTime
from bayes_sched.sla.step_sums import Floats, sum_distribution
from bayes_sched.sla.trust import check_columns, refusals
from bayes_sched.steps import steps_arrays

MAX_DRAWS = 400
"""Posterior draws, evenly spaced, that requests use unless told otherwise: each costs a convolution."""

NAMES = {"ttft": "time to first token", "tpot": "time per output token", "e2e": "end-to-end time"}


@dataclass(frozen=True, kw_only=True, eq=False)
class RequestSLA:
    """What may be promised of a kind of request.

    Attributes
    ----------
    fit : FittedModel
    steps : RequestSteps
        The request, and the steps it takes.
    times : tuple of RequestTime
        What was asked for, or can be said: ``ttft``, and with output tokens ``tpot`` and ``e2e``.
    step_table : DataFrame
        ``phase``, ``batch_size``, ``total_tokens``, ``count``, ``extrapolation``.
    extrapolates : bool
        Whether promises outside the region of the data were allowed.
    refusals : tuple of str
        Reasons, besides the numbers, why nothing is promised.
    """

    fit: FittedModel
    steps: RequestSteps
    times: tuple[RequestTime, ...]
    step_table: pd.DataFrame
    extrapolates: bool
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
        fit=fit,
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
        extrapolates=extrapolate,
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
