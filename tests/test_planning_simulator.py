"""The simulated scheduler: what it puts into each step, alone or as a trace says; nothing is lost."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayes_sched.errors import InputError
from bayes_sched.planning.replay import Replay, SchedulerSettings, StepTimes, replay
from bayes_sched.planning.replay_kernel import Given
from bayes_sched.planning.simulator import counts_over_time, measure
from bayes_sched.planning.workload import Lengths, PoissonWorkload, Workload
from bayes_sched.posterior.prediction import component_quantile
from bayes_sched.sla.risk import Objective
from bayes_sched.steps import steps_arrays
from tests.planning_server import exact_times, replayed, workload
from tests.synthetic_fit import synthetic_fit


def test_two_requests_are_scheduled_as_by_hand() -> None:
    done = replayed(workload([0.0, 5.0], [12, 4], [3, 2]))
    steps = done.steps
    assert steps["total_tokens"].tolist() == [10, 6, 2, 1]  # a chunk of A; its rest and B; two decodes; one
    assert steps["batch_size"].tolist() == [1, 2, 2, 1]
    assert steps["start_ms"].tolist() == [0.0, 20.0, 36.0, 48.0]
    assert steps["num_prefill_reqs"].tolist() == [1, 2, 0, 0]
    assert steps["context_tokens"].tolist() == [0, 10, 16, 13]
    assert steps["prefill_pairs"].tolist() == [55, 2 * 10 + 3 + 10, 0, 0]
    assert done.start_ms.tolist() == [0.0, 20.0]
    assert done.first_token_ms.tolist() == [36.0, 36.0]
    assert done.finish_ms.tolist() == [59.0, 48.0]
    assert done.ttft_ms.tolist() == [36.0, 31.0]
    assert done.tpot_ms.tolist() == [11.5, 12.0]


def test_a_full_cache_preempts_the_newest_request_which_is_computed_anew() -> None:
    requests = workload([0.0, 0.0], [4, 4], [4, 4])
    done = replayed(requests, kv_tokens=10, block_tokens=1, token_budget=16)
    assert done.steps["total_tokens"].tolist() == [8, 2, 1, 1, 6, 1]
    assert done.steps["kv_blocks"].tolist() == [8, 10, 6, 7, 6, 7]
    assert done.steps["num_waiting_reqs"].tolist() == [0, 0, 1, 1, 0, 0]
    assert done.preemptions.tolist() == [0, 1]


def test_a_server_without_requests_waits_and_the_time_between_steps_is_added_to_each() -> None:
    done = replayed(workload([0.0, 1000.0], [5, 5], [1, 1]))
    assert done.finish_ms.tolist() == [15.0, 1015.0]
    assert done.busy_ms == 30.0
    assert replayed(workload([0.0], [10], [3]), step_overhead_ms=2.0).finish_ms == [22.0 + 13.0 + 13.0]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Workload, SchedulerSettings]:
    num = draw(st.integers(1, 12))

    def whole(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=num, max_size=num))

    arrival = np.cumsum([0, *whole(0, 60)[1:]]).astype(float)
    prompt, output = whole(1, 40), whole(1, 8)
    block = draw(st.integers(1, 8))
    most = max(-(-(p + o) // block) for p, o in zip(prompt, output, strict=True))
    blocks = draw(st.none() | st.integers(most, most + 6))
    made = SchedulerSettings(
        token_budget=draw(st.integers(1, 32)),
        max_num_seqs=draw(st.integers(1, 5)),
        kv_tokens=None if blocks is None else blocks * block,
        block_tokens=block,
    )
    return workload(arrival, prompt, output), made


@settings(max_examples=80, deadline=None)
@given(cases())
def test_every_schedule_keeps_its_limits_and_serves_everybody(
    case: tuple[Workload, SchedulerSettings],
) -> None:
    requests, made = case
    done = replayed(requests, **asdict(made))
    steps = done.steps
    assert steps["total_tokens"].between(1, made.token_budget).all()
    assert (steps["batch_size"] <= steps["num_running_reqs"]).all()
    assert (steps["num_running_reqs"] <= made.max_num_seqs).all()
    assert (steps["batch_size"] <= steps["total_tokens"]).all()
    assert (steps["kv_blocks"] <= made.num_blocks).all()
    assert (np.diff(done.start_ms) >= 0.0).all(), "first come, first served"
    assert (done.start_ms >= done.arrival_ms).all()
    assert (done.first_token_ms > done.start_ms).all()
    assert (done.finish_ms >= done.first_token_ms).all()
    ends = (steps["start_ms"] + steps["duration_ms"]).to_numpy()
    assert (steps["start_ms"].to_numpy()[1:] >= ends[:-1]).all()
    assert steps["duration_ms"].sum() == pytest.approx(done.busy_ms)
    work = int((requests.prompt_tokens + requests.output_tokens - 1).sum())
    if done.preemptions.sum():
        assert steps["total_tokens"].sum() > work
    else:
        assert steps["total_tokens"].sum() == work
    assert_littles_law(done)


def assert_littles_law(done: Replay) -> None:
    """The time requests spend in the system is the time integral of how many are there, seen step by step."""
    steps = done.steps
    ends = (steps["start_ms"] + steps["duration_ms"]).to_numpy()
    present = steps["num_waiting_reqs"] + steps["num_running_reqs"]
    area = float((present * steps["duration_ms"]).sum())
    step = np.searchsorted(ends, done.arrival_ms, side="left")  # the step during which each came, or the next
    is_amid = done.arrival_ms > steps["start_ms"].to_numpy()[step]
    area += float((ends[step] - done.arrival_ms)[is_amid].sum())
    assert area == pytest.approx(float(done.e2e_ms.sum()))


def test_a_single_place_is_an_m_d_1_queue() -> None:
    load, service_ms = 0.7, 10.0
    requests = PoissonWorkload(
        rate_per_s=1000.0 * load / service_ms, prompt=Lengths(1), output=Lengths(1), num_requests=100_000
    ).draw(np.random.default_rng(5))
    done = replayed(requests, lambda b, s: service_ms + 0.0 * s, max_num_seqs=1, num_logged=0)
    wait = float((done.start_ms - done.arrival_ms).mean())
    assert wait == pytest.approx(load * service_ms / (2.0 * (1.0 - load)), rel=0.05)
    found = measure([done], {"ttft": None, "tpot": None, "e2e": None})
    assert found.utilisation == pytest.approx(load, rel=0.02)
    assert found.queue_mean == pytest.approx(wait * requests.rate_per_s / 1000.0, rel=0.01)
    assert not found.is_overloaded


def test_a_queue_that_grows_is_called_overload() -> None:
    requests = PoissonWorkload(rate_per_s=150.0, prompt=Lengths(1), output=Lengths(1), num_requests=2000)
    drawn = requests.draw(np.random.default_rng(5))
    done = replayed(drawn, lambda b, s: 10.0 + 0.0 * s, max_num_seqs=1, num_logged=0)
    found = measure([done], {"ttft": Objective(limit_ms=50.0), "tpot": None, "e2e": None})
    assert found.is_overloaded
    assert found.growth == pytest.approx(1.0 / 3.0, abs=0.1)  # 100 of 150 are served
    assert found.within["ttft"] < 0.2


def test_counts_over_time_cover_the_window() -> None:
    begin, end = np.array([0.0, 2.0, 9.0]), np.array([4.0, 6.0, 12.0])
    counts, spans = counts_over_time(begin, end, 1.0, 10.0)
    assert spans.sum() == 9.0
    assert counts @ spans == 3.0 + 4.0 + 1.0


def test_step_times_follow_the_fit_within_a_thousandth() -> None:
    fit = synthetic_fit()
    times = StepTimes.of(fit, max_batch_size=200, max_tokens=4096, max_draws=8)
    rng = np.random.default_rng(0)
    b = rng.integers(1, 201, 400)
    s = np.minimum(b * np.exp(rng.uniform(0.0, 8.0, 400)).astype(int), 4096)
    exact = fit.mean_latency(steps_arrays(b, s), max_draws=8).to_numpy().reshape(8, -1)
    for draw in range(8):
        table = times.table(draw, overhead_ms=0.0)
        i, j, u, v = table.left_b[b], table.left_s[s], table.share_b[b], table.share_s[s]
        low = (1 - v) * table.mean[i, j] + v * table.mean[i, j + 1]
        high = (1 - v) * table.mean[i + 1, j] + v * table.mean[i + 1, j + 1]
        np.testing.assert_allclose((1 - u) * low + u * high, exact[draw], rtol=1e-3)


def test_the_noise_of_steps_is_that_of_the_draw() -> None:
    fit = synthetic_fit()
    times = StepTimes.of(fit, max_batch_size=2, max_tokens=64, max_draws=4)
    table = times.table(1, overhead_ms=0.0)
    made = SchedulerSettings(token_budget=64, max_num_seqs=1)
    rng = np.random.default_rng(1)
    done = replay(workload([0.0], [1], [20_000]), made, table, rng=rng, num_logged=20_000)
    for level in (0.1, 0.5, 0.9, 0.99):
        limit = component_quantile(table.mean[0, 0], table.scale[0, 0], np.array(table.nu), level)
        share = float((done.steps["duration_ms"] <= float(limit)).mean())
        assert share == pytest.approx(level, abs=4.5 * np.sqrt(level * (1 - level) / 20_000))


NONE = np.empty(0, dtype=np.int64)


def forced(given: Given, *, arrival_ms: list[float]) -> Replay:
    """Three requests of 6 and 2 tokens at a server of 10 ms a step, 4 tokens, 2 places."""
    settings = SchedulerSettings(token_budget=4, max_num_seqs=2)
    table = exact_times(lambda b, s: 10.0 + 0.0 * s, requests=2, tokens=4).table(0, overhead_ms=0.0)
    requests = workload(arrival_ms, [6, 6, 6], [2, 2, 2])
    return replay(requests, settings, table, rng=np.random.default_rng(0), given=given, num_logged=50)


def test_steps_end_when_the_trace_says_and_then_take_their_own_time() -> None:
    done = forced(Given(np.array([3.0, 8.0, 40.0]), NONE), arrival_ms=[0.0, 9.0, 9.0])
    ends = (done.steps["start_ms"] + done.steps["duration_ms"]).tolist()
    assert ends[:4] == [3.0, 8.0, 40.0, 50.0]
    assert done.steps["batch_size"].tolist()[:3] == [1, 1, 1]
    assert done.first_token_ms[0] == 8.0
    assert done.finish_ms[0] == 40.0


def test_a_server_at_rest_joins_the_next_step_of_the_trace() -> None:
    done = forced(Given(np.array([3.0, 8.0, 40.0, 90.0, 95.0, 99.0]), NONE), arrival_ms=[0.0, 60.0, 500.0])
    steps = done.steps
    assert steps["start_ms"].tolist()[:5] == [0.0, 3.0, 8.0, 60.0, 90.0]
    assert steps["duration_ms"].tolist()[:5] == [3.0, 5.0, 32.0, 30.0, 5.0]
    assert steps["start_ms"].tolist()[6] == 500.0


def test_requests_come_when_the_trace_counts_them() -> None:
    ends = np.arange(1.0, 30.0)
    alone = forced(Given(ends, np.ones(29, dtype=np.int64)), arrival_ms=[29.0] * 3)
    assert alone.steps["batch_size"].max() == 1
    assert alone.start_ms.tolist() == [0.0, 3.0, 6.0]
    together = forced(Given(ends, np.array([3, 3, 3, 3, 3, 3, 3, 3])), arrival_ms=[29.0] * 3)
    assert together.steps["num_waiting_reqs"].tolist()[:2] == [2, 1]
    assert together.steps["num_running_reqs"].max() == 2


def test_a_request_is_admitted_where_the_cache_has_room_for_the_whole_of_it() -> None:
    done = replayed(
        workload([0.0, 0.0], [6, 6], [3, 1]), token_budget=8, kv_tokens=10, block_tokens=1, max_num_seqs=2
    )
    # Two tokens of the second would fit beside the first, all six would not.
    assert done.steps["total_tokens"].tolist() == [6, 1, 1, 6]
    assert done.steps["kv_blocks"].tolist() == [6, 7, 8, 6]
    assert not done.preemptions.any()


def test_what_is_admitted_takes_the_blocks_of_its_first_chunk_alone() -> None:
    done = replayed(workload([0.0], [12], [1]), token_budget=8, kv_tokens=16, block_tokens=4)
    assert done.steps["kv_blocks"].tolist() == [2, 3]


def test_a_request_that_no_cache_holds_is_refused() -> None:
    with pytest.raises(InputError, match=r"kv_tokens = 32: 1 of 2 requests do not fit .* has 44 tokens"):
        replayed(workload([0.0, 1.0], [4, 40], [4, 4]), kv_tokens=32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_budget": 0}, "token_budget = 0"),
        ({"max_num_seqs": -1}, "max_num_seqs = -1"),
        ({"kv_tokens": 8}, "divided into blocks of 16 tokens"),
        ({"step_overhead_ms": -1.0}, "step_overhead_ms = -1"),
        ({"step_overhead_ms": float("nan")}, "step_overhead_ms = nan"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replayed(workload([0.0], [1], [1]), **changes)
