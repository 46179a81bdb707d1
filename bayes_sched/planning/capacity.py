"""How many servers a workload needs, so that its requests keep their limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from bayes_sched.checks.local import check_locally
from bayes_sched.errors import InputError
from bayes_sched.format import chance, sureness
from bayes_sched.planning.replay import SchedulerSettings, StepTimes
from bayes_sched.planning.simulator import KEYS, LEVELS, Objectives, ServerSimulation, simulate, spread_out
from bayes_sched.planning.workload import AnyWorkload
from bayes_sched.posterior.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.posterior.prediction import band_levels
from bayes_sched.posterior.provenance import FitDescription
from bayes_sched.region import Region
from bayes_sched.sla.request import NAMES
from bayes_sched.sla.risk import DEFAULT_CONFIDENCE, DEFAULT_QUANTILE, ROUNDING, objectives_of, refusals

DEFAULT_DRAWS = 200
"""Posterior draws, each a replay of its own: a confidence of 0.95 is then known to 1.5 percentage points."""
DEFAULT_MAX_REPLICAS = 64
TRUSTED_BEYOND = 0.01
"""Nothing is promised where more of the simulated time is spent in larger steps than any of the trace."""
TRUSTED_OUTSIDE = 0.05
"""The same of steps that the trace does not cover."""

_MOST_ALONE = 200
_WORTH_SAYING = 0.01
_PLAIN = (
    *("is_promised", "replicas", "asked_replicas", "max_replicas", "confidence", "probability", "text"),
)

type ShowStage = Callable[[str, float | None], None]
"""Called with a stage in words and the share of it that is done."""


@dataclass(frozen=True, eq=False, kw_only=True)
class CapacityPlan:
    """Whether a workload can be carried, and by how many servers."""

    fit: FitDescription
    workload: AnyWorkload
    settings: SchedulerSettings
    objectives: Objectives  # limits on ttft, tpot and e2e
    confidence: float  # asked
    probability: float  # of intervals over draws
    simulations: tuple[ServerSimulation, ...]  # all that were tried, by their number of replicas
    asked_replicas: int | None  # the number that was to be judged; None: the smallest was sought
    max_replicas: int  # how far it was sought
    replicas: int | None
    """The number that was asked for, if it will do, or the smallest that will; None where there is none."""
    shown: ServerSimulation  # of the number that will do, or else of the largest tried
    own: ServerSimulation | None
    """The same with the trace's own medians of steps where it contradicts the model, if these matter."""
    alone: ServerSimulation | None
    """What requests do that have a server for themselves, where one server was not enough."""
    table: pd.DataFrame
    """One row a number of replicas: ``confidence``, ``p_overloaded``, and intervals of the measures."""
    request_times: pd.DataFrame
    """The distribution of each time over requests, of the simulation that is shown: ``time``, ``level``,
    ``ms`` with ``ms_lower`` and ``ms_upper``."""
    refusals: tuple[str, ...]  # reasons, besides the numbers, why nothing is promised

    @property
    def is_promised(self) -> bool:
        """Whether the plan can be made."""
        return self.replicas is not None and not self.refusals

    @property
    def num_steps(self) -> int:
        """Scheduler steps simulated in all."""
        return sum(of.num_steps for of in (*self.simulations, self.alone) if of is not None)

    @property
    def steps_per_second(self) -> float:
        """How fast they were simulated."""
        seconds = sum(of.seconds for of in (*self.simulations, self.alone) if of is not None)
        return self.num_steps / max(seconds, 1e-9)

    @property
    def text(self) -> str:
        """Sentences a person can paste."""
        parts = [
            *(self._verdict_text(), self._overload_text(), self._own_text(), self._outside_text()),
            *self.refusals,
        ]
        return " ".join(part for part in parts if part)

    def _verdict_text(self) -> str:
        shown, alone, is_asked = self.shown, self.alone, self.asked_replicas is not None
        keep, do = ("keeps", "does") if shown.replicas == 1 else ("keep", "do")
        goal = "every limit" if shown.asked else "up with the arrivals"
        servers = f"{shown.replicas:,} server{'' if shown.replicas == 1 else 's'}"
        goal, known = f"{goal} at {100 * self.confidence:g}% confidence", sureness(shown.confidence)
        if self.replicas is not None:
            least = "" if is_asked else ", the fewest that will do"
            return f"{servers} {keep} {goal}{least} (confidence {known})."
        if alone is None or alone.confidence >= self.confidence - ROUNDING:
            up_to = "" if is_asked else f", and no number up to {self.max_replicas:,} does"
            return f"{servers} {do} NOT keep {goal} (confidence {known}){up_to}."
        worst = min(alone.asked, key=lambda key: float(alone.times[key]["confidence"]))
        share = chance(float(np.mean([draw.within[worst] for draw in alone.draws])))
        return (
            "No number of servers will do: even a request that has one for itself keeps its "
            f"{NAMES[worst]} within {alone.times[worst]['limit_ms']:g} ms too rarely ({share} of them do)."
        )

    def _overload_text(self) -> str:
        if not self.shown.p_overloaded:
            return ""
        growth = self.shown.load["growth"]["median"] or 0.0
        return (
            f"OVERLOAD in {chance(self.shown.p_overloaded)} of the draws: more requests come than are "
            f"served, and the queue grows by {100 * growth:.0f} in 100 arrivals (median); times are those of "
            "a finite workload and grow with it."
        )

    def _own_text(self) -> str:
        if self.own is None:
            return ""
        return (
            f"The trace contradicts the model in {100 * self.shown.contradicted:.0f}% of the simulated time; "
            f"with its own medians there the confidence is {sureness(self.own.confidence)}."
        )

    def _outside_text(self) -> str:
        share = self.shown.extrapolated
        if not _WORTH_SAYING <= share <= TRUSTED_OUTSIDE:
            return ""
        return (
            f"EXTRAPOLATION: {100 * share:.0f}% of the simulated time lies in steps that the trace does not "
            "cover (few requests, or rare combinations): there, times rest on the equation."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "workload": self.workload.text,
            "settings": asdict(self.settings),
            **{name: getattr(self, name) for name in _PLAIN},
            "refusals": list(self.refusals),
            "simulations": [simulation.to_dict() for simulation in self.simulations],
            "own": None if self.own is None else self.own.to_dict(),
            "alone": None if self.alone is None else self.alone.to_dict(),
            "num_steps": self.num_steps,
            "steps_per_second": round(self.steps_per_second),
        }


