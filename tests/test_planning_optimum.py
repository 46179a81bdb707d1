"""The most throughput under a limit, and where the time of a step goes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bayes_sched.planning.settings import ANY_STEP, DECODES, Optimum, optimize_steps, term_table
from bayes_sched.steps import steps_arrays
from tests.conftest import known
from tests.synthetic_fit import server, synthetic_metadata, with_trace

DRAWS = 100
SLO_MS = 20.0


@pytest.fixture(scope="module")
def plan() -> Optimum:
    return optimize_steps(server(), slo_ms=SLO_MS, max_draws=DRAWS)


def all_quantiles(b: Any, s: Any) -> np.ndarray[Any, Any]:
    """The 99 % quantile of every draw at every step, dims (draw, step)."""
    draws = server().quantile_draws(steps_arrays(b, s), 0.99, max_draws=DRAWS)
    return draws.to_numpy().reshape(-1, draws.sizes["step"])


def test_every_step_up_to_the_best_settings_keeps_the_limit(plan: Optimum) -> None:
    best = known(plan.best[ANY_STEP])
    rng = np.random.default_rng(0)
    b = rng.integers(1, best["batch_size"] + 1, 200)
    s = np.maximum(b, rng.integers(1, best["total_tokens"] + 1, 200))
    b, s = np.append(b, best["batch_size"]), np.append(s, best["total_tokens"])
    assert (all_quantiles(b, s).max(axis=1) <= SLO_MS * 1.002).mean() >= 0.945


def test_no_larger_decode_batch_would_keep_it(plan: Optimum) -> None:
    best = known(plan.best[DECODES])
    numbers = plan.frontier[plan.frontier["case"] == DECODES]["batch_size"]
    larger = int(numbers[numbers > best["batch_size"]].min())
    assert (all_quantiles([larger], [larger])[:, 0] <= SLO_MS).mean() < 0.95


def test_the_frontier_rises_with_the_limit(plan: Optimum) -> None:
    for _, table in plan.frontier.groupby("case"):
        assert (np.diff(table["limit_ms"]) >= 0.0).all()
        assert (np.diff(table["tokens_per_s"]) > 0.0).all()
        assert (table["tokens_per_s_lower"] <= table["tokens_per_s"]).all()
        assert (table["tokens_per_s"] <= table["tokens_per_s_upper"]).all()


def test_more_confidence_costs_throughput(plan: Optimum) -> None:
    bold = optimize_steps(server(), slo_ms=SLO_MS, confidence=0.5, max_draws=DRAWS)
    assert known(bold.best[DECODES])["batch_size"] >= known(plan.best[DECODES])["batch_size"]
    assert bold.floor_ms < plan.floor_ms


def test_a_limit_below_the_floor_is_answered_with_the_floor() -> None:
    refused = optimize_steps(server(), slo_ms=0.5, max_draws=20)
    assert not refused.is_promised
    assert "No settings keep 0.5 ms: the quickest need" in refused.text
    assert optimize_steps(server(), slo_ms=1.001 * refused.floor_ms, max_draws=20).is_promised


def test_a_fit_that_has_not_converged_plans_nothing() -> None:
    bad = replace(server(), metadata=synthetic_metadata(converged=False))
    assert not optimize_steps(bad, slo_ms=SLO_MS, max_draws=20).is_promised
    assert optimize_steps(bad, slo_ms=SLO_MS, max_draws=20, accept_unconverged=True).is_promised


def test_the_terms_sum_to_the_latency() -> None:
    table = known(term_table(server(), 16, 300, probability=0.9, max_draws=1))
    whole = float(server().mean_latency(steps_arrays(16, 300), max_draws=1).to_numpy().ravel()[0])
    for kind in ("term", "group"):
        rows = table[table["kind"] == kind]
        # One draw of each chain; medians of four add up to about the median of the sum.
        assert rows["share"].sum() == pytest.approx(1.0, abs=0.05)
        assert rows["p_largest"].sum() == pytest.approx(1.0)
    assert table[table["kind"] == "term"]["latency_ms"].sum() == pytest.approx(whole, rel=0.1)


def test_where_requests_cost_most_they_are_named() -> None:
    table = known(term_table(server(tau_B=600.0), 16, 16, probability=0.9, max_draws=100))
    groups = table[table["kind"] == "group"].set_index("name")
    assert groups["share"].idxmax() == "requests"
    assert groups.loc["requests", "p_largest"] == 1.0


def test_a_plan_is_plain_values(plan: Optimum) -> None:
    back = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert back["best"][ANY_STEP]["batch_size"] >= 1
    assert {row["kind"] for row in back["terms"][ANY_STEP]} == {"group", "term"}
    assert back["settings"][0]["batch_size"] == 1


def test_settings_that_the_trace_contradicts_are_passed_over_and_refusals_are_held_against_it() -> None:
    quick, slow = (
        optimize_steps(with_trace(server(), factor, count=400), slo_ms=SLO_MS, max_draws=DRAWS)
        for factor in (0.5, 2.0)
    )
    assert "By the trace alone, 64 requests: 0 of its 400 steps near that were late" in quick.text
    assert "that CONTRADICTS the limit, and up to 64 is undecided" in quick.text
    assert known(quick.best[DECODES])["batch_size"] < 64
    assert known(slow.contradicted[DECODES])["batch_size"] > 32
    assert slow.best[DECODES] is None
    assert not slow.is_promised
    assert "but the trace speaks against that" in slow.text
    assert slow.to_dict()["doubts"] == list(slow.doubts)
