"""The command ``fit``: the traces it takes, what it prints; whatever fails costs no result that exists."""

from __future__ import annotations

import io
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bayes_sched.model.priors import Priors, read_prior_overrides
from bayes_sched.model.protocol import load_model
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.sampling import sample as sampling
from tests.conftest import ROOT, documented_record
from tests.running import fail, fails, interrupt, printed_json, subcommand
from tests.stub_sampling import QUICK, fit_records, stub_sample, unmixed_sample

main = subcommand("fit")
SAMPLE = "bayes_sched.sampling.sample.sample"
WRITE_REPORT = "bayes_sched.cli.fit.write_report"
EXAMPLE = ROOT / "examples" / "vllm_cpu_12m_sweep.jsonl.gz"

pytestmark = pytest.mark.usefixtures("stubbed_sampling", "blank_figures")


def test_too_many_bad_lines_are_refused_and_the_option_accepts_them(
    write_lines: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_lines([*["no JSON"] * 5, *fit_records()]).name
    assert "--max-bad-share 0.12" in fails(main, [name], capsys)
    assert main([name, "--max-bad-share", "0.12", *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "5 of 45 lines could not be used" in printed
    assert "trace.jsonl:1: " in printed


def test_too_few_steps_are_refused(
    write_lines: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "5 usable steps are too few" in fails(main, [write_lines(fit_records(5)).name], capsys)


def test_traces_may_stand_before_and_after_the_options(
    write_lines: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    names = [write_lines(fit_records(), name).name for name in ("run-1.jsonl", "run-2.jsonl")]
    assert main([names[0], *QUICK, names[1]]) == 0
    assert FittedModel.load("results/run/posterior.nc").metadata.rows.read == 80


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch, write_lines: Callable[..., Path]) -> None:
    content = write_lines(fit_records()).read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert main(["-", *QUICK]) == 0
    assert FittedModel.load("results/stdin/posterior.nc").metadata.rows.used == 40


def test_the_fit_lies_where_it_is_said_to_lie(short_trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([short_trace, *QUICK, "--gpu", "H100", "--seed", "1"]) == 0
    printed = capsys.readouterr()
    assert "Saved results/trace/posterior.nc" in printed.out
    metadata = FittedModel.load("results/trace/posterior.nc").metadata
    assert metadata.labels == {"gpu": "H100"}
    assert metadata.sampler["seed"] == 1
    assert metadata.command == ("bayes-sched fit trace.jsonl --draws 300 --no-report --gpu H100 --seed 1")
    assert os.listdir("results/trace") == ["posterior.nc"]
    assert os.listdir("results") == ["trace"]


def test_tables_fit_a_terminal_and_hold_every_parameter(
    write_lines: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_lines([*fit_records(), documented_record(model_run_duration_ms=1500.0)]).name
    assert main([name, *QUICK, "--probability", "0.8"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    assert "80% interval" in printed
    assert re.search(r"T above 300 ms +1 +2.44%", printed)
    first_words = {line.split()[0] for line in printed.splitlines() if line.strip()}
    assert {"P_max", "k_B", "k_S", "w_0", "w_1", "tau_0", "tau_B", "tau_S", "nu", "L_0"} <= first_words


def test_progress_is_one_plain_line_a_stage_on_standard_error(
    short_trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main([short_trace, *QUICK])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "bayes-sched fit: reading the trace"
    assert lines.count("bayes-sched fit: sampling") == 1
    assert all(line.startswith("bayes-sched fit: ") for line in lines)


def test_json_is_one_document_and_nothing_else_on_standard_output(
    short_trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([short_trace, *QUICK, "--json"]) == 0
    document = printed_json(capsys)
    assert document["name"] == "trace"
    assert document["converged"] is True
    assert document["paths"] == {"folder": "results/trace", "posterior": "results/trace/posterior.nc"}
    assert document["seconds"] > 0
    assert {row["name"] for row in document["parameters"]} >= {"P_max", "tau_S", "nu"}


def test_the_report_is_written_beside_the_posterior(
    short_trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([short_trace, "--json", "--draws", "300"]) == 0
    document = printed_json(capsys)
    for path in document["paths"].values():
        assert Path(path).exists(), path
    stored = json.loads(Path(document["paths"]["summary"]).read_text("utf-8"))
    assert stored == {key: value for key, value in document.items() if key not in {"paths", "seconds"}}
    assert not list(Path("results").glob(".*"))


def test_a_fit_that_has_not_converged_is_saved_and_said(
    short_trace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sampling, "sample", unmixed_sample)
    assert main([short_trace, *QUICK]) == 3
    printed = capsys.readouterr()
    assert "NOT CONVERGED" in printed.out
    assert "bayes-sched fit: not converged: R-hat" in printed.err
    assert not FittedModel.load("results/trace/posterior.nc").converged


def test_an_unknown_prior_is_refused(short_trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("p.toml").write_text("[tau_X]\nlow = 1.0\nhigh = 2.0\n")
    assert "tau_X: no such parameter" in fails(main, [short_trace, "--priors", "p.toml"], capsys)


@pytest.mark.parametrize(("text", "message"), [("1 / 0\n", "does not run"), ("", "MODEL must fulfil")])
def test_a_model_file_that_fails_is_named(
    text: str, message: str, short_trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.py").write_text(text)
    last = fails(main, [short_trace, "--model", "mine.py"], capsys)
    assert "mine.py: " in last
    assert message in last


def test_the_example_of_priors_holds_the_documented_ranges() -> None:
    model = load_model("saturation")
    overrides = read_prior_overrides(ROOT / "examples" / "priors.toml")
    for noise in model.noises:
        parameters = (*model.parameters, *model.noise_parameters(noise))
        default = Priors.from_parameters(parameters)
        assert default.override(overrides) == default
    assert {p.name for p in model.parameters} <= set(overrides)


def test_an_existing_result_is_replaced_only_when_asked(short_trace: str) -> None:
    assert main([short_trace, *QUICK, "--seed", "1"]) == 0
    Path("results/trace/note.txt").write_text("of the first")
    assert main([short_trace, *QUICK, "--seed", "2"]) == 2
    assert FittedModel.load("results/trace/posterior.nc").metadata.sampler["seed"] == 1
    assert main([short_trace, *QUICK, "--seed", "2", "--overwrite"]) == 0
    assert FittedModel.load("results/trace/posterior.nc").metadata.sampler["seed"] == 2
    assert os.listdir("results/trace") == ["posterior.nc"]
    assert os.listdir("results") == ["trace"]


def interrupt_that_is_swallowed(*args: Any, **options: Any) -> Any:
    """A sampler that takes an interrupt as a wish for fewer draws."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        return stub_sample(*args, **options)


@pytest.fixture
def existing(short_trace: str) -> Iterator[str]:
    """A trace whose result exists; it must be the same, and alone, in the end."""
    assert main([short_trace, *QUICK]) == 0
    before = Path("results/trace/posterior.nc").read_bytes()
    yield short_trace
    assert Path("results/trace/posterior.nc").read_bytes() == before
    assert os.listdir("results") == ["trace"]


@pytest.mark.parametrize(
    ("name", "stub"),
    [
        (SAMPLE, interrupt),
        (SAMPLE, interrupt_that_is_swallowed),
        (WRITE_REPORT, interrupt),
        ("bayes_sched.cli.fit.summarize", interrupt),
    ],
)
def test_an_interrupt_costs_no_existing_result(
    name: str,
    stub: Any,
    existing: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    monkeypatch.setattr(name, stub)
    options = ["--draws", "300"] if name == WRITE_REPORT else QUICK
    assert main([existing, *options, "--overwrite"]) == 130
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1] == "bayes-sched fit: interrupted; existing results are as they were"


def test_a_sampler_that_fails_costs_no_existing_result(
    existing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "sample", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main([existing, *QUICK, "--overwrite"])


def test_a_report_that_fails_does_not_cost_the_fit(
    short_trace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(WRITE_REPORT, fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main([short_trace, "--draws", "300"])
    assert "the fit is saved, results/trace/posterior.nc" in capsys.readouterr().err
    assert FittedModel.load("results/trace/posterior.nc").converged


def test_the_handler_of_interrupts_is_given_back(short_trace: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    main([short_trace, *QUICK])
    assert signal.getsignal(signal.SIGINT) is before


REAL_SAMPLE = sampling.sample


@pytest.mark.slow
def test_a_real_trace_is_really_sampled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sampling, "sample", REAL_SAMPLE)
    options = ["--max-rows", "300", "--draws", "200", "--tune", "200", "--no-report", "--json"]
    assert main([str(EXAMPLE), *options]) in {0, 3}
    document = printed_json(capsys)
    assert document["rows"]["used"] <= 300
    decode = document["typical_steps"][0]
    assert 5.0 < decode["median_ms"] < 30.0
    assert document["gate"]["num_draws"] == 800
