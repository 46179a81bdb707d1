"""What the command takes: slips are answered at once, in a line, and defaults are those of the library."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

from bayes_sched.model.priors import Priors, read_prior_overrides
from bayes_sched.model.protocol import load_model
from bayes_sched.posterior.fitted import DEFAULT_PROBABILITY
from bayes_sched.sampling import nuts as settings
from bayes_sched.trace.cleaning import DEFAULT_MAX_ROWS, clean_steps
from bayes_sched.trace.reader import read_trace
from scripts.fit_bayes import command_line, main, parser
from tests.conftest import ROOT
from tests.running import fails, run_python

SCRIPT = ROOT / "scripts" / "fit_bayes.py"

HEAVY = {"pandas", "scipy", "xarray", "pymc", "nutpie", "arviz", "matplotlib", "rich"}

pytestmark = pytest.mark.usefixtures("stubbed_sampling")


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
    arguments: list[str], message: str, short_trace: str, capsys: pytest.CaptureFixture[str]
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


def test_a_slip_loads_no_heavy_library(short_trace: str) -> None:
    lay_traps()
    slips = [
        ["--nonsense"],
        ["missing.jsonl"],
        ["."],
        [short_trace, "--draws", "0"],
        [short_trace, "--name", "taken"],
        [short_trace, "--model", "nonsense"],
        [short_trace, "--priors", "range.toml"],
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
    assert actions["--sampler"].choices == settings.SAMPLERS


def test_an_unknown_prior_is_refused(short_trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("p.toml").write_text("[tau_X]\nlow = 1.0\nhigh = 2.0\n")
    assert "tau_X: no such parameter" in fails(main, [short_trace, "--priors", "p.toml"], capsys)


def test_a_model_file_that_fails_is_named(short_trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.py").write_text("1 / 0\n")
    assert "broken.py: the model file does not run" in fails(
        main, [short_trace, "--model", "broken.py"], capsys
    )
    Path("empty.py").write_text("")
    assert "MODEL must fulfil" in fails(main, [short_trace, "--model", "empty.py"], capsys)


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


def test_the_example_of_priors_holds_the_documented_ranges() -> None:
    model = load_model("saturation")
    overrides = read_prior_overrides(ROOT / "examples" / "priors.toml")
    for noise in model.noises:
        parameters = (*model.parameters, *model.noise_parameters(noise))
        default = Priors.from_parameters(parameters)
        assert default.override(overrides) == default
    assert {p.name for p in model.parameters} <= set(overrides)
