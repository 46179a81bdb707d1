"""What may be promised of steps: decode-only batches, token budgets, and the frontier between.

Here, too, steps and requests are joined to what is promised of a server at once (:class:`SLA`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.errors import InputError
from bayes_sched.format import number, records
from bayes_sched.posterior.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.posterior.provenance import FitDescription
from bayes_sched.sla.limits import Span, StepLimit, StepLine, StepSearch, tried_numbers
from bayes_sched.sla.request import RequestSLA
from bayes_sched.sla.risk import (
    DEFAULT_CONFIDENCE,
    DEFAULT_QUANTILE,
    Objective,
    refusals,
    step_risk,
)
from bayes_sched.steps import POSSIBLE, steps_arrays, steps_grid

NUM_BATCH_SIZES = 24
"""Numbers of requests on the frontier, at most, evenly spread on a logarithmic scale."""
DEFAULT_MAX_DRAWS: int | None = 2000
"""Posterior draws, evenly spaced over the chains, that a promise uses unless told otherwise: a confidence of
0.95 is then known to half a percentage point."""

_NUM_FINE = 160
_RISK = ("probability", "lower", "upper", "confidence", "extrapolation")
COLUMNS = (
    *("batch_size", "first_tokens", "last_tokens", "total_tokens", "limited_by", *_RISK),
    *("near_steps", "near_late", "is_contradicted"),
    *("seen_tokens", "seen_steps", "seen_late"),
    *("point_tokens", "point_breach", "point_breach_lower", "point_breach_upper"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class StepSLA:
    """What may be promised of the steps of a server."""

    fit: FitDescription
    """What it was found with."""
    objective: Objective
    probability: float
    """Of credible intervals."""
    decode_only: StepLimit
    """The largest batch of decoding requests."""
    token_budget: StepLimit | None
    """The most tokens of a step with a given number of decodes and one prefill, where that was asked."""
    frontier: pd.DataFrame
    """For each number of requests, the most tokens; each row is a promise of its own, of steps of exactly so
    many requests and of any number of tokens from ``first_tokens`` to ``total_tokens`` (NA where nothing may
    be promised). ``last_tokens`` is where the search ended, ``limited_by`` ``slo``, ``data`` or ``range``;
    ``probability``, ``lower``, ``upper``, ``confidence`` and ``extrapolation`` are those of
    :func:`~bayes_sched.sla.risk.step_risk` there; ``near_steps``, ``near_late`` and ``is_contradicted`` what
    the trace says of them; ``seen_tokens`` is what the trace by itself does not speak against, ``seen_late``
    of ``seen_steps`` near it being late; ``point_tokens`` is what a single fitted curve allows, and
    ``point_breach``, with its interval, the probability that a step there takes too long."""
    floor_ms: float
    """The least limit that any step searched could keep at this quantile and confidence, ms. Searched are the
    decode-only steps, and for other numbers of requests those with the fewest tokens."""
    refusals: tuple[str, ...]
    """Reasons, besides the numbers, why nothing is promised."""

    @property
    def is_promised(self) -> bool:
        """Whether everything that was asked for may be promised."""
        if self.refusals:
            return False
        asked = [limit for limit in self.limits if limit.asked is not None]
        return all(limit.is_kept for limit in asked or self.limits[-1:])

    @property
    def limits(self) -> tuple[StepLimit, ...]:
        """The limits that there are."""
        return tuple(limit for limit in (self.decode_only, self.token_budget) if limit is not None)

    @property
    def table(self) -> pd.DataFrame:
        """The frontier."""
        return self.frontier

    @property
    def text(self) -> str:
        """Sentences a person can paste."""
        floor = [self.floor_text] if self.is_below_floor else []
        return " ".join([*floor, *(limit.text for limit in self.limits), *self.refusals])

    @property
    def is_below_floor(self) -> bool:
        """Whether no step at all keeps the limit."""
        return self.objective.limit_ms < self.floor_ms

    @property
    def floor_text(self) -> str:
        """What a limit has to be at least."""
        share, sure = 100 * self.objective.quantile, 100 * self.objective.confidence
        return (
            f"No step of this server keeps {self.objective.limit_ms:g} ms: even the quickest searched needs "
            f"{number(self.floor_ms)} ms for {share:g}% of such steps at {sure:g}% confidence."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            **self.objective.to_dict(),
            "probability": self.probability,
            "is_promised": self.is_promised,
            "refusals": list(self.refusals),
            "floor_ms": self.floor_ms,
            "decode_only": self.decode_only.to_dict(),
            "token_budget": None if self.token_budget is None else self.token_budget.to_dict(),
            "frontier": records(self.frontier),
        }


def step_sla(
    fit: FittedModel,
    *,
    slo_ms: float,
    quantile: float = DEFAULT_QUANTILE,
    confidence: float = DEFAULT_CONFIDENCE,
    batch_size: int | None = None,
    decodes: int | None = None,
    token_budget: int | None = None,
    extrapolate: bool = False,
    accept_unconverged: bool = False,
    probability: float = DEFAULT_PROBABILITY,
    max_draws: int | None = DEFAULT_MAX_DRAWS,
) -> StepSLA:
    """Return what may be promised of the steps of a server.

    A promise of a cap is one of all steps up to it, at once: with probability `confidence` over what we know,
    at least a share `quantile` of each kind of these steps takes at most `slo_ms`.

    Parameters
    ----------
    fit : FittedModel
    slo_ms : float
        Latency that a step must not exceed, ms.
    quantile : float
        Share of the steps that must keep it.
    confidence : float
        Posterior probability with which they must.
    batch_size : int, optional
        A decode-only batch to be judged.
    decodes : int, optional
        Running decodes for which the largest token budget is wanted.
    token_budget : int, optional
        A token budget to be judged, decodes and prefill tokens together; needs `decodes`.
    extrapolate : bool
        Whether to search and to promise outside the region of the data too.
    accept_unconverged : bool
        Whether to promise anything on the word of a fit that has not converged.
    probability : float
        Of credible intervals.
    max_draws : int or None
        Posterior draws to use, evenly thinned; None uses all.

    Returns
    -------
    StepSLA

    Raises
    ------
    InputError
        A value is outside its range, or the fit's model needs more than B and S.
    """
    objective = Objective(limit_ms=slo_ms, quantile=quantile, confidence=confidence)
    _check_counts(batch_size, decodes, token_budget)
    search = StepSearch(fit, objective, extrapolate, probability, max_draws)
    tokens = None if decodes is None else search.limit(StepLine(decodes + 1), token_budget)
    decode_only = search.limit(StepLine(), batch_size)
    searched = _frontier_spans(search)
    return StepSLA(
        fit=fit.description,
        objective=objective,
        probability=probability,
        decode_only=decode_only,
        token_budget=tokens,
        frontier=_frontier(search, searched),
        floor_ms=_floor_ms(search, decode_only, searched),
        refusals=refusals(fit, accept_unconverged=accept_unconverged),
    )


def _check_counts(batch_size: int | None, decodes: int | None, token_budget: int | None) -> None:
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size = {batch_size}: give at least 1 request")
    if decodes is not None and decodes < 0:
        raise InputError(f"decodes = {decodes}: give a number that is not negative")
    if token_budget is not None and decodes is None:
        raise InputError("a token budget is one of steps with some running decodes: give their number too")
    if token_budget is not None and decodes is not None and token_budget <= decodes:
        raise InputError(
            f"a token budget of {token_budget:,} leaves no token for a prefill beside {decodes:,} decodes: "
            "give a larger budget or fewer decodes"
        )


def _frontier_spans(search: StepSearch) -> dict[StepLine, Span]:
    """Return the lines of the frontier, each with the first and the last number of tokens to search."""
    highest = search.fit.region.largest[0] * (2.0 if search.extrapolate else 1.0)
    sizes = np.unique(np.rint(np.geomspace(1.0, max(1.0, highest), NUM_BATCH_SIZES)).astype(int))
    spans = {line: search.span(line) for line in (StepLine(int(b)) for b in sizes)}
    return {line: span for line, span in spans.items() if span is not None}


def _frontier(search: StepSearch, searched: Mapping[StepLine, Span]) -> pd.DataFrame:
    if not searched:
        return pd.DataFrame(columns=list(COLUMNS))
    lines, spans = list(searched), list(searched.values())
    best, point = search.promised(lines, spans), search.point_allowed(lines, spans)
    near = [
        None if b is None else search.observed.near(line.requests, b)
        for line, b in zip(lines, best, strict=True)
    ]
    seen = [
        search.observed.largest(line.requests, first) for line, (first, _) in zip(lines, spans, strict=True)
    ]
    table = pd.DataFrame(
        {
            "batch_size": [line.first for line in lines],
            "first_tokens": [first for first, _ in spans],
            "last_tokens": [last for _, last in spans],
            "total_tokens": pd.array(best, dtype="Int64"),
            "limited_by": [search.limited_by(b, last) for b, (_, last) in zip(best, spans, strict=True)],
            "near_steps": pd.Series([e and e.num_steps for e in near], dtype="Int64"),
            "near_late": pd.Series([e and e.late_share for e in near], dtype="Float64"),
            "is_contradicted": pd.Series([e and e.is_contradicted for e in near], dtype="boolean"),
            "seen_tokens": pd.Series([e and e.number for e in seen], dtype="Int64"),
            "seen_steps": pd.Series([e and e.num_steps for e in seen], dtype="Int64"),
            "seen_late": pd.Series([e and e.late_share for e in seen], dtype="Float64"),
            "point_tokens": pd.array(point, dtype="Int64"),
        }
    )
    at_best, at_point = (_risk_at(search, table, name) for name in ("total_tokens", "point_tokens"))
    table = table.assign(
        **{name: at_best[name] for name in _RISK},
        point_breach=1.0 - at_point["probability"],
        point_breach_lower=1.0 - at_point["upper"],
        point_breach_upper=1.0 - at_point["lower"],
    )
    return table[list(COLUMNS)].astype({"extrapolation": "boolean"})


def _risk_at(search: StepSearch, table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the risk at a column's tokens, one row a row of the table, NaN where there are none."""
    known = table[table[column].notna()]
    if known.empty:
        return pd.DataFrame(np.nan, index=table.index, columns=list(_RISK))
    steps = steps_arrays(known["batch_size"].to_numpy(float), known[column].to_numpy(float))
    risk = step_risk(
        search.fit, steps, search.objective, probability=search.probability, max_draws=search.max_draws
    )
    found = pd.DataFrame({name: risk[name].to_numpy() for name in _RISK}, index=known.index)
    return found.reindex(table.index)


