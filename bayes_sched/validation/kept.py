"""Forecasts kept while a study runs, one file each, so that an interrupted study goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bayes_sched.validation.forecast import Forecast
from bayes_sched.whole_file import whole_file


@dataclass(frozen=True)
class Kept:
    """A folder of forecasts. Each file is written whole or not at all; reading one never runs code.

    Attributes
    ----------
    folder : Path
        Made when it is first written to.
    """

    folder: Path

    def read(self, title: str, depends_on: Mapping[str, Any]) -> tuple[Forecast, dict[str, float]] | None:
        """Return a forecast and what it cost; None if there is none that depends on the very same.

        Parameters
        ----------
        title : str
        depends_on : mapping
            Everything that decides the numbers, as plain values.
        """
        path = self._path(title, depends_on)
        if not path.is_file():
            return None
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                account = json.loads(str(arrays["account"]))
                numbers = {name: arrays[name] for name in arrays.files if name != "account"}
                return Forecast(**numbers, converged=account["converged"]), account["cost"]
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            return None  # a damaged file costs a fit, not a study

    def write(
        self, title: str, depends_on: Mapping[str, Any], forecast: Forecast, cost: dict[str, float]
    ) -> None:
        """Keep a forecast.

        Raises
        ------
        InputError
            The place cannot be written.
        """
        arrays = {"quantiles_ms": forecast.quantiles_ms, "point_ms": forecast.point_ms, "cdf": forecast.cdf}
        if forecast.log_density is not None:
            arrays["log_density"] = forecast.log_density
        account = json.dumps({"converged": forecast.converged, "cost": cost})
        path = self._path(title, depends_on)
        with whole_file(path, what="the forecast") as temporary:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                np.savez_compressed(stream, account=np.array(account), **arrays)  # type: ignore[arg-type]

    def _path(self, title: str, depends_on: Mapping[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', title)[:100]}.{digest[:16]}.npz"
