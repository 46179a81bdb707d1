"""The command as a whole: slips answered at once, defaults, the scripts, completion, what it is called."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bayes_sched.cli.command import Call, Command, Parser
from bayes_sched.cli.main import ROOT, SCRIPTS, main, run_script
from bayes_sched.comparison.compare import compare
from bayes_sched.files import VERSION
from bayes_sched.planning.capacity import plan_capacity
from bayes_sched.planning.replay import SchedulerSettings
from bayes_sched.planning.settings import optimize_steps
from bayes_sched.posterior.fitted import DEFAULT_PROBABILITY
from bayes_sched.sampling.nuts import SAMPLERS, SamplerSettings
from bayes_sched.sla.request import request_sla
from bayes_sched.sla.steps import step_sla
from bayes_sched.trace.cleaning import DEFAULT_MAX_ROWS, clean_steps
from bayes_sched.trace.findings import Limits
from bayes_sched.trace.reader import read_trace
from tests.conftest import ROOT as REPOSITORY

HEAVY = {
    *("numpy", "numba", "pandas", "scipy", "xarray", "pymc", "pytensor", "nutpie", "arviz", "matplotlib"),
    *("rich", "jinja2"),
}
CAPACITY = "plan capacity results/a"
RATE = f"{CAPACITY} --rate 10/s --prompt-tokens 200 --output-tokens 20"

SLIPS = [
    ("", "the following arguments are required: COMMAND"),
    ("look", "invalid choice: 'look'"),
    # fit
    ("fit", "the following arguments are required: TRACE"),
    ("fit t --nonsense", "unrecognized arguments: --nonsense"),
    ("fit t --draw 5", "unrecognized arguments: --draw"),
    ("fit t --draws 0", "--draws: '0' is not a whole number of at least 1"),
    ("fit t --tune 1.5", "--tune: '1.5' is not a whole number"),
    ("fit t --max-rows 19", "--max-rows: '19' is not a whole number of at least 20"),
    ("fit t --sampler stan", "--sampler: invalid choice: 'stan'"),
    ("fit t --min-latency-ms 0", "--min-latency-ms: '0' is not a positive number of milliseconds"),
    ("fit t --max-latency-ms 0.5", "--min-latency-ms 1 is not below --max-latency-ms 0.5"),
    ("fit t --max-bad-share 5", "--max-bad-share: '5' is not a share between 0 and 1"),
    ("fit t --probability 1", "--probability: '1' is not a probability between 0 and 1"),
    ("fit missing.jsonl", "no such file: missing.jsonl"),
    ("fit '*.zst'", r"no file matches the pattern \*.zst"),
    ("fit .", "is a directory: name its files"),
    ("fit trace.jsonl --name ../elsewhere", "'../elsewhere' cannot name a result"),
    ("fit trace.jsonl --name ''", "'' cannot name a result"),
    ("fit trace.jsonl --results-dir trace.jsonl", "trace.jsonl is a file"),
    ("fit trace.jsonl --model nonsense", "--model nonsense: no such model; give one of saturation"),
    ("fit trace.jsonl --priors missing.toml", "missing.toml: cannot read the prior overrides"),
    ("fit trace.jsonl --priors trace.jsonl", "trace.jsonl: not a TOML file"),
    ("fit trace.jsonl --priors row.toml", "row.toml: prior of tau_S: write it as a table"),
    ("fit trace.jsonl --priors range.toml", "range.toml: prior of tau_S: low = 2 and high = 1"),
    ("fit trace.jsonl --name a", "results/a exists: give another --name, or --overwrite to replace it"),
    ("fit trace.jsonl --name letters --overwrite", "results/letters exists, but is no fit"),
    ("fit trace.jsonl --prior-from nowhere", "nowhere: no such pool"),
    ("fit trace.jsonl --prior-from results/a", "results/a: a fit, not a pool"),
    ("fit trace.jsonl --prior-from results/letters", "no pool in this folder .it holds no population.nc"),
    ("fit trace.jsonl --prior-from results/p --priors p", "--priors with --prior-from: a fit has one"),
    ("fit trace.jsonl --server X100", "--server goes with --prior-from or bayes-sched pool"),
    ("fit trace.jsonl --accept-unconverged", "--accept-unconverged goes with --prior-from or bayes-sched"),
    # pool
    ("pool", r"the following arguments are required: TRACE\|RESULT"),
    ("pool results/a", "a: one trace; a pool takes two or more"),
    ("pool results/a results/a/posterior.nc", "a: the same trace twice; a pool takes each once"),
    ("pool x=trace.jsonl trace.jsonl", "trace: the same trace twice"),
    ("pool results/a far/a", "two traces have the name a: tell them apart, NAME=FILE"),
    ("pool results/a unseen=far/a", "'unseen' is the name of the server not yet seen"),
    ("pool results/a 'b c=missing'", "no such file: b c=missing"),
    ("pool results/a results/letters", "results/letters: no fit in this folder"),
    ("pool results/a results/p", "a pool of fits; name one of its members, such as results/p/members"),
    ("pool results/a 'far/a/x y.nc'", "'x y' cannot name a member; name it: NAME="),
    ("pool results/a trace.jsonl --gpu H100", "--gpu with a pool: say with --server NAME=LABEL"),
    ("pool results/a trace.jsonl --llm=x", "--llm with a pool: say with --server NAME=LABEL"),
    ("pool results/a trace.jsonl --priors p", "--priors with a pool: traces are pooled under the docum"),
    ("pool results/a trace.jsonl --prior-from p", "--prior-from with a pool: .* none counts twice"),
    ("pool results/a trace.jsonl --server b=H", "--server b: no such trace; the pool has a, trace"),
    ("pool results/a trace.jsonl --server a", "'a' is not NAME=LABEL"),
    ("pool results/a trace.jsonl --server a=H --server a=I", "--server a: given twice"),
    ("pool results/a trace.jsonl --name p", "results/p exists: give another --name"),
    ("pool results/a trace.jsonl --name a --overwrite", "results/a exists, but is no pool of fits"),
    ("pool results/a trace.jsonl --name trace", "trace is the name of a trace: give the pool another"),
    ("pool results/a letters=trace.jsonl", "results/letters exists, but is no fit"),
    # sla
    ("sla", "the following arguments are required: FIT"),
    ("sla results/a", "there is no promise to judge: give --slo-ms, or --prompt-tokens"),
    ("sla results/a --slo-ms -5", "--slo-ms: '-5' is not a positive number of milliseconds"),
    ("sla results/a --slo-ms 5 --quantile 1", "--quantile: '1' is not a probability"),
    ("sla results/a --slo-ms 5 --decodes -1", "--decodes: '-1' is not a whole number"),
    ("sla results/a --slo-ms 5 --token-budget 9", "--token-budget is one of steps with"),
    ("sla results/a --prompt-tokens 5 --batch-size 5", "--batch-size is judged by a limit"),
    ("sla results/a --ttft-ms 5", "--ttft-ms is a limit on requests: give --prompt-tokens too"),
    ("sla results/a --slo-ms 5 --e2e-ms 5", "--e2e-ms is a limit on requests"),
    ("sla results/a --prompt-tokens 5 --e2e-ms 5", "--e2e-ms needs --output-tokens"),
    ("sla results/a --slo-ms 5 --output-tokens 5", "--output-tokens belongs to a request"),
    ("sla results/missing --slo-ms 5", "results/missing: no such fit"),
    ("sla results/a --slo-ms 5 --name x", "--name names the report: give --report too"),
    ("sla results/a --slo-ms 5 --report --name a", "exists, but is no answer about"),
    # plan
    ("plan", r"required: optimize \| capacity \| budget"),
    ("plan guess results/a", "invalid choice: 'guess'"),
    ("plan optimize results/a", "required: --slo-ms"),
    ("plan optimize results/missing --slo-ms 5", "results/missing: no such fit"),
    ("plan optimize results/a --slo-ms 5 --report --name a", "exists, but is no plan"),
    (CAPACITY, "give one workload"),
    (f"{RATE} --workload trace.jsonl", "give one workload"),
    (f"{CAPACITY} --workload trace.jsonl --prompt-tokens 5", "--prompt-tokens is of generated"),
    (f"{CAPACITY} --workload nowhere.csv", "nowhere.csv: no such file"),
    (f"{CAPACITY} --rate 5/s --prompt-tokens 5", "--rate needs --output-tokens"),
    (f"{CAPACITY} --rate 0/s", "--rate: '0/s' is no positive rate such as 5/s"),
    (f"{RATE} --prompt-spread 0.5", "--prompt-spread: '0.5' is not a factor"),
    (f"{RATE} --step-overhead-ms -1", "--step-overhead-ms: '-1' is not milliseconds"),
    ("plan budget results/a --slo-ms 5", "required: --decodes"),
    ("plan budget results/a --slo-ms 5 --decodes 0", "a step without decodes"),
    # compare
    ("compare", "the following arguments are required: RESULT"),
    ("compare results/a", "results/a: one fit; a comparison takes two or more"),
    ("compare results/a results/a", "results/a: the same fit twice"),
    ("compare results/a results/../results/a/posterior.nc", "the same fit twice"),
    ("compare results/a results/none", "results/none: no such fit"),
    ("compare results/a far", "far: no fit in this folder"),
    ("compare results/a far/a --rope 5", "'5' is not a share from 0 to below 1, such as 5% or 0.05"),
    ("compare results/a far/a --price a", "'a' is not LABEL=PRICE"),
    ("compare results/a far/a --price a=cheap", "'cheap' of 'a=cheap' is no positive price an hour"),
    ("compare results/a far/a --price a=nan/h", "'nan/h' of 'a=nan/h' is no positive price"),
    ("compare results/a far/a --price a=1 --price a=2", "--price a: given twice"),
    ("compare results/a far/a --draws 1", "'1' is not a whole number of at least 100"),
    ("compare results/a far/a --name c", "results/c exists: give another --name, or --overwrite"),
    ("compare results/a far/a --name a --overwrite", "results/a exists, but is no comparison of servers"),
    # analyze, watch
    ("analyze", "the following arguments are required: TRACE"),
    ("analyze t --schedule-rise 1", "'1' is not a factor above 1"),
    ("analyze t --full-kv-cache 95", "'95' is not a share above 0 and at most 1"),
    ("analyze trace.jsonl --name x", "--name names the report: give --report too"),
    ("analyze trace.jsonl --report --name analyzed", "results/analyzed exists: give another --name"),
    (
        "analyze trace.jsonl --report --name a --overwrite",
        r"results/a exists, but is no analysis of a trace \(it holds no analysis.json\)",
    ),
    ("analyze trace.jsonl --csv results", "results is a directory: name a file in it"),
    ("analyze trace.jsonl --csv taken.csv", "taken.csv exists: name another file, or --overwrite"),
    ("analyze trace.jsonl --csv trace.jsonl --overwrite", "trace.jsonl is one of the traces"),
    ("analyze trace.jsonl --csv nowhere/t.csv", "there is no folder nowhere"),
    ("watch", "the following arguments are required: TRACE"),
    ("watch trace.jsonl --interval 0", "'0' is not a number of seconds of at least 0.05"),
    ("watch trace.jsonl --window inf", "'inf' is not a number of seconds"),
    # models
    ("models trace.jsonl --models saturatoin", "saturatoin: no such model; give some of saturation"),
    ("models trace.jsonl --models saturation,saturation", "--models saturation: given twice"),
    ("models trace.jsonl --models ,", "',' names nothing"),
    ("models trace.jsonl --models my.py", "--models my.py: no such model"),
    ("models trace.jsonl --draws 20", "'20' is not a whole number of at least 100"),
    ("models trace.jsonl --figure x.pdf", "--figure x.pdf: name a .png file"),
    ("models trace.jsonl --csv taken.csv", "taken.csv exists: name another file, or --overwrite"),
    ("models trace.jsonl --min-latency-ms 9 --max-latency-ms 8", "--min-latency-ms 9 is not below"),
    # predictor
    ("predictor", "the following arguments are required: RESULT"),
    ("predictor results/a --output taken.csv", "taken.csv exists: name another file, or --overwrite"),
]


@pytest.fixture
def traps(in_an_empty_folder: None, short_trace: str) -> Iterator[None]:
    """What arguments can trip over; none of it is read or written."""
    Path("row.toml").write_text("tau_S = 3\n")
    Path("range.toml").write_text("[tau_S]\nlow = 2.0\nhigh = 1.0\n")
    places = [
        Path(place)
        for place in (
            *("results/a/posterior.nc", "far/a/posterior.nc", "far/a/x y.nc", "results/letters/one"),
            *("results/p/population.nc", "results/c/comparison.nc", "results/analyzed/analysis.json"),
            "taken.csv",
        )
    ]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"precious")
    before = sorted(Path().rglob("*"))
    yield
    assert all(place.read_bytes() == b"precious" for place in places)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(("line", "message"), SLIPS)
def test_a_slip_is_answered_with_one_line_before_anything_is_read(
    line: str, message: str, traps: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(shlex.split(line)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("bayes-sched")
    assert re.search(message, printed.err), printed.err


def leaves(command: Command = ROOT, name: str = "") -> Iterator[tuple[str, Command]]:
    """Every subcommand by its name, those of groups and studies included."""
    if not command.commands:
        yield name, command
    for one in command.commands:
        yield from leaves(one, f"{name} {one.name}".strip())


LEAVES = dict(leaves())


def test_slips_and_help_of_every_subcommand_load_no_heavy_library(traps: None) -> None:
    lines = [*(line for line, _ in SLIPS), *(f"{name} --help" for name in LEAVES)]
    lines += ["--help", "plan --help", "--version", "--print-completion bash"]
    code = (
        "import json, shlex, sys\nfrom bayes_sched.cli.main import main\nstatuses = []\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    try: statuses.append(main(shlex.split(line)))\n"
        "    except SystemExit as ended: statuses.append(ended.code)\n"
        "print('\\n' + json.dumps([statuses, sorted({name.split('.')[0] for name in sys.modules})]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(lines)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    statuses, loaded = json.loads(done.stdout.splitlines()[-1])
    assert statuses == [2] * len(SLIPS) + [0] * (len(lines) - len(SLIPS))
    assert not HEAVY & set(loaded)


def options_of(line: str) -> dict[str, Any]:
    """The options of a subcommand with its defaults."""
    name = next(name for name in LEAVES if line.startswith(name))
    return vars(LEAVES[name].fill(Parser()).parse_args(line.removeprefix(name).split()))


@pytest.mark.parametrize(
    ("line", "library", "renamed"),
    [
        ("fit t", SamplerSettings, {}),
        ("fit t", clean_steps, {}),
        ("fit t", read_trace, {}),
        ("pool a b", SamplerSettings, {}),
        ("models t", SamplerSettings, {}),
        ("models t", clean_steps, {}),
        ("analyze t", Limits, {"num_slowest": "top"}),
        ("analyze t", read_trace, {}),
        ("sla r", step_sla, {}),
        ("sla r", request_sla, {"decodes": "not asked here"}),
        ("plan optimize r --slo-ms 5", optimize_steps, {"max_draws": "draws"}),
        ("plan capacity r --rate 1", plan_capacity, {"num_draws": "draws"}),
        ("plan capacity r --rate 1", SchedulerSettings, {}),
        ("compare a b", compare, {"max_draws": "draws"}),
    ],
)
def test_defaults_are_those_of_the_library(
    line: str, library: Callable[..., Any], renamed: dict[str, str]
) -> None:
    options = options_of(line)
    parameters = inspect.signature(library).parameters.items()
    defaults = {renamed.get(name, name): p.default for name, p in parameters}
    shared = {n for n, value in defaults.items() if n in options and value is not inspect.Parameter.empty}
    assert shared
    assert {name: options[name] for name in shared} == {name: defaults[name] for name in shared}


def test_further_defaults_and_choices_are_those_of_the_library() -> None:
    fit = options_of("fit t")
    assert fit["max_rows"] == DEFAULT_MAX_ROWS
    for line in ("fit t", "pool a b", "sla r", "plan budget r --slo-ms 5 --decodes 1"):
        assert options_of(line)["probability"] == DEFAULT_PROBABILITY
    (sampler,) = (a for a in LEAVES["fit"].fill(Parser())._actions if a.dest == "sampler")
    assert sampler.choices == SAMPLERS


def test_help_lists_the_subcommands_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(re.search(rf"^    {one.name} +\w", printed, re.MULTILINE) for one in ROOT.commands)
    assert "examples:\n  bayes-sched fit trace.jsonl" in printed
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"bayes-sched {VERSION}\n"


@pytest.mark.parametrize("name", LEAVES)
def test_help_of_a_subcommand_has_its_options_and_examples(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*name.split(), "--help"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: bayes-sched {name} ")
    assert re.search(r"^examples?:$", printed, re.MULTILINE)
    assert "exit status: 0" in printed
    assert f"  bayes-sched {name.split()[0]}" in printed


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_every_subcommand_its_options_and_files(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--print-completion", shell])
    script = capsys.readouterr().out
    for name, command in LEAVES.items():
        assert name.split()[-1] in script
        shown = [action for action in command.fill(Parser())._actions if action.help != argparse.SUPPRESS]
        assert all(text.lstrip("-") in script for action in shown for text in action.option_strings)
    files = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "'n/fit/f/'"}[shell]
    assert files in script


def test_each_script_is_a_few_lines_that_call_its_subcommand() -> None:
    for name in (name for name in SCRIPTS if " " not in name):
        text = (REPOSITORY / "scripts" / name).read_text("utf-8")
        assert f'run_script("{name}")' in text
        assert len(text.splitlines()) < 15


@pytest.mark.parametrize(
    ("name", "arguments", "usage", "example"),
    [
        ("sla.py", [], "sla", "scripts/sla.py results/h100 --slo-ms 50"),
        ("fit_bayes.py", [], "fit_bayes", "scripts/fit_bayes.py --pool a.jsonl b.jsonl"),
        ("fit_bayes.py", ["--pool"], "fit_bayes --pool", "scripts/fit_bayes.py --pool results/h100"),
        (
            "analyze_trace.py",
            ["watch"],
            "analyze_trace watch",
            "scripts/analyze_trace.py analyze trace.jsonl",
        ),
        ("plan.py", ["budget"], "plan budget", "scripts/plan.py budget results/h100"),
    ],
)
def test_a_script_keeps_its_name_in_what_is_said(
    name: str, arguments: list[str], usage: str, example: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run_script(name, [*arguments, "--help"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: {usage} [-h]")
    assert f"  python {example}" in printed
    assert "bayes-sched" not in printed
    assert run_script(name, [*arguments, "--nonsense"]) == 2
    assert capsys.readouterr().err.startswith(f"{usage.split()[0]}: ")


def test_the_recorded_command_names_no_folder_of_the_machine() -> None:
    traces = ("/data/mine/a.jsonl", "../b c.jsonl")
    given = (*traces, "--priors=/etc/p.toml", "--name", "x", "--model", "/m/m.py")
    line = Call("fit_bayes", ("python", "scripts/fit_bayes.py"), given).line(traces=traces)
    assert line == "python scripts/fit_bayes.py a.jsonl 'b c.jsonl' --priors=p.toml --name x --model m.py"
    resumed = Call("x", ("bayes-sched",), ("study", "--resume"))
    assert resumed.line(without=["--resume"]) == "bayes-sched study"


def test_rubbish_on_standard_input_ends_a_real_process_with_status_2(tmp_path: Path) -> None:
    script = str(REPOSITORY / "scripts" / "fit_bayes.py")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command, rubbish = [sys.executable, script, "-"], b"hello\n" * 9
    done = subprocess.run(command, input=rubbish, capture_output=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert done.stdout == b""
    assert b"fit_bayes: standard input is no trace" in done.stderr
    assert b"Traceback" not in done.stderr
