"""What a model is made of: the equation, priors as data, the protocol and its files."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytensor.tensor as pt
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import lognorm

from bayes_sched.errors import InputError
from bayes_sched.model.equation import PARAMETERS, inverse_saturation, latency_ms
from bayes_sched.model.priors import Prior, Priors, read_prior_overrides
from bayes_sched.model.protocol import (
    LatencyModel,
    all_parameters,
    load_model,
    load_model_file,
    models_folder,
    shipped_models,
)
from bayes_sched.posterior.fitted import FittedModel
from tests.conftest import ROOT
from tests.simulation import INTERPRETED
from tests.synthetic_fit import TRUTH

VALUES = {p.name: TRUTH[p.name] for p in PARAMETERS}
DOCUMENTED = {
    "P_max": (1.0, 1000.0, "tokens/ms"),
    "k_B": (0.01, 1.0, "1/request"),
    "k_S": (0.001, 0.1, "1/token"),
    "w_0": (0.1, 100.0, "effective tokens"),
    "w_1": (0.001, 1.0, "effective tokens/token"),
    "tau_0": (0.05, 50.0, "ms"),
    "tau_B": (0.005, 5.0, "ms/request"),
    "tau_S": (0.0001, 0.1, "ms/token"),
}
FROM_ZERO = {"w_0", "tau_0", "tau_B", "tau_S"}
PRIORS = Priors.from_parameters(PARAMETERS)
SHIPPED = models_folder() / "saturation.py"


def test_it_is_the_documented_formula() -> None:
    saturation = (1 - np.exp(-0.1 * 8)) * (1 - np.exp(-0.01 * 512))
    expected = 2.0 + (3.0 + 0.4 * 512) / (40.0 * saturation) + 0.05 * 8 + 0.004 * 512
    assert latency_ms(8, 512, **VALUES) == pytest.approx(expected, rel=1e-14)


def test_the_parameters_are_the_documented_ones_with_their_ranges() -> None:
    assert {p.name: (p.low, p.high, p.unit) for p in PARAMETERS} == {
        name: (0.0 if name in FROM_ZERO else low, high, unit)
        for name, (low, high, unit) in DOCUMENTED.items()
    }
    assert all(p.meaning and p.symbol for p in PARAMETERS)
    assert len({p.symbol for p in PARAMETERS}) == len(PARAMETERS)


@pytest.mark.parametrize("rate", [1e-8, 1e-12, 1e-15])
def test_tiny_rates_keep_their_relative_accuracy(rate: float) -> None:
    # 1 - e^-x = x (1 - x/2 + ...): the next term is below 1e-8 here; `1 - exp` would lose all digits.
    assert inverse_saturation(1, 1, k_B=rate, k_S=rate) == pytest.approx(rate**-2, rel=2e-8)


def test_xarray_dims_broadcast_by_name_and_pytensor_gives_the_value_of_numpy() -> None:
    draws = {name: xr.DataArray([value, 2 * value], dims="draw") for name, value in VALUES.items()}
    batch_size = xr.DataArray([1, 2, 4], dims="step")
    result = latency_ms(batch_size, 100 * batch_size, **draws)
    assert result.sizes == {"draw": 2, "step": 3}
    expected = latency_ms(4, 400, **{name: 2 * value for name, value in VALUES.items()})
    assert result.isel(draw=1, step=2).item() == pytest.approx(expected, rel=1e-14)
    symbols = {name: pt.as_tensor_variable(value) for name, value in VALUES.items()}
    value = latency_ms(pt.as_tensor_variable(3.0), pt.as_tensor_variable(77.0), **symbols)
    assert value.eval(mode=INTERPRETED) == pytest.approx(latency_ms(3.0, 77.0, **VALUES), rel=1e-13)


@given(
    batch_size=st.integers(1, 1000), extra=st.integers(0, 8000), factor=st.lists(st.floats(-2, 2), min_size=8)
)
def test_latency_grows_with_tokens_up_to_the_limit_of_rounding(
    batch_size: int, extra: int, factor: list[float]
) -> None:
    # S / (1 - exp(-k S)) and S alone grow; 1 / (1 - exp(-k S)) falls, so w_0 is left out.
    values: dict[str, Any] = {
        name: value * 10**exponent for (name, value), exponent in zip(VALUES.items(), factor, strict=False)
    }
    values["w_0"] = 0.0
    less, more = (latency_ms(batch_size, batch_size + extra + further, **values) for further in (0, 1))
    assert more >= less * (1 - 1e-12)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_documented_range_holds_the_central_95_percent(name: str) -> None:
    low, high, _ = DOCUMENTED[name]
    frozen = lognorm(s=PRIORS[name].sigma, scale=np.exp(PRIORS[name].mu))
    assert frozen.ppf([0.025, 0.5, 0.975]) == pytest.approx([low, np.sqrt(low * high), high], rel=1e-9)
    assert PRIORS[name].median == pytest.approx(np.sqrt(low * high))


@pytest.mark.parametrize(
    "bounds", [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (0.0, 1.0), (1.0, np.inf), (np.nan, 1.0)]
)
def test_a_prior_without_a_proper_range_is_refused_with_its_numbers(bounds: tuple[float, float]) -> None:
    with pytest.raises(InputError, match=rf"prior of k_B: low = {bounds[0]:g} and high = {bounds[1]:g}"):
        Prior("k_B", *bounds)


def test_the_table_is_in_the_documented_order_survives_json_and_reads_as_sentences() -> None:
    assert list(PRIORS) == list(DOCUMENTED)
    again = Priors.from_dict(json.loads(json.dumps(PRIORS.to_dict())))
    assert again == PRIORS
    assert hash(again) == hash(PRIORS)
    assert repr(Prior("k_B", 0.01, 1.0)) == "LogNormal(k_B: 95 % in 0.01 - 1, median 0.1)"
    assert repr(PRIORS).count("\n") == 9


def test_an_override_changes_its_row_and_no_other_and_may_be_a_toml_file(tmp_path: Path) -> None:
    changed = PRIORS.override({"tau_0": {"low": 1, "high": 4.0}})
    assert dict(changed) == dict(PRIORS) | {"tau_0": Prior("tau_0", 1.0, 4.0)}
    assert list(changed) == list(PRIORS)
    assert changed != PRIORS
    path = tmp_path / "priors.toml"
    path.write_text("# from zero: three decades\n[tau_B]\nlow = 0\nhigh = 2.0\n", encoding="utf-8")
    assert PRIORS.override(read_prior_overrides(path))["tau_B"] == Prior("tau_B", 0.002, 2.0)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"tau_X": {"low": 1.0, "high": 2.0}}, "tau_X: no such parameter; the model has P_max, k_B"),
        ({"k_B": {"low": 1.0}}, "k_B: write it as a table with exactly the numbers low and high"),
        ({"k_B": {"low": 1.0, "high": 2.0, "mid": 1.5}}, "k_B: write it as a table"),
        ({"k_B": 3.0}, "k_B: write it as a table"),
        ({"k_B": {"low": "1", "high": 2.0}}, "k_B: low must be a number, found '1'"),
        ({"k_B": {"low": True, "high": 2.0}}, "k_B: low must be a number, found True"),
        ({"k_B": {"low": 2.0, "high": 1.0}}, "k_B: low = 2 and high = 1 must be finite"),
    ],
)
def test_a_wrong_override_is_refused_in_one_line(table: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        PRIORS.override(table)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[k_S\nlow = 1", r"priors\.toml: not a TOML file .*examples/priors\.toml"),
        (b"\xff\xfe\x00", r"priors\.toml: not a TOML file"),
        (None, r"priors\.toml: cannot read the prior overrides \(No such file"),
    ],
)
def test_a_file_that_is_not_toml_or_missing_is_refused_by_name(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "priors.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prior_overrides(path)
    with pytest.raises(InputError, match="cannot read the prior overrides"):
        read_prior_overrides(tmp_path)


def test_a_shipped_model_is_found_by_name_whatever_lies_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "saturation").write_text("raise RuntimeError", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    loaded = load_model_file("saturation")
    assert isinstance(loaded.model, LatencyModel)
    assert (loaded.model.name, loaded.shipped, loaded.path) == ("saturation", True, SHIPPED)
    assert loaded.sha256 == hashlib.sha256(SHIPPED.read_bytes()).hexdigest()


def test_a_copy_of_a_model_file_is_loaded_by_path_as_a_foreign_one(tmp_path: Path) -> None:
    copy = tmp_path / "saturation.py"
    copy.write_bytes(SHIPPED.read_bytes().replace(b'name = "saturation"', b'name = "mine"'))
    loaded = load_model_file(copy)
    assert not loaded.shipped
    assert loaded.model.name == "mine"
    assert loaded.sha256 != load_model_file("saturation").sha256
    assert load_model(str(copy)).title == loaded.model.title


@pytest.mark.parametrize("name", shipped_models())
def test_fits_made_before_the_imports_of_a_shipped_model_changed_are_of_the_same_model(name: str) -> None:
    before = {
        "saturation": "2ef2643c0c556737a6b3751a5f2db13a82794c354e8a99db2f5315b25365f5f6",
        "saturation_context": "04e094ba925ce9d92081bd845c0b8d4d4ae0bcab0906c92199e66db5a35d1418",
        "saturation_kv_cache": "a815aaa72644d4fef79b7511a3b0058797c459ac6adc77c6c1b831ff7686dc47",
        "saturation_staircase": "d94ccd83912be8a65141ff45db08ce8f5cb44dc40cb30250eb7287ec53bc40e0",
    }
    loaded = load_model_file(name)
    assert loaded.made(loaded.sha256)
    assert loaded.made(before.pop(name, loaded.sha256))  # of models made since then there are none
    assert not any(map(loaded.made, [*before.values(), "0" * 64]))


def test_the_shipped_results_load_without_a_false_warning() -> None:
    fits = sorted((ROOT / "results").glob("*/posterior.nc"))
    assert fits
    assert FittedModel.load(fits[0]).load_warnings == ()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise RuntimeError('boom')", r"does not run \(RuntimeError: boom\)"),
        ("def f(:\n", r"does not run \(SyntaxError"),
        ("import no_such_library_at_all", r"does not run \(ModuleNotFoundError"),
        ("x = 1", r"MODEL must fulfil .*missing: build, columns, combinations, coordinates, latency, name"),
        ("class M:\n  name = title = 'm'\nMODEL = M()", "latency, noise_parameters, .*s, scale$"),
    ],
)
def test_a_file_that_is_no_model_is_refused_with_the_reason(
    tmp_path: Path, source: str, message: str
) -> None:
    path = tmp_path / "broken.py"
    path.write_text(source, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        load_model_file(path)
    assert str(path) in str(caught.value)


def test_a_file_of_another_kind_a_folder_or_an_unknown_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    path.write_text("MODEL = 1", encoding="utf-8")
    with pytest.raises(InputError, match=r"not a Python file; a model is a \.py file"):
        load_model_file(path)
    for name in (tmp_path, "satuation"):
        with pytest.raises(InputError, match=r": no such model; give one of .*saturation.* or the path"):
            load_model_file(name)


def test_all_parameters_are_the_documented_and_those_of_a_known_noise() -> None:
    model = load_model("saturation")
    names = [p.name for p in all_parameters(model, "proportional")]
    assert names == [*DOCUMENTED, "nu", "sigma_rel", "sigma_floor"]
    assert [p.name for p in all_parameters(model, "constant")] == [*DOCUMENTED, "nu", "sigma"]
    with pytest.raises(InputError, match=r"noise 'loud': the model saturation has proportional, constant"):
        all_parameters(model, "loud")
