"""Checks of physical plausibility, of a point estimate and of a posterior."""

from typing import Any

import numpy as np
import pytest

from bayes_sched.checks.physics import PhysicalChecks, check_physics, check_point_physics
from bayes_sched.region import region_of
from tests.synthetic_fit import TRUTH, synthetic_fit

SERVER = {
    "P_max": 40.0,
    "k_B": 0.9,
    "k_S": 0.02,
    "w_0": 0.02,
    "w_1": 0.2,
    "tau_0": 5.0,
    "tau_B": 0.1,
    "tau_S": 0.004,
}
REGION = region_of(np.array([1, 64, 64, 1, 1]), np.array([1, 64, 2048, 2048, 144]), count=5)


def checked(scale_is_free: bool = False, **changes: float) -> PhysicalChecks:
    return check_point_physics(SERVER | changes, region=REGION, scale_is_free=scale_is_free)


def failed(result: PhysicalChecks) -> list[str]:
    return [str(check) for check in result.table.loc[~result.table["holds"], "check"]]


def test_a_plausible_server_passes_every_check() -> None:
    result = checked()
    assert failed(result) == []
    assert result.plausible
    assert result.text == f"Physically plausible: all {len(result.table)} checks hold."
    assert set(result.table["group"]) == {"sign", "range", "saturation", "boundary"}
    assert set(result.table["probability"]) == {1.0}


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"tau_0": -1.0}, "parameters are finite and above 0"),
        ({"tau_S": float("nan")}, "parameters are finite and above 0"),
        ({"k_B": 3.0}, "k_B from 0.01 to 1 1/request"),
        ({"tau_S": 0.2}, "tau_S from 0 to 0.1 ms/token"),
        ({"tau_0": -400.0}, "latency is finite and above 0"),
        ({"w_0": 90.0, "w_1": 0.001}, "latency does not fall with tokens, requests held, by more than 1%"),
        (
            {"w_0": 90.0, "w_1": 0.001},
            "latency does not fall as requests and tokens grow together, by more than 1%",
        ),
        ({"tau_0": -3.0}, "throughput S/T does not fall with tokens, requests held"),
        ({"w_0": 90.0, "w_1": 0.001}, "S small: a step of two tokens takes once to twice the time of one"),
        ({"w_1": 1e-12, "tau_S": 1e-12}, "S large: twice the tokens take twice the time"),
        ({"w_1": 1e-12, "tau_S": 1e-12, "tau_B": 1e-12}, "B large: twice the decoding requests take twice"),
        ({"k_B": 1e-5, "tau_B": 1e-6, "tau_S": 1e-6, "tau_0": 1e-6}, "k_B from 0.01 to 1"),
    ],
)
def test_an_implausible_server_fails_the_check_that_is_about_it(changes: Any, check: str) -> None:
    result = checked(**changes)
    assert any(name.startswith(check) for name in failed(result)), failed(result)
    assert not result.plausible
    assert check in result.text


def test_one_request_that_starves_the_device_fails_at_the_boundary() -> None:
    many = region_of(np.array([1, 1000, 1000, 1]), np.array([1, 1000, 4000, 4000]))
    small = SERVER | {"k_B": 1e-6, "tau_0": 0.01, "tau_B": 1e-5, "tau_S": 1e-5}
    assert any(name.startswith("B small") for name in failed(check_point_physics(small, region=many)))


def test_a_failing_check_says_where_and_whether_such_steps_were_seen() -> None:
    name = "latency does not fall with tokens, requests held, by more than 1%"
    detail = checked(w_0=90.0, w_1=0.001).table.set_index("check").loc[name, "detail"]
    assert "from (B, S) = (1, 1) to (1, " in str(detail)
    assert "; such steps were seen" in str(detail)
    prefill = region_of(np.array([1, 64, 64, 1]), np.array([256, 256, 2048, 2048]))
    unseen = check_point_physics(SERVER | {"w_0": 90.0, "w_1": 0.001}, region=prefill)
    assert "no such steps were seen" in str(unseen.table.set_index("check").loc[name, "detail"])


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_a_free_scale_does_not_decide_about_ranges(factor: float) -> None:
    scaled: Any = {name: SERVER[name] * factor for name in ("P_max", "w_0", "w_1")}
    assert checked(scale_is_free=True, **scaled).plausible
    assert checked(**scaled).plausible == (factor == 1.0)


def test_ratios_that_no_scale_can_bring_into_the_ranges_fail() -> None:
    assert failed(checked(scale_is_free=True, w_0=1e-12, w_1=1e-9)) == [
        "P_max, w_0 and w_1 in their ranges for some common scale"
    ]


def test_a_posterior_gets_the_share_of_its_draws() -> None:
    fit = synthetic_fit(spread=1.5, chains=2, draws=10)
    table = check_physics(fit, max_draws=None).table
    posterior = fit.posterior.stack(sample=("chain", "draw"))
    points = [
        check_point_physics({p: float(posterior[p].isel(sample=i)) for p in SERVER}, region=fit.region)
        for i in range(posterior.sizes["sample"])
    ]
    shares = np.mean([point.table["probability"] for point in points], axis=0)
    np.testing.assert_allclose(table["probability"], shares)
    for group in ("range", "saturation", "boundary"):
        inside = table["probability"][table["group"] == group]
        assert ((inside > 0.0) & (inside < 1.0)).any(), group


def test_a_check_holds_from_nine_draws_in_ten_and_a_narrow_posterior_agrees_with_its_middle() -> None:
    table = check_physics(synthetic_fit(spread=0.3)).table
    assert (table["holds"] == (table["probability"] >= 0.9)).all()
    fit = synthetic_fit(spread=1e-6)
    middle = {name: TRUTH[name] for name in SERVER}
    point = check_point_physics(middle, region=fit.region).table
    posterior = check_physics(fit).table
    assert posterior["check"].tolist() == point["check"].tolist()
    assert posterior["holds"].tolist() == point["holds"].tolist()
