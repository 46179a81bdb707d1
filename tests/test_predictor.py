"""A compiled predictor: as close to its fit as it says, safe from damaged files, and numpy alone."""

from __future__ import annotations

import importlib
import io
import json
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from bayes_sched.errors import InputError
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.predictor.compile import compile_predictor
from bayes_sched.predictor.predictor import FORMAT_NAME, Predictor
from bayes_sched.steps import steps_arrays
from bayes_sched.studies.predictor import accuracy
from tests.comparison_fits import with_groups
from tests.richer_fit import STEPS, Stairs, richer_fit
from tests.running import subcommand
from tests.synthetic_fit import synthetic_fit

FIT = synthetic_fit(chains=2, draws=60)
PREDICTOR = compile_predictor(FIT)
SHARES = st.floats(0.0, 1.0)
LEVELS = st.floats(0.001, 0.999)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "predictor.npz"
    PREDICTOR.save(path)
    return path


def place(share_b: float, share_s: float) -> tuple[float, float]:
    """A step of the synthetic region: 1 to 64 requests, up to 4,096 tokens."""
    batch_size = 64.0**share_b
    return batch_size, min(batch_size * (4096.0 / batch_size) ** share_s, 4096.0)


def exact(fit: FittedModel, step: tuple[float, float], q: float) -> float:
    return float(fit.quantile(steps_arrays(*step), q, max_draws=None)[0])


def test_answers_are_within_a_percent_of_the_fit_all_over_its_region() -> None:
    rng = np.random.default_rng(1)
    b, s = np.transpose([place(*rng.random(2)) for _ in range(400)])
    steps = steps_arrays(b, s)
    mean = FIT.mean_latency(steps, max_draws=None).mean(("chain", "draw")).to_numpy()
    np.testing.assert_allclose(PREDICTOR.mean_latency(b, s), mean, rtol=0.001)
    for q in (0.001, 0.01, 0.1, 0.37, 0.5, 0.8, 0.95, 0.999):
        expected = FIT.quantile(steps, q, max_draws=None).to_numpy()
        assert PREDICTOR.quantile(b, s, q) == pytest.approx(expected, rel=0.01, abs=0.0005 * mean.min())
        below = PREDICTOR.probability_below(b, s, expected)[expected > 0.0]
        np.testing.assert_allclose(below, q, atol=0.01)


@given(SHARES, SHARES, st.lists(LEVELS, min_size=2, max_size=8))
@settings(max_examples=100, deadline=None)
def test_quantiles_rise_with_the_probability_and_probabilities_with_the_latency(
    share_b: float, share_s: float, levels: list[float]
) -> None:
    step = place(share_b, share_s)
    quantiles = [PREDICTOR.quantile(*step, q) for q in sorted(levels)]
    assert quantiles == sorted(quantiles)
    below = [PREDICTOR.probability_below(*step, x) for x in quantiles]
    assert below == sorted(below)


@given(SHARES, SHARES, LEVELS)
@settings(max_examples=100, deadline=None)
def test_one_step_and_an_array_of_steps_get_the_same_answer(share_b: float, share_s: float, q: float) -> None:
    b, s = place(share_b, share_s)
    x = PREDICTOR.quantile(b, s, q)
    assert PREDICTOR.mean_latency([b], [s])[0] == pytest.approx(PREDICTOR.mean_latency(b, s), rel=1e-12)
    assert PREDICTOR.quantile([b], [s], q)[0] == pytest.approx(x, rel=1e-9, abs=1e-9)
    one, many = PREDICTOR.probability_below(b, s, x), PREDICTOR.probability_below([b], s, [x])[0]
    assert many == pytest.approx(one, rel=1e-9)


def test_the_region_is_that_of_the_fit() -> None:
    rng = np.random.default_rng(2)
    b, s = 250.0 ** rng.random(300), 16_000.0 ** rng.random(300)
    s = np.maximum(b, s)
    expected = FIT.extrapolation(steps_arrays(b, s)).to_numpy()
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(PREDICTOR.extrapolation(b, s), expected)
    assert [PREDICTOR.extrapolation(*step) for step in zip(b, s, strict=True)] == expected.tolist()


def test_the_errors_it_states_hold_at_other_steps() -> None:
    found = accuracy(PREDICTOR, FIT, seed=5, num_steps=200)
    stated = PREDICTOR.provenance.errors
    assert found["mean"] <= 1.5 * stated["mean"] < 0.001
    assert max(found[name] for name in found if name.startswith("q")) <= 1.5 * stated["quantile"] < 0.01
    assert found["probability"] <= 1.5 * stated["probability"] < 0.015


