"""What a fit uses where a trace holds more than is worth the time."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bayes_sched.errors import InputError
from bayes_sched.trace.cleaning import thin_steps

CELL = ["batch_size", "total_tokens"]


def steps_of(*counts: int) -> pd.DataFrame:
    """Steps of as many (B, S) as there are counts, shuffled; `line` numbers them."""
    batch_size = np.random.default_rng(0).permutation(np.repeat(np.arange(1, len(counts) + 1), counts))
    steps = pd.DataFrame({"batch_size": batch_size, "total_tokens": 10 * batch_size})
    return steps.assign(latency_ms=5.0, line=np.arange(len(steps)))


def counts_of(steps: pd.DataFrame) -> list[int]:
    return steps.groupby(CELL).size().tolist()


def test_few_steps_stay_whole_and_nothing_is_said() -> None:
    steps = steps_of(5, 3)
    thinned = thin_steps(steps, 8)
    pd.testing.assert_frame_equal(thinned.steps, steps)
    assert thinned.text is None


def test_rare_combinations_stay_whole_and_crowded_ones_are_capped() -> None:
    thinned = thin_steps(steps_of(1000, 3, 500, 10), 53)
    assert counts_of(thinned.steps) == [20, 3, 20, 10]


def test_the_order_of_the_trace_stays() -> None:
    thinned = thin_steps(steps_of(1000, 3, 500), 100)
    assert thinned.steps["line"].is_monotonic_increasing
    assert list(thinned.steps.index) == list(range(len(thinned.steps)))


def test_the_choice_is_repeatable_and_random() -> None:
    steps = steps_of(1000, 500)
    first, second, other = (thin_steps(steps, 100, seed=seed).steps for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, second)
    assert set(first["line"]) != set(other["line"])
    assert first["line"].mean() == pytest.approx(steps["line"].mean(), rel=0.3)


def test_the_choice_never_looks_at_the_latency() -> None:
    steps = steps_of(1000, 500)
    reversed_latency = steps.assign(latency_ms=np.arange(len(steps))[::-1])
    assert thin_steps(steps, 100).steps["line"].equals(thin_steps(reversed_latency, 100).steps["line"])


def test_more_combinations_than_rows_give_one_step_of_some() -> None:
    thinned = thin_steps(steps_of(*[3] * 50), 20)
    assert counts_of(thinned.steps) == [1] * 20
    assert "one step of some" in str(thinned.text)


def test_what_was_left_out_is_said_with_numbers_and_the_option() -> None:
    text = str(thin_steps(steps_of(4000, 3), 1000).text)
    assert "1,000 of 4,003 cleaned steps" in text
    assert "--max-rows 1000" in text
    assert "at most 997 steps of each (B, S)" in text


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 400))
def test_the_cap_is_the_largest_that_fits(counts: list[int], max_rows: int) -> None:
    kept = np.array(counts_of(thin_steps(steps_of(*counts), max_rows).steps))
    assert kept.sum() <= max_rows
    if sum(counts) > max_rows and len(counts) <= max_rows:
        cap = kept.max()
        np.testing.assert_array_equal(kept, np.minimum(counts, cap))
        assert np.minimum(counts, cap + 1).sum() > max_rows


def test_no_rows_at_all_are_refused() -> None:
    with pytest.raises(InputError, match="--max-rows is 0"):
        thin_steps(steps_of(3), 0)
