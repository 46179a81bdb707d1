"""The studies as commands: every slip, what they print and write, and that nothing is lost."""

from __future__ import annotations

import csv
import inspect
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bayes_sched.cli.command import Call, Parser
from bayes_sched.cli.main import SCRIPTS, run_script
from bayes_sched.cli.study_parsers import SCHEDULER
from bayes_sched.planning.replay import SchedulerSettings
from bayes_sched.planning.server_record import ServerRecord
from bayes_sched.planning.workload import Lengths, PoissonWorkload
from bayes_sched.reports.kinds import report
from bayes_sched.reports.terminal import terminal
from bayes_sched.studies import speed
from bayes_sched.studies.competitors import Baseline
from bayes_sched.studies.prediction import StudySettings
from bayes_sched.studies.simulator import check_simulator
from bayes_sched.studies.splits import servers_of
from bayes_sched.trace.cleaning import choose_rows
from tests.conftest import ROOT, documented_record
from tests.running import full, interrupt
from tests.simulated_server import simulated_server, write_server

pytestmark = pytest.mark.usefixtures("in_an_empty_folder", "blank_figures")

validate = partial(run_script, "validate.py")
check = partial(run_script, "check_simulator.py")
benchmark = partial(run_script, "benchmark.py")

CHEAP = ["t.jsonl", "--models", "line,baseline", "--splits", "random,rows-50"]
FILES = ["--trace", "trace.jsonl.gz", "--requests", "requests.jsonl.gz"]
ASKED = [*FILES, "--draws", "10"]


@pytest.fixture
def trace(write_lines: Callable[..., Path]) -> None:
    """300 steps of a server, latency nearly linear in S."""
    records = []
    for number in range(300):
        decode, chunk = 1 + number % 17, [] if number % 3 else [16 + (37 * number) % 400]
        latency = 12.0 + 0.04 * (decode + sum(chunk)) + 0.1 * ((7 * number) % 11)
        records.append(documented_record(chunk, decode, model_run_duration_ms=latency))
    write_lines(records, "t.jsonl")


def options_of(script: str, *arguments: str) -> Any:
    """Return the options and, of a study, its folder, as the checks leave them."""
    command = SCRIPTS[script]
    options = command.fill(Parser()).parse_args(arguments)
    if command.check is not None and "--resume" not in arguments:
        command.check(options, Call(script, ("python", script), arguments))
    return options


