"""Whether promises are kept: the truth, the counting of breaks, the cells and the intervals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.stats import binomtest, t

from bayes_sched.checks.scores import effective_tries, share_interval
from bayes_sched.model.protocol import load_model
from bayes_sched.reports.plots.studies import promise_calibration
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.steps import steps_arrays
from bayes_sched.studies.prediction import Server
from bayes_sched.studies.sla_servers import (
    TrueServer,
    broken_by_step,
    broken_table,
    given_away_table,
    largest_batch,
    limit_between,
)
from bayes_sched.studies.sla_traces import (
    ALL,
    INTERVAL,
    LEAST_STEPS,
    TraceStudy,
    calibration_table,
    cell_table,
    kept_table,
    neighbour_cells,
    pooled_table,
)
from tests.synthetic_fit import TRUTH, simulated_steps, synthetic_fit


def test_the_interval_of_a_share_is_the_exact_binomial_one() -> None:
    for count, number in ((0, 30), (1, 30), (17, 30), (30, 30)):
        expected = binomtest(count, number).proportion_ci(0.9, method="exact")
        found = share_interval(count, number, level=0.9)
        assert np.array(found).ravel() == pytest.approx([expected.low, expected.high])


def test_no_tries_leave_a_share_open() -> None:
    lower, upper = share_interval([0.0], [0.0], level=0.9)
    assert (lower.tolist(), upper.tolist()) == ([0.0], [1.0])


def test_tries_that_always_go_together_count_once() -> None:
    cluster = np.repeat(np.arange(50), 20)
    together = cluster % 2 == 0
    assert effective_tries(together, cluster) == pytest.approx(50, rel=0.05)


def test_independent_tries_count_each_and_never_more() -> None:
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(100), 50)
    assert 3000 < effective_tries(rng.random(5000) < 0.1, cluster) <= 5000
    assert effective_tries(np.zeros(70, dtype=bool), np.arange(70) // 10) == 70
    assert effective_tries(np.arange(70) < 9, np.zeros(70)) == 70


def true_server() -> TrueServer:
    return TrueServer(model=load_model("saturation"), parameters=xr.Dataset(TRUTH))


def test_the_true_share_beyond_the_true_quantile_is_what_the_quantile_leaves() -> None:
    steps = steps_arrays([1, 8, 64], [1, 512, 64])
    server = true_server()
    limits = server.quantile_ms(steps, 0.99)
    assert server.exceedance(steps, limits) == pytest.approx([0.01] * 3)
    mean = server.mean_ms(steps)
    scale = np.hypot(TRUTH["sigma_floor"], TRUTH["sigma_rel"] * mean)
    assert server.exceedance(steps, mean + scale) == pytest.approx([t.sf(1.0, TRUTH["nu"])] * 3)


def test_the_largest_batch_is_the_last_before_the_first_that_is_late() -> None:
    sizes = np.array([1, 2, 3, 4, 5])
    late_ms = np.array([5.0, 6.0, 9.0, 7.0, 10.0])
    assert [largest_batch(late_ms, sizes, limit) for limit in (4.0, 5.5, 8.0, 9.5, 11.0)] == [0, 1, 2, 4, 5]


def test_limits_put_the_true_largest_batch_anywhere_but_at_the_end() -> None:
    sizes, late_ms = np.arange(1, 9), np.array([5.0, 4.9, 6.0, 6.0, 7.0, 8.0, 9.0, 10.0])
    rng = np.random.default_rng(0)
    found = {largest_batch(late_ms, sizes, limit_between(late_ms, rng)) for _ in range(200)}
    assert found == {2, 4, 5, 6, 7}


def test_cells_hold_enough_steps_and_never_part_those_of_one_kind() -> None:
    rng = np.random.default_rng(1)
    steps = pd.DataFrame({"b": rng.geometric(0.1, 2000), "s": 0})
    steps["s"] = steps["b"] * rng.choice([1, 1, 1, 40], 2000)
    cells = neighbour_cells(steps["b"].to_numpy(float), steps["s"].to_numpy(float), least=20)
    assert (steps.groupby(["b", "s"]).apply(lambda g: pd.Series(cells[g.index]).nunique()) == 1).all()
    sizes = np.bincount(cells)
    assert sizes.min() >= 20
    assert sizes.sum() == 2000
    crowded = steps.groupby(["b", "s"]).size().max()
    assert sizes.max() <= 2 * crowded


def test_a_few_steps_are_one_cell() -> None:
    cells = neighbour_cells(np.array([1.0, 2.0, 9.0]), np.array([1.0, 4.0, 9.0]), least=20)
    assert cells.tolist() == [0, 0, 0]


def servers(late: list[float]) -> pd.DataFrame:
    """Rows of servers with one batch and one limit promised each."""
    rows = []
    for number, share in enumerate(late):
        both = {"server": number, "exceedance": share, "median_exceedance": 0.02, "median": 11.0}
        batch = {"promise": "batch", "true_best": 10, "true_rate": 2.0, "promised": 8, "rate": 1.9}
        batch |= {"median_rate": 2.1, "curve": 20, "curve_exceedance": 0.5, "curve_rate": 3.0}
        limit = {"promise": "limit", "batch_size": 4, "total_tokens": 4, "true_best": 10.0, "promised": 10.5}
        rows += [both | batch, both | limit]
    return pd.DataFrame(rows)


def test_a_promise_is_broken_where_more_steps_are_late_than_promised() -> None:
    table = broken_table(servers([0.009, 0.011, 0.0, 0.5]), quantile=0.99)
    promised = table[table["by"] == "promised"]
    assert promised["broken"].tolist() == [0.5, 0.5]
    assert promised["worst_exceedance"].tolist() == [0.5, 0.5]
    assert (promised["lower"] < 0.5).all()
    assert (table.loc[table["by"] != "promised", "broken"] == 1.0).all()
    assert (table["nothing"] == 0).all()
    by_step = broken_by_step(servers([0.009, 0.011, 0.0, 0.5]), quantile=0.99)
    assert by_step[["batch_size", "promises", "broken"]].to_numpy().tolist() == [[4, 4, 0.5]]


def test_servers_of_which_nothing_is_promised_are_counted() -> None:
    given = servers([0.0, 0.0, 0.011])
    given.loc[(given["server"] < 2) & (given["promise"] == "batch"), "promised"] = 0
    table = broken_table(given, quantile=0.99)
    promised = table[table["by"] == "promised"].set_index("promise")
    assert promised["nothing"].to_dict() == {"largest decode-only batch": 2, "limit of a kind of steps": 0}
    assert promised["promises"].tolist() == [3, 3]
    assert promised["broken"].tolist() == pytest.approx([1 / 3, 1 / 3])


def test_what_is_given_away_is_counted_against_the_truth() -> None:
    table = given_away_table(servers([0.0])).set_index(["what", "by"])["median"]
    assert table["batch: 1 - B / true B", "promised"] == pytest.approx(0.2)
    assert table["throughput: 1 - rate / true rate", "promised"] == pytest.approx(0.05)
    assert table["limit: limit / true quantile - 1", "promised"] == pytest.approx(0.05)
    assert table["batch: 1 - B / true B", "fitted mean"] == pytest.approx(-1.0)


@pytest.fixture
def held_out(monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """A trace of the server that the fit knows exactly, in two splits."""
    steps = simulated_steps(5000, seed=5)
    decode = np.random.default_rng(1).random(len(steps)) < 0.5
    steps["batch_size"] = 2 ** np.log2(steps["batch_size"]).round().astype(int)  # few kinds of steps
    steps["total_tokens"] = steps["batch_size"] * np.where(decode, 1, 16)
    table = steps_arrays(steps["batch_size"], steps["total_tokens"])
    server = true_server()
    mean = server.mean_ms(table)
    scale = np.hypot(TRUTH["sigma_floor"], TRUTH["sigma_rel"] * mean)
    steps["latency_ms"] = mean + scale * np.random.default_rng(2).standard_t(TRUTH["nu"], len(steps))
    made = Server(name="known", steps=steps.assign(trace=0, budget=1), traces=("known",), sha256="0")
    knowing = synthetic_fit(spread=1e-4, chains=2, draws=20)

    def fit(train: pd.DataFrame, **_: Any) -> SimpleNamespace:
        assert len(train) == 4000
        return SimpleNamespace(fit=knowing, thinned=SimpleNamespace(steps=train))

    monkeypatch.setattr("bayes_sched.studies.sla_traces.fit", fit)
    study = TraceStudy([made], splits=("random", "blocks"), settings=SamplerSettings(), max_rows=100)
    assert [study.title(number) for number in range(len(study))] == ["known, random", "known, blocks"]
    return pd.concat([study.run_one(number) for number in range(len(study))], ignore_index=True)


def test_a_fit_that_knows_the_server_is_calibrated(held_out: pd.DataFrame) -> None:
    table = calibration_table(held_out)
    assert table.groupby(["split", "regime"]).size().tolist() == [7, 7, 7, 7]
    assert table.groupby(["split", "level"])["steps"].sum().unique().tolist() == [1000]
    holds = (table["lower"] <= table["predicted"]) & (table["predicted"] <= table["upper"])
    assert holds.mean() >= 0.8
    pooled = pooled_table(held_out)
    assert pooled["realised"].to_numpy() == pytest.approx(pooled["predicted"].to_numpy(), abs=0.06)
    assert (cell_table(held_out)["agree"] >= 0.75).all()


def test_every_held_out_step_is_counted_in_one_cell(held_out: pd.DataFrame) -> None:
    cells = held_out[held_out["cell"] != ALL]
    assert cells["steps"].min() >= LEAST_STEPS
    sums = cells.groupby(["run", "regime", "kind", "level"])[["steps", "late"]].sum()
    whole = held_out[(held_out["cell"] == ALL) & (held_out["kind"] != "borne out")]
    expected = whole.set_index(["run", "regime", "kind", "level"])[["steps", "late"]].sort_index()
    pd.testing.assert_frame_equal(sums, expected, check_dtype=False)


def test_promises_of_a_fit_that_knows_the_server_are_kept(held_out: pd.DataFrame) -> None:
    table = kept_table(held_out)
    assert (table["lower"] <= 0.01).all()
    assert table["late"].mean() == pytest.approx(0.01, abs=0.008)
    assert table["borne_out"].between(0.5, 1.0).all()


def trace_rows(counts: list[tuple[int, int, float]]) -> pd.DataFrame:
    """Rows of one limit for traces of so many steps, late ones and effective steps."""
    same = {"split": "blocks", "regime": "decode", "level": 0.9, "cell": ALL, "kind": "limit"}
    return pd.DataFrame(
        [
            {"trace": str(i), **same, "steps": n, "late": late, "effective_steps": m, "predicted": 0.1}
            for i, (n, late, m) in enumerate(counts)
        ]
    )


def test_the_variances_of_traces_add_up_in_all_of_them_together() -> None:
    rows = trace_rows([(1000, 200, 50.0), (4000, 100, 2000.0)])
    (found,) = pooled_table(rows).to_dict("records")
    variance = 1000**2 * 0.2 * 0.8 / 50 + 4000**2 * 0.025 * 0.975 / 2000
    assert found["effective_steps"] == pytest.approx(5000**2 * 0.06 * 0.94 / variance)
    assert found["effective_steps"] < 500 < 2050  # the stretches of the first decide, not their sum
    assert (found["realised"], found["predicted"]) == (0.06, pytest.approx(0.1))
    expected = share_interval(0.06 * found["effective_steps"], found["effective_steps"], level=INTERVAL)
    assert (found["lower"], found["upper"]) == pytest.approx(tuple(map(float, expected)))


def test_all_traces_together_are_no_more_steps_than_there_are() -> None:
    unlike = trace_rows([(1000, 500, 1000.0), (1000, 0, 1000.0)])  # less varied than 2,000 with one share
    assert pooled_table(unlike)["effective_steps"].tolist() == [2000.0]
    never = trace_rows([(1000, 0, 1000.0), (500, 0, 500.0)])
    assert pooled_table(never)[["effective_steps", "lower", "realised"]].to_numpy().tolist() == [[1500, 0, 0]]


def test_the_figure_has_a_panel_a_trace(held_out: pd.DataFrame) -> None:
    figure = promise_calibration(calibration_table(held_out), interval=INTERVAL)
    assert [ax.get_title(loc="left") for ax in figure.axes if ax.get_visible()] == ["known"]


def test_a_trace_that_cannot_be_fitted_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = simulated_steps(30, seed=5).assign(trace=0, budget=1)
    server = Server(name="short", steps=steps, traces=("short",), sha256="0")
    study = TraceStudy([server], splits=("random",), settings=SamplerSettings(), max_rows=100)
    rows = study.run_one(0)
    assert len(rows) == 1
    assert "6 steps to predict, fewer than 20" in rows["error"].iloc[0]
