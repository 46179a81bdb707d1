"""The study of simulated pairs: it recovers what it simulated, and goes on where it stopped."""

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
from bayes_sched.model.protocol import all_parameters, load_model
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.studies.comparison import LARGEST_RATIO, SMALLEST_RATIO, PairStudy
from bayes_sched.studies.sbc import CalibrationStudy
from scripts import calibrate_comparison
from scripts.calibrate_comparison import main

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


def made_study(rows: int = 40) -> PairStudy:
    model = load_model("saturation")
    b = np.repeat([1, 2, 4, 8, 16], rows // 5)
    steps = pd.DataFrame({"batch_size": b, "total_tokens": b * np.tile([1, 8], rows // 2)})
    priors = Priors.from_parameters(all_parameters(model, "proportional"))
    settings = SamplerSettings(draws=200, chains=2, seed=3)
    return PairStudy(CalibrationStudy(model, steps, priors, noise="proportional", settings=settings))


def know_the_servers(study: PairStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put in place of the sampler one that knows each server but for a common factor that it reads off."""
    truths: list[xr.Dataset] = []
    draw = study._plausible_server

    def remember(rng: np.random.Generator) -> xr.Dataset:
        truths.append(draw(rng))
        return truths[-1]

    def fit(observed: Any, *, seed: int) -> tuple[xr.Dataset, bool]:
        truth = truths[-1]
        ratio = float(np.median(observed / study.study.model.latency(truth, study.design).to_numpy()))
        factor = ratio * np.exp(0.02 * np.random.default_rng(seed).standard_normal((2, 200)))
        constant = {str(name): np.full((2, 200), float(value)) for name, value in truth.items()}
        draws = xr.Dataset({name: (("chain", "draw"), values) for name, values in constant.items()})
        draws["P_max"] = draws["P_max"] / factor
        for name in ("tau_0", "tau_B", "tau_S"):
            draws[name] = draws[name] * factor
        return draws, True

    monkeypatch.setattr(study, "_plausible_server", remember)
    monkeypatch.setattr(study, "_fit", fit)


def test_a_pair_is_compared_with_the_ratio_it_was_simulated_with(monkeypatch: pytest.MonkeyPatch) -> None:
    study = made_study(400)
    know_the_servers(study, monkeypatch)
    pair = study.run_one(4)
    assert SMALLEST_RATIO <= pair.true_ratio <= LARGEST_RATIO
    assert "error" not in pair.account
    assert pair.account["gates_passed"] == 2
    assert len(pair.table) == 5
    assert pair.table["ratio_median"].to_numpy() == pytest.approx(pair.true_ratio, rel=0.15)
    assert (pair.table["first_is_faster"] == float(pair.true_ratio < 1.0)).all()
    pd.testing.assert_frame_equal(study.run_one(4).table, pair.table)


def test_servers_of_the_study_take_plausible_times() -> None:
    study = made_study()
    for number in range(5):
        truth = study._plausible_server(np.random.default_rng(number))
        assert 2.0 <= float(study.study.model.latency(truth, study.design).median()) <= 200.0


def test_an_error_of_a_fit_is_part_of_the_account(monkeypatch: pytest.MonkeyPatch) -> None:
    study = made_study()

    def fail(observed: Any, *, seed: int) -> None:
        raise RuntimeError("no start\nwas found")

    monkeypatch.setattr(study, "_fit", fail)
    pair = study.run_one(0)
    assert pair.account["error"] == "RuntimeError: no start was found"
    assert pair.table.empty


def test_a_study_is_written_and_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = made_study()
    know_the_servers(study, monkeypatch)
    monkeypatch.setattr(calibrate_comparison, "make_study", lambda _: study)
    arguments = ["--results-dir", "study", "--pairs"]
    assert main([*arguments, "10"]) == 0
    first = pd.read_csv("study/pairs.csv")
    assert main([*arguments, "12", "--resume"]) == 0
    both = pd.read_csv("study/pairs.csv")
    pd.testing.assert_frame_equal(
        both.iloc[: len(first)].drop(columns="seconds"), first.drop(columns="seconds")
    )
    assert both["pair"].unique().tolist() == list(range(12))
    names = {path.name for path in Path("study").iterdir()}
    assert {"README.md", "calibration.png", "coverage.csv", "reliability.csv", "study.json"} <= names
    assert "12 pairs, 0 not compared" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "5"], "'5' is not a whole number of at least 10"),
        (["--design", "none"], "--design none: no such file"),
        (["--resume"], "--resume: results/comparison_calibration holds no study"),
        (["--resume", "--overwrite"], "contradict each other"),
        (["--results-dir", "taken"], "taken holds a study: give --resume, --overwrite"),
        (["--results-dir", "taken", "--resume", "--rows", "50"], "the study in taken has rows 80, not 50"),
    ],
)
def test_a_slip_is_answered_with_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken").mkdir()
    Path("taken/pairs.csv").write_text("precious")
    options = calibrate_comparison.parser().parse_args([])
    Path("taken/study.json").write_text(json.dumps(calibrate_comparison.settings_of(options)))
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert re.search(message, printed.err), printed.err
    assert Path("taken/pairs.csv").read_text() == "precious"
