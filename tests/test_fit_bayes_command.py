"""The command: what it prints and where, its exit statuses, and that no failure costs a result."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bayes_sched import report, sampling, settings
from bayes_sched.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.model import load_model
from bayes_sched.priors import Priors, read_prior_overrides
from bayes_sched.thinning import DEFAULT_MAX_ROWS
from bayes_sched.trace import clean_steps, read_trace
from scripts.fit_bayes import command_line, main, parser
from tests.conftest import documented_record
from tests.stub_sampling import stub_sample, unmixed_sample

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "fit_bayes.py"
EXAMPLE = ROOT / "examples" / "vllm_cpu_12m_sweep.jsonl.gz"
QUICK = ["--draws", "300", "--no-report"]
HEAVY = {"pandas", "scipy", "xarray", "pymc", "nutpie", "arviz", "matplotlib", "rich"}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sampling, "sample", stub_sample)


def records(count: int = 40) -> list[Any]:
    return [documented_record(prefill=[16 * i], model_run_duration_ms=4.0 + i) for i in range(1, count + 1)]


@pytest.fixture
def trace(write_lines: Callable[..., Path]) -> str:
    """A good trace in the current folder."""
    return write_lines(records()).name


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command, expect exit status 2 and nothing on standard output; return its last word."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    last = printed.err.splitlines()[-1]
    assert last.startswith("fit_bayes: ")
    assert "Traceback" not in printed.err
    return last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: TRACE"),
        (["t", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["t", "--draw", "5"], "unrecognized arguments: --draw"),
        (["t", "--draws", "0"], "--draws: '0' is not a whole number of at least 1"),
        (["t", "--draws", "many"], "--draws: 'many' is not a whole number"),
        (["t", "--tune", "1.5"], "--tune: '1.5' is not a whole number"),
        (["t", "--chains", "0"], "--chains"),
        (["t", "--seed", "-1"], "--seed"),
        (["t", "--max-rows", "19"], "--max-rows: '19' is not a whole number of at least 20"),
        (["t", "--sampler", "stan"], "--sampler: invalid choice: 'stan'"),
        (["t", "--noise", "loud"], "--noise: invalid choice: 'loud'"),
        (["t", "--min-latency-ms", "0"], "--min-latency-ms: '0' is not a positive number of milliseconds"),
        (["t", "--max-latency-ms", "inf"], "--max-latency-ms: 'inf'"),
        (["t", "--max-latency-ms", "0.5"], "--min-latency-ms 1 is not below --max-latency-ms 0.5"),
        (["t", "--max-bad-share", "5"], "--max-bad-share: '5' is not a share between 0 and 1"),
        (["t", "--probability", "1"], "--probability: '1' is not a probability between 0 and 1"),
        (["t", "--probability", "nan"], "--probability: 'nan'"),
        (["missing.jsonl"], "no such file: missing.jsonl"),
        (["*.zst"], r"no file matches the pattern \*.zst"),
        (["."], "is a directory: name its files"),
        (["trace.jsonl", "--name", "../elsewhere"], "'../elsewhere' cannot name a result"),
        (["trace.jsonl", "--name", ""], "'' cannot name a result"),
        (["trace.jsonl", "--results-dir", "trace.jsonl"], "trace.jsonl is a file"),
        (["trace.jsonl", "--model", "nonsense"], "--model nonsense: no such model; give one of saturation"),
        (["trace.jsonl", "--priors", "missing.toml"], "missing.toml: cannot read the prior overrides"),
        (["trace.jsonl", "--priors", "trace.jsonl"], "trace.jsonl: not a TOML file"),
        (["trace.jsonl", "--priors", "row.toml"], "row.toml: prior of tau_S: write it as a table"),
        (["trace.jsonl", "--priors", "range.toml"], "range.toml: prior of tau_S: low = 2 and high = 1"),
        (["trace.jsonl", "--name", "taken"], "results/taken exists: give another --name, or --overwrite"),
        (["trace.jsonl", "--name", "other", "--overwrite"], "results/other exists, but is no fit"),
    ],
)
def test_a_slip_is_answered_with_one_line_before_anything_is_read(
    arguments: list[str], message: str, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_traps()
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("fit_bayes: ")
    assert re.search(message, printed.err), printed.err
    assert Path("results/taken/posterior.nc").read_bytes() == b"precious"


def lay_traps() -> None:
    """Write what arguments can trip over."""
    Path("row.toml").write_text("tau_S = 3\n")
    Path("range.toml").write_text("[tau_S]\nlow = 2.0\nhigh = 1.0\n")
    for name in ("taken", "other"):
        Path("results", name).mkdir(parents=True)
        Path("results", name, {"taken": "posterior.nc"}.get(name, "letters")).write_bytes(b"precious")


def test_a_slip_loads_no_heavy_library(trace: str) -> None:
    lay_traps()
    slips = [
        ["--nonsense"],
        ["missing.jsonl"],
        ["."],
        [trace, "--draws", "0"],
        [trace, "--name", "taken"],
        [trace, "--model", "nonsense"],
        [trace, "--priors", "range.toml"],
    ]
    code = (
        "import json, sys\nfrom scripts.fit_bayes import main\n"
        "statuses = [main(slip) for slip in json.loads(sys.argv[1])]\n"
        "print(json.dumps([statuses, sorted({name.split('.')[0] for name in sys.modules})]))"
    )
    done = run_python("-c", code, json.dumps(slips))
    statuses, loaded = json.loads(done.stdout)
    assert statuses == [2] * len(slips)
    assert not HEAVY & set(loaded)


def run_python(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run this interpreter in the current folder as a person would, without a terminal."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], input=stdin, capture_output=True, env=environment)


def test_help_shows_options_and_examples_and_loads_no_library() -> None:
    done = run_python("-X", "importtime", str(SCRIPT), "--help")
    assert done.returncode == 0
    text = done.stdout.decode()
    assert "examples:" in text
    assert "exit status:" in text
    for option in parser()._option_string_actions:
        assert option in text
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.decode().splitlines()}
    assert not loaded & (HEAVY | {"numpy"})


def test_defaults_of_the_command_are_those_of_the_library() -> None:
    options = parser().parse_args(["t"])
    defaults = settings.SamplerSettings()
    for name in ("draws", "tune", "chains", "seed", "sampler"):
        assert getattr(options, name) == getattr(defaults, name), name
    limits = inspect.signature(clean_steps).parameters
    assert options.min_latency_ms == limits["min_latency_ms"].default
    assert options.max_latency_ms == limits["max_latency_ms"].default
    assert options.max_bad_share == inspect.signature(read_trace).parameters["max_bad_share"].default
    assert options.max_rows == DEFAULT_MAX_ROWS
    assert options.probability == DEFAULT_PROBABILITY


def test_choices_of_the_command_are_those_of_the_library() -> None:
    actions = parser()._option_string_actions
    assert actions["--noise"].choices == load_model("saturation").noises
    assert actions["--sampler"].choices == settings.SAMPLERS


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
    assert re.search(message, fails(["t.jsonl"], capsys))


def test_too_many_bad_lines_are_refused_and_the_option_accepts_them(
    write_lines: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_lines([*["no JSON"] * 5, *records()]).name
    assert "--max-bad-share 0.12" in fails([name], capsys)
    assert main([name, "--max-bad-share", "0.12", *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "5 of 45 lines could not be used" in printed
    assert "trace.jsonl:1: " in printed


def test_too_few_steps_are_refused(
    write_lines: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "5 usable steps are too few" in fails([write_lines(records(5)).name], capsys)


def test_an_unknown_prior_is_refused(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("p.toml").write_text("[tau_X]\nlow = 1.0\nhigh = 2.0\n")
    assert "tau_X: no such parameter" in fails([trace, "--priors", "p.toml"], capsys)


def test_a_model_file_that_fails_is_named(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.py").write_text("1 / 0\n")
    assert "broken.py: the model file does not run" in fails([trace, "--model", "broken.py"], capsys)
    Path("empty.py").write_text("")
    assert "MODEL must fulfil" in fails([trace, "--model", "empty.py"], capsys)


def test_the_fit_lies_where_it_is_said_to_lie(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([trace, *QUICK, "--gpu", "H100", "--seed", "7"]) == 0
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
    name = write_lines([*records(), documented_record(model_run_duration_ms=1500.0)]).name
    assert main([name, *QUICK, "--probability", "0.8"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    assert "80% interval" in printed
    assert re.search(r"T above 300 ms +1 +2.44%", printed)
    first_words = {line.split()[0] for line in printed.splitlines() if line.strip()}
    assert {"P_max", "k_B", "k_S", "w_0", "w_1", "tau_0", "tau_B", "tau_S", "nu", "L_0"} <= first_words


def test_progress_is_one_plain_line_a_stage_on_standard_error(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main([trace, *QUICK])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "fit_bayes: reading the trace"
    assert lines.count("fit_bayes: sampling") == 1
    assert all(line.startswith("fit_bayes: ") for line in lines)


def test_json_is_one_document_and_nothing_else_on_standard_output(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([trace, *QUICK, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["name"] == "trace"
    assert document["converged"] is True
    assert document["paths"] == {"folder": "results/trace", "posterior": "results/trace/posterior.nc"}
    assert document["seconds"] > 0
    assert {row["name"] for row in document["parameters"]} >= {"P_max", "tau_S", "nu"}


def test_the_report_is_written_beside_the_posterior(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([trace, "--json", "--draws", "300"]) == 0
    document = json.loads(capsys.readouterr().out)
    for path in document["paths"].values():
        assert Path(path).exists(), path
    stored = json.loads(Path(document["paths"]["summary"]).read_text("utf-8"))
    assert stored == {key: value for key, value in document.items() if key not in {"paths", "seconds"}}
    assert not list(Path("results").glob(".*"))


def test_a_fit_that_has_not_converged_is_saved_and_said(
    trace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sampling, "sample", unmixed_sample)
    assert main([trace, *QUICK]) == 3
    printed = capsys.readouterr()
    assert "NOT CONVERGED" in printed.out
    assert "fit_bayes: not converged: R-hat" in printed.err
    assert not FittedModel.load("results/trace/posterior.nc").converged


def test_an_existing_result_is_replaced_only_when_asked(trace: str) -> None:
    assert main([trace, *QUICK, "--seed", "1"]) == 0
    Path("results/trace/note.txt").write_text("of the first")
    assert main([trace, *QUICK, "--seed", "2"]) == 2
    assert FittedModel.load("results/trace/posterior.nc").metadata.sampler["seed"] == 1
    assert main([trace, *QUICK, "--seed", "2", "--overwrite"]) == 0
    assert FittedModel.load("results/trace/posterior.nc").metadata.sampler["seed"] == 2
    assert os.listdir("results/trace") == ["posterior.nc"]
    assert os.listdir("results") == ["trace"]


def interrupt(*_args: object, **_options: object) -> None:
    raise KeyboardInterrupt


def interrupt_that_is_swallowed(*args: Any, **options: Any) -> Any:
    """A sampler that takes an interrupt as a wish for fewer draws."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        return stub_sample(*args, **options)


