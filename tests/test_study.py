"""A study grows by one run after the other, goes on where it stopped, and is never mixed with another."""

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bayes_sched.errors import InputError
from bayes_sched.studies.folder import SETTINGS, StudyFolder
from bayes_sched.studies.runs import Findings, complete, noted, read_runs

pytestmark = pytest.mark.usefixtures("blank_figures")


def study_folder(folder: Path, **settings: Any) -> StudyFolder:
    same = {"seed": 1, "noise": None, **settings}
    return StudyFolder(folder=folder, table="runs.csv", number="run", settings=same)


@dataclass
class Thirds:
    """A study whose runs have several rows; the runs of `failing` fail."""

    num_runs: int
    failing: tuple[int, ...] = ()
    made: list[int] = field(default_factory=list)

    def title(self, number: int) -> str:
        return f"run {number}"

    def run(self, number: int) -> pd.DataFrame:
        self.made.append(number)
        found: dict[str, Any] = {}
        rows = pd.DataFrame({"value": [1 / (3 + row) for row in range(3 - number)]})
        with noted(found):
            if number in self.failing:
                raise RuntimeError("no start\nwas found")
        return rows.assign(run=number, error=found["error"])[["run", "value", "error"]]

    def summary(self, runs: pd.DataFrame, folder: StudyFolder) -> Findings:
        return Findings(settings=folder.settings, tables={"runs": runs})


@pytest.fixture
def begun(tmp_path: Path) -> StudyFolder:
    """A study of two runs, of three and of two rows."""
    folder = study_folder(tmp_path / "results" / "study")
    complete(Thirds(2), folder)
    return folder


def test_rows_are_kept_in_order_under_one_header_and_the_study_goes_on_after_the_last(
    begun: StudyFolder,
) -> None:
    lines = ["run,value,error", "0,0.333333,", "0,0.25,", "0,0.2,", "1,0.333333,", "1,0.25,"]
    assert begun.path.read_text().splitlines() == lines
    study = Thirds(3)
    found = complete(study, begun, resume=True)
    assert study.made == [2]
    assert found.tables["runs"]["run"].tolist() == [0, 0, 0, 1, 1, 2]
    assert begun.path.read_text().count("value") == 1


def test_a_study_that_stopped_before_its_first_run_begins_with_it(tmp_path: Path) -> None:
    folder, study = study_folder(tmp_path), Thirds(1)
    folder.begin(resume=False)
    complete(study, folder, resume=True)
    assert study.made == [0]


def test_a_run_that_fails_is_kept_with_its_error_and_told_of(tmp_path: Path) -> None:
    told: list[str] = []
    found = complete(Thirds(3, failing=(1,)), study_folder(tmp_path), tell=told.append)
    assert told == ["run 1: RuntimeError: no start was found"]
    assert found.tables["runs"]["error"].notna().sum() == 2


def test_an_interrupt_that_a_sampler_took_for_a_wish_keeps_no_such_run(tmp_path: Path) -> None:
    stages: list[tuple[str, float | None]] = []

    def interrupt(stage: str, share: float | None) -> None:
        stages.append((stage, share))
        if len(stages) == 4:  # after the second run, before it is kept
            raise KeyboardInterrupt

    folder = study_folder(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        complete(Thirds(3), folder, progress=interrupt)
    assert read_runs(folder)["run"].unique().tolist() == [0]
    assert stages == [("run 0", 0.0)] * 2 + [("run 1", pytest.approx(1 / 3))] * 2


def test_a_study_that_is_not_resumed_begins_anew(begun: StudyFolder) -> None:
    other = study_folder(begun.folder, seed=2)
    complete(Thirds(1), other)
    assert read_runs(other)["run"].unique().tolist() == [0]
    other.check_settings()


def test_runs_of_other_settings_are_not_mixed_and_settings_are_compared_as_they_are_kept(
    begun: StudyFolder, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"the study in .* has seed 1, not 2"):
        complete(Thirds(3), study_folder(begun.folder, seed=2), resume=True)
    study_folder(tmp_path, factors=(1.1, 1.2)).begin(resume=False)
    study_folder(tmp_path, factors=(1.1, 1.2)).check_settings()
    with pytest.raises(InputError, match=r"has factors \[1.1, 1.2\], not \[1.1\]"):
        study_folder(tmp_path, factors=(1.1,)).check_settings()


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_a_folder_without_settings_holds_no_study(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / SETTINGS).write_text(content)
    with pytest.raises(InputError, match=f"{tmp_path} holds no study"):
        study_folder(tmp_path).check_settings()


@pytest.mark.parametrize("content", ["", "value\n1\n", "run,value\na,b\n", 'run\n"'])
def test_a_damaged_table_is_one_line(begun: StudyFolder, content: str) -> None:
    begun.path.write_text(content)
    with pytest.raises(InputError, match=r"runs\.csv: .*; begin the study anew"):
        complete(Thirds(3), begun, resume=True)


def test_a_full_disk_is_one_line(begun: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write a run \(No space left on device\)"):
        complete(Thirds(3), begun, resume=True)
