"""A simulated server whose parameters the least-squares estimator is to find."""

from typing import Any

import numpy as np
import pandas as pd

from bayes_sched import ThroughputSaturationModel
from bayes_sched.model.equation import latency_ms

TRUTH = {
    "P_max": 40.0,
    "k_B": 0.8,
    "k_S": 0.02,
    "w_0": 10.0,
    "w_1": 2.0,
    "tau_0": 5.0,
    "tau_B": 0.1,
    "tau_S": 0.004,
}
RATIOS_TOO = TRUTH | {"a_0": TRUTH["w_0"] / TRUTH["P_max"], "a_1": TRUTH["w_1"] / TRUTH["P_max"]}
IDENTIFIED = ("k_B", "k_S", "tau_0", "tau_B", "tau_S", "a_0", "a_1")


def simulated(
    num_steps: int = 1500, *, seed: int = 1, noise_ms: float = 0.5, relative: float = 0.0, **changes: float
) -> pd.DataFrame:
    """Steps of a known server with Gaussian noise."""
    rng = np.random.default_rng(seed)
    batch_size = np.rint(np.exp(rng.uniform(0.0, np.log(64.0), num_steps)))
    total_tokens = np.rint(batch_size * np.exp(rng.uniform(0.0, np.log(2048.0 / batch_size))))
    mean = latency_ms(batch_size, total_tokens, **(TRUTH | changes))
    noise = np.hypot(noise_ms, relative * mean) * rng.standard_normal(num_steps)
    return pd.DataFrame(
        {"batch_size": batch_size, "total_tokens": total_tokens, "latency_ms": np.maximum(mean + noise, 1.0)}
    )


def truth_ms(steps: pd.DataFrame) -> Any:
    return latency_ms(steps["batch_size"].to_numpy(), steps["total_tokens"].to_numpy(), **TRUTH)


def predicted_ms(model: ThroughputSaturationModel, steps: pd.DataFrame) -> Any:
    return model.predict(steps["batch_size"].to_numpy(), steps["total_tokens"].to_numpy())
