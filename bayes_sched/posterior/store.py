"""A fit as one netCDF file: written whole or not at all, read without running anything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import xarray as xr

from bayes_sched.errors import InputError
from bayes_sched.files import check_version, file_content, whole_file
from bayes_sched.model.protocol import LatencyModel, ModelFile, load_model_file, shipped_models
from bayes_sched.posterior.provenance import FORMAT_MARKER, FORMAT_NAME, FORMAT_VERSION, FitMetadata

GROUPS = ("posterior", "prior", "cells")
"""Groups that a file must hold."""

_ENGINE: Final = "h5netcdf"
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_COMPRESSION = {"zlib": True, "complevel": 4, "shuffle": True}


def write_fit(data: xr.DataTree, path: str | os.PathLike[str], *, attrs: Mapping[str, str | int]) -> None:
    """Write a fit to a file, atomically: whoever looks sees the file before or the file after."""
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
    """
    path = Path(path)
    head = file_content(
        path,
        such_as="posterior.nc",
        missing="fit_bayes.py writes results/NAME/posterior.nc",
        again="fit the trace again",
        size=len(_HDF5_MAGIC),
    )
    if head != _HDF5_MAGIC:
        raise InputError(
            f"{path}: not a saved fit (not a netCDF-4 file); give a posterior.nc made by fit_bayes.py"
        )
    try:
        with xr.open_datatree(path, engine=_ENGINE, decode_times=False, decode_timedelta=False) as opened:
            _check_format(path, opened.attrs)
            tree = opened.load()
    except InputError:
        raise
    except Exception as error:  # h5py, h5netcdf and xarray raise a dozen kinds on a damaged file
        text = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(
            f"{path}: the file is damaged, perhaps cut short; fit the trace again ({text})"
        ) from error
    _check_content(path, tree)
    return tree


def model_of(
    metadata: FitMetadata, *, model: str | os.PathLike[str] | ModelFile | None = None
) -> tuple[LatencyModel, tuple[str, ...]]:
    """Return the model that a fit was made with. A foreign model's file is run only where it is given."""
    identity = metadata.model
    # A file's word that its model is a shipped one counts only if there is such a model: a path would be run.
    if model is None and not (identity.shipped and identity.name in shipped_models()):
        raise InputError(
            f"made with the model file {identity.name}, which is not one of the project's own: "
            f"give that file as the model (model=...); it will be run"
        )
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
            kind = variable.dtype.kind
            is_text = kind in "OT" and all(isinstance(v, str) for v in variable.to_numpy().flat)
            if not is_text and kind not in "biufU":
                raise InputError(
                    f"{path}: {node.path}/{name} holds something else than numbers and text; not read"
                )
