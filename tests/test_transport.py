"""The geometry: parts of a posterior, their masses, and the density that NUTS sees."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.stats import norm

from bayes_sched.mixture import Floats, GaussianMixture
from bayes_sched.transport import Density, Transport, mapped_model
from tests.simulation import BENT_WEIGHT, two_mode_sampler, two_modes

# A rough approximation of the known target: wrong weights, too wide, the bend left out.
ROUGH = Transport(
    GaussianMixture(
        np.array([0.2, 0.3, 0.5]),
        np.array([[-4.0, 0.3], [-4.5, 1.0], [4.0, 1.0]]),
        np.array([[[1.3, 0.0], [0.0, 2.0]], [[2.0, -0.5], [-0.5, 2.5]], [[0.3, 0.05], [0.05, 0.2]]]),
    )
)


@pytest.fixture(scope="module")
def density() -> Density:
    return two_mode_sampler().density


def random_points(size: int, seed: int) -> Floats:
    return ROUGH.mixture.sample(size, np.random.default_rng(seed))


def test_the_density_is_that_of_the_logarithms_with_its_gradient(density: Density) -> None:
    before = density.num_evaluations
    for point in random_points(10, 0):
        value, gradient = density(point)
        assert value == pytest.approx(two_modes(point, np), rel=1e-10)
        numeric = approx_fprime(point, two_modes, 1e-7, np)
        assert gradient == pytest.approx(numeric, rel=1e-4, abs=1e-4)
    assert density.num_evaluations == before + 10
    points = random_points(5, 1)
    assert density.values(points) == pytest.approx(two_modes(points, np), rel=1e-10)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
def test_a_point_without_a_density_is_impossible_and_no_error(density: Density, value: float) -> None:
    log_density, gradient = density(np.array([value, 0.0]))
    assert log_density == -1e300
    assert (gradient == 0.0).all()


def test_components_that_overlap_form_one_part() -> None:
    assert ROUGH.num_parts == 2
    assert ROUGH.part_of_component[0] == ROUGH.part_of_component[1] != ROUGH.part_of_component[2]


def test_a_chain_of_overlapping_components_is_one_part_whose_ends_do_not_overlap() -> None:
    means = np.array([[0.0], [2.5], [5.0], [7.5]])
    chain = Transport(GaussianMixture(np.full(4, 0.25), means, np.ones((4, 1, 1))))
    assert chain.num_parts == 1
    ends = Transport(GaussianMixture(np.full(2, 0.5), means[[0, 3]], np.ones((2, 1, 1))))
    assert ends.num_parts == 2
    assert Transport(GaussianMixture.standard(4)).num_parts == 1


def test_the_parts_add_up_to_the_mixture() -> None:
    points = random_points(50, 2)
    parts = [ROUGH.part(number) for number in range(ROUGH.num_parts)]
    total = np.logaddexp.reduce([part.logpdf(points) for part in parts])
    assert total == pytest.approx(ROUGH.mixture.logpdf(points), rel=1e-12)


def test_masses_are_those_of_the_target_not_of_the_approximation() -> None:
    size = 20_000
    points = random_points(size, 3)
    log_density = two_modes(points, np) + 123.0  # posteriors are known up to a constant
    masses = ROUGH.masses(points, log_density)
    assert masses.sum() == pytest.approx(1.0, abs=1e-12)
    ratio = np.exp(log_density - 123.0 - ROUGH.mixture.logpdf(points))
    bent = masses[ROUGH.part_of_component[0]]
    # Delta method: the error of a ratio of means with these weights.
    share = (points[:, 0] < 0).astype(float)
    error = np.sqrt(np.square(ratio * (share - BENT_WEIGHT)).mean() / size) / ratio.mean()
    assert error < 0.01
    assert bent == pytest.approx(BENT_WEIGHT, abs=4 * error)


def test_nuts_sees_the_density_of_each_part_in_coordinates_that_make_it_nearly_normal(
    density: Density,
) -> None:
    model = mapped_model(density, ROUGH)
    logp = model.compile_logp()
    rng = np.random.default_rng(4)
    for number in range(ROUGH.num_parts):
        for name, value in ROUGH.data(number).items():
            model[name].set_value(value)
        for z in rng.normal(0.0, 1.5, (10, 2)):
            x = ROUGH.to_coordinates(z, number)
            expected = norm.logpdf(z).sum() + two_modes(x, np) - ROUGH.mixture.logpdf(x[None])[0]
            assert float(logp({"z": z})) == pytest.approx(expected, rel=1e-9)


def test_the_map_of_a_part_draws_from_that_part_alone() -> None:
    z = np.random.default_rng(5).standard_normal((2, 200, 2))
    narrow = int(ROUGH.part_of_component[2])
    assert ROUGH.to_coordinates(z, narrow)[..., 0].min() > 1.0
    bent = ROUGH.to_coordinates(z, 1 - narrow)
    assert bent.shape == z.shape
    assert bent[..., 0].max() < 1.0
