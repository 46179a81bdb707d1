"""Priors as data: documented ranges turned into log-normal distributions, and overrides of them.

A range is read as the central 95 % of the prior. Its geometric middle is the median, so

    mu = (ln low + ln high) / 2,    sigma = (ln high - ln low) / (2 * 1.96).

A range that starts at 0 has no geometric middle: it counts as the three decades below its upper end.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bayes_sched.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from bayes_sched.arrays import Floats
    from bayes_sched.model.equation import Parameter

_Z = 1.959963984540054  # standard normal quantile of 0.975
_DECADES_BELOW = 1e-3


@dataclass(frozen=True, slots=True, repr=False)
class Prior:
    """A log-normal prior of one positive parameter.

    Attributes
    ----------
    name : str
        The parameter.
    low, high : float
        Central 95 % interval of the prior, in the parameter's unit, ``0 < low < high``.
    """

    name: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (0.0 < self.low < self.high < math.inf):
            raise InputError(
                f"prior of {self.name}: low = {self.low:g} and high = {self.high:g} must be finite numbers "
                "with 0 < low < high"
            )

    @classmethod
    def from_range(cls, name: str, low: float, high: float) -> Prior:
        """Return the prior of a documented range; ``low = 0`` means three decades below ``high``."""
        return cls(name, high * _DECADES_BELOW if low == 0.0 else low, high)

    @property
    def mu(self) -> float:
        """Mean of the parameter's natural logarithm: the logarithm of the prior median."""
        return 0.5 * (math.log(self.low) + math.log(self.high))

    @property
    def sigma(self) -> float:
        """Standard deviation of the parameter's natural logarithm."""
        return (math.log(self.high) - math.log(self.low)) / (2.0 * _Z)

    @property
    def median(self) -> float:
        """Prior median, in the parameter's unit."""
        return math.exp(self.mu)

    def __repr__(self) -> str:
        return f"LogNormal({self.name}: 95 % in {self.low:g} - {self.high:g}, median {self.median:.3g})"


class JointPrior(Protocol):
    """What is known of several parameters together, in place of their documented priors."""

    @property
    def text(self) -> str:
        """Whose prior it is, in words."""

    def check(self, priors: Priors) -> None:
        """Raise `InputError` where a model with these documented priors lacks what it tells of."""

    def log_ratio(self, logs: Mapping[str, Any], priors: Priors, backend: Any) -> Any:
        """Return the log of this density over that of the documented `priors`, dims of `logs`."""

    def draw(self, priors: Priors, size: int, rng: np.random.Generator) -> dict[str, Floats]:
        """Draw logarithms of every parameter, dims (size,)."""


class Priors(Mapping[str, Prior]):
    """An ordered, immutable table of priors by parameter name.

    Parameters
    ----------
    priors : iterable of Prior
        One for each parameter of a model, in the model's order.
    population : JointPrior, optional
        What other servers tell, in place of the priors of what data identify.
    """

    def __init__(self, priors: Iterable[Prior], *, population: JointPrior | None = None) -> None:
        self._priors = {prior.name: prior for prior in priors}
        self.population = population

    @classmethod
    def from_parameters(cls, parameters: Iterable[Parameter]) -> Priors:
        """Return the priors that the documented ranges of `parameters` stand for."""
        return cls(Prior.from_range(p.name, p.low, p.high) for p in parameters)

    @classmethod
    def from_dict(cls, table: Mapping[str, Mapping[str, float]]) -> Priors:
        """Return the priors written by :meth:`to_dict`."""
        return cls(Prior(name, float(row["low"]), float(row["high"])) for name, row in table.items())

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return the table as plain numbers, ready for JSON."""
        return {name: {"low": prior.low, "high": prior.high} for name, prior in self.items()}

    def override(self, table: Mapping[str, Any]) -> Priors:
        """Return a copy in which some rows are replaced.

        Parameters
        ----------
        table : mapping
            Parameter name to ``{"low": ..., "high": ...}``, the new central 95 % interval.

        Raises
        ------
        InputError
            A name is not a parameter of the model, or a row is not two numbers with ``0 <= low < high``.
        """
        changed = dict(self._priors)
        for name, row in table.items():
            if name not in changed:
                raise InputError(f"prior of {name}: no such parameter; the model has {', '.join(changed)}")
            changed[name] = Prior.from_range(name, *_low_high(name, row))
        return Priors(changed.values(), population=self.population)

    def within(self, population: JointPrior) -> Priors:
        """Return these priors with a population's in place of those of what data identify."""
        population.check(self)
        return Priors(self.values(), population=population)

    def draw(self, size: int, rng: np.random.Generator) -> dict[str, Floats]:
        """Draw logarithms of every parameter, dims (size,)."""
        if self.population is not None:
            return self.population.draw(self, size, rng)
        return {name: rng.normal(prior.mu, prior.sigma, size) for name, prior in self.items()}

    def __getitem__(self, name: str) -> Prior:
        return self._priors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._priors)

    def __len__(self) -> int:
        return len(self._priors)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Priors):
            return NotImplemented
        return self._priors == other._priors and self.population is other.population

    def __hash__(self) -> int:
        return hash(tuple(self._priors.values()))

    def __repr__(self) -> str:
        return "Priors(\n" + "".join(f"  {prior!r},\n" for prior in self.values()) + ")"


def _low_high(name: str, row: object) -> tuple[float, float]:
    if not isinstance(row, Mapping) or set(row) != {"low", "high"}:
        raise InputError(
            f"prior of {name}: write it as a table with exactly the numbers low and high, found {row!r}"
        )
    for key in ("low", "high"):
        if isinstance(row[key], bool) or not isinstance(row[key], int | float):
            raise InputError(f"prior of {name}: {key} must be a number, found {row[key]!r}")
    return float(row["low"]), float(row["high"])


def read_prior_overrides(path: str | PathLike[str]) -> dict[str, Any]:
    """Read a TOML file such as ``examples/priors.toml`` for :meth:`Priors.override`.

    Raises
    ------
    InputError
        The file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read the prior overrides ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TOML file ({error}); examples/priors.toml shows the form") from error
