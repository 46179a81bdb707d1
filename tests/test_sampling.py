"""Sampling: what comes out, that it is right, that it repeats."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from bayes_sched.errors import InputError
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import all_parameters, load_model
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.sampling.sample import Sampler, Samples, allocate, interleave
from tests.simulation import (
    BENT_WEIGHT,
    NO_STEPS,
    TWO_MODES,
    share_at_negative_log_a,
    two_mode_sampler,
)
from tests.synthetic_fit import TRUTH, simulated_steps

MODEL = load_model("saturation")
NAMES = [p.name for p in all_parameters(MODEL, "proportional")]
PRIORS = Priors.from_parameters(all_parameters(MODEL, "proportional"))
QUICK = SamplerSettings(draws=300, tune=200, chains=2, seed=4, cores=1)


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler(MODEL, simulated_steps(200, seed=2), PRIORS, noise="proportional")


@pytest.fixture(scope="module")
def told() -> list[tuple[str, float | None]]:
    return []


@pytest.fixture(scope="module")
def samples(sampler: Sampler, told: list[tuple[str, float | None]]) -> Samples:
    return sampler.run(QUICK, lambda stage, share: told.append((stage, share)))


def test_every_documented_and_noise_parameter_is_in_the_posterior(samples: Samples) -> None:
    posterior = samples.data["posterior"].to_dataset()
    assert list(posterior) == NAMES
    assert posterior.sizes == {"chain": 2, "draw": 300}
    assert bool((posterior.to_array() > 0).all())


def test_coordinates_statistics_and_prior_come_with_it(sampler: Sampler, samples: Samples) -> None:
    value = samples.data["coordinates"]["value"]
    assert value.dims == ("chain", "draw", "coordinate")
    assert tuple(value["coordinate"].to_numpy()) == sampler.coordinates.names
    assert {"diverging", "energy", "n_steps", "step_size"} <= set(samples.data["sample_stats"])
    assert samples.data["sample_stats"].sizes == {"chain": 2, "draw": 300}
    assert set(samples.data["prior"]) == set(NAMES)
    assert samples.data["prior"].sizes == {"draw": 4000}
    assert int(samples.data["sample_stats"]["n_steps"].sum()) <= samples.info["num_gradients"]
    assert samples.info["num_pilot_evaluations"] > 0
    assert set(samples.timings_s) >= {"compile", "pilot", "sampling"}


def test_the_posterior_is_the_image_of_the_coordinates(sampler: Sampler, samples: Samples) -> None:
    logs = {name: np.log(samples.data["posterior"][name].to_numpy()) for name in NAMES}
    again = sampler.coordinates.from_logs(logs)
    assert again == pytest.approx(samples.data["coordinates"]["value"].to_numpy(), rel=1e-6, abs=1e-6)


def test_the_prior_group_is_drawn_from_the_priors(samples: Samples) -> None:
    for name, prior in PRIORS.items():
        logs = np.log(samples.data["prior"][name])
        assert float(logs.mean()) == pytest.approx(prior.mu, abs=4.5 * prior.sigma / np.sqrt(4000))
        assert float(logs.std()) == pytest.approx(prior.sigma, rel=4.5 / np.sqrt(2 * 4000))


def test_what_the_data_identify_is_recovered(samples: Samples) -> None:
    """Mean latencies of steps inside the trace, the slope, the noise, within four deviations."""
    steps = xr.Dataset({"batch_size": ("step", [4, 16, 64]), "total_tokens": ("step", [4, 300, 1500])})
    posterior, truth = samples.data["posterior"].to_dataset(), xr.Dataset(TRUTH)
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


def test_progress_is_told_in_words_and_shares(samples: Samples, told: list[tuple[str, float | None]]) -> None:
    assert ("looking for modes", None) in told
    shares = [share for stage, share in told if stage == "sampling" and share is not None]
    assert all(0.0 <= share <= 1.0 for share in shares)


@pytest.mark.parametrize(
    ("which", "settings"),
    [
        ("known", SamplerSettings(draws=100, tune=100, chains=2, seed=4, cores=1)),
        pytest.param("saturation", QUICK, marks=pytest.mark.slow),
    ],
)
def test_one_seed_gives_identical_numbers_and_another_does_not(
    request: pytest.FixtureRequest, which: str, settings: SamplerSettings
) -> None:
    sampler = two_mode_sampler() if which == "known" else request.getfixturevalue("sampler")
    first, again = sampler.run(settings), sampler.run(settings)
    for group in ("posterior", "coordinates", "sample_stats", "prior"):
        xr.testing.assert_identical(again.data[group].to_dataset(), first.data[group].to_dataset())
    assert again.info == first.info
    other = sampler.run(replace(settings, seed=5))
    name = next(iter(first.data["posterior"]))
    assert bool((other.data["posterior"][name] != first.data["posterior"][name]).any())


@pytest.fixture(scope="module", params=["nutpie", "pymc"])
def two_mode_samples(request: pytest.FixtureRequest) -> Samples:
    settings = SamplerSettings(draws=500, tune=300, chains=2, seed=1, cores=1, sampler=request.param)
    return two_mode_sampler().run(settings)


def test_both_samplers_find_both_modes_in_their_proportions(two_mode_samples: Samples) -> None:
    # 1,600 effective draws tell the masses: an error below 0.012, and of 1,000 draws themselves 0.015.
    assert share_at_negative_log_a(two_mode_samples.data) == pytest.approx(BENT_WEIGHT, abs=0.06)


def test_both_samplers_draw_each_mode_as_it_is(two_mode_samples: Samples) -> None:
    logs = two_mode_samples.data["posterior"].to_dataset().map(np.log)
    narrow, bent = logs.where(logs["a"] > 1.0), logs.where(logs["a"] < 1.0)
    # Means and deviations of some 350 to 650 draws that are nearly independent: errors of 5 % of a deviation.
    assert float(narrow["a"].mean()) == pytest.approx(4.0, abs=0.25 * 0.4)
    assert float(narrow["a"].std()) == pytest.approx(0.4, rel=0.2)
    assert float(narrow["b"].std()) == pytest.approx(0.3, rel=0.2)
    assert float(bent["a"].mean()) == pytest.approx(-4.0, abs=0.25)
    assert float(bent["b"].mean()) == pytest.approx(0.25, abs=0.3)  # the bend: 0.25 E[(a + 4)^2]
    assert float(bent["b"].std()) == pytest.approx(np.sqrt(1 + 2 * 0.25**2), rel=0.2)


def test_a_model_without_coordinates_samples_logarithms(two_mode_samples: Samples) -> None:
    value = two_mode_samples.data["coordinates"]["value"]
    assert list(value["coordinate"].to_numpy()) == ["log_a", "log_b"]
    assert value.to_numpy()[..., 0] == pytest.approx(
        np.log(two_mode_samples.data["posterior"]["a"].to_numpy())
    )


def test_an_unknown_noise_stops_before_anything_is_compiled() -> None:
    priors = Priors.from_parameters(TWO_MODES.parameters)
    with pytest.raises(InputError, match="noise 'loud': the model known has none"):
        Sampler(TWO_MODES, NO_STEPS, priors, noise="loud")


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
    rng = np.random.default_rng(0)
    many = rng.dirichlet(np.ones(5), size=50)
    allocated = allocate(many, 1000)
    assert (allocated.sum(axis=1) == 1000).all()
    assert np.abs(allocated - 1000 * many).max() < 1.0
    # Masses of parts that are left out do not sum to one.
    assert (allocate(0.9 * many, 1000) == allocated).all()


def _part(number: int, draws: int) -> tuple[np.ndarray[Any, np.dtype[np.float64]], xr.Dataset]:
    """Draws of a part that are numbered: chain c's draw i of part p is (p, c, i)."""
    chain, draw = np.meshgrid(np.arange(2), np.arange(draws), indexing="ij")
    values = np.stack([np.full_like(chain, number), chain, draw], axis=-1).astype(float)
    names = ("diverging", "energy", "n_steps", "step_size")
    return values, xr.Dataset(dict.fromkeys(names, (("chain", "draw"), values[..., 2])))


