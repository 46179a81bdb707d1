"""The region of steps that a trace covers."""

import numpy as np
import pytest
from numpy.typing import ArrayLike

from bayes_sched.region import LEAST, Region, region_of

POWERS = 2 ** np.arange(7)


def region(batch_size: ArrayLike, total_tokens: ArrayLike, count: int = LEAST) -> Region:
    return region_of(np.asarray(batch_size), np.asarray(total_tokens), count)


@pytest.mark.parametrize(
    ("seen", "inside", "outside"),
    [
        pytest.param(
            region(POWERS, POWERS),
            [(b, b) for b in range(1, 68)],
            [(70, 70), (8, 16), (8, 9)],
            id="a sweep of decode steps has no holes, and tells nothing of a prefill",
        ),
        pytest.param(
            region([10, 20], [512, 1024]),
            [(10, 512), (13, 600), (15, 750), (20, 1070)],
            [(10, 1024), (20, 512), (9, 512), (20, 1080), (10, 10)],
            id="like in requests and in tokens, and no more than 5 % beyond the largest",
        ),
        pytest.param(region([4, 40], [4, 40]), [(4, 4), (40, 40)], [(10, 10)], id="a gap"),
        pytest.param(region([8], [512]), [(8, 512)], [(9, 512), (8, 600)], id="one kind of step"),
        pytest.param(region([8], [512], LEAST - 1), [], [(8, 512)], id="too few steps"),
        pytest.param(
            region(range(20, 20 + LEAST), [512] * LEAST, 1), [(20, 512)], [(3, 512)], id="few of each"
        ),
    ],
)
def test_a_step_is_covered_where_enough_steps_like_it_were_seen(
    seen: Region, inside: list[tuple[float, float]], outside: list[tuple[float, float]]
) -> None:
    steps = [*inside, *outside]
    expected = [True] * len(inside) + [False] * len(outside)
    assert seen.contains(*np.transpose(steps)).tolist() == expected
    assert [seen.contains_step(*step) for step in steps] == expected


def test_a_hull_is_not_what_was_seen() -> None:
    """Few requests with many tokens and many with few do not cover many with many, nor what lies between."""
    corners = region([1, 1, 64, 64], [1, 4096, 64, 4096])
    assert not corners.contains([8, 8, 1, 30], [8, 512, 512, 4096]).any()


def test_one_step_is_asked_as_many_are() -> None:
    rng = np.random.default_rng(7)
    batch_size = rng.integers(1, 257, 3000)
    seen = region(batch_size, batch_size + rng.integers(0, 8000, 3000), 1)
    b = np.exp(rng.uniform(0.0, np.log(300.0), 2000))
    s = b * np.exp(np.maximum(rng.uniform(-1.0, 7.0, 2000), 0.0))
    found = seen.contains(b, s)
    assert 0.05 < found.mean() < 0.95
    assert [seen.contains_step(*step) for step in zip(b, s, strict=True)] == found.tolist()


def test_arrays_broadcast() -> None:
    found = region([1, 8], [64, 64]).contains(np.array([[1], [8]]), [8, 64, 9000])
    np.testing.assert_array_equal(found, [[False, True, False], [False, True, False]])


def test_random_steps_lie_inside() -> None:
    seen = region([1, 8, 8], [1, 8, 64])
    steps = seen.random_steps(np.random.default_rng(0), 500)
    assert len(steps) > 200
    assert seen.contains(*steps.T).all()
    assert {bool(b == s) for b, s in steps} == {False, True}


def test_what_was_seen_can_be_said() -> None:
    assert "1 to 8 requests and 64 to 512 tokens" in region([1, 8], [64, 512]).text
    assert "one kind of step: 8 requests, 512 tokens" in region([8, 8], [512, 512]).text
