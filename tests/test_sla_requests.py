"""Requests: their steps, sums of step times against known distributions and simulation, their promises."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.sla.convolution import SumDistribution, sum_distribution
from bayes_sched.sla.request import RequestSLA, RequestSteps, request_sla
from bayes_sched.steps import steps_arrays
from tests.conftest import known
from tests.synthetic_fit import synthetic_fit, synthetic_metadata, with_trace

REQUEST: dict[str, Any] = {"prompt_tokens": 1500, "output_tokens": 40, "decodes": 15, "token_budget": 512}


@pytest.fixture(scope="module")
def fit() -> FittedModel:
    return synthetic_fit()


@pytest.fixture(scope="module")
def sla(fit: FittedModel) -> RequestSLA:
    return request_sla(fit, **REQUEST, ttft_ms=60.0, tpot_ms=8.0, e2e_ms=300.0)


def distribution(mean: Any, scale: Any, nu: float, counts: Any) -> SumDistribution:
    """The sum for one draw."""
    return sum_distribution(
        np.array([mean], dtype=float), np.array([scale], dtype=float), np.array([nu]), np.array(counts)
    )


@pytest.mark.parametrize("nu", [1.2, 2.6, 30.0])
def test_one_step_is_a_student_t(nu: float) -> None:
    one, known = distribution([50.0], [1.5], nu, [1]), stats.t(nu, loc=50.0, scale=1.5)
    x = np.linspace(30.0, 80.0, 101)
    np.testing.assert_allclose(one.cdf_draws(x)[0], known.cdf(x), rtol=0, atol=2e-4)
    assert one.quantile_draws(0.99)[0] == pytest.approx(known.ppf(0.99), rel=1e-3)


@pytest.mark.parametrize("counts", [[1, 1], [3, 1], [8, 1], [9, 300], [2, 3000], [1, 70000]])
def test_sums_of_nearly_normal_steps_are_normal(counts: list[int]) -> None:
    mean, scale, n = np.array([50.0, 20.0]), np.array([2.0, 0.5]), np.array(counts)
    known = stats.norm(float(mean @ n), float(np.sqrt(scale**2 @ n)))
    x = known.mean() + known.std() * np.linspace(-5.0, 5.0, 101)
    found = distribution(mean, scale, 1e6, counts).cdf_draws(x)[0]
    np.testing.assert_allclose(found, known.cdf(x), rtol=0, atol=1e-3)


def test_sums_of_cauchy_steps_are_cauchy() -> None:
    x = 3500.0 + np.linspace(-40.0, 40.0, 81)
    found = distribution([500.0], [0.3], 1.0, [7]).cdf_draws(x)[0]
    np.testing.assert_allclose(found, stats.cauchy(3500.0, 2.1).cdf(x), rtol=0, atol=3e-3)


@pytest.mark.parametrize(
    ("mean", "scale", "nu", "counts"),
    [
        ([50.0, 20.0], [1.5, 0.6], 2.6, [3, 1]),
        ([20.0], [6.0], 1.7, [30]),
        ([60.0, 12.0], [20, 6.0], 1.7, [2, 40]),
    ],
)
def test_sums_agree_with_simulation_where_steps_cannot_be_negative(
    mean: list[float], scale: list[float], nu: float, counts: list[int]
) -> None:
    rng = np.random.default_rng(5)
    num = 40_000
    total = np.zeros(num)
    for m, s, n in zip(mean, scale, counts, strict=True):
        for _ in range(n):
            total += np.maximum(m + s * rng.standard_t(nu, num), 0.0)
    levels = np.array([0.1, 0.5, 0.9, 0.99])
    found = distribution(mean, scale, nu, counts).cdf_draws(np.quantile(total, levels))[0]
    assert np.all(np.abs(found - levels) < 4.5 * np.sqrt(levels * (1 - levels) / num) + 1e-3)


def test_quantiles_invert_probabilities() -> None:
    found = distribution([50.0, 20.0], [1.5, 0.6], 2.6, [3, 20])
    for q in (0.01, 0.5, 0.99):
        assert found.probability_below(found.quantile(q)) == pytest.approx(q, abs=1e-6)
        assert found.quantile(q) == pytest.approx(found.quantile_draws(q)[0], rel=1e-6)
    assert found.quantile(1.0 - 1e-12) == np.inf
    assert found.scaled(0.5).quantile(0.9) == pytest.approx(0.5 * found.quantile(0.9))
    assert found.probability_below(-1.0) == 0.0


@pytest.mark.parametrize(
    ("prompt", "output", "table"),
    [
        (900, 11, [["prefill", 13, 512, 1], ["prefill", 13, 412, 1], ["decode", 13, 13, 10]]),
        (1000, None, [["prefill", 13, 512, 2]]),
        (1001, None, [["prefill", 13, 512, 2], ["prefill", 13, 13, 1]]),
    ],
)
def test_chunks_of_a_prompt_fill_what_the_decodes_leave(
    prompt: int, output: int | None, table: list[list[Any]]
) -> None:
    steps = RequestSteps(prompt_tokens=prompt, output_tokens=output, decodes=12, token_budget=512)
    assert steps.table.to_numpy().tolist() == table
    assert steps.num_prefill_steps == sum(row[3] for row in table if row[0] == "prefill")


def simulated(fit: FittedModel, request: RequestSteps, *, num: int, seed: int) -> dict[str, Floats]:
    """Times of simulated requests: a draw of the parameters each, shared by its steps."""
    table = request.table
    steps = steps_arrays(table["batch_size"], table["total_tokens"])
    mean = fit.mean_latency(steps, max_draws=None)
    scale = fit.model.scale(fit.posterior, mean, steps).transpose(*mean.dims)
    rng = np.random.default_rng(seed)
    draw = rng.integers(0, mean[..., 0].size, num)
    nu = fit.posterior["nu"].to_numpy().ravel()[draw]
    flat = [values.to_numpy().reshape(-1, len(table))[draw] for values in (mean, scale)]
    total = {"prefill": np.zeros(num), "decode": np.zeros(num)}
    for k, (phase, count) in enumerate(zip(table["phase"], table["count"], strict=True)):
        for _ in range(count):
            total[phase] += np.maximum(flat[0][:, k] + flat[1][:, k] * rng.standard_t(nu), 0.0)
    num_decodes = max(1, request.num_decode_steps)
    both = total["prefill"] + total["decode"]
    return {"ttft": total["prefill"], "tpot": total["decode"] / num_decodes, "e2e": both}


def test_quantiles_of_requests_hold_for_simulated_requests(fit: FittedModel, sla: RequestSLA) -> None:
    num = 20_000
    times = simulated(fit, sla.steps, num=num, seed=1)
    for time in sla.times:
        for q in (0.5, 0.9, 0.99):
            share = float(np.mean(times[time.key] <= time.distribution.quantile(q)))
            # 400 of 1,000 draws are used: the quantile of the draws themselves is known to a few percent
            assert abs(share - q) < 4.0 * np.sqrt(q * (1 - q) * (1 / num + 1 / 400))


def test_shared_parameters_make_requests_less_certain_than_independent_steps(sla: RequestSLA) -> None:
    sure = request_sla(synthetic_fit(spread=0.002), **REQUEST, max_draws=100)
    wide, narrow = (
        found.times[2].distribution.quantile(0.95) - found.times[2].distribution.quantile(0.05)
        for found in (sla, sure)
    )
    assert wide > 2.0 * narrow


def test_confidence_is_the_share_of_draws_whose_quantile_keeps_the_limit(sla: RequestSLA) -> None:
    for time in sla.times:
        assert time.limit_ms is not None
        kept = time.distribution.quantile_draws(0.99) <= time.limit_ms
        assert time.confidence == kept.mean()
        assert time.is_kept == (kept.mean() >= 0.95)
        row = time.to_dict()
        assert 0.0 <= row["lower"] <= row["probability"] <= row["upper"] <= 1.0


def test_a_promise_turns_at_the_bound_of_the_quantile(fit: FittedModel, sla: RequestSLA) -> None:
    bound = np.quantile(sla.times[0].distribution.quantile_draws(0.99), 0.95, method="inverted_cdf")
    first_token = {**REQUEST, "output_tokens": None}
    for factor in (0.999, 1.001):
        only = request_sla(fit, **first_token, ttft_ms=factor * bound)
        assert only.is_promised == (factor > 1.0)
        assert [time.key for time in only.times] == ["ttft"]
        assert "Counted from its first step" in only.text


def test_steps_outside_the_data_are_marked_and_not_promised(fit: FittedModel) -> None:
    far: dict[str, Any] = {"prompt_tokens": 100, "token_budget": 512, "decodes": 300, "ttft_ms": 1e6}
    refused = request_sla(fit, **far)
    assert not refused.is_promised
    assert bool(refused.step_table["extrapolation"].all())
    assert "EXTRAPOLATION" in refused.text
    assert request_sla(fit, **far, extrapolate=True).is_promised


def test_a_fit_that_has_not_converged_promises_no_request(fit: FittedModel) -> None:
    bad = replace(fit, metadata=synthetic_metadata(converged=False))
    for accept in (False, True):
        found = request_sla(bad, **REQUEST, ttft_ms=1e6, max_draws=50, accept_unconverged=accept)
        assert found.is_promised == accept


def test_an_answer_is_plain_values(sla: RequestSLA) -> None:
    back = json.loads(json.dumps(sla.to_dict(), allow_nan=False))
    assert [row["key"] for row in back["times"]] == ["ttft", "tpot", "e2e"]
    assert len(sla.table) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_tokens": 0}, "prompt_tokens = 0: a prompt has at least 1 token"),
        ({"prompt_tokens": -5}, "prompt_tokens = -5"),
        ({"output_tokens": 0}, "output_tokens = 0"),
        ({"decodes": -1}, "decodes = -1"),
        ({"token_budget": 15}, "a token budget of 15 leaves no token for a prefill beside 15 decodes"),
        ({"ttft_ms": 0.0}, "a limit of 0 ms"),
        ({"output_tokens": None, "e2e_ms": 9.0}, "needs the number of output tokens"),
        ({"output_tokens": 1, "tpot_ms": 9.0}, "needs at least 2 output tokens"),
        ({"quantile": 0.0}, "quantile = 0"),
        ({"confidence": 1.0}, "confidence = 1"),
        ({"probability": 1.0}, "probability = 1"),
    ],
)
def test_bad_input_is_refused(fit: FittedModel, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        request_sla(fit, **{**REQUEST, **changes})


@pytest.mark.parametrize(("factor", "is_promised"), [(1.0, True), (1.2, True), (2.0, False)])
def test_a_request_is_judged_with_the_traces_own_medians_too(
    fit: FittedModel, factor: float, is_promised: bool
) -> None:
    limit = 1.5 * known(request_sla(fit, **REQUEST).times[0].quantile_upper_ms)
    found = request_sla(with_trace(fit, factor), **REQUEST, ttft_ms=limit)
    assert found.times[0].is_kept
    assert found.is_promised == is_promised
    assert ("Undecided: the trace's own steps give another answer" in found.text) == (not is_promised)
    if factor > 1.0:
        own = known(found.own[0].quantile_ms) / known(found.times[0].quantile_ms)
        assert own == pytest.approx(factor, rel=0.1)
        assert "with its own medians there, 99% within: time to first token" in found.text
    else:
        assert not found.own
