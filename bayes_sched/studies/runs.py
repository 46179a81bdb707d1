"""A study: a folder that grows by one run after the other, and goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bayes_sched.errors import InputError
from bayes_sched.files import whole_file

if TYPE_CHECKING:
    import pandas as pd

SETTINGS: Final = "study.json"
"""The file of a folder that says with what settings its runs were made."""


@dataclass(frozen=True, kw_only=True)
class StudyFolder:
    """The table of a study's runs, in a folder, and the settings that all of them share.

    :meth:`check` as soon as the options are known, :meth:`begin` when the work can start, :meth:`append`
    after each run, :meth:`read` when there are enough.

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

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Check that the study may begin, or go on. Nothing is written.

        Parameters
        ----------
        resume : bool
            Whether it goes on with what is in the folder.
        overwrite : bool
            Whether it replaces what is in the folder.

        Raises
        ------
        InputError
            Both are wanted; there is a study and neither is; there is none to go on with, or it was made with
            other settings.
        """
        if resume and overwrite:
            raise InputError("--resume and --overwrite contradict each other")
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"--results-dir {self.folder}: not a folder")
        if resume:
            self._check_same()
        elif self.path.exists() and not overwrite:
            raise InputError(
                f"{self.folder} holds a study: give --resume, --overwrite or another --results-dir"
            )

    def _check_same(self) -> None:
        try:
            before = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"--resume: {self.folder} holds no study ({SETTINGS} cannot be read)") from error
        if not isinstance(before, dict):
            raise InputError(f"--resume: {self.folder} holds no study ({SETTINGS} holds no settings)")
        for name, value in json.loads(json.dumps(self.settings)).items():
            if before.get(name) != value:
                raise InputError(
                    f"--resume: the study in {self.folder} has {name} {before.get(name)}, not {value}"
                )

    def begin(self, *, resume: bool) -> int:
        """Make the folder, or find what is in it.

        Parameters
        ----------
        resume : bool
            Whether to go on with the runs in the folder; otherwise they are removed.

        Returns
        -------
        int
            The number of the first run that is still to do.

        Raises
        ------
        InputError
            The folder cannot be written, or the table of its runs is damaged.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not resume:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot write the study ({error.strerror or error})") from error
        if not resume:
            with whole_file(self.folder / SETTINGS, what="the settings") as temporary:
                temporary.write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
        return self._num_done()

    def _num_done(self) -> int:
        if not self.path.exists():
            return 0
        runs = self.read()
        try:
            return int(runs[self.number].max()) + 1
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"{self.path}: the column {self.number} is no list of runs; --overwrite"
            ) from error

    def append(self, rows: pd.DataFrame) -> None:
        """Add the rows of a run and make the system write them to the disk: what is in the file is done.

        Parameters
        ----------
        rows : DataFrame
            The same columns for every run, :attr:`number` among them.

        Raises
        ------
        InputError
            The disk is full, or the file may not be written.
        """
        try:
            with self.path.open("a", encoding="utf-8", newline="") as stream:
                stream.write(rows.to_csv(header=stream.tell() == 0, index=False, float_format="%.6g"))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise InputError(f"{self.path}: cannot write a run ({error.strerror or error})") from error

    def read(self) -> pd.DataFrame:
        """Return the rows of all runs.

        Returns
        -------
        DataFrame
            As they were appended; numbers to six digits.

        Raises
        ------
        InputError
            There is no run, or the table is damaged.
        """
        import pandas as pd

        try:
            return pd.read_csv(self.path)
        except (OSError, ValueError) as error:  # those of pandas are ValueErrors
            raise InputError(f"{self.path}: no table of runs ({error}); --overwrite replaces it") from error
