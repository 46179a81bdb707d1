"""From a trace to a fitted model, with a sampler that does not sample."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bayes_sched.errors import InputError
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import load_model, models_folder
from bayes_sched.posterior.fit import MIN_STEPS, FitResult, fit, load_same_fit, summarise_cells
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.sampling import sample as sampling
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.trace.reader import Trace, read_trace
from tests.conftest import documented_record
from tests.stub_sampling import stub_sample, unmixed_sample
from tests.synthetic_fit import simulated_steps

SETTINGS = SamplerSettings(draws=300, tune=20, chains=4)
QUICK = SamplerSettings(draws=20, tune=20, chains=2)
"""For what does not need convergence."""


@pytest.fixture(autouse=True)
def _no_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "sample", stub_sample)


@pytest.fixture(scope="module")
def steps() -> pd.DataFrame:
    return simulated_steps(400, seed=5)


@pytest.fixture
def trace(write_lines: Callable[..., Path]) -> Trace:
    records: list[Any] = [
        documented_record(prefill=[16 * i], model_run_duration_ms=4.0 + i) for i in range(1, 41)
    ]
    slow, idle = documented_record(model_run_duration_ms=1500.0), documented_record(prefill=[], decode=0)
    path = write_lines([*records, slow, "no JSON", idle])
    path.with_name("trace.meta.json").write_text('{"gpu": "H100", "llm": "llama"}')
    return read_trace(path, max_bad_share=0.1)


def test_a_trace_becomes_a_fit_that_says_where_it_comes_from_and_survives_its_file(
    trace: Trace, tmp_path: Path
) -> None:
    result = fit(trace, settings=SETTINGS, command="python scripts/fit_bayes.py trace.jsonl")
    metadata = result.fit.metadata
    assert metadata.name == "trace"
    assert (metadata.rows.read, metadata.rows.cleaned, metadata.rows.used) == (42, 40, 40)
    assert metadata.labels == {"gpu": "H100", "llm": "llama"}
    assert [source.path for source in metadata.traces] == ["trace.jsonl"]
    assert metadata.trace_sha256 == trace.sha256
    assert sum(metadata.bad_lines.values()) == 1
    assert any("T above 300 ms" in warning for warning in metadata.warnings)
    assert [row["removed"] for row in metadata.cleaning.table] == [1, 0, 1]
    model = metadata.model
    assert (model.name, model.shipped, metadata.noise) == ("saturation", True, "proportional")
    sampler = [metadata.sampler[key] for key in ("name", "draws", "seed", "part_masses")]
    assert sampler == ["nutpie", 300, 0, "0.25, 0.75"]
    assert {"compile", "sampling", "total"} <= set(metadata.timings_s)
    assert {"python", "pymc", "nutpie"} <= set(metadata.package_versions)
    assert metadata.command == "python scripts/fit_bayes.py trace.jsonl"
    assert (metadata.converged, metadata.problems, metadata.thinned_to) == (True, (), None)
    result.fit.save(tmp_path / "posterior.nc")
    loaded = FittedModel.load(tmp_path / "posterior.nc")
    assert loaded.metadata == metadata
    assert loaded.convergence.text == result.fit.convergence.text
    # No folder of the trace is kept.
    assert str(tmp_path) not in "".join(map(str, metadata.to_attrs().values()))


def test_a_table_of_steps_will_do(steps: pd.DataFrame) -> None:
    result = fit(steps, settings=QUICK, labels={"gpu": "A6000"})
    assert result.trace is None
    assert result.fit.metadata.name == "steps"
    assert result.fit.metadata.labels == {"gpu": "A6000"}
    assert len(result.fit.metadata.trace_sha256) == 64
    other = fit(steps.assign(latency_ms=steps["latency_ms"] + 1.0), settings=QUICK)
    assert other.fit.metadata.trace_sha256 != result.fit.metadata.trace_sha256


def test_given_labels_and_name_go_before_those_of_the_trace(trace: Trace) -> None:
    metadata = fit(trace, settings=QUICK, name="mine", labels={"gpu": "H200", "llm": ""}).fit.metadata
    assert metadata.name == "mine"
    assert metadata.labels == {"gpu": "H200", "llm": "llama"}


def test_chains_that_do_not_mix_are_saved_as_such(
    monkeypatch: pytest.MonkeyPatch, steps: pd.DataFrame
) -> None:
    monkeypatch.setattr(sampling, "sample", unmixed_sample)
    result = fit(steps, settings=SETTINGS)
    assert not result.fit.converged
    assert any("tau_S" in text and "tune above 20" in text for text in result.fit.metadata.problems)


def test_too_many_rows_are_thinned_whatever_the_seed_and_that_is_said(steps: pd.DataFrame) -> None:
    result = fit(steps, settings=QUICK, max_rows=100)
    metadata = result.fit.metadata
    assert len(result.thinned.steps) == metadata.rows.used <= 100
    assert len(result.steps) == metadata.rows.cleaned > 100
    assert int(result.fit.cells["count"].sum()) == metadata.rows.used
    assert metadata.thinned_to == 100
    assert result.thinned.text in metadata.warnings
    other = fit(steps, settings=replace(QUICK, seed=2), max_rows=100)
    pd.testing.assert_frame_equal(result.thinned.steps, other.thinned.steps)


def found_again(file: Path, result: FitResult, **changes: Any) -> bool:
    options: dict[str, Any] = {"model": "saturation", "noise": None, "settings": QUICK, "max_rows": 100}
    options |= {"min_latency_ms": 1.0, "max_latency_ms": 300.0}
    options |= {"trace_sha256": result.fit.metadata.trace_sha256, **changes}
    return load_same_fit(file, **options) is not None


def test_a_fit_is_taken_again_only_with_the_same_options(steps: pd.DataFrame, tmp_path: Path) -> None:
    file, result = tmp_path / "posterior.nc", fit(steps, settings=QUICK, max_rows=100)
    assert not found_again(file, result)
    result.fit.save(file)
    assert found_again(file, result)
    assert found_again(file, result, noise="proportional")
    other_seed, changes = replace(QUICK, seed=1), {"max_latency_ms": 299.0, "trace_sha256": "1" * 64}
    changes |= {"max_rows": 101, "noise": "constant", "settings": other_seed}
    assert not any(found_again(file, result, **{name: value}) for name, value in changes.items())


def test_a_limit_of_rows_that_does_not_bind_makes_no_difference(steps: pd.DataFrame, tmp_path: Path) -> None:
    file, result = tmp_path / "posterior.nc", fit(steps, settings=QUICK)
    result.fit.save(file)
    found = [found_again(file, result, max_rows=limit) for limit in (399, 400, 10_000)]
    assert found == [False, True, True]


def test_cells_sum_up_the_steps() -> None:
    columns = {"batch_size": [2, 1, 1, 1], "total_tokens": [9, 5, 5, 5], "latency_ms": [7.0, 1.0, 2.0, 3.0]}
    cells = summarise_cells(pd.DataFrame(columns))
    assert cells["batch_size"].to_numpy().tolist() == [1, 2]
    assert cells["count"].to_numpy().tolist() == [3, 1]
    assert cells["median_ms"].to_numpy().tolist() == [2.0, 7.0]
    np.testing.assert_allclose(cells["q95_ms"], [2.9, 7.0])


def test_overrides_and_whole_tables_of_priors_are_used(steps: pd.DataFrame) -> None:
    overridden = fit(steps, settings=QUICK, priors={"tau_S": {"low": 0.001, "high": 0.01}}).fit.metadata
    assert overridden.priors["tau_S"].low == 0.001
    assert overridden.priors["tau_B"].low == 0.005
    assert fit(steps, settings=QUICK, priors=overridden.priors).fit.metadata.priors == overridden.priors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"priors": {"tau_X": {"low": 1, "high": 2}}}, "tau_X: no such parameter; the model has P_max"),
        ({"priors": Priors([])}, "the model saturation with noise proportional has P_max"),
        ({"noise": "loud"}, "noise 'loud': the model saturation has proportional, constant"),
        ({"model": "nonsense"}, "nonsense: no such model; give one of saturation"),
        ({"min_latency_ms": 400.0}, "min.latency.ms.* 400 is not below"),
        ({"max_latency_ms": 1.5, "min_latency_ms": 1.4}, "too few|no step is left"),
        ({"max_rows": 19}, "usable steps are too few for a fit"),
    ],
)
def test_options_that_cannot_be_met_are_refused_before_sampling(
    options: dict[str, Any], message: str, steps: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(sampling, "sample")
    with pytest.raises(InputError, match=message):
        fit(steps, settings=QUICK, **options)


def test_too_few_steps_and_steps_of_one_size_are_refused(steps: pd.DataFrame) -> None:
    assert fit(steps.iloc[:MIN_STEPS], settings=QUICK).fit.metadata.rows.used == MIN_STEPS == 20
    with pytest.raises(InputError, match="19 usable steps are too few"):
        fit(steps.iloc[:19])


def test_of_steps_of_one_size_what_they_tell_is_said(
    steps: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(sampling, "sample")
    alike = steps.assign(batch_size=1, total_tokens=1, latency_ms=np.linspace(19.0, 21.0, len(steps)))
    told = (
        r"such a step takes 20\.0 ms in the median \(95% interval 19\.9 to 20\.1\) and 90% .* 19\.1 to 20\.9"
    )
    with pytest.raises(
        InputError, match=f"all 400 usable steps have B = 1 and S = 1.*{told}.*record a trace"
    ):
        fit(alike)
    alike.loc[:3, "total_tokens"] = 17  # the prompts
    with pytest.raises(InputError, match="396 of 400 usable steps have B = 1 and S = 1"):
        fit(alike)


def test_what_steps_cannot_tell_is_a_warning(steps: pd.DataFrame) -> None:
    one = fit(steps.assign(batch_size=1), settings=QUICK).fit
    assert any("all steps have 1 request: what one more costs" in text for text in one.warnings)
    decodes = fit(steps.assign(total_tokens=steps["batch_size"]), settings=QUICK).fit
    assert any("no step holds a prefill" in text for text in decodes.warnings)
    assert fit(steps, settings=QUICK).fit.warnings == ()


def test_a_fit_keeps_the_steps_of_its_trace_however_few_it_used(steps: pd.DataFrame, tmp_path: Path) -> None:
    made = fit(steps.assign(context_tokens=7.0), settings=QUICK, max_rows=50).fit
    made.save(tmp_path / "posterior.nc")
    kept = FittedModel.load(tmp_path / "posterior.nc").observed
    assert made.metadata.rows.used <= 50 < len(kept) == len(steps)
    assert kept["latency_ms"].tolist() == steps["latency_ms"].tolist()
    assert set(kept["context_tokens"]) == {7.0}


def foreign_model(folder: Path, old: str = "", replacement: str = "") -> Path:
    """A researcher's own copy of the shipped model, changed."""
    path = folder / "my_model.py"
    text = (models_folder() / "saturation.py").read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, replacement, 1) if old else text, encoding="utf-8")
    return path


