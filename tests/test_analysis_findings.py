"""Each kind of finding, injected into a quiet trace, is found where it was put; a quiet one has none."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayes_sched.errors import InputError
from bayes_sched.trace.analysis import analyze
from bayes_sched.trace.findings import (
    KV_CACHE_FULL,
    QUEUE_BUILD_UP,
    SCHEDULE_RISE,
    SLOW_SCHEDULING,
    Finding,
    Limits,
    episodes,
)
from tests.made_trace import START, changed, made_trace


def found(num: int = 600, *, limits: Limits | None = None, **columns: Any) -> tuple[Finding, ...]:
    return analyze(made_trace(num, **columns), limits=limits).findings


def only(*, limits: Limits | None = None, **columns: Any) -> Finding:
    (finding,) = found(limits=limits, **columns)
    return finding


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_busy_but_steady_server_has_no_finding(seed: int) -> None:
    """Noise of a third, and admissions that take three times as long to schedule, are no change."""
    assert found() == ()
    rng = np.random.default_rng(seed)
    prefill = (rng.random(3000) < 0.3).astype(int)
    requests = np.clip(np.cumsum(rng.integers(-1, 2, 3000)) % 40, 1, 40)
    schedule_ms = 0.05 * requests**0.7 * np.where(prefill, 3.0, 1.0) * rng.lognormal(0, 0.3, 3000)
    assert not found(
        3000,
        schedule_ms=schedule_ms,
        num_prefill_reqs=prefill,
        batch_size=requests + prefill,
        num_decode_reqs=requests,
        total_tokens=requests + 500 * prefill,
        num_waiting_reqs=rng.integers(0, 5, 3000),
        kv_cache_usage=rng.uniform(0.3, 0.9, 3000),
    )


def test_a_slow_schedule_is_found_with_its_line_and_date() -> None:
    finding = only(schedule_ms=changed(0.5, slow=(99, 25.0)))
    assert (finding.kind, finding.value, finding.unit) == (SLOW_SCHEDULING, 25.0, "ms")
    place = (finding.source, finding.first_line, finding.last_line, finding.num_steps)
    assert place == ("t0.jsonl", 100, 100, 1)
    assert finding.start == finding.end == "2023-11-14 22:13:22.029 UTC"
    assert finding.start_s == pytest.approx(99 * 0.0205, abs=1e-6)
    assert finding.text == "scheduling took 25 ms (0 prefill, 8 decode requests, 8 tokens)"


def test_exactly_the_limit_is_not_slow_and_the_limit_can_be_moved() -> None:
    schedule_ms = changed(0.5, slow=(99, 10.0))
    assert found(schedule_ms=schedule_ms) == ()
    assert only(schedule_ms=schedule_ms, limits=Limits(slow_schedule_ms=9.9)).first_line == 100


def test_slow_schedules_next_to_each_other_are_one_finding_and_others_are_not() -> None:
    together = only(schedule_ms=changed(0.5, a=(100, 12.0), b=(105, 30.0), c=(116, 15.0)))
    assert (together.first_line, together.peak_line, together.last_line) == (101, 106, 117)
    assert together.text == "3 steps of 17 scheduled for more than 10 ms, at most 30 ms in line 106"
    assert together.duration_s == pytest.approx(16 * 0.0205, abs=1e-6)
    assert len(found(schedule_ms=changed(0.5, a=(100, 12.0), b=(112, 30.0)))) == 2


@pytest.mark.parametrize("at", [250, 273, 300, 333])
def test_a_rise_of_the_schedule_time_is_found_at_its_step(at: int) -> None:
    noise = np.random.default_rng(at).lognormal(0, 0.15, 600)
    finding = only(schedule_ms=noise * changed(0.5, rise=(slice(at, None), 1.5)))
    assert finding.kind == SCHEDULE_RISE
    assert abs(finding.first_line - (at + 1)) <= 3
    assert finding.value == pytest.approx(3.0, rel=0.15)
    assert re.search(r"median 0\.(49|5)\d* ms before, 1\.[45]\d* ms after", finding.text)
    assert "(requests a batch 8 and 8)" in finding.text


def test_a_rise_below_the_factor_and_a_fall_are_none() -> None:
    rise = changed(0.5, rise=(slice(300, None), 0.9))
    assert found(schedule_ms=rise) == ()
    assert only(schedule_ms=rise, limits=Limits(schedule_rise=1.5)).kind == SCHEDULE_RISE
    assert found(schedule_ms=rise[::-1].copy(), limits=Limits(schedule_rise=1.5)) == ()


def test_a_rise_that_the_load_explains_is_none() -> None:
    requests = changed(8, more=(slice(300, None), 64)).astype(int)
    columns = {"batch_size": requests, "num_decode_reqs": requests, "total_tokens": requests}
    assert found(schedule_ms=changed(0.5, rise=(slice(300, None), 4.0)), **columns) == ()


def test_rises_too_small_to_feel_stray_steps_and_short_traces_show_no_rise_and_two_are_two() -> None:
    assert found(schedule_ms=changed(0.01, rise=(slice(300, None), 0.1))) == ()
    assert found(schedule_ms=changed(0.5, stray=(slice(300, 600, 5), 8.0))) == ()
    assert found(200, schedule_ms=changed(0.5, 200, rise=(slice(100, None), 5.0))) == ()
    two = changed(0.5, a=(slice(200, 400), 1.5), b=(slice(400, None), 5.0))
    assert [f.first_line for f in found(schedule_ms=two)] == [201, 401]


def queue(*, until: int) -> np.ndarray[Any, Any]:
    """From step 100 on one request more every second step, up to 30; drained at `until`."""
    waiting = np.zeros(600)
    waiting[100:160] = np.repeat(np.arange(1, 31), 2)
    waiting[160:until] = 30
    return waiting


def test_a_queue_that_builds_up_is_found_from_its_beginning_to_its_end() -> None:
    finding = only(num_waiting_reqs=queue(until=200))
    assert (finding.kind, finding.value, finding.unit) == (QUEUE_BUILD_UP, 30.0, "requests")
    assert (finding.first_line, finding.peak_line, finding.last_line) == (108, 159, 200)
    assert finding.num_steps == 80
    assert finding.text == (
        "waiting requests grew from 4 to 30 in line 159 and stayed many for 93 steps (1.89 s), then drained"
    )


def test_a_queue_that_is_still_there_says_so() -> None:
    assert only(num_waiting_reqs=queue(until=600)).text.endswith("still waiting at the end of the trace")


def test_a_queue_that_passes_at_once_or_stays_short_is_none() -> None:
    assert found(num_waiting_reqs=changed(0, burst=(slice(100, 119), 50))) == ()
    assert found(num_waiting_reqs=changed(0, burst=(slice(100, 119), 50)), timestamp=...) == ()
    assert found(num_waiting_reqs=changed(10)) == ()
    assert only(num_waiting_reqs=changed(10), limits=Limits(long_queue=9)).kind == QUEUE_BUILD_UP


def test_a_queue_of_few_but_long_steps_lasts_and_one_that_swings_around_the_limit_is_one() -> None:
    waiting = changed(0, burst=(slice(100, 106), 50))
    assert only(num_waiting_reqs=waiting, timestamp=START + 0.25 * np.arange(600)).num_steps == 6
    assert only(num_waiting_reqs=np.where(np.arange(600) % 2, 12, 8)).num_steps == 300


def test_a_full_kv_cache_is_found() -> None:
    finding = only(kv_cache_usage=changed(0.5, full=(slice(50, 90), 0.97), peak=(60, 0.999)))
    assert (finding.kind, finding.value, finding.num_steps) == (KV_CACHE_FULL, 0.999, 40)
    assert (finding.first_line, finding.peak_line, finding.last_line) == (51, 61, 90)
    assert found(kv_cache_usage=changed(0.5, full=(slice(50, 69), 0.97))) == ()
    assert found(kv_cache_usage=changed(0.949)) == ()
    assert only(kv_cache_usage=changed(0.95)).num_steps == 600


def test_findings_are_those_of_each_file_on_its_own() -> None:
    waiting = changed(0, end=(slice(290, 310), 30))  # ten steps at the end of one file, ten in the next
    assert found(num_waiting_reqs=waiting, formats=("documented", "documented")) == ()
    slow = found(schedule_ms=changed(0.5, slow=(slice(298, 302), 12.0)), formats=("documented",) * 2)
    assert [(f.source, f.first_line) for f in slow] == [("t0.jsonl", 299), ("t1.jsonl", 1)]


def test_moments_of_a_monotonic_clock_count_from_the_files_beginning_and_a_line_is_there_without() -> None:
    slow = changed(0.5, slow=(50, 25.0))
    finding = only(schedule_ms=slow, timestamp=5000 + np.arange(600) / 10)
    assert (finding.start, finding.start_s) == ("5.000 s", 5.0)
    finding = only(schedule_ms=slow, timestamp=...)
    assert (finding.start, finding.start_s, finding.duration_s, finding.first_line) == ("", None, None, 51)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slow_schedule_ms": 0.0}, "slow_schedule_ms is 0.0"),
        ({"slow_schedule_ms": float("nan")}, "slow_schedule_ms is nan"),
        ({"schedule_rise": 1.0}, "schedule_rise is 1.0"),
        ({"long_queue": 0}, "long_queue is 0"),
        ({"full_kv_cache": 1.5}, "full_kv_cache is 1.5"),
        ({"num_slowest": -1}, "num_slowest is -1"),
    ],
)
def test_limits_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(Limits(), **changes)


@given(st.lists(st.floats(0, 10) | st.just(float("nan")), max_size=60), st.integers(0, 3))
def test_episodes_hold_every_value_above_the_limit_once(values: list[float], join: int) -> None:
    array = np.array(values, float)
    above = {i for i, value in enumerate(values) if value > 7}
    for spans in (episodes(array, above=7, join=join), episodes(array, above=7, below=3)):
        covered = [i for span in spans for i in range(span.start, span.stop)]
        assert len(covered) == len(set(covered))
        assert above <= set(covered)
        assert sum(span.num_above for span in spans) == len(above)
        for span in spans:
            assert values[span.start] > 7
            assert values[span.peak] == np.nanmax(array[span.start : span.stop])
    for span in episodes(array, above=7, below=3):
        assert not any(value < 3 for value in values[span.start : span.stop])
