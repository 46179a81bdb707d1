"""The servers of a comparison: labels, prices, in what they differ besides the GPU, and joint draws of them.

The fits of different traces share neither data nor parameters, so given both traces the posterior of the pair
is the product of the two. A draw from a product is a draw of each factor, chosen independently: to pair the
draws of one posterior with a random permutation of those of the other gives draws of the pair, whatever was
paired before. The order in which a sampler left them will not do: two fits with the same seed share their
random numbers, and their draws may follow each other from index to index. Posteriors of different lengths
are thinned to the shorter one, evenly over the chains, before they are permuted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from numbers import Real

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.arrays import Floats
from bayes_sched.checks.local import LocalCheck, check_locally
from bayes_sched.errors import InputError
from bayes_sched.format import listed, percent
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.prediction import Evaluator
from bayes_sched.posterior.provenance import FitDescription
from bayes_sched.steps import Steps, as_steps

DEFAULT_PAIRED_DRAWS = 4000
"""Draws of each posterior that a comparison uses at most, unless told otherwise."""
MIN_STEPS = 20
"""A median of at least so many observed steps is compared with the equation."""

_SIZES = ["batch_size", "total_tokens"]
_SHARE = 0.9
_BUDGET = "most tokens in a step"
_BUDGET_TOLERANCE = 0.05
_UNKNOWN = "unknown"


@dataclass(frozen=True, eq=False, kw_only=True)
class Member:
    """One server of a comparison, by its label.

    `discrepancy`, a share, is by how much the equation misses the observed medians: nine in ten (B, S) by
    less; None where no (B, S) was seen :data:`MIN_STEPS` times.
    """

    label: str
    fit: FitDescription
    discrepancy: float | None
    price_per_hour: float | None


def labelled(fits: Sequence[FittedModel] | Mapping[str, FittedModel]) -> dict[str, FittedModel]:
    """Return the fits by label after making sure that they can be compared."""
    items = fits.items() if isinstance(fits, Mapping) else zip(labels_of(fits), fits, strict=True)
    chosen = {str(label): fit for label, fit in items}
    if len(chosen) < 2:
        raise InputError(f"{len(chosen)} fit: a comparison takes two or more")
    for (label_a, a), (label_b, b) in combinations(chosen.items(), 2):
        _check_pair(label_a, a, label_b, b)
    return chosen


def labels_of(fits: Sequence[FittedModel]) -> list[str]:
    """Return a distinct label for each fit: its GPU, else GPU and LLM, else the name of the result."""
    gpus = [fit.metadata.labels.get("gpu", "") for fit in fits]
    llms = [fit.metadata.labels.get("llm", "") for fit in fits]
    both = [f"{gpu}, {llm}" if gpu and llm else "" for gpu, llm in zip(gpus, llms, strict=True)]
    names = [fit.metadata.name for fit in fits]
    for candidates in (gpus, both, names):
        if all(candidates) and len(set(candidates)) == len(fits):
            return candidates
    return [f"{name} ({number})" for number, name in enumerate(names, start=1)]


def _check_pair(label_a: str, a: FittedModel, label_b: str, b: FittedModel) -> None:
    if _is_same(a, b):
        names = " and ".join(dict.fromkeys([a.metadata.name, b.metadata.name]))
        raise InputError(f"{names}: the same fit twice; a comparison takes fits of different traces")
    shapes = [[(p.name, p.unit) for p in fit.model.parameters] for fit in (a, b)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"{label_a} and {label_b} are fits of incompatible models ({a.model.name}, {b.model.name}: their "
            "parameters differ): fit both traces with the same model"
        )


def _is_same(a: FittedModel, b: FittedModel) -> bool:
    if a is b:
        return True
    is_same_trace = a.metadata.trace_sha256 == b.metadata.trace_sha256
    return is_same_trace and a.posterior.sizes == b.posterior.sizes and a.posterior.equals(b.posterior)


def prices_of(fits: Mapping[str, FittedModel], given: Mapping[str, float]) -> dict[str, float | None]:
    """Return an hour's price of each server, by label; `given` is by label or by name of the result."""
    names = {label: fit.metadata.name for label, fit in fits.items()}
    found: dict[str, float | None] = dict.fromkeys(fits)
    for key, price in given.items():
        matches = [label for label, name in names.items() if key in (label, name)]
        if len(matches) != 1:
            what = "fits several" if matches else "is that of no fit"
            known = ", ".join(dict.fromkeys([*names, *names.values()]))
            raise InputError(f"price of {key!r}: the label {what}; give one of {known}")
        is_number = isinstance(price, Real) and not isinstance(price, bool)
        if not (is_number and 0.0 < price < math.inf):
            raise InputError(f"price of {key!r}: {price!r} is no positive number an hour")
        if found[matches[0]] is not None:
            raise InputError(f"price of {key!r}: given twice (label and name of the result)")
        found[matches[0]] = float(price)
    return found