def _floor_ms(search: StepSearch, decode_only: StepLimit, searched: Mapping[StepLine, Span]) -> float:
    starts = np.array([[line.first, first] for line, (first, _) in searched.items()])
    if decode_only.first is not None and decode_only.last is not None:
        numbers = tried_numbers(decode_only.first, decode_only.last)
        starts = np.concatenate([starts.reshape(-1, 2), np.stack([numbers, numbers], axis=1)])
    values = search.quantile_draws(steps_arrays(starts[:, 0], starts[:, 1]))
    return float(np.quantile(values, search.objective.confidence, axis=0).min())


@dataclass(frozen=True, slots=True, eq=False)
class RiskMaps:
    """Risk and confidence where the trace has steps."""

    surface: xr.Dataset
    """:func:`risk_map`."""
    veil: xr.Dataset  # a finer grid: extrapolation and possible
    decode_only: xr.Dataset
    """:func:`step_risk` of decode-only batches, and ``batch_size``."""

    @classmethod
    def of(cls, fit: FittedModel, sla: StepSLA) -> RiskMaps:
        """Compute them for a limit on steps."""
        surface = risk_map(fit, sla.objective, probability=sla.probability)
        sizes, tokens = (
            np.linspace(1.0, float(surface[name].max()), _NUM_FINE) for name in ("batch_size", "total_tokens")
        )
        fine = steps_grid(batch_size=sizes, total_tokens=np.union1d(sizes, tokens))
        numbers = tried_numbers(1, max(fit.region.reach[0], sla.decode_only.last or 1))
        decodes = step_risk(fit, steps_arrays(numbers, numbers), sla.objective, probability=sla.probability)
        return cls(
            surface,
            fine.assign(extrapolation=fit.extrapolation(fine)),
            decodes.assign(batch_size=("step", numbers)),
        )

    @property
    def frames(self) -> dict[str, pd.DataFrame]:
        """The maps as tables, of possible steps only."""
        flat = self.surface.stack(step=("batch_size", "total_tokens"))  # noqa: PD013, an xarray object
        possible = flat.isel(step=np.flatnonzero(flat["possible"].to_numpy())).drop_vars("possible")
        return {
            "probability_map": possible.reset_index("step").to_dataframe().reset_index(drop=True),
            "decode_only": self.decode_only.to_dataframe().reset_index(drop=True),
        }


