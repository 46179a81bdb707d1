"""How much of a fit's error a richer model would explain: answers that are known, and silence."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bayes_sched.checks.discrepancy import (
    Discrepancy,
    estimate_discrepancy,
    further_columns,
    further_effects,
    richer_models,
)
from bayes_sched.model.likelihood import effects_of
from bayes_sched.model.protocol import load_model
from bayes_sched.posterior.fitted import FittedModel
from tests.richer_fit import STEPS, richer_fit, without_context
from tests.synthetic_fit import simulated_steps, synthetic_fit

CONTEXT, KV_CACHE, STAIRCASE = "saturation_context", "saturation_kv_cache", "saturation_staircase"


@pytest.fixture(scope="module")
def plain() -> FittedModel:
    return synthetic_fit(spread=1e-3)


def estimated(fit: FittedModel, steps: pd.DataFrame) -> Discrepancy:
    found = estimate_discrepancy(fit, steps)
    assert found is not None
    return found


def with_context(steps: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """The steps with columns of context that have nothing to do with their latencies."""
    rng = np.random.default_rng(seed)
    prefill = (steps["total_tokens"] > steps["batch_size"]).astype(np.int64)
    chunk = (steps["total_tokens"] - steps["batch_size"] + 1) * prefill
    return steps.assign(
        num_prefill_reqs=prefill,
        context_tokens=steps["batch_size"] * rng.integers(500, 4000, len(steps)),
        prefill_pairs=chunk * rng.integers(0, 4000, len(steps)) + chunk * (chunk + 1) // 2,
    )


def test_the_richer_models_of_one_are_those_with_all_it_has_and_more() -> None:
    names = [model.name for model in richer_models(load_model("saturation"))]
    assert names.index(CONTEXT) < names.index(STAIRCASE)
    assert [model.name for model in richer_models(load_model(CONTEXT))] == [STAIRCASE]
    assert richer_models(load_model(STAIRCASE)) == []


def test_what_a_richer_model_knows_besides() -> None:
    plain, context, staircase = (load_model(name) for name in ("saturation", CONTEXT, STAIRCASE))
    assert further_columns(plain, staircase) == ("context_tokens", "prefill_pairs")
    assert further_columns(context, staircase) == ()
    assert further_effects(context, staircase) == effects_of(staircase)
    assert further_effects(plain, context) == ()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_steps", [150, 3000])
def test_steps_of_the_model_itself_leave_nothing_to_say(
    num_steps: int, seed: int, plain: FittedModel
) -> None:
    found = estimated(plain, with_context(simulated_steps(num_steps, seed=seed), seed=seed))
    assert (found.richer, found.advice) == (None, "")
    assert found.error_ms > 0.0


def test_context_that_takes_time_is_found_with_its_share(plain: FittedModel) -> None:
    steps = with_context(simulated_steps(3000, seed=1), seed=1)
    centred = steps["context_tokens"] - 2250 * steps["batch_size"]
    added = 5e-5 * centred
    noise = steps["latency_ms"].to_numpy() - plain.mean_latency(steps).mean(("chain", "draw")).to_numpy()
    expected = 1.0 - np.abs(noise).mean() / np.abs(noise + added).mean()
    found = estimated(plain, steps.assign(latency_ms=steps["latency_ms"] + added))
    assert expected > 0.2
    assert found.richer == CONTEXT
    assert found.context_share == pytest.approx(expected, abs=0.05)
    assert found.staircase_share == 0.0
    assert f"fit it with the model {CONTEXT}" in found.advice


def test_the_use_of_the_cache_stands_for_the_context_where_a_trace_tells_no_more(plain: FittedModel) -> None:
    steps = with_context(simulated_steps(3000, seed=1), seed=1)
    steps["kv_cache_usage"] = steps["context_tokens"] / 200_000
    steps["latency_ms"] += 5e-5 * (steps["context_tokens"] - 2250 * steps["batch_size"])
    all_known, usage_alone = (
        estimated(plain, steps),
        estimated(plain, without_context(steps)),
    )
    assert (all_known.richer, usage_alone.richer) == (CONTEXT, KV_CACHE)
    assert usage_alone.context_share == pytest.approx(all_known.context_share, abs=0.02)


def test_context_that_saves_time_is_not_what_the_richer_model_says(plain: FittedModel) -> None:
    steps = with_context(simulated_steps(3000, seed=1), seed=1)
    saved = 5e-5 * (steps["context_tokens"] - 2250 * steps["batch_size"])
    found = estimated(plain, steps.assign(latency_ms=steps["latency_ms"] - saved))
    assert found.context_share < 0.02


def test_a_staircase_is_found_with_its_share(plain: FittedModel) -> None:
    steps = with_context(simulated_steps(4000, seed=2), seed=2)
    is_high = (steps["num_prefill_reqs"] > 0) & steps["total_tokens"].between(129, 256)
    mean_ms = plain.mean_latency(steps).mean(("chain", "draw")).to_numpy()
    added = 0.6 * mean_ms * is_high
    noise = steps["latency_ms"].to_numpy() - mean_ms
    expected = 1.0 - np.abs(noise).mean() / np.abs(noise + added).mean()
    found = estimated(plain, steps.assign(latency_ms=steps["latency_ms"] + added))
    assert expected > 0.3
    assert found.richer == STAIRCASE
    assert found.share == pytest.approx(expected, abs=0.05)
    assert found.context_share < 0.05


def test_a_fit_with_context_is_told_of_the_staircase_alone() -> None:
    found = estimated(richer_fit(CONTEXT), STEPS)
    assert found.richer == STAIRCASE
    assert found.context_share == 0.0
    assert found.staircase_share > 0.5
    assert "context explains" not in found.advice


def test_a_model_that_no_shipped_one_extends_has_nothing_beyond_it() -> None:
    assert estimate_discrepancy(richer_fit(), STEPS) is None


def test_a_trace_without_context_is_told_what_to_record(plain: FittedModel) -> None:
    steps = without_context(STEPS)
    found = estimated(plain, steps)
    assert found.advice == ""
    assert found.lacking == ("context_tokens", "prefill_pairs")
    assert "context_tokens and prefill_pairs" in found.text


def test_steps_that_lack_context_here_and_there_are_left_out(plain: FittedModel) -> None:
    steps = with_context(simulated_steps(600, seed=3), seed=3)
    gaps = steps.assign(context_tokens=steps["context_tokens"].where(steps.index % 3 > 0))
    assert estimate_discrepancy(plain, gaps) == estimate_discrepancy(plain, gaps.dropna())


def test_the_advice_reads_as_a_sentence() -> None:
    found = Discrepancy(error_ms=1.234, context_share=0.55, staircase_share=0.2, richer=STAIRCASE)
    assert found.advice == (
        "Of the error left by this model (1.23 ms a step on average), the steps' context explains about 55% "
        "and the staircase of latencies another 20%: fit it with the model "
        "saturation_staircase."
    )
    assert found.share == pytest.approx(0.75)
