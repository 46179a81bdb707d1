"""SLA calibration: promises held against the truth of simulated servers, and against held-out steps."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.stats import binomtest, t

from bayes_sched.checks.scores import effective_tries, share_interval
from bayes_sched.cli import study as command
from bayes_sched.cli.main import run_script
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import all_parameters, load_model, load_model_file
from bayes_sched.reports.plots.studies import promise_calibration
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.steps import steps_arrays
from bayes_sched.studies.folder import StudyFolder
from bayes_sched.studies.sbc import SimulatedFits
from bayes_sched.studies.sla_servers import (
    ServerStudy,
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
    TracePromises,
    TraceStudy,
    neighbour_cells,
    pooled_table,
)
from bayes_sched.studies.splits import Server
from tests.synthetic_fit import TRUTH, simulated_steps, synthetic_fit

pytestmark = pytest.mark.usefixtures("blank_figures")

type Judged = tuple[pd.DataFrame, TracePromises]

TIMED = ["seconds", "cpu_seconds"]


@pytest.mark.parametrize(("count", "number"), [(0, 30), (1, 30), (17, 30), (30, 30)])
def test_the_interval_of_a_share_is_the_exact_binomial_one(count: int, number: int) -> None:
    expected = binomtest(count, number).proportion_ci(0.9, method="exact")
    found = share_interval(count, number, level=0.9)
    assert np.array(found).ravel() == pytest.approx([expected.low, expected.high])


def test_no_tries_leave_a_share_open() -> None:
    lower, upper = share_interval([0.0], [0.0], level=0.9)
    assert (lower.tolist(), upper.tolist()) == ([0.0], [1.0])


def test_tries_that_always_go_together_count_once_and_independent_ones_each() -> None:
    cluster = np.repeat(np.arange(50), 20)
    assert effective_tries(cluster % 2 == 0, cluster) == pytest.approx(50, rel=0.05)
    rng, cluster = np.random.default_rng(0), np.repeat(np.arange(100), 50)
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


@pytest.fixture(scope="module")
def held_out() -> Judged:
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

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("bayes_sched.studies.sla_traces.fit", fit)
        return _judged(made)


def _judged(made: Server) -> tuple[pd.DataFrame, TracePromises]:
    study = TraceStudy([made], splits=("random", "blocks"), settings=SamplerSettings(), max_rows=100)
    assert [study.title(number) for number in range(study.num_runs)] == ["known, random", "known, blocks"]
    rows = pd.concat([study.run(number) for number in range(study.num_runs)], ignore_index=True)
    folder = StudyFolder(folder=Path(), table="", number="run", settings={})
    return rows, study.summary(rows, folder)


def test_a_fit_that_knows_the_server_is_calibrated(held_out: Judged) -> None:
    tables = held_out[1].tables
    table = tables["calibration"]
    assert table.groupby(["split", "regime"]).size().tolist() == [7, 7, 7, 7]
    assert table.groupby(["split", "level"])["steps"].sum().unique().tolist() == [1000]
    holds = (table["lower"] <= table["predicted"]) & (table["predicted"] <= table["upper"])
    assert holds.mean() >= 0.8
    pooled = tables["pooled"]
    assert pooled["realised"].to_numpy() == pytest.approx(pooled["predicted"].to_numpy(), abs=0.06)
    assert (tables["cells_agree"]["agree"] >= 0.75).all()


def test_every_held_out_step_is_counted_in_one_cell(held_out: Judged) -> None:
    rows, _ = held_out
    cells = rows[rows["cell"] != ALL]
    assert cells["steps"].min() >= LEAST_STEPS
    sums = cells.groupby(["run", "regime", "kind", "level"])[["steps", "late"]].sum()
    whole = rows[(rows["cell"] == ALL) & (rows["kind"] != "borne out")]
    expected = whole.set_index(["run", "regime", "kind", "level"])[["steps", "late"]].sort_index()
    pd.testing.assert_frame_equal(sums, expected, check_dtype=False)


def test_promises_of_a_fit_that_knows_the_server_are_kept(held_out: Judged) -> None:
    table = held_out[1].tables["kept"]
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


def test_the_figure_has_a_panel_a_trace(held_out: Judged) -> None:
    figure = promise_calibration(held_out[1])
    assert [ax.get_title(loc="left") for ax in figure.axes if ax.get_visible()] == ["known"]


def test_a_trace_that_cannot_be_fitted_says_why() -> None:
    steps = simulated_steps(30, seed=5).assign(trace=0, budget=1)
    server = Server(name="short", steps=steps, traces=("short",), sha256="0")
    study = TraceStudy([server], splits=("random",), settings=SamplerSettings(), max_rows=100)
    rows = study.run(0)
    assert len(rows) == 1
    assert "6 steps to predict, fewer than 20" in rows["error"].iloc[0]


@pytest.fixture(scope="module")
def fits() -> SimulatedFits:
    model = load_model("saturation")
    b = np.repeat([1, 2, 4, 8, 16, 32], 10)
    steps = pd.DataFrame({"batch_size": b, "total_tokens": b * np.tile([1, 8], 30)})
    priors = Priors.from_parameters(all_parameters(model, "proportional"))
    settings = SamplerSettings(draws=100, chains=2, seed=3)
    return SimulatedFits(model, steps, priors, noise="proportional", settings=settings)


@pytest.fixture(scope="module")
def plain_study(fits: SimulatedFits) -> ServerStudy:
    return ServerStudy(fits, load_model_file("saturation"), num_runs=3)


@pytest.fixture
def study(plain_study: ServerStudy, monkeypatch: pytest.MonkeyPatch) -> ServerStudy:
    return know_the_servers(plain_study, monkeypatch)


def know_the_servers(
    study: ServerStudy, monkeypatch: pytest.MonkeyPatch, *, spread: float = 1e-6, factor: float = 1.0
) -> ServerStudy:
    """Put in place of the sampler one that knows each server but for a factor of its latency."""
    truths: list[TrueServer] = []
    draw = study.server

    def remember(rng: np.random.Generator) -> TrueServer:
        truths.append(draw(rng))
        return truths[-1]

    def fit(observed: Any, *, seed: int) -> Any:
        factors = factor * np.exp(spread * np.random.default_rng(seed).standard_normal((2, 100)))
        known = {str(name): np.full((2, 100), float(value)) for name, value in truths[-1].parameters.items()}
        draws = xr.Dataset({name: (("chain", "draw"), values) for name, values in known.items()})
        draws = draws.assign_coords(chain=[0, 1], draw=np.arange(100))
        for name in ("tau_0", "tau_B", "tau_S", "sigma_floor"):
            draws[name] = draws[name] * factors
        draws["P_max"] = draws["P_max"] / factors
        data = synthetic_fit(chains=2, draws=100).data.copy()
        data["posterior"] = xr.DataTree(draws)
        return SimpleNamespace(data=data), SimpleNamespace(converged=True, worst_ess=100.0)

    monkeypatch.setattr(study, "server", remember)
    monkeypatch.setattr(study.fits, "fit", fit)
    return study


def test_a_server_that_is_known_is_promised_what_is_truly_possible(study: ServerStudy) -> None:
    rows = study.run(2)
    assert rows["error"].isna().all()
    batch = rows[rows["promise"] == "batch"].iloc[0]
    assert batch["promised"] == batch["median"] == batch["true_best"]
    assert batch["rate"] == pytest.approx(batch["true_rate"])
    assert batch["exceedance"] <= 0.01
    assert batch["curve"] >= batch["promised"]
    limits = rows[rows["promise"] == "limit"]
    assert len(limits) == 5
    assert limits["promised"].to_numpy(float) == pytest.approx(limits["true_best"].to_numpy(float), rel=1e-4)
    assert limits["exceedance"].to_numpy(float) == pytest.approx(0.01, rel=0.01)
    pd.testing.assert_frame_equal(study.run(2).drop(columns=TIMED), rows.drop(columns=TIMED))


def test_a_fit_that_takes_the_server_for_faster_breaks_its_promises(
    plain_study: ServerStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = know_the_servers(plain_study, monkeypatch, factor=0.8)
    rows = pd.concat([study.run(number) for number in range(3)])
    assert (rows.loc[rows["promise"] == "limit", "exceedance"] > 0.01).all()
    assert (rows["exceedance"] > 0.01).mean() > 0.9


def test_servers_of_the_study_could_be_real(plain_study: ServerStudy) -> None:
    study = plain_study
    for number in range(3):
        server = study.server(np.random.default_rng(number))
        late = server.quantile_ms(study.decode, 0.99)
        assert 2.0 <= float(np.median(server.mean_ms(study.fits.design))) <= 200.0
        assert late[-1] >= 1.2 * late[0]
        assert (late <= 3.0 * server.mean_ms(study.decode)).all()
        assert (late >= 0.95 * np.maximum.accumulate(late)).all()


def test_an_error_of_a_fit_is_kept_with_the_server(
    plain_study: ServerStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(observed: Any, *, seed: int) -> None:
        raise RuntimeError("no start\nwas found")

    monkeypatch.setattr(plain_study.fits, "fit", fail)
    rows = plain_study.run(0)
    expected = [[0, "RuntimeError: no start was found"]]
    assert rows[["server", "error"]].to_numpy().tolist() == expected


def write_steps(path: Path, steps: list[tuple[int, int, float]]) -> None:
    """Write a trace of steps of so many requests, tokens and ms."""
    lines = [
        {
            "batch_id": i,
            "timestamp": float(i),
            "chunk_sizes": [1] * (b - 1) + [s - b + 1],
            "all_computed_tokens": [10] * b,
            "all_cached_tokens": [0] * b,
            "total_scheduled_tokens": s,
            "num_waiting_reqs": 0,
            "num_running_reqs": b,
            "schedule_duration_ms": 0.1,
            "model_run_duration_ms": t,
        }
        for i, (b, s, t) in enumerate(steps)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


main = partial(run_script, "calibrate_promises.py")


@pytest.mark.usefixtures("stubbed_sampling")
def test_both_studies_are_written_and_go_on_each_where_it_stopped(
    plain_study: ServerStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = simulated_steps(300, seed=1)
    b = rows["batch_size"].clip(upper=4)  # few kinds of steps
    s = b * rows["total_tokens"].clip(upper=16)
    steps = zip(b.tolist(), s.tolist(), rows["latency_ms"].tolist(), strict=True)
    write_steps(Path("served.jsonl"), list(steps))

    def make_servers(options: Any) -> ServerStudy:
        monkeypatch.setattr(plain_study, "num_runs", options.servers)
        return plain_study

    know_the_servers(plain_study, monkeypatch, spread=0.02)
    monkeypatch.setattr(command, "make_servers", make_servers)
    assert main(["--draws", "100", "--servers", "1"]) == 0
    servers = Path("results/promises/servers")
    first = pd.read_csv(servers / "servers.csv")
    assert "1 servers, 0 not fitted for an error; 1 fits passed the gate" in capsys.readouterr().out
    arguments = ["--draws", "100", "--servers", "2", "--traces", "served.jsonl", "--resume"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    both = pd.read_csv(servers / "servers.csv")
    pd.testing.assert_frame_equal(both.iloc[: len(first)].drop(columns=TIMED), first.drop(columns=TIMED))
    assert both["server"].unique().tolist() == [0, 1]
    assert {row["split"] for row in found["traces"]["kept"]} == {"random", "blocks"}
    kinds = {"largest decode-only batch", "limit of a kind of steps"}
    assert {row["promise"] for row in found["servers"]["broken"]} == kinds
    assert "--resume" not in found["command"]
    traces = Path("results/promises/traces")
    names = {"README.md", "broken.png", "broken.csv", "given_away.csv", "given_away.png", "study.json"}
    assert names <= {path.name for path in servers.iterdir()}
    assert {"README.md", "calibration.png", "kept.csv", "pooled.csv"} <= {p.name for p in traces.iterdir()}
    before = (traces / "cells.csv").read_bytes()
    assert main(arguments) == 0
    assert (traces / "cells.csv").read_bytes() == before
    assert "Predicted and realised shares of late steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("steps", "tries", "message"),
    [
        ([(1, 1), (4, 40), (4, 80)] * 20, 5000, "no decode-only steps of several sizes"),
        ([(1, 1), (4, 4), (4, 80)] * 20, 0, "servers drawn from the priors is plausible on these steps"),
        ([(1, 1)] * 3, 5000, "no decode-only steps of several sizes"),
    ],
)
def test_a_design_that_cannot_be_used_is_refused_before_a_folder_is_made(
    steps: list[tuple[int, int]],
    tries: int,
    message: str,
    in_an_empty_folder: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("bayes_sched.studies.sbc._MAX_TRIES", tries)
    write_steps(Path("design.jsonl"), [(b, s, 10.0 + i % 7) for i, (b, s) in enumerate(steps)])
    assert main(["--design", "design.jsonl"]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not Path("results").exists()
