"""Whatever fails, or interrupts the command, costs no result that exists."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.reports import fit as report
from bayes_sched.sampling import sample as sampling
from scripts.fit_bayes import main
from tests.running import fails, full, interrupt
from tests.stub_sampling import QUICK, stub_sample

pytestmark = pytest.mark.usefixtures("stubbed_sampling")


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


def fail(*_args: object, **_options: object) -> None:
    raise RuntimeError("a bug")


@pytest.fixture
def existing(short_trace: str) -> Iterator[str]:
    """A trace whose result exists; it must be the same, and alone, in the end."""
    assert main([short_trace, *QUICK]) == 0
    before = Path("results/trace/posterior.nc").read_bytes()
    yield short_trace
    assert Path("results/trace/posterior.nc").read_bytes() == before
    assert os.listdir("results") == ["trace"]


@pytest.mark.parametrize(
    ("module", "name", "stub"),
    [
        (sampling, "sample", interrupt),
        (sampling, "sample", interrupt_that_is_swallowed),
        (report, "write_report", interrupt),
        (report, "summary", interrupt),
    ],
)
def test_an_interrupt_costs_no_existing_result(
    module: Any,
    name: str,
    stub: Any,
    existing: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    monkeypatch.setattr(module, name, stub)
    options = ["--draws", "300"] if name == "write_report" else QUICK
    assert main([existing, *options, "--overwrite"]) == 130
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1] == "fit_bayes: interrupted; existing results are as they were"


def test_a_sampler_that_fails_costs_no_existing_result(
    existing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "sample", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main([existing, *QUICK, "--overwrite"])


def test_a_disk_that_is_full_costs_no_existing_result(
    existing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    monkeypatch.setattr(os, "rename", full)
    message = fails(main, [existing, *QUICK, "--overwrite"], capsys)
    assert "results/trace: cannot write the result (No space left on device)" in message


def test_a_result_that_cannot_take_its_place_leaves_the_one_before_there(
    existing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = os.rename, []

    def fail_the_second(*paths: Any) -> None:
        calls.append(paths)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        real(*paths)

    capsys.readouterr()
    monkeypatch.setattr(os, "rename", fail_the_second)
    assert "Input/output error" in fails(main, [existing, *QUICK, "--overwrite"], capsys)
    assert len(calls) == 3


def test_a_report_that_fails_does_not_cost_the_fit(
    short_trace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "write_report", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main([short_trace, "--draws", "300"])
    assert "the fit is saved, results/trace/posterior.nc" in capsys.readouterr().err
    assert FittedModel.load("results/trace/posterior.nc").converged


def test_the_handler_of_interrupts_is_given_back(short_trace: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    main([short_trace, *QUICK])
    assert signal.getsignal(signal.SIGINT) is before
