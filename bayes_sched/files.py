"""Files and folders of results: named safely, written whole or not at all, never lost to a run that fails."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from numbers import Integral
from pathlib import Path

from bayes_sched.errors import InputError

VERSION = version("bayes-sched")
"""Version of the package, as files and pages name it."""

# The files by which a folder is known as a result of some kind.
POSTERIOR = "posterior.nc"
ANALYSIS = "analysis.json"
COMPARISON = "comparison.nc"
SLA = "sla.json"
VALIDATION = "validation.csv"
PLAN = "plan.json"
SIMULATOR = "simulator.json"
POPULATION = "population.nc"
_KINDS = {
    POSTERIOR: "fit",
    ANALYSIS: "analysis of a trace",
    COMPARISON: "comparison of servers",
    SLA: "answer about a promise",
    VALIDATION: "validation of models",
    PLAN: "plan",
    SIMULATOR: "check of the simulator",
    POPULATION: "pool of fits",
}

MEMBERS = "members"
"""The folder of a pool that holds a folder for each pooled fit."""
UNSEEN = "unseen"
"""The member of a pool that is a server not yet seen."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def is_name(text: str) -> bool:
    """Return whether a text may name a result."""
    return bool(_NAME.fullmatch(text)) and not text.endswith(".tmp")


def fit_file(path: Path) -> Path:
    """Return the file of a fit that is named by its folder, ``results/NAME``, or by itself.

    Raises
    ------
    InputError
        There is no such file.
    """
    if (path / POPULATION).is_file() and not (path / POSTERIOR).is_file():
        found = sorted(str(file.parent) for file in (path / MEMBERS).glob(f"*/{POSTERIOR}"))
        member = found[0] if found else str(path / MEMBERS / "NAME")
        raise InputError(f"{path}: a pool of fits; name one of its members, such as {member}")
    return _file_in(path, POSTERIOR, what="fit")


def population_file(path: Path) -> Path:
    """Return the file of a pool that is named by its folder, ``results/NAME``, or by itself.

    Raises
    ------
    InputError
        There is no such file.
    """
    if (path / POSTERIOR).is_file() and not (path / POPULATION).is_file():
        raise InputError(f"{path}: a fit, not a pool (it holds no {POPULATION}); a pool is made of fits")
    return _file_in(path, POPULATION, what="pool")


def _file_in(path: Path, name: str, *, what: str) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{path}: no such {what}; give the folder of one, such as results/NAME")
    if not (path / name).is_file():
        raise InputError(f"{path}: no {what} in this folder (it holds no {name})")
    return path / name


def check_version(path: Path, version: object, *, known: int, again: str) -> None:
    """Refuse a file of a format later than `known`, or of none; `again` says how to make it anew.

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


@contextmanager
def whole_file(path: Path, *, what: str) -> Iterator[Path]:
    """Give a temporary file to write; it takes the place of `path` when all has gone well.

    Whatever is raised inside, an interrupt included, removes it and leaves an existing file as it was. `what`
    is written, for the message: ``the fit``.

    Raises
    ------
    InputError
        The folder is missing, the disk is full, or the place may not be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        # Not every file system can sync a folder; the rename is atomic all the same.
        with suppress(OSError):
            _sync(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot write {what} ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Make the system write a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_content(path: Path, *, such_as: str, missing: str, again: str, size: int = -1) -> bytes:
    """Return the first `size` bytes of a saved file, by default all, or say in one line why there are none.

    `such_as` is the file to give in place of a folder, `missing` what makes one, `again` what to do with an
    empty one: ``fit the trace again``.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the file in it, such as {path / such_as}")
    try:
        with path.open("rb") as file:
            content = file.read(size)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; {missing}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not content.strip():
        raise InputError(f"{path}: the file is empty; {again}")
    return content


def obstacle(folder: Path, *, overwrite: bool, holds: str = POSTERIOR) -> str:
    """Say why a result may not be written into a folder, empty where it may.

    `holds` is the file by which an existing result of the same kind is known, such as `POSTERIOR`: a folder
    of another kind is never replaced, one of the same kind only with `overwrite`.
    """
    if not os.path.lexists(folder):
        return ""
    if not folder.is_dir():
        return "exists and is no folder"
    if not any(folder.iterdir()):
        return ""
    if not (folder / holds).is_file():
        return f"exists, but is no {_KINDS[holds]} (it holds no {holds})"
    return "" if overwrite else "exists"


@contextmanager
def result_folder(folder: Path, *, overwrite: bool, holds: str = POSTERIOR) -> Iterator[Path]:
    """Give a temporary folder to write into; it takes the place of `folder` when all has gone well.

    Whatever is raised inside, an interrupt included, removes the temporary folder and leaves an existing
    result as it was. That is removed only when the one that replaces it stands in its place. `overwrite` and
    `holds` as in :func:`obstacle`.

    Raises
    ------
    InputError
        The place cannot be written, or a result of that name has appeared.
    """
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if found := obstacle(folder, overwrite=overwrite, holds=holds):
            raise InputError(f"{folder} {found}")
        _swap(temporary, folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot write the result ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(temporary: Path, folder: Path) -> None:
    """Put `temporary` in the place of `folder`, which moves aside first and comes back if that fails."""
    aside = temporary.with_suffix(".old.tmp")
    try:
        if os.path.lexists(folder):
            os.rename(folder, aside)
        os.rename(temporary, folder)
    finally:
        if not os.path.lexists(aside):
            pass
        elif not os.path.lexists(folder):
            os.rename(aside, folder)
        elif aside.is_symlink():
            aside.unlink()
        else:
            shutil.rmtree(aside, ignore_errors=True)
