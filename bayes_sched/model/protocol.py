"""What a latency model is, and how its file is loaded.

A model is a file that defines ``MODEL``, an object that fulfils :class:`LatencyModel`. ``saturation`` names
``models/saturation.py``; a path names a researcher's own file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from bayes_sched.errors import InputError

if TYPE_CHECKING:  # the names of the models are known without the seconds that these take to load
    import pandas as pd
    import pymc as pm
    import xarray as xr

    from bayes_sched.arrays import Floats
    from bayes_sched.model.equation import Parameter
    from bayes_sched.model.priors import Priors


class Coordinates(Protocol):
    """A smooth bijection between sampled coordinates and the logarithms of a model's parameters.

    It changes nothing about the model: the density carries the Jacobian. It is worth having where it
    straightens the posterior. Modes are looked for at points that are normal with the means and standard
    deviations of the scan, dims (coordinate,); a coordinate whose scale is 0 is left where the best mode so
    far has it.
    """

    names: tuple[str, ...]
    scan_mean: Floats
    scan_scale: Floats

    @property
    def start(self) -> Mapping[str, float]:
        """Logarithms of parameters at which to start looking, where the priors' medians are a bad place."""

    @property
    def data(self) -> Mapping[str, Any]:
        """Values, by name, of the shared variables that :meth:`to_logs` puts into PyTensor expressions."""

    def adapt(self, steps: pd.DataFrame) -> None:
        """Take the geometry from other steps, for what was compiled too. The posterior is exact with any."""

    def to_logs(self, coordinates: Any, backend: Any) -> tuple[dict[str, Any], Any]:
        """Map coordinates (last axis: `names`) to log parameters by name, and log |d logs / d coordinates|.

        `backend` is :mod:`numpy` or :mod:`pytensor.tensor`.
        """

    def from_logs(self, logs: Mapping[str, Any]) -> Any:
        """Map log parameters by name to coordinates (NumPy; last axis: `names`)."""


@runtime_checkable
class LatencyModel(Protocol):
    """What the library asks of a model.

    Attributes
    ----------
    name, title : str
        Short name and one line for reports.
    parameters : tuple of Parameter
        The documented parameters; each is a variable of that name in every posterior.
    columns : tuple of str
        Columns of the steps table that the mean latency needs.
    noises : tuple of str
        Noise options, the default first.

    Notes
    -----
    A model may have a further attribute ``effects``, a tuple of
    :class:`~bayes_sched.model.likelihood.Effect`: vectors of log factors that its posterior holds as well.
    """

    name: str
    title: str
    parameters: tuple[Parameter, ...]
    columns: tuple[str, ...]
    noises: tuple[str, ...]

    def noise_parameters(self, noise: str) -> tuple[Parameter, ...]:
        """Return the parameters of a noise option; ``nu``, the degrees of freedom, is one of them."""

    def build(self, steps: pd.DataFrame, priors: Priors, *, noise: str) -> pm.Model:
        """Return the PyMC model of the steps' latencies."""

    def coordinates(self, steps: pd.DataFrame, priors: Priors, *, noise: str) -> Coordinates | None:
        """Return coordinates in which NUTS does well, or None to sample the logarithms of the parameters."""

    def latency(self, draws: xr.Dataset, steps: xr.Dataset) -> xr.DataArray:
        """Return the mean latency, ms: the dims of `draws` and of `steps`, broadcast."""

    def scale(self, draws: xr.Dataset, mean: xr.DataArray, steps: xr.Dataset) -> xr.DataArray:
        """Return the Student-t scale, ms, of steps with a mean latency in ms."""

    def combinations(self, draws: xr.Dataset) -> xr.Dataset:
        """Return combinations of parameters that data identify, each with attrs ``meaning`` and ``unit``."""


def all_parameters(model: LatencyModel, noise: str) -> tuple[Parameter, ...]:
    """Return the documented and the noise parameters of a model; raise where it has no such noise option."""
    if noise not in model.noises:
        raise InputError(f"noise {noise!r}: the model {model.name} has {', '.join(model.noises)}")
    return (*model.parameters, *model.noise_parameters(noise))


@dataclass(frozen=True)
class ModelFile:
    """A loaded model, its file, the digest that is kept with every posterior, and whether it is our own."""

    model: LatencyModel
    path: Path
    sha256: str
    shipped: bool

    def made(self, sha256: str) -> bool:
        """Return whether a fit was made with this file, or with an earlier one of the same mathematics."""
        return sha256 == self.sha256 or _SAME_MATHEMATICS.get(sha256[:32]) == self.sha256[:32]


# A fit saved with an earlier file of a shipped model that differs from today's in imports or docstrings alone
# is as good as one made today: no warning is due. Earlier file -> today's, the first half of their digests.
_SAME_MATHEMATICS = {
    "2ef2643c0c556737a6b3751a5f2db13a": "f55437b0411fec9d87947e52be7d5c3b",  # saturation
    "04e094ba925ce9d92081bd845c0b8d4d": "460716a14a38d18d0c5bf496a8a382c4",  # saturation_context
    "a815aaa72644d4fef79b7511a3b00587": "e5cad865754bb7ee372b350c9202cc82",  # saturation_kv_cache
    "11c0c54ff7b19b7797ed3b00e8ba1163": "fba42ad8b03938d786dfb2f78f5d922d",  # saturation_staircase
    "d94ccd83912be8a65141ff45db08ce8f": "fba42ad8b03938d786dfb2f78f5d922d",
}


def models_folder() -> Path:
    """Return the folder of the shipped models: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"


def shipped_models() -> tuple[str, ...]:
    """Return the names of the shipped models."""
    return tuple(sorted(path.stem for path in models_folder().glob("[!_]*.py")))


def load_model(name_or_path: str | Path) -> LatencyModel:
    """Load a model by the name of a shipped one or by the path of a file. Loading a file runs it.

    Raises
    ------
    InputError
        No such name or file, the file fails to run, or it defines no ``MODEL`` that fulfils the protocol.
    """
    return load_model_file(name_or_path).model


def load_model_file(name_or_path: str | Path) -> ModelFile:
    """Load a model as :func:`load_model` does, with where it came from."""
    shipped = str(name_or_path) in shipped_models()
    path = models_folder() / f"{name_or_path}.py" if shipped else Path(name_or_path)
    if not path.is_file():
        names = ", ".join(shipped_models())
        raise InputError(f"{name_or_path}: no such model; give one of {names} or the path of a .py file")
    spec = importlib.util.spec_from_file_location(f"bayes_sched_model_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: not a Python file; a model is a .py file that defines MODEL")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks its module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{path}: the model file does not run ({type(error).__name__}: {error})") from error
    model = getattr(module, "MODEL", None)
    if not isinstance(model, LatencyModel):
        asked = sorted(LatencyModel.__protocol_attrs__)  # type: ignore[attr-defined]
        missing = ", ".join(name for name in asked if not hasattr(model, name))
        raise InputError(f"{path}: MODEL must fulfil bayes_sched.LatencyModel; missing: {missing}")
    return ModelFile(model, path, hashlib.sha256(path.read_bytes()).hexdigest(), shipped)