def plan_capacity(
    fit: FittedModel,
    workload: AnyWorkload,
    settings: SchedulerSettings,
    *,
    ttft_ms: float | None = None,
    tpot_ms: float | None = None,
    e2e_ms: float | None = None,
    quantile: float = DEFAULT_QUANTILE,
    confidence: float = DEFAULT_CONFIDENCE,
    replicas: int | None = None,
    max_replicas: int = DEFAULT_MAX_REPLICAS,
    extrapolate: bool = False,
    accept_unconverged: bool = False,
    probability: float = DEFAULT_PROBABILITY,
    num_draws: int = DEFAULT_DRAWS,
    seed: int = 0,
    progress: ShowStage = lambda stage, share: None,
) -> CapacityPlan:
    """Return how many servers a workload needs.

    A number of servers will do if, with probability `confidence`, at least a share `quantile` of the requests
    keeps each limit, and the queue does not grow without end. The smallest such number is found by doubling
    and halving, as more servers do not make requests slower; both it and one less are simulated.

    Scheduling is vLLM 0.32's (``scripts/check_simulator.py`` holds it against a real one): a waiting request
    is admitted when the free KV blocks hold all of its tokens (``scheduler_reserve_full_isl``), though only
    its first chunk is allocated. Simplifications, beside those of the fit: scheduling is synchronous, the
    prefix cache is empty, all servers are of the same posterior draw, and the noise of steps is independent.

    Parameters
    ----------
    fit : FittedModel
    workload : Workload or PoissonWorkload
    settings : SchedulerSettings
    ttft_ms, tpot_ms, e2e_ms : float, optional
        Limits, ms.
    quantile, confidence : float
    replicas : int, optional
        A number to be judged, in place of the smallest to be found.
    max_replicas : int
    extrapolate, accept_unconverged : bool
        What else is trusted, as for :func:`~bayes_sched.sla.request.request_sla`.
    probability : float
        Of intervals.
    num_draws : int
    seed : int
    progress : callable

    Returns
    -------
    CapacityPlan

    Raises
    ------
    InputError
        A value is out of range, a request does not fit into the KV cache, or the fit's model needs more than
        B and S.
    """
    for name, number in (("replicas", replicas), ("max_replicas", max_replicas), ("num_draws", num_draws)):
        if number is not None and number < 1:
            raise InputError(f"{name} = {number}: give at least 1")
    limits = dict(zip(KEYS, (ttft_ms, tpot_ms, e2e_ms), strict=True))
    objectives = objectives_of(limits, quantile=quantile, confidence=confidence, probability=probability)
    progress("tabulating step times", None)
    local = check_locally(fit)
    times = StepTimes.of(
        fit, max_batch_size=settings.max_num_seqs, max_tokens=settings.token_budget, max_draws=num_draws
    )

    def run(
        number: int, of: AnyWorkload = workload, name: str = "", times: StepTimes = times
    ) -> ServerSimulation:
        stage = name or f"simulating {number:,} server{'' if number == 1 else 's'}"
        return simulate(
            of,
            settings,
            times,
            fit.region,
            local,
            replicas=number,
            objectives=objectives,
            confidence=confidence,
            probability=probability,
            seed=seed,
            progress=lambda share: progress(stage, share),
        )

    tried: dict[int, ServerSimulation] = {}

    def will_do(number: int) -> bool:
        if number not in tried:
            tried[number] = run(number)
        return tried[number].confidence >= confidence - ROUNDING

    first, alone = replicas or 1, None
    best: int | None = first
    if not will_do(first):
        alone = run(1, spread_out(workload, most=_MOST_ALONE, seed=seed), "simulating requests alone")
        may_more_do = replicas is None and alone.confidence >= confidence - ROUNDING
        best = _smallest(will_do, max_replicas) if may_more_do else None
    simulations = tuple(tried[number] for number in sorted(tried))
    shown = simulations[-1] if best is None else tried[best]
    own = None
    if shown.contradicted > _WORTH_SAYING:
        own = run(
            shown.replicas, name="simulating with the trace's own medians", times=times.corrected(local)
        )
    reasons = [
        *refusals(fit, accept_unconverged=accept_unconverged),
        *([] if extrapolate else _outside(shown, fit.region)),
    ]
    if own is not None and (own.confidence >= confidence - ROUNDING) != (best is not None):
        reasons.append("Undecided: the trace's own steps give another answer than the model.")
    return CapacityPlan(
        fit=fit.description,
        workload=workload,
        settings=settings,
        objectives=objectives,
        confidence=confidence,
        probability=probability,
        simulations=simulations,
        asked_replicas=replicas,
        max_replicas=max_replicas,
        replicas=best,
        shown=shown,
        own=own,
        alone=alone,
        table=pd.DataFrame([_row(simulation) for simulation in simulations]),
        request_times=_request_times(shown, probability),
        refusals=tuple(reasons),
    )


