"""The pilot run: finds every mode, and the weight of each."""

import numpy as np
import pytest

from bayes_sched.sampling.components import Density
from bayes_sched.sampling.exploration import Pilot, run_pilot
from tests.simulation import BENT_WEIGHT, two_mode_sampler, two_modes


@pytest.fixture(scope="module")
def density() -> Density:
    return two_mode_sampler().density


def explore(
    density: Density, *, seed: int, scan_scale: float = 3.0, stages: list[str] | None = None
) -> Pilot:
    return run_pilot(
        density,
        start=np.array([3.0, 0.0]),
        scan_mean=np.zeros(2),
        scan_scale=np.full(2, scan_scale),
        rng=np.random.default_rng(seed),
        progress=None if stages is None else stages.append,
    )


def weight_at_negative_log_a(pilot: Pilot) -> float:
    return float(pilot.mixture.weights[pilot.mixture.means[:, 0] < 0].sum())


@pytest.fixture(scope="module")
def pilot(density: Density) -> Pilot:
    return explore(density, seed=0)


def test_both_modes_are_found_from_a_start_beside_one(pilot: Pilot) -> None:
    assert pilot.num_modes == 2
    assert pilot.mixture.means[:, 0].min() < -3.0
    assert pilot.mixture.means[:, 0].max() > 3.0


def test_the_weights_of_the_modes_are_nearly_those_of_the_posterior(pilot: Pilot) -> None:
    # The last fit rests on 2,000 draws or more, at least half of them effective: an error below 0.015.
    assert weight_at_negative_log_a(pilot) == pytest.approx(BENT_WEIGHT, abs=0.06)
    assert pilot.mixture.weights.sum() == pytest.approx(1.0)


def test_the_mixture_resembles_the_posterior_as_well_as_it_says(pilot: Pilot) -> None:
    points = pilot.mixture.sample(5000, np.random.default_rng(1))
    weights = np.exp(two_modes(points, np) - pilot.mixture.logpdf(points))
    efficiency = weights.sum() ** 2 / np.square(weights).sum() / len(points)
    assert pilot.efficiency > 0.5
    assert efficiency > 0.5


def test_the_same_seed_gives_the_same_mixture(density: Density, pilot: Pilot) -> None:
    again = explore(density, seed=0)
    np.testing.assert_array_equal(again.mixture.means, pilot.mixture.means)
    np.testing.assert_array_equal(again.mixture.weights, pilot.mixture.weights)
    assert again.num_evaluations == pilot.num_evaluations
    assert (explore(density, seed=1).mixture.means[0] != pilot.mixture.means[0]).any()


def test_every_evaluation_is_counted_and_every_stage_told(density: Density) -> None:
    before, stages = density.num_evaluations, list[str]()
    pilot = explore(density, seed=2, stages=stages)
    assert pilot.num_evaluations == density.num_evaluations - before
    assert stages[0] == "looking for modes"
    assert stages[1].startswith("stage 1: efficiency ")


def test_a_coordinate_that_is_not_scanned_starts_at_the_best_mode(density: Density) -> None:
    # With nothing scanned no climb can reach the other mode: the scan is what finds it.
    assert explore(density, seed=0, scan_scale=0.0).num_modes == 1
