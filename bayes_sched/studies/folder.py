"""The folder of a study: the table of its runs, which grows by one after the other, and their settings.

It imports nothing heavy, so that a command can refuse a folder before it loads what it works with.
"""

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
    """The table of a study's runs, in a folder, and the settings that all of them share."""

    folder: Path  # it need not exist
    table: str  # name of the file of the runs, such as ``pairs.csv``
    number: str
    """The column of it that numbers the runs, from 0. A run may have several rows."""
    settings: Mapping[str, Any]  # what has to be the same for runs to belong to one study; ready for JSON

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
