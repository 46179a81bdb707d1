"""Pools: a population that is recovered, traces drawn again, files, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bayes_sched.errors import InputError
from bayes_sched.model.priors import Priors
from bayes_sched.pooling import members
from bayes_sched.pooling.members import servers_of, shared_coordinates
from bayes_sched.pooling.pool import Pool, pool
from bayes_sched.pooling.population import Population, TraceDraws, redraw
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.steps import steps_arrays
from tests.comparison_fits import with_groups
from tests.richer_fit import richer_fit
from tests.synthetic_fit import synthetic_fit

SHORT = SamplerSettings(draws=300, tune=300, chains=2, cores=1, target_accept=0.95)


def server_fit(name: str, *, server: str, factor: float, seed: int, spread: float = 0.05) -> FittedModel:
    """A synthetic fit whose every latency is `factor` times that of the synthetic server."""
    labels = {"gpu": server, "llm": ""}
    sha256 = name.ljust(64, "0")
    fit = synthetic_fit(seed=seed, spread=spread, name=name, trace_sha256=sha256, labels=labels)
    posterior = fit.posterior
    for key in ("tau_0", "tau_B", "tau_S", "sigma_floor"):
        posterior[key] = posterior[key] * factor
    posterior["P_max"] = posterior["P_max"] / factor
    return with_groups(fit, posterior=posterior)


@pytest.fixture(scope="module")
def fits() -> list[FittedModel]:
    """Fits of three traces that leave the noise open, so that it is not shared."""
    servers = (("fast_256", "fast", 1.0), ("fast_512", "fast", 1.05), ("slow", "slow", 3.0))
    found = []
    for seed, (name, server, factor) in enumerate(servers, start=1):
        fit = server_fit(name, server=server, factor=factor, seed=seed)
        noise = {key: fit.posterior[key] ** 16 for key in ("nu", "sigma_rel", "sigma_floor")}
        found.append(with_groups(fit, posterior=fit.posterior.assign(noise)))
    return found


@pytest.fixture(scope="module")
def pooled(fits: list[FittedModel]) -> Iterator[Pool]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(members, "_PRIOR_DRAWS", 500)
        yield pool(fits, name="three", settings=SHORT)


def test_the_population_tells_servers_apart_and_knows_their_traces_alike(pooled: Pool) -> None:
    assert pooled.population.server_of_trace == {"fast_256": "fast", "fast_512": "fast", "slow": "slow"}
    assert pooled.population.servers == ("fast", "slow")
    assert pooled.population.coordinates == ("L_8", "c", "tau_B")
    draws = pooled.population.posterior.median(("chain", "draw"))
    means = draws["server_mean"]
    ratio = np.exp((means.sel(server="slow") - means.sel(server="fast")).to_numpy())
    assert ratio == pytest.approx(3.0 / 1.025, rel=0.2)
    assert (draws["within"] < draws["between"]).all()


def test_pooling_moves_traces_of_one_server_towards_each_other(pooled: Pool) -> None:
    table = pooled.table()
    slope = table[table["coordinate"] == "c"].set_index("trace")[["alone", "pooled"]].to_numpy(dtype=float)
    between = abs(np.log(slope[1] / slope[0]))  # fast_512 against fast_256
    assert between[1] < between[0]
    assert all(300.0 < number <= 1000.0 for number in pooled.population.effective_draws.values())


def test_members_and_the_unseen_server_predict_like_any_fit(pooled: Pool) -> None:
    step = steps_arrays(batch_size=[8.0], total_tokens=[512.0])
    slow = pooled.pooled["slow"].predictive_band(step)["median"].item()
    fast = pooled.pooled["fast_256"].predictive_band(step)["median"].item()
    unseen = pooled.unseen.predictive_band(step)
    assert slow == pytest.approx(3.0 * fast, rel=0.1)
    assert unseen["lower"].item() < fast < slow < unseen["upper"].item()
    assert not unseen["extrapolation"].item()
    assert "no step of this server was seen" in pooled.unseen.warnings[0]


def test_a_pooled_fit_is_judged_against_its_population_prior(pooled: Pool) -> None:
    table = pooled.pooled["fast_256"].parameter_table().set_index("name")
    assert table.loc["tau_B", "prior_median"] == pytest.approx(0.05, rel=0.5)
    assert pooled.pooled["fast_256"].metadata.prior_from == "the pool three (3 traces)"


def test_a_known_server_s_prior_is_narrower_than_a_new_one_s(pooled: Pool) -> None:
    known, new = pooled.population.prior("fast"), pooled.population.prior()
    assert (known.sd.mean(axis=0) < new.sd.mean(axis=0)).all()
    assert known.text == "the pool three (3 traces of 2 servers), as a further trace of fast"
    with pytest.raises(InputError, match="no server 'medium' in the pool three: it has fast and slow"):
        pooled.population.prior("medium")


def test_a_pool_survives_its_files(pooled: Pool, tmp_path: Path) -> None:
    pooled.save(tmp_path)
    loaded = Population.load(tmp_path / "population.nc")
    assert loaded.posterior.identical(pooled.population.posterior)
    for name in ("server_of_trace", "effective_draws", "problems"):
        assert getattr(loaded, name) == getattr(pooled.population, name)
    for name, fit in (("slow", pooled.pooled["slow"]), ("unseen", pooled.unseen)):
        again = FittedModel.load(tmp_path / "members" / name / "posterior.nc")
        assert again.posterior.identical(fit.posterior)
        assert again.metadata == fit.metadata
    with pytest.raises(InputError, match="no population of servers"):
        Population.load(tmp_path / "members" / "slow" / "posterior.nc")


@pytest.mark.parametrize("content", [b"", b"{}", b"\x89HDF\r\n\x1a\nrubbish"])
def test_a_file_that_is_no_population_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "population.nc").write_bytes(content)
    with pytest.raises(InputError, match=r"population\.nc: no population"):
        Population.load(tmp_path / "population.nc")


def test_draws_are_chosen_in_proportion_to_their_weights() -> None:
    rng = np.random.default_rng(0)
    trace = TraceDraws(z=np.array([[0.0], [1.0], [3.0]]), log_base=np.log([1.0, 2.0, 0.5]))
    number = 20_000
    chosen, effective = redraw(trace, np.zeros((number, 1)), np.ones((number, 1)), rng)
    weight = np.exp(-0.5 * np.array([0.0, 1.0, 9.0])) / np.array([1.0, 2.0, 0.5])
    weight /= weight.sum()
    share = np.bincount(chosen, minlength=3) / number
    assert abs(share - weight).max() < 4.0 * np.sqrt(0.25 / number)
    assert effective == pytest.approx(1.0 / (weight**2).sum(), rel=1e-9)


Change = Callable[[FittedModel], FittedModel]


def changed(**changes: object) -> Change:
    return lambda fit: replace(fit, metadata=replace(fit.metadata, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(converged=False), "slow: its fit has not converged"),
        (changed(prior_from="the pool x"), "slow: its prior is from the pool x; pool fits under documented"),
        (changed(trace_sha256="fast_256".ljust(64, "0")), "fast_256 and slow are of the same trace"),
        (lambda _: richer_fit("saturation_context"), "fast_256 and richer are of different models"),
        (changed(name="fast_256"), "two fits have the same name"),
        (changed(priors=Priors([])), "fits of the model saturation cannot be pooled"),
    ],
)
def test_what_cannot_be_pooled_is_refused_by_name(
    fits: list[FittedModel], change: Change, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        pool([fits[0], change(fits[2])])


def test_one_trace_or_a_server_for_a_trace_that_is_not_there_is_refused(fits: list[FittedModel]) -> None:
    with pytest.raises(InputError, match="1 trace: a pool takes two or more"):
        pool(fits[:1])
    with pytest.raises(InputError, match="a server is given for medium, but the pool has fast_256"):
        servers_of({fit.metadata.name: fit for fit in fits}, {"medium": "x"})


def test_a_trace_without_labels_is_a_server_of_its_own() -> None:
    fit = changed(labels={})(synthetic_fit(name="alone"))
    assert servers_of({"alone": fit}, {}) == {"alone": "alone"}
    assert servers_of({"alone": fit}, {"alone": "mine"}) == {"alone": "mine"}


def test_what_one_trace_leaves_open_is_not_shared() -> None:
    sharp, blurred = synthetic_fit(name="sharp"), synthetic_fit(name="blurred", spread=0.6)
    assert shared_coordinates({"sharp": sharp}) == ("L_8", "c", "tau_B", "nu", "sigma_rel", "sigma_floor")
    assert shared_coordinates({"sharp": sharp, "blurred": blurred})[:3] == ("L_8", "c", "tau_B")
    assert len(shared_coordinates({"sharp": sharp, "blurred": blurred})) < 6