def discrepancy_of(fit: FittedModel) -> float | None:
    """Return by how much the equation misses the observed medians, as :class:`Member` keeps it."""
    cells = cell_table(fit).assign(median_ms=fit.cells["median_ms"].to_numpy())
    often = cells[cells["count"] >= MIN_STEPS]
    if often.empty:
        return None
    predicted = fit.quantile(often[_SIZES], 0.5).to_numpy()
    return float(np.quantile(np.abs(often["median_ms"].to_numpy() / predicted - 1.0), _SHARE))


def cell_table(fit: FittedModel) -> pd.DataFrame:
    """Return the seen (B, S) of a fit and how many steps each holds."""
    return pd.DataFrame({name: fit.cells[name].to_numpy() for name in (*_SIZES, "count")})


def difference_table(fits: Mapping[str, FittedModel]) -> pd.DataFrame:
    """Return in what the servers and their fits differ: ``what``, ``is_server``, and a column a label.

    ``is_server`` says whether it is about the server and not the GPU. A row of the LLM stands there also
    where one of them is unknown.
    """
    described = _described(list(fits.values()))
    rows = [
        [what, is_server, *(_UNKNOWN if value in (None, "") else str(value) for value in values)]
        for what, values, is_server in described
        if _differ(what, values)
    ]
    return pd.DataFrame(rows, columns=["what", "is_server", *fits])


def _described(fits: Sequence[FittedModel]) -> list[tuple[str, list[object], bool]]:
    provenances = [fit.metadata for fit in fits]
    keys = dict.fromkeys(key for metadata in provenances for key in metadata.labels)
    titles = {"gpu": "GPU", "llm": "LLM"} | {key: key for key in keys if key not in ("gpu", "llm")}
    found: list[tuple[str, list[object], bool]] = [
        (title, [metadata.labels.get(key) for metadata in provenances], key != "gpu")
        for key, title in titles.items()
    ]
    return [
        *found,
        (_BUDGET, [int(fit.cells["total_tokens"].max()) for fit in fits], True),
        ("longest step kept (ms)", [f"{m.cleaning.max_latency_ms:g}" for m in provenances], False),
        ("model", [metadata.model.name for metadata in provenances], False),
        ("noise", [metadata.noise for metadata in provenances], False),
    ]


def _differ(what: str, values: Sequence[object]) -> bool:
    if what == _BUDGET:
        numbers = [float(str(value)) for value in values]
        return max(numbers) > (1.0 + _BUDGET_TOLERANCE) * min(numbers)
    return len(set(values)) > 1 or (what == "LLM" and None in values)


def warnings_of(
    fits: Mapping[str, FittedModel],
    differences: pd.DataFrame,
    discrepancies: Mapping[str, float | None],
    *,
    rope: float,
) -> tuple[str, ...]:
    """Return what to beware of, each a sentence; the worst first."""
    found = []
    for label, fit in fits.items():
        if not fit.converged:
            problem = next(iter(fit.metadata.problems), "see its report")
            found.append(
                f"{label} (result {fit.metadata.name}) has NOT CONVERGED ({problem}): do not "
                "act on any number here that involves it; fit its trace again"
            )
    for a, b in combinations(fits, 2):
        if fits[a].metadata.trace_sha256 == fits[b].metadata.trace_sha256:
            found.append(
                f"{a} and {b} are fits of the same trace: their posteriors are not independent, "
                "as the intervals of their ratios suppose"
            )
    others = [
        f"{row['what']} ({listed([f'{row[label]} on {label}' for label in fits])})"
        for row in differences[differences["is_server"].astype(bool)].to_dict("records")
    ]
    if others:
        found.append(f"this compares servers, not GPUs; they differ, or may differ, in: {'; '.join(others)}")
    for label, fit in fits.items():
        found += [f"{label}: {warning}" for warning in fit.warnings]
    for label, discrepancy in discrepancies.items():
        if discrepancy is not None and discrepancy > rope:
            found.append(
                f"{label}: the equation misses one in ten of the observed medians by more than "
                f"{percent(discrepancy, 1)}, and no interval here contains that: take ratios that are as "
                "near to the region of practical equivalence as undecided"
            )
    return tuple(found)