def risk_map(
    fit: FittedModel, objective: Objective, *, probability: float = DEFAULT_PROBABILITY, num: int = 40
) -> xr.Dataset:
    """Return :func:`step_risk` over an even grid of the trace's range, NaN where no step is ``possible``."""
    batch_size, tokens = (np.unique(np.rint(np.linspace(1.0, end, num))) for end in fit.region.reach)
    # The tokens hold the batch sizes as well, for decode-only steps.
    grid = steps_grid(batch_size=batch_size, total_tokens=np.union1d(batch_size, tokens))
    risk = step_risk(fit, grid, objective, probability=probability)
    return risk.assign({POSSIBLE: grid[POSSIBLE]})


@dataclass(frozen=True, kw_only=True, eq=False)
class SLA:
    """What a server may promise of its steps, of requests, or of both."""

    fit: FitDescription  # what it was found with
    steps: StepSLA | None
    request: RequestSLA | None
    maps: RiskMaps | None  # risk and confidence over the range of the data, where the steps are to be shown
    survival: dict[str, pd.DataFrame]
    """By the key of each time of the request: :meth:`RequestTime.survival`; where it is to be shown."""

    @classmethod
    def of(
        cls, fit: FittedModel, steps: StepSLA | None, request: RequestSLA | None, *, is_drawn: bool = True
    ) -> SLA:
        """Join promises of one fit; `is_drawn` computes what the figures of its report need."""
        return cls(
            fit=fit.description,
            steps=steps,
            request=request,
            maps=RiskMaps.of(fit, steps) if steps is not None and is_drawn else None,
            survival={time.key: time.survival() for time in request.times} if request and is_drawn else {},
        )

    @property
    def is_promised(self) -> bool:
        """Whether everything that was asked for may be promised."""
        return all(answer.is_promised for answer in self._answers)

    @property
    def refusals(self) -> tuple[str, ...]:
        """Reasons, besides the numbers, why nothing is promised."""
        return tuple(dict.fromkeys(reason for answer in self._answers for reason in answer.refusals))

    @property
    def _answers(self) -> tuple[StepSLA | RequestSLA, ...]:
        return tuple(answer for answer in (self.steps, self.request) if answer is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "fit": self.fit.metadata.name,
            "labels": dict(self.fit.metadata.labels),
            "converged": self.fit.metadata.converged,
            "warnings": list(self.fit.warnings),
            "region": self.fit.region.text,
            "is_promised": self.is_promised,
            "steps": None if self.steps is None else self.steps.to_dict(),
            "request": None if self.request is None else self.request.to_dict(),
        }
