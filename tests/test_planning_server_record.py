"""The simulator held against servers: real ones, and one that is the simulator itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bayes_sched.errors import InputError
from bayes_sched.format import records
from bayes_sched.planning.replay import SchedulerSettings
from bayes_sched.planning.server_record import (
    ServerRecord,
    decisions_of_clock,
    decisions_of_queue,
    forecast_requests,
)
from bayes_sched.planning.workload import Lengths, MeasuredRequests, PoissonWorkload, read_measured_requests
from bayes_sched.reports.kinds import report
from bayes_sched.reports.terminal import terminal
from bayes_sched.studies.simulator import SimulatorCheck, check_simulator, judged
from bayes_sched.trace.reader import read_scheduler, read_trace
from tests.conftest import ROOT
from tests.simulated_server import LATE_MS, START_S, simulated_server, write_server
from tests.synthetic_fit import synthetic_fit

SETTINGS = SchedulerSettings(token_budget=64, max_num_seqs=4, step_overhead_ms=1.0)
BUSY = PoissonWorkload(rate_per_s=14.0, prompt=Lengths(60, 2.0), output=Lengths(8, 2.0), num_requests=300)
TIGHT = replace(SETTINGS, kv_tokens=320, block_tokens=16)


@pytest.fixture(scope="module")
def record() -> ServerRecord:
    return simulated_server(SETTINGS, BUSY)


@pytest.fixture(scope="module")
def judge(record: ServerRecord) -> Callable[..., SimulatorCheck]:
    """Judge the forecast of a fit, with changes."""
    fit, settings = synthetic_fit(spread=0.01), record.settings()
    decisions = {"queue": decisions_of_queue(record, settings), "clock": decisions_of_clock(record, settings)}
    forecast = forecast_requests(fit, record, settings, num_draws=20, seed=0)

    def judged_forecast(**changes: float) -> SimulatorCheck:
        changed = replace(forecast, **changes)  # type: ignore[arg-type]
        return judged(changed, record, settings, fit=fit, probability=0.9, **decisions)

    return judged_forecast


@pytest.fixture(scope="module")
def check(judge: Callable[..., SimulatorCheck]) -> SimulatorCheck:
    return judge()


def test_a_simulated_server_is_met_exactly(record: ServerRecord) -> None:
    settings = record.settings()
    for found in (decisions_of_queue(record, settings), decisions_of_clock(record, settings)):
        assert found.share_equal == 1.0
        assert found.num_simulated == len(found.steps) == len(record.steps)
    assert record.steps["batch_size"].max() == 4
    assert (record.steps["num_waiting_reqs"] > 0).any()


def test_a_full_cache_is_met_exactly() -> None:
    record = simulated_server(TIGHT, replace(BUSY, prompt=Lengths(60, 1.3)))
    assert record.warnings  # tokens computed anew after preemptions
    known = record.settings(max_num_seqs=4, kv_tokens=320)
    assert decisions_of_queue(record, known).share_equal == 1.0
    assert decisions_of_queue(record, record.settings(max_num_seqs=4)).share_equal < 0.99


def test_another_scheduler_is_told_apart(record: ServerRecord) -> None:
    for changes in ({"token_budget": 60}, {"max_num_seqs": 3}):
        found = decisions_of_queue(record, record.settings(**changes))
        assert found.share_equal < 0.95
        assert found.to_dict()["largest_batch_size_difference"] >= 1.0


def test_settings_and_constants_are_read_from_the_trace(record: ServerRecord) -> None:
    settings = record.settings()
    assert (settings.token_budget, settings.max_num_seqs) == (64, 4)
    assert settings.step_overhead_ms == pytest.approx(1.0, abs=1e-3)
    assert record.ingress_ms == pytest.approx(0.0, abs=1e-3)
    assert record.num_first == 150
    first = record.steps[record.is_first_step]
    assert first["timestamp"].max() < record.split_s < record.steps["timestamp"].max()


def test_what_the_side_car_tells_comes_before_what_the_steps_show_and_options_before_both(
    record: ServerRecord,
) -> None:
    told = {"max_num_batched_tokens": 96, "max_num_seqs": 8}
    told |= {"kv_cache_block_size": 32, "num_kv_cache_blocks": 41}
    record = replace(record, told=told)
    found = record.settings()
    assert (found.token_budget, found.max_num_seqs, found.kv_tokens, found.block_tokens) == (96, 8, 1280, 32)
    given = record.settings(token_budget=64, max_num_seqs=4, kv_tokens=640, block_tokens=16)
    assert (given.token_budget, given.max_num_seqs, given.kv_tokens, given.block_tokens) == (64, 4, 640, 16)
    size_alone = replace(record, told={"kv_cache_block_size": 32}).settings()
    assert (size_alone.token_budget, size_alone.max_num_seqs) == (64, 4)
    assert (size_alone.kv_tokens, size_alone.block_tokens) == (None, 32)


def test_late_arrivals_at_the_scheduler_are_measured() -> None:
    record = simulated_server(SETTINGS, replace(BUSY, rate_per_s=5.0), ingress_ms=3.0)
    assert record.ingress_ms == pytest.approx(3.0, abs=1e-3)
    assert decisions_of_clock(record, record.settings()).share_equal == 1.0


def test_the_times_of_a_simulated_server_are_predicted(check: SimulatorCheck) -> None:
    assert check.residual_ms == pytest.approx(LATE_MS, abs=0.01)
    assert check.numbers["level"] == pytest.approx(1.0, abs=0.02)
    rows = records(check.table)
    seen = [row for row in rows if row["correction"] != "none"]
    assert max(abs(row["own_steps_error"]) for row in seen) < 1e-3
    assert max(abs(row["error"]) for row in seen) < 0.1
    assert sum(row["is_inside"] for row in seen) >= 8
    assert all(row["lower_ms"] <= row["predicted_ms"] <= row["upper_ms"] for row in rows)
    median = {
        row["correction"]: row["predicted_ms"] for row in rows if (row["time"], row["level"]) == ("ttft", 0.5)
    }
    assert median["median"] - median["none"] == pytest.approx(LATE_MS, abs=0.01)


def test_the_same_seed_gives_the_same_forecast(record: ServerRecord) -> None:
    found = [
        check_simulator(synthetic_fit(), record, num_draws=2, seed=seed).table.to_json() for seed in (0, 0, 1)
    ]
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_the_text_fits_a_terminal_and_the_numbers_are_json(check: SimulatorCheck) -> None:
    text = terminal(report(check))
    assert text.count("100.00%") > 5
    assert max(map(len, text.splitlines())) <= 100
    numbers = json.loads(json.dumps(dict(check.numbers), allow_nan=False))
    assert numbers["decisions"]["of_queue"]["share_equal"] == 1.0
    assert len(numbers["requests"]) == 18


def test_a_changed_server_and_starved_clients_are_said(judge: Callable[..., SimulatorCheck]) -> None:
    assert not judge().cautions
    assert "BEWARE: the server itself changed between the halves" in judge(level=1.14).text
    starved = judge(residual_ms=500.0)
    assert "BEWARE: much of what clients measured is not the simulated engine's" in starved.text


def test_steps_of_other_requests_are_noticed(record: ServerRecord) -> None:
    requests = record.requests
    fewer = MeasuredRequests(
        arrival_s=requests.arrival_s[::2],
        prompt_tokens=requests.prompt_tokens[::2],
        output_tokens=requests.output_tokens[::2],
        times_ms={key: values[::2] for key, values in requests.times_ms.items()},
    )
    (warning,) = ServerRecord.of(record.steps, fewer).warnings
    assert "there were other requests" in warning


def test_steps_of_another_time_or_without_a_clock_are_refused(record: ServerRecord) -> None:
    for shift_s in (-1e6, 1e6):
        later = replace(record.requests, arrival_s=record.requests.arrival_s + shift_s)
        with pytest.raises(InputError, match="they do not overlap; both need one clock"):
            ServerRecord.of(record.steps, later)
    with pytest.raises(InputError, match="the trace's steps lack timestamp, num_waiting_reqs"):
        ServerRecord.of(record.steps.drop(columns=["timestamp", "num_waiting_reqs"]), record.requests)


def test_a_real_vllm_under_pressure_is_met_exactly() -> None:
    """A recording in which requests wait for a place and for blocks, and are preempted: 13 usable blocks."""
    prefix = str(ROOT / "examples" / "vllm_cpu_requests_tight")
    requests, steps = read_measured_requests(f"{prefix}.jsonl.gz"), f"{prefix}_steps.jsonl.gz"
    record = ServerRecord.of(read_trace(steps).steps, requests, told=read_scheduler([steps]))
    settings = record.settings()
    found = decisions_of_queue(record, settings)
    assert found.share_equal == 1.0
    assert found.num_simulated == len(record.steps) == 1357
    assert decisions_of_queue(record, replace(settings, kv_tokens=14 * 128)).share_equal < 0.9


def test_measured_requests_are_read_from_csv_and_packed_lines_alike(
    record: ServerRecord, tmp_path: Path
) -> None:
    paths = write_server(record, tmp_path)
    found = read_measured_requests(paths["requests"])
    table = pd.read_json(paths["requests"], lines=True).iloc[::-1]
    table.to_csv(tmp_path / "requests.csv", index=False)
    again = read_measured_requests(tmp_path / "requests.csv")
    for name in ("arrival_s", "prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(getattr(found, name), getattr(again, name))
    assert found.arrival_s[0] >= START_S
    assert np.isnan(found.times_ms["tpot"]).sum() == (found.output_tokens == 1).sum() > 0


GOOD: dict[str, Any] = {
    "arrival_s": 1.0,
    "prompt_tokens": 5,
    "output_tokens": 2,
    "ttft_ms": 10.0,
    "tpot_ms": 5.0,
    "e2e_ms": 15.0,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ttft_ms": None}, "line 3: ttft_ms is missing"),
        ({"tpot_ms": None}, "line 3: tpot_ms is missing"),
        ({"e2e_ms": -1.0}, "line 3: e2e_ms is '-1.0': give milliseconds, 0 or more"),
        ({"e2e_ms": 9.0}, "line 3: e2e_ms is below ttft_ms"),
        ({"prompt_tokens": 1.5}, "line 3: prompt_tokens is '1.5': give a whole number from 1"),
        ({"arrival_s": "noon"}, "line 3: arrival_s is 'noon': give seconds, 0 or more"),
    ],
)
def test_a_bad_field_is_named_with_file_and_line(
    write_lines: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    path = write_lines([GOOD, GOOD, GOOD | changes, *[GOOD] * 20], "requests.jsonl")
    with pytest.raises(InputError, match=f"requests.jsonl, {message}"):
        read_measured_requests(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.jsonl", b"", "0 requests are too few: give at least 20"),
        ("r.csv", b"arrival_s,prompt_tokens\n1,2\n", "line 1: the header names no output_tokens, ttft_ms"),
        ("r.jsonl.gz", b"no gzip", "not a text file of requests"),
        ("r.jsonl.gz", b"\x1f\x8b\x08\x00", "not a text file of requests"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_measured_requests(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
