"""The division of a wide posterior, with a sampler that needs none: the posterior is a known mixture."""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import pytest
from scipy.special import logsumexp

from bayes_sched.arrays import Floats
from bayes_sched.sampling.bridge import Division, divide, part_masses
from bayes_sched.sampling.components import Density, Partition
from bayes_sched.sampling.mixture import GaussianMixture
from bayes_sched.sampling.nuts import PartSampler, Progress, SamplerSettings

HEAD, TAIL = 2, 30
SLOPES = np.random.default_rng(0).normal(size=(HEAD, TAIL))
WEIGHTS, CENTRES = (0.75, 0.25), np.array([[-4.0, 0.0], [4.0, 1.0]])


def truth() -> GaussianMixture:
    """Two modes of the head; the other coordinates are its linear function and noise of scale 0.3."""
    own = np.diag([1.0, 0.2])
    joint = np.block([[own, own @ SLOPES], [SLOPES.T @ own, SLOPES.T @ own @ SLOPES + 0.09 * np.eye(TAIL)]])
    means = np.hstack([CENTRES, CENTRES @ SLOPES])
    return GaussianMixture(np.array(WEIGHTS), means, np.array([joint, joint]))


class KnownDensity:
    dim = HEAD + TAIL

    def values(self, points: Floats) -> Floats:
        return truth().logpdf(points) + 123.0


@dataclass(frozen=True)
class ExactSampler:
    """Draws of a part of the known mixture, by how much of each the part holds; stuck chains repeat one."""

    is_stuck: bool = False
    density: ClassVar = KnownDensity()

    def draw(
        self,
        partition: Partition,
        part: int,
        draws: int,
        settings: SamplerSettings,
        progress: Progress | None,
    ) -> tuple[Floats, Any]:
        rng = np.random.default_rng([settings.seed, part])
        points = truth().sample(20_000, rng)
        joint = partition.mixture.component_logpdf(points)
        share = np.exp(joint[:, part] - logsumexp(joint, axis=1))
        number = settings.chains * draws
        kept = rng.choice(len(points), size=number, p=share / share.sum())
        if progress is not None:
            progress("sampling", 0.5)
        found = points[kept].reshape(settings.chains, draws, -1)
        return np.repeat(found[:, :1], draws, axis=1) if self.is_stuck else found, None


def modes() -> GaussianMixture:
    """What a pilot leaves: the places of the modes, round and of wrong weight."""
    round_ones = np.array([4.0 * np.eye(HEAD + TAIL)] * 2)
    return GaussianMixture(np.array([0.5, 0.5]), truth().means + 0.5, round_ones)


SETTINGS = SamplerSettings(draws=100, chains=2, seed=3)


Told = list[tuple[str, float | None]]


@pytest.fixture(scope="module")
def divided() -> tuple[Division, Told]:
    told: Told = []
    found = divide(
        cast(PartSampler, ExactSampler()),
        modes(),
        head=HEAD,
        settings=SETTINGS,
        rng=np.random.default_rng(1),
        progress=lambda text, share: told.append((text, share)),
    )
    return found, told


def test_the_parts_hold_as_much_as_their_share_of_the_posterior(divided: tuple[Division, Told]) -> None:
    division, _ = divided
    points = truth().sample(20_000, np.random.default_rng(2))
    joint = division.partition.mixture.component_logpdf(points)
    expected = np.exp(joint - logsumexp(joint, axis=1, keepdims=True)).mean(axis=0)
    assert division.masses.sum() == pytest.approx(1.0)
    assert division.masses == pytest.approx(expected, abs=0.03)


def test_the_finer_mixture_resembles_the_posterior_in_all_coordinates(
    divided: tuple[Division, Told],
) -> None:
    """Effective over actual draws of importance sampling, in 32 coordinates: the regression is found."""
    mixture = divided[0].partition.mixture
    points = mixture.sample(20_000, np.random.default_rng(4))
    ratio = np.exp(truth().logpdf(points) - mixture.logpdf(points))
    assert ratio.mean() ** 2 / np.square(ratio).mean() > 0.5
    left = mixture.means[:, 0] < 0.0
    assert mixture.weights[left].sum() == pytest.approx(WEIGHTS[0], abs=0.03)


def test_some_parts_are_weighed_among_themselves() -> None:
    partition = Partition(truth())
    sampler, rng = ExactSampler(), np.random.default_rng(5)
    draws = sampler.draw(partition, 1, 500, SETTINGS, None)[0].reshape(-1, KnownDensity.dim)
    masses = part_masses(cast(Density, KnownDensity()), partition, [1], [draws], rng)
    assert masses == pytest.approx([1.0])


def test_the_stage_has_a_name_of_its_own_and_shares_that_grow(divided: tuple[Division, Told]) -> None:
    _, told = divided
    assert {text for text, _ in told} == {"dividing the posterior"}
    first = [share for _, share in told[:2]]
    assert first == [0.25, 0.75]


def test_chains_that_are_stuck_are_divided_too_for_the_gate_to_tell() -> None:
    rng = np.random.default_rng(6)
    one = modes().collapsed()
    division = divide(
        cast(PartSampler, ExactSampler(is_stuck=True)), one, head=HEAD, settings=SETTINGS, rng=rng
    )
    assert np.isfinite(division.partition.mixture.inverse_cholesky).all()
    assert division.masses.sum() == pytest.approx(1.0)
