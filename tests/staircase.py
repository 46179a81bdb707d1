"""Simulated steps with context, on a server whose latency is a staircase."""

from __future__ import annotations

import numpy as np
import pandas as pd

TRUTH = {
    "floor_ms": 16.0,
    "per_request": 0.05,
    "per_token": 0.05,
    "tau_C": 9e-5,
    "tau_M": 6e-5,
    "tau_Q": 2.5e-6,
}
STAIR_MS = {128: 6.0, 256: 15.0}
"""What steps with prefill take longer beyond these numbers of tokens."""
RELATIVE_NOISE = {"decode": 0.01, "prefill": 0.02}


def staircase_steps(num_steps: int, *, seed: int) -> pd.DataFrame:
    """Return steps like those of a server with a token budget of 512: 60 % only decode."""
    rng = np.random.default_rng(seed)
    decodes = rng.integers(1, 25, num_steps)
    has_prefill = rng.random(num_steps) < 0.4
    chunk = (
        np.where(rng.random(num_steps) < 0.7, 512 - decodes, rng.integers(2, 480, num_steps)) * has_prefill
    )
    cached = rng.integers(0, 5000, num_steps) * has_prefill
    steps = pd.DataFrame(
        {
            "batch_size": decodes + has_prefill,
            "total_tokens": decodes + chunk,
            "num_prefill_reqs": has_prefill.astype(np.int64),
            "num_decode_reqs": decodes,
            "context_tokens": decodes * rng.integers(500, 4000, num_steps) + cached,
            "prefill_pairs": chunk * cached + chunk * (chunk + 1) // 2,
        }
    )
    regime = np.where(has_prefill, "prefill", "decode")
    relative = pd.Series(regime).map(RELATIVE_NOISE).to_numpy()
    noise = 1.0 + relative * rng.standard_t(5.0, num_steps)
    return steps.assign(latency_ms=true_latency_ms(steps) * noise)


def true_latency_ms(steps: pd.DataFrame) -> np.ndarray:
    """Return the mean latency of steps on that server, ms."""
    has_prefill = steps["num_prefill_reqs"].to_numpy() > 0
    per_context = np.where(has_prefill, TRUTH["tau_M"], TRUTH["tau_C"])
    stairs = sum(height * (steps["total_tokens"].to_numpy() > edge) for edge, height in STAIR_MS.items())
    mean: np.ndarray = (
        TRUTH["floor_ms"]
        + TRUTH["per_request"] * steps["batch_size"].to_numpy()
        + TRUTH["per_token"] * steps["total_tokens"].to_numpy()
        + stairs * has_prefill
        + per_context * steps["context_tokens"].to_numpy()
        + TRUTH["tau_Q"] * steps["prefill_pairs"].to_numpy()
    )
    return mean
