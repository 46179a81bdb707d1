"""The one runner: a study is made run by run, goes on where it stopped, and keeps what is finished.

A study says how many runs there are, what each is called, how one is made and how the table of all is
summarised (:class:`Study`); a run depends on its number alone, never on those before it. :func:`each_run`
makes them one after the other; :func:`complete` keeps their rows in a
:class:`StudyFolder`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import pandas as pd

from bayes_sched.errors import FIT_ERRORS, InputError, error_text
from bayes_sched.files import whole_file

SETTINGS: Final = "study.json"
"""The file of a folder that says with what settings its runs were made."""


@dataclass(frozen=True, kw_only=True)
class StudyFolder:
    """The table of a study's runs, in a folder, and the settings that all of them share.

    Attributes
    ----------
    folder : Path
        It need not exist.
    table : str
        Name of the file of the runs, such as ``pairs.csv``.
    number : str
        The column of it that numbers the runs, from 0. A run may have several rows.
    settings : mapping
        What has to be the same for runs to belong to one study; ready for JSON.
    """

    folder: Path
    table: str
    number: str
    settings: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """The file of the runs."""
        return self.folder / self.table

    @property
    def has_settings(self) -> bool:
        """Whether a study has begun in the folder."""
        return (self.folder / SETTINGS).exists()

    def check_settings(self) -> None:
        """Raise InputError where the folder holds no study, or one of other settings."""
        try:
            before = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder} holds no study ({SETTINGS} cannot be read)") from error
        if not isinstance(before, dict):
            raise InputError(f"{self.folder} holds no study ({SETTINGS} holds no settings)")
        for name, value in json.loads(json.dumps(self.settings)).items():
            if before.get(name) != value:
                raise InputError(f"the study in {self.folder} has {name} {before.get(name)}, not {value}")

    def begin(self, *, resume: bool) -> None:
        """Make the folder and write the settings, less the runs of a study that was there before.

        A study that is resumed stays as it is; one of other settings is refused.
        """
        if resume:
            self.check_settings()
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot write the study ({error.strerror or error})") from error
        with whole_file(self.folder / SETTINGS, what="the settings") as temporary:
            temporary.write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")

    def append(self, rows: pd.DataFrame) -> None:
        """Add the rows of a run and make the system write them to the disk: what is in the file is done.

        Every run has the same columns, :attr:`number` among them. Numbers are written to six digits.
        """
        try:
            with self.path.open("a", encoding="utf-8", newline="") as stream:
                stream.write(rows.to_csv(header=stream.tell() == 0, index=False, float_format="%.6g"))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise InputError(f"{self.path}: cannot write a run ({error.strerror or error})") from error


type Progress = Callable[[str, float | None], None]
"""Called with a stage in words and the share of it that is done."""


class Study[Run](Protocol):
    """What the runner has to know of a study.

    Attributes
    ----------
    num_runs : int
    """

    @property
    def num_runs(self) -> int: ...  # noqa: D102

    def title(self, number: int) -> str:
        """Return what a run is called while it is made."""
        ...

    def run(self, number: int) -> Run:
        """Make a run: everything random in it follows from the study's seed and the number."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """What a study found, computed once from the table of its runs."""

    settings: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]


class TableStudy[Found: Findings](Study[pd.DataFrame], Protocol):
    """A study whose runs are rows of a table."""

    def summary(self, runs: pd.DataFrame, folder: StudyFolder) -> Found:
        """Return what the rows of all runs say; refuse where none could be made."""
        ...


def each_run[Run](
    study: Study[Run], *, first: int = 0, progress: Progress | None = None
) -> Iterator[tuple[int, Run]]:
    """Make the runs from a number on, and yield each with its number."""
    for number in range(first, study.num_runs):
        report = partial(progress or _silent, study.title(number), number / study.num_runs)
        report()
        run = study.run(number)
        report()  # where an interrupt is raised that a sampler took as a wish for fewer draws
        yield number, run


def complete[Found: Findings](
    study: TableStudy[Found],
    folder: StudyFolder,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Found:
    """Make the runs that are missing, keep each as it is finished, and summarise all."""
    folder.begin(resume=resume)
    for number, rows in each_run(study, first=num_done(folder), progress=progress):
        folder.append(rows)
        error = rows["error"].iloc[0] if "error" in rows else None
        if tell is not None and isinstance(error, str):
            tell(f"{folder.number} {number}: {error}")
    return study.summary(read_runs(folder), folder)


def num_done(folder: StudyFolder) -> int:
    """Return the number of the first run that is still to do."""
    if not folder.path.exists():
        return 0
    runs = read_runs(folder)
    try:
        return int(runs[folder.number].max()) + 1
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{folder.path}: the column {folder.number} is no list of runs; begin the study anew"
        ) from error


def read_runs(folder: StudyFolder) -> pd.DataFrame:
    """Return the rows of all runs as they were appended, numbers to six digits."""
    try:
        return pd.read_csv(folder.path)
    except (OSError, ValueError) as error:  # those of pandas are ValueErrors
        raise InputError(f"{folder.path}: no table of runs ({error}); begin the study anew") from error


@contextmanager
def noted(provenance: dict[str, Any]) -> Iterator[None]:
    """Note what a fit costs, and an error that it fails with in place of raising it.

    ``seconds``, ``cpu_seconds`` and ``error``, None where there is none, are added to `provenance`.
    """
    provenance["error"] = None
    start = time.perf_counter(), time.process_time()
    try:
        yield
    except FIT_ERRORS as error:
        provenance["error"] = error_text(error)
    provenance["seconds"] = time.perf_counter() - start[0]
    provenance["cpu_seconds"] = time.process_time() - start[1]


def _silent(stage: str, share: float | None) -> None:
    """Report progress to nobody."""
