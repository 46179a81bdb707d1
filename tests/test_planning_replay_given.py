"""Replays that take something from a trace, and admission by the whole of a request, as vLLM does it."""

from __future__ import annotations

import numpy as np

from bayes_sched.planning.replay import Replay, SchedulerSettings, replay
from bayes_sched.planning.replay_kernel import Given
from tests.planning_server import exact_times, replayed, workload

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
