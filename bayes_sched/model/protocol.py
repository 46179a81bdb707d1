"""What a latency model is, and how its file is loaded.

A model is a file that defines ``MODEL``, an object that fulfils :class:`LatencyModel`. ``saturation`` names
``models/saturation.py``; a path names a researcher's own file.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from bayes_sched.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pymc as pm
    import xarray as xr
    from numpy.typing import NDArray

    from bayes_sched.model.equation import Parameter
    from bayes_sched.model.priors import Priors


class Coordinates(Protocol):
    """A smooth bijection between sampled coordinates and the logarithms of a model's parameters.

    It changes nothing about the model: the density carries the Jacobian. It is worth having where it
    straightens the posterior.

    Attributes
    ----------
    names : tuple of str
        Names of the coordinates.
    scan_mean, scan_scale : ndarray, dims (coordinate,)
        Where to look for modes: normal with these means and standard deviations. A coordinate whose scale is
        0 is left where the best mode so far has it.
    start : Mapping of str to float
        Logarithms of parameters at which to start looking, where the priors' medians are a bad place.
    data : Mapping of str to ndarray
        Values of the shared variables that :meth:`to_logs` puts into PyTensor expressions, by their names.
    """

    names: tuple[str, ...]
    scan_mean: NDArray[np.float64]
    scan_scale: NDArray[np.float64]

    @property
    def start(self) -> Mapping[str, float]: ...  # noqa: D102

    @property
    def data(self) -> Mapping[str, Any]: ...  # noqa: D102

    def adapt(self, steps: pd.DataFrame) -> None:
        """Take the geometry from other steps, for what was compiled too. The posterior is exact with any."""
        ...

    def to_logs(self, coordinates: Any, backend: Any) -> tuple[dict[str, Any], Any]:
        """Map coordinates (last axis: `names`) to log parameters by name.

        The second result is the log of |d logs / d coordinates|. `backend` is :mod:`numpy` or
        :mod:`pytensor.tensor`.
        """
        ...

    def from_logs(self, logs: Mapping[str, Any]) -> Any:
        """Map log parameters by name to coordinates (NumPy; last axis: `names`)."""
        ...


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
    A model may have a further attribute ``effects``, a tuple of :class:`~bayes_sched.effects.Effect`: vectors
    of log factors that its posterior holds beside the parameters.
    """

    name: str
    title: str
    parameters: tuple[Parameter, ...]
    columns: tuple[str, ...]
    noises: tuple[str, ...]

    def noise_parameters(self, noise: str) -> tuple[Parameter, ...]:
        """Return the parameters of a noise option; ``nu``, the degrees of freedom, is one of them."""
        ...

    def build(self, steps: pd.DataFrame, priors: Priors, *, noise: str) -> pm.Model:
        """Return the PyMC model of the steps' latencies."""
        ...

    def coordinates(self, steps: pd.DataFrame, priors: Priors, *, noise: str) -> Coordinates | None:
        """Return coordinates in which NUTS does well, or None to sample the logarithms of the parameters."""
        ...

    def latency(self, draws: xr.Dataset, steps: xr.Dataset) -> xr.DataArray:
        """Return the mean latency, ms: the dims of `draws` and of `steps`, broadcast."""
        ...

    def scale(self, draws: xr.Dataset, mean: xr.DataArray, steps: xr.Dataset) -> xr.DataArray:
        """Return the Student-t scale, ms, of steps with a mean latency in ms."""
        ...

    def combinations(self, draws: xr.Dataset) -> xr.Dataset:
        """Return combinations of parameters that data identify, each with attrs ``meaning`` and ``unit``."""
        ...


@dataclass(frozen=True)
class ModelFile:
    """A loaded model and where it came from.

    Attributes
    ----------
    model : LatencyModel
    path : Path
    sha256 : str
        Digest of the file, kept with every posterior.
    shipped : bool
        Whether the file is one of the project's own.
    """

    model: LatencyModel
    path: Path
    sha256: str
    shipped: bool


def models_folder() -> Path:
    """Return the folder of the shipped models: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"


def shipped_models() -> tuple[str, ...]:
    """Return the names of the shipped models."""
    return tuple(sorted(path.stem for path in models_folder().glob("[!_]*.py")))


def load_model_file(name_or_path: str | Path) -> ModelFile:
    """Load a model by the name of a shipped one or by the path of a file. Loading a file runs it.

    Parameters
    ----------
    name_or_path : str or Path
        ``saturation``, or ``my_model.py``.

    Raises
    ------
    InputError
        No such name or file, the file fails to run, or it defines no ``MODEL`` that fulfils the protocol.
    """
    shipped = str(name_or_path) in shipped_models()
    path = models_folder() / f"{name_or_path}.py" if shipped else Path(name_or_path)
    if not path.is_file():
        names = ", ".join(shipped_models())
        msg = f"{name_or_path}: no such model; give one of {names} or the path of a .py file"
        raise InputError(msg)
    spec = importlib.util.spec_from_file_location(f"bayes_sched_model_{path.stem}", path)
    if spec is None or spec.loader is None:
        msg = f"{path}: not a Python file; a model is a .py file that defines MODEL"
        raise InputError(msg)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        msg = f"{path}: the model file does not run ({type(error).__name__}: {error})"
        raise InputError(msg) from error
    model = getattr(module, "MODEL", None)
    if not isinstance(model, LatencyModel):
        missing = [name for name in _protocol_names() if not hasattr(model, name)]
        msg = f"{path}: MODEL must fulfil bayes_sched.LatencyModel; missing: {', '.join(missing)}"
        raise InputError(msg)
    return ModelFile(model, path, hashlib.sha256(path.read_bytes()).hexdigest(), shipped)


def load_model(name_or_path: str | Path) -> LatencyModel:
    """Load a model as :func:`load_model_file` does and return it alone."""
    return load_model_file(name_or_path).model


def _protocol_names() -> list[str]:
    return sorted(LatencyModel.__protocol_attrs__)  # type: ignore[attr-defined]


def all_parameters(model: LatencyModel, noise: str) -> tuple[Parameter, ...]:
    """Return the documented and the noise parameters of a model.

    Raises
    ------
    InputError
        The model has no such noise option.
    """
    if noise not in model.noises:
        msg = f"noise {noise!r}: the model {model.name} has {', '.join(model.noises)}"
        raise InputError(msg)
    return (*model.parameters, *model.noise_parameters(noise))
