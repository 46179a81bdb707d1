"""calibrate_promises.py: promises held against the truth, two studies that go on where they stopped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import all_parameters, load_model_file
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.studies.sbc import CalibrationStudy
from bayes_sched.studies.sla_servers import ServerStudy, TrueServer, plausible_server
from scripts import calibrate_promises
from scripts.calibrate_promises import main
from tests.synthetic_fit import simulated_steps, synthetic_fit

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


def made_study() -> ServerStudy:
    loaded = load_model_file("saturation")
    b = np.repeat([1, 2, 4, 8, 16, 32], 6)
    steps = pd.DataFrame({"batch_size": b, "total_tokens": b * np.tile([1, 8], 18)})
    priors = Priors.from_parameters(all_parameters(loaded.model, "proportional"))
    settings = SamplerSettings(draws=100, chains=2, seed=3)
    fits = CalibrationStudy(loaded.model, steps, priors, noise="proportional", settings=settings)
    return ServerStudy(fits, loaded)


def know_the_servers(
    study: ServerStudy, monkeypatch: pytest.MonkeyPatch, *, spread: float = 0.02, factor: float = 1.0
) -> None:
    """Put in place of the sampler one that knows each server but for a factor of its latency."""
    truths: list[TrueServer] = []

    def remember(*args: Any, **options: Any) -> TrueServer:
        truths.append(plausible_server(*args, **options))
        return truths[-1]

    def fit(observed: Any, *, seed: int) -> tuple[FittedModel, dict[str, Any]]:
        factors = factor * np.exp(spread * np.random.default_rng(seed).standard_normal((2, 100)))
        known = {str(name): np.full((2, 100), float(value)) for name, value in truths[-1].parameters.items()}
        draws = xr.Dataset({name: (("chain", "draw"), values) for name, values in known.items()})
        draws = draws.assign_coords(chain=[0, 1], draw=np.arange(100))
        for name in ("tau_0", "tau_B", "tau_S", "sigma_floor"):
            draws[name] = draws[name] * factors
        draws["P_max"] = draws["P_max"] / factors
        data = synthetic_fit(chains=2, draws=100).data.copy()
        data["posterior"] = xr.DataTree(draws)
        made = FittedModel(data=data, model=study.study.model, metadata=study.metadata)
        return made, {"gate_passed": True, "worst_ess": 100.0}

    monkeypatch.setattr("bayes_sched.studies.sla_servers.plausible_server", remember)
    monkeypatch.setattr(study, "_fit", fit)


def test_a_server_that_is_known_is_promised_what_is_truly_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    study = made_study()
    know_the_servers(study, monkeypatch, spread=1e-6)
    server = study.run_one(2)
    assert not server.account.get("error")
    batch = server.table[server.table["promise"] == "batch"].iloc[0]
    assert batch["promised"] == batch["median"] == batch["true_best"]
    assert batch["rate"] == pytest.approx(batch["true_rate"])
    assert batch["exceedance"] <= 0.01
    assert batch["curve"] >= batch["promised"]
    limits = server.table[server.table["promise"] == "limit"]
    assert len(limits) == 5
    assert limits["promised"].to_numpy(float) == pytest.approx(limits["true_best"].to_numpy(float), rel=1e-4)
    assert limits["exceedance"].to_numpy(float) == pytest.approx(0.01, rel=0.01)
    pd.testing.assert_frame_equal(study.run_one(2).table, server.table)


def test_a_fit_that_takes_the_server_for_faster_breaks_its_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    study = made_study()
    know_the_servers(study, monkeypatch, spread=1e-6, factor=0.8)
    tables = pd.concat([study.run_one(number).table for number in range(4)])
    assert (tables.loc[tables["promise"] == "limit", "exceedance"] > 0.01).all()
    assert (tables["exceedance"] > 0.01).mean() > 0.9


def test_servers_of_the_study_could_be_real() -> None:
    study = made_study()
    for number in range(3):
        server = plausible_server(
            study.study.model,
            study.study.priors,
            study.design,
            batch_sizes=study.batch_sizes,
            quantile=0.99,
            rng=np.random.default_rng(number),
        )
        late = server.quantile_ms(study.decode, 0.99)
        assert 2.0 <= float(np.median(server.mean_ms(study.design))) <= 200.0
        assert late[-1] >= 1.2 * late[0]
        assert (late <= 3.0 * server.mean_ms(study.decode)).all()
        assert (late >= 0.95 * np.maximum.accumulate(late)).all()


def test_an_error_of_a_fit_is_part_of_the_account(monkeypatch: pytest.MonkeyPatch) -> None:
    study = made_study()

    def fail(observed: Any, *, seed: int) -> None:
        raise RuntimeError("no start\nwas found")

    monkeypatch.setattr(study, "_fit", fail)
    server = study.run_one(0)
    assert server.account["error"] == "RuntimeError: no start was found"
    assert server.rows[["server", "error"]].to_numpy().tolist() == [[0, server.account["error"]]]


def test_the_study_of_servers_is_written_and_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = made_study()
    know_the_servers(study, monkeypatch)
    monkeypatch.setattr(calibrate_promises, "make_server_study", lambda _: study)
    arguments = ["--results-dir", "study", "--servers"]
    assert main([*arguments, "2"]) == 0
    first = pd.read_csv("study/servers/servers.csv")
    assert main([*arguments, "3", "--resume"]) == 0
    both = pd.read_csv("study/servers/servers.csv")
    timed = ["seconds", "cpu_seconds"]
    pd.testing.assert_frame_equal(both.iloc[: len(first)].drop(columns=timed), first.drop(columns=timed))
    assert both["server"].unique().tolist() == list(range(3))
    names = {path.name for path in Path("study/servers").iterdir()}
    assert {"README.md", "broken.png", "broken.csv", "given_away.csv", "given_away.png"} <= names
    assert "3 servers, 0 not fitted for an error; 3 fits passed the gate" in capsys.readouterr().out


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


@pytest.fixture
def trace() -> Path:
    path = Path("served.jsonl")
    rows = simulated_steps(300, seed=1)
    rows["batch_size"] = rows["batch_size"].clip(upper=4)  # few kinds of steps
    rows["total_tokens"] = rows["batch_size"] * rows["total_tokens"].clip(upper=16)
    steps = rows[["batch_size", "total_tokens", "latency_ms"]].to_numpy()
    write_steps(path, [(int(b), int(s), float(t)) for b, s, t in steps])
    return path


@pytest.mark.usefixtures("stubbed_sampling")
def test_traces_are_held_out_in_both_ways_after_the_servers(
    trace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = made_study()
    know_the_servers(study, monkeypatch)
    monkeypatch.setattr(calibrate_promises, "make_server_study", lambda _: study)
    assert main(["--servers", "2", "--draws", "100"]) == 0
    capsys.readouterr()
    arguments = ["--servers", "2", "--draws", "100", "--traces", str(trace), "--resume"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["split"] for row in found["traces"]["kept"]} == {"random", "blocks"}
    assert {row["promise"] for row in found["servers"]["broken"]} == {
        "largest decode-only batch",
        "limit of a kind of steps",
    }
    assert "--resume" not in found["command"]
    folder = Path("results/promises/traces")
    assert {"README.md", "calibration.png", "kept.csv", "pooled.csv"} <= {p.name for p in folder.iterdir()}
    before = (folder / "cells.csv").read_bytes()
    assert main(arguments) == 0
    assert (folder / "cells.csv").read_bytes() == before
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
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("bayes_sched.studies.sbc._MAX_TRIES", tries)
    write_steps(Path("design.jsonl"), [(b, s, 10.0 + i % 7) for i, (b, s) in enumerate(steps)])
    assert main(["--design", "design.jsonl"]) == 2
    printed = capsys.readouterr()
    assert message in printed.err.splitlines()[-1]
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--servers", "0"], "--servers 0 and no --traces: nothing to do"),
        (["--servers", "-1"], "'-1' is not a whole number of at least 0"),
        (["--quantile", "1"], "'1' is not a probability between 0 and 1"),
        (["--design", "none"], "--design none: no such file"),
        (["--servers", "0", "--traces", "none"], "no such file: none"),
        (["--resume"], "--resume: results/promises holds no study"),
        (["--resume", "--overwrite", "--results-dir", "taken"], "contradict each other"),
        (["--results-dir", "taken"], "taken/servers holds a study: give --resume, --overwrite"),
        (["--results-dir", "taken", "--resume", "--rows", "50"], "taken/servers has rows 500, not 50"),
    ],
)
def test_a_slip_is_answered_with_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = Path("taken/servers")
    taken.mkdir(parents=True)
    (taken / "servers.csv").write_text("precious")
    options = calibrate_promises.parser().parse_args([])
    (taken / "study.json").write_text(json.dumps(dict(calibrate_promises.servers_of(options).settings)))
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert re.search(message, printed.err), printed.err
    assert (taken / "servers.csv").read_text() == "precious"