NEEDS_CONTEXT = """
class Needy(Saturation):
    columns = (*Saturation.columns, "context_tokens")

MODEL = Needy()
"""


def test_an_error_in_a_foreign_model_names_its_file_and_line(
    steps: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = foreign_model(tmp_path, "return student_t_model(self", "return student_t_model(1 / 0")

    def build_only(*args: object, **kwargs: object) -> None:
        load_model(model).build(steps, Priors([]), noise="proportional")

    monkeypatch.setattr(sampling, "sample", build_only)
    with pytest.raises(InputError, match=r"my_model.py, line \d+: the model fails \(ZeroDivisionError"):
        fit(steps, model=model, settings=QUICK)


def test_an_error_of_our_own_is_not_blamed_on_anybody(
    steps: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sampling, "sample", broken)
    with pytest.raises(ZeroDivisionError):
        fit(steps, settings=QUICK)


def test_columns_that_a_foreign_model_needs_must_be_there_and_rows_without_them_are_left_out(
    steps: pd.DataFrame, tmp_path: Path
) -> None:
    model = foreign_model(tmp_path, "MODEL = Saturation()", NEEDS_CONTEXT)
    with pytest.raises(InputError, match="needs context_tokens, which the trace does not hold"):
        fit(steps, model=model, settings=QUICK)
    with_holes = steps.assign(context_tokens=np.where(np.arange(len(steps)) < 30, np.nan, 5.0))
    metadata = fit(with_holes, model=model, settings=QUICK).fit.metadata
    assert (metadata.model.name, metadata.model.shipped) == ("my_model.py", False)
    assert metadata.rows.used == metadata.rows.cleaned - 30
    assert any("30 of 400 cleaned steps lack" in warning for warning in metadata.warnings)


def test_progress_is_told_in_words(steps: pd.DataFrame) -> None:
    told: list[tuple[str, float | None]] = []
    fit(steps, settings=QUICK, progress=lambda stage, share: told.append((stage, share)))
    assert told == [("loading the model", None), ("sampling", None), ("sampling", 0.5)]


def test_names_that_are_no_text_do_not_stop_the_writing(steps: pd.DataFrame, tmp_path: Path) -> None:
    result = fit(steps, settings=QUICK, labels={"gpu": "H\udcff"}, command="fit tr\udcffce")
    result.fit.save(tmp_path / "posterior.nc")
    assert FittedModel.load(tmp_path / "posterior.nc").metadata.labels == {"gpu": "H�"}