def fail(*_args: object, **_options: object) -> None:
    raise RuntimeError("a bug")


@pytest.fixture
def existing(trace: str) -> Iterator[str]:
    """A trace whose result exists; it must be the same, and alone, in the end."""
    assert main([trace, *QUICK]) == 0
    before = Path("results/trace/posterior.nc").read_bytes()
    yield trace
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
    def full(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    capsys.readouterr()
    monkeypatch.setattr(os, "rename", full)
    message = fails([existing, *QUICK, "--overwrite"], capsys)
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
    assert "Input/output error" in fails([existing, *QUICK, "--overwrite"], capsys)
    assert len(calls) == 3


def test_a_report_that_fails_does_not_cost_the_fit(
    trace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "write_report", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main([trace, "--draws", "300"])
    assert "the fit is saved, results/trace/posterior.nc" in capsys.readouterr().err
    assert FittedModel.load("results/trace/posterior.nc").converged


def test_the_handler_of_interrupts_is_given_back(trace: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    main([trace, *QUICK])
    assert signal.getsignal(signal.SIGINT) is before


def test_the_stored_command_names_no_folder_of_the_machine() -> None:
    given = [
        "/data/mine/a.jsonl",
        "--priors=/etc/p.toml",
        "../b c.jsonl",
        "--name",
        "x",
        "--model",
        "/m/m.py",
    ]
    line = command_line(given, ["/data/mine/a.jsonl", "../b c.jsonl"])
    assert line == ("python scripts/fit_bayes.py a.jsonl --priors=p.toml 'b c.jsonl' --name x --model m.py")


def test_traces_may_stand_before_and_after_the_options(
    write_lines: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    names = [write_lines(records(), name).name for name in ("run-1.jsonl", "run-2.jsonl")]
    assert main([names[0], *QUICK, names[1]]) == 0
    assert FittedModel.load("results/run/posterior.nc").metadata.rows.read == 80


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch, write_lines: Callable[..., Path]) -> None:
    content = write_lines(records()).read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert main(["-", *QUICK]) == 0
    assert FittedModel.load("results/stdin/posterior.nc").metadata.rows.used == 40


def test_rubbish_on_standard_input_ends_a_real_process_with_status_2() -> None:
    done = run_python(str(SCRIPT), "-", stdin=b"hello\n" * 9)
    assert done.returncode == 2
    assert done.stdout == b""
    assert b"standard input is no trace" in done.stderr
    assert b"Traceback" not in done.stderr


def test_the_example_of_priors_holds_the_documented_ranges() -> None:
    model = load_model("saturation")
    overrides = read_prior_overrides(ROOT / "examples" / "priors.toml")
    for noise in model.noises:
        parameters = (*model.parameters, *model.noise_parameters(noise))
        default = Priors.from_parameters(parameters)
        assert default.override(overrides) == default
    assert {p.name for p in model.parameters} <= set(overrides)


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
