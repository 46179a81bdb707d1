"""What a scheduler asks: the budget of its next step, and which server should take a request."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from bayes_sched.errors import InputError
from bayes_sched.planning.next_step import (
    ServerLoad,
    StepBudget,
    StepBudgets,
    choose_server,
    plan_next_step,
)
from bayes_sched.predictor.compile import compile_predictor
from bayes_sched.predictor.predictor import Predictor
from bayes_sched.steps import steps_arrays
from tests.comparison_fits import with_groups
from tests.conftest import known
from tests.synthetic_fit import server, with_trace

SLO_MS = 20.0


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return compile_predictor(server(), max_draws=40)


@pytest.fixture(scope="module")
def budgets(predictor: Predictor) -> StepBudgets:
    return StepBudgets.of_predictor(predictor, quantile=0.95)


def test_a_budget_keeps_the_limit_and_one_token_more_would_not(
    predictor: Predictor, budgets: StepBudgets
) -> None:
    found = 0
    for decodes in range(0, 60, 3):
        budget = budgets.next_step(slo_ms=SLO_MS, decodes=decodes, waiting_tokens=100_000)
        if budget.prefill_tokens:
            found += 1
            assert predictor.probability_below(decodes + 1, budget.total_tokens, SLO_MS) >= 0.95 - 0.001
            more = 1.02 * budget.total_tokens + 1
            assert predictor.probability_below(decodes + 1, more, SLO_MS) < 0.95
        assert budget.is_kept == bool(budget.prefill_tokens) or decodes > 0
    assert found > 5


def test_a_budget_of_the_fit_is_as_sure_as_asked() -> None:
    budgets = StepBudgets.of_fit(server(), quantile=0.95, confidence=0.9, max_batch_size=16, max_tokens=1024)
    for decodes in (0, 5, 15):
        budget = budgets.next_step(slo_ms=SLO_MS, decodes=decodes, waiting_tokens=5000)
        steps = steps_arrays(decodes + 1, budget.total_tokens)
        kept = server().quantile_draws(steps, 0.95).to_numpy() <= SLO_MS * 1.0005
        assert kept.mean() >= 0.9 - 0.01


@pytest.mark.parametrize(
    ("slo_ms", "decodes", "waiting", "answer"),
    [
        (SLO_MS, 4, 3, StepBudget(7, 3, True)),  # no larger than what waits
        (SLO_MS, 4, 0, StepBudget(4, 0, True)),
        (0.01, 4, 50, StepBudget(4, 0, False)),  # decodes run where nothing keeps the limit
        (SLO_MS, 10_000, 0, StepBudget(10_000, 0, False)),
    ],
)
def test_decodes_run_in_any_case_and_prompts_as_far_as_they_wait(
    budgets: StepBudgets, slo_ms: float, decodes: int, waiting: int, answer: StepBudget
) -> None:
    assert budgets.next_step(slo_ms=slo_ms, decodes=decodes, waiting_tokens=waiting) == answer


def test_more_waiting_requests_never_get_more_tokens(budgets: StepBudgets) -> None:
    asked: dict[str, Any] = {"slo_ms": SLO_MS, "decodes": 8, "waiting_tokens": 9000}
    totals = [budgets.next_step(**asked, prefills=n).total_tokens for n in (1, 2, 4, 8)]
    assert totals == sorted(totals, reverse=True)


def test_a_server_that_has_become_slow_gets_smaller_steps(predictor: Predictor, tmp_path: Path) -> None:
    predictor.save(tmp_path / "predictor.npz")
    predictor = Predictor.load(tmp_path / "predictor.npz")
    budgets = StepBudgets.of_predictor(predictor)
    asked: dict[str, Any] = {"slo_ms": SLO_MS, "decodes": 8, "waiting_tokens": 9000}
    before = budgets.next_step(**asked).total_tokens
    for _ in range(300):
        predictor.observe(9, 256, 1.5 * predictor.mean_latency(9, 256) / predictor.level)
    assert budgets.next_step(**asked).total_tokens < before


@pytest.mark.parametrize(
    "changes", [{"decodes": -1}, {"waiting_tokens": -1}, {"decodes": 0}, {"prefills": 0}]
)
def test_an_impossible_step_is_refused(budgets: StepBudgets, changes: dict[str, int]) -> None:
    with pytest.raises(InputError, match="a step of"):
        budgets.next_step(slo_ms=SLO_MS, **{"decodes": 1, **changes})


def test_the_idle_server_is_chosen(predictor: Predictor) -> None:
    loads = [ServerLoad(predictor, 20, 3000, 512), ServerLoad(predictor, 2, 0, 512)]
    number, expected_ms, probabilities = choose_server(loads, prompt_tokens=400)
    assert (number, probabilities) == (1, None)
    assert expected_ms[1] < expected_ms[0]


def test_the_server_that_keeps_a_limit_more_surely_is_chosen(predictor: Predictor) -> None:
    erratic = compile_predictor(server(sigma_rel=4.0), max_draws=40)
    loads = [ServerLoad(erratic, 3, 0, 512), ServerLoad(predictor, 4, 0, 512)]
    limit = 1.3 * predictor.mean_latency(5, 404)
    chosen = choose_server(loads, prompt_tokens=400, limit_ms=limit)
    assert chosen.number == 1
    assert chosen.expected_ms[0] < chosen.expected_ms[1]
    assert known(chosen.probabilities)[1] == pytest.approx(predictor.probability_below(5, 404, limit))


def test_the_time_of_a_request_is_that_of_its_steps(predictor: Predictor) -> None:
    chosen = choose_server([ServerLoad(predictor, 4, 100, 104)], prompt_tokens=150, output_tokens=3)
    steps = [(5, 104), (5, 104), (5, 54), (5, 5), (5, 5)]
    assert chosen.expected_ms[0] == pytest.approx(sum(predictor.mean_latency(b, s) for b, s in steps))


def test_a_server_without_room_for_a_prefill_is_not_chosen(predictor: Predictor) -> None:
    loads = [ServerLoad(predictor, 16, 0, 16), ServerLoad(predictor, 30, 4000, 512)]
    chosen = choose_server(loads, prompt_tokens=10, limit_ms=1.0)
    assert chosen.number == 1
    assert math.isinf(chosen.expected_ms[0])
    assert np.isfinite(chosen.expected_ms[1])


def test_no_server_is_no_choice(predictor: Predictor) -> None:
    for loads, prompt, message in (
        ([], 1, "no server"),
        ([ServerLoad(predictor, 1, 0, 64)], 0, "a request of 0 prompt"),
        ([ServerLoad(predictor, -1, 0, 64)], 5, "-1 decodes"),
    ):
        with pytest.raises(InputError, match=message):
            choose_server(loads, prompt_tokens=prompt)


def test_a_step_that_the_trace_contradicts_is_not_promised() -> None:
    asked: dict[str, Any] = {"slo_ms": SLO_MS, "decodes": 16, "waiting_tokens": 50}
    assert plan_next_step(with_trace(server()), **asked).is_promised
    slow = plan_next_step(with_trace(server(), 2.0), **asked)
    assert slow.budget.is_kept
    assert not slow.is_promised
    assert slow.notes[0] == "The trace is slower there than the model."
    assert any("The trace contradicts the model: steps of" in note for note in slow.notes)


def test_a_scheduler_that_the_model_lets_stand_still_is_told_what_the_trace_did() -> None:
    asked: dict[str, Any] = {"slo_ms": SLO_MS, "decodes": 64}
    still = plan_next_step(with_trace(server()), **asked)
    assert (still.budget.is_kept, still.is_promised) == (False, False)
    quick = plan_next_step(with_trace(server(), 0.5, count=400), **asked)
    assert (quick.budget.is_kept, quick.is_promised) == (False, True)
    assert any("By the trace alone, 64 requests: 0 of its 400" in note for note in quick.notes)


def test_a_step_like_none_of_the_trace_is_not_promised_unless_that_is_asked_for() -> None:
    """Of 8 requests or more nothing between decode-only steps and 4,096 tokens was seen."""
    cells = server().cells.to_dataframe().query("total_tokens == batch_size or total_tokens == 4096")
    fit = with_groups(server(), cells=xr.Dataset({str(k): ("cell", v.to_numpy()) for k, v in cells.items()}))
    asked: dict[str, Any] = {"slo_ms": SLO_MS, "decodes": 16, "waiting_tokens": 50}
    found = plan_next_step(fit, **asked)
    assert not found.is_promised
    assert found.notes[0] == "The trace holds no such steps."
    assert plan_next_step(fit, **asked, extrapolate=True).is_promised
