"""The command: what it prints and where, its exit statuses, and that no failure costs a result."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bayes_sched.comparison.compare import compare
from bayes_sched.posterior.fitted import FittedModel
from scripts.compare_gpus import default_name, main, parser
from tests.comparison_fits import server

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "compare_gpus.py"
HEAVY = {"numpy", "pandas", "scipy", "xarray", "pymc", "nutpie", "arviz", "matplotlib", "rich"}


pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of three servers: two sound ones, one that has not converged."""
    folder = tmp_path_factory.mktemp("results")
    fits: dict[str, FittedModel] = {
        "fast": server(0.8, name="fast", gpu="X100"),
        "slow": server(name="slow", gpu="Y50"),
        "bad": server(name="bad", gpu="Z", converged=False, problems=("R-hat 1.2 on tau_S",)),
    }
    for name, fit in fits.items():
        (folder / name).mkdir()
        fit.save(folder / name / "posterior.nc")
    return folder


@pytest.fixture
def results(saved: Path) -> list[str]:
    """Two results in the folder of results."""
    Path("results").symlink_to(saved)
    return ["results/fast", "results/slow"]


def lay_traps() -> None:
    """Write what arguments can trip over."""
    for name, file in (("a", "posterior.nc"), ("b", "posterior.nc"), ("taken", "comparison.nc")):
        Path("results", name).mkdir(parents=True)
        Path("results", name, file).write_bytes(b"precious")
    Path("empty").mkdir()


TWO = ["results/a", "results/b"]
SLIPS: list[tuple[list[str], str]] = [
    ([], "the following arguments are required: RESULT"),
    (["results/a"], "results/a: one fit; a comparison takes two or more"),
    (["results/a", "results/a"], "results/a: the same fit twice"),
    (["results/a", "results/../results/a/posterior.nc"], "the same fit twice"),
    (["results/a", "results/none"], "results/none: no such fit"),
    (["results/a", "empty"], "empty: no fit in this folder"),
    ([*TWO, "--nonsense"], "unrecognized arguments: --nonsense"),
    ([*TWO, "--rope", "5"], "'5' is not a share from 0 to below 1, such as 5% or 0.05"),
    ([*TWO, "--rope", "wide"], "'wide' is not a share"),
    ([*TWO, "--probability", "1"], "'1' is not a probability between 0 and 1"),
    ([*TWO, "--price", "a"], "'a' is not LABEL=PRICE"),
    ([*TWO, "--price", "a=cheap"], "'cheap' of 'a=cheap' is no positive price an hour"),
    ([*TWO, "--price", "a=-1"], "'-1' of 'a=-1' is no positive price"),
    ([*TWO, "--price", "a=nan/h"], "'nan/h' of 'a=nan/h' is no positive price"),
    ([*TWO, "--price", "a=1", "--price", "a=2"], "--price a: given twice"),
    ([*TWO, "--slo-ms", "0"], "'0' is not a positive number of milliseconds"),
    ([*TWO, "--slo-quantile", "99"], "'99' is not a probability"),
    ([*TWO, "--draws", "1"], "'1' is not a whole number of at least 100"),
    ([*TWO, "--name", "../x"], "'../x' cannot name a result"),
    ([*TWO, "--name", "taken"], "results/taken exists: give another --name, or --overwrite"),
    ([*TWO, "--name", "a", "--overwrite"], "results/a exists, but is no comparison of servers"),
]


@pytest.mark.parametrize(("arguments", "message"), SLIPS)
def test_a_slip_is_answered_with_one_line_before_anything_is_read(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_traps()
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("compare_gpus: ")
    assert re.search(message, printed.err), printed.err
    assert Path("results/taken/comparison.nc").read_bytes() == b"precious"


@pytest.mark.parametrize("arguments", [["--help"], ["results/a"], ["results/a", "b", "--price", "x"]])
def test_help_and_slips_load_no_heavy_library(arguments: list[str]) -> None:
    lay_traps()
    code = (
        "import sys, contextlib, scripts.compare_gpus as c\n"
        "with contextlib.suppress(SystemExit): c.main(sys.argv[1:])\n"
        "print('LOADED', *{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not set(done.stdout.partition("LOADED")[2].split()) & HEAVY


def test_defaults_are_those_of_the_library() -> None:
    library = inspect.signature(compare).parameters
    options = parser().parse_args(["a", "b"])
    for name in ("rope", "probability", "slo_ms", "slo_quantile", "seed"):
        assert getattr(options, name) == library[name].default
    assert options.draws == library["max_draws"].default


def test_a_comparison_prints_tables_and_names_its_folder(
    results: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--results-dir", str(tmp_path / "out"), "--no-report"]
    assert main([*results, *out, "--price", "X100=2.50/h", "--price", "slow=1", "--slo-ms", "40"]) == 0
    printed = capsys.readouterr()
    assert "X100 / Y50" in printed.out
    assert "cost/million" in printed.out
    assert str(tmp_path / "out" / "compare-fast-slow") in printed.out
    assert "Traceback" not in printed.err
    folder = tmp_path / "out" / "compare-fast-slow"
    assert {path.name for path in folder.iterdir()} == {"summary.json", "comparison.nc", "tables"}


def test_json_is_one_document(results: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--json", "--no-report", "--rope", "10%", "--results-dir", str(tmp_path / "out")]
    assert main([*options, *results]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["labels"] == ["X100", "Y50"]
    assert numbers["rope"] == pytest.approx(0.1)
    assert numbers["shares"][0]["faster"] == 1.0
    assert numbers["command"].startswith("python scripts/compare_gpus.py --json --no-report")


def test_an_unconverged_fit_is_exit_status_three(
    results: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [results[0], "results/bad", "--no-report", "--results-dir", str(tmp_path / "out")]
    assert main(arguments) == 3
    printed = capsys.readouterr()
    assert "Z (result bad) has NOT CONVERGED (R-hat 1.2 on tau_S)" in printed.err
    assert printed.err.splitlines()[-1] == (
        "compare_gpus: a fit has NOT CONVERGED: do not act on this comparison"
    )


def test_a_label_of_no_fit_is_said_with_the_known_ones(
    results: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*results, "--price", "H200=3", "--name", "x"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1].endswith("is that of no fit; give one of X100, Y50, fast, slow")
    assert not Path("results/x").exists()


def test_a_damaged_fit_is_named(results: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken").mkdir()
    Path("broken/posterior.nc").write_bytes(b"no netCDF")
    assert main([results[0], "broken", "--name", "x"]) == 2
    assert "broken/posterior.nc: not a saved fit" in capsys.readouterr().err


def test_a_failed_run_leaves_an_existing_comparison_as_it_was(
    results: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / "c").mkdir(parents=True)
    (out / "c" / "comparison.nc").write_bytes(b"precious")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bayes_sched.reports.write.write_json", full_disk)
    arguments = [*results, "--no-report", "--results-dir", str(out), "--name", "c", "--overwrite"]
    assert main(arguments) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert (out / "c" / "comparison.nc").read_bytes() == b"precious"
    assert [path.name for path in out.iterdir()] == ["c"]


def test_long_names_make_a_name_that_is_still_one() -> None:
    files = [Path(f"/r/{'x' * 60}{i}/posterior.nc") for i in range(3)]
    assert default_name(files) == f"compare-{'x' * 60}0-and-2-more"
    assert default_name([Path("/r/a/posterior.nc"), Path("/r/b/posterior.nc")]) == "compare-a-b"
