"""The largest batch, or the largest token budget, that may be promised, and what the trace says of it.

A number may be promised where all steps up to it keep the limit at once: with the confidence asked for, over
the posterior draws, the asked quantile of the slowest of them does. So the search walks along a *line* of
steps that differ in one whole number, with a running maximum of the quantile of each draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import xarray as xr

from bayes_sched.arrays import Bools, Floats, Ints
from bayes_sched.checks.local import Bin, LocalCheck, check_locally
from bayes_sched.format import chance, chances, sureness
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.region import Region
from bayes_sched.sla.evidence import Evidence, Observed
from bayes_sched.sla.risk import Objective, flat_draws, step_risk
from bayes_sched.steps import steps_arrays

EXTRAPOLATION_FACTOR = 4
"""Outside the region of the data, a search goes up to so many times the largest seen requests or tokens."""
_SECTIONS = 32
_UNSEEN = "the trace holds no such steps"
_LATER = "more of the trace's steps are late than it allows"
_SLOWER = "the trace is slower there than the model"

type Span = tuple[int, int]
"""First and last number to search."""
type Evaluate = Callable[[xr.Dataset], Floats]
"""Steps (dim step) to latencies, ms, dims (draw, step)."""
type IsKept = Callable[[Floats], Bools]
"""Latencies, ms, dims (draw, ...), to whether they will do, dims (...)."""
type LimitedBy = Literal["slo", "data", "range", "nothing seen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """A number up to which steps are allowed, and what allowing them means."""

    number: int  # requests of a decode-only batch, or tokens of a step
    probability: float
    """P(latency <= limit) of a step of exactly that number: risk; with its credible interval."""
    lower: float
    upper: float
    confidence: float  # that all steps up to the number keep the quantile, at once
    extrapolation: bool  # whether the trace holds no such steps
    evidence: Evidence
    local: Bin | None
    """How the fit does on the steps of the trace that are like those of exactly that number."""
    objection: str
    """Why it may not be promised, whatever the fit says; empty where nothing is in the way."""

    @property
    def breach_text(self) -> str:
        """How many such steps take too long, in words."""
        ends = chances(1.0 - self.upper, 1.0 - self.lower)
        text = f"{chance(1.0 - self.probability)} of such steps ({ends}) take longer"
        return text if self.wrong is None else f"by the model, which the trace contradicts there, {text}"

    @property
    def wrong(self) -> Bin | None:
        """The steps on which the trace contradicts the fit there, if it does."""
        return self.local if self.local is not None and self.local.is_contradicted else None

    @property
    def is_refuted(self) -> bool:
        """Whether fewer steps of the trace are late than the fit says."""
        return self.evidence.refutes(1.0 - self.probability)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimit:
    """How far one may go along a line of steps."""

    name: str  # what is limited, such as decode-only batch
    unit: str  # requests or tokens
    requests: int | None  # of every step, None for decode-only steps
    first: int | None
    """Where the search began and ended: the range of the data, or beyond where that was allowed; None where
    the trace holds no such steps."""
    last: int | None
    promised: Cap | None  # the largest number that may be promised; None where there is none
    limited_by: LimitedBy
    """``slo``: one more would break the promise. ``data``: the trace holds no larger steps, so that more may
    be possible. ``range``: the end of the search outside the data. ``nothing seen``: no such steps at all."""
    alone: Span | None
    """Where nothing may be promised as a cap: the first and the last number whose steps would keep the limit
    taken alone, if there are such; smaller steps are slower than they."""
    point: Cap | None  # the largest number that a single fitted curve allows, with what it would have meant
    point_is_edge: bool  # whether only the end of the search stopped the point estimate
    seen: Evidence | None
    """The largest number that the steps of the trace by themselves do not speak against."""
    refuted: Cap | None
    """That number where it is larger than what may be promised and fewer steps near it were late than the fit
    says: the limit is contradicted."""
    num_needed: int  # steps, none of them late, with which the trace alone would promise a number
    asked: Cap | None
    asked_is_trusted: bool | None  # whether the model is as confident of what was asked for as it should be
    asked_is_kept: bool | None
    """Whether it may be promised: trusted, within the data, and not contradicted by the trace; or where the
    fit is refuted and the trace's own steps are enough to promise it."""

    @property
    def is_kept(self) -> bool:
        """Whether what was asked for may be promised; where nothing was, whether the largest may."""
        if self.asked_is_kept is not None:
            return self.asked_is_kept
        return self.promised is not None and not self.promised.objection

    @property
    def text(self) -> str:
        """Sentences a person can paste."""
        parts = (
            *(self._promise_text(), self._asked_text(), self.seen_text, self._point_text()),
            self.wrong_text,
        )
        return " ".join(part for part in parts if part)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {**asdict(self), "is_kept": self.is_kept}

    def _promise_text(self) -> str:
        label = f"Largest {self.name}"
        if self.limited_by == "nothing seen":
            return f"{label}: none, the trace holds no such steps."
        if self.promised is None:
            none = f"none, not even the smallest searched ({self.first:,} {self.unit}) may be promised"
            if self.alone is None:
                return f"{label}: {none}."
            steps = "steps of {:,} to {:,} would keep it, but smaller ones are slower".format(*self.alone)
            return f"{label}: {none}. Taken alone, {steps}."
        why = {
            "slo": "one more would break the promise",
            "data": "the trace holds no larger steps, so more may be possible",
            "range": "the end of the search",
        }[self.limited_by]
        outside = ", EXTRAPOLATION: outside of the data" if self.promised.extrapolation else ""
        since = f", every step from {self.first:,} on" if (self.first or 1) > (self.requests or 1) else ""
        seen = self.promised.evidence.text
        return (
            f"{label}: {self.promised.number:,} {self.unit} ({why}{since}{outside}); there "
            f"{self.promised.breach_text}, and the confidence is {sureness(self.promised.confidence)}."
            f"{seen and f' {seen}'}"
        )

    def _asked_text(self) -> str:
        if self.asked is None:
            return ""
        verdict = "may be promised" if self.asked_is_kept else "may NOT be promised"
        if self.asked_is_kept and not self.asked_is_trusted:
            verdict = f"may be promised, on the word of the trace ({self.asked.evidence.count_text})"
        elif not self.asked_is_trusted and self.asked.is_refuted:
            verdict = (
                "UNDECIDED, and not promised: the trace contradicts the refusal "
                f"({self.asked.evidence.count_text}; {self.num_needed:,}, none late, would promise it)"
            )
        elif self.asked_is_trusted and self.asked.objection == _SLOWER:
            verdict = f"UNDECIDED, and not promised: {_SLOWER}"
        outside = f" (extrapolation: {_UNSEEN})" if self.asked.extrapolation else ""
        # Where the model itself says no, there is nothing that the trace could contradict.
        seen = self.asked.evidence.text if self.asked_is_trusted else ""
        return (
            f"Asked for {self.asked.number:,} {self.unit}{outside}: {verdict}; {self.asked.breach_text}, and "
            f"the confidence is {sureness(self.asked.confidence)}.{seen and f' {seen}'}"
        )

    @property
    def seen_text(self) -> str:
        """What the steps of the trace say by themselves."""
        if self.seen is None or self.limited_by == "nothing seen":
            return ""
        text = f"By the trace alone, {self.seen.number:,} {self.unit}: {self.seen.count_text}"
        if self.refuted is None:
            return f"{text}."
        return (
            f"{text}, where the model has {chance(1.0 - self.refuted.probability)} late: that CONTRADICTS "
            f"the limit, and up to {self.seen.number:,} is undecided."
        )

    @property
    def wrong_text(self) -> str:
        """Where the trace contradicts the model, of the steps at these limits."""
        caps = (self.promised, self.asked, self.refuted, self.point)
        wrong = {of.text: None for cap in caps if cap is not None and (of := cap.wrong) is not None}
        return f"The trace contradicts the model: {'; '.join(wrong)}." if wrong else ""

    def _point_text(self) -> str:
        if self.limited_by == "nothing seen":
            return ""
        if self.point is None:
            return "A point estimate allows none either."
        edge = ", the end of the search" if self.point_is_edge else ""
        return f"A point estimate allows {self.point.number:,}{edge}: there {self.point.breach_text}."


