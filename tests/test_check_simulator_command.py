"""The command that holds the simulator against a server: what it prints and writes, and each slip."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bayes_sched.planning.replay import SchedulerSettings
from bayes_sched.planning.server_record import ServerRecord
from bayes_sched.planning.workload import Lengths, PoissonWorkload
from bayes_sched.studies.simulator import check_simulator
from scripts.check_simulator import SETTINGS, main, parser
from tests.conftest import ROOT
from tests.running import fails, interrupt
from tests.simulated_server import simulated_server, write_server

HEAVY = {"numpy", "numba", "pandas", "scipy", "xarray", "pymc", "nutpie", "arviz", "matplotlib", "rich"}
FILES = ["--trace", "trace.jsonl.gz", "--requests", "requests.jsonl.gz"]
ASKED = [*FILES, "--draws", "10"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the trace and the requests of a server that is the simulator itself."""
    folder = tmp_path_factory.mktemp("server")
    settings = SchedulerSettings(token_budget=64, max_num_seqs=4, step_overhead_ms=1.0)
    requests = PoissonWorkload(
        rate_per_s=14.0, prompt=Lengths(60, 2.0), output=Lengths(8, 2.0), num_requests=120
    )
    write_server(simulated_server(settings, requests), folder)
    return folder


@pytest.fixture(autouse=True)
def _in_a_folder(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in recorded.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def with_stub(monkeypatch: pytest.MonkeyPatch) -> None:
    from bayes_sched.sampling import sample as sampling
    from tests.stub_sampling import stub_sample

    monkeypatch.setattr(sampling, "sample", stub_sample)


@pytest.mark.usefixtures("with_stub")
def test_decisions_and_times_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(ASKED) == 0
    printed = capsys.readouterr()
    assert "told the queue" in printed.out
    assert printed.out.count("error with own steps") == 3
    assert "token budget 64, at most 4 sequences" in " ".join(printed.out.split())
    assert max(map(len, printed.out.splitlines())) <= 100
    assert "check_simulator: simulating requests\n" in printed.err


@pytest.mark.usefixtures("with_stub")
def test_the_report_holds_tables_figures_and_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*ASKED, "--report", "--json"]
    assert main(asked) == 0
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
    assert "exists: give another --name, or --overwrite" in fails(main, asked, capsys)
    assert main([*asked, "--overwrite"]) == 0


@pytest.mark.usefixtures("with_stub")
def test_settings_that_are_given_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASKED, "--max-num-seqs", "3", "--kv-tokens", "4096", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["max_num_seqs"], found["kv_tokens"]) == (3, 4096)
    assert found["decisions"]["of_queue"]["share_equal"] < 0.95


@pytest.mark.usefixtures("with_stub")
def test_settings_are_taken_from_the_side_car(capsys: pytest.CaptureFixture[str]) -> None:
    told = {"max_num_seqs": 3, "kv_cache_block_size": 64, "num_kv_cache_blocks": 65}
    Path("trace.jsonl.meta.json").write_text(json.dumps(told))
    assert main([*ASKED, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["token_budget"], found["max_num_seqs"]) == (64, 3)
    assert (found["kv_tokens"], found["block_tokens"]) == (4096, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --trace, --requests"),
        (["--trace", "none.jsonl", *FILES[2:]], "no such file: none.jsonl"),
        ([*FILES[:2], "--requests", "none.jsonl"], "none.jsonl: no such file"),
        ([*FILES, "--name", "x"], "--name names the report: give --report too"),
        ([*FILES, "--token-budget", "0"], "'0' is not a whole number of at least 1"),
        ([*FILES, "--probability", "1"], "'1' is not a probability between 0 and 1"),
        ([*FILES, "--report", "--name", "../x"], "cannot name a result"),
        ([*FILES, "--kv-tokens", "32"], "do not fit into the KV cache on their own"),
    ],
)
def test_a_slip_is_answered_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], with_stub: None
) -> None:
    assert message in fails(main, arguments, capsys)


def changed_requests(change: Callable[[dict[str, Any]], None]) -> list[str]:
    """Write a log in which something was done to each request; return the arguments."""
    import gzip

    rows = [json.loads(line) for line in gzip.decompress(Path("requests.jsonl.gz").read_bytes()).splitlines()]
    for row in rows:
        change(row)
    Path("changed.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return [*FILES[:2], "--requests", "changed.jsonl"]


def test_requests_of_another_time_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    def begin_at_zero(row: dict[str, Any]) -> None:
        row["arrival_s"] -= 1.7e9

    assert "they do not overlap; both need one clock" in fails(main, changed_requests(begin_at_zero), capsys)


def test_a_missing_field_is_named_with_file_and_line(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = changed_requests(lambda row: row.pop("ttft_ms"))
    assert "changed.jsonl, line 1: ttft_ms is missing" in fails(main, arguments, capsys)


def test_a_folder_of_another_kind_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    other = Path("results/mine")
    other.mkdir(parents=True)
    (other / "thesis.txt").write_text("years of work")
    message = fails(main, [*FILES, "--report", "--name", "mine", "--overwrite"], capsys)
    assert "is no check of the simulator" in message
    assert (other / "thesis.txt").read_text() == "years of work"


def test_an_interrupt_leaves_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bayes_sched.posterior.fit.fit", interrupt)
    assert main([*FILES, "--report"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not Path("results").exists()


def test_help_and_slips_load_nothing_heavy(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "examples:" in capsys.readouterr().out
    code = (
        "import sys; from scripts.check_simulator import main; "
        "print(main(['--trace', 'none', '--requests', 'none'])); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    status, *loaded = done.stdout.split()
    assert status == "2"
    assert not HEAVY & set(loaded)


def test_the_defaults_are_those_of_the_library() -> None:
    options = parser().parse_args(FILES)
    defaults = {name: p.default for name, p in inspect.signature(check_simulator).parameters.items()}
    assert options.draws == defaults["num_draws"]
    assert (options.probability, options.seed) == (defaults["probability"], defaults["seed"])
    asked = inspect.signature(ServerRecord.settings).parameters
    assert [(getattr(options, name), asked[name].default) for name in SETTINGS] == [(None, None)] * 4
