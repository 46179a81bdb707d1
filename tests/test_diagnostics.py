"""The convergence gate."""

from collections.abc import Callable

import arviz as az
import numpy as np
import pytest
import xarray as xr

from bayes_sched.arrays import Floats
from bayes_sched.posterior.diagnostics import Convergence, convergence, energy_bfmi, mixing_table

CHAINS, DRAWS, DIMS = 4, 1000, ("chain", "draw")


def tree(*, chains: int = CHAINS, draws: int = DRAWS, seed: int = 0) -> xr.DataTree:
    """Independent draws of two parameters and two coordinates: as converged as can be."""
    rng, shape = np.random.default_rng(seed), (chains, draws)

    def dataset(*names: str) -> xr.Dataset:
        return xr.Dataset({name: (DIMS, rng.standard_normal(shape)) for name in names})

    stats = dataset("energy").assign(
        diverging=(DIMS, np.zeros(shape, dtype=bool)), n_steps=(DIMS, np.full(shape, 7))
    )
    groups = {"/posterior": dataset("tau_S", "k_B"), "/coordinates": dataset("level", "slope")}
    return xr.DataTree.from_dict({**groups, "/sample_stats": stats})


def changed(group: str, name: str, change: Callable[[Floats], Floats]) -> Convergence:
    """The gate's finding after one variable is replaced by `change(its values)`."""
    groups = {f"/{key}": node.to_dataset() for key, node in tree().children.items()}
    values = change(groups[f"/{group}"][name].to_numpy().copy())
    groups[f"/{group}"] = groups[f"/{group}"].assign({name: (DIMS, values)})
    return convergence(xr.DataTree.from_dict(groups), tune=1000)


def sticky(values: Floats) -> Floats:
    for i in range(1, DRAWS):
        values[:, i] = 0.9 * values[:, i - 1] + np.sqrt(1 - 0.81) * values[:, i]
    return values


def slow(values: Floats) -> Floats:
    values[2] = np.cumsum(values[2])
    return values


def test_independent_draws_pass() -> None:
    found = convergence(tree())
    assert found.converged
    assert found.problems == ()
    assert found.num_draws == 4000
    assert found.num_gradients == 28_000
    assert list(found.table.columns) == ["r_hat", "ess_bulk", "ess_tail", "passed", "kind"]
    assert list(found.table["kind"]) == ["parameter", "parameter", "coordinate", "coordinate"]
    assert found.table["passed"].all()
    assert found.text.startswith("Converged: R-hat at most 1.00")
    assert found.ess_per_1000_gradients == pytest.approx(found.table["ess_bulk"].min() / 28.0)


def test_a_chain_elsewhere_fails_with_the_number_and_the_next_action() -> None:
    found = changed("posterior", "tau_S", lambda x: x + np.array([0.5, 0, 0, 0])[:, None])
    assert not found.converged
    (problem,) = [p for p in found.problems if p.startswith("R-hat 1.")]
    assert "on tau_S is above 1.01: raise tune above 1000" in problem
    assert not found.table.loc["tau_S", "passed"]
    assert found.text.startswith("Not converged (R-hat")


def test_coordinates_in_one_variable_are_named_by_their_labels() -> None:
    values = np.random.default_rng(1).standard_normal((4, 500, 2))
    dataset = xr.Dataset({"value": ((*DIMS, "coordinate"), values)}, {"coordinate": ["level", "log_slope"]})
    assert list(mixing_table(dataset).index) == ["level", "log_slope"]


@pytest.mark.parametrize(
    ("group", "name", "change", "words"),
    [
        ("coordinates", "level", lambda x: x + np.array([2.0, 0, 0, 0])[:, None], "level"),
        ("posterior", "k_B", sticky, "of k_B is below 400: raise draws from 1000 to about "),
        (
            "sample_stats",
            "diverging",
            lambda x: np.arange(x.size).reshape(x.shape) < 3,
            "3 of 4,000 draws diverged: raise tune above 1000",
        ),
        ("sample_stats", "energy", slow, "of chain 2 is below 0.3: raise tune above 1000"),
        ("posterior", "tau_S", np.ones_like, "could not be computed for tau_S: a chain did not move"),
    ],
    ids=["coordinate", "sticky", "divergences", "E-BFMI", "no move"],
)
def test_whatever_fails_is_named_with_its_number(
    group: str, name: str, change: Callable[[Floats], Floats], words: str
) -> None:
    found = changed(group, name, change)
    assert not found.converged
    assert any(words in problem for problem in found.problems)
    assert len(found.problems) == 1 or group != "sample_stats"
    assert found.num_divergences == (3 if name == "diverging" else 0)


def test_e_bfmi_is_the_one_of_arviz() -> None:
    data = tree()
    expected = az.bfmi(data)["energy"].to_numpy()
    assert energy_bfmi(data["sample_stats"].to_dataset()["energy"]) == pytest.approx(expected, rel=2e-3)


def test_e_bfmi_is_that_of_the_transitions_within_a_component() -> None:
    walk = np.cumsum(np.random.default_rng(0).standard_normal((2, 400)), axis=1)  # small transitions
    energy = np.empty((2, 800))
    energy[:, ::2], energy[:, 1::2] = walk, 100.0 + walk
    interleaved = xr.DataArray(energy, dims=DIMS)
    within = energy_bfmi(interleaved, xr.DataArray(np.tile([0, 1], (2, 400)), dims=DIMS))
    assert within == pytest.approx(energy_bfmi(xr.DataArray(walk, dims=DIMS)))
    assert (within < 0.3).all()
    assert (energy_bfmi(interleaved) > 1.0).all()


def test_one_chain_and_a_handful_of_draws_never_pass() -> None:
    found = convergence(tree(chains=1))
    assert not found.converged
    assert found.problems[0] == "one chain cannot show that it has converged: give 4 chains"
    assert not any(convergence(tree(draws=draws)).converged for draws in (3, 20))


def test_draws_that_are_not_finite_never_pass() -> None:
    assert not changed("posterior", "tau_S", lambda x: np.where(x == x[1, 5], np.nan, x)).converged


def test_a_sampler_that_recorded_nothing_never_passes() -> None:
    found = convergence(xr.DataTree.from_dict({"/posterior": tree()["posterior"].to_dataset()}))
    assert not found.converged
    assert "recorded no diverging and no energy" in found.problems[0]
    assert np.isnan(found.ess_per_1000_gradients)
