"""The file of a fit."""

import errno
import json
import os
import pickle
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from bayes_sched.errors import InputError
from bayes_sched.model.protocol import load_model_file, models_folder
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.store import read_fit, write_fit
from tests.synthetic_fit import synthetic_fit, synthetic_metadata


@pytest.fixture(scope="module")
def fit() -> FittedModel:
    fit = synthetic_fit(draws=20)
    fit.data["cells"]["median_ms"].attrs["units"] = "milliseconds"  # which must not make it a time span
    return fit


@pytest.fixture(scope="module")
def whole(fit: FittedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fit") / "posterior.nc"
    fit.save(path)
    return path


@pytest.fixture
def saved(whole: Path, tmp_path: Path) -> Path:
    """A copy of the file, to be damaged."""
    return Path(shutil.copy(whole, tmp_path / "posterior.nc"))


def set_attr(path: Path, name: str, value: Any) -> None:
    with h5py.File(path, "a") as file:
        if value is None:
            del file.attrs[name]
        else:
            file.attrs[name] = value if isinstance(value, str | int) else json.dumps(value)


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as raised:
        FittedModel.load(path)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    return message


class TestRoundTrip:
    def test_a_fit_comes_back_identical_and_can_be_saved_again(
        self, fit: FittedModel, whole: Path, tmp_path: Path
    ) -> None:
        FittedModel.load(whole).save(tmp_path / "again.nc")
        for path in (whole, tmp_path / "again.nc"):
            loaded = FittedModel.load(path)
            assert loaded.metadata == fit.metadata
            assert loaded.load_warnings == ()
            assert set(loaded.data.children) == set(fit.data.children)
            for group, node in fit.data.children.items():
                assert node.to_dataset().identical(loaded.data[group].to_dataset()), group
            assert loaded.cells["median_ms"].dtype == np.float64

    def test_the_file_describes_itself_in_json(self, whole: Path) -> None:
        with h5py.File(whole) as file:
            assert file.attrs["bayes_sched_format"] == "fitted model"
            assert file.attrs["format_version"] == 1
            assert json.loads(file.attrs["labels"]) == {"gpu": "H100", "llm": "llama-3-8b"}
            assert json.loads(file.attrs["priors"])["P_max"] == {"low": 1.0, "high": 1000.0}

    def test_a_long_description_fits_into_the_file(self, fit: FittedModel, tmp_path: Path) -> None:
        metadata = synthetic_metadata(command="fit_bayes.py " + "trace.jsonl " * 20_000)
        FittedModel(data=fit.data, model=fit.model, metadata=metadata).save(tmp_path / "p.nc")
        assert FittedModel.load(tmp_path / "p.nc").metadata == metadata

    @pytest.mark.parametrize(("used", "expected"), [(990, None), (300, 300)])
    def test_a_file_of_before_thinning_was_kept_is_that_of_its_own_number_of_steps(
        self, saved: Path, used: int, expected: int | None
    ) -> None:
        for name in ("thinned_to", "prior_from"):
            set_attr(saved, name, None)
        set_attr(saved, "rows", {"read": 1000, "cleaned": 990, "used": used})
        metadata = FittedModel.load(saved).metadata
        assert (metadata.thinned_to, metadata.prior_from) == (expected, None)

    def test_no_pickle_is_ever_opened(
        self, fit: FittedModel, whole: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def forbidden(*_: object, **__: object) -> None:
            raise AssertionError

        for name in ("load", "loads", "Unpickler"):
            monkeypatch.setattr(pickle, name, forbidden)
        assert read_fit(whole)["posterior"].to_dataset().identical(fit.posterior)


class TestWriting:
    def test_metadata_that_json_cannot_say_is_refused_before_anything_is_written(
        self, tmp_path: Path
    ) -> None:
        fit = synthetic_fit(draws=20, timings_s={"total": float("nan")})
        with pytest.raises(InputError, match="timings_s cannot be written as JSON"):
            fit.save(tmp_path / "p.nc")
        assert list(tmp_path.iterdir()) == []

    def test_an_interrupted_save_leaves_the_earlier_file_intact(
        self, fit: FittedModel, saved: Path, monkeypatch: pytest.MonkeyPatch
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
        self, fit: FittedModel, saved: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        before = saved.read_bytes()

        def fail(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, call, fail)
        with pytest.raises(
            InputError, match=r"posterior.nc: cannot write the fit \(No space left on device\)"
        ):
            fit.save(saved)
        assert saved.read_bytes() == before
        assert list(saved.parent.iterdir()) == [saved]

    def test_a_place_that_cannot_be_written_is_reported(self, fit: FittedModel, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="cannot write the fit"):
            fit.save(tmp_path / "none" / "posterior.nc")
        with pytest.raises(InputError, match="is a folder"):
            fit.save(tmp_path)

    def test_others_may_read_what_the_umask_allows(self, whole: Path) -> None:
        umask = os.umask(0)
        os.umask(umask)
        assert stat.S_IMODE(whole.stat().st_mode) == 0o666 & ~umask


class TestRefusals:
    def test_what_is_no_file_is_refused_with_the_file_to_give(self, tmp_path: Path) -> None:
        missing = "there is no such file; fit_bayes.py writes results/NAME/posterior.nc"
        assert missing in refusal(tmp_path / "no.nc")
        folder = f"is a folder: give the file in it, such as {tmp_path / 'posterior.nc'}"
        assert folder in refusal(tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "the file is empty"),
            *(
                (content, "not a saved fit (not a netCDF-4 file)")
                for content in (b"CDF\x01" + bytes(100), b"\x80\x04\x95pickle", b'{"step": 1}\n')
            ),
        ],
    )
    def test_a_file_of_another_kind_is_refused(self, tmp_path: Path, content: bytes, message: str) -> None:
        (tmp_path / "p.nc").write_bytes(content)
        assert message in refusal(tmp_path / "p.nc")

    def test_another_netcdf_file_is_refused(self, tmp_path: Path) -> None:
        xr.Dataset({"x": ("t", np.arange(3.0))}).to_netcdf(tmp_path / "p.nc", engine="h5netcdf")
        assert "a netCDF file, but no saved fit" in refusal(tmp_path / "p.nc")

    @pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
    def test_a_file_that_was_cut_short_is_refused(self, saved: Path, share: float) -> None:
        content = saved.read_bytes()
        saved.write_bytes(content[: int(share * len(content))])
        assert "the file is damaged, perhaps cut short; fit the trace again" in refusal(saved)

    def test_flipped_bytes_never_escape_as_another_error(self, fit: FittedModel, saved: Path) -> None:
        groups = {name: fit.data[name].to_dataset() for name in ("posterior", "prior", "cells")}
        small = xr.DataTree.from_dict({name: group[[*group][:2]] for name, group in groups.items()})
        write_fit(small, saved, attrs=fit.metadata.to_attrs())
        content, rng = bytearray(saved.read_bytes()), np.random.default_rng(0)
        for start in rng.integers(8, len(content) - 200, 12):
            damaged = content.copy()
            damaged[start : start + 200] = rng.bytes(200)
            saved.write_bytes(damaged)
            try:
                read_fit(saved)
            except InputError:
                continue

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            (
                "format_version",
                2,
                "later bayes-sched (format 2; this one reads up to 1): upgrade",
            ),
            ("format_version", None, "no format version"),
            ("format_version", "one", "no format version"),
            ("priors", None, "no priors"),
            ("priors", "{", "priors is not JSON"),
            ("rows", [1, 2], "is damaged"),
            ("model", {"name": "saturation"}, "is damaged"),
        ],
    )
    def test_a_description_that_is_damaged_or_of_a_later_format_is_refused(
        self, saved: Path, name: str, value: Any, message: str
    ) -> None:
        set_attr(saved, name, value)
        assert message in refusal(saved)

    @pytest.mark.parametrize(
        ("missing", "message"),
        [
            *((group, f"no group {group}") for group in ("posterior", "prior", "cells")),
            ("posterior/k_S", "has no k_S: another model made it"),
        ],
    )
    def test_a_missing_group_or_parameter_is_refused(self, saved: Path, missing: str, message: str) -> None:
        with h5py.File(saved, "a") as file:
            del file[missing]
        assert message in refusal(saved)

    @pytest.mark.parametrize("kind", ["opaque", "compound", "vlen"])
    def test_objects_in_a_file_are_refused_and_never_run(self, saved: Path, kind: str) -> None:
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


