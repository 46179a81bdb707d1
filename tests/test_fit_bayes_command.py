"""The command: the traces it takes, what it prints and where, and its exit statuses."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.sampling import sample as sampling
from scripts.fit_bayes import main
from tests.conftest import ROOT, documented_record
from tests.running import fails, run_python
from tests.stub_sampling import QUICK, fit_records, unmixed_sample

SCRIPT = ROOT / "scripts" / "fit_bayes.py"

EXAMPLE = ROOT / "examples" / "vllm_cpu_12m_sweep.jsonl.gz"

pytestmark = pytest.mark.usefixtures("stubbed_sampling")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n", "is no trace: it is a PNG image"),
        (b"a,b\n1,2\n", "is no trace"),
        (b'{"total_scheduled_tokens": 1e308}\n', "holds no usable step"),
    ],
)
def test_what_is_no_trace_is_refused(
    content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("t.jsonl").write_bytes(content)
    assert re.search(message, fails(main, ["t.jsonl"], capsys))


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


def test_rubbish_on_standard_input_ends_a_real_process_with_status_2() -> None:
    done = run_python(str(SCRIPT), "-", stdin=b"hello\n" * 9)
    assert done.returncode == 2
    assert done.stdout == b""
    assert b"standard input is no trace" in done.stderr
    assert b"Traceback" not in done.stderr


def test_the_fit_lies_where_it_is_said_to_lie(short_trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([short_trace, *QUICK, "--gpu", "H100", "--seed", "7"]) == 0
    printed = capsys.readouterr()
    assert "Saved results/trace/posterior.nc" in printed.out
    metadata = FittedModel.load("results/trace/posterior.nc").metadata
    assert metadata.labels == {"gpu": "H100"}
    assert metadata.sampler["seed"] == 7
    assert metadata.command == (
        "python scripts/fit_bayes.py trace.jsonl --draws 300 --no-report --gpu H100 --seed 7"
    )
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
    assert lines[0] == "fit_bayes: reading the trace"
    assert lines.count("fit_bayes: sampling") == 1
    assert all(line.startswith("fit_bayes: ") for line in lines)


def test_json_is_one_document_and_nothing_else_on_standard_output(
    short_trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([short_trace, *QUICK, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["name"] == "trace"
    assert document["converged"] is True
    assert document["paths"] == {"folder": "results/trace", "posterior": "results/trace/posterior.nc"}
    assert document["seconds"] > 0
    assert {row["name"] for row in document["parameters"]} >= {"P_max", "tau_S", "nu"}


def test_the_report_is_written_beside_the_posterior(
    short_trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([short_trace, "--json", "--draws", "300"]) == 0
    document = json.loads(capsys.readouterr().out)
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
    assert "fit_bayes: not converged: R-hat" in printed.err
    assert not FittedModel.load("results/trace/posterior.nc").converged


REAL_SAMPLE = sampling.sample


@pytest.mark.slow
def test_a_real_trace_is_really_sampled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sampling, "sample", REAL_SAMPLE)
    options = ["--max-rows", "300", "--draws", "200", "--tune", "200", "--no-report", "--json"]
    assert main([str(EXAMPLE), *options]) in {0, 3}
    document = json.loads(capsys.readouterr().out)
    assert document["rows"]["used"] <= 300
    decode = document["typical_steps"][0]
    assert 5.0 < decode["median_ms"] < 30.0
    assert document["gate"]["num_draws"] == 800
