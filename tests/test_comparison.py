"""Comparisons: known ratios come out, verdicts keep their rule, and what cannot be compared is refused."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from numpy.typing import NDArray

import bayes_sched
from bayes_sched.comparison import Comparison, compare
from bayes_sched.comparison.equivalents import equivalent_sentence, largest_within
from bayes_sched.comparison.latencies import latency_maps
from bayes_sched.comparison.members import difference_table, labels_of, members_of, warnings_of
from bayes_sched.comparison.misfit import misfit_warnings
from bayes_sched.comparison.paired import Servers, paired_posteriors
from bayes_sched.comparison.parameters import parameter_ratios, parameter_values
from bayes_sched.comparison.shared_grid import shared_grid
from bayes_sched.comparison.shares import IN_TRACES, MEASURED, ON_GRID
from bayes_sched.comparison.throughput import BY_LIMIT, BY_TRACE, COST, TOKENS, rates_of
from bayes_sched.comparison.verdicts import data_factor, verdicts
from bayes_sched.comparison.words import certainty
from bayes_sched.errors import InputError
from bayes_sched.fitted import FittedModel
from bayes_sched.records import records
from bayes_sched.steps import steps_arrays
from tests.comparison_fits import scaled, server, with_groups
from tests.synthetic_fit import TRUTH

RATIO = 0.8
SMALL: dict[str, Any] = {"batch_size": [4, 16, 64], "total_tokens": [16, 64, 1024, 4096]}


@pytest.fixture(scope="module")
def pair() -> list[FittedModel]:
    return [server(RATIO, name="fast", gpu="X100"), server(name="slow", gpu="Y50")]


@pytest.fixture(scope="module")
def found(pair: list[FittedModel]) -> Comparison:
    return compare(pair, prices={"X100": 2.0, "slow": 1.0}, slo_ms=30.0, slo_quantile=0.9)


class NormalServers:
    """Two servers, many steps: of each the truth, the data and the posterior of the log latency are normal.

    Every step stands for a pair of servers of its own, so that one comparison is many.
    """

    labels = ("first", "second")

    def __init__(self, num: int, *, num_draws: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        prior_sd, noise_sd = 0.1, rng.uniform(0.003, 0.2, (2, 1, num))
        self.truth = rng.normal(0.0, prior_sd, (2, num))
        observed = rng.normal(self.truth[:, None], noise_sd)
        shrink = prior_sd**2 / (prior_sd**2 + noise_sd**2)
        logs = rng.normal(shrink * observed, np.sqrt(shrink) * noise_sd, (2, num_draws, num))
        dims = ("gpu", "draw", "step")
        self.mean_ms = xr.DataArray(20.0 * np.exp(logs), dims=dims, coords={"gpu": list(self.labels)})
        self.steps = [20.0 * np.exp(log) * (1.0 + 0.1 * rng.standard_t(4.0, num)) for log in self.truth]

    def scale_ms(self, steps: object) -> xr.DataArray:
        return 0.1 * self.mean_ms

    def nu(self) -> xr.DataArray:
        return xr.full_like(self.mean_ms.isel(step=0, drop=True), 4.0)


def by(table: pd.DataFrame, column: str) -> dict[str, dict[str, Any]]:
    """The rows of a table by one of its columns."""
    return {row[column]: row for row in records(table)}


def servers_of(fits: list[FittedModel]) -> Servers:
    return Servers(labels_of(fits), fits, max_draws=4000, seed=0)


def maps_of(servers: Any, steps: xr.Dataset | None = None, probability: float = 0.95) -> xr.Dataset:
    """The maps of the only pair; of normal servers without steps."""
    steps = xr.Dataset() if steps is None else steps
    mean_ms = servers.mean_ms if isinstance(servers, NormalServers) else servers.mean_latency_ms(steps)
    maps = latency_maps(servers, steps, mean_ms, rope=0.05, probability=probability, seed=1)
    return maps.isel(pair=0)


def test_the_public_name_is_the_function() -> None:
    assert bayes_sched.compare is compare


def test_a_known_ratio_comes_out_at_every_step(found: Comparison) -> None:
    covered = found.table[~found.table["extrapolation"]]
    assert len(covered) > 50
    assert covered["ratio_median"].to_numpy() == pytest.approx(RATIO, rel=0.01)
    assert (covered["verdict"] == "faster").all()
    assert (covered["p_faster"] > 0.99).all()
    assert (covered["ratio_lower"] < covered["ratio_upper"]).all()


def test_arrays_carry_the_dims_that_are_promised(found: Comparison) -> None:
    assert found.mean_latency_ms.dims == ("gpu", "draw", "batch_size", "total_tokens")
    assert found.mean_latency_ms["gpu"].to_numpy().tolist() == ["X100", "Y50"]
    assert set(found.maps["ratio_median"].dims) == {"pair", "batch_size", "total_tokens"}
    assert found.maps["pair"].to_numpy().tolist() == ["X100 / Y50"]
    assert found.mean_latency_ms.attrs["units"] == "ms"


def test_swapping_the_servers_swaps_every_verdict() -> None:
    forward: Any = NormalServers(300, num_draws=400, seed=1)
    backward: Any = NormalServers(300, num_draws=400, seed=1)
    backward.mean_ms = forward.mean_ms.isel(gpu=[1, 0]).assign_coords(gpu=list(forward.labels))
    one, other = (maps_of(servers) for servers in (forward, backward))
    swap = {"faster": "slower", "slower": "faster"}
    verdicts_of = [str(word) for word in one["verdict"].to_numpy()]
    assert [swap.get(word, word) for word in verdicts_of] == other["verdict"].to_numpy().tolist()
    assert set(verdicts_of) == {"faster", "slower", "undecided", "equivalent"}
    assert (1.0 / one["ratio_median"]).to_numpy() == pytest.approx(other["ratio_median"].to_numpy(), rel=1e-3)
    assert (1.0 - one["p_faster"]).to_numpy() == pytest.approx(other["p_faster"].to_numpy(), abs=1e-9)


def test_extrapolation_is_marked_where_any_trace_ends(pair: list[FittedModel]) -> None:
    grid = shared_grid(servers_of([pair[0], server(name="small", budget=512, max_b=16)]))
    is_outside = (grid["batch_size"] > 17) | (grid["total_tokens"] > 540)
    possible, extrapolated = grid["possible"], grid["extrapolation"]
    assert bool(extrapolated.where(possible & is_outside, True).all())
    assert not bool(extrapolated.where(possible & ~is_outside, False).any())
    assert float(grid["total_tokens"].max()) == 4096.0


def test_a_steps_probability_is_that_of_simulated_steps(pair: list[FittedModel]) -> None:
    fits, steps = [scaled(pair[1], 0.97), pair[1]], steps_arrays(16, 64)
    p = float(maps_of(servers_of(fits), steps)["p_step_faster"].item())
    first, second = (
        np.ravel(fit.sample_latency(steps, seed=seed, max_draws=None)) for seed, fit in enumerate(fits)
    )
    rng = np.random.default_rng(0)
    simulated = np.mean([(first < rng.permutation(second)).mean() for _ in range(50)])
    assert p == pytest.approx(simulated, abs=0.03)
    assert 0.55 < p < 0.95


def test_probabilities_to_be_fastest_add_up_to_one() -> None:
    three = [server(f, name=n) for f, n in ((1.0, "a"), (1.01, "b"), (1.02, "c"))]
    found = compare(three, **SMALL)
    total = found.maps["p_fastest"].sum("gpu", skipna=False)
    assert total.to_numpy()[found.grid["possible"].to_numpy()] == pytest.approx(1.0)
    assert found.maps["pair"].to_numpy().tolist() == ["a / b", "a / c", "b / c"]
    assert len(found.steps) == 9


@pytest.mark.parametrize(
    ("lower", "upper", "verdict"),
    [
        (0.8, 0.9, "faster"),
        (0.9, 0.96, "undecided"),
        (0.96, 1.04, "equivalent"),
        (1.0 / 1.05, 1.05, "equivalent"),
        (1.04, 1.06, "undecided"),
        (1.06, 1.5, "slower"),
        (0.5, 2.0, "undecided"),
        (np.nan, np.nan, ""),
    ],
)
def test_a_verdict_asks_the_whole_interval(lower: float, upper: float, verdict: str) -> None:
    assert str(verdicts(np.array(lower), np.array(upper), rope=0.05)) == verdict


def test_without_a_region_nothing_is_equivalent() -> None:
    lower, upper = np.array([0.999, 0.9, 1.001]), np.array([1.001, 0.999, 1.1])
    assert verdicts(lower, upper, rope=0.0).tolist() == ["undecided", "faster", "slower"]


def test_more_data_are_asked_for_where_the_ratio_is_least_known() -> None:
    vague = server(1.04, name="vague", spread=0.05)
    found = compare([vague, server(name="sure", spread=0.001)])
    open_rows = found.table[(found.table["verdict"] == "undecided") & ~found.table["extrapolation"]]
    width = (open_rows["ratio_upper"] / open_rows["ratio_lower"] - 1.0).max()
    assert found.wanted["width"].iloc[0] == pytest.approx(width)
    assert found.wanted["width"].is_monotonic_decreasing
    assert set(found.wanted["measure"]) == {"vague"}
    assert "on vague" in found.text


def test_the_data_that_would_decide_follow_from_the_interval() -> None:
    edge = np.log(1.05)
    assert data_factor(np.exp(-0.1), 1.0, np.exp(0.1), rope=0.05) == pytest.approx((0.1 / edge) ** 2)
    assert data_factor(0.9, 1.05, 1.2, rope=0.05) is None


def test_shares_are_of_the_grid_of_measured_steps_and_of_the_traces(
    found: Comparison, pair: list[FittedModel]
) -> None:
    rows = by(found.shares, "of")
    assert set(rows) == {ON_GRID, MEASURED, IN_TRACES}
    words = ["faster", "slower", "equivalent", "undecided"]
    assert found.shares[words].sum(axis=1).to_numpy() == pytest.approx(1.0)
    assert rows[MEASURED]["num_steps"] < rows[ON_GRID]["num_steps"]
    assert rows[IN_TRACES]["num_steps"] == pair[0].cells.sizes["cell"]


def test_equivalent_decodes_take_equally_long(found: Comparison, pair: list[FittedModel]) -> None:
    rows = found.equivalents[~found.equivalents["extrapolation"]]
    assert set(rows["gpu"]) == {"X100", "Y50"}
    fits = dict(zip(found.labels, pair, strict=True))
    for row in records(rows[rows["median"] >= 1.0]):
        asked = ((row["gpu"], row["batch_size"]), (row["other"], row["median"]))
        at = [fits[gpu].mean_band(steps_arrays(n, n))["median"].item() for gpu, n in asked]
        assert at[0] == pytest.approx(at[1], rel=0.02)
        assert row["lower"] <= row["median"] <= row["upper"]


def test_the_largest_number_within_a_limit_is_interpolated_and_bounded() -> None:
    points = np.array([1.0, 2.0, 4.0])
    latency = np.array([[10.0, 12.0, 20.0]] * 4)
    assert largest_within(points, latency, np.array([9.0, 10.0, 16.0, 25.0])).tolist() == [
        0.0,
        1.0,
        3.0,
        np.inf,
    ]
    falling = np.array([[15.0, 12.0, 20.0]])
    assert largest_within(points, falling, np.array([13.0])).tolist() == [2.25]


def test_an_equivalent_beyond_the_search_is_said_so() -> None:
    row = {"batch_size": 32, "gpu": "A", "other": "B", "limit": 400.0, "extrapolation": True}
    text = equivalent_sentence({**row, "median": None, "lower": 390.0, "upper": None})
    assert text == "32 decodes on A cost what more than 400 on B do (390 to more than 400; an extrapolation)"
    assert "less than 1" in equivalent_sentence({**row, "median": 0.0, "lower": 0.0, "upper": 2.0})


def test_throughput_and_cost_follow_from_latency(found: Comparison, pair: list[FittedModel]) -> None:
    is_case = found.throughput["case"].str.startswith("largest decode")
    row = by(found.throughput[is_case], "gpu")["X100"]
    mean_ms = pair[0].mean_band(steps_arrays(64, 64))["median"].item()
    assert row["tokens_per_s"] == pytest.approx(64_000 / mean_ms, rel=1e-3)
    assert row["cost"] == pytest.approx(2.0 * 1e6 / (3600 * 64_000 / mean_ms), rel=1e-3)
    assert row["cost_lower"] < row["cost"] < row["cost_upper"]
    money = by(found.money[found.money["case"].str.startswith("largest decode")], "quantity")
    assert money[TOKENS]["ratio_median"] == pytest.approx(1.0 / RATIO, rel=0.01)
    assert money[TOKENS]["verdict"] == "more tokens"
    assert money[COST]["ratio_median"] == pytest.approx(2.0 * RATIO, rel=0.01)
    assert money[COST]["verdict"] == "dearer"
    assert money[COST]["p_better"] == 0.0


def test_a_latency_limit_is_kept_and_what_sets_the_throughput_is_said(
    found: Comparison, pair: list[FittedModel]
) -> None:
    within = found.throughput[found.throughput["case"].str.contains("within 30 ms")]
    assert len(within) == 4
    for row in records(within):
        fit = pair[found.labels.index(row["gpu"])]
        steps = steps_arrays(row["batch_size"], row["total_tokens"])
        assert fit.quantile(steps, 0.9).item() < 30.0 * 1.02
        assert fit.in_region(steps).item()
    servers = servers_of(pair)
    set_by = {
        slo_ms: {rate.set_by for rate in rates_of(servers, found.steps[:0], slo_ms=slo_ms, slo_quantile=0.9)}
        for slo_ms in (12.0, 1e6)
    }
    assert BY_LIMIT in set_by[12.0]
    assert set_by[1e6] == {BY_TRACE}


def test_no_step_within_the_limit_is_no_throughput_and_no_cost(pair: list[FittedModel]) -> None:
    found = compare(pair, slo_ms=0.1, prices={"fast": 1.0, "slow": 1.0}, **SMALL)
    none = found.throughput[found.throughput["case"].str.contains("within")]
    assert (none["tokens_per_s"] == 0.0).all()
    assert none["cost"].isna().all()
    assert not found.money["case"].str.contains("within").any()
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_verdict_is_given_on_identified_parameters_alone(pair: list[FittedModel]) -> None:
    rng = np.random.default_rng(0)
    prior = pair[0].metadata.priors["k_B"]
    posterior = pair[0].posterior
    shape = posterior["k_B"].shape
    posterior["k_B"] = (("chain", "draw"), np.exp(prior.mu + prior.sigma * rng.standard_normal(shape)))
    fits = [with_groups(pair[0], posterior=posterior), pair[1]]
    values = parameter_values(members_of(fits, prices={}), probability=0.95)
    table = parameter_ratios(servers_of(fits), values, rope=0.05, probability=0.95)
    rows = by(table, "name")
    assert rows["k_B"]["verdict"] == "none: not identified on X100"
    assert not rows["k_B"]["identified"]
    assert rows["tau_0"]["verdict"] == "lower"
    assert rows["tau_0"]["ratio_median"] == pytest.approx(RATIO, rel=0.01)
    difference = (RATIO - 1.0) * (TRUTH["w_1"] / TRUTH["P_max"] + TRUTH["tau_S"])
    assert rows["c"]["difference"] == pytest.approx(difference, rel=0.02)
    assert set(table["kind"]) == {"parameter", "noise", "combination"}


def test_posteriors_of_different_lengths_meet(pair: list[FittedModel]) -> None:
    short = server(name="short", draws=60)
    mean_ms = servers_of([pair[0], short]).mean_latency_ms(steps_arrays([4, 64], [4, 2048]))
    assert mean_ms.sizes == {"gpu": 2, "draw": 240, "step": 2}
    assert (mean_ms[0] / mean_ms[1]).median("draw").to_numpy() == pytest.approx(RATIO, rel=0.01)


def test_pairing_takes_no_notice_of_the_order_of_the_draws() -> None:
    values = np.arange(4000.0)
    posterior = xr.Dataset({"x": (("chain", "draw"), values.reshape(4, 1000))})
    first, second = (p["x"].to_numpy() for p in paired_posteriors([posterior, posterior], seed=1))
    assert sorted(first) == values.tolist()
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06
    again = paired_posteriors([posterior, posterior], seed=1)[1]["x"].to_numpy()
    assert (again == second).all()


def assert_calibrated(probability: NDArray[np.float64], came_true: NDArray[np.bool_]) -> None:
    """Score tests of intercept and slope: both are standard normal for probabilities that are right."""
    excess, variance = came_true - probability, probability * (1.0 - probability)
    for weight in (np.ones_like(probability), probability - 0.5):
        assert abs((excess * weight).sum() / np.sqrt((variance * weight**2).sum())) < 3.0


def test_exact_posteriors_give_intervals_and_probabilities_that_are_right() -> None:
    num = 1000
    servers: Any = NormalServers(num, num_draws=1000, seed=5)
    maps = maps_of(servers, probability=0.9)
    true_ratio = np.exp(servers.truth[0] - servers.truth[1])
    assert np.quantile(true_ratio, [0.1, 0.9]) == pytest.approx([0.83, 1.2], rel=0.05)
    is_covered = (maps["ratio_lower"] <= true_ratio) & (true_ratio <= maps["ratio_upper"])
    assert float(is_covered.mean()) == pytest.approx(0.9, abs=0.03)
    assert_calibrated(maps["p_faster"].to_numpy(), true_ratio < 1.0)
    assert_calibrated(maps["p_step_faster"].to_numpy(), servers.steps[0] < servers.steps[1])
    wrong = np.clip(maps["p_faster"].to_numpy() ** 2, 1e-3, 1.0 - 1e-3)
    with pytest.raises(AssertionError):
        assert_calibrated(wrong, true_ratio < 1.0)


def test_other_llms_make_it_a_comparison_of_servers(pair: list[FittedModel]) -> None:
    other = server(name="other", gpu="Z", llm="qwq-32b")
    found = compare([pair[0], other], **SMALL)
    assert found.compares_servers
    assert by(found.differences, "what")["LLM"]["Z"] == "qwq-32b"
    assert "compares servers, not GPUs" in found.text
    assert "qwq-32b on Z" in found.text


def test_the_same_llm_and_budget_make_it_a_comparison_of_gpus(found: Comparison) -> None:
    assert not found.compares_servers
    assert "compares servers" not in found.text


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"llm": ""}, "LLM"),
        ({"budget": 2048}, "most tokens in a step"),
        ({"labels": {"gpu": "Z", "llm": "llama-3-8b", "mode": "async"}}, "mode"),
    ],
)
def test_whatever_differs_besides_the_gpu_is_listed(
    changes: dict[str, Any], what: str, pair: list[FittedModel]
) -> None:
    differences = difference_table(members_of([pair[0], server(name="z", **changes)], prices={}))
    assert by(differences, "what")[what]["is_server"]


def test_labels_are_gpus_or_else_names() -> None:
    assert labels_of([server(name="a", gpu="X"), server(name="b", gpu="Y")]) == ["X", "Y"]
    both = [server(name="a", gpu="X", llm="m"), server(name="b", gpu="X", llm="n")]
    assert labels_of(both) == ["X, m", "X, n"]
    assert labels_of([server(name="a", gpu="X"), server(name="b", gpu="X")]) == ["a", "b"]
    assert labels_of([server(name="a"), server(name="b", gpu="X")]) == ["a", "b"]
    assert labels_of([server(name="a"), server(name="a")]) == ["a (1)", "a (2)"]


def test_given_labels_are_taken(pair: list[FittedModel]) -> None:
    members = members_of({"old": pair[1], "new": pair[0]}, prices={"new": 1})
    assert [member.label for member in members] == ["old", "new"]
    assert [member.price_per_hour for member in members] == [None, 1.0]


def test_an_unconverged_fit_is_loudly_said(pair: list[FittedModel]) -> None:
    bad = server(name="bad", gpu="Z", converged=False, problems=("R-hat 1.2 on tau_S",))
    found = compare([pair[0], bad], **SMALL)
    assert not found.converged
    assert "NOT CONVERGED (R-hat 1.2 on tau_S)" in found.warnings[0]
    assert found.to_dict()["converged"] is False


def test_fits_of_the_same_trace_are_not_independent_and_that_is_said(pair: list[FittedModel]) -> None:
    again = server(1.01, name="again", gpu="Z", trace_sha256=pair[0].metadata.trace_sha256)
    members = members_of([pair[0], again], prices={})
    assert any("same trace" in warning for warning in warnings_of(members, difference_table(members)))


def test_an_equation_that_misses_what_was_seen_is_said() -> None:
    def seen_as_predicted(fit: FittedModel, off: float) -> FittedModel:
        steps = pd.DataFrame({name: fit.cells[name].to_numpy() for name in ("batch_size", "total_tokens")})
        median = fit.quantile(steps, 0.5).to_numpy() * (1.0 + off)
        return with_groups(fit, cells=fit.cells.assign(median_ms=("cell", median)))

    fits = [seen_as_predicted(server(name=name), off) for name, off in (("right", 0.0), ("wrong", 0.2))]
    (warning,) = misfit_warnings(members_of(fits, prices={}), rope=0.05)
    assert warning.startswith("wrong: the equation misses one in ten of the observed medians by more than 20")


def test_the_result_is_frozen_and_ready_for_json(found: Comparison) -> None:
    with pytest.raises(FrozenInstanceError):
        found.rope = 0.1  # type: ignore[misc]
    numbers = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert numbers["labels"] == ["X100", "Y50"]
    assert numbers["grid"][0]["gpu"] == "X100"
    assert numbers["fits"][0]["price_per_hour"] == 2.0
    assert numbers["text"] in found.text


def test_no_probability_is_written_as_certain() -> None:
    assert [certainty(p) for p in (0.0, 0.25, 1.0)] == ["below 0.1%", "25.0%", "above 99.9%"]


def refuses(match: str, fits: Any, **options: Any) -> None:
    with pytest.raises(InputError, match=match):
        compare(fits, **options)


def test_one_fit_or_the_same_twice_is_refused(pair: list[FittedModel]) -> None:
    refuses("1 fit: a comparison takes two or more", pair[:1])
    refuses("fast: the same fit twice", [pair[0], pair[0]])
    copied = replace(pair[0], metadata=replace(pair[0].metadata, name="copy"))
    refuses("fast and copy: the same fit twice", {"a": pair[0], "b": copied})


def test_incompatible_models_are_refused(pair: list[FittedModel]) -> None:
    class Other:
        def __init__(self, **changes: Any) -> None:
            self.__dict__ |= changes

        def __getattr__(self, name: str) -> Any:
            return getattr(pair[1].model, name)

    few: Any = Other(name="affine", parameters=pair[1].model.parameters[:3])
    refuses("incompatible models .saturation, affine", [pair[0], replace(pair[1], model=few)])
    wide: Any = Other(name="attention", columns=("batch_size", "total_tokens", "context_tokens"))
    refuses("its model attention asks for context_tokens", [pair[0], replace(pair[1], model=wide)])


def test_regions_that_do_not_overlap_are_refused(pair: list[FittedModel]) -> None:
    far = xr.Dataset(
        {
            "batch_size": ("cell", [100, 200, 100]),
            "total_tokens": ("cell", [9000, 9000, 20000]),
            **{name: ("cell", [9.0, 9.0, 9.0]) for name in ("count", "q05_ms", "median_ms", "q95_ms")},
        }
    )
    elsewhere = with_groups(server(name="far"), cells=far)
    refuses("no step lies where all traces have data.*fast: The trace covers 1 to 64", [pair[0], elsewhere])


def test_an_overlap_that_the_grid_misses_is_found(pair: list[FittedModel]) -> None:
    one = xr.Dataset(
        {
            "batch_size": ("cell", [29]),
            "total_tokens": ("cell", [29]),
            **{name: ("cell", [9.0]) for name in ("count", "q05_ms", "median_ms", "q95_ms")},
        }
    )
    grid = shared_grid(servers_of([pair[0], with_groups(server(name="one"), cells=one)]))
    covered = grid["possible"] & ~grid["extrapolation"]
    assert float(covered.sum()) == 1.0
    assert bool(covered.sel(batch_size=29, total_tokens=29))


@pytest.mark.parametrize("price", [0.0, -1.0, np.nan, np.inf, "2.50", True, None])
def test_a_price_that_is_no_positive_number_is_refused(price: Any, pair: list[FittedModel]) -> None:
    refuses("price of 'fast': .* is no positive number an hour", pair, prices={"fast": price})


def test_a_label_that_matches_no_fit_is_refused(pair: list[FittedModel]) -> None:
    refuses(
        "price of 'H200': the label is that of no fit; give one of X100, Y50, fast, slow",
        pair,
        prices={"H200": 1.0},
    )
    refuses("given twice", pair, prices={"X100": 1.0, "fast": 2.0})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rope": -0.1}, "rope = -0.1"),
        ({"rope": 5.0}, "rope = 5"),
        ({"rope": np.nan}, "rope = nan"),
        ({"probability": 1.0}, "probability = 1"),
        ({"slo_ms": 0.0}, "slo_ms = 0"),
        ({"slo_quantile": 1.0}, "slo_quantile = 1"),
        ({"max_draws": 1}, "max_draws = 1"),
        ({"batch_size": [0], "total_tokens": [5]}, "batch_size is below 1"),
    ],
)
def test_arguments_that_are_none_are_refused(
    options: dict[str, Any], match: str, pair: list[FittedModel]
) -> None:
    refuses(match, pair, **options)