RUN = "\nraise SystemExit('it was run')\n"


@pytest.fixture
def foreign(tmp_path: Path) -> Callable[[str], Path]:
    """A researcher's copy of the shipped model."""

    def write(extra: str) -> Path:
        path = tmp_path / "my_model.py"
        path.write_text((models_folder() / "saturation.py").read_text(encoding="utf-8") + extra, "utf-8")
        return path

    return write


class TestModel:
    @pytest.mark.parametrize("shipped", [True, False])
    def test_a_foreign_model_is_not_run_unless_it_is_given(
        self, saved: Path, foreign: Callable[[str], Path], shipped: bool
    ) -> None:
        identity = {"name": str(foreign(RUN)), "sha256": "1" * 64, "shipped": shipped}
        set_attr(saved, "model", identity)
        assert "which is not one of the project's own: give that file as the model" in refusal(saved)

    def test_a_foreign_model_that_is_given_is_used(self, saved: Path, foreign: Callable[[str], Path]) -> None:
        file = foreign("")
        loaded = load_model_file(file)
        set_attr(saved, "model", {"name": "my_model.py", "sha256": loaded.sha256, "shipped": False})
        for given in (file, loaded):
            assert FittedModel.load(saved, model=given).load_warnings == ()
        (warning,) = FittedModel.load(saved, model=foreign("\n# changed\n")).load_warnings
        assert "not the file that this fit was made with" in warning

    def test_a_shipped_model_that_changed_is_a_warning_and_no_failure(self, saved: Path) -> None:
        set_attr(saved, "model", {"name": "saturation", "sha256": "1" * 64, "shipped": True})
        loaded = FittedModel.load(saved)
        assert "not the file that this fit was made with" in loaded.load_warnings[0]
        assert loaded.warnings == (*loaded.metadata.warnings, *loaded.load_warnings)
