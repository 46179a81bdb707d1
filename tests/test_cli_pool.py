"""The command ``pool``: what it refuses, what it writes; no fit is lost or made twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bayes_sched.files import UNSEEN
from bayes_sched.pooling.population import Population
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.sampling import sample as sampling
from tests.running import fail, fails, interrupt, printed_json, subcommand
from tests.stub_population import save_fits, stub_pool, stub_population, unmixed_population
from tests.stub_sampling import fit_records, unmixed_sample

main, fit = subcommand("pool"), subcommand("fit")
QUICK = ["--draws", "300", "--no-report"]
ALL = ["results/day", "results/night", "results/other"]

pytestmark = pytest.mark.usefixtures("stubbed_sampling", "stubbed_population", "blank_figures")


@pytest.fixture
def stubbed_population(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_population(monkeypatch)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of three fits and of one that has not converged."""
    folder = tmp_path_factory.mktemp("saved")
    save_fits(folder)
    return folder


@pytest.fixture
def fits(in_an_empty_folder: None, saved: Path) -> None:
    """The saved results, in the folder of results."""
    shutil.copytree(saved, "results")


@pytest.fixture(scope="module")
def saved_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three fits pooled."""
    folder = tmp_path_factory.mktemp("pooled")
    stub_pool().save(folder)
    return folder


@pytest.fixture
def pooled(fits: None, saved_pool: Path) -> None:
    """Their pool, in the folder of results."""
    shutil.copytree(saved_pool, "results/pool")


@pytest.fixture
def trace(in_an_empty_folder: None, write_lines: Callable[..., Path]) -> str:
    """A trace whose result would be results/steps."""
    return write_lines(fit_records(), "steps.jsonl").name


@pytest.mark.usefixtures("fits")
def test_a_pool_of_fits_lies_where_it_is_said_to_lie(capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in Path("results").rglob("*.nc")}
    assert main([*ALL, "--draws", "300"]) == 0
    printed = capsys.readouterr()
    assert "Pooled: 3 traces of 2 servers, X100, llama-3-8b (2 traces) and Y50" in printed.out
    assert "Saved results/pool/population.nc" in printed.out
    assert max(map(len, printed.out.splitlines())) <= 100
    assert {path: path.read_bytes() for path in before} == before
    population = Population.load("results/pool/population.nc")
    assert population.command == "bayes-sched pool results/day results/night results/other --draws 300"
    for name in ("day", "night", "other", UNSEEN):
        fit = FittedModel.load(f"results/pool/members/{name}/posterior.nc")
        assert (fit.metadata.name, fit.metadata.prior_from) == (name, "the pool pool (3 traces)")
    page = Path("results/pool/report.html").read_text("utf-8")
    assert "Servers that borrow strength" in page
    assert "pool results/day" in page
    figures = {path.name for path in Path("results/pool/figures").iterdir()}
    assert figures == {"pool_shrinkage.png", "pool_latency.png"}
    assert not list(Path("results").glob(".*"))


@pytest.mark.usefixtures("pooled")
def test_an_existing_pool_is_replaced_only_when_asked_and_json_is_one_document(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("results/pool/note").write_text("of the first")
    arguments = [*ALL[:2], *QUICK, "--json", "--server", "night=Z9"]
    assert "results/pool exists" in fails(main, arguments, capsys)
    assert Path("results/pool/note").exists()
    assert main([*arguments, "--overwrite"]) == 0
    assert not Path("results/pool/note").exists()
    document = printed_json(capsys)
    stored = json.loads(Path(document["paths"]["summary"]).read_text("utf-8"))
    assert stored == {key: value for key, value in document.items() if key not in {"paths", "seconds"}}
    assert document["server_of_trace"] == {"day": "X100, llama-3-8b", "night": "Z9"}
    assert document["converged"] is True
    assert not Path("results/pool/report.html").exists()


@pytest.mark.usefixtures("fits")
def test_a_trace_is_fitted_into_a_result_of_its_own_and_never_twice(
    trace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub_population(monkeypatch, interrupt)
    assert main([trace, "results/day", *QUICK]) == 130
    assert "steps (fit 1 of 1): sampling" in capsys.readouterr().err
    alone = FittedModel.load("results/steps/posterior.nc")
    assert alone.metadata.command == "bayes-sched fit steps.jsonl --model saturation --draws 300"
    assert alone.metadata.prior_from is None
    stub_population(monkeypatch)
    monkeypatch.setattr(sampling, "sample", None)
    assert main([trace, "results/day", *QUICK]) in {0, 3}
    assert "steps: fitted before (results/steps), used as it is" in capsys.readouterr().err
    assert set(Population.load("results/pool/population.nc").server_of_trace) == {"steps", "day"}


@pytest.mark.usefixtures("fits")
@pytest.mark.parametrize(
    "options",
    [["--seed", "5"], ["--max-latency-ms", "200"], ["--max-rows", "25"], ["--noise", "constant"]],
)
def test_a_fit_with_other_options_is_not_taken_for_the_same(
    options: list[str], trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit([trace, *QUICK]) == 0
    capsys.readouterr()
    message = fails(main, [trace, "results/day", *QUICK, *options], capsys)
    assert "results/steps is a fit of another trace or with other options: give the folder itself" in message
    assert not Path("results/pool").exists()


@pytest.mark.usefixtures("fits")
def test_overwrite_fits_a_trace_again_where_options_differ(
    trace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_population(monkeypatch, interrupt)
    assert fit([trace, *QUICK]) == 0
    assert main([trace, "results/day", *QUICK, "--seed", "5", "--overwrite"]) == 130
    assert FittedModel.load("results/steps/posterior.nc").metadata.sampler["seed"] == 5


@pytest.mark.usefixtures("fits")
def test_a_fit_that_has_not_converged_is_refused_before_any_is_made(
    trace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sampling, "sample", None)
    message = fails(main, [trace, "results/bad", *QUICK], capsys)
    assert (
        "bad: its fit has not converged; fit it again with more draws, or give --accept-unconverged"
        in message
    )


@pytest.mark.usefixtures("fits")
def test_an_accepted_fit_is_pooled_and_marked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results/day", "results/bad", *QUICK, "--accept-unconverged"]) == 0
    assert "warning: bad has NOT CONVERGED by itself" in capsys.readouterr().err


@pytest.mark.usefixtures("fits")
def test_a_trace_whose_fit_does_not_converge_is_kept_for_another_try(
    trace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sampling, "sample", unmixed_sample)
    assert "steps: its fit has not converged" in fails(main, [trace, ALL[0], *QUICK], capsys)
    assert not FittedModel.load("results/steps/posterior.nc").converged
    monkeypatch.setattr(sampling, "sample", None)
    stub_population(monkeypatch, interrupt)
    assert main([trace, ALL[0], *QUICK, "--accept-unconverged"]) == 130
    assert "steps: fitted before" in capsys.readouterr().err


@pytest.mark.usefixtures("fits")
def test_models_that_differ_or_cannot_be_pooled_are_refused_before_sampling(
    trace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sampling, "sample", None)
    pair = [trace, ALL[0], *QUICK]
    message = fails(main, [*pair, "--noise", "constant"], capsys)
    assert (
        "day and steps are of different models (saturation with noise proportional, saturation with noise "
        "constant): pool fits of one model and noise option" in message
    )
    message = fails(main, [*pair, "--model", "saturation_staircase"], capsys)
    assert "fits of the model saturation_staircase cannot be pooled; use the model saturation" in message


@pytest.mark.usefixtures("fits")
def test_one_trace_under_two_names_is_refused(
    trace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(trace, "copy.jsonl")
    monkeypatch.setattr(sampling, "sample", None)
    message = fails(main, [trace, "copy.jsonl", *QUICK], capsys)
    assert "steps and copy are of the same trace: a pool takes each trace once" in message


@pytest.mark.usefixtures("fits")
def test_a_report_that_fails_does_not_cost_the_pool(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bayes_sched.cli.pool.write_report", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main([*ALL, *QUICK])
    assert "the pool is saved, results/pool/population.nc; its report is not" in capsys.readouterr().err
    assert Population.load("results/pool/population.nc").converged


@pytest.mark.usefixtures("fits")
def test_a_population_that_has_not_converged_is_saved_said_and_refused_as_a_prior(
    trace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub_population(monkeypatch, unmixed_population)
    assert main([*ALL, *QUICK]) == 3
    printed = capsys.readouterr()
    assert "The pool has NOT CONVERGED" in printed.out
    assert "bayes-sched pool: not converged: R-hat" in printed.err
    assert not FittedModel.load("results/pool/members/day/posterior.nc").converged
    given = [trace, *QUICK, "--prior-from", "results/pool"]
    assert "the pool pool has not converged (R-hat" in fails(fit, given, capsys)
    assert fit([*given, "--accept-unconverged"]) == 0
    prior = FittedModel.load("results/steps/posterior.nc").metadata.prior_from
    assert prior is not None
    assert prior.endswith("as a server not yet seen; the pool has NOT CONVERGED")


@pytest.mark.usefixtures("pooled")
@pytest.mark.parametrize(
    ("options", "whose"),
    [
        ([], "a server not yet seen"),
        (["--gpu", "Y50", "--llm", "llama-3-8b"], "a further trace of Y50, llama-3-8b"),
        (["--gpu", "Z9"], "a server not yet seen"),
        (["--gpu", "Z9", "--server", "X100, llama-3-8b"], "a further trace of X100, llama-3-8b"),
    ],
)
def test_whose_prior_a_fit_takes_is_printed_and_kept(
    options: list[str], whose: str, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit([trace, *QUICK, "--prior-from", "results/pool/population.nc", *options]) == 0
    printed = capsys.readouterr()
    text = f"the pool pool (3 traces of 2 servers), as {whose}"
    assert f"bayes-sched fit: prior: {text}\n" in printed.err
    assert f"Its prior is from {text}." in " ".join(printed.out.split())
    assert FittedModel.load("results/steps/posterior.nc").metadata.prior_from == text


@pytest.mark.usefixtures("pooled")
def test_a_pool_that_does_not_suit_the_fit_is_refused(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [trace, *QUICK, "--prior-from", "results/pool"]
    assert "no server 'Z' in the pool pool: it has X100" in fails(fit, [*given, "--server", "Z"], capsys)
    message = fails(fit, [*given, "--noise", "constant"], capsys)
    assert (
        "the pool pool is of the model saturation with noise proportional: fit the trace with these"
        in message
    )
    Path("results/pool/population.nc").write_bytes(b"\x89HDF\r\n\x1a\nrubbish")
    assert "population.nc: no population, or a damaged one" in fails(fit, given, capsys)
    assert not Path("results/steps").exists()
