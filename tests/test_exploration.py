"""Exploration finds every mode, and the weight of each."""

import numpy as np
import pytest

from bayes_sched.sampling.components import Density
from bayes_sched.sampling.exploration import Exploration, explore
from tests.simulation import BENT_WEIGHT, two_mode_sampler, two_modes


@pytest.fixture(scope="module")
def density() -> Density:
    return two_mode_sampler().density


def explored(
    density: Density, *, seed: int, scan_scale: float = 3.0, stages: list[str] | None = None
) -> Exploration:
    return explore(
        density,
        start=np.array([3.0, 0.0]),
        scan_mean=np.zeros(2),
        scan_scale=np.full(2, scan_scale),
        rng=np.random.default_rng(seed),
        progress=([] if stages is None else stages).append,
    )


@pytest.fixture(scope="module")
def found(density: Density) -> Exploration:
    return explored(density, seed=0)


def test_both_modes_are_found_from_a_start_beside_one_with_nearly_their_weights(found: Exploration) -> None:
    assert found.num_modes == 2
    means, weights = found.mixture.means[:, 0], found.mixture.weights
    assert means.min() < -3.0
    assert means.max() > 3.0
    # The last fit rests on 2,000 draws or more, at least half of them effective: an error below 0.015.
    assert weights[means < 0].sum() == pytest.approx(BENT_WEIGHT, abs=0.06)
    assert weights.sum() == pytest.approx(1.0)


def test_the_mixture_resembles_the_posterior_as_well_as_it_says(found: Exploration) -> None:
    points = found.mixture.sample(5000, np.random.default_rng(1))
    weights = np.exp(two_modes(points, np) - found.mixture.logpdf(points))
    assert found.efficiency > 0.5
    assert weights.sum() ** 2 / np.square(weights).sum() / len(points) > 0.5


def test_the_same_seed_gives_the_same_mixture(density: Density, found: Exploration) -> None:
    again = explored(density, seed=0)
    np.testing.assert_array_equal(again.mixture.means, found.mixture.means)
    np.testing.assert_array_equal(again.mixture.weights, found.mixture.weights)
    assert again.num_evaluations == found.num_evaluations


def test_every_evaluation_is_counted_and_every_stage_told(density: Density, found: Exploration) -> None:
    before, stages = density.num_evaluations, list[str]()
    other = explored(density, seed=1, stages=stages)
    assert other.num_evaluations == density.num_evaluations - before
    assert stages[0] == "looking for modes"
    assert stages[1].startswith("stage 1: efficiency ")
    assert (other.mixture.means[0] != found.mixture.means[0]).any()


def test_a_coordinate_that_is_not_scanned_starts_at_the_best_mode(density: Density) -> None:
    # With nothing scanned no climb can reach the other mode: the scan is what finds it.
    assert explored(density, seed=0, scan_scale=0.0).num_modes == 1