def test_parts_are_interleaved_evenly_and_each_keeps_its_order() -> None:
    counts = np.array([[30, 70], [50, 50]])
    merged, stats = interleave([_part(0, 50), _part(1, 70)], counts)
    assert merged.shape == (2, 100, 3)
    for chain in range(2):
        assert (merged[chain, :, 1] == chain).all()
        for part in range(2):
            own = merged[chain][merged[chain, :, 0] == part]
            np.testing.assert_array_equal(own[:, 2], np.arange(counts[chain, part]))
            # In every stretch of the chain each part has its share, give or take the one draw at the edge.
            running = np.cumsum(merged[chain, :, 0] == part)
            expected = np.arange(1, 101) * counts[chain, part] / 100
            assert np.abs(running - expected).max() <= 1.0
    np.testing.assert_array_equal(stats["part"], merged[..., 0])
    np.testing.assert_array_equal(stats["energy"], merged[..., 2])


def test_a_chain_without_draws_of_a_part_is_the_other_part() -> None:
    merged, _ = interleave([_part(0, 4), _part(1, 4)], np.array([[4, 0], [0, 4]]))
    assert (merged[0, :, 0] == 0).all()
    assert (merged[1, :, 0] == 1).all()
    np.testing.assert_array_equal(merged[:, :, 2], [[0, 1, 2, 3]] * 2)
