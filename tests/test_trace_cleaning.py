"""What a fit uses of a trace: steps that are work, and of many alike some."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayes_sched.errors import InputError
from bayes_sched.trace.cleaning import clean_steps, thin_steps
from bayes_sched.trace.reader import read_trace

clean = partial(clean_steps, min_latency_ms=1.0, max_latency_ms=300.0)


def make_steps(total_tokens: Any, latency_ms: Any, batch_size: Any = 1) -> pd.DataFrame:
    steps = pd.DataFrame({"total_tokens": total_tokens, "latency_ms": latency_ms}).assign(
        batch_size=batch_size
    )
    return steps.assign(line=range(1, len(steps) + 1))


def refusal(steps: pd.DataFrame, **limits: float) -> str:
    with pytest.raises(InputError) as caught:
        clean(steps, **limits)
    return str(caught.value)


def test_each_rule_removes_what_the_one_before_left() -> None:
    steps = make_steps([0, 5, 6, 7, 8, 9], [0.2, 0.0, 0.5, 1.0, 300.0, 300.1], batch_size=[0, 1, 1, 1, 1, 1])
    cleaned = clean(steps)
    assert cleaned.steps["line"].tolist() == [4, 5]
    assert cleaned.steps.index.tolist() == [0, 1]
    assert cleaned.table["rule"].tolist() == ["idle: B, S or T not above 0", "T below 1 ms", "T above 300 ms"]
    assert cleaned.table["removed"].tolist() == [2, 1, 1]
    assert cleaned.table["share"].tolist() == [2 / 6, 1 / 6, 1 / 6]
    assert cleaned.table["min_total_tokens"].tolist() == [0, 6, 9]
    assert cleaned.table["median_total_tokens"].tolist() == [2.5, 6, 9]
    assert (cleaned.num_before, cleaned.num_after) == (6, 2)
    assert cleaned.text == (
        "2 of 6 steps are used; removed: "
        "2 (idle: B, S or T not above 0), 1 (T below 1 ms), 1 (T above 300 ms)."
    )


def test_a_clean_trace_stays_as_it_is_and_what_comes_in_is_not_changed() -> None:
    steps = make_steps([5, 6], [20.0, 30.0])
    cleaned = clean(steps)
    pd.testing.assert_frame_equal(cleaned.steps, steps)
    assert cleaned.table["min_total_tokens"].isna().all()
    assert (cleaned.warnings, cleaned.text) == ((), "2 of 2 steps are used; removed: none.")
    steps = make_steps([0, 6], [20.0, 30.0])
    before = steps.copy()
    clean(steps)
    pd.testing.assert_frame_equal(steps, before)


@pytest.mark.parametrize("latency_ms", [math.nan, math.inf, 1e308])
def test_latencies_that_are_no_time_are_removed(latency_ms: float) -> None:
    assert clean(make_steps([5, 6], [20.0, latency_ms])).steps["line"].tolist() == [1]


def test_a_rare_tail_at_every_size_is_no_warning() -> None:
    rng = np.random.default_rng(5)
    latency_ms = np.where(rng.uniform(size=5000) < 0.005, 400.0, 20.0)
    assert clean(make_steps(rng.integers(1, 512, 5000), latency_ms)).warnings == ()


def test_a_rule_above_one_percent_warns_with_numbers_and_a_limit_that_keeps_them() -> None:
    steps = make_steps([*[10] * 97, 20, 10, 30], [*[20.0] * 97, 412.0, 350.0, 333.0])
    assert clean(steps).warnings == (
        "3 of 100 steps (3.00%) have T above 300 ms and are removed (S from 10 to 30, median 20): "
        "if they are real work, keep them with max_latency_ms 420",
    )
    assert clean(steps, max_latency_ms=420).num_after == 100


def test_a_rule_that_takes_the_large_steps_warns_though_they_are_few() -> None:
    steps = make_steps([*[10] * 4000, *[8192] * 30], [*[20.0] * 4000, *[500.0] * 20, *[290.0] * 10])
    assert clean(steps).warnings == (
        "20 of 4,030 steps (0.50%) have T above 300 ms and are removed "
        "(S from 8,192 to 8,192, median 8,192); "
        "of the 30 steps with 8,192 or more tokens 20 go: "
        "if they are real work, keep them with max_latency_ms 500",
    )


def test_a_rule_that_takes_the_small_steps_warns_though_they_are_few() -> None:
    steps = make_steps([*[100] * 4000, *[1] * 20], [*[20.0] * 4000, *[0.57] * 20])
    assert clean(steps).warnings == (
        "20 of 4,020 steps (0.50%) have T below 1 ms and are removed (S from 1 to 1, median 1); "
        "of the 20 steps with 1 or fewer tokens 20 go: if they are real work, "
        "keep them with min_latency_ms 0.57",
    )


def test_many_idle_steps_are_told() -> None:
    assert clean(make_steps([0, 10], [5.0, 20.0])).warnings == (
        "1 of 2 steps (50.00%) are idle (B, S or T not above 0): removed",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_latency_ms", -1.0),
        ("min_latency_ms", 0.0),
        ("max_latency_ms", math.inf),
        ("max_latency_ms", math.nan),
    ],
)
def test_limits_that_make_no_sense_are_refused(name: str, value: float) -> None:
    steps = make_steps([5], [20.0])
    message = f"{name} is {value}: give a positive, finite number of milliseconds"
    assert refusal(steps, **{name: value}) == message
    assert refusal(steps, min_latency_ms=50.0, max_latency_ms=50.0) == (
        "min_latency_ms 50 is not below max_latency_ms 50: no step could stay"
    )


def test_nothing_left_is_refused_with_the_numbers() -> None:
    assert refusal(make_steps([0, 5, 6, 7], [3.0, 0.02, 0.03, 4000.0])) == (
        "no step is left of 4: 1 idle: B, S or T not above 0; 2 T below 1 ms; "
        "1 T above 300 ms; "
        "the latencies run from 0.02 to 4000 ms: "
        "check their unit, or move min_latency_ms and max_latency_ms"
    )


def test_a_table_without_steps_or_columns_is_refused() -> None:
    assert refusal(make_steps([], [])) == "there are no steps to clean"
    assert refusal(pd.DataFrame({"batch_size": [1]})) == (
        "the steps table lacks total_tokens, latency_ms: it needs batch_size, total_tokens, latency_ms"
    )


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 9), st.floats(0, 400) | st.sampled_from([1.0, 300.0])),
        min_size=1,
        max_size=60,
    )
)
def test_the_account_adds_up_and_what_is_left_obeys_the_rules(rows: list[tuple[int, int, float]]) -> None:
    batch_size, total_tokens, latency_ms = zip(*rows, strict=True)
    steps = make_steps(total_tokens, latency_ms, batch_size=batch_size)
    try:
        cleaned = clean(steps)
    except InputError:
        usable = [b > 0 and s > 0 and 1 <= t <= 300 for b, s, t in rows]
        assert not any(usable)
        return
    assert cleaned.num_before == len(rows) == cleaned.table["removed"].sum() + cleaned.num_after
    assert (cleaned.steps[["batch_size", "total_tokens"]] > 0).all(axis=None)
    assert cleaned.steps["latency_ms"].between(1, 300).all()


@pytest.mark.parametrize("name", ["h100_qwq-32b-fp8_chunk512", "a6000x2_llama-3.1-8b_chunk256"])
def test_the_real_gpu_traces_lose_their_idle_step_only(name: str, shared_traces: Path) -> None:
    cleaned = clean(read_trace(shared_traces / f"{name}.jsonl.gz").steps)
    assert cleaned.table["removed"].tolist() == [1, 0, 0]
    assert cleaned.warnings == ()


# Thinning


def steps_of(*counts: int) -> pd.DataFrame:
    """Steps of as many (B, S) as there are counts, shuffled; `line` numbers them."""
    batch_size = np.random.default_rng(0).permutation(np.repeat(np.arange(1, len(counts) + 1), counts))
    steps = pd.DataFrame({"batch_size": batch_size, "total_tokens": 10 * batch_size})
    return steps.assign(latency_ms=5.0, line=np.arange(len(steps)))


def counts_of(steps: pd.DataFrame) -> list[int]:
    return steps.groupby(["batch_size", "total_tokens"]).size().tolist()


def test_few_steps_stay_whole_and_nothing_is_said() -> None:
    steps = steps_of(5, 3)
    thinned = thin_steps(steps, 8)
    pd.testing.assert_frame_equal(thinned.steps, steps)
    assert thinned.text is None


def test_rare_combinations_stay_whole_crowded_ones_are_capped_and_the_order_stays() -> None:
    thinned = thin_steps(steps_of(1000, 3, 500, 10), 53)
    assert counts_of(thinned.steps) == [20, 3, 20, 10]
    assert thinned.steps["line"].is_monotonic_increasing
    assert list(thinned.steps.index) == list(range(len(thinned.steps)))


def test_the_choice_is_repeatable_and_random_and_never_looks_at_the_latency() -> None:
    steps = steps_of(1000, 500)
    first, second, other = (thin_steps(steps, 100, seed=seed).steps for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, second)
    assert set(first["line"]) != set(other["line"])
    assert first["line"].mean() == pytest.approx(steps["line"].mean(), rel=0.3)
    reversed_latency = steps.assign(latency_ms=np.arange(len(steps))[::-1])
    assert first["line"].equals(thin_steps(reversed_latency, 100, seed=1).steps["line"])


def test_more_combinations_than_rows_give_one_step_of_some() -> None:
    thinned = thin_steps(steps_of(*[3] * 50), 20)
    assert counts_of(thinned.steps) == [1] * 20
    assert "one step of some" in str(thinned.text)


def test_what_was_left_out_is_said_with_numbers_and_the_option() -> None:
    text = str(thin_steps(steps_of(4000, 3), 1000).text)
    assert "1,000 of 4,003 cleaned steps" in text
    assert "max_rows 1000" in text
    assert "at most 997 steps of each (B, S)" in text


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 400))
def test_the_cap_is_the_largest_that_fits_and_none_is_refused(counts: list[int], max_rows: int) -> None:
    kept = np.array(counts_of(thin_steps(steps_of(*counts), max_rows).steps))
    assert kept.sum() <= max_rows
    if sum(counts) > max_rows and len(counts) <= max_rows:
        cap = kept.max()
        np.testing.assert_array_equal(kept, np.minimum(counts, cap))
        assert np.minimum(counts, cap + 1).sum() > max_rows
    with pytest.raises(InputError, match="max_rows is 0"):
        thin_steps(steps_of(3), 0)


def test_a_limit_that_would_hide_a_kind_of_step_is_moved_and_said() -> None:
    """Of the whole trace it is a half percent; of the steps with prefill all."""
    cleaned = clean_steps(make_steps([*[1] * 2000, *[512] * 10], [*[20.0] * 2000, *[412.0] * 10]))
    assert (cleaned.num_after, cleaned.limits_ms) == (2010, (1.0, 420.0))
    assert cleaned.warnings == (
        "max_latency_ms is 420 in place of 300, which would remove 10 of 10 steps with prefill (100.00%): "
        "that is what this server does; to remove them all the same, give max_latency_ms 300",
    )
    quick = clean_steps(make_steps([*[1] * 2000, *[512] * 10], [*[0.57] * 2000, *[20.0] * 10]))
    assert (quick.num_after, quick.limits_ms) == (2010, (0.57, 300.0))


def test_freaks_move_no_limit() -> None:
    for count, kept in ((2, 100), (3, 103)):
        cleaned = clean_steps(make_steps([*[8] * 100, *[9] * count], [*[20.0] * 100, *[5000.0] * count]))
        assert cleaned.num_after == kept
    many = clean_steps(make_steps([8] * 5000, [*[20.0] * 4950, *[900.0] * 50]))
    assert (many.num_after, many.limits_ms) == (4950, (1.0, 300.0))


def test_a_limit_that_was_given_is_kept() -> None:
    steps = make_steps([512] * 100, [*[20.0] * 50, *[412.0] * 50])
    cleaned = clean_steps(steps, max_latency_ms=300.0)
    assert (cleaned.num_after, cleaned.limits_ms) == (50, (1.0, 300.0))
