"""The file of a fit."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from bayes_sched.errors import InputError
from bayes_sched.model.protocol import models_folder
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.store import read_fit
from tests.synthetic_fit import synthetic_fit, synthetic_metadata


@pytest.fixture(scope="module")
def fit() -> FittedModel:
    return synthetic_fit(draws=60)


@pytest.fixture
def saved(fit: FittedModel, tmp_path: Path) -> Path:
    path = tmp_path / "posterior.nc"
    fit.save(path)
    return path


def set_attr(path: Path, name: str, value: Any) -> None:
    with h5py.File(path, "a") as file:
        if value is None:
            del file.attrs[name]
        else:
            file.attrs[name] = value


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as raised:
        FittedModel.load(path)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_a_fit_comes_back_identical(fit: FittedModel, saved: Path) -> None:
    loaded = FittedModel.load(saved)
    assert loaded.metadata == fit.metadata
    assert loaded.load_warnings == ()
    assert set(loaded.data.children) == set(fit.data.children)
    for group, node in fit.data.children.items():
        assert node.to_dataset().identical(loaded.data[group].to_dataset()), group


def test_a_loaded_fit_can_be_saved_again(fit: FittedModel, saved: Path, tmp_path: Path) -> None:
    FittedModel.load(saved).save(tmp_path / "again.nc")
    again = FittedModel.load(tmp_path / "again.nc")
    assert again.posterior.identical(fit.posterior)
    assert again.metadata == fit.metadata


def test_the_file_describes_itself_in_json(fit: FittedModel, saved: Path) -> None:
    with h5py.File(saved) as file:
        assert file.attrs["bayes_sched_format"] == "fitted model"
        assert file.attrs["format_version"] == 1
        assert json.loads(file.attrs["labels"]) == {"gpu": "H100", "llm": "llama-3-8b"}
        assert json.loads(file.attrs["priors"])["P_max"] == {"low": 1.0, "high": 1000.0}


def test_units_of_time_do_not_turn_numbers_into_time_spans(tmp_path: Path) -> None:
    fit = synthetic_fit(draws=20)
    fit.data["cells"]["median_ms"].attrs["units"] = "milliseconds"
    fit.save(tmp_path / "p.nc")
    assert FittedModel.load(tmp_path / "p.nc").cells["median_ms"].dtype == np.float64


def test_a_long_description_fits_into_the_file(tmp_path: Path) -> None:
    metadata = synthetic_metadata(command="fit_bayes.py " + "trace.jsonl " * 20_000)
    fit = synthetic_fit(draws=20)
    FittedModel(data=fit.data, model=fit.model, metadata=metadata).save(tmp_path / "p.nc")
    assert FittedModel.load(tmp_path / "p.nc").metadata == metadata


def test_metadata_that_json_cannot_say_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    fit = synthetic_fit(draws=20, timings_s={"total": float("nan")})
    with pytest.raises(InputError, match="timings_s cannot be written as JSON"):
        fit.save(tmp_path / "p.nc")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_save_leaves_the_earlier_file_intact(
    fit: FittedModel, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def interrupted(self: xr.DataTree, path: Path, **options: Any) -> None:
        Path(path).write_bytes(before[:1000])
        raise KeyboardInterrupt

    monkeypatch.setattr(xr.DataTree, "to_netcdf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit.save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_reported_and_leaves_the_earlier_file_intact(
    fit: FittedModel, saved: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = saved.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(InputError, match=r"posterior.nc: cannot write the fit \(No space left on device\)"):
        fit.save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_missing_folder_is_reported(fit: FittedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write the fit"):
        fit.save(tmp_path / "none" / "posterior.nc")


def test_a_folder_is_not_overwritten(fit: FittedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        fit.save(tmp_path)


def test_others_may_read_what_the_umask_allows(saved: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(saved.stat().st_mode) == 0o666 & ~umask


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "there is no such file; fit_bayes.py writes results/NAME/posterior.nc" in refusal(
        tmp_path / "no.nc"
    )


def test_a_folder_is_refused_with_the_file_to_give(tmp_path: Path) -> None:
    assert f"is a folder: give the file in it, such as {tmp_path / 'posterior.nc'}" in refusal(tmp_path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.nc").write_bytes(b"")
    assert "the file is empty" in refusal(tmp_path / "p.nc")


@pytest.mark.parametrize("content", [b"CDF\x01" + bytes(100), b"\x80\x04\x95pickle", b'{"step": 1}\n'])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.nc").write_bytes(content)
    assert "not a saved fit (not a netCDF-4 file)" in refusal(tmp_path / "p.nc")


def test_another_netcdf_file_is_refused(tmp_path: Path) -> None:
    xr.Dataset({"x": ("t", np.arange(3.0))}).to_netcdf(tmp_path / "p.nc", engine="h5netcdf")
    assert "a netCDF file, but no saved fit" in refusal(tmp_path / "p.nc")


def test_a_later_format_is_refused_with_what_to_do(saved: Path) -> None:
    set_attr(saved, "format_version", 2)
    assert "written by a later bayes-sched (format 2; this one reads up to 1): upgrade" in refusal(saved)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_short_is_refused(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    assert "the file is damaged, perhaps cut short; fit the trace again" in refusal(saved)


def test_flipped_bytes_never_escape_as_another_error(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    rng = np.random.default_rng(0)
    for start in rng.integers(8, len(content) - 200, 12):
        damaged = content.copy()
        damaged[start : start + 200] = rng.bytes(200)
        saved.write_bytes(damaged)
        try:
            FittedModel.load(saved)
        except InputError:
            continue


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format_version", None, "no format version"),
        ("format_version", "one", "no format version"),
        ("priors", None, "no priors"),
        ("priors", "{", "priors is not JSON"),
        ("rows", "[1, 2]", "is damaged"),
        ("model", '{"name": "saturation"}', "is damaged"),
    ],
)
def test_a_damaged_description_is_refused(saved: Path, name: str, value: Any, message: str) -> None:
    set_attr(saved, name, value)
    assert message in refusal(saved)


@pytest.mark.parametrize("group", ["posterior", "prior", "cells"])
def test_a_missing_group_is_refused(saved: Path, group: str) -> None:
    with h5py.File(saved, "a") as file:
        del file[group]
    assert f"no group {group}" in refusal(saved)


def test_a_missing_parameter_is_refused(saved: Path) -> None:
    with h5py.File(saved, "a") as file:
        del file["posterior/k_S"]
    assert "has no k_S: another model made it" in refusal(saved)


@pytest.mark.parametrize("kind", ["opaque", "compound", "vlen"])
def test_objects_in_a_file_are_refused_and_never_run(saved: Path, kind: str) -> None:
    with h5py.File(saved, "a") as file:
        if kind == "opaque":
            file["cells"].create_dataset("payload", data=np.void(b"\x80\x04cos\nsystem\n(S'true'\ntR."))
        elif kind == "compound":
            file["cells"].create_dataset("payload", data=np.zeros(2, dtype=[("a", "f8"), ("b", "i4")]))
        else:
            payload = file["cells"].create_dataset("payload", (1,), dtype=h5py.vlen_dtype(np.uint8))
            payload[0] = np.frombuffer(b"\x80\x04cos", dtype=np.uint8)
    message = refusal(saved)
    assert "holds something else than numbers and text" in message or "the file is damaged" in message


def test_no_pickle_is_ever_opened(fit: FittedModel, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    assert read_fit(saved)["posterior"].to_dataset().identical(fit.posterior)


def foreign(tmp_path: Path, *, extra: str = "") -> Path:
    path = tmp_path / "my_model.py"
    path.write_text((models_folder() / "saturation.py").read_text(encoding="utf-8") + extra, encoding="utf-8")
    return path


def test_a_foreign_model_is_not_run_unless_it_is_given(tmp_path: Path) -> None:
    file = foreign(tmp_path, extra="\nraise SystemExit('it was run')\n")
    fit = synthetic_fit(draws=20)
    identity = {"name": str(file), "sha256": "1" * 64, "shipped": False}
    fit.save(tmp_path / "p.nc")
    set_attr(tmp_path / "p.nc", "model", json.dumps(identity))
    assert "which is not one of the project's own: give that file with --model" in refusal(tmp_path / "p.nc")


def test_a_foreign_model_that_is_given_is_used(tmp_path: Path, saved: Path) -> None:
    from bayes_sched.model.protocol import load_model_file

    file = foreign(tmp_path)
    identity = {"name": "my_model.py", "sha256": load_model_file(file).sha256, "shipped": False}
    set_attr(saved, "model", json.dumps(identity))
    assert FittedModel.load(saved, model=file).load_warnings == ()
    assert FittedModel.load(saved, model=load_model_file(file)).load_warnings == ()
    other = foreign(tmp_path, extra="\n# changed\n")
    assert "not the file that this fit was made with" in FittedModel.load(saved, model=other).warnings[-1]


def test_a_shipped_model_that_changed_is_a_warning_and_no_failure(saved: Path) -> None:
    set_attr(saved, "model", json.dumps({"name": "saturation", "sha256": "1" * 64, "shipped": True}))
    loaded = FittedModel.load(saved)
    assert "not the file that this fit was made with" in loaded.load_warnings[0]
    assert loaded.warnings == (*loaded.metadata.warnings, *loaded.load_warnings)


def test_a_file_cannot_name_a_path_as_a_shipped_model(tmp_path: Path, saved: Path) -> None:
    file = foreign(tmp_path, extra="\nraise SystemExit('it was run')\n")
    set_attr(saved, "model", json.dumps({"name": str(file), "sha256": "1" * 64, "shipped": True}))
    assert "which is not one of the project's own" in refusal(saved)
