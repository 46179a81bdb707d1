"""A compiled predictor tried out: how close to its fit, how fast, and how soon it notices a drift."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd

from bayes_sched.arrays import Floats
from bayes_sched.format import records
from bayes_sched.model.equation import latency_ms
from bayes_sched.model.likelihood import effects_of
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.predictor.predictor import Predictor
from bayes_sched.steps import SIZES

LEVELS = (0.001, 0.01, 0.05, 0.5, 0.95, 0.99, 0.999)
"""Quantiles at which a predictor is held against its fit."""

NUM_MANY = 1_000_000
"""Steps of the vectorised timings."""

EQUATION = "equation in numpy"
"""What the speed of a predictor is compared with."""
_NUM_SINGLE = 20_000
_NUM_REPEATS = 5
_PLAUSIBLE = {"P_max": 40.0, "k_B": 0.1, "k_S": 0.01, "w_0": 3.0, "w_1": 0.4, "tau_0": 2.0, "tau_B": 0.05}
_PLAUSIBLE["tau_S"] = 0.004  # the time that the equation takes does not depend on its parameters


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictorTrial:
    """What trying a predictor out found."""

    name: str
    fresh: Mapping[str, float]
    speed: pd.DataFrame
    largest_errors: Mapping[str, float]
    replays: pd.DataFrame
    tolerance: float
    false_alarm_rate: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        times = records(self.speed)
        speed_s = {row["name"]: {"one": row["one"], "many": row["many"]} for row in times}
        errors = {"largest_errors": dict(self.largest_errors)} if self.largest_errors else {}
        told = {"predictor": self.name, "fresh": dict(self.fresh), "speed_s": speed_s, **errors}
        return {**told, "replays": [dict(row) for row in records(self.replays)]}


def try_out(
    predictor: Predictor,
    steps: pd.DataFrame,
    *,
    fit: FittedModel | None,
    factors: Sequence[float],
    fresh: Mapping[str, float],
    seed: int,
    progress: Callable[[str], None],
) -> PredictorTrial:
    """Try a predictor out."""
    progress("timing answers")
    times = speed(predictor, steps, others=_boosted(steps, progress))
    if fit is not None:
        progress("comparing with the fit")
    errors = {} if fit is None else accuracy(predictor, fit, seed=seed)
    progress("replaying the trace")
    replays = [replay(predictor, steps, factor=factor) for factor in (1.0, *factors)]
    table = pd.DataFrame([{"name": name, **seconds} for name, seconds in times.items()])
    base = times[EQUATION]
    settings = predictor.monitor.settings
    return PredictorTrial(
        name=predictor.provenance.name,
        fresh=fresh,
        speed=table.assign(one_ratio=table["one"] / base["one"], many_ratio=table["many"] / base["many"]),
        largest_errors=errors,
        replays=pd.DataFrame(replays, dtype=object),
        tolerance=predictor.monitor.tolerance,
        false_alarm_rate=settings.false_alarm_rate,
    )


def _boosted(
    steps: pd.DataFrame, progress: Callable[[str], None]
) -> dict[str, Callable[[Floats, Floats], object]]:
    """Return LightGBM's `predict`, if it is installed: a function of arrays of B and S."""
    if find_spec("lightgbm") is None:
        progress("LightGBM is not installed: left out")
        return {}
    lightgbm: Any = import_module("lightgbm")
    table = steps[["batch_size", "total_tokens"]].to_numpy(float)
    data = lightgbm.Dataset(table, steps["latency_ms"].to_numpy(float))
    booster = lightgbm.train({"verbosity": -1, "num_threads": 1}, data, num_boost_round=100)
    return {"LightGBM, 100 trees": lambda b, s: booster.predict(np.column_stack([b, s]), num_threads=1)}


def replay(predictor: Predictor, steps: pd.DataFrame, *, factor: float = 1.0) -> dict[str, Any]:
    """Show a trace to the predictor step by step, all latencies from the middle on `factor` times as long.

    The predictor is reset before and after; it is told of each step what it asks for besides requests and
    tokens, where the trace holds it. ``alarms_before`` and ``alarms_after`` are alarms in the first
    half and in the second, each cleared so that the next can come; ``delay`` is of steps from the middle to
    the first after it. ``level`` as estimated at the end. ``coverage`` of the 90 % band of the corrected
    answers, over the whole trace, and ``coverage_uncorrected`` of the fit's own; ``anomalous_share`` of steps
    flagged. ``largest_evidence``: over the alarm's threshold, whichever kind, in the first half: 1 is an
    alarm.
    """
    monitor, middle = predictor.monitor, len(steps) // 2
    monitor.reset()
    b, s = (steps[name].to_numpy(np.float64) for name in ("batch_size", "total_tokens"))
    x = steps["latency_ms"].to_numpy(np.float64) * np.where(np.arange(len(steps)) < middle, 1.0, factor)
    told = [name for name in (*predictor.loads, "num_prefill_reqs") if name in steps and predictor.loads]
    given: Any = {name: steps[name].to_numpy(np.float64) for name in told}
    each: list[Any] = [dict(zip(told, row, strict=True)) for row in steps[told].to_numpy(np.float64).tolist()]
    alarms: list[int] = []
    below, anomalous, largest = [], 0, 0.0
    for number, step in enumerate(zip(b.tolist(), s.tolist(), x.tolist(), strict=True)):
        seen = predictor.observe(*step, **each[number])
        if not seen.extrapolation:
            below.append(seen.probability_below)
            anomalous += seen.anomalous
        if number < middle:
            largest = max(largest, *monitor.evidence.values())
        if seen.alarm is not None:
            alarms.append(number)
            monitor.clear_alarm()
    level = monitor.level
    monitor.reset()
    fits = ~predictor.extrapolation(b, s, **given)
    inside: Any = {name: values[fits] for name, values in given.items()}
    own = predictor.probability_below(b[fits], s[fits], x[fits], **inside)
    late = [number - middle for number in alarms if number >= middle]
    return {
        "factor": factor,
        "num_steps": len(steps),
        "alarms_before": len(alarms) - len(late),
        "alarms_after": len(late),
        "delay": late[0] if late else None,
        "level": level,
        "coverage": float((np.abs(np.array(below) - 0.5) < 0.45).mean()),
        "coverage_uncorrected": float((np.abs(own - 0.5) < 0.45).mean()),
        "anomalous_share": anomalous / max(len(below), 1),
        "largest_evidence": largest,
    }


