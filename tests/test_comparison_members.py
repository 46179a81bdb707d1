"""What may be compared with what: labels, differences and warnings, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from bayes_sched.comparison.compare import Comparison, compare
from bayes_sched.comparison.latency import shared_grid
from bayes_sched.comparison.members import (
    difference_table,
    discrepancy_of,
    labelled,
    labels_of,
    prices_of,
    warnings_of,
)
from bayes_sched.errors import InputError
from bayes_sched.posterior.fitted import FittedModel
from tests.comparison_fits import SMALL, by, server, servers_of, with_groups


def cells_of(batch_size: list[int], total_tokens: list[int]) -> xr.Dataset:
    ones = {name: ("cell", [9.0] * len(batch_size)) for name in ("count", "q05_ms", "median_ms", "q95_ms")}
    return xr.Dataset({"batch_size": ("cell", batch_size), "total_tokens": ("cell", total_tokens), **ones})


def test_extrapolation_is_marked_where_any_trace_ends(compared_fits: list[FittedModel]) -> None:
    grid = shared_grid(servers_of([compared_fits[0], server(name="small", budget=512, max_b=16)]))
    is_outside = (grid["batch_size"] > 17) | (grid["total_tokens"] > 540)
    possible, extrapolated = grid["possible"], grid["extrapolation"]
    assert bool(extrapolated.where(possible & is_outside, True).all())
    is_swept = (grid["total_tokens"] >= 3 * grid["batch_size"]) & ~is_outside
    assert not bool(extrapolated.where(is_swept, False).any())
    assert float(grid["total_tokens"].max()) == 4096.0


def test_an_overlap_that_the_grid_misses_is_found(compared_fits: list[FittedModel]) -> None:
    one = with_groups(server(name="one"), cells=cells_of([29], [29]))
    grid = shared_grid(servers_of([compared_fits[0], one]))
    covered = grid["possible"] & ~grid["extrapolation"]
    assert float(covered.sum()) == 1.0
    assert bool(covered.sel(batch_size=29, total_tokens=29))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"llm": ""}, "LLM"),
        ({"budget": 2048}, "most tokens in a step"),
        ({"labels": {"gpu": "Z", "llm": "llama-3-8b", "mode": "async"}}, "mode"),
    ],
)
def test_whatever_differs_besides_the_gpu_is_listed(
    changes: dict[str, Any], what: str, compared_fits: list[FittedModel]
) -> None:
    differences = difference_table(labelled([compared_fits[0], server(name="z", **changes)]))
    assert by(differences, "what")[what]["is_server"]


def test_labels_are_those_given_or_gpus_or_else_names(compared_fits: list[FittedModel]) -> None:
    assert labels_of([server(name="a", gpu="X"), server(name="b", gpu="Y")]) == ["X", "Y"]
    both = [server(name="a", gpu="X", llm="m"), server(name="b", gpu="X", llm="n")]
    assert labels_of(both) == ["X, m", "X, n"]
    assert labels_of([server(name="a", gpu="X"), server(name="b", gpu="X")]) == ["a", "b"]
    assert labels_of([server(name="a"), server(name="b", gpu="X")]) == ["a", "b"]
    assert labels_of([server(name="a"), server(name="a")]) == ["a (1)", "a (2)"]
    given = labelled({"old": compared_fits[1], "new": compared_fits[0]})
    assert prices_of(given, {"new": 1}) == {"old": None, "new": 1.0}


def test_an_unconverged_fit_and_another_llm_are_loudly_said(
    comparison: Comparison, compared_fits: list[FittedModel]
) -> None:
    bad = server(name="bad", gpu="Z", llm="qwq-32b", converged=False, problems=("R-hat 1.2 on tau_S",))
    found = compare([compared_fits[0], bad], **SMALL)
    assert not found.converged
    assert "NOT CONVERGED (R-hat 1.2 on tau_S)" in found.warnings[0]
    assert found.compares_servers
    assert by(found.differences, "what")["LLM"]["Z"] == "qwq-32b"
    assert "compares servers, not GPUs" in found.warnings[1]
    assert "qwq-32b on Z" in found.warnings[1]
    assert not comparison.compares_servers
    assert not any("compares servers" in warning for warning in comparison.warnings)


def test_fits_of_the_same_trace_are_not_independent_and_that_is_said(
    compared_fits: list[FittedModel],
) -> None:
    again = server(1.01, name="again", gpu="Z", trace_sha256=compared_fits[0].metadata.trace_sha256)
    fits = labelled([compared_fits[0], again])
    assert any("same trace" in one for one in warnings_of(fits, difference_table(fits), {}, rope=0.05))


def test_an_equation_that_misses_what_was_seen_is_said() -> None:
    def seen_as_predicted(fit: FittedModel, off: float) -> FittedModel:
        steps = pd.DataFrame({name: fit.cells[name].to_numpy() for name in ("batch_size", "total_tokens")})
        median = fit.quantile(steps, 0.5).to_numpy() * (1.0 + off)
        return with_groups(fit, cells=fit.cells.assign(median_ms=("cell", median)))

    fits = {name: seen_as_predicted(server(name=name), off) for name, off in (("right", 0.0), ("wrong", 0.2))}
    discrepancies = {label: discrepancy_of(fit) for label, fit in fits.items()}
    (warning,) = warnings_of(fits, difference_table(fits).iloc[:0], discrepancies, rope=0.05)
    assert warning.startswith("wrong: the equation misses one in ten of the observed medians by more than 20")


def refuses(match: str, fits: Any, **options: Any) -> None:
    with pytest.raises(InputError, match=match):
        compare(fits, **options)


def test_one_fit_or_the_same_twice_is_refused(compared_fits: list[FittedModel]) -> None:
    refuses("1 fit: a comparison takes two or more", compared_fits[:1])
    refuses("fast: the same fit twice", [compared_fits[0], compared_fits[0]])
    copied = replace(compared_fits[0], metadata=replace(compared_fits[0].metadata, name="copy"))
    refuses("fast and copy: the same fit twice", {"a": compared_fits[0], "b": copied})


def test_models_and_regions_that_do_not_go_together_are_refused(compared_fits: list[FittedModel]) -> None:
    class Other:
        def __init__(self, **changes: Any) -> None:
            self.__dict__ |= changes

        def __getattr__(self, name: str) -> Any:
            return getattr(compared_fits[1].model, name)

    few: Any = Other(name="affine", parameters=compared_fits[1].model.parameters[:3])
    wide: Any = Other(name="attention", columns=("batch_size", "total_tokens", "context_tokens"))
    far = with_groups(server(name="far"), cells=cells_of([100, 200, 100], [9000, 9000, 20000]))
    for other, match in (
        (replace(compared_fits[1], model=few), "incompatible models .saturation, affine"),
        (replace(compared_fits[1], model=wide), "the steps have no context_tokens; the model needs"),
        (far, "no step lies where all traces have data.*fast: The trace covers 1 to 64"),
    ):
        refuses(match, [compared_fits[0], other])


@pytest.mark.parametrize("price", [0.0, -1.0, np.nan, np.inf, "2.50", True, None])
def test_a_price_that_is_no_positive_number_is_refused(price: Any, compared_fits: list[FittedModel]) -> None:
    refuses("price of 'fast': .* is no positive number an hour", compared_fits, prices={"fast": price})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"prices": {"H200": 1.0}},
            "price of 'H200': the label is that of no fit; give one of X100, Y50, fast, slow",
        ),
        ({"prices": {"X100": 1.0, "fast": 2.0}}, "given twice"),
        ({"rope": -0.1}, "rope = -0.1"),
        ({"rope": 5.0}, "rope = 5"),
        ({"rope": np.nan}, "rope = nan"),
        ({"probability": 1.0}, "probability = 1"),
        ({"slo_ms": 0.0}, "slo_ms = 0"),
        ({"slo_quantile": 1.0}, "slo_quantile = 1"),
        ({"max_draws": 1}, "max_draws = 1"),
        ({"batch_size": [0], "total_tokens": [5]}, "batch_size is below 1"),
    ],
)
def test_arguments_that_are_none_are_refused(
    options: dict[str, Any], match: str, compared_fits: list[FittedModel]
) -> None:
    refuses(match, compared_fits, **options)
