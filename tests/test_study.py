"""A study grows by one run after the other, goes on where it stopped, and is never mixed with another."""

import errno
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bayes_sched.errors import InputError
from bayes_sched.studies.runs import SETTINGS, StudyFolder


def study(folder: Path, **settings: Any) -> StudyFolder:
    return StudyFolder(
        folder=folder, table="runs.csv", number="run", settings={"seed": 1, "noise": None, **settings}
    )


def run(number: int, *, rows: int = 1) -> pd.DataFrame:
    return pd.DataFrame({"run": number, "value": [1 / (3 + row) for row in range(rows)]})


@pytest.fixture
def begun(tmp_path: Path) -> StudyFolder:
    """A study of two runs, of three and of two rows."""
    made = study(tmp_path / "results" / "study")
    assert made.begin(resume=False) == 0
    made.append(run(0, rows=3))
    made.append(run(1, rows=2))
    return made


def refusal(made: StudyFolder, *, resume: bool = False, overwrite: bool = False) -> str:
    with pytest.raises(InputError) as caught:
        made.check(resume=resume, overwrite=overwrite)
    return str(caught.value)


def test_rows_are_kept_in_order_under_one_header(begun: StudyFolder) -> None:
    assert begun.path.read_text().splitlines() == [
        "run,value",
        *("0,0.333333", "0,0.25", "0,0.2"),
        *("1,0.333333", "1,0.25"),
    ]
    assert begun.read()["run"].tolist() == [0, 0, 0, 1, 1]


def test_a_study_goes_on_after_the_last_run_in_the_file(begun: StudyFolder) -> None:
    begun.check(resume=True, overwrite=False)
    assert begun.begin(resume=True) == 2
    begun.append(run(2))
    assert begun.read()["run"].unique().tolist() == [0, 1, 2]
    assert begun.path.read_text().count("value") == 1


def test_a_study_that_stopped_before_its_first_run_begins_with_it(tmp_path: Path) -> None:
    made = study(tmp_path)
    made.begin(resume=False)
    made.check(resume=True, overwrite=False)
    assert made.begin(resume=True) == 0


def test_an_overwritten_study_begins_anew(begun: StudyFolder) -> None:
    other = study(begun.folder, seed=2)
    other.check(resume=False, overwrite=True)
    assert other.begin(resume=False) == 0
    assert not other.path.exists()
    other.check(resume=True, overwrite=False)


def test_a_check_writes_nothing(tmp_path: Path) -> None:
    study(tmp_path / "none").check(resume=False, overwrite=True)
    assert list(tmp_path.iterdir()) == []


def test_settings_are_compared_as_they_are_kept(tmp_path: Path) -> None:
    study(tmp_path, factors=(1.1, 1.2)).begin(resume=False)
    study(tmp_path, factors=(1.1, 1.2)).check(resume=True, overwrite=False)
    assert "has factors [1.1, 1.2], not [1.1]" in refusal(study(tmp_path, factors=(1.1,)), resume=True)


def test_a_study_is_not_lost_by_mistake(begun: StudyFolder) -> None:
    assert refusal(begun).endswith("holds a study: give --resume, --overwrite or another --results-dir")


def test_going_on_and_replacing_contradict_each_other(begun: StudyFolder) -> None:
    assert refusal(begun, resume=True, overwrite=True) == "--resume and --overwrite contradict each other"


def test_runs_of_other_settings_are_not_mixed(begun: StudyFolder) -> None:
    assert refusal(study(begun.folder, seed=2), resume=True).endswith("has seed 1, not 2")


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_a_folder_without_settings_holds_no_study(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / SETTINGS).write_text(content)
    assert f"--resume: {tmp_path} holds no study" in refusal(study(tmp_path), resume=True)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refusal(study(tmp_path / "file")).endswith("file: not a folder")


@pytest.mark.parametrize("content", ["", "value\n1\n", "run,value\na,b\n", 'run\n"'])
def test_a_damaged_table_is_one_line(begun: StudyFolder, content: str) -> None:
    begun.path.write_text(content)
    with pytest.raises(InputError, match=r"runs\.csv: .*--overwrite"):
        begun.begin(resume=True)


def test_a_full_disk_is_one_line(begun: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write a run \(No space left on device\)"):
        begun.append(run(2))
