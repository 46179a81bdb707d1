"""How long and with what to sample."""

from __future__ import annotations

from dataclasses import dataclass

from bayes_sched.errors import InputError

SAMPLERS = ("nutpie", "pymc")


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How long and with what to sample.

    Attributes
    ----------
    draws : int
        Kept draws of each chain, over all parts of the posterior.
    tune : int
        Tuning draws of each chain for each part.
    chains : int
        Number of chains.
    seed : int
        Seed of everything random; the same seed, data and versions give the same numbers.
    sampler : str
        ``nutpie`` or ``pymc``.
    target_accept : float
        Acceptance probability that the step size is tuned to.
    cores : int, optional
        Chains that run at once; by default as many as there are processors.
    """

    draws: int = 1000
    tune: int = 200
    chains: int = 4
    seed: int = 0
    sampler: str = "nutpie"
    target_accept: float = 0.9
    cores: int | None = None

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            msg = f"sampler {self.sampler!r}: choose one of {', '.join(SAMPLERS)}"
            raise InputError(msg)
        for name, least in (("draws", 1), ("tune", 1), ("chains", 1), ("seed", 0)):
            if getattr(self, name) < least:
                msg = f"{name} = {getattr(self, name)}: must be at least {least}"
                raise InputError(msg)
        if not 0.0 < self.target_accept < 1.0:
            msg = f"target_accept = {self.target_accept:g}: must lie between 0 and 1"
            raise InputError(msg)