SLIPS: list[tuple[str, list[str], str]] = [
    ("validate", [], "the following arguments are required: TRACE"),
    ("validate", ["none.jsonl"], "no such file: none.jsonl"),
    ("validate", ["t.jsonl", "--nonsense"], "unrecognized arguments: --nonsense"),
    (
        "validate",
        ["t.jsonl", "--splits", "fold"],
        "--splits fold: no such split; give some of random, blocks",
    ),
    ("validate", ["t.jsonl", "--splits", "time,time"], "--splits time: given twice"),
    ("validate", ["t.jsonl", "--splits", ","], "',' names nothing"),
    (
        "validate",
        ["t.jsonl", "--models", "xgboost"],
        "--models xgboost: no such contender; give some of line",
    ),
    ("validate", ["t.jsonl", "--models", "line,line"], "--models line: given twice"),
    ("validate", ["t.jsonl", "--repeats", "0"], "'0' is not a whole number of at least 1"),
    ("validate", ["t.jsonl", "--max-train", "5"], "'5' is not a whole number of at least 20"),
    ("validate", ["t.jsonl", "--min-latency-ms", "9", "--max-latency-ms", "8"], "9 is not below"),
    ("validate", ["t.jsonl", "--name", "../x"], "'../x' cannot name a result"),
    ("validate", ["t.jsonl", "--name", "taken"], "results/taken exists: give another --name, or --overwrite"),
    ("validate", ["t.jsonl", "--name", "fit", "--overwrite"], "results/fit exists, but is no validation"),
    ("validate", ["t.jsonl", "--resume"], "--resume: there are no forecasts of validation"),
    ("validate", ["t.jsonl", "--resume", "--overwrite"], "--resume and --overwrite contradict each other"),
    ("validate", ["t.jsonl", "--name", "half"], "results/.half.unfinished.tmp holds forecasts of a run"),
    ("calibrate", ["--design", "none.jsonl"], "--design none.jsonl: no such file"),
    ("calibrate", ["--simulations", "5"], "at least 10"),
    ("calibrate", ["--draws", "30", "--chains", "2"], "2 chains of 30 draws are too few: 100 are needed"),
    ("calibrate", ["--resume", "--overwrite"], "--resume and --overwrite contradict each other"),
    ("calibrate", ["--resume"], "--resume: results/calibration holds no study"),
    ("calibrate", ["--results-dir", "begun"], "begun holds a study: give --resume, --overwrite or another"),
    (
        "calibrate",
        ["--results-dir", "begun", "--resume", "--rows", "77"],
        "study in begun has rows 160, not 77",
    ),
    ("calibrate", ["--results-dir", "t.jsonl"], "--results-dir t.jsonl: not a folder"),
    ("calibrate_comparison", ["--pairs", "5"], "'5' is not a whole number of at least 10"),
    ("calibrate_comparison", ["--design", "none"], "--design none: no such file"),
    ("calibrate_comparison", ["--resume"], "--resume: results/comparison_calibration holds no study"),
    ("calibrate_promises", ["--servers", "0"], "--servers 0 and no --traces: nothing to do"),
    ("calibrate_promises", ["--servers", "-1"], "'-1' is not a whole number of at least 0"),
    ("calibrate_promises", ["--quantile", "1"], "'1' is not a probability between 0 and 1"),
    ("calibrate_promises", ["--design", "none"], "--design none: no such file"),
    ("calibrate_promises", ["--servers", "0", "--traces", "none"], "no such file: none"),
    ("calibrate_promises", ["--resume"], "--resume: results/promises holds no study"),
    ("calibrate_promises", ["--resume", "--overwrite", "--results-dir", "kept"], "contradict each other"),
    (
        "calibrate_promises",
        ["--results-dir", "kept"],
        "kept/servers holds a study: give --resume, --overwrite",
    ),
    ("calibrate_promises", ["--results-dir", "kept", "--resume", "--rows", "50"], "has rows 500, not 50"),
    ("check_simulator", [], "the following arguments are required: --trace, --requests"),
    ("check_simulator", ["--trace", "none.jsonl", *FILES[2:]], "no such file: none.jsonl"),
    ("check_simulator", ["--trace", "t.jsonl", "--requests", "none.jsonl"], "none.jsonl: no such file"),
    ("check_simulator", ["--trace", "t.jsonl", "--requests", "t.jsonl", "--name", "x"], "give --report too"),
    ("check_simulator", [*FILES, "--token-budget", "0"], "'0' is not a whole number of at least 1"),
    ("check_simulator", [*FILES, "--probability", "1"], "'1' is not a probability between 0 and 1"),
    ("benchmark", [], "sampling | fits"),
    ("benchmark", ["sampling"], "TRACE"),
    ("benchmark", ["fits", "none.jsonl"], "no such file: none.jsonl"),
    ("benchmark", ["fits", "none.jsonl", "--seeds", "1,x"], "'1,x' is not a list of whole numbers"),
    ("benchmark", ["fits", "none.jsonl", "--seeds=-1"], "'-1' is not a list of whole numbers"),
    ("benchmark", ["sampling", "none.jsonl", "--rows", "3"], "at least 20"),
    ("benchmark", ["fits", "-"], "reads files"),
    ("benchmark", ["sampling", "t.jsonl", "--model", "nosuch"], "--model nosuch: no such model"),
    ("benchmark_predictor", ["none.npz", "t.jsonl"], "none.npz: no such file"),
    ("benchmark_predictor", ["a", "b", "--factors", "x"], "'x' is not a list of factors such as 1.1,1.5"),
]


