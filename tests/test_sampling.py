"""Sampling: what comes out, that it is right, that it repeats; the documented model's own fit is slow."""

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import xarray as xr

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import all_parameters, load_model
from bayes_sched.sampling.components import Components
from bayes_sched.sampling.mixture import GaussianMixture
from bayes_sched.sampling.nuts import SAMPLE_STATS, SamplerSettings
from bayes_sched.sampling.sample import Sampler, allocate, interleave
from tests.simulation import BENT_WEIGHT, TWO_MODES, share_at_negative_log_a, two_mode_sampler
from tests.synthetic_fit import TRUTH, simulated_steps

KNOWN = SamplerSettings(draws=500, tune=300, chains=2, seed=1, cores=1)
MODEL = load_model("saturation")


@dataclass
class Run:
    sampler: Sampler
    settings: SamplerSettings
    told: list[tuple[str, float | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.samples = self.sampler.run(self.settings, lambda *told: self.told.append(told))


@cache
def made(which: str) -> Run:
    """Return a run on the known posterior by a sampler, or on the documented model: a minute of compiling."""
    if which != "saturation":
        return Run(two_mode_sampler(), replace(KNOWN, sampler=which))
    priors = Priors.from_parameters(all_parameters(MODEL, "proportional"))
    sampler = Sampler(MODEL, simulated_steps(200, seed=2), priors, noise="proportional")
    return Run(sampler, SamplerSettings(draws=300, tune=200, chains=2, seed=4, cores=1))


SLOW = [pytest.param(which, marks=pytest.mark.slow) for which in ("pymc", "saturation")]


@pytest.fixture(params=["nutpie", *SLOW])
def run(request: pytest.FixtureRequest) -> Run:
    return made(request.param)


def test_every_parameter_its_coordinates_statistics_and_prior_come_out(run: Run) -> None:
    sampler, samples, told = run.sampler, run.samples, run.told
    names, groups = list(sampler.priors), samples.data
    posterior = groups["posterior"].to_dataset()
    sizes = {"chain": 2, "draw": run.settings.draws}
    assert list(posterior) == names
    assert posterior.sizes == groups["sample_stats"].sizes == sizes
    assert bool((posterior.to_array() > 0).all())
    value = groups["coordinates"]["value"]
    assert value.dims == ("chain", "draw", "coordinate")
    assert tuple(value["coordinate"].to_numpy()) == sampler.coordinates.names
    logs = {name: np.log(posterior[name].to_numpy()) for name in names}
    assert sampler.coordinates.from_logs(logs) == pytest.approx(value.to_numpy(), rel=1e-6, abs=1e-6)
    assert {*SAMPLE_STATS, "part"} == set(groups["sample_stats"])
    assert int(groups["sample_stats"]["n_steps"].sum()) <= samples.info["num_gradients"]
    assert samples.info["num_pilot_evaluations"] > 0
    assert set(samples.timings_s) >= {"compile", "pilot", "sampling"}
    assert ("looking for modes", None) in told
    shares = [share for stage, share in told if stage == "sampling" and share is not None]
    assert all(0.0 <= share <= 1.0 for share in shares)


def test_the_prior_group_is_drawn_from_the_priors(run: Run) -> None:
    drawn = run.samples.data["prior"]
    assert drawn.sizes == {"draw": 4000}
    assert set(drawn) == set(run.sampler.priors)
    for name, prior in run.sampler.priors.items():
        logs = np.log(drawn[name])
        assert float(logs.mean()) == pytest.approx(prior.mu, abs=4.5 * prior.sigma / np.sqrt(4000))
        assert float(logs.std()) == pytest.approx(prior.sigma, rel=4.5 / np.sqrt(2 * 4000))


def test_one_seed_gives_identical_numbers_and_another_does_not(run: Run) -> None:
    first, again = run.samples, run.sampler.run(run.settings)
    for group in ("posterior", "coordinates", "sample_stats", "prior"):
        xr.testing.assert_identical(again.data[group].to_dataset(), first.data[group].to_dataset())
    assert again.info == first.info
    other = run.sampler.run(replace(run.settings, seed=5)).data["posterior"].to_dataset()
    assert bool((other != first.data["posterior"].to_dataset()).to_array().any())


@pytest.mark.parametrize("sampler", ["nutpie", SLOW[0]])
def test_both_modes_are_found_in_their_proportions_and_drawn_as_they_are(sampler: str) -> None:
    data = made(sampler).samples.data
    # 1,600 effective draws tell the masses: an error below 0.012, and of 1,000 draws themselves 0.015.
    assert share_at_negative_log_a(data) == pytest.approx(BENT_WEIGHT, abs=0.06)
    logs = data["posterior"].to_dataset().map(np.log)
    narrow, bent = logs.where(logs["a"] > 1.0), logs.where(logs["a"] < 1.0)
    # Means and deviations of some 350 to 650 draws that are nearly independent: errors of 5 % of a deviation.
    assert float(narrow["a"].mean()) == pytest.approx(4.0, abs=0.25 * 0.4)
    assert float(narrow["a"].std()) == pytest.approx(0.4, rel=0.2)
    assert float(narrow["b"].std()) == pytest.approx(0.3, rel=0.2)
    assert float(bent["a"].mean()) == pytest.approx(-4.0, abs=0.25)
    assert float(bent["b"].mean()) == pytest.approx(0.25, abs=0.3)  # the bend: 0.25 E[(a + 4)^2]
    assert float(bent["b"].std()) == pytest.approx(np.sqrt(1 + 2 * 0.25**2), rel=0.2)


def test_pymc_draws_a_component_as_it_is() -> None:
    """The narrow mode, by the component of a rough mixture around it."""
    means, covariances = np.array([[-4.0, 0.25], [4.0, 1.0]]), np.stack([1.2 * np.eye(2), 0.15 * np.eye(2)])
    rough = Components(GaussianMixture(np.array([0.5, 0.5]), means, covariances))
    points, stats = two_mode_sampler().nuts.draw(rough, 1, 300, replace(KNOWN, sampler="pymc"))
    assert points.shape == (2, 300, 2)
    assert set(stats) == set(SAMPLE_STATS)
    assert points[..., 0].mean() == pytest.approx(4.0, abs=0.25 * 0.4)
    assert points.std(axis=(0, 1)) == pytest.approx([0.4, 0.3], rel=0.2)


@pytest.mark.slow
def test_what_the_data_identify_is_recovered() -> None:
    """Mean latencies of steps inside the trace, the slope, the noise, within four deviations."""
    steps = xr.Dataset({"batch_size": ("step", [4, 16, 64]), "total_tokens": ("step", [4, 300, 1500])})
    posterior, truth = made("saturation").samples.data["posterior"].to_dataset(), xr.Dataset(TRUTH)
    found, known = MODEL.latency(posterior, steps), MODEL.latency(truth, steps)
    deviation = found.std(("chain", "draw"))
    assert (abs(found.mean(("chain", "draw")) - known) < 4 * deviation).all()
    assert (deviation < 0.05 * known).all()
    slope = MODEL.combinations(posterior)["c"]
    assert abs(float(slope.mean() - MODEL.combinations(truth)["c"])) < 4 * float(slope.std())
    assert float(slope.std()) < 0.2 * float(slope.mean())
    sigma_rel = posterior["sigma_rel"]
    assert abs(float(sigma_rel.mean()) - TRUTH["sigma_rel"]) < 4 * float(sigma_rel.std())
    assert float(sigma_rel.std()) < 0.3 * TRUTH["sigma_rel"]


def test_an_unknown_noise_stops_before_anything_is_compiled() -> None:
    with pytest.raises(InputError, match="noise 'loud': the model known has none"):
        TWO_MODES.sampler(noise="loud")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sampler": "stan"}, "sampler 'stan': choose one of nutpie, pymc"),
        ({"draws": 0}, "draws = 0: must be at least 1"),
        ({"tune": 0}, "tune = 0: must be at least 1"),
        ({"chains": -1}, "chains = -1: must be at least 1"),
        ({"seed": -1}, "seed = -1: must be at least 0"),
        ({"target_accept": 1.0}, "target_accept = 1: must lie between 0 and 1"),
        ({"target_accept": float("nan")}, "target_accept = nan: must lie between 0 and 1"),
    ],
)
def test_wrong_settings_are_refused_with_their_numbers(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SamplerSettings(**wrong)


def test_draws_are_allocated_in_proportion_and_none_is_lost() -> None:
    masses = np.array([[0.301, 0.699], [0.25, 0.75], [0.999, 0.001]])
    counts = allocate(masses, 10)
    np.testing.assert_array_equal(counts[[0, 2]], [[3, 7], [10, 0]])
    assert counts[1].tolist() in ([2, 8], [3, 7])  # a tie
    many = np.random.default_rng(0).dirichlet(np.ones(5), size=50)
    allocated = allocate(many, 1000)
    assert (allocated.sum(axis=1) == 1000).all()
    assert np.abs(allocated - 1000 * many).max() < 1.0
    # Masses of components that are left out do not sum to one.
    assert (allocate(0.9 * many, 1000) == allocated).all()


def numbered(number: int, draws: int) -> tuple[Floats, xr.Dataset]:
    """Draws of a component: chain c's draw i of component k is (k, c, i)."""
    chain, draw = np.meshgrid(np.arange(2), np.arange(draws), indexing="ij")
    values = np.stack([np.full_like(chain, number), chain, draw], axis=-1).astype(float)
    return values, xr.Dataset(dict.fromkeys(SAMPLE_STATS, (("chain", "draw"), values[..., 2])))


def test_components_are_interleaved_evenly_and_each_keeps_its_order() -> None:
    counts = np.array([[30, 70], [50, 50]])
    merged, stats = interleave([numbered(0, 50), numbered(1, 70)], counts)
    assert merged.shape == (2, 100, 3)
    for chain in range(2):
        assert (merged[chain, :, 1] == chain).all()
        for number in range(2):
            own = merged[chain][merged[chain, :, 0] == number]
            np.testing.assert_array_equal(own[:, 2], np.arange(counts[chain, number]))
            # In every stretch of the chain each has its share, give or take the one draw at the edge.
            running = np.cumsum(merged[chain, :, 0] == number)
            expected = np.arange(1, 101) * counts[chain, number] / 100
            assert np.abs(running - expected).max() <= 1.0
    np.testing.assert_array_equal(stats["part"], merged[..., 0])
    np.testing.assert_array_equal(stats["energy"], merged[..., 2])


def test_a_chain_without_draws_of_a_component_is_the_other_one() -> None:
    merged, _ = interleave([numbered(0, 4), numbered(1, 4)], np.array([[4, 0], [0, 4]]))
    np.testing.assert_array_equal(merged[:, :, 0], [[0] * 4, [1] * 4])
    np.testing.assert_array_equal(merged[:, :, 2], [[0, 1, 2, 3]] * 2)