@dataclass(frozen=True, slots=True)
class StepLine:
    """Steps that differ in one whole number: the tokens of so many requests, or decode-only batches."""

    requests: int | None = None
    """Of each step, and the number is its tokens; None: decode-only steps, and the number is both."""

    @property
    def first(self) -> int:
        """The smallest possible number."""
        return self.requests or 1

    @property
    def name(self) -> str:
        """What a limit along it is one of."""
        if self.requests is None:
            return "decode-only batch"
        return f"token budget with {self.requests - 1:,} decodes and a prefill"

    def span(self, region: Region, *, extrapolate: bool = False) -> Span | None:
        """Return the first and the last number to search, None where the trace holds none."""
        largest = region.reach[0 if self.requests is None else 1]
        if extrapolate:
            return self.first, max(self.first, EXTRAPOLATION_FACTOR * largest)
        seen = self.covered(region, self.first, largest)
        return (seen[0], seen[-1]) if seen else None

    def covered(self, region: Region, first: int, last: int) -> list[int]:
        """Return the numbers of its covered steps; between two of them there may be others."""
        numbers = np.arange(first, last + 1)
        covered: list[int] = numbers[region.contains(self.requests or numbers, numbers)].tolist()
        return covered


def steps_on(lines: Sequence[StepLine], numbers: Ints) -> xr.Dataset:
    """Return the steps at some numbers of some lines, dims (line, number) -> (step,), line by line."""
    requests = np.array([line.requests or 0 for line in lines])[:, None]
    batch_size = np.where(requests == 0, numbers, requests)
    return steps_arrays(batch_size.ravel(), numbers.ravel())