@pytest.fixture
def precious() -> dict[Path, bytes]:
    """Lay what a slip may not touch, and return it."""
    files = {"results/taken/validation.csv": b"x", "results/fit/posterior.nc": b"x"}
    files |= {"results/.half.unfinished.tmp/a.npz": b"x", "t.jsonl": b"{}\n"}
    kept = {"begun": "calibrate.py", "kept/servers": "calibrate_promises.py"}
    for folder, script in kept.items():
        options = options_of(script)
        study = options.studies["servers"] if script == "calibrate_promises.py" else options.study
        files[f"{folder}/{study.table}"] = b"x"
        files[f"{folder}/study.json"] = json.dumps(dict(study.settings)).encode()
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)
    return {Path(name): content for name, content in files.items()}


@pytest.mark.parametrize(("script", "arguments", "message"), SLIPS)
def test_a_slip_is_answered_with_one_line_and_nothing_is_touched(
    script: str,
    arguments: list[str],
    message: str,
    precious: dict[Path, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_script(f"{script}.py", arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith(f"{script}: ")
    assert message in printed.err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == precious


@pytest.mark.usefixtures("trace")
def test_defaults_are_those_of_the_library() -> None:
    options, study = options_of("validate.py", "t.jsonl"), StudySettings()
    for name in ("splits", "repeats", "seed", "max_train", "max_test", "rare_first"):
        assert getattr(options, name) == getattr(study, name)
    library = inspect.signature(servers_of).parameters
    assert options.server_mark == library["mark"].default
    assert options.min_latency_ms == library["min_latency_ms"].default
    assert options.max_latency_ms == library["max_latency_ms"].default
    options = options_of("check_simulator.py", "--trace", "t.jsonl", "--requests", "t.jsonl")
    defaults = {name: p.default for name, p in inspect.signature(check_simulator).parameters.items()}
    assert options.draws == defaults["num_draws"]
    assert (options.probability, options.seed) == (defaults["probability"], defaults["seed"])
    asked = inspect.signature(ServerRecord.settings).parameters
    assert [(getattr(options, name), asked[name].default) for name in SCHEDULER] == [(None, None)] * 4


@pytest.mark.usefixtures("trace")
def test_a_validation_prints_a_table_and_writes_one_tidy_csv_and_a_page(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert validate(CHEAP) == 0
    printed = capsys.readouterr()
    assert "  CRPS (ms)  random  rows-50\n" in printed.out
    assert "Saved results/validation/report.html" in printed.out
    assert "validate: t, rows-50: baseline" in printed.err
    folder = Path("results/validation")
    assert [path.name for path in Path("results").iterdir()] == ["validation"]
    figures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert figures == {"validation_scores", "validation_calibration", "validation_errors"}
    with (folder / "validation.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["server", "split", "repeat", "model", "regime", "rows", "metric", "value"]
    assert {row["model"] for row in rows} == {"line", "baseline"}
    page = (folder / "report.html").read_text("utf-8")
    assert 'src="data:image/png' in page
    assert "python scripts/validate.py t.jsonl --models line,baseline" in page


@pytest.mark.usefixtures("trace")
def test_json_is_one_document_and_comes_again(capsys: pytest.CaptureFixture[str]) -> None:
    documents = []
    for name in ("a", "b"):
        assert validate([*CHEAP, "--json", "--no-report", "--name", name, "--seed", "4"]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0]["scores"] == documents[1]["scores"]
    assert documents[0]["settings"]["seed"] == 4
    assert not Path("results/a/report.html").exists()


@pytest.mark.usefixtures("trace")
def test_an_interrupted_validation_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Baseline, "fit", interrupt)
        assert validate([*CHEAP, "--no-report"]) == 130
    assert not Path("results/validation").exists()
    (kept,) = Path("results/.validation.unfinished.tmp").iterdir()
    written = kept.stat().st_mtime_ns
    assert validate([*CHEAP, "--no-report"]) == 2
    assert validate([*CHEAP, "--no-report", "--resume", "--keep"]) == 0
    assert kept.stat().st_mtime_ns == written
    assert len(list(kept.parent.iterdir())) == 4
    capsys.readouterr()
    more = ["t.jsonl", "--models", "line,baseline,baseline-huber", "--splits", "random,rows-50"]
    assert validate([*more, "--no-report", "--resume"]) == 0
    assert "baseline-huber" in capsys.readouterr().out
    assert not kept.parent.exists()


@pytest.mark.usefixtures("trace")
def test_a_failed_run_leaves_an_existing_validation_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Path("results/validation/validation.csv")
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"precious")
    monkeypatch.setattr("bayes_sched.cli.study.write_report", full)
    assert validate([*CHEAP, "--no-report", "--overwrite"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert kept.read_bytes() == b"precious"


def test_budgets_of_one_server_are_left_out_and_drawn(
    shared_traces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--models", "line", "--splits", "budget", "--max-train", "300", "--max-test", "200"]
    assert validate([str(shared_traces / "h100_*"), *small]) == 0
    out = capsys.readouterr().out
    assert out.startswith("h100_qwq-32b-fp8: at most 300 steps to learn from (thinned at random for budget)")
    assert Path("results/validation/figures/validation_extrapolation.png").is_file()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the trace and the requests of a server that is the simulator itself."""
    folder = tmp_path_factory.mktemp("server")
    settings = SchedulerSettings(token_budget=64, max_num_seqs=4, step_overhead_ms=1.0)
    lengths = {"prompt": Lengths(60, 2.0), "output": Lengths(8, 2.0)}
    requests = PoissonWorkload(rate_per_s=14.0, num_requests=120, **lengths)
    write_server(simulated_server(settings, requests), folder)
    return folder


@pytest.fixture
def server(recorded: Path, stubbed_sampling: None) -> None:
    """Put them into the folder, and let fits take no time."""
    for file in recorded.iterdir():
        Path(file.name).write_bytes(file.read_bytes())


@pytest.mark.usefixtures("server")
def test_a_check_of_the_simulator_prints_decisions_and_times_and_its_report_holds_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert check(ASKED) == 0
    printed = capsys.readouterr()
    assert "told the queue" in printed.out
    assert printed.out.count("error with own steps") == 3
    assert "token budget 64, at most 4 sequences" in " ".join(printed.out.split())
    assert max(map(len, printed.out.splitlines())) <= 100
    assert "check_simulator: simulating requests\n" in printed.err
    asked = [*ASKED, "--report", "--json"]
    assert check(asked) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    folder = Path("results/trace-simulator")
    assert found["report"] == str(folder / "README.md")
    assert found["decisions"]["of_queue"]["share_equal"] == 1.0
    page = (folder / "README.md").read_text()
    assert "python scripts/check_simulator.py --trace trace.jsonl.gz" in page
    for name in ("predicted_times", "decisions_over_time"):
        assert f"figures/{name}.png" in page
        assert (folder / "figures" / f"{name}.png").is_file()
    kept = json.loads((folder / "simulator.json").read_text())
    assert kept["requests"] == found["requests"]
    assert check(asked) == 2
    assert "exists: give another --name, or --overwrite" in capsys.readouterr().err


@pytest.mark.usefixtures("server")
def test_settings_are_those_given_else_of_the_side_car(capsys: pytest.CaptureFixture[str]) -> None:
    assert check([*ASKED, "--max-num-seqs", "3", "--kv-tokens", "4096", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["max_num_seqs"], found["kv_tokens"]) == (3, 4096)
    assert found["decisions"]["of_queue"]["share_equal"] < 0.95
    told = {"max_num_seqs": 3, "kv_cache_block_size": 64, "num_kv_cache_blocks": 65}
    Path("trace.jsonl.meta.json").write_text(json.dumps(told))
    assert check([*ASKED, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["token_budget"], found["max_num_seqs"]) == (64, 3)
    assert (found["kv_tokens"], found["block_tokens"]) == (4096, 64)


@pytest.mark.usefixtures("server")
def test_what_a_check_cannot_use_and_an_interrupt_leave_everything_as_it_was(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    thesis = Path("results/mine/thesis.txt")
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years of work")
    assert check([*FILES, "--report", "--name", "mine", "--overwrite"]) == 2
    assert "is no check of the simulator" in capsys.readouterr().err
    assert check([*FILES, "--report", "--name", "../x"]) == 2
    assert "cannot name a result" in capsys.readouterr().err
    assert check([*FILES, "--kv-tokens", "32"]) == 2
    assert "do not fit into the KV cache on their own" in capsys.readouterr().err
    monkeypatch.setattr("bayes_sched.cli.study.fit", interrupt)
    assert check([*FILES, "--report"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert [path for path in Path("results").rglob("*") if path.is_file()] == [thesis]


def measured(method: str, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"method": method, "gate_passed": method == "ours", "divergences": 0}
    row |= {"worst_r_hat": 1.004, "min_ess_bulk": 900.0, "min_ess_tail": 800.0}
    row |= {"effective_per_1000_gradients": 10.0, "effective_per_1000_gradients_all": 5.0}
    row |= {"effective_per_second": 20.0, "gradients": 90_000, "gradients_all": 180_000}
    return row | {"sampling_s": 45.0, "share_at_max_depth": 0.25, "problems": []} | changes


@pytest.mark.usefixtures("trace")
def test_sampling_shows_each_method_and_the_ratio_to_the_best_direct_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []

    def direct(_model: object, steps: pd.DataFrame, *_: object) -> list[dict[str, Any]]:
        seen.append(len(steps))
        slow = {"effective_per_1000_gradients": 0.5, "effective_per_second": 2.0}
        low_rank = {"effective_per_1000_gradients": 2.0, "effective_per_second": 1.0}
        return [measured("direct, diag", **slow), measured("direct, low_rank", **low_rank)]

    monkeypatch.setattr(speed, "_direct", direct)
    monkeypatch.setattr(speed, "_ours", lambda *_: measured("ours"))
    assert benchmark(["sampling", "t.jsonl", "--rows", "25"]) == 0
    text = capsys.readouterr().out
    assert seen == [25]
    assert "25 of 300 cleaned steps" in text
    assert text.count("failed") == 2
    assert "a gradient x 5.0, a second x 10.0" in text
    assert benchmark(["sampling", "t.jsonl", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["ratios"]["effective_per_1000_gradients"] == 5.0
    assert [row["method"] for row in found["methods"]] == ["direct, diag", "direct, low_rank", "ours"]


def test_the_table_of_fits_shows_every_seed_and_how_far_they_agree() -> None:
    row: dict[str, Any] = {"trace": "a.jsonl.gz", "rows": 40, "compile_s": 1.0, "pilot_s": 2.0}
    row |= {"sampling_s": 3.0, "total_s": 7.0, "peak_memory_mb": 512.0, "divergences": 0}
    row |= {"worst_r_hat": 1.0031, "min_ess_bulk": 1000.0, "min_ess_tail": 900.0, "leapfrogs_per_draw": 7.1}
    row |= {"effective_per_1000_gradients": 33.3, "modes": 2, "parts": 1}
    found = [
        row | {"seed": seed, "probability_a_1_above_tau_S": share, "gate_passed": seed == 1}
        for seed, share in ((1, 0.41), (2, 0.46))
    ]
    text = terminal(report(speed.FitSpeed(found)))
    assert "a.jsonl.gz: P(a_1 > tau_S) from 0.410 to 0.460 over the seeds" in text
    assert [line.split()[-1] for line in text.splitlines()[2:4]] == ["passed", "failed"]


def test_rows_are_chosen_by_the_seed_and_stay_in_order() -> None:
    steps = pd.DataFrame({"line": np.arange(500)})
    first, again, other = (choose_rows(steps, 50, seed=seed) for seed in (1, 1, 2))
    assert first.equals(again)
    assert not first.equals(other)
    assert first["line"].is_monotonic_increasing
    assert len(first["line"].unique()) == 50
    assert len(choose_rows(steps, 1000, seed=1)) == 500


@pytest.mark.slow
def test_sampling_measures_both_formulations_on_the_same_rows(capsys: pytest.CaptureFixture[str]) -> None:
    example = ROOT / "examples" / "vllm_cpu_12m_sweep.jsonl.gz"
    arguments = ["sampling", str(example), "--rows", "60", "--draws", "100", "--tune", "100"]
    assert benchmark([*arguments, "--max-depth", "6", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert [row["method"].split(",")[0] for row in found["methods"]] == ["direct"] * 3 + ["ours"]
    for row in found["methods"]:
        assert row["gradients_all"] > row["gradients"] > 0
        assert row["sampling_s"] > 0.0
