"""The largest batch, or the largest token budget, that may be promised."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from bayes_sched.fitted import FittedModel
from bayes_sched.sla.evidence import Evidence, evidence
from bayes_sched.sla.line import Line, steps_on
from bayes_sched.sla.objective import Objective
from bayes_sched.sla.risk import step_risk
from bayes_sched.sla.search import joint_confidence, point_allowed, promised, quantile_draws, tried_numbers
from bayes_sched.sla.words import chance, chances, sureness

type LimitedBy = Literal["slo", "data", "range", "nothing seen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """A number up to which steps are allowed, and what allowing them means.

    Attributes
    ----------
    number : int
        Requests of a decode-only batch, or tokens of a step.
    probability : float
        P(latency <= limit) of a step of exactly that number: risk.
    lower, upper : float
        Its credible interval.
    confidence : float
        That all steps up to the number keep the quantile, at once.
    extrapolation : bool
        Whether the trace holds no such steps.
    evidence : Evidence
        What the steps of the trace near the number say.
    """

    number: int
    probability: float
    lower: float
    upper: float
    confidence: float
    extrapolation: bool
    evidence: Evidence

    @property
    def breach_text(self) -> str:
        """How many such steps take too long, in words."""
        ends = chances(1.0 - self.upper, 1.0 - self.lower)
        return f"{chance(1.0 - self.probability)} of such steps ({ends}) take longer"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimit:
    """How far one may go along a line of steps.

    Attributes
    ----------
    name : str
        What is limited, such as ``decode-only batch``.
    unit : str
        ``requests`` or ``tokens``.
    requests : int or None
        Requests of every step, None for decode-only steps.
    first, last : int or None
        Where the search began and ended: the range of the data, or beyond where that was allowed; None where
        the trace holds no such steps.
    promised : Cap or None
        The largest number that may be promised; None where there is none.
    limited_by : str
        ``slo``: one more would break the promise. ``data``: the trace holds no larger steps, so that more may
        be possible. ``range``: the end of the search outside the data. ``nothing seen``: the trace holds no
        such steps at all.
    alone : tuple of int or None
        Where nothing may be promised as a cap: the first and the last number whose steps would keep the limit
        taken alone, if there are such; smaller steps are slower than they.
    point : Cap or None
        The largest number that a single fitted curve allows, with what it would have meant.
    point_is_edge : bool
        Whether only the end of the search stopped the point estimate.
    asked : Cap or None
        What was asked for.
    asked_is_trusted : bool or None
        Whether the model is as confident of it as asked.
    asked_is_kept : bool or None
        Whether it may be promised: trusted, within the data, and not contradicted by the trace.
    """

    name: str
    unit: str
    requests: int | None
    first: int | None
    last: int | None
    promised: Cap | None
    limited_by: LimitedBy
    alone: tuple[int, int] | None
    point: Cap | None
    point_is_edge: bool
    asked: Cap | None
    asked_is_trusted: bool | None
    asked_is_kept: bool | None

    @property
    def is_kept(self) -> bool:
        """Whether what was asked for may be promised; where nothing was, whether the largest may."""
        if self.asked_is_kept is not None:
            return self.asked_is_kept
        return self.promised is not None and not self.promised.evidence.is_contradicted

    @property
    def text(self) -> str:
        """Sentences a person can paste."""
        parts = [
            self._promise_text(),
            "" if self.promised is None else self.promised.evidence.text,
            self._asked_text(),
            # Where the model itself says no, there is nothing that the trace could contradict.
            "" if self.asked is None or not self.asked_is_trusted else self.asked.evidence.text,
            self._point_text(),
        ]
        return " ".join(part for part in parts if part)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {**asdict(self), "is_kept": self.is_kept}

    def _promise_text(self) -> str:
        label = f"Largest {self.name}"
        if self.limited_by == "nothing seen":
            return f"{label}: none, the trace holds no such steps."
        if self.promised is None:
            alone = ""
            if self.alone is not None:
                alone = (
                    " Taken alone, steps of {:,} to {:,} would keep it, but smaller ones are slower.".format(
                        *self.alone
                    )
                )
            smallest = f"not even the smallest searched ({self.first:,} {self.unit}) may be promised"
            return f"{label}: none, {smallest}.{alone}"
        why = {
            "slo": "one more would break the promise",
            "data": "the trace holds no larger steps, so more may be possible",
            "range": "the end of the search",
            "nothing seen": "",
        }[self.limited_by]
        outside = ", EXTRAPOLATION: outside of the data" if self.promised.extrapolation else ""
        since = f", every step from {self.first:,} on" if (self.first or 1) > (self.requests or 1) else ""
        return (
            f"{label}: {self.promised.number:,} {self.unit} ({why}{since}{outside}); there "
            f"{self.promised.breach_text}, and the confidence is {sureness(self.promised.confidence)}."
        )

    def _asked_text(self) -> str:
        if self.asked is None:
            return ""
        verdict = "may be promised" if self.asked_is_kept else "may NOT be promised"
        outside = " (extrapolation: the trace holds no such steps)" if self.asked.extrapolation else ""
        return (
            f"Asked for {self.asked.number:,} {self.unit}{outside}: {verdict}; {self.asked.breach_text}, and "
            f"the confidence is {sureness(self.asked.confidence)}."
        )

    def _point_text(self) -> str:
        if self.limited_by == "nothing seen":
            return ""
        if self.point is None:
            return "A point estimate allows none either."
        edge = ", the end of the search" if self.point_is_edge else ""
        return f"A point estimate allows {self.point.number:,}{edge}: there {self.point.breach_text}."


def step_limit(
    fit: FittedModel,
    line: Line,
    objective: Objective,
    *,
    asked: int | None = None,
    extrapolate: bool = False,
    probability: float,
    max_draws: int | None,
) -> StepLimit:
    """Return how far one may go along a line of steps.

    Parameters
    ----------
    fit : FittedModel
    line : Line
    objective : Objective
    asked : int, optional
        A number to be judged, at least that of the line's smallest step.
    extrapolate : bool
        Whether to search, and to promise, outside the region of the data.
    probability : float
        Of credible intervals.
    max_draws : int or None
    """

    def cap(number: int | None, first: int) -> Cap | None:
        return None if number is None else _cap(fit, line, first, number, objective, probability, max_draws)

    span = line.span(fit.region, extrapolate=extrapolate)
    first, last = span or (line.first, line.first)
    spans = [(first, last)]
    best = promised(fit, [line], spans, objective, max_draws=max_draws)[0] if span else None
    point = point_allowed(fit, [line], spans, objective, max_draws=max_draws)[0] if span else None
    asked_cap = cap(asked, min(first, asked or first))
    is_trusted = None if asked_cap is None else bool(objective.is_confident(asked_cap.confidence))
    return StepLimit(
        name=_name(line),
        unit="requests" if line.requests is None else "tokens",
        requests=line.requests,
        first=first if span else None,
        last=last if span else None,
        promised=cap(best, first),
        limited_by=_limited_by(span, best, extrapolate=extrapolate),
        alone=_alone(fit, line, span, objective, max_draws=max_draws) if span and best is None else None,
        point=cap(point, first),
        point_is_edge=point == last,
        asked=asked_cap,
        asked_is_trusted=is_trusted,
        asked_is_kept=None
        if asked_cap is None
        else bool(is_trusted)
        and (extrapolate or not asked_cap.extrapolation)
        and not asked_cap.evidence.is_contradicted,
    )


def _alone(
    fit: FittedModel, line: Line, span: tuple[int, int], objective: Objective, *, max_draws: int | None
) -> tuple[int, int] | None:
    """Return the first and the last number whose steps keep the limit, each taken alone."""
    numbers = tried_numbers(*span)
    values = quantile_draws(fit, steps_on([line], numbers[None, :]), objective.quantile, max_draws=max_draws)
    kept = numbers[objective.is_confident(objective.confidence_of(values))]
    return (int(kept[0]), int(kept[-1])) if len(kept) else None


def _name(line: Line) -> str:
    if line.requests is None:
        return "decode-only batch"
    return f"token budget with {line.requests - 1:,} decodes and a prefill"


def _limited_by(span: tuple[int, int] | None, best: int | None, *, extrapolate: bool) -> LimitedBy:
    if span is None:
        return "nothing seen"
    if best != span[1]:
        return "slo"
    return "range" if extrapolate else "data"


def _cap(
    fit: FittedModel,
    line: Line,
    first: int,
    number: int,
    objective: Objective,
    probability: float,
    max_draws: int | None,
) -> Cap:
    steps = steps_on([line], np.array([[number]]))
    risk = step_risk(fit, steps, objective, probability=probability, max_draws=max_draws).isel(step=0)
    numbers = tried_numbers(first, number)
    return Cap(
        number=number,
        probability=float(risk["probability"]),
        lower=float(risk["lower"]),
        upper=float(risk["upper"]),
        confidence=joint_confidence(fit, line, numbers, objective, max_draws=max_draws),
        extrapolation=bool(risk["extrapolation"]),
        evidence=evidence(fit, line, number, objective),
    )
