"""The file of the documented least-squares estimator."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bayes_sched import InputError, ThroughputSaturationModel
from tests.baseline_server import (
    TRUTH,
    predicted_ms,
    simulated,
)


@pytest.fixture(scope="module")
def fitted() -> ThroughputSaturationModel:
    return ThroughputSaturationModel().fit(simulated())


def test_a_saved_model_predicts_the_same_to_the_last_digit(tmp_path: Path) -> None:
    steps = simulated(tau_B=0.0)
    model = ThroughputSaturationModel(loss="huber", max_latency_ms=900.0).fit(steps)
    model.save(tmp_path / "baseline.json")
    again = ThroughputSaturationModel.load(tmp_path / "baseline.json")
    np.testing.assert_array_equal(predicted_ms(again, steps), predicted_ms(model, steps))
    assert repr(again) == repr(model)
    assert again.at_bound_ == model.at_bound_
    assert again.metrics_ == model.metrics_
    assert again.warnings_ == model.warnings_
    assert again.huber_ms_ == model.huber_ms_
    np.testing.assert_array_equal(again.covariance_, model.covariance_)
    np.testing.assert_allclose(again.region_.corners, model.region_.corners)
    pd.testing.assert_frame_equal(again.parameter_table(), model.parameter_table())


def test_a_failed_save_leaves_the_file_before(
    fitted: ThroughputSaturationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "baseline.json"
    fitted.save(path)
    before = path.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(InputError, match="No space left"):
        fitted.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["baseline.json"]


def _changed(**changes: Any) -> Any:
    return lambda saved: json.dumps(saved | changes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda saved: "", "the file is empty"),
        (lambda saved: json.dumps(saved)[:400], "damaged, perhaps cut short"),
        (lambda saved: "T = 4 S", "not JSON"),
        (lambda saved: "[1, 2]", "a JSON file, but no saved baseline"),
        (lambda saved: json.dumps({"format": "something else"}), "no saved baseline"),
        (_changed(version=99), "upgrade with pip"),
        (_changed(version="one"), "no format version"),
        (_changed(parameters={"P_max": 1.0}), "parameters are not"),
        (_changed(parameters=TRUTH | {"k_B": 0.0}), "parameters: k_B is 0"),
        (_changed(parameters=TRUTH | {"k_B": -1.0}), "parameters: k_B is -1"),
        (_changed(parameters=TRUTH | {"k_B": "fast"}), "damaged"),
        (_changed(settings={"loss": "cubic"}), "damaged"),
        (_changed(covariance=[[1.0]]), "the covariance is not 10 by 10"),
        (_changed(scores={"r2": 1.0}), "the scores are not those of a fit"),
        (_changed(region=[]), "the region makes no sense"),
        (_changed(at_bound={"q": "0"}), "at_bound names"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_in_one_line(
    fitted: ThroughputSaturationModel, tmp_path: Path, damage: Any, message: str
) -> None:
    path = tmp_path / "baseline.json"
    fitted.save(path)
    path.write_text(damage(json.loads(path.read_text("utf-8"))), encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        ThroughputSaturationModel.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_place_that_holds_no_file_is_refused(fitted: ThroughputSaturationModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        ThroughputSaturationModel.load(tmp_path / "none.json")
    with pytest.raises(InputError, match="is a folder"):
        ThroughputSaturationModel.load(tmp_path)
    with pytest.raises(InputError, match="is a folder"):
        fitted.save(tmp_path)
    with pytest.raises(InputError, match="cannot write"):
        fitted.save(tmp_path / "missing" / "baseline.json")
