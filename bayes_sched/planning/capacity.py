"""How many servers a workload needs, so that its requests keep their limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bayes_sched.errors import InputError
from bayes_sched.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.planning.capacity_plan import CapacityPlan
from bayes_sched.planning.measures import KEYS
from bayes_sched.planning.scheduler import SchedulerSettings
from bayes_sched.planning.simulation import Simulation, simulate, spread_out
from bayes_sched.planning.step_times import StepTimes
from bayes_sched.planning.workload import AnyWorkload
from bayes_sched.predictive import check_probability
from bayes_sched.sla import DEFAULT_CONFIDENCE, DEFAULT_QUANTILE, Objective
from bayes_sched.sla.trust import refusals

DEFAULT_DRAWS = 200
"""Posterior draws, each a replay of its own: a confidence of 0.95 is then known to 1.5 percentage points."""
DEFAULT_MAX_REPLICAS = 64
TRUSTED_BEYOND = 0.01
"""Nothing is promised where more of the simulated time is spent in larger steps than any of the trace."""

_MOST_ALONE = 200
_ROUNDING = 1e-12

type ShowStage = Callable[[str, float | None], None]
"""Called with a stage in words and the share of it that is done."""


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
        What else is trusted, as for :func:`~bayes_sched.sla.request_sla`.
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
    for name, share in (("quantile", quantile), ("confidence", confidence), ("probability", probability)):
        check_probability(share, name=name)
    for name, number in (("replicas", replicas), ("max_replicas", max_replicas), ("num_draws", num_draws)):
        if number is not None and number < 1:
            raise InputError(f"{name} = {number}: give at least 1")
    limits = dict(zip(KEYS, (ttft_ms, tpot_ms, e2e_ms), strict=True))
    objectives = {
        key: None if ms is None else Objective(limit_ms=ms, quantile=quantile, confidence=confidence)
        for key, ms in limits.items()
    }
    progress("tabulating step times", None)
    times = StepTimes.of(
        fit, max_batch_size=settings.max_num_seqs, max_tokens=settings.token_budget, max_draws=num_draws
    )

    def run(number: int, of: AnyWorkload = workload, name: str = "") -> Simulation:
        stage = name or f"simulating {number:,} server{'' if number == 1 else 's'}"
        return simulate(
            of,
            settings,
            times,
            fit.region,
            replicas=number,
            objectives=objectives,
            seed=seed,
            confidence=confidence,
            progress=lambda share: progress(stage, share),
        )

    def run_alone() -> Simulation:
        return run(1, spread_out(workload, most=_MOST_ALONE, seed=seed), "simulating requests alone")

    tried, best, alone = _search(run, run_alone, confidence, asked=replicas, most=max_replicas)
    plan = CapacityPlan(
        fit=fit,
        workload=workload,
        settings=settings,
        objectives=objectives,
        confidence=confidence,
        probability=probability,
        simulations=tuple(tried[number] for number in sorted(tried)),
        asked_replicas=replicas,
        max_replicas=max_replicas,
        replicas=best,
        alone=alone,
        extrapolates=extrapolate,
        refusals=(),
    )
    reasons = [*refusals(fit, accept_unconverged=accept_unconverged)]
    if plan.shown.beyond > TRUSTED_BEYOND and not extrapolate:
        reasons.append(
            f"{100 * plan.shown.beyond:.0f}% of the simulated time lies in steps of more requests or tokens "
            "than any of the trace: nothing is promised there unless that is asked for; limit the number of "
            f"sequences or the token budget. {fit.region.text}"
        )
    return replace(plan, refusals=tuple(reasons))


def _search(
    run: Callable[[int], Simulation],
    run_alone: Callable[[], Simulation],
    confidence: float,
    *,
    asked: int | None,
    most: int,
) -> tuple[dict[int, Simulation], int | None, Simulation | None]:
    """Return what was tried, the smallest number that will do, and what requests do alone."""
    tried: dict[int, Simulation] = {}

    def will_do(number: int) -> bool:
        if number not in tried:
            tried[number] = run(number)
        return tried[number].confidence >= confidence - _ROUNDING

    first = 1 if asked is None else asked
    if will_do(first):
        return tried, first, None
    alone = run_alone()
    if asked is not None or alone.confidence < confidence - _ROUNDING:
        return tried, None, alone
    low, high = 1, 2
    while high < most and not will_do(high):
        low, high = high, 2 * high
    high = min(high, most)
    if high <= low or not will_do(high):
        return tried, None, alone
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if will_do(middle) else (middle, high)
    return tried, high, alone