def _outside(shown: ServerSimulation, region: Region) -> list[str]:
    """Return why nothing is promised where too much of the time is in steps that the trace does not hold."""
    if shown.beyond > TRUSTED_BEYOND:
        share, where = shown.beyond, "of more requests or tokens than any of the trace"
        way = "limit the number of sequences or the token budget"
    elif shown.extrapolated > TRUSTED_OUTSIDE:
        share, where = shown.extrapolated, "that the trace does not cover"
        way = "record a trace under such a load"
    else:
        return []
    return [
        f"{100 * share:.0f}% of the simulated time lies in steps {where}: nothing is promised there unless "
        f"that is asked for; {way}. {region.text}"
    ]


def _smallest(will_do: Callable[[int], bool], most: int) -> int | None:
    """Return the smallest number from 2 on that will do, where 1 will not; None where there is none."""
    low, high = 1, 2
    while high < most and not will_do(high):
        low, high = high, 2 * high
    high = min(high, most)
    if high <= low or not will_do(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if will_do(middle) else (middle, high)
    return high


def _row(simulation: ServerSimulation) -> dict[str, Any]:
    row = simulation.to_dict()
    names = ("replicas", "confidence", "p_overloaded", "extrapolated", "contradicted", "num_draws")
    flat = {name: row[name] for name in names}
    for name in ("all_within", "queue_mean", "queue_p95", "utilisation", "in_system"):
        flat |= {f"{name}_{end}": value for end, value in row[name].items()}
    for key, time in simulation.times.items():
        for name in ("p50_ms", "p95_ms", "p99_ms", "within"):
            flat |= {f"{key}_{name}_{end}": value for end, value in time.get(name, {}).items()}
        if "confidence" in time:
            flat[f"{key}_confidence"] = time["confidence"]
    return flat


def _request_times(simulation: ServerSimulation, probability: float) -> pd.DataFrame:
    parts = []
    for key in KEYS:
        draws = pd.DataFrame([draw.quantiles[key] for draw in simulation.draws], columns=LEVELS)
        lower, middle, upper = draws.quantile(band_levels(probability)).to_numpy()
        columns = {"time": key, "level": LEVELS, "ms": middle, "ms_lower": lower, "ms_upper": upper}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)
