"""The Knothe-Rosenblatt rearrangement: a normal in, the mixture out, with the right derivatives."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from scipy.optimize import approx_fprime
from scipy.stats import kstest, norm

from bayes_sched.mixture import Floats, GaussianMixture
from bayes_sched.rearrangement import (
    Rearrangement,
    mixture_logpdf,
    rearrange,
    rearrange_draws,
    rearrange_pullback,
)
from tests.simulation import INTERPRETED

DIM = 3


def some_mixture(seed: int = 0, num_components: int = 3, apart: float = 2.0) -> GaussianMixture:
    """A mixture of correlated components `apart` standard deviations from each other, more or less."""
    rng = np.random.default_rng(seed)
    root = np.tril(rng.normal(0.0, 0.5, (num_components, DIM, DIM))) + np.eye(DIM)
    weights = rng.dirichlet(np.full(num_components, 3.0))
    return GaussianMixture(
        weights, rng.normal(0.0, apart, (num_components, DIM)), root @ root.transpose(0, 2, 1)
    )


MIXTURE = some_mixture()


def numbers(mixture: GaussianMixture) -> tuple[Floats, Floats, Floats]:
    return np.log(mixture.weights), mixture.means, mixture.inverse_cholesky


def jacobian(z: Floats, mixture: GaussianMixture) -> Floats:
    """The Jacobian dx/dz row by row: the pullback of each unit vector."""
    x = rearrange(z, *numbers(mixture))
    return np.array([rearrange_pullback(z, x, unit, *numbers(mixture)) for unit in np.eye(DIM)])


def test_a_single_component_is_its_affine_map() -> None:
    single = some_mixture(num_components=1)
    z = np.random.default_rng(1).standard_normal((20, DIM))
    assert rearrange_draws(z, single) == pytest.approx(single.means[0] + z @ single.cholesky[0].T, rel=1e-12)


def test_a_normal_becomes_the_mixture_in_every_direction() -> None:
    z = np.random.default_rng(2).standard_normal((4000, DIM))
    x = rearrange_draws(z, MIXTURE)
    directions = np.vstack([np.eye(DIM), np.random.default_rng(3).standard_normal((3, DIM))])
    for direction in directions:
        means = MIXTURE.means @ direction
        scales = np.sqrt(np.einsum("i,kij,j->k", direction, MIXTURE.covariances, direction))

        def distribution(t: Floats, means: Floats = means, scales: Floats = scales) -> Floats:
            return norm.cdf((t[..., None] - means) / scales) @ MIXTURE.weights

        assert kstest(x @ direction, distribution).pvalue > 1e-3


@pytest.mark.parametrize("distance", [1.0, 4.0, 8.0])
def test_the_change_of_variables_is_the_ratio_of_densities(distance: float) -> None:
    # log |dx/dz| = log phi(z) - log q(x): what the sampler's density rests on.
    rng = np.random.default_rng(4)
    for _ in range(20):
        z = rng.standard_normal(DIM)
        z *= distance / np.abs(z).max()
        x = rearrange(z, *numbers(MIXTURE))
        log_det = np.log(np.diag(jacobian(z, MIXTURE))).sum()
        ratio = norm.logpdf(z).sum() - MIXTURE.logpdf(x[None])[0]
        assert log_det == pytest.approx(ratio, abs=1e-7)


@pytest.mark.parametrize("z_1", [-8.0, -3.0, 0.0, 3.0, 8.0])
def test_the_first_coordinate_has_the_tail_probability_of_z(z_1: float) -> None:
    x = rearrange(np.array([z_1, 0.0, 0.0]), *numbers(MIXTURE))[0]
    scores = (x - MIXTURE.means[:, 0]) / np.sqrt(MIXTURE.covariances[:, 0, 0])
    tail = norm.sf if z_1 > 0 else norm.cdf
    # erfc is accurate to some 1e-15 relative; a Newton step is repeated until x moves by less than 1e-13.
    assert tail(scores) @ MIXTURE.weights == pytest.approx(tail(z_1), rel=1e-10)


def test_it_is_monotone_across_a_gap_between_far_modes() -> None:
    far = GaussianMixture(
        np.array([0.4, 0.6]), np.array([[-30.0, 0, 0], [30.0, 0, 0]]), np.stack([np.eye(DIM)] * 2)
    )
    at = norm.ppf(0.4)
    z = np.zeros((201, DIM))
    z[:, 0] = np.linspace(at - 1.0, at + 1.0, 201)
    x = rearrange_draws(z, far)[:, 0]
    assert (np.diff(x) > 0).all()
    assert x[0] < -27
    assert x[-1] > 27
    log_tail = np.logaddexp(np.log(0.4) + norm.logsf(x + 30), np.log(0.6) + norm.logsf(x - 30))
    # Between the modes the distribution is flat, so that x is badly determined but its probability is not.
    assert log_tail == pytest.approx(norm.logsf(z[:, 0]), rel=1e-9)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_the_pullback_agrees_with_finite_differences(scale: float) -> None:
    rng = np.random.default_rng(5)
    for _ in range(10):
        z = scale * rng.standard_normal(DIM)
        numeric = approx_fprime(z, rearrange, 1e-6, *numbers(MIXTURE))
        # Forward differences of 1e-6 err by about 1e-6 of the curvature, large where modes are apart.
        assert jacobian(z, MIXTURE) == pytest.approx(numeric, rel=1e-3, abs=2e-4)


def test_masked_components_are_as_if_they_were_not_there() -> None:
    log_weights, means, factors = numbers(MIXTURE)
    masked = np.where([True, False, True], log_weights, -1e30)
    kept = np.array([0, 2])
    rng = np.random.default_rng(6)
    for _ in range(10):
        z, cotangent = rng.normal(0.0, 2.0, (2, DIM))
        alone = rearrange(z, log_weights[kept], means[kept], factors[kept])
        x = rearrange(z, masked, means, factors)
        assert x == pytest.approx(alone, rel=1e-12)
        pulled = rearrange_pullback(z, x, cotangent, masked, means, factors)
        expected = rearrange_pullback(z, alone, cotangent, log_weights[kept], means[kept], factors[kept])
        assert pulled == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_draws_keep_their_dims() -> None:
    z = np.random.default_rng(7).standard_normal((2, 5, DIM))
    x = rearrange_draws(z, MIXTURE)
    assert x.shape == z.shape
    assert x[1, 3] == pytest.approx(rearrange(z[1, 3], *numbers(MIXTURE)))


def test_the_operation_and_its_gradient_are_those_of_the_kernels() -> None:
    z = pt.vector("z", shape=(DIM,))
    data = [pt.as_tensor_variable(value) for value in numbers(MIXTURE)]
    x = Rearrangement()(z, *data)
    cotangent = np.array([1.0, -2.0, 0.5])
    gradient = pt.grad((x * cotangent).sum(), z)
    function = pytensor.function([z], [x, gradient], mode=INTERPRETED)
    point = np.array([0.3, -1.2, 2.0])
    image = rearrange(point, *numbers(MIXTURE))
    value, slope = function(point)
    assert value == pytest.approx(image, rel=1e-14)
    assert slope == pytest.approx(rearrange_pullback(point, image, cotangent, *numbers(MIXTURE)), rel=1e-12)


def test_the_symbolic_log_density_is_that_of_the_mixture() -> None:
    point = np.array([0.5, -3.0, 9.0])
    symbolic = mixture_logpdf(pt.as_tensor_variable(point), *map(pt.as_tensor_variable, numbers(MIXTURE)))
    assert symbolic.eval(mode=INTERPRETED) == pytest.approx(MIXTURE.logpdf(point[None])[0], rel=1e-12)
