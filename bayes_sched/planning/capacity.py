"""How many servers a workload needs, so that its requests keep their limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError
from bayes_sched.format import chance, sureness
from bayes_sched.model.equation import PARAMETERS, inverse_saturation
from bayes_sched.planning.replay import SchedulerSettings, StepTimes
from bayes_sched.planning.simulator import KEYS, NAMES, Simulation, simulate, spread_out
from bayes_sched.planning.workload import AnyWorkload
from bayes_sched.posterior.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.posterior.prediction import check_probability, thin
from bayes_sched.predictor.predictor import Predictor
from bayes_sched.sla.risk import DEFAULT_CONFIDENCE, DEFAULT_QUANTILE, Objective, refusals
from bayes_sched.steps import steps_arrays

TOKENS, REQUESTS, FIXED, IDLE, REST = "tokens", "requests", "fixed cost", "unsaturated device", "other terms"
COLUMNS = (
    *("kind", "name", "group", "latency_ms", "latency_ms_lower", "latency_ms_upper"),
    *("share", "share_lower", "share_upper", "p_largest"),
)

_NEGLIGIBLE = 1e-9


def term_table(
    fit: FittedModel,
    batch_size: float,
    total_tokens: float,
    *,
    probability: float,
    max_draws: int | None,
) -> pd.DataFrame | None:
    """Return what each term of the equation adds to the mean latency of a step.

    Returns
    -------
    DataFrame or None
        ``kind`` (``group`` or ``term``), ``name``, ``group``, ``latency_ms`` and ``share`` (medians, each
        with ``_lower`` and ``_upper``), ``p_largest``: the probability that it is the largest of its kind.
        None where the model's parameters are not those of the equation.
    """
    draws = thin(fit.posterior, max_draws=max_draws)
    if any(p.name not in draws for p in PARAMETERS):
        return None
    par = {p.name: draws[p.name].to_numpy().ravel() for p in PARAMETERS}
    slowdown = inverse_saturation(batch_size, total_tokens, k_B=par["k_B"], k_S=par["k_S"])
    fixed_work, work = par["w_0"] / par["P_max"], par["w_1"] * total_tokens / par["P_max"]
    parts: dict[tuple[str, str], Floats] = {
        ("tau_0", FIXED): par["tau_0"],
        ("w_0 / P_max", FIXED): fixed_work,
        ("w_1 S / P_max", TOKENS): work,
        ("tau_S S", TOKENS): par["tau_S"] * total_tokens,
        ("slowdown of the work", IDLE): (slowdown - 1.0) * (fixed_work + work),
        ("tau_B B", REQUESTS): par["tau_B"] * batch_size,
    }
    steps = steps_arrays(batch_size, total_tokens)
    whole = fit.mean_latency(steps, max_draws=max_draws).to_numpy().ravel()
    rest = whole - sum(parts.values())
    if float(np.abs(rest / whole).max()) > _NEGLIGIBLE:
        parts[("other terms of the model", REST)] = rest
    groups: dict[tuple[str, str], Floats] = {}
    for (_, group), values in parts.items():
        groups[(group, group)] = groups.get((group, group), 0.0) + values
    rows = [*_rows("group", groups, whole, probability), *_rows("term", parts, whole, probability)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(
    kind: str, parts: dict[tuple[str, str], Floats], whole: Floats, probability: float
) -> list[tuple[object, ...]]:
    tail = 0.5 * (1.0 - probability)
    levels = [0.5, tail, 1.0 - tail]
    largest = np.argmax(np.stack(list(parts.values())), axis=0)
    rows = []
    for place, ((name, group), values) in enumerate(parts.items()):
        ms, share = np.quantile(values, levels), np.quantile(values / whole, levels)
        rows.append((kind, name, group, *ms.tolist(), *share.tolist(), float((largest == place).mean())))
    return rows


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


_WORTH_SAYING = 0.01
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False, kw_only=True)
class CapacityPlan:
    """Whether a workload can be carried, and by how many servers.

    Attributes
    ----------
    fit : FittedModel
    workload : Workload or PoissonWorkload
    settings : SchedulerSettings
    objectives : Mapping of str to (Objective or None)
        Limits on ``ttft``, ``tpot`` and ``e2e``.
    confidence : float
        Asked.
    probability : float
        Of intervals over draws.
    simulations : tuple of Simulation
        All that were tried, by their number of replicas.
    asked_replicas : int or None
        The number that was to be judged; None: the smallest was sought.
    max_replicas : int
        How far it was sought.
    replicas : int or None
        The number that was asked for, if it will do, or the smallest that will; None where there is none.
    alone : Simulation or None
        What requests do that have a server for themselves, where one server was not enough.
    extrapolates : bool
    refusals : tuple of str
        Reasons, besides the numbers, why nothing is promised.
    """

    fit: FittedModel
    workload: AnyWorkload
    settings: SchedulerSettings
    objectives: Mapping[str, Objective | None]
    confidence: float
    probability: float
    simulations: tuple[Simulation, ...]
    asked_replicas: int | None
    max_replicas: int
    replicas: int | None
    alone: Simulation | None
    extrapolates: bool
    refusals: tuple[str, ...]

    @property
    def is_promised(self) -> bool:
        """Whether the plan can be made."""
        return self.replicas is not None and not self.refusals

    @property
    def shown(self) -> Simulation:
        """The simulation of the number that will do, or else of the largest tried."""
        of = {simulation.replicas: simulation for simulation in self.simulations}
        return of[self.replicas] if self.replicas is not None else self.simulations[-1]

    @property
    def num_steps(self) -> int:
        """Scheduler steps simulated in all."""
        return sum(simulation.num_steps for simulation in self._all)

    @property
    def steps_per_second(self) -> float:
        """How fast they were simulated."""
        return self.num_steps / max(sum(simulation.seconds for simulation in self._all), 1e-9)

    @property
    def _all(self) -> tuple[Simulation, ...]:
        return self.simulations if self.alone is None else (*self.simulations, self.alone)

    @property
    def table(self) -> pd.DataFrame:
        """One row a number of replicas: ``confidence``, ``p_overloaded``, and intervals of the measures."""
        rows = []
        for simulation in self.simulations:
            row = simulation.to_dict(probability=self.probability)
            flat = {
                name: row[name]
                for name in ("replicas", "confidence", "p_overloaded", "extrapolated", "num_draws")
            }
            for name in ("all_within", "queue_mean", "queue_p95", "utilisation", "in_system"):
                flat |= {f"{name}_{end}": value for end, value in row[name].items()}
            for key, time in row["times"].items():
                for level in ("p50_ms", "p95_ms", "p99_ms"):
                    flat |= {f"{key}_{level}_{end}": value for end, value in time[level].items()}
                if "within" in time:
                    flat |= {f"{key}_within_{end}": value for end, value in time["within"].items()}
                    flat[f"{key}_confidence"] = time["confidence"]
            rows.append(flat)
        return pd.DataFrame(rows)

    @property
    def text(self) -> str:
        """Sentences a person can paste."""
        parts = [self._verdict_text(), self._overload_text(), self._outside_text(), *self.refusals]
        return " ".join(part for part in parts if part)

    def _verdict_text(self) -> str:
        shown, sure = self.shown, f"at {100 * self.confidence:g}% confidence"
        is_one = shown.replicas == 1
        goal = "every limit" if shown.asked else "up with the arrivals"
        servers = f"{shown.replicas:,} server{'' if is_one else 's'}"
        if self.replicas is not None:
            least = "" if self.asked_replicas is not None else ", the fewest that will do"
            verb = "keeps" if is_one else "keep"
            return f"{servers} {verb} {goal} {sure}{least} (confidence {sureness(shown.confidence)})."
        if self.alone is not None and self.alone.confidence < self.confidence - _ROUNDING:
            worst = min(self.alone.asked, key=lambda key: float(self.alone.is_kept(key).mean()))  # type: ignore[union-attr]
            objective = self.objectives[worst]
            limit = "" if objective is None else f" within {objective.limit_ms:g} ms"
            share = chance(float(self.alone.within(worst).mean()))
            return (
                "No number of servers will do: even a request that has one for itself keeps its "
                f"{NAMES[worst]}{limit} too rarely ({share} of them do)."
            )
        up_to = "" if self.asked_replicas is not None else f", and no number up to {self.max_replicas:,} does"
        verb = "does" if is_one else "do"
        known = f"confidence {sureness(shown.confidence)}"
        return f"{servers} {verb} NOT keep {goal} {sure} ({known}){up_to}."

    def _overload_text(self) -> str:
        shown = self.shown
        if not shown.p_overloaded:
            return ""
        growth = float(np.median(shown.values("growth")))
        return (
            f"OVERLOAD in {chance(shown.p_overloaded)} of the draws: more requests come than are served, and "
            f"the queue grows by {100 * growth:.0f} in 100 arrivals (median); times are those of a finite "
            "workload and grow with it."
        )

    def _outside_text(self) -> str:
        share = self.shown.extrapolated
        if share < _WORTH_SAYING:
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
            "is_promised": self.is_promised,
            "replicas": self.replicas,
            "asked_replicas": self.asked_replicas,
            "max_replicas": self.max_replicas,
            "confidence": self.confidence,
            "probability": self.probability,
            "text": self.text,
            "refusals": list(self.refusals),
            "simulations": [each.to_dict(probability=self.probability) for each in self.simulations],
            "alone": None if self.alone is None else self.alone.to_dict(probability=self.probability),
            "num_steps": self.num_steps,
            "steps_per_second": round(self.steps_per_second),
        }


DEFAULT_DRAWS = 200
"""Posterior draws, each a replay of its own: a confidence of 0.95 is then known to 1.5 percentage points."""
DEFAULT_MAX_REPLICAS = 64
TRUSTED_BEYOND = 0.01
"""Nothing is promised where more of the simulated time is spent in larger steps than any of the trace."""

_MOST_ALONE = 200

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
