"""Which clock wrote a trace, and its steps on one axis."""

import math

import numpy as np
import pandas as pd
import pytest

from bayes_sched.trace.time_series import Timeline, timeline


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


def test_monotonic_files_apart_follow_each_other_without_a_gap() -> None:
    line = line_of([5000.0, 5010.0], [100.0, 103.0])
    assert line.elapsed_s == 13.0
    assert line.time_s.tolist() == [0.0, 10.0, 10.0, 13.0]


def test_dates_keep_the_gap_between_files_and_the_elapsed_time_leaves_it_out() -> None:
    start = 1_700_000_000.0
    line = line_of([start, start + 10], [start + 1000, start + 1005])
    assert line.time_s.tolist() == [0.0, 10.0, 1000.0, 1005.0]
    assert line.elapsed_s == 15.0


def test_a_clock_that_began_anew_within_a_file_does_not_count_backwards() -> None:
    line = line_of([9000.0, 9010.0, 5.0, 8.0])
    assert line.elapsed_s == 13.0
    assert line.time_s.tolist() == [0.0, 10.0, 10.0, 13.0]


def test_files_of_different_clocks_follow_each_other() -> None:
    line = line_of([1_700_000_000.0, 1_700_000_004.0], [10.0, 11.0])
    assert (line.kind, line.elapsed_s) == ("monotonic", 5.0)
    assert line.time_s.tolist() == [0.0, 4.0, 4.0, 5.0]