def accuracy(predictor: Predictor, fit: FittedModel, *, seed: int, num_steps: int = 500) -> dict[str, float]:
    """Return the largest relative errors over random steps of the region, against every posterior draw.

    ``mean``, one entry a quantile such as ``q0.99`` (relative to it, or to 5 % of the mean where it is less),
    and ``probability`` (absolute, at these quantiles).
    """
    rng = np.random.default_rng(seed)
    points = fit.region.random_steps(rng, num_steps)
    if fit.model.columns != SIZES or effects_of(fit.model):  # levels are of whole numbers
        points = np.rint(points)
    steps = pd.DataFrame(points, columns=["batch_size", "total_tokens"])
    b, s = points.T
    mean = fit.mean_latency(steps, max_draws=None).mean(("chain", "draw")).to_numpy()
    exact = fit.quantile(steps, LEVELS, max_draws=None).transpose("quantile", "step").to_numpy()
    found = {"mean": float(np.abs(predictor.mean_latency(b, s) / mean - 1.0).max())}
    worst = 0.0
    for q, x in zip(LEVELS, exact, strict=True):
        error = np.abs(predictor.quantile(b, s, q) - x) / np.maximum(x, 0.05 * mean)
        found[f"q{q:g}"] = float(error.max())
        if (x > 0).any():
            error = np.abs(predictor.probability_below(b, s, x) - q)[x > 0]
            worst = max(worst, float(error.max()))
    return found | {"probability": worst}


def speed(
    predictor: Predictor, steps: pd.DataFrame, *, others: dict[str, Callable[[Floats, Floats], object]]
) -> dict[str, dict[str, float]]:
    """Return seconds a call: ``one`` step and ``many`` (`NUM_MANY`) steps, the best of five runs.

    The steps are drawn from with replacement; those beyond the tables are left out. `others` are functions of
    arrays of B and S to time beside it.
    """
    b, s = (steps[name].to_numpy(np.float64) for name in ("batch_size", "total_tokens"))
    fits = (b <= predictor.max_batch_size) & (s <= predictor.max_total_tokens)
    chosen = np.random.default_rng(0).integers(int(fits.sum()), size=NUM_MANY)
    b, s = b[fits][chosen], s[fits][chosen]
    x = predictor.mean_latency(b, s)
    questions: dict[str, Callable[..., object]] = {
        "mean_latency": lambda b, s, x: predictor.mean_latency(b, s),
        "quantile": lambda b, s, x: predictor.quantile(b, s, 0.99),
        "probability_below": predictor.probability_below,
        "extrapolation": lambda b, s, x: predictor.extrapolation(b, s),
    }
    first = float(b[0]), float(s[0]), float(x[0])
    found = {name: _times(partial(ask, *first), partial(ask, b, s, x)) for name, ask in questions.items()}
    found["observe"] = _times(partial(predictor.observe, *first), None)
    predictor.monitor.reset()
    for name, ask in {EQUATION: equation, **others}.items():
        found[name] = _times(partial(ask, b[:1], s[:1]), partial(ask, b, s))
    return found


def equation(batch_size: Floats, total_tokens: Floats) -> object:
    """Evaluate the saturation equation as a least-squares fit predicts: one set of parameters, a mean."""
    return latency_ms(batch_size, total_tokens, **_PLAUSIBLE)


def _times(one: Callable[[], object], many: Callable[[], object] | None) -> dict[str, float]:
    return {"one": _best(one, _NUM_SINGLE), "many": _best(many, 1) if many else float("nan")}


def _best(call: Callable[[], object], times: int) -> float:
    found = []
    call()
    for _ in range(_NUM_REPEATS):
        count = times
        start = time.perf_counter()
        while count:
            call()
            count -= 1
        found.append((time.perf_counter() - start) / times)
    return min(found)
