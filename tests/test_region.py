"""The region of steps that a trace covers."""

import numpy as np
import pytest
from numpy.typing import ArrayLike

from bayes_sched.region import TOLERANCE, Region
from bayes_sched.steps import region_of

DECODE = np.arange(1, 65)


def region(batch_size: ArrayLike, total_tokens: ArrayLike) -> Region:
    return region_of(np.asarray(batch_size), np.asarray(total_tokens))


SQUARE = region([1, 64, 1, 64, 8], [64, 64, 4096, 4096, 512])
BEYOND = [np.exp(factor * TOLERANCE) for factor in (0.9, 1.1)]


@pytest.mark.parametrize(
    ("seen", "inside", "outside"),
    [
        pytest.param(
            SQUARE,
            [(1, 64), (64, 4096), (8, 512), (64, 64), (1, 4096), (64, 4096 * BEYOND[0])],
            [(1, 8192), (128, 4096), (1, 32), (70, 512), (64, 4096 * BEYOND[1])],
            id="what was seen and a few per cent more",
        ),
        pytest.param(region([1, 64, 1], [64, 64, 4096]), [(1, 4096)], [(64, 4096)], id="no corner unseen"),
        pytest.param(region(DECODE, DECODE), [(17, 17), (64, 64)], [(17, 34), (128, 128)], id="decode only"),
        pytest.param(region([4, 4, 4], [8, 16, 512]), [(4, 100)], [(6, 100)], id="one batch size"),
        pytest.param(region([2, 4, 8], [512] * 3), [(5, 512)], [(5, 600)], id="one token count"),
        pytest.param(region([1, 16], [1, 256]), [(4, 16)], [(4, 32)], id="two kinds of steps"),
        pytest.param(region([8], [512]), [(8, 512)], [(9, 512), (8, 600)], id="one step"),
        pytest.param(region([8] * 5, [512] * 5), [(8, 512)], [(9, 512), (8, 600)], id="one kind of step"),
        pytest.param(
            region(DECODE, DECODE * (1.0 + 1e-12 * np.sin(DECODE))), [(50, 50)], [(50, 60)], id="rounding"
        ),
    ],
)
def test_a_region_holds_what_was_seen_and_what_lies_between(
    seen: Region, inside: list[tuple[float, float]], outside: list[tuple[float, float]]
) -> None:
    steps = [*inside, *outside]
    expected = [True] * len(inside) + [False] * len(outside)
    assert seen.contains(*np.transpose(steps)).tolist() == expected
    assert [seen.contains_step(*step) for step in steps] == expected


def test_every_seen_step_is_inside() -> None:
    rng = np.random.default_rng(7)
    batch_size = rng.integers(1, 257, 300)
    total_tokens = batch_size + rng.integers(0, 8000, 300)
    assert region(batch_size, total_tokens).contains(batch_size, total_tokens).all()


def test_arrays_broadcast() -> None:
    found = SQUARE.contains(np.array([[1], [8]]), [1, 64, 9000])
    np.testing.assert_array_equal(found, [[False, True, False], [False, True, False]])


def test_the_hull_can_be_drawn_and_said() -> None:
    corners = [(1.0, 64.0), (1.0, 4096.0), (64.0, 64.0), (64.0, 4096.0)]
    assert sorted(map(tuple, SQUARE.hull.round(6).tolist())) == corners
    assert "1 to 64 requests and 64 to 4,096 tokens" in SQUARE.text
    assert "one kind of step: 8 requests, 512 tokens" in region([8, 8], [512, 512]).text
