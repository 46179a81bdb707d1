"""A compiled predictor as one small file: numpy arrays and JSON, written whole or not at all."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bayes_sched.errors import InputError
from bayes_sched.file_version import check_version
from bayes_sched.predictor.provenance import Provenance
from bayes_sched.predictor.tables import Tables
from bayes_sched.region import Region
from bayes_sched.whole_file import whole_file

FORMAT_NAME = "bayes-sched compiled predictor"
FORMAT_VERSION = 1
"""Raised whenever a reader of the version before could misread a file."""

_SHAPES = ("positions", "logits")  # kept in single precision: most of the file, and smooth
_ZIP_MAGIC = b"PK\x03\x04"
_MAKE_ONE = "give a predictor.npz made by compile_predictor.py"


def write(path: str | os.PathLike[str], tables: Tables, region: Region, provenance: Provenance) -> None:
    """Write a predictor's parts to a file, atomically; an existing file is replaced.

    Raises
    ------
    InputError
        The place cannot be written.
    """
    path = Path(path)
    about = {"format": FORMAT_NAME, "version": FORMAT_VERSION, "fit": json.loads(provenance.to_json())}
    arrays: dict[str, NDArray[np.generic]] = {name: getattr(tables, name) for name in tables.names()}
    arrays |= {name: arrays[name].astype(np.float32) for name in _SHAPES}
    arrays["region_corners"], arrays["region_equations"] = region.corners, region.equations
    arrays["about"] = np.frombuffer(json.dumps(about, ensure_ascii=False).encode(), dtype=np.uint8)
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    with whole_file(path, what="the predictor") as temporary:
        temporary.write_bytes(content.getvalue())


def read(path: str | os.PathLike[str]) -> tuple[Tables, Region, Provenance]:
    """Read what :func:`write` wrote. Nothing in the file is executed.

    Raises
    ------
    InputError
        The file is missing, no predictor, damaged, or of a later format.
    """
    path = Path(path)
    content = _content(path)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            if "about" not in archive:
                raise InputError(f"{path}: an archive of arrays, but no compiled predictor; {_MAKE_ONE}")
            about = json.loads(archive["about"].tobytes())
            _check_format(path, about)
            tables = Tables(
                **{name: archive[name].astype(np.float64, casting="safe") for name in Tables.names()}
            )
            region = Region(archive["region_corners"], archive["region_equations"])
            provenance = Provenance.from_dict(about["fit"])
        problem = tables.problem() or _region_problem(region)
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise half a dozen kinds on a damaged file
        raise InputError(f"{path}: the file is damaged, perhaps cut short; compile the fit again") from error
    if problem:
        raise InputError(f"{path}: the file is damaged ({problem}); compile the fit again")
    return tables, region, provenance


def _content(path: Path) -> bytes:
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the file in it, such as {path / 'predictor.npz'}")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; compile_predictor.py writes it") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not content:
        raise InputError(f"{path}: the file is empty; compile the fit again")
    if not content.startswith(_ZIP_MAGIC):
        raise InputError(f"{path}: not a compiled predictor; {_MAKE_ONE}")
    return content


def _check_format(path: Path, about: object) -> None:
    if not isinstance(about, dict) or about.get("format") != FORMAT_NAME:
        raise InputError(f"{path}: an archive of arrays, but no compiled predictor; {_MAKE_ONE}")
    check_version(path, about.get("version"), known=FORMAT_VERSION, again="compile the fit again")


def _region_problem(region: Region) -> str:
    corners, equations = region.corners, region.equations
    is_fine = corners.ndim == 2 and corners.shape[1:] == (2,) and len(corners) >= 1
    is_fine = is_fine and equations.ndim == 2 and equations.shape[1:] == (3,)
    is_fine = is_fine and bool(np.isfinite(corners).all() and np.isfinite(equations).all())
    return "" if is_fine else "the region makes no sense"
