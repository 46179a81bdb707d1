"""Files carry the version of their format: what a reader says of a missing or a later one."""

from __future__ import annotations

from numbers import Integral
from pathlib import Path

from bayes_sched.errors import InputError


def check_version(path: Path, version: object, *, known: int, again: str) -> None:
    """Refuse a file of a later format, or of none.

    Parameters
    ----------
    path : Path
    version : object
        What the file says.
    known : int
        The latest format that is read.
    again : str
        What to do with a damaged file: ``fit the trace again``.

    Raises
    ------
    InputError
    """
    if not isinstance(version, Integral):
        raise InputError(f"{path}: the file is damaged (no format version); {again}")
    if int(version) > known:
        raise InputError(
            f"{path}: written by a later bayes-sched (format {version}; this one reads up to {known}): "
            f"upgrade with pip install --upgrade bayes-sched, or {again}"
        )
