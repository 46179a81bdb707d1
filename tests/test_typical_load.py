"""Steps of requests and tokens alone, completed by what is typical of a trace, and never unasked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from bayes_sched.errors import InputError
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.typical_load import TypicalLoad, complete
from bayes_sched.steps import steps_arrays, steps_grid
from tests.richer_fit import STEPS, richer_fit
from tests.synthetic_fit import synthetic_fit

TYPICAL = TypicalLoad(context_per_decode=1000.0, cached_per_chunk=300.0, kv_cache_usage_per_request=0.02)
OWN = ("num_prefill_reqs", "context_tokens", "prefill_pairs", "kv_cache_usage")
COLUMNS = ("batch_size", "total_tokens", *OWN)


@pytest.fixture(scope="module")
def fit() -> FittedModel:
    return richer_fit("saturation_context")


def test_a_step_with_more_tokens_than_requests_holds_one_typical_chunk() -> None:
    steps = complete(steps_arrays([4, 4], [4, 103]), columns=COLUMNS, typical=TYPICAL, model="m")
    assert steps["num_prefill_reqs"].to_numpy().tolist() == [0.0, 1.0]
    assert steps["context_tokens"].to_numpy().tolist() == [4000.0, 3300.0]
    chunk = 103 - 4 + 1
    assert steps["prefill_pairs"].to_numpy().tolist() == [0.0, chunk * 300.0 + chunk * (chunk + 1) / 2]
    assert steps["kv_cache_usage"].to_numpy() == pytest.approx([0.08, 0.08])


def test_columns_that_are_given_are_kept_and_used() -> None:
    steps = pd.DataFrame({"batch_size": [4], "total_tokens": [102], "num_prefill_reqs": [2]})
    whole = complete(steps, columns=COLUMNS, typical=TYPICAL, model="m")
    assert float(whole["num_prefill_reqs"][0]) == 2.0
    assert float(whole["context_tokens"][0]) == 2 * 1000.0 + 2 * 300.0
    assert float(whole["prefill_pairs"][0]) == 2 * (50 * 300.0 + 50 * 51 / 2)


def test_a_grid_keeps_its_dims_and_what_is_possible() -> None:
    grid = complete(
        steps_grid(batch_size=[1, 8], total_tokens=[4, 8, 64]), columns=COLUMNS, typical=TYPICAL, model="m"
    )
    assert dict(grid["prefill_pairs"].sizes) == {"batch_size": 2, "total_tokens": 3}
    assert grid["possible"].sel(batch_size=8).to_numpy().tolist() == [False, True, True]
    assert bool((grid["prefill_pairs"] >= 0.0).all())


def test_what_is_typical_is_the_median_of_the_trace() -> None:
    steps = pd.DataFrame(
        {
            "batch_size": [2, 4, 3, 3],
            "total_tokens": [2, 4, 102, 202],
            "num_prefill_reqs": [0, 0, 1, 1],
            "context_tokens": [200, 1200, 900, 900],
            "prefill_pairs": [0, 0, 100 * 50 + 5050, 200 * 150 + 20100],
            "kv_cache_usage": [0.2, 0.4, 0.3, 0.3],
        }
    )
    typical = TypicalLoad.of(steps)
    assert typical.context_per_decode == 200.0
    assert typical.cached_per_chunk == pytest.approx(100.0)
    assert typical.kv_cache_usage_per_request == pytest.approx(0.1)


def test_a_trace_says_what_it_can_of_what_is_typical() -> None:
    decode = STEPS[STEPS["num_prefill_reqs"] == 0]
    prefill = STEPS[STEPS["num_prefill_reqs"] > 0]
    assert TypicalLoad.of(decode).cached_per_chunk == 0.0
    assert (TypicalLoad.of(prefill).context_per_decode or 0.0) == pytest.approx(2250.0, rel=0.15)
    assert TypicalLoad.of(STEPS.drop(columns="prefill_pairs")) == TypicalLoad()
    assert TypicalLoad.of(STEPS.assign(context_tokens=np.nan)) == TypicalLoad()


def test_what_is_typical_survives_the_file(tmp_path: Path, fit: FittedModel) -> None:
    fit.save(tmp_path / "posterior.nc")
    loaded = FittedModel.load(tmp_path / "posterior.nc")
    assert loaded.typical == fit.typical == TypicalLoad.of(STEPS)


def test_a_fit_of_requests_and_tokens_needs_nothing_typical() -> None:
    fit = synthetic_fit()
    assert fit.typical == TypicalLoad()
    steps = steps_arrays([2], [9])
    xr.testing.assert_identical(fit.completed(steps), steps)
    assert fit.typical.text(fit.model.columns) == ""


def test_some_fits_cannot_complete_steps(fit: FittedModel) -> None:
    steps = steps_arrays([2], [9])
    assert fit.predictive_band(fit.completed(steps))["median"].item() > 0.0
    groups = {f"/{key}": node.to_dataset() for key, node in fit.data.children.items() if key != "typical"}
    bare = FittedModel(data=xr.DataTree.from_dict(groups), model=fit.model, metadata=fit.metadata)
    with pytest.raises(InputError, match="does not keep what is typical of its trace: fit the trace again"):
        bare.completed(steps)
    with pytest.raises(InputError, match=r"the model m needs weather of every step.*with every column"):
        complete(steps, columns=(*COLUMNS, "weather"), typical=TYPICAL, model="m")


def test_the_sentence_names_the_numbers_that_the_model_uses() -> None:
    text = TYPICAL.text(COLUMNS)
    assert "1,000 tokens of context for each decoding request" in text
    assert "300 cached tokens" in text
    assert "2.00% of the KV cache" in text
    assert "KV cache" not in TYPICAL.text(COLUMNS[:-1])
