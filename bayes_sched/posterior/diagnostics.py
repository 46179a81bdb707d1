"""What a fit says of itself: the convergence gate, and the table of parameters.

A fit passes the gate when every parameter and every sampled coordinate has R-hat at most :data:`MAX_R_HAT`
and bulk and tail effective sample sizes of at least :data:`MIN_ESS`, no draw diverged, and every chain's
E-BFMI is at least :data:`MIN_E_BFMI`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import arviz_stats as azs
import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.arrays import Bools, Floats
from bayes_sched.model.priors import Prior, Priors
from bayes_sched.model.protocol import LatencyModel

MAX_R_HAT = 1.01
"""Largest rank-normalised split R-hat (Vehtari et al. 2021)."""
MIN_ESS = 400.0
"""Smallest effective sample size over all chains, bulk and tail (Vehtari et al. 2021)."""
MIN_E_BFMI = 0.3
"""Smallest energy Bayesian fraction of missing information of a chain (Betancourt 2016)."""
MIN_PART_DRAWS = 50
"""Draws of a chain in one component of the posterior from which its E-BFMI is worth computing."""


@dataclass(frozen=True, eq=False)
class Convergence:
    """What the gate found.

    Attributes
    ----------
    table : DataFrame
        One row a variable, index ``variable``: ``r_hat``, ``ess_bulk``, ``ess_tail``, ``passed``, and
        ``kind`` (``parameter`` or ``coordinate``).
    num_divergences, num_draws, num_gradients : int
        Divergent draws, draws, and leapfrog steps (0 where not recorded), all after warm-up, of all chains.
    e_bfmi : ndarray, dims (chain,)
    converged, problems : bool, tuple of str
        Whether the gate passed; what failed, each with its number and the next action.
    text : str
        A sentence a person can paste.
    """

    table: pd.DataFrame
    num_divergences: int
    e_bfmi: Floats
    num_draws: int
    num_gradients: int
    converged: bool
    problems: tuple[str, ...]
    text: str

    @property
    def worst_r_hat(self) -> float:
        """Largest R-hat over all parameters and coordinates; NaN if one could not be computed."""
        return float(self.table["r_hat"].max(skipna=False))

    @property
    def worst_ess(self) -> float:
        """Smallest effective sample size, bulk or tail, over all parameters and coordinates."""
        return _least_ess(self.table)

    @property
    def ess_per_1000_gradients(self) -> float:
        """Smallest bulk ESS per 1,000 leapfrog steps after warm-up; NaN where they were not recorded."""
        if not self.num_gradients:
            return float("nan")
        return float(self.table["ess_bulk"].min(skipna=False)) / self.num_gradients * 1000.0


def convergence(data: xr.DataTree, *, tune: int | None = None) -> Convergence:
    """Apply the gate to groups ``posterior``, ``coordinates``, ``sample_stats``; advice names `tune`."""
    posterior = data["posterior"].to_dataset()
    tables = [mixing_table(posterior).assign(kind="parameter")]
    if "coordinates" in data.children:
        tables.append(mixing_table(data["coordinates"].to_dataset()).assign(kind="coordinate"))
    table = pd.concat(tables)
    num_chains, num_draws = posterior.sizes["chain"], posterior.sizes["draw"]
    stats = data["sample_stats"].to_dataset() if "sample_stats" in data.children else xr.Dataset()
    num_divergences = int(stats["diverging"].sum()) if "diverging" in stats else 0
    e_bfmi = energy_bfmi(stats["energy"], stats.get("part")) if "energy" in stats else np.empty(0)
    longer = "raise tune" if tune is None else f"raise tune above {tune}"
    problems = (
        *([] if num_chains >= 2 else ["one chain cannot show that it has converged: give 4 chains"]),
        *_mixing_problems(table, num_draws, longer),
        *_transition_problems(stats, num_divergences, e_bfmi, num_chains * num_draws, longer),
    )
    text = (
        f"R-hat at most {table['r_hat'].max():.3f}, effective sample sizes at least "
        f"{_least_ess(table):,.0f} of {num_chains * num_draws:,} draws, {num_divergences:,} divergences"
    )
    text += f", E-BFMI at least {e_bfmi.min():.2f}." if e_bfmi.size else "."
    return Convergence(
        table=table,
        num_divergences=num_divergences,
        e_bfmi=e_bfmi,
        num_draws=num_chains * num_draws,
        num_gradients=int(stats["n_steps"].sum()) if "n_steps" in stats else 0,
        converged=not problems,
        problems=problems,
        text=f"Not converged ({'; '.join(problems)}). {text}" if problems else f"Converged: {text}",
    )


def mixing_table(draws: xr.Dataset) -> pd.DataFrame:
    """Return R-hat, ESS and whether they pass of each variable, or of each element by its label."""
    scalars = _scalars(draws)
    if min(draws.sizes["chain"], draws.sizes["draw"] // 4) < 1:
        columns = {name: np.full(len(scalars), np.nan) for name in ("r_hat", "ess_bulk", "ess_tail")}
    else:
        with np.errstate(divide="ignore", invalid="ignore"):  # chains that do not move: NaN, reported as such
            measures = {
                "r_hat": azs.rhat(scalars),
                "ess_bulk": azs.ess(scalars, method="bulk"),
                "ess_tail": azs.ess(scalars, method="tail"),
            }
        columns = {key: np.array([float(found[name]) for name in scalars]) for key, found in measures.items()}
        if draws.sizes["chain"] < 2:
            columns["r_hat"] = np.full(len(scalars), np.nan)
    table = pd.DataFrame(columns, index=pd.Index([str(name) for name in scalars], name="variable"))
    table["passed"] = (
        (table["r_hat"] <= MAX_R_HAT) & (table["ess_bulk"] >= MIN_ESS) & (table["ess_tail"] >= MIN_ESS)
    )
    return table


def energy_bfmi(energy: xr.DataArray, part: xr.DataArray | None = None) -> Floats:
    """Return the E-BFMI of each chain: how much of the energy's spread one transition covers, dims (chain,).

    Where components of the posterior were sampled apart and then interleaved, `part` says which one a draw
    belongs to. Transitions are within a component: the smallest value counts of those with at least
    :data:`MIN_PART_DRAWS` draws in the chain; fewer say too little.
    """
    values = energy.transpose("chain", "draw").to_numpy().astype(np.float64)
    parts = np.zeros(values.shape) if part is None else part.transpose("chain", "draw").to_numpy()
    found = []
    for chain, numbers in zip(values, parts, strict=True):
        components, counts = np.unique(numbers, return_counts=True)
        large = components[counts >= min(MIN_PART_DRAWS, int(counts.max()))]
        found.append(min(_bfmi(chain[numbers == component]) for component in large))
    return np.array(found)


def _bfmi(energy: Floats) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.mean(np.diff(energy) ** 2) / np.var(energy))


def _scalars(draws: xr.Dataset) -> xr.Dataset:
    """Split variables with further dims into one variable an element, named by its labels."""
    scalars: dict[str, xr.DataArray] = {}
    for name, variable in draws.data_vars.items():
        others = [dim for dim in variable.dims if dim not in {"chain", "draw"}]
        if not others:
            scalars[str(name)] = variable
            continue
        flat = variable.stack(element=others, create_index=False)  # noqa: PD013 - of xarray, not pandas
        for index in range(flat.sizes["element"]):
            one = flat.isel(element=index)
            labels = [str(one[dim].item()) for dim in others if dim in one.coords] or [str(index)]
            # A lone vector's labels say what its elements are; several could share a label.
            key = ", ".join(labels) if len(draws.data_vars) == 1 else f"{name}[{', '.join(labels)}]"
            scalars[key] = one.drop_vars([dim for dim in others if dim in one.coords])
    return xr.Dataset(scalars)


def _mixing_problems(table: pd.DataFrame, num_draws: int, longer: str) -> Iterator[str]:
    is_broken = table[["r_hat", "ess_bulk", "ess_tail"]].isna().any(axis=1)
    if is_broken.any():
        names = ", ".join(table.index[is_broken][:3])
        yield f"R-hat or ESS could not be computed for {names}{_more(is_broken)}: a chain did not move"
    is_high = table["r_hat"] > MAX_R_HAT
    if is_high.any():
        value = float(table["r_hat"].max())
        # so many digits that the rounding does not hide that it is above the limit
        digits = next((n for n in range(2, 6) if round(value, n) > MAX_R_HAT), 6)
        yield (
            f"R-hat {value:.{digits}f} on {table['r_hat'].idxmax()} is above {MAX_R_HAT}{_more(is_high)}: "
            f"{longer}, then draws"
        )
    for column, title in (("ess_bulk", "bulk"), ("ess_tail", "tail")):
        is_low = table[column] < MIN_ESS
        if is_low.any():
            value = float(table[column].min())
            enough = int(np.ceil(1.2 * num_draws * MIN_ESS / max(value, 1.0) / 100.0)) * 100
            yield (
                f"{title} ESS {np.floor(value):.0f} of {table[column].idxmin()} is below {MIN_ESS:.0f}"
                f"{_more(is_low)}: raise draws from {num_draws} to about {min(enough, 20 * num_draws)}"
            )


def _transition_problems(
    stats: xr.Dataset, num_divergences: int, e_bfmi: Floats, num_draws: int, longer: str
) -> Iterator[str]:
    missing = [name for name in ("diverging", "energy") if name not in stats]
    if missing:
        yield f"the sampler recorded no {' and no '.join(missing)}: the gate cannot be checked"
    if num_divergences:
        yield (
            f"{num_divergences:,} of {num_draws:,} draws diverged: {longer}; if they stay, the "
            "priors or the noise option do not suit the trace"
        )
    is_low = ~(e_bfmi >= MIN_E_BFMI)
    if is_low.any():
        chain = int(np.argmin(np.nan_to_num(e_bfmi, nan=-1.0)))
        yield f"E-BFMI {e_bfmi[chain]:.2g} of chain {chain} is below {MIN_E_BFMI}{_more(is_low)}: {longer}"


def _more(mask: pd.Series | Bools) -> str:
    others = int(mask.sum()) - 1
    return f" (and {others} more)" if others > 0 else ""


def _least_ess(table: pd.DataFrame) -> float:
    return float(table[["ess_bulk", "ess_tail"]].to_numpy(dtype=np.float64).min())


WELL, PARTLY, WEAKLY = 0.9, 0.5, 0.1
"""Contractions from which a parameter counts as well, partly and weakly identified."""
SHIFTED = 0.5
"""Prior standard deviations by which a mean has to move for the data to have said something nonetheless."""


@dataclass(frozen=True)
class KnownPrior:
    """A prior of a positive parameter in numbers: moments of its logarithm, median and central 95 %."""

    mu: float
    sigma: float
    median: float
    low: float
    high: float


type AnyPrior = Prior | KnownPrior


def known_priors(prior: xr.Dataset, priors: Priors | None) -> dict[str, AnyPrior]:
    """Return the prior of each parameter: as documented, else as its draws have it."""
    if priors is not None:
        return dict(priors)
    found: dict[str, AnyPrior] = {}
    for name, draws in prior.items():
        logs = np.log(draws.to_numpy())
        low, median, high = np.exp(np.quantile(logs, [0.025, 0.5, 0.975]))
        mu, sigma = float(logs.mean()), float(logs.std(ddof=1))
        found[str(name)] = KnownPrior(mu, sigma, float(median), float(low), float(high))
    return found


def parameter_table(
    model: LatencyModel,
    posterior: xr.Dataset,
    prior: xr.Dataset,
    gate: Convergence,
    *,
    priors: Priors | None,
    noise: str,
    probability: float,
) -> pd.DataFrame:
    """Return the rows of the documented parameters, the noise parameters and the identified combinations.

    The columns: :meth:`bayes_sched.posterior.fitted.FittedModel.parameter_table`. `priors` is None where a
    population's took their place: their draws tell of them, as those of combinations always do.
    """
    known = known_priors(prior, priors)
    mixing = gate.table[gate.table["kind"] == "parameter"]
    rows = []
    for kind, parameters in (("parameter", model.parameters), ("noise", model.noise_parameters(noise))):
        for p in parameters:
            about = {"name": p.name, "meaning": p.meaning, "unit": p.unit}
            rows.append(_row(about, posterior[p.name], known[p.name], mixing, probability) | {"kind": kind})
    combinations, drawn = model.combinations(posterior), model.combinations(prior)
    mixing = mixing_table(combinations)
    for name, draws in combinations.items():
        about = {"name": str(name), "meaning": draws.attrs["meaning"], "unit": draws.attrs["unit"]}
        logs, median = np.log(drawn[name]), float(drawn[name].median())
        own = KnownPrior(float(logs.mean()), float(logs.std(ddof=1)), median, 0.0, math.inf)
        rows.append(_row(about, draws, own, mixing, probability) | {"kind": "combination"})
    return pd.DataFrame(rows)


def _row(
    about: dict[str, str], draws: xr.DataArray, prior: AnyPrior, mixing: pd.DataFrame, probability: float
) -> dict[str, Any]:
    name, values = about["name"], draws.to_numpy().ravel()
    logs, tail = np.log(values), 0.5 * (1.0 - probability)
    lower, median, upper = np.quantile(values, [tail, 0.5, 1.0 - tail]).tolist()
    contraction = float(1.0 - np.var(logs, ddof=1) / prior.sigma**2)
    words = verdict(name, contraction=contraction, shift=float((logs.mean() - prior.mu) / prior.sigma))
    if not prior.low <= float(np.median(values)) <= prior.high:
        words += f"; outside the prior's central 95 %, {prior.low:.4g} - {prior.high:.4g} {about['unit']}"
    return {
        **about,
        "mean": float(values.mean()),
        "median": median,
        "lower": lower,
        "upper": upper,
        **{column: float(mixing[column].to_dict()[name]) for column in ("ess_bulk", "ess_tail", "r_hat")},
        "prior_median": prior.median,
        "contraction": contraction,
        "verdict": words,
    }


def verdict(name: str, *, contraction: float, shift: float) -> str:
    """Say in words what the data know of a parameter."""
    if contraction >= WELL:
        return "well identified by the data"
    if contraction >= PARTLY:
        return "partly identified by the data"
    if contraction >= WEAKLY:
        return "weakly identified: the prior matters"
    if abs(shift) >= SHIFTED:
        side = "above" if shift > 0 else "below"
        return (
            f"the data move {name} {side} its prior by {abs(shift):.1f} prior standard deviations, "
            "but do not narrow it"
        )
    if contraction <= -WEAKLY:
        return f"the data do not narrow {name}: its posterior is wider than its prior"
    return f"the data say nothing about {name}: its posterior is its prior"