def test_far_tails_follow_the_fit() -> None:
    step = (16.0, 700.0)
    for q in (0.0001, 0.9999):
        x = exact(FIT, step, q)
        if x > 0.0:
            tail = PREDICTOR.probability_below(*step, x)
            assert min(tail, 1.0 - tail) == pytest.approx(0.0001, rel=0.1)
    assert PREDICTOR.probability_below(*step, -1.0) == 0.0
    assert PREDICTOR.probability_below(*step, 1e9) == pytest.approx(1.0, abs=1e-9)


def test_arrays_broadcast_and_keep_their_shape() -> None:
    b, s = np.array([[1], [8]]), np.array([8, 64, 512])
    assert PREDICTOR.quantile(b, s, 0.9).shape == (2, 3)
    assert PREDICTOR.probability_below(b, 512, [5.0, 10.0, 20.0]).shape == (2, 3)
    assert PREDICTOR.mean_latency([], []).shape == (0,)
    assert isinstance(PREDICTOR.mean_latency(np.int64(4), np.int32(9)), float)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda p: p.mean_latency(9, 8), "impossible"),
        (lambda p: p.mean_latency(0, 8), "impossible"),
        (lambda p: p.mean_latency(float("nan"), 8), "impossible"),
        (lambda p: p.mean_latency([1, 9], [8, 8]), "9 requests and 8 tokens"),
        (lambda p: p.mean_latency([1.0, float("nan")], 8), "impossible"),
        (lambda p: p.mean_latency(1, 1e6), "256 requests and 16,384 tokens"),
        (lambda p: p.mean_latency([1, 1], [8, 1e6]), "beyond the tables"),
        (lambda p: p.mean_latency([1, 2, 3], [8, 8]), "go together"),
        (lambda p: p.mean_latency("a", 8), "numbers"),
        (lambda p: p.quantile(1, 8, 1.0), "probability"),
        (lambda p: p.quantile(1, 8, float("nan")), "probability"),
        (lambda p: p.probability_below(1, 8, float("nan")), "NaN"),
        (lambda p: p.probability_below([1], 8, float("nan")), "NaN"),
        (lambda p: p.observe(9, 8, 5.0), "impossible"),
        (lambda p: p.observe(1, 8, 0.0), "positive"),
        (lambda p: p.observe(1, 8, float("nan")), "positive"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(ask: Callable[[Predictor], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ask(PREDICTOR)


def test_a_file_brings_everything_back(saved: Path) -> None:
    loaded = Predictor.load(saved)
    assert loaded.provenance == PREDICTOR.provenance
    assert loaded.provenance.labels == {"gpu": "H100", "llm": "llama-3-8b"}
    b, s = np.array([1.0, 7.5, 64.0]), np.array([3.0, 900.0, 4096.0])
    for q in (0.001, 0.5, 0.999):
        assert np.array_equal(loaded.quantile(b, s, q), PREDICTOR.quantile(b, s, q))
    assert np.array_equal(loaded.probability_below(b, s, 9.0), PREDICTOR.probability_below(b, s, 9.0))
    assert loaded.extrapolation(250, 250)
    assert not loaded.extrapolation(8, 64)


def rewritten(path: Path, **changes: Any) -> Path:
    """Write the file with some arrays replaced, or left out (...)."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays = {name: value for name, value in (arrays | changes).items() if value is not ...}
    np.savez(path, **arrays)
    return path


def described(path: Path, **changes: Any) -> np.ndarray[Any, Any]:
    with np.load(path) as archive:
        about = json.loads(archive["about"].tobytes())
    return np.frombuffer(json.dumps(about | changes).encode(), dtype=np.uint8)


def flipped(path: Path) -> None:
    """Change one bit in the middle of the tables."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(io.BytesIO(bytes(content))) as archive:
        entry = archive.getinfo("prefill_positions.npy")
    content[entry.header_offset + 30 + len(entry.filename) + entry.compress_size // 2] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.unlink(), "no such file"),
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "not a compiled predictor"),
        (lambda p: p.write_bytes(p.read_bytes()[:-200]), "damaged"),
        (lambda p: p.write_bytes(p.read_bytes().replace(b"positions", b"pos1tions")), "damaged"),
        (flipped, "damaged"),
        (lambda p: np.savez(p, a=np.ones(3)), "no compiled predictor"),
        (lambda p: rewritten(p, about=described(p, format="something")), "no compiled predictor"),
        (lambda p: rewritten(p, about=described(p, version=3)), "later bayes-sched"),
        (lambda p: rewritten(p, about=described(p, version="2")), "damaged"),
        (lambda p: rewritten(p, about=described(p, fit={})), "damaged"),
        (lambda p: rewritten(p, prefill_log_mean=...), "damaged"),
        (lambda p: rewritten(p, decode_log_mean=np.full((3, 3), np.nan)), "log_mean"),
        (lambda p: rewritten(p, prefill_log_mean=np.ones((3, 3))), "do not go together"),
        (lambda p: rewritten(p, prefill_positions=-np.load(p)["prefill_positions"]), "falls"),
        (lambda p: rewritten(p, prefill_fine_b=-np.load(p)["prefill_fine_b"]), "does not rise"),
        (lambda p: rewritten(p, prefill_relative=-np.load(p)["prefill_relative"]), "negative"),
        (lambda p: rewritten(p, region_cells=np.ones(3)), "region"),
        (lambda p: rewritten(p, decode_fine_s=np.array([object(), 1], dtype=object)), "damaged"),
    ],
)
def test_a_file_that_is_no_sound_predictor_is_refused_with_its_name(
    saved: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(saved)
    with pytest.raises(InputError, match=words) as caught:
        Predictor.load(saved)
    assert str(saved) in str(caught.value)


def test_a_place_that_holds_no_file_or_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"predictor\.npz"):
        Predictor.load(tmp_path)
    with pytest.raises(InputError, match="cannot write"):
        PREDICTOR.save(tmp_path / "nowhere" / "predictor.npz")


def test_an_unconverged_fit_is_refused_unless_asked_for_and_then_marked() -> None:
    fit = synthetic_fit(chains=2, draws=5, converged=False, problems=("R-hat 1.3 on tau_S",))
    with pytest.raises(InputError, match=r"R-hat 1\.3 on tau_S.*allow_unconverged"):
        compile_predictor(fit)
    assert not compile_predictor(fit, allow_unconverged=True).converged


def test_a_file_of_an_even_grid_for_all_steps_still_loads(saved: Path) -> None:
    """As older versions wrote it: a mean of 2 sqrt(B S) ms, a width of a tenth, a logistic shape."""
    log_b, log_s = np.linspace(0.0, np.log(64.0), 9), np.linspace(0.0, np.log(4096.0), 17)
    log_mean = np.log(2.0) + 0.5 * (log_b[:, None] + log_s)
    positions = np.broadcast_to(np.linspace(-6.0, 6.0, 97), (3, 4, 97)).astype(np.float32)
    known = {k: v for k, v in asdict(PREDICTOR.provenance).items() if k not in {"loads", "drift"}}
    about = {"format": FORMAT_NAME, "version": 1, "fit": known}
    np.savez(
        saved,
        about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
        ends=np.array([log_b[-1], log_s[-1]]),
        log_mean=log_mean,
        log_width=log_mean - np.log(10.0),
        positions=positions,
        logits=positions,
        region_cells=PREDICTOR.region.cells,
    )
    loaded = Predictor.load(saved)
    assert (loaded.max_batch_size, loaded.max_total_tokens) == (64.0, 4096.0)
    assert loaded.loads == ()
    for b, s in ((5, 5), (5, 300)):
        mean = 2.0 * (b * s) ** 0.5
        assert loaded.mean_latency(b, s) == pytest.approx(mean)
        assert loaded.quantile(b, s, 0.9) == pytest.approx(mean * (1.0 + 0.1 * np.sinh(0.5 * np.log(9.0))))
        assert loaded.probability_below(b, s, loaded.quantile(b, s, 0.9)) == pytest.approx(0.9, abs=0.001)


def with_observed(fit: FittedModel) -> FittedModel:
    """The fit with the steps of its trace."""
    return with_groups(fit, observed=xr.Dataset.from_dataframe(STEPS.rename_axis("step")))


@pytest.fixture(scope="module", params=["stairs", "saturation_context"])
def richer(request: pytest.FixtureRequest) -> tuple[FittedModel, Predictor]:
    fit = with_observed(richer_fit(None if request.param == "stairs" else request.param))
    return fit, compile_predictor(fit)


def test_answers_for_a_context_are_within_a_percent_of_the_fit(richer: tuple[FittedModel, Predictor]) -> None:
    fit, predictor = richer
    steps = STEPS.sample(200, random_state=1)
    steps = steps.assign(context_tokens=1.1 * steps["context_tokens"])
    size = steps["batch_size"].to_numpy(), steps["total_tokens"].to_numpy()
    given: Any = {name: steps[name].to_numpy() for name in (*predictor.loads, "num_prefill_reqs")}
    assert predictor.loads == ("context_tokens", "prefill_pairs")
    mean = fit.mean_latency(steps).mean(("chain", "draw")).to_numpy()
    np.testing.assert_allclose(predictor.mean_latency(*size, **given), mean, rtol=0.01)
    for q in (0.001, 0.05, 0.5, 0.95, 0.999):
        expected = fit.quantile(steps, q).to_numpy()
        found = predictor.quantile(*size, q, **given)
        np.testing.assert_allclose(found, expected, rtol=0.01)
        one: Any = {name: float(values[3]) for name, values in given.items()}
        b, s = (float(x[3]) for x in size)
        assert predictor.quantile(b, s, q, **one) == pytest.approx(found[3])
        below = predictor.probability_below(*size, expected, **given)
        np.testing.assert_allclose(below, q, atol=0.03)
        one_below = predictor.probability_below(b, s, float(expected[3]), **one)
        assert one_below == pytest.approx(below[3])


def test_where_no_context_is_given_it_is_as_varied_as_in_the_trace(
    richer: tuple[FittedModel, Predictor],
) -> None:
    fit, predictor = richer
    sizes = STEPS[["batch_size", "total_tokens"]].drop_duplicates()
    b, s = sizes.to_numpy().T
    stated = predictor.provenance.errors["integrated_quantile"]
    for q in (0.05, 0.5, 0.95):
        errors = np.abs(predictor.quantile(b, s, q) / fit.quantile(sizes, q).to_numpy() - 1.0)
        assert np.median(errors) < 0.02
        assert np.quantile(errors, 0.9) <= stated < 0.1


def test_nothing_is_interpolated_across_the_edge_of_a_level() -> None:
    fit = with_observed(richer_fit())
    predictor = compile_predictor(fit)
    for size in ((7.0, 256.0), (7.0, 257.0), (16.0, 16.0), (17.0, 17.0), (16.0, 17.0)):
        loads: Any = {"context_tokens": 9000.0, "prefill_pairs": 5e4 * (size[0] < size[1])}
        steps = steps_arrays(*size).assign(num_prefill_reqs=("step", [float(size[0] < size[1])]))
        steps = steps.assign({name: ("step", [value]) for name, value in loads.items()})
        wanted = float(fit.mean_latency(steps).mean())
        assert predictor.mean_latency(*size, **loads) == pytest.approx(wanted, rel=0.002), size
    jump = predictor.mean_latency(7, 257) / predictor.mean_latency(7, 256)
    assert jump > 1.2


def test_a_chunk_of_one_token_is_a_step_with_prefill(richer: tuple[FittedModel, Predictor]) -> None:
    _, predictor = richer
    given: Any = {"context_tokens": 4000.0, "prefill_pairs": 500.0}
    decode = predictor.mean_latency(8, 8, **given)
    assert predictor.mean_latency(8, 8, **given, num_prefill_reqs=0) == decode
    prefill = predictor.mean_latency(8, 8, **given, num_prefill_reqs=1)
    assert prefill == predictor.mean_latency([8], 8, **given, num_prefill_reqs=1)[0] != decode


def test_what_is_told_of_a_step_is_checked_and_what_no_model_asks_changes_nothing(
    richer: tuple[FittedModel, Predictor],
) -> None:
    _, predictor = richer
    assert predictor.mean_latency(4, 90, kv_cache_usage=0.5) == predictor.mean_latency(4, 90)
    assert PREDICTOR.mean_latency(4, 90, context_tokens=9.0) == PREDICTOR.mean_latency(4, 90)
    assert predictor.mean_latency(4, 4, context_tokens=9.0) == predictor.mean_latency(
        4, 4, context_tokens=9.0, prefill_pairs=0.0
    )
    for wrong, words in (
        ({"context_tokens": 9.0}, "all of context_tokens, prefill_pairs"),
        ({"context_tokens": -1.0, "prefill_pairs": 0.0}, "not negative"),
        ({"context_tokens": [float("nan")], "prefill_pairs": 0.0}, "not negative"),
        ({"context": 9.0}, "context is nothing"),
    ):
        with pytest.raises(InputError, match=words):
            predictor.mean_latency(4, 90, **wrong)


def test_more_context_than_was_seen_is_an_extrapolation(richer: tuple[FittedModel, Predictor]) -> None:
    _, predictor = richer
    most = float((STEPS["context_tokens"] / STEPS["batch_size"]).max())
    for factor, outside in ((0.9, False), (2.0, True)):
        given: Any = {"context_tokens": 8.0 * factor * most, "prefill_pairs": 0.0}
        assert predictor.extrapolation(8, 8, **given) is outside
        assert predictor.extrapolation([8], 8, **given)[0] == outside
        assert predictor.observe(8, 8, 20.0, **given).extrapolation is outside


def test_a_model_that_tables_cannot_hold_is_refused() -> None:
    fit = with_observed(richer_fit())

    class Bent(Stairs):
        def latency(self, draws: xr.Dataset, steps: xr.Dataset) -> xr.DataArray:
            return super().latency(draws, steps) + 1e-9 * steps["context_tokens"] ** 2

    class Other(Stairs):
        columns = (*Stairs.columns, "temperature")

    for model, words in ((Bent(), "not linear in context_tokens"), (Other(), "needs temperature")):
        with pytest.raises(InputError, match=words):
            compile_predictor(replace(fit, model=model))


def test_it_needs_numpy_alone(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "bayes_sched"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("pymc", "pytensor", "arviz", "xarray", "pandas", "scipy", "nutpie", "numba", "msgspec"):
        monkeypatch.setitem(sys.modules, name, None)  # an import fails
    fresh = importlib.import_module("bayes_sched.predictor.predictor").Predictor.load(saved)
    assert type(fresh) is not Predictor
    assert fresh.mean_latency(4, 9) == PREDICTOR.mean_latency(4, 9)
    assert fresh.quantile([4], [9], 0.9)[0] == PREDICTOR.quantile([4], [9], 0.9)[0]
    assert fresh.probability_below(4, 9, 5.0) == PREDICTOR.probability_below(4, 9, 5.0)
    assert not fresh.extrapolation([4], [9])[0]
    assert fresh.observe(4, 9, 5.0).alarm is None
    with pytest.raises(ImportError):
        importlib.import_module("bayes_sched.predictor.compile")


compile_command = subcommand("predictor")


@pytest.fixture
def result(tmp_path: Path) -> Path:
    folder = tmp_path / "h100"
    folder.mkdir()
    synthetic_fit(chains=2, draws=5).save(folder / "posterior.nc")
    return folder


def test_the_command_writes_the_file_beside_the_fit_and_says_how_close_it_is(
    result: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compile_command([str(result)]) == 0
    assert "Largest error inside the region: mean 0.0" in capsys.readouterr().out
    written = (result / "predictor.npz").read_bytes()
    assert compile_command([str(result)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert compile_command([str(result / "posterior.nc"), "--overwrite", "--json"]) == 0
    loaded = Predictor.load(result / "predictor.npz")
    assert json.loads(capsys.readouterr().out)["errors"] == dict(loaded.provenance.errors)
    assert (result / "predictor.npz").read_bytes() == written  # the same fit gives the same file


def test_the_command_refuses_and_marks_unconverged_fits(
    result: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic_fit(chains=2, draws=5, converged=False).save(result / "posterior.nc")
    assert compile_command([str(result)]) == 2
    assert "allow_unconverged" in capsys.readouterr().err.replace("-", "_")
    assert not (result / "predictor.npz").exists()
    assert compile_command([str(result), "--allow-unconverged"]) == 0
    assert "has not converged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"), [([], "RESULT"), (["nowhere"], "no such fit"), (["--nonsense", "x"], "nonsense")]
)
def test_bad_usage_of_the_command_is_one_line_and_status_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compile_command(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert words in printed.err


def test_a_decode_only_region_works_too() -> None:
    fit = synthetic_fit(chains=2, draws=5)
    fit.data["cells"] = (
        fit.data["cells"]
        .to_dataset()
        .isel(cell=np.flatnonzero(fit.cells["batch_size"] == fit.cells["total_tokens"]))
    )
    fit = FittedModel(data=fit.data, model=fit.model, metadata=fit.metadata)
    predictor = compile_predictor(fit)
    table = pd.DataFrame({"batch_size": [1.0, 5.0, 64.0, 8.0], "total_tokens": [1.0, 5.0, 64.0, 30.0]})
    wanted = fit.extrapolation(table).to_numpy().tolist()
    assert wanted == [False, False, False, True]
    assert [predictor.extrapolation(*row) for row in table.itertuples(index=False)] == wanted
    assert predictor.mean_latency(5, 5) == pytest.approx(
        float(fit.mean_latency(table.iloc[[1]], max_draws=None).mean()), rel=0.001
    )
