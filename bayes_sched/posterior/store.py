"""A fit as one netCDF file: written whole or not at all, read without running anything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import xarray as xr

from bayes_sched.errors import InputError
from bayes_sched.files import check_version, whole_file
from bayes_sched.model.protocol import LatencyModel, ModelFile, load_model_file, shipped_models
from bayes_sched.posterior.provenance import FORMAT_MARKER, FORMAT_NAME, FORMAT_VERSION, FitMetadata

GROUPS = ("posterior", "prior", "cells")
"""Groups that a file must hold."""

_ENGINE: Final = "h5netcdf"
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_COMPRESSION = {"zlib": True, "complevel": 4, "shuffle": True}


def write_fit(data: xr.DataTree, path: str | os.PathLike[str], *, attrs: Mapping[str, str | int]) -> None:
    """Write a fit to a file, atomically: whoever looks sees the file before or the file after.

    Parameters
    ----------
    data : DataTree
        The groups. Numbers and strings only.
    path : path-like
        The file; an existing one is replaced, its folder must exist.
    attrs : mapping
        Attributes of the root.

    Raises
    ------
    InputError
        The folder is missing, the disk is full, or the place may not be written.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(
            f"{path} is a folder: give the name of a file in it, such as {path / 'posterior.nc'}"
        )
    tree = data.copy()
    tree.attrs = dict(attrs)
    with whole_file(path, what="the fit") as temporary:
        tree.to_netcdf(temporary, mode="w", encoding=_encoding(tree), engine=_ENGINE)


def read_fit(path: str | os.PathLike[str]) -> xr.DataTree:
    """Read a file written by :func:`write_fit` into memory.

    Nothing in the file is executed: it holds numbers, strings and JSON.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    DataTree
        The groups; the root's attributes as they stand in the file.

    Raises
    ------
    InputError
        The file is missing, no saved fit, damaged, or of a format that this version does not know.
    """
    path = Path(path)
    _check_file(path)
    try:
        with xr.open_datatree(path, engine=_ENGINE, decode_times=False, decode_timedelta=False) as opened:
            _check_format(path, opened.attrs)
            tree = opened.load()
    except InputError:
        raise
    except Exception as error:  # h5py, h5netcdf and xarray raise a dozen kinds on a damaged file
        msg = f"{path}: the file is damaged, perhaps cut short; fit the trace again ({_first_line(error)})"
        raise InputError(msg) from error
    _check_content(path, tree)
    return tree


def model_of(
    metadata: FitMetadata, *, model: str | os.PathLike[str] | ModelFile | None = None
) -> tuple[LatencyModel, tuple[str, ...]]:
    """Return the model that a fit was made with. A foreign model's file is run only where it is given.

    Parameters
    ----------
    metadata : FitMetadata
    model : str, path-like or ModelFile, optional
        Name or file of the model; by default the shipped one that the fit names.

    Returns
    -------
    LatencyModel
    tuple of str
        Warnings, such as that the file has changed since the fit.

    Raises
    ------
    InputError
        The fit was made with a foreign file and none is given, or the model cannot be loaded.
    """
    identity = metadata.model
    # A file's word that its model is a shipped one counts only if there is such a model: a path would be run.
    if model is None and not (identity.shipped and identity.name in shipped_models()):
        msg = (
            f"made with the model file {identity.name}, which is not one of the project's own: "
            f"give that file with --model (model=...); it will be run"
        )
        raise InputError(msg)
    name = identity.name if model is None else model
    loaded = name if isinstance(name, ModelFile) else load_model_file(os.fspath(name))
    if loaded.made(identity.sha256):
        return loaded.model, ()
    warning = (
        f"the model {loaded.path.name} is not the file that this fit was made with (it changed, or is "
        "another one): predictions may differ; fit the trace again to be sure"
    )
    return loaded.model, (warning,)


def _encoding(tree: xr.DataTree) -> dict[str, dict[str, Any]]:
    return {
        node.path: {
            str(name): dict(_COMPRESSION)
            for name, variable in node.to_dataset(inherit=False).variables.items()
            if variable.dtype.kind in "biuf" and variable.ndim and variable.size
        }
        for node in tree.subtree
    }


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the file in it, such as {path / 'posterior.nc'}")
    try:
        with path.open("rb") as file:
            head = file.read(len(_HDF5_MAGIC))
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: there is no such file; fit_bayes.py writes results/NAME/posterior.nc"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not head:
        raise InputError(f"{path}: the file is empty; fit the trace again")
    if head != _HDF5_MAGIC:
        raise InputError(
            f"{path}: not a saved fit (not a netCDF-4 file); give a posterior.nc made by fit_bayes.py"
        )


def _check_format(path: Path, attrs: Mapping[Any, Any]) -> None:
    if attrs.get(FORMAT_MARKER) != FORMAT_NAME:
        raise InputError(f"{path}: a netCDF file, but no saved fit; give a posterior.nc made by fit_bayes.py")
    check_version(path, attrs.get("format_version"), known=FORMAT_VERSION, again="fit the trace again")


def _check_content(path: Path, tree: xr.DataTree) -> None:
    missing = [name for name in GROUPS if name not in tree.children]
    if missing:
        raise InputError(f"{path}: the file is damaged (no group {', '.join(missing)}); fit the trace again")
    for node in tree.subtree:
        for name, variable in node.to_dataset(inherit=False).variables.items():
            if variable.dtype.kind in "biufU":
                continue
            if variable.dtype.kind in "OT" and all(isinstance(v, str) for v in variable.to_numpy().flat):
                continue
            raise InputError(
                f"{path}: {node.path}/{name} holds something else than numbers and text; not read"
            )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
