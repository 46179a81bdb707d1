"""The one runner: a study is made run by run, goes on where it stopped, and keeps what is finished.

A study says how many runs there are, what each is called, how one is made and how the table of all is
summarised (:class:`Study`); a run depends on its number alone, never on those before it. :func:`each_run`
makes them one after the other; :func:`complete` keeps their rows in a
:class:`~bayes_sched.studies.folder.StudyFolder`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import pandas as pd

from bayes_sched.errors import FIT_ERRORS, InputError, error_text
from bayes_sched.studies.folder import StudyFolder

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
