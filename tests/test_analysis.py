"""The numbers of an analysis, on traces small enough to do them by hand, and its clocks."""

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayes_sched.errors import InputError
from bayes_sched.trace.analysis import MAX_BINS, Timeline, TraceAnalysis, analyze, timeline
from bayes_sched.trace.findings import Limits
from bayes_sched.trace.reader import read_trace
from tests.conftest import ROOT
from tests.made_trace import START, made_trace


def small() -> TraceAnalysis:
    """Four batches and an idle step: two decode only, one mixes, one prefills only."""
    return analyze(
        made_trace(
            5,
            batch_size=[2, 2, 3, 1, 0],
            total_tokens=[2, 2, 102, 50, 0],
            latency_ms=[10.0, 20.0, 60.0, 30.0, 1.0],
            num_prefill_reqs=[0, 0, 2, 1, 0],
            num_decode_reqs=[2, 2, 1, 0, 0],
            schedule_ms=[1.0, 1.0, 4.0, 2.0, 1.0],
            step_ms=[11.0, 21.0, 66.0, 32.0, 2.0],
            prefill_tokens=[0, 0, 101, 50, 0],
            max_prefill_chunk=[0, 0, 90, 50, 0],
            num_waiting_reqs=[0, 4, 2, 2, 0],
            kv_cache_usage=[0.1, 0.2, 0.3, 0.4, 0.0],
            timestamp=[START, START + 0.5, START + 1.0, START + 2.0, START + 9.0],
        )
    )


def row(found: TraceAnalysis, quantity: str) -> dict[Any, Any]:
    chosen: dict[Any, Any] = found.table.set_index("quantity").loc[quantity].to_dict()
    return chosen


def test_statistics_are_those_of_the_batches_without_the_idle_steps() -> None:
    found = small()
    assert (found.num_steps, found.num_idle) == (4, 1)
    latency = row(found, "latency_ms")
    assert (latency["mean"], latency["min"], latency["p50"], latency["max"]) == (30.0, 10.0, 25.0, 60.0)
    assert latency["p99"] == pytest.approx(60 - 0.03 * 30)
    assert row(found, "schedule_ms")["mean"] == 2.0
    assert row(found, "step_ms")["max"] == 66.0
    assert row(found, "num_waiting_reqs")["mean"] == 2.0
    assert row(found, "kv_cache_usage")["max"] == 0.4
    assert row(found, "prefill_share")["mean"] == pytest.approx((2 / 3 + 1) / 4)
    # Chunks are those of the batches that prefill.
    assert row(found, "mean_prefill_chunk")["steps"] == 2
    assert row(found, "mean_prefill_chunk")["mean"] == (50.5 + 50) / 2
    assert row(found, "max_prefill_chunk")["min"] == 50


def test_throughput_counts_tokens_over_the_elapsed_time() -> None:
    totals = small().throughput
    assert totals["tokens"] == 156
    assert (totals["elapsed_s"], totals["tokens_per_s"], totals["steps_per_s"]) == (2.0, 78.0, 2.0)
    assert (totals["prefill_tokens"], totals["decode_tokens"], totals["decode_tokens_per_s"]) == (151, 5, 2.5)
    assert totals["tokens_per_model_run_s"] == 156 / 0.12
    assert totals["schedule_share"] == 8 / 130


def test_regimes_count_every_batch_once_and_show_those_without() -> None:
    regimes = small().regimes.set_index("regime")
    assert regimes["steps"].to_dict() == {"decode only": 2, "mixed": 1, "prefill only": 1}
    assert regimes["tokens"].to_dict() == {"decode only": 4, "mixed": 102, "prefill only": 50}
    assert regimes["time_share"].tolist() == [0.25, 0.5, 0.25]
    assert regimes["p50_ms"].tolist() == [15.0, 60.0, 30.0]
    quiet = analyze(made_trace(10)).regimes.set_index("regime")
    assert quiet.loc["mixed", "steps"] == 0
    assert quiet["p50_ms"].isna().tolist() == [False, True, True]


def test_a_step_time_that_the_trace_lacks_is_the_sum_and_said_to_be() -> None:
    found = analyze(made_trace(10, step_ms=...))
    assert found.is_step_summed
    assert row(found, "step_ms")["mean"] == 20.5
    assert not analyze(made_trace(10, step_ms=30.0)).is_step_summed
    assert row(analyze(made_trace(10, step_ms=30.0)), "step_ms")["mean"] == 30.0


