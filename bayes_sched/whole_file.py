"""A file that is written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from bayes_sched.errors import InputError

VERSION = version("bayes-sched")
"""Version of the package, as files and pages name it."""


@contextmanager
def whole_file(path: Path, *, what: str) -> Iterator[Path]:
    """Give a temporary file to write; it takes the place of `path` when all has gone well.

    Whatever is raised inside, an interrupt included, removes it and leaves an existing file as it was.

    Parameters
    ----------
    path : Path
        An existing file is replaced; its folder must exist.
    what : str
        What is written, for the message: ``the fit``.

    Yields
    ------
    Path
        A file beside `path` that does not exist yet.

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
