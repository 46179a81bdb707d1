"""The region of steps that a trace covers."""

import numpy as np
import pytest
import xarray as xr
from numpy.typing import ArrayLike

from bayes_sched.region import TOLERANCE, Region


def region(batch_size: ArrayLike, total_tokens: ArrayLike) -> Region:
    return Region.of(np.asarray(batch_size), np.asarray(total_tokens))


def contains(where: Region, batch_size: float, total_tokens: float) -> bool:
    return bool(where.contains(xr.DataArray(batch_size), xr.DataArray(total_tokens)))


def test_what_the_trace_saw_is_inside_and_what_lies_beyond_is_not() -> None:
    square = region([1, 64, 1, 64], [64, 64, 4096, 4096])
    for batch_size, total_tokens in [(1, 64), (64, 4096), (8, 512), (64, 64), (1, 4096)]:
        assert contains(square, batch_size, total_tokens)
    for batch_size, total_tokens in [(1, 8192), (128, 4096), (1, 32), (70, 512)]:
        assert not contains(square, batch_size, total_tokens)


def test_every_seen_step_is_inside() -> None:
    rng = np.random.default_rng(7)
    batch_size = rng.integers(1, 257, 300)
    total_tokens = batch_size + rng.integers(0, 8000, 300)
    seen = region(batch_size, total_tokens)
    assert bool(seen.contains(xr.DataArray(batch_size, dims="s"), xr.DataArray(total_tokens, dims="s")).all())


def test_a_corner_that_no_step_spans_is_outside_although_each_number_was_seen() -> None:
    triangle = region([1, 64, 1], [64, 64, 4096])
    assert contains(triangle, 1, 4096)
    assert not contains(triangle, 64, 4096)


def test_a_decode_only_trace_covers_its_line_and_little_beside_it() -> None:
    decode = region(np.arange(1, 65), np.arange(1, 65))
    assert len(decode.corners) == 2
    assert contains(decode, 17, 17)
    assert contains(decode, 64, 64)
    assert not contains(decode, 17, 34)
    assert not contains(decode, 128, 128)


def test_a_line_of_one_batch_size_and_one_of_one_token_count_are_lines() -> None:
    assert contains(region([4, 4, 4], [8, 16, 512]), 4, 100)
    assert not contains(region([4, 4, 4], [8, 16, 512]), 6, 100)
    assert contains(region([2, 4, 8], [512, 512, 512]), 5, 512)
    assert not contains(region([2, 4, 8], [512, 512, 512]), 5, 600)


@pytest.mark.parametrize("repeats", [1, 5])
def test_one_kind_of_step_covers_itself_alone(repeats: int) -> None:
    point = region([8] * repeats, [512] * repeats)
    assert contains(point, 8, 512)
    assert not contains(point, 9, 512)
    assert not contains(point, 8, 600)
    assert "one kind of step: 8 requests, 512 tokens" in point.text


def test_two_kinds_of_steps_cover_what_lies_between() -> None:
    pair = region([1, 16], [1, 256])
    assert contains(pair, 4, 16)
    assert not contains(pair, 4, 32)


def test_points_that_are_a_line_but_for_rounding_do_not_fail() -> None:
    batch_size = np.arange(1, 200, dtype=float)
    nearly = region(batch_size, batch_size * (1.0 + 1e-12 * np.sin(batch_size)))
    assert contains(nearly, 50, 50)


def test_a_few_per_cent_beyond_the_largest_step_is_not_called_extrapolation() -> None:
    square = region([1, 100, 1, 100], [100, 100, 1000, 1000])
    assert contains(square, 100, 1000 * np.exp(0.9 * TOLERANCE))
    assert not contains(square, 100, 1000 * np.exp(1.1 * TOLERANCE))


def test_dims_are_broadcast_by_name() -> None:
    square = region([1, 64, 1, 64], [64, 64, 4096, 4096])
    found = square.contains(xr.DataArray([1, 8], dims="b"), xr.DataArray([1, 64, 9000], dims="s"))
    assert found.dims == ("b", "s")
    np.testing.assert_array_equal(found, [[False, True, False], [False, True, False]])


def test_the_hull_can_be_drawn() -> None:
    hull = region([1, 64, 1, 64, 8], [64, 64, 4096, 4096, 512]).hull
    assert sorted(zip(hull["batch_size"].round(6), hull["total_tokens"].round(6), strict=True)) == [
        (1.0, 64.0),
        (1.0, 4096.0),
        (64.0, 64.0),
        (64.0, 4096.0),
    ]
