"""What a pool is worth on a few steps: scored on the rest, resumed, and refused where it cannot be asked."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bayes_sched.cli.main import run_script
from bayes_sched.errors import InputError
from bayes_sched.model.priors import Priors
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.studies.pooling import FewSteps, Target, summary_table
from bayes_sched.trace.reader import read_trace
from tests.conftest import documented_record
from tests.stub_population import stub_pool, stub_population, three_fits
from tests.synthetic_fit import simulated_steps, synthetic_fit, synthetic_metadata

pytestmark = pytest.mark.usefixtures("blank_figures")

main = partial(run_script, "validate_pool.py")


class KnowingSampler:
    """In place of the sampler: a posterior around the truth, wide where no population tells of the server."""

    def __init__(self, model: object, steps: pd.DataFrame, priors: Priors, *, noise: str) -> None:
        self.spread = 0.5 if priors.population is None else 0.02
        self.taken: list[pd.DataFrame] = []

    def take(self, steps: pd.DataFrame) -> None:
        self.taken.append(steps)

    def run(self, settings: SamplerSettings) -> Any:
        fit = synthetic_fit(spread=self.spread, seed=settings.seed % 1000)
        return type("Samples", (), {"data": fit.data})()


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayes_sched.studies.pooling.Sampler", KnowingSampler)
    stub_population(monkeypatch)


def made_target(steps: pd.DataFrame) -> Target:
    documented = synthetic_metadata().priors
    return Target(name="day", steps=steps, fit=synthetic_fit(spread=0.01), priors={"documented": documented})


@pytest.mark.usefixtures("stubbed")
def test_few_steps_are_fitted_and_the_others_predicted() -> None:
    steps = simulated_steps(300, seed=1)
    study = FewSteps(
        target=made_target(steps), num_steps=50, max_test=100, settings=SamplerSettings(chains=2)
    )
    first, again = study.run(3), study.run(3)
    pd.testing.assert_frame_equal(first.drop(columns="seconds"), again.drop(columns="seconds"))
    assert first["crps_ms"][0] > 1.2 * first["whole_crps_ms"][0]
    (taken, _) = study.samplers["documented"].taken  # type: ignore[attr-defined]
    assert len(taken) == 50
    assert not taken.equals(steps.iloc[:50])


@pytest.mark.usefixtures("stubbed")
def test_consecutive_steps_follow_each_other_and_are_of_several_sizes() -> None:
    steps = simulated_steps(300, seed=1)
    steps.loc[:200, ["batch_size", "total_tokens"]] = 1
    study = FewSteps(
        target=made_target(steps),
        num_steps=40,
        max_test=100,
        is_consecutive=True,
        settings=SamplerSettings(chains=2),
    )
    for number in range(5):
        study.run(number)
        taken = study.samplers["documented"].taken[-1]  # type: ignore[attr-defined]
        start = int(np.flatnonzero(steps["latency_ms"] == taken["latency_ms"][0])[0])
        np.testing.assert_array_equal(taken["latency_ms"], steps["latency_ms"][start : start + 40])
        assert len(taken["total_tokens"].unique()) > 1


@pytest.mark.usefixtures("stubbed")
def test_steps_of_one_size_and_too_few_steps_are_refused() -> None:
    steps = simulated_steps(60, seed=1).assign(batch_size=1, total_tokens=1)
    settings = SamplerSettings(chains=2)
    study = FewSteps(
        target=made_target(steps), num_steps=40, max_test=9, is_consecutive=True, settings=settings
    )
    with pytest.raises(InputError, match="day: no 40 steps in a row are of several sizes"):
        study.run(0)
    with pytest.raises(InputError, match="day: 60 steps leave none to predict"):
        FewSteps(target=made_target(steps), num_steps=60, max_test=9, settings=settings)


def test_the_summary_compares_with_documented_priors_run_by_run() -> None:
    rows = [
        {"trace": "a", "run": run, "prior": prior, "crps_ms": crps, "coverage_90": 0.9, "whole_crps_ms": 1.0}
        for run, (base, helped) in enumerate([(2.0, 1.0), (4.0, 3.0), (1.0, 2.0)])
        for prior, crps in (("documented", base), ("new server", helped))
    ]
    table = summary_table(pd.DataFrame(rows)).set_index("prior")
    assert table.loc["documented", "ratio"] == 1.0
    assert table.loc["new server", "ratio"] == pytest.approx(0.75)
    assert table.loc["new server", "better"] == pytest.approx(2.0 / 3.0)
    assert table.loc["new server", "crps_ms"] == pytest.approx(2.0)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four results and their traces: `day` and `night` of one server, `other` and `other2` of two others."""
    folder = tmp_path_factory.mktemp("pool")
    fits = three_fits()
    fits["other2"] = replace(
        fits["other"], metadata=replace(fits["other"].metadata, name="other2", labels={"gpu": "Z9"})
    )
    for seed, (name, fit) in enumerate(fits.items()):
        lines = [
            documented_record(
                prefill=[int(s - b) + 1] if s > b else [],
                decode=int(b) - int(s > b),
                batch_id=i,
                model_run_duration_ms=float(t),
            )
            for i, (b, s, t) in enumerate(simulated_steps(200, seed=seed).to_numpy())
        ]
        trace = folder / f"{name}.jsonl"
        trace.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        metadata = replace(fit.metadata, trace_sha256=read_trace(trace).sha256)
        (folder / "results" / name).mkdir(parents=True)
        kept = FittedModel(data=fit.data, model=fit.model, metadata=metadata)
        kept.save(folder / "results" / name / "posterior.nc")
    return folder


@pytest.fixture
def _among_results(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(recorded, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


ALL = ["results/day", "results/night", "results/other"]


@pytest.mark.usefixtures("stubbed", "_among_results")
def test_the_command_writes_runs_and_goes_on_where_it_stopped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pooled = stub_pool()  # once for both priors
    monkeypatch.setattr("bayes_sched.studies.pooling.pool", lambda fits, **_: pooled)
    given = [*ALL, "results/other2", "--trace", "day.jsonl", "--runs", "2", "--max-test", "50"]
    assert main(given) == 0
    runs = pd.read_csv("results/pool_validation/runs.csv")
    assert list(runs["prior"][:3]) == ["documented", "new server", "known server"]
    assert (runs.groupby("number").size() == 3).all()
    printed = capsys.readouterr()
    assert "new server" in printed.out
    assert "day: 2 of 2 runs" in printed.err
    page = Path("results/pool_validation/README.md").read_text()
    assert "50 steps of a trace, chosen at random" in page
    assert main([*given, "--resume"]) == 0
    pd.testing.assert_frame_equal(pd.read_csv("results/pool_validation/runs.csv"), runs)


@pytest.mark.usefixtures("stubbed", "_among_results")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["results/none", "--trace", "day.jsonl"], "results/none: no such fit"),
        ([*ALL, "--trace", "none.jsonl"], "no such file: none.jsonl"),
        ([*ALL, "--trace", "strange.jsonl"], "strange.jsonl: none of the fits is of this trace"),
        (ALL, "the following arguments are required: --trace"),
        ([*ALL, "--trace", "day.jsonl"], "1 trace: a pool takes two or more"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("strange.jsonl").write_text("\n".join(Path("day.jsonl").read_text().splitlines()[:100]) + "\n")
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
