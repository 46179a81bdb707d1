"""The mode of a wide posterior, its curvature, and coordinates that are centred there."""

from typing import Any

import numpy as np
import pytest

from bayes_sched.arrays import Floats
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import all_parameters, load_model
from bayes_sched.sampling.components import Density
from bayes_sched.sampling.whitened import LevelCoordinates, curvature, explore_levels, find_mode
from tests.staircase import staircase_steps

COVARIANCE = 0.3 * np.array([[4.0, 0.9, 0.0], [0.9, 0.25, 0.1], [0.0, 0.1, 1.0]])
CENTRE = np.array([30.0, -2.0, 5.0])


class Bent:
    """A Gaussian whose second coordinate follows a parabola of the first; it counts as a density does."""

    dim = 3

    def __init__(self, bend: float) -> None:
        self.bend, self.num_evaluations = bend, 0
        self.precision = np.linalg.inv(COVARIANCE)

    def __call__(self, point: Floats) -> tuple[float, Floats]:
        self.num_evaluations += 1
        distance = point - CENTRE
        distance[1] -= self.bend * distance[0] ** 2
        slope = -self.precision @ distance
        gradient = slope - np.array([2.0 * self.bend * (point - CENTRE)[0] * slope[1], 0.0, 0.0])
        return float(0.5 * distance @ slope), gradient


@pytest.mark.parametrize("bend", [0.0, 0.5])
def test_a_mode_is_found_from_afar_with_its_gaussian(bend: float) -> None:
    density: Any = Bent(bend)
    mode = find_mode(density, np.array([-10.0, 20.0, 0.0]))
    assert mode.point == pytest.approx(CENTRE, abs=0.02)
    assert mode.covariance == pytest.approx(COVARIANCE, rel=0.05, abs=0.02)
    assert mode.log_evidence == pytest.approx(0.5 * np.linalg.slogdet(COVARIANCE)[1], abs=0.02)
    assert density.num_evaluations < 500


@pytest.mark.parametrize("kind", ["mixed", "decode only"])
def test_centred_coordinates_of_levels_have_unit_curvature_at_the_mode(kind: str) -> None:
    steps = staircase_steps(120, seed=6)
    if kind == "decode only":
        steps = steps[steps["num_prefill_reqs"] == 0].reset_index(drop=True)
    model: Any = load_model("saturation_levels")
    priors = Priors.from_parameters(all_parameters(model, "levels"))
    coordinates: LevelCoordinates = model.coordinates(steps, priors, noise="levels")
    density = Density(model.build(steps, priors, noise="levels"), coordinates)
    assert not density.unsupported
    explored = explore_levels(density, coordinates, priors)
    assert explored.num_evaluations == density.num_evaluations
    best = explored.mixture.means[explored.mixture.weights.argmax()]
    own = np.diag(curvature(density, best))[coordinates.num_scalars :]
    assert np.abs(own - 1.0).max() < 0.2
    whitened = explored.mixture.inverse_cholesky[explored.mixture.weights.argmax()].T
    assert np.linalg.norm(np.linalg.solve(whitened.T @ whitened, density(best)[1])) < 0.1
