"""The convergence gate."""

import numpy as np
import pytest
import xarray as xr

from bayes_sched.posterior.diagnostics import Convergence, convergence, energy_bfmi, mixing_table

CHAINS, DRAWS = 4, 1000


def tree(*, chains: int = CHAINS, draws: int = DRAWS, seed: int = 0) -> xr.DataTree:
    """Independent draws of two parameters and two coordinates: as converged as can be."""
    rng = np.random.default_rng(seed)
    shape = (chains, draws)

    def dataset(*names: str) -> xr.Dataset:
        return xr.Dataset({name: (("chain", "draw"), rng.standard_normal(shape)) for name in names})

    stats = xr.Dataset(
        {
            "diverging": (("chain", "draw"), np.zeros(shape, dtype=bool)),
            "energy": (("chain", "draw"), rng.standard_normal(shape)),
            "n_steps": (("chain", "draw"), np.full(shape, 7)),
        }
    )
    groups = {
        "/posterior": dataset("tau_S", "k_B"),
        "/coordinates": dataset("level", "slope"),
        "/sample_stats": stats,
    }
    return xr.DataTree.from_dict(groups)


def changed(group: str, name: str, change: object) -> Convergence:
    """The gate's finding after one variable is replaced by `change(its values)`."""
    data = tree()
    values = data[group][name].to_numpy().copy()
    dims = ("chain", "draw")
    groups = {f"/{key}": node.to_dataset() for key, node in data.children.items()}
    groups[f"/{group}"] = groups[f"/{group}"].assign({name: (dims, change(values))})  # type: ignore[operator]
    return convergence(xr.DataTree.from_dict(groups), tune=1000)


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
    assert any(
        p.startswith("R-hat 1.") and "on tau_S is above 1.01: raise --tune above 1000" in p
        for p in found.problems
    )
    assert not found.table.loc["tau_S", "passed"]
    assert found.text.startswith("Not converged (R-hat")


def test_a_coordinate_that_has_not_converged_fails_the_fit() -> None:
    found = changed("coordinates", "level", lambda x: x + np.array([2.0, 0, 0, 0])[:, None])
    assert not found.converged
    assert "level" in found.problems[0]


def test_coordinates_in_one_variable_are_named_by_their_labels() -> None:
    rng = np.random.default_rng(1)
    values = xr.Dataset(
        {"value": (("chain", "draw", "coordinate"), rng.standard_normal((4, 500, 2)))},
        coords={"coordinate": ["level", "log_slope"]},
    )
    assert list(mixing_table(values).index) == ["level", "log_slope"]


def test_sticky_chains_ask_for_more_draws() -> None:
    def sticky(values: np.ndarray) -> np.ndarray:
        for i in range(1, DRAWS):
            values[:, i] = 0.9 * values[:, i - 1] + np.sqrt(1 - 0.81) * values[:, i]
        return values

    found = changed("posterior", "k_B", sticky)
    problem = next(p for p in found.problems if p.startswith("bulk ESS"))
    assert "of k_B is below 400: raise --draws from 1000 to about " in problem


def test_divergences_fail_and_are_counted() -> None:
    found = changed("sample_stats", "diverging", lambda x: np.arange(x.size).reshape(x.shape) < 3)
    assert found.num_divergences == 3
    assert found.problems[0].startswith("3 of 4,000 draws diverged: raise --tune above 1000")


def test_a_low_e_bfmi_fails_and_names_the_chain() -> None:
    def slow(values: np.ndarray) -> np.ndarray:
        values[2] = np.cumsum(values[2])
        return values

    found = changed("sample_stats", "energy", slow)
    assert len(found.problems) == 1
    assert "of chain 2 is below 0.3: raise --tune above 1000" in found.problems[0]


def test_e_bfmi_is_the_one_of_arviz() -> None:
    import arviz as az

    data = tree()
    energy = data["sample_stats"].to_dataset()["energy"]
    expected = az.bfmi(data)["energy"].to_numpy()
    assert energy_bfmi(energy) == pytest.approx(expected, rel=2e-3)


def test_e_bfmi_is_that_of_the_transitions_within_a_part() -> None:
    rng = np.random.default_rng(0)
    slow = np.cumsum(rng.standard_normal((2, 400)), axis=1)  # a random walk: each transition covers little
    energy = np.empty((2, 800))
    energy[:, ::2], energy[:, 1::2] = slow, 100.0 + slow
    part = np.tile([0, 1], (2, 400))
    dims = ("chain", "draw")
    interleaved = xr.DataArray(energy, dims=dims)
    within = energy_bfmi(interleaved, xr.DataArray(part, dims=dims))
    assert within == pytest.approx(energy_bfmi(xr.DataArray(slow, dims=dims)))
    assert (within < 0.3).all()
    assert (energy_bfmi(interleaved) > 1.0).all()


def test_one_chain_never_passes() -> None:
    found = convergence(tree(chains=1))
    assert not found.converged
    assert found.problems[0] == "one chain cannot show that it has converged: give --chains 4"


def test_a_chain_that_does_not_move_never_passes() -> None:
    found = changed("posterior", "tau_S", lambda x: np.ones_like(x))
    assert not found.converged
    assert any("could not be computed for tau_S: a chain did not move" in p for p in found.problems)


def test_draws_that_are_not_finite_never_pass() -> None:
    def broken(values: np.ndarray) -> np.ndarray:
        values[1, 5] = np.nan
        return values

    assert not changed("posterior", "tau_S", broken).converged


def test_a_handful_of_draws_never_passes() -> None:
    assert not convergence(tree(draws=3)).converged
    assert not convergence(tree(draws=20)).converged


def test_a_sampler_that_recorded_nothing_never_passes() -> None:
    data = xr.DataTree.from_dict({"/posterior": tree()["posterior"].to_dataset()})
    found = convergence(data)
    assert not found.converged
    assert "recorded no diverging and no energy" in found.problems[0]
    assert np.isnan(found.ess_per_1000_gradients)
