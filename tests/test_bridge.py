"""Bridge sampling finds masses that are known, and the components of a wide posterior that is a mixture."""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, multivariate_t

from bayes_sched.arrays import Floats
from bayes_sched.sampling import bridge
from bayes_sched.sampling.bridge import bridge_masses, find_components, log_masses
from bayes_sched.sampling.components import Components, Density
from bayes_sched.sampling.mixture import GaussianMixture
from bayes_sched.sampling.nuts import ComponentSampler, Progress, SamplerSettings


def normal_log_density(points: Floats, centre: Floats, width: float) -> Floats:
    found: Floats = np.asarray(multivariate_normal(centre, width**2 * np.eye(len(centre))).logpdf(points))
    return found


@pytest.mark.parametrize("dim", [1, 10, 40])
def test_the_mass_of_a_long_tailed_density_is_found(dim: int) -> None:
    rng = np.random.default_rng(0)
    shape = np.cov(rng.normal(size=(2 * dim, 2 * dim)))[:dim, :dim].reshape(dim, dim)
    known = multivariate_t(np.arange(dim), shape, df=15)
    gaussian = multivariate_normal(np.arange(dim), 1.15 * shape)
    points = np.concatenate(
        [density.rvs(4000, random_state=rng).reshape(4000, dim) for density in (known, gaussian)]
    )
    both = np.stack([known.logpdf(points) + 3.0, gaussian.logpdf(points)], axis=1)
    assert log_masses(both, (4000, 4000)) == pytest.approx([3.0, 0.0], abs=0.05)


def test_densities_that_overlap_in_a_row_weigh_each_other() -> None:
    """The last one, of known mass, overlaps with the middle one alone: the first is weighed through it."""
    rng = np.random.default_rng(1)
    dim, width = 20, 0.6
    centres = np.zeros((3, dim))
    centres[:, 0] = (-1.5, 0.0, 1.5)
    counts = (4000, 1000, 3000)
    points = np.concatenate(
        [centre + width * rng.normal(size=(n, dim)) for centre, n in zip(centres, counts, strict=True)]
    )
    logs = np.stack([normal_log_density(points, centre, width) for centre in centres], axis=1)
    found = log_masses(logs + np.array([2.0, -5.0, 0.0]), counts)
    assert found == pytest.approx([2.0, -5.0, 0.0], abs=0.15)


def test_equal_densities_need_no_iteration() -> None:
    logs = np.zeros((17, 2))
    logs[:, 0] = 2.5
    assert log_masses(logs, (10, 7)) == pytest.approx([2.5, 0.0])


HEAD, TAIL = 2, 30
WEIGHTS, CENTRES = (0.75, 0.25), np.array([[-4.0, 0.0], [4.0, 1.0]])
SETTINGS = SamplerSettings(draws=100, chains=2, seed=3)
type Told = list[tuple[str, float | None]]


def known_mixture() -> GaussianMixture:
    """Two modes of the head; the other coordinates are its linear function and noise of scale 0.3."""
    slopes, own = np.random.default_rng(0).normal(size=(HEAD, TAIL)), np.diag([1.0, 0.2])
    joint = np.block([[own, own @ slopes], [slopes.T @ own, slopes.T @ own @ slopes + 0.09 * np.eye(TAIL)]])
    means = np.hstack([CENTRES, CENTRES @ slopes])
    return GaussianMixture(np.array(WEIGHTS), means, np.array([joint, joint]))


TRUTH = known_mixture()
DRAWS = TRUTH.sample(20_000, np.random.default_rng(9))
# What exploration leaves: the places of the modes, round and of wrong weight.
MODES = GaussianMixture(np.array([0.5, 0.5]), TRUTH.means + 0.5, np.array([4.0 * np.eye(HEAD + TAIL)] * 2))


class KnownDensity:
    dim = HEAD + TAIL

    def values(self, points: Floats) -> Floats:
        return TRUTH.logpdf(points) + 123.0


@dataclass(frozen=True)
class ExactSampler:
    """Draws of a component of the known mixture, by how much of each it holds; stuck chains repeat one."""

    is_stuck: bool = False
    density: ClassVar = KnownDensity()

    def draw(
        self,
        components: Components,
        number: int,
        draws: int,
        settings: SamplerSettings,
        progress: Progress | None = None,
    ) -> tuple[Floats, Any]:
        rng = np.random.default_rng([settings.seed, number])
        joint = components.mixture.component_logpdf(DRAWS)
        share = np.exp(joint[:, number] - logsumexp(joint, axis=1))
        kept = rng.choice(len(DRAWS), size=settings.chains * draws, p=share / share.sum())
        if progress is not None:
            progress("sampling", 0.5)
        found = DRAWS[kept].reshape(settings.chains, draws, -1)
        return np.repeat(found[:, :1], draws, axis=1) if self.is_stuck else found, None


def find(modes: GaussianMixture, *, is_stuck: bool = False, told: Told) -> tuple[Components, Floats]:
    return find_components(
        cast(ComponentSampler, ExactSampler(is_stuck)),
        modes,
        head=HEAD,
        settings=SETTINGS,
        rng=np.random.default_rng(1),
        progress=lambda text, share: told.append((text, share)),
    )


@pytest.fixture(scope="module")
def found() -> tuple[Components, Floats, Told]:
    told: Told = []
    return *find(MODES, told=told), told


def test_components_hold_as_much_as_their_share_of_the_posterior(
    found: tuple[Components, Floats, Told],
) -> None:
    components, masses, told = found
    joint = components.mixture.component_logpdf(TRUTH.sample(20_000, np.random.default_rng(2)))
    expected = np.exp(joint - logsumexp(joint, axis=1, keepdims=True)).mean(axis=0)
    assert masses.sum() == pytest.approx(1.0)
    assert masses == pytest.approx(expected, abs=0.03)
    # The stage has a name of its own, and shares that grow.
    assert {text for text, _ in told} == {"dividing the posterior"}
    assert [share for _, share in told[:2]] == [0.25, 0.75]


def test_the_finer_mixture_resembles_the_posterior_in_all_coordinates(
    found: tuple[Components, Floats, Told],
) -> None:
    """Effective over actual draws of importance sampling, in 32 coordinates: the regression is found."""
    mixture = found[0].mixture
    points = mixture.sample(20_000, np.random.default_rng(4))
    ratio = np.exp(TRUTH.logpdf(points) - mixture.logpdf(points))
    assert ratio.mean() ** 2 / np.square(ratio).mean() > 0.5
    left = mixture.means[:, 0] < 0.0
    assert mixture.weights[left].sum() == pytest.approx(WEIGHTS[0], abs=0.03)


def test_some_components_are_weighed_among_themselves() -> None:
    components, rng = Components(TRUTH), np.random.default_rng(5)
    draws = ExactSampler().draw(components, 1, 500, SETTINGS)[0].reshape(-1, KnownDensity.dim)
    masses = bridge_masses(cast(Density, KnownDensity()), components, [1], [draws], rng)
    assert masses == pytest.approx([1.0])


def test_chains_that_are_stuck_make_components_too_for_the_gate_to_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, fewer in (("_SETTLING", (30, 70)), ("_TRIAL", 20), ("_PROPOSED", 400)):
        monkeypatch.setattr(bridge, name, fewer)
    components, masses = find(MODES.collapsed(), is_stuck=True, told=[])
    assert np.isfinite(components.mixture.inverse_cholesky).all()
    assert masses.sum() == pytest.approx(1.0)