@dataclass(frozen=True, eq=False)
class StepSearch:
    """What a fit allows along lines of steps."""

    fit: FittedModel
    objective: Objective
    extrapolate: bool  # whether to search, and to promise, outside the region of the data
    probability: float  # of credible intervals
    max_draws: int | None

    @cached_property
    def observed(self) -> Observed:
        """The steps of the trace, held against the limit."""
        return Observed.of(self.fit, self.objective)

    @cached_property
    def local(self) -> LocalCheck:
        """Where the fit is right."""
        return check_locally(self.fit)

    def span(self, line: StepLine) -> Span | None:
        """Return the first and the last number of a line to search."""
        return line.span(self.fit.region, extrapolate=self.extrapolate)

    def promised(self, lines: Sequence[StepLine], spans: Sequence[Span]) -> tuple[int | None, ...]:
        """Return for each line the largest number that may be promised: of a covered step."""
        found = largest_kept(
            lines, spans, evaluate=self.quantile_draws, is_kept=self.objective.is_surely_kept
        )
        if self.extrapolate:
            return found
        return tuple(
            None if best is None else line.covered(self.fit.region, span[0], best)[-1]
            for line, span, best in zip(lines, spans, found, strict=True)
        )

    def point_allowed(self, lines: Sequence[StepLine], spans: Sequence[Span]) -> tuple[int | None, ...]:
        """Return for each line the largest number that the posterior median of the mean latency allows.

        No single fitted curve does better: of single parameters data identify the combinations only.
        """

        def evaluate(steps: xr.Dataset) -> Floats:
            mean = self.fit.mean_latency(steps, max_draws=self.max_draws)
            return np.median(flat_draws(mean), axis=0, keepdims=True)

        limit_ms = self.objective.limit_ms
        return largest_kept(lines, spans, evaluate=evaluate, is_kept=lambda running: running[0] <= limit_ms)

    def limit(self, line: StepLine, asked: int | None = None) -> StepLimit:
        """Return how far one may go along a line; `asked`, at least its smallest step, is judged."""
        span = self.span(line)
        first, last = span or (line.first, line.first)
        (best,) = self.promised([line], [span]) if span else (None,)
        (point,) = self.point_allowed([line], [span]) if span else (None,)
        asked_cap = None if asked is None else self._cap(line, min(first, asked), asked)
        is_trusted = None if asked_cap is None else bool(self.objective.is_confident(asked_cap.confidence))
        seen = self.observed.largest(line.requests, first) if span else None
        above = None if seen is None or seen.number <= (best or 0) else self._cap(line, first, seen.number)
        is_kept = is_trusted
        if asked_cap is not None:
            is_borne_out = not is_trusted and asked_cap.is_refuted
            if is_borne_out:
                is_borne_out = self.observed.bears_out(line.requests, asked_cap.number, above=best or 0)
            is_kept = (is_trusted or is_borne_out) and not asked_cap.objection
        return StepLimit(
            name=line.name,
            unit="requests" if line.requests is None else "tokens",
            requests=line.requests,
            first=first if span else None,
            last=last if span else None,
            promised=None if best is None else self._cap(line, first, best),
            limited_by=self.limited_by(best, last) if span else "nothing seen",
            alone=self._alone(line, span) if span and best is None else None,
            point=None if point is None else self._cap(line, first, point),
            point_is_edge=point == last,
            seen=seen,
            refuted=above if above is not None and above.is_refuted else None,
            num_needed=self.observed.num_needed,
            asked=asked_cap,
            asked_is_trusted=is_trusted,
            asked_is_kept=is_kept,
        )

    def limited_by(self, best: int | None, last: int) -> LimitedBy:
        """Return what stops a promise, where the search ends at `last`."""
        if best != last:
            return "slo"
        return "range" if self.extrapolate else "data"

    def objection(self, batch_size: int, total_tokens: int, seen: Evidence) -> str:
        """Return why all steps up to one may not be promised, whatever the fit says; empty: nothing does."""
        if not (self.extrapolate or self.fit.region.contains_step(batch_size, total_tokens)):
            return _UNSEEN
        if seen.is_contradicted:
            return _LATER
        local = self.local.at(batch_size, total_tokens)
        return _SLOWER if local is not None and local.is_slower and not seen.is_sure else ""

    def _cap(self, line: StepLine, first: int, number: int) -> Cap:
        steps = steps_on([line], np.array([[number]]))
        risk = step_risk(
            self.fit, steps, self.objective, probability=self.probability, max_draws=self.max_draws
        ).isel(step=0)
        up_to = self.quantile_draws(steps_on([line], tried_numbers(first, number)[None, :]))
        seen = self.observed.near(line.requests, number)
        return Cap(
            number=number,
            probability=float(risk["probability"]),
            lower=float(risk["lower"]),
            upper=float(risk["upper"]),
            confidence=float(self.objective.confidence_of(up_to.max(axis=1))),
            extrapolation=bool(risk["extrapolation"]),
            evidence=seen,
            local=self.local.at(line.requests or number, number),
            objection=self.objection(line.requests or number, number, seen),
        )

    def _alone(self, line: StepLine, span: Span) -> Span | None:
        """Return the first and the last number whose steps keep the limit, each taken alone."""
        numbers = tried_numbers(*span)
        values = self.quantile_draws(steps_on([line], numbers[None, :]))
        kept = numbers[self.objective.is_surely_kept(values)]
        return (int(kept[0]), int(kept[-1])) if len(kept) else None

    def quantile_draws(self, steps: xr.Dataset) -> Floats:
        """Return the asked noise quantile of each draw, ms, dims (draw, step)."""
        return quantile_draws(self.fit, steps, self.objective.quantile, max_draws=self.max_draws)


