"""The folder of a plan, and the file by which it is known."""

from __future__ import annotations

from pathlib import Path

from bayes_sched.errors import InputError
from bayes_sched.results import check_result

PLAN = "plan.json"
"""The file by which a folder is known as a plan."""


def check_plan(results_dir: Path, name: str, *, overwrite: bool) -> Path:
    """Return the folder of a plan after making sure that it may be written.

    Parameters
    ----------
    results_dir : Path
        Folder of all results; it need not exist.
    name : str
    overwrite : bool
        Whether an existing plan may be replaced; a folder of another kind never is.

    Raises
    ------
    InputError
        As :func:`bayes_sched.results.check_result` does.
    """
    folder = results_dir / name
    if folder.is_dir() and any(folder.iterdir()) and not (folder / PLAN).is_file():
        raise InputError(f"{folder} exists, but is no plan (it holds no {PLAN}): give another --name")
    return check_result(results_dir, name, overwrite=overwrite, holds=PLAN)
