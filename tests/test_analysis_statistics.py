"""The numbers of an analysis, on traces small enough to do them by hand."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bayes_sched
from bayes_sched.errors import InputError
from bayes_sched.trace.analysis import TraceAnalysis, analyze
from bayes_sched.trace.findings import Limits
from bayes_sched.trace.reader import read_trace
from bayes_sched.trace.time_series import MAX_BINS
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


def test_chunks_are_those_of_the_batches_that_prefill() -> None:
    found = small()
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
    assert (
        "The trace does not hold timestamps, the schedule time, chunk sizes, the waiting queue" in found.text
    )
    assert "There is" not in found.text
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


def test_without_timestamps_pieces_are_of_equal_numbers_of_batches() -> None:
    pieces = analyze(made_trace(600, timestamp=...)).over_time
    assert pieces["steps"].sum() == 600
    assert pieces["steps"].max() - pieces["steps"].min() <= 1


def test_an_idle_hour_is_no_piece() -> None:
    stamps = START + np.concatenate([np.arange(300), 3900 + np.arange(300)])
    pieces = analyze(made_trace(600, timestamp=stamps)).over_time
    assert pieces["steps"].sum() == 600
    assert (pieces["steps"] > 0).all()


@settings(max_examples=30, deadline=None)
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


def test_the_public_names_are_there() -> None:
    assert bayes_sched.analyze is analyze
    assert isinstance(analyze(made_trace(5)).table, pd.DataFrame)


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