def test_what_the_trace_does_not_hold_is_missing_and_not_zero() -> None:
    gone = ("schedule_ms", "kv_cache_usage", "num_waiting_reqs", "num_running_reqs", "prefill_tokens")
    absent: dict[str, Any] = dict.fromkeys((*gone, "timestamp", "step_ms", "max_prefill_chunk"), ...)
    found = analyze(made_trace(50, **absent))
    assert set(found.missing) == {*gone, "timestamp", "context_tokens"}
    assert not set(found.table["quantity"]) & {*gone, "step_ms", "mean_prefill_chunk", "max_prefill_chunk"}
    assert found.throughput["tokens_per_s"] is None
    assert found.throughput["schedule_share"] is None
    assert found.slowest["moment"].tolist() == [""] * 10


def test_the_slowest_are_listed_with_their_lines_and_their_like() -> None:
    latency_ms = np.full(100, 20.0)
    latency_ms[[17, 41]] = 200.0, 100.0
    slowest = analyze(made_trace(100, latency_ms=latency_ms, step_ms=latency_ms + 0.5)).slowest
    assert slowest["line"].tolist()[:2] == [18, 42]
    assert slowest["times_typical"].tolist()[:3] == [10.0, 5.0, 1.0]
    assert slowest["moment"].tolist()[0] == "2023-11-14 22:13:20.348 UTC"
    assert len(slowest) == 10
    assert analyze(made_trace(100), limits=Limits(num_slowest=0)).slowest.empty


def test_a_trace_of_idle_steps_alone_is_refused() -> None:
    with pytest.raises(InputError, match=r"every step of t is idle \(3 read\)"):
        analyze(made_trace(3, batch_size=0, total_tokens=0))


def test_pieces_of_time_hold_every_batch_once() -> None:
    pieces = analyze(made_trace(6000, prefill_tokens=3)).over_time
    assert len(pieces) == MAX_BINS
    assert pieces["steps"].sum() == 6000
    assert pieces["tokens"].sum() == 48_000
    assert pieces["prefill_tokens"].sum() == 18_000
    assert (pieces["latency_ms_p50"] == 20.0).all()
    assert pieces["to"].iloc[:-1].to_numpy() == pytest.approx(pieces["from"].iloc[1:].to_numpy())


