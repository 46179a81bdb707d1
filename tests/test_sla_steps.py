"""Promises of steps: caps that hold for all steps up to them, risk beside confidence, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from bayes_sched.errors import InputError
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.sla.limits import EXTRAPOLATION_FACTOR, Line, largest_kept, promised, steps_on
from bayes_sched.sla.risk import Objective, risk_map, step_risk
from bayes_sched.sla.steps import StepSLA, step_sla
from bayes_sched.steps import region_of, steps_arrays
from tests.synthetic_fit import synthetic_fit, synthetic_metadata

SLO_MS = 20.0


def server(*, spread: float = 0.05, **factors: float) -> FittedModel:
    """A server whose small batches are not slow, and whose requests cost something; `factors` change it."""
    made = synthetic_fit(spread=spread)
    posterior = made.data["posterior"].to_dataset()
    changed = {name: posterior[name] * f for name, f in ({"k_B": 30.0, "tau_B": 6.0} | factors).items()}
    tree = made.data.copy()
    tree["posterior"] = xr.DataTree(posterior.assign(changed))
    return replace(made, data=tree)


@pytest.fixture(scope="module")
def fit() -> FittedModel:
    return server()


@pytest.fixture(scope="module")
def sla(fit: FittedModel) -> StepSLA:
    return step_sla(fit, slo_ms=SLO_MS, decodes=7)


def all_quantiles(fit: FittedModel, batch_size: Any, total_tokens: Any) -> np.ndarray[Any, Any]:
    """The 99 % quantile of every draw at every step, dims (draw, step)."""
    draws = fit.quantile_draws(steps_arrays(batch_size, total_tokens), 0.99, max_draws=None)
    return draws.to_numpy().reshape(-1, draws.sizes["step"])


def test_the_largest_batch_is_that_of_an_exhaustive_search(fit: FittedModel, sla: StepSLA) -> None:
    batches = np.arange(1, 65)
    running = np.maximum.accumulate(all_quantiles(fit, batches, batches), axis=1)
    kept = (running <= SLO_MS).mean(axis=0) >= 0.95
    assert sla.decode_only.promised is not None
    assert 1 < sla.decode_only.promised.number < 64
    assert sla.decode_only.promised.number == batches[kept][-1]


def test_the_largest_budget_is_that_of_an_exhaustive_search(fit: FittedModel, sla: StepSLA) -> None:
    tokens = np.arange(8, 4097)
    running = np.maximum.accumulate(all_quantiles(fit, 8, tokens), axis=1)
    kept = (running <= SLO_MS).mean(axis=0) >= 0.95
    assert sla.token_budget is not None
    assert sla.token_budget.promised is not None
    assert sla.token_budget.promised.number == tokens[kept][-1]
    assert sla.token_budget.limited_by == "slo"


def test_a_cap_is_not_promised_over_a_slower_small_batch(fit: FittedModel) -> None:
    def slow_first(steps: xr.Dataset) -> np.ndarray[Any, Any]:
        batch_size = steps["batch_size"].to_numpy()
        return np.where(batch_size == 3, 30.0, 10.0)[None, :]

    def kept(running: Any) -> Any:
        return running[0] <= SLO_MS

    assert largest_kept([Line()], [(1, 30)], evaluate=slow_first, is_kept=kept) == (2,)
    assert largest_kept([Line()], [(3, 30)], evaluate=slow_first, is_kept=kept) == (None,)


def test_small_slow_batches_stop_a_cap_of_the_saturation_equation() -> None:
    limit = step_sla(server(k_B=1.0, tau_B=1.0), slo_ms=SLO_MS).decode_only
    assert limit.promised is None
    assert limit.alone is not None
    assert 1 < limit.alone[0] < limit.alone[1] == 67
    assert "not even the smallest" in limit.text
    assert f"steps of {limit.alone[0]} to 67 would keep it" in limit.text


@pytest.mark.parametrize("stop", [1, 2, 33, 34, 777, 4096])
def test_the_search_finds_every_end(stop: int) -> None:
    def rising(steps: xr.Dataset) -> np.ndarray[Any, Any]:
        return steps["total_tokens"].to_numpy()[None, :].astype(float)

    lines = [Line(), Line(1)]
    found = largest_kept(
        lines, [(1, 4096), (1, 5)], evaluate=rising, is_kept=lambda running: running[0] <= stop + 0.5
    )
    assert found == (stop, min(stop, 5))


def test_risk_and_confidence_are_what_the_draws_say(fit: FittedModel) -> None:
    steps = steps_arrays([8, 8, 40], [8, 900, 40])
    objective = Objective(limit_ms=SLO_MS)
    risk = step_risk(fit, steps, objective, max_draws=None)
    below = fit.probability_below_draws(steps, SLO_MS, max_draws=None)
    np.testing.assert_allclose(risk["probability"], below.mean(("chain", "draw")))
    np.testing.assert_allclose(risk["lower"], below.quantile(0.05, ("chain", "draw")))
    quantiles = fit.quantile_draws(steps, 0.99, max_draws=None)
    np.testing.assert_allclose(risk["confidence"], (quantiles <= SLO_MS).mean(("chain", "draw")))


def test_more_knowledge_raises_confidence_and_leaves_risk() -> None:
    vague, sure = server(spread=0.1), server(spread=0.005)
    steps, objective = steps_arrays(30, 30), Objective(limit_ms=SLO_MS)
    wide, narrow = (step_risk(f, steps, objective).isel(step=0) for f in (vague, sure))
    assert float(narrow["upper"] - narrow["lower"]) < 0.2 * float(wide["upper"] - wide["lower"])
    assert float(narrow["probability"]) == pytest.approx(float(wide["probability"]), abs=0.05)


def test_a_higher_confidence_or_quantile_promises_less(fit: FittedModel) -> None:
    def budget(**changes: float) -> int:
        limit = step_sla(fit, slo_ms=SLO_MS, decodes=7, **changes).token_budget  # type: ignore[arg-type]
        assert limit is not None
        assert limit.promised is not None
        return limit.promised.number

    assert budget(confidence=0.99) < budget(confidence=0.9) < budget(confidence=0.5)
    assert budget(quantile=0.999) < budget(quantile=0.9)


def test_a_point_estimate_allows_what_breaks_half_of_the_time(sla: StepSLA) -> None:
    limit = sla.token_budget
    assert limit is not None
    assert limit.point is not None
    assert limit.promised is not None
    assert limit.point.number > limit.promised.number
    assert limit.point.probability == pytest.approx(0.5, abs=0.02)
    assert limit.promised.probability > 0.99
    assert "A point estimate allows" in limit.text


def test_the_frontier_is_that_of_single_lines(fit: FittedModel, sla: StepSLA) -> None:
    row = sla.frontier.iloc[10]
    line = Line(int(row["batch_size"]))
    span = line.span(fit.region)
    assert span == (row["first_tokens"], row["last_tokens"])
    assert promised(fit, [line], [span], sla.objective, max_draws=2000) == (row["total_tokens"],)
    at = step_risk(
        fit, steps_arrays(row["batch_size"], row["total_tokens"]), sla.objective, max_draws=2000
    ).isel(step=0)
    assert row["probability"] == pytest.approx(float(at["probability"]), abs=1e-3)


def test_nothing_outside_the_data_is_promised_unless_asked(fit: FittedModel) -> None:
    inside = step_sla(fit, slo_ms=500.0, batch_size=100)
    assert inside.decode_only.promised is not None
    assert inside.decode_only.promised.number == 67  # 64 and the tolerance of the region
    assert inside.decode_only.limited_by == "data"
    assert "the trace holds no larger steps" in inside.text
    assert inside.decode_only.asked_is_kept is False
    assert not inside.is_promised
    outside = step_sla(fit, slo_ms=500.0, batch_size=100, extrapolate=True)
    assert outside.is_promised
    assert outside.decode_only.last == EXTRAPOLATION_FACTOR * 67 + 1
    assert outside.decode_only.promised is not None
    assert outside.decode_only.promised.extrapolation
    assert "EXTRAPOLATION" in outside.text


def test_steps_that_were_never_seen_are_not_promised(fit: FittedModel) -> None:
    answer = step_sla(fit, slo_ms=500.0, decodes=500)
    assert answer.token_budget is not None
    assert answer.token_budget.limited_by == "nothing seen"
    assert answer.token_budget.promised is None
    assert not answer.is_promised


def test_a_span_is_all_that_a_trace_covers_of_a_line() -> None:
    region = region_of(np.array([6, 24, 1, 28]), np.array([6, 24, 512, 512]))
    assert Line().span(region) == (6, 25)
    assert Line(1).span(region) is not None
    assert Line(40).span(region) is None
    numbers = np.arange(1, 600)
    steps = steps_on([Line(10)], np.maximum(numbers, 10)[None, :])
    seen = steps["total_tokens"].to_numpy()[region.contains(steps["batch_size"], steps["total_tokens"])]
    assert Line(10).span(region) == (seen.min(), seen.max())


def test_a_limit_below_the_floor_is_an_answer(fit: FittedModel) -> None:
    answer = step_sla(fit, slo_ms=0.5)
    assert not answer.is_promised
    assert answer.is_below_floor
    assert "No step of this server keeps 0.5 ms" in answer.text
    possible = step_sla(fit, slo_ms=1.01 * answer.floor_ms)
    assert not possible.is_below_floor


def test_what_was_asked_decides_alone(fit: FittedModel, sla: StepSLA) -> None:
    assert sla.decode_only.promised is not None
    most = sla.decode_only.promised.number
    assert step_sla(fit, slo_ms=SLO_MS, batch_size=most).is_promised
    assert not step_sla(fit, slo_ms=SLO_MS, batch_size=most + 1).is_promised
    assert not step_sla(fit, slo_ms=SLO_MS, batch_size=most, decodes=7, token_budget=4000).is_promised


def test_a_fit_that_has_not_converged_promises_nothing() -> None:
    fit = replace(server(), metadata=synthetic_metadata(converged=False))
    refused = step_sla(fit, slo_ms=SLO_MS)
    assert refused.decode_only.promised is not None
    assert not refused.is_promised
    assert "has not converged" in refused.text
    assert step_sla(fit, slo_ms=SLO_MS, accept_unconverged=True).is_promised


def test_an_answer_is_plain_values(sla: StepSLA) -> None:
    text = json.dumps(sla.to_dict(), allow_nan=False)
    back = json.loads(text)
    assert back["decode_only"]["promised"]["number"] > 0
    assert len(back["frontier"]) == len(sla.table)
    assert back["is_promised"] is True


def test_the_map_is_risk_over_a_grid(fit: FittedModel) -> None:
    found = risk_map(fit, Objective(limit_ms=SLO_MS), max_draws=100, num=6)
    assert found["probability"].dims == ("batch_size", "total_tokens")
    assert bool(found["probability"].isnull().equals(~found["possible"]))
    assert {"probability", "lower", "upper", "confidence", "extrapolation"} <= set(found)


class NeedsContext:
    """The saturation model, as one that needs a further column."""

    columns = ("batch_size", "total_tokens", "context_tokens")

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slo_ms": -1.0}, "a limit of -1 ms"),
        ({"slo_ms": float("nan")}, "a limit of nan ms"),
        ({"slo_ms": float("inf")}, "a limit of inf ms"),
        ({"quantile": 1.0}, "quantile = 1: give a probability between 0 and 1"),
        ({"confidence": 0.0}, "confidence = 0: give a probability between 0 and 1"),
        ({"probability": 2.0}, "probability = 2: give a probability between 0 and 1"),
        ({"batch_size": 0}, "batch_size = 0: give at least 1 request"),
        ({"decodes": -1}, "decodes = -1"),
        ({"token_budget": 100}, "give their number too"),
        ({"decodes": 100, "token_budget": 100}, "leaves no token for a prefill"),
        ({"max_draws": 0}, "max_draws = 0"),
    ],
)
def test_bad_input_is_refused(fit: FittedModel, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        step_sla(fit, **{"slo_ms": SLO_MS, **changes})


def test_a_model_of_further_columns_is_refused(fit: FittedModel) -> None:
    further: Any = NeedsContext(fit.model)
    with pytest.raises(InputError, match="needs context_tokens of every step"):
        step_sla(replace(fit, model=further), slo_ms=SLO_MS)