def quantile_draws(fit: FittedModel, steps: xr.Dataset, quantile: float, *, max_draws: int | None) -> Floats:
    """Return the noise quantile of each draw, ms, dims (draw, step), the chains after one another."""
    return flat_draws(fit.quantile_draws(steps, quantile, max_draws=max_draws))


def tried_numbers(low: int, high: int) -> Ints:
    """Return whole numbers from `low` to `high`, all of them where they are few."""
    few = 4 * _SECTIONS
    return np.unique(np.rint(np.linspace(low, high, min(high - low + 1, few))).astype(np.int64))


def largest_kept(
    lines: Sequence[StepLine], spans: Sequence[Span], *, evaluate: Evaluate, is_kept: IsKept
) -> tuple[int | None, ...]:
    """Return for each line the largest number of its span up to which all steps keep the limit, or None.

    What is kept at some latencies must be kept at smaller ones.
    """
    low, high = (np.array(ends, dtype=np.int64) for ends in zip(*spans, strict=True))
    first, best = low.copy(), low - 1
    carried: Floats | None = None
    while (active := np.flatnonzero(low <= high)).size:
        numbers = _sections(low[active], high[active])
        values = evaluate(steps_on([lines[int(i)] for i in active], numbers))
        values = values.reshape(values.shape[0], *numbers.shape)
        if carried is None:
            carried = np.full((values.shape[0], len(lines)), -np.inf)
        running = np.maximum.accumulate(np.maximum(values, carried[:, active, None]), axis=2)
        kept = is_kept(running)
        for place, i in enumerate(active):
            count = int(kept[place].sum())  # a running maximum is kept up to somewhere and not beyond
            if count:
                best[i] = numbers[place, count - 1]
                carried[:, i] = running[:, place, count - 1]
            following = numbers[place, count] if count < numbers.shape[1] else high[i] + 1
            low[i], high[i] = best[i] + 1, following - 1
    return tuple(int(b) if b >= f else None for b, f in zip(best, first, strict=True))


def _sections(low: Ints, high: Ints) -> Ints:
    """Return whole numbers from `low` to `high`, evenly spread, dims (line, number); few of them repeat."""
    shares = np.linspace(0.0, 1.0, _SECTIONS + 1)
    return np.rint(low[:, None] + (high - low)[:, None] * shares).astype(np.int64)