def test_pieces_without_timestamps_are_of_equal_numbers_and_an_idle_hour_is_none() -> None:
    pieces = analyze(made_trace(600, timestamp=...)).over_time
    assert pieces["steps"].sum() == 600
    assert pieces["steps"].max() - pieces["steps"].min() <= 1
    stamps = START + np.concatenate([np.arange(300), 3900 + np.arange(300)])
    pieces = analyze(made_trace(600, timestamp=stamps)).over_time
    assert pieces["steps"].sum() == 600
    assert (pieces["steps"] > 0).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_any_trace_gives_finite_strict_json(num: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    decode = rng.integers(0, 5, num)
    prefill = np.where(decode == 0, 1, rng.integers(0, 3, num))
    found = analyze(
        made_trace(
            num,
            batch_size=decode + prefill,
            total_tokens=decode + 7 * prefill,
            num_prefill_reqs=prefill,
            num_decode_reqs=decode,
            latency_ms=rng.exponential(20.0, num),
            schedule_ms=rng.exponential(3.0, num),
            num_waiting_reqs=rng.integers(0, 40, num),
            kv_cache_usage=rng.uniform(0, 1, num),
            timestamp=np.where(rng.random(num) < 0.1, np.nan, rng.uniform(0, 9, num)),
        )
    )
    numbers = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert sum(regime["steps"] for regime in numbers["regimes"]) == num
    for one in numbers["statistics"]:
        ordered = [one[name] for name in ("min", "p50", "p95", "p99", "max")]
        assert ordered == sorted(ordered)
    for key in numbers:
        assert key in str(TraceAnalysis.to_dict.__doc__)


def test_the_example_is_analysed_as_its_trace_says() -> None:
    trace = read_trace(ROOT / "examples" / "vllm_cpu_12m_sweep.jsonl.gz")
    found = analyze(trace)
    assert found.num_steps == 5668
    assert found.clock == "unix"
    assert found.missing == ("context_tokens",)
    steps = trace.steps
    assert row(found, "latency_ms")["p95"] == pytest.approx(steps["latency_ms"].quantile(0.95))
    assert sum(f.num_steps for f in found.findings) == (steps["schedule_ms"] > 10).sum()
    assert found.throughput["tokens"] == steps["total_tokens"].sum()


def test_a_recorded_trace_of_a_gpu_is_analysed(shared_traces: object) -> None:
    found = analyze(read_trace(f"{shared_traces}/h100_qwq-32b-fp8_chunk512.jsonl.gz"))
    assert (found.num_steps, found.num_idle, found.clock) == (9528, 1, "monotonic")
    assert found.is_step_summed
    assert found.missing == ("kv_cache_usage",)
    assert [f.kind for f in found.findings] == ["slow scheduling", "queue build-up"]
    assert found.findings[0].first_line == 7205
    assert found.findings[0].start == "218.000 s"


# Which clock wrote a trace, and its steps on one axis


def line_of(*files: list[float], formats: list[str] | None = None) -> Timeline:
    codes = [code for code, stamps in enumerate(files) for _ in stamps]
    names = pd.Index([f"f{code}" for code in range(len(files))])
    steps = pd.DataFrame({"timestamp": [stamp for stamps in files for stamp in stamps]})
    steps["source"] = pd.Categorical.from_codes(codes, categories=names)
    return timeline(steps, formats or ["documented"] * len(files))


@pytest.mark.parametrize("unit", [1.0, 1e3, 1e6, 1e9])
def test_unix_time_is_recognised_in_every_usual_unit(unit: float) -> None:
    line = line_of([1_700_000_000.5 * unit, 1_700_000_002.5 * unit])
    assert line.kind == "unix"
    assert line.start == "2023-11-14 22:13:20.500 UTC"
    assert line.elapsed_s == pytest.approx(2.0, abs=1e-3)
    assert line.time_s == pytest.approx([0.0, 2.0], abs=1e-3)
    assert line.unix_start_s == pytest.approx(1_700_000_000.5, abs=1e-3)
    assert line.clocks[0].moment(1_700_000_002.5 * unit) == "2023-11-14 22:13:22.500 UTC"


def test_a_monotonic_clock_counts_from_the_beginning_of_its_file() -> None:
    line = line_of([1_118_875.5, 1_118_877.0])
    assert (line.kind, line.start, line.elapsed_s) == ("monotonic", "", 1.5)
    assert line.clocks[0].moment(1_118_877.0) == "1.500 s"
    assert math.isnan(line.unix_start_s)


def test_a_log_shows_its_dates_without_a_year() -> None:
    seconds = ((31 + 29) * 24 + 4) * 3600.0
    line = line_of([seconds, seconds + 61], formats=["vllm-log"])
    assert (line.kind, line.start, line.elapsed_s) == ("log", "03-01 04:00:00", 61.0)


def test_without_timestamps_there_is_no_axis() -> None:
    line = line_of([math.nan, math.nan])
    assert line.kind == "none"
    assert np.isnan(line.time_s).all()
    assert math.isnan(line.elapsed_s)
    assert line.clocks[0].moment(math.nan) == ""


def test_ranks_of_one_server_share_the_axis_and_their_time_counts_once() -> None:
    line = line_of([100.0, 110.0], [101.0, 112.0])
    assert line.elapsed_s == 12.0
    assert line.time_s.tolist() == [0.0, 10.0, 1.0, 12.0]


def test_monotonic_files_apart_follow_each_other_without_a_gap_as_after_a_clock_began_anew() -> None:
    for line in (line_of([5000.0, 5010.0], [100.0, 103.0]), line_of([9000.0, 9010.0, 5.0, 8.0])):
        assert line.elapsed_s == 13.0
        assert line.time_s.tolist() == [0.0, 10.0, 10.0, 13.0]


def test_dates_keep_the_gap_between_files_and_the_elapsed_time_leaves_it_out() -> None:
    start = 1_700_000_000.0
    line = line_of([start, start + 10], [start + 1000, start + 1005])
    assert line.time_s.tolist() == [0.0, 10.0, 1000.0, 1005.0]
    assert line.elapsed_s == 15.0


def test_files_of_different_clocks_follow_each_other() -> None:
    line = line_of([1_700_000_000.0, 1_700_000_004.0], [10.0, 11.0])
    assert (line.kind, line.elapsed_s) == ("monotonic", 5.0)
    assert line.time_s.tolist() == [0.0, 4.0, 4.0, 5.0]
