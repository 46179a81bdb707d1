"""Compare a model's noise options on held-out steps of a trace: why the default is the default."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from bayes_sched import command
from bayes_sched.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

PROGRAM = "compare_noise"


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = command.Parser(
        prog=PROGRAM,
        description="Fit each noise option to a random sample of steps and score it on another.",
        epilog="example: python scripts/compare_noise.py trace.jsonl --rows 1000",
    )
    made.add_argument("traces", nargs="+", metavar="TRACE", help="file, 'PATTERN', or - for stdin")
    made.add_argument("--rows", type=command.at_least(20), default=1000, help="to fit, and as many to score")
    made.add_argument("--seed", type=command.at_least(0), default=0)
    return made


def score(fitted: pd.DataFrame, held_out: pd.DataFrame, noise: str, seed: int) -> str:
    """Return the mean log predictive density and the coverage of the 90 % band, in words."""
    import numpy as np
    import xarray as xr
    from scipy import stats
    from scipy.special import logsumexp

    from bayes_sched.model import all_parameters, load_model
    from bayes_sched.priors import Priors
    from bayes_sched.sampling import sample
    from bayes_sched.settings import SamplerSettings

    model = load_model("saturation")
    priors = Priors.from_parameters(all_parameters(model, noise))
    settings = SamplerSettings(draws=300, tune=300, seed=seed)
    draws = sample(model, fitted, priors, noise=noise, settings=settings).data["posterior"].to_dataset()
    draws = draws.stack(sample=("chain", "draw")).isel(sample=slice(None, None, 3))  # noqa: PD013 - xarray
    steps = xr.Dataset({name: ("step", held_out[name].to_numpy()) for name in model.columns})
    mean = model.latency(draws, steps)
    scale = model.scale(draws, mean).broadcast_like(mean).transpose("step", "sample").to_numpy()
    noise_of = stats.t(draws["nu"].to_numpy(), mean.transpose("step", "sample").to_numpy(), scale)
    observed = held_out["latency_ms"].to_numpy()[:, None]
    density = logsumexp(noise_of.logpdf(observed), axis=1) - np.log(scale.shape[1])
    inside = np.abs(noise_of.cdf(observed).mean(axis=1) - 0.5) < 0.45
    prefill = (held_out["total_tokens"] > held_out["batch_size"]).to_numpy()
    return (
        f"{noise:13s} log score {density.mean():.3f}  90% band holds {inside.mean():.1%} of steps, "
        f"{inside[~prefill].mean():.1%} of decode-only ones, "
        f"{inside[prefill].mean():.1%} of those with prefill"
    )


def main(arguments: list[str]) -> int:
    """Run the command."""
    try:
        options = parser().parse_args(arguments)
        import numpy as np

        from bayes_sched.model import load_model
        from bayes_sched.trace import clean_steps, read_trace

        steps = clean_steps(read_trace(options.traces).steps).steps
        if len(steps) < 2 * options.rows:
            raise InputError(f"{len(steps)} steps are left, fewer than twice --rows {options.rows}")
        order = np.random.default_rng(options.seed).permutation(len(steps))[: 2 * options.rows]
        fitted, held_out = steps.iloc[order[: options.rows]], steps.iloc[order[options.rows :]]
        for noise in load_model("saturation").noises:
            print(score(fitted, held_out, noise, options.seed), flush=True)
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
