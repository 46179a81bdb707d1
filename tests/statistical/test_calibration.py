"""Simulation-based calibration of the whole way: priors, simulator, model, sampler, draws."""

import numpy as np
import pandas as pd
import pytest

from bayes_sched.model.priors import Prior, Priors
from bayes_sched.model.protocol import all_parameters, load_model
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.studies.sbc import CalibrationStudy, SimulatedFits, uniformity_table
from bayes_sched.trace.cleaning import choose_rows, clean_steps
from bayes_sched.trace.reader import read_trace
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

NUM_SIMULATIONS = 40
NUM_WRONG_SIMULATIONS = 12
LEVEL = 0.01  # over all quantities together


@pytest.fixture(scope="module")
def study() -> CalibrationStudy:
    model = load_model("saturation")
    trace = read_trace(ROOT / "examples" / "vllm_cpu_12m_sweep.jsonl.gz")
    steps = choose_rows(clean_steps(trace.steps).steps, 120, seed=3)
    priors = Priors.from_parameters(all_parameters(model, "proportional"))
    settings = SamplerSettings(draws=300, tune=200, chains=2, seed=3)
    fits = SimulatedFits(model, steps, priors, noise="proportional", settings=settings)
    return CalibrationStudy(fits, NUM_SIMULATIONS)


def ranks_of(study: CalibrationStudy, numbers: range) -> pd.DataFrame:
    found = pd.concat([study.run(number) for number in numbers])
    assert found["error"].isna().all(), found["error"].tolist()
    ranks = found.loc[:, found.columns.str.startswith("rank ")]
    return ranks.rename(columns=lambda name: name.removeprefix("rank "))


def test_true_values_rank_evenly_for_every_parameter(study: CalibrationStudy) -> None:
    table = uniformity_table(ranks_of(study, range(NUM_SIMULATIONS)))
    assert set(study.fits.priors) <= set(table.index)
    assert table["p_value"].min() > LEVEL / len(table), table.to_string()


def test_parameters_from_other_priors_than_the_model_s_are_noticed(
    study: CalibrationStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    priors = dict(study.fits.priors)
    shift = np.exp(1.5 * priors["P_max"].sigma)  # the data say nothing of P_max: its rank shows the prior
    shifted = Prior("P_max", priors["P_max"].low * shift, priors["P_max"].high * shift)
    assert study.fits.sampler is not None
    monkeypatch.setattr(study.fits, "priors", Priors([*(priors | {"P_max": shifted}).values()]))
    table = uniformity_table(ranks_of(study, range(NUM_WRONG_SIMULATIONS)))
    assert table["p_value"].to_dict()["P_max"] < LEVEL


def test_a_simulation_does_not_depend_on_those_before_it(study: CalibrationStudy) -> None:
    first = study.run(7)
    study.run(8)
    timed = ["seconds"]
    pd.testing.assert_frame_equal(study.run(7).drop(columns=timed), first.drop(columns=timed))
