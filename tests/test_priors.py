"""Priors: from documented ranges to log-normals, and overrides."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import lognorm

from bayes_sched.errors import InputError
from bayes_sched.model.equation import PARAMETERS
from bayes_sched.model.priors import Prior, Priors, read_prior_overrides

DOCUMENTED = Priors.from_parameters(PARAMETERS)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("P_max", 1.0, 1000.0),
        ("k_B", 0.01, 1.0),
        ("k_S", 0.001, 0.1),
        ("w_0", 0.1, 100.0),
        ("w_1", 0.001, 1.0),
        ("tau_0", 0.05, 50.0),
        ("tau_B", 0.005, 5.0),
        ("tau_S", 0.0001, 0.1),
    ],
)
def test_a_documented_range_holds_the_central_95_percent(name: str, low: float, high: float) -> None:
    prior = DOCUMENTED[name]
    frozen = lognorm(s=prior.sigma, scale=np.exp(prior.mu))
    assert frozen.ppf([0.025, 0.5, 0.975]) == pytest.approx([low, np.sqrt(low * high), high], rel=1e-9)
    assert prior.median == pytest.approx(np.sqrt(low * high))


def test_every_documented_parameter_has_a_prior_in_the_documented_order() -> None:
    assert list(DOCUMENTED) == [p.name for p in PARAMETERS]
    assert len(DOCUMENTED) == 8


@pytest.mark.parametrize(
    "bounds", [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (0.0, 1.0), (1.0, np.inf), (np.nan, 1.0)]
)
def test_a_prior_without_a_proper_range_is_refused_with_its_numbers(bounds: tuple[float, float]) -> None:
    with pytest.raises(InputError, match=rf"prior of k_B: low = {bounds[0]:g} and high = {bounds[1]:g}"):
        Prior("k_B", *bounds)


def test_the_table_survives_json() -> None:
    again = Priors.from_dict(json.loads(json.dumps(DOCUMENTED.to_dict())))
    assert again == DOCUMENTED
    assert hash(again) == hash(DOCUMENTED)


def test_an_override_changes_its_row_and_no_other() -> None:
    changed = DOCUMENTED.override({"tau_0": {"low": 1, "high": 4.0}})
    assert changed["tau_0"] == Prior("tau_0", 1.0, 4.0)
    assert list(changed) == list(DOCUMENTED)
    assert {n: changed[n] for n in changed if n != "tau_0"} == {
        n: DOCUMENTED[n] for n in changed if n != "tau_0"
    }
    assert DOCUMENTED["tau_0"].high == 50.0
    assert changed != DOCUMENTED


def test_an_override_from_zero_counts_as_three_decades() -> None:
    assert DOCUMENTED.override({"tau_B": {"low": 0, "high": 2.0}})["tau_B"] == Prior("tau_B", 0.002, 2.0)


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
        DOCUMENTED.override(table)
    assert "\n" not in str(caught.value)


def test_a_toml_file_gives_overrides(tmp_path: Path) -> None:
    path = tmp_path / "priors.toml"
    path.write_text("# a comment\n[k_S]\nlow = 0.002\nhigh = 0.02\n", encoding="utf-8")
    assert DOCUMENTED.override(read_prior_overrides(path))["k_S"] == Prior("k_S", 0.002, 0.02)


@pytest.mark.parametrize("content", [b"[k_S\nlow = 1", b"\xff\xfe\x00"])
def test_a_file_that_is_not_toml_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "priors.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"priors\.toml: not a TOML file .*examples/priors\.toml"):
        read_prior_overrides(path)


def test_a_missing_file_or_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml: cannot read the prior overrides \(No such file"):
        read_prior_overrides(tmp_path / "none.toml")
    with pytest.raises(InputError, match="cannot read the prior overrides"):
        read_prior_overrides(tmp_path)


def test_a_prior_reads_as_a_sentence() -> None:
    assert repr(Prior("k_B", 0.01, 1.0)) == "LogNormal(k_B: 95 % in 0.01 - 1, median 0.1)"
    assert repr(DOCUMENTED).count("\n") == 9
