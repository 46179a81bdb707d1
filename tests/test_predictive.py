"""The Student-t mixtures that predictions are made of."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats

from bayes_sched.errors import InputError
from bayes_sched.posterior.prediction import (
    StudentTMixture,
    check_probability,
    component_cdf,
    component_quantile,
)

NUM_DRAWS = 400


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20250101)


def mixture_of(rng: np.random.Generator, kind: str) -> tuple[NDArray[np.float64], ...]:
    """Mean, scale (draw, 1) and nu (draw,) of a posterior of one step, of a shape."""
    nu = np.exp(rng.normal(np.log(2.5), 0.1, NUM_DRAWS))
    mean = {
        "narrow": rng.normal(40.0, 0.05, NUM_DRAWS),
        "wide": rng.normal(40.0, 10.0, NUM_DRAWS),
        "two humps": np.where(rng.random(NUM_DRAWS) < 0.3, 20.0, 200.0),
        "decades": np.exp(rng.normal(4.0, 3.0, NUM_DRAWS)),
    }[kind]
    scale = np.exp(rng.normal(0.0, 0.2, NUM_DRAWS)) * (0.01 * mean if kind == "decades" else 1.0)
    return mean[:, None], scale[:, None], nu


@pytest.mark.parametrize("kind", ["narrow", "wide", "two humps", "decades"])
def test_a_quantile_is_the_one_of_monte_carlo_draws_and_has_its_level(
    rng: np.random.Generator, kind: str
) -> None:
    mean, scale, nu = mixture_of(rng, kind)
    mixture, num_samples = StudentTMixture(nu), 400_000
    draw = rng.integers(0, NUM_DRAWS, num_samples)
    samples = mean[draw, 0] + scale[draw, 0] * rng.standard_t(nu[draw])
    for q in (0.001, 0.05, 0.3, 0.5, 0.9, 0.95, 0.999, 0.9999):
        share_below = (samples <= mixture.quantile(mean, scale, q)[0]).mean()
        assert abs(share_below - q) < 4.5 * np.sqrt(q * (1 - q) / num_samples)
        far = mean + 300.0  # above the floor at 0
        exact = component_cdf(far, scale, nu[:, None], mixture.quantile(far, scale, q)).mean()
        assert exact == pytest.approx(q, abs=1e-6, rel=1e-5)


def test_the_tabulated_distribution_function_is_the_exact_one() -> None:
    nu = np.array([0.4, 1.0, 2.3, 5.0, 30.0, 400.0, 5000.0])
    z = np.concatenate([-np.geomspace(1e4, 1e-6, 500), [0.0], np.geomspace(1e-6, 1e4, 500)])
    # located where x is never negative
    zero, one = np.full((1, z.size), 500.0 * z.max()), np.ones((1, z.size))
    for i in range(len(nu)):
        mixture = StudentTMixture(nu[i : i + 1])
        found = mixture.cdf(zero, one, zero[0] + z)
        expected = special.stdtr(mixture.nu, (zero[0] + z) - zero[0])
        np.testing.assert_allclose(found, expected, atol=1e-8)
        seen = (expected > 1e-12) & (np.abs(z) < 500)
        np.testing.assert_allclose(found[seen], expected[seen], rtol=1e-5)


def test_a_mixture_of_equal_components_is_the_component() -> None:
    mean, scale, nu = np.full((300, 1), 30.0), np.full((300, 1), 2.0), np.full(300, 4.0)
    for q in (0.01, 0.5, 0.99):
        found = StudentTMixture(nu).quantile(mean, scale, q)
        assert found[0] == pytest.approx(stats.t.ppf(q, 4.0, 30.0, 2.0), rel=1e-9)


def test_many_steps_are_solved_as_each_one_alone(rng: np.random.Generator) -> None:
    parts = [mixture_of(rng, kind) for kind in ("narrow", "wide", "two humps")]
    nu = parts[0][2]
    mean, scale = (np.hstack([part[i] for part in parts]) for i in (0, 1))
    mixture = StudentTMixture(nu)
    together = mixture.quantile(mean, scale, 0.9)
    alone = [mixture.quantile(mean[:, [i]], scale[:, [i]], 0.9)[0] for i in range(3)]
    np.testing.assert_allclose(together, alone, rtol=1e-6)


def test_quantiles_rise_with_their_level(rng: np.random.Generator) -> None:
    mean, scale, nu = mixture_of(rng, "two humps")
    mixture = StudentTMixture(nu)
    quantiles = [mixture.quantile(mean, scale, q)[0] for q in np.linspace(0.01, 0.99, 99)]
    assert np.all(np.diff(quantiles) > 0)


def test_latencies_are_not_negative() -> None:
    mean, scale, nu = np.full((10, 1), 0.1), np.full((10, 1), 1.0), np.full(10, 3.0)
    mixture = StudentTMixture(nu)
    assert mixture.quantile(mean, scale, 0.05)[0] == 0.0
    assert mixture.cdf(mean, scale, np.array([-1e-9]))[0] == 0.0
    assert mixture.cdf(mean, scale, np.array([0.0]))[0] > 0.3
    assert component_cdf(mean, scale, nu[:, None], np.array([-0.5])).max() == 0.0
    for limit, certain in ((np.inf, 1.0), (-np.inf, 0.0)):
        assert mixture.cdf(mean, scale, np.array([limit]))[0] == certain


def test_a_single_draw_gives_the_quantile_in_closed_form() -> None:
    mean, scale, nu = np.array([[7.0]]), np.array([[0.5]]), np.array([2.0])
    expected = component_quantile(mean, scale, nu[:, None], 0.8)[0]
    np.testing.assert_allclose(StudentTMixture(nu).quantile(mean, scale, 0.8), expected)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 95.0, float("nan")])
def test_a_probability_outside_of_0_to_1_is_refused_with_its_number(value: float) -> None:
    with pytest.raises(InputError, match=rf"probability = {value:g}: give a probability between 0 and 1"):
        check_probability(value, name="probability")