def paired_posteriors(
    posteriors: Sequence[xr.Dataset], *, max_draws: int = DEFAULT_PAIRED_DRAWS, seed: int = 0
) -> tuple[xr.Dataset, ...]:
    """Return as many draws of each posterior in random order: those of one index are a joint draw.

    The posteriors, dims (chain, draw, ...), may have different lengths; the result has dims (draw, ...).
    """
    if max_draws < 2:
        raise InputError(f"max_draws = {max_draws}: give at least 2")
    sizes = [posterior.sizes["chain"] * posterior.sizes["draw"] for posterior in posteriors]
    num = min(max_draws, *sizes)
    paired = []
    for number, (posterior, size) in enumerate(zip(posteriors, sizes, strict=True)):
        chosen = ((np.arange(num) + 0.5) * size / num).astype(np.int64)
        order = np.random.default_rng([seed, number]).permutation(chosen)
        flat = posterior.transpose("chain", "draw", ...)
        found = {
            name: (("draw", *draws.dims[2:]), draws.to_numpy().reshape(size, *draws.shape[2:])[order])
            for name, draws in flat.data_vars.items()
        }
        paired.append(xr.Dataset(found, coords={"draw": np.arange(num)}))
    return tuple(paired)


class Servers:
    """Several servers, by label, with joint draws of their parameters."""

    def __init__(self, fits: Mapping[str, FittedModel], *, max_draws: int, seed: int) -> None:
        self.labels = tuple(fits)
        self.fits = dict(fits)
        every = [fit.posterior for fit in fits.values()]
        self.posteriors = dict(
            zip(fits, paired_posteriors(every, max_draws=max_draws, seed=seed), strict=True)
        )
        self._evaluators = {
            label: Evaluator(
                fits[label].model,
                posterior.expand_dims(chain=[0]),
                max_draws=None,
                contexts=fits[label].contexts,
            )
            for label, posterior in self.posteriors.items()
        }

    def mean_latency_ms(self, steps: Steps) -> xr.DataArray:
        """Return draws of the mean latency, ms, dims (gpu, draw, *steps)."""
        parts = [self.server_latency_ms(label, steps) for label in self.labels]
        return self._joined(parts).rename("mean_latency_ms").assign_attrs(units="ms")

    def server_latency_ms(self, label: str, steps: Steps) -> xr.DataArray:
        """Return draws of the mean latency of one server, ms, dims (draw, *steps)."""
        return self._evaluators[label].mean(steps).isel(chain=0, drop=True)

    def scale_ms(self, steps: Steps) -> xr.DataArray:
        """Return draws of the noise scale, ms, dims (gpu, draw, *steps)."""
        every = [e.per_draw(steps, lambda mean, scale, nu, x: scale) for e in self._evaluators.values()]
        return self._joined([draws.isel(chain=0, drop=True) for draws in every]).rename("scale_ms")

    def nu(self) -> xr.DataArray:
        """Return draws of the degrees of freedom, dims (gpu, draw)."""
        return self._joined([posterior["nu"] for posterior in self.posteriors.values()])

    def noise_quantile_ms(self, label: str, steps: Steps, q: float) -> xr.DataArray:
        """Return each draw's noise quantile of one server, ms, dims (draw, *steps)."""
        result = self._evaluators[label].quantile_draws(steps, np.array([q]))
        return result.isel(quantile=0, chain=0, drop=True)

    def quantities(self, label: str) -> dict[str, Floats]:
        """Return draws of the parameters of one server and of what data identify, dims (draw,)."""
        draws = self.posteriors[label]
        found = {**draws, **self.fits[label].model.combinations(draws)}
        return {str(name): values.to_numpy() for name, values in found.items() if values.dims == ("draw",)}

    def in_regions(self, steps: Steps) -> xr.DataArray:
        """Return whether the trace of each server covers each step: bool, dims (gpu, *steps)."""
        return self._joined([fit.in_region(steps) for fit in self.fits.values()]).rename("in_region")

    @cached_property
    def local(self) -> dict[str, LocalCheck]:
        """Where the fit of each server is right, by label."""
        return {label: check_locally(fit) for label, fit in self.fits.items()}

    def own_factors(self, steps: Steps) -> xr.DataArray:
        """Return what makes fitted medians those of the trace where it contradicts the fit, else 1.

        Dims (gpu, *steps).
        """
        b, s = xr.broadcast(as_steps(steps)["batch_size"], as_steps(steps)["total_tokens"])
        parts = [b.copy(data=of.factors(b, s)).reset_coords(drop=True) for of in self.local.values()]
        return self._joined(parts).rename("own_factors")

    def _joined(self, parts: Sequence[xr.DataArray]) -> xr.DataArray:
        return xr.concat(parts, dim=pd.Index(self.labels, name="gpu"), join="exact")
